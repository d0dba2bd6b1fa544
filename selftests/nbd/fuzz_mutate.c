// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd fuzzing, mutate: changes of inputs that keep most of a session in step, so that
 * what is behind a handshake is reached. An input is its head, the client's flags,
 * and messages, each of which begins with a magic number; changes are of whole
 * messages, of their fields with their lengths corrected, and, more seldom, of any
 * byte, which libFuzzer does itself.
 */
#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "../random.h"
#include "fuzz_input.h"
#include "protocol.h"
#include "session.h"

#define MESSAGES_MAX	512

/* Bytes before the first message. */
#define PREFIX		(sizeof(struct fuzz_head) + sizeof(uint32_t))

enum message_kind {
	MESSAGE_OPTION,
	MESSAGE_REQUEST,
	MESSAGE_EXTENDED,
	MESSAGE_GARBAGE,
};

struct message {
	enum message_kind kind;
	size_t start;
	size_t length;
};

struct input {
	uint8_t *bytes;
	size_t length;
	size_t room;
	struct message messages[MESSAGES_MAX];
	size_t count;
};

static const char *const exports[] = {
	"", "snap", "snap+release", "snap@one", "snap@two", "snap@five", "snap@here", "none",
};

static const char *const contexts[] = {
	"base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two", "qemu:", "base:",
	"qemu:dirty-bitmap:fine", "qemu:dirty-bitmap:five", "qemu:dirty-bitmap:", "fleece:",
	"fleece:access", "fleece:clean:one", "fleece:clean:fine", "fleece:clean:", "x:y", "",
};

/* Ends of devices, of ranges and of what fits into a number. */
static const uint64_t numbers[] = {
	0, 1, 2, 511, 512, 513, 777, 4095, 4096, 65535, 65536, 512 << 10, 576 << 10, 640 << 10,
	641 << 10, 1000000, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, 32 << 20, (32 << 20) + 1,
	64 << 20, (64 << 20) + 1, INT32_MAX, UINT32_MAX, 1ULL << 32, 1ULL << 40, 2ULL << 40,
	20ULL << 40, (20ULL << 40) - 1, INT64_MAX, UINT64_MAX, UINT64_MAX - 511,
};

static uint64_t random_number(uint64_t *state)
{
	uint64_t number = numbers[random_below(state, sizeof(numbers) / sizeof(numbers[0]))];

	return random_below(state, 4) ? number : number + random_below(state, 1 << 20);
}

static const char *random_export(uint64_t *state)
{
	return exports[random_below(state, sizeof(exports) / sizeof(exports[0]))];
}

static const char *random_context(uint64_t *state)
{
	return contexts[random_below(state, sizeof(contexts) / sizeof(contexts[0]))];
}

/* ------------------------- Messages of an input ------------------------- */

static uint64_t get64(const uint8_t *bytes)
{
	uint64_t number;

	memcpy(&number, bytes, sizeof(number));
	return be64toh(number);
}

static uint32_t get32(const uint8_t *bytes)
{
	uint32_t number;

	memcpy(&number, bytes, sizeof(number));
	return be32toh(number);
}

static enum message_kind kind_at(const uint8_t *bytes, size_t left)
{
	if (left >= sizeof(struct nbd_option_header) && get64(bytes) == NBD_OPTION_MAGIC)
		return MESSAGE_OPTION;
	if (left >= sizeof(struct nbd_request_header) && get32(bytes) == NBD_REQUEST_MAGIC)
		return MESSAGE_REQUEST;
	if (left >= sizeof(struct nbd_extended_request_header) &&
	    get32(bytes) == NBD_EXTENDED_REQUEST_MAGIC)
		return MESSAGE_EXTENDED;
	return MESSAGE_GARBAGE;
}

/* A message reaches to the next magic number, whatever its length says. */
static void parse(struct input *input)
{
	struct message *last = NULL;
	enum message_kind kind;
	size_t at;

	input->count = 0;
	for (at = PREFIX; at < input->length; at++) {
		kind = kind_at(input->bytes + at, input->length - at);
		if (last && kind == MESSAGE_GARBAGE) {
			last->length++;
			continue;
		}
		if (input->count == MESSAGES_MAX)
			return;
		last = &input->messages[input->count++];
		last->kind = kind;
		last->start = at;
		last->length = 1;
	}
}

/* Puts @length bytes in the place of @old ones. False: no room. */
static bool replace(struct input *input, size_t at, size_t old, const void *bytes, size_t length)
{
	if (input->length - old + length > input->room)
		return false;
	memmove(input->bytes + at + length, input->bytes + at + old, input->length - at - old);
	if (length)
		memcpy(input->bytes + at, bytes, length);
	input->length += length - old;
	return true;
}

