/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * types: the integer types that the sources under test take from the kernel, for
 * a 64-bit userspace. Those that begin with two underscores are the exported ones.
 */
#ifndef UNIT_LINUX_TYPES_H
#define UNIT_LINUX_TYPES_H

#include_next <linux/types.h>

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define sector_t	u64
#define gfp_t		unsigned int

#define U32_MAX		UINT32_MAX

#endif
