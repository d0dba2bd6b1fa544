/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gfp: pages. Their memory comes from unit/memory.c, which counts it and can be
 * told to fail; whether the caller may sleep makes no difference.
 */
#ifndef UNIT_LINUX_GFP_H
#define UNIT_LINUX_GFP_H

#include <linux/types.h>

#include "memory.h"

#define GFP_KERNEL	1U
#define PAGE_SHIFT	12
#define PAGE_SIZE	(1UL << PAGE_SHIFT)

static inline unsigned long __get_free_page(gfp_t gfp)
{
	return (unsigned long)unit_alloc(MEMORY_PAGE, PAGE_SIZE, false, gfp);
}

static inline void free_page(unsigned long page)
{
	unit_free(MEMORY_PAGE, (void *)page);
}

#endif
