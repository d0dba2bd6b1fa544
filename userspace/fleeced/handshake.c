// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, handshake: the greeting and the options of fixed newstyle.
 *
 * An option's data is taken from the stream as a whole before anything else
 * happens: whatever an option's handler thinks of it, the next option begins
 * at the right byte. Its replies are gathered and sent together, after that.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "log.h"
#include "text.h"

/* Longest data that is looked at, longest that is skipped, most options. */
#define OPTION_BYTES_MAX	(64U << 10)
#define OPTION_BYTES_SKIP	(32U << 20)
#define OPTIONS_MAX		256

#define BLOCK_MINIMUM		1U
#define BLOCK_MAXIMUM		(32U << 20)

/* What happens after an option. Negative: -errno, the connection ends. */
enum next {
	NEXT_OPTION,
	NEXT_TRANSMISSION,
	NEXT_END,
};

struct reader {
	const uint8_t *at;
	size_t left;
};

/*
 * struct option - the one being handled
 * @replies: gathered, @replies_length bytes of @replies_room.
 * @is_out_of_memory: a reply could not be gathered.
 */
struct option {
	struct connection *connection;
	uint32_t code;
	struct reader data;
	uint8_t *replies;
	size_t replies_length;
	size_t replies_room;
	bool is_out_of_memory;
};

/* Takes bytes off the data, or NULL when there are not so many. */
static const void *take(struct reader *reader, size_t length)
{
	const uint8_t *start = reader->at;

	if (length > reader->left)
		return NULL;
	reader->at += length;
	reader->left -= length;
	return start;
}

static bool take_u16(struct reader *reader, uint16_t *value)
{
	const void *bytes = take(reader, sizeof(*value));

	if (!bytes)
		return false;
	memcpy(value, bytes, sizeof(*value));
	*value = be16toh(*value);
	return true;
}

static bool take_u32(struct reader *reader, uint32_t *value)
{
	const void *bytes = take(reader, sizeof(*value));

	if (!bytes)
		return false;
	memcpy(value, bytes, sizeof(*value));
	*value = be32toh(*value);
	return true;
}

/* A length and so many bytes of text, as names and queries are sent. */
static const char *take_string(struct reader *reader, size_t *length)
{
	const char *text;
	uint32_t n;

	if (!take_u32(reader, &n) || n > NBD_MAX_STRING)
		return NULL;
	text = take(reader, n);
	if (!text || !text_is_utf8(text, n))
		return NULL;
	*length = n;
	return text;
}

static void append(struct option *option, const void *bytes, size_t length)
{
	size_t need = option->replies_length + length;
	uint8_t *bigger;

	if (option->is_out_of_memory || !length)
		return;
	if (need > option->replies_room) {
		bigger = realloc(option->replies, need * 2);
		if (!bigger) {
			option->is_out_of_memory = true;
			return;
		}
		option->replies = bigger;
		option->replies_room = need * 2;
	}
	memcpy(option->replies + option->replies_length, bytes, length);
	option->replies_length = need;
}

/* A reply of which the data follows by append(). */
static void begin_reply(struct option *option, uint32_t type, size_t length)
{
	struct nbd_option_reply_header header = {
		.magic = htobe64(NBD_OPTION_REPLY_MAGIC),
		.option = htobe32(option->code),
		.type = htobe32(type),
		.length = htobe32(length),
	};

	append(option, &header, sizeof(header));
}

static int acknowledge(struct option *option)
{
	begin_reply(option, NBD_REP_ACK, 0);
	return NEXT_OPTION;
}

static int refuse(struct option *option, uint32_t type, const char *text)
{
	begin_reply(option, type, strlen(text));
	append(option, text, strlen(text));
	return NEXT_OPTION;
}

static int refuse_data(struct option *option)
{
	return refuse(option, NBD_REP_ERR_INVALID, "this option takes no data");
}

static int break_off(struct option *option, const char *reason)
{
	log_info("%s: disconnected: %s", option->connection->transport->peer, reason);
	return -EPROTO;
}

/* Keeps the selected contexts only if they were selected for this very name. */
static void choose_export(struct connection *connection, const struct export *export,
			  const char *name, size_t length)
{
	struct context_set *set = &connection->contexts;

	if (set->export_name_length != length || memcmp(set->export_name, name, length))
		set->count = 0;
	connection->export = export;
}

