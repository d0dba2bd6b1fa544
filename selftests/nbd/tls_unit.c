// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd tests: a TLS session that two threads use, with a client that changes keys,
 * wants to negotiate again, or does not read. Prints TAP. What a sanitizer finds
 * ends the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tap.h"
#include "log.h"
#include "transport_tls.h"

#define USER_NAME	"alice"
#define USER_KEY	"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

#define PIECE		16384
#define ROUNDS		64
#define ROUNDS_OF_KEY	12
#define FLOOD		(16U << 20)

/*
 * struct link - a server's session and its client's
 * @server: the transport being tested.
 * @client: at the other end, on @file.
 */
struct link {
	struct stop stop;
	struct tls_credentials *credentials;
	struct transport *server;
	gnutls_psk_client_credentials_t key;
	gnutls_session_t client;
	int file;
	int secured;
};

/* How often, and for how many bytes, the lower transport gave the client time. */
static unsigned int time_begins;
static size_t time_bytes;
static const struct transport_ops *fd_ops;

static uint8_t byte_at(size_t at)
{
	return (uint8_t)(at ^ at >> 8 ^ at >> 16);
}

static void need(bool passed, const char *what)
{
	if (passed)
		return;
	printf("Bail out! %s\n", what);
	exit(EXIT_FAILURE);
}

static void load_credentials(struct link *link)
{
	static const char text[] = USER_NAME ":" USER_KEY "\n";
	char path[] = "/tmp/fleeced-key-XXXXXX";
	int file = mkstemp(path);

	need(file >= 0 && write(file, text, sizeof(text) - 1) == sizeof(text) - 1, "no key file");
	close(file);
	need(!tls_credentials_load_psk(&link->credentials, path), "the key file is refused");
	unlink(path);
}

static void *secure(void *argument)
{
	struct link *link = argument;

	link->secured = link->server->ops->secure(link->server);
	if (link->secured)
		link->server->ops->shutdown(link->server);
	return NULL;
}

static void open_client(struct link *link, const char *priority)
{
	static const gnutls_datum_t key = { (unsigned char *)USER_KEY, sizeof(USER_KEY) - 1 };

	need(!gnutls_psk_allocate_client_credentials(&link->key) &&
	     !gnutls_psk_set_client_credentials(link->key, USER_NAME, &key, GNUTLS_PSK_KEY_HEX) &&
	     !gnutls_init(&link->client, GNUTLS_CLIENT) &&
	     !gnutls_priority_set_direct(link->client, priority, NULL) &&
	     !gnutls_credentials_set(link->client, GNUTLS_CRD_PSK, link->key), "no client");
	gnutls_transport_set_int(link->client, link->file);
}

static void counting_begin_write(struct transport *transport, size_t bytes)
{
	time_begins++;
	time_bytes = bytes;
	fd_ops->begin_write(transport, bytes);
}

/* A write as a whole would give time of its own. */
static int counting_write(struct transport *transport, struct iovec *vector, int count)
{
	time_begins++;
	return fd_ops->write(transport, vector, count);
}

/* As before, but what is asked of it is counted. */
static void count_times(struct transport *plain)
{
	static struct transport_ops ops;

	fd_ops = plain->ops;
	ops = *fd_ops;
	ops.begin_write = counting_begin_write;
	ops.write = counting_write;
	plain->ops = &ops;
}

static void open_link(struct link *link, const char *priority)
{
	struct transport *plain;
	pthread_t thread;
	int files[2];

	memset(link, 0, sizeof(*link));
	load_credentials(link);
	need(!stop_init(&link->stop) && !socketpair(AF_UNIX, SOCK_STREAM, 0, files), "no sockets");
	plain = transport_fd_create(files[0], files[0], "test", &link->stop, 0);
	count_times(plain);
	link->server = transport_tls_create(plain, link->credentials);
	link->file = files[1];
	open_client(link, priority);
	need(!pthread_create(&thread, NULL, secure, link), "no thread");
	need(!gnutls_handshake(link->client), "the client's handshake failed");
	pthread_join(thread, NULL);
	need(!link->secured, "the server's handshake failed");
}

static void close_link(struct link *link)
{
	link->server->ops->close(link->server);
	gnutls_deinit(link->client);
	gnutls_psk_free_client_credentials(link->key);
	close(link->file);
	tls_credentials_release(link->credentials);
	stop_release(&link->stop);
}

/* Ends a thread of the server, and its client's waiting. */
static void *give_up(struct link *link)
{
	link->server->ops->shutdown(link->server);
	return link;
}

/* Threads of the server; what they return is NULL when all went well. */
static void *read_all(void *argument)
{
	struct link *link = argument;
	static uint8_t piece[1000];
	size_t at, i, n;

	for (at = 0; at < (size_t)ROUNDS * PIECE; at += n) {
		n = (size_t)ROUNDS * PIECE - at;
		if (n > sizeof(piece))
			n = sizeof(piece);
		if (link->server->ops->read(link->server, piece, n))
			return give_up(link);
		for (i = 0; i < n; i++)
			if (piece[i] != byte_at(at + i))
				return give_up(link);
	}
	return NULL;
}

static void *write_all(void *argument)
{
	struct link *link = argument;
	size_t length = (size_t)ROUNDS * PIECE, at;
	uint8_t *bytes = malloc(length);
	struct iovec vector[2] = {
		{ .iov_base = bytes, .iov_len = 28 },
		{ .iov_base = bytes + 28, .iov_len = length - 28 },
	};
	int ret;

	for (at = 0; at < length; at++)
		bytes[at] = byte_at(at);
	ret = link->server->ops->write(link->server, vector, 2);
	free(bytes);
	return ret ? give_up(link) : NULL;
}

