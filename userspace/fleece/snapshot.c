// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, snapshot: takes snapshots of one or several origins at one moment.
 * Everything that can fail for a reason known beforehand is checked, made and
 * loaded before the origins are suspended; window.c does the rest. If anything
 * fails, every snapshot is removed again and the COW space made for it freed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "change.h"
#include "checkpoint.h"
#include "cow.h"
#include "device.h"
#include "json.h"
#include "size.h"
#include "snapshot_request.h"
#include "verbs.h"
#include "window.h"

/* COW devices are made in units of a page. */
#define COW_UNIT		4096ULL

/**
 * struct member - one origin and its new snapshot
 * @origin: the origin.
 * @name: the snapshot's name.
 * @cow: its COW device.
 * @has_cow: @cow was made.
 * @is_created: the snapshot's device exists.
 */
struct member {
	struct origin origin;
	char name[DM_NAME_LEN + sizeof(SNAPSHOT_SUFFIX)];
	struct cow cow;
	bool has_cow;
	bool is_created;
};

static enum status name_snapshot(const struct snapshot_request *request, size_t index,
				 struct member *member)
{
	const char *name = member->origin.dm.name;
	struct fleece_dm_info info;

	if (request->snapshot_count)
		snprintf(member->name, sizeof(member->name), "%s", request->snapshots[index]);
	else
		snprintf(member->name, sizeof(member->name), "%s" SNAPSHOT_SUFFIX, name);
	if (strlen(member->name) >= DM_NAME_LEN)
		return report(FAILED, name, "its name is too long for %s; choose one with --name",
			      member->name);
	if (!fleece_dm_info(member->name, &info))
		return report(BUSY, member->name, "exists already; %schoose another name with --name",
			      device_has_prefix(info.uuid, SNAPSHOT_UUID) ?
			      "remove it with 'fleece remove', or " : "");
	return DONE;
}

static enum status check_origin(const struct snapshot_request *request, struct member *member)
{
	struct fleece_checkpoint_line found;
	const char *name = member->origin.dm.name;
	char path[PATH_MAX];

	if (member->origin.dm.is_suspended || member->origin.dm.has_inactive)
		return report(BUSY, name, "is being changed by somebody else; try again later, or 'fleece check'");
	if (device_bypass(&member->origin, path))
		return report(BUSY, name,
			      "%s uses its lower device past it: what that writes is neither copied nor tracked; see 'LVM' in fleece(8)",
			      path);
	if (request->checkpoint && checkpoint_exists(&member->origin, request->checkpoint))
		return checkpoint_report(-EEXIST, name, request->checkpoint);
	if (request->since)
		return checkpoint_find(&member->origin, request->since, &found);
	return DONE;
}

/*
 * Its commit, and the flush of the lower device before, come while all are suspended: they
 * would wait for that to end.
 */
static bool is_held_by(const struct origin *origin, const struct origin *base)
{
	return device_depends(origin->metadata, base->dm.devno) ||
	       device_depends(origin->lower, base->dm.devno);
}

static enum status check_durable(const struct member *members, size_t count)
{
	size_t i, j;

	for (i = 0; i < count; i++) {
		const struct origin *origin = &members[i].origin;

		for (j = 0; origin->metadata && j < count; j++)
			if (j != i && is_held_by(origin, &members[j].origin))
				return report(FAILED, origin->dm.name,
					      "it or its metadata lies on %s, which is suspended for the same snapshot, so the checkpoint cannot become durable; take one after the other",
					      members[j].origin.dm.name);
	}
	return DONE;
}

static enum status find_origins(const struct snapshot_request *request, struct member *members)
{
	enum status status;
	size_t i, j;

	for (i = 0; i < request->count; i++) {
		status = device_origin(request->names[i], &members[i].origin);
		if (status != DONE)
			return status;
		for (j = 0; j < i; j++)
			if (members[j].origin.dm.devno == members[i].origin.dm.devno)
				return verb_usage("%s is named twice", request->names[i]);
		status = check_origin(request, &members[i]);
		if (status == DONE)
			status = name_snapshot(request, i, &members[i]);
		if (status != DONE)
			return status;
		for (j = 0; j < i; j++)
			if (!strcmp(members[j].name, members[i].name))
				return verb_usage("two snapshots would be named %s",
						  members[i].name);
	}
	return request->checkpoint ? check_durable(members, request->count) : DONE;
}

