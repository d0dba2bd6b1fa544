// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, service_manager: the few lines of systemd's two protocols that a
 * server needs. They are stable and documented; its library brings far more.
 */
#include "service_manager.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "stop.h"
#include "text.h"

/* The first of the descriptors handed over. */
#define FIRST_FD	3

#define MESSAGE_SIZE	256

/* How long to wait for a manager that is busy. */
#define INSIST_MS	5000

int service_manager_sockets(void)
{
	const char *pid_text = getenv("LISTEN_PID");
	const char *count_text = getenv("LISTEN_FDS");
	unsigned int pid, count;

	/* Meant for another process, such as the shell that started this one. */
	if (!pid_text || !count_text || !text_to_number(pid_text, INT_MAX, &pid) ||
	    (pid_t)pid != getpid())
		return 0;
	return text_to_number(count_text, LISTEN_MAX, &count) ? (int)count : -EINVAL;
}

int service_manager_adopt(struct listener_set *set, bool allow_any)
{
	int count = service_manager_sockets();
	const char *names = getenv("LISTEN_FDNAMES");
	char *list = strdup(names ? names : "");
	char *rest = list;
	char quoted[64];
	int ret = list ? 0 : -ENOMEM;
	int i;

	for (i = 0; !ret && i < count; i++) {
		const char *name = strsep(&rest, ":");

		if (!name || !*name)
			name = "unknown";
		log_quote(quoted, sizeof(quoted), name, strlen(name));
		ret = listen_adopt(set, FIRST_FD + i, quoted, allow_any);
	}
	free(list);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return ret;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(path);
	int fd;

	/* A name that begins with '@' is not in the filesystem; it has no NUL at its end. */
	if ((*path != '/' && *path != '@') || length < 2)
		return -EAFNOSUPPORT;
	if (length >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, length);
	if (*path == '@')
		address.sun_path[0] = '\0';
	else
		length++;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	length += offsetof(struct sockaddr_un, sun_path);
	if (connect(fd, (struct sockaddr *)&address, (socklen_t)length)) {
		int ret = -errno;

		close(fd);
		return ret;
	}
	return fd;
}

int service_manager_open(struct service_manager *manager)
{
	const char *path = getenv("NOTIFY_SOCKET");
	char quoted[128];

	manager->fd = -1;
	if (!path)
		return 0;
	manager->fd = connect_to(path);
	if (manager->fd < 0) {
		log_error("cannot reach the service manager at NOTIFY_SOCKET=%s: %s",
			  log_quote(quoted, sizeof(quoted), path, strlen(path)),
			  strerror(-manager->fd));
		return manager->fd;
	}
	unsetenv("NOTIFY_SOCKET");
	return 0;
}

void service_manager_close(struct service_manager *manager)
{
	if (manager->fd >= 0)
		close(manager->fd);
	manager->fd = -1;
}

void service_manager_tell(const struct service_manager *manager, const char *format, ...)
{
	char message[MESSAGE_SIZE];
	va_list arguments;
	int length;

	if (manager->fd < 0)
		return;
	va_start(arguments, format);
	length = vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	if (length >= (int)sizeof(message))
		length = sizeof(message) - 1;
	/* A manager that does not listen can do without. */
	if (length > 0 && write(manager->fd, message, length) < 0)
		return;
}

void service_manager_insist(const struct service_manager *manager, const char *message)
{
	struct pollfd file = { .fd = manager->fd, .events = POLLOUT };
	int64_t end = clock_ms() + INSIST_MS, left = INSIST_MS;

	/* What comes in between may have filled its queue once more. */
	while (manager->fd >= 0 && left > 0 && write(manager->fd, message, strlen(message)) < 0) {
		if (errno != EINTR && (errno != EAGAIN || poll(&file, 1, (int)left) <= 0))
			return;
		left = end - clock_ms();
	}
}
