// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, backend_file: any block device or regular file, read-only. Has no
 * maps and nothing to release. Needs no lock: nothing but atomic flags changes
 * after opening.
 */
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <linux/fs.h>

#include "log.h"
#include "text.h"

#define PREFERRED_BYTES 4096

struct file_backend {
	struct backend base;
	const char *path;
	int file;
	atomic_bool is_error_logged;
	atomic_bool cannot_read_now;
};

static struct file_backend *to_file(struct backend *backend)
{
	return (struct file_backend *)backend;
}

/* -EPERM and the end of a file that shrank have no meaning of their own here. */
static int fail_read(struct file_backend *file, uint64_t offset, const char *why)
{
	if (!atomic_exchange(&file->is_error_logged, true))
		log_error("%s: cannot read at %llu: %s; further errors are only told to clients",
			  file->path, (unsigned long long)offset, why);
	return -EIO;
}

static int file_read(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	struct file_backend *file = to_file(backend);
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pread(file->file, (uint8_t *)buffer + done, length - done, offset + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail_read(file, offset + done,
					 n ? strerror(errno) : "it has become shorter");
		done += n;
	}
	return 0;
}

/* What the page cache has all of. Some filesystems cannot tell: those are asked once. */
static int file_read_now(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	struct iovec vector = { .iov_base = buffer, .iov_len = length };
	struct file_backend *file = to_file(backend);
	ssize_t n;

	if (atomic_load(&file->cannot_read_now))
		return -EAGAIN;
	n = preadv2(file->file, &vector, 1, offset, RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP)
		atomic_store(&file->cannot_read_now, true);
	return n == length ? 0 : -EAGAIN;
}

static void file_cache(struct backend *backend, uint64_t offset, uint32_t length)
{
	posix_fadvise(to_file(backend)->file, offset, length, POSIX_FADV_WILLNEED);
}

static int file_state(struct backend *backend, char *text, size_t size)
{
	(void)backend;
	if (size)
		*text = '\0';
	return 0;
}

static void file_close(struct backend *backend)
{
	close(to_file(backend)->file);
	free(to_file(backend));
}

static const struct backend_ops file_ops = {
	.read = file_read,
	.read_now = file_read_now,
	.cache = file_cache,
	.state = file_state,
	.close = file_close,
};

static int find_size(int file, const struct stat *status, uint64_t *size)
{
	if (S_ISBLK(status->st_mode))
		return ioctl(file, BLKGETSIZE64, size) < 0 ? -errno : 0;
	if (!S_ISREG(status->st_mode))
		return -ENOTBLK;
	*size = status->st_size;
	return 0;
}

static void find_name(struct backend *backend, const char *path, const struct stat *status)
{
	const char *base = strrchr(path, '/');
	char name[sizeof(backend->name)];

	base = base ? base + 1 : path;
	if (S_ISBLK(status->st_mode) &&
	    !backend_read_sysfs(status->st_rdev, "dm/name", name, sizeof(name)))
		base = name;
	if (strlen(base) < sizeof(backend->name) && text_is_export_name(base))
		snprintf(backend->name, sizeof(backend->name), "%s", base);
}

int backend_file_create(const char *path, int file, struct backend **backend)
{
	struct file_backend *created;
	struct stat status;
	char rotational[8];
	uint64_t size;
	int ret;

	if (fstat(file, &status))
		return -errno;
	ret = find_size(file, &status, &size);
	if (ret)
		return ret;
	created = calloc(1, sizeof(*created));
	if (!created)
		return -ENOMEM;
	created->base.ops = &file_ops;
	created->base.size = size;
	created->base.block = 1;
	created->base.preferred = PREFERRED_BYTES;
	created->path = path;
	created->file = file;
	find_name(&created->base, path, &status);
	if (S_ISBLK(status.st_mode) &&
	    !backend_read_sysfs(status.st_rdev, "queue/rotational", rotational, sizeof(rotational)))
		created->base.is_rotational = rotational[0] == '1';
	*backend = &created->base;
	return 0;
}
