// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, target: see target.h. The lock on the file that is written keeps
 * a second pull away; on a block device the kernel does, which also refuses one
 * that is mounted or part of another device. It is on a byte that no file has: on
 * a network a lock of all bytes would keep QEMU away as well, which makes and opens
 * images for us and has locks of its own.
 */
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX		".partial"
#define COMPLETE_SUFFIX	".complete"
/* Zeroes are looked for, and left out, in units of this. */
#define BLOCK_BYTES	4096U
/* Far behind the data. */
#define LOCKED_BYTE	(INT64_C(1) << 62)
#define ZEROES_BYTES	(64U << 10)

/* @type: F_WRLCK for who writes, F_RDLCK. The descriptor must be open for the same. */
static int lock(int fd, short type)
{
	struct flock where = {
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = LOCKED_BYTE,
		.l_len = 1,
	};

	return fcntl(fd, F_OFD_SETLK, &where) ? -errno : 0;
}

static enum status report_lock(int error, const char *path)
{
	if (error == -EAGAIN || error == -EACCES)
		return report(BUSY, path, "is being written by somebody else");
	return report_errno(error, path, "cannot lock it");
}

/* Is the locked file still the one of that name, and not renamed by who had it before? */
static bool is_still_there(int fd, int directory_fd, const char *name, int flags)
{
	struct stat mine, there;

	return !fstat(fd, &mine) && !fstatat(directory_fd, name, &there, flags) &&
	       mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;
}

static enum status lock_target(const struct target *target, int fd, short type)
{
	int ret = lock(fd, type);

	if (ret)
		return report_lock(ret, target->path);
	if (!is_still_there(fd, AT_FDCWD, target->path, 0))
		return report(BUSY, target->path, "somebody else has just replaced it");
	return DONE;
}

/* Left by a pull of ours that was killed; nobody else may read what it is to hold. */
static bool may_adopt(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
	       st.st_nlink == 1 && !fchmod(fd, 0600);
}

/* Later its path may lead elsewhere, and it may be too late to learn that it cannot. */
static enum status open_directory(struct target *target)
{
	const char *slash = strrchr(target->path, '/');
	char path[PATH_MAX] = ".";

	target->name_at = slash ? (size_t)(slash - target->path) + 1 : 0;
	if (slash)
		snprintf(path, sizeof(path), "%.*s", (int)target->name_at, target->path);
	target->directory_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return target->directory_fd < 0 ?
		       report_errno(errno, target->path, "cannot open its directory") : DONE;
}

/* An incremental pull may be writing to it. */
static enum status lock_replaced(struct target *target)
{
	int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
	short type = F_WRLCK;

	/* Who may replace a file need not be allowed to write to it. */
	target->replaced_fd = open(target->path, flags | O_WRONLY);
	if (target->replaced_fd < 0 && errno == EACCES) {
		target->replaced_fd = open(target->path, flags | O_RDONLY);
		type = F_RDLCK;
	}
	if (target->replaced_fd < 0)
		return report_errno(errno, target->path, "cannot lock it");
	return lock_target(target, target->replaced_fd, type);
}

static enum status create_partial(struct target *target)
{
	const char *name = target->partial + target->name_at;
	int flags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;

	if (!strncmp(target->path, "/dev/", 5) && strncmp(target->path, "/dev/shm/", 9))
		return report(NO_DEVICE, target->path,
			      "is not there, and a file in /dev would be gone after a reboot");
	/* Only its owner: it is going to hold what only root can read on the device. */
	target->fd = openat(target->directory_fd, name, flags | O_CREAT | O_EXCL, 0600);
	if (target->fd >= 0)
		return DONE;
	if (errno != EEXIST)
		return report_errno(errno, target->partial, "cannot create it");
	target->fd = openat(target->directory_fd, name, flags);
	if (target->fd < 0 || !may_adopt(target->fd))
		return report(BUSY, target->partial,
			      "exists already, and is not what a pull of this user left; remove it if nobody is writing it");
	return DONE;
}

