/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * refcount: a counter that dies when it is used after its end, or is taken below 0.
 */
#ifndef UNIT_LINUX_REFCOUNT_H
#define UNIT_LINUX_REFCOUNT_H

#include <stdlib.h>

#include <linux/compiler.h>
#include <linux/types.h>

struct unit_refcount {
	unsigned int refs;
};

#define refcount_t	struct unit_refcount

static inline void refcount_set(refcount_t *count, unsigned int value)
{
	WRITE_ONCE(count->refs, value);
}

static inline unsigned int refcount_read(const refcount_t *count)
{
	return READ_ONCE(count->refs);
}

static inline void refcount_inc(refcount_t *count)
{
	if (!__atomic_fetch_add(&count->refs, 1, __ATOMIC_RELAXED))
		abort();
}

static inline bool refcount_dec_and_test(refcount_t *count)
{
	unsigned int before = __atomic_fetch_sub(&count->refs, 1, __ATOMIC_ACQ_REL);

	if (!before)
		abort();
	return before == 1;
}

#endif
