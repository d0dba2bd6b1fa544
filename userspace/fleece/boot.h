/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, boot: all origins of fleecetab.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_BOOT_H
#define FLEECE_BOOT_H

#include <stdbool.h>

#include "report.h"

/**
 * struct boot - how to attach all of them
 * @tab: path of fleecetab.
 * @wait_ms: how long to wait for devices.
 * @is_early: others may still appear: leave what lacks a device to a later run.
 * @is_final: nobody attaches later what does not get ready now.
 * @root: NULL, or what the root file system will be mounted from, named as in fleecetab: if
 *	that is a plain device it is not attached, as it could not be mounted then.
 * @limit_ms: longest time that the I/O of one of them may be held.
 */
struct boot {
	const char *tab;
	unsigned int wait_ms;
	bool is_early;
	bool is_final;
	const char *root;
	unsigned int limit_ms;
};

/**
 * boot_attach() - attach all that are not to be attached by hand
 * @boot: how.
 *
 * Each as soon as its devices are there, and free. One whose metadata is refused, or missing in the
 * end, is attached without it, unless fleecetab says otherwise: the machine needs the device.
 * The checkpoints of one that cannot be attached are dropped; of one that is not there, if
 * this was the final chance. Where the module is missing, a plain device gets its name without
 * the target, if this is the final chance or the root file system is to be mounted by that name.
 * If a signal comes to end the final one, what has had no turn yet
 * is not attached.
 *
 * Return: DONE if all are attached as the file says.
 */
enum status boot_attach(const struct boot *boot);

/**
 * boot_detach() - detach all of them, in the reverse order
 * @path: of fleecetab.
 * @limit_ms: longest time that the I/O of one of them may be held.
 */
enum status boot_detach(const char *path, unsigned int limit_ms);

#endif
