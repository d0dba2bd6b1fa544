// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, dm: wraps libdevmapper. It owns the control descriptor. Tables are the business
 * of dm_table.c, and what works while filesystems are frozen that of dm_switch.c.
 */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "dm_task.h"

#define CONTROL_NODE		"/dev/" DM_DIR "/" DM_CONTROL_NODE
#define SETTLE_MS		5000
#define SETTLE_STEP_MS		10
#define REMOVE_MS		5000
#define REMOVE_STEP_MS		100

static int control_fd = -1;

int fleece_dm_open(void)
{
	fleece_dm_task_init();
	dm_set_name_mangling_mode(DM_STRING_MANGLING_NONE);
	dm_hold_control_dev(1);
	/* Opened first by us: libdevmapper turns every failure into text. */
	control_fd = open(CONTROL_NODE, O_RDWR | O_CLOEXEC);
	if (control_fd < 0 && errno == ENOENT) {
		/* Without udev libdevmapper makes the node. */
		fleece_dm_task_run(fleece_dm_task_create(DM_DEVICE_VERSION, NULL));
		control_fd = open(CONTROL_NODE, O_RDWR | O_CLOEXEC);
	}
	return control_fd < 0 ? -errno : 0;
}

int fleece_dm_control(void)
{
	return control_fd;
}

void fleece_dm_close(void)
{
	if (control_fd >= 0)
		close(control_fd);
	control_fd = -1;
	dm_hold_control_dev(0);
	dm_lib_release();
}

static int read_info(struct dm_task *task, struct fleece_dm_info *info)
{
	const char *name, *uuid;
	struct dm_info raw;

	memset(info, 0, sizeof(*info));
	if (!dm_task_run(task))
		return fleece_dm_task_error(task);
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
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_INFO, name);
	int ret = task ? read_info(task, info) : -ENOMEM;

	if (task)
		dm_task_destroy(task);
	return ret;
}

int fleece_dm_info_devno(dev_t devno, struct fleece_dm_info *info)
{
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_INFO, NULL);
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
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_LIST, NULL);
	int ret;

	if (!task || !dm_task_run(task))
		ret = fleece_dm_task_error(task);
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

int fleece_dm_create(const char *name, const char *uuid)
{
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_CREATE, name);

	if (!task || !dm_task_set_uuid(task, uuid) ||
	    !dm_task_set_add_node(task, DM_ADD_NODE_ON_RESUME)) {
		if (task)
			dm_task_destroy(task);
		return -ENOMEM;
	}
	return fleece_dm_task_run(task);
}

int fleece_dm_clear(const char *name)
{
	return fleece_dm_task_run(fleece_dm_task_create(DM_DEVICE_CLEAR, name));
}

int fleece_dm_resume(const char *name, enum fleece_dm_udev udev)
{
	int log = fleece_dm_log_open();
	int ret = fleece_dm_task_run_udev(fleece_dm_task_create(DM_DEVICE_RESUME, name), udev);

	if (ret)
		fleece_dm_log_read(log);
	else if (log >= 0)
		close(log);
	return ret;
}

int fleece_dm_remove(const char *name)
{
	const struct timespec step = { .tv_nsec = REMOVE_STEP_MS * 1000000L };
	int waited, ret;

	/* A scanner that looks at every new device, or a server that ends, is gone in a moment. */
	for (waited = 0; ; waited += REMOVE_STEP_MS) {
		ret = fleece_dm_task_run_udev(fleece_dm_task_create(DM_DEVICE_REMOVE, name),
					      FLEECE_DM_UDEV_ALL);
		if (ret != -EBUSY || waited >= REMOVE_MS)
			return ret;
		nanosleep(&step, NULL);
	}
}

int fleece_dm_message(const char *name, const char *text, char **reply)
{
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_TARGET_MSG, name);
	const char *answer;
	int ret = 0;

	if (!task || !dm_task_set_sector(task, 0) || !dm_task_set_message(task, text))
		ret = -ENOMEM;
	else if (!dm_task_run(task))
		ret = fleece_dm_task_error(task);
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
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *version;
	int ret = -ENOENT;

	if (!task || !dm_task_run(task)) {
		ret = fleece_dm_task_error(task);
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
	fleece_dm_task_forget_error();
	if (!dm_mknodes(name))
		return -EIO;
	dm_task_update_nodes();
	return stat(path, &st) ? -errno : 0;
}
