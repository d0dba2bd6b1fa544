/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface of dm-fleece for programs: ioctls on /dev/fleece-control.
 *
 * Every call but FLEECE_IOC_VERSION names a device by a block device file
 * descriptor that the caller has open for reading: who may read a device may
 * read its maps. Offsets and lengths are in bytes. Fields named "reserved" and
 * "flags" must be zero. All structures have the same layout for 32-bit and
 * 64-bit callers.
 *
 * Errors common to all calls: -ENODEV when the descriptor is not of an origin
 * or a snapshot, -EBADF when it is not open for reading, -EINVAL for a nonzero
 * reserved field or flag, -EFAULT for a bad pointer, -ENOMEM, -ENOTTY for an
 * unknown call.
 */
#ifndef _UAPI_LINUX_DM_FLEECE_H
#define _UAPI_LINUX_DM_FLEECE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The node is /dev/FLEECE_CONTROL_NAME. */
#define FLEECE_CONTROL_NAME		"fleece-control"

/* Raised when a structure or the meaning of a field changes. */
#define FLEECE_INTERFACE_VERSION	1

/* Room for a checkpoint's name of 1 to 63 characters and its NUL. */
#define FLEECE_NAME_SIZE		64

/* Room for a uuid in its usual form of 36 characters and its NUL. */
#define FLEECE_UUID_SIZE		40

/**
 * struct fleece_version - answer of FLEECE_IOC_VERSION
 * @interface: FLEECE_INTERFACE_VERSION of the module.
 * @reserved: zero.
 * @module: version of the module, NUL-terminated.
 */
struct fleece_version {
	__u32 interface;
	__u32 reserved;
	char module[24];
};

/**
 * enum fleece_kind - what a device is
 * @FLEECE_KIND_ORIGIN: target "fleece".
 * @FLEECE_KIND_SNAPSHOT: target "fleece-snapshot".
 */
enum fleece_kind {
	FLEECE_KIND_ORIGIN = 1,
	FLEECE_KIND_SNAPSHOT = 2,
};

/**
 * enum fleece_state - state of a snapshot; an origin is always active
 * @FLEECE_STATE_ACTIVE: the snapshot can be read.
 * @FLEECE_STATE_BROKEN: every read fails; it never becomes active again.
 */
enum fleece_state {
	FLEECE_STATE_ACTIVE = 0,
	FLEECE_STATE_BROKEN = 1,
};

/**
 * struct fleece_info - argument of FLEECE_IOC_INFO
 * @fd: in: the device.
 * @flags: in: zero.
 * @kind: enum fleece_kind.
 * @state: enum fleece_state.
 * @size: bytes of the device.
 * @granularity: bytes that one bit of a change map stands for.
 * @cluster: bytes of one cluster; 0 on an origin.
 * @error: errno (positive) that broke the snapshot or lost a cluster, else 0.
 * @checkpoints: number of checkpoints that the device answers for.
 * @error_sector: first sector (of 512 bytes) of the origin that @error concerns.
 * @accessible: clusters of the snapshot that can be read; 0 on an origin.
 * @since: checkpoint that limits what the snapshot can serve; empty if none.
 * @reserved: zero.
 */
struct fleece_info {
	__s32 fd;
	__u32 flags;
	__u32 kind;
	__u32 state;
	__u64 size;
	__u64 granularity;
	__u64 cluster;
	__s32 error;
	__u32 checkpoints;
	__u64 error_sector;
	__u64 accessible;
	char since[FLEECE_NAME_SIZE];
	__u64 reserved[8];
};

/* The checkpoint was made at the point in time of this very snapshot. */
#define FLEECE_CHECKPOINT_HERE		0x1
/* Tracking was interrupted since: the checkpoint cannot be used. */
#define FLEECE_CHECKPOINT_INVALID	0x2

/**
 * struct fleece_checkpoint - one checkpoint
 * @name: NUL-terminated.
 * @uuid: new for every creation; text, NUL-terminated.
 * @created: seconds since 1970 (UTC).
 * @flags: FLEECE_CHECKPOINT_*; ignore unknown bits.
 * @reserved: zero.
 */
struct fleece_checkpoint {
	char name[FLEECE_NAME_SIZE];
	char uuid[FLEECE_UUID_SIZE];
	__u64 created;
	__u32 flags;
	__u32 reserved;
};

/**
 * struct fleece_checkpoints - argument of FLEECE_IOC_CHECKPOINTS
 * @fd: in: the device.
 * @flags: in: zero.
 * @entries: in: address of an array of struct fleece_checkpoint, oldest first.
 * @capacity: in: how many fit into @entries; 0 only asks for @count.
 * @count: out: how many checkpoints there are; may exceed @capacity, the first
 *	@capacity of them are then written.
 * @reserved: zero.
 */
struct fleece_checkpoints {
	__s32 fd;
	__u32 flags;
	__u64 entries;
	__u32 capacity;
	__u32 count;
	__u64 reserved[2];
};

/**
 * enum fleece_map - what a map tells
 * @FLEECE_MAP_CHANGED: value 1: changed since the checkpoint, on an origin up
 *	to now, on a snapshot up to its point in time. Unit: granularity.
 * @FLEECE_MAP_ACCESSIBLE: value 1: the snapshot can be read there. Unit: cluster.
 * @FLEECE_MAP_COPIED: value 1: the old data has been copied. Unit: cluster.
 */
