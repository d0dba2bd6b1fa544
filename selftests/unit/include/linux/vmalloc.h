/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vmalloc: large memory, see memory.h; fleece_map_alloc() is in memory.c.
 */
#ifndef UNIT_LINUX_VMALLOC_H
#define UNIT_LINUX_VMALLOC_H

#include <linux/gfp.h>

static inline void vfree(const void *memory)
{
	unit_free(MEMORY_VIRTUAL, memory);
}

#endif
