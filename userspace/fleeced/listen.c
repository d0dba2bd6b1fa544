// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, listen: opens, accepts from and closes listening sockets. Used by the
 * main thread only.
 */
#include "listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
#include <linux/vm_sockets.h>

#include "../lib/keepalive.h"
#include "log.h"
#include "path_lock.h"
#include "text.h"

#define DEFAULT_PORT	"10809"
#define BACKLOG		128
#define UNIX_SEND_BYTES	(512 << 10)
#define SOCKET_FLAGS	(SOCK_CLOEXEC | SOCK_NONBLOCK)

/* How often to try, and how long to wait in between: one second in all. */
#define TRIES		50
#define TRY_US		20000

static void add_listener(struct listener_set *set, int fd, int family)
{
	set->listeners[set->count++] = (struct listener){ .fd = fd, .family = family };
}

static bool is_full(const struct listener_set *set)
{
	if (set->count < LISTEN_MAX)
		return false;
	log_error("more than %d listening sockets", LISTEN_MAX);
	return true;
}

static int close_failed(int fd, const char *address, int ret)
{
	log_error("cannot listen on %s: %s", address, strerror(-ret));
	if (fd >= 0)
		close(fd);
	return ret;
}

/* Is there a socket file that nobody listens on any more, nor is going to remove? */
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

/* Is it what bind() has made, and not what the owner of the directory has put in its place? */
static bool is_ours(int file)
{
	struct stat st;

	return !fstat(file, &st) && S_ISSOCK(st.st_mode) && st.st_uid == geteuid() &&
	       st.st_nlink == 1;
}

static int set_access_of(int file, const struct socket_access *access)
{
	char path[sizeof("/proc/self/fd/") + 3 * sizeof(int)];

	if (!is_ours(file))
		return -EEXIST;
	if ((access->owner != (uid_t)-1 || access->group != (gid_t)-1) &&
	    fchownat(file, "", access->owner, access->group, AT_EMPTY_PATH))
		return -errno;
	/* There is no fchmod() for what was opened with O_PATH. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	return chmod(path, access->mode) ? -errno : 0;
}

/* Until listen() nobody can connect, so that the file's owner and mode come in time. */
static int set_access(const char *path, const struct socket_access *access)
{
	int file = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int ret = file < 0 ? -errno : set_access_of(file, access);

	if (file >= 0)
		close(file);
	return ret;
}

/* Leaves no file behind when it fails. */
static int bind_and_listen(int fd, const struct sockaddr_un *address,
			   const struct socket_access *access)
{
	int ret = bind_unix(fd, address);

	if (ret)
		return ret;
	ret = set_access(address->sun_path, access);
	if (!ret && listen(fd, BACKLOG))
		ret = -errno;
	if (ret)
		unlink(address->sun_path);
	return ret;
}

/*
 * A socket that is bound, but not listened on yet, looks like one that was left behind:
 * no other server may look at it before.
 */
static int listen_at(int fd, const struct sockaddr_un *address, const struct socket_access *access)
{
	int lock = path_lock(address->sun_path);
	int ret;

	if (lock < 0)
		return lock;
	ret = bind_and_listen(fd, address, access);
	path_unlock(lock, address->sun_path);
	return ret;
}

int listen_unix(struct listener_set *set, const char *path, const struct socket_access *access)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	unsigned int tries = TRIES;
	int fd, ret;

	if (strlen(path) >= sizeof(address.sun_path)) {
		log_error("the path of the socket %s is too long", path);
		return -ENAMETOOLONG;
	}
	if (is_full(set))
		return -EMFILE;
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCKET_FLAGS, 0);
	/* Of a server that was killed the file is there for another moment. */
	do {
		ret = fd < 0 ? -errno : listen_at(fd, &address, access);
	} while (ret == -EADDRINUSE && --tries && !usleep(TRY_US));
	if (ret)
		return close_failed(fd, path, ret);
	add_listener(set, fd, AF_UNIX);
	log_info("listening on %s", path);
	return 0;
}

/* Splits ADDR[:PORT] in place. An address with several colons needs no brackets. */
static int split_address(char *text, const char **host, const char **port)
{
	unsigned int number;
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
	/* Of one that is too large getaddrinfo() takes the lower bits. */
	return **host && text_to_number(*port, UINT16_MAX, &number) ? 0 : -EINVAL;
}

