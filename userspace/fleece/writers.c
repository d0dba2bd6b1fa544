// SPDX-License-Identifier: GPL-2.0-only
/* fleece, writers: see writers.h. */
#include "writers.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* Whoever only asks a disk how it is, as smartd does, opens it for writing as well. */
#define PATIENCE_STEP_MS	100
#define PATIENCE_MS		2000

static bool find_in_sysfs(dev_t devno, char path[PATH_MAX])
{
	char link[64];

	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(devno), minor(devno));
	return realpath(link, path);
}

static bool is_below(const char *path, const char *above)
{
	size_t length = strlen(above);

	return !strncmp(path, above, length) && path[length] == '/';
}

/*
 * In sysfs a partition is below its disk. Of two partitions neither is written through the
 * other.
 */
static bool is_same(dev_t devno, dev_t other)
{
	char path[PATH_MAX], other_path[PATH_MAX];

	if (devno == other)
		return true;
	return find_in_sysfs(devno, path) && find_in_sysfs(other, other_path) &&
	       (is_below(path, other_path) || is_below(other_path, path));
}

static bool is_for_writing(int process, const char *number)
{
	char path[64], line[128];
	unsigned int flags = 0;
	FILE *file;
	int fd;

	snprintf(path, sizeof(path), "fdinfo/%.16s", number);
	fd = openat(process, path, O_RDONLY | O_CLOEXEC);
	file = fd < 0 ? NULL : fdopen(fd, "r");
	if (!file) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	fclose(file);
	return (flags & O_ACCMODE) != O_RDONLY;
}

/* Has the process of this directory in /proc the device open? */
static bool writes(int process, dev_t devno)
{
	int fd = openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	bool is_found = false;
	struct stat st;

	if (!directory) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!is_found && (entry = readdir(directory)))
		is_found = isdigit((unsigned char)entry->d_name[0]) &&
			   !fstatat(dirfd(directory), entry->d_name, &st, 0) &&
			   S_ISBLK(st.st_mode) && is_same(devno, st.st_rdev) &&
			   is_for_writing(process, entry->d_name);
	closedir(directory);
	return is_found;
}

static void describe(int process, const char *pid, char who[WRITER_TEXT])
{
	char name[17] = "?";
	ssize_t length = -1;
	int fd = openat(process, "comm", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		length = read(fd, name, sizeof(name) - 1);
		close(fd);
	}
	if (length > 0)
		name[length - (name[length - 1] == '\n')] = '\0';
	snprintf(who, WRITER_TEXT, "%s (pid %.16s)", name, pid);
}

static bool find_now(dev_t devno, char who[WRITER_TEXT])
{
	DIR *processes = opendir("/proc");
	bool is_found = false;
	struct dirent *entry;
	int process;

	while (processes && !is_found && (entry = readdir(processes))) {
		if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
			continue;
		process = openat(dirfd(processes), entry->d_name,
				 O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (process < 0)
			continue;
		is_found = writes(process, devno);
		if (is_found)
			describe(process, entry->d_name, who);
		close(process);
	}
	if (processes)
		closedir(processes);
	return is_found;
}

bool writers_find(dev_t devno, char who[WRITER_TEXT])
{
	const struct timespec step = { .tv_nsec = PATIENCE_STEP_MS * 1000000L };
	int waited;

	for (waited = 0; find_now(devno, who); waited += PATIENCE_STEP_MS) {
		if (waited >= PATIENCE_MS)
			return true;
		nanosleep(&step, NULL);
	}
	return false;
}
