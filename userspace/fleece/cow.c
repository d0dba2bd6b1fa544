// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, cow: makes and frees COW space with the tools at hand: LVM's
 * commands, zram's sysfs files, loop devices. It sees to it that COW space
 * never lies on an origin: a copy would then wait for a write that waits for
 * a copy. What is written to the space is the module's business.
 */
#include "cow.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "process.h"

#define DEFAULT_DIR		"/var/tmp"
#define LVM_SUFFIX		"-cow"
#define LOOP_ATTEMPTS		16
#define LOOP_TRIAL_BYTES	4096

static const char *const kind_names[] = {
	[COW_AUTO] = "auto",
	[COW_USER] = "user",
	[COW_LVM] = "lvm",
	[COW_ZRAM] = "zram",
	[COW_FILE] = "file",
};

const char *cow_kind_name(enum cow_kind kind)
{
	return kind_names[kind];
}

int cow_kind_parse(const char *name, enum cow_kind *kind)
{
	int i;

	for (i = COW_LVM; i <= COW_FILE; i++) {
		if (!strcmp(name, kind_names[i])) {
			*kind = (enum cow_kind)i;
			return 0;
		}
	}
	return -EINVAL;
}

enum cow_kind cow_kind_of(const char *uuid)
{
	const char *dash = strrchr(uuid, '-');
	enum cow_kind kind;

	if (!device_has_prefix(uuid, SNAPSHOT_UUID) || cow_kind_parse(dash + 1, &kind))
		return COW_USER;
	return kind;
}

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
	const char *const argv[] = { "vgs", "--noheadings", "--nosuffix", "--units", "b",
				     "-o", "vg_free", group, NULL };
	char output[256];

	if (process_run(argv, output, sizeof(output)))
		return 0;
	return strtoull(output, NULL, 10);
}

static enum status stat_device(const char *snapshot, struct cow *cow)
{
	struct stat st;

	if (stat(cow->path, &st))
		return report_errno(errno, snapshot, "cannot find the COW device %s", cow->path);
	if (!S_ISBLK(st.st_mode))
		return report(NO_DEVICE, snapshot, "%s is not a block device", cow->path);
	cow->devno = st.st_rdev;
	return DONE;
}

static bool has_default_name(const char *snapshot, const struct origin *origin)
{
	size_t length = strlen(origin->dm.name);

	return !strncmp(snapshot, origin->dm.name, length) &&
	       !strcmp(snapshot + length, SNAPSHOT_SUFFIX);
}

static enum status make_lvm(const struct cow_request *request, const struct origin *origin,
			    const char *snapshot, struct cow *cow)
{
	char group[DM_NAME_LEN], origin_volume[DM_NAME_LEN], size[32];
	char volume[2 * DM_NAME_LEN + sizeof("-" LVM_SUFFIX)];
	char name[DM_NAME_LEN], output[512];
	const char *const argv[] = { "lvcreate", "--yes", "-Wn", "-Zn", "-n", volume, "-L", size,
				     group, NULL };
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
	if (ret < 0)
		return report_errno(ret, snapshot, "cannot run lvcreate");
	if (ret)
		return report(FAILED, snapshot, "cannot make COW space: lvcreate: %s", output);
	join_lvm_name(name, sizeof(name), group, volume);
	snprintf(cow->path, sizeof(cow->path), "/dev/mapper/%s", name);
	cow->kind = COW_LVM;
	return stat_device(snapshot, cow);
}

/* Room for GROUP/VOLUME. */
#define LVM_NAME	(2 * DM_NAME_LEN + 1)

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

static enum status grow_lvm(dev_t devno, const char *snapshot, uint64_t bytes)
{
	char full[LVM_NAME], size[32], output[512];
	const char *const argv[] = { "lvextend", "--yes", "-L", size, full, NULL };
	int ret;

	if (lvm_name(devno, full))
		return report(FAILED, snapshot, "cannot tell which logical volume its COW device is");
	snprintf(size, sizeof(size), "%llub", (unsigned long long)bytes);
	ret = process_run(argv, output, sizeof(output));
	if (ret < 0)
		return report_errno(ret, snapshot, "cannot run lvextend for %s", full);
	return ret ? report(FAILED, snapshot, "cannot extend COW space %s: lvextend: %s", full,
			    output) : DONE;
}

