// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, size: reads and writes sizes. It knows digits and units, not what
 * a size is good for: limits and alignment are checked by those who ask.
 */
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SIZE_UNITS	"KMGTPE"

/* strtoull() would take blanks, signs and 0x: none of them is a size. */
static int parse_digits(const char **text, uint64_t *number)
{
	const char *p = *text;
	uint64_t value = 0;

	if (!isdigit((unsigned char)*p))
		return -EINVAL;
	for (; isdigit((unsigned char)*p); p++) {
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, *p - '0', &value))
			return -ERANGE;
	}
	*text = p;
	*number = value;
	return 0;
}

/* The factor of a unit, 0 for an unknown one. */
static uint64_t unit_factor(const char *unit, size_t length)
{
	const char *known;

	if (length == 0 || (length == 1 && *unit == 'B'))
		return 1;
	if (length == 1 && *unit == 's')
		return 512;
	known = strchr(SIZE_UNITS, toupper((unsigned char)*unit));
	if (!known || !*known)
		return 0;
	if (length != 1 && !(length == 3 && tolower((unsigned char)unit[1]) == 'i' &&
			     toupper((unsigned char)unit[2]) == 'B'))
		return 0;
	return 1ULL << (10 * (known - SIZE_UNITS + 1));
}

static int parse_size(const char *text, size_t length, uint64_t *bytes)
{
	const char *p = text;
	uint64_t number, factor;
	int ret = parse_digits(&p, &number);

	if (ret)
		return ret;
	factor = unit_factor(p, length - (size_t)(p - text));
	if (!factor)
		return -EINVAL;
	return __builtin_mul_overflow(number, factor, bytes) ? -ERANGE : 0;
}

int fleece_size_parse(const char *text, uint64_t *bytes)
{
	return parse_size(text, strlen(text), bytes);
}

int fleece_percent_parse(const char *text, unsigned int *percent)
{
	uint64_t number;
	int ret = parse_digits(&text, &number);

	if (ret)
		return ret;
	if (strcmp(text, "") && strcmp(text, "%"))
		return -EINVAL;
	if (number > 100)
		return -ERANGE;
	*percent = (unsigned int)number;
	return 0;
}

int fleece_range_parse(const char *text, uint64_t *offset, uint64_t *length)
{
	const char *colon = strchr(text, ':');
	uint64_t end;
	int ret;

	if (!colon)
		return -EINVAL;
	ret = parse_size(text, (size_t)(colon - text), offset);
	if (ret)
		return ret;
	ret = fleece_size_parse(colon + 1, length);
	if (ret)
		return ret;
	if (!*length)
		return -EINVAL;
	return __builtin_add_overflow(*offset, *length, &end) ? -ERANGE : 0;
}

const char *fleece_size_format(char *text, uint64_t bytes)
{
	int unit = -1;
	uint64_t whole = bytes, rest = 0;

	while (whole >= 1024 && unit < (int)strlen(SIZE_UNITS) - 1) {
		rest = whole % 1024;
		whole /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(text, FLEECE_SIZE_TEXT, "%llu", (unsigned long long)bytes);
	else
		snprintf(text, FLEECE_SIZE_TEXT, "%llu.%llu%c", (unsigned long long)whole,
			 (unsigned long long)(rest * 10 / 1024), SIZE_UNITS[unit]);
	return text;
}
