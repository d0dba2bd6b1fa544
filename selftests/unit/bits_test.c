// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the reading of bitmaps and of their unions against a model
 * that keeps one byte for each bit.
 */
#include <string.h>

#include <linux/bitops.h>
#include <linux/vmalloc.h>

#include "bits.h"
#include "unit.h"
#include "view.h"

#define BITS_MAX	400
#define MAPS_MAX	5

static unsigned long *maps[MAPS_MAX];
static bool model[BITS_MAX];
static struct fleece_view view;

static void make_view(unsigned int nr_maps, u64 nr_bits)
{
	unsigned int i;

	memset(model, 0, sizeof(model));
	for (i = 0; i < nr_maps; i++) {
		maps[i] = fleece_bits_alloc(nr_bits);
		require(maps[i], "out of memory");
	}
	view = (struct fleece_view){ .maps = maps, .nr_maps = nr_maps, .nr_bits = nr_bits };
}

static void free_view(void)
{
	unsigned int i;

	for (i = 0; i < view.nr_maps; i++)
		vfree(maps[i]);
}

static void mark(unsigned int map, u64 bit)
{
	set_bit(bit, maps[map]);
	model[bit] = true;
}

/* Runs of any length, in any map, so that unions overlap and touch. */
static void scatter(void)
{
	unsigned int runs = unit_random(12);
	u64 length;
	u64 bit;

	if (!view.nr_maps)
		return;
	while (runs--) {
		unsigned int map = unit_random(view.nr_maps);

		bit = unit_random(view.nr_bits);
		length = unit_chance(2) ? 1 + unit_random(3) : 1 + unit_random(view.nr_bits);
		for (; length && bit < view.nr_bits; bit++, length--)
			mark(map, bit);
	}
}

static u64 model_run(u64 from, u64 end)
{
	u64 bit = from;

	while (bit < end && model[bit] == model[from])
		bit++;
	return bit - from;
}

static bool model_any(u64 first, u64 last)
{
	return memchr(&model[first], true, last - first + 1);
}

static u64 model_count(void)
{
	u64 count = 0;
	u64 bit;

	for (bit = 0; bit < view.nr_bits; bit++)
		count += model[bit];
	return count;
}

static void check_run(u64 from, u64 end)
{
	bool value = !model[from];
	u64 length = fleece_bits_run(&view, from, end, &value);

	require(value == model[from], "bit %llu of %llu: value %d", from, view.nr_bits, value);
	require(length == model_run(from, end), "run from %llu before %llu of %llu: %llu, not %llu",
		from, end, view.nr_bits, length, model_run(from, end));
}

static void check_any(u64 first, u64 last)
{
	require(fleece_bits_any(&view, first, last) == model_any(first, last),
		"any of %llu to %llu of %llu", first, last, view.nr_bits);
}

static void check_all_ranges(void)
{
	u64 from;
	u64 end;

	for (from = 0; from < view.nr_bits; from++) {
		for (end = from + 1; end <= view.nr_bits; end++) {
			check_run(from, end);
			check_any(from, end - 1);
		}
	}
	require(count_bits(&view) == model_count(), "count %llu, not %llu",
		count_bits(&view), model_count());
}

static void test_every_range(void)
{
	static const u64 lengths[] = { 1, 2, 63, 64, 65, 127, 128, 129, 150 };
	unsigned int nr_maps;
	unsigned int i;
	unsigned int round;

	for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		for (round = 0; round < 12; round++) {
			nr_maps = unit_random(MAPS_MAX + 1);
			make_view(nr_maps, lengths[i]);
			scatter();
			check_all_ranges();
			free_view();
		}
	}
}

static void test_random_ranges(void)
{
	unsigned int round;
	unsigned int i;
	u64 first;
	u64 last;

	for (round = 0; round < 3000; round++) {
		make_view(1 + unit_random(MAPS_MAX), 1 + unit_random(BITS_MAX));
		scatter();
		for (i = 0; i < 50; i++) {
			first = unit_random(view.nr_bits);
			last = first + unit_random(view.nr_bits - first);
			check_run(first, last + 1);
			check_any(first, last);
		}
		require(count_bits(&view) == model_count(), "count");
		free_view();
	}
}

