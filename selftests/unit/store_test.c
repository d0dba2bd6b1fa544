// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the slots of the COW device against a model: an array that
 * says of each slot that it is free, taken, or owned by which cluster.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/bitops.h>
#include <linux/gfp.h>

#include "store.h"
#include "unit.h"

/* What store.h promises: 16 bytes for each slot, a page at a time. */
#define SLOTS_PER_PAGE	(PAGE_SIZE / 16)

#define SLOTS_MAX	2000
#define CLUSTERS	3000
#define FREE		(~0ULL)
#define TAKEN		(~0ULL - 1)

static struct fleece_store store;

static u64 model[SLOTS_MAX];
static u32 nr_slots;
static u32 used;
static u32 nr_pages;
static unsigned int nr_spares;

/* Cluster numbers of all sizes, many of which have the same low bits. */
static cluster_t cluster_of(unsigned int index)
{
	return (cluster_t)(index % 50) << 36 | index;
}

static void begin(u32 slots)
{
	u32 s;

	memset(&store, 0, sizeof(store));
	nr_slots = slots;
	used = 0;
	nr_pages = 0;
	nr_spares = 0;
	for (s = 0; s < slots; s++)
		model[s] = FREE;
	require(!fleece_store_init(&store, slots), "cannot be made");
}

static void end(void)
{
	struct fleece_store zero = {};

	fleece_store_exit(&store);
	require(!memcmp(&store, &zero, sizeof(zero)), "not all is forgotten");
}

static void refill(void)
{
	void *page = fleece_store_refill(&store, GFP_KERNEL);

	require(!page == (nr_spares == FLEECE_STORE_SPARES),
		"a page is made although there are enough, or the reverse");
	fleece_store_add_spare(&store, page);
	nr_spares += !!page;
}

static u32 lowest_free(void)
{
	u32 s = 0;

	while (s < nr_slots && model[s] != FREE)
		s++;
	return s;
}

/* Does the model have entries for a slot, if need be from a spare page? */
static bool model_has_entries(u32 slot)
{
	if (slot / SLOTS_PER_PAGE < nr_pages)
		return true;
	if (!nr_spares)
		return false;
	nr_spares--;
	nr_pages++;
	return true;
}

/* Take slots in the model. Returns what fleece_store_alloc() has to return. */
static int model_alloc(unsigned int want, u32 *slot)
{
	u32 s = lowest_free();

	*slot = s;
	if (s == nr_slots)
		return -ENOSPC;
	while (s < nr_slots && s - *slot < want && model[s] == FREE && model_has_entries(s))
		model[s++] = TAKEN;
	used += s - *slot;
	return s == *slot ? -EAGAIN : (int)(s - *slot);
}

static int alloc(unsigned int want, u32 *slot)
{
	unsigned long before = unit_allocations();
	u32 expected_slot;
	int expected = model_alloc(want, &expected_slot);
	int got = fleece_store_alloc(&store, want, slot);

	require(got == expected, "%u of %u slots wanted: got %d, not %d", want, nr_slots, got,
		expected);
	require(got < 0 || *slot == expected_slot, "slot %u, not %u", *slot, expected_slot);
	require(unit_allocations() == before, "memory was asked for");
	return got;
}

static u32 slot_of(cluster_t cluster)
{
	u32 s;

	for (s = 0; s < nr_slots; s++) {
		if (model[s] == cluster)
			return s;
	}
	return FLEECE_SLOT_NONE;
}

/* A random slot in a state; FLEECE_SLOT_NONE if a few attempts do not find one. */
static u32 some_slot(bool is_taken)
{
	unsigned int i;
	u32 s;

	for (i = 0; i < 20; i++) {
		s = unit_random(nr_slots);
		if (is_taken ? model[s] == TAKEN : model[s] < TAKEN)
			return s;
	}
	return FLEECE_SLOT_NONE;
}

static void insert_at(u32 slot, cluster_t cluster)
{
	fleece_store_insert(&store, cluster, slot);
	model[slot] = cluster;
}

