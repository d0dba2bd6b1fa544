// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the tracker against a model that keeps, for each checkpoint
 * and for each history, the exact set of granules written since, and knows nothing
 * of segments.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/timekeeping.h>

#include "memory.h"
#include "tracker.h"
#include "unit.h"
#include "view.h"

#define GRANULES_MAX	160
#define NAMES		12
#define HISTORIES	6

/* A checkpoint as the model knows it. */
struct point {
	struct fleece_moment moment;
	bool granules[GRANULES_MAX];
	bool is_deleted;
};

/*
 * A history as the model knows it. It is open while the segment that was the live
 * one when it was taken is still written to. Of a checkpoint that is deleted in
 * that time it may say too much, but never more than of the oldest one.
 */
struct reader {
	struct fleece_history history;
	bool is_used;
	bool is_open;
	unsigned int nr_points;
	struct point points[NAMES];
};

static struct fleece_tracker tracker;
static unsigned int nr_points;
static struct point points[NAMES];
static struct reader readers[HISTORIES];
static u64 nr_granules;
static sector_t nr_sectors;

/*
 * Comparing
 */

static void read_view(const struct fleece_view *view, bool *granules)
{
	u64 from;
	u64 length;
	bool value;

	require(view->nr_bits == nr_granules, "%llu granules", view->nr_bits);
	for (from = 0; from < nr_granules; from += length) {
		length = fleece_bits_run(view, from, nr_granules, &value);
		memset(&granules[from], value, length);
	}
}

static u64 count_of(const bool *granules)
{
	u64 count = 0;
	u64 g;

	for (g = 0; g < nr_granules; g++)
		count += granules[g];
	return count;
}

static void check_point(const struct fleece_history *history, const struct point *point)
{
	bool granules[GRANULES_MAX] = {};
	struct fleece_view view;

	require(!fleece_history_since(history, point->moment.name, &view), "%s is unknown",
		point->moment.name);
	read_view(&view, granules);
	require(!memcmp(granules, point->granules, nr_granules), "changes since %s: %llu, not %llu",
		point->moment.name, count_of(granules), count_of(point->granules));
	require(count_bits(&view) == count_of(granules), "count");
}

/* Superset of the truth, subset of what is true of the oldest checkpoint. */
static void check_loose_point(const struct fleece_history *history, const struct point *oldest,
			      struct point *point, bool is_final)
{
	bool granules[GRANULES_MAX] = {};
	struct fleece_view view;
	u64 g;

	require(!fleece_history_since(history, point->moment.name, &view), "%s is unknown",
		point->moment.name);
	read_view(&view, granules);
	for (g = 0; g < nr_granules; g++) {
		require(granules[g] || !point->granules[g], "%s lost granule %llu",
			point->moment.name, g);
		require(!granules[g] || oldest->granules[g], "%s invented granule %llu",
			point->moment.name, g);
	}
	if (is_final)
		memcpy(point->granules, granules, sizeof(granules));
}

static void check_entries(const struct fleece_history *history, const struct point *known,
			  unsigned int count)
{
	unsigned int i;

	require(history->nr_granules == nr_granules, "granules");
	require(history->nr_entries == count, "%u entries, not %u", history->nr_entries, count);
	for (i = 0; i < count; i++)
		require(!memcmp(&history->entries[i].moment, &known[i].moment,
				sizeof(known[i].moment)),
			"entry %u is not %s as it was made", i, known[i].moment.name);
}

static void check_reader(struct reader *reader)
{
	struct point *point = reader->points;
	struct fleece_view view;

	check_entries(&reader->history, reader->points, reader->nr_points);
	require(fleece_history_since(&reader->history, "unknown", &view) == -ENOENT, "unknown");
	require(fleece_history_since(&reader->history, "", &view) == -ENOENT, "nameless");
	for (; point < reader->points + reader->nr_points; point++) {
		if (reader->is_open && point->is_deleted)
			check_loose_point(&reader->history, reader->points, point, false);
		else
			check_point(&reader->history, point);
	}
}

static bool is_held(const struct fleece_segment *segment)
{
	return segment->refs.refs > 1;
}

/*
 * A segment without a name is there only for somebody who holds it, or because it
 * is the live one.
 */
