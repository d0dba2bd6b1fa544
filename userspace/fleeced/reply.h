/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, reply: the form of replies on the wire, simple or structured.
 *
 * Each function sends one whole reply and returns 0, or -errno when it could
 * not be sent; the connection is then dead. None of them can be half-way when
 * it learns that the data is bad: the caller has all of it.
 *
 * Context: any thread of the connection; takes send_lock.
 */
#ifndef FLEECED_REPLY_H
#define FLEECED_REPLY_H

#include "connection.h"
#include "extents.h"

/**
 * struct request - a request of the client, in the host's byte order
 * @flags: NBD_CMD_FLAG_*.
 * @command: enum nbd_command, or anything else.
 * @cookie: the client's, goes back with the reply.
 * @offset: first byte.
 * @length: bytes.
 */
struct request {
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint32_t length;
};

/**
 * reply_data() - success of a READ
 * @connection: to the client.
 * @request: the READ.
 * @data: what was read, @request->length bytes.
 */
int reply_data(struct connection *connection, const struct request *request, void *data);

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
 * reply_status() - success of BLOCK_STATUS
 * @connection: to the client, with @connection->contexts.
 * @request: the BLOCK_STATUS.
 * @lists: one for each selected context, from extents_gather().
 *
 * Return: also -ENOMEM; then nothing was sent and the connection lives.
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
