/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece-pull, plan: which ranges of an export have to be copied.
 *
 * It is complete before anything is written, so that what cannot be pulled is
 * known while the target is still untouched.
 */
#ifndef FLEECE_PULL_PLAN_H
#define FLEECE_PULL_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * enum plan_kind - what is to be done with a range
 * @PLAN_READ: read it from the server and write it.
 * @PLAN_ZERO: write zeroes; the server says that it reads as such.
 * @PLAN_UNCHANGED: nothing, it is the same as at the checkpoint.
 * @PLAN_DENIED: it is needed, and the server does not let it be read.
 */
enum plan_kind {
	PLAN_READ,
	PLAN_ZERO,
	PLAN_UNCHANGED,
	PLAN_DENIED,
};

#define PLAN_KINDS	4

/**
 * struct plan_extent - one range
 * @offset: bytes.
 * @length: bytes.
 * @kind: PLAN_READ or PLAN_ZERO.
 */
struct plan_extent {
	uint64_t offset;
	uint64_t length;
	enum plan_kind kind;
};

/**
 * struct plan - all ranges; start with zeroes
 * @extents: what has to be written, ascending; neighbours of one kind are joined.
 * @count: their number.
 * @capacity: room for so many.
 * @bytes: how much there is of each kind.
 * @first_denied: lowest offset of PLAN_DENIED, if there is any.
 */
struct plan {
	struct plan_extent *extents;
	size_t count;
	size_t capacity;
	uint64_t bytes[PLAN_KINDS];
	uint64_t first_denied;
};

/**
 * plan_add() - add a range behind all others
 * @plan: the plan.
 * @offset: bytes.
 * @length: bytes, not 0.
 * @kind: what to do with it.
 *
 * Return: 0 or -ENOMEM.
 */
int plan_add(struct plan *plan, uint64_t offset, uint64_t length, enum plan_kind kind);

/**
 * plan_release() - free the extents
 * @plan: the plan, empty afterwards.
 */
void plan_release(struct plan *plan);

#endif
