// SPDX-License-Identifier: GPL-2.0-only
/* bio_alloc_bioset() and bio_reset() take the device and the operation. */
#include <linux/bio.h>

struct bio *probe(struct block_device *bdev, struct bio_set *bs);
struct bio *probe(struct block_device *bdev, struct bio_set *bs)
{
	struct bio *bio = bio_alloc_bioset(bdev, 1, REQ_OP_READ, GFP_NOIO, bs);

	bio_reset(bio, bdev, REQ_OP_WRITE);
	return bio;
}
