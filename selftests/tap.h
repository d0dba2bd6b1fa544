/* SPDX-License-Identifier: GPL-2.0-only */
/* tap: prints one line for each check, and the plan at the end. */
#ifndef FLEECE_TEST_TAP_H
#define FLEECE_TEST_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static unsigned int tap_count;
static unsigned int tap_failures;

static inline void __attribute__((format(printf, 2, 3)))
tap_ok(bool passed, const char *format, ...)
{
	va_list args;

	tap_count++;
	tap_failures += !passed;
	printf("%sok %u - ", passed ? "" : "not ", tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	/* Children must not inherit it unwritten. */
	fflush(stdout);
}

static inline int tap_end(void)
{
	printf("1..%u\n", tap_count);
	return tap_failures ? 1 : 0;
}

#endif
