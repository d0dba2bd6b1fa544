// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, transfer: a thread for each connection takes the next pieces of
 * the plan, keeps a few READs in flight and writes what arrives. The main thread
 * shows the progress. The lock protects what the threads share; libnbd's handles
 * are each used by one thread alone.
 */
#include "transfer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "size.h"

/* READs in flight on each connection. */
#define REQUESTS	8
/* A thread looks up this often from waiting for the server. */
#define LOOK_UP_MS	250
/* Zeroes are written in pieces, so that a signal need not wait for all. */
#define ZERO_BYTES	(64ULL << 20)

#define OTHER_SERVER	"the server ended while it was read, and another may have its address; pull again"
#define OTHER_EXPORT	"there is another export at this address now; pull again"

/* The first failure; nothing new is begun after it. */
struct failure {
	const char *what;
	/* 0: @what says all. */
	int error;
	uint64_t offset;
	uint64_t length;
};

struct transfer {
	/* Constant. */
	const struct source *source;
	const struct plan *plan;
	const struct target *target;
	uint64_t total;

	/* Protected by lock. */
	pthread_mutex_t lock;
	pthread_cond_t ended;
	size_t extent;
	uint64_t used;
	unsigned int running;
	uint64_t done;
	uint64_t released;
	/* Of the first release that failed; 0: none did. */
	int release_error;
	struct failure failure;
};

/* Part of the answer to a READ. */
struct chunk {
	uint64_t offset;
	uint64_t length;
};

/* A READ in flight. The chunks may come in any order, but have to make up all of it. */
struct request {
	struct connection *connection;
	char *buffer;
	uint64_t offset;
	uint64_t length;
	int64_t cookie;
	struct chunk *chunks;
	size_t count;
	size_t capacity;
	bool is_busy;
};

struct connection {
	struct transfer *transfer;
	struct nbd_handle *nbd;
	pthread_t thread;
	struct request requests[REQUESTS];
	char *buffers;
};

static atomic_int stop_signal;

static void stop(int number)
{
	atomic_store(&stop_signal, number);
}

void transfer_catch_signals(void)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	struct sigaction action = { .sa_handler = stop, .sa_flags = SA_RESETHAND | SA_RESTART };
	struct sigaction before;
	size_t i;

	/* nohup(1) and others have the program ignore what is not for it. */
	for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (!sigaction(signals[i], NULL, &before) && before.sa_handler != SIG_IGN)
			sigaction(signals[i], &action, NULL);
}

static void fail(struct transfer *transfer, const char *what, int error, uint64_t offset,
		 uint64_t length)
{
	pthread_mutex_lock(&transfer->lock);
	if (!transfer->failure.what) {
		transfer->failure.what = what;
		transfer->failure.error = error;
		transfer->failure.offset = offset;
		transfer->failure.length = length;
	}
	pthread_mutex_unlock(&transfer->lock);
}

/* Take the next piece of the plan. False: there is none, or no use in one. */
static bool next_piece(struct transfer *transfer, struct plan_extent *piece)
{
	const struct plan *plan = transfer->plan;
	uint64_t most;
	bool found;

	pthread_mutex_lock(&transfer->lock);
	found = !transfer->failure.what && !atomic_load(&stop_signal) &&
		transfer->extent < plan->count;
	if (found) {
		*piece = plan->extents[transfer->extent];
		most = piece->kind == PLAN_ZERO ? ZERO_BYTES : transfer->source->request_max;
		piece->offset += transfer->used;
		piece->length -= transfer->used;
		if (piece->length > most) {
			piece->length = most;
			transfer->used += most;
		} else {
			transfer->extent++;
			transfer->used = 0;
		}
	}
	pthread_mutex_unlock(&transfer->lock);
	return found;
}