static enum status free_lvm(dev_t devno, const char *snapshot)
{
	char full[LVM_NAME], output[512];
	const char *const argv[] = { "lvremove", "--yes", "-f", full, NULL };
	int ret;

	ret = lvm_name(devno, full);
	if (ret == -ENXIO)
		return DONE;
	if (ret)
		return report(FAILED, snapshot, "cannot tell which logical volume its COW device is");
	ret = process_run(argv, output, sizeof(output));
	if (ret < 0)
		return report_errno(ret, snapshot, "cannot run lvremove for %s", full);
	return ret ? report(FAILED, snapshot, "cannot free COW space %s: lvremove: %s", full,
			    output) : DONE;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

static void load_module(const char *name)
{
	const char *const argv[] = { "modprobe", "-q", name, NULL };
	char output[64];

	/* Whether it worked is seen at the first use. */
	process_run(argv, output, sizeof(output));
}

/* Add a zram device; returns its number or -errno. */
static int add_zram(void)
{
	char text[32] = "";
	ssize_t length;
	int fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT) {
		load_module("zram");
		fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0)
		return -errno;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	return length > 0 ? atoi(text) : -EIO;
}

static int remove_zram(const char *disk)
{
	char path[64];
	int ret;

	snprintf(path, sizeof(path), "/sys/block/%s/reset", disk);
	ret = write_text(path, "1");
	return ret ? ret : write_text("/sys/class/zram-control/hot_remove", disk + strlen("zram"));
}

static enum status make_zram(const struct cow_request *request, const char *snapshot,
			     struct cow *cow)
{
	char path[64], disk[32], size[32];
	int number = add_zram();
	int ret;

	if (number < 0)
		return report_errno(number, snapshot, "cannot make a zram device");
	snprintf(disk, sizeof(disk), "zram%d", number);
	snprintf(path, sizeof(path), "/sys/block/%s/disksize", disk);
	snprintf(size, sizeof(size), "%llu", (unsigned long long)request->bytes);
	ret = write_text(path, size);
	if (ret) {
		remove_zram(disk);
		return report_errno(ret, snapshot, "cannot set the size of %s", disk);
	}
	snprintf(cow->path, sizeof(cow->path), "/dev/%s", disk);
	cow->kind = COW_ZRAM;
	return stat_device(snapshot, cow);
}

static enum status free_zram(dev_t devno, const char *snapshot)
{
	char path[PATH_MAX];
	const char *disk;
	int ret;

	device_path(path, sizeof(path), devno);
	disk = strrchr(path, '/');
	if (!disk || !device_has_prefix(disk + 1, "zram"))
		return DONE;
	ret = remove_zram(disk + 1);
	return ret ? report_errno(ret, snapshot, "cannot remove %s", disk + 1) : DONE;
}

/* Filesystem type, source and options of the mount that holds @path. */
static int find_mount(const char *path, char *type, char *source, char *options)
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
		length = strlen(point);
		if (strncmp(path, point, length) || (length > 1 && path[length] &&
						     path[length] != '/') || length < best)
			continue;
		if (sscanf(rest, " - %63s %4095s %4095s", type, source, options) == 3)
			best = length;
	}
	free(line);
	fclose(file);
	return best ? 0 : -ENOENT;
}

static bool is_dir_on_origin(const char *dir, char *origin, int depth)
{
	char path[PATH_MAX], type[64], source[PATH_MAX], options[PATH_MAX], *upper;
	struct stat st;

	if (stat(dir, &st) || !realpath(dir, path))
		return false;
	if (major(st.st_dev))
		return device_on_origin(st.st_dev, origin);
	/* No device of its own: btrfs, overlayfs, network and memory filesystems. */
	if (find_mount(path, type, source, options) || depth > 8)
		return false;
	upper = strstr(options, "upperdir=");
	if (!strcmp(type, "overlay") && upper) {
		upper += strlen("upperdir=");
		upper[strcspn(upper, ",")] = 0;
		return is_dir_on_origin(upper, origin, depth + 1);
	}
	return !stat(source, &st) && S_ISBLK(st.st_mode) && device_on_origin(st.st_rdev, origin);
}

/* Whether a write gets through to the file. */
static int try_loop(const char *path)
{
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	void *block = NULL;
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (posix_memalign(&block, LOOP_TRIAL_BYTES, LOOP_TRIAL_BYTES)) {
		close(fd);
		return -ENOMEM;
	}
	memset(block, 0, LOOP_TRIAL_BYTES);
	if (pwrite(fd, block, LOOP_TRIAL_BYTES, 0) != LOOP_TRIAL_BYTES)
		ret = errno ? -errno : -EIO;
	free(block);
	close(fd);
	return ret;
}

