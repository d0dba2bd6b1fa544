// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, ready: see ready.h. That a socket can be connected to would say less: it may be
 * somebody else's, and the server may still fail.
 */
#include "ready.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READY		"READY=1"
/* A child that ends does not wake poll(). */
#define STEP_MS		20

int ready_open(char *name, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	socklen_t length = sizeof(address);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int yes = 1, ret;

	if (fd < 0)
		return -errno;
	/* With no more than the family, the kernel chooses an abstract name. */
	if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) ||
	    getsockname(fd, (struct sockaddr *)&address, &length)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	length -= offsetof(struct sockaddr_un, sun_path) + 1;
	snprintf(name, size, "@%.*s", (int)length, address.sun_path + 1);
	return fd;
}

static bool is_from(const struct msghdr *message, pid_t pid)
{
	const struct cmsghdr *control = CMSG_FIRSTHDR(message);
	struct ucred sender;

	if (!control || control->cmsg_level != SOL_SOCKET ||
	    control->cmsg_type != SCM_CREDENTIALS)
		return false;
	memcpy(&sender, CMSG_DATA(control), sizeof(sender));
	return sender.pid == pid;
}

/* Take one message; is it the one that is waited for? */
static bool is_told(int fd, pid_t pid)
{
	char text[256], control[CMSG_SPACE(sizeof(struct ucred))];
	struct iovec data = { .iov_base = text, .iov_len = sizeof(text) - 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	ssize_t length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	char *line, *rest = text;

	if (length < 0 || !is_from(&message, pid))
		return false;
	text[length] = '\0';
	while ((line = strsep(&rest, "\n")))
		if (!strcmp(line, READY))
			return true;
	return false;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int ready_wait(int fd, pid_t pid, int milliseconds, int *status)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	int64_t end = now_ms() + milliseconds;
	int ret;

	while (now_ms() < end) {
		ret = poll(&poll_fd, 1, STEP_MS);
		if (ret < 0 && errno != EINTR)
			return -errno;
		if (ret > 0 && is_told(fd, pid))
			return 0;
		if (waitpid(pid, status, WNOHANG) == pid)
			return -ECHILD;
	}
	return -ETIMEDOUT;
}
