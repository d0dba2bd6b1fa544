// SPDX-License-Identifier: GPL-2.0-only
/* nbd fuzzing, replies: each request has one reply, of its own form and content. */
#include "fuzz_replies.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "backend_memory.h"
#include "text.h"

/* Payloads that a server need not take. */
#define WRITE_BYTES_MAX		(64U << 20)
#define PAYLOAD_BYTES_MAX	NBD_BLOCK_MAXIMUM

/*
 * struct question - a request, and what has been said to it
 * @ids: contexts that BLOCK_STATUS has to answer for; those answered are removed.
 * @id_count: of @ids.
 * @has_bad_payload: it came with a payload that it cannot have.
 * @covered: bytes of a READ that have come, or that all contexts cover.
 * @chunks: so far.
 * @is_success: not an error.
 */
struct question {
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint64_t length;
	uint32_t ids[CONNECTION_CONTEXTS];
	size_t id_count;
	bool has_bad_payload;
	uint64_t covered;
	unsigned int chunks;
	bool is_success;
};

/* A chunk's header, whatever its form. */
struct chunk {
	uint16_t flags;
	uint16_t type;
	uint64_t length;
};

static bool is_error(uint32_t error)
{
	return error == NBD_EPERM || error == NBD_EIO || error == NBD_ENOMEM ||
	       error == NBD_EINVAL || error == NBD_ENOSPC || error == NBD_EOVERFLOW ||
	       error == NBD_ENOTSUP || error == NBD_ESHUTDOWN;
}

static bool is_inside(const struct oracle *oracle, const struct question *question)
{
	uint64_t size = oracle->backend->size;

	return question->offset <= size && question->length <= size - question->offset;
}

static bool is_unreadable(const struct oracle *oracle, const struct question *question)
{
	const struct oracle_range *range = oracle->session->unreadable;
	size_t i;

	for (i = 0; i < oracle->session->unreadable_count; i++)
		if (question->offset < range[i].end &&
		    question->offset + question->length > range[i].start)
			return true;
	return false;
}

/* What must not succeed, whatever the state of the server. */
static void check_success(const struct oracle *oracle, const struct question *question)
{
	bool is_bad = question->has_bad_payload;

	switch (question->command) {
	case NBD_CMD_READ:
		is_bad |= !is_inside(oracle, question) || question->length > NBD_BLOCK_MAXIMUM ||
			  (question->length && is_unreadable(oracle, question));
		break;
	case NBD_CMD_BLOCK_STATUS:
		is_bad |= !is_inside(oracle, question) || !question->length || !question->chunks;
		break;
	case NBD_CMD_TRIM:
		is_bad |= !is_inside(oracle, question) || !oracle->can_release;
		break;
	case NBD_CMD_CACHE:
		is_bad |= !is_inside(oracle, question);
		break;
	case NBD_CMD_FLUSH:
		is_bad |= question->offset || question->length;
		break;
	default:
		is_bad = true;
	}
	if (is_bad)
		oracle_complain("command %u of %llu bytes at %llu succeeds", question->command,
				(unsigned long long)question->length,
				(unsigned long long)question->offset);
}

/* A READ that nothing is wrong with must not fail. */
static void check_failure(const struct oracle *oracle, const struct question *question)
{
	uint16_t valid = NBD_CMD_FLAG_FUA | (oracle->form == REPLY_SIMPLE ? 0 : NBD_CMD_FLAG_DF);

	if (question->command == NBD_CMD_READ && is_inside(oracle, question) &&
	    question->length <= NBD_BLOCK_MAXIMUM && !(question->flags & ~valid) &&
	    !oracle->session->is_troubled && !oracle->session->releases_reads &&
	    !oracle->has_released && !is_unreadable(oracle, question))
		oracle_complain("a READ of %llu bytes at %llu fails",
				(unsigned long long)question->length,
				(unsigned long long)question->offset);
}

/* @data is NULL for a hole. */
static void check_content(const struct oracle *oracle, const uint8_t *data, uint64_t offset,
			  uint32_t length)
{
	uint8_t *wanted = malloc(length + 1);

	if (!wanted)
		abort();
	backend_memory_fill(oracle->backend, wanted, offset, length);
	if (data ? memcmp(data, wanted, length) != 0 :
		   length && (wanted[0] || memcmp(wanted, wanted + 1, length - 1)))
		oracle_complain("wrong %s of %u bytes at %llu", data ? "data" : "hole", length,
				(unsigned long long)offset);
	free(wanted);
}

