// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, connection: the life of one client's connection and its status.
 * The two phases of the protocol are in handshake.c and transmit.c.
 */
#include "connection.h"

#include <stdlib.h>

#include "log.h"

struct connection *connection_create(struct transport *transport,
				     const struct connection_rules *rules)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	if (!connection)
		return NULL;
	pthread_mutex_init(&connection->receive_lock, NULL);
	pthread_mutex_init(&connection->send_lock, NULL);
	pthread_mutex_init(&connection->state_lock, NULL);
	budget_share_init(&connection->share);
	connection->transport = transport;
	connection->rules = rules;
	return connection;
}

void connection_destroy(struct connection *connection)
{
	connection->transport->ops->close(connection->transport);
	free(connection->batch);
	budget_share_release(&connection->share);
	pthread_mutex_destroy(&connection->state_lock);
	pthread_mutex_destroy(&connection->send_lock);
	pthread_mutex_destroy(&connection->receive_lock);
	free(connection);
}

int connection_start_thread(pthread_t *thread, void *(*run)(void *argument), void *argument)
{
	pthread_attr_t attributes;
	int ret;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, CONNECTION_STACK);
	ret = pthread_create(thread, &attributes, run, argument);
	pthread_attr_destroy(&attributes);
	return -ret;
}

void connection_serve(struct connection *connection)
{
	struct transport *transport = connection->transport;

	if (connection->rules->handshake_ms)
		connection->deadline_ms = clock_ms() + connection->rules->handshake_ms;
	transport->ops->set_deadline(transport, connection->deadline_ms);
	if (!handshake_run(connection)) {
		transport->ops->set_deadline(transport, 0);
		transport->ops->set_readahead(transport, true);
		log_client("%s: opened export %s", transport->peer, connection->export->name);
		transmit_run(connection);
		log_client("%s: closed export %s: %llu bytes in %llu reads, %llu errors",
			   transport->peer, connection->export->name,
			   (unsigned long long)connection->read_bytes,
			   (unsigned long long)connection->reads,
			   (unsigned long long)connection->errors);
	}
	if (transport->ops->end && connection_status(connection) != CONNECTION_DEAD)
		transport->ops->end(transport);
	transport->ops->shutdown(transport);
	slots_give(connection->rules->slots, &connection->slot);
}

void connection_abort(struct connection *connection)
{
	connection_raise_status(connection, CONNECTION_DEAD);
}

void connection_raise_status(struct connection *connection, enum connection_status status)
{
	bool died = false;

	pthread_mutex_lock(&connection->state_lock);
	if (connection->status < status) {
		connection->status = status;
		died = status == CONNECTION_DEAD;
	}
	pthread_mutex_unlock(&connection->state_lock);
	/* The thread that reads requests must not wait for a client that is lost. */
	if (died) {
		budget_share_close(connection->rules->budget, &connection->share);
		slots_close_one(connection->rules->slots, &connection->slot);
		connection->transport->ops->shutdown(connection->transport);
	}
}

enum connection_status connection_status(struct connection *connection)
{
	enum connection_status status;

	pthread_mutex_lock(&connection->state_lock);
	status = connection->status;
	pthread_mutex_unlock(&connection->state_lock);
	return status;
}

uint16_t connection_flags(const struct connection *connection, const struct export *export,
			  bool has_contexts)
{
	uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_CACHE;

	/* TRIM counts as a write: an export that can release is not read-only. */
	if (export->can_release)
		flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_FUA;
	else
		flags |= NBD_FLAG_READ_ONLY;
	if (export->backend->is_rotational)
		flags |= NBD_FLAG_ROTATIONAL;
	if (connection->form >= REPLY_STRUCTURED)
		flags |= NBD_FLAG_SEND_DF;
	if (connection->form == REPLY_EXTENDED && has_contexts)
		flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	if (connection->rules->multi_conn)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	return flags;
}
