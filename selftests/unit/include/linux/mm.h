/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mm: the size of a page, and how much memory there is: enough. To be told that there is
 * none, see memory.h.
 */
#ifndef UNIT_LINUX_MM_H
#define UNIT_LINUX_MM_H

#include <limits.h>

#include <linux/gfp.h>

static inline long si_mem_available(void)
{
	return LONG_MAX;
}

#endif