static void check_simple(struct oracle *oracle, struct question *question)
{
	const struct nbd_simple_reply *reply = oracle_got(oracle, sizeof(*reply), "simple reply");
	uint32_t error = be32toh(reply->error);

	if (be32toh(reply->magic) != NBD_SIMPLE_REPLY_MAGIC || reply->cookie != question->cookie ||
	    (error && !is_error(error)))
		oracle_complain("simple reply, with error %u", error);
	question->is_success = !error;
	if (error || question->command != NBD_CMD_READ)
		return;
	check_success(oracle, question);
	check_content(oracle, oracle_got(oracle, question->length, "data"), question->offset,
		      question->length);
}

static struct chunk get_chunk(struct oracle *oracle, const struct question *question)
{
	const struct nbd_extended_chunk_header *extended;
	const struct nbd_chunk_header *compact;
	struct chunk chunk;
	bool passed;

	if (oracle->form == REPLY_EXTENDED) {
		extended = oracle_got(oracle, sizeof(*extended), "chunk");
		chunk.flags = be16toh(extended->flags);
		chunk.type = be16toh(extended->type);
		chunk.length = be64toh(extended->length);
		passed = be32toh(extended->magic) == NBD_EXTENDED_CHUNK_MAGIC &&
			 extended->cookie == question->cookie &&
			 be64toh(extended->offset) == question->offset;
	} else {
		compact = oracle_got(oracle, sizeof(*compact), "chunk");
		chunk.flags = be16toh(compact->flags);
		chunk.type = be16toh(compact->type);
		chunk.length = be32toh(compact->length);
		passed = be32toh(compact->magic) == NBD_CHUNK_MAGIC &&
			 compact->cookie == question->cookie;
	}
	if (!passed || chunk.flags & ~NBD_CHUNK_FLAG_DONE)
		oracle_complain("header of a chunk of type %u", chunk.type);
	return chunk;
}

/* Pieces of a READ come in order, once each. */
static void cover(struct question *question, uint64_t offset, uint64_t length)
{
	if (question->command != NBD_CMD_READ || !length ||
	    offset != question->offset + question->covered ||
	    length > question->length - question->covered)
		oracle_complain("a piece of %llu bytes at %llu", (unsigned long long)length,
				(unsigned long long)offset);
	question->covered += length;
}

static void check_data(struct oracle *oracle, struct question *question, uint64_t length)
{
	uint64_t offset;

	if (length <= sizeof(offset))
		oracle_complain("a chunk of data without data");
	memcpy(&offset, oracle_got(oracle, sizeof(offset), "offset"), sizeof(offset));
	offset = be64toh(offset);
	length -= sizeof(offset);
	cover(question, offset, length);
	check_content(oracle, oracle_got(oracle, length, "data"), offset, length);
}

static void check_hole(struct oracle *oracle, struct question *question, uint64_t length)
{
	const struct nbd_chunk_hole *hole = oracle_got(oracle, sizeof(*hole), "hole");

	if (length != sizeof(*hole))
		oracle_complain("a hole in %llu bytes", (unsigned long long)length);
	cover(question, be64toh(hole->offset), be32toh(hole->length));
	check_content(oracle, NULL, be64toh(hole->offset), be32toh(hole->length));
}

static void answer_context(struct question *question, uint32_t id)
{
	size_t i;

	for (i = 0; i < question->id_count; i++)
		if (question->ids[i] == id)
			break;
	if (question->command != NBD_CMD_BLOCK_STATUS || i == question->id_count)
		oracle_complain("an answer for context %u, which is not asked for", id);
	question->ids[i] = question->ids[--question->id_count];
}

static uint64_t check_extents(struct oracle *oracle, uint64_t count, bool is_extended)
{
	const struct nbd_extent_ext *extended;
	const struct nbd_extent *compact;
	uint64_t total = 0, length, flags, before = UINT64_MAX;

	while (count--) {
		if (is_extended) {
			extended = oracle_got(oracle, sizeof(*extended), "extent");
			length = be64toh(extended->length);
			flags = be64toh(extended->flags);
		} else {
			compact = oracle_got(oracle, sizeof(*compact), "extent");
			length = be32toh(compact->length);
			flags = be32toh(compact->flags);
		}
		if (!length || flags > 1 || flags == before || length > UINT64_MAX - total)
			oracle_complain("an extent of %llu bytes, status %llu",
					(unsigned long long)length, (unsigned long long)flags);
		before = flags;
		total += length;
	}
	return total;
}

