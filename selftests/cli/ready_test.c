// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, ready: what fleece serve takes for the word of its server, and what not.
 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tap.h"
#include "ready.h"

#define LONG_MS		60000
#define SHORT_MS	200

static char name[128];

/* As a server does, from whatever process. */
static void tell(const char *message)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(name);
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	memcpy(address.sun_path, name, length);
	address.sun_path[0] = '\0';
	length += offsetof(struct sockaddr_un, sun_path);
	if (sendto(fd, message, strlen(message), 0, (struct sockaddr *)&address,
		   (socklen_t)length) < 0)
		abort();
	close(fd);
}

/* A child that says it, NULL: nothing, and then lives on or ends. */
static pid_t start(const char *message, bool lives_on)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid)
		return pid;
	if (message)
		tell(message);
	while (lives_on)
		pause();
	_exit(3);
}

static void test(const char *message, bool lives_on, int milliseconds, int expected,
		 const char *text)
{
	int fd = ready_open(name, sizeof(name)), status = 0, ret;
	pid_t pid = start(message, lives_on);

	ret = ready_wait(fd, pid, milliseconds, &status);
	tap_ok(fd >= 0 && name[0] == '@' && ret == expected &&
	       (ret != -ECHILD || WEXITSTATUS(status) == 3), "%s", text);
	if (ret != expected)
		printf("# found %d, expected %d\n", ret, expected);
	if (lives_on) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	close(fd);
}

static void test_others(void)
{
	int fd = ready_open(name, sizeof(name)), status, i;
	pid_t pid = start(NULL, true);

	/* Few enough for the socket to keep them. */
	for (i = 0; i < 5; i++)
		tell("READY=1");
	tap_ok(ready_wait(fd, pid, SHORT_MS, &status) == -ETIMEDOUT,
	       "what others say does not count");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	close(fd);
}

int main(void)
{
	test("READY=1", true, LONG_MS, 0, "a child that is ready");
	test("MAINPID=1\nREADY=1\nSTATUS=0 clients", true, LONG_MS, 0,
	     "a child that says more than that");
	test(NULL, true, SHORT_MS, -ETIMEDOUT, "a child that does not get ready");
	test("READY=0", true, SHORT_MS, -ETIMEDOUT, "a child that says it is not");
	test("READY=10", true, SHORT_MS, -ETIMEDOUT, "a child that says something like it");
	test("", true, SHORT_MS, -ETIMEDOUT, "a child that sends nothing");
	test(NULL, false, LONG_MS, -ECHILD, "a child that ends without a word");
	test("STATUS=failed", false, LONG_MS, -ECHILD, "a child that ends with other words");
	test_others();
	return tap_end();
}