/* A device may get a new node, and is the same one. */
static bool is_replaced(const struct target *target)
{
	struct stat st;

	return !fstat(target->fd, &st) && S_ISREG(st.st_mode) &&
	       !is_still_there(target->fd, AT_FDCWD, target->path, 0);
}

static void remove_partial(const struct target *target)
{
	unlinkat(target->directory_fd, target->partial + target->name_at, 0);
}

/* What a pull that was killed has left is of no use. */
static enum status begin_raw(struct target *target, uint64_t size)
{
	if (ftruncate(target->fd, 0) || ftruncate(target->fd, (off_t)size))
		return report_errno(errno, target->partial, "cannot give it %llu bytes",
				    (unsigned long long)size);
	target->is_empty = true;
	return DONE;
}

/* Nobody may write to what shows through while the image above it is made. */
static enum status open_backing(struct target *target, const struct target_how *how, char *path)
{
	struct nbd_handle *image;
	enum status status;
	int ret;

	if (!realpath(how->backing, path))
		return report_errno(errno, how->backing, "cannot find it");
	target->backing_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (target->backing_fd < 0)
		return report_errno(errno, path, "cannot open it");
	ret = lock(target->backing_fd, F_RDLCK);
	if (ret)
		return report_lock(ret, path);
	status = qcow2_open(&image, target->backing_fd, path, how->size,
			    qcow2_format_of(path), false);
	if (status == DONE)
		qcow2_close(image);
	return status;
}

static enum status begin_qcow2(struct target *target, const struct target_how *how)
{
	char backing[PATH_MAX];
	enum status status = DONE;

	if (how->backing)
		status = open_backing(target, how, backing);
	if (status == DONE)
		status = qcow2_create(target->fd, target->partial, how->size,
				      how->backing ? backing : NULL);
	if (status == DONE)
		status = qcow2_open(&target->image, target->fd, target->partial, how->size,
				    QCOW2_FORMAT, true);
	target->is_empty = !how->backing;
	return status;
}

static enum status open_partial(struct target *target, const struct target_how *how)
{
	enum status status;
	int ret;

	if (snprintf(target->partial, sizeof(target->partial), "%s" SUFFIX, target->path) >=
	    (int)sizeof(target->partial))
		return report(FAILED, target->path, "its name is too long");
	status = open_directory(target);
	if (status == DONE)
		status = create_partial(target);
	if (status != DONE)
		return status;
	ret = lock(target->fd, F_WRLCK);
	if (ret)
		return report_lock(ret, target->partial);
	if (!is_still_there(target->fd, target->directory_fd, target->partial + target->name_at,
			    AT_SYMLINK_NOFOLLOW))
		return report(BUSY, target->path, "somebody else has just written it");
	status = how->is_qcow2 ? begin_qcow2(target, how) : begin_raw(target, how->size);
	if (status != DONE)
		remove_partial(target);
	return status;
}

static enum status open_qcow2(struct target *target, const struct target_how *how)
{
	enum status status = lock_target(target, target->fd, F_WRLCK);

	if (status != DONE)
		return status;
	if (!qcow2_is_image(target->fd))
		return report(FAILED, target->path, "is not a qcow2 image");
	return qcow2_open(&target->image, target->fd, target->path, how->size, QCOW2_FORMAT, true);
}

static enum status open_file(struct target *target, const struct target_how *how)
{
	struct stat st;

	target->fd = open(target->path, (how->is_qcow2 ? O_RDWR : O_WRONLY) | O_CLOEXEC);
	if (target->fd < 0 || fstat(target->fd, &st))
		return report_errno(errno, target->path, "cannot open it");
	if (how->is_qcow2)
		return open_qcow2(target, how);
	if ((uint64_t)st.st_size != how->size)
		return report(FAILED, target->path,
			      "has %llu bytes, the export %llu: it is no raw image of it; if the device has grown since the backup, give the file its size with truncate(1)",
			      (unsigned long long)st.st_size, (unsigned long long)how->size);
	return lock_target(target, target->fd, F_WRLCK);
}

static enum status open_device(struct target *target, const struct target_how *how)
{
	off_t size;