static void check_segments(bool is_compact)
{
	struct fleece_segment *segment;
	unsigned int held = 0;
	unsigned int count = 0;

	list_for_each_entry(segment, &tracker.segments, node) {
		count++;
		held += is_held(segment);
	}
	if (is_compact)
		require(count <= nr_points + held + 1, "%u segments for %u checkpoints, %u held",
			count, nr_points, held);
	if (is_compact && !held)
		require(count == nr_points || (!nr_points && count == 1),
			"%u segments for %u checkpoints", count, nr_points);
	require(!count == !tracker.live, "live");
}

static void check_newest(u64 changed)
{
	const struct point *newest = nr_points ? &points[nr_points - 1] : NULL;
	const struct fleece_moment *moment;
	struct fleece_history history;
	u64 told;

	moment = fleece_tracker_newest(&tracker);
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
	told = fleece_history_changed(&history, NULL);
	fleece_history_put(&history);
	require(told == changed, "newest: %llu granules, not %llu", told, changed);
	require(!moment == !newest, "newest: none, or one too many");
	if (newest)
		require(!memcmp(moment, &newest->moment, sizeof(*moment)), "newest: %s, not %s",
			moment->name, newest->moment.name);
}

static void check_all(void)
{
	struct fleece_history now;
	unsigned int i;

	require(tracker.nr_checkpoints == nr_points, "%u checkpoints, not %u",
		tracker.nr_checkpoints, nr_points);
	require(!fleece_history_get(&now, &tracker, GFP_KERNEL), "out of memory");
	check_entries(&now, points, nr_points);
	for (i = 0; i < nr_points; i++) {
		require(fleece_tracker_find(&tracker, points[i].moment.name), "exists");
		check_point(&now, &points[i]);
	}
	fleece_history_put(&now);
	check_newest(nr_points ? count_of(points[nr_points - 1].granules) : 0);
	for (i = 0; i < HISTORIES; i++) {
		if (readers[i].is_used)
			check_reader(&readers[i]);
	}
}

/*
 * Steps, as the module takes them
 */

static void name_of(unsigned int index, char *name)
{
	sprintf(name, "point-%u", index);
}

static struct point *find_point(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_points; i++) {
		if (!strcmp(points[i].moment.name, name))
			return &points[i];
	}
	return NULL;
}

static void mark_points(struct point *point, unsigned int count, u64 first, u64 last)
{
	for (; count--; point++)
		memset(&point->granules[first], true, last - first + 1);
}

static void write_some(void)
{
	sector_t sector = unit_random(nr_sectors);
	sector_t length = 1 + unit_random(unit_chance(5) ? nr_sectors - sector :
					  min_t(sector_t, 40, nr_sectors - sector));
	u64 first = sector >> tracker.granule_shift;
	u64 last = (sector + length - 1) >> tracker.granule_shift;
	unsigned int i;

	fleece_tracker_mark(&tracker, sector, length);
	mark_points(points, nr_points, first, last);
	for (i = 0; i < HISTORIES; i++) {
		if (nr_points && readers[i].is_used && readers[i].is_open)
			mark_points(readers[i].points, readers[i].nr_points, first, last);
	}
}

/* Open histories end: what they say of deleted checkpoints must not move any more. */
static void close_readers(void)
{
	struct reader *reader = readers;
	unsigned int i;

	for (; reader < readers + HISTORIES; reader++) {
		if (!reader->is_used || !reader->is_open)
			continue;
		for (i = 0; i < reader->nr_points; i++) {
			if (reader->points[i].is_deleted)
				check_loose_point(&reader->history, reader->points,
						  &reader->points[i], true);
		}
		reader->is_open = false;
	}
}

static struct fleece_segment *alloc_segment(void)
{
	struct fleece_segment *segment;
	long before = unit_pieces();
	bool must_fail = unit_chance(10);

	if (must_fail)
		unit_fail_allocation(1 + unit_random(2));
	segment = fleece_segment_alloc(tracker.nr_granules);
	unit_fail_allocation(0);
	require(!segment == must_fail, "segment");
	if (!segment)
		require(unit_pieces() == before, "%ld pieces left", unit_pieces() - before);
	return segment;
}

/* The moment itself: as in the module it must not need memory. */
static void switch_to(struct fleece_segment *segment, const char *name)
{
	unsigned long before = unit_allocations();
	struct point *point;

	unit_now++;
	fleece_tracker_switch(&tracker, segment, name);
	require(unit_allocations() == before, "memory was asked for");
	require(tracker.live == segment, "live");
	close_readers();
	if (!name)
		return;
	point = &points[nr_points++];
	memset(point, 0, sizeof(*point));
	point->moment = segment->start;
	require(!strcmp(point->moment.name, name), "name");
	require(point->moment.created == unit_now, "created");
}

