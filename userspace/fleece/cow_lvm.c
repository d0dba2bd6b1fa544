// SPDX-License-Identifier: GPL-2.0-only
/* fleece, cow_lvm: COW space in logical volumes beside the origin, made by LVM's commands. */
#include "cow_lvm.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "process.h"

#define LVM_SUFFIX		"-cow"
/* A volume that was made here, so one that nobody uses is left over, as from a crash. */
#define LVM_TAG			"fleece-cow"
/*
 * LVM waits until a copy of its metadata is in /etc. That may lie on the very origin whose
 * writes wait for the space that is to be added.
 */
#define NO_BACKUP		"--config=backup { backup = 0 archive = 0 }"
/* Reports as they are read here, whatever lvm.conf says of their form. */
#define REPORT_FORM		"report{prefixes=0 separator=\" \"} log{report_command_log=0}"
#define REPORT			"--noheadings", "--reportformat=basic"
/* Room for GROUP/VOLUME, whose names may be longer than they can be together in a dm name. */
#define LVM_NAME		(4 * DM_NAME_LEN)
/* Room for a list of volumes. */
#define LVM_LIST		(256 << 10)

int cow_lvm_split(const char *name, char *group, char *volume)
{
	char *to = group;
	bool in_volume = false;

	for (; *name; name++) {
		if (name[0] == '-' && name[1] == '-') {
			*to++ = *name++;
		} else if (name[0] == '-') {
			/* A third part names an internal device. */
			if (in_volume)
				return -EINVAL;
			*to = 0;
			to = volume;
			in_volume = true;
		} else {
			*to++ = *name;
		}
	}
	*to = 0;
	return in_volume && *group && *volume ? 0 : -EINVAL;
}

/* The dm name of a volume; the reverse of cow_lvm_split(). */
static void join_lvm_name(char *name, size_t size, const char *group, const char *volume)
{
	const char *parts[2] = { group, volume };
	size_t used = 0, i;

	for (i = 0; i < 2; i++) {
		const char *p;

		if (i && used + 1 < size)
			name[used++] = '-';
		for (p = parts[i]; *p && used + 2 < size; p++) {
			if (*p == '-')
				name[used++] = '-';
			name[used++] = *p;
		}
	}
	name[used] = 0;
}

static bool is_lvm(const struct origin *origin)
{
	return device_has_prefix(origin->dm.uuid, "LVM-");
}

/* Free bytes of a volume group, 0 if it cannot be told. */
static uint64_t free_in_group(const char *group)
{
	const char *const argv[] = { "vgs", REPORT, "--config=" REPORT_FORM, "--nosuffix",
				     "--units", "b", "-o", "vg_free", group, NULL };
	char output[256];

	if (process_run(argv, output, sizeof(output)))
		return 0;
	return strtoull(output, NULL, 10);
}

bool cow_lvm_has_room(const struct origin *origin, uint64_t bytes)
{
	char group[DM_NAME_LEN], volume[DM_NAME_LEN];

	return is_lvm(origin) && !cow_lvm_split(origin->dm.name, group, volume) &&
	       free_in_group(group) >= bytes;
}

static bool has_default_name(const char *snapshot, const struct origin *origin)
{
	size_t length = strlen(origin->dm.name);

	return !strncmp(snapshot, origin->dm.name, length) &&
	       !strcmp(snapshot + length, SNAPSHOT_SUFFIX);
}

/* Is a volume COW space of ours, whatever its name? */
static bool is_ours(const char *full)
{
	const char *const argv[] = { "lvs", REPORT, "--config=" REPORT_FORM, "-o", "lv_full_name",
				     "-S", "lv_tags={" LVM_TAG "}", full, NULL };
	char output[512], *name, *rest;

	if (process_run(argv, output, sizeof(output)))
		return false;
	name = strtok_r(output, "\n ", &rest);
	return name && !strcmp(name, full);
}

/* Remove a volume of ours that no snapshot has any more; LVM refuses one that is in use. */
static bool remove_leftover(const char *group, const char *volume, const char *snapshot)
{
	char full[LVM_NAME], output[512];
	const char *const remove[] = { "lvremove", "--yes", NO_BACKUP, "-f", full, NULL };

	snprintf(full, sizeof(full), "%s/%s", group, volume);
	if (!is_ours(full) || process_run(remove, output, sizeof(output)))
		return false;
	report_note(snapshot, "note: COW space %s, left over from a snapshot that is gone, was removed",
		    full);
	return true;
}

