// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, device: finds origins and snapshots, and answers questions about
 * block devices from sysfs and /proc/self/mountinfo. It changes nothing but
 * that it loads the module. The kernel is asked anew each time: there is no
 * state of our own that could differ from it.
 */
#include "device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "place.h"
#include "process.h"

/* Deeper than any real stack; ends a cycle, which only a broken sysfs could show. */
#define STACK_DEPTH_MAX		32

enum status report_dm(int error, const char *name, const char *what)
{
	const char *why = fleece_dm_error();

	return report(report_status_of(error), name, "%s: %s%s%s%s", what, strerror(abs(error)),
		      why[0] ? " (" : "", why, why[0] ? ")" : "");
}

static enum status open_control(int *control)
{
	int fd = fleece_control_open();

	if (fd == -ENOENT || fd == -ENXIO || fd == -ENODEV) {
		process_load_module("dm-fleece");
		fd = fleece_control_open();
	}
	if (fd == -EPROTO)
		return report(NO_MODULE, NULL,
			      "the loaded module has another interface version; unload it and load the one built with this command, or boot again; an initial RAM disk may have the old one (update-initramfs -u -k all)");
	if (fd == -ENOENT || fd == -ENXIO || fd == -ENODEV)
		return report(NO_MODULE, NULL,
			      "the module dm-fleece is not loaded; try 'modprobe dm-fleece', or install it first");
	if (fd < 0)
		return report_errno(fd, NULL, "cannot open /dev/" FLEECE_CONTROL_NAME);
	if (control)
		*control = fd;
	else
		close(fd);
	return DONE;
}

enum status device_start(int *control)
{
	int ret;
	enum status status;

	if (geteuid() != 0)
		return report(NO_PERMISSION, NULL, "only root can do this");
	/* First ours: loading it brings device-mapper in. */
	status = open_control(control);
	if (status != DONE)
		return status;
	ret = fleece_dm_open();
	if (!ret)
		return DONE;
	if (control)
		close(*control);
	if (ret == -EACCES || ret == -EPERM)
		return report_errno(ret, NULL, "cannot open /dev/mapper/control");
	report_errno(ret, NULL, "cannot open /dev/mapper/control");
	return NO_MODULE;
}

static int find_info(const char *text, struct fleece_dm_info *info)
{
	struct stat st;

	if (!strchr(text, '/'))
		return strlen(text) < DM_NAME_LEN ? fleece_dm_info(text, info) : -ENXIO;
	if (stat(text, &st))
		return -errno;
	if (!S_ISBLK(st.st_mode))
		return -ENOTBLK;
	return fleece_dm_info_devno(st.st_rdev, info);
}

enum status device_find(const char *text, struct fleece_dm_info *info)
{
	int ret = find_info(text, info);

	if (ret == -ENXIO)
		return report(NO_DEVICE, text, "no such device-mapper device");
	if (ret)
		return report_errno(ret, text, "cannot find the device");
	return DONE;
}

/* Device at the start of @text, as tables print it or as people write it. */
static int parse_devno(const char *text, dev_t *devno)
{
	unsigned int number_major, number_minor;
	char path[PATH_MAX];
	struct stat st;
	int end = 0;

	if (sscanf(text, "%u:%u%n", &number_major, &number_minor, &end) == 2 &&
	    (!text[end] || text[end] == ' ')) {
		*devno = makedev(number_major, number_minor);
		return 0;
	}
	snprintf(path, sizeof(path), "%.*s", (int)strcspn(text, " "), text);
	if (stat(path, &st))
		return -errno;
	*devno = st.st_rdev;
	return 0;
}

/* The @index-th word of a table line, empty if there are fewer. */
static const char *table_word(const char *params, int index)
{
	while (index-- > 0) {
		params += strcspn(params, " ");
		params += strspn(params, " ");
	}
	return params;
}

/* The only target of @name if it is of @type, with table and status. */
static int read_target(const char *name, const char *type, struct fleece_dm_table *table,
		       struct fleece_dm_table *status)
{
	int ret = fleece_dm_table(name, table);

	if (ret)
		return ret;
	if (table->count != 1 || strcmp(table->targets[0].type, type)) {
		fleece_dm_table_free(table);
		return -ENODEV;
	}
	ret = fleece_dm_status(name, status);
	if (!ret && (status->count != 1 || strcmp(status->targets[0].type, type))) {
		fleece_dm_table_free(status);
		ret = -ENODEV;
	}
	if (ret)
		fleece_dm_table_free(table);
	return ret;
}

