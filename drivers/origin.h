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
 *   mark:  the change bits are set. With a metadata device: if their intents are not
 *          metadata_dev yet, the reference is dropped, and the write waits for the worker
 *          of the metadata; afterwards it begins anew.
 *   go:    to the lower device; the reference is dropped when it completes.
 *
 * Quiescing writes: the reference count is first switched to atomic mode, which
 * takes a grace period of RCU but holds nobody back; then it is killed, and from
 * there to the revival only the time that the lower device needs for the writes
 * under way passes. A waiting write holds no reference, so a slow COW device does
 * not delay it. In between no write is on the device or between mark and go: the
 * moment for a snapshot or a checkpoint.
 *
 * A checkpoint of its own takes what was under way for written after it, as nobody can
 * tell: all writes that complete from its begin to the moment are noted in a bitmap, and
 * marked once more after it.
 *
 * A metadata_dev checkpoint takes four steps under origin->change_lock:
 *
 *   1. dev->lock: fleece_metadata_begin_create(). From here on nothing is settled.
 *   2. origin->lock: writes are quiesced, the tracker begins a new segment.
 *   3. The origin is flushed: what was written before the moment is on it.
 *   4. dev->lock: fleece_metadata_create() writes it, and returns when it is metadata_dev.
 *
 * dev->lock is free in step 2, as a grant needs it: the writes under way that quiescing
 * waits for have their intents, but others may wait for theirs meanwhile, and quiescing
 * may take its time. What is written between 2 and 4 has its intent, which nobody takes
 * back before 4 has ended; so wherever power is cut, it is changed since the new
 * checkpoint, or since the one before if there is no new one. change_lock keeps other
 * checkpoints, deletions, changes of size and the end of the origin from coming between.
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
#include "metadata_dev.h"
#include "tracker.h"

/**
 * struct fleece_claim - a device that is in use for one purpose
 * @node: in the list of claims.
 * @devt: the device.
 * @is_metadata: it is the metadata device of an origin, not the COW device of a snapshot.
 */
struct fleece_claim {
	struct list_head node;
	dev_t devt;
	bool is_metadata;
};

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
 * @metadata_claim: of the metadata device; its devt is 0 if there is none. Constant
 *	once the origin is registered.
 * @metadata_dev: the open metadata device; NULL if there is none. Set by the constructor of
 *	the first table, and reset after the last one, under @change_lock; so constant
 *	while I/O comes.
 * @view_history: what the worker of @metadata_dev looks at; protected by its lock.
 *
 * @change_lock: changes of the checkpoints and of the size, with all their steps.
 * @lock: also the right to quiesce.
 * @cbws: the engines of the snapshots; read under RCU. While a write is admitted
 *	none joins, so a write that has asked all of them has asked enough.
 * @ti: the table that I/O comes through; read under RCU; NULL before the first
 *	resume and after the end.
 * @ti_lock: changes of @ti; keeps the table of an event alive; protects @has_untold_event.
 * @has_untold_event: without @ti there was nobody to tell it to.
 * @message_lock: messages that change the checkpoints; protects
 * @is_suspending: between presuspend and postsuspend.
 * @is_suspended: between postsuspend and resume.
 * @nr_suspends: how often that has begun, modulo 2^32.
 * @may_hold_io: from presuspend until it is undone, or the resume. I/O may be held, so nobody
 *	begins a pass over maps that are as long as the device, or goes on with one.
 * @writes: references of writes on the way to the device and on it.
 * @drained: completed when the last of them is gone.
 *
 * Protected by @held_lock: @is_quiescing, @held (writes held back).
 *
 * @late: granules of the writes that have completed since a checkpoint was begun; NULL while
 *	none is being made. Read under RCU.
 *
 * @wq: runs @resubmit.
 * @compact: joins segments, see fleece_origin_compact_later().
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

	struct fleece_claim metadata_claim;
	struct fleece_metadata_dev *metadata_dev;
	struct fleece_history view_history;

	struct mutex change_lock;	/* changes of checkpoints and size */
	struct mutex lock;		/* tracker, snapshots, quiescing */
	struct fleece_tracker tracker;
	struct list_head cbws;
	bool is_ended;
	unsigned int nr_shrinking;

	struct mutex ti_lock;		/* changes of ti, has_untold_event */
	struct dm_target __rcu *ti;
	bool has_untold_event;
	struct mutex message_lock;	/* messages, is_suspending */
	bool is_suspending;
	bool is_suspended;
	unsigned int nr_suspends;
	bool may_hold_io;

	struct percpu_ref writes;
	struct completion drained;
	spinlock_t held_lock;		/* is_quiescing, held */
	bool is_quiescing;
	struct list_head held;
	unsigned long __rcu *late;
	struct workqueue_struct *wq;
	struct work_struct resubmit;
	struct work_struct compact;
};

