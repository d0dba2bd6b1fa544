// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd tests: the backend of a snapshot, on a file and a module that are made up. The module
 * gives the answers that are set here. Prints TAP.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../tap.h"
#include "../../userspace/lib/control.h"
#include "backend.h"
#include "log.h"

#define SIZE (1U << 20)

static int release_answer;
static uint64_t released_bytes;
static char said[512];

/* BLKSSZGET. */
int __wrap_ioctl(int file, unsigned long request, int *block)
{
	(void)file;
	(void)request;
	*block = 4096;
	return 0;
}

/* O_DIRECT, which not every file system has; by the names that the C library gives it. */
int __wrap_fcntl(int file, int command, int flags)
{
	(void)file;
	(void)command;
	(void)flags;
	return 0;
}

int __wrap_fcntl64(int file, int command, int flags)
{
	return __wrap_fcntl(file, command, flags);
}

void log_line(enum log_cause cause, const char *prefix, const char *format, ...)
{
	va_list arguments;

	(void)cause;
	(void)prefix;
	va_start(arguments, format);
	vsnprintf(said, sizeof(said), format, arguments);
	va_end(arguments);
}

int fleece_control_open(void)
{
	return -ENODEV;
}

int fleece_control_info(int control, int device, struct fleece_info *info)
{
	(void)control;
	(void)device;
	memset(info, 0, sizeof(*info));
	info->state = FLEECE_STATE_ACTIVE;
	return 0;
}

int fleece_control_checkpoints(int control, int device, struct fleece_checkpoint **list,
			       size_t *count)
{
	(void)control;
	(void)device;
	*list = NULL;
	*count = 0;
	return 0;
}

int fleece_control_extents(int control, int device, uint32_t map, const char *checkpoint,
			   uint64_t offset, uint64_t length, struct fleece_extent *extents,
			   uint32_t capacity, uint64_t *covered)
{
	(void)control;
	(void)device;
	(void)map;
	(void)checkpoint;
	(void)offset;
	(void)length;
	(void)extents;
	(void)capacity;
	(void)covered;
	return -EIO;
}

int fleece_control_release(int control, int device, uint64_t offset, uint64_t length)
{
	(void)control;
	(void)device;
	(void)offset;
	if (release_answer)
		return release_answer;
	if (!length)
		return -EINVAL;
	released_bytes += length;
	return 0;
}

static struct backend *open_backend(int answer)
{
	struct fleece_info info = { .size = SIZE, .cluster = 65536 };
	FILE *device = tmpfile();
	struct backend *backend;

	release_answer = answer;
	released_bytes = 0;
	*said = '\0';
	if (!device || ftruncate(fileno(device), SIZE) ||
	    backend_snapshot_create("/dev/mapper/snap", dup(fileno(device)), dup(0), &info,
				    &backend))
		abort();
	fclose(device);
	return backend;
}

int main(void)
{
	struct backend *backend = open_backend(0);

	tap_ok(backend->block == 4096 && backend->size == SIZE, "size and block of the device");
	tap_ok(backend->ops->release && !released_bytes && !*said,
	       "a module that can release: opening releases nothing");
	tap_ok(!backend->ops->release(backend, 512, 1024) && released_bytes == 1024,
	       "what is released goes to the module");
	release_answer = -ENOSPC;
	tap_ok(!backend->ops->release(backend, 512, 1024) && strstr(said, "parts of too many"),
	       "a part that the module cannot remember is no error, and the log says so");
	release_answer = -EIO;
	tap_ok(backend->ops->release(backend, 512, 1024) == -EIO, "but others are");
	backend->ops->close(backend);
	backend = open_backend(-ENOTTY);
	tap_ok(!backend->ops->release && strstr(said, "too old"),
	       "a module that cannot: nothing can be released, and the log says why");
	backend->ops->close(backend);
	return tap_end();
}
