/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, holes: finds runs of zeroes in data. Pure functions. */
#ifndef FLEECED_HOLES_H
#define FLEECED_HOLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Most runs that a range is divided into. */
#define HOLES_RUNS_MAX 258

/**
 * holes_unit() - bytes that are either all zero, or data
 * @length: of the range, in bytes.
 *
 * Return: a power of two, so that a range of @length has at most
 * HOLES_RUNS_MAX runs.
 */
size_t holes_unit(size_t length);

/**
 * holes_next_run() - how far the next run of zeroes, or of data, goes
 * @data: its bytes; looked at no further than needed.
 * @length: of @data, not 0.
 * @offset: of @data on the device; runs begin and end at multiples of @unit
 *	there, but for the ends of the range.
 * @unit: from holes_unit().
 * @is_hole: set to what it is.
 *
 * Data costs one comparison of 16 bytes for each unit, unless it begins with
 * zeroes.
 *
 * Return: its bytes, at least 1.
 */
size_t holes_next_run(const uint8_t *data, size_t length, uint64_t offset, size_t unit,
		      bool *is_hole);

#endif
