// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, transport_tls: TLS on top of another transport.
 *
 * Two threads use one session, a reader and a writer. GnuTLS allows that in
 * general ("Thread safety" in its manual), but excepts whatever changes the
 * keys of a session, and that happens inside of plain calls: a client may update
 * its keys at any time and ask for the server's to be updated as well, and after
 * 2^24 records, which is 256 GiB of a backup, a sender updates its keys by itself.
 * So every call has the lock to itself. None of them waits: GnuTLS reads from
 * one buffer here and writes to another, and says EAGAIN when it needs more of
 * either. Waiting for the client is done without the lock, by the reader and by
 * the writer each for its own direction: neither can hold up the other.
 *
 * What a client sends is taken from the lower transport only after it has
 * switched to TLS: nothing sent in the clear can be left over and be taken for
 * something that was sent protected.
 */
#include "transport_tls.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

/* Most data in one record; and what a record takes, all of it. */
#define RECORD_DATA	16384
#define RECORD_BYTES	(RECORD_DATA + 512)

/* A write hands so many records to the client at once. */
#define WRITE_RECORDS	4

#define IN_BYTES	RECORD_BYTES
#define OUT_BYTES	((WRITE_RECORDS + 1) * RECORD_BYTES)

/* How long a client may take to receive the message that the session ends. */
#define END_MS		2000

/*
 * Set at construction: lower, credentials. Set by the handshake, before there
 * are other threads: session, peer, is_established. Protected by lock: the
 * session's inside, failure. The reader's: in, in_head, in_tail, at_end. The
 * writer's: out, out_length, is_writing, which the reader only looks at when it has
 * the lock.
 */
struct tls_transport {
	struct transport base;
	struct transport *lower;
	const struct tls_credentials *credentials;
	pthread_mutex_t lock;
	gnutls_session_t session;
	struct tls_peer peer;
	int failure;
	bool is_established;
	bool is_writing;
	bool at_end;
	size_t in_head;
	size_t in_tail;
	size_t out_length;
	uint8_t in[IN_BYTES];
	uint8_t out[OUT_BYTES];
	uint8_t first[RECORD_DATA];
};

static struct tls_transport *to_tls(struct transport *transport)
{
	return (struct tls_transport *)transport;
}

/* For GnuTLS: takes what has come. */
static ssize_t pull(gnutls_transport_ptr_t pointer, void *buffer, size_t length)
{
	struct tls_transport *tls = pointer;
	size_t n = tls->in_tail - tls->in_head;

	if (!n && !tls->at_end) {
		errno = EAGAIN;
		return -1;
	}
	if (n > length)
		n = length;
	memcpy(buffer, tls->in + tls->in_head, n);
	tls->in_head += n;
	return (ssize_t)n;
}

/* For GnuTLS: keeps what is to be sent. Only a writer knows when to send it. */
static ssize_t push(gnutls_transport_ptr_t pointer, const void *bytes, size_t length)
{
	struct tls_transport *tls = pointer;
	size_t room = OUT_BYTES - tls->out_length;

	if (!tls->is_writing || !room) {
		errno = tls->is_writing ? EAGAIN : EPROTO;
		return -1;
	}
	if (length > room)
		length = room;
	memcpy(tls->out + tls->out_length, bytes, length);
	tls->out_length += length;
	return (ssize_t)length;
}

/* Waits for some bytes of the client, or its end, when none are left. */
static int fill(struct tls_transport *tls)
{
	ssize_t n;

	/* GnuTLS also breaks off to say that keys have changed. */
	if (tls->in_head < tls->in_tail)
		return 0;
	n = tls->lower->ops->read_some(tls->lower, tls->in, sizeof(tls->in));
	if (n < 0)
		return (int)n;
	tls->at_end = !n;
	tls->in_head = 0;
	tls->in_tail = n;
	return 0;
}

/* The client's time to read so much begins, however many times it is flushed. */
static void begin_flushes(struct tls_transport *tls, size_t bytes)
{
	tls->lower->ops->begin_write(tls->lower, bytes);
}

static int flush(struct tls_transport *tls)
{
	struct iovec vector = { .iov_base = tls->out, .iov_len = tls->out_length };

	tls->out_length = 0;
	return vector.iov_len ? tls->lower->ops->write_part(tls->lower, &vector, 1) : 0;
}

/* What an administrator should know about a failure beyond GnuTLS' own words. */
static const char *hint(int code)
{
	switch (code) {
	case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
		return " (TLS 1.2 or newer is needed)";
	case GNUTLS_E_NO_CERTIFICATE_FOUND:
	case GNUTLS_E_CERTIFICATE_REQUIRED:
		return " (a client needs a certificate, of the authority in ca-cert.pem)";
	case GNUTLS_E_NO_CIPHER_SUITES:
	case GNUTLS_E_INSUFFICIENT_CREDENTIALS:
		return " (does it use certificates for --tls-certs, shared keys for --tls-psk?)";
	case GNUTLS_E_PREMATURE_TERMINATION:
		return " (the client has left)";
	default:
		return "";
	}
}

