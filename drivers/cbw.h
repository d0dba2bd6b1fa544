/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cbw: the copy-before-write engine of one snapshot.
 *
 * It decides which live writes must wait, copies the old data of the clusters
 * they are about to overwrite to the COW device, and tells where the data of a
 * cluster of the snapshot is now. What a live write is and how it goes on, what
 * a table line looks like, and what a reader sees is other files' concern.
 *
 * State of a cluster: two bits, access (a) and done (d), and the run in the
 * in-flight table while a copy is under way:
 *
 *   a d  in flight      snapshot read                    overwrite
 *   1 0  no             origin, then recheck             start a copy, wait for it
 *   1 0  reading        origin, then recheck             wait for the copy
 *   1 1  staged         from RAM                         go
 *   1 1  no             from its slot, then recheck      go
 *   0 -  -              ENODATA (EIO if lost)            go
 *
 * a only falls, d only rises. A copy of a snapshot without staging stays in
 * the second row until the COW device has it, and never gets to the third.
 *
 * State of a slot: free -> taken (by a copy in flight) -> owned (by a cluster)
 * -> free. If the cluster's access falls while it is taken, the copy frees it
 * when its write has ended, never before: so a late write cannot hit a slot
 * that has a new owner.
 *
 * State of the snapshot: FLEECE_CBW_NEW -> ACTIVE -> BROKEN, never back.
 *
 * Ordering of the optimistic read. A reader sends a read of clusters with d = 0
 * to the origin without a lock, and looks at their bits again when the data
 * has arrived. Let W be a live write that overwrites such a cluster, and say
 * the read returned W's data. Then
 *
 *   old data is in RAM -> d := 1 -> smp_mb() (A) -> W is let go -> W is
 *   submitted -> the device performs W -> the device performs the read ->
 *   the read completes -> smp_mb() (B) -> the bits are read again
 *
 * A writer that was not waiting but found d = 1 by itself is ordered in the same
 * way: it submits W after it read d (control dependency), and handing a bio to
 * a device orders all earlier accesses, cumulatively, before the device's own.
 * So the reader finds d = 1 and serves the cluster again from where it is now.
 * When access falls, by a release or a loss, waiting writes are let go without d;
 * the readers find a = 0. There test_and_clear_bit(), fully ordered when it has
 * cleared the bit, is (A).
 * A break does the same with the state in the place of d: it is set before (A)
 * and before the first write is let go without a copy. Without (A) the write
 * could overtake the bit, without (B) the bit could be read before the data.
 * Removing the origin's device, or putting another table in its place, is a
 * break as well, see fleece_origin_is_watched().
 *
 * A read from a slot looks at a again, which falls, under the lock, before the
 * slot is freed: if the slot had a new owner when the data was read, a is 0.
 *
 * selftests/model has the protocol as a whole, and each of these arguments in the
 * kernel's memory model, with and without its barriers.
 */
#ifndef FLEECE_CBW_H
#define FLEECE_CBW_H

#include <linux/bio.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "bits.h"
#include "inflight.h"
#include "pages.h"
#include "store.h"

enum fleece_cbw_state {
	FLEECE_CBW_NEW,
	FLEECE_CBW_ACTIVE,
	FLEECE_CBW_BROKEN,
};

/**
 * enum fleece_on_error - what a failed copy does, see dm-fleece.rst
 * @FLEECE_BREAK_SNAPSHOT: the snapshot breaks.
 * @FLEECE_BREAK_CLUSTER: the snapshot loses the clusters concerned.
 * @FLEECE_BREAK_WRITE: the live write fails, the snapshot is kept.
 */
enum fleece_on_error {
	FLEECE_BREAK_SNAPSHOT,
	FLEECE_BREAK_CLUSTER,
	FLEECE_BREAK_WRITE,
};

/**
 * struct fleece_waiter - a live write that waits for copies
 * @node: in the list of the copy, or of the writes not yet served. Owned by
 *	the engine from fleece_cbw_park() until it calls the resume method.
 * @since: jiffies when it began to wait; set by the caller.
 * @first: first cluster that it overwrites.
 * @last: last cluster that it overwrites.
 * @error: set by the engine, a positive errno: the write must fail with it.
 */
