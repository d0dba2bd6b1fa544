/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * log2: rounded down.
 */
#ifndef UNIT_LINUX_LOG2_H
#define UNIT_LINUX_LOG2_H

static inline int ilog2(unsigned long long value)
{
	return 63 - __builtin_clzll(value);
}

#endif
