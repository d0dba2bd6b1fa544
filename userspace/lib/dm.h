/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, dm: device-mapper devices by name.
 *
 * Functions return 0 on success and -errno on failure; they never print. What
 * libdevmapper and the kernel had to say about the last failure is kept for
 * fleece_dm_error(). Not for use by several threads at once.
 */
#ifndef FLEECE_LIB_DM_H
#define FLEECE_LIB_DM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <linux/dm-ioctl.h>

/**
 * struct fleece_dm_info - a device-mapper device
 * @name: its name.
 * @uuid: its uuid, may be empty.
 * @devno: its device number.
 * @open_count: how often it is open, mounts and devices above it included.
 * @is_suspended: it holds I/O.
 * @is_live: it has a table.
 * @has_inactive: a table is loaded that the next resume would use.
 * @is_read_only: it cannot be written.
 */
struct fleece_dm_info {
	char name[DM_NAME_LEN];
	char uuid[DM_UUID_LEN];
	dev_t devno;
	int open_count;
	bool is_suspended;
	bool is_live;
	bool has_inactive;
	bool is_read_only;
};

/**
 * struct fleece_dm_target - one line of a table or of a status
 * @start: first sector.
 * @length: sectors.
 * @type: target name.
 * @params: the rest of the line.
 */
struct fleece_dm_target {
	uint64_t start;
	uint64_t length;
	char type[DM_MAX_TYPE_NAME];
	char *params;
};

/**
 * struct fleece_dm_table - all lines of a table or of a status
 * @targets: array of @count lines.
 * @count: number of lines.
 * @is_read_only: the device cannot be written.
 */
struct fleece_dm_table {
	struct fleece_dm_target *targets;
	size_t count;
	bool is_read_only;
};

/**
 * enum fleece_dm_udev - what udev does with a device
 * @FLEECE_DM_UDEV_ALL: everything: symlinks, scans, rules of others.
 * @FLEECE_DM_UDEV_NODE_ONLY: /dev/mapper/NAME alone. For devices whose content
 *	is a duplicate of another one: a scan would find every label twice.
 */
enum fleece_dm_udev {
	FLEECE_DM_UDEV_ALL,
	FLEECE_DM_UDEV_NODE_ONLY,
};

/**
 * struct fleece_dm_switch - a suspend, clear or resume made ready
 * @request: the ioctl.
 * @argument: its argument; one for every run, the kernel writes into it.
 */
struct fleece_dm_switch {
	unsigned long request;
	struct dm_ioctl argument;
};

/**
 * fleece_dm_open() - open the control device
 *
 * Return: 0, -EACCES without the privilege, -ENOENT or another errno when the
 * kernel has no device-mapper.
 */
int fleece_dm_open(void);

/**
 * fleece_dm_close() - close the control device
 */
void fleece_dm_close(void);

/**
 * fleece_dm_error() - what was said about the last failure
 *
 * Return: text without line feed, empty if nothing was said. It stays valid
 * until the next call of this file's functions.
 */
const char *fleece_dm_error(void);

/**
 * fleece_dm_info() - look up a device by name
 * @name: its name.
 * @info: filled in.
 *
 * Return: 0, -ENXIO when there is no such device, or another -errno.
 */
int fleece_dm_info(const char *name, struct fleece_dm_info *info);

/**
 * fleece_dm_info_devno() - look up a device by number
 * @devno: its device number.
 * @info: filled in.
 *
 * Return: 0, -ENXIO when there is no such device-mapper device, or another -errno.
 */
int fleece_dm_info_devno(dev_t devno, struct fleece_dm_info *info);

/**
 * fleece_dm_list() - names of all devices, sorted
 * @names: set to an array of @count names; free with fleece_dm_list_free().
 * @count: set to its length.
 *
 * Return: 0 or -errno.
 */
int fleece_dm_list(char ***names, size_t *count);

/**
 * fleece_dm_list_free() - free a list of names
 * @names: from fleece_dm_list(), may be NULL.
 * @count: its length.
 */
void fleece_dm_list_free(char **names, size_t count);

/**
 * fleece_dm_table() - the live table of a device
 * @name: the device.
 * @table: filled in; free with fleece_dm_table_free().
 *
 * The table may hold encryption keys: do not print it.
 *
 * Return: 0, -ENXIO when there is no such device, or another -errno.
 */
