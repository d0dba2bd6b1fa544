// SPDX-License-Identifier: GPL-2.0-only
/* fleece, detach: see detach.h. */
#include "detach.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "boot.h"
#include "change.h"
#include "convert.h"
#include "device.h"
#include "fleecetab.h"
#include "verbs.h"
#include "window.h"

static enum status detach_plain(const struct origin *origin)
{
	char mountpoint[PATH_MAX];
	int ret;

	if (device_mountpoint(origin->dm.devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, origin->dm.name, "is mounted on %s; unmount it first",
			      mountpoint);
	ret = fleece_dm_remove(origin->dm.name);
	if (ret == -EBUSY)
		return report(BUSY, origin->dm.name, "is in use; stop its users first");
	if (ret)
		return report_dm(ret, origin->dm.name, "cannot remove it");
	printf("%s detached\n", origin->dm.name);
	return DONE;
}

static enum status detach_origin(const struct origin *origin, unsigned int limit_ms)
{
	struct fleece_dm_info lower;

	if (origin->status.snapshots)
		return report(BUSY, origin->dm.name,
			      "has %u snapshot%s; remove %s first with 'fleece remove'",
			      origin->status.snapshots, origin->status.snapshots == 1 ? "" : "s",
			      origin->status.snapshots == 1 ? "it" : "them");
	if (origin->dm.is_suspended || origin->dm.has_inactive)
		return report(BUSY, origin->dm.name,
			      "is being changed by somebody else; try again later");
	if (convert_lower(origin, &lower))
		return convert_detach(origin, &lower, limit_ms);
	return detach_plain(origin);
}

/* All but the end of it had been done. */
static enum status end_detach(const char *name)
{
	struct fleece_dm_info info;

	if (!fleece_dm_info(name, &info) && info.is_suspended)
		return report(BUSY, name,
			      "is detached, but suspended; if nobody is at work on it, try 'dmsetup resume %s'",
			      name);
	printf("%s detached\n", name);
	return DONE;
}

enum status detach(const char *name, unsigned int limit_ms)
{
	struct fleece_dm_info info;
	struct origin origin;
	enum status status;
	bool is_undone;

	if (convert_forget(name)) {
		printf("%s detached; its device had been removed already\n", name);
		return DONE;
	}
	status = device_find(name, &info);
	if (status != DONE)
		return status;
	is_undone = convert_undo(&info);
	if (is_undone && origin_read(&info, &origin))
		return end_detach(info.name);
	status = device_origin(name, &origin);
	return status == DONE ? detach_origin(&origin, limit_ms) : status;
}

enum status verb_detach(int argc, char **argv)
{
	enum { LIMIT = 256, ALL };
	static const struct option options[] = {
		{ "freeze-timeout", required_argument, NULL, LIMIT },
		{ "all", optional_argument, NULL, ALL },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	unsigned int limit_ms = WINDOW_LIMIT_MS;
	const char *tab = NULL;
	enum status status;
	int option;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		if (option == LIMIT && window_limit_parse(optarg, &limit_ms))
			return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
		if (option == ALL)
			tab = optarg ? optarg : FLEECETAB_PATH;
	}
	if (tab && argc > optind)
		return verb_usage("--all takes the names from the file");
	if (!tab && argc - optind != 1)
		return verb_usage("exactly one NAME is needed");
	if (tab)
		return boot_detach(tab, limit_ms);
	status = change_begin();
	return status == DONE ? detach(argv[optind], limit_ms) : status;
}
