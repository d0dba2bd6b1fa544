// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, text: which bytes are acceptable as names and as numbers. Owns no state. */
#include "text.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Length of the sequence that begins with this byte; 0: no such sequence. */
static size_t sequence_length(uint8_t first)
{
	if (first < 0x80)
		return first ? 1 : 0;
	if (first >= 0xc2 && first <= 0xdf)
		return 2;
	if (first >= 0xe0 && first <= 0xef)
		return 3;
	if (first >= 0xf0 && first <= 0xf4)
		return 4;
	return 0;
}

/* The second byte of some sequences has a smaller range than the others. */
static bool is_second(uint8_t first, uint8_t second)
{
	switch (first) {
	case 0xe0:
		return second >= 0xa0 && second <= 0xbf;
	case 0xed:
		return second >= 0x80 && second <= 0x9f;
	case 0xf0:
		return second >= 0x90 && second <= 0xbf;
	case 0xf4:
		return second >= 0x80 && second <= 0x8f;
	default:
		return second >= 0x80 && second <= 0xbf;
	}
}

bool text_is_utf8(const void *bytes, size_t length)
{
	const uint8_t *p = bytes;
	const uint8_t *end = p + length;
	size_t need, i;

	while (p < end) {
		need = sequence_length(*p);
		if (!need || need > (size_t)(end - p))
			return false;
		if (need > 1 && !is_second(p[0], p[1]))
			return false;
		for (i = 2; i < need; i++)
			if (p[i] < 0x80 || p[i] > 0xbf)
				return false;
		p += need;
	}
	return true;
}

bool text_is_export_name(const char *name)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-";

	return *name && name[strspn(name, allowed)] == '\0';
}

bool text_to_number(const char *text, unsigned int max, unsigned int *number)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > max)
		return false;
	*number = (unsigned int)value;
	return true;
}
