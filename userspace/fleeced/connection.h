/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, connection: one client, from its first byte to its last.
 *
 * The life of a connection: connection_serve() runs the handshake in one
 * thread (handshake.c). Then threads take turns (transmit.c): one reads a
 * request, lets the next one read, does the work, and sends the reply
 * (reply.c). A thread is added whenever nobody is left to read, up to a limit.
 */
#ifndef FLEECED_CONNECTION_H
#define FLEECED_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>

#include "budget.h"
#include "export.h"
#include "protocol.h"
#include "slots.h"
#include "stop.h"
#include "transport.h"

/* Requests of one client that are worked on at once. */
#define CONNECTION_WORKERS	16

/* Stack of a thread that serves a client. */
#define CONNECTION_STACK	(256U << 10)

/* Most metadata contexts that a client can select. */
#define CONNECTION_CONTEXTS	32

/**
 * struct connection_rules - what holds for all connections of a server
 * @exports: what is offered.
 * @stop: the end of the server.
 * @budget: for the replies of all clients.
 * @slots: for clients that have chosen an export.
 * @multi_conn: clients may use several connections at once.
 * @read_once: release what a READ has delivered.
 * @holes: send zeroes as holes where the form of replies allows it.
 * @handshake_ms: longest time from connecting to transmission; 0: no limit.
 * @workers: requests of one client that are worked on at once, at least 1.
 */
struct connection_rules {
	const struct export_table *exports;
	struct stop *stop;
	struct budget *budget;
	struct slots *slots;
	bool multi_conn;
	bool read_once;
	bool holes;
	int64_t handshake_ms;
	unsigned int workers;
};

/**
 * enum reply_form - how requests and replies look; negotiation only goes up
 * @REPLY_SIMPLE: what every client knows.
 * @REPLY_STRUCTURED: replies in chunks.
 * @REPLY_EXTENDED: replies in chunks, and 64-bit lengths both ways.
 */
enum reply_form {
	REPLY_SIMPLE,
	REPLY_STRUCTURED,
	REPLY_EXTENDED,
};

/**
 * struct context_set - the contexts that a client has selected
 * @export_name: exact name used when selecting; not terminated.
 * @export_name_length: of @export_name.
 * @export: that export.
 * @ids: positions in the export's contexts, each once.
 * @count: of @ids; 0: none selected.
 */
struct context_set {
	char export_name[NBD_MAX_STRING];
	size_t export_name_length;
	const struct export *export;
	unsigned int ids[CONNECTION_CONTEXTS];
	size_t count;
};

/**
 * enum connection_status - may only rise
 * @CONNECTION_OPEN: requests are read and answered.
 * @CONNECTION_ENDING: no more requests are read; those in work are answered.
 * @CONNECTION_DEAD: nothing can be sent any more.
 */
enum connection_status {
	CONNECTION_OPEN,
	CONNECTION_ENDING,
	CONNECTION_DEAD,
};

/**
 * struct connection - one client
 *
 * Locks in order of precedence: do not take an earlier one while holding a
 * later one.
 * @receive_lock: the right to read requests.
 * @send_lock: the right to write; one holder writes one whole reply.
 * @state_lock: protects @status, @workers, @idle, @threads.
 *
 * Set at construction, then constant:
 * @transport: to the client.
 * @rules: of the server.
 *
 * Set by connection_serve(), then constant:
 * @deadline_ms: end of the handshake; 0: none.
 *
 * Set by the handshake, then constant:
 * @fixed_newstyle: the client may use other options than EXPORT_NAME.
 * @no_zeroes: no padding after EXPORT_NAME.
 * @was_in_the_clear: it has asked for something that needs TLS before that had begun.
 * @is_secure: TLS has begun.
 * @form: of requests and replies.
 * @contexts: selected contexts.
 * @export: the one chosen.
 *
 * Protected by @state_lock:
 * @status: see enum connection_status.
 * @workers: threads, the first included.
 * @idle: threads that wait for @receive_lock.
 * @threads: those beyond the first, to be joined.
 *
 * Protected by @send_lock:
 * @batch: REPLY_BATCH_BYTES of replies that are sent together; NULL: not needed yet.
 * @batch_length: of them; not 0 only while a thread has @receive_lock, which may look at it.
 *
 * Atomic, a hint:
 * @is_brisk: the client has sent several requests at once, and got small replies: it is about
 *	to send more.
 *
 * Protected by the lock of @rules->budget:
 * @share: bytes of the large replies being worked on.
 *
 * Protected by the lock of @rules->slots:
 * @slot: its own, from the choice of an export to the end.
 *
 * Atomic, for the log:
 * @reads: READ requests answered with data.
 * @read_bytes: delivered.
 * @errors: requests answered with an error.
 */
