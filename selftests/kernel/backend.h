/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the oracle examines: origins and their snapshots.
 *
 * Two of them exist: the real one (backend_dm.c) and one in memory with faults on
 * order (backend_fake.c), by which the oracle itself is tested. Functions return
 * 0 or -errno; devices are numbered from 0.
 */
#ifndef FLEECE_TEST_BACKEND_H
#define FLEECE_TEST_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

/**
 * struct snapshot_options - how a snapshot is to be made
 * @cluster: sectors.
 * @slots: room on the COW device, in clusters.
 * @staging: sectors.
 * @policy: feature arguments, pairs of a word and a value.
 * @since: checkpoint, or NULL.
 * @checkpoint: checkpoint to be made at the same moment, or NULL.
 */
struct snapshot_options {
	uint64_t cluster;
	uint64_t slots;
	uint64_t staging;
	const char *policy;
	const char *since;
	const char *checkpoint;
};

/**
 * struct backend - the operations
 * @hold: suspend an origin.
 * @let_go: resume it.
 * @checkpoint_create: make a checkpoint.
 * @checkpoint_delete: delete one.
 * @snapshot_create: make a snapshot of an origin, and open it.
 * @snapshot_remove: close and remove it.
 * @snapshot_release: release sectors of it, by a discard or by the message.
 * @snapshot_pause: suspend and resume it.
 * @snapshot_grow: let its COW device have room for more slots of a size in sectors.
 * @snapshot_has_lost: 1 when it has lost clusters, and one that it cannot serve is among
 *	these sectors; else 0.
 * @snapshot_state: 0 while it is good, else the (negative) errno that broke it.
 * @snapshot_is_idle: 1 when no copy is under way, 0 when one is.
 * @snapshot_read: read sectors.
 * @snapshot_map: a map of FLEECE_IOC_EXTENTS, one byte for each sector; NULL if
 *	there are no maps, then @since is never asked for.
 * @origin_read: read sectors.
 * @origin_write: write sectors.
 * @origin_zero: write zeroes to sectors.
 * @origin_discard: discard sectors; afterwards there are zeroes, or what was there.
 */
struct backend {
	int (*hold)(unsigned int device);
	int (*let_go)(unsigned int device);
	int (*checkpoint_create)(unsigned int device, const char *name);
	int (*checkpoint_delete)(unsigned int device, const char *name);
	int (*snapshot_create)(unsigned int device, const struct snapshot_options *options);
	int (*snapshot_remove)(unsigned int device);
	int (*snapshot_release)(unsigned int device, uint64_t sector, uint64_t count,
				bool discard);
	int (*snapshot_pause)(unsigned int device);
	int (*snapshot_grow)(unsigned int device, uint64_t cluster, uint64_t slots);
	int (*snapshot_has_lost)(unsigned int device, uint64_t sector, uint64_t count);
	int (*snapshot_state)(unsigned int device);
	int (*snapshot_is_idle)(unsigned int device);
	int (*snapshot_read)(unsigned int device, uint64_t sector, uint64_t count, void *data);
	int (*snapshot_map)(unsigned int device, uint32_t map, const char *checkpoint,
			    uint8_t *values);
	int (*origin_read)(unsigned int device, uint64_t sector, uint64_t count, void *data);
	int (*origin_write)(unsigned int device, uint64_t sector, uint64_t count,
			    const void *data);
	int (*origin_zero)(unsigned int device, uint64_t sector, uint64_t count);
	int (*origin_discard)(unsigned int device, uint64_t sector, uint64_t count);
};

/**
 * backend_dm_open() - the real one
 * @origins: for each device "NAME:LOWER:COW": dm name of the origin, path of its
 *	lower device, path of a device for COW space.
 * @devices: number of them.
 * @sectors: set to the size, the same for all.
 *
 * Return: the operations; NULL after a message on stderr.
 */
const struct backend *backend_dm_open(char *const *origins, unsigned int devices,
				      uint64_t *sectors);

/**
 * enum fault - what the fake does wrong
 * @FAULT_NONE: nothing.
 * @FAULT_NEWER: the snapshot shows later writes.
 * @FAULT_TORN: half of a sector is of a later write.
 * @FAULT_PLACE: another sector's data is served.
 * @FAULT_DEVICE: the other device's data is served.
 * @FAULT_LOST: a write completed before the snapshot is missing in it.
 * @FAULT_UNHELD: the snapshots of a group are not of the same moment.
 * @FAULT_GHOST: released clusters can still be read.
 * @FAULT_DENIED: readable clusters are refused.
 * @FAULT_EIO: a read fails without a broken snapshot.
 * @FAULT_EIO_ELSEWHERE: a read of other clusters than the lost one fails.
 * @FAULT_ZERO: zeroes are served.
 * @FAULT_LIVE_ERROR: a live write fails.
 * @FAULT_LIVE_LOST: a live write does not arrive.
 * @FAULT_ZEROES_LOST: live zeroes do not arrive.
 * @FAULT_ZEROES_THROUGH: the snapshot shows later zeroes.
 * @FAULT_DISCARD_LOST: a discard does nothing.
 * @FAULT_DISCARD_THROUGH: the snapshot shows later discards.
 */
enum fault {
	FAULT_NONE,
	FAULT_NEWER,
	FAULT_TORN,
	FAULT_PLACE,
	FAULT_DEVICE,
	FAULT_LOST,
	FAULT_UNHELD,
	FAULT_GHOST,
	FAULT_DENIED,
	FAULT_EIO,
	FAULT_EIO_ELSEWHERE,
	FAULT_ZERO,
	FAULT_LIVE_ERROR,
	FAULT_LIVE_LOST,
	FAULT_ZEROES_LOST,
	FAULT_ZEROES_THROUGH,
	FAULT_DISCARD_LOST,
	FAULT_DISCARD_THROUGH,
};

/**
 * backend_fake_open() - devices in memory
 * @devices: number of them.
 * @sectors: size of each.
 * @fault: what to do wrong.
 * @advisory: a discard may leave some sectors as they are.
 *
 * Return: the operations; NULL when there is no memory.
 */
const struct backend *backend_fake_open(unsigned int devices, uint64_t sectors,
					enum fault fault, bool advisory);

#endif
