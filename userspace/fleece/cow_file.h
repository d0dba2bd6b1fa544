/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, cow_file: COW space in a file without a name. */
#ifndef FLEECE_COW_FILE_H
#define FLEECE_COW_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "cow.h"

/* Where the file goes unless something else is asked for. */
#define COW_DEFAULT_DIR		"/var/tmp"

/**
 * cow_file_has_room() - whether there is room in the default directory, on no origin
 * @bytes: size of the COW space.
 *
 * Others need some of it: no more than half of what is free is taken unasked.
 */
bool cow_file_has_room(uint64_t bytes);

/**
 * cow_file_make() - make a file, and a loop device on it
 * @request: its size and directory.
 * @snapshot: the snapshot's name, for messages.
 * @cow: all but its number is filled in.
 *
 * Return: DONE, or another status that has been reported.
 */
enum status cow_file_make(const struct cow_request *request, const char *snapshot,
			  struct cow *cow);

#endif
