/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, verbs: what main() can dispatch to. */
#ifndef FLEECE_VERBS_H
#define FLEECE_VERBS_H

#include <getopt.h>

#include "report.h"

#ifndef FLEECE_VERSION
#define FLEECE_VERSION	"0.1"
#endif

/**
 * struct verb - one verb of the command
 * @name: what is typed.
 * @run: gets the arguments after the verb, argv[0] being the verb.
 * @synopsis: its arguments.
 * @help: options and remarks; may be empty.
 */
struct verb {
	const char *name;
	enum status (*run)(int argc, char **argv);
	const char *synopsis;
	const char *help;
};

/**
 * verb_option() - next option of a verb, as getopt_long()
 * @argc: number of arguments.
 * @argv: the arguments.
 * @options: long options; their values are above 255.
 *
 * Help is printed and unknown options are reported here; both end the program.
 *
 * Return: value of the option, or -1 after the last one.
 */
int verb_option(int argc, char **argv, const struct option *options);

/**
 * verb_usage() - report a command line that makes no sense
 * @format: what is wrong.
 *
 * Return: USAGE.
 */
enum status verb_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * verb_end() - see to it that the output is written
 * @status: what the verb has returned.
 *
 * Return: @status, or FAILED, reported, when it was DONE and the output is lost.
 */
enum status verb_end(enum status status);

/**
 * verb_run() - run a verb
 * @verb: the verb.
 * @argc: number of arguments.
 * @argv: the arguments, argv[0] being the verb.
 *
 * Return: exit status of the program.
 */
enum status verb_run(const struct verb *verb, int argc, char **argv);

/* Both programs that know this verb print it. */
#define PULL_SYNOPSIS	"URI TARGET [--since CP [--backing FILE] | --replace]"

enum status verb_attach(int argc, char **argv);
enum status verb_detach(int argc, char **argv);
enum status verb_checkpoint(int argc, char **argv);
enum status verb_snapshot(int argc, char **argv);
enum status verb_remove(int argc, char **argv);
enum status verb_grow(int argc, char **argv);
enum status verb_release(int argc, char **argv);
enum status verb_list(int argc, char **argv);
enum status verb_status(int argc, char **argv);
enum status verb_map(int argc, char **argv);
enum status verb_wait(int argc, char **argv);
enum status verb_serve(int argc, char **argv);
enum status verb_pull(int argc, char **argv);
enum status verb_check(int argc, char **argv);
enum status verb_metadata(int argc, char **argv);

#endif
