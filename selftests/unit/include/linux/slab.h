/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * slab: memory by size, see memory.h.
 */
#ifndef UNIT_LINUX_SLAB_H
#define UNIT_LINUX_SLAB_H

#include <linux/gfp.h>
#include <linux/string.h>

static inline void *kzalloc(size_t bytes, gfp_t gfp)
{
	return unit_alloc(MEMORY_SLAB, bytes, true, gfp);
}

static inline void kfree(const void *memory)
{
	unit_free(MEMORY_SLAB, memory);
}

static inline void *kvmalloc_array(size_t count, size_t bytes, gfp_t gfp)
{
	return unit_alloc_array(count, bytes, false, gfp);
}

static inline void *kvcalloc(size_t count, size_t bytes, gfp_t gfp)
{
	return unit_alloc_array(count, bytes, true, gfp);
}

static inline void kvfree(const void *memory)
{
	unit_free(MEMORY_SLAB_OR_VIRTUAL, memory);
}

#endif
