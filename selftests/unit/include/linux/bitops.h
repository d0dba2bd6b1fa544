/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bitops: bits of words and of arrays of words. Those of arrays come in an atomic
 * form and, with underscores, in one for a caller that excludes others. Searches
 * go bit by bit: slow, and simple enough to be trusted.
 */
#ifndef UNIT_LINUX_BITOPS_H
#define UNIT_LINUX_BITOPS_H

#include <linux/kernel.h>

#define BITS_PER_LONG			64
#define BITS_TO_LONGS(bits)		(((bits) + (u64)BITS_PER_LONG - 1) / BITS_PER_LONG)

static inline unsigned long unit_bit_mask(unsigned long nr)
{
	return 1UL << (nr % BITS_PER_LONG);
}

static inline bool test_bit(unsigned long nr, const unsigned long *bits)
{
	return READ_ONCE(bits[nr / BITS_PER_LONG]) & unit_bit_mask(nr);
}

static inline void set_bit(unsigned long nr, unsigned long *bits)
{
	__atomic_fetch_or(&bits[nr / BITS_PER_LONG], unit_bit_mask(nr), __ATOMIC_RELAXED);
}

static inline bool test_and_set_bit(unsigned long nr, unsigned long *bits)
{
	return __atomic_fetch_or(&bits[nr / BITS_PER_LONG], unit_bit_mask(nr), __ATOMIC_SEQ_CST) &
	       unit_bit_mask(nr);
}

static inline bool test_and_clear_bit(unsigned long nr, unsigned long *bits)
{
	return __atomic_fetch_and(&bits[nr / BITS_PER_LONG], ~unit_bit_mask(nr),
				  __ATOMIC_SEQ_CST) & unit_bit_mask(nr);
}

static inline void __set_bit(unsigned long nr, unsigned long *bits)
{
	bits[nr / BITS_PER_LONG] |= unit_bit_mask(nr);
}

static inline void __clear_bit(unsigned long nr, unsigned long *bits)
{
	bits[nr / BITS_PER_LONG] &= ~unit_bit_mask(nr);
}

static inline unsigned long __ffs(unsigned long word)
{
	return __builtin_ctzl(word);
}

static inline unsigned int hweight_long(unsigned long word)
{
	return __builtin_popcountl(word);
}

static inline unsigned long unit_find(const unsigned long *bits, unsigned long end,
				      unsigned long from, bool value)
{
	while (from < end && test_bit(from, bits) != value)
		from++;
	return from < end ? from : end;
}

static inline unsigned long find_next_bit(const unsigned long *bits, unsigned long end,
					  unsigned long from)
{
	return unit_find(bits, end, from, true);
}

static inline unsigned long find_next_zero_bit(const unsigned long *bits, unsigned long end,
					       unsigned long from)
{
	return unit_find(bits, end, from, false);
}

#endif
