// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, request: reads requests off the wire and checks them. Owns no
 * state; the order of its checks is part of the protocol.
 */
#include "request.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "log.h"

_Static_assert(offsetof(struct nbd_request_header, length) ==
	       offsetof(struct nbd_extended_request_header, length), "headers begin alike");

/* Longest payload that is taken from the stream before it is refused. */
#define WRITE_BYTES_MAX		(64U << 20)
#define PAYLOAD_BYTES_MAX	NBD_BLOCK_MAXIMUM

#define SKIP_BYTES		16384U

static const char *command_name(uint16_t command)
{
	static const char *const names[] = {
		[NBD_CMD_READ] = "READ", [NBD_CMD_WRITE] = "WRITE",
		[NBD_CMD_DISC] = "DISC", [NBD_CMD_FLUSH] = "FLUSH",
		[NBD_CMD_TRIM] = "TRIM", [NBD_CMD_CACHE] = "CACHE",
		[NBD_CMD_WRITE_ZEROES] = "WRITE_ZEROES",
		[NBD_CMD_BLOCK_STATUS] = "BLOCK_STATUS",
	};

	return command < sizeof(names) / sizeof(names[0]) ? names[command] : "unknown command";
}

void request_describe(const struct request *request, char *text, const char *why)
{
	snprintf(text, REQUEST_TEXT_SIZE, "%s of %llu bytes at %llu: %s",
		 command_name(request->command), (unsigned long long)request->length,
		 (unsigned long long)request->offset, why);
}

static int skip(struct transport *transport, uint64_t left)
{
	uint8_t buffer[SKIP_BYTES];
	size_t n;
	int ret;

	while (left) {
		n = left < sizeof(buffer) ? left : sizeof(buffer);
		ret = transport->ops->read(transport, buffer, n);
		if (ret)
			return ret;
		left -= n;
	}
	return 0;
}

/* Adds the context of this id, which must be selected and not yet there. */
static bool add_context(const struct context_set *set, struct request *request, uint32_t id)
{
	size_t i;

	for (i = 0; i < request->context_count; i++)
		if (request->contexts[i] + 1 == id)
			return false;
	for (i = 0; i < set->count; i++) {
		if (set->ids[i] + 1 == id) {
			request->contexts[request->context_count++] = set->ids[i];
			return true;
		}
	}
	return false;
}

/* The payload of BLOCK_STATUS: the length it concerns, and ids of contexts. */
static int receive_filter(struct connection *connection, struct request *request, size_t length)
{
	struct transport *transport = connection->transport;
	uint32_t ids[CONNECTION_CONTEXTS];
	uint64_t effect;
	size_t count = length < sizeof(effect) ? 0 : (length - sizeof(effect)) / sizeof(ids[0]);
	size_t i;
	int ret;

	request->context_count = 0;
	if (length != sizeof(effect) + count * sizeof(ids[0]) ||
	    count > connection->contexts.count) {
		request->payload_problem = "payload is not a length and ids of selected contexts";
		return skip(transport, length);
	}
	ret = transport->ops->read(transport, &effect, sizeof(effect));
	if (!ret)
		ret = transport->ops->read(transport, ids, count * sizeof(ids[0]));
	if (ret)
		return ret;
	request->length = be64toh(effect);
	for (i = 0; i < count; i++)
		if (!add_context(&connection->contexts, request, be32toh(ids[i])))
			request->payload_problem = "an id twice, or one that is not selected";
	return 0;
}

/* A payload has to be taken from the stream before anything can be refused. */
static int receive_payload(struct connection *connection, struct request *request)
{
	struct transport *transport = connection->transport;
	bool is_extended = connection->form == REPLY_EXTENDED;
	uint64_t length = request->length;

	if (is_extended ? !(request->flags & NBD_CMD_FLAG_PAYLOAD_LEN) :
			  request->command != NBD_CMD_WRITE)
		return 0;
	if (length > (is_extended ? PAYLOAD_BYTES_MAX : WRITE_BYTES_MAX)) {
		log_client("%s: disconnected: a payload of %llu bytes", transport->peer,
			   (unsigned long long)length);
		return -EPROTO;
	}
	if (request->command == NBD_CMD_BLOCK_STATUS)
		return receive_filter(connection, request, length);
	if (request->command != NBD_CMD_WRITE)
		request->payload_problem = "this command takes no payload";
	return skip(transport, length);
}