/*
 * Direct I/O saves a second copy in the page cache. Some stacked filesystems
 * offer it and then fail every request, so it has to prove itself.
 */
static int set_up_loop(int fd, const char *path)
{
	if (!ioctl(fd, LOOP_SET_DIRECT_IO, 1UL) && try_loop(path))
		ioctl(fd, LOOP_SET_DIRECT_IO, 0UL);
	return try_loop(path);
}

/* A free loop device on @file that ends with its last user; returns it open, or -errno. */
static int attach_loop(int file, struct cow *cow)
{
	struct loop_config config = { .fd = (__u32)file };
	int control, fd = -1, number, attempt, ret = -EBUSY;

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0 && (errno == ENOENT || errno == ENODEV)) {
		load_module("loop");
		control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	}
	if (control < 0)
		return -errno;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
	for (attempt = 0; attempt < LOOP_ATTEMPTS && ret == -EBUSY; attempt++) {
		number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0) {
			ret = -errno;
			break;
		}
		snprintf(cow->path, sizeof(cow->path), "/dev/loop%d", number);
		fd = open(cow->path, O_RDWR | O_CLOEXEC);
		if (fd < 0) {
			ret = -errno;
			break;
		}
		/* Somebody else may have been faster. */
		ret = ioctl(fd, LOOP_CONFIGURE, &config) ? -errno : set_up_loop(fd, cow->path);
		if (ret)
			close(fd);
	}
	close(control);
	return ret ? ret : fd;
}

static enum status make_file(const struct cow_request *request, const char *snapshot,
			     struct cow *cow)
{
	const char *dir = request->dir ? request->dir : DEFAULT_DIR;
	char origin[DM_NAME_LEN], path[PATH_MAX];
	int file, ret;

	if (is_dir_on_origin(dir, origin, 0))
		return report(FAILED, snapshot,
			      "COW space in %s would lie on the origin %s itself; choose another filesystem with --cow-dir",
			      dir, origin);
	if (snprintf(path, sizeof(path), "%s/fleece-%s-XXXXXX", dir, snapshot) >=
	    (int)sizeof(path))
		return report(FAILED, snapshot, "the path %s is too long", dir);
	file = mkostemp(path, O_CLOEXEC);
	if (file < 0)
		return report_errno(errno, snapshot, "cannot make a file for COW space in %s", dir);
	/* Without a name it is gone with its last user, also after a crash. */
	unlink(path);
	ret = posix_fallocate(file, 0, (off_t)request->bytes);
	if (ret) {
		close(file);
		return report_errno(ret, snapshot, "cannot reserve %llu bytes for COW space in %s",
				    (unsigned long long)request->bytes, dir);
	}
	cow->held = attach_loop(file, cow);
	close(file);
	if (cow->held < 0) {
		ret = cow->held;
		cow->held = -1;
		return report_errno(ret, snapshot, "cannot make a loop device");
	}
	cow->kind = COW_FILE;
	return stat_device(snapshot, cow);
}

