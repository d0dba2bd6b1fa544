// SPDX-License-Identifier: GPL-2.0-only
/*
 * sandbox_test: what fleeced's sandboxes allow, refuse and kill for. Each case is
 * a process of its own. Prints TAP. Built without sanitizers, whose own system
 * calls would be in the way.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/dm-fleece.h>
#include <linux/fs.h>

#include "log.h"
#include "privileges.h"
#include "sandbox.h"

#define PAGE_BYTES 4096

enum kind { SERVER, RELEASING_SERVER, JANITOR };

/* Opened before the sandbox is entered. */
static int file;
static int pair[2];
static const char *victim;
static void *page;

/* Things to do: each returns 0, or the errno that it got. */

static int result(long ret)
{
	return ret < 0 ? errno : 0;
}

static int do_read(void)
{
	char byte;

	return result(pread(file, &byte, 1, 0)) ? errno : result(posix_fadvise(file, 0, 0, 0));
}

static int do_talk(void)
{
	struct pollfd poll_file = { .fd = pair[1], .events = POLLIN };
	char byte = 0;

	if (write(pair[0], &byte, 1) != 1 || poll(&poll_file, 1, 1000) != 1 ||
	    read(pair[1], &byte, 1) != 1 || fcntl(pair[0], F_SETFL, O_NONBLOCK) ||
	    shutdown(pair[0], SHUT_RDWR))
		return errno;
	return result(eventfd(0, EFD_CLOEXEC));
}

static int do_memory(void)
{
	void *blocks[64];
	int i;

	for (i = 0; i < 64; i++) {
		blocks[i] = malloc(PAGE_BYTES << (i % 12));
		if (!blocks[i])
			_exit(252);
		memset(blocks[i], 1, PAGE_BYTES << (i % 12));
	}
	for (i = 0; i < 64; i++)
		free(blocks[i]);
	return 0;
}

static void *in_thread(void *what)
{
	int (*function)(void) = (int (*)(void))what;

	return (void *)(intptr_t)function();
}

static int run_thread(int (*function)(void))
{
	pthread_t thread;
	void *got;
	int ret = pthread_create(&thread, NULL, in_thread, (void *)function);

	if (ret)
		return ret;
	pthread_join(thread, &got);
	return (int)(intptr_t)got;
}

static int do_threads(void)
{
	int i, ret = 0;

	for (i = 0; !ret && i < 20; i++)
		ret = run_thread(do_memory);
	return ret;
}

static int do_log(void)
{
	log_info("a line of a test: %s", strerror(EIO));
	return 0;
}

static int do_info(void)
{
	return result(ioctl(-1, FLEECE_IOC_INFO, NULL));
}

static int do_extents(void)
{
	return result(ioctl(-1, FLEECE_IOC_EXTENTS, NULL));
}

static int do_release(void)
{
	return result(ioctl(-1, FLEECE_IOC_RELEASE, NULL));
}

