// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, backend: opens a path and finds out what it is. Owns nothing after
 * that; the kinds of backend are in backend_snapshot.c and backend_file.c.
 */
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../lib/control.h"
#include "log.h"

int backend_read_sysfs(uint64_t device, const char *attribute, char *value, size_t size)
{
	char path[128];
	ssize_t n;
	int file, ret;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(device), minor(device),
		 attribute);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -errno;
	n = read(file, value, size - 1);
	ret = n < 0 ? -errno : 0;
	close(file);
	if (ret)
		return ret;
	value[n] = '\0';
	value[strcspn(value, "\n")] = '\0';
	return 0;
}

/* Where it cannot be seen, it may be one. */
static bool is_device_mapper(uint64_t device)
{
	char name[128];

	return backend_read_sysfs(device, "dm/name", name, sizeof(name)) == 0 ||
	       access("/sys/dev/block", F_OK);
}

/* Without the module there are no snapshots. */
static bool has_module(void)
{
	return !access("/sys/module/dm_fleece", F_OK) || access("/sys/module", F_OK);
}

/*
 * A descriptor for the control device, or a reason not to need one: -ENODEV.
 * Where the module cannot be asked about a device-mapper device, that device
 * might be a snapshot, and is not served as if it were plain data: in a container
 * or a chroot the node may be missing.
 */
static int open_control(const char *path, uint64_t device)
{
	int control = fleece_control_open();

	if (control >= 0)
		return control;
	if (!is_device_mapper(device) || !has_module())
		return -ENODEV;
	if (control == -EPROTO)
		log_error("%s: the module's interface version is not that of this fleeced", path);
	else
		log_error("%s: cannot open /dev/%s: %s", path, FLEECE_CONTROL_NAME,
			  strerror(-control));
	return control;
}

static int open_device(const char *path, int device, uint64_t number, struct backend **backend)
{
	struct fleece_info info;
	int control = open_control(path, number);
	int ret;

	if (control == -ENODEV)
		return backend_file_create(path, device, backend);
	if (control < 0)
		return control;
	ret = fleece_control_info(control, device, &info);
	if (!ret && info.kind == FLEECE_KIND_SNAPSHOT) {
		ret = backend_snapshot_create(path, device, control, &info, backend);
		if (ret)
			close(control);
		return ret;
	}
	close(control);
	if (ret && ret != -ENODEV)
		return ret;
	if (!ret)
		log_info("%s is a live origin, not a snapshot: it changes while it is read", path);
	return backend_file_create(path, device, backend);
}

int backend_open(const char *path, struct backend **backend)
{
	struct stat status;
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int ret;

	if (file < 0 || fstat(file, &status)) {
		ret = -errno;
		log_error("cannot open %s: %s", path, strerror(errno));
		if (file >= 0)
			close(file);
		return ret;
	}
	if (S_ISBLK(status.st_mode))
		ret = open_device(path, file, status.st_rdev, backend);
	else
		ret = backend_file_create(path, file, backend);
	if (ret) {
		log_error("cannot serve %s: %s", path,
			  ret == -ENOTBLK ? "neither a block device nor a regular file"
					  : strerror(-ret));
		close(file);
	}
	return ret;
}
