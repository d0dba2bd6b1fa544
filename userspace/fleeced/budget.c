// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, budget: who may have how many bytes of replies in work. Owns the
 * rule and the queue; the buffers belong to those who make the replies.
 */
#include "budget.h"

void budget_init(struct budget *budget, uint64_t pool)
{
	pthread_mutex_init(&budget->lock, NULL);
	TAILQ_INIT(&budget->queue);
	budget->pool = pool;
	budget->used = 0;
	budget->held = 0;
	budget->is_closed = false;
}

void budget_release(struct budget *budget)
{
	pthread_mutex_destroy(&budget->lock);
}

void budget_share_init(struct budget_share *share)
{
	pthread_cond_init(&share->granted, NULL);
	share->held = 0;
	share->wanted = 0;
	share->is_closed = false;
}

void budget_share_release(struct budget_share *share)
{
	pthread_cond_destroy(&share->granted);
}

/* Of so many bytes of one client, those that are of the pool. */
static uint64_t of_pool(uint64_t held)
{
	return held > BUDGET_OWN ? held - BUDGET_OWN : 0;
}

/* What holding @held bytes instead of @share->held costs the pool. */
static uint64_t cost(const struct budget_share *share, uint64_t held)
{
	return of_pool(held) - of_pool(share->held);
}

/*
 * What a client may hold of the pool is what would be left for another one: the first
 * gets half of it, the next half of the rest, and so on. So there is always a rest.
 */
static bool fits(const struct budget *budget, const struct budget_share *share)
{
	uint64_t held = share->held + share->wanted;
	uint64_t left = budget->pool - budget->used;
	uint64_t more = cost(share, held);

	if (!more)
		return true;
	if (more > left || held > BUDGET_CLIENT_MAX)
		return false;
	return of_pool(held) <= left - more || !budget->used;
}

static void grant(struct budget *budget, struct budget_share *share)
{
	TAILQ_REMOVE(&budget->queue, share, link);
	budget->used += cost(share, share->held + share->wanted);
	budget->held += share->wanted;
	share->held += share->wanted;
	share->wanted = 0;
	pthread_cond_signal(&share->granted);
}

/* A client that has nothing of the pool yet is not overtaken by those that came later. */
static void serve_queue(struct budget *budget)
{
	struct budget_share *share = TAILQ_FIRST(&budget->queue);
	struct budget_share *next;
	bool is_kept = false;

	for (; share; share = next) {
		next = TAILQ_NEXT(share, link);
		if (is_kept ? !cost(share, share->held + share->wanted) : fits(budget, share))
			grant(budget, share);
		else
			is_kept |= !of_pool(share->held);
	}
}

bool budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	bool is_granted;

	if (!bytes)
		return true;
	pthread_mutex_lock(&budget->lock);
	share->wanted = bytes;
	TAILQ_INSERT_TAIL(&budget->queue, share, link);
	serve_queue(budget);
	while (share->wanted && !share->is_closed && !budget->is_closed)
		pthread_cond_wait(&share->granted, &budget->lock);
	is_granted = !share->wanted;
	if (!is_granted) {
		TAILQ_REMOVE(&budget->queue, share, link);
		share->wanted = 0;
		serve_queue(budget);
	}
	pthread_mutex_unlock(&budget->lock);
	return is_granted;
}

void budget_give(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	if (!bytes)
		return;
	pthread_mutex_lock(&budget->lock);
	budget->used -= of_pool(share->held) - of_pool(share->held - bytes);
	budget->held -= bytes;
	share->held -= bytes;
	serve_queue(budget);
	pthread_mutex_unlock(&budget->lock);
}

void budget_close(struct budget *budget)
{
	struct budget_share *share;

	pthread_mutex_lock(&budget->lock);
	budget->is_closed = true;
	TAILQ_FOREACH(share, &budget->queue, link)
		pthread_cond_signal(&share->granted);
	pthread_mutex_unlock(&budget->lock);
}

void budget_share_close(struct budget *budget, struct budget_share *share)
{
	pthread_mutex_lock(&budget->lock);
	share->is_closed = true;
	pthread_cond_signal(&share->granted);
	pthread_mutex_unlock(&budget->lock);
}
