/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, checkpoint: what other verbs need to know of checkpoints. */
#ifndef FLEECE_CHECKPOINT_H
#define FLEECE_CHECKPOINT_H

#include <stdbool.h>

#include "device.h"
#include "status.h"

/**
 * checkpoint_list() - the checkpoints of an origin
 * @origin: the origin.
 * @list: set to an array that the caller frees, oldest first; NULL if none.
 * @count: set to its length.
 *
 * Return: 0 or -errno.
 */
int checkpoint_list(const struct origin *origin, struct fleece_checkpoint_line **list,
		    size_t *count);

/**
 * checkpoint_find() - a checkpoint that can be used
 * @origin: the origin.
 * @checkpoint: its name.
 * @found: filled in.
 *
 * Return: DONE, or NO_CHECKPOINT (reported) when there is none or it is invalid.
 */
enum status checkpoint_find(const struct origin *origin, const char *checkpoint,
			    struct fleece_checkpoint_line *found);

/**
 * checkpoint_exists() - whether a name is in use
 * @origin: the origin.
 * @checkpoint: the name.
 *
 * Return: true if it is, valid or not.
 */
bool checkpoint_exists(const struct origin *origin, const char *checkpoint);

/**
 * checkpoint_is_valid() - whether there is such a checkpoint, and it can be used
 * @origin: the origin.
 * @checkpoint: the name.
 *
 * Return: false also when nobody can tell.
 */
bool checkpoint_is_valid(const struct origin *origin, const char *checkpoint);

/**
 * checkpoint_delete_all() - delete all checkpoints of an origin
 * @origin: the origin.
 * @count: set to how many there were.
 *
 * Return: 0 or -errno; then some may be left.
 */
int checkpoint_delete_all(const struct origin *origin, size_t *count);

/**
 * checkpoint_report() - report the errno of something about a checkpoint
 * @error: -errno.
 * @name: the device.
 * @checkpoint: name of the checkpoint.
 *
 * Return: the exit status.
 */
enum status checkpoint_report(int error, const char *name, const char *checkpoint);

#endif