/* A single set bit, and a single clear one, at each place. */
static void test_single_bits(void)
{
	u64 bit;
	u64 i;

	for (bit = 0; bit < 200; bit++) {
		make_view(2, 200);
		mark(bit % 2, bit);
		check_run(0, 200);
		check_run(bit, 200);
		check_any(0, 199);
		check_any(bit, bit);
		if (bit)
			check_any(0, bit - 1);
		if (bit < 199)
			check_any(bit + 1, 199);
		for (i = 0; i < 200; i++)
			mark((i + bit) % 2, i);
		__clear_bit(bit, maps[0]);
		__clear_bit(bit, maps[1]);
		model[bit] = false;
		check_run(0, 200);
		check_run(bit, 200);
		require(count_bits(&view) == 199, "count");
		free_view();
	}
}

static void test_no_maps(void)
{
	bool value = true;

	view = (struct fleece_view){ .maps = NULL, .nr_maps = 0, .nr_bits = 1ULL << 20 };
	require(!count_bits(&view), "bits are counted");
	require(!fleece_bits_any(&view, 0, view.nr_bits - 1), "a bit is set");
	require(fleece_bits_run(&view, 0, view.nr_bits, &value) == view.nr_bits && !value,
		"not one run of clear bits");
}

/* Longer than what is looked at before the CPU is offered, and past 32 bits of bytes. */
static void test_long_map(void)
{
	const u64 nr_bits = 65536ULL * 64 * 3 + 17;
	bool value;

	make_view(1, nr_bits);
	require(fleece_bits_run(&view, 0, nr_bits, &value) == nr_bits && !value, "clear");
	set_bit(nr_bits - 1, maps[0]);
	require(count_bits(&view) == 1, "count");
	require(fleece_bits_any(&view, 0, nr_bits - 1), "the last bit is missed");
	require(!fleece_bits_any(&view, 0, nr_bits - 2), "the last bit is seen too early");
	require(fleece_bits_run(&view, 0, nr_bits, &value) == nr_bits - 1 && !value, "run");
	memset(maps[0], 0xff, (nr_bits - 17) / 8);
	require(count_bits(&view) == nr_bits - 16, "count of a full map");
	require(fleece_bits_run(&view, 5, nr_bits, &value) == nr_bits - 17 - 5 && value, "full run");
	free_view();
}

static void test_fill(void)
{
	u64 first;
	u64 end;
	u64 bit;

	for (first = 0; first <= 150; first++) {
		for (end = 0; end <= 150; end++) {
			make_view(1, 150);
			mark(0, 70);
			fleece_bits_fill(maps[0], first, end);
			for (bit = first; bit < end; bit++)
				model[bit] = true;
			for (bit = 0; bit < 150; bit++)
				require(test_bit(bit, maps[0]) == model[bit],
					"%llu to %llu: bit %llu", first, end, bit);
			free_view();
		}
	}
	make_view(1, 65536ULL * 64 * 2 + 3);
	fleece_bits_fill(maps[0], 1, view.nr_bits - 1);
	require(count_bits(&view) == view.nr_bits - 2, "a long range");
	free_view();
}

static void test_set_range(void)
{
	u64 first;
	u64 last;
	u64 bit;

	for (first = 0; first < 150; first++) {
		for (last = first; last < 150; last++) {
			make_view(1, 150);
			mark(0, 70);
			fleece_bits_set_range(maps[0], first, last);
			for (bit = first; bit <= last; bit++)
				model[bit] = true;
			for (bit = 0; bit < 150; bit++)
				require(test_bit(bit, maps[0]) == model[bit],
					"%llu to %llu: bit %llu", first, last, bit);
			free_view();
		}
	}
}

static void test_alloc(void)
{
	unsigned long *bits;

	unit_fail_allocation(1);
	require(!fleece_bits_alloc(100), "a map without memory");
	bits = fleece_bits_alloc(65);
	require(bits && !bits[0] && !bits[1], "a new map has bits set");
	vfree(bits);
}

static const struct unit_case cases[] = {
	{ "bits: every range of small maps and unions", test_every_range },
	{ "bits: random ranges of random unions", test_random_ranges },
	{ "bits: one set and one clear bit at every place", test_single_bits },
	{ "bits: a union of no maps is clear", test_no_maps },
	{ "bits: a map longer than a turn of the CPU", test_long_map },
	{ "bits: a range is set", test_fill },
	{ "bits: a range is set, bit by bit as far as others see", test_set_range },
	{ "bits: allocation", test_alloc },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