enum fleece_map {
	FLEECE_MAP_CHANGED = 1,
	FLEECE_MAP_ACCESSIBLE = 2,
	FLEECE_MAP_COPIED = 3,
};

/**
 * struct fleece_extent - a range of one value
 * @offset: first byte.
 * @length: bytes, never 0.
 * @value: 0 or 1, see enum fleece_map.
 * @reserved: zero.
 */
struct fleece_extent {
	__u64 offset;
	__u64 length;
	__u32 value;
	__u32 reserved;
};

/**
 * struct fleece_extents - argument of FLEECE_IOC_EXTENTS
 * @fd: in: the device.
 * @flags: in: zero.
 * @map: in: enum fleece_map. An origin only has FLEECE_MAP_CHANGED.
 * @capacity: in: how many extents fit into @extents, at least 1.
 * @count: out: how many extents were written.
 * @reserved0: zero.
 * @checkpoint: in: name, for FLEECE_MAP_CHANGED; else empty.
 * @offset: in: first byte, a multiple of 512.
 * @length: in: bytes, a multiple of 512, not 0.
 * @extents: in: address of an array of struct fleece_extent.
 * @covered: out: bytes described, from @offset on; less than @length when
 *	@capacity was reached. Then ask again from @offset + @covered.
 * @reserved: zero.
 *
 * The extents ascend, cover @covered bytes without gaps, the first begins at
 * @offset, and neighbours differ. Also across calls nothing is merged: an
 * extent that ends at @covered may go on in the next call with the same value.
 *
 * Errors: -ENOENT no such checkpoint, -ESTALE the checkpoint is invalid,
 * -EINVAL unknown map, a map that this kind of device has not, a name with another map
 * than FLEECE_MAP_CHANGED, unaligned or zero length, no room for an extent, -ERANGE beyond
 * the end of the device, -ENOMEM.
 */
struct fleece_extents {
	__s32 fd;
	__u32 flags;
	__u32 map;
	__u32 capacity;
	__u32 count;
	__u32 reserved0;
	char checkpoint[FLEECE_NAME_SIZE];
	__u64 offset;
	__u64 length;
	__u64 extents;
	__u64 covered;
	__u64 reserved[4];
};

/**
 * struct fleece_bitmap - argument of FLEECE_IOC_BITMAP
 * @fd: in: the device.
 * @flags: in: zero.
 * @map: in: enum fleece_map, as for FLEECE_IOC_EXTENTS.
 * @reserved0: zero.
 * @checkpoint: in: name, for FLEECE_MAP_CHANGED; else empty.
 * @offset: in: first byte, a multiple of the map's unit.
 * @length: in: bytes, not 0, a multiple of the map's unit unless the range ends
 *	at the end of the device.
 * @bits: in: address of the buffer.
 * @bits_size: in: its size in bytes; -ENOSPC when too small for the range.
 * @unit: out: bytes that one bit stands for.
 * @count: out: number of bits written. Bit 0 of byte 0 is the first; unused
 *	bits of the last byte are 0.
 * @reserved: zero.
 *
 * Errors: as for FLEECE_IOC_EXTENTS, and -ENOSPC.
 */
struct fleece_bitmap {
	__s32 fd;
	__u32 flags;
	__u32 map;
	__u32 reserved0;
	char checkpoint[FLEECE_NAME_SIZE];
	__u64 offset;
	__u64 length;
	__u64 bits;
	__u64 bits_size;
	__u64 unit;
	__u64 count;
	__u64 reserved[2];
};

/**
 * struct fleece_release - argument of FLEECE_IOC_RELEASE
 * @fd: in: the snapshot.
 * @flags: in: zero.
 * @offset: in: first byte, a multiple of 512.
 * @length: in: bytes, a multiple of 512, not 0.
 * @reserved: zero.
 *
 * Does what the snapshot's message "release" does, for a program that has given
 * up the privilege to send messages. The control device must be open for writing.
 *
 * Errors: -EBADF the control device is not open for writing, -EINVAL an origin,
 * unaligned or zero length, -ERANGE beyond the end of the device, -ENOSPC or
 * -ENOMEM a part of a cluster cannot be remembered; the whole clusters of the
 * range are released nevertheless.
 */
struct fleece_release {
	__s32 fd;
	__u32 flags;
	__u64 offset;
	__u64 length;
	__u64 reserved[2];
};

#define FLEECE_IOC_MAGIC	0xfc

#define FLEECE_IOC_VERSION	_IOR(FLEECE_IOC_MAGIC, 0, struct fleece_version)
#define FLEECE_IOC_INFO		_IOWR(FLEECE_IOC_MAGIC, 1, struct fleece_info)
#define FLEECE_IOC_CHECKPOINTS	_IOWR(FLEECE_IOC_MAGIC, 2, struct fleece_checkpoints)
#define FLEECE_IOC_EXTENTS	_IOWR(FLEECE_IOC_MAGIC, 3, struct fleece_extents)
#define FLEECE_IOC_BITMAP	_IOWR(FLEECE_IOC_MAGIC, 4, struct fleece_bitmap)
#define FLEECE_IOC_RELEASE	_IOW(FLEECE_IOC_MAGIC, 5, struct fleece_release)

#endif /* _UAPI_LINUX_DM_FLEECE_H */