int fleece_dm_table(const char *name, struct fleece_dm_table *table);

/**
 * fleece_dm_inactive_table() - the table that the next resume would make live
 * @name: the device.
 * @table: filled in, empty if there is none; free with fleece_dm_table_free().
 *
 * Return: 0, -ENXIO when there is no such device, or another -errno.
 */
int fleece_dm_inactive_table(const char *name, struct fleece_dm_table *table);

/**
 * fleece_dm_status() - the status of a device, without flushing it
 * @name: the device.
 * @table: filled in; free with fleece_dm_table_free().
 *
 * Return: 0, -ENXIO when there is no such device, or another -errno.
 */
int fleece_dm_status(const char *name, struct fleece_dm_table *table);

/**
 * fleece_dm_table_free() - free the lines of a table
 * @table: it is empty afterwards.
 */
void fleece_dm_table_free(struct fleece_dm_table *table);

/**
 * fleece_dm_create() - create a device without a table
 * @name: its name.
 * @uuid: its uuid.
 *
 * Return: 0, -EEXIST or -EBUSY when name or uuid are in use, or another -errno.
 */
int fleece_dm_create(const char *name, const char *uuid);

/**
 * fleece_dm_load() - load a table; the next resume makes it live
 * @name: the device.
 * @table: the table.
 *
 * Return: 0 or -errno; fleece_dm_error() then has the target's reason if the
 * kernel log could be read.
 */
int fleece_dm_load(const char *name, const struct fleece_dm_table *table);

/**
 * fleece_dm_clear() - drop a table that was loaded but not resumed
 * @name: the device.
 *
 * Return: 0 or -errno.
 */
int fleece_dm_clear(const char *name);

/**
 * fleece_dm_resume() - make a loaded table live, let I/O go, wait for udev
 * @name: the device.
 * @udev: what udev does with it.
 *
 * Return: 0 or -errno.
 */
int fleece_dm_resume(const char *name, enum fleece_dm_udev udev);

/**
 * fleece_dm_remove() - remove a device
 * @name: the device.
 *
 * Return: 0, -EBUSY while it is open, -ENXIO when there is none, or another -errno.
 */
int fleece_dm_remove(const char *name);

/**
 * fleece_dm_message() - send a message to the target at sector 0
 * @name: the device.
 * @text: the message.
 * @reply: set to the answer, which the caller frees; NULL when it is not wanted.
 *
 * Return: 0 or -errno.
 */
int fleece_dm_message(const char *name, const char *text, char **reply);

/**
 * fleece_dm_target_version() - whether the kernel has a target
 * @type: target name.
 *
 * Return: 0, -ENOENT when it is not registered, or another -errno.
 */
int fleece_dm_target_version(const char *type);

/**
 * fleece_dm_settle() - make sure that /dev/mapper/NAME exists
 * @name: the device.
 *
 * Waits a few seconds for udev, then makes the node itself. For devices resumed
 * by a switch, which tells nobody.
 *
 * Return: 0 or -errno.
 */
int fleece_dm_settle(const char *name);

/**
 * fleece_dm_suspend_prepare() - make a suspend ready
 * @run: filled in.
 * @name: the device.
 * @freeze: also freeze the filesystem on it.
 */
void fleece_dm_suspend_prepare(struct fleece_dm_switch *run, const char *name, bool freeze);

/**
 * fleece_dm_clear_prepare() - make ready to drop a table that is loaded, but not live
 * @run: filled in.
 * @name: the device.
 */
void fleece_dm_clear_prepare(struct fleece_dm_switch *run, const char *name);

/**
 * fleece_dm_resume_prepare() - make a resume ready
 * @run: filled in.
 * @name: the device.
 * @udev: what udev does with it.
 */
void fleece_dm_resume_prepare(struct fleece_dm_switch *run, const char *name,
			      enum fleece_dm_udev udev);

/**
 * fleece_dm_switch_run() - do what was made ready
 * @run: the suspend, clear or resume.
 *
 * One system call and nothing else: no memory is allocated, no file is looked
 * up or written, nobody is waited for. It can be run several times.
 *
 * Context: safe while the root filesystem is frozen, and after fork().
 * Return: 0 or -errno.
 */
int fleece_dm_switch_run(const struct fleece_dm_switch *run);

#endif
