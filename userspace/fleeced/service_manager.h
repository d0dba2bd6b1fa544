/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, service_manager: what systemd, or who does as it does, hands over at
 * the start, and what it is told (sd_listen_fds(3), sd_notify(3)).
 */
#ifndef FLEECED_SERVICE_MANAGER_H
#define FLEECED_SERVICE_MANAGER_H

#include "listen.h"

/**
 * struct service_manager - whom to tell
 * @fd: connected socket, or -1: nobody.
 */
struct service_manager {
	int fd;
};

/**
 * service_manager_sockets() - sockets handed over to this process
 *
 * Return: their number, which is that of LISTEN_FDS if LISTEN_PID names this
 * process, or -EINVAL when it is not a number that makes sense.
 */
int service_manager_sockets(void);

/**
 * service_manager_adopt() - listen on the sockets handed over
 * @set: gets them.
 * @allow_any: as for listen_adopt().
 *
 * Prints why it failed. Removes the variables, so that no child takes them for
 * its own.
 *
 * Return: 0 or -errno.
 */
int service_manager_adopt(struct listener_set *set, bool allow_any);

/**
 * service_manager_open() - connect to NOTIFY_SOCKET, if there is one
 * @manager: filled in; closed by service_manager_close().
 *
 * Prints why it failed. Removes the variable.
 *
 * Return: 0 or -errno.
 */
int service_manager_open(struct service_manager *manager);

/** service_manager_close() - give back what service_manager_open() took */
void service_manager_close(struct service_manager *manager);

/**
 * service_manager_tell() - send a message
 * @manager: may be nobody.
 * @format: as for printf, lines of the form NAME=value.
 *
 * Whether it arrives is not known.
 */
void service_manager_tell(const struct service_manager *manager, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/**
 * service_manager_insist() - send a message that is not sent again
 * @manager: may be nobody.
 * @message: a line of the form NAME=value.
 *
 * One that is busy is waited for, some seconds.
 */
void service_manager_insist(const struct service_manager *manager, const char *message);

#endif
