// SPDX-License-Identifier: GPL-2.0-only
/* nbd tests: what clients send, as session.h says. */
#include "session.h"

#include <endian.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"

void put(struct bytes *bytes, const void *data, size_t length)
{
	if (length > sizeof(bytes->data) - bytes->length)
		abort();
	if (length)
		memcpy(bytes->data + bytes->length, data, length);
	bytes->length += length;
}

void put16(struct bytes *bytes, uint16_t value)
{
	value = htobe16(value);
	put(bytes, &value, sizeof(value));
}

void put32(struct bytes *bytes, uint32_t value)
{
	value = htobe32(value);
	put(bytes, &value, sizeof(value));
}

void put64(struct bytes *bytes, uint64_t value)
{
	value = htobe64(value);
	put(bytes, &value, sizeof(value));
}

void put_string(struct bytes *bytes, const char *text)
{
	put32(bytes, strlen(text));
	put(bytes, text, strlen(text));
}

void put_option(struct bytes *bytes, uint32_t code, const struct bytes *data)
{
	put64(bytes, NBD_OPTION_MAGIC);
	put32(bytes, code);
	put32(bytes, data ? data->length : 0);
	if (data)
		put(bytes, data->data, data->length);
}

void put_request(struct bytes *bytes, uint16_t command, uint16_t flags, uint64_t offset,
		 uint32_t length)
{
	put32(bytes, NBD_REQUEST_MAGIC);
	put16(bytes, flags);
	put16(bytes, command);
	put64(bytes, 0x1122334455667788ULL);
	put64(bytes, offset);
	put32(bytes, length);
}

void put_extended(struct bytes *bytes, uint16_t command, uint16_t flags, uint64_t offset,
		  uint64_t length)
{
	put32(bytes, NBD_EXTENDED_REQUEST_MAGIC);
	put16(bytes, flags);
	put16(bytes, command);
	put64(bytes, 0x1122334455667788ULL);
	put64(bytes, offset);
	put64(bytes, length);
}

void put_contexts(struct bytes *bytes, uint32_t option, const char *export, int count, ...)
{
	struct bytes data = { .length = 0 };
	va_list names;

	put_string(&data, export);
	put32(&data, count);
	va_start(names, count);
	while (count--)
		put_string(&data, va_arg(names, const char *));
	va_end(names);
	put_option(bytes, option, &data);
}

void put_go(struct bytes *bytes, uint32_t option, const char *export)
{
	struct bytes data = { .length = 0 };

	put_string(&data, export);
	put16(&data, 3);
	put16(&data, NBD_INFO_NAME);
	put16(&data, NBD_INFO_DESCRIPTION);
	put16(&data, NBD_INFO_BLOCK_SIZE);
	put_option(bytes, option, &data);
}

void begin_session(struct bytes *session)
{
	session->length = 0;
	put32(session, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

/* Something of everything. */
void full_session(struct bytes *session)
{
	struct bytes payload = { .length = 40 };

	memset(payload.data, 0xee, payload.length);
	begin_session(session);
	put_option(session, NBD_OPT_LIST, NULL);
	put_option(session, 12345, &payload);
	put_option(session, NBD_OPT_STARTTLS, NULL);
	put_go(session, NBD_OPT_INFO, "snap@one");
	put_go(session, NBD_OPT_INFO, "nothing");
	put_contexts(session, NBD_OPT_LIST_META_CONTEXT, "", 0);
	put_contexts(session, NBD_OPT_LIST_META_CONTEXT, "snap", 2, "qemu:", "other:thing");
	put_option(session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_contexts(session, NBD_OPT_SET_META_CONTEXT, "snap+release", 4, "base:allocation",
		     "qemu:dirty-bitmap:one", "fleece:clean:two", "fleece:access");
	put_go(session, NBD_OPT_GO, "snap+release");
	put_request(session, NBD_CMD_READ, 0, 0, 600);
	put_request(session, NBD_CMD_READ, NBD_CMD_FLAG_DF, 512 << 10, 512);
	put_request(session, NBD_CMD_READ, 0, 640 << 10, 512);
	put_request(session, NBD_CMD_READ, 0, 0, 0);
	put_request(session, NBD_CMD_WRITE, 0, 0, 40);
	put(session, payload.data, payload.length);
	put_request(session, NBD_CMD_BLOCK_STATUS, 0, 100, 1000000);
	put_request(session, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 1 << 20);
	put_request(session, NBD_CMD_TRIM, 0, 0, 65536);
	put_request(session, NBD_CMD_FLUSH, 0, 0, 0);
	put_request(session, NBD_CMD_CACHE, 0, 0, 4096);
	put_request(session, NBD_CMD_WRITE_ZEROES, 0, 0, 4096);
	put_request(session, 99, 0, 0, 4096);
	put_request(session, NBD_CMD_DISC, 0, 0, 0);
}

/* The same with extended headers, their payloads included. */
void extended_session(struct bytes *session)
{
	struct bytes payload = { .length = 40 };

	memset(payload.data, 0xee, payload.length);
	begin_session(session);
	put_option(session, NBD_OPT_EXTENDED_HEADERS, NULL);
	put_option(session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_contexts(session, NBD_OPT_SET_META_CONTEXT, "snap+release", 3, "base:allocation",
		     "qemu:dirty-bitmap:one", "fleece:access");
	put_go(session, NBD_OPT_INFO, "snap+release");
	put_go(session, NBD_OPT_GO, "snap+release");
	put_extended(session, NBD_CMD_READ, 0, 0, 600);
	put_extended(session, NBD_CMD_READ, NBD_CMD_FLAG_DF, (512 << 10) - 2, 512);
	put_extended(session, NBD_CMD_READ, 0, 640 << 10, 512);
	put_extended(session, NBD_CMD_READ, 0, 0, 0);
	put_extended(session, NBD_CMD_READ, 0, 0, UINT64_MAX);
	put_extended(session, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 40);
	put(session, payload.data, payload.length);
	put_extended(session, NBD_CMD_READ, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 40);
	put(session, payload.data, payload.length);
	put_extended(session, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 40);
	put(session, payload.data, payload.length);
	put_extended(session, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 16);
	put64(session, 1 << 20);
	put32(session, 2);
	put32(session, 1);
	put_extended(session, NBD_CMD_BLOCK_STATUS, 0, 100, 1000000);
	put_extended(session, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 1 << 20);
	put_extended(session, NBD_CMD_TRIM, 0, 0, 65536);
	put_extended(session, NBD_CMD_FLUSH, 0, 0, 0);
	put_extended(session, NBD_CMD_CACHE, 0, 0, 4096);
	put_extended(session, NBD_CMD_WRITE_ZEROES, 0, 0, 4096);
	put_extended(session, 99, 0, 0, 4096);
	put_extended(session, NBD_CMD_DISC, 0, 0, 0);
}
