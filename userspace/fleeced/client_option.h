/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, client_option: one option of the handshake, its data and its replies.
 *
 * An option's data is taken from the stream as a whole before anything else
 * happens: whatever an option's handler thinks of it, the next option begins
 * at the right byte. Its replies are gathered and sent together, after that.
 *
 * Context: the thread that runs the handshake; no locks.
 */
#ifndef FLEECED_CLIENT_OPTION_H
#define FLEECED_CLIENT_OPTION_H

#include "connection.h"

/* Longest data of an option that is looked at; what is longer is skipped. */
#define OPTION_BYTES_MAX (64U << 10)

/**
 * enum option_next - what happens after an option; negative: -errno, the connection ends
 * @NEXT_OPTION: the client may send another one.
 * @NEXT_TLS: as soon as the reply is sent, TLS begins.
 * @NEXT_TRANSMISSION: the export is chosen.
 * @NEXT_END: the connection ends, as it may.
 */
enum option_next {
	NEXT_OPTION,
	NEXT_TLS,
	NEXT_TRANSMISSION,
	NEXT_END,
};

/**
 * struct option_data - what has not been taken yet of an option's data
 * @at: first byte.
 * @left: bytes.
 */
struct option_data {
	const uint8_t *at;
	size_t left;
};

/**
 * struct client_option - the one being handled
 * @connection: that it came on.
 * @code: enum nbd_option, or anything else.
 * @data: of the option; empty when it was skipped.
 * @is_too_big: there was more data than OPTION_BYTES_MAX.
 * @replies: gathered, @replies_length bytes of @replies_room.
 * @replies_length: see there.
 * @replies_room: see there.
 * @is_out_of_memory: a reply could not be gathered.
 */
struct client_option {
	struct connection *connection;
	uint32_t code;
	struct option_data data;
	bool is_too_big;
	uint8_t *replies;
	size_t replies_length;
	size_t replies_room;
	bool is_out_of_memory;
};

/**
 * option_receive() - read the next option
 * @option: zeroed but for its connection; filled in.
 * @buffer: OPTION_BYTES_MAX bytes, which the option's data points into.
 *
 * Return: 0, TRANSPORT_END when the client left before it, -EPROTO (logged) for
 * what cannot be an option, or another -errno.
 */
int option_receive(struct client_option *option, uint8_t *buffer);

/**
 * option_send_replies() - send what was gathered and free it
 * @option: its replies are gone afterwards.
 *
 * Return: 0 or -errno.
 */
int option_send_replies(struct client_option *option);

/**
 * option_take_u16() - take a number off the data
 * @data: what is left of it.
 * @value: set to the number, in the host's byte order.
 *
 * Return: false when there are not so many bytes.
 */
bool option_take_u16(struct option_data *data, uint16_t *value);

/**
 * option_take_u32() - take a number off the data
 * @data: what is left of it.
 * @value: set to the number, in the host's byte order.
 *
 * Return: false when there are not so many bytes.
 */
bool option_take_u32(struct option_data *data, uint32_t *value);

/**
 * option_take_string() - take a length and so many bytes of text off the data
 * @data: what is left of it.
 * @length: set to the length of the text.
 *
 * Return: the text, not terminated, or NULL when it is cut short, too long for
 * the protocol, or no text (see text_is_utf8()).
 */
const char *option_take_string(struct option_data *data, size_t *length);

/**
 * option_append() - gather bytes of a reply
 * @option: with a reply begun, or of EXPORT_NAME.
 * @bytes: to be sent.
 * @length: of @bytes, may be 0.
 */
void option_append(struct client_option *option, const void *bytes, size_t length);

/**
 * option_begin_reply() - begin a reply
 * @option: to be answered.
 * @type: NBD_REP_*.
 * @length: of the data, which follows by option_append().
 */
void option_begin_reply(struct client_option *option, uint32_t type, size_t length);

/**
 * option_acknowledge() - reply that the option has been carried out
 * @option: to be answered.
 *
 * Return: NEXT_OPTION.
 */
int option_acknowledge(struct client_option *option);

/**
 * option_refuse() - reply with an error
 * @option: to be answered.
 * @type: NBD_REP_ERR_*.
 * @text: why, for people.
 *
 * Return: NEXT_OPTION.
 */
int option_refuse(struct client_option *option, uint32_t type, const char *text);

/**
 * option_refuse_data() - reply that the option has data, which it must not have
 * @option: to be answered.
 *
 * Return: NEXT_OPTION.
 */
int option_refuse_data(struct client_option *option);

/**
 * option_break_off() - end the connection for a breach of the protocol
 * @option: the one that breaks it.
 * @reason: for the log.
 *
 * Return: -EPROTO.
 */
int option_break_off(const struct client_option *option, const char *reason);

#endif
