// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, show: lists origins and snapshots, shows one in detail, and waits
 * for a state. All of it is read from the kernel at that moment.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checkpoint.h"
#include "cow.h"
#include "device.h"
#include "json.h"
#include "size.h"
#include "verbs.h"

#define WAIT_STEP_MS		200
/* Thirty years. */
#define LIMIT_MAX_S		1000000000ULL

/* Everything of ours that the kernel has. */
struct inventory {
	struct origin *origins;
	size_t origin_count;
	struct snapshot *snapshots;
	size_t snapshot_count;
};

static void free_inventory(struct inventory *all)
{
	free(all->origins);
	free(all->snapshots);
}

/* Add the device if it is ours; one that goes away meanwhile is none. */
static int add_device(struct inventory *all, const struct fleece_dm_info *info)
{
	struct snapshot snapshot, *snapshots;
	struct origin origin, *origins;

	if (!origin_read(info, &origin)) {
		origins = reallocarray(all->origins, all->origin_count + 1, sizeof(*origins));
		if (!origins)
			return -ENOMEM;
		all->origins = origins;
		all->origins[all->origin_count++] = origin;
	} else if (!snapshot_read(info, &snapshot)) {
		snapshots = reallocarray(all->snapshots, all->snapshot_count + 1,
					 sizeof(*snapshots));
		if (!snapshots)
			return -ENOMEM;
		all->snapshots = snapshots;
		all->snapshots[all->snapshot_count++] = snapshot;
	}
	return 0;
}

static int read_inventory(struct inventory *all)
{
	struct fleece_dm_info info;
	size_t count, i;
	char **names;
	int ret;

	memset(all, 0, sizeof(*all));
	ret = fleece_dm_list(&names, &count);
	if (ret)
		return ret;
	for (i = 0; i < count && !ret; i++)
		if (!fleece_dm_info(names[i], &info))
			ret = add_device(all, &info);
	fleece_dm_list_free(names, count);
	if (ret)
		free_inventory(all);
	return ret;
}

/* Name of the origin of a snapshot, NULL if it is gone. */
static const char *origin_name(const struct inventory *all, const struct snapshot *snapshot)
{
	size_t i;

	for (i = 0; i < all->origin_count; i++)
		if (all->origins[i].lower == snapshot->lower)
			return all->origins[i].dm.name;
	return NULL;
}

static uint64_t changed_bytes(const struct origin *origin)
{
	return origin_bytes(origin, origin->status.changed_granules);
}

/* All zero if there is none, or the origin has gone meanwhile. */
static void read_metadata(const struct origin *origin, struct fleece_metadata_status *status)
{
	char *reply = NULL;

	if (fleece_dm_message(origin->dm.name, "metadata_status", &reply) || !reply ||
	    fleece_metadata_status_parse(reply, status))
		memset(status, 0, sizeof(*status));
	free(reply);
}

static unsigned int percent(uint64_t part, uint64_t whole)
{
	return whole ? (unsigned int)(part * 100 / whole) : 0;
}

/* False as well when it is gone by now. */
static bool newest_is_valid(const struct origin *origin)
{
	return origin->status.newest[0] && checkpoint_is_valid(origin, origin->status.newest);
}

static void json_origin(struct fleece_json *json, const struct origin *origin)
{
	struct fleece_metadata_status metadata;
	char path[PATH_MAX];

	read_metadata(origin, &metadata);
	fleece_json_object(json, NULL);
	fleece_json_string(json, "name", origin->dm.name);
	snprintf(path, sizeof(path), "/dev/mapper/%s", origin->dm.name);
	fleece_json_string(json, "device", path);
	fleece_json_string(json, "uuid", origin->dm.uuid);
	fleece_json_string(json, "lower_device", device_path(path, sizeof(path), origin->lower));
	fleece_json_number(json, "size_bytes", origin->size);
	fleece_json_number(json, "granularity_bytes", origin->status.granularity);
	fleece_json_number(json, "changed_bytes", changed_bytes(origin));
	fleece_json_string(json, "metadata", origin->status.metadata);
	fleece_json_number(json, "metadata_error", (uint64_t)metadata.error);
	fleece_json_number(json, "metadata_bad_sectors", metadata.bad_sectors);
	fleece_json_number(json, "metadata_written_bytes", metadata.written_bytes);
	fleece_json_number(json, "metadata_grants", metadata.grants);
	fleece_json_number(json, "snapshots", origin->status.snapshots);
	fleece_json_number(json, "checkpoints", origin->status.checkpoints);
	fleece_json_string(json, "newest_checkpoint",
			   origin->status.newest[0] ? origin->status.newest : NULL);
	fleece_json_bool(json, "newest_is_valid", newest_is_valid(origin));
	fleece_json_bool(json, "suspended", origin->dm.is_suspended);
	fleece_json_object_end(json);
}

