/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, reply: the form of replies on the wire, simple, structured or extended.
 *
 * Each function sends one whole reply and returns 0, or -errno when it could
 * not be sent; the connection is then dead. None of them can be half-way when
 * it learns that the data is bad: the caller has all of it.
 *
 * Context: any thread of the connection; takes send_lock.
 */
#ifndef FLEECED_REPLY_H
#define FLEECED_REPLY_H

#include "extents.h"
#include "request.h"

/* Replies that are sent together; and the largest that is copied for that. */
#define REPLY_BATCH_BYTES	(64U << 10)
#define REPLY_COPY_BYTES	(16U << 10)

/**
 * reply_flush() - send what waits to be sent together with other replies
 * @connection: to the client.
 *
 * A reply waits only for that of a request that has come already: so who waits for the
 * client, or lets go of the right to read requests, calls this before.
 */
void reply_flush(struct connection *connection);

/**
 * reply_data() - success of a READ
 * @connection: to the client.
 * @request: the READ; its length is not 0.
 * @data: what was read, @request->length bytes.
 *
 * Where the server's rules and the form of replies allow it, runs of zeroes go
 * as holes; never when the client asked for one piece (DF).
 */
int reply_data(struct connection *connection, const struct request *request, const void *data);

/**
 * reply_success() - success of a command that delivers nothing
 * @connection: to the client.
 * @request: not a READ with a length, not BLOCK_STATUS.
 */
int reply_success(struct connection *connection, const struct request *request);

/**
 * reply_error() - failure
 * @connection: to the client.
 * @request: any.
 * @error: not NBD_SUCCESS.
 * @text: why, for people; only structured replies can carry it.
 */
int reply_error(struct connection *connection, const struct request *request,
		enum nbd_error error, const char *text);

/**
 * reply_error_at() - failure of a READ at a known place
 * @connection: to the client.
 * @request: the READ.
 * @error: not NBD_SUCCESS.
 * @text: why, for people.
 * @offset: the first byte that cannot be read, inside the request.
 */
int reply_error_at(struct connection *connection, const struct request *request,
		   enum nbd_error error, const char *text, uint64_t offset);

/**
 * reply_status() - success of BLOCK_STATUS
 * @connection: to the client.
 * @request: the BLOCK_STATUS, with its contexts.
 * @lists: one for each of its contexts, from extents_gather().
 *
 * Return: also -ENOMEM: nothing was sent, or the connection has ended.
 */
int reply_status(struct connection *connection, const struct request *request,
		 const struct extent_list *lists);

/**
 * reply_error_of() - an errno's form on the wire
 * @error: positive errno.
 *
 * Return: one of the errors that the protocol knows; EIO for all that it does
 * not, since EINVAL would blame the client.
 */
enum nbd_error reply_error_of(int error);

#endif
