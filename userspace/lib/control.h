/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, control: the calls of /dev/fleece-control.
 *
 * Functions return 0 or a positive result on success and -errno on failure;
 * they never print. A device is named by a file descriptor open for reading.
 */
#ifndef FLEECE_LIB_CONTROL_H
#define FLEECE_LIB_CONTROL_H

#include <stddef.h>
#include <stdint.h>
#include <linux/dm-fleece.h>

/**
 * fleece_control_open() - open /dev/fleece-control
 *
 * Return: a descriptor that the caller closes, or -errno (-ENOENT: the module
 * is not loaded; -EPROTO: its interface version differs from ours).
 */
int fleece_control_open(void);

/**
 * fleece_control_version() - version of the loaded module
 * @control: from fleece_control_open().
 * @version: filled in.
 *
 * Return: 0 or -errno.
 */
int fleece_control_version(int control, struct fleece_version *version);

/**
 * fleece_control_info() - what a device is
 * @control: from fleece_control_open().
 * @device: descriptor of the block device.
 * @info: filled in.
 *
 * Return: 0 or -errno (-ENODEV: neither an origin nor a snapshot).
 */
int fleece_control_info(int control, int device, struct fleece_info *info);

/**
 * fleece_control_checkpoints() - the checkpoints a device answers for
 * @control: from fleece_control_open().
 * @device: descriptor of the block device.
 * @list: set to an array, oldest first, that the caller frees; NULL if none.
 * @count: set to its length.
 *
 * Return: 0 or -errno.
 */
int fleece_control_checkpoints(int control, int device,
			       struct fleece_checkpoint **list, size_t *count);

/**
 * fleece_control_extents() - extents of a map
 * @control: from fleece_control_open().
 * @device: descriptor of the block device.
 * @map: enum fleece_map.
 * @checkpoint: name for FLEECE_MAP_CHANGED, else NULL.
 * @offset: first byte, multiple of 512.
 * @length: bytes, multiple of 512, not 0.
 * @extents: array of @capacity entries.
 * @capacity: at least 1.
 * @covered: set to the bytes described from @offset on.
 *
 * Return: number of extents written, or -errno (see struct fleece_extents).
 */
int fleece_control_extents(int control, int device, uint32_t map,
			   const char *checkpoint, uint64_t offset,
			   uint64_t length, struct fleece_extent *extents,
			   uint32_t capacity, uint64_t *covered);

/**
 * fleece_control_release() - the reader is done with a range of a snapshot
 * @control: from fleece_control_open().
 * @device: descriptor of the snapshot.
 * @offset: first byte, multiple of 512.
 * @length: bytes, multiple of 512, not 0.
 *
 * Return: 0 or -errno (see struct fleece_release).
 */
int fleece_control_release(int control, int device, uint64_t offset, uint64_t length);

#endif
