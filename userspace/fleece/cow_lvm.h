/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, cow_lvm: COW space in logical volumes.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_COW_LVM_H
#define FLEECE_COW_LVM_H

#include <stdbool.h>
#include <stdint.h>

#include "cow.h"

/**
 * cow_lvm_has_room() - whether a volume can be made beside an origin
 * @origin: the origin.
 * @bytes: size of the volume.
 */
bool cow_lvm_has_room(const struct origin *origin, uint64_t bytes);

/**
 * cow_lvm_make() - make a volume beside the origin
 * @request: its size.
 * @origin: whose snapshot it is for.
 * @snapshot: the snapshot's name.
 * @cow: kind and path are filled in.
 */
enum status cow_lvm_make(const struct cow_request *request, const struct origin *origin,
			 const char *snapshot, struct cow *cow);

/**
 * cow_lvm_grow() - extend a volume
 * @devno: the COW device.
 * @snapshot: the snapshot's name, for messages.
 * @bytes: the size.
 */
enum status cow_lvm_grow(dev_t devno, const char *snapshot, uint64_t bytes);

/**
 * cow_lvm_free() - remove a volume, unless it is gone already
 * @devno: the COW device.
 * @snapshot: the snapshot's name, for messages.
 */
enum status cow_lvm_free(dev_t devno, const char *snapshot);

/**
 * cow_lvm_leftovers() - find volumes made for snapshots that are gone, as by a crash
 * @tell: called with GROUP/VOLUME of each one.
 *
 * Return: true if there are any.
 */
bool cow_lvm_leftovers(void (*tell)(const char *volume));

/**
 * cow_lvm_split() - take apart the dm name of a logical volume
 * @name: for example "vg-my--lv".
 * @group: set to the volume group's name; room for DM_NAME_LEN characters.
 * @volume: set to the volume's name; room for DM_NAME_LEN characters.
 *
 * Return: 0, or -EINVAL when it is not of this form.
 */
int cow_lvm_split(const char *name, char *group, char *volume);

#endif
