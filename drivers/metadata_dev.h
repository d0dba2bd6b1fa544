/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * metadata_dev: the device that an origin's metadata is on, and the worker of the
 * protocol in metadata.h.
 *
 * Two parties use it. Live writes call the first kind of functions of metadata.h and
 * nothing else. Everything of the second kind is called between
 * fleece_metadata_dev_lock() and fleece_metadata_dev_unlock(): by the work items for
 * grants and settling, which are here, and by the owner.
 *
 * dev->lock is held across I/O of the metadata device, but never across anything that
 * waits for a live write, or for the origin: who holds it allocates without I/O
 * (memalloc_noio), and does not quiesce. So a grant begins in bounded time:
 *
 *   live write -> grant -> dev->lock -> I/O of the metadata device, with a time limit
 *
 * The time limit is for the device to get on: a wait that sees nothing of what it
 * waits for in this time ends with -ETIMEDOUT. Until all that is under way then has come
 * back, the device gets nothing more, and whatever is asked of it fails at once, so that
 * the mark of failure does not make the live writes wait once more. bios are submitted
 * by a workqueue of their own: a queue that takes none holds up only that.
 *
 * Buffers and bios are allocated when the device is opened; no I/O allocates memory.
 */
#ifndef FLEECE_METADATA_DEV_H
#define FLEECE_METADATA_DEV_H

#include <linux/atomic.h>
#include <linux/blkdev.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "metadata.h"

/* Blocks that can be under way. */
#define FLEECE_METADATA_BUFFERS		32

/**
 * struct fleece_metadata_owner - what a metadata device needs of its origin
 * @since: as in struct fleece_metadata_io. May take a lock, unless @try: then -EBUSY if
 *	that is taken: whoever quiesces the writes of the origin holds it for seconds, if
 *	they are slow, and others wait for a grant.
 * @done: as in struct fleece_metadata_io.
 * @resume: writes that waited shall begin anew. Must not wait for them.
 * @failed: the metadata has failed with a negative errno. Called once, without a lock.
 *
 * Context: Process; all but @failed with dev->lock held.
 */
struct fleece_metadata_owner {
	int (*since)(void *owner, const char *name, bool try, struct fleece_view *view);
	void (*done)(void *owner);
	void (*resume)(void *owner, struct list_head *waiters);
	void (*failed)(void *owner, int error);
};

struct fleece_metadata_dev;

/**
 * struct fleece_metadata_buffer - one bio, and where its data is
 * @node: in dev->free; not that of dev->reader.
 * @dev: whose it is.
 * @bio: its own, used again and again.
 * @page: the block; NULL: that of dev->reader, whose pages are in dev->window.
 * @work: submits @bio.
 */
struct fleece_metadata_buffer {
	struct list_head node;
	struct fleece_metadata_dev *dev;
	struct bio *bio;
	struct page *page;
	struct work_struct work;
};

/**
 * struct fleece_metadata_dev - an open metadata device
 *
 * Constant:
 * @methods: the owner's.
 * @owner: their first argument.
 * @bdev: the device; open as long as this is.
 * @meta: the protocol.
 * @note: remembers the uuid if it fails; NULL when it has been given away.
 *
 * @lock: the right to be the worker.
 * @nr_waiting: number of those who wait for it.
 *
 * Protected by @lock:
 * @is_started: fleece_metadata_start() was called; once set it stays, and is read
 *	without the lock.
 * @is_reported: @failed was called.
 * @may_wait: @since may, because no live write can be under way.
 * @has_timed_out: the device did not get on.
 *
 * @wq: runs the two works, in order.
 * @io_wq: submits bios.
 * @grant: makes intents durable.
 * @settle: writes fine bits, and takes intents back.
 * @reader: the bio that reads; nothing else is under way then.
 * @window: its pages, until the start: nothing is read after it.
 *
 * @bios: the bios of all buffers.
 *
 * @io_lock: taken in interrupts; a leaf. Protects:
 * @free: buffers that are not under way.
 * @nr_flying: number of the others, and of @reader.
 * @io_error: negative errno of the first one that failed since it was asked for.
 * @wait: for changes of these.
 * @buffers: all of them.
 */
struct fleece_metadata_dev {
	const struct fleece_metadata_owner *methods;
	void *owner;
	struct block_device *bdev;
	struct fleece_metadata *meta;
	struct fleece_metadata_note *note;

	struct mutex lock;		/* the worker's functions of metadata.h */
	atomic_t nr_waiting;
	bool is_started;
	bool is_reported;
	bool may_wait;
	bool has_timed_out;

