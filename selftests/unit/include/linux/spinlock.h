/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * spinlock: for tests with one thread. A lock that is taken twice, or given back by
 * somebody who does not hold it, ends the program.
 */
#ifndef UNIT_LINUX_SPINLOCK_H
#define UNIT_LINUX_SPINLOCK_H

#include <stdlib.h>

#include <linux/types.h>

struct unit_spinlock {
	bool is_held;
};

#define spinlock_t	struct unit_spinlock

static inline void spin_lock_init(spinlock_t *lock)
{
	lock->is_held = false;
}

static inline void unit_switch_lock(spinlock_t *lock, bool is_held)
{
	if (lock->is_held == is_held)
		abort();
	lock->is_held = is_held;
}

#define spin_lock(lock)			unit_switch_lock(lock, true)
#define spin_unlock(lock)		unit_switch_lock(lock, false)
#define lockdep_assert_held(lock)	((void)((lock)->is_held ? 0 : (abort(), 0)))

#endif