static int do_export_name(struct option *option)
{
	struct connection *connection = option->connection;
	const char *name = (const char *)option->data.at;
	size_t length = option->data.left;
	const struct export *export = NULL;
	struct nbd_export_name_reply reply;
	char quoted[64];

	/* This option has no error reply: the only answer to a wrong name is to leave. */
	if (length <= NBD_MAX_STRING && text_is_utf8(name, length))
		export = export_table_find(connection->rules->exports, name, length);
	if (!export) {
		log_info("%s: disconnected: no export named %s", connection->transport->peer,
			 log_quote(quoted, sizeof(quoted), name, length));
		return NEXT_END;
	}
	choose_export(connection, export, name, length);
	memset(&reply, 0, sizeof(reply));
	reply.size = htobe64(export->backend->size);
	reply.flags = htobe16(connection_flags(connection, export));
	append(option, &reply, connection->no_zeroes ? sizeof(reply) - sizeof(reply.zeroes)
						     : sizeof(reply));
	return NEXT_TRANSMISSION;
}

static int do_list(struct option *option)
{
	const struct export_table *exports = option->connection->rules->exports;
	size_t i;

	if (option->data.left)
		return refuse_data(option);
	for (i = 0; i < exports->count; i++) {
		const struct export *export = &exports->exports[i];
		size_t name_length = strlen(export->name);
		size_t text_length = strlen(export->description);
		uint32_t length = htobe32(name_length);

		begin_reply(option, NBD_REP_SERVER, sizeof(length) + name_length + text_length);
		append(option, &length, sizeof(length));
		append(option, export->name, name_length);
		append(option, export->description, text_length);
	}
	return acknowledge(option);
}

static void reply_export(struct option *option, const struct export *export)
{
	struct nbd_info_export info = {
		.type = htobe16(NBD_INFO_EXPORT),
		.size = htobe64(export->backend->size),
		.flags = htobe16(connection_flags(option->connection, export)),
	};
	struct nbd_info_block_size blocks = {
		.type = htobe16(NBD_INFO_BLOCK_SIZE),
		.minimum = htobe32(BLOCK_MINIMUM),
		.preferred = htobe32(export->backend->preferred),
		.maximum = htobe32(BLOCK_MAXIMUM),
	};

	begin_reply(option, NBD_REP_INFO, sizeof(info));
	append(option, &info, sizeof(info));
	/* Sent unasked too: some clients use it but never ask. */
	begin_reply(option, NBD_REP_INFO, sizeof(blocks));
	append(option, &blocks, sizeof(blocks));
}

static void reply_text(struct option *option, uint16_t type, const char *text)
{
	uint16_t big_endian = htobe16(type);

	begin_reply(option, NBD_REP_INFO, sizeof(big_endian) + strlen(text));
	append(option, &big_endian, sizeof(big_endian));
	append(option, text, strlen(text));
}

static int do_info_or_go(struct option *option)
{
	struct connection *connection = option->connection;
	const struct export *export;
	bool wants_name = false, wants_description = false;
	uint16_t requests, request;
	const char *name;
	size_t length;

	name = take_string(&option->data, &length);
	if (!name || !take_u16(&option->data, &requests) ||
	    option->data.left != 2 * (size_t)requests)
		return refuse(option, NBD_REP_ERR_INVALID, "malformed name or list of requests");
	while (take_u16(&option->data, &request)) {
		wants_name |= request == NBD_INFO_NAME;
		wants_description |= request == NBD_INFO_DESCRIPTION;
	}
	export = export_table_find(connection->rules->exports, name, length);
	if (!export)
		return refuse(option, NBD_REP_ERR_UNKNOWN, "no export of this name");
	reply_export(option, export);
	if (wants_name)
		reply_text(option, NBD_INFO_NAME, export->name);
	if (wants_description)
		reply_text(option, NBD_INFO_DESCRIPTION, export->description);
	acknowledge(option);
	if (option->code == NBD_OPT_INFO)
		return NEXT_OPTION;
	choose_export(connection, export, name, length);
	return NEXT_TRANSMISSION;
}

static int do_structured_reply(struct option *option)
{
	if (option->data.left)
		return refuse_data(option);
	if (option->connection->structured)
		return refuse(option, NBD_REP_ERR_INVALID, "already negotiated");
	option->connection->structured = true;
	return acknowledge(option);
}

static void reply_context(struct option *option, uint32_t id, const struct context *context)
{
	uint32_t big_endian = htobe32(id);

	begin_reply(option, NBD_REP_META_CONTEXT, sizeof(big_endian) + strlen(context->name));
	append(option, &big_endian, sizeof(big_endian));
	append(option, context->name, strlen(context->name));
}