int origin_read(const struct fleece_dm_info *info, struct origin *origin)
{
	struct fleece_dm_table table, status;
	int ret = read_target(info->name, ORIGIN_TARGET, &table, &status);
	const char *metadata;

	memset(origin, 0, sizeof(*origin));
	if (ret)
		return ret;
	origin->dm = *info;
	origin->size = table.targets[0].length * SECTOR_SIZE;
	ret = parse_devno(table.targets[0].params, &origin->lower);
	metadata = table_word(table.targets[0].params, 1);
	if (!ret && *metadata != '-')
		ret = parse_devno(metadata, &origin->metadata);
	if (!ret)
		ret = fleece_origin_status_parse(status.targets[0].params, &origin->status);
	fleece_dm_table_free(&table);
	fleece_dm_table_free(&status);
	return ret;
}

/* Of the feature arguments one has no value, and the others one each. */
static void find_since(const char *params, char *since)
{
	static const char flag[] = "release_on_discard", wanted[] = "since ";
	const char *word = table_word(params, 4), *value;

	since[0] = 0;
	while (*word) {
		value = table_word(word, 1);
		if (!strncasecmp(word, wanted, strlen(wanted)))
			snprintf(since, FLEECE_NAME_SIZE, "%.*s", (int)strcspn(value, " "), value);
		word = strncasecmp(word, flag, strlen(flag)) ? table_word(value, 1) : value;
	}
}

uint64_t origin_bytes(const struct origin *origin, uint64_t granules)
{
	uint64_t bytes = granules * origin->status.granularity;

	/* The last granule may reach beyond the end. */
	return bytes < origin->size ? bytes : origin->size;
}

int snapshot_read(const struct fleece_dm_info *info, struct snapshot *snapshot)
{
	struct fleece_dm_table table, status;
	int ret = read_target(info->name, SNAPSHOT_TARGET, &table, &status);

	memset(snapshot, 0, sizeof(*snapshot));
	if (ret)
		return ret;
	snapshot->dm = *info;
	snapshot->size = table.targets[0].length * SECTOR_SIZE;
	snapshot->cluster = strtoull(table_word(table.targets[0].params, 2), NULL, 10) *
			    SECTOR_SIZE;
	find_since(table.targets[0].params, snapshot->since);
	ret = parse_devno(table.targets[0].params, &snapshot->lower);
	if (!ret)
		ret = parse_devno(table_word(table.targets[0].params, 1), &snapshot->cow);
	if (!ret)
		ret = fleece_snapshot_status_parse(status.targets[0].params, &snapshot->status);
	fleece_dm_table_free(&table);
	fleece_dm_table_free(&status);
	return ret;
}

const char *snapshot_error(const struct snapshot *snapshot)
{
	if (snapshot->status.error == ETIMEDOUT)
		return "a live write has waited for the limit of --cbw-timeout";
	return strerror(snapshot->status.error);
}

dev_t snapshot_unstarted_cow(const struct fleece_dm_info *info)
{
	struct fleece_dm_table table;
	dev_t cow = 0;

	if (fleece_dm_inactive_table(info->name, &table))
		return 0;
	if (table.count != 1 || strcmp(table.targets[0].type, SNAPSHOT_TARGET) ||
	    parse_devno(table_word(table.targets[0].params, 1), &cow))
		cow = 0;
	fleece_dm_table_free(&table);
	return cow;
}

enum status device_origin(const char *text, struct origin *origin)
{
	struct fleece_dm_info info;
	struct snapshot snapshot;
	enum status status = device_find(text, &info);
	int ret;

	if (status != DONE)
		return status;
	ret = origin_read(&info, origin);
	if (ret == -ENODEV && !snapshot_read(&info, &snapshot))
		return report(NO_DEVICE, text, "is a snapshot, not an origin");
	if (ret == -ENODEV)
		return report(NO_DEVICE, text, "is not attached; try 'fleece attach %s'", text);
	return ret ? report_dm(ret, text, "cannot read table and status") : DONE;
}

enum status device_snapshot(const char *text, struct snapshot *snapshot)
{
	struct fleece_dm_info info;
	enum status status = device_find(text, &info);
	int ret;

	if (status != DONE)
		return status;
	ret = snapshot_read(&info, snapshot);
	if (ret == -ENODEV)
		return report(NO_DEVICE, text, "is not a snapshot; 'fleece list' shows them");
	return ret ? report_dm(ret, text, "cannot read table and status") : DONE;
}

