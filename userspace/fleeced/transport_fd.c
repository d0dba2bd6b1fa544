// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, transport_fd: the transport on sockets and pipes.
 *
 * Every wait here ends: when data moves, when the deadline of the handshake
 * passes, when the client takes too long to read what is written, when another
 * thread calls shutdown, or a fixed time after the server was told to stop or the
 * client that nothing follows. No lock: reading and writing share no changing field.
 */
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* After the stop: how long a client may still send, and still receive. */
#define STOP_READ_MS	2000
#define STOP_WRITE_MS	10000

/* After the end: how long what a client still sends is taken. */
#define END_MS		1000

#define READAHEAD_BYTES	8192

/* So many looks in vain are followed by so many waits without a look, and one more look. */
#define VAIN_LOOKS	4
#define BLIND_WAITS	16

/*
 * How often to look for what a client is about to send. That takes about as long as to sleep and
 * to be woken up, which costs the client, too, as it has to do that. Where others want the
 * processor each look can take them long: then it is not for longer than this.
 */
#define LOOKS		64
#define LOOKS_MS	1

/* The slowest client that is waited for, when much is sent at once: 64 KiB/s. */
#define STALL_BYTES_PER_MS	64

/*
 * Set at construction: in, out, wake, stop, stall_ms, in_flags, out_flags. Set before
 * transmission starts, by the only thread there is: deadline_ms, readahead, before_wait, context.
 * After it, likewise: has_ended.
 * The reader's: ahead, head, tail, vain, has_found. The writer's: stall_limit_ms. Atomic: is_down.
 *
 * vain: how often the reader has looked for input and found nothing, one time after the other;
 * beyond VAIN_LOOKS, how often it has waited without looking since. has_found: the last time it
 * kept looking, it found something.
 *
 * wake is readable once is_down is set; -1 where shutdown() wakes up, on sockets.
 */
struct fd_transport {
	struct transport base;
	struct stop *stop;
	int in;
	int out;
	int wake;
	int in_flags;
	int out_flags;
	int64_t stall_ms;
	int64_t stall_limit_ms;
	int64_t deadline_ms;
	bool readahead;
	bool has_ended;
	bool (*before_wait)(void *context);
	void *context;
	unsigned int vain;
	bool has_found;
	atomic_bool is_down;
	size_t head;
	size_t tail;
	uint8_t ahead[READAHEAD_BYTES];
};

static struct fd_transport *to_fd(struct transport *transport)
{
	return (struct fd_transport *)transport;
}

static int64_t earlier(int64_t limit, int64_t other)
{
	return !limit || (other && other < limit) ? other : limit;
}

/* The moment at which waiting has to end, 0 for none. */
static int64_t limit_ms(struct fd_transport *fd, short events)
{
	int64_t stopped = stop_since_ms(fd->stop);
	int64_t limit = fd->deadline_ms;

	if (events & POLLOUT)
		limit = earlier(limit, fd->stall_limit_ms);
	if (stopped && !fd->has_ended)
		limit = earlier(limit, stopped + (events & POLLOUT ? STOP_WRITE_MS : STOP_READ_MS));
	return limit;
}

static int check_limit(struct fd_transport *fd, short events)
{
	int64_t limit = limit_ms(fd, events);

	if (atomic_load(&fd->is_down))
		return -ECONNRESET;
	return limit && clock_ms() >= limit ? -ETIMEDOUT : 0;
}

static int wait_ready(struct fd_transport *fd, int file, short events)
{
	struct pollfd files[3] = {
		{ .fd = file, .events = events },
		{ .fd = fd->stop->fd, .events = POLLIN },
		{ .fd = fd->wake, .events = POLLIN },
	};
	int64_t limit, left;
	int ret;

	for (;;) {
		ret = check_limit(fd, events);
		if (ret)
			return ret;
		/* Once stopped, the event stays readable: the limit replaces it. */
		if (stop_is_requested(fd->stop))
			files[1].fd = -1;
		limit = limit_ms(fd, events);
		left = limit ? limit - clock_ms() : -1;
		if (limit && left < 0)
			left = 0;
		ret = poll(files, 3, left > 60000 ? 60000 : (int)left);
		if (ret < 0 && errno != EINTR)
			return -errno;
		if (ret > 0 && files[0].revents)
			return 0;
	}
}

/*
 * A client that sends one request at a time sends none before it has the reply to the last one:
 * to look for it at once is a system call in vain. One that has many on their way is slower at
 * times, too: so it takes more than one look in vain, and there is another one later.
 */
