// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, window: owns the time in which origins are suspended and their
 * filesystems frozen, the root filesystem perhaps among them. In that time
 * this process must not need anything that could wait for a frozen filesystem:
 *
 * - Its memory is locked and its stack touched, so that no page has to be read.
 * - It allocates nothing, looks up no path, writes nothing, waits for nobody.
 *   The ioctls were made ready before; see fleece_dm_switch_run().
 * - Signals are blocked, so that nothing ends it half-way.
 *
 * What could still go wrong is left to a second process, the guardian, with
 * memory locked as well. It resumes the origins when this process dies (even
 * of SIGKILL) and when the limit passes, for instance because the lower device of one
 * does not answer.
 *
 * Both agree through one word of shared memory. It leaves RUNNING once:
 *
 *   RUNNING -> STARTED  by this process, after the last snapshot was started
 *   RUNNING -> LATE     by the guardian, before it resumes the first origin
 *
 * So if this process gets to STARTED, the guardian had resumed nothing before,
 * and all snapshots are of one moment. If it finds LATE, they may not be, and
 * the window has failed.
 */
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES		(128 << 10)
#define GUARD_STEP_MS		100

enum phase {
	RUNNING,
	STARTED,
	LATE,
};

/* The life pipe says "go" once, and by its end that this process is gone. */
struct guard {
	pid_t pid;
	atomic_int *phase;
	int life[2];
	int ready[2];
	int done;
	sigset_t old_mask;
	struct sigaction old_action;
};

static void ignore_signal(int number)
{
	(void)number;
}

/* Make the pages that the stack may need later exist now. */
static void __attribute__((noinline)) touch_stack(void)
{
	char room[STACK_BYTES];

	explicit_bzero(room, sizeof(room));
}