static void compact(void)
{
	unsigned long before = unit_allocations();

	fleece_tracker_compact(&tracker, NULL);
	require(unit_allocations() == before, "memory was asked for");
	check_segments(true);
}

static void create_some(void)
{
	struct fleece_segment *segment;
	char name[20];
	int expected;

	name_of(unit_random(NAMES), name);
	segment = alloc_segment();
	if (!segment)
		return;
	expected = find_point(name) ? -EEXIST : 0;
	require(fleece_tracker_check_new(&tracker, name) == expected, "%s: not %d", name, expected);
	if (!expected) {
		switch_to(segment, name);
		compact();
	} else {
		fleece_segment_put(segment);
	}
}

static void note_deletion(struct reader *reader, const char *name)
{
	struct point *point = reader->points;

	for (; point < reader->points + reader->nr_points; point++) {
		if (!strcmp(point->moment.name, name))
			point->is_deleted = true;
	}
}

static void delete_some(void)
{
	struct point *point;
	unsigned int i;
	char name[20];

	name_of(unit_random(NAMES), name);
	point = find_point(name);
	require(!!fleece_tracker_find(&tracker, name) == !!point, "%s exists", name);
	require(fleece_tracker_delete(&tracker, name) == (point ? 0 : -ENOENT), "%s", name);
	if (!point)
		return;
	for (i = 0; i < HISTORIES; i++) {
		if (readers[i].is_used && readers[i].is_open)
			note_deletion(&readers[i], name);
	}
	memmove(point, point + 1, (points + nr_points - (point + 1)) * sizeof(*point));
	nr_points--;
	check_segments(true);
}

static struct reader *free_reader(void)
{
	struct reader *reader = readers;

	while (reader < readers + HISTORIES && reader->is_used)
		reader++;
	return reader < readers + HISTORIES ? reader : NULL;
}

/* Take a history; false if there was no memory, which must leave no trace. */
static bool get_history(struct fleece_history *history)
{
	static const struct fleece_history zero;
	bool must_fail = unit_chance(10);
	long before = unit_pieces();
	int ret;

	memset(history, 0xa5, sizeof(*history));
	if (must_fail)
		unit_fail_allocation(1 + unit_random(3));
	ret = fleece_history_get(history, &tracker, GFP_KERNEL);
	unit_fail_allocation(0);
	require(ret == (must_fail ? -ENOMEM : 0), "history: %d", ret);
	if (!ret)
		return true;
	require(unit_pieces() == before, "%ld pieces left", unit_pieces() - before);
	require(!memcmp(history, &zero, sizeof(zero)), "half a history");
	fleece_history_put(history);
	return false;
}

/* What somebody does who reads the map of the origin. */
static void read_some(void)
{
	struct reader *reader = free_reader();

	if (!reader || !get_history(&reader->history))
		return;
	reader->is_used = true;
	reader->is_open = tracker.live;
	reader->nr_points = nr_points;
	memcpy(reader->points, points, sizeof(points));
}

/* What taking a snapshot does, with or without a checkpoint. */
static void snapshot_some(void)
{
	struct reader *reader = free_reader();
	struct fleece_segment *segment;
	const char *checkpoint = NULL;
	struct point newest;
	char name[20];

	name_of(unit_random(NAMES), name);
	if (unit_chance(2) && !find_point(name))
		checkpoint = name;
	if (!reader || (!checkpoint && !nr_points))
		return;
	segment = alloc_segment();
	if (!segment)
		return;
	if (!get_history(&reader->history)) {
		fleece_segment_put(segment);
		return;
	}
	reader->nr_points = nr_points;
	memcpy(reader->points, points, sizeof(points));
	switch_to(segment, checkpoint);
	if (checkpoint) {
		fleece_history_end_here(&reader->history, &tracker);
		newest = points[nr_points - 1];
		reader->points[reader->nr_points++] = newest;
	}
	reader->is_used = true;
	reader->is_open = false;
	compact();
}

static void drop_reader(struct reader *reader)
{
	fleece_history_put(&reader->history);
	memset(reader, 0, sizeof(*reader));
}

