/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece-pull, target: the raw file, qcow2 image or block device that is written.
 *
 * A full backup into a file is written to TARGET.partial and gets its name when
 * it is complete and durable, in the directory that was there at the beginning. What
 * exists is never overwritten unless it was asked for: the file of an incremental
 * backup, and a block device, which are written in place. A file that is to be replaced
 * is locked until then, as one that is written in place is.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_PULL_TARGET_H
#define FLEECE_PULL_TARGET_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2.h"
#include "report.h"

/**
 * struct target - what is written
 * @path: its name.
 * @partial: name while it is written; empty: it is written in place.
 * @name_at: where the last part of either name begins.
 * @directory_fd: the directory of both names; -1: it is written in place.
 * @replaced_fd: the file that is going to be replaced, locked; -1: there is none.
 * @fd: open for writing, locked; -1: nothing is open.
 * @backing_fd: the image that shows through, locked against writers; -1: there is none.
 * @image: what @fd holds, if that is a qcow2 image, else NULL.
 * @is_empty: all of it reads as zeroes until it is written to.
 */
struct target {
	char path[PATH_MAX];
	char partial[PATH_MAX];
	size_t name_at;
	int directory_fd;
	int replaced_fd;
	int fd;
	int backing_fd;
	struct nbd_handle *image;
	bool is_empty;
};

/**
 * struct target_how - how to open a target
 * @size: bytes of the source.
 * @must_exist: it is an earlier backup, which is brought up to date.
 * @replace: a file that exists now may be replaced.
 * @is_qcow2: it is a qcow2 image, not a raw one.
 * @backing: image that shows through a new qcow2 image, or NULL.
 */
struct target_how {
	uint64_t size;
	bool must_exist;
	bool replace;
	bool is_qcow2;
	const char *backing;
};

/**
 * target_open() - open the target, or create its file
 * @target: filled in; target_finish() or target_abandon() ends it after success.
 * @path: file or block device.
 * @how: what may be done with it.
 *
 * Return: DONE; BUSY when the file exists, or another pull or a mount uses it;
 * NO_DEVICE when there must be one and is none; FAILED when it, or the backing image, is of
 * another kind or size.
 */
enum status target_open(struct target *target, const char *path, const struct target_how *how);

/**
 * target_write() - write data
 * @target: an open target.
 * @data: the data.
 * @length: bytes.
 * @offset: bytes.
 *
 * Zeroes take no space where the target can do without.
 *
 * Context: any thread.
 * Return: 0 or -errno.
 */
int target_write(const struct target *target, const char *data, uint64_t length,
		 uint64_t offset);

/**
 * target_zero() - let a range read as zeroes
 * @target: an open target.
 * @length: bytes.
 * @offset: bytes.
 *
 * Context: any thread.
 * Return: 0 or -errno.
 */
int target_zero(const struct target *target, uint64_t length, uint64_t offset);

/**
 * target_finish() - make all of it durable, then give it its name
 * @target: an open target; closed afterwards.
 *
 * Return: DONE; BUSY when somebody else made or replaced a file of that name meanwhile, or
 * FAILED, and it is as after target_abandon(); FAILED as well when all is in place but the
 * directory cannot be made durable.
 */
enum status target_finish(struct target *target);

/**
 * target_abandon() - give up after a failure
 * @target: an open target; closed afterwards.
 *
 * A new file is removed. What was written in place is neither the old nor the new
 * backup, and a message says so.
 */
void target_abandon(struct target *target);

#endif
