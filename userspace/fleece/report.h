/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, report: exit statuses and the one shape of all error messages. */
#ifndef FLEECE_REPORT_H
#define FLEECE_REPORT_H

/**
 * enum status - exit statuses; scripts and backup agents branch on them
 * @DONE: everything asked for was done.
 * @FAILED: something else went wrong.
 * @USAGE: the command line makes no sense.
 * @NO_DEVICE: no such device, origin or snapshot.
 * @BUSY: it exists already or is in use.
 * @BROKEN: the snapshot is broken.
 * @NO_CHECKPOINT: no such or an invalid checkpoint: make a full backup.
 * @NO_MODULE: the kernel module is missing or of another version.
 * @NO_PERMISSION: root is needed.
 */
enum status {
	DONE = 0,
	FAILED = 1,
	USAGE = 2,
	NO_DEVICE = 4,
	BUSY = 5,
	BROKEN = 6,
	NO_CHECKPOINT = 7,
	NO_MODULE = 8,
	NO_PERMISSION = 9,
};

/**
 * report_verb() - set the verb that messages begin with
 * @verb: the verb.
 */
void report_verb(const char *verb);

/**
 * report() - print an error
 * @status: what report() returns.
 * @name: device it is about, or NULL.
 * @format: what is wrong: why; what to do. No line feed.
 *
 * Return: @status, so that a caller can return it.
 */
enum status report(enum status status, const char *name, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/**
 * report_errno() - print what failed with which errno
 * @error: the errno, positive or negative.
 * @name: device it is about, or NULL.
 * @format: what failed. No line feed.
 *
 * Return: the exit status for @error.
 */
enum status report_errno(int error, const char *name, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/**
 * report_note() - print something worth knowing that is not an error
 * @name: device it is about, or NULL.
 * @format: the text. No line feed.
 */
void report_note(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/**
 * report_other() - what was not there is not the device that the verb is for
 * @status: of report_errno().
 *
 * Return: FAILED for NO_DEVICE, else @status.
 */
enum status report_other(enum status status);

/**
 * report_status_of() - exit status for an errno
 * @error: the errno, positive or negative.
 *
 * Return: NO_DEVICE, BUSY, NO_PERMISSION or FAILED.
 */
enum status report_status_of(int error);

#endif
