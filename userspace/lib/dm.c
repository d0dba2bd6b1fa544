// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, dm: wraps libdevmapper, and the two ioctls that must work while
 * filesystems are frozen. It owns the control descriptor and the text of the
 * last failure. What a table means is not known here.
 *
 * Suspend and resume have a second, bare form (struct fleece_dm_switch),
 * because libdevmapper allocates memory, keeps lists of nodes to make and may
 * wait for udev; any of these can end up waiting for a frozen filesystem.
 */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_NODE		"/dev/" DM_DIR "/" DM_CONTROL_NODE
#define SETTLE_MS		5000
#define SETTLE_STEP_MS		10
#define REMOVE_MS		1000
#define REMOVE_STEP_MS		100

static char error_text[1024];
static int control_fd = -1;

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
static int open_kernel_log(void)
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
static void read_kernel_log(int fd)
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

static int task_error(struct dm_task *task)
{
	int error = task ? dm_task_get_errno(task) : ENOMEM;

	return error ? -error : -EIO;
}

/* A task of @type for device @name; the text of the last failure is dropped. */
static struct dm_task *create_task(int type, const char *name)
{
	struct dm_task *task;

	error_text[0] = 0;
	task = dm_task_create(type);
	if (task && name && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		return NULL;
	}
	return task;
}

static int run_task(struct dm_task *task)
{
	int ret = 0;

	if (!task || !dm_task_run(task))
		ret = task_error(task);
	if (task)
		dm_task_destroy(task);
	return ret;
}

static uint16_t udev_flags(enum fleece_dm_udev udev)
{
	if (udev == FLEECE_DM_UDEV_ALL)
		return 0;
	return DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG |
	       DM_UDEV_DISABLE_OTHER_RULES_FLAG;
}

/* Run a task that raises a uevent, and wait until udev has dealt with it. */
static int run_task_udev(struct dm_task *task, enum fleece_dm_udev udev)
{
	uint32_t cookie = 0;
	int ret;

	if (!task)
		return -ENOMEM;
	if (!dm_task_set_cookie(task, &cookie, udev_flags(udev))) {
		dm_task_destroy(task);
		return -ENOMEM;
	}
	ret = run_task(task);
	dm_udev_wait(cookie);
	dm_task_update_nodes();
	return ret;
}

int fleece_dm_open(void)
{
	dm_log_with_errno_init(log_error);
	dm_set_name_mangling_mode(DM_STRING_MANGLING_NONE);
	dm_hold_control_dev(1);
	error_text[0] = 0;
	/* Opened first by us: libdevmapper turns every failure into text. */
	control_fd = open(CONTROL_NODE, O_RDWR | O_CLOEXEC);
	if (control_fd < 0 && errno == ENOENT) {
		/* Without udev libdevmapper makes the node. */
		run_task(create_task(DM_DEVICE_VERSION, NULL));
		control_fd = open(CONTROL_NODE, O_RDWR | O_CLOEXEC);
	}
	return control_fd < 0 ? -errno : 0;
}

void fleece_dm_close(void)
{
	if (control_fd >= 0)
		close(control_fd);
	control_fd = -1;
	dm_hold_control_dev(0);
	dm_lib_release();
}

const char *fleece_dm_error(void)
{
	return error_text;
}

static int read_info(struct dm_task *task, struct fleece_dm_info *info)
{
	const char *name, *uuid;
	struct dm_info raw;

	memset(info, 0, sizeof(*info));
	if (!dm_task_run(task))
		return task_error(task);
	if (!dm_task_get_info(task, &raw))
		return -EIO;
	if (!raw.exists)
		return -ENXIO;
	name = dm_task_get_name(task);
	uuid = dm_task_get_uuid(task);
	snprintf(info->name, sizeof(info->name), "%s", name ? name : "");
	snprintf(info->uuid, sizeof(info->uuid), "%s", uuid ? uuid : "");
	info->devno = makedev(raw.major, raw.minor);
	info->open_count = raw.open_count;
	info->is_suspended = raw.suspended;
	info->is_live = raw.live_table;
	info->has_inactive = raw.inactive_table;
	info->is_read_only = raw.read_only;
	return 0;
}

int fleece_dm_info(const char *name, struct fleece_dm_info *info)
{
	struct dm_task *task = create_task(DM_DEVICE_INFO, name);
	int ret = task ? read_info(task, info) : -ENOMEM;

	if (task)
		dm_task_destroy(task);
	return ret;
}