struct connection {
	pthread_mutex_t receive_lock;
	pthread_mutex_t send_lock;
	pthread_mutex_t state_lock;

	struct transport *transport;
	const struct connection_rules *rules;
	int64_t deadline_ms;

	bool fixed_newstyle;
	bool no_zeroes;
	bool was_in_the_clear;
	bool is_secure;
	enum reply_form form;
	struct context_set contexts;
	const struct export *export;

	enum connection_status status;
	unsigned int workers;
	unsigned int idle;
	pthread_t threads[CONNECTION_WORKERS];

	uint8_t *batch;
	atomic_size_t batch_length;
	atomic_bool is_brisk;

	struct budget_share share;
	struct slot slot;

	atomic_ullong reads;
	atomic_ullong read_bytes;
	atomic_ullong errors;
};

/**
 * connection_create() - a connection to a client that has just come
 * @transport: to the client; stays the caller's until connection_destroy().
 * @rules: of the server; outlive the connection.
 *
 * Return: the connection, or NULL when there is no memory.
 */
struct connection *connection_create(struct transport *transport,
				     const struct connection_rules *rules);

/**
 * connection_serve() - serve the client until it leaves or has to
 * @connection: from connection_create(); once only.
 *
 * When this returns no thread uses the connection any more, and the stream has
 * been shut down, but not closed.
 *
 * Context: a thread of its own.
 */
void connection_serve(struct connection *connection);

/**
 * connection_start_thread() - a thread with a stack that is large enough, and no larger
 * @thread: set to the thread, which is to be joined.
 * @run: what it does.
 * @argument: for @run.
 *
 * Return: 0 or -errno.
 */
int connection_start_thread(pthread_t *thread, void *(*run)(void *argument), void *argument);

/** connection_destroy() - close the transport and free the connection */
void connection_destroy(struct connection *connection);

/**
 * connection_abort() - let connection_serve() return soon
 * @connection: being served by another thread.
 */
void connection_abort(struct connection *connection);

/**
 * connection_raise_status() - go on to a later status
 * @connection: the connection.
 * @status: an earlier one than the present has no effect.
 */
void connection_raise_status(struct connection *connection, enum connection_status status);

/** connection_status() - the present status */
enum connection_status connection_status(struct connection *connection);

/**
 * connection_flags() - the transmission flags of an export for this client
 * @connection: with the result of its negotiation so far.
 * @export: any export.
 * @has_contexts: the client has selected contexts of this very export.
 *
 * Return: NBD_FLAG_*.
 */
uint16_t connection_flags(const struct connection *connection, const struct export *export,
			  bool has_contexts);

/**
 * handshake_run() - greeting and options
 * @connection: fresh.
 *
 * Return: 0: @connection->export is chosen, transmission follows.
 * TRANSPORT_END: the client left, as it may. -errno: the client broke the
 * protocol (-EPROTO, logged), was too slow (-ETIMEDOUT, logged) or was lost.
 */
int handshake_run(struct connection *connection);

/**
 * transmit_run() - requests and replies, until the client leaves
 * @connection: after handshake_run().
 */
void transmit_run(struct connection *connection);

#endif
