// SPDX-License-Identifier: GPL-2.0-only
/* fleece, snapshot_request: see snapshot_request.h. Nothing is asked of the kernel here. */
#include "snapshot_request.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "size.h"
#include "verbs.h"
#include "window.h"

#define DEFAULT_PERCENT		20
#define DEFAULT_CLUSTER		(64ULL << 10)

enum option_value {
	COW = 256, COW_SIZE, COW_KIND, COW_DIR, CLUSTER, SINCE, CHECKPOINT, ON_ERROR, TIMEOUT,
	ON_FULL, LOW_WATER, STAGING, RELEASE, LIMIT, JSON, NAME, FORCE,
};

static const struct option options[] = {
	{ "name", required_argument, NULL, NAME },
	{ "cow", required_argument, NULL, COW },
	{ "force", no_argument, NULL, FORCE },
	{ "cow-size", required_argument, NULL, COW_SIZE },
	{ "cow-kind", required_argument, NULL, COW_KIND },
	{ "cow-dir", required_argument, NULL, COW_DIR },
	{ "cluster", required_argument, NULL, CLUSTER },
	{ "since", required_argument, NULL, SINCE },
	{ "checkpoint", required_argument, NULL, CHECKPOINT },
	{ "on-cbw-error", required_argument, NULL, ON_ERROR },
	{ "cbw-timeout", required_argument, NULL, TIMEOUT },
	{ "on-cow-full", required_argument, NULL, ON_FULL },
	{ "low-water", required_argument, NULL, LOW_WATER },
	{ "staging", required_argument, NULL, STAGING },
	{ "release-on-discard", no_argument, NULL, RELEASE },
	{ "freeze-timeout", required_argument, NULL, LIMIT },
	{ "json", no_argument, NULL, JSON },
	{ "help", no_argument, NULL, 'h' },
	{ 0 },
};

static enum status parse_cow_size(struct snapshot_request *request)
{
	size_t length = strlen(optarg);

	request->percent = 0;
	if (length && optarg[length - 1] == '%') {
		if (fleece_percent_parse(optarg, &request->percent) || !request->percent)
			return verb_usage("'%s' is not a percentage from 1%% to 100%%", optarg);
		return DONE;
	}
	if (fleece_size_parse(optarg, &request->cow.bytes) || !request->cow.bytes)
		return verb_usage("'%s' is not a size", optarg);
	return DONE;
}

static enum status parse_policy(const char *option, const char *const *values, const char **policy)
{
	for (; *values; values++) {
		if (!strcmp(optarg, *values)) {
			*policy = *values;
			return DONE;
		}
	}
	return verb_usage("'%s' is no value of %s", optarg, option);
}

/* The module has 32 bits for it. */
static bool is_number(const char *text)
{
	size_t digits = strspn(text, "0123456789");

	return digits && !text[digits] && digits < 19 && strtoull(text, NULL, 10) <= UINT_MAX;
}

static enum status parse_names(const char *text, const char **name)
{
	if (!fleece_name_is_valid(text))
		return verb_usage("'%s' cannot be the name of a checkpoint", text);
	*name = text;
	return DONE;
}

static enum status parse_numbers(int option, struct snapshot_request *request)
{
	if (option == CLUSTER) {
		if (fleece_size_parse(optarg, &request->cluster) ||
		    !device_unit_is_valid(request->cluster))
			return verb_usage("the cluster must be a power of two from 4K to 16M");
	} else if (option == STAGING) {
		if (fleece_size_parse(optarg, &request->staging) ||
		    request->staging % SECTOR_SIZE || request->staging / SECTOR_SIZE > UINT_MAX)
			return verb_usage("'%s' is not a size in whole sectors, or too large",
					  optarg);
		request->has_staging = true;
	} else if (option == TIMEOUT || option == LOW_WATER) {
		if (!is_number(optarg))
			return verb_usage("'%s' is not a number from 0 to %u", optarg, UINT_MAX);
		*(option == TIMEOUT ? &request->timeout_ms : &request->low_water) = optarg;
	} else if (window_limit_parse(optarg, &request->limit_ms)) {
		return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
	}
	return DONE;
}

static enum status parse_option(int option, struct snapshot_request *request)
{
	static const char *const on_error[] = {
		"break_snapshot", "break_cluster", "break_write", NULL
	};
	static const char *const on_full[] = { "break", "wait", NULL };

	switch (option) {
	case NAME:
		if (!fleece_name_is_valid(optarg))
			return verb_usage("'%s' cannot be the name of a snapshot", optarg);
		request->snapshots[request->snapshot_count++] = optarg;
		return DONE;
	case COW:
		request->devices[request->device_count++] = optarg;
		return DONE;
	case FORCE:
		request->cow.is_forced = true;
		return DONE;
	case COW_SIZE:
		return parse_cow_size(request);
	case COW_KIND:
		if (cow_kind_parse(optarg, &request->cow.kind))
			return verb_usage("'%s' is none of lvm, zram and file", optarg);
		return DONE;
	case COW_DIR:
		request->cow.dir = optarg;
		return DONE;
	case SINCE:
		return parse_names(optarg, &request->since);
	case CHECKPOINT:
		return parse_names(optarg, &request->checkpoint);
	case ON_ERROR:
		return parse_policy("--on-cbw-error", on_error, &request->on_error);
	case ON_FULL:
		return parse_policy("--on-cow-full", on_full, &request->on_full);
	case RELEASE:
		request->is_releasing = true;
		return DONE;
	case JSON:
		request->is_json = true;
		return DONE;
	default:
		return parse_numbers(option, request);
	}
}

static enum status parse(int argc, char **argv, struct snapshot_request *request)
{
	enum status status;
	bool has_size = false;
	int option;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		has_size |= option == COW_SIZE || option == COW_KIND || option == COW_DIR;
		status = parse_option(option, request);
		if (status != DONE)
			return status;
	}
	request->names = argv + optind;
	request->count = (size_t)(argc - optind);
	if (!request->count)
		return verb_usage("at least one NAME is needed");
	if (request->device_count && has_size)
		return verb_usage("--cow names a device, so --cow-size, --cow-kind and --cow-dir make no sense");
	if (request->cow.is_forced && !request->device_count)
		return verb_usage("--force goes with --cow");
	if (request->device_count && request->device_count != request->count)
		return verb_usage("%zu origins need as many --cow, not %zu", request->count,
				  request->device_count);
	if (request->snapshot_count && request->snapshot_count != request->count)
		return verb_usage("%zu origins need as many --name, not %zu", request->count,
				  request->snapshot_count);
	if (request->cow.dir && request->cow.kind != COW_AUTO && request->cow.kind != COW_FILE)
		return verb_usage("--cow-dir goes with --cow-kind file");
	return DONE;
}

enum status snapshot_request_parse(int argc, char **argv, struct snapshot_request *request)
{
	*request = (struct snapshot_request){
		.percent = DEFAULT_PERCENT,
		.cluster = DEFAULT_CLUSTER,
		.limit_ms = WINDOW_LIMIT_MS,
		.devices = calloc((size_t)argc, sizeof(*request->devices)),
		.snapshots = calloc((size_t)argc, sizeof(*request->snapshots)),
	};
	if (!request->devices || !request->snapshots)
		return report_errno(ENOMEM, NULL, "cannot prepare");
	return parse(argc, argv, request);
}

void snapshot_request_free(struct snapshot_request *request)
{
	free(request->devices);
	free(request->snapshots);
}
