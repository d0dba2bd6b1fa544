// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, server: the main thread. It waits for clients, signals and threads
 * that have ended. The list of clients is the main thread's alone; a client's
 * thread only sets is_done and wakes it up.
 */
#include "server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "log.h"
#include "transport_tls.h"

/* Longest time between the signal and the end. */
#define DRAIN_MS	15000

/* How long to leave waiting clients alone when descriptors or memory ran out. */
#define RETRY_MS	200

/*
 * Clients that have not chosen an export yet: with so many, the one that has had the most
 * time has to go for each that comes; with so many, others wait.
 */
#define HANDSHAKES_MAX	128
#define HANDSHAKES_LIMIT (2 * HANDSHAKES_MAX)

/* A signal that follows another one so soon is the same: sent to a group, and forwarded. */
#define SAME_SIGNAL_MS	1000

/* Least time between two messages to the service manager of how many there are. */
#define STATUS_MS	1000

/* Least time between two log lines that say the same of different clients. */
#define CROWD_LOG_MS	60000

/* In the order in which they came, the last one first. */
struct client {
	struct client *next;
	struct connection *connection;
	pthread_t thread;
	int wake;
	bool is_dropped;
	atomic_bool is_done;
};

/*
 * struct loop - state of the main thread
 * @clients: served by a thread each; @count of them.
 * @wake: eventfd, written by a thread that ends.
 * @told_count: the @count that the service manager knows.
 * @tell_ms: not to tell it another one before this time.
 * @crowd_log_ms: when the log said last that clients had to go, or 0.
 * @accept_log_ms: when it said last that one could not be served, or 0.
 * @retry_ms: do not accept before this time; 0: no such need.
 * @give_up_ms: after the stop: when to stop waiting for clients.
 */
struct loop {
	struct server *server;
	struct client *clients;
	unsigned int count;
	unsigned int told_count;
	int64_t tell_ms;
	int64_t crowd_log_ms;
	int64_t accept_log_ms;
	int signals;
	int wake;
	int64_t retry_ms;
	int64_t give_up_ms;
};

int server_block_signals(void)
{
	struct sigaction hangup;
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* One that is blocked would be heard although nohup(1) has it ignored. */
	if (!sigaction(SIGHUP, NULL, &hangup) && hangup.sa_handler != SIG_IGN)
		sigaddset(&set, SIGHUP);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL))
		return -EINVAL;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static void *serve_client(void *argument)
{
	struct client *client = argument;
	int wake = client->wake;
	uint64_t one = 1;

	connection_serve(client->connection);
	atomic_store(&client->is_done, true);
	/* An eventfd that is full wakes up just as well. */
	if (write(wake, &one, sizeof(one)) < 0)
		return NULL;
	return NULL;
}

/* Takes over the descriptors, also when it fails. */
static struct transport *create_transport(const struct server *server, int in, int out,
					  const char *peer)
{
	struct transport *plain = transport_fd_create(in, out, peer, server->rules.stop,
						      server->stall_ms);
	struct transport *tls;

	if (!plain) {
		close(in);
		if (out != in)
			close(out);
		return NULL;
	}
	if (!server->tls)
		return plain;
	tls = transport_tls_create(plain, server->tls);
	if (!tls)
		plain->ops->close(plain);
	return tls;
}

/* Takes over the descriptors, also when it fails. */
static int add_client(struct loop *loop, int in, int out, const char *peer)
{
	struct transport *transport = create_transport(loop->server, in, out, peer);
	struct client *client = transport ? calloc(1, sizeof(*client)) : NULL;
	int ret = -ENOMEM;

	if (!client) {
		if (transport)
			transport->ops->close(transport);
		return ret;
	}
	client->wake = loop->wake;
	client->connection = connection_create(transport, &loop->server->rules);
	if (!client->connection) {
		transport->ops->close(transport);
		free(client);
		return ret;
	}
	ret = connection_start_thread(&client->thread, serve_client, client);
	if (ret) {
		connection_destroy(client->connection);
		free(client);
		return ret;
	}
	client->next = loop->clients;
	loop->clients = client;
	loop->count++;
	return 0;
}

/* Is there a number of clients that the service manager does not know? */
static bool has_news(const struct loop *loop)
{
	return loop->server->manager->fd >= 0 && loop->told_count != loop->count &&
	       !stop_is_requested(loop->server->rules.stop);
}

static void tell_count(struct loop *loop)
{
	int64_t now = clock_ms();

	if (!has_news(loop) || now < loop->tell_ms)
		return;
	loop->tell_ms = now + STATUS_MS;
	loop->told_count = loop->count;
	service_manager_tell(loop->server->manager, "STATUS=%u clients", loop->count);
}

/* Those that have left, but are still listed, count too. */
static unsigned int count_handshakes(const struct loop *loop)
{
	return loop->count - slots_used(loop->server->rules.slots);
}

/* May a line be logged whose last time was this? */
static bool is_news(int64_t *last_ms)
{
	int64_t now = clock_ms();

	if (*last_ms && now < *last_ms + CROWD_LOG_MS)
		return false;
	*last_ms = now;
	return true;
}

/* An honest client needs far less time than it takes so many others to come. */
static void drop_oldest(struct loop *loop)
{
	struct slots *slots = loop->server->rules.slots;
	struct client *client, *oldest = NULL;
	unsigned int count = 0;

	for (client = loop->clients; client; client = client->next) {
		if (client->is_dropped || slots_concern(slots, &client->connection->slot))
			continue;
		oldest = client;
		count++;
	}
	/* Those that wait for a place have chosen: for them nobody has to go. */
	if (count <= HANDSHAKES_MAX)
		return;
	oldest->is_dropped = true;
	connection_abort(oldest->connection);
	if (is_news(&loop->crowd_log_ms))
		log_info("more than %d clients have connected, but chosen no export: the oldest are disconnected",
			 HANDSHAKES_MAX);
}

