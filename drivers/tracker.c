// SPDX-License-Identifier: GPL-2.0-only
/*
 * tracker: what was changed on one origin, and since which checkpoint, see
 * tracker.h. Owns the segments; knows neither bios nor devices, takes no lock.
 */
#include <linux/bitops.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "tracker.h"

static void set_size(struct fleece_tracker *tracker, sector_t nr_sectors)
{
	sector_t granule_sectors = 1ULL << tracker->granule_shift;

	tracker->nr_sectors = nr_sectors;
	WRITE_ONCE(tracker->nr_granules,
		   (nr_sectors + granule_sectors - 1) >> tracker->granule_shift);
}

void fleece_tracker_init(struct fleece_tracker *tracker, sector_t nr_sectors,
			 unsigned int granule_sectors)
{
	memset(tracker, 0, sizeof(*tracker));
	tracker->granule_shift = ilog2(granule_sectors);
	set_size(tracker, nr_sectors);
	INIT_LIST_HEAD(&tracker->segments);
}

static void drop_segment(struct fleece_segment *segment)
{
	list_del(&segment->node);
	fleece_segment_put(segment);
}

void fleece_tracker_exit(struct fleece_tracker *tracker)
{
	struct fleece_segment *segment;
	struct fleece_segment *next;

	WRITE_ONCE(tracker->live, NULL);
	WRITE_ONCE(tracker->nr_checkpoints, 0);
	list_for_each_entry_safe(segment, next, &tracker->segments, node)
		drop_segment(segment);
}

static bool is_name_char(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '_' || c == '-';
}

const char *fleece_checkpoint_name_error(const char *name)
{
	size_t i;

	if (!*name)
		return "the name is empty";
	if (*name == '-' || *name == '.')
		return "the name begins with '-' or '.'";
	for (i = 0; name[i]; i++) {
		if (!is_name_char(name[i]))
			return "the name has a character other than A-Z a-z 0-9 . _ -";
		if (i >= FLEECE_CHECKPOINT_NAME_MAX)
			return "the name is longer than 63 characters";
	}
	return NULL;
}

static struct fleece_segment *find_checkpoint(struct fleece_tracker *tracker, const char *name)
{
	struct fleece_segment *segment;

	list_for_each_entry(segment, &tracker->segments, node) {
		if (*name && !strcmp(segment->start.name, name))
			return segment;
	}
	return NULL;
}

int fleece_tracker_check_new(struct fleece_tracker *tracker, const char *name)
{
	if (fleece_checkpoint_name_error(name))
		return -EINVAL;
	if (find_checkpoint(tracker, name))
		return -EEXIST;
	if (tracker->nr_checkpoints >= FLEECE_CHECKPOINTS_MAX)
		return -ENOSPC;
	return 0;
}

void fleece_tracker_invalidate(struct fleece_tracker *tracker)
{
	struct fleece_segment *segment;

	list_for_each_entry(segment, &tracker->segments, node)
		segment->start.is_invalid = true;
}

const struct fleece_moment *fleece_tracker_find(struct fleece_tracker *tracker, const char *name)
{
	struct fleece_segment *segment = find_checkpoint(tracker, name);

	return segment ? &segment->start : NULL;
}

struct fleece_segment *fleece_segment_alloc(u64 nr_granules)
{
	struct fleece_segment *segment = kzalloc(sizeof(*segment), GFP_KERNEL);

	if (!segment)
		return NULL;
	segment->bits = fleece_bits_alloc(nr_granules);
	if (!segment->bits) {
		kfree(segment);
		return NULL;
	}
	segment->nr_granules = nr_granules;
	refcount_set(&segment->refs, 1);
	INIT_LIST_HEAD(&segment->node);
	return segment;
}

void fleece_segment_put(struct fleece_segment *segment)
{
	if (segment && refcount_dec_and_test(&segment->refs)) {
		vfree(segment->bits);
		kfree(segment);
	}
}

void fleece_tracker_switch(struct fleece_tracker *tracker, struct fleece_segment *segment,
			   const char *name)
{
	if (name) {
		strscpy(segment->start.name, name, sizeof(segment->start.name));
		uuid_gen(&segment->start.uuid);
		segment->start.created = ktime_get_real_seconds();
		WRITE_ONCE(tracker->nr_checkpoints, tracker->nr_checkpoints + 1);
	}
	list_add_tail(&segment->node, &tracker->segments);
	WRITE_ONCE(tracker->live, segment);
}

void fleece_tracker_restore(struct fleece_tracker *tracker, struct fleece_segment *segment,
			    const struct fleece_moment *moment)
{
	fleece_tracker_switch(tracker, segment, NULL);
	segment->start = *moment;
	WRITE_ONCE(tracker->nr_checkpoints, tracker->nr_checkpoints + 1);
}

