// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, model: stands in for lib/dm.c, the control device and fleece/cow.c.
 * It follows the kernel where verbs depend on it: a resume swaps the loaded
 * table in; one that fails drops that table and leaves the device suspended.
 */
#include "model.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "cow.h"
#include "cow_lvm.h"
#include "dm.h"
#include "lock.h"

/* Of no device: the command looks for their like in /sys. */
#define MODEL_MAJOR	4003
#define COW_MAJOR	4002
#define MODEL_SECTORS	2097152

struct model *model;

/* The tests need no root. */
uid_t geteuid(void)
{
	return 0;
}

void model_reset(void)
{
	if (!model)
		model = mmap(NULL, sizeof(*model), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (model == MAP_FAILED)
		abort();
	memset(model, 0, sizeof(*model));
	model->main_pid = getpid();
}

struct model_device *model_find(const char *name)
{
	int i;

	for (i = 0; i < MODEL_DEVICES; i++)
		if (model->devices[i].name[0] && !strcmp(model->devices[i].name, name))
			return &model->devices[i];
	return NULL;
}

static struct model_device *add_device(const char *name, const char *uuid)
{
	int i;

	for (i = 0; i < MODEL_DEVICES && model->devices[i].name[0]; i++)
		;
	if (i == MODEL_DEVICES)
		abort();
	memset(&model->devices[i], 0, sizeof(model->devices[i]));
	snprintf(model->devices[i].name, sizeof(model->devices[i].name), "%s", name);
	snprintf(model->devices[i].uuid, sizeof(model->devices[i].uuid), "%s", uuid);
	model->devices[i].number = model->next_number++;
	return &model->devices[i];
}

struct model_device *model_add(const char *name, const char *uuid, const char *type,
			       const char *params)
{
	struct model_device *device = add_device(name, uuid);

	snprintf(device->live.type, sizeof(device->live.type), "%s", type);
	snprintf(device->live.params, sizeof(device->live.params), "%s", params);
	device->live.sectors = MODEL_SECTORS;
	return device;
}

/* As `lvextend` in another terminal would. */
static void meddle(void)
{
	struct model_device *device = model_find(model->meddle_with);
	struct model_table table = { .type = "linear", .params = "4001:0 4096" };

	table.sectors = 2 * MODEL_SECTORS;
	memset(&device->inactive, 0, sizeof(device->inactive));
	if (model->is_meddler_slow)
		device->inactive = table;
	else
		device->live = table;
}

/* Write down a change; the one that shall fail fails. */
static int change(const char *what, const char *name)
{
	size_t used = strlen(model->log);

	snprintf(model->log + used, sizeof(model->log) - used, "%s%s:%s", used ? " " : "", what,
		 name);
	if (getpid() != model->main_pid) {
		if (model->has_mortal_guardian)
			kill(getpid(), SIGKILL);
		return 0;
	}
	model->changes++;
	if (model->changes == model->meddle_at)
		meddle();
	if (model->changes == model->kill_at)
		kill(getpid(), SIGKILL);
	return model->changes == model->fail_at ? -EIO : 0;
}

int fleece_dm_open(void)
{
	return 0;
}

void fleece_dm_close(void)
{
}

const char *fleece_dm_error(void)
{
	return "";
}

static int read_info(const struct model_device *device, struct fleece_dm_info *info)
{
	memset(info, 0, sizeof(*info));
	if (!device)
		return -ENXIO;
	snprintf(info->name, sizeof(info->name), "%s", device->name);
	snprintf(info->uuid, sizeof(info->uuid), "%s", device->uuid);
	info->devno = makedev(MODEL_MAJOR, device->number);
	info->open_count = device->is_open;
	info->is_suspended = device->is_suspended;
	info->is_live = device->live.type[0];
	info->has_inactive = device->inactive.type[0];
	return 0;
}

int fleece_dm_info(const char *name, struct fleece_dm_info *info)
{
	return read_info(model_find(name), info);
}

int fleece_dm_info_devno(dev_t devno, struct fleece_dm_info *info)
{
	int i;

	for (i = 0; i < MODEL_DEVICES; i++)
		if (model->devices[i].name[0] &&
		    makedev(MODEL_MAJOR, model->devices[i].number) == devno)
			return read_info(&model->devices[i], info);
	return -ENXIO;
}

int fleece_dm_list(char ***names, size_t *count)
{
	int i;

	*names = calloc(MODEL_DEVICES, sizeof(**names));
	*count = 0;
	for (i = 0; i < MODEL_DEVICES; i++)
		if (model->devices[i].name[0])
			(*names)[(*count)++] = strdup(model->devices[i].name);
	return 0;
}

void fleece_dm_list_free(char **names, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		free(names[i]);
	free(names);
}

static int make_table(const struct model_table *from, const char *params,
		      struct fleece_dm_table *table)
{
	memset(table, 0, sizeof(*table));
	if (!from->type[0])
		return 0;
	table->targets = calloc(1, sizeof(*table->targets));
	table->count = 1;
	table->targets[0].length = from->sectors;
	snprintf(table->targets[0].type, sizeof(table->targets[0].type), "%s", from->type);
	table->targets[0].params = strdup(params);
	return 0;
}

int fleece_dm_table(const char *name, struct fleece_dm_table *table)
{
	struct model_device *device = model_find(name);

	return device ? make_table(&device->live, device->live.params, table) : -ENXIO;
}

int fleece_dm_inactive_table(const char *name, struct fleece_dm_table *table)
{
	struct model_device *device = model_find(name);

	return device ? make_table(&device->inactive, device->inactive.params, table) : -ENXIO;
}

int fleece_dm_status(const char *name, struct fleece_dm_table *table)
{
	struct model_device *device = model_find(name);
	char text[64];

	if (!device)
		return -ENXIO;
	if (!strcmp(device->live.type, "fleece"))
		snprintf(text, sizeof(text), "128 16384 0 none %u 0 -", device->snapshots);
	else
		snprintf(text, sizeof(text), "active 0/1 128 1/1 0 0 0 0 0 0 0");
	return make_table(&device->live, text, table);
}

void fleece_dm_table_free(struct fleece_dm_table *table)
{
	if (table->count)
		free(table->targets[0].params);
	free(table->targets);
	memset(table, 0, sizeof(*table));
}

int fleece_dm_create(const char *name, const char *uuid)
{
	int ret = change("create", name);

	if (!ret)
		add_device(name, uuid);
	return ret;
}

int fleece_dm_load(const char *name, const struct fleece_dm_table *table)
{
	struct model_device *device = model_find(name);
	int ret = change("load", name);

	if (ret)
		return ret;
	snprintf(device->inactive.type, sizeof(device->inactive.type), "%s",
		 table->targets[0].type);
	snprintf(device->inactive.params, MODEL_TEXT, "%s", table->targets[0].params);
	device->inactive.sectors = table->targets[0].length;
	return 0;
}

int fleece_dm_clear(const char *name)
{
	struct model_device *device = model_find(name);

	memset(&device->inactive, 0, sizeof(device->inactive));
	return 0;
}

static int resume(const char *what, const char *name)
{
	struct model_device *device = model_find(name);
	int ret = change(what, name);

	if (device->inactive.type[0] && ret)
		device->is_suspended = true;
	else if (!ret)
		device->is_suspended = false;
	if (device->inactive.type[0] && !ret)
		device->live = device->inactive;
	memset(&device->inactive, 0, sizeof(device->inactive));
	return ret;
}

int fleece_dm_resume(const char *name, enum fleece_dm_udev udev)
{
	(void)udev;
	return resume("resume", name);
}

int fleece_dm_remove(const char *name)
{
	struct model_device *device = model_find(name);

	if (!device)
		return -ENXIO;
	if (device->is_open)
		return -EBUSY;
	device->name[0] = 0;
	return 0;
}

int fleece_dm_message(const char *name, const char *text, char **reply)
{
	(void)name;
	if (!strncmp(text, "checkpoint_delete ", 18))
		model->deleted++;
	if (!strcmp(text, "cow_resize"))
		model->grown++;
	if (reply)
		*reply = strdup(model->checkpoints);
	return 0;
}

int fleece_dm_target_version(const char *type)
{
	(void)type;
	return 0;
}

int fleece_dm_settle(const char *name)
{
	(void)name;
	return 0;
}

/* What a switch does, if it is no resume. */
enum { HOLD = 1, FREEZE, CLEAR };

void fleece_dm_clear_prepare(struct fleece_dm_switch *run, const char *name)
{
	memset(run, 0, sizeof(*run));
	run->request = CLEAR;
	snprintf(run->argument.name, sizeof(run->argument.name), "%s", name);
}

void fleece_dm_suspend_prepare(struct fleece_dm_switch *run, const char *name, bool freeze)
{
	memset(run, 0, sizeof(*run));
	run->request = freeze ? FREEZE : HOLD;
	snprintf(run->argument.name, sizeof(run->argument.name), "%s", name);
}

void fleece_dm_resume_prepare(struct fleece_dm_switch *run, const char *name,
			      enum fleece_dm_udev udev)
{
	(void)udev;
	memset(run, 0, sizeof(*run));
	snprintf(run->argument.name, sizeof(run->argument.name), "%s", name);
}

/* As if the device's filesystem lay in files on the others. */
static void wait_for_others(const char *name)
{
	const struct timespec step = { .tv_nsec = 1000000 };
	bool is_waiting = true;
	int i;

	while (is_waiting) {
		is_waiting = false;
		for (i = 0; i < MODEL_DEVICES; i++)
			is_waiting |= model->devices[i].name[0] &&
				      model->devices[i].is_suspended &&
				      strcmp(model->devices[i].name, name);
		nanosleep(&step, NULL);
	}
}

int fleece_dm_switch_run(const struct fleece_dm_switch *run)
{
	struct model_device *device = model_find(run->argument.name);
	int ret;

	if (!run->request)
		return resume("go", run->argument.name);
	if (run->request == CLEAR)
		return fleece_dm_clear(run->argument.name);
	ret = change(run->request == FREEZE ? "freeze" : "hold", run->argument.name);
	if (ret)
		return ret;
	if (!strcmp(model->stick_on, run->argument.name))
		wait_for_others(run->argument.name);
	device->is_suspended = true;
	return 0;
}

/* What lib/control.c calls for open() and ioctl(), of a module without checkpoints or maps. */
int model_open(const char *path, int flags, ...)
{
	(void)path;
	(void)flags;
	return dup(0);
}

int model_ioctl(int control, unsigned long request, ...)
{
	struct fleece_version *version;
	va_list arguments;

	(void)control;
	switch (request) {
	case FLEECE_IOC_VERSION:
		va_start(arguments, request);
		version = va_arg(arguments, struct fleece_version *);
		va_end(arguments);
		version->interface = FLEECE_INTERFACE_VERSION + model->newer;
		return 0;
	case FLEECE_IOC_CHECKPOINTS:
		return 0;
	default:
		errno = ENODEV;
		return -1;
	}
}

enum status lock_run_dir(void)
{
	return DONE;
}

enum status lock_changes(void)
{
	model->locks++;
	return DONE;
}

void lock_release(void)
{
}

enum status cow_make(const struct cow_request *request, const struct origin *origin,
		     const char *snapshot, struct cow *cow)
{
	int ret = change("cow", snapshot);

	(void)origin;
	memset(cow, 0, sizeof(*cow));
	cow->held = -1;
	cow->kind = request->kind == COW_AUTO ? COW_FILE : request->kind;
	if (ret)
		return report_errno(ret, snapshot, "cannot make COW space");
	cow->devno = makedev(COW_MAJOR, model->cows++);
	return DONE;
}

void cow_put(struct cow *cow)
{
	cow->held = -1;
}

enum status cow_grow(enum cow_kind kind, dev_t devno, const char *snapshot, uint64_t bytes)
{
	(void)kind;
	(void)devno;
	return bytes > MODEL_COW_MAX ? report(FAILED, snapshot, "no room") : DONE;
}

bool cow_lvm_leftovers(void (*tell)(const char *volume))
{
	(void)tell;
	return false;
}

enum status cow_free(enum cow_kind kind, dev_t devno, const char *snapshot)
{
	(void)kind;
	(void)devno;
	(void)snapshot;
	model->cows--;
	return DONE;
}

const char *cow_kind_name(enum cow_kind kind)
{
	return kind == COW_USER ? "user" : "file";
}

int cow_kind_parse(const char *name, enum cow_kind *kind)
{
	*kind = COW_FILE;
	return strcmp(name, "file") ? -EINVAL : 0;
}

enum cow_kind cow_kind_of(const char *uuid)
{
	(void)uuid;
	return COW_FILE;
}