int fleece_dm_info_devno(dev_t devno, struct fleece_dm_info *info)
{
	struct dm_task *task = create_task(DM_DEVICE_INFO, NULL);
	int ret = -ENOMEM;

	if (task && dm_task_set_major(task, (int)major(devno)) &&
	    dm_task_set_minor(task, (int)minor(devno)))
		ret = read_info(task, info);
	if (task)
		dm_task_destroy(task);
	/* A number of another driver is an error to libdevmapper, not to us. */
	if (ret == 0 && info->devno != devno)
		ret = -ENXIO;
	return ret;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int copy_names(struct dm_names *list, char ***names, size_t *count)
{
	size_t used = 0;
	char **copy = NULL, **grown;

	while (list && list->dev) {
		grown = reallocarray(copy, used + 1, sizeof(*copy));
		if (!grown) {
			fleece_dm_list_free(copy, used);
			return -ENOMEM;
		}
		copy = grown;
		copy[used] = strdup(list->name);
		if (!copy[used]) {
			fleece_dm_list_free(copy, used);
			return -ENOMEM;
		}
		used++;
		if (!list->next)
			break;
		list = (struct dm_names *)((char *)list + list->next);
	}
	if (used)
		qsort(copy, used, sizeof(*copy), compare_names);
	*names = copy;
	*count = used;
	return 0;
}

int fleece_dm_list(char ***names, size_t *count)
{
	struct dm_task *task = create_task(DM_DEVICE_LIST, NULL);
	int ret;

	if (!task || !dm_task_run(task))
		ret = task_error(task);
	else
		ret = copy_names(dm_task_get_names(task), names, count);
	if (task)
		dm_task_destroy(task);
	return ret;
}

void fleece_dm_list_free(char **names, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		free(names[i]);
	free(names);
}

static int append_target(struct fleece_dm_table *table, uint64_t start, uint64_t length,
			 const char *type, const char *params)
{
	struct fleece_dm_target *grown, *target;

	grown = reallocarray(table->targets, table->count + 1, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	table->targets = grown;
	target = &grown[table->count];
	target->start = start;
	target->length = length;
	snprintf(target->type, sizeof(target->type), "%.*s", DM_MAX_TYPE_NAME - 1, type);
	target->params = strdup(params ? params : "");
	if (!target->params)
		return -ENOMEM;
	table->count++;
	return 0;
}

static int read_table(struct dm_task *task, struct fleece_dm_table *table)
{
	uint64_t start, length;
	char *type, *params;
	void *next = NULL;
	struct dm_info info;
	int ret = 0;

	if (!dm_task_run(task))
		return task_error(task);
	if (!dm_task_get_info(task, &info) || !info.exists)
		return -ENXIO;
	table->is_read_only = info.read_only;
	do {
		next = dm_get_next_target(task, next, &start, &length, &type, &params);
		if (type)
			ret = append_target(table, start, length, type, params);
	} while (next && !ret);
	return ret;
}

static int query_table(int type, const char *name, bool inactive, struct fleece_dm_table *table)
{
	struct dm_task *task = create_task(type, name);
	int ret = -ENOMEM;

	memset(table, 0, sizeof(*table));
	if (task) {
		/* Otherwise a status would flush the device. */
		dm_task_no_flush(task);
		if (type == DM_DEVICE_TABLE)
			dm_task_secure_data(task);
		if (!inactive || dm_task_query_inactive_table(task))
			ret = read_table(task, table);
		dm_task_destroy(task);
	}
	if (ret)
		fleece_dm_table_free(table);
	return ret;
}

int fleece_dm_table(const char *name, struct fleece_dm_table *table)
{
	return query_table(DM_DEVICE_TABLE, name, false, table);
}

int fleece_dm_inactive_table(const char *name, struct fleece_dm_table *table)
{
	return query_table(DM_DEVICE_TABLE, name, true, table);
}

int fleece_dm_status(const char *name, struct fleece_dm_table *table)
{
	return query_table(DM_DEVICE_STATUS, name, false, table);
}

void fleece_dm_table_free(struct fleece_dm_table *table)
{
	size_t i;

	for (i = 0; i < table->count; i++) {
		/* It may have been a key. */
		explicit_bzero(table->targets[i].params, strlen(table->targets[i].params));
		free(table->targets[i].params);
	}
	free(table->targets);
	memset(table, 0, sizeof(*table));
}

int fleece_dm_create(const char *name, const char *uuid)
{
	struct dm_task *task = create_task(DM_DEVICE_CREATE, name);

	if (!task || !dm_task_set_uuid(task, uuid) ||
	    !dm_task_set_add_node(task, DM_ADD_NODE_ON_RESUME)) {
		if (task)
			dm_task_destroy(task);
		return -ENOMEM;
	}
	return run_task(task);
}

int fleece_dm_load(const char *name, const struct fleece_dm_table *table)
{
	struct dm_task *task = create_task(DM_DEVICE_RELOAD, name);
	int log, ret = 0;
	size_t i;

	if (!task)
		return -ENOMEM;
	dm_task_secure_data(task);
	if (table->is_read_only && !dm_task_set_ro(task))
		ret = -ENOMEM;
	for (i = 0; i < table->count && !ret; i++) {
		const struct fleece_dm_target *target = &table->targets[i];

		if (!dm_task_add_target(task, target->start, target->length, target->type,
					target->params))
			ret = -ENOMEM;
	}
	if (ret) {
		dm_task_destroy(task);
		return ret;
	}
	log = open_kernel_log();
	ret = run_task(task);
	if (ret)
		read_kernel_log(log);
	else if (log >= 0)
		close(log);
	return ret;
}

int fleece_dm_clear(const char *name)
{
	return run_task(create_task(DM_DEVICE_CLEAR, name));
}

int fleece_dm_suspend(const char *name, bool freeze)
{
	struct dm_task *task = create_task(DM_DEVICE_SUSPEND, name);

	if (task && !freeze)
		dm_task_skip_lockfs(task);
	return run_task(task);
}

int fleece_dm_resume(const char *name, enum fleece_dm_udev udev)
{
	int log = open_kernel_log();
	int ret = run_task_udev(create_task(DM_DEVICE_RESUME, name), udev);

	if (ret)
		read_kernel_log(log);
	else if (log >= 0)
		close(log);
	return ret;
}

int fleece_dm_remove(const char *name)
{
	const struct timespec step = { .tv_nsec = REMOVE_STEP_MS * 1000000L };
	int waited, ret;

	/* A scanner that looks at every new device is gone in a moment. */
	for (waited = 0; ; waited += REMOVE_STEP_MS) {
		ret = run_task_udev(create_task(DM_DEVICE_REMOVE, name), FLEECE_DM_UDEV_ALL);
		if (ret != -EBUSY || waited >= REMOVE_MS)
			return ret;
		nanosleep(&step, NULL);
	}
}

int fleece_dm_rename(const char *name, const char *new_name)
{
	struct dm_task *task = create_task(DM_DEVICE_RENAME, name);

	if (task && !dm_task_set_newname(task, new_name)) {
		dm_task_destroy(task);
		return -EINVAL;
	}
	return run_task_udev(task, FLEECE_DM_UDEV_ALL);
}

int fleece_dm_message(const char *name, const char *text, char **reply)
{
	struct dm_task *task = create_task(DM_DEVICE_TARGET_MSG, name);
	const char *answer;
	int ret = 0;

	if (!task || !dm_task_set_sector(task, 0) || !dm_task_set_message(task, text))
		ret = -ENOMEM;
	else if (!dm_task_run(task))
		ret = task_error(task);
	if (!ret && reply) {
		answer = dm_task_get_message_response(task);
		*reply = strdup(answer ? answer : "");
		if (!*reply)
			ret = -ENOMEM;
	}
	if (task)
		dm_task_destroy(task);
	return ret;
}

int fleece_dm_target_version(const char *type)
{
	struct dm_task *task = create_task(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *version;
	int ret = -ENOENT;

	if (!task || !dm_task_run(task)) {
		ret = task_error(task);
	} else {
		version = dm_task_get_versions(task);
		while (version) {
			if (!strcmp(version->name, type))
				ret = 0;
			if (!version->next)
				break;
			version = (struct dm_versions *)((char *)version + version->next);
		}
	}
	if (task)
		dm_task_destroy(task);
	return ret;
}

int fleece_dm_settle(const char *name)
{
	const struct timespec step = { .tv_nsec = SETTLE_STEP_MS * 1000000L };
	char path[sizeof("/dev/mapper/") + DM_NAME_LEN];
	struct stat st;
	int waited;

	snprintf(path, sizeof(path), "/dev/mapper/%s", name);
	for (waited = 0; stat(path, &st) && waited < SETTLE_MS; waited += SETTLE_STEP_MS) {
		/* Nobody else would make it. */
		if (!dm_udev_get_sync_support())
			break;
		nanosleep(&step, NULL);
	}
	if (!stat(path, &st))
		return 0;
	error_text[0] = 0;
	if (!dm_mknodes(name))
		return -EIO;
	dm_task_update_nodes();
	return stat(path, &st) ? -errno : 0;
}

static void prepare_switch(struct fleece_dm_switch *run, const char *name, uint32_t flags)
{
	struct dm_ioctl *argument = &run->argument;

	memset(run, 0, sizeof(*run));
	run->request = DM_DEV_SUSPEND;
	/* The oldest interface will do; the kernel refuses a newer one than its own. */
	argument->version[0] = DM_VERSION_MAJOR;
	argument->data_size = sizeof(*argument);
	argument->flags = flags;
	snprintf(argument->name, sizeof(argument->name), "%s", name);
}

void fleece_dm_suspend_prepare(struct fleece_dm_switch *run, const char *name, bool freeze)
{
	prepare_switch(run, name, DM_SUSPEND_FLAG | (freeze ? 0 : DM_SKIP_LOCKFS_FLAG));
}

void fleece_dm_resume_prepare(struct fleece_dm_switch *run, const char *name,
			      enum fleece_dm_udev udev)
{
	/*
	 * A new table is swapped in with an implied suspend, for which nothing
	 * has to be frozen. The flags for udev's rules travel as a cookie that
	 * belongs to no semaphore, so nobody waits for its completion.
	 */
	prepare_switch(run, name, DM_SKIP_LOCKFS_FLAG);
	run->argument.event_nr = (uint32_t)(udev_flags(udev) | DM_UDEV_PRIMARY_SOURCE_FLAG)
				 << DM_UDEV_FLAGS_SHIFT;
}

int fleece_dm_switch_run(const struct fleece_dm_switch *run)
{
	struct dm_ioctl argument = run->argument;

	return ioctl(control_fd, run->request, &argument) < 0 ? -errno : 0;
}