/* Are there exactly @queries well-formed queries, and nothing after them? */
static bool are_queries(struct reader data, uint32_t queries)
{
	size_t length;

	/* Each takes bytes of the data, so that this ends soon, whatever is claimed. */
	while (queries--)
		if (!take_string(&data, &length))
			return false;
	return !data.left;
}

static bool is_listed(const struct context *context, struct reader data, uint32_t queries)
{
	const char *query;
	size_t length;

	if (!queries)
		return true;
	while (queries--) {
		query = take_string(&data, &length);
		if (context_matches(context, query, length))
			return true;
	}
	return false;
}

static int list_contexts(struct option *option, const struct export *export, uint32_t queries)
{
	size_t i;

	for (i = 0; i < export->context_count; i++)
		if (is_listed(&export->contexts[i], option->data, queries))
			reply_context(option, 0, &export->contexts[i]);
	return acknowledge(option);
}

static bool add_to_set(struct context_set *set, unsigned int id)
{
	size_t i;

	for (i = 0; i < set->count; i++)
		if (set->ids[i] == id)
			return true;
	if (set->count == CONNECTION_CONTEXTS)
		return false;
	set->ids[set->count++] = id;
	return true;
}

static int set_contexts(struct option *option, const struct export *export, uint32_t queries)
{
	struct context_set *set = &option->connection->contexts;
	char quoted[CONTEXT_NAME_SIZE];
	const char *query;
	size_t length, i;
	int id;

	while (queries--) {
		query = take_string(&option->data, &length);
		id = export_find_context(export, query, length);
		if (id < 0) {
			/* A client that goes on without it may copy too little. */
			log_info("%s: export %s has no context %s",
				 option->connection->transport->peer, export->name,
				 log_quote(quoted, sizeof(quoted), query, length));
		} else if (!add_to_set(set, id)) {
			set->count = 0;
			return refuse(option, NBD_REP_ERR_TOO_BIG, "too many contexts selected");
		}
	}
	for (i = 0; i < set->count; i++)
		reply_context(option, set->ids[i] + 1, &export->contexts[set->ids[i]]);
	return acknowledge(option);
}

static int do_meta_context(struct option *option)
{
	struct connection *connection = option->connection;
	struct context_set *set = &connection->contexts;
	bool is_set = option->code == NBD_OPT_SET_META_CONTEXT;
	const struct export *export;
	const char *name;
	uint32_t queries;
	size_t length;

	/* An earlier selection is gone, also if this one fails. */
	if (is_set)
		set->count = 0;
	name = take_string(&option->data, &length);
	if (!name || !take_u32(&option->data, &queries) || !are_queries(option->data, queries))
		return refuse(option, NBD_REP_ERR_INVALID, "malformed name or list of queries");
	if (is_set && !connection->structured)
		return refuse(option, NBD_REP_ERR_INVALID, "negotiate structured replies first");
	export = export_table_find(connection->rules->exports, name, length);
	if (!export)
		return refuse(option, NBD_REP_ERR_UNKNOWN, "no export of this name");
	if (!is_set)
		return list_contexts(option, export, queries);
	memcpy(set->export_name, name, length);
	set->export_name_length = length;
	set->export = export;
	return set_contexts(option, export, queries);
}

