// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, dm_task: one request to libdevmapper, and what was said when it failed. It owns
 * the text of the last failure.
 */
#include "dm_task.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char error_text[1024];

static void set_error(const char *text)
{
	snprintf(error_text, sizeof(error_text), "%s", text);
	error_text[strcspn(error_text, "\n")] = 0;
}

static void log_error(int level, const char *file, int line, int dm_errno_or_class,
		      const char *format, ...) __attribute__((format(printf, 5, 6)));

/* libdevmapper says most about a failure in its first error. */
static void log_error(int level, const char *file, int line, int dm_errno_or_class,
		      const char *format, ...)
{
	char text[sizeof(error_text)];
	va_list args;

	(void)file;
	(void)line;
	(void)dm_errno_or_class;
	if ((level & 7) > 3 || error_text[0])
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	set_error(text);
}

/* A descriptor whose reads return what the kernel logs from now on. */
int fleece_dm_log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0 && lseek(fd, 0, SEEK_END) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/*
 * A target's reason for refusing a table only goes to the kernel log. The last
 * line of device-mapper is dm's own summary for some kernels, so a line that
 * names a target's file wins over one of "ioctl".
 */
void fleece_dm_log_read(int fd)
{
	static const char prefix[] = "device-mapper: ";
	char record[2048], best[sizeof(error_text)] = "";
	ssize_t length;

	if (fd < 0)
		return;
	while ((length = read(fd, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		char *text;

		if (length <= 0) {
			errno = 0;
			continue;
		}
		record[length] = 0;
		text = strchr(record, ';');
		if (!text || strncmp(text + 1, prefix, strlen(prefix)))
			continue;
		text += 1 + strlen(prefix);
		text[strcspn(text, "\n")] = 0;
		if (!best[0] || strncmp(text, "ioctl:", 6))
			snprintf(best, sizeof(best), "%.1000s", text);
	}
	close(fd);
	if (best[0])
		set_error(best);
}

const char *fleece_dm_error(void)
{
	return error_text;
}

void fleece_dm_task_forget_error(void)
{
	error_text[0] = 0;
}

void fleece_dm_task_init(void)
{
	dm_log_with_errno_init(log_error);
	fleece_dm_task_forget_error();
}

int fleece_dm_task_error(struct dm_task *task)
{
	int error = task ? dm_task_get_errno(task) : ENOMEM;

	return error ? -error : -EIO;
}

/* A task of @type for device @name; the text of the last failure is dropped. */
struct dm_task *fleece_dm_task_create(int type, const char *name)
{
	struct dm_task *task;

	fleece_dm_task_forget_error();
	task = dm_task_create(type);
	if (task && name && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		return NULL;
	}
	return task;
}

int fleece_dm_task_run(struct dm_task *task)
{
	int ret = 0;

	if (!task || !dm_task_run(task))
		ret = fleece_dm_task_error(task);
	if (task)
		dm_task_destroy(task);
	return ret;
}

uint16_t fleece_dm_task_udev_flags(enum fleece_dm_udev udev)
{
	if (udev == FLEECE_DM_UDEV_ALL)
		return 0;
	return DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG |
	       DM_UDEV_DISABLE_OTHER_RULES_FLAG;
}

/* Run a task that raises a uevent, and wait until udev has dealt with it. */
int fleece_dm_task_run_udev(struct dm_task *task, enum fleece_dm_udev udev)
{
	uint32_t cookie = 0;
	int ret;

	if (!task)
		return -ENOMEM;
	if (!dm_task_set_cookie(task, &cookie, fleece_dm_task_udev_flags(udev))) {
		dm_task_destroy(task);
		return -ENOMEM;
	}
	ret = fleece_dm_task_run(task);
	dm_udev_wait(cookie);
	dm_task_update_nodes();
	return ret;
}
