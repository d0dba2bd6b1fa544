/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * origin: target "fleece", the live device.
 *
 * An origin is found by its lower device. It outlives a single table: another
 * table of the same device-mapper device, perhaps of another length, shares it. It
 * ends with the last table; its memory with the last reference (of a snapshot, or of a caller
 * of the ioctl).
 *
 * Life of a live write:
 *
 *   admit: a reference on origin->writes. While the writes are being quiesced
 *          there is none to be had, and the write is held back.
 *   cover: does a snapshot still need the old data? Then the copies of all that
 *          do are started, the reference is dropped, and the write waits for the
 *          copies of the first one; afterwards it begins anew.
 *   mark:  the change bits are set.
 *   go:    to the lower device; the reference is dropped when it completes.
 *
 * Quiescing writes: the reference count is first switched to atomic mode, which
 * takes a grace period of RCU but holds nobody back; then it is killed, and from
 * there to the revival only the time that the lower device needs for the writes
 * under way passes. A waiting write holds no reference, so a slow COW device does
 * not delay it. In between no write is on the device or between mark and go: the
 * moment for a snapshot or a checkpoint.
 */
#ifndef FLEECE_ORIGIN_H
#define FLEECE_ORIGIN_H

#include <linux/bio.h>
#include <linux/completion.h>
#include <linux/device-mapper.h>
#include <linux/kref.h>
#include <linux/mutex.h>
#include <linux/percpu-refcount.h>
#include <linux/rculist.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "cbw.h"
#include "tracker.h"

/*
 * struct fleece_origin - one live device
 *
 * Constant: @lower (open as long as a table is), @md (the device-mapper device
 * on it, only compared), @md_devt, @granule_sectors.
 *
 * @nr_sectors: changed under @lock, while the device is suspended and no write is
 *	under way; may be read without.
 *
 * @kref: memory.
 * @node: in the list of origins; protected by the registry lock, as is
 * @nr_tables: tables that share the origin; 0 when it has ended.
 *
 * Protected by @lock: @tracker but its live bits, changes of @cbws, @is_ended,
 * @nr_shrinking (tables that are loaded, not live, and shorter than the origin).
 *
 * @lock: also the right to quiesce.
 * @cbws: the engines of the snapshots; read under RCU. While a write is admitted
 *	none joins, so a write that has asked all of them has asked enough.
 * @ti: the table that I/O comes through; read under RCU; NULL before the first
 *	resume and after the end.
 * @is_suspended: between postsuspend and resume.
 * @writes: references of writes on the way to the device and on it.
 * @drained: completed when the last of them is gone.
 *
 * Protected by @held_lock: @is_quiescing, @held (writes held back).
 *
 * @wq: runs @resubmit and @compact (joining segments, which takes a pass over the
 * device and so is not done while the origin may be suspended).
 */
struct fleece_origin {
	struct kref kref;
	struct list_head node;
	unsigned int nr_tables;

	struct block_device *lower;
	struct mapped_device *md;
	dev_t md_devt;
	sector_t nr_sectors;
	unsigned int granule_sectors;

	struct mutex lock;		/* tracker, snapshots, quiescing */
	struct fleece_tracker tracker;
	struct list_head cbws;
	bool is_ended;
	unsigned int nr_shrinking;

	struct dm_target __rcu *ti;
	bool is_suspended;

	struct percpu_ref writes;
	struct completion drained;
	spinlock_t held_lock;		/* is_quiescing, held */
	bool is_quiescing;
	struct list_head held;
	struct workqueue_struct *wq;
	struct work_struct resubmit;
	struct work_struct compact;
};

/**
 * struct fleece_cow_claim - a COW device that is in use
 * @node: in the list of claims.
 * @devt: the device.
 */
struct fleece_cow_claim {
	struct list_head node;
	dev_t devt;
};

/**
 * fleece_origin_find() - the origin on a lower device
 * @lower: the device that a fleece table names.
 *
 * Context: Process, takes the registry lock.
 * Return: a reference, or NULL.
 */