static void insert_some(void)
{
	cluster_t cluster = cluster_of(unit_random(CLUSTERS));
	u32 slot = some_slot(true);

	if (slot != FLEECE_SLOT_NONE && slot_of(cluster) == FLEECE_SLOT_NONE)
		insert_at(slot, cluster);
}

static void free_some(void)
{
	u32 slot = some_slot(true);

	if (slot == FLEECE_SLOT_NONE)
		return;
	fleece_store_free(&store, slot);
	model[slot] = FREE;
	used--;
}

static void remove_some(void)
{
	cluster_t cluster = cluster_of(unit_random(CLUSTERS));
	u32 slot = some_slot(false);

	if (slot != FLEECE_SLOT_NONE && !unit_chance(4))
		cluster = model[slot];
	else
		slot = slot_of(cluster);
	require(fleece_store_remove(&store, cluster) == (slot != FLEECE_SLOT_NONE),
		"cluster %llu", cluster);
	if (slot == FLEECE_SLOT_NONE)
		return;
	model[slot] = FREE;
	used--;
}

static void check_cluster(unsigned int index)
{
	cluster_t cluster = cluster_of(index);

	require(fleece_store_lookup(&store, cluster) == slot_of(cluster),
		"cluster %llu has slot %u, not %u", cluster, fleece_store_lookup(&store, cluster),
		slot_of(cluster));
}

static void check_all(void)
{
	unsigned int i;
	u32 s;

	require(store.used == used, "used %u, not %u", store.used, used);
	for (s = 0; s < nr_slots; s++)
		require(test_bit(s, store.bits) == (model[s] != FREE), "bit of slot %u", s);
	for (s = 0; s < nr_slots; s++)
		require(model[s] != FREE || !test_bit(s / FLEECE_STORE_GROUP, store.full),
			"slot %u is in a full group", s);
	for (i = 0; i < CLUSTERS; i += 7)
		check_cluster(i);
	for (s = 0; s < nr_slots; s++) {
		if (model[s] < TAKEN)
			require(fleece_store_lookup(&store, model[s]) == s, "slot %u lost", s);
	}
}

/* @pressure: how much more often slots are taken than given back. */
static void step(unsigned int pressure)
{
	u32 slot;

	switch (unit_random(6 + pressure)) {
	case 0:
		refill();
		break;
	case 1:
		free_some();
		break;
	case 2:
	case 3:
		remove_some();
		break;
	case 4:
		check_cluster(unit_random(CLUSTERS));
		break;
	default:
		if (unit_chance(2))
			insert_some();
		else
			alloc(1 + unit_random(unit_chance(3) ? 600 : 8), &slot);
	}
}

static void run_model(u32 slots)
{
	unsigned int round;

	begin(slots);
	for (round = 0; round < 20000; round++) {
		/* Full for a while, then almost empty, then full. */
		step(round / 2000 % 2 ? 0 : 12);
		if (!(round % 1000))
			check_all();
	}
	check_all();
	end();
}

static void test_model(void)
{
	static const u32 sizes[] = {
		1, 2, 63, 64, 65, SLOTS_PER_PAGE - 1, SLOTS_PER_PAGE, SLOTS_PER_PAGE + 1,
		3 * SLOTS_PER_PAGE - 5, 1000, SLOTS_MAX,
	};
	unsigned int i;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		run_model(sizes[i]);
}

static void test_one_slot(void)
{
	u32 slot;

	begin(1);
	require(alloc(5, &slot) == -EAGAIN, "a slot without entries");
	require(alloc(1, &slot) == -EAGAIN, "a slot without entries, again");
	refill();
	require(alloc(5, &slot) == 1 && !slot, "not the only slot");
	require(alloc(1, &slot) == -ENOSPC, "more than there is");
	fleece_store_insert(&store, 99, 0);
	require(fleece_store_lookup(&store, 99) == 0, "lookup");
	require(fleece_store_lookup(&store, 98) == FLEECE_SLOT_NONE, "lookup of another");
	require(fleece_store_remove(&store, 99), "remove");
	require(!fleece_store_remove(&store, 99), "remove twice");
	model[0] = FREE;
	require(alloc(1, &slot) == 1, "not again");
	end();
}