/**
 * fleece_origin_compact_later() - join segments that no longer need to be apart
 * @origin: the origin; it waits for the work before it is freed.
 *
 * Which takes a pass over their maps, under the lock. To be called when a history was
 * dropped, or another segment has become the live one. While @may_hold_io it is put off to
 * the resume.
 *
 * Context: Any.
 */
void fleece_origin_compact_later(struct fleece_origin *origin);

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
 * As long as it is, it can neither be an origin nor belong to a second snapshot, nor
 * be a metadata device.
 *
 * Context: Process, takes the registry lock.
 * Return: 0, or -EBUSY.
 */
int fleece_origin_claim_cow(struct fleece_claim *claim, struct block_device *cow,
			    char **error);

/**
 * fleece_origin_unclaim_cow() - the device is free again
 * @claim: from fleece_origin_claim_cow().
 *
 * Context: Process, takes the registry lock.
 */
void fleece_origin_unclaim_cow(struct fleece_claim *claim);

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
 * fleece_origin_begin_change() - take origin->change_lock
 * @origin: the origin.
 *
 * Whoever holds it must not wait for memory that is to be had by writing to origins.
 *
 * Context: Process, may sleep, for as long as a change of a checkpoint takes.
 * Return: to be handed to fleece_origin_end_change().
 */
unsigned int fleece_origin_begin_change(struct fleece_origin *origin);

/**
 * fleece_origin_end_change() - release origin->change_lock
 * @origin: the origin.
 * @noio: from fleece_origin_begin_change().
 */
void fleece_origin_end_change(struct fleece_origin *origin, unsigned int noio);

/**
 * fleece_origin_begin_checkpoint() - make sure that a checkpoint can become metadata_dev
 * @origin: the origin.
 * @name: its name.
 *
 * On success fleece_origin_end_checkpoint() has to follow.
 *
 * Context: Process, holds origin->change_lock, takes dev->lock and origin->lock.
 * Return: 0; an error of fleece_tracker_check_new(); -ENOSPC: no room in the metadata;
 * or the negative errno with which the metadata has failed.
 */
int fleece_origin_begin_checkpoint(struct fleece_origin *origin, const char *name);

/**
 * fleece_origin_end_checkpoint() - make a checkpoint metadata_dev
 * @origin: after fleece_origin_begin_checkpoint().
 * @name: its name.
 * @error: 0: the tracker has it; else negative errno: it has not.
 *
 * Context: Process, holds origin->change_lock, takes dev->lock and origin->lock; flushes
 * the origin and does I/O of the metadata device.
 * Return: 0: it is metadata_dev, if there is a metadata device; @error; or a negative errno:
 * then the tracker has it no longer.
 */
int fleece_origin_end_checkpoint(struct fleece_origin *origin, const char *name, int error);

/**
 * fleece_origin_quiesce() - no write is on the device, none gets there
 * @origin: the origin.
 *
 * Reads go on. Writes are held back until fleece_origin_release().
 *
 * Context: Process, holds origin->lock. Waits for writes under way; holds others
 * back for one second, later up to eight, and tries seven times.
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
