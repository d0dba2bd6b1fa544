/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, listen: the sockets that clients connect to. */
#ifndef FLEECED_LISTEN_H
#define FLEECED_LISTEN_H

#include <stdbool.h>
#include <stddef.h>

#include <sys/types.h>

#define LISTEN_MAX 16

/**
 * struct listener - one listening socket
 * @fd: non-blocking.
 * @path: of a Unix socket, else NULL; not owned.
 * @device: of the socket file, to recognise it later.
 * @inode: likewise.
 */
struct listener {
	int fd;
	const char *path;
	dev_t device;
	ino_t inode;
};

/**
 * struct listener_set - all listening sockets
 * @listeners: array.
 * @count: in use.
 */
struct listener_set {
	struct listener listeners[LISTEN_MAX];
	size_t count;
};

/**
 * listen_unix() - listen on a Unix socket
 * @set: gets the socket.
 * @path: of the socket; only its owner may connect. A file left behind by a
 *	server that died is replaced, one in use is not.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int listen_unix(struct listener_set *set, const char *path);

/**
 * listen_tcp() - listen on all addresses of a name
 * @set: gets the sockets.
 * @address: ADDR, ADDR:PORT, [ADDR6] or [ADDR6]:PORT; port 0 takes a free one,
 *	which is logged.
 * @allow_any: also others than loopback addresses.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno (-EACCES: not a loopback address).
 */
int listen_tcp(struct listener_set *set, const char *address, bool allow_any);

/**
 * listen_accept() - the next client of a socket
 * @listener: with a client waiting.
 * @peer: gets the client's address, for the log.
 * @size: of @peer.
 *
 * Return: a non-blocking descriptor, or -errno.
 */
int listen_accept(const struct listener *listener, char *peer, size_t size);

/** listen_close() - close all sockets and remove the files of Unix sockets */
void listen_close(struct listener_set *set);

#endif
