// SPDX-License-Identifier: GPL-2.0-only
/* Device-mapper by its ioctls, see dm.h. */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define PAYLOAD_BYTES	4096

/* Removal is tried for about ten seconds: udev may have the device open. */
#define REMOVE_TRIES	1200
#define REMOVE_DELAY_NS	50000000

struct request {
	struct dm_ioctl header;
	char payload[PAYLOAD_BYTES];
} __attribute__((aligned(8)));

static int control_fd(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	return fd;
}

static void request_init(struct request *request, const char *name)
{
	memset(request, 0, sizeof(*request));
	request->header.version[0] = DM_VERSION_MAJOR;
	request->header.data_size = sizeof(*request);
	request->header.data_start = sizeof(request->header);
	snprintf(request->header.name, sizeof(request->header.name), "%s", name);
}

static int call(unsigned long code, struct request *request)
{
	int fd = control_fd();

	if (fd < 0)
		return -errno;
	return ioctl(fd, code, request) < 0 ? -errno : 0;
}

static void format_path(const struct request *request, char *path)
{
	snprintf(path, 32, "/dev/dm-%u", minor(request->header.dev));
}

int dm_load(const char *name, uint64_t sectors, const char *type, const char *params)
{
	struct dm_target_spec *spec;
	struct request request;

	request_init(&request, name);
	request.header.target_count = 1;
	spec = (struct dm_target_spec *)request.payload;
	spec->length = sectors;
	snprintf(spec->target_type, sizeof(spec->target_type), "%s", type);
	snprintf(request.payload + sizeof(*spec), sizeof(request.payload) - sizeof(*spec), "%s",
		 params);
	return call(DM_TABLE_LOAD, &request);
}

int dm_create(const char *name, uint64_t sectors, const char *type, const char *params,
	      char *path)
{
	struct request request;
	int ret;

	request_init(&request, name);
	ret = call(DM_DEV_CREATE, &request);
	if (ret)
		return ret;
	format_path(&request, path);
	ret = dm_load(name, sectors, type, params);
	if (!ret)
		ret = dm_resume(name);
	if (ret)
		dm_remove(name);
	return ret;
}

int dm_reload(const char *name, uint64_t sectors, const char *type, const char *params)
{
	int ret = dm_load(name, sectors, type, params);

	if (!ret)
		ret = dm_suspend(name);
	return ret ? ret : dm_resume(name);
}

int dm_path(const char *name, char *path)
{
	struct request request;
	int ret;

	request_init(&request, name);
	ret = call(DM_DEV_STATUS, &request);
	if (!ret)
		format_path(&request, path);
	return ret;
}

static int suspend(const char *name, uint32_t flags)
{
	struct request request;

	request_init(&request, name);
	request.header.flags = DM_SUSPEND_FLAG | flags;
	return call(DM_DEV_SUSPEND, &request);
}

int dm_suspend(const char *name)
{
	return suspend(name, 0);
}

int dm_suspend_noflush(const char *name)
{
	return suspend(name, DM_NOFLUSH_FLAG | DM_SKIP_LOCKFS_FLAG);
}

int dm_resume(const char *name)
{
	struct request request;

	request_init(&request, name);
	return call(DM_DEV_SUSPEND, &request);
}

int dm_remove(const char *name)
{
	struct timespec delay = { .tv_nsec = REMOVE_DELAY_NS };
	struct request request;
	int tries;
	int ret = 0;

	for (tries = 0; tries < REMOVE_TRIES; tries++) {
		request_init(&request, name);
		ret = call(DM_DEV_REMOVE, &request);
		if (ret != -EBUSY)
			break;
		nanosleep(&delay, NULL);
	}
	return ret;
}

int dm_remove_deferred(const char *name)
{
	struct request request;

	request_init(&request, name);
	request.header.flags = DM_DEFERRED_REMOVE;
	return call(DM_DEV_REMOVE, &request);
}

int dm_rename(const char *name, const char *new_name)
{
	struct request request;

	request_init(&request, name);
	snprintf(request.payload, sizeof(request.payload), "%s", new_name);
	return call(DM_DEV_RENAME, &request);
}

int dm_message(const char *name, const char *format, ...)
{
	struct dm_target_msg *message;
	struct request request;
	va_list args;

	request_init(&request, name);
	message = (struct dm_target_msg *)request.payload;
	va_start(args, format);
	vsnprintf(message->message, sizeof(request.payload) - sizeof(*message), format, args);
	va_end(args);
	return call(DM_TARGET_MSG, &request);
}

static int read_text(const char *name, uint32_t flags, char *text, size_t size)
{
	struct dm_target_spec *spec;
	struct request request;
	int ret;

	request_init(&request, name);
	request.header.flags = flags;
	ret = call(DM_TABLE_STATUS, &request);
	if (ret)
		return ret;
	if (request.header.target_count != 1)
		return -EINVAL;
	spec = (struct dm_target_spec *)((char *)&request + request.header.data_start);
	snprintf(text, size, "%s", (const char *)(spec + 1));
	return 0;
}

int dm_status(const char *name, char *text, size_t size)
{
	return read_text(name, 0, text, size);
}

int dm_params(const char *name, char *text, size_t size)
{
	return read_text(name, DM_STATUS_TABLE_FLAG, text, size);
}
