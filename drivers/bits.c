// SPDX-License-Identifier: GPL-2.0-only
/*
 * bits: reading one or several bitmaps at once, see bits.h. Knows nothing of
 * what the bits mean and takes no lock.
 */
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>

#include "bits.h"

/* A map of more than this is not begun if there is not enough memory for all of it. */
#define LARGE_BYTES	1048576

/* Each of them reclaims memory for every page that it lacks, once. */
#define ALLOC_ATTEMPTS	8

/* Whether there is memory for so much and its page tables, or it is not worth asking. */
static bool may_have_room(size_t bytes)
{
	long available;

	if (bytes <= LARGE_BYTES)
		return true;
	available = si_mem_available();
	return available > 0 && (bytes + bytes / 128) >> PAGE_SHIFT < (unsigned long)available;
}

/*
 * The caller has an error for it. So others need not be left without memory, and killed, for
 * a map that does not fit; an administrator need not be alarmed with a trace; and the kernel
 * must not try for ever, as it does for single pages where it may neither write nor kill.
 * Of the flags that say so, 6.19 and 7.0 know only the one that gives up at once.
 */
void *fleece_map_alloc(u64 count, size_t size)
{
	unsigned int attempt;
	void *map = NULL;

	/* Where the kernel has 32 bits, it might be given less than it asks for. */
	if (count > SIZE_MAX / size || !may_have_room(count * size))
		return NULL;
	for (attempt = 0; !map && attempt < ALLOC_ATTEMPTS; attempt++)
		map = __vmalloc(count * size, GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN | __GFP_NORETRY);
	return map;
}

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
