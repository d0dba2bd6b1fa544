/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, dm_task: what the files of dm.h share, and nobody else needs.
 *
 * Functions return 0 on success and -errno on failure.
 */
#ifndef FLEECE_LIB_DM_TASK_H
#define FLEECE_LIB_DM_TASK_H

#include <libdevmapper.h>
#include <stdint.h>

#include "dm.h"

/**
 * fleece_dm_task_init() - have the library's messages kept instead of printed
 */
void fleece_dm_task_init(void);

/**
 * fleece_dm_task_forget_error() - drop the text of the last failure
 */
void fleece_dm_task_forget_error(void);

/**
 * fleece_dm_task_create() - make a task; the text of the last failure is dropped
 * @type: of libdevmapper.
 * @name: of the device, or NULL.
 *
 * Return: the task, or NULL without memory.
 */
struct dm_task *fleece_dm_task_create(int type, const char *name);

/**
 * fleece_dm_task_error() - why a task has failed
 * @task: the task; NULL: it could not be made.
 */
int fleece_dm_task_error(struct dm_task *task);

/**
 * fleece_dm_task_run() - run a task and destroy it
 * @task: the task; NULL: it could not be made.
 */
int fleece_dm_task_run(struct dm_task *task);

/**
 * fleece_dm_task_run_udev() - run one that raises a uevent, until udev has dealt with it
 * @task: as for fleece_dm_task_run().
 * @udev: what udev does with the device.
 */
int fleece_dm_task_run_udev(struct dm_task *task, enum fleece_dm_udev udev);

/**
 * fleece_dm_task_udev_flags() - how udev's rules are told
 * @udev: what udev does with the device.
 *
 * Return: the flags, for a cookie.
 */
uint16_t fleece_dm_task_udev_flags(enum fleece_dm_udev udev);

/**
 * fleece_dm_log_open() - remember what the kernel has logged up to now
 *
 * Return: a descriptor whose reads return what it logs later, or -1.
 */
int fleece_dm_log_open(void);

/**
 * fleece_dm_log_read() - make a target's reason the text of the last failure
 * @fd: of fleece_dm_log_open(), which is closed.
 */
void fleece_dm_log_read(int fd);

/**
 * fleece_dm_control() - the control device
 *
 * Return: its descriptor; -1 unless it is open.
 */
int fleece_dm_control(void);

#endif
