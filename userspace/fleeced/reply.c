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

#include "holes.h"
#include "log.h"

/* Longest of all: an extended header and the fixed part of an error. */
#define HEAD_SIZE 48

/*
 * struct head - what comes before the part of a chunk whose length varies
 * @bytes: in the order of the wire.
 * @length: of @bytes.
 */
struct head {
	uint8_t bytes[HEAD_SIZE];
	size_t length;
};

static int write_vector(struct connection *connection, struct iovec *vector, int count)
{
	return connection->transport->ops->write(connection->transport, vector, count);
}

/* With send_lock. */
static int write_batch(struct connection *connection)
{
	struct iovec vector = { connection->batch, connection->batch_length };

	connection->batch_length = 0;
	return vector.iov_len ? write_vector(connection, &vector, 1) : 0;
}

static bool has_batch(struct connection *connection)
{
	if (!connection->batch)
		connection->batch = malloc(REPLY_BATCH_BYTES);
	return connection->batch;
}

static void add_to_batch(struct connection *connection, const struct iovec *vector, int count)
{
	for (; count--; vector++) {
		if (vector->iov_len)
			memcpy(connection->batch + connection->batch_length, vector->iov_base,
			       vector->iov_len);
		connection->batch_length += vector->iov_len;
	}
}

/*
 * With send_lock: a reply that is followed by another one waits for it, and takes those
 * that wait with it; if it is not too large to be copied.
 */
static int write_reply(struct connection *connection, struct iovec *vector, int count,
		       bool is_followed)
{
	size_t bytes = transport_bytes(vector, count);
	bool joins = bytes <= REPLY_COPY_BYTES && (is_followed || connection->batch_length) &&
		     has_batch(connection);
	int ret = 0;

	if (!joins || bytes > REPLY_BATCH_BYTES - connection->batch_length)
		ret = write_batch(connection);
	if (ret)
		return ret;
	connection->is_brisk = joins;
	if (!joins)
		return write_vector(connection, vector, count);
	add_to_batch(connection, vector, count);
	return is_followed ? 0 : write_batch(connection);
}

/*
 * Sends a reply, or with @count 0 what waits to be sent. Nothing may follow a part of a
 * reply: who has the lock next must know that one is lost.
 */
static int send_vector(struct connection *connection, struct iovec *vector, int count,
		       bool is_followed)
{
	int ret = -ECONNRESET;

	pthread_mutex_lock(&connection->send_lock);
	if (connection_status(connection) != CONNECTION_DEAD) {
		ret = write_reply(connection, vector, count, is_followed);
		if (ret)
			connection_raise_status(connection, CONNECTION_DEAD);
	}
	pthread_mutex_unlock(&connection->send_lock);
	if (ret == -ETIMEDOUT && !stop_is_requested(connection->rules->stop))
		log_client("%s: disconnected: took too long to read a reply (--stall-timeout)",
			   connection->transport->peer);
	return ret;
}

void reply_flush(struct connection *connection)
{
	if (connection->batch_length)
		send_vector(connection, NULL, 0, false);
}

static void append(struct head *head, const void *bytes, size_t length)
{
	memcpy(head->bytes + head->length, bytes, length);
	head->length += length;
}

/* The cookie is opaque: it was not converted when it came. */
static void begin_chunk(struct head *head, const struct connection *connection,
			const struct request *request, enum nbd_chunk type, uint16_t flags,
			uint32_t length)
{
	struct nbd_extended_chunk_header extended = {
		.magic = htobe32(NBD_EXTENDED_CHUNK_MAGIC),
		.flags = htobe16(flags),
		.type = htobe16(type),
		.cookie = request->cookie,
		.offset = htobe64(request->offset),
		.length = htobe64(length),
	};
	struct nbd_chunk_header compact = {
		.magic = htobe32(NBD_CHUNK_MAGIC),
		.flags = htobe16(flags),
		.type = htobe16(type),
		.cookie = request->cookie,
		.length = htobe32(length),
	};

	head->length = 0;
	if (connection->form == REPLY_EXTENDED)
		append(head, &extended, sizeof(extended));
	else
		append(head, &compact, sizeof(compact));
}

