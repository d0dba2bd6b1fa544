// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, place: where in the system a file lies. Filesystems without a device number of
 * their own are looked up in /proc and /sys: overlayfs, and btrfs, which may be on several
 * devices of which the mount names one.
 */
#include "place.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define BTRFS_DIR	"/sys/fs/btrfs"
#define DEPTH_MAX	8

void place_unescape(char *text)
{
	char *to = text;

	for (; *text; text++, to++) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*to = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*to = *text;
		}
	}
	*to = 0;
}

/* Filesystem type, source and options of a mount. */
struct mount {
	char type[64];
	char source[PATH_MAX];
	char options[PATH_MAX];
};

static int find_mount(const char *path, struct mount *mount)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	size_t best = 0, room = 0;
	char *line = NULL;

	if (!file)
		return -errno;
	while (getline(&line, &room, file) > 0) {
		char point[PATH_MAX], *rest = strstr(line, " - ");
		size_t length;

		if (!rest || sscanf(line, "%*d %*d %*s %*s %4095s", point) != 1)
			continue;
		place_unescape(point);
		length = strlen(point);
		if (strncmp(path, point, length) || (length > 1 && path[length] &&
						     path[length] != '/') || length < best)
			continue;
		if (sscanf(rest, " - %63s %4095s %4095s", mount->type, mount->source,
			   mount->options) == 3)
			best = length;
	}
	free(line);
	fclose(file);
	place_unescape(mount->source);
	place_unescape(mount->options);
	return best ? 0 : -ENOENT;
}

/* Device numbers of a filesystem of btrfs. Returns how many. */
static size_t members(const char *name, dev_t *devices)
{
	char path[PATH_MAX], file[PATH_MAX];
	unsigned int number_major, number_minor;
	struct dirent *entry;
	size_t count = 0;
	FILE *text;
	DIR *dir;

	snprintf(path, sizeof(path), BTRFS_DIR "/%.255s/devices", name);
	dir = opendir(path);
	if (!dir)
		return 0;
	while (count < PLACE_DEVICES && (entry = readdir(dir))) {
		snprintf(file, sizeof(file), BTRFS_DIR "/%.255s/devices/%.255s/dev", name,
			 entry->d_name);
		text = entry->d_name[0] == '.' ? NULL : fopen(file, "re");
		if (!text)
			continue;
		if (fscanf(text, "%u:%u", &number_major, &number_minor) == 2)
			devices[count++] = makedev(number_major, number_minor);
		fclose(text);
	}
	closedir(dir);
	return count;
}

/* All devices of the filesystem of btrfs that has @devices[0]. */
static size_t btrfs_devices(dev_t *devices)
{
	dev_t found[PLACE_DEVICES];
	size_t count = 0, i;
	struct dirent *entry;
	DIR *dir = opendir(BTRFS_DIR);

	if (!dir)
		return 1;
	while (!count && (entry = readdir(dir))) {
		size_t all = entry->d_name[0] == '.' ? 0 : members(entry->d_name, found);

		for (i = 0; i < all; i++)
			if (found[i] == devices[0])
				count = all;
	}
	closedir(dir);
	if (!count)
		return 1;
	memcpy(devices, found, count * sizeof(*devices));
	return count;
}

static size_t find_devices(const char *path, dev_t *devices, int depth)
{
	struct mount mount = { .type = "" };
	char real[PATH_MAX], *upper;
	struct stat st;

	if (stat(path, &st) || !realpath(path, real))
		return 0;
	devices[0] = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
	if (major(devices[0]))
		return 1;
	if (depth > DEPTH_MAX || find_mount(real, &mount))
		return 0;
	upper = strstr(mount.options, "upperdir=");
	if (!strcmp(mount.type, "overlay") && upper) {
		upper += strlen("upperdir=");
		upper[strcspn(upper, ",")] = 0;
		return find_devices(upper, devices, depth + 1);
	}
	if (stat(mount.source, &st) || !S_ISBLK(st.st_mode))
		return 0;
	devices[0] = st.st_rdev;
	return strcmp(mount.type, "btrfs") ? 1 : btrfs_devices(devices);
}

size_t place_devices(const char *path, dev_t *devices)
{
	return find_devices(path, devices, 0);
}
