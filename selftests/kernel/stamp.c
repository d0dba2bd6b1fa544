// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stamped sectors, see stamp.h.
 *
 * The body is a function of the header and every word of it is checked, so that
 * a sector put together from two writes cannot pass, wherever the seam is.
 */
#include "stamp.h"

#include <stdbool.h>
#include <string.h>

#define STAMP_MAGIC	0x666c656563653031ull
#define STAMP_WORDS	(SECTOR_BYTES / 8)
#define HEADER_WORDS	5

/* The body begins from all of the header, so that no two stamps share one. */
static uint64_t body_seed(const uint64_t *words)
{
	uint64_t seed = 0;
	int i;

	for (i = 0; i < HEADER_WORDS; i++)
		seed = mix64(seed ^ words[i]);
	return seed;
}

/* Cheap, because emulated processors fill millions of these. */
static uint64_t body_word(uint64_t seed, int index)
{
	uint64_t word = (seed + (uint64_t)index) * 0xd6e8feb86659fd93ull;

	return word ^ (word >> 32);
}

void stamp_write(void *sector, const struct stamp_id *id)
{
	uint64_t words[STAMP_WORDS];
	uint64_t seed;
	int i;

	words[0] = STAMP_MAGIC;
	words[1] = id->run;
	words[2] = id->sector;
	words[3] = (uint64_t)id->device << 32 | id->writer;
	words[4] = id->sequence;
	seed = body_seed(words);
	for (i = HEADER_WORDS; i < STAMP_WORDS; i++)
		words[i] = body_word(seed, i);
	memcpy(sector, words, sizeof(words));
}

static bool is_zero(const uint64_t *words)
{
	int i;

	for (i = 0; i < STAMP_WORDS; i++)
		if (words[i])
			return false;
	return true;
}

enum stamp_state stamp_read(const void *sector, struct stamp_id *id)
{
	uint64_t words[STAMP_WORDS];
	uint64_t seed;
	int i;

	memcpy(words, sector, sizeof(words));
	if (words[0] != STAMP_MAGIC)
		return is_zero(words) ? STAMP_ZERO : STAMP_NONE;
	id->run = words[1];
	id->sector = words[2];
	id->device = words[3] >> 32;
	id->writer = (uint32_t)words[3];
	id->sequence = (uint32_t)words[4];
	seed = body_seed(words);
	for (i = HEADER_WORDS; i < STAMP_WORDS; i++)
		if (words[i] != body_word(seed, i))
			return STAMP_TORN;
	return STAMP_GOOD;
}