/* ------------------------- New messages ------------------------- */

static void make_contexts(struct bytes *message, uint32_t code, uint64_t *state)
{
	struct bytes data = { .length = 0 };
	uint32_t count = random_below(state, 6);

	put_string(&data, random_export(state));
	put32(&data, count);
	while (count--)
		put_string(&data, random_context(state));
	put_option(message, code, &data);
}

static void make_choice(struct bytes *message, uint32_t code, uint64_t *state)
{
	struct bytes data = { .length = 0 };
	uint16_t count = random_below(state, 6);

	put_string(&data, random_export(state));
	put16(&data, count);
	while (count--)
		put16(&data, random_below(state, 6));
	put_option(message, code, &data);
}

static void make_option(struct bytes *message, uint64_t *state)
{
	uint32_t code = random_below(state, NBD_OPT_EXTENDED_HEADERS + 2);
	struct bytes data = { .length = 0 };
	const char *name = random_export(state);

	switch (code) {
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		make_choice(message, code, state);
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		make_contexts(message, code, state);
		break;
	case NBD_OPT_EXPORT_NAME:
		put(&data, name, strlen(name));
		put_option(message, code, &data);
		break;
	default:
		put_option(message, code, NULL);
	}
}

static void make_payload(struct bytes *payload, uint16_t command, uint64_t *state)
{
	uint32_t count = random_below(state, 5);

	if (command != NBD_CMD_BLOCK_STATUS) {
		payload->length = random_below(state, 600);
		memset(payload->data, 0xee, payload->length);
		return;
	}
	put64(payload, random_number(state));
	while (count--)
		put32(payload, random_below(state, 7));
}

static void make_request(struct bytes *message, bool is_extended, uint64_t *state)
{
	uint16_t command = random_below(state, NBD_CMD_BLOCK_STATUS + 2);
	uint16_t flags = random_below(state, 3) ? 0 : 1U << random_below(state, 6);
	uint64_t offset = random_number(state);
	uint64_t length = random_number(state);
	struct bytes payload = { .length = 0 };

	if (is_extended && random_below(state, 2) &&
	    (command == NBD_CMD_WRITE || command == NBD_CMD_BLOCK_STATUS))
		flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
	if (is_extended ? flags & NBD_CMD_FLAG_PAYLOAD_LEN : command == NBD_CMD_WRITE) {
		make_payload(&payload, command, state);
		length = payload.length;
	}
	if (is_extended)
		put_extended(message, command, flags, offset, length);
	else
		put_request(message, command, flags, offset, length);
	put(message, payload.data, payload.length);
}

static void make_message(struct bytes *message, enum message_kind kind, uint64_t *state)
{
	message->length = 0;
	if (kind == MESSAGE_OPTION)
		make_option(message, state);
	else
		make_request(message, kind == MESSAGE_EXTENDED, state);
}

/* ------------------------- Changes ------------------------- */

/* A new message beside one of its kind, or in the place of it. */
static void change_insert(struct input *input, const struct message *message, uint64_t *state)
{
	bool is_replaced = random_below(state, 3) == 0;
	bool is_after = random_below(state, 2);
	struct bytes made;

	make_message(&made, random_below(state, 8) ? message->kind : random_below(state, 3), state);
	replace(input, message->start + (!is_replaced && is_after ? message->length : 0),
		is_replaced ? message->length : 0, made.data, made.length);
}

static void change_double(struct input *input, const struct message *message, uint64_t *state)
{
	const struct message *other = &input->messages[random_below(state, input->count)];
	uint8_t copy[FUZZ_INPUT_MAX];

	if (message->length > sizeof(copy))
		return;
	memcpy(copy, input->bytes + message->start, message->length);
	replace(input, other->start, 0, copy, message->length);
}

static void change_remove(struct input *input, const struct message *message, uint64_t *state)
{
	(void)state;
	replace(input, message->start, message->length, NULL, 0);
}

static void overwrite(struct input *input, size_t at, const struct bytes *field)
{
	memcpy(input->bytes + at, field->data, field->length);
}

static void change_option_field(struct input *input, const struct message *message,
				uint64_t *state)
{
	struct bytes field = { .length = 0 };

	if (random_below(state, 2)) {
		put32(&field, random_below(state, NBD_OPT_EXTENDED_HEADERS + 2));
		overwrite(input, message->start + offsetof(struct nbd_option_header, option),
			  &field);
	} else {
		put32(&field, random_number(state));
		overwrite(input, message->start + offsetof(struct nbd_option_header, length),
			  &field);
	}
}