static void json_snapshot(struct fleece_json *json, const char *key, const struct inventory *all,
			  const struct snapshot *snapshot)
{
	const struct fleece_snapshot_status *status = &snapshot->status;
	char path[PATH_MAX];

	fleece_json_object(json, key);
	fleece_json_string(json, "name", snapshot->dm.name);
	snprintf(path, sizeof(path), "/dev/mapper/%s", snapshot->dm.name);
	fleece_json_string(json, "device", path);
	fleece_json_string(json, "uuid", snapshot->dm.uuid);
	fleece_json_string(json, "origin", origin_name(all, snapshot));
	fleece_json_string(json, "since", snapshot->since[0] ? snapshot->since : NULL);
	fleece_json_string(json, "state", status->is_broken ? "broken" : "active");
	fleece_json_number(json, "size_bytes", snapshot->size);
	fleece_json_number(json, "cluster_bytes", snapshot->cluster);
	fleece_json_string(json, "cow_device", device_path(path, sizeof(path), snapshot->cow));
	fleece_json_string(json, "cow_kind", cow_kind_name(cow_kind_of(snapshot->dm.uuid)));
	fleece_json_number(json, "cow_used_bytes", status->used_slots * snapshot->cluster);
	fleece_json_number(json, "cow_total_bytes", status->total_slots * snapshot->cluster);
	fleece_json_number(json, "accessible_clusters", status->accessible_clusters);
	fleece_json_number(json, "total_clusters", status->total_clusters);
	fleece_json_number(json, "copied_clusters", status->copied_clusters);
	fleece_json_number(json, "released_clusters", status->released_clusters);
	fleece_json_number(json, "lost_clusters", status->lost_clusters);
	fleece_json_number(json, "staged_bytes", status->staged_bytes);
	fleece_json_number(json, "waiting_writes", status->waiting_writes);
	fleece_json_number(json, "error", (uint64_t)status->error);
	fleece_json_number(json, "error_sector", status->error_sector);
	fleece_json_object_end(json);
}

/* All devices, or only @name. */
static void print_json(const struct inventory *all, const char *name)
{
	struct fleece_json json = { .out = stdout };
	size_t i;

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_array(&json, "origins");
	for (i = 0; i < all->origin_count; i++)
		if (!name || !strcmp(name, all->origins[i].dm.name))
			json_origin(&json, &all->origins[i]);
	fleece_json_array_end(&json);
	fleece_json_array(&json, "snapshots");
	for (i = 0; i < all->snapshot_count; i++)
		if (!name || !strcmp(name, all->snapshots[i].dm.name))
			json_snapshot(&json, NULL, all, &all->snapshots[i]);
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
}

static void print_list(const struct inventory *all)
{
	char size[FLEECE_SIZE_TEXT], bytes[FLEECE_SIZE_TEXT];
	size_t i;

	printf("%-24s %-8s %-8s %9s %9s %5s  %s\n", "NAME", "KIND", "STATE", "SIZE", "CHANGED",
	       "COW", "OF");
	for (i = 0; i < all->origin_count; i++) {
		const struct origin *origin = &all->origins[i];
		char path[PATH_MAX];

		printf("%-24s %-8s %-8s %9s %9s %5s  %s\n", origin->dm.name, "origin",
		       origin->dm.is_suspended ? "held" : "tracking",
		       fleece_size_format(size, origin->size),
		       origin->status.checkpoints ?
		       fleece_size_format(bytes, changed_bytes(origin)) : "-", "-",
		       device_path(path, sizeof(path), origin->lower));
	}
	for (i = 0; i < all->snapshot_count; i++) {
		const struct snapshot *snapshot = &all->snapshots[i];
		const char *origin = origin_name(all, snapshot);

		printf("%-24s %-8s %-8s %9s %9s %4u%%  %s\n", snapshot->dm.name, "snapshot",
		       snapshot->status.is_broken ? "broken" : "active",
		       fleece_size_format(size, snapshot->size), "-",
		       percent(snapshot->status.used_slots, snapshot->status.total_slots),
		       origin ? origin : "(gone)");
	}
}

static void print_metadata(const struct origin *origin)
{
	struct fleece_metadata_status metadata;

	read_metadata(origin, &metadata);
	printf("  metadata      %s", origin->status.metadata);
	if (metadata.error)
		printf(" (%s)", strerror(metadata.error));
	if (metadata.bad_sectors)
		printf(", %u bad sectors count as changed", metadata.bad_sectors);
	printf("\n");
}

