// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, transmit: requests are read, checked, carried out and answered.
 *
 * Threads take turns. The one that holds receive_lock reads a request and checks all of
 * it. What can be answered at once, that is without waiting for a device, it answers, and
 * reads the next one: no other thread is woken up, and small replies to requests that came
 * together are sent together. Else it lets go of the lock before it does the work; if
 * nobody waits for the lock, and there may be more threads, it starts one. So a client is
 * served by as many threads as it keeps devices busy, and one whose replies pile up is not
 * read any further: its buffers are bounded.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "reply.h"

/* What a BLOCK_STATUS may take of the budget. */
#define STATUS_BYTES \
	(EXTENTS_MAX * (sizeof(struct extent) + sizeof(struct nbd_extent_ext)))

/*
 * A thread keeps a buffer of at most this size from one request to the next, so that
 * what fits into it needs nothing of the budget: threads are counted already.
 */
#define KEPT_BYTES		(256U << 10)

#define BUFFER_ALIGNMENT	4096U

/*
 * struct worker - what one thread needs
 * @connection: that it serves.
 * @buffer, @room: kept buffer.
 * @has_turn: it holds receive_lock.
 * @request: being handled.
 * @bytes: of the budget that it holds.
 * @text: why it fails.
 * @has_bad_offset, @bad_offset: the first byte that cannot be read, where known.
 */
struct worker {
	struct connection *connection;
	void *buffer;
	size_t room;
	bool has_turn;
	struct request request;
	uint64_t bytes;
	char text[REQUEST_TEXT_SIZE];
	bool has_bad_offset;
	uint64_t bad_offset;
};

static void *serve_requests(void *argument);

/* If there can be no more threads, those there are do all the work. */
static void ensure_reader(struct connection *connection)
{
	pthread_mutex_lock(&connection->state_lock);
	if (!connection->idle && connection->workers < connection->rules->workers &&
	    !connection_start_thread(&connection->threads[connection->workers - 1],
				     serve_requests, connection))
		connection->workers++;
	pthread_mutex_unlock(&connection->state_lock);
}

/*
 * The right to read requests goes to another thread, as soon as this one may have to
 * wait for something else than the client.
 */
static void hand_over(struct worker *worker)
{
	struct connection *connection = worker->connection;

	if (!worker->has_turn)
		return;
	worker->has_turn = false;
	worker->request.is_followed = false;
	reply_flush(connection);
	ensure_reader(connection);
	pthread_mutex_unlock(&connection->receive_lock);
}

static enum nbd_error fail(struct worker *worker, enum nbd_error error, const char *why)
{
	request_describe(&worker->request, worker->text, why);
	return error;
}

/* Says why an operation of the backend failed. */
static enum nbd_error fail_backend(struct worker *worker, int ret)
{
	struct backend *backend = worker->connection->export->backend;
	char state[BACKEND_TEXT_SIZE];

	if (ret == -EPERM)
		return fail(worker, NBD_EPERM,
			    "not accessible: outside the snapshot's access map, or released");
	if (backend->ops->state(backend, state, sizeof(state)))
		return fail(worker, NBD_EIO, state);
	if (ret == -ESTALE)
		return fail(worker, NBD_EIO, "the checkpoint has become invalid");
	if (ret == -EIO)
		return fail(worker, NBD_EIO, "input/output error, or a lost cluster");
	return fail(worker, reply_error_of(-ret), strerror(-ret));
}

/*
 * struct span - the whole blocks of the backend around the range of a READ
 * @offset: of the first of them.
 * @length: of all; at most that of the range and two blocks.
 */
struct span {
	uint64_t offset;
	size_t length;
};

static struct span span_of(const struct connection *connection, const struct request *request)
{
	uint64_t mask = connection->export->backend->block - 1;
	uint64_t end = (request->offset + request->length + mask) & ~mask;
	uint64_t offset = request->offset & ~mask;

	return (struct span){ .offset = offset, .length = end - offset };
}

static bool reserve_buffer(struct worker *worker, size_t length)
{
	if (length <= worker->room)
		return true;
	free(worker->buffer);
	worker->buffer = NULL;
	worker->room = 0;
	if (posix_memalign(&worker->buffer, BUFFER_ALIGNMENT, length)) {
		worker->buffer = NULL;
		return false;
	}
	worker->room = length;
	return true;
}

static void trim_buffer(struct worker *worker)
{
	if (worker->room <= KEPT_BYTES)
		return;
	free(worker->buffer);
	worker->buffer = NULL;
	worker->room = 0;
}

/* What the client has got it need not read again. */
static void release_delivered(struct worker *worker)
{
	struct backend *backend = worker->connection->export->backend;

	if (worker->connection->rules->read_once && backend->ops->release)
		backend->ops->release(backend, worker->request.offset, worker->request.length);
}

