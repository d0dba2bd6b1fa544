// SPDX-License-Identifier: LGPL-2.1-or-later
/* libfleece, control: thin wrappers of the ioctls of /dev/fleece-control. */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int call(int control, unsigned long request, void *argument)
{
	return ioctl(control, request, argument) < 0 ? -errno : 0;
}

int fleece_control_open(void)
{
	struct fleece_version version;
	int fd = open("/dev/" FLEECE_CONTROL_NAME, O_RDWR | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -errno;
	ret = fleece_control_version(fd, &version);
	if (!ret && version.interface != FLEECE_INTERFACE_VERSION)
		ret = -EPROTO;
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

int fleece_control_version(int control, struct fleece_version *version)
{
	memset(version, 0, sizeof(*version));
	return call(control, FLEECE_IOC_VERSION, version);
}

int fleece_control_info(int control, int device, struct fleece_info *info)
{
	memset(info, 0, sizeof(*info));
	info->fd = device;
	return call(control, FLEECE_IOC_INFO, info);
}

int fleece_control_checkpoints(int control, int device,
			       struct fleece_checkpoint **list, size_t *count)
{
	struct fleece_checkpoints request;
	struct fleece_checkpoint *entries = NULL;
	uint32_t capacity = 0;
	int ret;

	/* The list may grow between two calls: ask until it fits. */
	for (;;) {
		memset(&request, 0, sizeof(request));
		request.fd = device;
		request.entries = (uintptr_t)entries;
		request.capacity = capacity;
		ret = call(control, FLEECE_IOC_CHECKPOINTS, &request);
		if (ret) {
			free(entries);
			return ret;
		}
		if (request.count <= capacity)
			break;
		free(entries);
		capacity = request.count;
		entries = calloc(capacity, sizeof(*entries));
		if (!entries)
			return -ENOMEM;
	}
	*list = entries;
	*count = request.count;
	return 0;
}

int fleece_control_extents(int control, int device, uint32_t map,
			   const char *checkpoint, uint64_t offset,
			   uint64_t length, struct fleece_extent *extents,
			   uint32_t capacity, uint64_t *covered)
{
	struct fleece_extents request = {
		.fd = device,
		.map = map,
		.capacity = capacity,
		.offset = offset,
		.length = length,
		.extents = (uintptr_t)extents,
	};
	int ret;

	if (checkpoint) {
		if (strlen(checkpoint) >= sizeof(request.checkpoint))
			return -ENOENT;
		memcpy(request.checkpoint, checkpoint, strlen(checkpoint));
	}
	ret = call(control, FLEECE_IOC_EXTENTS, &request);
	if (ret)
		return ret;
	*covered = request.covered;
	return (int)request.count;
}

int fleece_control_release(int control, int device, uint64_t offset, uint64_t length)
{
	struct fleece_release request = {
		.fd = device,
		.offset = offset,
		.length = length,
	};

	return call(control, FLEECE_IOC_RELEASE, &request);
}