static void change_field(struct input *input, const struct message *message, uint64_t *state)
{
	struct bytes field = { .length = 0 };
	size_t at = message->start;

	if (message->kind == MESSAGE_OPTION) {
		change_option_field(input, message, state);
		return;
	}
	switch (random_below(state, 4)) {
	case 0:
		put16(&field, random_below(state, 3) ? 0 : 1U << random_below(state, 16));
		at += offsetof(struct nbd_request_header, flags);
		break;
	case 1:
		put16(&field, random_below(state, NBD_CMD_BLOCK_STATUS + 2));
		at += offsetof(struct nbd_request_header, command);
		break;
	case 2:
		put64(&field, random_number(state));
		at += offsetof(struct nbd_request_header, offset);
		break;
	default:
		if (message->kind == MESSAGE_EXTENDED)
			put64(&field, random_number(state));
		else
			put32(&field, random_number(state));
		at += offsetof(struct nbd_request_header, length);
	}
	overwrite(input, at, &field);
}

/* What follows a header, its length corrected. */
static void change_payload(struct input *input, const struct message *message, uint64_t *state)
{
	static const size_t headers[] = {
		sizeof(struct nbd_option_header), sizeof(struct nbd_request_header),
		sizeof(struct nbd_extended_request_header),
	};
	size_t header = headers[message->kind];
	uint8_t payload[FUZZ_INPUT_MAX];
	size_t old = message->length - header;
	struct bytes number = { .length = 0 };
	size_t length, size;

	if (!old || old > sizeof(payload))
		return;
	memcpy(payload, input->bytes + message->start + header, old);
	length = LLVMFuzzerMutate(payload, old, random_below(state, 2) ? old : sizeof(payload));
	if (!replace(input, message->start + header, old, payload, length))
		return;
	put64(&number, length);
	size = message->kind == MESSAGE_EXTENDED ? 8 : 4;
	memcpy(input->bytes + message->start + header - size, number.data + 8 - size, size);
}

/* How the server is set up, or the flags of the client. */
static void change_prefix(struct input *input, uint64_t *state)
{
	struct fuzz_head *head = (struct fuzz_head *)input->bytes;

	switch (random_below(state, 5)) {
	case 0:
		head->flags ^= 1U << random_below(state, 6);
		break;
	case 1:
		head->backend = random_below(state, FUZZ_BACKENDS);
		break;
	case 2:
		head->event_at = random_below(state, 64);
		break;
	case 3:
		head->death_at = random_below(state, 2) ? 0 :
							  htobe16(random_below(state, 4096));
		break;
	case 4:
		input->bytes[PREFIX - 1] ^= 1U << random_below(state, 2);
		break;
	}
}

static void change(struct input *input, uint64_t *state)
{
	static void (*const changes[])(struct input *input, const struct message *message,
				       uint64_t *state) = {
		change_insert, change_insert, change_double, change_remove, change_field,
		change_field, change_payload,
	};
	const struct message *message;
	size_t choice = random_below(state, 10);

	parse(input);
	message = input->count ? &input->messages[random_below(state, input->count)] : NULL;
	if (choice == 0)
		change_prefix(input, state);
	else if (choice == 1 || !message || message->kind == MESSAGE_GARBAGE)
		input->length = LLVMFuzzerMutate(input->bytes, input->length, input->room);
	else
		changes[random_below(state, sizeof(changes) / sizeof(changes[0]))](input, message,
										   state);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	static struct input input;
	uint64_t state = seed;
	size_t count = 1 + random_below(&state, 4);

	input.bytes = data;
	input.length = size;
	input.room = max_size;
	while (count--) {
		if (input.length < PREFIX || input.room < PREFIX)
			return LLVMFuzzerMutate(data, input.length, max_size);
		change(&input, &state);
	}
	return input.length;
}

/* The messages that one begins with, and those that the other ends with. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2,
				 size_t size2, uint8_t *out, size_t max_size, unsigned int seed)
{
	static struct input first, second;
	uint64_t state = seed;
	size_t head, tail;

	first = (struct input){ .bytes = (uint8_t *)data1, .length = size1 };
	second = (struct input){ .bytes = (uint8_t *)data2, .length = size2 };
	parse(&first);
	parse(&second);
	if (!first.count || !second.count)
		return 0;
	head = first.messages[random_below(&state, first.count)].start;
	tail = second.messages[random_below(&state, second.count)].start;
	if (head + (size2 - tail) > max_size)
		return 0;
	memcpy(out, data1, head);
	memcpy(out + head, data2 + tail, size2 - tail);
	return head + (size2 - tail);
}