static enum status make_cow(const struct snapshot_request *request, size_t index,
			    struct member *member)
{
	struct cow_request cow = request->cow;
	enum status status;

	if (request->device_count) {
		cow.kind = COW_USER;
		cow.path = request->devices[index];
	} else {
		if (request->percent)
			cow.bytes = member->origin.size / 100 * request->percent +
				    COW_HEADER_BYTES + request->cluster;
		cow.bytes = (cow.bytes + COW_UNIT - 1) / COW_UNIT * COW_UNIT;
		if (cow.bytes < COW_HEADER_BYTES + request->cluster)
			return report(FAILED, member->name,
				      "the COW size is too small: its header alone takes %llu bytes",
				      COW_HEADER_BYTES);
	}
	status = cow_make(&cow, &member->origin, member->name, &member->cow);
	member->has_cow = status == DONE;
	return status;
}

/* Append a feature of one or two words. */
static void add_feature(char *text, size_t size, unsigned int *words, const char *name,
			const char *value)
{
	size_t used = strlen(text);

	snprintf(text + used, size - used, " %s%s%s", name, value ? " " : "", value ? value : "");
	*words += value ? 2 : 1;
}

/* The parameters of a snapshot's table. */
static int make_params(const struct snapshot_request *request, const struct member *member,
		       char **params)
{
	char features[512] = "", staging[32], origin[DEVNO_TEXT], cow[DEVNO_TEXT];
	unsigned int words = 0;

	if (request->since)
		add_feature(features, sizeof(features), &words, "since", request->since);
	if (request->checkpoint)
		add_feature(features, sizeof(features), &words, "checkpoint", request->checkpoint);
	if (request->on_error)
		add_feature(features, sizeof(features), &words, "on_cbw_error", request->on_error);
	if (request->on_full)
		add_feature(features, sizeof(features), &words, "on_cow_full", request->on_full);
	if (request->timeout_ms)
		add_feature(features, sizeof(features), &words, "cbw_timeout", request->timeout_ms);
	if (request->low_water)
		add_feature(features, sizeof(features), &words, "low_water", request->low_water);
	if (request->has_staging) {
		snprintf(staging, sizeof(staging), "%llu",
			 (unsigned long long)(request->staging / SECTOR_SIZE));
		add_feature(features, sizeof(features), &words, "staging", staging);
	}
	if (request->is_releasing)
		add_feature(features, sizeof(features), &words, "release_on_discard", NULL);
	if (asprintf(params, "%s %s %llu %u%s", device_devno_text(origin, member->origin.lower),
		     device_devno_text(cow, member->cow.devno),
		     (unsigned long long)(request->cluster / SECTOR_SIZE), words, features) < 0)
		return -ENOMEM;
	return 0;
}

/* Make the snapshot's device and load its table; the next resume starts it. */
static enum status load_snapshot(const struct snapshot_request *request, struct member *member)
{
	struct fleece_dm_target target = { .type = SNAPSHOT_TARGET };
	struct fleece_dm_table table = { .targets = &target, .count = 1 };
	char uuid[DM_UUID_LEN], suffix[32];
	int ret;

	/* Discards are writes to the block layer. */
	table.is_read_only = !request->is_releasing;
	target.length = member->origin.size / SECTOR_SIZE;
	snprintf(suffix, sizeof(suffix), "-%s", cow_kind_name(member->cow.kind));
	ret = device_uuid(uuid, SNAPSHOT_UUID, suffix);
	if (!ret)
		ret = make_params(request, member, &target.params);
	if (ret)
		return report_errno(ret, member->name, "cannot make its table");
	ret = fleece_dm_create(member->name, uuid);
	if (ret) {
		free(target.params);
		return report_dm(ret, member->name, "cannot create it");
	}
	member->is_created = true;
	ret = fleece_dm_load(member->name, &table);
	free(target.params);
	/* There was one a moment ago. */
	if (request->since && (ret == -ENOENT || ret == -ESTALE))
		return checkpoint_report(ret, member->origin.dm.name, request->since);
	if (ret)
		return report_dm(ret, member->name, "cannot load its table");
	return DONE;
}

