/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, metadata_device: metadata devices, and which origin each one is for.
 *
 * Functions that return an enum status have reported the error already. Paths are
 * named in messages, so they are what the user typed.
 */
#ifndef FLEECE_METADATA_DEVICE_H
#define FLEECE_METADATA_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "image.h"
#include "report.h"

/**
 * struct metadata_plan - what new metadata is to be like
 * @origin_size: of the origin, in bytes; a multiple of 512, as all sizes here.
 * @capacity: how far the origin can grow; 0: twice its size, if there is room.
 * @granularity: bytes for one bit.
 * @region: bytes for one intent; 0: the default.
 * @checkpoints: how many there can be.
 * @is_forced: whatever is on the device can go.
 */
struct metadata_plan {
	uint64_t origin_size;
	uint64_t capacity;
	uint64_t granularity;
	uint64_t region;
	uint64_t checkpoints;
	bool is_forced;
};

/* Of an origin, with metadata and without. */
#define DEFAULT_GRANULARITY	(64ULL << 10)

/* What is made when nothing is asked for. */
#define METADATA_PLAN_DEFAULT	{ .granularity = DEFAULT_GRANULARITY, .checkpoints = 64 }

/**
 * struct metadata_origin - the origin that metadata is wanted for
 * @path: its name for messages, and for commands in them.
 * @devno: its number. Of an origin that is to be converted: of the device itself, not of
 *	what will be below it.
 * @size: bytes.
 * @is_used: somebody may have been writing to it, unseen by the target.
 * @is_by_hand: it is not attached at boot, before anybody could.
 */
struct metadata_origin {
	const char *path;
	dev_t devno;
	uint64_t size;
	bool is_used;
	bool is_by_hand;
};

/**
 * metadata_open() - open a metadata device, or a file that is an image of one
 * @path: which.
 * @flags: of open(2). With O_EXCL a device that is in use is refused.
 * @fd: set to the descriptor, which the caller closes. It must stay where it is as long
 *	as @io is used.
 * @io: set up for it.
 */
enum status metadata_open(const char *path, int flags, int *fd, struct image_io *io);

/**
 * metadata_is_on() - whether a device holds metadata
 * @path: which.
 *
 * Return: true if a superblock was found on it that could be decoded.
 */
bool metadata_is_on(const char *path);

/**
 * metadata_check_free() - make sure that a device is not the live one of an origin
 * @path: which; a device that cannot be found is left to others to report.
 *
 * As long as nobody has it open nothing else would keep it from being written to.
 */
enum status metadata_check_free(const char *path);

/**
 * metadata_read_origin() - size and identity of an origin
 * @path: which.
 * @bytes: set to its size.
 * @identity: gets a text that is the same after a reboot, or "" if nothing is known; of
 *	FLEECE_MD_IDENTITY_BYTES.
 */
enum status metadata_read_origin(const char *path, uint64_t *bytes, char *identity);

/**
 * metadata_make() - make new metadata
 * @plan: what it is to be like.
 * @path: of the device.
 * @io: the device.
 * @identity: of the origin, see metadata_read_origin(); "": nothing is known.
 */
enum status metadata_make(const struct metadata_plan *plan, const char *path,
			  const struct image_io *io, const char *identity);

/**
 * metadata_check_copies() - is there metadata that this version knows?
 * @image: of the device.
 * @path: of the device.
 *
 * Return: DONE, NO_CHECKPOINT or NO_MODULE.
 */
enum status metadata_check_copies(const struct image *image, const char *path);

/**
 * metadata_check_origin() - is metadata that of an origin?
 * @image: of the metadata device, with a root.
 * @path: of the metadata device.
 * @origin: of the origin.
 * @bytes: its size.
 * @identity: its identity.
 *
 * Return: DONE, or NO_CHECKPOINT.
 */
enum status metadata_check_origin(const struct image *image, const char *path, const char *origin,
				  uint64_t bytes, const char *identity);

/**
 * metadata_report_short() - report that a device is smaller than its metadata
 * @image: of the device, which is_short.
 * @path: of the device.
 *
 * Return: NO_CHECKPOINT.
 */
enum status metadata_report_short(const struct image *image, const char *path);

/**
 * metadata_prepare() - see to it that an origin can use a metadata device
 * @path: of the metadata device.
 * @origin: the origin.
 * @granularity: bytes; 0: what the metadata has, to which it is set.
 * @devno: set to the number of the metadata device.
 *
 * On an empty device metadata is made. One that holds anything else than metadata of just
 * this origin is refused, and stays as it is. If the origin is in use, or has grown, what
 * was written to it since it was attached the last time is not known: its checkpoints are
 * dropped.
 */
enum status metadata_prepare(const char *path, const struct metadata_origin *origin,
			     uint64_t *granularity, dev_t *devno);

/**
 * metadata_miss() - drop the checkpoints of an origin that could not be attached
 * @path: of its metadata device.
 * @origin: the origin. It may be written to from now on. @devno is 0 if it is not there:
 *	then @path alone tells whose metadata this is.
 *
 * Needs no module.
 *
 * Return: DONE if no checkpoint is left, NO_CHECKPOINT if it is not the metadata of this
 * origin, or why it is as it was: BUSY, NO_DEVICE, NO_MODULE, FAILED.
 */
enum status metadata_miss(const char *path, const struct metadata_origin *origin);

#endif