static struct iovec to_vector(const void *bytes, size_t length)
{
	return (struct iovec){ .iov_base = (void *)bytes, .iov_len = length };
}

static int send_simple(struct connection *connection, const struct request *request,
		       enum nbd_error error, const void *data, size_t length)
{
	struct nbd_simple_reply reply = {
		.magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
		.error = htobe32(error),
		.cookie = request->cookie,
	};
	struct iovec vector[2] = { to_vector(&reply, sizeof(reply)), to_vector(data, length) };

	return send_vector(connection, vector, 2, request->is_followed);
}

static void begin_data(struct head *head, const struct connection *connection,
		       const struct request *request, uint16_t flags, uint64_t offset,
		       uint32_t length)
{
	uint64_t big_endian = htobe64(offset);

	begin_chunk(head, connection, request, NBD_CHUNK_OFFSET_DATA, flags,
		    sizeof(big_endian) + length);
	append(head, &big_endian, sizeof(big_endian));
}

static void begin_hole(struct head *head, const struct connection *connection,
		       const struct request *request, uint16_t flags, uint64_t offset,
		       uint32_t length)
{
	struct nbd_chunk_hole hole = { .offset = htobe64(offset), .length = htobe32(length) };

	begin_chunk(head, connection, request, NBD_CHUNK_OFFSET_HOLE, flags, sizeof(hole));
	append(head, &hole, sizeof(hole));
}

/* All that is sent is known to be good, so that the last content chunk is the end. */
static int send_runs(struct connection *connection, const struct request *request,
		     const uint8_t *data)
{
	struct head heads[HOLES_RUNS_MAX];
	struct iovec vector[2 * HOLES_RUNS_MAX];
	size_t unit = holes_unit(request->length);
	size_t done = 0, length;
	uint64_t offset;
	uint16_t flags;
	bool is_hole;
	int count = 0;

	while (done < request->length) {
		offset = request->offset + done;
		length = holes_next_run(data + done, request->length - done, offset, unit,
					&is_hole);
		flags = done + length == request->length ? NBD_CHUNK_FLAG_DONE : 0;
		if (is_hole)
			begin_hole(&heads[count], connection, request, flags, offset, length);
		else
			begin_data(&heads[count], connection, request, flags, offset, length);
		vector[2 * count] = to_vector(heads[count].bytes, heads[count].length);
		vector[2 * count + 1] = to_vector(data + done, is_hole ? 0 : length);
		count++;
		done += length;
	}
	return send_vector(connection, vector, 2 * count, request->is_followed);
}

int reply_data(struct connection *connection, const struct request *request, const void *data)
{
	struct head head;
	struct iovec vector[2];

	if (connection->form == REPLY_SIMPLE)
		return send_simple(connection, request, NBD_SUCCESS, data, request->length);
	if (connection->rules->holes && !(request->flags & NBD_CMD_FLAG_DF))
		return send_runs(connection, request, data);
	begin_data(&head, connection, request, NBD_CHUNK_FLAG_DONE, request->offset,
		   request->length);
	vector[0] = to_vector(head.bytes, head.length);
	vector[1] = to_vector(data, request->length);
	return send_vector(connection, vector, 2, request->is_followed);
}

int reply_success(struct connection *connection, const struct request *request)
{
	struct head head;
	struct iovec vector;

	if (connection->form == REPLY_SIMPLE ||
	    (connection->form == REPLY_STRUCTURED && request->command != NBD_CMD_READ))
		return send_simple(connection, request, NBD_SUCCESS, NULL, 0);
	begin_chunk(&head, connection, request, NBD_CHUNK_NONE, NBD_CHUNK_FLAG_DONE, 0);
	vector = to_vector(head.bytes, head.length);
	return send_vector(connection, &vector, 1, request->is_followed);
}

