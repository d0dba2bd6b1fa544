// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, reply: builds replies and sends each of them in one piece. Owns the
 * send_lock; does not know what the data means.
 */
#include "reply.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int send_vector(struct connection *connection, struct iovec *vector, int count)
{
	int ret;

	pthread_mutex_lock(&connection->send_lock);
	ret = connection->transport->ops->write(connection->transport, vector, count);
	pthread_mutex_unlock(&connection->send_lock);
	if (ret)
		connection_raise_status(connection, CONNECTION_DEAD);
	return ret;
}

static void fill_chunk(struct nbd_chunk_header *header, const struct request *request,
		       enum nbd_chunk type, uint16_t flags, uint32_t length)
{
	header->magic = htobe32(NBD_CHUNK_MAGIC);
	header->flags = htobe16(flags);
	header->type = htobe16(type);
	/* The cookie is opaque: it was not converted when it came. */
	header->cookie = request->cookie;
	header->length = htobe32(length);
}

static int send_simple(struct connection *connection, const struct request *request,
		       enum nbd_error error, void *data, size_t length)
{
	struct nbd_simple_reply reply = {
		.magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
		.error = htobe32(error),
		.cookie = request->cookie,
	};
	struct iovec vector[2] = {
		{ .iov_base = &reply, .iov_len = sizeof(reply) },
		{ .iov_base = data, .iov_len = length },
	};

	return send_vector(connection, vector, 2);
}

int reply_data(struct connection *connection, const struct request *request, void *data)
{
	struct {
		struct nbd_chunk_header header;
		uint64_t offset;
	} __attribute__((packed)) chunk;
	struct iovec vector[2] = {
		{ .iov_base = &chunk, .iov_len = sizeof(chunk) },
		{ .iov_base = data, .iov_len = request->length },
	};

	if (!connection->structured)
		return send_simple(connection, request, NBD_SUCCESS, data, request->length);
	/* A data chunk has at least one byte. */
	if (!request->length)
		return reply_success(connection, request);
	fill_chunk(&chunk.header, request, NBD_CHUNK_OFFSET_DATA, NBD_CHUNK_FLAG_DONE,
		   sizeof(chunk.offset) + request->length);
	chunk.offset = htobe64(request->offset);
	return send_vector(connection, vector, 2);
}

int reply_success(struct connection *connection, const struct request *request)
{
	struct nbd_chunk_header header;
	struct iovec vector = { .iov_base = &header, .iov_len = sizeof(header) };

	if (!connection->structured || request->command != NBD_CMD_READ)
		return send_simple(connection, request, NBD_SUCCESS, NULL, 0);
	fill_chunk(&header, request, NBD_CHUNK_NONE, NBD_CHUNK_FLAG_DONE, 0);
	return send_vector(connection, &vector, 1);
}

int reply_error(struct connection *connection, const struct request *request,
		enum nbd_error error, const char *text)
{
	size_t text_length = strnlen(text, NBD_MAX_STRING);
	struct {
		struct nbd_chunk_header header;
		struct nbd_chunk_error error;
	} __attribute__((packed)) chunk;
	struct iovec vector[2] = {
		{ .iov_base = &chunk, .iov_len = sizeof(chunk) },
		{ .iov_base = (void *)text, .iov_len = text_length },
	};

	atomic_fetch_add(&connection->errors, 1);
	if (!connection->structured)
		return send_simple(connection, request, error, NULL, 0);
	fill_chunk(&chunk.header, request, NBD_CHUNK_ERROR, NBD_CHUNK_FLAG_DONE,
		   sizeof(chunk.error) + text_length);
	chunk.error.error = htobe32(error);
	chunk.error.length = htobe16(text_length);
	return send_vector(connection, vector, 2);
}

/* One chunk: header, context id, extents. Returns the first byte after it. */
static uint8_t *fill_status(uint8_t *at, const struct request *request, uint32_t id,
			    uint16_t flags, const struct extent_list *list)
{
	struct nbd_chunk_header header;
	struct nbd_extent extent;
	uint32_t big_endian = htobe32(id);
	size_t i;

	fill_chunk(&header, request, NBD_CHUNK_BLOCK_STATUS, flags,
		   sizeof(id) + list->count * sizeof(extent));
	memcpy(at, &header, sizeof(header));
	at += sizeof(header);
	memcpy(at, &big_endian, sizeof(big_endian));
	at += sizeof(big_endian);
	for (i = 0; i < list->count; i++) {
		extent.length = htobe32(list->extents[i].length);
		extent.flags = htobe32(list->extents[i].flags);
		memcpy(at, &extent, sizeof(extent));
		at += sizeof(extent);
	}
	return at;
}

int reply_status(struct connection *connection, const struct request *request,
		 const struct extent_list *lists)
{
	const struct context_set *set = &connection->contexts;
	struct iovec vector;
	uint8_t *reply, *at;
	size_t size = 0, i;
	int ret;

	for (i = 0; i < set->count; i++)
		size += sizeof(struct nbd_chunk_header) + sizeof(uint32_t) +
			lists[i].count * sizeof(struct nbd_extent);
	reply = malloc(size);
	if (!reply)
		return -ENOMEM;
	at = reply;
	for (i = 0; i < set->count; i++)
		at = fill_status(at, request, set->ids[i] + 1,
				 i + 1 == set->count ? NBD_CHUNK_FLAG_DONE : 0, &lists[i]);
	vector.iov_base = reply;
	vector.iov_len = at - reply;
	ret = send_vector(connection, &vector, 1);
	free(reply);
	return ret;
}

enum nbd_error reply_error_of(int error)
{
	switch (error) {
	case EPERM:
	case EACCES:
	case EROFS:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}
