/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tracker: what was changed on one origin, and since which checkpoint.
 *
 * Time is cut into segments; each has a bitmap of the granules written while it
 * was the newest one. A checkpoint is the beginning of a segment, a snapshot
 * ends one too. "Changed since X up to S" is the union of the segments between.
 * Only the newest segment, the live one, is written to; the others are frozen.
 * So a write costs one bit test whatever the number of checkpoints, and an
 * answer about the past never moves.
 *
 * Segments are reference counted. The tracker's chain holds one reference; a
 * history (of a snapshot, or of a caller that reads a map) holds others. A
 * frozen segment that somebody else holds is never modified.
 *
 * Without a checkpoint nothing has to be tracked; before the first one there is no segment.
 *
 * Locking: the caller serialises all calls (origin->lock) but fleece_tracker_live(),
 * fleece_tracker_mark() and the functions of a history. It builds in userspace.
 */
#ifndef FLEECE_TRACKER_H
#define FLEECE_TRACKER_H

#include <linux/bitops.h>
#include <linux/compiler.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/types.h>
#include <linux/uuid.h>

#include "bits.h"
#include "dm-fleece.h"

#define FLEECE_CHECKPOINT_NAME_MAX	63
#define FLEECE_CHECKPOINTS_MAX		256

/**
 * struct fleece_moment - a checkpoint
 * @name: NUL-terminated; empty when the segment's start has no name.
 * @uuid: new for each creation.
 * @created: seconds since 1970 (UTC).
 * @is_invalid: changes since were missed, so it answers for none.
 */
struct fleece_moment {
	char name[FLEECE_CHECKPOINT_NAME_MAX + 1];
	uuid_t uuid;
	u64 created;
	bool is_invalid;
};

/**
 * struct fleece_segment - what was changed between two moments
 * @node: in the tracker's chain.
 * @refs: the chain's and the histories'.
 * @start: the checkpoint that the segment begins with, if it has a name.
 * @nr_granules: length of @bits; in the chain, that of the tracker.
 * @bits: one for each granule.
 */
struct fleece_segment {
	struct list_head node;
	refcount_t refs;
	struct fleece_moment start;
	u64 nr_granules;
	unsigned long *bits;
};

/**
 * struct fleece_tracker - changes of one origin
 * @granule_shift: log2 of the sectors of a granule; constant.
 * @nr_sectors: size of the origin.
 * @nr_granules: granules of the origin. Like @nr_sectors changed by
 *	fleece_tracker_resize() only; read without the lock by who allocates a segment.
 * @segments: chain, oldest first; the last one is @live.
 * @live: written to by fleece_tracker_mark(); NULL while nothing is tracked.
 *	Changed only while no write of the origin is under way.
 * @nr_checkpoints: segments of the chain whose start has a name. Read without the lock by
 *	writes: it rises from 0 only while none is under way.
 */
struct fleece_tracker {
	unsigned int granule_shift;
	sector_t nr_sectors;
	u64 nr_granules;
	struct list_head segments;
	struct fleece_segment *live;
	unsigned int nr_checkpoints;
};

/**
 * struct fleece_history_entry - a checkpoint that a history answers for
 * @moment: the checkpoint.
 * @first: index of the first segment after it; the number of segments when
 *	the history ends with this very checkpoint.
 * @changed: granules changed since, by fleece_history_count().
 */
struct fleece_history_entry {
	struct fleece_moment moment;
	unsigned int first;
	u64 changed;
};

/**
 * struct fleece_history - segments held by a reader
 * @nr_granules: length of each map.
 * @nr_segments: length of @segments and @maps.
 * @segments: oldest first; the history holds a reference of each.
 * @maps: the bits of each.
 * @nr_entries: length of @entries.
 * @entries: the checkpoints, oldest first.
 */
struct fleece_history {
	u64 nr_granules;
	unsigned int nr_segments;
	struct fleece_segment **segments;
	unsigned long **maps;
	unsigned int nr_entries;
	struct fleece_history_entry *entries;
};

/**
 * fleece_tracker_init() - a tracker without a checkpoint
 * @tracker: to be filled in.
 * @nr_sectors: size of the origin.
 * @granule_sectors: power of two.
 */
void fleece_tracker_init(struct fleece_tracker *tracker, sector_t nr_sectors,
			 unsigned int granule_sectors);

