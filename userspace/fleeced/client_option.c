// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, client_option: the form of options and their replies on the wire.
 * Owns the limits of their length; does not know what an option means.
 */
#include "client_option.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "text.h"

/* Longest data that is skipped. */
#define OPTION_BYTES_SKIP	(32U << 20)

/* Takes bytes off the data, or NULL when there are not so many. */
static const void *take(struct option_data *data, size_t length)
{
	const uint8_t *start = data->at;

	if (length > data->left)
		return NULL;
	data->at += length;
	data->left -= length;
	return start;
}

bool option_take_u16(struct option_data *data, uint16_t *value)
{
	const void *bytes = take(data, sizeof(*value));

	if (!bytes)
		return false;
	memcpy(value, bytes, sizeof(*value));
	*value = be16toh(*value);
	return true;
}

bool option_take_u32(struct option_data *data, uint32_t *value)
{
	const void *bytes = take(data, sizeof(*value));

	if (!bytes)
		return false;
	memcpy(value, bytes, sizeof(*value));
	*value = be32toh(*value);
	return true;
}

const char *option_take_string(struct option_data *data, size_t *length)
{
	const char *text;
	uint32_t n;

	if (!option_take_u32(data, &n) || n > NBD_MAX_STRING)
		return NULL;
	text = take(data, n);
	if (!text || !text_is_utf8(text, n))
		return NULL;
	*length = n;
	return text;
}

void option_append(struct client_option *option, const void *bytes, size_t length)
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

void option_begin_reply(struct client_option *option, uint32_t type, size_t length)
{
	struct nbd_option_reply_header header = {
		.magic = htobe64(NBD_OPTION_REPLY_MAGIC),
		.option = htobe32(option->code),
		.type = htobe32(type),
		.length = htobe32(length),
	};

	option_append(option, &header, sizeof(header));
}

int option_acknowledge(struct client_option *option)
{
	option_begin_reply(option, NBD_REP_ACK, 0);
	return NEXT_OPTION;
}

int option_refuse(struct client_option *option, uint32_t type, const char *text)
{
	option_begin_reply(option, type, strlen(text));
	option_append(option, text, strlen(text));
	return NEXT_OPTION;
}

int option_refuse_data(struct client_option *option)
{
	return option_refuse(option, NBD_REP_ERR_INVALID, "this option takes no data");
}

int option_break_off(const struct client_option *option, const char *reason)
{
	log_stranger("%s: disconnected: %s", option->connection->transport->peer, reason);
	return -EPROTO;
}

/* In the middle of an option, the end of the stream is an error too. */
static int receive_rest(struct client_option *option, void *buffer, size_t length)
{
	struct transport *transport = option->connection->transport;
	int ret = transport->ops->read(transport, buffer, length);

	return ret == TRANSPORT_END ? -ECONNRESET : ret;
}

static int skip(struct client_option *option, uint8_t *buffer, size_t length)
{
	size_t n;
	int ret;

	while (length) {
		n = length < OPTION_BYTES_MAX ? length : OPTION_BYTES_MAX;
		ret = receive_rest(option, buffer, n);
		if (ret)
			return ret;
		length -= n;
	}
	return 0;
}

int option_receive(struct client_option *option, uint8_t *buffer)
{
	struct transport *transport = option->connection->transport;
	struct nbd_option_header header;
	uint32_t length;
	int ret = transport->ops->read(transport, &header, sizeof(header));

	if (ret)
		return ret;
	option->code = be32toh(header.option);
	length = be32toh(header.length);
	if (be64toh(header.magic) != NBD_OPTION_MAGIC)
		return option_break_off(option, "wrong magic number of an option");
	if (length > OPTION_BYTES_SKIP)
		return option_break_off(option, "an option that is far too long");
	option->is_too_big = length > OPTION_BYTES_MAX;
	if (option->is_too_big && option->code == NBD_OPT_EXPORT_NAME)
		return option_break_off(option, "an export name that is far too long");
	if (option->is_too_big)
		return skip(option, buffer, length);
	option->data.at = buffer;
	option->data.left = length;
	return receive_rest(option, buffer, length);
}

int option_send_replies(struct client_option *option)
{
	struct transport *transport = option->connection->transport;
	struct iovec vector = { .iov_base = option->replies, .iov_len = option->replies_length };
	int ret = 0;

	if (option->is_out_of_memory)
		ret = -ENOMEM;
	else if (option->replies_length)
		ret = transport->ops->write(transport, &vector, 1);
	free(option->replies);
	option->replies = NULL;
	option->replies_length = 0;
	option->replies_room = 0;
	return ret;
}
