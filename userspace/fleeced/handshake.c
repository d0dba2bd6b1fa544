// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, handshake: the greeting, the order of options, and those that choose
 * an export or the form of replies. Metadata contexts are in context_options.c.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client_option.h"
#include "context_options.h"
#include "log.h"
#include "text.h"

/* Most options of one client. */
#define OPTIONS_MAX		256

/* Contexts count only if they were selected for this very name. */
static bool has_contexts(const struct connection *connection, const char *name, size_t length)
{
	const struct context_set *set = &connection->contexts;

	return set->count && set->export_name_length == length &&
	       !memcmp(set->export_name, name, length);
}

static int choose_export(struct connection *connection, const struct export *export,
			 const char *name, size_t length)
{
	if (!has_contexts(connection, name, length))
		connection->contexts.count = 0;
	connection->export = export;
	return NEXT_TRANSMISSION;
}

/* Waits until this client, too, may have an export. */
static bool take_slot(struct connection *connection)
{
	if (slots_take(connection->rules->slots, &connection->slot, connection->deadline_ms))
		return true;
	if (!stop_is_requested(connection->rules->stop) &&
	    connection_status(connection) != CONNECTION_DEAD)
		log_stranger("%s: disconnected: all connections are in use (--max-connections)",
			     connection->transport->peer);
	return false;
}

static int do_export_name(struct client_option *option)
{
	struct connection *connection = option->connection;
	const char *name = (const char *)option->data.at;
	size_t length = option->data.left;
	const struct export *export = NULL;
	struct nbd_export_name_reply reply;
	char quoted[64];

	/* This option has no error reply: the only answer to what is wrong is to leave. */
	if (connection->form == REPLY_EXTENDED)
		return option_break_off(option, "EXPORT_NAME after EXTENDED_HEADERS");
	if (length <= NBD_MAX_STRING && text_is_utf8(name, length))
		export = export_table_find(connection->rules->exports, name, length);
	if (!export) {
		log_stranger("%s: disconnected: no export named %s", connection->transport->peer,
			     log_quote(quoted, sizeof(quoted), name, length));
		return NEXT_END;
	}
	if (!take_slot(connection))
		return NEXT_END;
	memset(&reply, 0, sizeof(reply));
	reply.size = htobe64(export->backend->size);
	reply.flags = htobe16(connection_flags(connection, export, false));
	option_append(option, &reply, connection->no_zeroes ?
		      sizeof(reply) - sizeof(reply.zeroes) : sizeof(reply));
	return choose_export(connection, export, name, length);
}

static int do_list(struct client_option *option)
{
	const struct export_table *exports = option->connection->rules->exports;
	size_t i;

	if (option->data.left)
		return option_refuse_data(option);
	for (i = 0; i < exports->count; i++) {
		const struct export *export = &exports->exports[i];
		size_t name_length = strlen(export->name);
		size_t text_length = strlen(export->description);
		uint32_t length = htobe32(name_length);

		option_begin_reply(option, NBD_REP_SERVER,
				   sizeof(length) + name_length + text_length);
		option_append(option, &length, sizeof(length));
		option_append(option, export->name, name_length);
		option_append(option, export->description, text_length);
	}
	return option_acknowledge(option);
}

static void reply_export(struct client_option *option, const struct export *export,
			 bool has_selected)
{
	struct nbd_info_export info = {
		.type = htobe16(NBD_INFO_EXPORT),
		.size = htobe64(export->backend->size),
		.flags = htobe16(connection_flags(option->connection, export, has_selected)),
	};

	option_begin_reply(option, NBD_REP_INFO, sizeof(info));
	option_append(option, &info, sizeof(info));
}

static void reply_block_size(struct client_option *option, const struct export *export)
{
	struct nbd_info_block_size info = {
		.type = htobe16(NBD_INFO_BLOCK_SIZE),
		.minimum = htobe32(NBD_BLOCK_MINIMUM),
		.preferred = htobe32(export->backend->preferred),
		.maximum = htobe32(NBD_BLOCK_MAXIMUM),
	};

	option_begin_reply(option, NBD_REP_INFO, sizeof(info));
	option_append(option, &info, sizeof(info));
}

static void reply_text(struct client_option *option, uint16_t type, const char *text)
{
	uint16_t big_endian = htobe16(type);

	option_begin_reply(option, NBD_REP_INFO, sizeof(big_endian) + strlen(text));
	option_append(option, &big_endian, sizeof(big_endian));
	option_append(option, text, strlen(text));
}

/* Each item once, whatever the number of requests for it. */
static void reply_items(struct client_option *option, const struct export *export)
{
	bool wants_name = false, wants_description = false, wants_block_size = false;
	uint16_t request;

	while (option_take_u16(&option->data, &request)) {
		wants_name |= request == NBD_INFO_NAME;
		wants_description |= request == NBD_INFO_DESCRIPTION;
		wants_block_size |= request == NBD_INFO_BLOCK_SIZE;
	}
	if (wants_name)
		reply_text(option, NBD_INFO_NAME, export->name);
	if (wants_description)
		reply_text(option, NBD_INFO_DESCRIPTION, export->description);
	if (wants_block_size)
		reply_block_size(option, export);
}