static void drop_some(void)
{
	struct reader *reader = &readers[unit_random(HISTORIES)];

	if (!reader->is_used)
		return;
	drop_reader(reader);
	/* Who reads the map of the origin does not hold its lock, and does not compact. */
	if (unit_chance(2))
		compact();
}

/*
 * Cases
 */

static void begin(u64 granules, unsigned int granule_sectors)
{
	memset(points, 0, sizeof(points));
	memset(readers, 0, sizeof(readers));
	nr_points = 0;
	nr_granules = granules;
	/* The last granule is one that the device does not fill. */
	nr_sectors = granules * granule_sectors - unit_random(granule_sectors);
	memset(&tracker, 0xa5, sizeof(tracker));
	fleece_tracker_init(&tracker, nr_sectors, granule_sectors);
	require(tracker.nr_granules == nr_granules, "%llu granules", tracker.nr_granules);
	require(1U << tracker.granule_shift == granule_sectors, "shift");
	require(!tracker.live && !tracker.nr_checkpoints, "not empty");
}

/* Histories outlive the tracker. */
static void end(void)
{
	unsigned int i;

	fleece_tracker_exit(&tracker);
	for (i = 0; i < HISTORIES; i++) {
		if (!readers[i].is_used)
			continue;
		check_reader(&readers[i]);
		drop_reader(&readers[i]);
	}
}

static void step(void)
{
	switch (unit_random(15)) {
	case 0:
	case 1:
		create_some();
		break;
	case 2:
	case 3:
		delete_some();
		break;
	case 4:
		snapshot_some();
		break;
	case 5:
		read_some();
		break;
	case 6:
	case 7:
		drop_some();
		break;
	default:
		write_some();
	}
}

static void run_model(unsigned int steps, unsigned int granules_max)
{
	unsigned int i;

	begin(1 + unit_random(granules_max), 8U << unit_random(4));
	while (steps--) {
		step();
		if (unit_chance(3))
			check_all();
	}
	check_all();
	for (i = 0; i < HISTORIES; i++) {
		if (unit_chance(2) && readers[i].is_used)
			drop_reader(&readers[i]);
	}
	end();
}

static void test_model_short(void)
{
	unsigned int i;

	for (i = 0; i < 3000; i++)
		run_model(1 + unit_random(30), 4);
}

static void test_model_long(void)
{
	unsigned int i;

	for (i = 0; i < 60; i++)
		run_model(1000, GRANULES_MAX);
}

/* With all histories gone there is one segment for each checkpoint, whatever was before. */
static void test_pile_up(void)
{
	unsigned int round;
	unsigned int i;

	begin(GRANULES_MAX, 8);
	for (round = 0; round < 200; round++) {
		for (i = 0; i < 100; i++)
			step();
		for (i = 0; i < HISTORIES; i++) {
			if (readers[i].is_used)
				drop_reader(&readers[i]);
		}
		compact();
		check_segments(true);
		require(unit_pieces() == 2 * (nr_points ?: !!tracker.live),
			"%ld pieces for %u checkpoints", unit_pieces(), nr_points);
		check_all();
	}
	end();
}

static const char *const bad_names[] = {
	"", "-a", ".a", ".", "..", "-", "a b", " ", "a/b", "a\n", "\t", "a:b", "a,b", "a*", "a'b",
	"\xc3\xa9", "a\x80", "a\xff", "a\x01", "a@", "a[", "a`", "a{", "a\x7f", "a\\b", "a+b", "a%s",
	"0123456789012345678901234567890123456789012345678901234567890123",
	"0123456789012345678901234567890123456789012345678901234567890123456789",
};

static const char *const good_names[] = {
	"a", "z", "A", "Z", "0", "9", "_", "__", "a-b", "a.b", "a.", "a-", "_-.", "daily.2024-01-31_x",
	"012345678901234567890123456789012345678901234567890123456789012",
};

