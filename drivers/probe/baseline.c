// SPDX-License-Identifier: GPL-2.0-only
/* Must compile on every kernel: if it does not, the probes say nothing. */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/module.h>

void probe(struct dm_target *ti);
void probe(struct dm_target *ti)
{
	ti->num_discard_bios = 1;
}
