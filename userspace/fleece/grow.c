// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, grow: gives a snapshot more COW space while it lives, or an origin what its device
 * has gained.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "change.h"
#include "convert.h"
#include "cow.h"
#include "device.h"
#include "size.h"
#include "verbs.h"
#include "window.h"

/* Is there so much, of which it does not use all? */
static bool has_gained(const struct snapshot *snapshot, uint64_t bytes)
{
	uint64_t used = COW_HEADER_BYTES + snapshot->status.total_slots * snapshot->cluster;
	uint64_t now;

	return !device_size(snapshot->cow, &now) && bytes <= now &&
	       now >= used + snapshot->cluster;
}

static enum status grow_snapshot(const char *text, uint64_t bytes)
{
	char size[FLEECE_SIZE_TEXT];
	struct snapshot snapshot;
	enum status status = device_snapshot(text, &snapshot);
	int ret;

	if (status != DONE)
		return status;
	if (snapshot.status.is_broken)
		return report(BROKEN, snapshot.dm.name, "is broken (%s), more space does not help",
			      snapshot_error(&snapshot));
	if (!has_gained(&snapshot, bytes))
		status = cow_grow(cow_kind_of(snapshot.dm.uuid), snapshot.cow, snapshot.dm.name,
				  bytes);
	if (status != DONE)
		return status;
	ret = fleece_dm_message(snapshot.dm.name, "cow_resize", NULL);
	if (ret)
		return report_dm(ret, snapshot.dm.name, "does not take up the new space");
	status = device_snapshot(snapshot.dm.name, &snapshot);
	if (status != DONE)
		return status;
	printf("%s  %llu of %llu clusters used, each %s\n", snapshot.dm.name,
	       (unsigned long long)snapshot.status.used_slots,
	       (unsigned long long)snapshot.status.total_slots,
	       fleece_size_format(size, snapshot.cluster));
	return DONE;
}

static enum status report_not_grown(const struct origin *origin, uint64_t bytes)
{
	struct fleece_dm_info lower;
	char path[PATH_MAX];

	device_path(path, sizeof(path), origin->lower);
	if (convert_lower(origin, &lower))
		return report(FAILED, origin->dm.name,
			      "was attached live, so its device %s does not grow: detach it, make it larger, and attach it again (fleece(8), LVM)",
			      path);
	return report(FAILED, origin->dm.name, "its device has %llu bytes, and has not grown: %s",
		      (unsigned long long)bytes, path);
}

/* A longer table; the module keeps the checkpoints. */
static enum status lengthen(const struct origin *origin, uint64_t bytes)
{
	const char *name = origin->dm.name;
	struct fleece_dm_table table;
	enum status status;
	int ret = fleece_dm_table(name, &table);

	if (ret)
		return report_dm(ret, name, "cannot read its table");
	table.targets[0].length = bytes / SECTOR_SIZE;
	ret = fleece_dm_load(name, &table);
	if (ret == -ENOSPC)
		status = report(FAILED, name,
				"its metadata device has no room for %llu bytes; 'fleece metadata create --capacity' makes it anew, without checkpoints",
				(unsigned long long)bytes);
	else if (ret)
		status = report_dm(ret, name, "cannot grow (the kernel's log says why)");
	else
		status = convert_swap(name, &table, WINDOW_LIMIT_MS);
	fleece_dm_table_free(&table);
	return status;
}

/* The module goes on without what it has no memory for, or cannot write. */
static enum status compare_checkpoints(const struct origin *before)
{
	struct fleece_dm_info info;
	struct origin now;

	if (fleece_dm_info(before->dm.name, &info) || origin_read(&info, &now))
		return DONE;
	if (now.status.checkpoints >= before->status.checkpoints &&
	    strcmp(now.status.metadata, "failed"))
		return DONE;
	return report(FAILED, before->dm.name,
		      "has grown, but its checkpoints are lost (the kernel's log says why); the next backup must be a full one");
}

static enum status grow_origin(const char *text)
{
	struct origin origin;
	enum status status = device_origin(text, &origin);
	uint64_t bytes;
	int ret;

	if (status != DONE)
		return status;
	ret = device_size(origin.lower, &bytes);
	if (ret)
		return report_errno(ret, origin.dm.name, "cannot read the size of its device");
	if (bytes <= origin.size)
		return report_not_grown(&origin, bytes);
	if (origin.dm.is_suspended || origin.dm.has_inactive)
		return report(BUSY, origin.dm.name, "is being changed by somebody else; try again");
	status = lengthen(&origin, bytes);
	if (status != DONE)
		return status;
	printf("%s  %llu bytes\n", origin.dm.name, (unsigned long long)bytes);
	return compare_checkpoints(&origin);
}

static enum status grow(const char *text, const char *size)
{
	uint64_t bytes;
	enum status status;

	if (size && (fleece_size_parse(size, &bytes) || !bytes || bytes % SECTOR_SIZE))
		return verb_usage("'%s' is not a size in whole sectors", size);
	status = change_begin();
	if (status != DONE)
		return status;
	return size ? grow_snapshot(text, bytes) : grow_origin(text);
}

enum status verb_grow(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};

	while (verb_option(argc, argv, options) >= 0)
		;
	if (argc - optind != 1 && argc - optind != 2)
		return verb_usage("SNAPSHOT and SIZE are needed, or ORIGIN");
	return grow(argv[optind], argv[optind + 1]);
}
