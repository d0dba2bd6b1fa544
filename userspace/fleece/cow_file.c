// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, cow_file: COW space in a file without a name, behind a loop device. Both end with
 * their last user, whatever ends him.
 */
#include "cow_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "place.h"
#include "process.h"

#define LOOP_ATTEMPTS		16
#define LOOP_TRIAL_BYTES	4096

static bool is_dir_on_origin(const char *dir, char *origin)
{
	dev_t devices[PLACE_DEVICES];
	size_t count = place_devices(dir, devices);
	bool is_on = false;

	while (count && !is_on)
		is_on = device_on_origin(devices[--count], origin);
	return is_on;
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
		process_load_module("loop");
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

enum status cow_file_make(const struct cow_request *request, const char *snapshot,
			  struct cow *cow)
{
	const char *dir = request->dir ? request->dir : COW_DEFAULT_DIR;
	char origin[DM_NAME_LEN], path[PATH_MAX];
	int file, ret;

	if (is_dir_on_origin(dir, origin))
		return report(FAILED, snapshot,
			      "COW space in %s would lie on the origin %s itself; choose another filesystem with --cow-dir",
			      dir, origin);
	if (snprintf(path, sizeof(path), "%s/fleece-%s-XXXXXX", dir, snapshot) >=
	    (int)sizeof(path))
		return report(FAILED, snapshot, "the path %s is too long", dir);
	file = mkostemp(path, O_CLOEXEC);
	if (file < 0)
		return report_other(report_errno(errno, snapshot,
						 "cannot make a file for COW space in %s", dir));
	/* Without a name it is gone with its last user, also after a crash. */
	unlink(path);
	ret = posix_fallocate(file, 0, (off_t)request->bytes);
	if (ret) {
		close(file);
		if (ret == ENOSPC || ret == EFBIG)
			return report(FAILED, snapshot,
				      "there is no room for %llu bytes of COW space in %s; choose a smaller --cow-size, another --cow-dir, or a device with --cow",
				      (unsigned long long)request->bytes, dir);
		return report_errno(ret, snapshot, "cannot reserve %llu bytes for COW space in %s",
				    (unsigned long long)request->bytes, dir);
	}
	cow->held = attach_loop(file, cow);
	close(file);
	if (cow->held < 0) {
		ret = cow->held;
		cow->held = -1;
		return report_other(report_errno(ret, snapshot, "cannot make a loop device"));
	}
	cow->kind = COW_FILE;
	return DONE;
}

bool cow_file_has_room(uint64_t bytes)
{
	char origin[DM_NAME_LEN];
	struct statvfs fs;

	return !is_dir_on_origin(COW_DEFAULT_DIR, origin) && !statvfs(COW_DEFAULT_DIR, &fs) &&
	       (uint64_t)fs.f_bavail * fs.f_frsize / 2 > bytes;
}