struct fleece_waiter {
	struct list_head node;
	unsigned long since;
	cluster_t first;
	cluster_t last;
	int error;
};

/**
 * struct fleece_cbw_methods - what the engine asks of its surroundings
 * @resume: fail the waiting writes that have an error, and look at the others
 *	again. Called in process context, without a lock that the way of a live write
 *	takes; the list is the callee's.
 * @event: the status has news. Called in process context, without a lock of the engine.
 */
struct fleece_cbw_methods {
	void (*resume)(void *resume_context, struct list_head *waiters);
	void (*event)(void *event_context);
};

/**
 * struct fleece_cbw_config - what a snapshot is made of
 * @name: for messages; outlives the engine.
 * @origin: where old data is read.
 * @cow: where it is written.
 * @nr_sectors: size of the origin.
 * @cluster_sectors: power of two.
 * @limited: only what fleece_cbw_activate() names is accessible.
 * @on_error: what a failed copy does.
 * @wait_when_full: writes wait for a free slot, at most @timeout_ms.
 * @staging_bytes: RAM for clusters that are not yet on the COW device.
 * @timeout_ms: longest time that a write may wait, but for a hundredth of it; 0: no limit.
 * @low_water_slots: event when fewer slots are free; 0: none.
 * @methods: see there.
 * @resume_context: argument of the resume method.
 * @event_context: argument of the event method.
 */
struct fleece_cbw_config {
	const char *name;
	struct block_device *origin;
	struct block_device *cow;
	sector_t nr_sectors;
	unsigned int cluster_sectors;
	bool limited;
	enum fleece_on_error on_error;
	bool wait_when_full;
	u64 staging_bytes;
	unsigned int timeout_ms;
	u32 low_water_slots;
	const struct fleece_cbw_methods *methods;
	void *resume_context;
	void *event_context;
};

/*
 * struct fleece_cbw - the engine
 *
 * @node: the user's, to keep several engines of one origin.
 *
 * Constant: @serial (no two engines have the same), @config, @cluster_shift (log2
 * of the sectors of a cluster), @nr_clusters, @bios_per_copy, @buffer_limit_bytes
 * (for all copies together).
 *
 * @state: changes under @lock, read without it.
 * @access: bit a; atomic bit operations.
 * @done: bit d; set under @lock, read without it.
 * @unmerged: while @merge is not yet through, also the clusters changed according
 *	to this view count as accessible; NULL otherwise. Set before the engine is
 *	activated, cleared once.
 * @unmerged_granule_shift: log2 of the sectors of a bit of @unmerged.
 * @lost: the clusters whose access fell because their copy failed.
 *
 * Protected by @lock: @store, @inflight, @unserved (writes for which no copy could be started
 * yet), @pass_at (when @pass looks at some of them at the earliest, in ns), @pass_from (the
 * next one, while it has not looked at all of them), @pass_again (meanwhile something has
 * happened: all need one more look), @nr_waiting (live writes on any list), @is_watching (the
 * watchdog is armed), @watch_at (when it looks at them), @nr_copies (read without it where a
 * guess is enough), @buffered_bytes (of all copies), @staged_bytes (of those whose writes were
 * let go), @gathered (those of them that @store_gathered is to store), @gathered_bytes, the
 * counters, @error and @error_sector.
 *
 * @low_water_told, @full_told: somebody was told of it, and nobody yet that it has ended.
 *
 * @grow_lock: the right to grow @store.
 * Protected by @release_lock: @partial (clusters released in part) and @nr_partial.
 * @copies, @pages, @bios: what copies are made of, with reserves. @batches: one bio for several
 *	staged copies. @rescue_bios, @rewrite_bios: one for a copy that goes on cluster by
 *	cluster, and holds bios of @bios meanwhile.
 * @idle: woken when @nr_copies gets 0.
 * @wq: runs steps of copies on the CPU that queues them, usually where the I/O has ended.
 * @any_cpu_wq: runs those that are spread, @merge and @pass.
 * @cow_wq: runs @store_gathered, and the steps that may wait for the COW device. If that
 *	hangs, data that is read still gets to the writes and the followers that wait for
 *	it.
 * @watch_wq: runs @watchdog, which must not wait behind a copy whose device hangs.
 * @memory_wq: runs @serve, which may wait for memory.
 */