/**
 * fleece_tracker_exit() - drop all checkpoints and segments
 * @tracker: the tracker; histories stay valid.
 */
void fleece_tracker_exit(struct fleece_tracker *tracker);

/**
 * fleece_tracker_resize() - the origin has another size
 * @tracker: the tracker.
 * @nr_sectors: the new size.
 *
 * Checkpoints are kept; what the origin has gained counts as changed since each
 * of them. Histories keep what they hold: the chain gets segments of its own.
 * The caller has made sure that no write of the origin is under way.
 *
 * Context: Process, may sleep.
 * Return: 0, or -ENOMEM: the size is changed, but there is no checkpoint any more.
 */
int fleece_tracker_resize(struct fleece_tracker *tracker, sector_t nr_sectors);

/**
 * fleece_tracker_live() - where writes are marked
 * @tracker: the tracker.
 *
 * Context: Any. The caller holds off fleece_tracker_switch().
 * Return: the live segment, or NULL: nobody can ever ask for what is written now, as there
 * is no checkpoint yet, or none any more.
 */
static inline struct fleece_segment *fleece_tracker_live(struct fleece_tracker *tracker)
{
	return READ_ONCE(tracker->nr_checkpoints) ? READ_ONCE(tracker->live) : NULL;
}

/**
 * fleece_tracker_mark() - a range is going to be written
 * @tracker: the tracker.
 * @sector: first sector.
 * @nr_sectors: above 0.
 *
 * The bits are set when it returns, so before the write is submitted.
 *
 * Context: Any. The caller holds off fleece_tracker_switch().
 */
static inline void fleece_tracker_mark(struct fleece_tracker *tracker, sector_t sector,
				       sector_t nr_sectors)
{
	struct fleece_segment *live = fleece_tracker_live(tracker);

	/* Most writes hit granules that are marked: their lines are not dirtied. */
	if (live)
		fleece_bits_set_range(live->bits, sector >> tracker->granule_shift,
				      (sector + nr_sectors - 1) >> tracker->granule_shift);
}

/**
 * fleece_checkpoint_name_error() - is this a name?
 * @name: what a user wrote.
 *
 * Return: NULL if it is; else what is wrong, for a message.
 */
const char *fleece_checkpoint_name_error(const char *name);

/**
 * fleece_tracker_check_new() - can a checkpoint of this name be made?
 * @tracker: the tracker.
 * @name: the name.
 *
 * Return: 0; -EINVAL malformed; -EEXIST in use; -ENOSPC too many checkpoints.
 */
int fleece_tracker_check_new(struct fleece_tracker *tracker, const char *name);

/**
 * fleece_tracker_invalidate() - changes may have been missed since all checkpoints
 * @tracker: the tracker.
 */
void fleece_tracker_invalidate(struct fleece_tracker *tracker);

/**
 * fleece_tracker_find() - the checkpoint of this name
 * @tracker: the tracker.
 * @name: the name.
 *
 * Return: the checkpoint, valid as long as the caller's lock is held, or NULL.
 */
const struct fleece_moment *fleece_tracker_find(struct fleece_tracker *tracker, const char *name);

/**
 * fleece_segment_alloc() - allocate the segment for a switch
 * @nr_granules: of the origin.
 *
 * Context: Process, may sleep.
 * Return: a segment, or NULL. Freed by fleece_segment_put() or handed to
 * fleece_tracker_switch().
 */
struct fleece_segment *fleece_segment_alloc(u64 nr_granules);

/**
 * fleece_segment_put() - drop a reference
 * @segment: may be NULL.
 *
 * Context: Process, may sleep.
 */
void fleece_segment_put(struct fleece_segment *segment);

/**
 * fleece_tracker_switch() - freeze the live segment and begin a new one
 * @tracker: the tracker.
 * @segment: from fleece_segment_alloc(), of the tracker's length; owned by the
 *	tracker from now on.
 * @name: checkpoint at this moment, checked before; NULL for none.
 *
 * Constant time. The caller has made sure that no write of the origin is under
 * way: neither between its mark and its submission nor on the device.
 */
void fleece_tracker_switch(struct fleece_tracker *tracker, struct fleece_segment *segment,
			   const char *name);