static void check_status(struct oracle *oracle, struct question *question,
			 const struct chunk *chunk)
{
	bool is_extended = oracle->form == REPLY_EXTENDED;
	size_t head = is_extended ? sizeof(struct nbd_chunk_status_ext) : sizeof(uint32_t);
	size_t size = is_extended ? sizeof(struct nbd_extent_ext) : sizeof(struct nbd_extent);
	struct nbd_chunk_status_ext status = { .count = 0 };
	uint64_t count = (chunk->length - head) / size;
	uint64_t total;

	if (chunk->type != (is_extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS) ||
	    chunk->length < head + size || chunk->length != head + count * size)
		oracle_complain("a chunk of extents of %llu bytes",
				(unsigned long long)chunk->length);
	memcpy(&status, oracle_got(oracle, head, "context"), head);
	answer_context(question, be32toh(status.id));
	if (is_extended && be32toh(status.count) != count)
		oracle_complain("%u extents are said to come", be32toh(status.count));
	if (question->flags & NBD_CMD_FLAG_REQ_ONE && count != 1)
		oracle_complain("more than the one extent asked for");
	total = check_extents(oracle, count, is_extended);
	if (total > question->length || (question->covered && total != question->covered))
		oracle_complain("contexts cover %llu and %llu bytes of %llu",
				(unsigned long long)question->covered, (unsigned long long)total,
				(unsigned long long)question->length);
	question->covered = total;
}

/* Data or extents never come before an error. */
static void check_error(struct oracle *oracle, struct question *question,
			const struct chunk *chunk)
{
	const struct nbd_chunk_error *error = oracle_got(oracle, sizeof(*error), "error");
	uint16_t text_length = be16toh(error->length);
	bool has_offset = chunk->type == NBD_CHUNK_ERROR_OFFSET;
	uint64_t offset;

	if (!is_error(be32toh(error->error)) || !(chunk->flags & NBD_CHUNK_FLAG_DONE) ||
	    question->chunks > 1 || text_length > NBD_MAX_STRING ||
	    chunk->length != sizeof(*error) + text_length + (has_offset ? sizeof(offset) : 0))
		oracle_complain("error %u with a text of %u bytes", be32toh(error->error),
				text_length);
	if (!text_is_utf8(oracle_got(oracle, text_length, "text"), text_length))
		oracle_complain("an error with a malformed text");
	question->is_success = false;
	if (!has_offset)
		return;
	memcpy(&offset, oracle_got(oracle, sizeof(offset), "offset"), sizeof(offset));
	offset = be64toh(offset);
	if (question->command != NBD_CMD_READ || offset < question->offset ||
	    offset - question->offset >= question->length)
		oracle_complain("an error at %llu", (unsigned long long)offset);
}

static void check_chunk(struct oracle *oracle, struct question *question,
			const struct chunk *chunk)
{
	question->chunks++;
	switch (chunk->type) {
	case NBD_CHUNK_NONE:
		if (chunk->length || !(chunk->flags & NBD_CHUNK_FLAG_DONE))
			oracle_complain("NONE with %llu bytes", (unsigned long long)chunk->length);
		break;
	case NBD_CHUNK_OFFSET_DATA:
		check_data(oracle, question, chunk->length);
		break;
	case NBD_CHUNK_OFFSET_HOLE:
		check_hole(oracle, question, chunk->length);
		break;
	case NBD_CHUNK_BLOCK_STATUS:
	case NBD_CHUNK_BLOCK_STATUS_EXT:
		check_status(oracle, question, chunk);
		break;
	case NBD_CHUNK_ERROR:
	case NBD_CHUNK_ERROR_OFFSET:
		check_error(oracle, question, chunk);
		break;
	default:
		oracle_complain("a chunk of type %u", chunk->type);
	}
}

static void check_chunks(struct oracle *oracle, struct question *question)
{
	struct chunk chunk;

	question->is_success = true;
	do {
		chunk = get_chunk(oracle, question);
		check_chunk(oracle, question, &chunk);
	} while (!(chunk.flags & NBD_CHUNK_FLAG_DONE));
	if (!question->is_success)
		return;
	if (question->command == NBD_CMD_READ && question->covered != question->length)
		oracle_complain("%llu bytes of %llu have come",
				(unsigned long long)question->covered,
				(unsigned long long)question->length);
	if (question->command == NBD_CMD_READ && question->flags & NBD_CMD_FLAG_DF &&
	    question->chunks != 1)
		oracle_complain("a READ that wants one piece gets %u", question->chunks);
	if (question->command == NBD_CMD_BLOCK_STATUS && (question->id_count || !question->covered))
		oracle_complain("contexts without an answer");
}

