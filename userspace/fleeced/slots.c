// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, slots: counts clients, and lets those wait that are too many. */
#include "slots.h"

#include <errno.h>
#include <time.h>

#include "log.h"
#include "stop.h"

/* Least time between two log lines that say that all are in use. */
#define FULL_LOG_MS	60000

/* For waits without a limit: what is long enough, and cannot overflow. */
#define LONG_MS		86400000

void slots_init(struct slots *slots, unsigned int max)
{
	pthread_condattr_t attributes;

	pthread_mutex_init(&slots->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&slots->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	slots->max = max;
	slots->used = 0;
	slots->is_closed = false;
	slots->full_log_ms = 0;
}

void slots_release(struct slots *slots)
{
	pthread_cond_destroy(&slots->changed);
	pthread_mutex_destroy(&slots->lock);
}

static bool is_full(const struct slots *slots)
{
	return slots->max && slots->used >= slots->max;
}

/* So that an administrator knows why a client does not get an answer. */
static void log_if_full(struct slots *slots)
{
	int64_t now = clock_ms();

	if (slots->max < 2 || !is_full(slots) ||
	    (slots->full_log_ms && now < slots->full_log_ms + FULL_LOG_MS))
		return;
	slots->full_log_ms = now;
	log_info("all %u connections are in use, more clients have to wait (--max-connections)",
		 slots->max);
}

/* false: that time has come. */
static bool wait_until(struct slots *slots, int64_t deadline_ms)
{
	int64_t until = deadline_ms ? deadline_ms : clock_ms() + LONG_MS;
	struct timespec at = { .tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000 };

	return pthread_cond_timedwait(&slots->changed, &slots->lock, &at) != ETIMEDOUT ||
	       !deadline_ms;
}

bool slots_take(struct slots *slots, struct slot *slot, int64_t deadline_ms)
{
	bool in_time = true;
	bool is_taken;

	pthread_mutex_lock(&slots->lock);
	slot->is_wanted = true;
	while (!slot->is_used && is_full(slots) && in_time && !slots->is_closed &&
	       !slot->is_closed)
		in_time = wait_until(slots, deadline_ms);
	is_taken = !slot->is_used && !is_full(slots) && !slots->is_closed && !slot->is_closed;
	if (is_taken) {
		slot->is_used = true;
		slots->used++;
		log_if_full(slots);
	}
	is_taken = slot->is_used;
	slot->is_wanted = false;
	pthread_mutex_unlock(&slots->lock);
	return is_taken;
}

void slots_give(struct slots *slots, struct slot *slot)
{
	pthread_mutex_lock(&slots->lock);
	if (slot->is_used)
		slots->used--;
	slot->is_used = false;
	pthread_cond_broadcast(&slots->changed);
	pthread_mutex_unlock(&slots->lock);
}

void slots_close(struct slots *slots)
{
	pthread_mutex_lock(&slots->lock);
	slots->is_closed = true;
	pthread_cond_broadcast(&slots->changed);
	pthread_mutex_unlock(&slots->lock);
}

void slots_close_one(struct slots *slots, struct slot *slot)
{
	pthread_mutex_lock(&slots->lock);
	slot->is_closed = true;
	pthread_cond_broadcast(&slots->changed);
	pthread_mutex_unlock(&slots->lock);
}

bool slots_concern(struct slots *slots, const struct slot *slot)
{
	bool are_concerned;

	pthread_mutex_lock(&slots->lock);
	are_concerned = slot->is_used || slot->is_wanted;
	pthread_mutex_unlock(&slots->lock);
	return are_concerned;
}

unsigned int slots_used(struct slots *slots)
{
	unsigned int used;

	pthread_mutex_lock(&slots->lock);
	used = slots->used;
	pthread_mutex_unlock(&slots->lock);
	return used;
}