/* Is the chain the only one who holds this segment? */
static bool is_private(struct fleece_segment *segment)
{
	return refcount_read(&segment->refs) == 1;
}

/*
 * Add the bits of one segment to another. The target may be the live one, so
 * bits are set atomically. A bit that appears early in the live segment is one
 * that the joined segment has anyway. Returns false if it has stopped before the end.
 */
static bool join_bits(struct fleece_tracker *tracker, struct fleece_segment *to,
		      const struct fleece_segment *from, const bool *stop)
{
	u64 words = BITS_TO_LONGS(tracker->nr_granules);
	unsigned long word;
	u64 i;

	for (i = 0; i < words; i++) {
		word = from->bits[i] & ~READ_ONCE(to->bits[i]);
		while (word) {
			fleece_bits_set(to->bits, i * BITS_PER_LONG + __ffs(word));
			word &= word - 1;
		}
		if (!fleece_bits_go_on(i, stop))
			return false;
	}
	return true;
}

/*
 * Join a segment whose start has no name with the one before it. Whichever of
 * the two nobody else holds takes up the other. If both are held they stay
 * apart until a history is dropped: that costs memory, not truth. So they do after
 * a stop, when one has some bits of the other: nobody asks for one without the other.
 */
static void join_with_previous(struct fleece_tracker *tracker, struct fleece_segment *segment,
			       const bool *stop)
{
	struct fleece_segment *previous = list_prev_entry(segment, node);

	if (is_private(segment) || segment == tracker->live) {
		if (!join_bits(tracker, segment, previous, stop))
			return;
		segment->start = previous->start;
		drop_segment(previous);
	} else if (is_private(previous)) {
		if (join_bits(tracker, previous, segment, stop))
			drop_segment(segment);
	}
}

void fleece_tracker_compact(struct fleece_tracker *tracker, const bool *stop)
{
	struct fleece_segment *segment;
	struct fleece_segment *next;

	list_for_each_entry_safe(segment, next, &tracker->segments, node) {
		if (stop && READ_ONCE(*stop))
			return;
		if (segment->start.name[0])
			continue;
		if (!list_is_first(&segment->node, &tracker->segments))
			join_with_previous(tracker, segment, stop);
		else if (segment != tracker->live)
			/* Nobody can ask for changes since an older moment. */
			drop_segment(segment);
	}
}

int fleece_tracker_delete(struct fleece_tracker *tracker, const char *name)
{
	struct fleece_segment *segment = find_checkpoint(tracker, name);

	if (!segment)
		return -ENOENT;
	memset(&segment->start, 0, sizeof(segment->start));
	WRITE_ONCE(tracker->nr_checkpoints, tracker->nr_checkpoints - 1);
	fleece_tracker_compact(tracker, NULL);
	return 0;
}

void fleece_tracker_forget(struct fleece_tracker *tracker)
{
	struct fleece_segment *segment;

	list_for_each_entry(segment, &tracker->segments, node)
		memset(&segment->start, 0, sizeof(segment->start));
	WRITE_ONCE(tracker->nr_checkpoints, 0);
	fleece_tracker_compact(tracker, NULL);
}

/*
 * A segment of the new size. All granules that are not wholly within the old size
 * are set in it.
 */
static struct fleece_segment *resized_segment(const struct fleece_segment *old, u64 nr_granules,
					      u64 first_new)
{
	struct fleece_segment *segment = fleece_segment_alloc(nr_granules);
	u64 words = BITS_TO_LONGS(min(old->nr_granules, nr_granules));

	if (!segment)
		return NULL;
	segment->start = old->start;
	memcpy(segment->bits, old->bits, words * sizeof(unsigned long));
	if (nr_granules % BITS_PER_LONG)
		segment->bits[nr_granules / BITS_PER_LONG] &=
			(1UL << nr_granules % BITS_PER_LONG) - 1;
	fleece_bits_fill(segment->bits, first_new, nr_granules);
	return segment;
}

int fleece_tracker_resize(struct fleece_tracker *tracker, sector_t nr_sectors)
{
	u64 first_new = tracker->nr_sectors >> tracker->granule_shift;
	bool is_growing = nr_sectors > tracker->nr_sectors;
	struct fleece_segment *segment;
	struct fleece_segment *next;
	struct fleece_segment *old;

	set_size(tracker, nr_sectors);
	if (!is_growing)
		first_new = tracker->nr_granules;
	list_for_each_entry_safe(old, next, &tracker->segments, node) {
		segment = resized_segment(old, tracker->nr_granules, first_new);
		if (!segment) {
			fleece_tracker_exit(tracker);
			return -ENOMEM;
		}
		list_replace(&old->node, &segment->node);
		if (old == tracker->live)
			WRITE_ONCE(tracker->live, segment);
		fleece_segment_put(old);
	}
	return 0;
}

