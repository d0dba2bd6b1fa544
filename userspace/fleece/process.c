// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, process: runs a program without a shell and keeps the beginning of
 * its output. Nothing is run while a filesystem is frozen.
 */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct stream {
	int fd;
	char *text;
	size_t size;
	size_t length;
};

/* In the child: only async-signal-safe calls from here on. */
static void start_program(const char *const argv[], int out, int err, int failure)
{
	int null = open("/dev/null", O_RDONLY);
	sigset_t none, held;
	int error;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, &held);
	/* A terminal interrupts its whole process group, also what we must not be kept from. */
	if (sigismember(&held, SIGINT))
		setpgid(0, 0);
	if (null >= 0 && dup2(null, 0) >= 0 && dup2(out, 1) >= 0 && dup2(err, 2) >= 0)
		execvp(argv[0], (char *const *)argv);
	error = errno;
	if (write(failure, &error, sizeof(error)) < 0)
		_exit(126);
	_exit(127);
}

/* Keep what fits, drop the rest, so that the program never blocks. */
static int read_stream(struct stream *stream)
{
	char rest[512];
	size_t room = stream->size - 1 - stream->length;
	ssize_t n;

	if (room)
		n = read(stream->fd, stream->text + stream->length, room);
	else
		n = read(stream->fd, rest, sizeof(rest));
	if (n < 0 && errno == EINTR)
		return 1;
	if (n <= 0)
		return 0;
	if (room)
		stream->length += (size_t)n;
	return 1;
}

static void read_streams(struct stream *streams)
{
	struct pollfd polls[2] = {
		{ .fd = streams[0].fd, .events = POLLIN },
		{ .fd = streams[1].fd, .events = POLLIN },
	};
	int i;

	while (polls[0].fd >= 0 || polls[1].fd >= 0) {
		if (poll(polls, 2, -1) < 0 && errno != EINTR)
			return;
		for (i = 0; i < 2; i++)
			if (polls[i].fd >= 0 && polls[i].revents && !read_stream(&streams[i]))
				polls[i].fd = -1;
	}
}

/* What was written to stdout is in @output already. */
static void copy_output(const struct stream *stream, char *output, size_t size)
{
	size_t length = stream->length < size - 1 ? stream->length : size - 1;

	if (stream->text != output)
		memcpy(output, stream->text, length);
	while (length && output[length - 1] == '\n')
		length--;
	output[length] = 0;
}

static int wait_for_end(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void close_pair(int pair[2])
{
	close(pair[0]);
	close(pair[1]);
}

/* cron and the like leave out the directories of what only root runs. */
static void widen_path(void)
{
	const char *path = getenv("PATH");
	char wide[PATH_MAX];

	if (!path)
		path = "/usr/bin:/bin";
	if (strstr(path, "/usr/sbin:/sbin"))
		return;
	if ((size_t)snprintf(wide, sizeof(wide), "%s:/usr/sbin:/sbin", path) < sizeof(wide))
		setenv("PATH", wide, 1);
}

int process_run(const char *const argv[], char *output, size_t size)
{
	char errors[1024];
	struct stream streams[2] = { { -1, output, size, 0 },
				     { -1, errors, sizeof(errors), 0 } };
	int out[2], err[2], failure[2], error = 0, ret;
	pid_t pid;

	/* What our caller left open is no news. */
	setenv("LVM_SUPPRESS_FD_WARNINGS", "1", 1);
	widen_path();
	if (pipe2(out, O_CLOEXEC))
		return -errno;
	if (pipe2(err, O_CLOEXEC)) {
		ret = -errno;
		goto close_out;
	}
	if (pipe2(failure, O_CLOEXEC)) {
		ret = -errno;
		goto close_err;
	}
	pid = fork();
	if (pid == 0)
		start_program(argv, out[1], err[1], failure[1]);
	ret = pid < 0 ? -errno : 0;
	close(out[1]);
	close(err[1]);
	close(failure[1]);
	if (!ret) {
		streams[0].fd = out[0];
		streams[1].fd = err[0];
		read_streams(streams);
		ret = wait_for_end(pid);
		if (read(failure[0], &error, sizeof(error)) == sizeof(error))
			ret = -error;
		copy_output(&streams[ret ? 1 : 0], output, size);
	}
	close(out[0]);
	close(err[0]);
	close(failure[0]);
	return ret;

close_err:
	close_pair(err);
close_out:
	close_pair(out);
	return ret;
}

static const int end_signals[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };

#define NR_END_SIGNALS	(sizeof(end_signals) / sizeof(end_signals[0]))

/* How often they are held. */
static unsigned int holds;

static void mask_signals(int how)
{
	sigset_t mask;
	size_t i;

	sigemptyset(&mask);
	for (i = 0; i < NR_END_SIGNALS; i++)
		sigaddset(&mask, end_signals[i]);
	/* Others would wait for the lock of a verb that was stopped. */
	sigaddset(&mask, SIGTSTP);
	/* Nobody listening to messages is no reason to leave anything half-made. */
	sigaddset(&mask, SIGPIPE);
	sigprocmask(how, &mask, NULL);
}

void process_hold_signals(void)
{
	if (!holds++)
		mask_signals(SIG_BLOCK);
}

void process_release_signals(void)
{
	if (!--holds)
		mask_signals(SIG_UNBLOCK);
}

bool process_holds_signals(void)
{
	return holds;
}

bool process_is_asked_to_end(void)
{
	sigset_t pending;
	bool is_asked = false;
	size_t i;

	if (sigpending(&pending))
		return false;
	for (i = 0; i < NR_END_SIGNALS; i++)
		is_asked |= sigismember(&pending, end_signals[i]) == 1;
	return is_asked;
}

void process_find(char *path, size_t size, const char *directory, const char *program)
{
	char self[PATH_MAX - 64], places[3][64];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	size_t i;

	snprintf(places[0], sizeof(places[0]), "/%s", program);
	snprintf(places[1], sizeof(places[1]), "/../%s/%s", directory, program);
	snprintf(places[2], sizeof(places[2]), "/../libexec/%s", program);
	if (length > 0) {
		self[length] = 0;
		*strrchr(self, '/') = 0;
		for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			struct stat st;

			snprintf(path, size, "%s%s", self, places[i]);
			if (!stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK))
				return;
		}
	}
	snprintf(path, size, "%s", program);
}

void process_load_module(const char *name)
{
	const char *const argv[] = { "modprobe", "-q", name, NULL };
	char output[64];

	/* Whether it worked is seen at the first use. */
	process_run(argv, output, sizeof(output));
}
