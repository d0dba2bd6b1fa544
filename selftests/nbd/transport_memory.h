/* SPDX-License-Identifier: GPL-2.0-only */
/* nbd tests: a stream whose input is known and whose output is kept. */
#ifndef TRANSPORT_MEMORY_H
#define TRANSPORT_MEMORY_H

#include "transport.h"

/**
 * struct memory_transport - a client that has sent everything already
 * @base: the transport; its ops are memory_transport_ops.
 * @in: what the client has not been asked for yet.
 * @in_length: of @in.
 * @out: what it got, to be freed by the owner, or NULL.
 * @out_length: of @out.
 * @out_limit: it is gone when it has got so much.
 * @writes: calls that sent something.
 */
struct memory_transport {
	struct transport base;
	const uint8_t *in;
	size_t in_length;
	uint8_t *out;
	size_t out_length;
	size_t out_limit;
	unsigned int writes;
};

extern const struct transport_ops memory_transport_ops;

#endif
