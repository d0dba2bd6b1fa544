/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, image: reads, judges and makes what is on a metadata device, without the
 * module. It prints nothing and knows no devices: I/O is done by the caller.
 */
#ifndef FLEECE_IMAGE_H
#define FLEECE_IMAGE_H

#include "metadata_format.h"

/**
 * struct image_io - how to get at a metadata device
 * @context: first argument of the functions.
 * @nr_sectors: size of the device, in sectors of 512 bytes.
 * @read: read sectors within the size. 0 or a negative errno.
 * @write: write them; NULL if that is never asked for.
 * @flush: make durable what was written; as @write.
 */
struct image_io {
	void *context;
	__u64 nr_sectors;
	int (*read)(void *context, __u64 sector, void *data, unsigned int count);
	int (*write)(void *context, __u64 sector, const void *data, unsigned int count);
	int (*flush)(void *context);
};

/**
 * struct image_copy - a copy of superblock and table
 * @result: of fleece_md_decode(), or an errno of reading it.
 * @error: what is wrong, if @result is not 0.
 * @generation: if it is good, or of another version.
 */
struct image_copy {
	int result;
	const char *error;
	__u64 generation;
};

/**
 * struct image_map - what the maps of a checkpoint say
 * @changed: granules changed since the checkpoint, as it is to be taken.
 * @nr_bad: bad sectors of its slot.
 */
struct image_map {
	__u64 changed;
	__u64 nr_bad;
};

/**
 * struct image - what was found
 * @copies: both of them.
 * @chosen: which one counts; -1: none.
 * @root: of that one, if it could be decoded; then all that follows is filled in.
 * @layout: where things are.
 * @nr_granules: of the origin.
 * @is_short: the device is smaller than @layout says; the maps were not read.
 * @nr_intents: regions with an intent.
 * @nr_bad_intents: bad sectors of intents.
 * @maps: for each checkpoint of @root.
 */
struct image {
	struct image_copy copies[2];
	int chosen;
	struct fleece_md_root root;
	struct fleece_md_layout layout;
	__u64 nr_granules;
	bool is_short;
	__u64 nr_intents;
	__u64 nr_bad_intents;
	struct image_map maps[FLEECE_MD_SLOTS_MAX];
};

/**
 * image_read_root() - read the superblocks only
 * @io: the device.
 * @image: filled in, up to @is_short.
 */
void image_read_root(const struct image_io *io, struct image *image);

/**
 * image_has_root() - was a root found that could be decoded?
 * @image: from image_read_root() or image_inspect().
 */
bool image_has_root(const struct image *image);

/**
 * image_inspect() - read everything
 * @io: the device.
 * @image: filled in.
 *
 * A sector of a map that cannot be read counts as bad, like one that is damaged.
 *
 * Return: 0, also if nothing of it is any good, or -ENOMEM.
 */
int image_inspect(const struct image_io *io, struct image *image);

/**
 * image_create() - make new metadata without checkpoints
 * @io: the device; large enough.
 * @root: sizes, number of slots, uuid, identity and time; without an error of geometry.
 *	The rest is filled in.
 *
 * A failure leaves nothing that could be taken for metadata.
 *
 * Return: 0 or a negative errno.
 */
int image_create(const struct image_io *io, struct fleece_md_root *root);

/**
 * image_drop_checkpoints() - drop all checkpoints of metadata that is good
 * @io: the device.
 * @root: as image_read_root() has found it; changed as on the device.
 *
 * All or none of them: whenever it is cut off, the device has good metadata. What the maps
 * say ends with the checkpoints. The size of the origin may be another one now that the layout
 * has room for.
 *
 * Return: 0 or a negative errno; -EOVERFLOW: its generations have come to an end.
 */
int image_drop_checkpoints(const struct image_io *io, struct fleece_md_root *root);

/**
 * image_change_layout() - give metadata without checkpoints another layout
 * @io: the device; large enough for it.
 * @root: as image_drop_checkpoints() has left it, with other sizes.
 *
 * Whenever it is cut off, the device has good metadata, of the one layout or the other.
 *
 * Return: as image_drop_checkpoints().
 */
int image_change_layout(const struct image_io *io, struct fleece_md_root *root);

/**
 * image_is_empty() - is nothing on the device that could be missed?
 * @io: the device.
 *
 * Looked at are the places where file systems, partition tables and the like have their
 * signatures, and older metadata: the first three MiB and the last one must be zeroes. What
 * image_create() has left when it was cut off counts as empty too.
 *
 * Return: 1 if so, 0 if not, or a negative errno.
 */
int image_is_empty(const struct image_io *io);

/**
 * image_identity() - what tells an origin from others of its size
 * @identity: gets a text for the root, of FLEECE_MD_IDENTITY_BYTES.
 * @name: of the disk, the same after a reboot, such as its serial number.
 * @start: where the origin begins on it.
 *
 * A name that is too long is cut, and a checksum of all of it added: many differ only at
 * their ends.
 */
void image_identity(char *identity, const char *name, const char *start);

#endif
