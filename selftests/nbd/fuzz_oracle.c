// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd fuzzing, oracle: the handshake, and the streams. The answers to requests are
 * in fuzz_replies.c.
 */
#include "fuzz_oracle.h"

#include <endian.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_replies.h"
#include "text.h"

/* Limits of the server, which it may end a connection for. */
#define OPTIONS_MAX		256
#define OPTION_BYTES_SKIP	(32U << 20)

/* Longest answer to an option: a number, and a string of the protocol. */
#define OPTION_REPLY_MAX	(NBD_MAX_STRING + 64)

void oracle_complain(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("oracle: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	abort();
}

const void *oracle_sent(struct oracle *oracle, uint64_t length)
{
	const uint8_t *start = oracle->in;

	if (length > oracle->in_left)
		return NULL;
	oracle->in += length;
	oracle->in_left -= length;
	return start;
}

const void *oracle_got(struct oracle *oracle, uint64_t length, const char *what)
{
	const uint8_t *start = oracle->out;

	if (length > oracle->out_left && oracle->session->is_cut)
		longjmp(oracle->cut, 1);
	if (length > oracle->out_left)
		oracle_complain("%s: %zu bytes are there, %llu should be", what, oracle->out_left,
				(unsigned long long)length);
	oracle->out += length;
	oracle->out_left -= length;
	return start;
}

static void check_greeting(struct oracle *oracle)
{
	const struct nbd_greeting *greeting = oracle_got(oracle, sizeof(*greeting), "greeting");

	if (be64toh(greeting->magic) != NBD_MAGIC ||
	    be64toh(greeting->option_magic) != NBD_OPTION_MAGIC ||
	    be16toh(greeting->flags) != (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		oracle_complain("greeting");
}

static const struct export *find_size(const struct oracle *oracle, uint64_t size)
{
	const struct export_table *exports = oracle->session->exports;
	size_t i;

	for (i = 0; i < exports->count; i++)
		if (exports->exports[i].backend->size == size)
			return &exports->exports[i];
	oracle_complain("no export has the size %llu", (unsigned long long)size);
	return NULL;
}

static void choose(struct oracle *oracle, uint64_t size, uint16_t flags)
{
	bool is_structured = oracle->form != REPLY_SIMPLE;

	if (!(flags & NBD_FLAG_HAS_FLAGS) ||
	    !(flags & NBD_FLAG_READ_ONLY) != !!(flags & NBD_FLAG_SEND_TRIM) ||
	    !!(flags & NBD_FLAG_SEND_DF) != is_structured)
		oracle_complain("transmission flags 0x%x", flags);
	oracle->backend = find_size(oracle, size)->backend;
	oracle->can_release = flags & NBD_FLAG_SEND_TRIM;
}

static uint32_t number_at(const void *bytes)
{
	uint32_t number;

	memcpy(&number, bytes, sizeof(number));
	return be32toh(number);
}

/* Contexts are those of the very name that they were selected for. */
static void drop_foreign_contexts(struct oracle *oracle, const void *name, uint32_t length)
{
	const uint8_t *selected = oracle->selected;

	if (oracle->context_count && (number_at(selected) != length ||
				      memcmp(selected + sizeof(length), name, length)))
		oracle->context_count = 0;
}

/* True: transmission follows. The server may also leave instead. */
static bool check_export_name(struct oracle *oracle, const void *name, uint32_t name_length)
{
	size_t length = sizeof(struct nbd_export_name_reply);
	struct nbd_export_name_reply reply;

	if (!oracle->out_left)
		return false;
	if (oracle->form == REPLY_EXTENDED || (oracle->session->has_tls && !oracle->is_secure))
		oracle_complain("EXPORT_NAME is answered where it must not be");
	if (oracle->client_flags & NBD_FLAG_NO_ZEROES)
		length -= sizeof(reply.zeroes);
	memcpy(&reply, oracle_got(oracle, length, "answer to EXPORT_NAME"), length);
	choose(oracle, be64toh(reply.size), be16toh(reply.flags));
	drop_foreign_contexts(oracle, name, name_length);
	return true;
}

static void check_info(struct oracle *oracle, const uint8_t *data, uint32_t length)
{
	const struct nbd_info_block_size *sizes = (const void *)data;
	const struct nbd_info_export *export = (const void *)data;
	uint16_t type;

	if (length < sizeof(type))
		oracle_complain("INFO without a type");
	type = be16toh(export->type);
	if (type > NBD_INFO_BLOCK_SIZE || oracle->infos & 1U << type)
		oracle_complain("INFO of type %u, or twice", type);
	oracle->infos |= 1U << type;
	if (type == NBD_INFO_EXPORT) {
		if (length != sizeof(*export))
			oracle_complain("INFO_EXPORT of %u bytes", length);
		choose(oracle, be64toh(export->size), be16toh(export->flags));
	} else if (type == NBD_INFO_BLOCK_SIZE) {
		if (length != sizeof(*sizes) ||
		    be32toh(sizes->minimum) > be32toh(sizes->preferred) ||
		    be32toh(sizes->preferred) > be32toh(sizes->maximum))
			oracle_complain("INFO_BLOCK_SIZE");
	} else if (!text_is_utf8(data + sizeof(type), length - sizeof(type))) {
		oracle_complain("INFO with a malformed text");
	}
}

static void check_server(const uint8_t *data, uint32_t length)
{
	uint32_t name_length;

	if (length < sizeof(name_length))
		oracle_complain("SERVER without a name");
	name_length = number_at(data);
	if (name_length > length - sizeof(name_length))
		oracle_complain("SERVER with a name of %u bytes", name_length);
	if (!text_is_utf8(data + sizeof(name_length), length - sizeof(name_length)))
		oracle_complain("SERVER with a malformed text");
}

static void check_context(struct oracle *oracle, uint32_t code, const uint8_t *data,
			  uint32_t length)
{
	uint32_t id;
	size_t i;

	if (length <= sizeof(id) || !text_is_utf8(data + sizeof(id), length - sizeof(id)))
		oracle_complain("META_CONTEXT without a name");
	if (code == NBD_OPT_LIST_META_CONTEXT)
		return;
	id = number_at(data);
	for (i = 0; i < oracle->context_count; i++)
		if (oracle->contexts[i] == id)
			oracle_complain("META_CONTEXT: an id twice");
	if (oracle->context_count == CONNECTION_CONTEXTS || oracle->form == REPLY_SIMPLE)
		oracle_complain("META_CONTEXT where there should be none");
	oracle->contexts[oracle->context_count++] = id;
}

/* One of the answers that come before the last one. */
static void check_answer(struct oracle *oracle, uint32_t code, uint32_t type, const void *data,
			 uint32_t length)
{
	if (type == NBD_REP_SERVER && code == NBD_OPT_LIST)
		check_server(data, length);
	else if (type == NBD_REP_INFO && (code == NBD_OPT_INFO || code == NBD_OPT_GO))
		check_info(oracle, data, length);
	else if (type == NBD_REP_META_CONTEXT &&
		 (code == NBD_OPT_LIST_META_CONTEXT || code == NBD_OPT_SET_META_CONTEXT))
		check_context(oracle, code, data, length);
	else
		oracle_complain("answer of type 0x%x to option %u", type, code);
}

/* All answers to an option. Returns the type of the last one. */
static uint32_t check_answers(struct oracle *oracle, uint32_t code)
{
	const struct nbd_option_reply_header *header;
	uint32_t type, length;
	const void *data;

	for (;;) {
		header = oracle_got(oracle, sizeof(*header), "answer to an option");
		type = be32toh(header->type);
		length = be32toh(header->length);
		if (be64toh(header->magic) != NBD_OPTION_REPLY_MAGIC ||
		    be32toh(header->option) != code || length > OPTION_REPLY_MAX)
			oracle_complain("header of an answer to option %u", code);
		data = oracle_got(oracle, length, "answer to an option");
		if (type == NBD_REP_ACK && length)
			oracle_complain("ACK with data");
		if (type & NBD_REP_ERROR(0) && !text_is_utf8(data, length))
			oracle_complain("error with a malformed text");
		if (type == NBD_REP_ACK || type & NBD_REP_ERROR(0))
			return type;
		check_answer(oracle, code, type, data, length);
	}
}

static void accept_form(struct oracle *oracle, enum reply_form form)
{
	if (oracle->form >= form)
		oracle_complain("a form of replies is accepted twice, or a lesser one");
	oracle->form = form;
}

/* What an option that was accepted changes. True: transmission follows. */
static bool accept_option(struct oracle *oracle, uint32_t code, const uint8_t *data)
{
	if (oracle->session->has_tls && !oracle->is_secure && code != NBD_OPT_STARTTLS)
		oracle_complain("option %u is accepted without TLS", code);
	switch (code) {
	case NBD_OPT_STARTTLS:
		if (!oracle->session->has_tls || oracle->is_secure)
			oracle_complain("STARTTLS is accepted");
		oracle->is_secure = true;
		oracle->form = REPLY_SIMPLE;
		oracle->context_count = 0;
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		if (!(oracle->infos & 1U << NBD_INFO_EXPORT))
			oracle_complain("an export is chosen without INFO_EXPORT");
		if (code == NBD_OPT_GO)
			drop_foreign_contexts(oracle, data + sizeof(uint32_t), number_at(data));
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		accept_form(oracle, REPLY_STRUCTURED);
		break;
	case NBD_OPT_EXTENDED_HEADERS:
		accept_form(oracle, REPLY_EXTENDED);
		break;
	case NBD_OPT_SET_META_CONTEXT:
		if (oracle->form == REPLY_SIMPLE)
			oracle_complain("contexts are selected without structured replies");
		oracle->selected = data;
		break;
	}
	return code == NBD_OPT_GO;
}

/* The server may end the connection at an option without an answer. */
static bool may_leave(const struct oracle *oracle)
{
	return !(oracle->client_flags & NBD_FLAG_FIXED_NEWSTYLE);
}

/* False: the connection ends. */
static bool check_option(struct oracle *oracle, bool *is_chosen)
{
	const struct nbd_option_header *header = oracle_sent(oracle, sizeof(*header));
	uint32_t code, length, last;
	const uint8_t *data;

	if (!header || be64toh(header->magic) != NBD_OPTION_MAGIC)
		return false;
	code = be32toh(header->option);
	length = be32toh(header->length);
	data = length > OPTION_BYTES_SKIP ? NULL : oracle_sent(oracle, length);
	if (!data)
		return false;
	if (code == NBD_OPT_EXPORT_NAME) {
		*is_chosen = check_export_name(oracle, data, length);
		return *is_chosen;
	}
	if (!oracle->out_left && may_leave(oracle))
		return false;
	if (code == NBD_OPT_SET_META_CONTEXT)
		oracle->context_count = 0;
	oracle->infos = 0;
	last = check_answers(oracle, code);
	if (code == NBD_OPT_ABORT)
		return false;
	if (last == NBD_REP_ACK)
		*is_chosen = accept_option(oracle, code, data);
	else if (code == NBD_OPT_SET_META_CONTEXT && oracle->context_count)
		oracle_complain("contexts of a selection that fails");
	return true;
}

/* True: transmission follows. */
static bool check_handshake(struct oracle *oracle)
{
	bool is_chosen = false;
	const void *flags;
	int i;

	check_greeting(oracle);
	flags = oracle_sent(oracle, sizeof(oracle->client_flags));
	if (!flags)
		return false;
	oracle->client_flags = number_at(flags);
	if (oracle->client_flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return false;
	for (i = 0; i < OPTIONS_MAX && !is_chosen; i++)
		if (!check_option(oracle, &is_chosen))
			return false;
	return is_chosen;
}

void oracle_check(const struct oracle_session *session)
{
	struct oracle oracle = {
		.session = session,
		.in = session->in,
		.in_left = session->in_length,
		.out = session->out,
		.out_left = session->out_length,
	};

	/* The client was gone, in the middle of whatever it was. */
	if (setjmp(oracle.cut))
		return;
	if (check_handshake(&oracle))
		while (oracle_check_request(&oracle))
			;
	if (oracle.out_left)
		oracle_complain("%zu bytes follow the end", oracle.out_left);
}
