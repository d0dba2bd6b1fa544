// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the table of copies in flight against a model that knows
 * the run of each cluster.
 */
#include <string.h>

#include <linux/kernel.h>

#include "inflight.h"
#include "unit.h"

#define CLUSTERS	3000
#define RUNS		600
#define ROUNDS		6000

static struct fleece_inflight table;
static struct fleece_run runs[RUNS];
static bool is_in[RUNS];
static struct fleece_run *model[CLUSTERS];

/* Far from 0 as well: cluster numbers have more than 32 bits. */
static cluster_t base;

static void enter(struct fleece_run *run, struct fleece_run *value)
{
	cluster_t c;

	for (c = run->first; c <= run->last; c++)
		model[c - base] = value;
}

static void begin(unsigned int window_shift, cluster_t from)
{
	fleece_inflight_init(&table, window_shift);
	memset(is_in, 0, sizeof(is_in));
	memset(model, 0, sizeof(model));
	base = from;
}

/* Make a run at a random place, as long as the rules let it be. */
static bool place_run(struct fleece_run *run)
{
	cluster_t last;

	run->first = base + unit_random(CLUSTERS);
	if (model[run->first - base])
		return false;
	last = min(fleece_inflight_window_last(&table, run->first), base + CLUSTERS - 1);
	last = run->first + unit_random(last - run->first + 1);
	run->last = run->first;
	while (run->last < last && !model[run->last + 1 - base])
		run->last++;
	return true;
}

static void change_one(void)
{
	unsigned int i = unit_random(RUNS);

	if (is_in[i]) {
		fleece_inflight_remove(&runs[i]);
		enter(&runs[i], NULL);
		is_in[i] = false;
	} else if (place_run(&runs[i])) {
		fleece_inflight_add(&table, &runs[i]);
		enter(&runs[i], &runs[i]);
		is_in[i] = true;
	}
}

static void check_cluster(cluster_t c)
{
	require(fleece_inflight_find(&table, c) == model[c - base], "cluster %llu, window shift %u",
		c, table.window_shift);
}

static void check_range(void)
{
	unsigned int first = unit_random(CLUSTERS);
	unsigned int last = first + unit_random(min(CLUSTERS - first, 200U));
	bool any = false;
	unsigned int i;

	for (i = first; i <= last; i++)
		any |= !!model[i];
	require(fleece_inflight_any(&table, base + first, base + last) == any,
		"clusters %u to %u, window shift %u", first, last, table.window_shift);
}

static void run_model(unsigned int window_shift, cluster_t from)
{
	unsigned int round;
	cluster_t c;

	begin(window_shift, from);
	for (round = 0; round < ROUNDS; round++) {
		change_one();
		check_cluster(base + unit_random(CLUSTERS));
		check_range();
		if (round % 500)
			continue;
		for (c = base; c < base + CLUSTERS; c++)
			check_cluster(c);
	}
}

static void test_model(void)
{
	unsigned int shift;

	for (shift = 0; shift <= 11; shift++) {
		run_model(shift, 0);
		run_model(shift, (cluster_t)5 << 40);
	}
}

static void test_windows(void)
{
	static const struct {
		unsigned int shift;
		cluster_t cluster;
		cluster_t last;
	} lines[] = {
		{ 0, 0, 0 }, { 0, 7, 7 }, { 3, 0, 7 }, { 3, 7, 7 }, { 3, 8, 15 },
		{ 8, 255, 255 }, { 8, 256, 511 }, { 8, 1ULL << 33, (1ULL << 33) + 255 },
	};
	cluster_t last;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(lines); i++) {
		fleece_inflight_init(&table, lines[i].shift);
		last = fleece_inflight_window_last(&table, lines[i].cluster);
		require(last == lines[i].last, "line %u: %llu", i, last);
	}
}

/* The clusters beside a run belong to no run, also across the border of a window. */
static void test_neighbours(void)
{
	struct fleece_run left = { .first = 4, .last = 7 };
	struct fleece_run right = { .first = 8, .last = 8 };

	fleece_inflight_init(&table, 3);
	fleece_inflight_add(&table, &left);
	require(!fleece_inflight_find(&table, 3) && !fleece_inflight_find(&table, 8), "too wide");
	fleece_inflight_add(&table, &right);
	require(fleece_inflight_find(&table, 7) == &left, "left");
	require(fleece_inflight_find(&table, 8) == &right, "right");
	fleece_inflight_remove(&left);
	require(!fleece_inflight_find(&table, 4) && !fleece_inflight_find(&table, 7), "left stays");
	require(fleece_inflight_find(&table, 8) == &right, "right went as well");
	fleece_inflight_remove(&right);
	require(!fleece_inflight_find(&table, 8), "right stays");
}

static const struct unit_case cases[] = {
	{ "inflight: random runs in windows of 1 to 2048 clusters", test_model },
	{ "inflight: last cluster of a window", test_windows },
	{ "inflight: neighbours of a run", test_neighbours },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
