// SPDX-License-Identifier: GPL-2.0-only
/*
 * inflight: the runs of clusters that are being copied, see inflight.h. Owns
 * the table, not the runs; takes no lock.
 */
#include <linux/hash.h>
#include <linux/kernel.h>
#include <linux/list.h>

#include "inflight.h"

static struct list_head *bucket_of(struct fleece_inflight *table, cluster_t cluster)
{
	u64 window = cluster >> table->window_shift;

	return &table->buckets[hash_64(window, FLEECE_INFLIGHT_HASH_BITS)];
}

void fleece_inflight_init(struct fleece_inflight *table, unsigned int window_shift)
{
	unsigned int i;

	table->window_shift = window_shift;
	for (i = 0; i < ARRAY_SIZE(table->buckets); i++)
		INIT_LIST_HEAD(&table->buckets[i]);
}

struct fleece_run *fleece_inflight_find(struct fleece_inflight *table, cluster_t cluster)
{
	struct fleece_run *run;

	list_for_each_entry(run, bucket_of(table, cluster), node) {
		if (run->first <= cluster && cluster <= run->last)
			return run;
	}
	return NULL;
}

bool fleece_inflight_any(struct fleece_inflight *table, cluster_t first, cluster_t last)
{
	struct fleece_run *run;
	cluster_t c;

	for (c = first; c <= last; c = fleece_inflight_window_last(table, c) + 1) {
		list_for_each_entry(run, bucket_of(table, c), node) {
			if (run->first <= last && run->last >= first)
				return true;
		}
	}
	return false;
}

void fleece_inflight_add(struct fleece_inflight *table, struct fleece_run *run)
{
	list_add(&run->node, bucket_of(table, run->first));
}

void fleece_inflight_remove(struct fleece_run *run)
{
	list_del(&run->node);
}
