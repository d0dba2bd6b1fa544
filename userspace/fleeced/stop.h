/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, stop: the one-way event "the server is ending".
 *
 * Everything that waits can wait for it too (a descriptor that becomes and
 * stays readable); everything that works can ask for it without a lock.
 */
#ifndef FLEECED_STOP_H
#define FLEECED_STOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/**
 * struct stop - has the end been asked for
 * @fd: readable as soon as it has; -1 when nobody needs to wait for it.
 * @since_ms: 0, or clock_ms() at the request. Atomic, changes once.
 */
struct stop {
	int fd;
	atomic_llong since_ms;
};

/**
 * stop_init() - nothing asked for yet
 * @stop: filled in; released by stop_release().
 *
 * Return: 0 or -errno.
 */
int stop_init(struct stop *stop);

/** stop_release() - give back what stop_init() took */
void stop_release(struct stop *stop);

/**
 * stop_request() - ask for the end
 * @stop: the event; asking again changes nothing.
 *
 * Context: any thread.
 */
void stop_request(struct stop *stop);

/**
 * stop_since_ms() - when the end was asked for
 * @stop: the event.
 *
 * Return: clock_ms() of that moment, or 0 when it was not.
 */
static inline int64_t stop_since_ms(struct stop *stop)
{
	return atomic_load(&stop->since_ms);
}

/** stop_is_requested() - has the end been asked for */
static inline bool stop_is_requested(struct stop *stop)
{
	return stop_since_ms(stop) != 0;
}

/**
 * clock_ms() - milliseconds of a clock that only runs forward
 *
 * Return: never 0.
 */
int64_t clock_ms(void);

#endif
