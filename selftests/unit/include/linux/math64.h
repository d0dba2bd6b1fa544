/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * math64: divisions that 32-bit kernels need a function for.
 */
#ifndef UNIT_LINUX_MATH64_H
#define UNIT_LINUX_MATH64_H

#include <linux/types.h>

static inline u64 div_u64(u64 value, u32 unit)
{
	return value / unit;
}

#endif