/*
 * None of the data is sent, also not what comes before the bad place: a client
 * that overlooks an error must not take a part for the whole.
 */
static enum nbd_error fail_read(struct worker *worker, int ret)
{
	struct backend *backend = worker->connection->export->backend;
	const struct request *request = &worker->request;

	if (ret == -EPERM && backend->has_maps)
		worker->has_bad_offset = !extents_find_denied(backend, request->offset,
							      request->length,
							      &worker->bad_offset);
	return fail_backend(worker, ret);
}

static int read_span(struct worker *worker, const struct span *span)
{
	struct backend *backend = worker->connection->export->backend;
	int ret = -EAGAIN;

	if (backend->ops->read_now && span->length <= KEPT_BYTES)
		ret = backend->ops->read_now(backend, worker->buffer, span->offset, span->length);
	if (ret != -EAGAIN)
		return ret;
	hand_over(worker);
	return backend->ops->read(backend, worker->buffer, span->offset, span->length);
}

static enum nbd_error do_read(struct worker *worker)
{
	struct connection *connection = worker->connection;
	const struct request *request = &worker->request;
	struct span span = span_of(connection, request);
	const uint8_t *data;
	int ret;

	if (!request->length) {
		reply_success(connection, request);
		return NBD_SUCCESS;
	}
	if (!reserve_buffer(worker, span.length))
		return fail(worker, NBD_ENOMEM, "no memory for the reply");
	ret = read_span(worker, &span);
	if (ret)
		return fail_read(worker, ret);
	data = (const uint8_t *)worker->buffer + (request->offset - span.offset);
	if (reply_data(connection, request, data))
		return NBD_SUCCESS;
	atomic_fetch_add(&connection->reads, 1);
	atomic_fetch_add(&connection->read_bytes, request->length);
	release_delivered(worker);
	return NBD_SUCCESS;
}

static enum nbd_error do_trim(struct worker *worker)
{
	struct backend *backend = worker->connection->export->backend;
	char state[BACKEND_TEXT_SIZE];
	int ret = 0;

	if (worker->request.length)
		ret = backend->ops->release(backend, worker->request.offset,
					    worker->request.length);
	if (ret)
		return fail_backend(worker, ret);
	/* Also where nothing was to be released: what the client has copied may be wrong. */
	if (backend->ops->state(backend, state, sizeof(state)))
		return fail(worker, NBD_EIO, state);
	reply_success(worker->connection, &worker->request);
	return NBD_SUCCESS;
}

static enum nbd_error do_cache(struct worker *worker)
{
	struct backend *backend = worker->connection->export->backend;
	const struct request *request = &worker->request;
	uint64_t length = request->length < NBD_BLOCK_MAXIMUM ? request->length : NBD_BLOCK_MAXIMUM;

	/* A hint, of any length: no more is fetched than one READ could take. */
	if (backend->ops->cache && length)
		backend->ops->cache(backend, request->offset, length);
	reply_success(worker->connection, request);
	return NBD_SUCCESS;
}

static enum nbd_error do_status(struct worker *worker)
{
	struct connection *connection = worker->connection;
	const struct request *request = &worker->request;
	struct backend *backend = connection->export->backend;
	struct extent_list lists[CONNECTION_CONTEXTS];
	char state[BACKEND_TEXT_SIZE];
	enum nbd_error error = NBD_SUCCESS;
	size_t i;
	int ret;

	memset(lists, 0, sizeof(lists));
	ret = extents_gather(connection->export, request->contexts, request->context_count,
			     request->offset, request->length,
			     request->flags & NBD_CMD_FLAG_REQ_ONE, lists);
	/* Asked after the maps were read: what a snapshot says while it breaks is not passed on. */
	if (ret)
		error = fail_backend(worker, ret);
	else if (backend->ops->state(backend, state, sizeof(state)))
		error = fail(worker, NBD_EIO, state);
	else if (reply_status(connection, request, lists) == -ENOMEM)
		error = fail(worker, NBD_ENOMEM, "no memory for the reply");
	for (i = 0; i < request->context_count; i++)
		extent_list_release(&lists[i]);
	return error;
}

/* May it have to wait, or take long? A READ finds out by itself. */
static bool may_wait(const struct worker *worker)
{
	switch (worker->request.command) {
	case NBD_CMD_READ:
	case NBD_CMD_FLUSH:
		return false;
	case NBD_CMD_BLOCK_STATUS:
		return !(worker->request.flags & NBD_CMD_FLAG_REQ_ONE);
	default:
		return true;
	}
}

