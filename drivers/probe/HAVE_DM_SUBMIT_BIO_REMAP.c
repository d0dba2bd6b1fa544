// SPDX-License-Identifier: GPL-2.0-only
/* dm_submit_bio_remap() exists, and a target says that it uses it. */
#include <linux/device-mapper.h>

void probe(struct dm_target *ti, struct bio *bio);
void probe(struct dm_target *ti, struct bio *bio)
{
	ti->accounts_remapped_io = true;
	dm_submit_bio_remap(bio, NULL);
}
