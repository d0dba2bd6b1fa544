// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, main: the verb `pull` of fleece(8), as a program of its own: it
 * needs libnbd, and neither root nor the module, so that it also runs where the
 * backups are kept, and the command fleece where there is no libnbd.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "plan.h"
#include "qcow2.h"
#include "size.h"
#include "source.h"
#include "standard_files.h"
#include "status.h"
#include "target.h"
#include "transfer.h"
#include "verbs.h"

#define CONNECTIONS_MAX		64

struct pull {
	const char *uri;
	const char *path;
	const char *checkpoint;
	unsigned int connections;
	const char *backing;
	bool replace;
	bool is_qcow2;
	bool is_json;
	/* The format was named, and is not for the target's name to tell. */
	bool has_format;
};

static const struct verb verb = {
	"pull", verb_pull, PULL_SYNOPSIS,
	"Copies an NBD export into a raw file, a qcow2 image or a block device: all of it, or\n"
	"with --since only what changed since a checkpoint, into the backup made at that\n"
	"checkpoint, or into a new image above it. The export NAME+release of fleeced is\n"
	"released as it goes.\n"
	"  --since CP          what changed since this checkpoint; without its dirty bitmap\n"
	"                      nothing is written and the exit status is 7\n"
	"  --backing FILE      with --since: the backup made at that checkpoint, which is left as\n"
	"                      it is; TARGET becomes a new qcow2 image above it\n"
	"  --format FORMAT     raw or qcow2 (default: qcow2 if the name of TARGET ends in .qcow2)\n"
	"  --replace           a full backup may replace a file, once it is complete\n"
	"  --connections N     at most so many, 1 to 64 (default 4)\n"
	"  --json              for programs\n"
};

static enum status check_plan(const struct pull *pull, const struct plan *plan)
{
	if (!plan->bytes[PLAN_DENIED])
		return DONE;
	return report(FAILED, pull->uri,
		      "%llu bytes of what is needed cannot be read, the first at offset %llu: the snapshot is limited to what changed%s, or they were released, or lost when a copy failed",
		      (unsigned long long)plan->bytes[PLAN_DENIED],
		      (unsigned long long)plan->first_denied,
		      pull->checkpoint ? " since a later checkpoint" : " (use --since)");
}

static void print_json(const struct pull *pull, const struct source *source,
		       const struct plan *plan, uint64_t released)
{
	struct fleece_json json = { .out = stdout };

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_string(&json, "target", pull->path);
	fleece_json_string(&json, "format", pull->is_qcow2 ? QCOW2_FORMAT : RAW_FORMAT);
	fleece_json_string(&json, "backing", pull->backing);
	fleece_json_string(&json, "since", pull->checkpoint);
	fleece_json_string(&json, "description", source->description);
	fleece_json_number(&json, "size_bytes", source->size);
	fleece_json_number(&json, "read_bytes", plan->bytes[PLAN_READ]);
	fleece_json_number(&json, "zero_bytes", plan->bytes[PLAN_ZERO]);
	fleece_json_number(&json, "unchanged_bytes", plan->bytes[PLAN_UNCHANGED]);
	fleece_json_number(&json, "released_bytes", released);
	fleece_json_object_end(&json);
}

static void print_result(const struct pull *pull, const struct source *source,
			 const struct plan *plan, uint64_t released)
{
	char text[5][FLEECE_SIZE_TEXT];

	if (pull->is_json) {
		print_json(pull, source, plan, released);
		return;
	}
	printf("%s  %s: %s read, %s known to be zero, %s unchanged", pull->path,
	       fleece_size_format(text[0], source->size),
	       fleece_size_format(text[1], plan->bytes[PLAN_READ]),
	       fleece_size_format(text[2], plan->bytes[PLAN_ZERO]),
	       fleece_size_format(text[3], plan->bytes[PLAN_UNCHANGED]));
	if (source->can_release)
		printf(", %s released", fleece_size_format(text[4], released));
	putchar('\n');
}