/* Replies to success by itself; an error is returned, with worker->text. */
static enum nbd_error execute(struct worker *worker)
{
	if (may_wait(worker))
		hand_over(worker);
	switch (worker->request.command) {
	case NBD_CMD_READ:
		return do_read(worker);
	case NBD_CMD_TRIM:
		return do_trim(worker);
	case NBD_CMD_CACHE:
		return do_cache(worker);
	case NBD_CMD_BLOCK_STATUS:
		return do_status(worker);
	default:
		/* FLUSH: nothing is ever written. */
		reply_success(worker->connection, &worker->request);
		return NBD_SUCCESS;
	}
}

/* What a reply needs of the budget. */
static uint64_t reply_bytes(const struct connection *connection, const struct request *request)
{
	size_t length;

	switch (request->command) {
	case NBD_CMD_READ:
		length = span_of(connection, request).length;
		return length > KEPT_BYTES ? length : 0;
	case NBD_CMD_BLOCK_STATUS:
		return request->flags & NBD_CMD_FLAG_REQ_ONE ? 0 : STATUS_BYTES;
	default:
		return 0;
	}
}

static void count_idle(struct connection *connection, int change)
{
	pthread_mutex_lock(&connection->state_lock);
	connection->idle += change;
	pthread_mutex_unlock(&connection->state_lock);
}

/* Checks the request, and waits until its reply may be made. */
static enum nbd_error admit(struct worker *worker)
{
	struct connection *connection = worker->connection;
	enum nbd_error error = request_validate(connection, &worker->request, worker->text);
	uint64_t bytes = error ? 0 : reply_bytes(connection, &worker->request);

	worker->bytes = 0;
	if (bytes)
		reply_flush(connection);
	if (budget_take(connection->rules->budget, &connection->share, bytes))
		worker->bytes = bytes;
	else
		error = fail(worker, NBD_ESHUTDOWN, "the connection is ending");
	/* All that clients wait for then would take too long. */
	if (bytes && stop_is_requested(connection->rules->stop))
		error = request_validate(connection, &worker->request, worker->text);
	return error;
}

static void take_turn(struct worker *worker)
{
	struct connection *connection = worker->connection;

	if (worker->has_turn)
		return;
	count_idle(connection, 1);
	pthread_mutex_lock(&connection->receive_lock);
	count_idle(connection, -1);
	worker->has_turn = true;
}

/* A READ that is released once it was sent must be sent at once. */
static bool is_followed(const struct connection *connection)
{
	const struct transport_ops *ops = connection->transport->ops;

	return !connection->rules->read_once && ops->has_input &&
	       ops->has_input(connection->transport);
}

/* The next request, with the right to read those after it; false: there is nothing more. */
static bool take_request(struct worker *worker, enum nbd_error *error)
{
	struct connection *connection = worker->connection;

	take_turn(worker);
	if (connection_status(connection) == CONNECTION_OPEN &&
	    !request_receive(connection, &worker->request)) {
		worker->request.is_followed = is_followed(connection);
		*error = admit(worker);
		return true;
	}
	connection_raise_status(connection, CONNECTION_ENDING);
	reply_flush(connection);
	worker->has_turn = false;
	pthread_mutex_unlock(&connection->receive_lock);
	return false;
}

static void report(struct worker *worker, enum nbd_error error)
{
	if (worker->has_bad_offset)
		reply_error_at(worker->connection, &worker->request, error, worker->text,
			       worker->bad_offset);
	else
		reply_error(worker->connection, &worker->request, error, worker->text);
}

static void *serve_requests(void *argument)
{
	struct worker worker = { .connection = argument };
	enum nbd_error error;

	while (take_request(&worker, &error)) {
		worker.has_bad_offset = false;
		if (!error)
			error = execute(&worker);
		if (error)
			report(&worker, error);
		trim_buffer(&worker);
		budget_give(worker.connection->rules->budget, &worker.connection->share,
			    worker.bytes);
	}
	free(worker.buffer);
	return NULL;
}

static bool before_wait(void *context)
{
	struct connection *connection = context;

	reply_flush(connection);
	return connection->is_brisk;
}

void transmit_run(struct connection *connection)
{
	struct transport *transport = connection->transport;
	unsigned int i;

	if (transport->ops->set_before_wait)
		transport->ops->set_before_wait(transport, before_wait, connection);
	connection->workers = 1;
	serve_requests(connection);
	/* Threads are only started by the holder of this lock, and no more after the end. */
	pthread_mutex_lock(&connection->receive_lock);
	pthread_mutex_unlock(&connection->receive_lock);
	for (i = 0; i + 1 < connection->workers; i++)
		pthread_join(connection->threads[i], NULL);
}
