/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, stand_in: a plain device under the name of its origin, without the target.
 *
 * Whatever mounts /dev/mapper/NAME at boot must find it also when the kernel that was booted
 * lacks the module.
 */
#ifndef FLEECE_STAND_IN_H
#define FLEECE_STAND_IN_H

#include <stdbool.h>
#include <sys/types.h>

/**
 * stand_in_make() - name a plain device as its origin would be, and say so
 * @device: path of the device, which nobody uses. Nothing is done if it is one of
 *	device-mapper, which keeps its name.
 * @name: of the origin; nothing is done if there is a device of that name.
 *
 * Its metadata must know before that what is written will not be seen. What goes wrong is
 * reported; that the module is missing is a failure anyway.
 *
 * Context: The module may be missing, so not between change_begin() and change_end().
 */
void stand_in_make(const char *device, const char *name);

/**
 * stand_in_is() - is this what stand_in_make() has made?
 * @name: of a device.
 * @devno: of the plain device.
 */
bool stand_in_is(const char *name, dev_t devno);

#endif