static int dispatch(struct option *option)
{
	if (option->code == NBD_OPT_ABORT) {
		acknowledge(option);
		return NEXT_END;
	}
	if (stop_is_requested(option->connection->rules->stop)) {
		if (option->code == NBD_OPT_EXPORT_NAME)
			return NEXT_END;
		return refuse(option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
	}
	if (!option->connection->fixed_newstyle && option->code != NBD_OPT_EXPORT_NAME)
		return break_off(option, "an option that needs fixed newstyle");
	switch (option->code) {
	case NBD_OPT_EXPORT_NAME:
		return do_export_name(option);
	case NBD_OPT_LIST:
		return do_list(option);
	case NBD_OPT_STARTTLS:
		if (option->data.left)
			return refuse_data(option);
		return refuse(option, NBD_REP_ERR_UNSUP, "this server has no TLS");
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return do_info_or_go(option);
	case NBD_OPT_STRUCTURED_REPLY:
		return do_structured_reply(option);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return do_meta_context(option);
	default:
		return refuse(option, NBD_REP_ERR_UNSUP, "option not supported");
	}
}

static int receive(struct connection *connection, void *buffer, size_t length)
{
	return connection->transport->ops->read(connection->transport, buffer, length);
}

/* In the middle of something, the end of the stream is an error too. */
static int receive_rest(struct connection *connection, void *buffer, size_t length)
{
	int ret = receive(connection, buffer, length);

	return ret == TRANSPORT_END ? -ECONNRESET : ret;
}

static int send_bytes(struct connection *connection, void *bytes, size_t length)
{
	struct iovec vector = { .iov_base = bytes, .iov_len = length };

	return connection->transport->ops->write(connection->transport, &vector, 1);
}

static int skip(struct option *option, uint8_t *buffer, size_t length)
{
	size_t n;
	int ret;

	while (length) {
		n = length < OPTION_BYTES_MAX ? length : OPTION_BYTES_MAX;
		ret = receive_rest(option->connection, buffer, n);
		if (ret)
			return ret;
		length -= n;
	}
	return 0;
}

static int send_replies(struct option *option)
{
	int ret = 0;

	if (option->is_out_of_memory)
		ret = -ENOMEM;
	else if (option->replies_length)
		ret = send_bytes(option->connection, option->replies, option->replies_length);
	free(option->replies);
	return ret;
}

/* @buffer has room for OPTION_BYTES_MAX. */
static int run_option(struct connection *connection, uint8_t *buffer)
{
	struct option option = { .connection = connection };
	struct nbd_option_header header;
	uint32_t length;
	int next, ret;

	ret = receive(connection, &header, sizeof(header));
	if (ret)
		return ret == TRANSPORT_END ? NEXT_END : ret;
	option.code = be32toh(header.option);
	length = be32toh(header.length);
	if (be64toh(header.magic) != NBD_OPTION_MAGIC)
		return break_off(&option, "wrong magic number of an option");
	if (length > OPTION_BYTES_SKIP)
		return break_off(&option, "an option that is far too long");
	if (length > OPTION_BYTES_MAX && option.code == NBD_OPT_EXPORT_NAME)
		return break_off(&option, "an export name that is far too long");
	if (length > OPTION_BYTES_MAX) {
		ret = skip(&option, buffer, length);
		/* A selection that fails, for whatever reason, leaves none. */
		if (option.code == NBD_OPT_SET_META_CONTEXT)
			connection->contexts.count = 0;
		next = option.code == NBD_OPT_ABORT ? dispatch(&option) :
		       refuse(&option, NBD_REP_ERR_TOO_BIG, "too much data in this option");
	} else {
		ret = receive_rest(connection, buffer, length);
		option.data.at = buffer;
		option.data.left = length;
		next = ret ? ret : dispatch(&option);
	}
	if (ret) {
		free(option.replies);
		return ret;
	}
	ret = send_replies(&option);
	return ret && next >= 0 ? ret : next;
}

static int greet(struct connection *connection)
{
	struct nbd_greeting greeting = {
		.magic = htobe64(NBD_MAGIC),
		.option_magic = htobe64(NBD_OPTION_MAGIC),
		.flags = htobe16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
	};
	uint32_t flags;
	int ret = send_bytes(connection, &greeting, sizeof(greeting));

	if (!ret)
		ret = receive(connection, &flags, sizeof(flags));
	if (ret)
		return ret;
	flags = be32toh(flags);
	if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
		log_info("%s: disconnected: unknown client flags 0x%x",
			 connection->transport->peer, flags);
		return -EPROTO;
	}
	connection->fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
	connection->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
	return 0;
}

static int run_options(struct connection *connection)
{
	uint8_t *buffer = malloc(OPTION_BYTES_MAX);
	int next = NEXT_OPTION;
	unsigned int count;

	if (!buffer)
		return -ENOMEM;
	for (count = 0; next == NEXT_OPTION && count < OPTIONS_MAX; count++)
		next = run_option(connection, buffer);
	free(buffer);
	if (next == NEXT_OPTION) {
		log_info("%s: disconnected: more than %u options", connection->transport->peer,
			 OPTIONS_MAX);
		return -EPROTO;
	}
	if (next == NEXT_TRANSMISSION)
		return 0;
	return next == NEXT_END ? TRANSPORT_END : next;
}

int handshake_run(struct connection *connection)
{
	int ret = greet(connection);

	if (!ret)
		ret = run_options(connection);
	if (ret == -ETIMEDOUT && !stop_is_requested(connection->rules->stop))
		log_info("%s: disconnected: handshake not finished in time",
			 connection->transport->peer);
	return ret;
}