bool cow_lvm_leftovers(void (*tell)(const char *volume))
{
	/* For one that is suspended since our caller looked; newer versions wait anyway. */
	const char *const argv[] = { "lvs", REPORT,
				     "--config=devices{ignore_suspended_devices=1} " REPORT_FORM,
				     "-o", "vg_name,lv_name", "-S", "lv_tags={" LVM_TAG "}", NULL };
	char group[DM_NAME_LEN], volume[DM_NAME_LEN], full[LVM_NAME];
	char name[DM_NAME_LEN], *line, *next, *output = malloc(LVM_LIST);
	struct fleece_dm_info info;
	bool has_found = false;

	if (!output || process_run(argv, output, LVM_LIST)) {
		free(output);
		return false;
	}
	/* A line that was cut off would name another volume. */
	if (strlen(output) == LVM_LIST - 1)
		*(strrchr(output, '\n') ?: output) = 0;
	for (line = strtok_r(output, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
		if (sscanf(line, "%127s %127s", group, volume) != 2)
			continue;
		join_lvm_name(name, sizeof(name), group, volume);
		if (!fleece_dm_info(name, &info) && info.open_count)
			continue;
		snprintf(full, sizeof(full), "%s/%s", group, volume);
		tell(full);
		has_found = true;
	}
	free(output);
	return has_found;
}

enum status cow_lvm_make(const struct cow_request *request, const struct origin *origin,
			 const char *snapshot, struct cow *cow)
{
	char group[DM_NAME_LEN], origin_volume[DM_NAME_LEN], size[32];
	char volume[2 * DM_NAME_LEN + sizeof("-" LVM_SUFFIX)];
	char name[DM_NAME_LEN], output[512];
	/* Nobody shall take it for what was on its extents before. */
	const char *const argv[] = { "lvcreate", "--yes", NO_BACKUP, "-Wy", "-Zy", "--addtag",
				     LVM_TAG, "-n", volume, "-L", size, group, NULL };
	int ret;

	if (!is_lvm(origin) || cow_lvm_split(origin->dm.name, group, origin_volume))
		return report(FAILED, snapshot, "the origin is not a logical volume");
	/* Next to the origin's volume in a list; a snapshot's own name may be one LVM refuses. */
	if (has_default_name(snapshot, origin))
		snprintf(volume, sizeof(volume), "%s" SNAPSHOT_SUFFIX LVM_SUFFIX, origin_volume);
	else
		snprintf(volume, sizeof(volume), "%s-%s" LVM_SUFFIX, origin_volume, snapshot);
	snprintf(size, sizeof(size), "%llub", (unsigned long long)request->bytes);
	ret = process_run(argv, output, sizeof(output));
	if (ret > 0 && remove_leftover(group, volume, snapshot))
		ret = process_run(argv, output, sizeof(output));
	if (ret < 0)
		return report_other(report_errno(ret, snapshot, "cannot run lvcreate"));
	if (ret)
		return report(FAILED, snapshot, "cannot make COW space: lvcreate: %s", output);
	join_lvm_name(name, sizeof(name), group, volume);
	snprintf(cow->path, sizeof(cow->path), "/dev/mapper/%s", name);
	cow->kind = COW_LVM;
	return DONE;
}

/* GROUP/VOLUME of a device. Returns 0, -ENXIO when it is gone, or another -errno. */
static int lvm_name(dev_t devno, char *full)
{
	char group[DM_NAME_LEN], volume[DM_NAME_LEN];
	struct fleece_dm_info info;
	int ret = fleece_dm_info_devno(devno, &info);

	if (!ret)
		ret = cow_lvm_split(info.name, group, volume);
	if (!ret)
		snprintf(full, LVM_NAME, "%s/%s", group, volume);
	return ret;
}

enum status cow_lvm_grow(dev_t devno, const char *snapshot, uint64_t bytes)
{
	char full[LVM_NAME], size[32], output[512];
	const char *const argv[] = { "lvextend", "--yes", NO_BACKUP, "-L", size, full, NULL };
	int ret;

	if (lvm_name(devno, full))
		return report(FAILED, snapshot, "cannot tell which logical volume its COW device is");
	snprintf(size, sizeof(size), "%llub", (unsigned long long)bytes);
	ret = process_run(argv, output, sizeof(output));
	if (ret < 0)
		return report_other(report_errno(ret, snapshot, "cannot run lvextend for %s",
						 full));
	return ret ? report(FAILED, snapshot, "cannot extend COW space %s: lvextend: %s", full,
			    output) : DONE;
}

enum status cow_lvm_free(dev_t devno, const char *snapshot)
{
	char full[LVM_NAME], output[512];
	const char *const argv[] = { "lvremove", "--yes", NO_BACKUP, "-f", full, NULL };
	int ret;

	ret = lvm_name(devno, full);
	if (ret == -ENXIO)
		return DONE;
	if (ret)
		return report(FAILED, snapshot, "cannot tell which logical volume its COW device is");
	/* The snapshot is gone, so its COW device's number may be another volume's by now. */
	if (!is_ours(full))
		return report(FAILED, snapshot, "%s is left alone: it has no tag " LVM_TAG, full);
	ret = process_run(argv, output, sizeof(output));
	if (ret < 0)
		return report_other(report_errno(ret, snapshot, "cannot run lvremove for %s",
						 full));
	return ret ? report(FAILED, snapshot, "cannot free COW space %s: lvremove: %s", full,
			    output) : DONE;
}
