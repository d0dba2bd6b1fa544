/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * string: the one of the C library, and a copy that always ends with NUL.
 */
#ifndef UNIT_LINUX_STRING_H
#define UNIT_LINUX_STRING_H

#include <string.h>

#include <linux/errno.h>
#include <linux/types.h>

static inline long strscpy(char *to, const char *from, size_t bytes)
{
	size_t length = strnlen(from, bytes);

	if (!bytes)
		return -E2BIG;
	if (length == bytes) {
		memcpy(to, from, bytes - 1);
		to[bytes - 1] = '\0';
		return -E2BIG;
	}
	memcpy(to, from, length + 1);
	return length;
}

#endif