/* Can nobody outside of this machine connect? */
static bool is_local(const struct sockaddr *address)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
	const struct sockaddr_vm *vm = (const struct sockaddr_vm *)address;

	switch (address->sa_family) {
	case AF_UNIX:
		return true;
	case AF_INET:
		return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
	case AF_INET6:
		return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
	default:
		return address->sa_family == AF_VSOCK && vm->svm_cid == VMADDR_CID_LOCAL;
	}
}

static int refuse_remote(const char *address)
{
	log_error("%s is not a loopback address: data would travel in the clear and to anyone; --tls-certs or --tls-psk protects it, --insecure allows it",
		  address);
	return -EACCES;
}

static void format_vsock(const struct sockaddr_vm *address, char *text, size_t size)
{
	if (address->svm_cid == VMADDR_CID_ANY)
		snprintf(text, size, "vsock port %u", address->svm_port);
	else
		snprintf(text, size, "vsock %u:%u", address->svm_cid, address->svm_port);
}

/* getnameinfo() may open a socket of its own to find the name of a scope. */
static void format_address(const struct sockaddr *address, char *text, size_t size)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
	char host[INET6_ADDRSTRLEN];

	switch (address->sa_family) {
	case AF_INET:
		inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
		snprintf(text, size, "%s:%u", host, ntohs(v4->sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
		snprintf(text, size, "[%s]:%u", host, ntohs(v6->sin6_port));
		break;
	case AF_VSOCK:
		format_vsock((const struct sockaddr_vm *)address, text, size);
		break;
	default:
		snprintf(text, size, "a Unix socket");
	}
}

static int listen_address(struct listener_set *set, const struct addrinfo *info)
{
	struct sockaddr_storage bound;
	socklen_t length = sizeof(bound);
	char text[80];
	int one = 1;
	int fd;

	if (is_full(set))
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
	add_listener(set, fd, info->ai_family);
	format_address((struct sockaddr *)&bound, text, sizeof(text));
	log_info("listening on %s", text);
	return 0;
}

/* None of the addresses is listened on unless all of them may be. */
static int check_addresses(const struct addrinfo *list, const char *address)
{
	for (; list; list = list->ai_next)
		if (!is_local(list->ai_addr))
			return refuse_remote(address);
	return 0;
}

bool listen_tcp_is_valid(const char *address)
{
	const char *host, *port;
	char *text = strdup(address);
	bool is_valid = text && !split_address(text, &host, &port);

	free(text);
	return is_valid;
}

/*
 * At all of them that this machine has: a name may stand for addresses of a family that it
 * does not use, and AI_ADDRCONFIG would take the loopback address of such a one away, too.
 */
static int listen_all(struct listener_set *set, const struct addrinfo *list)
{
	const struct addrinfo *info;
	bool is_listening = false;
	int ret = 0;

	for (info = list; info; info = info->ai_next) {
		ret = listen_address(set, info);
		if (ret && ret != -EADDRNOTAVAIL && ret != -EAFNOSUPPORT)
			return ret;
		is_listening |= !ret;
	}
	return is_listening ? 0 : ret;
}

int listen_tcp(struct listener_set *set, const char *address, bool allow_any)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct addrinfo *list = NULL;
	const char *host, *port;
	char *text = strdup(address);
	int ret, found;

	if (!text)
		return -ENOMEM;
	found = split_address(text, &host, &port) ? EAI_NONAME :
						    getaddrinfo(host, port, &hints, &list);
	if (found) {
		log_error("cannot listen on %s: %s", address, gai_strerror(found));
		free(text);
		return -EINVAL;
	}
	ret = allow_any ? 0 : check_addresses(list, address);
	if (!ret) {
		ret = listen_all(set, list);
		if (ret)
			log_error("cannot listen on %s: %s", address, strerror(-ret));
	}
	freeaddrinfo(list);
	free(text);
	return ret;
}

