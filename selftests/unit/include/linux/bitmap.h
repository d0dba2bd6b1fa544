/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bitmap: the searches of bitops are all that is needed of it.
 */
#ifndef UNIT_LINUX_BITMAP_H
#define UNIT_LINUX_BITMAP_H

#include <linux/bitops.h>

#endif
