// SPDX-License-Identifier: GPL-2.0-only
/*
 * map: memory for what may be as long as a device, see map.h. Page by page, as not every
 * kernel has a vmalloc() that takes __GFP_RETRY_MAYFAIL: 6.19 and 7.0 warn of it and go on
 * without it.
 */
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/kmemleak.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "map.h"

#define MAP_GFP		(GFP_KERNEL | __GFP_NOWARN | __GFP_RETRY_MAYFAIL)

/* More than this is not begun if there is not enough memory for all of it. */
#define LARGE_PAGES	256

/* Whether there are so many and their page tables, or it is not worth asking. */
static bool may_have_room(size_t nr_pages)
{
	long available;

	if (nr_pages <= LARGE_PAGES)
		return true;
	available = si_mem_available();
	return available > 0 && nr_pages + nr_pages / 128 < (unsigned long)available;
}

static void free_pages_of(struct page **pages, size_t nr_pages)
{
	while (nr_pages)
		__free_page(pages[--nr_pages]);
}

static bool fill(struct page **pages, size_t nr_pages)
{
	size_t i;

	for (i = 0; i < nr_pages; i++) {
		pages[i] = alloc_page(MAP_GFP | __GFP_ZERO | __GFP_HIGHMEM);
		if (!pages[i]) {
			free_pages_of(pages, i);
			return false;
		}
		cond_resched();
	}
	return true;
}

/* What frees the map frees the list as well, which is a map itself if it is long. */
static struct page **alloc_list(size_t nr_pages)
{
	if (nr_pages <= PAGE_SIZE / sizeof(struct page *))
		return kmalloc_array(nr_pages, sizeof(struct page *), MAP_GFP);
	return fleece_map_alloc(nr_pages, sizeof(struct page *));
}

void *fleece_map_alloc(u64 count, size_t size)
{
	struct page **pages;
	unsigned int noreclaim;
	size_t nr_pages;
	void *map;

	/* Where the kernel has 32 bits, it might be given less than it asks for. */
	if (!count || count > (SIZE_MAX - PAGE_SIZE) / size)
		return NULL;
	nr_pages = DIV_ROUND_UP((size_t)count * size, PAGE_SIZE);
	if (nr_pages > INT_MAX || !may_have_room(nr_pages))
		return NULL;
	pages = alloc_list(nr_pages);
	if (!pages)
		return NULL;
	if (fill(pages, nr_pages)) {
		/* What it allocates itself is little, but with flags that never fail. */
		noreclaim = memalloc_noreclaim_save();
		map = vmap(pages, nr_pages, VM_MAP | VM_MAP_PUT_PAGES, PAGE_KERNEL);
		memalloc_noreclaim_restore(noreclaim);
		if (map) {
			/* As of vmalloc(), whose own note of it has the address, too. */
			kmemleak_alloc(map, nr_pages << PAGE_SHIFT, 2, GFP_KERNEL);
			return map;
		}
		free_pages_of(pages, nr_pages);
	}
	kvfree(pages);
	return NULL;
}