const struct fleece_moment *fleece_tracker_newest(struct fleece_tracker *tracker)
{
	struct fleece_segment *segment;

	list_for_each_entry_reverse(segment, &tracker->segments, node) {
		if (segment->start.name[0])
			return &segment->start;
	}
	return NULL;
}

static unsigned int count_segments(struct fleece_tracker *tracker)
{
	struct fleece_segment *segment;
	unsigned int count = 0;

	list_for_each_entry(segment, &tracker->segments, node)
		count++;
	return count;
}

int fleece_history_get(struct fleece_history *history, struct fleece_tracker *tracker, gfp_t gfp)
{
	unsigned int count = count_segments(tracker);
	struct fleece_segment *segment;
	unsigned int i;

	memset(history, 0, sizeof(*history));
	history->nr_granules = tracker->nr_granules;
	history->segments = kvcalloc(count + 1, sizeof(*history->segments), gfp);
	history->maps = kvcalloc(count + 1, sizeof(*history->maps), gfp);
	/* One more for the checkpoint that may end the history. */
	history->entries = kvcalloc(count + 1, sizeof(*history->entries), gfp);
	if (!history->segments || !history->maps || !history->entries) {
		fleece_history_put(history);
		return -ENOMEM;
	}

	list_for_each_entry(segment, &tracker->segments, node) {
		i = history->nr_segments++;
		refcount_inc(&segment->refs);
		history->segments[i] = segment;
		history->maps[i] = segment->bits;
		if (segment->start.name[0]) {
			history->entries[history->nr_entries].moment = segment->start;
			history->entries[history->nr_entries++].first = i;
		}
	}
	return 0;
}

void fleece_history_end_here(struct fleece_history *history, struct fleece_tracker *tracker)
{
	struct fleece_history_entry *entry = &history->entries[history->nr_entries++];

	entry->moment = tracker->live->start;
	entry->first = history->nr_segments;
}

void fleece_history_put(struct fleece_history *history)
{
	unsigned int i;

	for (i = 0; i < history->nr_segments; i++)
		fleece_segment_put(history->segments[i]);
	kvfree(history->segments);
	kvfree(history->maps);
	kvfree(history->entries);
	memset(history, 0, sizeof(*history));
}

/* From the newest to the oldest: each one's changes are also those of the ones before. */
static void count_word(struct fleece_history *history, u64 index)
{
	unsigned int segment = history->nr_segments;
	unsigned int i = history->nr_entries;
	struct fleece_history_entry *entry;
	unsigned long word = 0;

	while (i--) {
		entry = &history->entries[i];
		while (segment > entry->first)
			word |= READ_ONCE(history->maps[--segment][index]);
		entry->changed += hweight_long(word);
	}
}

bool fleece_history_count(struct fleece_history *history, const bool *stop)
{
	u64 words = BITS_TO_LONGS(history->nr_granules);
	unsigned int i;
	u64 index;

	for (i = 0; i < history->nr_entries; i++)
		history->entries[i].changed = 0;
	for (index = 0; index < words; index++) {
		count_word(history, index);
		if (!fleece_bits_go_on(index, stop))
			return false;
	}
	/* What is not known has to count as changed. */
	for (i = 0; i < history->nr_entries; i++) {
		if (history->entries[i].moment.is_invalid)
			history->entries[i].changed = history->nr_granules;
	}
	return true;
}

static void view_from(const struct fleece_history *history,
		      const struct fleece_history_entry *entry, struct fleece_view *view)
{
	view->maps = history->maps + entry->first;
	view->nr_maps = history->nr_segments - entry->first;
	view->nr_bits = history->nr_granules;
}

u64 fleece_history_changed(const struct fleece_history *history, const bool *stop)
{
	const struct fleece_history_entry *newest;
	struct fleece_view view;
	u64 changed;

	if (!history->nr_entries)
		return 0;
	newest = &history->entries[history->nr_entries - 1];
	view_from(history, newest, &view);
	if (newest->moment.is_invalid || !fleece_bits_count(&view, stop, &changed))
		return history->nr_granules;
	return changed;
}

static const struct fleece_history_entry *find_entry(const struct fleece_history *history,
						     const char *name)
{
	unsigned int i;

	for (i = 0; i < history->nr_entries; i++) {
		if (!strcmp(history->entries[i].moment.name, name))
			return &history->entries[i];
	}
	return NULL;
}

int fleece_history_known_since(const struct fleece_history *history, const char *name,
			       struct fleece_view *view)
{
	const struct fleece_history_entry *entry = find_entry(history, name);

	if (!entry)
		return -ENOENT;
	view_from(history, entry, view);
	return 0;
}

int fleece_history_since(const struct fleece_history *history, const char *name,
			 struct fleece_view *view)
{
	const struct fleece_history_entry *entry = find_entry(history, name);

	if (entry && entry->moment.is_invalid)
		return -ESTALE;
	return fleece_history_known_since(history, name, view);
}
