/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, sandbox: the system calls that are left to the process and to every
 * thread that it will start. Any other one ends the process at once (SIGSYS),
 * and the kernel logs its number.
 */
#ifndef FLEECED_SANDBOX_H
#define FLEECED_SANDBOX_H

#include <stdbool.h>

/**
 * sandbox_enter_server() - leave what serving needs
 * @can_release: also the call that releases parts of a snapshot.
 *
 * Files can be neither opened nor removed, nothing can be connected to, no
 * process started, no memory made executable.
 *
 * Prints why it failed.
 *
 * Context: before any thread exists, after privileges_drop().
 * Return: 0 or -errno.
 */
int sandbox_enter_server(bool can_release);

/**
 * sandbox_enter_janitor() - leave what is needed to remove files
 *
 * Prints why it failed.
 *
 * Context: as for sandbox_enter_server().
 * Return: 0 or -errno.
 */
int sandbox_enter_janitor(void);

#endif