static int do_open(void)
{
	return result(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}

static int do_open_device(void)
{
	return result(syscall(SYS_openat, AT_FDCWD, "/dev/null", O_WRONLY));
}

static int do_prctl(void)
{
	return result(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

static int do_abort(void)
{
	abort();
}

static int do_socket(void)
{
	return result(socket(AF_INET, SOCK_STREAM, 0));
}

static int do_socket_in_thread(void)
{
	return run_thread(do_socket);
}

static int do_connect(void)
{
	struct sockaddr address = { .sa_family = AF_UNSPEC };

	return result(connect(pair[0], &address, sizeof(address)));
}

static int do_exec(void)
{
	return result(execl("/bin/true", "true", NULL));
}

static int do_fork(void)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	return result(child);
}

static int do_unlink(void)
{
	return result(unlink(victim));
}

static int do_chmod(void)
{
	return result(syscall(SYS_fchmod, file, 0777));
}

static int do_write_file(void)
{
	return result(pwrite(file, "x", 1, 0));
}

static int do_discard(void)
{
	uint64_t range[2] = { 0, PAGE_BYTES };

	return result(ioctl(file, BLKDISCARD, range));
}

static int do_code(void)
{
	return mmap(NULL, PAGE_BYTES, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
	       MAP_FAILED ? errno : 0;
}

static int do_make_code(void)
{
	return result(mprotect(page, PAGE_BYTES, PROT_READ | PROT_EXEC));
}

static int do_kill(void)
{
	return result(kill(getppid(), 0));
}

static int do_kill_other(void)
{
	return result(syscall(SYS_tgkill, getpid() + 1, getpid() + 1, SIGTERM));
}

static int do_trace(void)
{
	return result(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

static int do_become(void)
{
	return result(syscall(SYS_setuid, 0));
}

static int do_namespace(void)
{
	return result(syscall(SYS_unshare, 0x10000000));
}

static int do_raw_clone(void)
{
	return result(syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL));
}

static const struct {
	const char *what;
	enum kind kind;
	int (*function)(void);
	int error;		/* -N: killed by signal N */
} tests[] = {
	{ "the server reads what is open", SERVER, do_read, 0 },
	{ "the server talks to clients", SERVER, do_talk, 0 },
	{ "the server takes and gives back memory", SERVER, do_memory, 0 },
	{ "the server starts threads, which do the same", SERVER, do_threads, 0 },
	{ "the server logs", SERVER, do_log, 0 },
	{ "the server asks for a snapshot's state", SERVER, do_info, EBADF },
	{ "the server asks for maps", SERVER, do_extents, EBADF },
	{ "a server that may release asks for it", RELEASING_SERVER, do_release, EBADF },
	{ "the server can end itself", SERVER, do_abort, -SIGABRT },
	{ "opening a file is refused", SERVER, do_open, EACCES },
	{ "opening a device is refused", SERVER, do_open_device, EACCES },
	{ "letting others look in is refused", SERVER, do_prctl, EPERM },
	{ "a release where none is offered", SERVER, do_release, -SIGSYS },
	{ "a socket", SERVER, do_socket, -SIGSYS },
	{ "a socket of a thread", SERVER, do_socket_in_thread, -SIGSYS },
	{ "a connection", SERVER, do_connect, -SIGSYS },
	{ "another program", SERVER, do_exec, -SIGSYS },
	{ "another process", SERVER, do_fork, -SIGSYS },
	{ "another process, without the C library", SERVER, do_raw_clone, -SIGSYS },
	{ "removing a file", SERVER, do_unlink, -SIGSYS },
	{ "changing a file's mode", SERVER, do_chmod, -SIGSYS },
	{ "writing into a file", SERVER, do_write_file, -SIGSYS },
	{ "a discard", SERVER, do_discard, -SIGSYS },
	{ "memory with code", SERVER, do_code, -SIGSYS },
	{ "making code of memory", SERVER, do_make_code, -SIGSYS },
	{ "a signal", SERVER, do_kill, -SIGSYS },
	{ "a signal to another process's thread", SERVER, do_kill_other, -SIGSYS },
	{ "tracing", SERVER, do_trace, -SIGSYS },
	{ "another user", SERVER, do_become, -SIGSYS },
	{ "a namespace", SERVER, do_namespace, -SIGSYS },
	{ "a server that may release, but discards", RELEASING_SERVER, do_discard, -SIGSYS },
	{ "the janitor removes files", JANITOR, do_unlink, ENOENT },
	{ "the janitor logs", JANITOR, do_log, 0 },
	{ "the janitor: opening a file", JANITOR, do_open, -SIGSYS },
	{ "the janitor: a socket", JANITOR, do_socket, -SIGSYS },
	{ "the janitor: another program", JANITOR, do_exec, -SIGSYS },
	{ "the janitor: a thread", JANITOR, do_threads, -SIGSYS },
	{ "the janitor: a release", JANITOR, do_release, -SIGSYS },
};

static void child(size_t i)
{
	const struct rlimit none = { 0, 0 };
	int ret;

	setrlimit(RLIMIT_CORE, &none);
	if (privileges_drop(NULL, 0))
		_exit(255);
	if (tests[i].kind == JANITOR)
		ret = sandbox_enter_janitor();
	else
		ret = sandbox_enter_server(tests[i].kind == RELEASING_SERVER);
	_exit(ret ? 254 : tests[i].function());
}

static int outcome(size_t i)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		child(i);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 253;
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	int failures = 0, got;
	size_t i;

	if (argc != 2)
		return 2;
	victim = argv[1];
	file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file < 0 || page == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		got = outcome(i);
		failures += got != tests[i].error;
		printf("%s %zu - %s: %s (found %d, expected %d)\n",
		       got == tests[i].error ? "ok" : "not ok", i + 1, tests[i].what,
		       tests[i].error < 0 ? "ends the process" : "as it should", got,
		       tests[i].error);
	}
	printf("1..%zu\n", i);
	return failures != 0;
}
