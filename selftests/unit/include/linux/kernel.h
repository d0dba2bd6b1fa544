/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kernel: arithmetic helpers. The comparisons insist on operands of one type, so a
 * mixture that the real ones refuse is an error here as well.
 */
#ifndef UNIT_LINUX_KERNEL_H
#define UNIT_LINUX_KERNEL_H

#include <linux/compiler.h>
#include <linux/log2.h>
#include <linux/types.h>

#define ARRAY_SIZE(array)		(sizeof(array) / sizeof((array)[0]))
#define DIV_ROUND_UP(value, unit)	(1 + ((value) - 1) / (unit))

#define unit_pick(a, b, less)						\
	({								\
		__auto_type pick_a = (a);				\
		__auto_type pick_b = (b);				\
									\
		_Static_assert(__builtin_types_compatible_p(typeof(pick_a), typeof(pick_b)), \
			       "operands of different types");		\
		(pick_a < pick_b) == (less) ? pick_a : pick_b;		\
	})

#define min(a, b)			unit_pick(a, b, true)
#define max(a, b)			unit_pick(a, b, false)
#define min_t(type, a, b)		min((type)(a), (type)(b))
#define swap(a, b)							\
	({								\
		__auto_type swap_a = &(a);				\
		__auto_type swap_b = &(b);				\
		__auto_type swap_value = *swap_a;			\
									\
		*swap_a = *swap_b;					\
		*swap_b = swap_value;					\
	})
#define clamp(value, low, high)		min(max(value, low), high)

#endif