static enum status fill_target(const struct pull *pull, struct source *source,
			       const struct plan *plan, uint64_t *released)
{
	struct target_how how = {
		.size = source->size,
		.must_exist = pull->checkpoint && !pull->backing,
		.replace = pull->replace,
		.is_qcow2 = pull->is_qcow2,
		.backing = pull->backing,
	};
	struct target target;
	enum status status;

	status = target_open(&target, pull->path, &how);
	if (status != DONE)
		return status;
	status = transfer_run(source, plan, &target, pull->connections, released);
	if (status == DONE)
		return target_finish(&target);
	target_abandon(&target);
	return status;
}

static enum status pull_export(const struct pull *pull)
{
	struct plan plan = { 0 };
	struct source source;
	uint64_t released = 0;
	enum status status;

	status = source_open(&source, pull->uri, pull->checkpoint);
	if (status == DONE)
		status = source_plan(&source, &plan);
	if (status == DONE)
		status = check_plan(pull, &plan);
	if (status == DONE) {
		transfer_catch_signals();
		status = fill_target(pull, &source, &plan, &released);
	}
	if (status == DONE)
		print_result(pull, &source, &plan, released);
	plan_release(&plan);
	source_close(&source);
	return status;
}

static enum status parse_connections(const char *text, unsigned int *connections)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || !value || value > CONNECTIONS_MAX)
		return verb_usage("--connections needs a number from 1 to %d", CONNECTIONS_MAX);
	*connections = (unsigned int)value;
	return DONE;
}

static enum status parse_format(const char *text, struct pull *pull)
{
	pull->is_qcow2 = !strcmp(text, QCOW2_FORMAT);
	pull->has_format = true;
	if (!pull->is_qcow2 && strcmp(text, RAW_FORMAT))
		return verb_usage("--format needs raw or qcow2, not '%s'", text);
	return DONE;
}

enum option_value { SINCE = 256, BACKING, FORMAT, REPLACE, CONNECTIONS, JSON };

static enum status parse_option(int option, struct pull *pull)
{
	switch (option) {
	case SINCE:
		pull->checkpoint = optarg;
		if (!fleece_name_is_valid(optarg))
			return verb_usage("'%s' cannot be the name of a checkpoint", optarg);
		return DONE;
	case BACKING:
		pull->backing = optarg;
		return DONE;
	case FORMAT:
		return parse_format(optarg, pull);
	case REPLACE:
		pull->replace = true;
		return DONE;
	case CONNECTIONS:
		return parse_connections(optarg, &pull->connections);
	default:
		pull->is_json = true;
		return DONE;
	}
}

/* Do the options make sense together? */
static enum status check_options(const struct pull *pull)
{
	if (pull->checkpoint && pull->replace)
		return verb_usage("--since brings an earlier backup up to date, --replace makes a new one");
	if (pull->backing && !pull->checkpoint)
		return verb_usage("--backing names the backup made at a checkpoint: --since is needed");
	if (pull->backing && !pull->is_qcow2)
		return verb_usage("--backing needs a TARGET whose name ends in .qcow2, or --format qcow2");
	return DONE;
}

enum status verb_pull(int argc, char **argv)
{
	static const struct option options[] = {
		{ "since", required_argument, NULL, SINCE },
		{ "backing", required_argument, NULL, BACKING },
		{ "format", required_argument, NULL, FORMAT },
		{ "replace", no_argument, NULL, REPLACE },
		{ "connections", required_argument, NULL, CONNECTIONS },
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct pull pull = { .connections = 4 };
	enum status status = DONE;
	int option;

	while (status == DONE && (option = verb_option(argc, argv, options)) >= 0)
		status = parse_option(option, &pull);
	if (status != DONE)
		return status;
	if (argc - optind != 2)
		return verb_usage("a URI and a TARGET are needed");
	pull.uri = argv[optind];
	pull.path = argv[optind + 1];
	if (!pull.has_format)
		pull.is_qcow2 = qcow2_is_name(pull.path);
	status = check_options(&pull);
	return status == DONE ? pull_export(&pull) : status;
}

int main(int argc, char **argv)
{
	/* Who has started us may ignore it; then no child could be waited for. */
	signal(SIGCHLD, SIG_DFL);
	if (fleece_fill_standard_files())
		return FAILED;
	return verb_run(&verb, argc, argv);
}