/* @tail comes after the text. */
static int send_error(struct connection *connection, const struct request *request,
		      enum nbd_chunk type, enum nbd_error error, const char *text,
		      const void *tail, size_t tail_length)
{
	size_t text_length = strnlen(text, NBD_MAX_STRING);
	struct nbd_chunk_error fixed = {
		.error = htobe32(error),
		.length = htobe16(text_length),
	};
	struct iovec vector[3];
	struct head head;

	atomic_fetch_add(&connection->errors, 1);
	if (connection->form == REPLY_SIMPLE)
		return send_simple(connection, request, error, NULL, 0);
	begin_chunk(&head, connection, request, type, NBD_CHUNK_FLAG_DONE,
		    sizeof(fixed) + text_length + tail_length);
	append(&head, &fixed, sizeof(fixed));
	vector[0] = to_vector(head.bytes, head.length);
	vector[1] = to_vector(text, text_length);
	vector[2] = to_vector(tail, tail_length);
	return send_vector(connection, vector, 3, request->is_followed);
}

int reply_error(struct connection *connection, const struct request *request,
		enum nbd_error error, const char *text)
{
	return send_error(connection, request, NBD_CHUNK_ERROR, error, text, NULL, 0);
}

int reply_error_at(struct connection *connection, const struct request *request,
		   enum nbd_error error, const char *text, uint64_t offset)
{
	uint64_t big_endian = htobe64(offset);

	return send_error(connection, request, NBD_CHUNK_ERROR_OFFSET, error, text, &big_endian,
			  sizeof(big_endian));
}

/* What comes before the extents of one context. */
static void begin_status(struct head *head, const struct connection *connection,
			 const struct request *request, size_t index, size_t extents)
{
	uint16_t flags = index + 1 == request->context_count ? NBD_CHUNK_FLAG_DONE : 0;
	struct nbd_chunk_status_ext status = {
		.id = htobe32(request->contexts[index] + 1),
		.count = htobe32(extents),
	};

	if (connection->form == REPLY_EXTENDED) {
		begin_chunk(head, connection, request, NBD_CHUNK_BLOCK_STATUS_EXT, flags,
			    sizeof(status) + extents * sizeof(struct nbd_extent_ext));
		append(head, &status, sizeof(status));
	} else {
		begin_chunk(head, connection, request, NBD_CHUNK_BLOCK_STATUS, flags,
			    sizeof(status.id) + extents * sizeof(struct nbd_extent));
		append(head, &status.id, sizeof(status.id));
	}
}

/* Returns the first byte after the extents. */
static uint8_t *put_extents(uint8_t *at, const struct connection *connection,
			    const struct extent_list *list)
{
	struct nbd_extent_ext extended;
	struct nbd_extent compact;
	size_t i;

	for (i = 0; i < list->count; i++) {
		if (connection->form == REPLY_EXTENDED) {
			extended.length = htobe64(list->extents[i].length);
			extended.flags = htobe64(list->extents[i].flags);
			memcpy(at, &extended, sizeof(extended));
			at += sizeof(extended);
		} else {
			compact.length = htobe32(list->extents[i].length);
			compact.flags = htobe32(list->extents[i].flags);
			memcpy(at, &compact, sizeof(compact));
			at += sizeof(compact);
		}
	}
	return at;
}

int reply_status(struct connection *connection, const struct request *request,
		 const struct extent_list *lists)
{
	struct iovec vector;
	uint8_t *reply, *at;
	struct head head;
	size_t size = 0, i;
	int ret;

	for (i = 0; i < request->context_count; i++)
		size += sizeof(head.bytes) + lists[i].count * sizeof(struct nbd_extent_ext);
	reply = malloc(size);
	if (!reply)
		return -ENOMEM;
	at = reply;
	for (i = 0; i < request->context_count; i++) {
		begin_status(&head, connection, request, i, lists[i].count);
		memcpy(at, head.bytes, head.length);
		at = put_extents(at + head.length, connection, &lists[i]);
	}
	vector = to_vector(reply, at - reply);
	ret = send_vector(connection, &vector, 1, request->is_followed);
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
