/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Device-mapper by its ioctls.
 *
 * For tests that must not start a process at the moment that they test. Owns
 * the control device's descriptor; knows nothing of particular targets.
 */
#ifndef FLEECE_TEST_DM_H
#define FLEECE_TEST_DM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * dm_create() - make a device with one target and start it
 * @name: of the device.
 * @sectors: length.
 * @type: of the target.
 * @params: of the target.
 * @path: gets the path of the node, at least 32 bytes.
 *
 * Return: 0 or -errno; nothing is left behind on error.
 */
int dm_create(const char *name, uint64_t sectors, const char *type, const char *params,
	      char *path);

/** dm_load() - load a table for @name, to be used from its next resume on; 0 or -errno */
int dm_load(const char *name, uint64_t sectors, const char *type, const char *params);

/**
 * dm_reload() - replace the table of a live device
 * @name: dm name.
 * @sectors: its new size.
 * @type: target.
 * @params: its arguments.
 *
 * Return: 0 or -errno; if that is from its resume the device stays suspended.
 */
int dm_reload(const char *name, uint64_t sectors, const char *type, const char *params);

/** dm_path() - path of the node of the device @name; returns 0 or -errno */
int dm_path(const char *name, char *path);

/** dm_suspend() - suspend @name, I/O in flight is drained; returns 0 or -errno */
int dm_suspend(const char *name);

/** dm_suspend_noflush() - suspend @name, I/O in flight is held; returns 0 or -errno */
int dm_suspend_noflush(const char *name);

/** dm_resume() - resume @name; returns 0 or -errno */
int dm_resume(const char *name);

/** dm_remove() - remove @name, waits a few seconds for users to go; returns 0 or -errno */
int dm_remove(const char *name);

/** dm_remove_deferred() - remove @name when its last user has gone; returns 0 or -errno */
int dm_remove_deferred(const char *name);

/** dm_rename() - @name is @new_name from now on; returns 0 or -errno */
int dm_rename(const char *name, const char *new_name);

/** dm_message() - send the printf-like message @format to @name; returns 0 or -errno */
int dm_message(const char *name, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/** dm_status() - status of the only target of @name into @text; returns 0 or -errno */
int dm_status(const char *name, char *text, size_t size);

/** dm_params() - params of the only target of @name into @text; returns 0 or -errno */
int dm_params(const char *name, char *text, size_t size);

#endif
