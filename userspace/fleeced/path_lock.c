// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, path_lock: a lock that is a file beside another one. Who has it removes it, so
 * that a lock counts only as long as its file is the one at the path.
 */
#include "path_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* How often to try, and how long to wait in between: 10 seconds in all. */
#define TRIES	500
#define TRY_US	20000

static int name_lock(const char *path, char *name, size_t size)
{
	int n = snprintf(name, size, "%s.lock", path);

	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static bool is_at(int file, const char *path)
{
	struct stat opened, found;

	return !fstat(file, &opened) && !lstat(path, &found) &&
	       opened.st_dev == found.st_dev && opened.st_ino == found.st_ino;
}

int path_lock(const char *path)
{
	char name[PATH_MAX];
	int ret = name_lock(path, name, sizeof(name));
	unsigned int tries = TRIES;
	int file;

	if (ret)
		return ret;
	do {
		file = open(name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (file < 0)
			return -errno;
		while (flock(file, LOCK_EX | LOCK_NB) && tries) {
			usleep(TRY_US);
			tries--;
		}
		if (tries && is_at(file, name))
			return file;
		close(file);
	} while (tries);
	return -EBUSY;
}

void path_unlock(int lock, const char *path)
{
	char name[PATH_MAX];

	if (!name_lock(path, name, sizeof(name)))
		unlink(name);
	close(lock);
}
