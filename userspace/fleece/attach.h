/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, attach: puts the target "fleece" on a device.
 *
 * Functions that return an enum status have reported the error already. They are called
 * between change_begin() and change_end().
 */
#ifndef FLEECE_ATTACH_H
#define FLEECE_ATTACH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "device.h"
#include "report.h"

/**
 * struct attach - what is asked for
 * @device: path, or name of a device-mapper device.
 * @name: of the origin; NULL: not given.
 * @metadata: path of the metadata device; NULL: none.
 * @metadata_devno: filled in by attach_prepare_metadata().
 * @granularity: bytes; 0: not given, then filled in by it as well.
 * @limit_ms: longest time that I/O may be held.
 * @is_by_hand: it is not done at boot, so the device may have been in use since.
 * @is_metadata_refused: set when the metadata device is the reason for a failure.
 */
struct attach {
	const char *device;
	const char *name;
	const char *metadata;
	dev_t metadata_devno;
	uint64_t granularity;
	unsigned int limit_ms;
	bool is_by_hand;
	bool is_metadata_refused;
};

/**
 * attach_device() - attach a device, of whatever kind it is
 * @attach: what is asked for.
 */
enum status attach_device(struct attach *attach);

/**
 * attach_compare() - is what is asked for attached already?
 * @attach: what is asked for.
 * @origin: what there is.
 *
 * Return: DONE, or BUSY if device, metadata device or granularity are others.
 */
enum status attach_compare(const struct attach *attach, const struct origin *origin);

/**
 * attach_prepare_metadata() - see to it that the metadata device can be used
 * @attach: what is asked for; filled in.
 * @devno: of the device.
 * @size: of it, in bytes.
 * @is_used: somebody may have been writing to it, unseen by the target.
 */
enum status attach_prepare_metadata(struct attach *attach, dev_t devno, uint64_t size,
				    bool is_used);

/**
 * attach_load() - load the table of an origin
 * @attach: what is asked for, with its metadata prepared.
 * @name: of the device that it is loaded into.
 * @lower: device below.
 * @sectors: its length.
 * @is_read_only: the device cannot be written.
 * @loaded: set to the table; the caller frees it with fleece_dm_table_free(), also after a
 *	failure.
 */
enum status attach_load(struct attach *attach, const char *name, dev_t lower, uint64_t sectors,
			bool is_read_only, struct fleece_dm_table *loaded);

#endif
