/* SPDX-License-Identifier: GPL-2.0-only */
/* nbd fuzzing, replies: the part of the oracle that knows requests and their replies. */
#ifndef FUZZ_REPLIES_H
#define FUZZ_REPLIES_H

#include <setjmp.h>

#include "connection.h"
#include "fuzz_oracle.h"

/**
 * struct oracle - how far the streams have been read, and what was agreed on
 * @session: what is being checked.
 * @cut: where to go when the output ends because the client was gone.
 * @in: the rest of the input.
 * @in_left: of @in.
 * @out: the rest of the output.
 * @out_left: of @out.
 * @client_flags: of the greeting.
 * @is_secure: STARTTLS has succeeded.
 * @form: of requests and replies.
 * @infos: items of the present option's answer, a bit for each type.
 * @selected: data of the option that selected the contexts.
 * @contexts: ids as on the wire.
 * @context_count: of @contexts.
 * @backend: what the chosen export shows.
 * @can_release: TRIM is offered.
 * @has_released: a TRIM has succeeded.
 */
struct oracle {
	const struct oracle_session *session;
	jmp_buf cut;
	const uint8_t *in;
	size_t in_left;
	const uint8_t *out;
	size_t out_left;
	uint32_t client_flags;
	bool is_secure;
	enum reply_form form;
	unsigned int infos;
	const uint8_t *selected;
	uint32_t contexts[CONNECTION_CONTEXTS];
	size_t context_count;
	struct backend *backend;
	bool can_release;
	bool has_released;
};

/** oracle_complain() - say what is wrong, and abort */
void oracle_complain(const char *format, ...)
	__attribute__((format(printf, 1, 2), noreturn));

/** oracle_sent() - take bytes of the input; NULL when the client sent no more */
const void *oracle_sent(struct oracle *oracle, uint64_t length);

/**
 * oracle_got() - take bytes of the output, which must be there
 * @oracle: the session.
 * @length: bytes.
 * @what: they are, for the complaint.
 *
 * Return: them. Does not return when there are less.
 */
const void *oracle_got(struct oracle *oracle, uint64_t length, const char *what);

/**
 * oracle_check_request() - the next request and its reply
 * @oracle: in transmission.
 *
 * Return: false when the connection has to end here.
 */
bool oracle_check_request(struct oracle *oracle);

#endif
