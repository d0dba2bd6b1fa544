/* SPDX-License-Identifier: GPL-2.0-only */
/* Unit tests: stands in for the kernel's header. */
#ifndef UNIT_LINUX_ATOMIC_H
#define UNIT_LINUX_ATOMIC_H

struct unit_atomic_long {
	long counter;
};

#define atomic_long_t struct unit_atomic_long

static inline void atomic_long_or(long value, atomic_long_t *v)
{
	__atomic_fetch_or(&v->counter, value, __ATOMIC_RELAXED);
}

#endif