static bool send_piece(struct link *link, size_t at)
{
	uint8_t piece[PIECE];
	size_t i;

	for (i = 0; i < PIECE; i++)
		piece[i] = byte_at(at + i);
	return gnutls_record_send(link->client, piece, PIECE) == PIECE;
}

static bool receive_piece(struct link *link, size_t at)
{
	uint8_t piece[PIECE];
	size_t done = 0, i;
	ssize_t n;

	while (done < PIECE) {
		n = gnutls_record_recv(link->client, piece + done, PIECE - done);
		/* Also said when the server's keys have changed. */
		if (n == GNUTLS_E_AGAIN)
			continue;
		if (n <= 0)
			return false;
		done += n;
	}
	for (i = 0; i < PIECE; i++)
		if (piece[i] != byte_at(at + i))
			return false;
	return true;
}

/* The client's new keys and the wish for the server's come amid everything else. */
static void test_key_updates(void)
{
	pthread_t reader, writer;
	void *read_wrong, *write_wrong;
	bool passed = true;
	struct link link;
	size_t round;

	open_link(&link, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK");
	need(!pthread_create(&reader, NULL, read_all, &link) &&
	     !pthread_create(&writer, NULL, write_all, &link), "no thread");
	for (round = 0; passed && round < ROUNDS; round++) {
		if (round % ROUNDS_OF_KEY == ROUNDS_OF_KEY - 1)
			passed = !gnutls_session_key_update(link.client, GNUTLS_KU_PEER);
		passed = passed && send_piece(&link, round * PIECE) &&
			 receive_piece(&link, round * PIECE);
	}
	/* Threads that wait for a client that has failed. */
	if (!passed)
		link.server->ops->shutdown(link.server);
	pthread_join(reader, &read_wrong);
	pthread_join(writer, &write_wrong);
	tap_ok(passed && !read_wrong && !write_wrong,
	       "keys change while data goes both ways, and every byte arrives");
	close_link(&link);
}

static void test_renegotiation(void)
{
	struct link link;
	uint8_t byte;

	open_link(&link, "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK");
	fcntl(link.file, F_SETFL, O_NONBLOCK);
	need(gnutls_handshake(link.client) == GNUTLS_E_AGAIN, "the client cannot even ask");
	tap_ok(link.server->ops->read(link.server, &byte, 1) == -EPROTO,
	       "a client of TLS 1.2 that wants to negotiate again is refused");
	link.server->ops->end(link.server);
	close_link(&link);
}

static void *read_one(void *argument)
{
	struct link *link = argument;
	uint8_t byte;

	return link->server->ops->read(link->server, &byte, 1) < 0 ? NULL : link;
}

static void *flood(void *argument)
{
	struct link *link = argument;
	struct iovec vector = { .iov_base = calloc(1, FLOOD), .iov_len = FLOOD };
	void *bytes = vector.iov_base;
	int ret = link->server->ops->write(link->server, &vector, 1);

	free(bytes);
	return ret < 0 ? NULL : link;
}

static void test_shutdown(void)
{
	pthread_t reader, writer;
	void *read_wrong, *write_wrong;
	struct link link;
	uint8_t byte;

	open_link(&link, "NORMAL:+ECDHE-PSK");
	need(!pthread_create(&reader, NULL, read_one, &link) &&
	     !pthread_create(&writer, NULL, flood, &link), "no thread");
	/* The flood has begun, and there is no room for all of it. */
	need(recv(link.file, &byte, 1, MSG_PEEK) == 1, "nothing comes");
	link.server->ops->shutdown(link.server);
	pthread_join(reader, &read_wrong);
	pthread_join(writer, &write_wrong);
	tap_ok(!read_wrong && !write_wrong, "shutdown wakes a reader and a writer that wait");
	close_link(&link);
}

/* A client that waits for an answer gets it, whatever another thread waits for. */
static void test_independence(void)
{
	pthread_t writer;
	void *write_wrong;
	struct link link;
	uint8_t byte = 0;

	open_link(&link, "NORMAL:+ECDHE-PSK");
	need(!pthread_create(&writer, NULL, flood, &link), "no thread");
	need(recv(link.file, &byte, 1, MSG_PEEK) == 1, "nothing comes");
	need(gnutls_record_send(link.client, "x", 1) == 1, "the client cannot send");
	tap_ok(!link.server->ops->read(link.server, &byte, 1) && byte == 'x',
	       "a writer that waits for the client does not hold up the reader");
	link.server->ops->shutdown(link.server);
	pthread_join(writer, &write_wrong);
	close_link(&link);
}

/* A limit for each of the many parts would let a slow client keep a reply for hours. */
static void test_one_limit(void)
{
	void *write_wrong;
	pthread_t writer;
	bool passed = true;
	struct link link;
	size_t round;

	open_link(&link, "NORMAL:+ECDHE-PSK");
	time_begins = 0;
	need(!pthread_create(&writer, NULL, write_all, &link), "no thread");
	for (round = 0; passed && round < ROUNDS; round++)
		passed = receive_piece(&link, round * PIECE);
	if (!passed)
		link.server->ops->shutdown(link.server);
	pthread_join(writer, &write_wrong);
	tap_ok(passed && !write_wrong && time_begins == 1 && time_bytes == (size_t)ROUNDS * PIECE,
	       "a client's time for a reply begins once, and is that of all of its bytes");
	close_link(&link);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	test_key_updates();
	test_renegotiation();
	test_shutdown();
	test_independence();
	test_one_limit();
	return tap_end();
}
