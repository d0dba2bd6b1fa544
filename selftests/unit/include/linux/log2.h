/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * log2: rounded down, and powers of two.
 */
#ifndef UNIT_LINUX_LOG2_H
#define UNIT_LINUX_LOG2_H

#include <linux/types.h>

static inline int ilog2(unsigned long long value)
{
	return 63 - __builtin_clzll(value);
}

static inline bool is_power_of_2(unsigned long value)
{
	return value && !(value & (value - 1));
}

#endif
