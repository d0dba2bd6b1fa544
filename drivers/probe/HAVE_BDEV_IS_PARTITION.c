// SPDX-License-Identifier: GPL-2.0-only
/* bdev_is_partition() exists. */
#include <linux/blkdev.h>

bool probe(struct block_device *bdev);
bool probe(struct block_device *bdev)
{
	return bdev_is_partition(bdev);
}