static void print_origin(const struct origin *origin)
{
	char size[FLEECE_SIZE_TEXT], path[PATH_MAX];

	printf("%s: origin\n", origin->dm.name);
	printf("  device        /dev/mapper/%s on %s\n", origin->dm.name,
	       device_path(path, sizeof(path), origin->lower));
	printf("  size          %s\n", fleece_size_format(size, origin->size));
	printf("  granularity   %s\n", fleece_size_format(size, origin->status.granularity));
	print_metadata(origin);
	printf("  checkpoints   %u\n", origin->status.checkpoints);
	if (origin->status.newest[0])
		printf("  changed       %s since %s%s\n",
		       fleece_size_format(size, changed_bytes(origin)), origin->status.newest,
		       newest_is_valid(origin) ? "" : ", which is invalid: make a full backup");
	printf("  snapshots     %u\n", origin->status.snapshots);
}

static void print_snapshot(const struct inventory *all, const struct snapshot *snapshot)
{
	const struct fleece_snapshot_status *status = &snapshot->status;
	char one[FLEECE_SIZE_TEXT], two[FLEECE_SIZE_TEXT], path[PATH_MAX];
	const char *origin = origin_name(all, snapshot);

	printf("%s: snapshot of %s, %s\n", snapshot->dm.name, origin ? origin : "(gone)",
	       status->is_broken ? "broken" : "active");
	if (status->error)
		printf("  error         %s at sector %llu\n", snapshot_error(snapshot),
		       (unsigned long long)status->error_sector);
	printf("  device        /dev/mapper/%s\n", snapshot->dm.name);
	printf("  size          %s\n", fleece_size_format(one, snapshot->size));
	printf("  cluster       %s\n", fleece_size_format(one, snapshot->cluster));
	printf("  COW space     %s of %s used (%u%%) on %s (%s)\n",
	       fleece_size_format(one, status->used_slots * snapshot->cluster),
	       fleece_size_format(two, status->total_slots * snapshot->cluster),
	       percent(status->used_slots, status->total_slots),
	       device_path(path, sizeof(path), snapshot->cow),
	       cow_kind_name(cow_kind_of(snapshot->dm.uuid)));
	printf("  accessible    %llu of %llu clusters%s%s\n",
	       (unsigned long long)status->accessible_clusters,
	       (unsigned long long)status->total_clusters,
	       snapshot->since[0] ? ", what changed since " : "", snapshot->since);
	printf("  clusters      %llu copied, %llu released, %llu lost\n",
	       (unsigned long long)status->copied_clusters,
	       (unsigned long long)status->released_clusters,
	       (unsigned long long)status->lost_clusters);
	printf("  staged        %s\n", fleece_size_format(one, status->staged_bytes));
	printf("  waiting       %llu writes\n", (unsigned long long)status->waiting_writes);
}

static void print_details(const struct inventory *all, const char *name)
{
	size_t i;

	for (i = 0; i < all->origin_count; i++)
		if (!name || !strcmp(name, all->origins[i].dm.name))
			print_origin(&all->origins[i]);
	for (i = 0; i < all->snapshot_count; i++)
		if (!name || !strcmp(name, all->snapshots[i].dm.name))
			print_snapshot(all, &all->snapshots[i]);
}

/* NO_DEVICE if @name is not ours, BROKEN if it is a broken snapshot. */
static enum status judge(const struct inventory *all, const char *text, const char *name)
{
	size_t i;

	for (i = 0; i < all->origin_count; i++)
		if (!strcmp(name, all->origins[i].dm.name))
			return DONE;
	for (i = 0; i < all->snapshot_count; i++)
		if (!strcmp(name, all->snapshots[i].dm.name))
			return all->snapshots[i].status.is_broken ? BROKEN : DONE;
	return report(NO_DEVICE, text, "is neither an origin nor a snapshot");
}

static enum status parse_show(int argc, char **argv, int names_max, bool *is_json)
{
	enum { JSON = 256 };
	static const struct option options[] = {
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};

	*is_json = false;
	while (verb_option(argc, argv, options) >= 0)
		*is_json = true;
	if (argc - optind > names_max)
		return verb_usage("unexpected argument '%s'", argv[optind + names_max]);
	return device_start(NULL);
}

enum status verb_list(int argc, char **argv)
{
	struct inventory all;
	bool is_json;
	enum status status = parse_show(argc, argv, 0, &is_json);
	int ret;

	if (status != DONE)
		return status;
	ret = read_inventory(&all);
	if (ret)
		return report_errno(ret, NULL, "cannot list the devices");
	if (is_json)
		print_json(&all, NULL);
	else
		print_list(&all);
	free_inventory(&all);
	return DONE;
}

enum status verb_status(int argc, char **argv)
{
	struct fleece_dm_info info;
	struct inventory all;
	bool is_json;
	enum status status = parse_show(argc, argv, 1, &is_json);
	const char *name = NULL;
	int ret;

