/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, transport: an ordered stream of bytes to and from one client.
 *
 * The protocol code sees only this, so that it runs on sockets, on stdin and
 * stdout, and on buffers in a test. At any moment at most one thread reads and
 * at most one thread writes; the two may be different threads.
 */
#ifndef FLEECED_TRANSPORT_H
#define FLEECED_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "stop.h"

struct transport;

/* Result of a read that met the end of the stream before its first byte. */
#define TRANSPORT_END 1

/**
 * struct transport_ops - what a kind of transport can do
 * @read: fill @length bytes. 0, TRANSPORT_END, -ECONNRESET when the stream
 *	ended in the middle, -ETIMEDOUT, or another -errno.
 * @read_some: wait for at least one byte, take up to @length. Bytes taken, 0 at the
 *	end of the stream, or -errno. For transports on top; may be NULL.
 * @has_input: has something come that was not read yet, as far as that is known without
 *	asking the system? NULL: unknown, no.
 * @write: send all of @vector, which it may change. 0 or -errno.
 * @begin_write: the client's time to read the next @bytes begins. For transports on
 *	top; may be NULL.
 * @write_part: like @write, within the time of the last @begin_write. For transports
 *	on top, which send in many parts what they have to send; may be NULL.
 * @secure: from here on, both sides speak TLS: shake hands. Once only, by the only
 *	thread there is. 0, or -errno (-EPROTO, logged: refused by one of the
 *	sides). NULL: a transport without TLS.
 * @end: tell the client that nothing will follow, and take for a short time what it
 *	still sends, by the only thread that still reads or writes. May be NULL.
 * @set_deadline: both directions fail with -ETIMEDOUT from this clock_ms() on;
 *	0: no deadline.
 * @set_readahead: may more be taken from the stream than was asked for? Only
 *	allowed once nothing but this transport will ever read the stream.
 * @set_before_wait: call @before_wait in the reader's thread whenever it is about to wait for
 *	the client; true: the client is about to send, so that it is not worth while to
 *	sleep. For the only thread there is; may be NULL.
 * @shutdown: let a waiting @read and @write of other threads return.
 * @close: release everything, the transport itself included.
 */
struct transport_ops {
	int (*read)(struct transport *transport, void *buffer, size_t length);
	ssize_t (*read_some)(struct transport *transport, void *buffer, size_t length);
	bool (*has_input)(struct transport *transport);
	int (*write)(struct transport *transport, struct iovec *vector, int count);
	void (*begin_write)(struct transport *transport, size_t bytes);
	int (*write_part)(struct transport *transport, struct iovec *vector, int count);
	int (*secure)(struct transport *transport);
	void (*end)(struct transport *transport);
	void (*set_deadline)(struct transport *transport, int64_t deadline_ms);
	void (*set_readahead)(struct transport *transport, bool on);
	void (*set_before_wait)(struct transport *transport, bool (*before_wait)(void *context),
				void *context);
	void (*shutdown)(struct transport *transport);
	void (*close)(struct transport *transport);
};

/**
 * struct transport - a connection to one client
 * @ops: the kind.
 * @peer: the client, for the log.
 */
struct transport {
	const struct transport_ops *ops;
	char peer[80];
};

/**
 * transport_bytes() - what a vector holds
 * @vector: of any length.
 * @count: of @vector.
 *
 * Return: bytes.
 */
static inline size_t transport_bytes(const struct iovec *vector, int count)
{
	size_t bytes = 0;

	while (count--)
		bytes += vector[count].iov_len;
	return bytes;
}

/**
 * transport_fd_create() - a transport on file descriptors
 * @in: to read from; set to non-blocking.
 * @out: to write to, may be the same; set to non-blocking.
 * @peer: the client, for the log.
 * @stop: after it, what is still to be read or written has a short time.
 * @stall_ms: longest time that the client may take to read what one call of
 *	@write or all parts after one @begin_write send, and another second for
 *	each 64 KiB of it; 0: no limit.
 *
 * Owns both descriptors on success.
 *
 * Return: the transport, or NULL when there is no memory or descriptor for it.
 */
struct transport *transport_fd_create(int in, int out, const char *peer, struct stop *stop,
				      int64_t stall_ms);

#endif
