// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, verb: what all verbs have in common: their options, their help, what is
 * said about a command line that makes no sense, and their end.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verbs.h"

static const struct verb *current;

int verb_option(int argc, char **argv, const struct option *options)
{
	int value;

	opterr = 0;
	value = getopt_long(argc, argv, ":h", options, NULL);
	if (value == 'h') {
		printf("usage: fleece %s %s\n%s", current->name, current->synopsis, current->help);
		exit(DONE);
	}
	if (value == ':')
		exit(verb_usage("%s needs a value", argv[optind - 1]));
	if (value == '?' && optopt > 0xff)
		exit(verb_usage("%s takes no value", argv[optind - 1]));
	if (value == '?')
		exit(verb_usage("unknown or ambiguous option %s", argv[optind - 1]));
	return value;
}

enum status verb_usage(const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return report(USAGE, NULL, "%s; try 'fleece %s%s--help'", text,
		      current ? current->name : "", current ? " " : "");
}

enum status verb_end(enum status status)
{
	if ((fflush(stdout) || ferror(stdout)) && status == DONE)
		return report(FAILED, NULL, "it is done, but the output cannot be written: %s",
			      strerror(errno));
	return status;
}

enum status verb_run(const struct verb *verb, int argc, char **argv)
{
	current = verb;
	report_verb(verb->name);
	return verb_end(verb->run(argc, argv));
}