struct fleece_cbw {
	struct list_head node;
	u64 serial;
	struct fleece_cbw_config config;
	unsigned int cluster_shift;
	cluster_t nr_clusters;
	unsigned int bios_per_copy;
	u64 buffer_limit_bytes;

	enum fleece_cbw_state state;
	unsigned long *access;
	unsigned long *done;
	struct fleece_view *unmerged;
	unsigned int unmerged_granule_shift;
	struct xarray lost;

	spinlock_t lock;		/* see above */
	struct fleece_store store;
	struct fleece_inflight inflight;
	struct list_head unserved;
	u64 pass_at;
	struct fleece_waiter *pass_from;
	bool pass_again;
	unsigned int nr_waiting;
	bool is_watching;
	unsigned long watch_at;
	unsigned int nr_copies;
	u64 buffered_bytes;
	u64 staged_bytes;
	struct list_head gathered;
	u64 gathered_bytes;
	u64 nr_accessible;
	u64 nr_copied;
	u64 nr_released;
	u64 nr_lost;
	int error;
	sector_t error_sector;
	bool low_water_told;
	bool full_told;

	struct mutex grow_lock;		/* the right to grow the store */
	struct mutex merge_lock;	/* the right to clear unmerged */
	struct mutex lose_lock;		/* the right to lose a cluster */
	struct mutex release_lock;	/* partial, nr_partial */
	struct xarray partial;
	unsigned int nr_partial;

	mempool_t copies;
	struct fleece_pages pages;
	struct bio_set bios;
	struct bio_set batches;
	struct bio_set rescue_bios;
	struct bio_set rewrite_bios;
	wait_queue_head_t idle;
	struct workqueue_struct *wq;
	struct workqueue_struct *any_cpu_wq;
	struct workqueue_struct *cow_wq;
	struct workqueue_struct *watch_wq;
	struct workqueue_struct *memory_wq;
	struct delayed_work serve;
	struct delayed_work pass;
	struct delayed_work store_gathered;
	struct work_struct merge;
	struct delayed_work watchdog;
};

/*
 * struct fleece_cbw_status - numbers for a status line
 *
 * Before the snapshot is taken the error is EAGAIN.
 */
struct fleece_cbw_status {
	enum fleece_cbw_state state;
	u32 slots_used;
	u32 slots_total;
	u64 accessible;
	u64 copied;
	u64 released;
	u64 lost;
	u64 staged_bytes;
	unsigned int waiting;
	int error;
	sector_t error_sector;
};

/**
 * enum fleece_place_kind - where data of the snapshot is
 * @FLEECE_PLACE_ORIGIN: on the origin, unless it was overwritten meanwhile.
 * @FLEECE_PLACE_SLOT: on the COW device, unless it was released meanwhile.
 * @FLEECE_PLACE_STAGED: in RAM.
 * @FLEECE_PLACE_DENIED: nowhere, not accessible.
 * @FLEECE_PLACE_LOST: nowhere, the snapshot is broken or lost the cluster.
 */
enum fleece_place_kind {
	FLEECE_PLACE_ORIGIN,
	FLEECE_PLACE_SLOT,
	FLEECE_PLACE_STAGED,
	FLEECE_PLACE_DENIED,
	FLEECE_PLACE_LOST,
};

struct fleece_copy;

/**
 * struct fleece_place - result of fleece_cbw_locate()
 * @kind: see there.
 * @nr_sectors: how far it goes.
 * @sector: first sector on the COW device, for FLEECE_PLACE_SLOT.
 * @copy: a reference, for FLEECE_PLACE_STAGED; see fleece_cbw_read_staged().
 */
struct fleece_place {
	enum fleece_place_kind kind;
	sector_t nr_sectors;
	sector_t sector;
	struct fleece_copy *copy;
};

/**
 * fleece_cbw_slots() - how many slots a COW device has
 * @cow_sectors: its size.
 * @cluster_sectors: size of a slot.
 *
 * Return: the number; 0 if it is too small for one.
 */
