/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, slots: how many clients have chosen an export, and how many may. Who is still
 * shaking hands has none, and so cannot keep one from others.
 */
#ifndef FLEECED_SLOTS_H
#define FLEECED_SLOTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/**
 * struct slots - of all clients
 * @lock: protects all of it, and each struct slot.
 * @changed: with @lock: somebody who waits may not have to any more.
 * @max: how many there are; 0: no limit. Constant.
 * @used: by clients.
 * @is_closed: the server is ending.
 * @full_log_ms: when the log said last that all are in use, or 0.
 */
struct slots {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int max;
	unsigned int used;
	bool is_closed;
	int64_t full_log_ms;
};

/**
 * struct slot - of one client
 * @is_used: it has one.
 * @is_wanted: it waits for one.
 * @is_closed: the client is lost.
 */
struct slot {
	bool is_used;
	bool is_wanted;
	bool is_closed;
};

/**
 * slots_init() - all free
 * @slots: filled in; released by slots_release().
 * @max: how many; 0: no limit.
 */
void slots_init(struct slots *slots, unsigned int max);

/** slots_release() - give back what slots_init() took */
void slots_release(struct slots *slots);

/**
 * slots_take() - wait for a slot
 * @slots: of the server.
 * @slot: of the client; has none, or has one already.
 * @deadline_ms: clock_ms() at which to give up; 0: never.
 *
 * The log says when all are in use, from time to time.
 *
 * Return: true: the client has it. false: not in time, or the server or the client is
 * ending.
 */
bool slots_take(struct slots *slots, struct slot *slot, int64_t deadline_ms);

/** slots_give() - return the slot of a client, if it has one */
void slots_give(struct slots *slots, struct slot *slot);

/** slots_close() - end every wait, for good: the server is ending */
void slots_close(struct slots *slots);

/** slots_close_one() - end the wait of a client, for good: it is lost */
void slots_close_one(struct slots *slots, struct slot *slot);

/** slots_concern() - does a client have one, or wait for one? */
bool slots_concern(struct slots *slots, const struct slot *slot);

/** slots_used() - how many clients have one */
unsigned int slots_used(struct slots *slots);

#endif