static void accept_client(struct loop *loop, const struct listener *listener)
{
	char peer[80];
	int fd = listen_accept(listener, loop->server->stall_ms, peer, sizeof(peer));
	int ret = fd < 0 ? fd : add_client(loop, fd, fd, peer);

	if (!ret && count_handshakes(loop) > HANDSHAKES_MAX)
		drop_oldest(loop);
	if (!ret || ret == -EAGAIN || ret == -ECONNABORTED || ret == -EINTR)
		return;
	if (is_news(&loop->accept_log_ms))
		log_error("cannot serve a new client: %s; others have to wait", strerror(-ret));
	loop->retry_ms = clock_ms() + RETRY_MS;
}

static void reap_clients(struct loop *loop)
{
	struct client **link = &loop->clients;
	struct client *client;
	uint64_t count;

	while (read(loop->wake, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	while ((client = *link)) {
		if (!atomic_load(&client->is_done)) {
			link = &client->next;
			continue;
		}
		*link = client->next;
		pthread_join(client->thread, NULL);
		connection_destroy(client->connection);
		free(client);
		loop->count--;
	}
}

static void handle_signal(struct loop *loop)
{
	struct signalfd_siginfo info;
	struct client *client;

	if (read(loop->signals, &info, sizeof(info)) != sizeof(info))
		return;
	if (!stop_is_requested(loop->server->rules.stop)) {
		log_info("signal %u: ending", info.ssi_signo);
		service_manager_tell(loop->server->manager, "STOPPING=1");
		stop_request(loop->server->rules.stop);
		budget_close(loop->server->rules.budget);
		slots_close(loop->server->rules.slots);
		listen_close(&loop->server->listeners);
		janitor_remove(loop->server->janitor, loop->server->socket_path);
		loop->give_up_ms = clock_ms() + DRAIN_MS;
		return;
	}
	if (clock_ms() < loop->give_up_ms - DRAIN_MS + SAME_SIGNAL_MS)
		return;
	log_info("signal %u: disconnecting %u clients", info.ssi_signo, loop->count);
	for (client = loop->clients; client; client = client->next)
		connection_abort(client->connection);
}

static bool can_accept(struct loop *loop)
{
	if (loop->retry_ms && clock_ms() < loop->retry_ms)
		return false;
	loop->retry_ms = 0;
	/* Also when all slots are in use, so that the time of who waits for one has begun. */
	return count_handshakes(loop) < HANDSHAKES_LIMIT;
}

static int wait_limit(struct loop *loop)
{
	int64_t until = loop->give_up_ms ? loop->give_up_ms : loop->retry_ms;
	int64_t left;

	if (has_news(loop) && (!until || loop->tell_ms < until))
		until = loop->tell_ms;
	left = until - clock_ms();
	if (!until)
		return -1;
	return left > 0 ? (int)left : 0;
}

/* One round: waits for an event and handles it. */
static int run_once(struct loop *loop)
{
	struct listener_set *listeners = &loop->server->listeners;
	struct pollfd files[2 + LISTEN_MAX] = {
		{ .fd = loop->signals, .events = POLLIN },
		{ .fd = loop->wake, .events = POLLIN },
	};
	size_t count = can_accept(loop) ? listeners->count : 0;
	size_t i;

	for (i = 0; i < count; i++) {
		files[2 + i].fd = listeners->listeners[i].fd;
		files[2 + i].events = POLLIN;
	}
	if (poll(files, 2 + count, wait_limit(loop)) < 0)
		return errno == EINTR ? 0 : -errno;
	if (files[1].revents)
		reap_clients(loop);
	for (i = 0; i < count; i++)
		if (files[2 + i].revents && can_accept(loop))
			accept_client(loop, &listeners->listeners[i]);
	if (files[0].revents)
		handle_signal(loop);
	tell_count(loop);
	return 0;
}

static int run(struct loop *loop, bool until_idle)
{
	struct stop *stop = loop->server->rules.stop;
	int ret = 0;

	while (!ret && (loop->count || (!until_idle && !stop_is_requested(stop)))) {
		if (loop->give_up_ms && clock_ms() >= loop->give_up_ms) {
			log_error("%u clients did not end in time", loop->count);
			return -ETIMEDOUT;
		}
		ret = run_once(loop);
	}
	return ret;
}

static int open_loop(struct loop *loop, struct server *server, int signals)
{
	memset(loop, 0, sizeof(*loop));
	loop->server = server;
	loop->signals = signals;
	loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return loop->wake < 0 ? -errno : 0;
}

int server_run(struct server *server, int signals)
{
	struct loop loop;
	int ret = open_loop(&loop, server, signals);

	if (ret)
		return ret;
	log_info("ready, %zu exports", server->rules.exports->count);
	service_manager_insist(server->manager, "READY=1");
	ret = run(&loop, false);
	listen_close(&server->listeners);
	/* Threads that did not end may still write to it. */
	if (!loop.count)
		close(loop.wake);
	return ret;
}

int server_run_one(struct server *server, int signals, int in, int out)
{
	struct loop loop;
	int ret = open_loop(&loop, server, signals);

	if (!ret)
		ret = add_client(&loop, in, out, "stdin");
	if (!ret)
		ret = run(&loop, true);
	return ret;
}
