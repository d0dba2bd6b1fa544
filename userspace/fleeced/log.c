// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, log: writes whole lines to stderr, so that lines of several threads
 * never mix. Who reads them may be stuck: neither clients nor the end of the server
 * wait for that. Lines for which there is no room are lost, and counted. So are those
 * that clients, who need not be anybody's friends, cause in such numbers that they would
 * fill the filesystem that the log lies on.
 */
#include "log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stop.h"

#define LINE_SIZE 1024

/* A line each second, and so many more now and then. */
#define LINE_MS 1000
#define LINES_AT_ONCE 1000

/* How long to wait for a reader that is only slow; once, until it reads again. */
#define READER_MS 1000

/* Protects what follows. */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long lost_lines;

/* Up to when the seconds are used up: strangers leave those of clients alone. */
static int64_t used_up_ms[LOG_CAUSES] = { INT64_MIN, INT64_MIN, INT64_MIN };

/* A file, a terminal or a pipe that is writable has room for a line. */
static bool has_room(void)
{
	struct pollfd file = { .fd = STDERR_FILENO, .events = POLLOUT };

	return poll(&file, 1, lost_lines ? 0 : READER_MS) != 0;
}

static void write_bytes(const char *line, int length)
{
	/* Nothing can be done about a log that cannot be written. */
	if (write(STDERR_FILENO, line, length) < 0)
		return;
}

/* With log_lock. */
static void tell_lost(void)
{
	char line[LINE_SIZE];
	int length = snprintf(line, sizeof(line), "fleeced: %lu lines of the log were lost: nobody read them, or they were too many\n",
			      lost_lines);

	lost_lines = 0;
	write_bytes(line, length);
}

/* With log_lock. */
static bool is_in_time(enum log_cause cause)
{
	int64_t *used_up = &used_up_ms[cause];
	int64_t now = clock_ms();

	if (*used_up < now - LINES_AT_ONCE * LINE_MS)
		*used_up = now - LINES_AT_ONCE * LINE_MS;
	if (*used_up + LINE_MS > now)
		return false;
	*used_up += LINE_MS;
	return true;
}

/* With log_lock. */
static bool can_write(enum log_cause cause)
{
	if (cause != LOG_SERVER && !is_in_time(cause))
		return false;
	if (lost_lines && has_room())
		tell_lost();
	return !lost_lines && has_room();
}

void log_line(enum log_cause cause, const char *prefix, const char *format, ...)
{
	char line[LINE_SIZE];
	int used = snprintf(line, sizeof(line), "fleeced: %s", prefix);
	va_list arguments;
	int more;

	va_start(arguments, format);
	more = vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
	va_end(arguments);
	if (more < 0)
		return;
	used += more;
	if (used > LINE_SIZE - 2)
		used = LINE_SIZE - 2;
	line[used++] = '\n';
	pthread_mutex_lock(&log_lock);
	if (can_write(cause))
		write_bytes(line, used);
	else
		lost_lines++;
	pthread_mutex_unlock(&log_lock);
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
