/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, device: origins, snapshots and what lies below and above them.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_DEVICE_H
#define FLEECE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "dm.h"
#include "report.h"
#include "status.h"

#define ORIGIN_TARGET		"fleece"
#define SNAPSHOT_TARGET		"fleece-snapshot"

/* What our own devices' uuids begin with. */
#define ORIGIN_UUID		"FLEECE-origin-"
#define LOWER_UUID		"FLEECE-lower-"
#define SNAPSHOT_UUID		"FLEECE-snapshot-"

#define LOWER_SUFFIX		"-lower"
#define SNAPSHOT_SUFFIX		"-snap"

#define SECTOR_SIZE		512ULL
#define CLUSTER_MIN		(4ULL << 10)
#define CLUSTER_MAX		(16ULL << 20)

/* Room for "MAJOR:MINOR". */
#define DEVNO_TEXT		32

/**
 * struct origin - a device with target "fleece"
 * @dm: the device.
 * @lower: the device its table names.
 * @metadata: its metadata device; 0: none.
 * @size: bytes.
 * @status: as of the look-up.
 */
struct origin {
	struct fleece_dm_info dm;
	dev_t lower;
	dev_t metadata;
	uint64_t size;
	struct fleece_origin_status status;
};

/**
 * struct snapshot - a device with target "fleece-snapshot"
 * @dm: the device.
 * @lower: the lower device of its origin.
 * @cow: its COW device.
 * @size: bytes.
 * @cluster: bytes.
 * @since: only what changed since this checkpoint is accessible; empty: all is.
 * @status: as of the look-up.
 */
struct snapshot {
	struct fleece_dm_info dm;
	dev_t lower;
	dev_t cow;
	uint64_t size;
	uint64_t cluster;
	char since[FLEECE_NAME_SIZE];
	struct fleece_snapshot_status status;
};

/**
 * report_dm() - print what failed in a call of lib/dm.h
 * @error: what the call returned.
 * @name: device it is about.
 * @what: what failed.
 *
 * The kernel's own reason is printed where there is one.
 *
 * Return: the exit status for @error.
 */
enum status report_dm(int error, const char *name, const char *what);

/**
 * device_start() - open device-mapper and the module's control device
 * @control: set to the control descriptor; NULL when it is not needed.
 *
 * Loads the module if it can be found.
 *
 * Return: DONE, NO_MODULE or NO_PERMISSION.
 */
enum status device_start(int *control);

/**
 * device_find() - a device-mapper device as people name it
 * @text: its name, or the path of a node of it.
 * @info: filled in.
 *
 * Return: DONE or NO_DEVICE.
 */
enum status device_find(const char *text, struct fleece_dm_info *info);

/**
 * device_origin() - find an origin
 * @text: its name, or the path of a node of it.
 * @origin: filled in.
 *
 * Return: DONE or NO_DEVICE.
 */
enum status device_origin(const char *text, struct origin *origin);

/**
 * device_snapshot() - find a snapshot
 * @text: its name, or the path of a node of it.
 * @snapshot: filled in.
 *
 * Return: DONE or NO_DEVICE.
 */
enum status device_snapshot(const char *text, struct snapshot *snapshot);

/**
 * origin_read() - fill in an origin without reporting anything
 * @info: the device.
 * @origin: filled in.
 *
 * Return: 0, -ENODEV when it is no origin, or another -errno.
 */
int origin_read(const struct fleece_dm_info *info, struct origin *origin);

/**
 * origin_bytes() - what granules of an origin amount to
 * @origin: the device.
 * @granules: how many.
 *
 * Return: bytes, of which the last granule may have fewer.
 */
uint64_t origin_bytes(const struct origin *origin, uint64_t granules);

/**
 * snapshot_read() - fill in a snapshot without reporting anything
 * @info: the device.
 * @snapshot: filled in.
 *
 * Return: 0, -ENODEV when it is no snapshot, or another -errno.
 */
int snapshot_read(const struct fleece_dm_info *info, struct snapshot *snapshot);

