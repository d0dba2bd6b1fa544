/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pages: the buffer pages of a snapshot.
 *
 * Pages that a copy gives back are kept for the next ones: many kernels zero each
 * page that is allocated (init_on_alloc), which costs as much as another pass over
 * the data. A part of them is a reserve, so that one copy at a time can always be
 * made: whoever may sleep can wait until pages come back, because all that are not
 * here belong to copies that end without more memory.
 */
#ifndef FLEECE_PAGES_H
#define FLEECE_PAGES_H

#include <linux/bio.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

/**
 * struct fleece_pages - pages that are not in use
 * @reserve: how many are left to those who may sleep.
 * @limit: how many are kept.
 * @lock: protects @nr and what @pages points to.
 * @nr: how many there are; read without @lock by who waits for them.
 * @pages: array of @limit.
 * @returned: who waits for @nr to be more than 0.
 */
struct fleece_pages {
	unsigned int reserve;
	unsigned int limit;
	spinlock_t lock;		/* see above */
	unsigned int nr;
	struct page **pages;
	wait_queue_head_t returned;
};

/**
 * fleece_pages_init() - make the reserve
 * @pool: zeroed.
 * @reserve: pages that one user may need at a time.
 * @limit: pages kept at most; @reserve or more.
 *
 * Context: Process, may sleep.
 * Return: 0 or -ENOMEM; either way fleece_pages_exit() must follow in the end.
 */
int fleece_pages_init(struct fleece_pages *pool, unsigned int reserve, unsigned int limit);

/**
 * fleece_pages_exit() - free all pages
 * @pool: initialised, or zeroed; all pages have been returned.
 *
 * Context: Process, may sleep.
 */
void fleece_pages_exit(struct fleece_pages *pool);

/**
 * fleece_pages_add() - give pages to a bio
 * @pool: where they are taken from, or else new ones.
 * @bio: empty, with room for them; page i becomes its entry i.
 * @bytes: how much they hold.
 * @may_sleep: wait for memory instead of failing. Only for one user at a time; what
 *	it holds of the pages, but has not yet sent on its way, is no more than the
 *	reserve.
 *
 * Context: Process; sleeps only with @may_sleep.
 * Return: false, without @may_sleep only, if there is too little memory: then the
 * bio has some of the pages.
 */
bool fleece_pages_add(struct fleece_pages *pool, struct bio *bio, unsigned int bytes,
		      bool may_sleep);

/**
 * fleece_pages_remove() - take back the pages of a bio
 * @pool: where they came from.
 * @bio: has none afterwards.
 *
 * Context: Process, does not sleep.
 */
void fleece_pages_remove(struct fleece_pages *pool, struct bio *bio);

#endif