u32 fleece_cbw_slots(sector_t cow_sectors, unsigned int cluster_sectors);

/**
 * fleece_cbw_create() - allocate an engine in state FLEECE_CBW_NEW
 * @config: copied.
 * @error: set to a message on failure.
 *
 * All that is proportional to the device is allocated here.
 *
 * Context: Process, may sleep.
 * Return: the engine or an ERR_PTR: -ENOMEM, -ENOSPC (COW device too small).
 */
struct fleece_cbw *fleece_cbw_create(const struct fleece_cbw_config *config, char **error);

/**
 * fleece_cbw_drain() - end all copies
 * @cbw: stopped, and no longer seen by any writer or reader.
 *
 * Afterwards the devices are not used any more; maps and numbers can be read.
 *
 * Context: Process, waits for the I/O of copies in flight.
 */
void fleece_cbw_drain(struct fleece_cbw *cbw);

/**
 * fleece_cbw_destroy() - free the engine
 * @cbw: drained.
 *
 * Context: Process, may sleep.
 */
void fleece_cbw_destroy(struct fleece_cbw *cbw);

/**
 * fleece_cbw_activate() - from now on, old data is kept
 * @cbw: in state FLEECE_CBW_NEW.
 * @changed: with @config.limited, only the clusters changed according to this
 *	view are accessible; it is used until fleece_cbw_destroy(). Else NULL.
 * @granule_sectors: what a bit of @changed stands for.
 *
 * Constant time. Called while no write of the origin is under way, before the
 * engine is shown to writers.
 */
void fleece_cbw_activate(struct fleece_cbw *cbw, struct fleece_view *changed,
			 unsigned int granule_sectors);

/**
 * fleece_cbw_break() - give the snapshot up
 * @cbw: the engine; nothing happens if it is broken already.
 * @error: errno, positive.
 * @sector: first sector of the origin concerned.
 * @cause: for the log: what failed.
 *
 * All waiting writes go on. No new I/O to the COW device is started.
 *
 * Context: Process, without locks of the engine.
 */
void fleece_cbw_break(struct fleece_cbw *cbw, int error, sector_t sector, const char *cause);

/**
 * fleece_cbw_stop() - the snapshot is being removed
 * @cbw: the engine.
 *
 * As fleece_cbw_break(), but nothing is wrong, so nothing is said.
 *
 * Context: Process, without locks of the engine.
 */
void fleece_cbw_stop(struct fleece_cbw *cbw);

/**
 * fleece_cbw_is_active() - can the snapshot be read?
 * @cbw: the engine.
 */
static inline bool fleece_cbw_is_active(const struct fleece_cbw *cbw)
{
	return READ_ONCE(cbw->state) == FLEECE_CBW_ACTIVE;
}

/**
 * fleece_cbw_cluster() - the cluster of a sector
 * @cbw: the engine.
 * @sector: of the origin.
 */
static inline cluster_t fleece_cbw_cluster(const struct fleece_cbw *cbw, sector_t sector)
{
	return sector >> cbw->cluster_shift;
}

/**
 * fleece_cbw_needs() - the run of clusters that must, or need not, be copied
 * @cbw: the engine.
 * @first: first cluster of the run.
 * @last: look no further than this one.
 * @length: set to the number of clusters with the same answer.
 *
 * Context: Any.
 * Return: true if these must be copied before they are overwritten.
 */
bool fleece_cbw_needs(struct fleece_cbw *cbw, cluster_t first, cluster_t last, u64 *length);

/**
 * fleece_cbw_blocks() - must a write of this range wait?
 * @cbw: the engine.
 * @sector: first sector.
 * @nr_sectors: above 0.
 *
 * Lock-free; one look at the maps for each 64 clusters where everything has been copied.
 *
 * Context: Any.
 */
bool fleece_cbw_blocks(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors);

/**
 * fleece_cbw_grow() - use all of the COW device
 * @cbw: the engine.
 *
 * Writes that wait for a slot go on.
 *
 * Context: Process, may sleep; the origin may be suspended.
 * Return: 0, also when the COW device has not grown; -EINVAL if it is smaller than
 * it was, -EIO if the engine is not active, or -ENOMEM; then nothing is changed,
 * and the log says why.
 */
