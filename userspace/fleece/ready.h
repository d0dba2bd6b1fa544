/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, ready: waits until a server says that clients can connect. */
#ifndef FLEECE_READY_H
#define FLEECE_READY_H

#include <sys/types.h>

/**
 * ready_open() - prepare to be told by a process that is going to be started
 * @name: gets what it is to find in NOTIFY_SOCKET; it lasts as long as the descriptor.
 * @size: of @name, at least 16.
 *
 * It is told as sd_notify(3) tells a service manager.
 *
 * Return: a descriptor, or -errno.
 */
int ready_open(char *name, size_t size);

/**
 * ready_wait() - wait until the process is ready
 * @fd: what ready_open() returned.
 * @pid: a child; what others say does not count.
 * @milliseconds: the longest time to wait.
 * @status: gets that of waitpid() when the child has ended, and is waited for no more.
 *
 * Return: 0 when it is ready, -ECHILD when it has ended, -ETIMEDOUT, or another -errno.
 */
int ready_wait(int fd, pid_t pid, int milliseconds, int *status);

#endif
