// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, budget: who may have how many bytes of replies in work. Owns the
 * rule; the buffers belong to those who make the replies.
 */
#include "budget.h"

void budget_init(struct budget *budget, uint64_t total)
{
	pthread_mutex_init(&budget->lock, NULL);
	pthread_cond_init(&budget->freed, NULL);
	budget->total = total;
	budget->used = 0;
}

void budget_release(struct budget *budget)
{
	pthread_cond_destroy(&budget->freed);
	pthread_mutex_destroy(&budget->lock);
}

/*
 * What a client may hold is what would be left for another one: the first gets
 * half of all, the next half of the rest, and so on. So there is always a rest.
 */
bool budget_fits(const struct budget *budget, const struct budget_share *share, uint64_t bytes)
{
	uint64_t left = budget->used < budget->total ? budget->total - budget->used : 0;
	uint64_t wanted = share->held + bytes;

	if (!share->held && bytes <= BUDGET_FLOOR)
		return true;
	if (bytes > left || wanted > BUDGET_CLIENT_MAX)
		return false;
	return wanted <= left - bytes || !budget->used;
}

void budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	pthread_mutex_lock(&budget->lock);
	while (bytes && !budget_fits(budget, share, bytes))
		pthread_cond_wait(&budget->freed, &budget->lock);
	budget->used += bytes;
	share->held += bytes;
	pthread_mutex_unlock(&budget->lock);
}

void budget_give(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	if (!bytes)
		return;
	pthread_mutex_lock(&budget->lock);
	budget->used -= bytes;
	share->held -= bytes;
	pthread_cond_broadcast(&budget->freed);
	pthread_mutex_unlock(&budget->lock);
}
