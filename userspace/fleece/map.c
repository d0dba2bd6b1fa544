// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, map: prints the extents of a change map or of what a snapshot can
 * serve, in the rows and keys that nbdinfo uses. The module describes ranges
 * piece by piece; pieces of one value that meet are joined here.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint.h"
#include "control.h"
#include "device.h"
#include "json.h"
#include "verbs.h"

#define EXTENTS_AT_ONCE		4096

/* Type numbers follow NBD's contexts, where bit 0 of fleece:access is "not accessible". */
struct map {
	uint32_t kind;
	const char *checkpoint;
	const char *names[2];
	bool is_json;
	bool is_begun;
	struct fleece_json json;
	struct fleece_extent pending;
};

static void print_extent(struct map *map, const struct fleece_extent *extent)
{
	uint32_t type = map->kind == FLEECE_MAP_ACCESSIBLE ? !extent->value : extent->value;

	if (!extent->length)
		return;
	if (!map->is_json) {
		printf("%10llu  %10llu  %3u  %s\n", (unsigned long long)extent->offset,
		       (unsigned long long)extent->length, type, map->names[type]);
		return;
	}
	if (!map->is_begun)
		fleece_json_array(&map->json, NULL);
	map->is_begun = true;
	fleece_json_object(&map->json, NULL);
	fleece_json_number(&map->json, "offset", extent->offset);
	fleece_json_number(&map->json, "length", extent->length);
	fleece_json_number(&map->json, "type", type);
	fleece_json_string(&map->json, "description", map->names[type]);
	fleece_json_object_end(&map->json);
}

static void add_extent(struct map *map, const struct fleece_extent *extent)
{
	if (map->pending.length && map->pending.value == extent->value) {
		map->pending.length += extent->length;
		return;
	}
	print_extent(map, &map->pending);
	map->pending = *extent;
}

static int walk(struct map *map, int control, int device, uint64_t size)
{
	struct fleece_extent *extents = calloc(EXTENTS_AT_ONCE, sizeof(*extents));
	uint64_t offset = 0, covered;
	int count = 0, i;

	if (!extents)
		return -ENOMEM;
	while (offset < size) {
		count = fleece_control_extents(control, device, map->kind, map->checkpoint, offset,
					       size - offset, extents, EXTENTS_AT_ONCE, &covered);
		/* An answer that goes nowhere would keep us here for ever. */
		if (count == 0 || (count > 0 && !covered))
			count = -EPROTO;
		if (count < 0)
			break;
		for (i = 0; i < count; i++)
			add_extent(map, &extents[i]);
		offset += covered;
	}
	free(extents);
	return count < 0 ? count : 0;
}

static enum status print_map(struct map *map, int control, const struct fleece_dm_info *info,
			     uint64_t size)
{
	int device = device_open(info);
	int ret;

	if (device < 0)
		return report_errno(device, info->name, "cannot open it");
	map->json.out = stdout;
	ret = walk(map, control, device, size);
	close(device);
	if (ret && map->kind == FLEECE_MAP_CHANGED)
		return checkpoint_report(ret, info->name, map->checkpoint);
	if (ret)
		return report_errno(ret, info->name, "cannot read its map");
	print_extent(map, &map->pending);
	if (map->is_begun)
		fleece_json_array_end(&map->json);
	return DONE;
}

static void choose_changed(struct map *map, const char *checkpoint)
{
	map->kind = FLEECE_MAP_CHANGED;
	map->checkpoint = checkpoint;
	map->names[0] = "clean";
	map->names[1] = "dirty";
}

static enum status map_origin(struct map *map, int control, const struct origin *origin)
{
	if (!map->checkpoint && !origin->status.newest[0])
		return report(NO_CHECKPOINT, origin->dm.name,
			      "has no checkpoint; make a full backup of a snapshot with --checkpoint");
	choose_changed(map, map->checkpoint ? map->checkpoint : origin->status.newest);
	return print_map(map, control, &origin->dm, origin->size);
}

static enum status map_snapshot(struct map *map, int control, const struct snapshot *snapshot)
{
	if (snapshot->status.is_broken)
		return report(BROKEN, snapshot->dm.name, "is broken (%s)",
			      snapshot_error(snapshot));
	if (map->checkpoint) {
		choose_changed(map, map->checkpoint);
	} else {
		map->kind = FLEECE_MAP_ACCESSIBLE;
		map->names[0] = "accessible";
		map->names[1] = "inaccessible";
	}
	return print_map(map, control, &snapshot->dm, snapshot->size);
}

static enum status map_device(struct map *map, int control, const char *text)
{
	struct fleece_dm_info info;
	struct snapshot snapshot;
	struct origin origin;
	enum status status = device_find(text, &info);
	int ret;

	if (status != DONE)
		return status;
	ret = origin_read(&info, &origin);
	if (!ret)
		return map_origin(map, control, &origin);
	if (ret == -ENODEV)
		ret = snapshot_read(&info, &snapshot);
	if (!ret)
		return map_snapshot(map, control, &snapshot);
	if (ret == -ENODEV)
		return report(NO_DEVICE, text, "is neither an origin nor a snapshot");
	return report_dm(ret, text, "cannot read table and status");
}

enum status verb_map(int argc, char **argv)
{
	enum { SINCE = 256, JSON };
	static const struct option options[] = {
		{ "since", required_argument, NULL, SINCE },
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct map map = { 0 };
	enum status status;
	int option, control;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		if (option == SINCE)
			map.checkpoint = optarg;
		else
			map.is_json = true;
	}
	if (argc - optind != 1)
		return verb_usage("exactly one SNAPSHOT or NAME is needed");
	if (map.checkpoint && !fleece_name_is_valid(map.checkpoint))
		return verb_usage("'%s' cannot be the name of a checkpoint", map.checkpoint);
	status = device_start(&control);
	if (status != DONE)
		return status;
	status = map_device(&map, control, argv[optind]);
	close(control);
	return status;
}