int device_open(const struct fleece_dm_info *info)
{
	char path[64];
	int fd;

	/* devtmpfs has this node; /dev/mapper depends on udev. */
	snprintf(path, sizeof(path), "/dev/dm-%u", minor(info->devno));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		char mapper[sizeof("/dev/mapper/") + DM_NAME_LEN];

		snprintf(mapper, sizeof(mapper), "/dev/mapper/%s", info->name);
		fd = open(mapper, O_RDONLY | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

int device_claim(const struct fleece_dm_info *info)
{
	const struct timespec pause = { .tv_nsec = 100000000 };
	struct fleece_dm_info now;
	char path[PATH_MAX];
	int i, fd;

	/* For long. */
	if (device_mountpoint(info->devno, path, sizeof(path)))
		return -EBUSY;
	snprintf(path, sizeof(path), "/dev/dm-%u", minor(info->devno));
	for (i = 0; i < 20; i++) {
		fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
		if (fd < 0 && errno != EBUSY)
			return -errno;
		/* Nobody but us. */
		if (fd >= 0 && !fleece_dm_info(info->name, &now) && now.open_count == 1)
			return fd;
		if (fd >= 0)
			close(fd);
		nanosleep(&pause, NULL);
	}
	return -EBUSY;
}

int device_uuid(char *uuid, const char *prefix, const char *suffix)
{
	unsigned char bytes[16];
	char hex[2 * sizeof(bytes) + 1];
	size_t i;

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return -EIO;
	for (i = 0; i < sizeof(bytes); i++)
		sprintf(hex + 2 * i, "%02x", bytes[i]);
	snprintf(uuid, DM_UUID_LEN, "%s%s%s", prefix, hex, suffix);
	return 0;
}

const char *device_devno_text(char *text, dev_t devno)
{
	snprintf(text, DEVNO_TEXT, "%u:%u", major(devno), minor(devno));
	return text;
}

const char *device_path(char *path, size_t size, dev_t devno)
{
	char link[64], target[PATH_MAX];
	struct fleece_dm_info info;
	ssize_t length;

	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(devno), minor(devno));
	length = readlink(link, target, sizeof(target) - 1);
	if (length < 0) {
		snprintf(path, size, "%u:%u", major(devno), minor(devno));
		return path;
	}
	target[length] = 0;
	if (!strncmp(strrchr(target, '/') + 1, "dm-", 3) && !fleece_dm_info_devno(devno, &info))
		snprintf(path, size, "/dev/mapper/%s", info.name);
	else
		snprintf(path, size, "/dev/%s", strrchr(target, '/') + 1);
	return path;
}

/* The device number of a mounted btrfs is of no device. */
static bool is_mount_of(const char *line, dev_t mounted, const char *mountpoint, dev_t devno)
{
	dev_t devices[PLACE_DEVICES];
	size_t count;

	if (major(mounted) || !strstr(line, " - btrfs "))
		return mounted == devno;
	count = place_devices(mountpoint, devices);
	while (count && devices[count - 1] != devno)
		count--;
	return count;
}

bool device_mountpoint(dev_t devno, char *path, size_t size)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	unsigned int number_major, number_minor;
	size_t room = 0;
	char *line = NULL;
	bool found = false;

	if (!file)
		return false;
	while (!found && getline(&line, &room, file) > 0) {
		char *word = NULL;

		if (sscanf(line, "%*d %*d %u:%u %*s %ms", &number_major, &number_minor,
			   &word) == 3) {
			place_unescape(word);
			found = is_mount_of(line, makedev(number_major, number_minor), word, devno);
			if (found)
				snprintf(path, size, "%s", word);
		}
		free(word);
	}
	free(line);
	fclose(file);
	return found;
}

static int read_sysfs(dev_t devno, const char *attribute, char *text, size_t size)
{
	char path[128];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(devno), minor(devno),
		 attribute);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	length = read(fd, text, size - 1);
	close(fd);
	if (length < 0)
		return -EIO;
	text[length] = 0;
	text[strcspn(text, "\n")] = 0;
	return 0;
}

int device_size(dev_t devno, uint64_t *bytes)
{
	char text[32];
	int ret = read_sysfs(devno, "size", text, sizeof(text));

	if (!ret)
		*bytes = strtoull(text, NULL, 10) * SECTOR_SIZE;
	return ret;
}

bool device_is(const char *path, dev_t devno)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode) && st.st_rdev == devno;
}