/**
 * fleece_tracker_restore() - add a checkpoint that was made before the tracker
 * @tracker: the tracker.
 * @segment: from fleece_segment_alloc(), of the tracker's length, with the bits of
 *	what was changed since; owned by the tracker from now on.
 * @moment: the checkpoint; younger than all that there are.
 *
 * As for fleece_tracker_switch() no write is under way.
 */
void fleece_tracker_restore(struct fleece_tracker *tracker, struct fleece_segment *segment,
			    const struct fleece_moment *moment);

/**
 * fleece_tracker_delete() - delete a checkpoint
 * @tracker: the tracker.
 * @name: its name.
 *
 * The others keep their meaning.
 *
 * Context: Process, may sleep.
 * Return: 0, or -ENOENT.
 */
int fleece_tracker_delete(struct fleece_tracker *tracker, const char *name);

/**
 * fleece_tracker_forget() - delete all checkpoints
 * @tracker: the tracker.
 *
 * For when writes may have been missed: no checkpoint is better than a wrong one.
 *
 * Context: Process, may sleep.
 */
void fleece_tracker_forget(struct fleece_tracker *tracker);

/**
 * fleece_tracker_compact() - join segments that no longer need to be apart
 * @tracker: the tracker.
 * @stop: set by somebody else to make it stop, and leave the rest to another call; NULL:
 *	nobody does.
 *
 * To be called when a history was dropped.
 *
 * Context: Process, may sleep.
 */
void fleece_tracker_compact(struct fleece_tracker *tracker, const bool *stop);

/**
 * fleece_tracker_newest() - the newest checkpoint
 * @tracker: the tracker.
 *
 * Return: the checkpoint, valid as long as the caller's lock is held, or NULL.
 */
const struct fleece_moment *fleece_tracker_newest(struct fleece_tracker *tracker);

/**
 * fleece_history_get() - hold what the tracker has now
 * @history: to be filled in.
 * @tracker: the tracker.
 * @gfp: GFP_KERNEL, and perhaps how hard to try.
 *
 * What was changed up to now stays in it. The live segment goes on to be written to, as
 * long as there is a checkpoint, and may take up the one before it when a checkpoint is
 * deleted: then the history shows too much since that one, never too little.
 *
 * Context: Process, may sleep.
 * Return: 0, or -ENOMEM.
 */
int fleece_history_get(struct fleece_history *history, struct fleece_tracker *tracker, gfp_t gfp);

/**
 * fleece_history_end_here() - add the checkpoint that ends a history
 * @history: taken before the switch, with room for one more entry (always so).
 * @tracker: after the switch that named this moment.
 *
 * Context: any.
 */
void fleece_history_end_here(struct fleece_history *history, struct fleece_tracker *tracker);

/**
 * fleece_history_put() - let go
 * @history: from fleece_history_get(), or zeroed.
 *
 * Context: Process, may sleep.
 */
void fleece_history_put(struct fleece_history *history);

/**
 * fleece_history_count() - count what was changed since each checkpoint
 * @history: the history; its entries get their @changed.
 * @stop: set by somebody else to make it stop; NULL: nobody does.
 *
 * All in one pass over the maps.
 *
 * Context: Process, may sleep.
 * Return: false if it has stopped; then the numbers mean nothing.
 */
bool fleece_history_count(struct fleece_history *history, const bool *stop);

/**
 * fleece_history_changed() - count what was changed since the newest checkpoint
 * @history: the history.
 * @stop: as of fleece_history_count().
 *
 * Context: Process, may sleep.
 * Return: the number of granules: 0 without a checkpoint, all if it is invalid or the counting
 * has stopped, because that is never too low.
 */
u64 fleece_history_changed(const struct fleece_history *history, const bool *stop);

/**
 * fleece_history_since() - the changes since a checkpoint
 * @history: the history.
 * @name: the checkpoint.
 * @view: set to the union; valid as long as the history.
 *
 * Return: 0; -ENOENT; -ESTALE: the checkpoint is invalid.
 */
int fleece_history_since(const struct fleece_history *history, const char *name,
			 struct fleece_view *view);

/**
 * fleece_history_known_since() - what is known of the changes since a checkpoint
 * @history: the history.
 * @name: the checkpoint; may be invalid.
 * @view: as fleece_history_since().
 *
 * Return: 0, or -ENOENT.
 */
int fleece_history_known_since(const struct fleece_history *history, const char *name,
			       struct fleece_view *view);

#endif