	if (status == DONE && optind < argc) {
		status = device_find(argv[optind], &info);
		name = info.name;
	}
	if (status != DONE)
		return status;
	ret = read_inventory(&all);
	if (ret)
		return report_errno(ret, NULL, "cannot list the devices");
	if (name)
		status = judge(&all, argv[optind], name);
	if (status != NO_DEVICE && is_json)
		print_json(&all, name);
	else if (status != NO_DEVICE)
		print_details(&all, name);
	free_inventory(&all);
	return status;
}

/*
 * struct condition - what is waited for
 * @on_broken: the snapshot is broken.
 * @on_full, @full_percent: so much of its COW space is in use.
 * @limit_ms: longest wait; 0: none.
 */
struct condition {
	bool on_broken;
	bool on_full;
	unsigned int full_percent;
	uint64_t limit_ms;
};

static enum status parse_condition(const char *text, struct condition *condition)
{
	if (!strcmp(text, "broken")) {
		condition->on_broken = true;
		return DONE;
	}
	if (!device_has_prefix(text, "full=") ||
	    fleece_percent_parse(text + strlen("full="), &condition->full_percent))
		return verb_usage("'%s' is neither full=N%% nor broken", text);
	condition->on_full = true;
	return DONE;
}

/* @reason and @snapshot are set unless it cannot be looked at. */
static enum status wait_for(const char *text, const struct condition *condition,
			    struct snapshot *snapshot, const char **reason)
{
	const struct timespec step = { .tv_nsec = WAIT_STEP_MS * 1000000L };
	const struct fleece_snapshot_status *now = &snapshot->status;
	enum status status;
	uint64_t waited;

	for (waited = 0;; waited += WAIT_STEP_MS) {
		status = device_snapshot(text, snapshot);
		if (status != DONE)
			return status;
		*reason = "broken";
		if (now->is_broken && condition->on_broken)
			return DONE;
		if (now->is_broken)
			return report(BROKEN, text, "broke meanwhile (%s)",
				      snapshot_error(snapshot));
		*reason = "full";
		if (condition->on_full &&
		    percent(now->used_slots, now->total_slots) >= condition->full_percent)
			return DONE;
		*reason = "timeout";
		if (condition->limit_ms && waited >= condition->limit_ms)
			return report(FAILED, text, "did not happen in time");
		*reason = NULL;
		nanosleep(&step, NULL);
	}
}

/* Why a wait has ended, and what the snapshot was like then. */
static enum status print_end(const char *reason, const struct snapshot *snapshot)
{
	struct fleece_json json = { .out = stdout };
	struct inventory all;
	int ret = read_inventory(&all);

	if (ret)
		return report_errno(ret, NULL, "cannot list the devices");
	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_string(&json, "reason", reason);
	json_snapshot(&json, "snapshot", &all, snapshot);
	fleece_json_object_end(&json);
	free_inventory(&all);
	return DONE;
}

static enum status parse_limit(const char *text, uint64_t *limit_ms)
{
	char *end;
	unsigned long long seconds = strtoull(text, &end, 10);

	if (!seconds || seconds > LIMIT_MAX_S || *end || *text < '0' || *text > '9')
		return verb_usage("'%s' is not a number of seconds from 1 to %llu", text,
				  LIMIT_MAX_S);
	*limit_ms = seconds * 1000;
	return DONE;
}

static enum status parse_wait(int argc, char **argv, struct condition *condition, bool *is_json)
{
	enum { FOR = 256, TIMEOUT, JSON };
	static const struct option options[] = {
		{ "for", required_argument, NULL, FOR },
		{ "timeout", required_argument, NULL, TIMEOUT },
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	enum status status = DONE;
	int option;

	while (status == DONE && (option = verb_option(argc, argv, options)) >= 0) {
		if (option == FOR)
			status = parse_condition(optarg, condition);
		else if (option == TIMEOUT)
			status = parse_limit(optarg, &condition->limit_ms);
		else
			*is_json = true;
	}
	if (status != DONE)
		return status;
	if (argc - optind != 1)
		return verb_usage("exactly one SNAPSHOT is needed");
	if (!condition->on_broken && !condition->on_full)
		return verb_usage("--for full=N%% or --for broken is needed");
	return device_start(NULL);
}

enum status verb_wait(int argc, char **argv)
{
	struct condition condition = { 0 };
	struct snapshot snapshot;
	const char *reason = NULL;
	bool is_json = false;
	enum status status = parse_wait(argc, argv, &condition, &is_json);
	enum status printed = DONE;

	if (status != DONE)
		return status;
	status = wait_for(argv[optind], &condition, &snapshot, &reason);
	if (is_json && reason)
		printed = print_end(reason, &snapshot);
	return status == DONE ? printed : status;
}
