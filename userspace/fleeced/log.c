// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, log: writes whole lines to stderr, so that lines of several threads
 * never mix. Owns no state.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_SIZE 1024

static void write_line(const char *prefix, const char *format, va_list arguments)
{
	char line[LINE_SIZE];
	int used = snprintf(line, sizeof(line), "fleeced: %s", prefix);
	int more = vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);

	if (more < 0)
		return;
	used += more;
	if (used > LINE_SIZE - 2)
		used = LINE_SIZE - 2;
	line[used++] = '\n';
	/* Nothing can be done about a log that cannot be written. */
	if (write(STDERR_FILENO, line, used) < 0)
		return;
}

void log_error(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line("error: ", format, arguments);
	va_end(arguments);
}

void log_info(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line("", format, arguments);
	va_end(arguments);
}

const char *log_quote(char *target, size_t size, const void *text, size_t length)
{
	const unsigned char *bytes = text;
	size_t fits = length < size ? length : size - 4;
	size_t i;

	for (i = 0; i < fits; i++)
		target[i] = bytes[i] > ' ' && bytes[i] < 0x7f ? bytes[i] : '?';
	target[i] = '\0';
	if (fits < length)
		memcpy(target + fits, "...", sizeof("..."));
	return target;
}
