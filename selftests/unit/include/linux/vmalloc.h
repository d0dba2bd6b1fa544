/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vmalloc: large memory, see memory.h.
 */
#ifndef UNIT_LINUX_VMALLOC_H
#define UNIT_LINUX_VMALLOC_H

#include <linux/gfp.h>

static inline void *__vmalloc(unsigned long bytes, gfp_t gfp)
{
	return unit_alloc(MEMORY_VIRTUAL, bytes, gfp & __GFP_ZERO, gfp);
}

static inline void vfree(const void *memory)
{
	unit_free(MEMORY_VIRTUAL, memory);
}

#endif
