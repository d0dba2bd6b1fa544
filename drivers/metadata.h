/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * metadata: the durable form of an origin's checkpoints, as docs/metadata.rst says.
 *
 * This is the protocol: what is written, in which order, and which live write has to
 * wait for it. It knows neither bios nor the tracker: I/O, the change maps and the
 * waiting writes are reached through struct fleece_metadata_io, so that the tests run
 * it in userspace on a device that crashes.
 *
 * Two kinds of callers:
 *
 * 1. The way of a live write: fleece_metadata_mark() and fleece_metadata_wait(). They
 *    do not sleep and take md->lock, a leaf: nothing else is taken under it but what
 *    io->kick() takes (it queues work). A write calls mark() where it called
 *    fleece_tracker_mark(), admitted, so that the live map does not change under it:
 *
 *	true:  the bits are set, the write may go.
 *	false: nothing was promised. A write that must not wait ends with EAGAIN.
 *	       Any other gives back its admission, and then calls wait(). If that
 *	       returns true it is on a list, and may be handed to io->resume() at any
 *	       time; there it begins anew. If false, it begins anew at once.
 *
 *    It holds no admission while it waits, so quiescing waits for no metadata I/O.
 *
 * 2. One worker: all other functions. They sleep and do I/O. The caller runs one at a
 *    time, on an ordered workqueue (WQ_MEM_RECLAIM) say, and holds no lock that a live
 *    write or a suspend takes. Long ones let grants come between their blocks by
 *    themselves, so a live write never waits for a whole map to be written.
 *
 * When something is written that cannot be, md fails: see fleece_metadata_fail().
 */
#ifndef FLEECE_METADATA_H
#define FLEECE_METADATA_H

#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/types.h>

#include "bits.h"
#include "metadata_format.h"

/* Both copies of superblock and table. */
#define FLEECE_METADATA_COPIES	2
#define FLEECE_METADATA_MARKED	((1U << FLEECE_METADATA_COPIES) - 1)
/* Blocks that are read at once, at the most. */
#define FLEECE_METADATA_READ_BLOCKS	64U

/**
 * struct fleece_metadata_io - what the protocol needs of its owner
 * @read: read sectors, whole aligned blocks, at most FLEECE_METADATA_READ_BLOCKS; waits.
 *	0 or a negative errno.
 * @write: begin to write sectors, whole aligned blocks. @data may be used again when it
 *	returns: the owner copies it, and bounds what it holds. Two writes to the same
 *	place are never begun without a flush between them. An error may be returned
 *	here or by the next flush.
 * @flush: wait for all writes that were begun, then flush the device's cache. 0 only if
 *	all of it has succeeded. It has a limit of time, and returns -ETIMEDOUT after it.
 * @since: set @view to all that was changed since the checkpoint of this name, up to
 *	now, the live map included. The maps stay until @done. 0 or a negative errno;
 *	-EBUSY: not now, what it was needed for is to be asked for again.
 * @done: the view of @since is no longer used.
 * @kick: fleece_metadata_grant() is to be called soon. Called under md->lock.
 * @is_wanted: somebody else wants to be the worker; a settle ends early then.
 * @resume: writes that waited shall begin anew. Process context, md->lock is not held.
 *
 * All but @kick are called in the worker, and may sleep.
 */
struct fleece_metadata_io {
	int (*read)(void *context, u64 sector, void *data, unsigned int nr_sectors);
	int (*write)(void *context, u64 sector, const void *data, unsigned int nr_sectors);
	int (*flush)(void *context);
	int (*since)(void *context, const char *name, struct fleece_view *view);
	void (*done)(void *context);
	void (*kick)(void *context);
	bool (*is_wanted)(void *context);
	void (*resume)(void *context, struct list_head *waiters);
};

/**
 * struct fleece_metadata - the metadata of one origin
 *
 * Constant:
 * @io: see there.
 * @context: first argument of the functions of @io.
 * @layout: where things are.
 * @granule_shift: log2 of the sectors of a granule.
 * @region_shift: log2 of the granules of a region.
 *
 * Of the worker; whoever else reads @root holds the worker off, the counters may be a
 * little old:
 * @root: superblock and table, as last committed or attempted.
 * @written: intents as they are on the device, durable or not; holds all of @granted.
 * @selected: regions whose fine bits are to be written.
 * @block: what is being written.
 * @copy: superblock and table that are being written or read.
 * @window: blocks of a map that are being read; NULL since the start.
 * @nr_fetched: how many of these there are.
 * @taken: blocks of intents that the grant under way writes, or need not write.
 * @nr_granules: of the origin.
 * @is_creating: between fleece_metadata_begin_create() and the end of it.
 * @has_repairs: a sector was bad that must be written anew before the start.
 * @marks: bits of the copies of superblock and table that have the mark of failure.
 * @nr_bad: sectors that were found bad.
 * @nr_blocks: blocks written so far.
 * @nr_grants: grants that have written something.
 *
 * @lock: a leaf, see above. Protects:
 * @granted: regions with a durable intent.
 * @wanted: regions that need one.
 * @asked: blocks of intents with regions that have come into @wanted since the last grant
 *	looked at them.
 * @dirty: regions with fine bits that were set since they were last looked at.
 * @recent: regions with fine bits that were set, or intents granted, since the
 *	settle before.
 * @is_wanting: @kick was called, and no grant has begun since.
 * @error: negative errno of the failure, or 0; once set it stays. For the status it is
 *	read without @lock, as is @nr_granted.
 * @waiting: writes that wait for a grant.
 * @nr_granted: how many bits of @granted are set.
 */
