/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stamped sectors: 512 bytes that say which write put them where.
 *
 * Owns the layout of a stamp and the check of its integrity. Whether the write
 * it names may be seen at that place and time is decided in history.[ch].
 */
#ifndef FLEECE_TEST_STAMP_H
#define FLEECE_TEST_STAMP_H

#include <stdint.h>

#include "../random.h"

#define SECTOR_BYTES	512

/**
 * struct stamp_id - what a stamp says
 * @run: identifies one run of the test program.
 * @sector: place on the device, in sectors.
 * @device: number of the device.
 * @writer: number of the writer.
 * @sequence: number of the write, counted by its writer from 1.
 */
struct stamp_id {
	uint64_t run;
	uint64_t sector;
	uint32_t device;
	uint32_t writer;
	uint32_t sequence;
};

/**
 * enum stamp_state - integrity of a sector
 * @STAMP_GOOD: all 512 bytes are of one write.
 * @STAMP_NONE: not a stamp at all.
 * @STAMP_ZERO: 512 bytes of zeroes.
 * @STAMP_TORN: a stamp, but its bytes do not belong together.
 */
enum stamp_state {
	STAMP_GOOD,
	STAMP_NONE,
	STAMP_ZERO,
	STAMP_TORN,
};

/**
 * stamp_write() - fill one sector
 * @sector: SECTOR_BYTES bytes, 8-byte aligned.
 * @id: what it shall say.
 */
void stamp_write(void *sector, const struct stamp_id *id);

/**
 * stamp_read() - take a sector apart
 * @sector: SECTOR_BYTES bytes, 8-byte aligned.
 * @id: filled in if the result is STAMP_GOOD or STAMP_TORN.
 *
 * Return: enum stamp_state.
 */
enum stamp_state stamp_read(const void *sector, struct stamp_id *id);

#endif
