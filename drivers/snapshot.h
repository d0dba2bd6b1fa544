/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * snapshot: target "fleece-snapshot", the frozen image.
 *
 * Like an origin, a snapshot outlives a single table: a reload of the same table
 * of the same device-mapper device shares it. It becomes one with the first
 * resume, ends with the last table, and its memory with the last reference.
 */
#ifndef FLEECE_SNAPSHOT_H
#define FLEECE_SNAPSHOT_H

#include <linux/device-mapper.h>
#include <linux/kref.h>
#include <linux/mutex.h>
#include <linux/workqueue.h>

#include "cbw.h"
#include "origin.h"
#include "tracker.h"

/**
 * struct fleece_snapshot_options - what a table line says
 * @cluster_sectors: power of two.
 * @since: checkpoint that limits what is accessible; empty: all is.
 * @checkpoint: checkpoint to be made at the point in time; empty: none.
 * @on_error: see struct fleece_cbw_config.
 * @wait_when_full: see there.
 * @timeout_ms: see there.
 * @low_water_slots: see there.
 * @staging_sectors: see there, in sectors.
 * @release_on_discard: a discard releases.
 * @given: which feature arguments were given.
 */
struct fleece_snapshot_options {
	unsigned int cluster_sectors;
	char since[FLEECE_CHECKPOINT_NAME_MAX + 1];
	char checkpoint[FLEECE_CHECKPOINT_NAME_MAX + 1];
	enum fleece_on_error on_error;
	bool wait_when_full;
	unsigned int timeout_ms;
	unsigned int low_water_slots;
	unsigned int staging_sectors;
	bool release_on_discard;
	unsigned long given;
};

/*
 * struct fleece_snapshot - one snapshot
 *
 * Constant: @md (only compared), @md_devt, @origin (a reference), @cow,
 * @options, @cbw, @wq (runs releases and repeated reads).
 *
 * @kref: memory.
 * @node: in the list of snapshots; protected by the registry lock, as are
 * @nr_tables and
 * @is_prepared: the COW device has its header; until then the table that it was made for is
 *	the only one.
 * @spare: segment for the switch at the point in time.
 * @is_taken: set once, by the first resume; before it is set nobody looks at
 * @history: the changes up to the point in time, and
 * @since: its part since options.since.
 * @ti_lock: protects @ti, the table that hears of events, and
 * @has_untold_event: there was none, as before the end of the first resume.
 */
struct fleece_snapshot {
	struct kref kref;
	struct list_head node;
	unsigned int nr_tables;
	bool is_prepared;

	struct mapped_device *md;
	dev_t md_devt;
	struct fleece_origin *origin;
	struct fleece_claim cow;
	struct fleece_snapshot_options options;
	struct fleece_cbw *cbw;
	struct workqueue_struct *wq;

	struct fleece_segment *spare;
	struct fleece_history history;
	struct fleece_view since;
	bool is_taken;

	struct mutex ti_lock;		/* ti, has_untold_event */
	struct dm_target *ti;
	bool has_untold_event;
};

/**
 * fleece_snapshot_find_md() - the snapshot that is a device-mapper device
 * @devt: number of that device.
 *
 * Context: Process, takes the registry lock.
 * Return: a reference to a snapshot that has been taken, or NULL.
 */
struct fleece_snapshot *fleece_snapshot_find_md(dev_t devt);

/**
 * fleece_snapshot_put() - drop a reference
 * @snap: the snapshot.
 *
 * Context: Process, may sleep, holds no lock of an origin.
 */
void fleece_snapshot_put(struct fleece_snapshot *snap);

/**
 * fleece_snapshot_init() - register the target
 *
 * Return: 0 or a negative errno.
 */
int fleece_snapshot_init(void);

/**
 * fleece_snapshot_exit() - unregister the target
 */
void fleece_snapshot_exit(void);

#endif
