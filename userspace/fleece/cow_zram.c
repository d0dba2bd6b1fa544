// SPDX-License-Identifier: GPL-2.0-only
/* fleece, cow_zram: COW space in compressed RAM, made through zram's sysfs files. */
#include "cow_zram.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "process.h"

#define BUSY_STEP_MS	100
#define BUSY_MS		5000

static unsigned long long read_bytes(unsigned int number, const char *attribute,
				     const char *format)
{
	unsigned long long bytes = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/zram%u/%s", number, attribute);
	file = fopen(path, "re");
	if (!file)
		return 0;
	if (fscanf(file, format, &bytes) != 1)
		bytes = 0;
	fclose(file);
	return bytes;
}

/* What goes there comes out of the same memory. */
static bool is_swap(unsigned int number)
{
	FILE *file = fopen("/proc/swaps", "re");
	bool is_found = false;
	unsigned int other;
	char line[256];

	while (file && !is_found && fgets(line, sizeof(line), file))
		is_found = sscanf(line, "/dev/zram%u ", &other) == 1 && other == number;
	if (file)
		fclose(file);
	return is_found;
}

/* What all of these devices may still take, if what is written to them does not compress. */
static unsigned long long promised_bytes(void)
{
	unsigned long long sum = 0, size, used;
	DIR *blocks = opendir("/sys/block");
	struct dirent *entry;
	unsigned int number;

	while (blocks && (entry = readdir(blocks))) {
		if (sscanf(entry->d_name, "zram%u", &number) != 1 || is_swap(number))
			continue;
		size = read_bytes(number, "disksize", "%llu");
		/* The third field of mm_stat. */
		used = read_bytes(number, "mm_stat", "%*u %*u %llu");
		sum += size > used ? size - used : 0;
	}
	if (blocks)
		closedir(blocks);
	return sum;
}

/* Half of the memory that is available: a backup is no reason to swap. */
bool cow_zram_has_room(uint64_t bytes)
{
	unsigned long long promised = promised_bytes();
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	size_t room = 0;
	char *line = NULL;

	if (!file)
		return false;
	while (getline(&line, &room, file) > 0)
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	free(line);
	fclose(file);
	return bytes + promised <= kib * 1024 / 2;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* Add a zram device; returns its number or -errno. */
static int add_zram(void)
{
	char text[32] = "";
	ssize_t length;
	int fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT) {
		process_load_module("zram");
		fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0)
		return -errno;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	return length > 0 ? atoi(text) : -EIO;
}

/* A scanner that looks at each device is through in a moment. */
static int write_unless_busy(const char *path, const char *text)
{
	const struct timespec step = { .tv_nsec = BUSY_STEP_MS * 1000000L };
	int waited, ret;

	for (waited = 0; ; waited += BUSY_STEP_MS) {
		ret = write_text(path, text);
		if (ret != -EBUSY || waited >= BUSY_MS)
			return ret;
		nanosleep(&step, NULL);
	}
}

static int remove_zram(const char *disk)
{
	char path[64];
	int ret;

	snprintf(path, sizeof(path), "/sys/block/%s/reset", disk);
	ret = write_unless_busy(path, "1");
	if (ret)
		return ret;
	return write_unless_busy("/sys/class/zram-control/hot_remove", disk + strlen("zram"));
}

enum status cow_zram_make(const struct cow_request *request, const char *snapshot,
			  struct cow *cow)
{
	char path[64], disk[32], size[32];
	int number = add_zram();
	int ret;

	if (number < 0)
		return report_other(report_errno(number, snapshot, "cannot make a zram device"));
	snprintf(disk, sizeof(disk), "zram%d", number);
	snprintf(path, sizeof(path), "/sys/block/%s/disksize", disk);
	snprintf(size, sizeof(size), "%llu", (unsigned long long)request->bytes);
	ret = write_text(path, size);
	if (ret) {
		/* Busy: somebody else has put it to use before us. */
		if (ret != -EBUSY)
			remove_zram(disk);
		return report_errno(ret, snapshot, "cannot set the size of %s", disk);
	}
	snprintf(cow->path, sizeof(cow->path), "/dev/%s", disk);
	cow->kind = COW_ZRAM;
	return DONE;
}

enum status cow_zram_free(dev_t devno, const char *snapshot)
{
	char path[PATH_MAX];
	const char *disk;
	int ret;

	device_path(path, sizeof(path), devno);
	disk = strrchr(path, '/');
	if (!disk || !device_has_prefix(disk + 1, "zram"))
		return DONE;
	ret = remove_zram(disk + 1);
	return ret ? report_errno(ret, snapshot, "cannot remove %s", disk + 1) : DONE;
}
