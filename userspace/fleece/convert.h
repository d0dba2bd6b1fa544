/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, convert: a device-mapper device that becomes an origin under its users, and back.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_CONVERT_H
#define FLEECE_CONVERT_H

#include <stdbool.h>

#include "attach.h"
#include "device.h"
#include "report.h"

/**
 * convert_attach() - put the target on a device
 * @attach: what is asked for.
 * @info: the device.
 *
 * What an interrupted conversion has left is undone first.
 */
enum status convert_attach(struct attach *attach, const struct fleece_dm_info *info);

/**
 * convert_lower() - the device that was put below an origin by its conversion
 * @origin: the origin.
 * @lower: filled in.
 *
 * Return: true if there is one; false: the origin is on a plain device.
 */
bool convert_lower(const struct origin *origin, struct fleece_dm_info *lower);

/**
 * convert_has_lower() - is there a device that a conversion has put below this one?
 * @name: of the device, which need not be an origin.
 */
bool convert_has_lower(const char *name);

/**
 * convert_detach() - take the target off again
 * @origin: the origin.
 * @lower: of convert_lower().
 * @limit_ms: longest time that I/O may be held.
 *
 * Durable checkpoints of an origin in use are deleted before.
 */
enum status convert_detach(const struct origin *origin, const struct fleece_dm_info *lower,
			   unsigned int limit_ms);

/**
 * convert_swap() - make the loaded table of a device live, without freezing its filesystem
 * @name: of the device.
 * @table: what was loaded.
 * @limit_ms: longest time that I/O may be held.
 *
 * What counts is which table is live in the end: somebody else may have changed it. When the
 * swap is given up, what is loaded is dropped, whoever has loaded it meanwhile.
 */
enum status convert_swap(const char *name, const struct fleece_dm_table *table,
			 unsigned int limit_ms);

/**
 * convert_undo() - undo what an interrupted conversion has left of itself
 * @info: the device that was to be converted, to an origin or back.
 *
 * That is a lower device that nobody uses, a table that was loaded but not made live, and
 * that the device is suspended with that. It is told on standard error.
 *
 * Return: true if there was something, and it is gone.
 */
bool convert_undo(const struct fleece_dm_info *info);

/**
 * convert_forget() - remove what was below an origin whose device somebody has removed
 * @name: of the device that is gone.
 *
 * Return: true if there was such a device, used by nobody, and it is gone.
 */
bool convert_forget(const char *name);

#endif
