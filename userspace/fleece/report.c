// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, report: prints errors to stderr as "fleece: VERB: NAME: what: why;
 * hint" and turns errnos into exit statuses. Results of a verb go to stdout
 * and are not printed here.
 */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *current_verb;

void report_verb(const char *verb)
{
	current_verb = verb;
}

static void print_start(const char *name)
{
	fflush(stdout);
	fputs("fleece: ", stderr);
	if (current_verb)
		fprintf(stderr, "%s: ", current_verb);
	if (name)
		fprintf(stderr, "%s: ", name);
}

enum status report(enum status status, const char *name, const char *format, ...)
{
	va_list args;

	print_start(name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	return status;
}

enum status report_errno(int error, const char *name, const char *format, ...)
{
	va_list args;

	print_start(name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(abs(error)));
	return report_status_of(error);
}

void report_note(const char *name, const char *format, ...)
{
	va_list args;

	print_start(name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

enum status report_other(enum status status)
{
	return status == NO_DEVICE ? FAILED : status;
}

enum status report_status_of(int error)
{
	switch (abs(error)) {
	case ENXIO:
	case ENODEV:
	case ENOENT:
	case ENOTBLK:
		return NO_DEVICE;
	case EEXIST:
	case EBUSY:
		return BUSY;
	case EPERM:
	case EACCES:
		return NO_PERMISSION;
	default:
		return FAILED;
	}
}