static enum status use_device(const struct cow_request *request, const struct origin *origin,
			      const char *snapshot, struct cow *cow)
{
	char mountpoint[PATH_MAX], name[DM_NAME_LEN];
	enum status status;
	int fd;

	cow->kind = COW_USER;
	snprintf(cow->path, sizeof(cow->path), "%s", request->path);
	status = stat_device(snapshot, cow);
	if (status != DONE)
		return status;
	if (device_depends(cow->devno, origin->dm.devno) ||
	    device_depends(cow->devno, origin->lower))
		return report(BUSY, snapshot, "the COW device %s is the origin or lies on it",
			      cow->path);
	if (device_on_origin(cow->devno, name))
		return report(BUSY, snapshot, "the COW device %s lies on the origin %s", cow->path,
			      name);
	if (device_mountpoint(cow->devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, snapshot, "the COW device %s is mounted on %s", cow->path,
			      mountpoint);
	fd = open(cow->path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return report(BUSY, snapshot,
			      "the COW device %s is in use (swap, RAID, LVM or another device)",
			      cow->path);
	if (fd < 0)
		return report_errno(errno, snapshot, "cannot open the COW device %s", cow->path);
	close(fd);
	return DONE;
}

static bool has_room(const char *dir, uint64_t bytes)
{
	struct statvfs fs;

	return !statvfs(dir, &fs) && (uint64_t)fs.f_bavail * fs.f_frsize > bytes;
}

/* Half of the memory that is available: a backup is no reason to swap. */
static bool fits_memory(uint64_t bytes)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	size_t room = 0;
	char *line = NULL;

	if (!file)
		return false;
	while (getline(&line, &room, file) > 0)
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	free(line);
	fclose(file);
	return bytes <= kib * 1024 / 2;
}

/*
 * zram comes last: its blocks of 4096 bytes become those of the snapshot, from
 * which a filesystem with smaller blocks cannot be mounted then.
 */
static enum cow_kind choose_kind(const struct cow_request *request, const struct origin *origin)
{
	char group[DM_NAME_LEN], volume[DM_NAME_LEN], name[DM_NAME_LEN];

	if (request->dir)
		return COW_FILE;
	if (is_lvm(origin) && !cow_lvm_split(origin->dm.name, group, volume) &&
	    free_in_group(group) >= request->bytes)
		return COW_LVM;
	if (!is_dir_on_origin(DEFAULT_DIR, name, 0) && has_room(DEFAULT_DIR, request->bytes))
		return COW_FILE;
	return fits_memory(request->bytes) ? COW_ZRAM : COW_FILE;
}

enum status cow_make(const struct cow_request *request, const struct origin *origin,
		     const char *snapshot, struct cow *cow)
{
	enum cow_kind kind = request->kind;
	enum status status = FAILED;
	uint64_t bytes;

	memset(cow, 0, sizeof(*cow));
	cow->held = -1;
	if (kind == COW_AUTO)
		kind = choose_kind(request, origin);
	switch (kind) {
	case COW_USER:
		status = use_device(request, origin, snapshot, cow);
		break;
	case COW_LVM:
		status = make_lvm(request, origin, snapshot, cow);
		break;
	case COW_ZRAM:
		status = make_zram(request, snapshot, cow);
		break;
	case COW_FILE:
	case COW_AUTO:
		status = make_file(request, snapshot, cow);
		break;
	}
	if (status == DONE && !device_size(cow->devno, &bytes) && bytes <= COW_HEADER_BYTES)
		status = report(FAILED, snapshot,
				"the COW device %s is too small: %llu bytes, of which its header takes %llu",
				cow->path, (unsigned long long)bytes, COW_HEADER_BYTES);
	if (status != DONE && cow->devno) {
		cow_put(cow);
		cow_free(cow->kind, cow->devno, snapshot);
	}
	return status;
}

void cow_put(struct cow *cow)
{
	if (cow->held >= 0)
		close(cow->held);
	cow->held = -1;
}

enum status cow_free(enum cow_kind kind, dev_t devno, const char *snapshot)
{
	switch (kind) {
	case COW_LVM:
		return free_lvm(devno, snapshot);
	case COW_ZRAM:
		return free_zram(devno, snapshot);
	case COW_AUTO:
	case COW_USER:
	case COW_FILE:
		break;
	}
	return DONE;
}

enum status cow_grow(enum cow_kind kind, dev_t devno, const char *snapshot, uint64_t bytes)
{
	char path[PATH_MAX];
	uint64_t now;
	int ret = device_size(devno, &now);

	device_path(path, sizeof(path), devno);
	if (ret)
		return report_errno(ret, snapshot, "cannot read the size of its COW device %s",
				    path);
	if (bytes < now)
		return report(FAILED, snapshot,
			      "its COW device %s has %llu bytes already, and does not shrink", path,
			      (unsigned long long)now);
	if (bytes == now)
		return DONE;
	switch (kind) {
	case COW_LVM:
		return grow_lvm(devno, snapshot, bytes);
	case COW_USER:
		return report(FAILED, snapshot,
			      "its COW device %s has %llu bytes; grow it first, then try again",
			      path, (unsigned long long)now);
	case COW_AUTO:
	case COW_ZRAM:
	case COW_FILE:
		break;
	}
	return report(FAILED, snapshot,
		      "its COW space is %s, which cannot grow; only LVM's can, and devices named with --cow",
		      kind == COW_ZRAM ? "zram" : "a file without a name");
}