static void test_names(void)
{
	struct fleece_segment *segment;
	unsigned int i;

	begin(10, 8);
	for (i = 0; i < ARRAY_SIZE(bad_names); i++) {
		require(fleece_checkpoint_name_error(bad_names[i]), "'%s' is a name", bad_names[i]);
		require(fleece_tracker_check_new(&tracker, bad_names[i]) == -EINVAL, "'%s' passes",
			bad_names[i]);
		require(fleece_tracker_delete(&tracker, bad_names[i]) == -ENOENT, "'%s' goes",
			bad_names[i]);
	}
	for (i = 0; i < ARRAY_SIZE(good_names); i++) {
		require(!fleece_checkpoint_name_error(good_names[i]), "'%s' is no name: %s",
			good_names[i], fleece_checkpoint_name_error(good_names[i]));
		require(!fleece_tracker_check_new(&tracker, good_names[i]), "'%s' is refused",
			good_names[i]);
		segment = fleece_segment_alloc(nr_granules);
		fleece_tracker_switch(&tracker, segment, good_names[i]);
		require(!strcmp(segment->start.name, good_names[i]), "'%s' became '%s'",
			good_names[i], segment->start.name);
		require(fleece_tracker_check_new(&tracker, good_names[i]) == -EEXIST, "'%s' twice",
			good_names[i]);
	}
	/* A switch without a name must not be found by one. */
	fleece_tracker_switch(&tracker, fleece_segment_alloc(nr_granules), NULL);
	require(!fleece_tracker_find(&tracker, ""), "the nameless moment is found");
	require(fleece_tracker_delete(&tracker, "") == -ENOENT, "the nameless moment is deleted");
	end();
}

static void add_checkpoint(const char *name)
{
	require(!fleece_tracker_check_new(&tracker, name), "%s is refused", name);
	fleece_tracker_switch(&tracker, fleece_segment_alloc(nr_granules), name);
}

/* Granule i is written after checkpoint i: since checkpoint i, 256 - i were changed. */
static void test_limit(void)
{
	struct fleece_history history;
	struct fleece_view view;
	unsigned int i;
	char name[20];

	begin(FLEECE_CHECKPOINTS_MAX, 8);
	for (i = 0; i < FLEECE_CHECKPOINTS_MAX; i++) {
		name_of(i, name);
		add_checkpoint(name);
		fleece_tracker_mark(&tracker, i * 8, 1);
	}
	require(fleece_tracker_check_new(&tracker, "more") == -ENOSPC, "one too many");
	require(fleece_tracker_check_new(&tracker, "point-7") == -EEXIST, "twice");
	require(fleece_tracker_check_new(&tracker, "-") == -EINVAL, "malformed");
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
	require(fleece_history_count(&history, NULL), "stopped");
	for (i = 0; i < FLEECE_CHECKPOINTS_MAX; i++) {
		require(history.entries[i].changed == FLEECE_CHECKPOINTS_MAX - i, "count %u", i);
		name_of(i, name);
		require(!fleece_history_since(&history, name, &view), "%s", name);
		require(count_bits(&view) == FLEECE_CHECKPOINTS_MAX - i, "since %s", name);
		require(!i || !fleece_bits_any(&view, 0, i - 1), "since %s: too early", name);
	}
	fleece_history_put(&history);
	require(!fleece_tracker_delete(&tracker, "point-7"), "delete");
	require(fleece_tracker_check_new(&tracker, "point-7") == 0, "its place is free");
	add_checkpoint("more");
	require(fleece_tracker_check_new(&tracker, "point-7") == -ENOSPC, "no place");
	end();
}

/* A checkpoint that ends a history: nothing was changed since, also later. */
static void test_end_here(void)
{
	struct fleece_history history;
	struct fleece_view view;

	begin(10, 8);
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history of nothing");
	require(!history.nr_entries && !history.nr_segments, "not empty");
	add_checkpoint("first");
	fleece_history_end_here(&history, &tracker);
	fleece_tracker_mark(&tracker, 0, nr_sectors);
	require(!fleece_history_since(&history, "first", &view), "first");
	require(view.nr_bits == nr_granules && !count_bits(&view), "changes in no time");
	fleece_history_put(&history);

	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history");
	add_checkpoint("second");
	fleece_history_end_here(&history, &tracker);
	fleece_tracker_mark(&tracker, 0, nr_sectors);
	require(!fleece_tracker_delete(&tracker, "second"), "delete");
	require(!fleece_tracker_delete(&tracker, "first"), "delete");
	require(!fleece_history_since(&history, "second", &view), "second");
	require(!count_bits(&view), "changes in no time");
	require(!fleece_history_since(&history, "first", &view), "first");
	require(count_bits(&view) == nr_granules, "changes since first");
	fleece_tracker_exit(&tracker);
	require(count_bits(&view) == nr_granules, "changes since first, later");
	fleece_history_put(&history);
	fleece_history_put(&history);
}

