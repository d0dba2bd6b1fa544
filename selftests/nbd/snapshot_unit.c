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
#include "wrapped.h"

#define SIZE (1U << 20)

static int release_answer;
static uint64_t released_offset;
static uint64_t released_bytes;
/* Most that a read gives at once; what it fails with instead, or 0. */
static size_t read_most = SIZE;
static int read_error;
/* Where the accessible part ends, and what the map of it was asked for. */
static uint64_t accessible_end;
static uint64_t asked_offset, asked_length;
static int state = FLEECE_STATE_ACTIVE;
/* Of the second of three checkpoints. */
static uint32_t second_flags;
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

ssize_t __wrap_pread64(int file, void *buffer, size_t length, off64_t offset)
{
	if (read_error) {
		errno = read_error;
		return -1;
	}
	return __real_pread64(file, buffer, length < read_most ? length : read_most, offset);
}

/* By its other name. */
ssize_t __wrap_pread(int file, void *buffer, size_t length, off_t offset)
{
	return __wrap_pread64(file, buffer, length, offset);
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
	info->state = state;
	info->error = ENOSPC;
	return 0;
}

int fleece_control_checkpoints(int control, int device, struct fleece_checkpoint **list,
			       size_t *count)
{
	static const char *const names[] = { "one", "two", "three" };
	size_t i;

	(void)control;
	(void)device;
	*count = sizeof(names) / sizeof(names[0]);
	*list = calloc(*count, sizeof(**list));
	if (!*list)
		return -ENOMEM;
	for (i = 0; i < *count; i++)
		snprintf((*list)[i].name, sizeof((*list)[i].name), "%s", names[i]);
	(*list)[1].flags = second_flags;
	return 0;
}

int fleece_control_extents(int control, int device, uint32_t map, const char *checkpoint,
			   uint64_t offset, uint64_t length, struct fleece_extent *extents,
			   uint32_t capacity, uint64_t *covered)
{
	(void)control;
	(void)device;
	if (map != FLEECE_MAP_ACCESSIBLE || checkpoint || !capacity)
		return -EINVAL;
	asked_offset = offset;
	asked_length = length;
	extents->offset = offset;
	extents->value = offset < accessible_end;
	extents->length = length;
	if (extents->value && length > accessible_end - offset)
		extents->length = accessible_end - offset;
	*covered = extents->length;
	return 1;
}

int fleece_control_release(int control, int device, uint64_t offset, uint64_t length)
{
	(void)control;
	(void)device;
	if (release_answer)
		return release_answer;
	if (!length)
		return -EINVAL;
	released_offset = offset;
	released_bytes += length;
	return 0;
}

static struct backend *open_backend(int answer)
{
	struct fleece_info info = { .size = SIZE, .cluster = 65536 };
	FILE *device = tmpfile();
	struct backend *backend;
	unsigned int i;

	release_answer = answer;
	released_bytes = 0;
	*said = '\0';
	if (!device)
		abort();
	for (i = 0; i < SIZE; i += sizeof(i))
		fwrite(&i, sizeof(i), 1, device);
	if (fflush(device) ||
	    backend_snapshot_create("/dev/mapper/snap", dup(fileno(device)), dup(0), &info,
				    &backend))
		abort();
	fclose(device);
	return backend;
}

static void test_reads(struct backend *backend)
{
	static unsigned int data[SIZE / sizeof(unsigned int)];
	bool passed;
	unsigned int i;

	read_most = 12 << 10;
	passed = !backend->ops->read(backend, data, 0, SIZE);
	for (i = 0; i < SIZE; i += sizeof(i))
		passed &= data[i / sizeof(i)] == i;
	tap_ok(passed, "what the device gives in parts is read to its end");
	tap_ok(backend->ops->read(backend, data, SIZE - 4096, 8192) == -EIO,
	       "a device that has become shorter is an error");
	read_most = SIZE;
}

/* The module says ENODATA of what is not accessible, an older one also of a bad sector. */
static void test_no_data(struct backend *backend)
{
	uint8_t data[8192];

	read_error = ENODATA;
	accessible_end = 0;
	tap_ok(backend->ops->read(backend, data, 4096, 8192) == -EPERM && !*said,
	       "what is not accessible is not permitted, and no line of the log");
	accessible_end = 8192;
	tap_ok(backend->ops->read(backend, data, 4096, 8192) == -EPERM,
	       "nor is what is accessible in part");
	accessible_end = SIZE;
	tap_ok(backend->ops->read(backend, data, 4096, 8192) == -EIO && strstr(said, "cannot read"),
	       "what is accessible and cannot be read is an error of the device");
	backend->ops->read(backend, data, 4097, 8190);
	tap_ok(asked_offset == 4096 && asked_length == 8192, "the map is asked for whole sectors");
	read_error = EPERM;
	tap_ok(backend->ops->read(backend, data, 4096, 8192) == -EIO,
	       "no other error means that it is not permitted");
	read_error = 0;
}

static void test_releases(struct backend *backend)
{
	tap_ok(!backend->ops->release(backend, 512, 1024) && released_bytes == 1024,
	       "what is released goes to the module");
	released_bytes = 0;
	tap_ok(!backend->ops->release(backend, 4097, 2046) && released_offset == 4608 &&
	       released_bytes == 1024, "but no sector of which a part is kept");
	tap_ok(!backend->ops->release(backend, 4097, 1022) && released_bytes == 1024,
	       "where there is no whole one, none");
	release_answer = -ENOSPC;
	tap_ok(!backend->ops->release(backend, 512, 1024) && strstr(said, "parts of too many"),
	       "a part that the module cannot remember is no error, and the log says so");
	release_answer = -EIO;
	tap_ok(backend->ops->release(backend, 512, 1024) == -EIO, "but others are");
}

static void test_state(struct backend *backend)
{
	char text[BACKEND_TEXT_SIZE];

	tap_ok(!backend->ops->state(backend, text, sizeof(text)) && !*text,
	       "a snapshot that is active has nothing to say");
	state = FLEECE_STATE_BROKEN;
	tap_ok(backend->ops->state(backend, text, sizeof(text)) == -EIO &&
	       strstr(text, strerror(ENOSPC)), "one that is broken says why");
	state = FLEECE_STATE_ACTIVE;
}

int main(void)
{
	struct backend *backend = open_backend(0);

	tap_ok(backend->block == 4096 && backend->size == SIZE, "size and block of the device");
	tap_ok(backend->ops->release && !released_bytes && !*said,
	       "a module that can release: opening releases nothing");
	tap_ok(backend->checkpoint_count == 3, "its checkpoints are offered");
	test_releases(backend);
	backend->ops->close(backend);
	second_flags = FLEECE_CHECKPOINT_INVALID;
	backend = open_backend(0);
	tap_ok(backend->checkpoint_count == 2 && !strcmp(backend->checkpoints[0].name, "one") &&
	       !strcmp(backend->checkpoints[1].name, "three") && strstr(said, "invalid"),
	       "one that is invalid is not, and the log says why");
	second_flags = 0;
	*said = '\0';
	test_no_data(backend);
	test_reads(backend);
	test_state(backend);
	backend->ops->close(backend);
	backend = open_backend(-ENOTTY);
	tap_ok(!backend->ops->release && strstr(said, "too old"),
	       "a module that cannot: nothing can be released, and the log says why");
	backend->ops->close(backend);
	return tap_end();
}