	if (how->is_qcow2)
		return report(FAILED, target->path,
			      "is a block device; a qcow2 image is written to a file");
	/* O_EXCL: not if anything else uses it. */
	target->fd = open(target->path, O_WRONLY | O_EXCL | O_CLOEXEC);
	if (target->fd < 0)
		return report_errno(errno, target->path, "cannot open it");
	size = lseek(target->fd, 0, SEEK_END);
	if (size < 0)
		return report_errno(errno, target->path, "cannot learn its size");
	if ((uint64_t)size < how->size)
		return report(FAILED, target->path, "has %llu bytes, the export %llu",
			      (unsigned long long)size, (unsigned long long)how->size);
	return DONE;
}

static enum status open_existing(struct target *target, const struct target_how *how,
				 const struct stat *st)
{
	enum status status;

	if (S_ISBLK(st->st_mode))
		return open_device(target, how);
	if (!S_ISREG(st->st_mode))
		return report(FAILED, target->path, "is neither a file nor a block device");
	if (how->must_exist)
		return open_file(target, how);
	if (!how->replace)
		return report(BUSY, target->path,
			      "exists already; --replace replaces it once the new one is complete");
	status = lock_replaced(target);
	return status == DONE ? open_partial(target, how) : status;
}

static void close_target(struct target *target)
{
	int *const files[] = { &target->fd, &target->replaced_fd, &target->directory_fd,
			       &target->backing_fd };
	size_t i;

	if (target->image)
		qcow2_close(target->image);
	target->image = NULL;
	for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		if (*files[i] >= 0)
			close(*files[i]);
		*files[i] = -1;
	}
}

enum status target_open(struct target *target, const char *path, const struct target_how *how)
{
	enum status status;
	struct stat st;

	memset(target, 0, sizeof(*target));
	target->fd = -1;
	target->replaced_fd = -1;
	target->directory_fd = -1;
	target->backing_fd = -1;
	/* A link stays one: its file is replaced, not the link. */
	if (!realpath(path, target->path)) {
		if (errno != ENOENT)
			return report_errno(errno, path, "cannot find it");
		if (snprintf(target->path, sizeof(target->path), "%s", path) >=
		    (int)sizeof(target->path))
			return report_errno(ENAMETOOLONG, path, "cannot find it");
		/* In the end the name would turn out to be taken. */
		if (!lstat(path, &st))
			return report(NO_DEVICE, path, "is a link to what is not there");
	}
	if (!stat(target->path, &st))
		status = open_existing(target, how, &st);
	else if (errno != ENOENT || how->must_exist)
		status = report_errno(errno, target->path, "cannot find the earlier backup");
	else
		status = open_partial(target, how);
	if (status != DONE)
		close_target(target);
	return status;
}

