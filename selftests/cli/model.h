/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cli tests, model: a device-mapper that only exists in memory, behind the
 * functions of lib/dm.h, and a control device. It lies in shared memory, so that what a
 * child or the guardian does to it is seen.
 */
#ifndef FLEECE_CLI_MODEL_H
#define FLEECE_CLI_MODEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_DEVICES	16
#define MODEL_TEXT	256
/* COW space does not grow beyond. */
#define MODEL_COW_MAX	(1ULL << 30)

/**
 * struct model_table - a table of one line; without a type there is none
 * @type: target.
 * @params: the rest.
 * @sectors: length.
 */
struct model_table {
	char type[16];
	char params[MODEL_TEXT];
	uint64_t sectors;
};

/**
 * struct model_device - a device
 * @name: empty if there is none.
 * @uuid: its uuid.
 * @number: minor number.
 * @live: table in use.
 * @inactive: loaded table.
 * @is_suspended: as it says.
 * @is_open: cannot be removed.
 * @snapshots: what the status of an origin says.
 */
struct model_device {
	char name[128];
	char uuid[129];
	unsigned int number;
	struct model_table live;
	struct model_table inactive;
	bool is_suspended;
	bool is_open;
	unsigned int snapshots;
};

/**
 * struct model - all devices, what was done, and what shall go wrong
 * @devices: the devices.
 * @next_number: minor number of the next one.
 * @log: what was done to devices, words separated by blanks.
 * @changes: how many changes were made since model_reset().
 * @fail_at: this change fails; 0: none.
 * @meddle_at: before this change somebody else gives @meddle_with another table; 0: never.
 * @meddle_with: a device.
 * @is_meddler_slow: the table is only loaded then.
 * @kill_at: the process dies of SIGKILL before this change; 0: never.
 * @has_mortal_guardian: another process dies of SIGKILL at its first change.
 * @stick_on: suspending this device waits until no other one is suspended.
 * @cows: COW devices in existence.
 * @checkpoints: answer to checkpoint_list.
 * @deleted: checkpoint_delete messages.
 * @grown: cow_resize messages.
 * @locks: how often the right to change devices was taken.
 * @newer: how many interface versions the module is ahead of the command.
 * @main_pid: process whose changes can fail or kill.
 */
struct model {
	struct model_device devices[MODEL_DEVICES];
	unsigned int next_number;
	char log[4096];
	atomic_uint changes;
	unsigned int fail_at;
	unsigned int meddle_at;
	char meddle_with[128];
	bool is_meddler_slow;
	unsigned int kill_at;
	bool has_mortal_guardian;
	char stick_on[128];
	unsigned int cows;
	char checkpoints[1024];
	unsigned int deleted;
	unsigned int grown;
	unsigned int locks;
	unsigned int newer;
	int main_pid;
};

extern struct model *model;

/**
 * model_reset() - drop everything
 */
void model_reset(void);

/**
 * model_add() - add a live device
 * @name: its name.
 * @uuid: its uuid.
 * @type: its target.
 * @params: the target's parameters.
 *
 * Return: the device.
 */
struct model_device *model_add(const char *name, const char *uuid, const char *type,
			       const char *params);

/**
 * model_find() - find a device
 * @name: its name.
 *
 * Return: the device, or NULL.
 */
struct model_device *model_find(const char *name);

#endif