struct fleece_metadata {
	const struct fleece_metadata_io *io;
	void *context;
	struct fleece_md_layout layout;
	unsigned int granule_shift;
	unsigned int region_shift;

	struct fleece_md_root root;
	unsigned long *written;
	unsigned long *selected;
	u8 *block;
	u8 *copy;
	u8 *window;
	unsigned int nr_fetched;
	unsigned long *taken;
	u64 nr_granules;
	bool is_creating;
	bool has_repairs;
	unsigned int marks;
	unsigned int nr_bad;
	u64 nr_blocks;
	u64 nr_grants;

	spinlock_t lock;		/* see above */
	unsigned long *granted;
	unsigned long *wanted;
	unsigned long *asked;
	unsigned long *dirty;
	unsigned long *recent;
	bool is_wanting;
	int error;
	struct list_head waiting;
	u64 nr_granted;
};

/* ------------------------- Beginning and end ------------------------- */

/**
 * struct fleece_metadata_origin - the origin that metadata is opened for
 * @nr_sectors: its size.
 * @granule_sectors: granularity of its table.
 * @device_sectors: size of the metadata device.
 * @has_head_hash: @head_hash is given.
 * @head_hash: low half of fleece_md_hash() of the first FLEECE_MD_HEAD_BYTES of the origin.
 */
struct fleece_metadata_origin {
	u64 nr_sectors;
	u32 granule_sectors;
	u64 device_sectors;
	bool has_head_hash;
	u32 head_hash;
};

/**
 * fleece_metadata_open() - read superblocks and intents
 * @io: the owner's functions; kept.
 * @context: their first argument.
 * @origin: the origin.
 * @opened: set to the metadata.
 * @error: set to what is wrong, for a message, on failure.
 *
 * Nothing is written. In opened->root are the checkpoints; those that cannot be trusted
 * have is_invalid. For each of them, oldest first, fleece_metadata_load() has to follow,
 * then fleece_metadata_start().
 *
 * Context: Worker.
 * Return: 0; -ENOMEM; -EIO: cannot be read; -ENODATA, -EUCLEAN, -EOPNOTSUPP as
 * fleece_md_decode(); -EINVAL: it belongs to an origin of another size or granularity;
 * -ENOSPC: the device is too small.
 */
int fleece_metadata_open(const struct fleece_metadata_io *io, void *context,
			 const struct fleece_metadata_origin *origin,
			 struct fleece_metadata **opened, const char **error);

/**
 * fleece_metadata_load() - read what was changed since a checkpoint
 * @md: opened, not started.
 * @index: of the checkpoint in md->root.
 * @bits: clear bitmap for the granules of the origin; becomes the map of the segment
 *	that begins with this checkpoint. That of the newest one also gets what the
 *	intents say.
 *
 * Context: Worker.
 */
void fleece_metadata_load(struct fleece_metadata *md, u32 index, unsigned long *bits);

/**
 * fleece_metadata_start() - the origin is going to be written to
 * @md: opened; all checkpoints are loaded, and io->since() finds them.
 *
 * No live write is let through before it has returned.
 *
 * Context: Worker.
 * Return: 0; else it has failed.
 */
int fleece_metadata_start(struct fleece_metadata *md);

/**
 * fleece_metadata_close() - write everything, mark it clean
 * @md: started; no live write comes any more.
 * @has_head_hash: @head_hash is given.
 * @head_hash: as in struct fleece_metadata_origin, of now.
 *
 * Of failed metadata the mark of failure is tried again, if it is not there yet. Nothing
 * but fleece_metadata_free() may follow.
 *
 * Context: Worker.
 * Return: 0, or the negative errno of the failure.
 */
int fleece_metadata_close(struct fleece_metadata *md, bool has_head_hash, u32 head_hash);

/**
 * fleece_metadata_free() - free the memory
 * @md: may be NULL. Nobody waits.
 *
 * Context: Process, may sleep. No I/O.
 */
void fleece_metadata_free(struct fleece_metadata *md);

/* ------------------------- The way of a live write ------------------------- */