static void log_failure(struct tls_transport *tls, const char *what, int code)
{
	const char *peer = tls->base.peer;

	if (code == GNUTLS_E_FATAL_ALERT_RECEIVED)
		log_stranger("%s: %s: the client says: %s", peer, what,
			     gnutls_alert_get_name(gnutls_alert_get(tls->session)));
	else if (*tls->peer.refusal && code != GNUTLS_E_PREMATURE_TERMINATION)
		log_stranger("%s: %s: %s: %s", peer, what, tls->peer.name, tls->peer.refusal);
	else
		log_stranger("%s: %s: %s%s", peer, what, gnutls_strerror(code), hint(code));
}

/* The first failure of a session ends it; what follows from it is not worth a line. */
static int fail(struct tls_transport *tls, const char *what, int code)
{
	bool is_first;

	pthread_mutex_lock(&tls->lock);
	is_first = !tls->failure;
	if (is_first)
		tls->failure = code;
	pthread_mutex_unlock(&tls->lock);
	if (is_first && what)
		log_failure(tls, what, code);
	return -EPROTO;
}

static bool is_passing(int code)
{
	return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED ||
	       code == GNUTLS_E_WARNING_ALERT_RECEIVED;
}

/* By the only thread: reads and writes until GnuTLS has come to a result. */
static int shake_hands(struct tls_transport *tls)
{
	int code, ret;

	tls->is_writing = true;
	do {
		code = gnutls_handshake(tls->session);
		begin_flushes(tls, tls->out_length);
		ret = flush(tls);
		if (!ret && code == GNUTLS_E_AGAIN && !gnutls_record_get_direction(tls->session))
			ret = fill(tls);
		if (ret) {
			/* The log tells about those that are too slow elsewhere. */
			if (ret != -ETIMEDOUT)
				log_stranger("%s: TLS handshake failed, the client left: %s",
					     tls->base.peer, strerror(-ret));
			return ret;
		}
	} while (is_passing(code));
	tls->is_writing = false;
	if (!code) {
		tls->is_established = true;
		return 0;
	}
	return fail(tls, "TLS handshake failed", code);
}

static int tls_secure(struct transport *transport)
{
	struct tls_transport *tls = to_tls(transport);
	gnutls_session_t session;
	int ret = tls_credentials_begin(tls->credentials, &tls->peer, &session);

	if (ret) {
		log_error("%s: cannot begin a TLS session: %s", tls->base.peer,
			  gnutls_strerror(ret));
		return -ENOMEM;
	}
	tls->session = session;
	gnutls_transport_set_ptr(session, tls);
	gnutls_transport_set_pull_function(session, pull);
	gnutls_transport_set_push_function(session, push);
	ret = shake_hands(tls);
	if (ret)
		return ret;
	*tls->peer.refusal = '\0';
	log_client("%s: %s with %s, client %s", tls->base.peer,
		   gnutls_protocol_get_name(gnutls_protocol_get_version(session)),
		   gnutls_cipher_get_name(gnutls_cipher_get(session)), tls->peer.name);
	return 0;
}

/* 0: read on, after waiting for the client where needed. */
static int after_receive(struct tls_transport *tls, int code)
{
	if (code == GNUTLS_E_AGAIN)
		return fill(tls);
	if (is_passing(code))
		return 0;
	/* A client that just goes away has always done so, also without TLS. */
	return fail(tls, code == GNUTLS_E_PREMATURE_TERMINATION ? NULL : "TLS failed", code);
}

static int tls_read(struct transport *transport, void *buffer, size_t length)
{
	struct tls_transport *tls = to_tls(transport);
	size_t done = 0;
	ssize_t n;
	int ret;

	if (!tls->session)
		return tls->lower->ops->read(tls->lower, buffer, length);
	while (done < length) {
		pthread_mutex_lock(&tls->lock);
		n = gnutls_record_recv(tls->session, (uint8_t *)buffer + done, length - done);
		pthread_mutex_unlock(&tls->lock);
		if (!n)
			return done ? -ECONNRESET : TRANSPORT_END;
		if (n > 0) {
			done += n;
			continue;
		}
		ret = after_receive(tls, (int)n);
		if (ret)
			return ret;
	}
	return 0;
}

static bool tls_has_input(struct transport *transport)
{
	struct tls_transport *tls = to_tls(transport);
	size_t decrypted;

	pthread_mutex_lock(&tls->lock);
	decrypted = gnutls_record_check_pending(tls->session);
	pthread_mutex_unlock(&tls->lock);
	return decrypted || tls->in_head < tls->in_tail;
}

