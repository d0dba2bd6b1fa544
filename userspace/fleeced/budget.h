/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, budget: bytes of the large replies that are being made, of each client
 * and of all clients together.
 *
 * A client is a connection here. The first BUDGET_OWN bytes of each are its own:
 * nobody else can take them. What it holds beyond comes out of a pool, of which it
 * gets no more than it leaves to others, and for which clients queue up. So clients
 * that do not read their replies cannot stop the server for others, and all together
 * never hold more than the pool and BUDGET_OWN for each.
 */
#ifndef FLEECED_BUDGET_H
#define FLEECED_BUDGET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* Bytes of the pool; what each client has of its own; and the most of one client. */
#define BUDGET_POOL		(128ULL << 20)
#define BUDGET_OWN		(4ULL << 20)
#define BUDGET_CLIENT_MAX	(BUDGET_OWN + BUDGET_POOL / 2)

TAILQ_HEAD(budget_queue, budget_share);

/**
 * struct budget - what all clients hold together
 * @lock: protects all of it, and the shares.
 * @pool: bytes that there are beside those that are clients' own; constant.
 * @used: of @pool.
 * @held: bytes given out in all, those that are clients' own among them.
 * @queue: clients that wait, the first to come first.
 * @is_closed: nobody waits any more.
 */
struct budget {
	pthread_mutex_t lock;
	uint64_t pool;
	uint64_t used;
	uint64_t held;
	struct budget_queue queue;
	bool is_closed;
};

/**
 * struct budget_share - what one client holds. Protected by the budget's lock.
 * @link: in the queue while it waits.
 * @held: bytes.
 * @wanted: bytes that it waits for; 0: it does not wait.
 * @granted: with the lock: it need not wait any more.
 * @is_closed: the client is lost.
 */
struct budget_share {
	TAILQ_ENTRY(budget_share) link;
	uint64_t held;
	uint64_t wanted;
	pthread_cond_t granted;
	bool is_closed;
};

/**
 * budget_init() - nothing given out
 * @budget: filled in; released by budget_release().
 * @pool: bytes for all clients, BUDGET_POOL but in tests.
 */
void budget_init(struct budget *budget, uint64_t pool);

/** budget_release() - give back what budget_init() took */
void budget_release(struct budget *budget);

/** budget_share_init() - a client that holds nothing; released by budget_share_release() */
void budget_share_init(struct budget_share *share);

/** budget_share_release() - give back what budget_share_init() took */
void budget_share_release(struct budget_share *share);

/**
 * budget_take() - wait until a client may have so many bytes more
 * @budget: of the server.
 * @share: of the client; one thread of it at a time.
 * @bytes: at most NBD_BLOCK_MAXIMUM and two blocks of a device; 0 is granted at once.
 *
 * Those who want something of the pool get it in the order in which they came, but
 * for one: who holds something of it already does not keep others from it while it
 * waits for more. Whoever holds bytes gives them back when its reply was sent, or
 * when it is disconnected for not reading it; so every wait ends.
 *
 * Return: true: the bytes are the client's until budget_give(). false: none are, the
 * budget or the share was closed.
 */
bool budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes);

/**
 * budget_give() - return bytes
 * @budget: of the server.
 * @share: of the client.
 * @bytes: taken before.
 */
void budget_give(struct budget *budget, struct budget_share *share, uint64_t bytes);

/**
 * budget_close() - end every wait, for good: the server is ending
 * @budget: of the server.
 */
void budget_close(struct budget *budget);

/**
 * budget_share_close() - end the wait of a client, for good
 * @budget: of the server.
 * @share: of a client that is lost.
 */
void budget_share_close(struct budget *budget, struct budget_share *share);

#endif