/**
 * fleece_metadata_mark() - set the fine bits of a write
 * @md: started.
 * @live: the live map; cannot be replaced now. NULL: nothing is tracked.
 * @first: first granule.
 * @last: last granule.
 *
 * If all bits are set already, no lock is taken and nothing is written to.
 *
 * Context: Any that may take md->lock; does not sleep.
 * Return: true: they are set, the write may go. False: an intent is missing and was
 * asked for.
 */
bool fleece_metadata_mark(struct fleece_metadata *md, unsigned long *live, u64 first, u64 last);

/**
 * fleece_metadata_wait() - wait for the intents of a write
 * @md: started.
 * @first: first granule.
 * @last: last granule.
 * @waiter: node of the write; handed to io->resume() in the end.
 *
 * Context: Any that may take md->lock; does not sleep. The write is not admitted.
 * Return: true: it waits. False: there is nothing to wait for any more.
 */
bool fleece_metadata_wait(struct fleece_metadata *md, u64 first, u64 last,
			  struct list_head *waiter);

/* ------------------------- The worker ------------------------- */

/**
 * fleece_metadata_grant() - make all intents durable that are wanted
 * @md: started.
 *
 * Whoever waits is resumed, also after a failure.
 *
 * Context: Worker; also called by the other functions between their blocks.
 */
void fleece_metadata_grant(struct fleece_metadata *md);

/**
 * fleece_metadata_settle() - write fine bits, take back intents
 * @md: started.
 *
 * To be called every few seconds while md->dirty or md->granted have bits: an intent is
 * taken back by the second call after its region has got its last new bit. If somebody
 * else wants to be the worker, it ends early, and what it has not done is done by the
 * next one. After a failure, while md->marks is not FLEECE_METADATA_MARKED: each call tries
 * the marks of failure again that are missing.
 *
 * Context: Worker.
 * Return: 0; an error of io->since(): nothing was done; or the negative errno of the
 * failure.
 */
int fleece_metadata_settle(struct fleece_metadata *md);

/**
 * fleece_metadata_begin_create() - make sure that a checkpoint can be added
 * @md: started.
 *
 * Followed by fleece_metadata_create() or fleece_metadata_abort_create(). Between them
 * the owner quiesces the writes, and its maps get the new checkpoint; settling is
 * suspended.
 *
 * Context: Worker.
 * Return: 0; -ENOSPC: no slot is free; or the negative errno of the failure.
 */
int fleece_metadata_begin_create(struct fleece_metadata *md);

/**
 * fleece_metadata_create() - make a new checkpoint durable
 * @md: after fleece_metadata_begin_create().
 * @checkpoint: its name, uuid and time. io->since() knows it, and all older ones.
 *
 * Context: Worker. Live writes go on.
 * Return: 0: it is durable; -EBUSY, without a failure: io->since() said so, nothing was
 * done, and this or fleece_metadata_abort_create() is to be called again; else a negative
 * errno, of io->since() or of the failure: then the owner takes it back from its maps.
 */
int fleece_metadata_create(struct fleece_metadata *md,
			   const struct fleece_md_checkpoint *checkpoint);

/**
 * fleece_metadata_abort_create() - there is no new checkpoint after all
 * @md: after fleece_metadata_begin_create().
 *
 * Context: Worker. The owner's maps do not have it, or no longer.
 */
void fleece_metadata_abort_create(struct fleece_metadata *md);

/**
 * fleece_metadata_delete() - delete a checkpoint
 * @md: started.
 * @name: its name. io->since() still knows it, or at least the one before it.
 *
 * The owner's maps lose it after this has returned 0, and before another one is created
 * or deleted. Until then what they have since an older one is the same.
 *
 * Context: Worker. Live writes go on.
 * Return: 0: it is durably gone; -ENOENT; else a negative errno, of io->since() or of
 * the failure.
 */
int fleece_metadata_delete(struct fleece_metadata *md, const char *name);

/**
 * fleece_metadata_resize() - the origin has another size
 * @md: started.
 * @nr_sectors: the new size. The owner's maps have it, all that was gained being set, if
 *	it grows; they get it afterwards if it shrinks.
 *
 * Context: Worker. The origin is suspended: no live write comes.
 * Return: 0; -ENOSPC: above the capacity, nothing was done; or the negative errno of
 * the failure.
 */
int fleece_metadata_resize(struct fleece_metadata *md, u64 nr_sectors);

/**
 * fleece_metadata_fail() - the metadata is not true any more
 * @md: started.
 * @error: why, negative errno.
 *
 * Called by all functions of the worker when a write or a flush fails; and by the owner
 * when something was written to the origin that was not marked. The mark of failure is
 * attempted; then all who wait are resumed, and from now on nobody waits and nothing
 * else is written.
 *
 * Context: Worker.
 */
void fleece_metadata_fail(struct fleece_metadata *md, int error);

#endif
