// SPDX-License-Identifier: GPL-2.0-only
/*
 * bits: reading one or several bitmaps at once, see bits.h. Knows nothing of
 * what the bits mean and takes no lock.
 */
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/sched.h>

#include "bits.h"
#include "map.h"

unsigned long *fleece_bits_alloc(u64 nr_bits)
{
	return fleece_map_alloc(BITS_TO_LONGS(nr_bits), sizeof(unsigned long));
}

bool fleece_bits_turn(const bool *stop)
{
	if (stop && READ_ONCE(*stop))
		return false;
	cond_resched();
	return true;
}

void fleece_bits_fill(unsigned long *bits, u64 first, u64 end)
{
	u64 index = first / BITS_PER_LONG;
	u64 last = end / BITS_PER_LONG;
	unsigned long mask = ~0UL << (first % BITS_PER_LONG);

	if (first >= end)
		return;
	for (; index < last; index++) {
		bits[index] |= mask;
		mask = ~0UL;
		fleece_bits_go_on(index, NULL);
	}
	if (end % BITS_PER_LONG)
		bits[index] |= mask & ((1UL << end % BITS_PER_LONG) - 1);
}

void fleece_bits_set_range(unsigned long *bits, u64 first, u64 last)
{
	u64 index = first / BITS_PER_LONG;
	unsigned long mask = ~0UL << (first % BITS_PER_LONG);

	for (; index <= last / BITS_PER_LONG; index++, mask = ~0UL) {
		if (index == last / BITS_PER_LONG)
			mask &= ~0UL >> (BITS_PER_LONG - 1 - last % BITS_PER_LONG);
		if (~READ_ONCE(bits[index]) & mask)
			atomic_long_or(mask, (atomic_long_t *)(bits + index));
	}
}

bool fleece_bits_count(const struct fleece_view *view, const bool *stop, u64 *count)
{
	u64 words = BITS_TO_LONGS(view->nr_bits);
	u64 i;

	*count = 0;
	for (i = 0; i < words; i++) {
		*count += hweight_long(fleece_view_word(view, i));
		if (!fleece_bits_go_on(i, stop))
			return false;
	}
	return true;
}

/* The first bit in [from, end) that differs from @value, or @end. */
static u64 view_find(const struct fleece_view *view, u64 from, u64 end, bool value)
{
	u64 index = from / BITS_PER_LONG;
	unsigned long mask = ~0UL << (from % BITS_PER_LONG);
	unsigned long word;
	u64 bit;

	while (index * BITS_PER_LONG < end) {
		word = fleece_view_word(view, index);
		if (value)
			word = ~word;
		word &= mask;
		if (word) {
			bit = index * BITS_PER_LONG + __ffs(word);
			return min(bit, end);
		}
		mask = ~0UL;
		index++;
	}
	return end;
}

bool fleece_bits_any(const struct fleece_view *view, u64 first, u64 last)
{
	return view_find(view, first, last + 1, false) <= last;
}

u64 fleece_bits_run(const struct fleece_view *view, u64 from, u64 end, bool *value)
{
	unsigned long word = fleece_view_word(view, from / BITS_PER_LONG);

	*value = word >> (from % BITS_PER_LONG) & 1;
	return view_find(view, from + 1, end, *value) - from;
}