static int do_info_or_go(struct client_option *option)
{
	struct connection *connection = option->connection;
	const struct export *export;
	uint16_t requests;
	const char *name;
	size_t length;

	name = option_take_string(&option->data, &length);
	if (!name || !option_take_u16(&option->data, &requests) ||
	    option->data.left != 2 * (size_t)requests)
		return option_refuse(option, NBD_REP_ERR_INVALID,
				     "malformed name or list of requests");
	export = export_table_find(connection->rules->exports, name, length);
	if (!export)
		return option_refuse(option, NBD_REP_ERR_UNKNOWN, "no export of this name");
	if (option->code == NBD_OPT_GO && !take_slot(connection))
		return stop_is_requested(connection->rules->stop) ?
		       option_refuse(option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down") :
		       NEXT_END;
	reply_export(option, export, has_contexts(connection, name, length));
	reply_items(option, export);
	option_acknowledge(option);
	if (option->code == NBD_OPT_INFO)
		return NEXT_OPTION;
	return choose_export(connection, export, name, length);
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS, which takes precedence. */
static int do_form(struct client_option *option, enum reply_form form)
{
	struct connection *connection = option->connection;

	if (option->data.left)
		return option_refuse_data(option);
	if (connection->form == form)
		return option_refuse(option, NBD_REP_ERR_INVALID, "already negotiated");
	if (connection->form > form)
		return option_refuse(option, NBD_REP_ERR_EXT_HEADER_REQD,
				     "extended headers are negotiated already");
	connection->form = form;
	return option_acknowledge(option);
}

static int refuse_too_big(struct client_option *option)
{
	/* A selection that fails, for whatever reason, leaves none. */
	if (option->code == NBD_OPT_SET_META_CONTEXT)
		option->connection->contexts.count = 0;
	return option_refuse(option, NBD_REP_ERR_TOO_BIG, "too much data in this option");
}

static bool has_tls(const struct connection *connection)
{
	return connection->transport->ops->secure;
}

static int do_starttls(struct client_option *option)
{
	const struct connection *connection = option->connection;

	if (option->data.left || option->is_too_big)
		return option_refuse_data(option);
	if (!has_tls(connection))
		return option_refuse(option, NBD_REP_ERR_POLICY, "this server is set up without TLS");
	if (connection->is_secure)
		return option_refuse(option, NBD_REP_ERR_INVALID, "TLS has begun already");
	option_acknowledge(option);
	return NEXT_TLS;
}

/* Whatever a client has said in the clear, somebody else may have put there. */
static int begin_tls(struct connection *connection)
{
	int ret = connection->transport->ops->secure(connection->transport);

	connection->is_secure = true;
	connection->form = REPLY_SIMPLE;
	connection->contexts.count = 0;
	return ret ? ret : NEXT_OPTION;
}

/* All that a server with TLS does in the clear, but for ABORT. */
static int run_in_the_clear(struct client_option *option)
{
	if (option->code == NBD_OPT_STARTTLS)
		return do_starttls(option);
	if (option->code == NBD_OPT_EXPORT_NAME)
		return option_break_off(option, "EXPORT_NAME without TLS, which this server needs");
	option->connection->was_in_the_clear = true;
	return option_refuse(option, NBD_REP_ERR_TLS_REQD, "this server needs TLS (STARTTLS)");
}

static int dispatch(struct client_option *option)
{
	if (option->code == NBD_OPT_ABORT) {
		option_acknowledge(option);
		return NEXT_END;
	}
	if (stop_is_requested(option->connection->rules->stop)) {
		if (option->code == NBD_OPT_EXPORT_NAME)
			return NEXT_END;
		return option_refuse(option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
	}
	if (!option->connection->fixed_newstyle && option->code != NBD_OPT_EXPORT_NAME)
		return option_break_off(option, "an option that needs fixed newstyle");
	if (has_tls(option->connection) && !option->connection->is_secure)
		return run_in_the_clear(option);
	if (option->is_too_big)
		return refuse_too_big(option);
	switch (option->code) {
	case NBD_OPT_EXPORT_NAME:
		return do_export_name(option);
	case NBD_OPT_LIST:
		return do_list(option);
	case NBD_OPT_STARTTLS:
		return do_starttls(option);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return do_info_or_go(option);
	case NBD_OPT_STRUCTURED_REPLY:
		return do_form(option, REPLY_STRUCTURED);
	case NBD_OPT_EXTENDED_HEADERS:
		return do_form(option, REPLY_EXTENDED);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return context_options_run(option);
	default:
		return option_refuse(option, NBD_REP_ERR_UNSUP, "option not supported");
	}
}

static int receive(struct connection *connection, void *buffer, size_t length)
{
	return connection->transport->ops->read(connection->transport, buffer, length);
}

static int send_bytes(struct connection *connection, void *bytes, size_t length)
{
	struct iovec vector = { .iov_base = bytes, .iov_len = length };

	return connection->transport->ops->write(connection->transport, &vector, 1);
}

/* @buffer has room for OPTION_BYTES_MAX. */
static int run_option(struct connection *connection, uint8_t *buffer)
{
	struct client_option option = { .connection = connection };
	int next;
	int ret = option_receive(&option, buffer);

	if (ret)
		return ret == TRANSPORT_END ? NEXT_END : ret;
	next = dispatch(&option);
	ret = option_send_replies(&option);
	if (ret && next >= 0)
		return ret;
	return next == NEXT_TLS ? begin_tls(connection) : next;
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
		log_stranger("%s: disconnected: unknown client flags 0x%x",
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
		log_stranger("%s: disconnected: more than %u options", connection->transport->peer,
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
		log_stranger("%s: disconnected: handshake not finished in time",
			     connection->transport->peer);
	else if (connection->was_in_the_clear && !connection->is_secure &&
		 ret != -EPROTO && !stop_is_requested(connection->rules->stop))
		log_stranger("%s: has left without TLS, which this server needs",
			     connection->transport->peer);
	return ret;
}