	struct workqueue_struct *wq;
	struct workqueue_struct *io_wq;
	struct work_struct grant;
	struct delayed_work settle;
	struct fleece_metadata_buffer reader;
	struct page *window[FLEECE_METADATA_READ_BLOCKS];
	struct bio_set bios;

	spinlock_t io_lock;		/* buffers under way */
	struct list_head free;
	unsigned int nr_flying;
	int io_error;
	wait_queue_head_t wait;
	struct fleece_metadata_buffer buffers[FLEECE_METADATA_BUFFERS];
};

/**
 * struct fleece_metadata_config - what is opened, and for whom
 * @methods: kept.
 * @owner: their first argument.
 * @name: of the origin, for names of threads.
 * @bdev: the metadata device, open for reading and writing.
 * @lower: the device under the origin.
 * @nr_sectors: size of the origin.
 * @granule_sectors: granularity of the origin.
 */
struct fleece_metadata_config {
	const struct fleece_metadata_owner *methods;
	void *owner;
	const char *name;
	struct block_device *bdev;
	struct block_device *lower;
	u64 nr_sectors;
	unsigned int granule_sectors;
};

/**
 * fleece_metadata_dev_open() - read what a metadata device says
 * @config: see there.
 * @error: set to what is wrong, for a message, on failure.
 *
 * Nothing is written. Checkpoints of metadata that has failed since the module was
 * loaded are invalid, even if its device does not say so.
 *
 * Context: Process, reads from both devices.
 * Return: the device, to be freed with fleece_metadata_dev_free(), or an ERR_PTR of
 * fleece_metadata_open().
 */
struct fleece_metadata_dev *fleece_metadata_dev_open(const struct fleece_metadata_config *config,
						     const char **error);

/**
 * fleece_metadata_dev_start() - live writes are about to begin
 * @dev: all checkpoints are loaded. Started already: nothing happens.
 *
 * A failure is reported like every other one.
 *
 * Context: Process, takes dev->lock, does I/O.
 * Return: 0, or the negative errno of a failure: all checkpoints that were loaded are
 * invalid then, as after earlier starts that nothing of was written either.
 */
int fleece_metadata_dev_start(struct fleece_metadata_dev *dev);

/**
 * fleece_metadata_dev_close() - write everything, for no live write comes any more
 * @dev: the device. Not started: nothing happens. May be called once.
 * @lower: the device under the origin.
 *
 * Waits without a limit for what is under way on the metadata device.
 *
 * Context: Process, takes dev->lock, does I/O.
 */
void fleece_metadata_dev_close(struct fleece_metadata_dev *dev, struct block_device *lower);

/**
 * fleece_metadata_dev_resize() - the origin has another size
 * @dev: started.
 * @nr_sectors: the new size, see fleece_metadata_resize().
 *
 * Context: Process, takes dev->lock, does I/O. The origin is suspended.
 */
void fleece_metadata_dev_resize(struct fleece_metadata_dev *dev, u64 nr_sectors);

/**
 * fleece_metadata_dev_flush_lower() - flush the cache of the device under the origin
 * @lower: the device.
 *
 * Context: Process, without dev->lock: it may take as long as the device likes.
 * Return: 0, or a negative errno of the device.
 */
int fleece_metadata_dev_flush_lower(struct block_device *lower);

/**
 * fleece_metadata_dev_free() - give everything back
 * @dev: may be NULL. No live write uses it any more.
 *
 * Context: Process; waits without a limit for what is under way on the device.
 */
void fleece_metadata_dev_free(struct fleece_metadata_dev *dev);

/**
 * fleece_metadata_dev_lock() - become the worker
 * @dev: the device.
 *
 * Context: Process. Not under a lock that since() takes.
 * Return: to be handed to fleece_metadata_dev_unlock().
 */
unsigned int fleece_metadata_dev_lock(struct fleece_metadata_dev *dev);

/**
 * fleece_metadata_dev_unlock() - no longer be the worker
 * @dev: the device.
 * @noio: from fleece_metadata_dev_lock().
 *
 * Reports a failure that has come meanwhile.
 */
void fleece_metadata_dev_unlock(struct fleece_metadata_dev *dev, unsigned int noio);

/**
 * fleece_metadata_dev_state() - for the status
 * @dev: NULL: there is none.
 *
 * Context: Any.
 * Return: "none"; "failed"; "dirty": there are intents, so a crash now would cost
 * something; "clean".
 */
const char *fleece_metadata_dev_state(const struct fleece_metadata_dev *dev);

/**
 * fleece_metadata_dev_exit() - forget which metadata has failed
 *
 * Context: The module is unloaded.
 */
void fleece_metadata_dev_exit(void);

#endif