static int write_all(int fd, const char *data, uint64_t length, uint64_t offset)
{
	while (length) {
		ssize_t n = pwrite(fd, data, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		data += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

int target_zero(const struct target *target, uint64_t length, uint64_t offset)
{
	static const char zeroes[ZEROES_BYTES];
	uint64_t part;
	int ret = 0;

	if (target->is_empty)
		return 0;
	if (target->image)
		return qcow2_zero(target->image, length, offset);
	/* On a block device, too, what was punched reads as zeroes, or it fails. */
	if (!fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		       (off_t)length))
		return 0;
	for (; length && !ret; length -= part, offset += part) {
		part = length < sizeof(zeroes) ? length : sizeof(zeroes);
		ret = write_all(target->fd, zeroes, part, offset);
	}
	return ret;
}

static int write_data(const struct target *target, const char *data, uint64_t length,
		      uint64_t offset)
{
	if (target->image)
		return qcow2_write(target->image, data, length, offset);
	return write_all(target->fd, data, length, offset);
}

static bool is_zero(const char *data, uint64_t length)
{
	return !data[0] && !memcmp(data, data + 1, length - 1);
}

static uint64_t block_at(uint64_t left)
{
	return left < BLOCK_BYTES ? left : BLOCK_BYTES;
}

int target_write(const struct target *target, const char *data, uint64_t length,
		 uint64_t offset)
{
	uint64_t start = 0, end;
	bool zero;
	int ret = 0;

	while (start < length && !ret) {
		end = start + block_at(length - start);
		zero = is_zero(data + start, end - start);
		while (end < length && is_zero(data + end, block_at(length - end)) == zero)
			end += block_at(length - end);
		ret = zero ? target_zero(target, end - start, offset + start) :
			     write_data(target, data + start, end - start, offset + start);
		start = end;
	}
	return ret;
}

/* The name of a file is durable when its directory is. */
static int sync_directory(int directory_fd)
{
	/* Some filesystems have no such thing for directories. */
	return fsync(directory_fd) && errno != EINVAL ? -errno : 0;
}

/* What takes the name first is empty, for a moment. */
static int rename_reserved(int directory_fd, const char *from, const char *to)
{
	int file = openat(directory_fd, to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret = 0;

	if (file < 0)
		return -errno;
	close(file);
	if (renameat(directory_fd, from, directory_fd, to)) {
		ret = -errno;
		unlinkat(directory_fd, to, 0);
	}
	return ret;
}

/* A file that has appeared meanwhile is not replaced, whatever the filesystem can do. */
static int rename_new(int directory_fd, const char *from, const char *to)
{
	if (!renameat2(directory_fd, from, directory_fd, to, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	if (!linkat(directory_fd, from, directory_fd, to, 0))
		return unlinkat(directory_fd, from, 0) ? -errno : 0;
	if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	return rename_reserved(directory_fd, from, to);
}

static enum status give_name(const struct target *target)
{
	const char *from = target->partial + target->name_at, *to = target->path + target->name_at;
	int ret;

	/* Only what was there is replaced, and not what has taken its place since. */
	if (target->replaced_fd >= 0 &&
	    is_still_there(target->replaced_fd, target->directory_fd, to, AT_SYMLINK_NOFOLLOW))
		ret = renameat(target->directory_fd, from, target->directory_fd, to) ? -errno : 0;
	else
		ret = rename_new(target->directory_fd, from, to);
	if (ret == -EEXIST)
		return report(BUSY, target->path, "was %s by somebody else meanwhile",
			      target->replaced_fd < 0 ? "made" : "replaced");
	return ret ? report_errno(ret, target->partial, "cannot rename it to %s", target->path) :
		     DONE;
}

/*
 * Without its name it may still be the only backup there is: what was read may have been
 * released. The next pull takes what is called partial for its own.
 */
static void keep_complete(const struct target *target)
{
	char name[sizeof(target->partial) + sizeof(COMPLETE_SUFFIX)];
	const char *from = target->partial;

	snprintf(name, sizeof(name), "%s" COMPLETE_SUFFIX, target->path);
	if (!rename_new(target->directory_fd, from + target->name_at, name + target->name_at))
		from = name;
	report_note(from, "is the complete backup; give it another name");
}

/* The file has all of it then. */
static int close_image(struct target *target)
{
	int ret = 0;

	if (target->image) {
		ret = qcow2_flush(target->image);
		qcow2_close(target->image);
		target->image = NULL;
	}
	return ret;
}

enum status target_finish(struct target *target)
{
	enum status status = DONE;
	int ret;

	if (!target->partial[0] && is_replaced(target)) {
		close_target(target);
		return report(BUSY, target->path, "was replaced by somebody else meanwhile");
	}
	ret = close_image(target);
	if (!ret && fsync(target->fd))
		ret = -errno;
	if (ret) {
		report_errno(ret, target->path, "cannot make it durable");
		target_abandon(target);
		return FAILED;
	}
	if (target->partial[0])
		status = give_name(target);
	if (status != DONE) {
		keep_complete(target);
		close_target(target);
		return status == BUSY ? BUSY : FAILED;
	}
	ret = target->partial[0] ? sync_directory(target->directory_fd) : 0;
	if (ret)
		status = report_errno(ret, target->path, "its name may not be durable");
	close_target(target);
	return status;
}

void target_abandon(struct target *target)
{
	if (target->partial[0])
		remove_partial(target);
	else
		report_note(target->path,
			    "is incomplete now, part old and part new; pull again before you use it");
	close_target(target);
}
