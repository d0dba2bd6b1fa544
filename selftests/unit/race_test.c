// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will delete checkpoints while writes are marked, under the thread
 * sanitizer: deleting joins segments with the live one. It must neither lose a mark
 * nor touch the map in a way that could.
 */
#include <pthread.h>
#include <stdio.h>

#include <linux/gfp.h>

#include "tracker.h"
#include "unit.h"
#include "view.h"

#define GRANULES	100000
#define CHECKPOINTS	10

static struct fleece_tracker tracker;

static void name_of(unsigned int index, char *name)
{
	sprintf(name, "point-%u", index);
}

static void mark_every(u64 step, u64 from)
{
	u64 g;

	for (g = from; g < GRANULES; g += step)
		fleece_tracker_mark(&tracker, g * 8, 1);
}

static void *mark_odd(void *unused)
{
	(void)unused;
	mark_every(2, 1);
	return NULL;
}

/* Each segment gets its share of the even granules. */
static void make_checkpoints(void)
{
	char name[20];
	unsigned int i;

	for (i = 0; i < CHECKPOINTS; i++) {
		name_of(i, name);
		fleece_tracker_switch(&tracker, fleece_segment_alloc(GRANULES), name);
		mark_every(2 * CHECKPOINTS, 2 * i);
	}
}

static void delete_all_but_first(void)
{
	char name[20];
	unsigned int i;

	for (i = CHECKPOINTS - 1; i; i--) {
		name_of(i, name);
		require(!fleece_tracker_delete(&tracker, name), "%s", name);
	}
}

static void test_join_while_marking(void)
{
	struct fleece_history history;
	struct fleece_view view;
	unsigned int round;
	pthread_t writer;

	for (round = 0; round < 10; round++) {
		fleece_tracker_init(&tracker, GRANULES * 8, 8);
		make_checkpoints();
		require(!pthread_create(&writer, NULL, mark_odd, NULL), "thread");
		delete_all_but_first();
		pthread_join(writer, NULL);
		require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "history");
		require(history.nr_segments == 1, "%u segments", history.nr_segments);
		require(!fleece_history_since(&history, "point-0", &view), "since");
		require(count_bits(&view) == GRANULES, "%llu marks are lost",
			GRANULES - count_bits(&view));
		fleece_history_put(&history);
		fleece_tracker_exit(&tracker);
	}
}

/* Counts of the newest checkpoint, as a status line wants them, beside the marks. */
static void test_count_while_marking(void)
{
	struct fleece_history history;
	pthread_t writer;
	u64 before = 0;
	u64 count;

	fleece_tracker_init(&tracker, GRANULES * 8, 8);
	fleece_tracker_switch(&tracker, fleece_segment_alloc(GRANULES), "point-0");
	require(!pthread_create(&writer, NULL, mark_odd, NULL), "thread");
	do {
		require(!fleece_history_get(&history, &tracker, GFP_KERNEL), "out of memory");
		count = fleece_history_changed(&history, NULL);
		fleece_history_put(&history);
		require(count >= before, "%llu after %llu", count, before);
		before = count;
	} while (count < GRANULES / 2);
	pthread_join(writer, NULL);
	fleece_tracker_exit(&tracker);
}

static const struct unit_case cases[] = {
	{ "race: marks are not lost while segments are joined", test_join_while_marking },
	{ "race: counting while marks are set", test_count_while_marking },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
