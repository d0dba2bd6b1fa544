/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, cow_zram: COW space in compressed RAM.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_COW_ZRAM_H
#define FLEECE_COW_ZRAM_H

#include <stdbool.h>
#include <stdint.h>

#include "cow.h"

/**
 * cow_zram_has_room() - whether there is memory for it
 * @bytes: size of the COW space.
 */
bool cow_zram_has_room(uint64_t bytes);

/**
 * cow_zram_make() - make a zram device
 * @request: its size.
 * @snapshot: the snapshot's name, for messages.
 * @cow: kind and path are filled in.
 */
enum status cow_zram_make(const struct cow_request *request, const char *snapshot,
			  struct cow *cow);

/**
 * cow_zram_free() - remove a zram device
 * @devno: the COW device.
 * @snapshot: the snapshot's name, for messages.
 */
enum status cow_zram_free(dev_t devno, const char *snapshot);

#endif
