/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compiler: accesses that happen once. Relaxed atomics have that property.
 */
#ifndef UNIT_LINUX_COMPILER_H
#define UNIT_LINUX_COMPILER_H

#define READ_ONCE(variable)		__atomic_load_n(&(variable), __ATOMIC_RELAXED)
#define WRITE_ONCE(variable, value)	__atomic_store_n(&(variable), (value), __ATOMIC_RELAXED)

#endif