/* Who is told to stop does so, and does not call what it has counted the result. */
static void test_stopped(void)
{
	const u64 many = 65536ULL * 64 * 2;
	struct fleece_history history;
	bool stop = true;

	begin(many, 8);
	add_checkpoint("first");
	fleece_tracker_mark(&tracker, 0, 8);
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
	require(!fleece_history_count(&history, &stop), "it goes on");
	require(fleece_history_changed(&history, &stop) == many, "too few");
	stop = false;
	require(fleece_history_count(&history, &stop) && history.entries[0].changed == 1, "list");
	require(fleece_history_changed(&history, &stop) == 1, "count");
	fleece_history_put(&history);
	end();
}

/* Without a checkpoint nothing is tracked. */
static void test_untracked(void)
{
	begin(10, 8);
	fleece_tracker_mark(&tracker, 0, nr_sectors);
	require(!tracker.live && !unit_pieces(), "there is a segment");
	check_newest(0);
	fleece_tracker_compact(&tracker, NULL);
	add_checkpoint("first");
	require(!fleece_tracker_delete(&tracker, "first"), "delete");
	fleece_tracker_mark(&tracker, 0, nr_sectors);
	require(tracker.live && !fleece_bits_test(tracker.live->bits, 3),
		"it is tracked still, for nobody");
	check_newest(0);
	add_checkpoint("second");
	fleece_tracker_compact(&tracker, NULL);
	points[nr_points++].moment = tracker.live->start;
	check_segments(true);
	check_newest(0);
	end();
}

/*
 * A history is dropped without the lock, a segment at a time. Deleting may come in
 * between: then a segment is held and the one before it is not.
 */
static void test_half_dropped(void)
{
	struct fleece_history history;
	struct fleece_history now;
	struct fleece_view view;

	begin(10, 8);
	add_checkpoint("first");
	fleece_tracker_mark(&tracker, 0, 1);
	add_checkpoint("second");
	fleece_tracker_mark(&tracker, 8, 1);
	add_checkpoint("third");
	fleece_tracker_mark(&tracker, 16, 1);
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history");
	fleece_segment_put(history.segments[0]);
	history.segments[0] = NULL;

	require(!fleece_tracker_delete(&tracker, "second"), "delete");
	require(!fleece_history_get(&now, &tracker, GFP_KERNEL), "history");
	require(now.nr_segments == 2, "%u segments", now.nr_segments);
	require(!fleece_history_since(&now, "first", &view), "first");
	require(fleece_bits_any(&view, 0, 0) && fleece_bits_any(&view, 1, 1) &&
		count_bits(&view) == 3, "changes since first");
	require(!fleece_history_since(&now, "third", &view), "third");
	require(count_bits(&view) == 1, "changes since third");
	require(!fleece_history_since(&history, "second", &view), "second");
	require(count_bits(&view) == 2, "changes since second");
	fleece_history_put(&now);
	fleece_history_put(&history);
	end();
}

static void check_map(const struct fleece_history *history, const char *name, u64 count,
		      const char *map)
{
	struct fleece_view view;
	size_t g;

	require(!fleece_history_since(history, name, &view), "%s is unknown", name);
	require(view.nr_bits == strlen(map), "since %s: %llu granules", name, view.nr_bits);
	require(count_bits(&view) == count, "since %s: %llu", name,
		count_bits(&view));
	for (g = 0; map[g]; g++)
		require(fleece_bits_any(&view, g, g) == (map[g] == '1'), "since %s: granule %zu",
			name, g);
}

static void check_maps(const char *first, const char *second)
{
	struct fleece_history history;
	u64 count = 0;
	size_t g;

	for (g = 0; first[g]; g++)
		count += first[g] == '1';
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history");
	check_map(&history, "first", count, first);
	for (count = 0, g = 0; second[g]; g++)
		count += second[g] == '1';
	check_map(&history, "second", count, second);
	fleece_history_put(&history);
}

