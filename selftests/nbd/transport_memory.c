// SPDX-License-Identifier: GPL-2.0-only
/* nbd tests: the transport of transport_memory.h. */
#include "transport_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int memory_read(struct transport *transport, void *buffer, size_t length)
{
	struct memory_transport *memory = (struct memory_transport *)transport;

	if (!length)
		return 0;
	if (!memory->in_length)
		return TRANSPORT_END;
	if (length > memory->in_length)
		return -ECONNRESET;
	memcpy(buffer, memory->in, length);
	memory->in += length;
	memory->in_length -= length;
	return 0;
}

static bool memory_has_input(struct transport *transport)
{
	return ((struct memory_transport *)transport)->in_length;
}

static int memory_write(struct transport *transport, struct iovec *vector, int count)
{
	struct memory_transport *memory = (struct memory_transport *)transport;
	size_t n;

	memory->writes++;
	for (; count--; vector++) {
		n = vector->iov_len;
		if (n > memory->out_limit - memory->out_length)
			n = memory->out_limit - memory->out_length;
		memory->out = realloc(memory->out, memory->out_length + n + 1);
		if (n)
			memcpy(memory->out + memory->out_length, vector->iov_base, n);
		memory->out_length += n;
		if (n < vector->iov_len)
			return -EPIPE;
	}
	return 0;
}

static void memory_set_deadline(struct transport *transport, int64_t deadline_ms)
{
	(void)transport;
	(void)deadline_ms;
}

static void memory_set_readahead(struct transport *transport, bool on)
{
	(void)transport;
	(void)on;
}

static void memory_nothing(struct transport *transport)
{
	(void)transport;
}

const struct transport_ops memory_transport_ops = {
	.read = memory_read,
	.has_input = memory_has_input,
	.write = memory_write,
	.set_deadline = memory_set_deadline,
	.set_readahead = memory_set_readahead,
	.shutdown = memory_nothing,
	.close = memory_nothing,
};
