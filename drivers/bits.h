/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bits: reading one or several bitmaps at once.
 *
 * A view is the union of bitmaps of the same length. It owns nothing and takes
 * no lock: the caller keeps the bitmaps alive. Bits may be changed by others
 * meanwhile; each word is read once, so a view sees every bit either before or
 * after its change.
 */
#ifndef FLEECE_BITS_H
#define FLEECE_BITS_H

#include <linux/bitops.h>
#include <linux/types.h>

/**
 * struct fleece_view - the union of bitmaps
 * @maps: array of bitmaps.
 * @nr_maps: how many; 0 makes a view whose bits are all clear.
 * @nr_bits: length of each in bits.
 */
struct fleece_view {
	unsigned long **maps;
	unsigned int nr_maps;
	u64 nr_bits;
};

/**
 * fleece_view_word() - a word of the union
 * @view: the bitmaps.
 * @index: of the word, within their length.
 *
 * Context: Any.
 */
static inline unsigned long fleece_view_word(const struct fleece_view *view, u64 index)
{
	unsigned long word = 0;
	unsigned int i;

	for (i = 0; i < view->nr_maps; i++)
		word |= READ_ONCE(view->maps[i][index]);
	return word;
}

/**
 * fleece_bits_alloc() - a bitmap of clear bits
 * @nr_bits: its length.
 *
 * Context: Process, may sleep. See fleece_map_alloc().
 * Return: the bitmap, to be freed with vfree(), or NULL.
 */
unsigned long *fleece_bits_alloc(u64 nr_bits);

/* Words between two looks at what else there is to do, in a loop over a whole device. */
#define FLEECE_BITS_TURN	65536

/**
 * fleece_bits_turn() - offer the CPU
 * @stop: set by somebody else to end a long loop; NULL: nobody does.
 *
 * Context: Process, may sleep.
 * Return: false if the loop is to stop.
 */
bool fleece_bits_turn(const bool *stop);

/**
 * fleece_bits_go_on() - fleece_bits_turn() once in a while
 * @index: of the word that a loop over all of them has just done.
 * @stop: see there.
 *
 * Context: Process, may sleep.
 * Return: false if the loop is to stop.
 */
static inline bool fleece_bits_go_on(u64 index, const bool *stop)
{
	return index % FLEECE_BITS_TURN != FLEECE_BITS_TURN - 1 || fleece_bits_turn(stop);
}

/**
 * fleece_bits_fill() - set a range of bits, not atomically
 * @bits: the bitmap; nobody else changes it.
 * @first: first bit.
 * @end: the bit after the last one. Not above @first: nothing is set.
 *
 * Context: Process, may sleep.
 */
void fleece_bits_fill(unsigned long *bits, u64 first, u64 end);

/**
 * fleece_bits_count() - number of set bits
 * @view: what to count in.
 * @stop: set by somebody else to make it stop; NULL: nobody does.
 * @count: set to the number.
 *
 * Context: Process, may sleep.
 * Return: false if it has stopped; then @count is too low.
 */
bool fleece_bits_count(const struct fleece_view *view, const bool *stop, u64 *count);

/**
 * fleece_bits_any() - is any bit of a range set?
 * @view: where to look.
 * @first: first bit.
 * @last: last bit, below the view's length.
 *
 * Context: Any.
 */
bool fleece_bits_any(const struct fleece_view *view, u64 first, u64 last);

/**
 * fleece_bits_run() - length of a run of equal bits
 * @view: where to look.
 * @from: first bit of the run.
 * @end: look no further than before this bit; above @from.
 * @value: set to the value of the run.
 *
 * Context: Any. The time is proportional to the length of the run / 64.
 * Return: the number of bits from @from on, at least 1, that have @value.
 */
u64 fleece_bits_run(const struct fleece_view *view, u64 from, u64 end, bool *value);

/**
 * fleece_bits_set() - set a bit atomically
 * @bits: the bitmap.
 * @nr: number of the bit.
 *
 * set_bit() takes numbers of 32 bits only on some architectures.
 *
 * Context: Any.
 */
static inline void fleece_bits_set(unsigned long *bits, u64 nr)
{
	set_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
}

/**
 * fleece_bits_set_range() - set bits atomically, each by itself
 * @bits: the bitmap.
 * @first: number of the first bit.
 * @last: number of the last one, not before @first.
 *
 * Words that need no change are not written to.
 *
 * Context: Any. The time is proportional to the length of the range / 64.
 */
void fleece_bits_set_range(unsigned long *bits, u64 first, u64 last);

/**
 * fleece_bits_assign() - set or clear a bit, not atomically
 * @bits: the bitmap; nobody else changes it meanwhile.
 * @nr: number of the bit, see fleece_bits_set().
 * @value: what it is to be.
 *
 * Context: Any.
 */
static inline void fleece_bits_assign(unsigned long *bits, u64 nr, bool value)
{
	if (value)
		__set_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
	else
		__clear_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
}

/**
 * fleece_bits_test() - is a bit set?
 * @bits: the bitmap.
 * @nr: number of the bit, see fleece_bits_set().
 *
 * Context: Any.
 */
static inline bool fleece_bits_test(const unsigned long *bits, u64 nr)
{
	return test_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
}

/**
 * fleece_bits_test_and_set() - set a bit atomically; a full barrier if it was clear
 * @bits: the bitmap.
 * @nr: number of the bit, see fleece_bits_set().
 *
 * Context: Any.
 * Return: whether it was set before.
 */
static inline bool fleece_bits_test_and_set(unsigned long *bits, u64 nr)
{
	return test_and_set_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
}

/**
 * fleece_bits_test_and_clear() - clear a bit atomically; a full barrier if it was set
 * @bits: the bitmap.
 * @nr: number of the bit, see fleece_bits_set().
 *
 * Context: Any.
 * Return: whether it was set before.
 */
static inline bool fleece_bits_test_and_clear(unsigned long *bits, u64 nr)
{
	return test_and_clear_bit(nr % BITS_PER_LONG, bits + nr / BITS_PER_LONG);
}

#endif