/**
 * snapshot_error() - what has broken a snapshot
 * @snapshot: a broken one.
 *
 * Return: a text for people.
 */
const char *snapshot_error(const struct snapshot *snapshot);

/**
 * snapshot_unstarted_cow() - COW device of a snapshot that was never started
 * @info: the device.
 *
 * Return: its number, or 0 if it cannot be told.
 */
dev_t snapshot_unstarted_cow(const struct fleece_dm_info *info);

/**
 * device_open() - open the node of a device for reading
 * @info: the device.
 *
 * Return: a descriptor or -errno.
 */
int device_open(const struct fleece_dm_info *info);

/**
 * device_claim() - keep a device from being used
 * @info: the device.
 *
 * As long as the descriptor is open, nobody can mount it, or put a device or swap on it. Who
 * only looks at it, as udev does, is waited for, up to two seconds.
 *
 * Return: a descriptor, or -errno; -EBUSY: it is mounted, below another device, or open still,
 * so somebody may be writing to it.
 */
int device_claim(const struct fleece_dm_info *info);

/**
 * device_uuid() - make a new uuid
 * @uuid: room for DM_UUID_LEN characters.
 * @prefix: what it begins with.
 * @suffix: what it ends with.
 *
 * Return: 0 or -errno.
 */
int device_uuid(char *uuid, const char *prefix, const char *suffix);

/**
 * device_devno_text() - "MAJOR:MINOR" of a device
 * @text: room for DEVNO_TEXT characters.
 * @devno: its number.
 *
 * Return: @text.
 */
const char *device_devno_text(char *text, dev_t devno);

/**
 * device_path() - a path for people of a device number
 * @path: room for it.
 * @size: of the room.
 * @devno: its number.
 *
 * Return: @path, /dev/mapper/NAME or /dev/NAME, or MAJOR:MINOR if unknown.
 */
const char *device_path(char *path, size_t size, dev_t devno);

/**
 * device_mountpoint() - where a device is mounted
 * @devno: its number.
 * @path: room for one mount point.
 * @size: of the room.
 *
 * Return: true if it is mounted.
 */
bool device_mountpoint(dev_t devno, char *path, size_t size);

/**
 * device_size() - size of a block device
 * @devno: its number.
 * @bytes: set to it.
 *
 * Return: 0 or -errno.
 */
int device_size(dev_t devno, uint64_t *bytes);

/**
 * device_is() - whether a path leads to a device
 * @path: of a block device, or of something else.
 * @devno: the device.
 */
bool device_is(const char *path, dev_t devno);

/**
 * device_has_partitions() - whether the kernel has found partitions on a device
 * @devno: which.
 */
bool device_has_partitions(dev_t devno);

/**
 * device_depends() - whether writes to one device end up on another
 * @devno: the upper device.
 * @base: the lower device.
 *
 * Follows partitions, stacked devices, and the filesystems under loop devices.
 *
 * Return: true if they do, also when both are the same.
 */
bool device_depends(dev_t devno, dev_t base);

/**
 * device_on_origin() - whether writes to a device end up on any origin
 * @devno: the device.
 * @name: set to the origin's name; room for DM_NAME_LEN characters.
 *
 * Return: true if they do.
 */
bool device_on_origin(dev_t devno, char *name);

/**
 * device_bypass() - find a device that uses what lies below an origin past it
 * @origin: the origin.
 * @path: set to who does; room for PATH_MAX characters.
 *
 * Device-mapper keeps mounts and the like away from the lower device, but none of its own
 * devices. What such a one writes is neither copied nor tracked.
 *
 * Return: true if there is one.
 */
bool device_bypass(const struct origin *origin, char *path);

/**
 * device_unit_is_valid() - whether bytes can be a cluster or a granule
 * @bytes: the size.
 *
 * Return: true for a power of two from 4 KiB to 16 MiB.
 */
bool device_unit_is_valid(uint64_t bytes);

/**
 * device_has_prefix() - whether a text begins with another
 * @text: the text.
 * @prefix: its beginning.
 *
 * Return: true if it does.
 */
bool device_has_prefix(const char *text, const char *prefix);

#endif
