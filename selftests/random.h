/* SPDX-License-Identifier: GPL-2.0-only */
/* random: numbers that look random and are the same for the same seed, in all tests. */
#ifndef FLEECE_TEST_RANDOM_H
#define FLEECE_TEST_RANDOM_H

#include <stdint.h>

/**
 * mix64() - spread the bits of a number
 * @value: any number.
 *
 * Return: a number that looks random, the same for the same @value.
 */
static inline uint64_t mix64(uint64_t value)
{
	value += 0x9e3779b97f4a7c15ull;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

/**
 * random_next() - next number of a seeded sequence
 * @state: the sequence; starts with its seed.
 *
 * Return: 64 bits that look random.
 */
static inline uint64_t random_next(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return mix64(*state);
}

/**
 * random_below() - a number below a limit
 * @state: the sequence.
 * @limit: not 0.
 *
 * Return: 0 to @limit - 1.
 */
static inline uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return random_next(state) % limit;
}

#endif