static int keep_chunk(struct request *request, uint64_t offset, uint64_t length)
{
	size_t capacity = request->capacity ? 2 * request->capacity : 8;
	struct chunk *bigger;

	if (request->count == request->capacity) {
		bigger = reallocarray(request->chunks, capacity, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		request->chunks = bigger;
		request->capacity = capacity;
	}
	request->chunks[request->count++] = (struct chunk){ .offset = offset, .length = length };
	return 0;
}

/* Called by libnbd for each chunk of an answer. */
static int take_chunk(void *data, const void *buffer, size_t length, uint64_t offset,
		      unsigned int status, int *error)
{
	struct request *request = data;

	(void)buffer;
	if (status == LIBNBD_READ_ERROR || !length)
		return 0;
	/* More chunks than bytes overlap: no need to keep them all. */
	if (request->count >= request->length)
		*error = EPROTO;
	else
		*error = -keep_chunk(request, offset, length);
	return *error ? -1 : 0;
}

static int compare_chunks(const void *a, const void *b)
{
	const struct chunk *one = a, *other = b;

	return (one->offset > other->offset) - (one->offset < other->offset);
}

/* Each byte once? libnbd does not look, or only at how many there are. */
static bool is_complete(struct request *request)
{
	uint64_t end = request->offset;
	size_t i;

	if (!request->count)
		return false;
	qsort(request->chunks, request->count, sizeof(*request->chunks), compare_chunks);
	for (i = 0; i < request->count; i++) {
		if (request->chunks[i].offset != end)
			return false;
		end += request->chunks[i].length;
	}
	return end == request->offset + request->length;
}

/* A range whose release was asked for. */
struct release {
	struct transfer *transfer;
	uint64_t length;
};

/* Called by libnbd at the end of a TRIM. */
static int take_released(void *data, int *error)
{
	struct release *release = data;
	struct transfer *transfer = release->transfer;

	pthread_mutex_lock(&transfer->lock);
	if (!*error)
		transfer->released += release->length;
	else if (!transfer->release_error)
		transfer->release_error = *error;
	pthread_mutex_unlock(&transfer->lock);
	/* Nobody asks for it again. */
	return 1;
}

/* The target has the range: the server need not keep it. Costs space if it fails, no data. */
static void release_range(struct connection *connection, uint64_t offset, uint64_t length)
{
	nbd_completion_callback callback = { .callback = take_released, .free = free };
	struct release *release;

	if (!connection->transfer->source->can_release)
		return;
	release = malloc(sizeof(*release));
	if (!release)
		return;
	release->transfer = connection->transfer;
	release->length = length;
	callback.user_data = release;
	/* A connection that is lost is noticed by what is read. */
	nbd_aio_trim(connection->nbd, length, offset, callback, 0);
}

/* The target has it. */
static void count_done(struct connection *connection, uint64_t offset, uint64_t length)
{
	struct transfer *transfer = connection->transfer;

	pthread_mutex_lock(&transfer->lock);
	transfer->done += length;
	pthread_mutex_unlock(&transfer->lock);
	release_range(connection, offset, length);
}

static void take_data(struct request *request)
{
	struct transfer *transfer = request->connection->transfer;
	int ret = target_write(transfer->target, request->buffer, request->length,
			       request->offset);

	if (ret)
		fail(transfer, "cannot write", -ret, request->offset, request->length);
	else
		count_done(request->connection, request->offset, request->length);
}

static void take_answer(struct request *request)
{
	struct transfer *transfer = request->connection->transfer;
	int ret = nbd_aio_command_completed(request->connection->nbd, request->cookie);

	if (!ret)
		return;
	request->is_busy = false;
	if (ret < 0)
		fail(transfer, "cannot read", nbd_get_errno(), request->offset, request->length);
	else if (!is_complete(request))
		fail(transfer, "the server did not send each of", EPROTO, request->offset,
		     request->length);
	else
		take_data(request);
}

static bool start_read(struct request *request, const struct plan_extent *piece)
{
	nbd_chunk_callback callback = { .callback = take_chunk, .user_data = request };

	request->offset = piece->offset;
	request->length = piece->length;
	request->count = 0;
	request->cookie = nbd_aio_pread_structured(request->connection->nbd, request->buffer,
						   piece->length, piece->offset, callback,
						   NBD_NULL_COMPLETION, 0);
	request->is_busy = request->cookie >= 0;
	if (!request->is_busy)
		fail(request->connection->transfer, "cannot ask for", nbd_get_errno(),
		     piece->offset, piece->length);
	return request->is_busy;
}

static void write_zeroes(struct connection *connection, const struct plan_extent *piece)
{
	struct transfer *transfer = connection->transfer;
	int ret = target_zero(transfer->target, piece->length, piece->offset);

	if (ret)
		fail(transfer, "cannot write zeroes", -ret, piece->offset, piece->length);
	else
		count_done(connection, piece->offset, piece->length);
}

/* True: zeroes were written, and answers may have come in meanwhile. */
static bool fill(struct connection *connection)
{
	struct plan_extent piece;
	size_t i;

	for (i = 0; i < REQUESTS; i++) {
		if (connection->requests[i].is_busy)
			continue;
		if (!next_piece(connection->transfer, &piece))
			return false;
		if (piece.kind != PLAN_READ) {
			write_zeroes(connection, &piece);
			return true;
		}
		if (!start_read(&connection->requests[i], &piece))
			return false;
	}
	return false;
}

/* False: no READ is left. */
static bool take_answers(struct connection *connection)
{
	bool is_busy = false;
	size_t i;

	for (i = 0; i < REQUESTS; i++) {
		if (connection->requests[i].is_busy)
			take_answer(&connection->requests[i]);
		is_busy |= connection->requests[i].is_busy;
	}
	return is_busy;
}

static bool is_over(struct transfer *transfer)
{
	bool over;

	pthread_mutex_lock(&transfer->lock);
	over = transfer->failure.what || atomic_load(&stop_signal) ||
	       transfer->extent >= transfer->plan->count;
	pthread_mutex_unlock(&transfer->lock);
	return over;
}

/* The server may let it wait for ever while the first connection is there. */
static bool wait_until_ready(struct connection *connection)
{
	while (nbd_aio_is_connecting(connection->nbd) > 0)
		if (is_over(connection->transfer) || nbd_poll(connection->nbd, LOOK_UP_MS) < 0)
			return false;
	return nbd_aio_is_ready(connection->nbd) > 0;
}

static bool join(struct connection *connection)
{
	struct transfer *transfer = connection->transfer;

	/* One more that cannot be had is no failure. */
	if (!wait_until_ready(connection))
		return false;
	source_watch(connection->nbd);
	if (!source_is_same(transfer->source, connection->nbd)) {
		fail(transfer, OTHER_EXPORT, 0, 0, 0);
		return false;
	}
	return true;
}

static void exchange(struct connection *connection)
{
	bool has_zeroed;

	while (!atomic_load(&stop_signal)) {
		has_zeroed = fill(connection);
		if (!take_answers(connection) && !has_zeroed && is_over(connection->transfer) &&
		    nbd_aio_in_flight(connection->nbd) <= 0)
			return;
		if (nbd_aio_in_flight(connection->nbd) <= 0)
			continue;
		if (nbd_poll(connection->nbd, has_zeroed ? 0 : LOOK_UP_MS) < 0) {
			fail(connection->transfer, "lost the connection to the server",
			     nbd_get_errno(), 0, 0);
			return;
		}
	}
}

static void *run_connection(void *data)
{
	struct connection *connection = data;
	struct transfer *transfer = connection->transfer;

	if (connection->nbd == transfer->source->nbd || join(connection))
		exchange(connection);
	pthread_mutex_lock(&transfer->lock);
	transfer->running--;
	pthread_cond_signal(&transfer->ended);
	pthread_mutex_unlock(&transfer->lock);
	return NULL;
}

static void show_progress(const struct transfer *transfer)
{
	char done[FLEECE_SIZE_TEXT], total[FLEECE_SIZE_TEXT];

	fprintf(stderr, "\r%s of %s (%u%%) ", fleece_size_format(done, transfer->done),
		fleece_size_format(total, transfer->total),
		(unsigned int)(100.0 * transfer->done / transfer->total));
}

static void wait_for_end(struct transfer *transfer)
{
	bool is_shown = transfer->total && isatty(STDERR_FILENO);
	struct timespec until;

	pthread_mutex_lock(&transfer->lock);
	while (transfer->running) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		pthread_cond_timedwait(&transfer->ended, &transfer->lock, &until);
		if (is_shown)
			show_progress(transfer);
	}
	pthread_mutex_unlock(&transfer->lock);
	if (is_shown)
		fputc('\n', stderr);
}

