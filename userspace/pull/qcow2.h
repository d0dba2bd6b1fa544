/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece-pull, qcow2: images written through qemu-nbd, which knows their format.
 *
 * The image is always a file that the caller has open and goes on to own: its name, its
 * lock and its end are the caller's, and neither program is given a name that it could
 * take for something else.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_PULL_QCOW2_H
#define FLEECE_PULL_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

#include "report.h"

/* How QEMU calls the formats. */
#define QCOW2_FORMAT	"qcow2"
#define RAW_FORMAT	"raw"

/**
 * qcow2_is_name() - is a file of this name taken for a qcow2 image?
 * @path: its name.
 *
 * Its content is no proof: a raw image begins with what the owner of the disk wrote.
 *
 * Return: true when it ends in ".qcow2".
 */
bool qcow2_is_name(const char *path);

/**
 * qcow2_format_of() - what QEMU calls the format that the name of an image tells
 * @path: its name.
 *
 * Return: QCOW2_FORMAT or RAW_FORMAT, as qcow2_is_name().
 */
const char *qcow2_format_of(const char *path);

/**
 * qcow2_is_image() - does the file begin as a qcow2 image does?
 * @fd: the file, open for reading.
 *
 * The magic is from docs/interop/qcow2.txt of QEMU.
 *
 * Return: false also when it cannot be read.
 */
bool qcow2_is_image(int fd);

/**
 * qcow2_create() - make the file an empty image
 * @fd: the file, open for writing; what it holds is lost.
 * @path: its name, for messages.
 * @size: bytes of the disk.
 * @backing: absolute path of the image that shows through, or NULL.
 *
 * Return: DONE or FAILED.
 */
enum status qcow2_create(int fd, const char *path, uint64_t size, const char *backing);

/**
 * qcow2_open() - open an image
 * @image: set to the connection to qemu-nbd, which runs until qcow2_close().
 * @fd: the file, open; it has to stay open until then.
 * @path: its name, for messages.
 * @size: bytes that the disk must have.
 * @format: QCOW2_FORMAT to write to it, RAW_FORMAT or QCOW2_FORMAT of one that is only
 *	looked at.
 * @is_written: it is going to be written to.
 *
 * Return: DONE or FAILED.
 */
enum status qcow2_open(struct nbd_handle **image, int fd, const char *path, uint64_t size,
		       const char *format, bool is_written);

/**
 * qcow2_write() - write data
 * @image: what qcow2_open() set.
 * @data: the data.
 * @length: bytes, at most 32 MiB.
 * @offset: bytes.
 *
 * Context: any thread.
 * Return: 0 or -errno.
 */
int qcow2_write(struct nbd_handle *image, const char *data, uint64_t length, uint64_t offset);

/**
 * qcow2_zero() - let a range read as zeroes, also where a backing image is not
 * @image: what qcow2_open() set.
 * @length: bytes, less than 2 GiB.
 * @offset: bytes.
 *
 * Context: any thread.
 * Return: 0 or -errno.
 */
int qcow2_zero(struct nbd_handle *image, uint64_t length, uint64_t offset);

/**
 * qcow2_flush() - let the file have all that was written
 * @image: what qcow2_open() set.
 *
 * Return: 0 or -errno.
 */
int qcow2_flush(struct nbd_handle *image);

/**
 * qcow2_close() - end qemu-nbd, and wait for it
 * @image: what qcow2_open() set.
 */
void qcow2_close(struct nbd_handle *image);

#endif