/* One spare page is good for one page of slots; what fits is given. */
static void test_page_borders(void)
{
	u32 slot;

	begin(3 * SLOTS_PER_PAGE - 5);
	refill();
	require(alloc(SLOTS_PER_PAGE - 2, &slot) == SLOTS_PER_PAGE - 2, "first page");
	require(alloc(10, &slot) == 2 && slot == SLOTS_PER_PAGE - 2, "end of the first page");
	require(alloc(10, &slot) == -EAGAIN, "second page without a spare");
	refill();
	require(alloc(10, &slot) == 10 && slot == SLOTS_PER_PAGE, "second page");
	refill();
	require(alloc(5000, &slot) == 2 * SLOTS_PER_PAGE - 15, "the rest, in two pages");
	require(alloc(1, &slot) == -ENOSPC, "more than there is");
	check_all();
	end();
}

/* Holes are filled from below, and a run ends where the next slot is not free. */
static void test_lowest_first(void)
{
	static const u32 holes[] = { 3, 10, 11, 12, 40 };
	unsigned int i;
	u32 slot;

	begin(100);
	refill();
	require(alloc(50, &slot) == 50, "fifty");
	for (i = 0; i < sizeof(holes) / sizeof(holes[0]); i++) {
		fleece_store_free(&store, holes[i]);
		model[holes[i]] = FREE;
		used--;
	}
	require(alloc(9, &slot) == 1 && slot == 3, "first hole");
	require(alloc(2, &slot) == 2 && slot == 10, "second hole");
	require(alloc(9, &slot) == 1 && slot == 12, "rest of the second hole");
	require(alloc(9, &slot) == 1 && slot == 40, "third hole");
	require(alloc(9, &slot) == 9 && slot == 50, "the end");
	end();
}

/* What is not used does not stay behind, in particular not one spare page too many. */
static void test_spare_pages(void)
{
	unsigned int i;
	long before;

	begin(1000);
	before = unit_pieces();
	fleece_store_add_spare(&store, NULL);
	unit_fail_allocation(1);
	require(!fleece_store_refill(&store, GFP_KERNEL), "a page without memory");
	for (i = 0; i < FLEECE_STORE_SPARES; i++)
		refill();
	require(!fleece_store_refill(&store, GFP_KERNEL), "a page that is not needed");
	fleece_store_add_spare(&store, (void *)__get_free_page(GFP_KERNEL));
	fleece_store_add_spare(&store, NULL);
	require(unit_pieces() == before + (long)FLEECE_STORE_SPARES, "%ld spare pages",
		unit_pieces() - before);
	end();
}

/* A slot that was avoided comes last, also when lower ones come free, and is not lost. */
static void test_avoided(void)
{
	u32 slot;

	begin(8);
	refill();
	require(fleece_store_alloc(&store, 4, &slot) == 4 && slot == 0, "not the first four");
	fleece_store_avoid(&store, 1);
	fleece_store_avoid(&store, 2);
	require(store.used == 2, "%u slots in use", store.used);
	require(fleece_store_alloc(&store, 8, &slot) == 4 && slot == 4, "an avoided slot first");
	fleece_store_free(&store, 0);
	fleece_store_free(&store, 6);
	require(fleece_store_alloc(&store, 8, &slot) >= 1 && slot != 1 && slot != 2,
		"an avoided slot before a free one");
	while (fleece_store_alloc(&store, 8, &slot) > 0)
		;
	require(store.used == 8, "%u of 8 slots used: some are lost", store.used);
	fleece_store_avoid(&store, 5);
	fleece_store_free(&store, 3);
	require(fleece_store_alloc(&store, 1, &slot) == 1 && slot == 3, "a free one is lost");
	require(fleece_store_alloc(&store, 1, &slot) == 1 && slot == 5, "the avoided one is lost");
	require(fleece_store_alloc(&store, 1, &slot) == -ENOSPC, "there is a ninth");
	end();
}

