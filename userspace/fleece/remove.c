// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, remove: ends snapshots, and gives up parts of them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "change.h"
#include "cow.h"
#include "device.h"
#include "size.h"
#include "verbs.h"

static enum status remove_snapshot(const char *text)
{
	struct fleece_dm_info info;
	struct snapshot snapshot;
	enum status status = device_find(text, &info);
	int ret;

	if (status != DONE)
		return status;
	ret = snapshot_read(&info, &snapshot);
	/* Left over from a snapshot that was never started. */
	if (ret == -ENODEV && !info.is_live && device_has_prefix(info.uuid, SNAPSHOT_UUID))
		snapshot.cow = snapshot_unstarted_cow(&info);
	else if (ret == -ENODEV)
		return report(NO_DEVICE, text, "is not a snapshot; 'fleece list' shows them");
	else if (ret)
		return report_dm(ret, text, "cannot read table and status");
	ret = fleece_dm_remove(info.name);
	if (ret == -EBUSY)
		return report(BUSY, info.name,
			      "is in use; unmount it, or stop the server (its pid is in a file in /run/fleece, unless --pid-file was given)");
	if (ret)
		return report_dm(ret, info.name, "cannot remove it");
	return snapshot.cow ? cow_free(cow_kind_of(info.uuid), snapshot.cow, info.name) : DONE;
}

enum status verb_remove(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	enum status status, first = DONE;
	int i;

	while (verb_option(argc, argv, options) >= 0)
		;
	if (optind == argc)
		return verb_usage("at least one SNAPSHOT is needed");
	first = change_begin();
	if (first != DONE)
		return first;
	for (i = optind; i < argc; i++) {
		status = remove_snapshot(argv[i]);
		if (first == DONE)
			first = status;
	}
	return first;
}

static enum status release(const struct snapshot *snapshot, uint64_t offset, uint64_t length)
{
	char message[64];
	uint64_t end;
	int ret;

	if (offset % SECTOR_SIZE || length % SECTOR_SIZE)
		return verb_usage("offset and length must be multiples of 512 bytes");
	if (__builtin_add_overflow(offset, length, &end) || end > snapshot->size)
		return report(USAGE, snapshot->dm.name,
			      "the range goes beyond the end of the device at %llu bytes",
			      (unsigned long long)snapshot->size);
	snprintf(message, sizeof(message), "release %llu %llu",
		 (unsigned long long)(offset / SECTOR_SIZE),
		 (unsigned long long)(length / SECTOR_SIZE));
	ret = fleece_dm_message(snapshot->dm.name, message, NULL);
	return ret ? report_dm(ret, snapshot->dm.name, "cannot release") : DONE;
}

enum status verb_release(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint64_t offset = 0, length = 0;
	struct snapshot snapshot;
	enum status status;
	bool is_all;

	while (verb_option(argc, argv, options) >= 0)
		;
	if (argc - optind != 2)
		return verb_usage("SNAPSHOT and OFFSET:LENGTH are needed");
	is_all = !strcmp(argv[optind + 1], "all");
	if (!is_all && fleece_range_parse(argv[optind + 1], &offset, &length))
		return verb_usage("'%s' is not OFFSET:LENGTH", argv[optind + 1]);
	status = device_start(NULL);
	if (status == DONE)
		status = device_snapshot(argv[optind], &snapshot);
	if (status != DONE)
		return status;
	if (snapshot.status.is_broken)
		return report(BROKEN, snapshot.dm.name, "is broken (%s)",
			      strerror(snapshot.status.error));
	return release(&snapshot, offset, is_all ? snapshot.size : length);
}
