// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, listen: opens, accepts from and removes listening sockets. Used by
 * the main thread only.
 */
#include "listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

#define DEFAULT_PORT	"10809"
#define BACKLOG		128
#define SOCKET_FLAGS	(SOCK_CLOEXEC | SOCK_NONBLOCK)

static struct listener *add_listener(struct listener_set *set, int fd)
{
	struct listener *listener = &set->listeners[set->count++];

	memset(listener, 0, sizeof(*listener));
	listener->fd = fd;
	return listener;
}

/* Is there a socket file that nobody listens on any more? */
static bool is_stale(const struct sockaddr_un *address)
{
	struct stat status;
	bool stale;
	int fd;

	if (lstat(address->sun_path, &status) || !S_ISSOCK(status.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCKET_FLAGS, 0);
	if (fd < 0)
		return false;
	stale = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
		errno == ECONNREFUSED;
	close(fd);
	return stale;
}

static int bind_unix(int fd, const struct sockaddr_un *address)
{
	mode_t mask = umask(0177);
	int ret = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;

	if (ret == -EADDRINUSE && is_stale(address) && !unlink(address->sun_path))
		ret = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ?
		      -errno : 0;
	umask(mask);
	return ret;
}

int listen_unix(struct listener_set *set, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct listener *listener;
	struct stat status;
	int fd, ret;

	if (strlen(path) >= sizeof(address.sun_path)) {
		log_error("the path of the socket %s is too long", path);
		return -ENAMETOOLONG;
	}
	if (set->count == LISTEN_MAX) {
		log_error("more than %d listening sockets", LISTEN_MAX);
		return -EMFILE;
	}
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCKET_FLAGS, 0);
	ret = fd < 0 ? -errno : bind_unix(fd, &address);
	if (!ret && (listen(fd, BACKLOG) || stat(path, &status)))
		ret = -errno;
	if (ret) {
		log_error("cannot listen on %s: %s", path, strerror(-ret));
		if (fd >= 0)
			close(fd);
		return ret;
	}
	listener = add_listener(set, fd);
	listener->path = path;
	listener->device = status.st_dev;
	listener->inode = status.st_ino;
	return 0;
}

/* Splits ADDR[:PORT] in place. An address with several colons needs no brackets. */
static int split_address(char *text, const char **host, const char **port)
{
	char *end;

	*port = DEFAULT_PORT;
	*host = text;
	if (*text == '[') {
		*host = text + 1;
		end = strchr(text, ']');
		if (!end || (end[1] && end[1] != ':'))
			return -EINVAL;
		*end++ = '\0';
		if (*end)
			*port = end + 1;
	} else {
		end = strchr(text, ':');
		if (end && !strchr(end + 1, ':')) {
			*end = '\0';
			*port = end + 1;
		}
	}
	return **host && **port ? 0 : -EINVAL;
}

static bool is_loopback(const struct sockaddr *address)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;

	if (address->sa_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
	return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static void format_address(const struct sockaddr *address, socklen_t length, char *text,
			   size_t size)
{
	char host[NI_MAXHOST], port[NI_MAXSERV];

	if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(text, size, "unknown address");
	else
		snprintf(text, size, strchr(host, ':') ? "[%.48s]:%.8s" : "%.48s:%.8s", host, port);
}

static int listen_address(struct listener_set *set, const struct addrinfo *info)
{
	struct sockaddr_storage bound;
	socklen_t length = sizeof(bound);
	char text[80];
	int one = 1;
	int fd;

	if (set->count == LISTEN_MAX)
		return -EMFILE;
	fd = socket(info->ai_family, info->ai_socktype | SOCKET_FLAGS, info->ai_protocol);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (info->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, info->ai_addr, info->ai_addrlen) || listen(fd, BACKLOG) ||
	    getsockname(fd, (struct sockaddr *)&bound, &length)) {
		int ret = -errno;

		close(fd);
		return ret;
	}
	add_listener(set, fd);
	format_address((struct sockaddr *)&bound, length, text, sizeof(text));
	log_info("listening on %s", text);
	return 0;
}

/* None of the addresses is listened on unless all of them may be. */
static int check_addresses(const struct addrinfo *list, const char *address)
{
	for (; list; list = list->ai_next) {
		if (is_loopback(list->ai_addr))
			continue;
		log_error("%s is not a loopback address: data would travel in the clear and to anyone; --insecure allows it",
			  address);
		return -EACCES;
	}
	return 0;
}

int listen_tcp(struct listener_set *set, const char *address, bool allow_any)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_ADDRCONFIG,
	};
	struct addrinfo *list = NULL, *info;
	const char *host, *port;
	char *text = strdup(address);
	int ret, found;

	if (!text)
		return -ENOMEM;
	ret = split_address(text, &host, &port);
	found = ret ? EAI_NONAME : getaddrinfo(host, port, &hints, &list);
	if (found) {
		log_error("cannot listen on %s: %s", address, gai_strerror(found));
		free(text);
		return -EINVAL;
	}
	ret = allow_any ? 0 : check_addresses(list, address);
	for (info = list; !ret && info; info = info->ai_next) {
		ret = listen_address(set, info);
		if (ret)
			log_error("cannot listen on %s: %s", address, strerror(-ret));
	}
	freeaddrinfo(list);
	free(text);
	return ret;
}

int listen_accept(const struct listener *listener, char *peer, size_t size)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	struct ucred who = { .pid = 0 };
	socklen_t who_length = sizeof(who);
	int one = 1;
	int fd = accept4(listener->fd, (struct sockaddr *)&address, &length, SOCKET_FLAGS);

	if (fd < 0)
		return -errno;
	if (listener->path) {
		getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_length);
		snprintf(peer, size, "process %d", who.pid);
		return fd;
	}
	/* Replies are sent in one piece: waiting for more only delays them. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	format_address((struct sockaddr *)&address, length, peer, size);
	return fd;
}

void listen_close(struct listener_set *set)
{
	struct stat status;
	size_t i;

	for (i = 0; i < set->count; i++) {
		struct listener *listener = &set->listeners[i];

		/* Another server may have taken the path meanwhile: remove only our own. */
		if (listener->path && !stat(listener->path, &status) &&
		    status.st_dev == listener->device && status.st_ino == listener->inode)
			unlink(listener->path);
		close(listener->fd);
	}
	set->count = 0;
}