/* Encrypts up to a number of records. Returns bytes taken, or -errno. */
static ssize_t encrypt(struct tls_transport *tls, const uint8_t *bytes, size_t length)
{
	size_t done = 0, piece;
	ssize_t n = 0;

	pthread_mutex_lock(&tls->lock);
	tls->is_writing = true;
	while (done < length && tls->out_length < WRITE_RECORDS * RECORD_DATA) {
		/* While it updates its keys, GnuTLS copies all that it is given. */
		piece = length - done < RECORD_DATA ? length - done : RECORD_DATA;
		n = gnutls_record_send(tls->session, bytes + done, piece);
		if (n < 0)
			break;
		done += n;
	}
	tls->is_writing = false;
	pthread_mutex_unlock(&tls->lock);
	if (n >= 0 || is_passing((int)n))
		return (ssize_t)done;
	return fail(tls, "TLS failed", (int)n);
}

static int send_bytes(struct tls_transport *tls, const uint8_t *bytes, size_t length)
{
	ssize_t n;
	int ret;

	while (length) {
		n = encrypt(tls, bytes, length);
		if (n < 0)
			return (int)n;
		bytes += n;
		length -= n;
		if (!length && tls->out_length < WRITE_RECORDS * RECORD_DATA)
			break;
		ret = flush(tls);
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * Headers and the beginning of the data behind them go into one record, as far as
 * they fit: they are copied. All other data is encrypted from where it lies.
 */
static int tls_write(struct transport *transport, struct iovec *vector, int count)
{
	struct tls_transport *tls = to_tls(transport);
	size_t gathered = 0, n;
	int ret = 0, i;

	if (!tls->session)
		return tls->lower->ops->write(tls->lower, vector, count);
	begin_flushes(tls, transport_bytes(vector, count));
	for (i = 0; !ret && i < count; i++) {
		n = sizeof(tls->first) - gathered;
		if (n > vector[i].iov_len)
			n = vector[i].iov_len;
		if (n)
			memcpy(tls->first + gathered, vector[i].iov_base, n);
		gathered += n;
		if (gathered < sizeof(tls->first) && i + 1 < count)
			continue;
		ret = send_bytes(tls, tls->first, gathered);
		gathered = 0;
		if (!ret)
			ret = send_bytes(tls, (uint8_t *)vector[i].iov_base + n,
					 vector[i].iov_len - n);
	}
	return ret ? ret : flush(tls);
}

static void tls_set_deadline(struct transport *transport, int64_t deadline_ms)
{
	struct transport *lower = to_tls(transport)->lower;

	lower->ops->set_deadline(lower, deadline_ms);
}

/* The session always has a buffer: that of the lower transport would only add a copy. */
static void tls_set_readahead(struct transport *transport, bool on)
{
	(void)transport;
	(void)on;
}

static void tls_set_before_wait(struct transport *transport, bool (*before_wait)(void *context),
				void *context)
{
	struct transport *lower = to_tls(transport)->lower;

	lower->ops->set_before_wait(lower, before_wait, context);
}

/* An alert that says what is wrong, or that nothing is. */
static void say_goodbye(struct tls_transport *tls)
{
	tls_set_deadline(&tls->base, clock_ms() + END_MS);
	tls->is_writing = true;
	if (!tls->failure)
		gnutls_bye(tls->session, GNUTLS_SHUT_WR);
	else if (tls->failure != GNUTLS_E_PREMATURE_TERMINATION &&
		 tls->failure != GNUTLS_E_FATAL_ALERT_RECEIVED)
		gnutls_alert_send_appropriate(tls->session, tls->failure);
	tls->is_writing = false;
	begin_flushes(tls, tls->out_length);
	flush(tls);
}

static void tls_end(struct transport *transport)
{
	struct tls_transport *tls = to_tls(transport);

	if (tls->is_established || tls->failure)
		say_goodbye(tls);
	tls->lower->ops->end(tls->lower);
}

/* Other threads may call this: it does not touch the session. */
static void tls_shutdown(struct transport *transport)
{
	struct transport *lower = to_tls(transport)->lower;

	lower->ops->shutdown(lower);
}

static void tls_close(struct transport *transport)
{
	struct tls_transport *tls = to_tls(transport);

	if (tls->session)
		gnutls_deinit(tls->session);
	tls->lower->ops->close(tls->lower);
	pthread_mutex_destroy(&tls->lock);
	free(tls);
}

static const struct transport_ops tls_ops = {
	.read = tls_read,
	.has_input = tls_has_input,
	.write = tls_write,
	.secure = tls_secure,
	.end = tls_end,
	.set_deadline = tls_set_deadline,
	.set_readahead = tls_set_readahead,
	.set_before_wait = tls_set_before_wait,
	.shutdown = tls_shutdown,
	.close = tls_close,
};

struct transport *transport_tls_create(struct transport *lower,
				       const struct tls_credentials *credentials)
{
	struct tls_transport *tls = calloc(1, sizeof(*tls));

	if (!tls)
		return NULL;
	pthread_mutex_init(&tls->lock, NULL);
	tls->base.ops = &tls_ops;
	snprintf(tls->base.peer, sizeof(tls->base.peer), "%s", lower->peer);
	tls->lower = lower;
	tls->credentials = credentials;
	return &tls->base;
}