static bool expects_input(struct fd_transport *fd)
{
	if (fd->vain < VAIN_LOOKS)
		return true;
	if (fd->vain++ < VAIN_LOOKS + BLIND_WAITS)
		return false;
	fd->vain = VAIN_LOOKS - 1;
	return true;
}

/* Bytes, 0 at the end of the stream, or -errno. */
static ssize_t look(struct fd_transport *fd, void *buffer, size_t length)
{
	ssize_t n = read(fd->in, buffer, length);

	return n < 0 ? -errno : n;
}

static ssize_t keep_looking(struct fd_transport *fd, void *buffer, size_t length)
{
	int64_t until_ms = clock_ms() + LOOKS_MS;
	unsigned int left = LOOKS;
	ssize_t n;

	do {
		sched_yield();
		n = look(fd, buffer, length);
	} while (n == -EAGAIN && --left && clock_ms() <= until_ms);
	return n;
}

/* While it finds what it looks for, it does not sleep. */
static ssize_t wait_and_read(struct fd_transport *fd, void *buffer, size_t length)
{
	bool is_expected = fd->before_wait && fd->before_wait(fd->context);
	ssize_t n = -EAGAIN;
	int ret;

	if (is_expected || fd->has_found)
		n = keep_looking(fd, buffer, length);
	fd->has_found = n > 0;
	while (n == -EAGAIN || n == -EINTR) {
		ret = wait_ready(fd, fd->in, POLLIN);
		if (ret)
			return ret;
		n = look(fd, buffer, length);
	}
	return n;
}

/* One piece, at least one byte. 0 is the end of the stream. */
static ssize_t read_some(struct fd_transport *fd, void *buffer, size_t length)
{
	ssize_t n = -EAGAIN;
	int ret = check_limit(fd, POLLIN);

	if (ret)
		return ret;
	if (expects_input(fd)) {
		n = look(fd, buffer, length);
		fd->vain = n == -EAGAIN ? fd->vain + 1 : 0;
	}
	return n == -EAGAIN || n == -EINTR ? wait_and_read(fd, buffer, length) : n;
}

static size_t take_ahead(struct fd_transport *fd, void *buffer, size_t length)
{
	size_t n = fd->tail - fd->head;

	if (n > length)
		n = length;
	memcpy(buffer, fd->ahead + fd->head, n);
	fd->head += n;
	return n;
}

static int fd_read(struct transport *transport, void *buffer, size_t length)
{
	struct fd_transport *fd = to_fd(transport);
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = take_ahead(fd, (uint8_t *)buffer + done, length - done);
		if (!n && fd->readahead && length - done < READAHEAD_BYTES) {
			fd->head = 0;
			fd->tail = 0;
			n = read_some(fd, fd->ahead, READAHEAD_BYTES);
			if (n > 0) {
				fd->tail = n;
				continue;
			}
		} else if (!n) {
			n = read_some(fd, (uint8_t *)buffer + done, length - done);
		}
		if (n < 0)
			return (int)n;
		if (!n)
			return done ? -ECONNRESET : TRANSPORT_END;
		done += n;
	}
	return 0;
}

static ssize_t fd_read_some(struct transport *transport, void *buffer, size_t length)
{
	struct fd_transport *fd = to_fd(transport);
	size_t n = take_ahead(fd, buffer, length);

	return n ? (ssize_t)n : read_some(fd, buffer, length);
}

static bool fd_has_input(struct transport *transport)
{
	struct fd_transport *fd = to_fd(transport);

	return fd->head < fd->tail;
}

static void advance(struct iovec **vector, int *count, size_t done)
{
	while (*count && done >= (*vector)->iov_len) {
		done -= (*vector)->iov_len;
		(*vector)++;
		(*count)--;
	}
	if (*count) {
		(*vector)->iov_base = (uint8_t *)(*vector)->iov_base + done;
		(*vector)->iov_len -= done;
	}
}

static void fd_begin_write(struct transport *transport, size_t bytes)
{
	struct fd_transport *fd = to_fd(transport);

	if (fd->stall_ms)
		fd->stall_limit_ms = clock_ms() + fd->stall_ms +
				     (int64_t)(bytes / STALL_BYTES_PER_MS);
}