static int parse_vsock(const char *text, struct sockaddr_vm *address)
{
	const char *colon = strchr(text, ':');
	char cid[16];

	memset(address, 0, sizeof(*address));
	address->svm_family = AF_VSOCK;
	address->svm_cid = VMADDR_CID_ANY;
	if (colon) {
		snprintf(cid, sizeof(cid), "%.*s", (int)(colon - text), text);
		if (!text_to_number(cid, UINT32_MAX, &address->svm_cid))
			return -EINVAL;
		text = colon + 1;
	}
	if (!text_to_number(text, UINT32_MAX, &address->svm_port))
		return -EINVAL;
	if (!address->svm_port)
		address->svm_port = VMADDR_PORT_ANY;
	return 0;
}

bool listen_vsock_is_valid(const char *address)
{
	struct sockaddr_vm parsed;

	return !parse_vsock(address, &parsed);
}

int listen_vsock(struct listener_set *set, const char *address, bool allow_any)
{
	struct sockaddr_vm bound;
	socklen_t length = sizeof(bound);
	char text[80];
	int fd;

	snprintf(text, sizeof(text), "vsock %.64s", address);
	if (parse_vsock(address, &bound))
		return close_failed(-1, text, -EINVAL);
	if (!allow_any && !is_local((struct sockaddr *)&bound))
		return refuse_remote(text);
	if (is_full(set))
		return -EMFILE;
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCKET_FLAGS, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&bound, sizeof(bound)) || listen(fd, BACKLOG) ||
	    getsockname(fd, (struct sockaddr *)&bound, &length))
		return close_failed(fd, text, -errno);
	add_listener(set, fd, AF_VSOCK);
	format_vsock(&bound, text, sizeof(text));
	log_info("listening on %s", text);
	return 0;
}

static bool is_listening_stream(int fd)
{
	int type = 0, listens = 0;
	socklen_t length = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) && type == SOCK_STREAM &&
	       !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) && listens;
}

int listen_adopt(struct listener_set *set, int fd, const char *name, bool allow_any)
{
	struct sockaddr_storage address = { .ss_family = AF_UNSPEC };
	socklen_t length = sizeof(address);
	char text[80];

	if (!is_listening_stream(fd)) {
		log_error("socket %s was handed over, but is not a listening stream socket", name);
		return -ENOTSOCK;
	}
	if (is_full(set))
		return -EMFILE;
	getsockname(fd, (struct sockaddr *)&address, &length);
	format_address((struct sockaddr *)&address, text, sizeof(text));
	if (!allow_any && !is_local((struct sockaddr *)&address))
		return refuse_remote(text);
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) || fcntl(fd, F_SETFL, O_NONBLOCK)) {
		log_error("cannot use socket %s: %s", name, strerror(errno));
		return -errno;
	}
	add_listener(set, fd, address.ss_family);
	log_info("listening on %s, handed over as %s", text, name);
	return 0;
}

static void set_option(int fd, int level, int option, int value)
{
	setsockopt(fd, level, option, &value, sizeof(value));
}

/*
 * Replies are sent in one piece: waiting for more only delays them. The defaults would
 * hold the connection of a dead client for two hours. The limit for what it does not
 * acknowledge is also one for clients that live, and read nothing: it is not below theirs.
 */
static void prepare_tcp(int fd, int64_t stall_ms)
{
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (stall_ms && stall_ms < FLEECE_KEEPALIVE_MS)
		stall_ms = FLEECE_KEEPALIVE_MS;
	fleece_keepalive(fd, (int)stall_ms);
}

/*
 * So that a reply of usual size, and the next one, need one call and no waiting. More
 * than the system allows is cut. TCP finds out by itself what it needs.
 */
static void prepare_unix(int fd)
{
	set_option(fd, SOL_SOCKET, SO_SNDBUF, UNIX_SEND_BYTES);
}

int listen_accept(const struct listener *listener, int64_t stall_ms, char *peer, size_t size)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	struct ucred who = { .pid = 0 };
	socklen_t who_length = sizeof(who);
	int fd = accept4(listener->fd, (struct sockaddr *)&address, &length, SOCKET_FLAGS);

	if (fd < 0)
		return -errno;
	if (listener->family == AF_UNIX) {
		prepare_unix(fd);
		getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_length);
		snprintf(peer, size, "process %d of user %u", who.pid, who.uid);
		return fd;
	}
	if (listener->family != AF_VSOCK)
		prepare_tcp(fd, stall_ms);
	format_address((struct sockaddr *)&address, peer, size);
	return fd;
}

void listen_close(struct listener_set *set)
{
	while (set->count)
		close(set->listeners[--set->count].fd);
}
