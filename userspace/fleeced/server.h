/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, server: accepts clients and gives each a thread, until it is told
 * to stop. Knows nothing of the protocol.
 */
#ifndef FLEECED_SERVER_H
#define FLEECED_SERVER_H

#include "connection.h"
#include "janitor.h"
#include "listen.h"
#include "service_manager.h"
#include "tls_credentials.h"

/**
 * struct server - what to serve, and to whom
 * @rules: for every connection; @rules.stop is raised when it is to end.
 * @listeners: sockets that clients connect to; closed at the end.
 * @socket_path: file to remove as soon as they are closed, or NULL.
 * @janitor: removes it.
 * @tls: every client has to use it; NULL: no client can.
 * @stall_ms: see transport_fd_create().
 * @manager: who is told what the server does.
 */
struct server {
	struct connection_rules rules;
	struct listener_set listeners;
	const char *socket_path;
	struct janitor *janitor;
	const struct tls_credentials *tls;
	int64_t stall_ms;
	const struct service_manager *manager;
};

/**
 * server_block_signals() - SIGTERM, SIGINT and SIGHUP end the server from now on
 *
 * SIGHUP not if it is ignored. Also ignores SIGPIPE. Call it before any thread exists.
 *
 * Return: a descriptor for server_run(), or -errno.
 */
int server_block_signals(void);

/**
 * server_run() - serve until told to stop
 * @server: with its listeners.
 * @signals: from server_block_signals().
 *
 * Says so, in the log and to the service manager, when it is ready. At the end:
 * the sockets are closed and their files removed, requests in work are
 * finished and answered, new ones refused. Another signal, a second or more after the first
 * one, cuts that short.
 *
 * Return: 0, or -ETIMEDOUT when some connections did not end; their threads
 * still run then.
 */
int server_run(struct server *server, int signals);

/**
 * server_run_one() - serve one client on descriptors that are already open
 * @server: without listeners.
 * @signals: from server_block_signals().
 * @in: to read from.
 * @out: to write to.
 *
 * Owns the descriptors.
 *
 * Return: 0 or -errno, as server_run().
 */
int server_run_one(struct server *server, int signals, int in, int out);

#endif
