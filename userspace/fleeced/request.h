/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, request: what a client asks for in transmission: its form on the
 * wire, its payload, and the rules that it must keep. All of a request is taken
 * from the stream before it is judged, so that the next one is in step.
 */
#ifndef FLEECED_REQUEST_H
#define FLEECED_REQUEST_H

#include "connection.h"

/* Room for the text of an error. */
#define REQUEST_TEXT_SIZE 384

/**
 * struct request - a request of the client, in the host's byte order
 * @flags: NBD_CMD_FLAG_*.
 * @command: enum nbd_command, or anything else.
 * @cookie: the client's, goes back with the reply; opaque, never converted.
 * @offset: first byte.
 * @length: bytes that it concerns.
 * @is_followed: another request has come, whose reply can be sent together with its.
 * @payload_problem: why the payload that came with it is of no use, or NULL.
 * @contexts: BLOCK_STATUS: positions in the export's contexts to answer for.
 * @context_count: of @contexts.
 */
struct request {
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint64_t length;
	bool is_followed;
	const char *payload_problem;
	unsigned int contexts[CONNECTION_CONTEXTS];
	size_t context_count;
};

/**
 * request_receive() - read the next request, its payload included
 * @connection: to the client.
 * @request: filled in.
 *
 * Return: 0; TRANSPORT_END when the client left, or said so; -EPROTO (logged)
 * for what cannot be a request; or another -errno.
 *
 * Context: the holder of receive_lock.
 */
int request_receive(struct connection *connection, struct request *request);

/**
 * request_validate() - everything that can be said before it is carried out
 * @connection: to the client.
 * @request: from request_receive().
 * @text: REQUEST_TEXT_SIZE bytes; set when there is an error.
 *
 * In this order: is the server ending, the command, permission, flags and
 * payload, range and length.
 *
 * Return: NBD_SUCCESS, or the error that the client gets.
 */
enum nbd_error request_validate(const struct connection *connection, const struct request *request,
				char *text);

/**
 * request_describe() - the text of an error
 * @request: that failed.
 * @text: REQUEST_TEXT_SIZE bytes; names the request, then @why.
 * @why: the cause.
 */
void request_describe(const struct request *request, char *text, const char *why);

#endif