struct fleece_origin *fleece_origin_find(struct block_device *lower);

/**
 * fleece_origin_find_md() - the origin that is a device-mapper device
 * @devt: number of that device.
 *
 * Context: Process, takes the registry lock.
 * Return: a reference, or NULL.
 */
struct fleece_origin *fleece_origin_find_md(dev_t devt);

/**
 * fleece_origin_claim_cow() - note that a device is used as COW device
 * @claim: to be filled in; belongs to the list until fleece_origin_unclaim_cow().
 * @cow: the device.
 * @error: set to a message on failure.
 *
 * As long as it is, it can neither be an origin nor belong to a second snapshot.
 *
 * Context: Process, takes the registry lock.
 * Return: 0, or -EBUSY.
 */
int fleece_origin_claim_cow(struct fleece_cow_claim *claim, struct block_device *cow,
			    char **error);

/**
 * fleece_origin_unclaim_cow() - the device is free again
 * @claim: from fleece_origin_claim_cow().
 *
 * Context: Process, takes the registry lock.
 */
void fleece_origin_unclaim_cow(struct fleece_cow_claim *claim);

/**
 * fleece_origin_put() - drop a reference
 * @origin: the origin.
 *
 * Context: Process, may sleep.
 */
void fleece_origin_put(struct fleece_origin *origin);

/**
 * fleece_origin_lock() - take origin->lock
 * @origin: the origin.
 *
 * The resume of a snapshot takes this lock while origins may be suspended. So
 * whoever holds it must not wait for memory that is to be had by writing to them.
 *
 * Context: Process, may sleep.
 * Return: to be handed to fleece_origin_unlock().
 */
static inline unsigned int fleece_origin_lock(struct fleece_origin *origin)
{
	unsigned int noio = memalloc_noio_save();

	mutex_lock(&origin->lock);
	return noio;
}

/**
 * fleece_origin_unlock() - release origin->lock
 * @origin: the origin.
 * @noio: from fleece_origin_lock().
 */
static inline void fleece_origin_unlock(struct fleece_origin *origin, unsigned int noio)
{
	mutex_unlock(&origin->lock);
	memalloc_noio_restore(noio);
}

/**
 * fleece_origin_quiesce() - no write is on the device, none gets there
 * @origin: the origin.
 *
 * Reads go on. Writes are held back until fleece_origin_release().
 *
 * Context: Process, holds origin->lock. Waits for writes under way; holds others
 * back for one second at the most, and tries ten times.
 * Return: 0, or -ETIMEDOUT; then writes go on.
 */
int fleece_origin_quiesce(struct fleece_origin *origin);

/**
 * fleece_origin_release() - let writes go on
 * @origin: an origin that is quiesced.
 *
 * Context: Process, holds origin->lock.
 */
void fleece_origin_release(struct fleece_origin *origin);

/**
 * fleece_origin_is_watched() - does every write still come through here?
 * @origin: the origin.
 *
 * Not once its device-mapper device is removed or has got another table. While
 * it is suspended there are no writes. Device-mapper resumes the I/O of a new
 * table a moment before it ends the suspended state that is tested here; a read
 * that completes in just that moment, while an administrator replaces the table
 * of an origin with a snapshot by another target, is not caught.
 *
 * Context: Any.
 */
bool fleece_origin_is_watched(struct fleece_origin *origin);

/**
 * fleece_origin_resume_writes() - look at waiting writes again
 * @origin: the origin (void: resume method of the engine).
 * @waiters: list of struct fleece_waiter.
 *
 * Context: Process, may sleep.
 */
void fleece_origin_resume_writes(void *origin, struct list_head *waiters);

/**
 * fleece_origin_init() - register the target
 *
 * Return: 0 or a negative errno.
 */
int fleece_origin_init(void);

/**
 * fleece_origin_exit() - unregister the target
 */
void fleece_origin_exit(void);

#endif