/* What is gained is changed, also when it was lost before; readers see nothing of it. */
static void test_resize(void)
{
	struct fleece_history history;

	begin(6, 8);
	require(!fleece_tracker_resize(&tracker, 8 * 8), "without a checkpoint");
	require(!fleece_tracker_resize(&tracker, 6 * 8 - 3), "without a checkpoint");
	require(tracker.nr_granules == 6 && !tracker.live, "there is a segment");
	add_checkpoint("first");
	fleece_tracker_mark(&tracker, 0, 1);
	nr_granules = 6;
	add_checkpoint("second");
	fleece_tracker_mark(&tracker, 16, 1);
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history");

	require(!fleece_tracker_resize(&tracker, 6 * 8), "within the last granule");
	check_maps("101001", "001001");
	require(!fleece_tracker_resize(&tracker, 70 * 8 - 1), "growing");
	check_maps("1010011111111111111111111111111111111111111111111111111111111111111111",
		   "0010011111111111111111111111111111111111111111111111111111111111111111");
	fleece_tracker_mark(&tracker, 3 * 8, 66 * 8);
	require(!fleece_tracker_resize(&tracker, 4 * 8), "shrinking");
	check_maps("1011", "0011");
	require(!fleece_tracker_resize(&tracker, 6 * 8), "growing again");
	check_maps("101111", "001111");
	fleece_tracker_mark(&tracker, 8, 1);
	check_maps("111111", "011111");
	check_map(&history, "first", 2, "101000");
	check_map(&history, "second", 1, "001000");
	fleece_history_put(&history);
	require(!fleece_tracker_delete(&tracker, "second"), "delete");
	end();
}

static void restore(const char *name, u64 granule, bool is_invalid)
{
	struct fleece_segment *segment = fleece_segment_alloc(nr_granules);
	struct fleece_moment moment = { .created = 7, .is_invalid = is_invalid };

	snprintf(moment.name, sizeof(moment.name), "%s", name);
	uuid_gen(&moment.uuid);
	set_bit(granule, segment->bits);
	fleece_tracker_restore(&tracker, segment, &moment);
	require(!memcmp(&fleece_tracker_find(&tracker, name)->uuid, &moment.uuid,
			sizeof(moment.uuid)), "%s has another uuid", name);
	require(fleece_tracker_find(&tracker, name)->created == 7, "%s has another time", name);
}

/* What an earlier tracker has left goes on to be tracked; what is invalid is refused. */
static void test_restore(void)
{
	struct fleece_history history;
	struct fleece_view view;
	u64 changed;

	begin(6, 8);
	restore("old", 0, true);
	restore("first", 1, false);
	restore("second", 2, false);
	require(tracker.nr_checkpoints == 3, "%u checkpoints", tracker.nr_checkpoints);
	require(fleece_tracker_check_new(&tracker, "old") == -EEXIST, "twice");
	fleece_tracker_mark(&tracker, 3 * 8, 8);
	check_maps("011100", "001100");
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
	require(fleece_history_since(&history, "old", &view) == -ESTALE, "invalid, and answers");
	require(!fleece_history_known_since(&history, "old", &view), "nothing is known");
	require(count_bits(&view) == 4, "%llu are known", count_bits(&view));
	require(fleece_history_known_since(&history, "none", &view) == -ENOENT, "none is known");
	fleece_history_put(&history);
	require(!fleece_tracker_delete(&tracker, "first"), "delete");
	require(!fleece_tracker_delete(&tracker, "second"), "delete");
	require(fleece_tracker_newest(&tracker)->is_invalid, "it is valid now");
	require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
	changed = fleece_history_changed(&history, NULL);
	require(changed == 6, "%llu are counted, not all, which nobody knows", changed);
	require(fleece_history_count(&history, NULL), "stopped");
	require(history.entries[0].changed == 6, "%llu are listed", history.entries[0].changed);
	fleece_history_put(&history);
	require(!fleece_tracker_delete(&tracker, "old"), "delete");
	end();
}

static const struct unit_case cases[] = {
	{ "tracker: many short random lives on a few granules", test_model_short },
	{ "tracker: long random lives", test_model_long },
	{ "tracker: segments do not pile up", test_pile_up },
	{ "tracker: which names are allowed", test_names },
	{ "tracker: 256 checkpoints and no more", test_limit },
	{ "tracker: a history that ends with a checkpoint", test_end_here },
	{ "tracker: counting can be stopped", test_stopped },
	{ "tracker: without a checkpoint nothing is tracked", test_untracked },
	{ "tracker: a segment is joined while a history is half dropped", test_half_dropped },
	{ "tracker: an origin of another size", test_resize },
	{ "tracker: checkpoints of an earlier one", test_restore },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
