/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, lock: one command at a time changes devices. */
#ifndef FLEECE_LOCK_H
#define FLEECE_LOCK_H

#include "report.h"

/* For what runs: sockets, pid files, logs, the lock. */
#define RUN_DIR		"/run/fleece"

/**
 * lock_run_dir() - see to it that RUN_DIR exists
 *
 * Return: DONE or, reported, FAILED.
 */
enum status lock_run_dir(void);

/**
 * lock_changes() - wait until no other command changes devices
 *
 * Two commands at work on one origin would each suspend and resume it within the
 * other's point in time. The lock is this process's, and that of the guardian of
 * window.c, which may have to outlive it; it ends with both, or with lock_release().
 *
 * Context: an interrupt ends the wait, by an error where process_hold_signals() has been called.
 * Return: DONE or, reported, FAILED.
 */
enum status lock_changes(void);

/**
 * lock_release() - let the next command change devices
 */
void lock_release(void);

#endif
