// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, stop: the one-way event "the server is ending", and the clock that
 * its waiters use. Needs no lock: the time changes once, the eventfd is never
 * read back.
 */
#include "stop.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

int64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 + 1;
}

int stop_init(struct stop *stop)
{
	atomic_init(&stop->since_ms, 0);
	stop->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return stop->fd < 0 ? -errno : 0;
}

void stop_release(struct stop *stop)
{
	if (stop->fd >= 0)
		close(stop->fd);
	stop->fd = -1;
}

void stop_request(struct stop *stop)
{
	long long none = 0;
	uint64_t one = 1;

	if (!atomic_compare_exchange_strong(&stop->since_ms, &none, clock_ms()))
		return;
	if (stop->fd >= 0 && write(stop->fd, &one, sizeof(one)) < 0)
		return;
}