bool device_has_partitions(dev_t devno)
{
	char pattern[64];
	glob_t found;
	int ret;

	snprintf(pattern, sizeof(pattern), "/sys/dev/block/%u:%u/*/partition", major(devno),
		 minor(devno));
	ret = glob(pattern, GLOB_NOSORT, NULL, &found);
	if (!ret)
		globfree(&found);
	return !ret;
}

static bool depends(dev_t devno, dev_t base, int depth);

/* @side: "slaves", which are below a device, or "holders", above it. NULL if there are none. */
static DIR *open_neighbours(dev_t devno, const char *side)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(devno), minor(devno), side);
	return opendir(path);
}

static bool next_neighbour(DIR *dir, dev_t devno, const char *side, dev_t *neighbour)
{
	char attribute[300], text[32];
	struct dirent *entry;

	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(attribute, sizeof(attribute), "%s/%s/dev", side, entry->d_name);
		if (!read_sysfs(devno, attribute, text, sizeof(text)) &&
		    !parse_devno(text, neighbour))
			return true;
	}
	return false;
}

static bool slaves_depend(dev_t devno, dev_t base, int depth)
{
	DIR *dir = open_neighbours(devno, "slaves");
	bool found = false;
	dev_t slave;

	if (!dir)
		return false;
	while (!found && next_neighbour(dir, devno, "slaves", &slave))
		found = depends(slave, base, depth);
	closedir(dir);
	return found;
}

static bool file_depends(const char *path, dev_t base, int depth)
{
	dev_t devices[PLACE_DEVICES];
	size_t count = place_devices(path, devices);
	bool found = false;

	while (count && !found)
		found = depends(devices[--count], base, depth);
	return found;
}

static bool depends(dev_t devno, dev_t base, int depth)
{
	char text[PATH_MAX];
	dev_t disk;

	if (devno == base)
		return true;
	if (depth >= STACK_DEPTH_MAX)
		return true;
	if (!read_sysfs(devno, "partition", text, sizeof(text)) &&
	    !read_sysfs(devno, "../dev", text, sizeof(text)) && !parse_devno(text, &disk) &&
	    depends(disk, base, depth + 1))
		return true;
	if (!read_sysfs(devno, "loop/backing_file", text, sizeof(text)) &&
	    file_depends(text, base, depth + 1))
		return true;
	return slaves_depend(devno, base, depth + 1);
}

bool device_depends(dev_t devno, dev_t base)
{
	return depends(devno, base, 0);
}

bool device_on_origin(dev_t devno, char *name)
{
	struct fleece_dm_info info;
	struct origin origin;
	bool found = false;
	char **names;
	size_t count, i;

	if (fleece_dm_list(&names, &count))
		return false;
	for (i = 0; i < count && !found; i++) {
		if (fleece_dm_info(names[i], &info) || origin_read(&info, &origin) ||
		    !device_depends(devno, info.devno))
			continue;
		snprintf(name, DM_NAME_LEN, "%s", info.name);
		found = true;
	}
	fleece_dm_list_free(names, count);
	return found;
}

/* Is it the origin, or one of its snapshots, started or not? */
static bool is_rightful_holder(dev_t holder, const struct origin *origin)
{
	struct fleece_dm_table table;
	struct fleece_dm_info info;
	bool is_snapshot;

	/* Others than device-mapper's do not share; those that it does not find are going away. */
	if (holder == origin->dm.devno || fleece_dm_info_devno(holder, &info))
		return true;
	if (info.is_live ? fleece_dm_table(info.name, &table) :
			   fleece_dm_inactive_table(info.name, &table))
		return true;
	/* Without a table it is just being started. */
	is_snapshot = !table.count || !strcmp(table.targets[0].type, SNAPSHOT_TARGET);
	fleece_dm_table_free(&table);
	return is_snapshot;
}

bool device_bypass(const struct origin *origin, char *path)
{
	DIR *dir = open_neighbours(origin->lower, "holders");
	bool found = false;
	dev_t holder;

	if (!dir)
		return false;
	while (!found && next_neighbour(dir, origin->lower, "holders", &holder))
		found = !is_rightful_holder(holder, origin);
	closedir(dir);
	if (found)
		device_path(path, PATH_MAX, holder);
	return found;
}

bool device_unit_is_valid(uint64_t bytes)
{
	return bytes >= CLUSTER_MIN && bytes <= CLUSTER_MAX && !(bytes & (bytes - 1));
}

bool device_has_prefix(const char *text, const char *prefix)
{
	return !strncmp(text, prefix, strlen(prefix));
}