/* The first connection is the source's own. */
static int open_connection(struct transfer *transfer, struct connection *connection,
			   bool is_first)
{
	uint32_t request_max = transfer->source->request_max;
	size_t i;

	connection->transfer = transfer;
	connection->buffers = malloc((size_t)REQUESTS * request_max);
	if (!connection->buffers)
		return -ENOMEM;
	connection->nbd = is_first ? transfer->source->nbd :
				     source_connect_again(transfer->source);
	for (i = 0; i < REQUESTS; i++) {
		connection->requests[i].connection = connection;
		connection->requests[i].buffer = connection->buffers + i * request_max;
	}
	return connection->nbd ? 0 : -ENOTCONN;
}

/* The source's own connection is kept for questions, but not if answers could still
 * come in: they would go to buffers that are gone.
 */
static void close_connection(struct source *source, struct connection *connection)
{
	size_t i;

	if (connection->nbd && connection->nbd != source->nbd) {
		nbd_close(connection->nbd);
	} else if (connection->nbd && nbd_aio_in_flight(connection->nbd) != 0) {
		nbd_close(source->nbd);
		source->nbd = NULL;
	}
	for (i = 0; i < REQUESTS; i++)
		free(connection->requests[i].chunks);
	free(connection->buffers);
}

/* Only the main thread takes signals: they are to end its wait. */
static unsigned int start_threads(struct connection *connections, unsigned int count)
{
	sigset_t all, before;
	unsigned int i;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (i = 0; i < count; i++)
		if (pthread_create(&connections[i].thread, NULL, run_connection,
				   &connections[i]))
			break;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return i;
}