static void begin_growth(struct fleece_store_growth *growth, u32 slots)
{
	require(!fleece_store_growth_init(growth, &store, slots), "no growth");
	check_all();
	fleece_store_grow(&store, growth);
	for (; nr_slots < slots; nr_slots++)
		model[nr_slots] = FREE;
	check_all();
}

/* From one slot to the most, at work all the time, also while chains are moved. */
static void test_growing(void)
{
	struct fleece_store_growth growth;
	bool is_moving = false;
	unsigned int round;

	begin(1);
	for (round = 0; round < 60000; round++) {
		step(round / 5000 % 2 ? 0 : 12);
		if (is_moving && unit_chance(20)) {
			is_moving = fleece_store_move(&store, &growth, 1 + unit_random(5));
			if (!is_moving)
				fleece_store_growth_exit(&growth);
		} else if (!is_moving && nr_slots < SLOTS_MAX && unit_chance(1000)) {
			begin_growth(&growth, min_t(u32, nr_slots + 1 + unit_random(300),
						    SLOTS_MAX));
			is_moving = true;
		}
		if (!(round % 1000))
			check_all();
	}
	require(nr_slots == SLOTS_MAX, "only %u slots", nr_slots);
	while (is_moving)
		is_moving = fleece_store_move(&store, &growth, 1000);
	fleece_store_growth_exit(&growth);
	require(!fleece_store_move(&store, &growth, 1), "there is something to move");
	check_all();
	end();
}

static void test_no_memory_to_grow(void)
{
	struct fleece_store_growth growth;
	unsigned int nth;
	long before;

	begin(100);
	before = unit_pieces();
	for (nth = 1; ; nth++) {
		unit_fail_allocation(nth);
		if (!fleece_store_growth_init(&growth, &store, 2000))
			break;
		require(unit_pieces() == before, "allocation %u: memory is left", nth);
	}
	require(nth == 5, "%u allocations rather than 4", nth - 1);
	unit_fail_allocation(0);
	fleece_store_growth_exit(&growth);
	require(unit_pieces() == before, "memory of an unused growth is left");
	end();
}

static void test_no_memory(void)
{
	struct fleece_store zero = {};
	long before = unit_pieces();
	unsigned int nth;

	for (nth = 1; ; nth++) {
		memset(&store, 0, sizeof(store));
		unit_fail_allocation(nth);
		if (!fleece_store_init(&store, 1000))
			break;
		require(!memcmp(&store, &zero, sizeof(zero)), "allocation %u: half made", nth);
		require(unit_pieces() == before, "allocation %u: memory is left", nth);
	}
	require(nth == 5, "%u allocations rather than 4", nth - 1);
	unit_fail_allocation(0);
	fleece_store_exit(&store);
}

/* However slots were taken, nobody looks twice at a long row of them. */
static void test_full_groups(void)
{
	unsigned int group;
	u32 slot;

	begin(SLOTS_MAX);
	while (alloc(1 + unit_random(20), &slot) != -ENOSPC)
		refill();
	for (group = 0; group < SLOTS_MAX / FLEECE_STORE_GROUP; group++)
		require(test_bit(group, store.full), "group %u is full", group);
	fleece_store_free(&store, 1000);
	model[1000] = FREE;
	used--;
	require(!test_bit(1000 / FLEECE_STORE_GROUP, store.full), "it is full without a slot");
	require(alloc(9, &slot) == 1 && slot == 1000, "the only free one");
	require(alloc(9, &slot) == -ENOSPC, "more than there is");
	check_all();
	end();
}

static const struct unit_case cases[] = {
	{ "store: random work on 1 to 2000 slots", test_model },
	{ "store: a single slot", test_one_slot },
	{ "store: a spare page for each page of slots", test_page_borders },
	{ "store: lowest first, contiguous", test_lowest_first },
	{ "store: avoided slots come last", test_avoided },
	{ "store: spare pages are not lost", test_spare_pages },
	{ "store: full groups are known", test_full_groups },
	{ "store: each allocation fails once", test_no_memory },
	{ "store: growing at work", test_growing },
	{ "store: each allocation of a growth fails once", test_no_memory_to_grow },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
