// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, holes: finds runs of zeroes in data. Owns no state. */
#include "holes.h"

#include <string.h>

#define UNIT_MIN	4096U
#define UNITS_MAX	256U

#define PROBE_BYTES	16U

size_t holes_unit(size_t length)
{
	size_t unit = UNIT_MIN;

	while (length / unit > UNITS_MAX)
		unit *= 2;
	return unit;
}

/* Compares the data with itself, one probe further on: as fast as memcmp is. */
static bool is_zero(const uint8_t *data, size_t length)
{
	static const uint8_t zeroes[PROBE_BYTES];
	size_t probe = length < PROBE_BYTES ? length : PROBE_BYTES;

	return !memcmp(data, zeroes, probe) && !memcmp(data, data + probe, length - probe);
}

size_t holes_next_run(const uint8_t *data, size_t length, uint64_t offset, size_t unit,
		      bool *is_hole)
{
	size_t end = 0, step;
	bool is_same;

	do {
		step = unit - ((offset + end) & (unit - 1));
		if (step > length - end)
			step = length - end;
		is_same = is_zero(data + end, step);
		if (!end)
			*is_hole = is_same;
		is_same = is_same == *is_hole;
		if (is_same)
			end += step;
	} while (is_same && end < length);
	return end;
}