int fleece_cbw_grow(struct fleece_cbw *cbw);

/**
 * fleece_cbw_start() - start the copies that a write will wait for
 * @cbw: the engine.
 * @sector: first sector that it overwrites.
 * @nr_sectors: above 0.
 * @leader: another engine of the same origin, or NULL. What it is just reading is
 *	not read again. It must not go before the caller returns.
 * @reads: to which the reads are added, as with fleece_cbw_park().
 *
 * So that several engines begin at once, before the write waits for the first one. What
 * cannot be started now is left to fleece_cbw_park().
 *
 * Context: Process, takes cbw->lock, does not sleep. The engines are kept by RCU.
 */
void fleece_cbw_start(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors,
		      struct fleece_cbw *leader, struct bio_list *reads);

/**
 * fleece_cbw_park() - start the copies that a write needs, and let it wait
 * @cbw: the engine.
 * @waiter: range and since are set.
 * @reads: to which the reads are added that the caller must submit once it can
 *	sleep again, also if false is returned.
 *
 * Context: Process, takes cbw->lock, does not sleep. After true was returned the waiter belongs to
 * the engine, which may already have passed it to the resume method.
 * Return: true if it waits; false if there is nothing to wait for any more.
 */
bool fleece_cbw_park(struct fleece_cbw *cbw, struct fleece_waiter *waiter,
		     struct bio_list *reads);

/**
 * fleece_cbw_locate() - where the data of a range is now
 * @cbw: the engine.
 * @sector: first sector.
 * @nr_sectors: above 0, within the device.
 * @place: filled in; covers at least the first sector.
 *
 * Context: Process, takes cbw->lock unless the data is still on the origin.
 */
void fleece_cbw_locate(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors,
		       struct fleece_place *place);

/**
 * fleece_cbw_read_staged() - copy data from RAM and drop the reference
 * @cbw: the engine.
 * @place: of kind FLEECE_PLACE_STAGED.
 * @sector: first sector, as given to fleece_cbw_locate().
 * @bio: whose pages to fill.
 * @iter: the part of the bio, not longer than the place.
 *
 * Context: Process, takes cbw->lock.
 */
void fleece_cbw_read_staged(struct fleece_cbw *cbw, struct fleece_place *place, sector_t sector,
			    struct bio *bio, struct bvec_iter iter);

/**
 * fleece_cbw_still_there() - recheck after a read
 * @cbw: the engine.
 * @kind: FLEECE_PLACE_ORIGIN or FLEECE_PLACE_SLOT: where it was read.
 * @sector: first sector.
 * @nr_sectors: above 0.
 *
 * Context: Any. Contains barrier (B).
 * Return: true if the data that was read is that of the point in time.
 */
bool fleece_cbw_still_there(struct fleece_cbw *cbw, enum fleece_place_kind kind, sector_t sector,
			    sector_t nr_sectors);

/**
 * fleece_cbw_release() - the client is done with a range
 * @cbw: the engine.
 * @sector: first sector.
 * @nr_sectors: within the device.
 *
 * Whole clusters become inaccessible and their slots free. Parts of clusters are
 * remembered; a cluster is released when its parts add up.
 *
 * Context: Process, may sleep.
 * Return: 0; -ENOSPC or -ENOMEM when a part cannot be remembered, the whole
 * clusters of the range are released nevertheless.
 */
int fleece_cbw_release(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors);

/**
 * fleece_cbw_finish_merge() - make sure that the access map is complete
 * @cbw: the engine.
 *
 * Afterwards bits of the map only fall.
 *
 * Context: Process, takes at most one pass over the map.
 */
void fleece_cbw_finish_merge(struct fleece_cbw *cbw);

/**
 * fleece_cbw_get_status() - the numbers now
 * @cbw: the engine.
 * @status: filled in.
 *
 * Context: Process, may sleep.
 */
void fleece_cbw_get_status(struct fleece_cbw *cbw, struct fleece_cbw_status *status);

#endif
