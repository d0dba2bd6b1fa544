// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, qcow2: see qcow2.h. The programs are given the file as a descriptor of
 * this process, which each of them opens anew.
 */
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"

#define SUFFIX		".qcow2"
#define PACKAGE		"(package qemu-utils)"
#define SECTOR		512
#define NAME_BYTES	64
#define SIZE_BYTES	24

static void name_of(char *name, int fd)
{
	snprintf(name, NAME_BYTES, "/proc/%d/fd/%d", (int)getpid(), fd);
}

bool qcow2_is_name(const char *path)
{
	size_t length = strlen(path);

	return length > strlen(SUFFIX) && !strcmp(path + length - strlen(SUFFIX), SUFFIX);
}

bool qcow2_is_image(int fd)
{
	static const char magic[4] = { 'Q', 'F', 'I', '\xfb' };
	char head[sizeof(magic)];

	return pread(fd, head, sizeof(head), 0) == sizeof(head) &&
	       !memcmp(head, magic, sizeof(magic));
}

const char *qcow2_format_of(const char *path)
{
	return qcow2_is_name(path) ? QCOW2_FORMAT : RAW_FORMAT;
}

enum status qcow2_create(int fd, const char *path, uint64_t size, const char *backing)
{
	char name[NAME_BYTES], bytes[SIZE_BYTES], errors[512];
	const char *const argv[] = { "qemu-img", "create", "-q", "-f", QCOW2_FORMAT, name, bytes,
			       backing ? "-b" : NULL, backing, "-F",
			       backing ? qcow2_format_of(backing) : NULL, NULL };
	int ret;

	name_of(name, fd);
	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	ret = process_run(argv, errors, sizeof(errors));
	if (ret < 0)
		return report_other(report_errno(ret, path, "cannot run qemu-img " PACKAGE));
	return ret ? report(FAILED, path, "cannot make it a qcow2 image: %s", errors) : DONE;
}

static enum status report_image(const char *path, const char *what)
{
	return report(FAILED, path, "%s: %s", what, nbd_get_error());
}

static enum status check_size(struct nbd_handle *nbd, const char *path, uint64_t size)
{
	int64_t its = nbd_get_size(nbd);

	if (its < 0)
		return report_image(path, "cannot learn its size");
	/* The size of an image is a number of sectors. */
	if ((uint64_t)its == size || (uint64_t)its == (size + SECTOR - 1) / SECTOR * SECTOR)
		return DONE;
	return report(FAILED, path,
		      "is the image of a disk of %lld bytes, the export has %llu; if the device has grown since the backup, give it its size with 'qemu-img resize'",
		      (long long)its, (unsigned long long)size);
}

enum status qcow2_open(struct nbd_handle **image, int fd, const char *path, uint64_t size,
		       const char *format, bool is_written)
{
	char name[NAME_BYTES];
	char *const argv[] = { "qemu-nbd", "--format", (char *)format, "--discard=unmap", name,
			 is_written ? NULL : "--read-only", NULL };
	struct nbd_handle *nbd = nbd_create();
	enum status status;

	if (!nbd)
		return report_image(path, "cannot prepare");
	name_of(name, fd);
	if (nbd_connect_systemd_socket_activation(nbd, (char **)argv) < 0)
		status = report_image(path, "cannot open it with qemu-nbd " PACKAGE);
	else
		status = check_size(nbd, path, size);
	if (status == DONE)
		*image = nbd;
	else
		qcow2_close(nbd);
	return status;
}

static int result(int ret)
{
	int error = nbd_get_errno();

	if (ret >= 0)
		return 0;
	return error ? -error : -EIO;
}

int qcow2_write(struct nbd_handle *image, const char *data, uint64_t length, uint64_t offset)
{
	return result(nbd_pwrite(image, data, length, offset, 0));
}

int qcow2_zero(struct nbd_handle *image, uint64_t length, uint64_t offset)
{
	return result(nbd_zero(image, length, offset, 0));
}

int qcow2_flush(struct nbd_handle *image)
{
	return result(nbd_flush(image, 0));
}

void qcow2_close(struct nbd_handle *image)
{
	/* It may be gone already: an interrupt from the terminal ends it, too. */
	if (nbd_aio_is_ready(image) > 0)
		nbd_shutdown(image, 0);
	nbd_close(image);
}
