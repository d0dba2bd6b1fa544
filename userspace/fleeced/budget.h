/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, budget: bytes of the replies that are being made, of each client and
 * of all clients together.
 *
 * However much the others hold, a client without a reply in work can have a
 * small one at once, and one that holds much gets less the more is taken. So
 * clients that do not read their replies cannot stop the server for others. A
 * client is a connection here. What a thread keeps between requests (transmit.c)
 * is not counted.
 */
#ifndef FLEECED_BUDGET_H
#define FLEECED_BUDGET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Most bytes of one client; of all; and what a client can always have. */
#define BUDGET_CLIENT_MAX	(64ULL << 20)
#define BUDGET_TOTAL		(128ULL << 20)
#define BUDGET_FLOOR		(4ULL << 20)

/**
 * struct budget - what all clients hold together
 * @lock: protects @used and the shares.
 * @freed: with @lock: @used has shrunk.
 * @total: bytes that there are, but for those below BUDGET_FLOOR; constant.
 * @used: bytes given out.
 */
struct budget {
	pthread_mutex_t lock;
	pthread_cond_t freed;
	uint64_t total;
	uint64_t used;
};

/**
 * struct budget_share - what one client holds
 * @held: bytes; protected by the budget's lock.
 */
struct budget_share {
	uint64_t held;
};

/**
 * budget_init() - nothing given out
 * @budget: filled in; released by budget_release().
 * @total: bytes for all clients, BUDGET_TOTAL but in tests.
 */
void budget_init(struct budget *budget, uint64_t total);

/** budget_release() - give back what budget_init() took */
void budget_release(struct budget *budget);

/**
 * budget_fits() - may a client have so many bytes more right now
 * @budget: with its lock held, or used by one thread only.
 * @share: of the client.
 * @bytes: at most BUDGET_CLIENT_MAX.
 *
 * Return: true: yes.
 */
bool budget_fits(const struct budget *budget, const struct budget_share *share, uint64_t bytes);

/**
 * budget_take() - wait until a client may have so many bytes more
 * @budget: of the server.
 * @share: of the client.
 * @bytes: at most BUDGET_CLIENT_MAX and the budget's total.
 *
 * Replies of others end by being sent, or because their clients are disconnected
 * for not taking them; but there is no queue: requests of others that come later
 * may get the bytes first. It does not notice that its own client has gone.
 */
void budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes);

/**
 * budget_give() - return bytes
 * @budget: of the server.
 * @share: of the client.
 * @bytes: taken before.
 */
void budget_give(struct budget *budget, struct budget_share *share, uint64_t bytes);

#endif
