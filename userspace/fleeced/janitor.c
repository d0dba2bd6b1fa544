// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, janitor: the server's child, which keeps the right to remove files and
 * nothing else. It hears the number of a file that is to go at once, or the end
 * of the stream, which also comes when the server is killed.
 *
 * To look whether a file is still the server's and to remove it are two calls. In between,
 * another server must not take the path of the socket; nor does it, as long as somebody has
 * the socket open, see bind_unix(). So the janitor has, until the file is gone.
 */
#include "janitor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/capability.h>

#include "log.h"
#include "privileges.h"
#include "sandbox.h"

/* What the child has open beside stderr: it needs no other standard file. */
#define SERVER_FILE	STDIN_FILENO
#define LISTENER_FILE	STDOUT_FILENO

void janitor_init(struct janitor *janitor)
{
	memset(janitor, 0, sizeof(*janitor));
	janitor->listener = -1;
	janitor->fd = -1;
}

void janitor_add(struct janitor *janitor, const char *path)
{
	struct stat status;

	if (janitor->count == JANITOR_FILES || lstat(path, &status))
		return;
	janitor->paths[janitor->count] = path;
	janitor->devices[janitor->count] = status.st_dev;
	janitor->inodes[janitor->count] = status.st_ino;
	janitor->count++;
}

void janitor_add_socket(struct janitor *janitor, const char *path, int listener)
{
	janitor_add(janitor, path);
	janitor->socket_path = path;
	janitor->listener = listener;
}

/* Another server may have taken the path meanwhile: only our own file goes. */
static void remove_file(const struct janitor *janitor, size_t i)
{
	struct stat status;

	if (i >= janitor->count || lstat(janitor->paths[i], &status) ||
	    status.st_dev != janitor->devices[i] || status.st_ino != janitor->inodes[i])
		return;
	if (unlink(janitor->paths[i]))
		log_error("cannot remove %s: %s", janitor->paths[i], strerror(errno));
}

static void remove_all(const struct janitor *janitor)
{
	size_t i;

	for (i = 0; i < janitor->count; i++)
		remove_file(janitor, i);
}

/*
 * Devices stay busy, and clients connected, as long as anybody has them open. The kernel's name
 * of the last call is older than the C library's.
 */
static int close_others(const struct janitor *janitor, int fd)
{
	close(LISTENER_FILE);
	if (dup2(fd, SERVER_FILE) >= 0 &&
	    (janitor->listener < 0 || dup2(janitor->listener, LISTENER_FILE) >= 0) &&
	    !syscall(__NR_close_range, STDERR_FILENO + 1, UINT_MAX, 0U))
		return 0;
	log_error("cannot close files: %s", strerror(errno));
	return -errno;
}

/* The number of a file that somebody has open is not given to another file. */
static void hold_files(const struct janitor *janitor)
{
	size_t i;

	for (i = 0; i < janitor->count; i++)
		if (janitor->paths[i] != janitor->socket_path &&
		    open(janitor->paths[i], O_PATH | O_NOFOLLOW | O_CLOEXEC) < 0)
			log_error("cannot look at %s: %s", janitor->paths[i], strerror(errno));
}

/* Directories belong to anybody. */
static int confine(void)
{
	const struct account root = { 0, 0 };
	int ret = privileges_drop(geteuid() ? NULL : &root, 1ULL << CAP_DAC_OVERRIDE);

	return ret ? ret : sandbox_enter_janitor();
}

/* The child: says that it is there, then does what it hears. */
static void work(const struct janitor *janitor, int fd, bool is_confined)
{
	uint8_t number = UINT8_MAX;
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	prctl(PR_SET_NAME, "fleeced-janitor", 0, 0, 0);
	if (close_others(janitor, fd))
		_exit(1);
	hold_files(janitor);
	if (is_confined && confine())
		_exit(1);
	while (write(SERVER_FILE, &number, 1) == 1 && read(SERVER_FILE, &number, 1) == 1) {
		remove_file(janitor, number);
		if (number < janitor->count && janitor->paths[number] == janitor->socket_path)
			close(LISTENER_FILE);
	}
	remove_all(janitor);
	_exit(0);
}

/* Waits for an answer, or for the end of the child. */
static bool hear(int fd)
{
	uint8_t number;
	ssize_t n;

	do {
		n = read(fd, &number, 1);
	} while (n < 0 && errno == EINTR);
	return n == 1;
}

int janitor_start(struct janitor *janitor, bool is_confined)
{
	int ends[2];
	pid_t child;

	if (!janitor->count)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) {
		log_error("cannot start the janitor: %s", strerror(errno));
		return -errno;
	}
	child = fork();
	if (!child)
		work(janitor, ends[1], is_confined);
	close(ends[1]);
	if (child < 0 || !hear(ends[0])) {
		log_error("cannot start the janitor");
		close(ends[0]);
		return -ECHILD;
	}
	janitor->fd = ends[0];
	return 0;
}

void janitor_remove(struct janitor *janitor, const char *path)
{
	uint8_t i;

	for (i = 0; path && i < janitor->count; i++) {
		if (strcmp(janitor->paths[i], path))
			continue;
		if (janitor->fd < 0)
			remove_file(janitor, i);
		else if (write(janitor->fd, &i, 1) == 1)
			hear(janitor->fd);
	}
}

void janitor_finish(struct janitor *janitor)
{
	if (janitor->fd < 0) {
		remove_all(janitor);
		return;
	}
	shutdown(janitor->fd, SHUT_WR);
	while (hear(janitor->fd))
		;
	close(janitor->fd);
	janitor->fd = -1;
}