static enum status prepare(const struct snapshot_request *request, struct member *members)
{
	enum status status = find_origins(request, members);
	size_t i;

	for (i = 0; i < request->count && status == DONE; i++)
		status = make_cow(request, i, &members[i]);
	for (i = 0; i < request->count && status == DONE; i++)
		status = load_snapshot(request, &members[i]);
	return status;
}

/* Whether the resume of the snapshot's device has started the snapshot. */
static bool is_started(const struct member *member)
{
	struct fleece_dm_info info;

	return member->is_created && !fleece_dm_info(member->name, &info) && info.is_live &&
	       !info.is_suspended;
}

static void undo(const struct snapshot_request *request, struct member *members)
{
	bool has_checkpoint;
	size_t i;
	int ret;

	for (i = 0; i < request->count; i++) {
		struct member *member = &members[i];

		/* The module made it with the snapshot; one that was not started met another's. */
		has_checkpoint = request->checkpoint && is_started(member);
		ret = member->is_created ? fleece_dm_remove(member->name) : 0;
		if (ret)
			report_dm(ret, member->name, "is left over: cannot remove it");
		if (member->has_cow)
			cow_put(&member->cow);
		if (member->has_cow && !ret)
			cow_free(member->cow.kind, member->cow.devno, member->name);
		if (has_checkpoint) {
			char message[64 + FLEECE_NAME_SIZE];

			snprintf(message, sizeof(message), "checkpoint_delete %s",
				 request->checkpoint);
			if (fleece_dm_message(member->origin.dm.name, message, NULL))
				report_note(member->origin.dm.name,
					    "note: has a checkpoint '%s' now, which could not be deleted",
					    request->checkpoint);
		}
	}
}

/* Write out what is dirty now, so that freezing has little left to do. */
static void flush_filesystem(const struct member *member)
{
	char mountpoint[PATH_MAX];
	int fd;

	if (!device_mountpoint(member->origin.dm.devno, mountpoint, sizeof(mountpoint)))
		return;
	fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	/* An error will come back when freezing, and is reported then. */
	syncfs(fd);
	close(fd);
}

/* What window_run() needs, in arrays of @count. */
struct plan {
	bool *is_planned;
	struct fleece_dm_switch *suspends;
	struct fleece_dm_switch *resumes;
	struct fleece_dm_switch *starts;
	const char **origins;
	const char **snapshots;
};

static void free_plan(struct plan *plan)
{
	free(plan->is_planned);
	free(plan->suspends);
	free(plan->resumes);
	free(plan->starts);
	free(plan->origins);
	free(plan->snapshots);
}

/*
 * The one to be suspended next: freezing the filesystem of one that lies on another writes
 * to that. Returns an index.
 */
static size_t find_uppermost(const struct member *members, const bool *is_planned, size_t count)
{
	size_t first = count, i, j;

	for (i = 0; i < count; i++) {
		if (is_planned[i])
			continue;
		if (first == count)
			first = i;
		for (j = 0; j < count; j++)
			if (j != i && !is_planned[j] &&
			    device_depends(members[j].origin.dm.devno, members[i].origin.dm.devno))
				break;
		if (j == count)
			return i;
	}
	return first;
}

static void plan_member(struct plan *plan, size_t index, const struct member *member)
{
	plan->origins[index] = member->origin.dm.name;
	plan->snapshots[index] = member->name;
	fleece_dm_suspend_prepare(&plan->suspends[index], plan->origins[index], true);
	fleece_dm_resume_prepare(&plan->resumes[index], plan->origins[index], FLEECE_DM_UDEV_ALL);
	fleece_dm_resume_prepare(&plan->starts[index], plan->snapshots[index],
				 FLEECE_DM_UDEV_NODE_ONLY);
}

static int make_plan(struct plan *plan, const struct member *members, size_t count)
{
	size_t i, next;

	plan->is_planned = calloc(count, sizeof(*plan->is_planned));
	plan->suspends = calloc(count, sizeof(*plan->suspends));
	plan->resumes = calloc(count, sizeof(*plan->resumes));
	plan->starts = calloc(count, sizeof(*plan->starts));
	plan->origins = calloc(count, sizeof(*plan->origins));
	plan->snapshots = calloc(count, sizeof(*plan->snapshots));
	if (!plan->is_planned || !plan->suspends || !plan->resumes || !plan->starts ||
	    !plan->origins || !plan->snapshots)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		next = find_uppermost(members, plan->is_planned, count);
		plan->is_planned[next] = true;
		plan_member(plan, i, &members[next]);
	}
	return 0;
}

