// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd fuzzing: libFuzzer's way into connection_serve(), one session for each input,
 * on a transport and backends in memory and in one thread. The inputs come from
 * fuzz_mutate.c, the verdict from fuzz_oracle.c.
 */
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "backend_memory.h"
#include "connection.h"
#include "fuzz_input.h"
#include "fuzz_oracle.h"
#include "session.h"
#include "transport_memory.h"

/* A session that has cost so much ends: a run is for many of them. */
#define READ_BYTES_MAX	(40U << 20)
#define OUT_BYTES_MAX	(8U << 20)

static const char *const backends[FUZZ_BACKENDS] = {
	SNAPSHOT,
	"mem:size=1000000,plain,cached=64K,zero=4096-100000",
	"mem:size=20T,cp=five/1T-2T,stripes=fine/512,zero=0-64M",
	"mem:size=777,cp=one,here=two,cluster=512",
};

/* What of SNAPSHOT cannot be read. */
static const struct oracle_range unreadable[] = {
	{ 512 << 10, 576 << 10 }, { 640 << 10, 641 << 10 },
};

/*
 * struct session - the server, and the client that has sent all it will
 * @reads: by the server of what the client sent, so far.
 * @is_over: the client has left.
 */
struct session {
	struct memory_transport transport;
	struct fuzz_head head;
	struct stop stop;
	struct budget budget;
	struct slots slots;
	struct export_table exports;
	struct connection_rules rules;
	unsigned int reads;
	bool is_over;
};

static unsigned long long reads_at_start;

static int session_read(struct transport *transport, void *buffer, size_t length)
{
	struct session *session = (struct session *)transport;

	if (!length)
		return 0;
	if (session->reads++ == session->head.event_at) {
		if (session->head.flags & FUZZ_BREAK)
			backend_memory_break();
		if (session->head.flags & FUZZ_STOP)
			stop_request(&session->stop);
	}
	session->is_over |= session->transport.out_length > OUT_BYTES_MAX ||
			    backend_memory_reads() - reads_at_start > READ_BYTES_MAX;
	if (session->is_over)
		return TRANSPORT_END;
	return memory_transport_ops.read(transport, buffer, length);
}

static int session_secure(struct transport *transport)
{
	(void)transport;
	return 0;
}

/* The transport of transport_memory.c, with a hook, and TLS that does not encrypt. */
static const struct transport_ops *ops_of(const struct session *session)
{
	static struct transport_ops plain, secure;

	plain = memory_transport_ops;
	plain.read = session_read;
	secure = plain;
	secure.secure = session_secure;
	return session->head.flags & FUZZ_TLS ? &secure : &plain;
}

static struct backend *set_up(struct session *session)
{
	struct backend *backend;

	reads_at_start = backend_memory_reads();
	backend_memory_mend();
	if (backend_memory_open(backends[session->head.backend], &backend) ||
	    export_table_add(&session->exports, "snap", backend, true))
		abort();
	budget_init(&session->budget, BUDGET_POOL);
	session->stop.fd = -1;
	session->rules.exports = &session->exports;
	session->rules.stop = &session->stop;
	session->rules.budget = &session->budget;
	slots_init(&session->slots, 1);
	session->rules.slots = &session->slots;
	session->rules.holes = session->head.flags & FUZZ_HOLES;
	session->rules.multi_conn = session->head.flags & FUZZ_MULTI_CONN;
	session->rules.read_once = session->head.flags & FUZZ_READ_ONCE;
	session->rules.workers = 1;
	return backend;
}

static void judge(const struct session *session, const uint8_t *in)
{
	struct oracle_session streams = {
		.in = in,
		.in_length = session->transport.in - in,
		.out = session->transport.out,
		.out_length = session->transport.out_length,
		.exports = &session->exports,
		.unreadable = unreadable,
		.is_cut = session->transport.out_length == session->transport.out_limit,
		.is_troubled = session->head.flags & (FUZZ_BREAK | FUZZ_STOP),
		.releases_reads = session->rules.read_once,
		.has_tls = session->head.flags & FUZZ_TLS,
	};

	/* What was left of a message that did not come in full was not taken. */
	if (!session->is_over)
		streams.in_length += session->transport.in_length;
	if (!session->head.backend)
		streams.unreadable_count = sizeof(unreadable) / sizeof(unreadable[0]);
	oracle_check(&streams);
}

static void run(const uint8_t *in, size_t length, struct session *session)
{
	struct backend *backend = set_up(session);
	uint16_t death_at = be16toh(session->head.death_at);
	struct connection *connection;

	session->transport.base.ops = ops_of(session);
	session->transport.in = in;
	session->transport.in_length = length;
	session->transport.out_limit = death_at ? death_at : SIZE_MAX;
	connection = connection_create(&session->transport.base, &session->rules);
	if (!connection)
		abort();
	connection_serve(connection);
	connection_destroy(connection);
	/* All that was reserved was given back. */
	if (session->budget.held || session->slots.used)
		abort();
	judge(session, in);
	free(session->transport.out);
	export_table_release(&session->exports);
	backend->ops->close(backend);
	slots_release(&session->slots);
	budget_release(&session->budget);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct session session;

	memset(&session, 0, sizeof(session));
	if (size <= sizeof(session.head))
		return -1;
	memcpy(&session.head, data, sizeof(session.head));
	session.head.backend %= FUZZ_BACKENDS;
	run(data + sizeof(session.head), size - sizeof(session.head), &session);
	return 0;
}
