/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hash: a multiplicative hash of our own. Tests must not depend on its values, nor
 * may the sources.
 */
#ifndef UNIT_LINUX_HASH_H
#define UNIT_LINUX_HASH_H

#include <linux/types.h>

static inline u32 hash_64(u64 value, unsigned int bits)
{
	return (value ^ value >> 29) * 0xd1342543de82ef95ULL >> (64 - bits);
}

#endif
