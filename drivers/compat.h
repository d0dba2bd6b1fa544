/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat: what the kernels from 5.10 on call differently.
 *
 * The code of this module is written for the newest kernel. Whatever an older
 * one lacks is supplied here, and nowhere else. Each HAVE_ macro is the result
 * of compiling one file of probe/ against the kernel being built for, what is a macro
 * of the kernel is asked for itself; kernel versions are never compared, because
 * distributions backport.
 */
#ifndef FLEECE_COMPAT_H
#define FLEECE_COMPAT_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/crc32.h>
#include <linux/device-mapper.h>
#include <linux/highmem.h>
#include <linux/workqueue.h>

#include "compat-config.h"

/*
 * Where a bio does not get its device at once, the bio list of a driver with request queues
 * is for that driver: what is submitted while its bios are executed must not be for another.
 */
#ifdef HAVE_BIO_ALLOC_BDEV
#define FLEECE_BIO_LIST_IS_COMMON	true
#else
#define FLEECE_BIO_LIST_IS_COMMON	false
#endif

#ifndef HAVE_BIO_ALLOC_BDEV
static inline struct bio *fleece_bio_alloc(struct block_device *bdev, unsigned short nr_vecs,
					   unsigned int opf, gfp_t gfp, struct bio_set *bs)
{
	struct bio *bio = bio_alloc_bioset(gfp, nr_vecs, bs);

	if (bio) {
		bio_set_dev(bio, bdev);
		bio->bi_opf = opf;
	}
	return bio;
}

static inline void fleece_bio_reset(struct bio *bio, struct block_device *bdev, unsigned int opf)
{
	bio_reset(bio);
	bio_set_dev(bio, bdev);
	bio->bi_opf = opf;
}
#else
#define fleece_bio_alloc	bio_alloc_bioset
#define fleece_bio_reset	bio_reset
#endif

#ifndef HAVE_BDEV_NR_SECTORS
static inline sector_t bdev_nr_sectors(struct block_device *bdev)
{
	return i_size_read(bdev->bd_inode) >> SECTOR_SHIFT;
}
#endif

#ifndef REQ_POLLED
#define REQ_POLLED		REQ_HIPRI
#endif

#ifndef HAVE_KMAP_LOCAL
#define kmap_local_page		kmap_atomic
#define kunmap_local		kunmap_atomic
#endif

#ifndef HAVE_WQ_PERCPU
#define WQ_PERCPU		0
#endif

/* There crc32c() is in a module of its own, which a plain insmod does not load. */
#ifndef HAVE_CRC32_CRC32C
static inline u32 crc32c(u32 crc, const void *data, size_t bytes)
{
	return __crc32c_le(crc, data, bytes);
}
#endif

/* The mode of dm_get_device(): its type and its flags have new names. */
#ifdef BLK_OPEN_WRITE
#define FLEECE_OPEN_RW		(BLK_OPEN_READ | BLK_OPEN_WRITE)
#define FLEECE_OPEN_READ	BLK_OPEN_READ
#else
#define FLEECE_OPEN_RW		(FMODE_READ | FMODE_WRITE)
#define FLEECE_OPEN_READ	FMODE_READ
#endif

/*
 * A bio that was kept by the map function goes on: newer kernels count it as under way, and
 * trace it, from then on, and charge it to the cgroup of whoever has sent it.
 */
#ifdef HAVE_DM_SUBMIT_BIO_REMAP
static inline void fleece_set_accounts_remapped(struct dm_target *ti)
{
	ti->accounts_remapped_io = true;
}
#else
static inline void fleece_set_accounts_remapped(struct dm_target *ti) {}

static inline void dm_submit_bio_remap(struct bio *clone, struct bio *tgt_clone)
{
	submit_bio_noacct(clone);
}
#endif

/* Writes that must be done as a whole, or not at all. */
#ifndef REQ_ATOMIC
#define REQ_ATOMIC		0
#endif
#ifndef DM_TARGET_ATOMIC_WRITES
#define DM_TARGET_ATOMIC_WRITES	0
#endif

/* What a target says of itself to IMA: older kernels do not ask. */
#ifndef DMEMIT_TARGET_NAME_VERSION
#define DMEMIT_TARGET_NAME_VERSION(type)	do {} while (0)
#endif

/* Newer kernels derive the limit of discards from the field of the hardware. */
static inline void fleece_set_max_discard(struct queue_limits *limits, unsigned int sectors)
{
	limits->max_discard_sectors = sectors;
	limits->max_hw_discard_sectors = sectors;
}

#endif
