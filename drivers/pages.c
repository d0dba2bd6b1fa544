// SPDX-License-Identifier: GPL-2.0-only
/*
 * pages: the buffer pages of a snapshot, see pages.h. Owns the pages that are not
 * in use; knows nothing of copies.
 */
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "map.h"
#include "pages.h"

int fleece_pages_init(struct fleece_pages *pool, unsigned int reserve, unsigned int limit)
{
	struct page *page;

	pool->reserve = reserve;
	pool->limit = limit;
	spin_lock_init(&pool->lock);
	init_waitqueue_head(&pool->returned);
	pool->pages = fleece_map_alloc(limit, sizeof(*pool->pages));
	if (!pool->pages)
		return -ENOMEM;
	while (pool->nr < reserve) {
		page = alloc_page(GFP_KERNEL | __GFP_NOWARN | __GFP_RETRY_MAYFAIL);
		if (!page)
			return -ENOMEM;
		pool->pages[pool->nr++] = page;
	}
	return 0;
}

void fleece_pages_exit(struct fleece_pages *pool)
{
	while (pool->nr)
		__free_page(pool->pages[--pool->nr]);
	vfree(pool->pages);
}

static unsigned int add_page(struct bio *bio, struct page *page, unsigned int bytes)
{
	bytes = min_t(unsigned int, bytes, PAGE_SIZE);
	/* Never merges pages, so page i of the bio is entry i. */
	__bio_add_page(bio, page, bytes, 0);
	return bytes;
}

/* Pages that are here already. Returns the bytes that they hold. */
static unsigned int add_kept(struct fleece_pages *pool, struct bio *bio, unsigned int bytes,
			     unsigned int reserve)
{
	unsigned int done = 0;
	unsigned int nr;

	spin_lock(&pool->lock);
	nr = pool->nr;
	while (done < bytes && nr > reserve)
		done += add_page(bio, pool->pages[--nr], bytes - done);
	WRITE_ONCE(pool->nr, nr);
	spin_unlock(&pool->lock);
	return done;
}

bool fleece_pages_add(struct fleece_pages *pool, struct bio *bio, unsigned int bytes,
		      bool may_sleep)
{
	/*
	 * A writer that is reclaiming memory must not use up what is kept for that. And who
	 * may sleep does not reclaim: memory to swap out is searched in vain without I/O,
	 * while others wait for the very copies that are to be started.
	 */
	gfp_t gfp = GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NOWARN;
	unsigned int reserve = may_sleep ? 0 : pool->reserve;
	struct page *page;

	bytes -= add_kept(pool, bio, bytes, reserve);
	while (bytes) {
		page = alloc_page(gfp);
		if (page) {
			bytes -= add_page(bio, page, bytes);
			continue;
		}
		if (!may_sleep)
			return false;
		wait_event(pool->returned, READ_ONCE(pool->nr));
		bytes -= add_kept(pool, bio, bytes, reserve);
	}
	return true;
}

void fleece_pages_remove(struct fleece_pages *pool, struct bio *bio)
{
	unsigned int count = bio->bi_vcnt;
	unsigned int i = 0;
	unsigned int nr;

	spin_lock(&pool->lock);
	nr = pool->nr;
	while (i < count && nr < pool->limit)
		pool->pages[nr++] = bio->bi_io_vec[i++].bv_page;
	WRITE_ONCE(pool->nr, nr);
	spin_unlock(&pool->lock);

	for (; i < count; i++)
		__free_page(bio->bi_io_vec[i].bv_page);
	bio->bi_vcnt = 0;
	/* Its barrier, after the unlock, pairs with that of wait_event(). */
	if (wq_has_sleeper(&pool->returned))
		wake_up(&pool->returned);
}