static void check_reply(struct oracle *oracle, struct question *question)
{
	uint32_t magic = 0;

	if (oracle->out_left >= sizeof(magic))
		memcpy(&magic, oracle->out, sizeof(magic));
	/* Structured replies are optional for what delivers nothing. */
	if (oracle->form == REPLY_SIMPLE ||
	    (oracle->form == REPLY_STRUCTURED && be32toh(magic) == NBD_SIMPLE_REPLY_MAGIC &&
	     question->command != NBD_CMD_READ && question->command != NBD_CMD_BLOCK_STATUS))
		check_simple(oracle, question);
	else
		check_chunks(oracle, question);
	if (question->is_success)
		check_success(oracle, question);
	else
		check_failure(oracle, question);
	oracle->has_released |= question->is_success && question->command == NBD_CMD_TRIM;
}

/* The length that BLOCK_STATUS concerns, and the contexts that are wanted. */
static void take_filter(const struct oracle *oracle, struct question *question,
			const uint8_t *payload)
{
	uint64_t effect;
	size_t count, i, j;
	uint32_t id;

	count = question->length < sizeof(effect) ? 0 :
		(question->length - sizeof(effect)) / sizeof(id);
	question->has_bad_payload = question->length != sizeof(effect) + count * sizeof(id) ||
				    count > oracle->context_count;
	if (question->has_bad_payload)
		return;
	memcpy(&effect, payload, sizeof(effect));
	question->length = be64toh(effect);
	question->id_count = 0;
	for (i = 0; i < count; i++) {
		memcpy(&id, payload + sizeof(effect) + i * sizeof(id), sizeof(id));
		id = be32toh(id);
		for (j = 0; j < oracle->context_count && oracle->contexts[j] != id; j++)
			;
		question->has_bad_payload |= j == oracle->context_count;
		for (j = 0; j < question->id_count; j++)
			question->has_bad_payload |= question->ids[j] == id;
		question->ids[question->id_count++] = id;
	}
}

/* False: the client did not send all of it, or the server need not take it. */
static bool take_payload(struct oracle *oracle, struct question *question)
{
	bool is_extended = oracle->form == REPLY_EXTENDED;
	const void *payload;

	if (is_extended ? !(question->flags & NBD_CMD_FLAG_PAYLOAD_LEN) :
			  question->command != NBD_CMD_WRITE)
		return true;
	if (question->length > (is_extended ? PAYLOAD_BYTES_MAX : WRITE_BYTES_MAX))
		return false;
	payload = oracle_sent(oracle, question->length);
	if (!payload)
		return false;
	if (question->command == NBD_CMD_BLOCK_STATUS)
		take_filter(oracle, question, payload);
	else
		question->has_bad_payload = question->command != NBD_CMD_WRITE;
	return true;
}

static bool take_question(struct oracle *oracle, struct question *question)
{
	bool is_extended = oracle->form == REPLY_EXTENDED;
	const struct nbd_extended_request_header *header;

	header = oracle_sent(oracle, is_extended ? sizeof(*header) :
						   sizeof(struct nbd_request_header));
	if (!header || be32toh(header->magic) != (is_extended ? NBD_EXTENDED_REQUEST_MAGIC :
								NBD_REQUEST_MAGIC))
		return false;
	memset(question, 0, sizeof(*question));
	question->flags = be16toh(header->flags);
	question->command = be16toh(header->command);
	question->cookie = header->cookie;
	question->offset = be64toh(header->offset);
	if (is_extended)
		question->length = be64toh(header->length);
	else
		question->length = be32toh(((const struct nbd_request_header *)header)->length);
	memcpy(question->ids, oracle->contexts, sizeof(question->ids));
	question->id_count = oracle->context_count;
	return question->command != NBD_CMD_DISC && take_payload(oracle, question);
}

bool oracle_check_request(struct oracle *oracle)
{
	struct question question;

	if (!take_question(oracle, &question))
		return false;
	check_reply(oracle, &question);
	return true;
}
