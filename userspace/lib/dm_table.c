// SPDX-License-Identifier: LGPL-2.1-or-later
/* libfleece, dm_table: reads and loads tables. What they mean is not known here. */
#include "dm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dm_task.h"

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
		return fleece_dm_task_error(task);
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
	struct dm_task *task = fleece_dm_task_create(type, name);
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

int fleece_dm_load(const char *name, const struct fleece_dm_table *table)
{
	struct dm_task *task = fleece_dm_task_create(DM_DEVICE_RELOAD, name);
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
	log = fleece_dm_log_open();
	ret = fleece_dm_task_run(task);
	if (ret)
		fleece_dm_log_read(log);
	else if (log >= 0)
		close(log);
	return ret;
}