/* One connection is enough; fewer threads than hoped for are no failure. */
static void run_threads(struct transfer *transfer, struct connection *connections,
			unsigned int count)
{
	unsigned int started, i;

	transfer->running = count;
	started = start_threads(connections, count);
	if (!started)
		fail(transfer, "cannot start a thread", EAGAIN, 0, 0);
	pthread_mutex_lock(&transfer->lock);
	transfer->running -= count - started;
	pthread_mutex_unlock(&transfer->lock);
	wait_for_end(transfer);
	for (i = 0; i < started; i++)
		pthread_join(connections[i].thread, NULL);
	if (started > 1 && !transfer->failure.what && !atomic_load(&stop_signal) &&
	    !source_is_alive(transfer->source))
		fail(transfer, OTHER_SERVER, 0, 0, 0);
}

static enum status verdict(const struct transfer *transfer)
{
	const struct failure *failure = &transfer->failure;
	const struct source *source = transfer->source;

	if (atomic_load(&stop_signal))
		return report(FAILED, transfer->target->path, "interrupted: %s",
			      strsignal(atomic_load(&stop_signal)));
	if (!failure->what)
		return DONE;
	if (failure->error == EIO && source_is_broken(source))
		return report(BROKEN, source->uri, "the snapshot broke while it was read");
	if (!failure->error)
		return report(FAILED, source->uri, "%s", failure->what);
	if (!failure->length)
		return report_errno(failure->error, source->uri, "%s", failure->what);
	return report(FAILED, source->uri, "%s %llu bytes at offset %llu: %s", failure->what,
		      (unsigned long long)failure->length,
		      (unsigned long long)failure->offset, strerror(failure->error));
}

/* No more than there are READs, and one where several might see different data. */
static unsigned int useful_connections(const struct source *source, const struct plan *plan,
				       unsigned int count)
{
	uint64_t reads = plan->bytes[PLAN_READ] / source->request_max + 1;

	if (!source->can_multi_conn)
		return 1;
	return reads < count ? (unsigned int)reads : count;
}

enum status transfer_run(struct source *source, const struct plan *plan,
			 const struct target *target, unsigned int count, uint64_t *released)
{
	struct transfer transfer = {
		.source = source,
		.plan = plan,
		.target = target,
		.total = plan->bytes[PLAN_READ] + plan->bytes[PLAN_ZERO],
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.ended = PTHREAD_COND_INITIALIZER,
	};
	struct connection *connections;
	unsigned int opened = 0, i;

	count = useful_connections(source, plan, count);
	connections = calloc(count, sizeof(*connections));
	if (!connections)
		return report_errno(ENOMEM, target->path, "cannot prepare");
	while (opened < count && !open_connection(&transfer, &connections[opened], !opened))
		opened++;
	if (opened)
		run_threads(&transfer, connections, opened);
	else
		fail(&transfer, "cannot prepare", ENOMEM, 0, 0);
	for (i = 0; i < count; i++)
		close_connection(source, &connections[i]);
	free(connections);
	*released = transfer.released;
	if (transfer.release_error)
		report_note(source->uri, "not all could be released: %s",
			    strerror(transfer.release_error));
	return verdict(&transfer);
}
