/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * inflight: the runs of clusters that are being copied.
 *
 * Runs never overlap, and a run never crosses a window: clusters are divided
 * into windows of a fixed power of two, and a hash finds the runs of a window.
 * So a cluster is looked up by one short list.
 *
 * The table has no lock: the caller serialises all calls. It knows nothing of
 * bios and builds in userspace.
 */
#ifndef FLEECE_INFLIGHT_H
#define FLEECE_INFLIGHT_H

#include <linux/list.h>
#include <linux/types.h>

#include "dm-fleece.h"

#define FLEECE_INFLIGHT_HASH_BITS	8

/**
 * struct fleece_run - contiguous clusters of one window
 * @node: in the table.
 * @first: first cluster.
 * @last: last cluster.
 */
struct fleece_run {
	struct list_head node;
	cluster_t first;
	cluster_t last;
};

/**
 * struct fleece_inflight - the table
 * @window_shift: log2 of the clusters in a window; constant.
 * @buckets: lists of struct fleece_run.
 */
struct fleece_inflight {
	unsigned int window_shift;
	struct list_head buckets[1 << FLEECE_INFLIGHT_HASH_BITS];
};

/**
 * fleece_inflight_init() - make an empty table
 * @table: the table.
 * @window_shift: log2 of the clusters in a window.
 */
void fleece_inflight_init(struct fleece_inflight *table, unsigned int window_shift);

/**
 * fleece_inflight_window_last() - last cluster of the window of a cluster
 * @table: the table.
 * @cluster: the cluster.
 */
static inline cluster_t fleece_inflight_window_last(const struct fleece_inflight *table,
						    cluster_t cluster)
{
	return cluster | ((1ULL << table->window_shift) - 1);
}

/**
 * fleece_inflight_find() - the run that a cluster belongs to
 * @table: the table.
 * @cluster: the cluster.
 *
 * Return: the run, or NULL.
 */
struct fleece_run *fleece_inflight_find(struct fleece_inflight *table, cluster_t cluster);

/**
 * fleece_inflight_any() - does one of these clusters belong to a run?
 * @table: the table.
 * @first: first cluster.
 * @last: last cluster.
 *
 * Takes one step for each window.
 */
bool fleece_inflight_any(struct fleece_inflight *table, cluster_t first, cluster_t last);

/**
 * fleece_inflight_add() - add a run
 * @table: the table.
 * @run: within one window, and without a cluster that is in the table. Owned
 *	by the caller, in the table until fleece_inflight_remove().
 */
void fleece_inflight_add(struct fleece_inflight *table, struct fleece_run *run);

/**
 * fleece_inflight_remove() - remove a run
 * @run: a run that is in a table.
 */
void fleece_inflight_remove(struct fleece_run *run);

#endif