static int fd_write_part(struct transport *transport, struct iovec *vector, int count)
{
	struct fd_transport *fd = to_fd(transport);
	ssize_t n;
	int ret;

	advance(&vector, &count, 0);
	while (count) {
		ret = check_limit(fd, POLLOUT);
		if (ret)
			return ret;
		n = writev(fd->out, vector, count);
		if (n >= 0) {
			advance(&vector, &count, n);
		} else if (errno == EAGAIN) {
			ret = wait_ready(fd, fd->out, POLLOUT);
			if (ret)
				return ret;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

static int fd_write(struct transport *transport, struct iovec *vector, int count)
{
	fd_begin_write(transport, transport_bytes(vector, count));
	return fd_write_part(transport, vector, count);
}

static void fd_set_deadline(struct transport *transport, int64_t deadline_ms)
{
	to_fd(transport)->deadline_ms = deadline_ms;
}

static void fd_set_readahead(struct transport *transport, bool on)
{
	to_fd(transport)->readahead = on;
}

static void fd_set_before_wait(struct transport *transport, bool (*before_wait)(void *context),
			       void *context)
{
	struct fd_transport *fd = to_fd(transport);

	fd->before_wait = before_wait;
	fd->context = context;
}

/*
 * To close a socket that still has something to read resets the connection, and a reset
 * can overtake the last reply. Pipes do not know that. The stop may be long ago.
 */
static void fd_end(struct transport *transport)
{
	struct fd_transport *fd = to_fd(transport);
	uint8_t rest[READAHEAD_BYTES];

	if (shutdown(fd->out, SHUT_WR))
		return;
	fd->has_ended = true;
	fd->deadline_ms = clock_ms() + END_MS;
	while (read_some(fd, rest, sizeof(rest)) > 0)
		;
}

static void fd_shutdown(struct transport *transport)
{
	struct fd_transport *fd = to_fd(transport);
	uint64_t one = 1;

	atomic_store(&fd->is_down, true);
	shutdown(fd->in, SHUT_RDWR);
	if (fd->out != fd->in)
		shutdown(fd->out, SHUT_RDWR);
	/* An eventfd that is full wakes up just as well. */
	if (fd->wake >= 0 && write(fd->wake, &one, sizeof(one)) < 0)
		return;
}

static void fd_close(struct transport *transport)
{
	struct fd_transport *fd = to_fd(transport);

	/* stdin and stdout may be shared with others: leave them as found. */
	fcntl(fd->in, F_SETFL, fd->in_flags);
	if (fd->out != fd->in) {
		fcntl(fd->out, F_SETFL, fd->out_flags);
		close(fd->out);
	}
	close(fd->in);
	if (fd->wake >= 0)
		close(fd->wake);
	free(fd);
}

static const struct transport_ops fd_ops = {
	.read = fd_read,
	.read_some = fd_read_some,
	.has_input = fd_has_input,
	.write = fd_write,
	.begin_write = fd_begin_write,
	.write_part = fd_write_part,
	.end = fd_end,
	.set_deadline = fd_set_deadline,
	.set_readahead = fd_set_readahead,
	.set_before_wait = fd_set_before_wait,
	.shutdown = fd_shutdown,
	.close = fd_close,
};

static bool is_socket(int file)
{
	int type;
	socklen_t length = sizeof(type);

	return !getsockopt(file, SOL_SOCKET, SO_TYPE, &type, &length);
}

/* Where it is needed; false when it cannot be had. */
static bool open_wake(struct fd_transport *fd)
{
	fd->wake = -1;
	if (is_socket(fd->in) && is_socket(fd->out))
		return true;
	fd->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return fd->wake >= 0;
}

struct transport *transport_fd_create(int in, int out, const char *peer, struct stop *stop,
				      int64_t stall_ms)
{
	struct fd_transport *fd = calloc(1, sizeof(*fd));

	if (!fd)
		return NULL;
	fd->in = in;
	fd->out = out;
	if (!open_wake(fd)) {
		free(fd);
		return NULL;
	}
	fd->base.ops = &fd_ops;
	snprintf(fd->base.peer, sizeof(fd->base.peer), "%s", peer);
	fd->stop = stop;
	fd->stall_ms = stall_ms;
	fd->in_flags = fcntl(in, F_GETFL);
	fd->out_flags = fcntl(out, F_GETFL);
	fcntl(in, F_SETFL, fd->in_flags | O_NONBLOCK);
	if (out != in)
		fcntl(out, F_SETFL, fd->out_flags | O_NONBLOCK);
	return &fd->base;
}