static int lock_memory(void)
{
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		return -errno;
	touch_stack();
	return 0;
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/*
 * A resume whose new table is refused drops that table and fails; the second
 * attempt then makes the old one live again. Resuming what is not suspended
 * changes nothing, but if a table is loaded it suspends for that, and so waits for
 * the very I/O that a window was given up for: the table goes first.
 */
static int resume_one(const struct window *window, size_t index, bool is_given_up)
{
	const struct fleece_dm_switch *resume = &window->resumes[index];
	int ret;

	if (is_given_up && window->clears)
		fleece_dm_switch_run(&window->clears[index]);
	ret = fleece_dm_switch_run(resume);
	if (ret)
		fleece_dm_switch_run(resume);
	return ret;
}

/* Backwards: thawing a filesystem writes to what its origin lies on. */
static void resume_all(const struct window *window, bool is_given_up)
{
	size_t i;

	for (i = window->origins; i > 0; i--)
		resume_one(window, i - 1, is_given_up);
}

/* In the guardian. */
static void watch(const struct guard *guard, const struct window *window, pid_t parent)
{
	struct pollfd polls[2] = {
		{ .fd = guard->done, .events = POLLIN },
		{ .fd = guard->life[0], .events = 0 },
	};
	int limit = (int)window->limit_ms;

	for (;;) {
		int expected = RUNNING;

		poll(polls, 2, limit);
		if (polls[0].revents)
			return;
		atomic_compare_exchange_strong(guard->phase, &expected, LATE);
		/* A suspend that waits for I/O gives up on a signal. */
		if (!polls[1].revents && getppid() == parent)
			kill(parent, SIGALRM);
		resume_all(window, atomic_load(guard->phase) == LATE);
		/* Gone: none of its ioctls is under way, these were the last resumes. */
		if (polls[1].revents)
			return;
		/* It may have suspended one more after we resumed it. */
		limit = GUARD_STEP_MS;
	}
}

/*
 * Who kills the process group, as timeout(1) does, all that is called fleece, or all of a
 * service, must not kill the guardian, too.
 */
static void stand_apart(void)
{
	/*
	 * The roots of control groups: where they are of the second version, and those of systemd
	 * where they are of the first, or of both.
	 */
	static const char *const roots[] = { "/sys/fs/cgroup/cgroup.procs",
					     "/sys/fs/cgroup/systemd/cgroup.procs",
					     "/sys/fs/cgroup/unified/cgroup.procs", NULL };
	const char *const *root;
	ssize_t moved;
	int fd;

	setsid();
	prctl(PR_SET_NAME, "origin-guardian", 0, 0, 0);
	for (root = roots; *root; root++) {
		fd = open(*root, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		/* Where it is not let, it stays. */
		moved = write(fd, "0", 1);
		(void)moved;
		close(fd);
	}
}

static void run_guardian(const struct guard *guard, const struct window *window, pid_t parent)
{
	char byte = 0;

	stand_apart();
	close(guard->life[1]);
	close(guard->ready[0]);
	if (lock_memory() || write(guard->ready[1], &byte, 1) != 1)
		_exit(1);
	if (read(guard->life[0], &byte, 1) == 1)
		watch(guard, window, parent);
	_exit(0);
}

static void block_signals(struct guard *guard)
{
	struct sigaction action = { .sa_handler = ignore_signal };
	sigset_t mask;

	/* Without SA_RESTART: it shall interrupt. */
	sigaction(SIGALRM, &action, &guard->old_action);
	sigfillset(&mask);
	sigdelset(&mask, SIGALRM);
	sigprocmask(SIG_SETMASK, &mask, &guard->old_mask);
}

static void unblock_signals(struct guard *guard)
{
	sigaction(SIGALRM, &guard->old_action, NULL);
	sigprocmask(SIG_SETMASK, &guard->old_mask, NULL);
}

static int open_guard(struct guard *guard)
{
	int ret;

	guard->phase = mmap(NULL, sizeof(*guard->phase), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (guard->phase == MAP_FAILED)
		return -errno;
	atomic_init(guard->phase, RUNNING);
	guard->done = eventfd(0, EFD_CLOEXEC);
	if (guard->done < 0) {
		ret = -errno;
		goto err_unmap;
	}
	if (pipe2(guard->life, O_CLOEXEC)) {
		ret = -errno;
		goto err_close_done;
	}
	if (pipe2(guard->ready, O_CLOEXEC)) {
		ret = -errno;
		goto err_close_life;
	}
	return 0;

err_close_life:
	close(guard->life[0]);
	close(guard->life[1]);
err_close_done:
	close(guard->done);
err_unmap:
	munmap(guard->phase, sizeof(*guard->phase));
	return ret;
}

/* Ends the guardian, which has nothing left to do, and frees what it used. */
static void stop_guard(struct guard *guard)
{
	uint64_t one = 1;

	if (write(guard->done, &one, sizeof(one)) < 0)
		kill(guard->pid, SIGKILL);
	close(guard->life[1]);
	while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(guard->life[0]);
	close(guard->ready[0]);
	close(guard->done);
	munmap(guard->phase, sizeof(*guard->phase));
}

static int start_guard(struct guard *guard, const struct window *window)
{
	pid_t parent = getpid();
	char byte = 0;
	int ret = open_guard(guard);

	if (ret)
		return ret;
	block_signals(guard);
	guard->pid = fork();
	if (guard->pid == 0)
		run_guardian(guard, window, parent);
	if (guard->pid < 0) {
		ret = -errno;
		close(guard->ready[0]);
		close(guard->ready[1]);
		close(guard->life[0]);
		close(guard->life[1]);
		close(guard->done);
		munmap(guard->phase, sizeof(*guard->phase));
		unblock_signals(guard);
		return ret;
	}
	close(guard->ready[1]);
	/* After fork(), which makes locked pages shared and so to be copied on a write. */
	ret = lock_memory();
	if (!ret && read(guard->ready[0], &byte, 1) != 1)
		ret = -ENOMEM;
	if (!ret && write(guard->life[1], &byte, 1) != 1)
		ret = -EPIPE;
	if (ret) {
		stop_guard(guard);
		munlockall();
		unblock_signals(guard);
	}
	return ret;
}

static int fail(struct window_result *result, enum window_step step, size_t index, int error)
{
	result->step = step;
	result->index = index;
	return error;
}

static int suspend_all(const struct guard *guard, const struct window *window,
		       struct window_result *result)
{
	size_t i;
	int ret;

	for (i = 0; i < window->origins; i++) {
		ret = fleece_dm_switch_run(&window->suspends[i]);
		if (atomic_load(guard->phase) != RUNNING)
			return fail(result, WINDOW_LATE, i, -ETIMEDOUT);
		if (ret)
			return fail(result, WINDOW_SUSPEND, i, ret);
	}
	return 0;
}

static int start_all(const struct guard *guard, const struct window *window,
		     struct window_result *result)
{
	int expected = RUNNING;
	size_t i;
	int ret;

	for (i = 0; i < window->snapshots; i++) {
		ret = fleece_dm_switch_run(&window->starts[i]);
		if (ret)
			return fail(result, WINDOW_START, i, ret);
	}
	if (!atomic_compare_exchange_strong(guard->phase, &expected, STARTED))
		return fail(result, WINDOW_LATE, 0, -ETIMEDOUT);
	return 0;
}

int window_run(const struct window *window, struct window_result *result)
{
	struct guard guard;
	bool is_given_up;
	uint64_t start;
	size_t i;
	int ret, error;

	memset(result, 0, sizeof(*result));
	ret = start_guard(&guard, window);
	if (ret)
		return fail(result, WINDOW_PREPARE, 0, ret);

	/* From here to the last resume: only what the head of this file allows. */
	start = now_us();
	ret = suspend_all(&guard, window, result);
	if (!ret)
		ret = start_all(&guard, window, result);
	is_given_up = ret;
	for (i = window->origins; i > 0; i--) {
		error = resume_one(window, i - 1, is_given_up);
		if (error && !ret)
			ret = fail(result, WINDOW_RESUME, i - 1, error);
	}
	result->frozen_us = now_us() - start;

	stop_guard(&guard);
	munlockall();
	unblock_signals(&guard);
	return ret;
}

enum status window_report(int error, const struct window_result *result,
			  const char *const *origins, const char *const *snapshots)
{
	switch (result->step) {
	case WINDOW_PREPARE:
		return report_errno(error, NULL, "cannot get ready to suspend");
	case WINDOW_SUSPEND:
		/* Newer kernels freeze it once more. */
		if (error == -EBUSY)
			return report(BUSY, origins[result->index],
				      "cannot suspend it: its filesystem is frozen; 'fsfreeze --unfreeze' ends that");
		return report_errno(error, origins[result->index], "cannot suspend it");
	case WINDOW_START:
		if (error == -ENOENT || error == -ESTALE)
			return report(NO_CHECKPOINT, snapshots[result->index],
				      "its checkpoint was deleted, or became invalid, at the last moment; a full backup is needed");
		if (error == -ENOSPC)
			return report(FAILED, snapshots[result->index],
				      "its origin has room for no more checkpoints: 'fleece checkpoint delete' makes some");
		return report_errno(error, snapshots[result->index],
				    "cannot start it; the kernel log may say more");
	case WINDOW_LATE:
		return report(FAILED, origins[result->index],
			      "could not be suspended in time, everything was resumed; is one filesystem in a file of another, or its disk slow? try --freeze-timeout");
	case WINDOW_RESUME:
		break;
	}
	return report_errno(error, origins[result->index], "cannot resume it");
}

int window_limit_parse(const char *text, unsigned int *limit_ms)
{
	char *end;
	unsigned long seconds = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !seconds || seconds > 3600)
		return -EINVAL;
	*limit_ms = (unsigned int)seconds * 1000;
	return 0;
}
