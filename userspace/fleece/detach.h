/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, detach: takes the target "fleece" off a device. */
#ifndef FLEECE_DETACH_H
#define FLEECE_DETACH_H

#include "report.h"

/**
 * detach() - take the target off a device
 * @name: of the origin, or the path of a node of it.
 * @limit_ms: longest time that I/O may be held.
 *
 * Context: between change_begin() and change_end().
 * Return: DONE, or another one that has been reported.
 */
enum status detach(const char *name, unsigned int limit_ms);

#endif
