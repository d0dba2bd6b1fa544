/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * timekeeping: the wall clock, as the test has set it (unit_now).
 */
#ifndef UNIT_LINUX_TIMEKEEPING_H
#define UNIT_LINUX_TIMEKEEPING_H

#include <linux/types.h>

extern u64 unit_now;

static inline u64 ktime_get_real_seconds(void)
{
	return unit_now;
}

#endif