/* Both forms begin alike; only the length differs. */
static int receive_header(struct connection *connection, struct request *request)
{
	struct transport *transport = connection->transport;
	bool is_extended = connection->form == REPLY_EXTENDED;
	union {
		struct nbd_request_header compact;
		struct nbd_extended_request_header extended;
	} header;
	int ret = transport->ops->read(transport, &header, is_extended ? sizeof(header.extended) :
									 sizeof(header.compact));

	if (ret)
		return ret;
	if (be32toh(header.compact.magic) !=
	    (is_extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
		log_client("%s: disconnected: wrong magic number of a request", transport->peer);
		return -EPROTO;
	}
	request->flags = be16toh(header.compact.flags);
	request->command = be16toh(header.compact.command);
	request->cookie = header.compact.cookie;
	request->offset = be64toh(header.compact.offset);
	request->length = is_extended ? be64toh(header.extended.length) :
					be32toh(header.compact.length);
	return 0;
}

int request_receive(struct connection *connection, struct request *request)
{
	const struct context_set *set = &connection->contexts;
	int ret = receive_header(connection, request);

	if (ret)
		return ret;
	if (request->command == NBD_CMD_DISC)
		return TRANSPORT_END;
	request->is_followed = false;
	request->payload_problem = NULL;
	request->context_count = set->count;
	memcpy(request->contexts, set->ids, set->count * sizeof(set->ids[0]));
	return receive_payload(connection, request);
}

static bool is_known(uint16_t command)
{
	return command <= NBD_CMD_BLOCK_STATUS && command != NBD_CMD_DISC;
}

/* Nothing that is served here can be written; some of it can be released. */
static bool is_permitted(const struct connection *connection, uint16_t command)
{
	switch (command) {
	case NBD_CMD_WRITE:
	case NBD_CMD_WRITE_ZEROES:
		return false;
	case NBD_CMD_TRIM:
		return connection->export->can_release;
	default:
		return true;
	}
}

static uint16_t valid_flags(const struct connection *connection, uint16_t command)
{
	uint16_t flags = 0;

	/* Clients are known to set FUA on READ whether it was offered or not. */
	if (connection->export->can_release || command == NBD_CMD_READ)
		flags |= NBD_CMD_FLAG_FUA;
	if (command == NBD_CMD_READ && connection->form >= REPLY_STRUCTURED)
		flags |= NBD_CMD_FLAG_DF;
	if (command == NBD_CMD_BLOCK_STATUS)
		flags |= NBD_CMD_FLAG_REQ_ONE;
	/* Whether the payload makes sense is another question. */
	if (connection->form == REPLY_EXTENDED)
		flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
	return flags;
}

/* A rule that is broken, or NULL. */
static const char *check_command(const struct connection *connection,
				 const struct request *request, enum nbd_error *error)
{
	*error = NBD_EINVAL;
	if (!is_known(request->command))
		return "command not known";
	if (!is_permitted(connection, request->command)) {
		*error = NBD_EPERM;
		return "the export cannot be written";
	}
	if (request->flags & ~valid_flags(connection, request->command))
		return "flag not valid for this command";
	return request->payload_problem;
}

static const char *check_range(const struct connection *connection, const struct request *request,
			       enum nbd_error *error)
{
	uint64_t size = connection->export->backend->size;

	*error = NBD_EINVAL;
	if (request->command == NBD_CMD_FLUSH)
		return request->offset || request->length ? "offset and length must be 0" : NULL;
	if (request->offset > size || request->length > size - request->offset)
		return "beyond the end of the export";
	if (request->command == NBD_CMD_READ && request->length > NBD_BLOCK_MAXIMUM) {
		*error = NBD_EOVERFLOW;
		return "longer than the maximum block size";
	}
	if (request->command != NBD_CMD_BLOCK_STATUS)
		return NULL;
	if (!connection->contexts.count)
		return "no metadata context was negotiated";
	if (!request->context_count)
		return "no metadata context was asked for";
	return request->length ? NULL : "length must not be 0";
}

enum nbd_error request_validate(const struct connection *connection, const struct request *request,
				char *text)
{
	enum nbd_error error = NBD_ESHUTDOWN;
	const char *why = NULL;

	if (stop_is_requested(connection->rules->stop))
		why = "the server is shutting down";
	if (!why)
		why = check_command(connection, request, &error);
	if (!why)
		why = check_range(connection, request, &error);
	if (!why)
		return NBD_SUCCESS;
	request_describe(request, text, why);
	return error;
}
