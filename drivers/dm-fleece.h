/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-fleece: units and rules that every file shares.
 *
 * Units. sector_t counts 512-byte sectors. cluster_t is the index of a cluster,
 * granule numbers are u64. Every other number carries its unit in its name.
 *
 * Dependencies point one way:
 *
 *   main -> control -> snapshot -> origin -> cbw -> store, inflight, pages
 *                                  origin -> tracker
 *                                  origin -> metadata_dev -> metadata -> metadata_format
 *
 * control and snapshot read the tracker, too; bits and map serve all that have maps.
 *
 * Lock order, outermost first. A lock is never taken while a later one of this
 * list is held:
 *
 *   1. registry_lock         snapshot.c, then origin.c; mutexes: which of them exist
 *   2. origin->message_lock  origin.c, mutex: a message that changes checkpoints, whole
 *   3. origin->change_lock   origin.c, mutex: changes of checkpoints and size, whole
 *   4. dev->lock             metadata_dev.c, mutex: the right to be the worker of the metadata
 *   5. notes_lock            metadata_dev.c, mutex: what is kept of those that have failed
 *   6. origin->lock          origin.c, mutex: the tracker's history, the snapshots of the
 *                            origin, and the right to quiesce its writes
 *   7. snap->ti_lock         snapshot.c, mutex: the table that hears of events;
 *      origin->ti_lock       origin.c, mutex: as for the origin
 *   8. cbw->release_lock     cbw.c, mutex: partly released clusters
 *   9. cbw->grow_lock        cbw.c, mutex: the number of slots
 *  10. cbw->merge_lock       cbw.c, mutex: completing the access map
 *  11. cbw->lose_lock        cbw.c, mutex: losing a cluster, and the note of it
 *  12. origin->held_lock     origin.c, spin: writes held back while quiescing
 *  13. cbw->lock             cbw.c, spin: copies in flight, slots, waiting writes, and
 *                            every change of the state and the done map
 *  14. pool->lock            pages.c, spin: buffer pages that are not in use
 *  15. md->lock              metadata.c, spin: intents, and the writes that wait for them
 *  16. dev->io_lock          metadata_dev.c, spin: blocks of the metadata device under way
 *
 * The spin locks but dev->io_lock are not taken in interrupts: completions of copies are handed
 * to a workqueue, or dealt with in a thread that submits, and the recheck of a read is
 * lock-free.
 *
 * lose_lock may be held while memory is waited for (GFP_NOIO).
 *
 * No lock is held across I/O, with these exceptions: message_lock, change_lock and dev->lock
 * are held across that of the metadata device, and a flush and a read of the origin, see
 * metadata_dev.h; origin->lock is held while writes under way are waited for, with a limit;
 * release_lock is held while the writes that a release lets go are submitted, change_lock
 * while those are that a snapshot without its checkpoint lets go. None of them is taken on the
 * way of a live write.
 */
#ifndef DM_FLEECE_H
#define DM_FLEECE_H

#include <linux/log2.h>
#include <linux/types.h>

typedef u64 cluster_t;

/* Clusters and granules: 4 KiB to 16 MiB. */
#define FLEECE_UNIT_SECTORS_MIN		8U
#define FLEECE_UNIT_SECTORS_MAX		32768U

/**
 * fleece_is_unit() - may a cluster or a granule be of this size?
 * @sectors: the size.
 */
static inline bool fleece_is_unit(unsigned int sectors)
{
	return sectors >= FLEECE_UNIT_SECTORS_MIN && sectors <= FLEECE_UNIT_SECTORS_MAX &&
	       is_power_of_2(sectors);
}

/* The start of the COW device holds a header; slots begin after it. */
#define FLEECE_HEADER_SECTORS		2048U

#endif
