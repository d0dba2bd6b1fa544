/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, cow: space for a snapshot's COW device.
 *
 * Who made the space is kept at the end of the snapshot's dm uuid, so that
 * there is no file that could be lost or be wrong.
 */
#ifndef FLEECE_COW_H
#define FLEECE_COW_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "device.h"
#include "report.h"

/* The module's header at the start of every COW device. */
#define COW_HEADER_BYTES	(1ULL << 20)

/**
 * enum cow_kind - where the space is
 * @COW_AUTO: to be chosen.
 * @COW_USER: a device that the user named; never freed.
 * @COW_LVM: a logical volume beside the origin.
 * @COW_ZRAM: compressed RAM.
 * @COW_FILE: a loop device on a file without a name; both end with their last user.
 */
enum cow_kind {
	COW_AUTO,
	COW_USER,
	COW_LVM,
	COW_ZRAM,
	COW_FILE,
};

/**
 * struct cow_request - what is wanted
 * @kind: COW_AUTO to choose, COW_USER for @path.
 * @path: a device, for COW_USER.
 * @is_forced: for COW_USER: whatever data it holds.
 * @bytes: size, for the other kinds.
 * @dir: directory for COW_FILE, or NULL for the default.
 */
struct cow_request {
	enum cow_kind kind;
	const char *path;
	bool is_forced;
	uint64_t bytes;
	const char *dir;
};

/**
 * struct cow - a COW device
 * @kind: never COW_AUTO.
 * @devno: its number.
 * @held: descriptor that keeps a loop device alive until a table uses it, or -1.
 * @path: for people.
 */
struct cow {
	enum cow_kind kind;
	dev_t devno;
	int held;
	char path[PATH_MAX];
};

/**
 * cow_make() - find or make COW space
 * @request: what is wanted.
 * @origin: whose snapshot it is for.
 * @snapshot: the snapshot's name.
 * @cow: filled in; cow_put() and, if no snapshot came of it, cow_free() follow.
 *
 * Return: DONE, or what was reported.
 */
enum status cow_make(const struct cow_request *request, const struct origin *origin,
		     const char *snapshot, struct cow *cow);

/**
 * cow_put() - let go of a COW device that a table uses by now
 * @cow: the device.
 */
void cow_put(struct cow *cow);

/**
 * cow_free() - free the space if it was made by cow_make()
 * @kind: where it is.
 * @devno: the COW device, used by nobody any more.
 * @snapshot: the snapshot's name, for messages.
 *
 * Return: DONE, or what was reported.
 */
enum status cow_free(enum cow_kind kind, dev_t devno, const char *snapshot);

/**
 * cow_grow() - see to it that the space has a size
 * @kind: where it is.
 * @devno: the COW device.
 * @snapshot: the snapshot's name, for messages.
 * @bytes: the size.
 *
 * A logical volume is extended. A device of the user has been grown by him; other
 * space cannot grow.
 *
 * Return: DONE, or what was reported.
 */
enum status cow_grow(enum cow_kind kind, dev_t devno, const char *snapshot, uint64_t bytes);

/**
 * cow_kind_name() - name of a kind, as in a uuid and on the command line
 * @kind: the kind.
 *
 * Return: the name.
 */
const char *cow_kind_name(enum cow_kind kind);

/**
 * cow_kind_parse() - kind of a name
 * @name: lvm, zram or file.
 * @kind: set to it.
 *
 * Return: 0 or -EINVAL.
 */
int cow_kind_parse(const char *name, enum cow_kind *kind);

/**
 * cow_kind_of() - who made a snapshot's COW space
 * @uuid: the snapshot's dm uuid.
 *
 * Return: the kind, COW_USER if the uuid does not tell.
 */
enum cow_kind cow_kind_of(const char *uuid);

#endif
