// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, grow: gives a snapshot more COW space while it lives.
 */
#include <stdio.h>
#include <string.h>

#include "change.h"
#include "cow.h"
#include "device.h"
#include "size.h"
#include "verbs.h"

/* Is there so much, of which it does not use all? */
static bool has_gained(const struct snapshot *snapshot, uint64_t bytes)
{
	uint64_t used = COW_HEADER_BYTES + snapshot->status.total_slots * snapshot->cluster;
	uint64_t now;

	return !device_size(snapshot->cow, &now) && bytes <= now &&
	       now >= used + snapshot->cluster;
}

static enum status grow(const char *text, uint64_t bytes)
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

enum status verb_grow(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	enum status status;
	uint64_t bytes;

	while (verb_option(argc, argv, options) >= 0)
		;
	if (argc - optind != 2)
		return verb_usage("SNAPSHOT and SIZE are needed");
	if (fleece_size_parse(argv[optind + 1], &bytes) || !bytes || bytes % SECTOR_SIZE)
		return verb_usage("'%s' is not a size in whole sectors", argv[optind + 1]);
	status = change_begin();
	return status == DONE ? grow(argv[optind], bytes) : status;
}
