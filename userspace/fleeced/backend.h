/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, backend: the data that exports show.
 *
 * The protocol code sees only this. A backend is opened before the first
 * client comes, is shared by all connections, and every operation may be
 * called from many threads at once.
 *
 * Errors have one meaning for all kinds: -EPERM, the range is not accessible
 * (outside the access map, or released); -EIO, it cannot be read, or the
 * snapshot is broken.
 */
#ifndef FLEECED_BACKEND_H
#define FLEECED_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/dm-fleece.h>

struct backend;

/* Largest unit of reads that a device may have. */
#define BACKEND_BLOCK_MAX 65536U

/**
 * struct backend_ops - what a kind of backend can do
 * @read: fill @buffer completely; it, @offset and @length are multiples of @block.
 *	0 or -errno; then @buffer is not to be used.
 * @read_now: like @read, but -EAGAIN where that would have to wait for a device; NULL:
 *	it always would.
 * @release: the client is done with this range; NULL when that means nothing.
 *	Rounds inward. 0 or -errno.
 * @cache: the client will soon read this range; NULL: ignored.
 * @extents: as FLEECE_IOC_EXTENTS, @offset and @length multiples of 512 (or up
 *	to the end). Number of extents, or -errno. NULL when @has_maps is false.
 * @state: can the data still be relied on? 0, or -errno with the reason in
 *	@text. Asked after a map was read, and after a failed operation.
 * @close: release everything, the backend itself included.
 */
struct backend_ops {
	int (*read)(struct backend *backend, void *buffer, uint64_t offset, uint32_t length);
	int (*read_now)(struct backend *backend, void *buffer, uint64_t offset, uint32_t length);
	int (*release)(struct backend *backend, uint64_t offset, uint64_t length);
	void (*cache)(struct backend *backend, uint64_t offset, uint32_t length);
	int (*extents)(struct backend *backend, enum fleece_map map, const char *checkpoint,
		       uint64_t offset, uint64_t length, struct fleece_extent *extents,
		       uint32_t capacity, uint64_t *covered);
	int (*state)(struct backend *backend, char *text, size_t size);
	void (*close)(struct backend *backend);
};

/**
 * struct backend - one device or file. Constant while it is served.
 * @ops: the kind.
 * @name: default for the export's name; "" when there is no usable one.
 * @size: bytes.
 * @block: unit of reads in bytes, a power of two up to BACKEND_BLOCK_MAX; @size is a
 *	multiple.
 * @preferred: bytes that are best read at once, a power of two.
 * @is_rotational: on a disk that turns.
 * @has_maps: is a snapshot: @extents answers, for @checkpoints.
 * @since: checkpoint that limits what is accessible; "" if none.
 * @checkpoints: oldest first, the usable ones only.
 * @checkpoint_count: their number.
 */
struct backend {
	const struct backend_ops *ops;
	char name[128];
	uint64_t size;
	uint32_t block;
	uint32_t preferred;
	bool is_rotational;
	bool has_maps;
	char since[FLEECE_NAME_SIZE];
	struct fleece_checkpoint *checkpoints;
	size_t checkpoint_count;
};

/* Room for the text of backend_ops.state. */
#define BACKEND_TEXT_SIZE 256

/**
 * backend_open() - open a device or a file for serving
 * @path: its path.
 * @backend: set to the backend, which the caller closes.
 *
 * A snapshot is recognised by the kernel module; everything else is served as
 * plain data. Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int backend_open(const char *path, struct backend **backend);

/**
 * backend_snapshot_create() - the backend of a fleece snapshot
 * @path: of the device, for messages; outlives the backend.
 * @device: open for reading.
 * @control: from fleece_control_open().
 * @info: of the device; its kind is FLEECE_KIND_SNAPSHOT.
 * @backend: set to the backend; it owns @control and @device then.
 *
 * Return: 0 or -errno.
 */
int backend_snapshot_create(const char *path, int device, int control,
			    const struct fleece_info *info, struct backend **backend);

/**
 * backend_file_create() - the backend of any block device or regular file
 * @path: of the file, for messages; outlives the backend.
 * @file: open for reading.
 * @backend: set to the backend; it owns @file then.
 *
 * Return: 0 or -errno (-ENOTBLK: neither device nor file).
 */
int backend_file_create(const char *path, int file, struct backend **backend);

/**
 * backend_read_sysfs() - read an attribute of a block device
 * @device: number of the device (st_rdev).
 * @attribute: path below /sys/dev/block/MAJOR:MINOR/.
 * @value: gets the first line without its newline.
 * @size: of @value.
 *
 * Return: 0 or -errno.
 */
int backend_read_sysfs(uint64_t device, const char *attribute, char *value, size_t size);

#endif