static enum status take(const struct snapshot_request *request, const struct member *members,
			uint64_t *frozen_us)
{
	struct plan plan = { 0 };
	struct window_result result;
	enum status status = DONE;
	size_t i;
	int ret = make_plan(&plan, members, request->count);

	if (!ret) {
		struct window window = {
			.suspends = plan.suspends,
			.resumes = plan.resumes,
			.origins = request->count,
			.starts = plan.starts,
			.snapshots = request->count,
			.limit_ms = request->limit_ms,
		};

		for (i = 0; i < request->count; i++)
			flush_filesystem(&members[i]);
		ret = window_run(&window, &result);
		if (ret)
			status = window_report(ret, &result, plan.origins, plan.snapshots);
		*frozen_us = result.frozen_us;
	} else {
		status = report_errno(ret, NULL, "cannot prepare");
	}
	free_plan(&plan);
	return status;
}

static void print_json(const struct snapshot_request *request, const struct member *members,
		       uint64_t frozen_us)
{
	struct fleece_json json = { .out = stdout };
	char path[sizeof("/dev/mapper/") + DM_NAME_LEN];
	size_t i;

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_number(&json, "frozen_us", frozen_us);
	fleece_json_array(&json, "snapshots");
	for (i = 0; i < request->count; i++) {
		snprintf(path, sizeof(path), "/dev/mapper/%.127s", members[i].name);
		fleece_json_object(&json, NULL);
		fleece_json_string(&json, "name", members[i].name);
		fleece_json_string(&json, "device", path);
		fleece_json_string(&json, "origin", members[i].origin.dm.name);
		fleece_json_number(&json, "size_bytes", members[i].origin.size);
		fleece_json_number(&json, "cluster_bytes", request->cluster);
		fleece_json_string(&json, "cow_device", members[i].cow.path);
		fleece_json_string(&json, "cow_kind", cow_kind_name(members[i].cow.kind));
		fleece_json_string(&json, "since", request->since);
		fleece_json_string(&json, "checkpoint", request->checkpoint);
		fleece_json_object_end(&json);
	}
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
}

static void print_result(const struct snapshot_request *request, const struct member *members,
			 uint64_t frozen_us)
{
	char size[FLEECE_SIZE_TEXT];
	size_t i;

	if (request->is_json) {
		print_json(request, members, frozen_us);
		return;
	}
	for (i = 0; i < request->count; i++)
		printf("/dev/mapper/%s  %s of %s, COW space %s (%s)\n", members[i].name,
		       fleece_size_format(size, members[i].origin.size), members[i].origin.dm.name,
		       members[i].cow.path, cow_kind_name(members[i].cow.kind));
	printf("frozen for %llu.%03llu ms\n", (unsigned long long)frozen_us / 1000,
	       (unsigned long long)frozen_us % 1000);
}

static enum status snapshot(const struct snapshot_request *request)
{
	struct member *members = calloc(request->count, sizeof(*members));
	uint64_t frozen_us = 0;
	enum status status;
	size_t i;

	if (!members)
		return report_errno(ENOMEM, NULL, "cannot prepare");
	for (i = 0; i < request->count; i++)
		members[i].cow.held = -1;
	status = prepare(request, members);
	if (status == DONE)
		status = take(request, members, &frozen_us);
	if (status != DONE) {
		undo(request, members);
	} else {
		for (i = 0; i < request->count; i++) {
			cow_put(&members[i].cow);
			fleece_dm_settle(members[i].name);
		}
		print_result(request, members, frozen_us);
	}
	free(members);
	return status;
}

enum status verb_snapshot(int argc, char **argv)
{
	struct snapshot_request request;
	enum status status = snapshot_request_parse(argc, argv, &request);

	if (status == DONE)
		status = change_begin();
	if (status == DONE)
		status = snapshot(&request);
	snapshot_request_free(&request);
	return status;
}
