// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, sandbox: builds and installs the filters. What is allowed is what the
 * code after the filter calls, and what the C library calls on its behalf.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/dm-fleece.h>

#include "log.h"

/* Memory, locks, clocks and the end of threads: the C library; and the log. */
static const char *const common_calls[] = {
	"brk", "clock_gettime", "clock_gettime64", "close", "exit", "exit_group", "futex",
	"futex_time64", "getpid", "getrandom", "gettid", "gettimeofday", "madvise", "mremap",
	"munmap", "poll", "ppoll", "ppoll_time64", "read", "restart_syscall", "rt_sigprocmask",
	"rt_sigreturn", "sched_yield", "time", "write", NULL,
};

static const char *const server_calls[] = {
	/* clients */
	"accept4", "getsockopt", "setsockopt", "readv", "shutdown", "writev",
	/* devices and files that are open already */
	"fadvise64", "fadvise64_64", "arm_fadvise64_64", "pread64", "preadv", "preadv2",
	/* threads, and how the C library shares memory between them */
	"getcpu", "rseq", "rt_sigaction", "sched_getaffinity", "set_robust_list", "sysinfo",
	"clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "eventfd2", NULL,
};

static const char *const janitor_calls[] = {
	"fstatat64", "lstat", "lstat64", "newfstatat", "statx", "unlink", "unlinkat", NULL,
};

/*
 * Names that this library does not have need no rule. A negative number stands for a system
 * call that this machine does not have (a rule for it may be refused), but also for one that
 * it has on its own and as a part of socketcall().
 */
static int add_rule(scmp_filter_ctx filter, uint32_t action, const char *name, unsigned int count,
		    const struct scmp_arg_cmp *arguments)
{
	int number = seccomp_syscall_resolve_name(name), ret;

	if (number == __NR_SCMP_ERROR)
		return 0;
	ret = seccomp_rule_add_array(filter, action, number, count, arguments);
	return number < 0 && ret == -EDOM ? 0 : ret;
}

static int allow(scmp_filter_ctx filter, const char *name, unsigned int count,
		 const struct scmp_arg_cmp *arguments)
{
	return add_rule(filter, SCMP_ACT_ALLOW, name, count, arguments);
}

static int allow_all(scmp_filter_ctx filter, const char *const *names)
{
	int ret = 0;

	for (; !ret && *names; names++)
		ret = allow(filter, *names, 0, NULL);
	return ret;
}

static int allow_if(scmp_filter_ctx filter, const char *name, unsigned int argument,
		    uint64_t mask, uint64_t value)
{
	struct scmp_arg_cmp compare = SCMP_CMP(argument, SCMP_CMP_MASKED_EQ, mask, value);

	return allow(filter, name, 1, &compare);
}

static int refuse(scmp_filter_ctx filter, const char *name, int error)
{
	return add_rule(filter, SCMP_ACT_ERRNO(error), name, 0, NULL);
}

/*
 * What libraries try, and do without when it fails: an old C library looks for
 * the number of CPUs, a new one falls back to clone(), whose flags can be seen.
 */
static int refuse_politely(scmp_filter_ctx filter)
{
	int ret = refuse(filter, "open", EACCES);

	if (!ret)
		ret = refuse(filter, "openat", EACCES);
	if (!ret)
		ret = refuse(filter, "clone3", ENOSYS);
	return ret ? ret : refuse(filter, "prctl", EPERM);
}

static int allow_memory(scmp_filter_ctx filter)
{
	int ret = allow_if(filter, "mmap", 2, PROT_EXEC, 0);

	if (!ret)
		ret = allow_if(filter, "mmap2", 2, PROT_EXEC, 0);
	return ret ? ret : allow_if(filter, "mprotect", 2, PROT_EXEC, 0);
}

static int allow_ioctl(scmp_filter_ctx filter, unsigned long request)
{
	return allow_if(filter, "ioctl", 1, UINT32_MAX, (uint32_t)request);
}

/* Of the system call. */
#ifdef __s390__
#define CLONE_FLAGS_ARGUMENT	1
#else
#define CLONE_FLAGS_ARGUMENT	0
#endif

static int allow_serving(scmp_filter_ctx filter, bool can_release)
{
	static const unsigned int file_commands[] = { F_GETFL, F_SETFL, F_DUPFD_CLOEXEC };
	int ret = allow_all(filter, server_calls);
	size_t i;

	for (i = 0; !ret && i < sizeof(file_commands) / sizeof(file_commands[0]); i++) {
		ret = allow_if(filter, "fcntl", 1, UINT32_MAX, file_commands[i]);
		if (!ret)
			ret = allow_if(filter, "fcntl64", 1, UINT32_MAX, file_commands[i]);
	}
	if (!ret)
		ret = allow_if(filter, "clone", CLONE_FLAGS_ARGUMENT, CLONE_THREAD, CLONE_THREAD);
	/* abort() */
	if (!ret)
		ret = allow_if(filter, "tgkill", 0, UINT32_MAX, getpid());
	if (!ret)
		ret = allow_ioctl(filter, FLEECE_IOC_INFO);
	if (!ret)
		ret = allow_ioctl(filter, FLEECE_IOC_EXTENTS);
	if (!ret && can_release)
		ret = allow_ioctl(filter, FLEECE_IOC_RELEASE);
	return ret;
}

static scmp_filter_ctx create(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);

	if (!filter)
		return NULL;
	seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* No foreign code runs here that the CPU would have to be slowed down for. */
	seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
	seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	return filter;
}

static int install(scmp_filter_ctx filter, int ret)
{
	if (!ret)
		ret = seccomp_load(filter);
	seccomp_release(filter);
	if (ret)
		log_error("cannot restrict system calls: %s (--no-sandbox does without)",
			  strerror(-ret));
	return ret;
}

int sandbox_enter_server(bool can_release)
{
	scmp_filter_ctx filter = create();
	int ret = filter ? allow_all(filter, common_calls) : -ENOMEM;

	if (!ret)
		ret = allow_memory(filter);
	if (!ret)
		ret = refuse_politely(filter);
	if (!ret)
		ret = allow_serving(filter, can_release);
	return install(filter, ret);
}

int sandbox_enter_janitor(void)
{
	scmp_filter_ctx filter = create();
	int ret = filter ? allow_all(filter, common_calls) : -ENOMEM;

	if (!ret)
		ret = allow_memory(filter);
	if (!ret)
		ret = allow_all(filter, janitor_calls);
	return install(filter, ret);
}
