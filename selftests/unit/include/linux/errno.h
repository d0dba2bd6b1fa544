/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * errno: the numbers. The C library finds its own here as well.
 */
#ifndef UNIT_LINUX_ERRNO_H
#define UNIT_LINUX_ERRNO_H

#include <asm/errno.h>

#endif
