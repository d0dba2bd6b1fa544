// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, plan: a list of ranges that grows at its end. It knows nothing
 * of servers and files.
 */
#include "plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY	256

static int make_room(struct plan *plan)
{
	size_t capacity = plan->capacity ? 2 * plan->capacity : FIRST_CAPACITY;
	struct plan_extent *bigger;

	if (plan->count < plan->capacity)
		return 0;
	bigger = reallocarray(plan->extents, capacity, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	plan->extents = bigger;
	plan->capacity = capacity;
	return 0;
}

int plan_add(struct plan *plan, uint64_t offset, uint64_t length, enum plan_kind kind)
{
	struct plan_extent *last = plan->count ? &plan->extents[plan->count - 1] : NULL;

	if (kind == PLAN_DENIED && !plan->bytes[PLAN_DENIED])
		plan->first_denied = offset;
	plan->bytes[kind] += length;
	if (kind == PLAN_UNCHANGED || kind == PLAN_DENIED)
		return 0;
	if (last && last->kind == kind && last->offset + last->length == offset) {
		last->length += length;
		return 0;
	}
	if (make_room(plan))
		return -ENOMEM;
	last = &plan->extents[plan->count++];
	last->offset = offset;
	last->length = length;
	last->kind = kind;
	return 0;
}

void plan_release(struct plan *plan)
{
	free(plan->extents);
	memset(plan, 0, sizeof(*plan));
}
