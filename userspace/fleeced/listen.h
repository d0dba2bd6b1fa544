/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, listen: the sockets that clients connect to. */
#ifndef FLEECED_LISTEN_H
#define FLEECED_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LISTEN_MAX 16

/**
 * struct socket_access - who may connect to a Unix socket
 * @mode: permissions of the file.
 * @owner: of the file; -1: who starts the server.
 * @group: of the file; -1: that of who starts the server.
 */
struct socket_access {
	mode_t mode;
	uid_t owner;
	gid_t group;
};

/**
 * struct listener - one listening socket
 * @fd: non-blocking.
 * @family: AF_UNIX, AF_INET, AF_INET6 or AF_VSOCK.
 */
struct listener {
	int fd;
	int family;
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
 * @path: of the socket. A file left behind by a server that died is replaced,
 *	one in use is not.
 * @access: of the file, before anyone can connect.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int listen_unix(struct listener_set *set, const char *path, const struct socket_access *access);

/** listen_tcp_is_valid() - is it an address as listen_tcp() wants it? Looks nothing up. */
bool listen_tcp_is_valid(const char *address);

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

/** listen_vsock_is_valid() - is it an address as listen_vsock() wants it? */
bool listen_vsock_is_valid(const char *address);

/**
 * listen_vsock() - listen for the virtual machines of this host, or for its host
 * @set: gets the socket.
 * @address: PORT or CID:PORT, the CID being one of this machine; port 0 takes a
 *	free one, which is logged.
 * @allow_any: also for other machines than this one, which has CID 1.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno (-EACCES: not for this machine alone).
 */
int listen_vsock(struct listener_set *set, const char *address, bool allow_any);

/**
 * listen_adopt() - use a socket that was opened by somebody else
 * @set: gets the socket.
 * @fd: must be a listening stream socket; stays the caller's when this fails.
 * @name: of the socket, for messages.
 * @allow_any: also others than Unix sockets and loopback addresses.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno (-EACCES: not a loopback address).
 */
int listen_adopt(struct listener_set *set, int fd, const char *name, bool allow_any);

/**
 * listen_accept() - the next client of a socket
 * @listener: with a client waiting.
 * @stall_ms: over TCP, how long it may leave everything unread or unacknowledged, but no
 *	less than two minutes; 0: as long as the system allows.
 * @peer: gets the client's address, for the log.
 * @size: of @peer.
 *
 * Return: a non-blocking descriptor, or -errno.
 */
int listen_accept(const struct listener *listener, int64_t stall_ms, char *peer, size_t size);

/** listen_close() - close all sockets; their files are removed by others */
void listen_close(struct listener_set *set);

#endif
