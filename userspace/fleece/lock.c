// SPDX-License-Identifier: GPL-2.0-only
/* fleece, lock: see lock.h. The file stays; what counts is who holds the lock on it. */
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "process.h"

#define LOCK_FILE	RUN_DIR "/lock"

static int lock_fd = -1;

enum status lock_run_dir(void)
{
	if (mkdir(RUN_DIR, 0755)) {
		if (errno != EEXIST)
			return report_other(report_errno(errno, NULL, "cannot make " RUN_DIR));
	} else if (chmod(RUN_DIR, 0755)) {
		/* Whatever the umask: clients of the servers have to get to their sockets. */
		return report_errno(errno, NULL, "cannot set the mode of " RUN_DIR);
	}
	return DONE;
}

/* With signals held, one that comes would not end the wait; and it may come before that. */
static int wait_for_lock(void)
{
	const struct timespec pause = { .tv_nsec = 100000000 };

	if (!process_holds_signals())
		return flock(lock_fd, LOCK_EX);
	while (!process_is_asked_to_end()) {
		if (!flock(lock_fd, LOCK_EX | LOCK_NB))
			return 0;
		if (errno != EWOULDBLOCK)
			return -1;
		nanosleep(&pause, NULL);
	}
	errno = EINTR;
	return -1;
}

enum status lock_changes(void)
{
	enum status status = lock_run_dir();

	if (status != DONE)
		return status;
	lock_fd = open(LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (lock_fd < 0)
		return report_errno(errno, NULL, "cannot open " LOCK_FILE);
	if (!flock(lock_fd, LOCK_EX | LOCK_NB))
		return DONE;
	if (errno == EWOULDBLOCK) {
		fprintf(stderr, "fleece: waiting for another command that holds " LOCK_FILE "\n");
		if (!wait_for_lock())
			return DONE;
	}
	return report_errno(errno, NULL, "cannot lock " LOCK_FILE);
}

void lock_release(void)
{
	close(lock_fd);
	lock_fd = -1;
}
