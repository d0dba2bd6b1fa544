// SPDX-License-Identifier: GPL-2.0-only
/*
 * cbw: the copy-before-write engine of one snapshot, see cbw.h for the state
 * tables and the ordering argument. Owns the access and done maps, the copies in
 * flight and the writes that wait for them.
 *
 * Life of a copy: claim_run() takes slots and enters the run into the in-flight
 * table; memory is found and the old data is read (COPY_READ); when it is in RAM
 * within the staging budget, done is set and the waiting writes go on; the data
 * is written to the slots (COPY_STORE, COPY_WRITE); finish_copy() makes the clusters the
 * owners of their slots and leaves the table. Steps run in work items, or in a thread
 * that submits, so no lock is ever taken in an interrupt.
 *
 * Memory: all buffers together stay below buffer_limit_bytes. The first attempt
 * to start a copy is made by the writer itself and does not sleep; what it cannot
 * get is left to the work item serve, which may wait for memory, and draws on
 * reserves that only copies in flight hold. They give it back by work items of
 * their own, which never wait for memory and do not share a queue with serve.
 * There is one serve only: of two that each hold half of a reserve, neither would
 * ever get on.
 */
#include <linux/bitmap.h>
#include <linux/err.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "bios.h"
#include "cbw.h"

#define DM_MSG_PREFIX		"fleece cbw"

/* One bio carries at most this much; so does one copy, unless a cluster is larger. */
#define BIO_SECTORS		2048U
#define BIO_BYTES		(BIO_SECTORS << SECTOR_SHIFT)
#define BIO_PAGES		(BIO_BYTES / PAGE_SIZE)

/* Buffers of a snapshot that stages little or nothing: copies still need some. */
#define BUFFER_BYTES_MIN	(8U << 20)

/* Pages kept for the next copies: no more than the least limit of all buffers. */
#define KEPT_PAGES		(BUFFER_BYTES_MIN / PAGE_SIZE)

#define RESERVED_COPIES		16
#define RESERVED_BIOS		32

/* Clusters that may be partly released at a time. */
#define PARTIAL_MAX		4096

/* Before the next attempt to get memory for the store's entries. */
#define SERVE_RETRY_JIFFIES	max(HZ / 100, 1)
/* Writes not yet served that are looked at without a break. */
#define PASS_MAX		4096
/* Until the next ones are: a multiple of the time that it took, but not more than this. */
#define PASS_PAUSE		16
#define PASS_PAUSE_MAX_NS	(NSEC_PER_SEC / 2)
/* The watchdog looks at all writes that wait, so not more often than this part of the timeout. */
#define WATCHDOG_PART		128

/* Copies under way from which on those of a busy CPU are spread to others. */
#define SPREAD_COPIES		4

/* Workers that a slow COW device may hold up at a time. */
#define STORING_MAX		8

/* Clusters that are looked up without a break while live writes wait for the lock. */
#define LOCATE_MAX		256

/*
 * Staged data is held for this long, or until there is so much, or half of what may be
 * staged, to be stored at once.
 */
#define GATHER_JIFFIES		1
#define GATHER_BYTES		(256U << 10)
#define BATCH_PAGES		(GATHER_BYTES / PAGE_SIZE)

/* Clusters that become accessible before the CPU is offered once. */
#define MERGE_BATCH		65536

/* Clusters looked at for a release at a time. */
#define RELEASE_BATCH		4096

/* Steps of a release, each of a cluster or a word, before the lock is given up once. */
#define RELEASE_STEPS		64

/* Hash chains of the store moved before the lock is given up once. */
#define MOVE_BATCH		256

/* Made so far, which gives each one its serial. */
static atomic64_t nr_engines = ATOMIC64_INIT(0);

enum copy_phase {
	COPY_READ,
	COPY_STORE,
	COPY_WRITE,
};

/**
 * struct fleece_part - a bio of a copy
 * @bio: holds the pages; read with, then written with.
 * @vecs: its entries, one for each page. Constant, while @bio is reset.
 */
struct fleece_part {
	struct bio *bio;
	const struct bio_vec *vecs;
};

/**
 * struct fleece_copy - the copying of one run
 * @run: in the in-flight table until finish_copy().
 * @refs: one for being in flight, one for each reader of staged data, and for who goes on
 *	to look at it after it was gathered.
 * @cbw: the engine.
 * @work: next step.
 * @phase: what the next step is about; changed by the step itself.
 * @reader: the thread that submits the reads; only to be compared with.
 * @slot: first of the contiguous slots taken.
 * @waiters: live writes; protected by cbw->lock.
 * @followers: copies of other engines that get their data from this one, until it
 *	@is_read; protected by cbw->lock.
 * @follower: in @followers of another engine's copy; protected by its lock.
 * @gathered: in the list of the engine, protected by cbw->lock; then of a batch.
 * @has_memory: for its data, so that nothing but the origin is waited for until it @is_read.
 * @is_read: the data is in RAM, or the reading has failed; protected by cbw->lock.
 * @is_staged: done is set although the COW device has not got the data;
 *	protected by cbw->lock.
 * @pending: bios under way.
 * @status: of the first one that failed.
 * @error: errno, positive: no copy of the clusters from @bad_first to @bad_last can
 *	be had, so the live writes that need them fail (FLEECE_BREAK_WRITE).
 * @bad_first: see @error.
 * @bad_last: see @error.
 * @nr_parts: bios that are allocated.
 * @parts: BIO_SECTORS each, but the last one.
 */
struct fleece_copy {
	struct fleece_run run;
	refcount_t refs;
	struct fleece_cbw *cbw;
	struct work_struct work;
	enum copy_phase phase;
	const struct task_struct *reader;
	u32 slot;
	struct list_head waiters;
	struct list_head followers;
	struct list_head follower;
	struct list_head gathered;
	bool has_memory;
	bool is_read;
	bool is_staged;
	atomic_t pending;
	blk_status_t status;
	int error;
	cluster_t bad_first;
	cluster_t bad_last;
	unsigned int nr_parts;
	struct fleece_part parts[];
};

/**
 * struct fleece_batch - staged data of copies whose slots are neighbours, written at once
 * @cbw: the engine.
 * @copies: they lend it their pages.
 * @work: when the write has ended.
 * @bio: the write; its memory is that of the batch.
 */
struct fleece_batch {
	struct fleece_cbw *cbw;
	struct list_head copies;
	struct work_struct work;
	struct bio bio;
};

static struct fleece_copy *copy_of(struct fleece_run *run)
{
	return container_of(run, struct fleece_copy, run);
}

static sector_t cluster_to_sector(const struct fleece_cbw *cbw, cluster_t cluster)
{
	return (sector_t)cluster << cbw->cluster_shift;
}

/* Sectors of the clusters from @first to @last; the device's last one may be short. */
static sector_t clusters_sectors(const struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	sector_t end = min(cluster_to_sector(cbw, last + 1), cbw->config.nr_sectors);

	return end - cluster_to_sector(cbw, first);
}

static u64 copy_bytes(const struct fleece_copy *copy)
{
	return (u64)clusters_sectors(copy->cbw, copy->run.first, copy->run.last) << SECTOR_SHIFT;
}

/* What the buffers of a copy of these clusters take: a page may be larger than a cluster. */
static u64 clusters_memory(const struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	return round_up((u64)clusters_sectors(cbw, first, last) << SECTOR_SHIFT, (u64)PAGE_SIZE);
}

static u64 copy_memory(const struct fleece_copy *copy)
{
	return clusters_memory(copy->cbw, copy->run.first, copy->run.last);
}

static sector_t slot_to_sector(const struct fleece_cbw *cbw, u32 slot)
{
	return FLEECE_HEADER_SECTORS + ((sector_t)slot << cbw->cluster_shift);
}

/* ------------------------- The maps ------------------------- */

static struct fleece_view *unmerged_view(struct fleece_cbw *cbw)
{
	/*
	 * Pairs with the release in merge_changed(): who sees unmerged gone sees the bits. And with
	 * that in fleece_cbw_activate(): who sees it sees what it is.
	 */
	return smp_load_acquire(&cbw->unmerged);
}

static bool unmerged_has(struct fleece_cbw *cbw, struct fleece_view *unmerged, cluster_t cluster)
{
	sector_t first = cluster_to_sector(cbw, cluster);
	sector_t last = first + clusters_sectors(cbw, cluster, cluster) - 1;

	return fleece_bits_any(unmerged, first >> cbw->unmerged_granule_shift,
			       last >> cbw->unmerged_granule_shift);
}

static bool is_accessible(struct fleece_cbw *cbw, cluster_t cluster)
{
	struct fleece_view *unmerged = unmerged_view(cbw);

	if (fleece_bits_test(cbw->access, cluster))
		return true;
	return unmerged && unmerged_has(cbw, unmerged, cluster);
}

static bool is_done(struct fleece_cbw *cbw, cluster_t cluster)
{
	return fleece_bits_test(cbw->done, cluster);
}

static bool needs_copy(struct fleece_cbw *cbw, cluster_t cluster)
{
	return fleece_cbw_is_active(cbw) && !is_done(cbw, cluster) && is_accessible(cbw, cluster);
}

static unsigned long needs_word(struct fleece_cbw *cbw, u64 index)
{
	return READ_ONCE(cbw->access[index]) & ~READ_ONCE(cbw->done[index]);
}

/* The first cluster in (@from, @last] whose answer is not @value, or last + 1. */
static cluster_t needs_end(struct fleece_cbw *cbw, cluster_t from, cluster_t last, bool value)
{
	u64 index = (from + 1) / BITS_PER_LONG;
	unsigned long mask = ~0UL << ((from + 1) % BITS_PER_LONG);
	unsigned long word;

	for (; index * BITS_PER_LONG <= last; index++, mask = ~0UL) {
		word = needs_word(cbw, index);
		if (value)
			word = ~word;
		word &= mask;
		if (word)
			return min_t(cluster_t, index * BITS_PER_LONG + __ffs(word), last + 1);
	}
	return last + 1;
}

bool fleece_cbw_needs(struct fleece_cbw *cbw, cluster_t first, cluster_t last, u64 *length)
{
	bool value = needs_copy(cbw, first);
	cluster_t end;

	if (first == last) {
		*length = 1;
		return value;
	}
	if (!fleece_cbw_is_active(cbw)) {
		*length = last - first + 1;
		return false;
	}
	if (unmerged_view(cbw)) {
		/* For the moment of the merge only: one by one. */
		for (end = first + 1; end <= last && needs_copy(cbw, end) == value; end++)
			;
	} else {
		end = needs_end(cbw, first, last, value);
	}
	*length = end - first;
	return value;
}

static bool needs_all(struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	u64 length;

	return fleece_cbw_needs(cbw, first, last, &length) && length > last - first;
}

static bool needs_any(struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	u64 length;

	if (first == last)
		return needs_copy(cbw, first);
	return fleece_cbw_needs(cbw, first, last, &length) || length <= last - first;
}

bool fleece_cbw_blocks(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors)
{
	return needs_any(cbw, fleece_cbw_cluster(cbw, sector),
			 fleece_cbw_cluster(cbw, sector + nr_sectors - 1));
}

static void merge_changed(struct fleece_cbw *cbw)
{
	struct fleece_view *unmerged = unmerged_view(cbw);
	unsigned int shift;
	u64 granule;
	u64 length;
	cluster_t c;
	cluster_t last;
	u64 count = 0;
	bool value;

	if (!unmerged)
		return;
	shift = cbw->unmerged_granule_shift;
	for (granule = 0; granule < unmerged->nr_bits; granule += length) {
		/* In pieces, so that the CPU is offered in between. */
		length = fleece_bits_run(unmerged, granule,
					 min(granule + (1 << 20), unmerged->nr_bits), &value);
		cond_resched();
		if (!value)
			continue;
		c = fleece_cbw_cluster(cbw, (sector_t)granule << shift);
		last = fleece_cbw_cluster(cbw, ((sector_t)(granule + length) << shift) - 1);
		last = min(last, cbw->nr_clusters - 1);
		for (; c <= last; c++) {
			if (!fleece_bits_test_and_set(cbw->access, c))
				count++;
			if (c % MERGE_BATCH == 0)
				cond_resched();
		}
	}
	spin_lock(&cbw->lock);
	cbw->nr_accessible = count;
	spin_unlock(&cbw->lock);
	/* Pairs with unmerged_view(). */
	smp_store_release(&cbw->unmerged, NULL);
}

/*
 * Who needs the result does the work himself, if nobody has: a copy that waited
 * for another work item of the same queue could wait for ever when memory is
 * short and one thread serves them all.
 */
void fleece_cbw_finish_merge(struct fleece_cbw *cbw)
{
	mutex_lock(&cbw->merge_lock);
	merge_changed(cbw);
	mutex_unlock(&cbw->merge_lock);
}

static void merge_in_background(struct work_struct *work)
{
	fleece_cbw_finish_merge(container_of(work, struct fleece_cbw, merge));
}

/* ------------------------- Waiting writes ------------------------- */

/* Where the look at all that are not yet served goes on must be one of them. */
static void leave_unserved(struct fleece_cbw *cbw, struct fleece_waiter *waiter)
{
	if (cbw->pass_from != waiter)
		return;
	cbw->pass_from = list_is_last(&waiter->node, &cbw->unserved) ? NULL :
							      list_next_entry(waiter, node);
}

/* Move a waiter, or all of a list, to one that is going to be handed to resume_waiters(). */
static void take_waiter(struct fleece_cbw *cbw, struct fleece_waiter *waiter,
			struct list_head *to)
{
	lockdep_assert_held(&cbw->lock);
	leave_unserved(cbw, waiter);
	list_move_tail(&waiter->node, to);
	cbw->nr_waiting--;
}

static void take_waiters(struct fleece_cbw *cbw, struct list_head *from, struct list_head *to)
{
	struct fleece_waiter *waiter;

	lockdep_assert_held(&cbw->lock);
	if (from == &cbw->unserved)
		cbw->pass_from = NULL;
	list_for_each_entry(waiter, from, node)
		cbw->nr_waiting--;
	list_splice_tail_init(from, to);
}

/*
 * A write that goes on may be throttled, by what its writer is allowed, and block this thread:
 * call it last. The engine may be gone by then, so callers keep a copy of its methods and
 * their context; that is the origin, which lives as long as a write waits.
 */
static void resume_with(const struct fleece_cbw_methods *methods, void *context,
			struct list_head *waiters)
{
	if (!list_empty(waiters))
		methods->resume(context, waiters);
}

/* The list is empty afterwards. */
static void resume_waiters(struct fleece_cbw *cbw, struct list_head *waiters)
{
	LIST_HEAD(taken);

	list_splice_init(waiters, &taken);
	resume_with(cbw->config.methods, cbw->config.resume_context, &taken);
}

/* The watchdog looks at the waiting writes at @deadline, in jiffies, or at once. */
static void arm_watchdog(struct fleece_cbw *cbw, unsigned long deadline)
{
	long left = (long)(deadline - jiffies);

	lockdep_assert_held(&cbw->lock);
	cbw->watch_at = deadline;
	cbw->is_watching = true;
	mod_delayed_work(cbw->watch_wq, &cbw->watchdog, max(left, 0L));
}

static void add_waiter(struct fleece_cbw *cbw, struct fleece_waiter *waiter,
		       struct list_head *list)
{
	unsigned long deadline = waiter->since + msecs_to_jiffies(cbw->config.timeout_ms);

	lockdep_assert_held(&cbw->lock);
	list_add_tail(&waiter->node, list);
	cbw->nr_waiting++;
	if (!cbw->config.timeout_ms)
		return;
	/*
	 * When nobody is left to be watched the watchdog stays armed, as the next one is
	 * not far. This one may have waited before: for another copy, or one that failed.
	 */
	if (!cbw->is_watching || time_before(deadline, cbw->watch_at))
		arm_watchdog(cbw, deadline);
}

static struct fleece_waiter *older_waiter(struct fleece_waiter *oldest, struct list_head *list)
{
	struct fleece_waiter *waiter;

	list_for_each_entry(waiter, list, node) {
		if (!oldest || time_before(waiter->since, oldest->since))
			oldest = waiter;
	}
	return oldest;
}

static struct fleece_waiter *oldest_waiter(struct fleece_cbw *cbw)
{
	struct fleece_waiter *oldest = older_waiter(NULL, &cbw->unserved);
	struct fleece_run *run;
	unsigned int i;

	lockdep_assert_held(&cbw->lock);
	for (i = 0; i < ARRAY_SIZE(cbw->inflight.buckets); i++) {
		list_for_each_entry(run, &cbw->inflight.buckets[i], node)
			oldest = older_waiter(oldest, &copy_of(run)->waiters);
	}
	return oldest;
}

static void raise_event(struct fleece_cbw *cbw)
{
	cbw->config.methods->event(cbw->config.event_context);
}

/* The only way to FLEECE_CBW_BROKEN. Returns false if the engine was there already. */
static bool set_broken(struct fleece_cbw *cbw, int error, sector_t sector,
		       struct list_head *waiters)
{
	struct fleece_run *run;
	bool is_first;
	unsigned int i;

	spin_lock(&cbw->lock);
	is_first = cbw->state != FLEECE_CBW_BROKEN;
	if (is_first) {
		cbw->error = error;
		cbw->error_sector = sector;
		WRITE_ONCE(cbw->state, FLEECE_CBW_BROKEN);
	}
	for (i = 0; i < ARRAY_SIZE(cbw->inflight.buckets); i++) {
		list_for_each_entry(run, &cbw->inflight.buckets[i], node)
			take_waiters(cbw, &copy_of(run)->waiters, waiters);
	}
	take_waiters(cbw, &cbw->unserved, waiters);
	spin_unlock(&cbw->lock);

	/* (A): readers see the state before any write that goes without a copy. */
	smp_mb();
	return is_first;
}

void fleece_cbw_stop(struct fleece_cbw *cbw)
{
	LIST_HEAD(waiters);

	set_broken(cbw, ENODEV, 0, &waiters);
	resume_waiters(cbw, &waiters);
}

void fleece_cbw_break(struct fleece_cbw *cbw, int error, sector_t sector, const char *cause)
{
	LIST_HEAD(waiters);

	if (!set_broken(cbw, error, sector, &waiters)) {
		resume_waiters(cbw, &waiters);
		return;
	}
	DMERR("%s: snapshot is broken: %s (errno %d, sector %llu of %pg); live writes go on",
	      cbw->config.name, cause, error, sector, cbw->config.origin);
	resume_waiters(cbw, &waiters);
	raise_event(cbw);
}

/* ------------------------- Memory of a copy ------------------------- */

static void free_bios(struct fleece_copy *copy)
{
	struct bio *bio;

	while (copy->nr_parts) {
		bio = copy->parts[--copy->nr_parts].bio;
		fleece_pages_remove(&copy->cbw->pages, bio);
		bio_put(bio);
	}
}

static void put_copy(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	u64 bytes = copy_memory(copy);

	if (!refcount_dec_and_test(&copy->refs))
		return;
	free_bios(copy);
	mempool_free(copy, &cbw->copies);

	spin_lock(&cbw->lock);
	cbw->buffered_bytes -= bytes;
	if (!list_empty(&cbw->unserved))
		mod_delayed_work(cbw->memory_wq, &cbw->serve, 0);
	/* Under the lock: whoever waits for idle takes it before it frees the engine. */
	WRITE_ONCE(cbw->nr_copies, cbw->nr_copies - 1);
	if (!cbw->nr_copies)
		wake_up(&cbw->idle);
	spin_unlock(&cbw->lock);
}

static bool alloc_bio(struct fleece_copy *copy, unsigned int bytes, bool may_sleep)
{
	gfp_t gfp = may_sleep ? GFP_NOIO : GFP_NOWAIT | __GFP_NOWARN;
	struct fleece_cbw *cbw = copy->cbw;
	struct bio *bio;

	bio = fleece_bio_alloc(cbw->config.origin, DIV_ROUND_UP(bytes, PAGE_SIZE), REQ_OP_READ, gfp,
			       &cbw->bios);
	if (!bio)
		return false;
	fleece_bio_disown(bio);
	copy->parts[copy->nr_parts++] = (struct fleece_part){ bio, bio->bi_io_vec };
	return fleece_pages_add(&cbw->pages, bio, bytes, may_sleep);
}

/* Find all memory that a copy needs; if that fails, none is held. */
static bool alloc_bios(struct fleece_copy *copy, bool may_sleep)
{
	u64 left = copy_bytes(copy);
	u64 bytes;

	for (; left; left -= bytes) {
		bytes = min_t(u64, left, BIO_BYTES);
		if (!alloc_bio(copy, bytes, may_sleep)) {
			free_bios(copy);
			return false;
		}
	}
	return true;
}

/* ------------------------- I/O of a copy ------------------------- */

/*
 * Where the next step is to run: on this CPU, which is awake and knows the data. To wake
 * another one costs more than the step. But a device that ends I/O while it is submitted,
 * or in a thread, works with a CPU that others want, and when many copies are under
 * way, there is work for two. What may wait for the COW device keeps to itself.
 */
static struct workqueue_struct *step_queue(const struct fleece_copy *copy)
{
	if (copy->phase == COPY_STORE || (copy->phase == COPY_WRITE && copy->status))
		return copy->cbw->cow_wq;
	if (in_task() && READ_ONCE(copy->cbw->nr_copies) >= SPREAD_COPIES)
		return copy->cbw->any_cpu_wq;
	return copy->cbw->wq;
}

/* The next step. A step that queues another one has lost the copy to it. */
static void queue_step(struct fleece_copy *copy)
{
	queue_work(step_queue(copy), &copy->work);
}

static bool end_read_here(struct fleece_copy *copy);

static void copy_endio(struct bio *bio)
{
	struct fleece_copy *copy = bio->bi_private;

	if (bio->bi_status)
		WRITE_ONCE(copy->status, bio->bi_status);
	/* A full barrier: the next step sees the status of every bio. */
	if (!atomic_dec_and_test(&copy->pending))
		return;
	if (copy->phase != COPY_READ || !end_read_here(copy))
		queue_step(copy);
}

static void prepare_bio(struct fleece_copy *copy, struct bio *bio, sector_t sector)
{
	bio->bi_iter.bi_sector = sector;
	bio->bi_private = copy;
	bio->bi_end_io = copy_endio;
}

/* Make the reads of a copy ready; the caller submits what was added to @reads. */
static void prepare_reads(struct fleece_copy *copy, struct bio_list *reads)
{
	sector_t sector = cluster_to_sector(copy->cbw, copy->run.first);
	unsigned int i;

	copy->phase = COPY_READ;
	copy->reader = current;
	atomic_set(&copy->pending, copy->nr_parts);
	for (i = 0; i < copy->nr_parts; i++, sector += BIO_SECTORS) {
		prepare_bio(copy, copy->parts[i].bio, sector);
		bio_list_add(reads, copy->parts[i].bio);
	}
}

/* Turn the bios round. Readers of staged data find the pages meanwhile by copy->parts. */
static void prepare_writes(struct fleece_copy *copy)
{
	sector_t sector = slot_to_sector(copy->cbw, copy->slot);
	u64 left = copy_bytes(copy);
	unsigned short nr_vecs;
	struct bio *bio;
	unsigned int i;

	for (i = 0; i < copy->nr_parts; i++, sector += BIO_SECTORS) {
		bio = copy->parts[i].bio;
		nr_vecs = bio->bi_vcnt;
		fleece_bio_reset(bio, copy->cbw->config.cow, REQ_OP_WRITE);
		fleece_bio_disown(bio);
		bio->bi_vcnt = nr_vecs;
		bio->bi_iter.bi_size = min_t(u64, left, BIO_BYTES);
		left -= bio->bi_iter.bi_size;
		prepare_bio(copy, bio, sector);
	}
}

/* Page of a copy at a byte offset from its first cluster. */
static struct page *buffer_page(struct fleece_copy *copy, u64 offset)
{
	return copy->parts[offset / BIO_BYTES].vecs[offset % BIO_BYTES / PAGE_SIZE].bv_page;
}

/* ------------------------- One read for several snapshots ------------------------- */

/*
 * A copy of one engine can follow that of another, its leader: instead of reading
 * the same old data again it gets it from the leader's buffer when that was read.
 *
 * Why it is the right data: as long as a cluster is accessible and not done in the
 * leader's engine, no write has gone to it since that snapshot's moment, and none
 * since the follower's. If that is so at one moment under the leader's lock,
 * no write goes later either, as the follower's engine holds it back until it has
 * the data. Whether the leader's cluster is released or broken after that moment
 * makes no difference: its read ends, and the follower gets what was read. It must have
 * its memory: to wait for that could be to wait for the COW device of its snapshot.
 */
static bool can_lead(struct fleece_copy *leader, cluster_t first, cluster_t last)
{
	lockdep_assert_held(&leader->cbw->lock);
	return READ_ONCE(leader->has_memory) && !leader->is_read &&
	       last <= leader->run.last && needs_all(leader->cbw, first, last);
}

/*
 * Let a copy that has its memory follow one of another engine. If that succeeds the
 * copy is no longer the caller's.
 */
static bool follow(struct fleece_copy *copy, struct fleece_cbw *cbw)
{
	sector_t sector = cluster_to_sector(copy->cbw, copy->run.first);
	sector_t end = sector + (copy_bytes(copy) >> SECTOR_SHIFT);
	cluster_t first = fleece_cbw_cluster(cbw, sector);
	bool is_following = false;
	struct fleece_run *run;

	if (end > cbw->config.nr_sectors)
		return false;
	copy->phase = COPY_READ;
	spin_lock(&cbw->lock);
	run = fleece_inflight_find(&cbw->inflight, first);
	if (run && can_lead(copy_of(run), first, fleece_cbw_cluster(cbw, end - 1))) {
		list_add_tail(&copy->follower, &copy_of(run)->followers);
		is_following = true;
	}
	spin_unlock(&cbw->lock);
	return is_following;
}

/* No data from the leader: the followers read for themselves. */
static void abandon_followers(struct list_head *followers, struct bio_list *reads)
{
	struct fleece_copy *copy;
	struct fleece_copy *next;

	list_for_each_entry_safe(copy, next, followers, follower)
		prepare_reads(copy, reads);
}

static void copy_buffer(struct fleece_copy *to, struct fleece_copy *from)
{
	sector_t ahead = cluster_to_sector(to->cbw, to->run.first) -
			 cluster_to_sector(from->cbw, from->run.first);
	u64 source = (u64)ahead << SECTOR_SHIFT;
	u64 end = copy_bytes(to);
	unsigned int bytes;
	u64 offset;

	for (offset = 0; offset < end; offset += bytes, source += bytes) {
		bytes = PAGE_SIZE - max(offset_in_page(offset), offset_in_page(source));
		bytes = min_t(u64, bytes, end - offset);
		memcpy(page_address(buffer_page(to, offset)) + offset_in_page(offset),
		       page_address(buffer_page(from, source)) + offset_in_page(source), bytes);
		if (offset % BIO_BYTES == 0)
			cond_resched();
	}
}

/* The reading of @leader has ended. Each follower goes on by itself. */
static void feed_followers(struct fleece_copy *leader, struct list_head *followers)
{
	struct bio_list reads = BIO_EMPTY_LIST;
	struct fleece_copy *copy;
	struct fleece_copy *next;

	if (leader->status) {
		abandon_followers(followers, &reads);
		fleece_bios_submit(&reads);
		return;
	}
	list_for_each_entry_safe(copy, next, followers, follower) {
		copy_buffer(copy, leader);
		queue_step(copy);
	}
}

/* ------------------------- Clusters one by one ------------------------- */

/* Where the data of a cluster begins in the buffer of its copy. */
static u64 cluster_offset(const struct fleece_copy *copy, cluster_t cluster)
{
	return (u64)(cluster - copy->run.first) << (copy->cbw->cluster_shift + SECTOR_SHIFT);
}

static u64 cluster_bytes(const struct fleece_copy *copy, cluster_t cluster)
{
	return (u64)clusters_sectors(copy->cbw, cluster, cluster) << SECTOR_SHIFT;
}

/* It has no old data. What was in this memory before is not to get to the COW device. */
static void blank_cluster(struct fleece_copy *copy, cluster_t cluster)
{
	u64 offset = cluster_offset(copy, cluster);
	u64 end = offset + cluster_bytes(copy, cluster);
	unsigned int bytes;

	for (; offset < end; offset += bytes) {
		bytes = min_t(u64, end - offset, PAGE_SIZE - offset_in_page(offset));
		memset(page_address(buffer_page(copy, offset)) + offset_in_page(offset), 0, bytes);
	}
}

/* Read or write one cluster of a copy on its own. Returns 0 or a negative errno. */
static int redo_cluster(struct fleece_copy *copy, cluster_t cluster, bool is_write,
			sector_t sector)
{
	struct fleece_cbw *cbw = copy->cbw;
	u64 offset = cluster_offset(copy, cluster);
	u64 end = offset + cluster_bytes(copy, cluster);
	struct block_device *bdev = is_write ? cbw->config.cow : cbw->config.origin;
	unsigned int bytes;
	struct bio *bio;
	int ret = 0;

	while (offset < end && !ret) {
		/* Reserves of their own: this copy holds bios of the other one. */
		bio = fleece_bio_alloc(bdev, BIO_PAGES, is_write ? REQ_OP_WRITE : REQ_OP_READ,
				       GFP_NOIO, is_write ? &cbw->rewrite_bios :
							    &cbw->rescue_bios);
		bio->bi_iter.bi_sector = sector;
		do {
			bytes = min_t(u64, end - offset, PAGE_SIZE - offset_in_page(offset));
			__bio_add_page(bio, buffer_page(copy, offset), bytes,
				       offset_in_page(offset));
			offset += bytes;
			sector += bytes >> SECTOR_SHIFT;
		} while (offset < end && bio->bi_vcnt < BIO_PAGES);
		ret = submit_bio_wait(bio);
		bio_put(bio);
	}
	return ret;
}

static void queue_pass(struct fleece_cbw *cbw)
{
	u64 now = ktime_get_ns();
	u64 left = now < cbw->pass_at ? cbw->pass_at - now : 0;

	lockdep_assert_held(&cbw->lock);
	queue_delayed_work(cbw->any_cpu_wq, &cbw->pass, nsecs_to_jiffies(left) + 1);
}

/* Who is not yet served may need no copy of its own any more. */
static void look_for_passable(struct fleece_cbw *cbw)
{
	lockdep_assert_held(&cbw->lock);
	if (cbw->pass_from)
		cbw->pass_again = true;
	queue_pass(cbw);
}

/* Clusters were copied, released or lost. */
static void serve_again(struct fleece_cbw *cbw)
{
	lockdep_assert_held(&cbw->lock);
	if (list_empty(&cbw->unserved))
		return;
	mod_delayed_work(cbw->memory_wq, &cbw->serve, 0);
	look_for_passable(cbw);
}

/* Let the writes go that wait for a copy of @cluster, to look again. */
static void let_go(struct fleece_cbw *cbw, cluster_t cluster, struct list_head *waiters)
{
	struct fleece_run *run;

	lockdep_assert_held(&cbw->lock);
	run = fleece_inflight_find(&cbw->inflight, cluster);
	if (run)
		take_waiters(cbw, &copy_of(run)->waiters, waiters);
	serve_again(cbw);
}

/* Of a cluster that is done, only a copy whose write has failed may take the access. */
static bool take_access(struct fleece_cbw *cbw, cluster_t cluster, bool is_copied, int error,
			struct list_head *waiters)
{
	lockdep_assert_held(&cbw->lock);
	if (!is_copied && is_done(cbw, cluster))
		return false;
	if (!fleece_cbw_is_active(cbw) || !fleece_bits_test_and_clear(cbw->access, cluster))
		return false;
	cbw->nr_accessible--;
	if (!cbw->nr_lost++) {
		cbw->error = error;
		cbw->error_sector = cluster_to_sector(cbw, cluster);
	}
	let_go(cbw, cluster, waiters);
	return true;
}

/* Returns 1 if the cluster is lost by this call, 0 if there is no need, or -ENOMEM. */
static int note_lost(struct fleece_cbw *cbw, cluster_t cluster, bool is_copied, int error,
		     struct list_head *waiters)
{
	/* Reclaim may wait for the very writes that are to be let go: rather fail. */
	gfp_t gfp = GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN;
	int ret = 0;

	/* One at a time: else the note of the one that loses it might be erased by another. */
	mutex_lock(&cbw->lose_lock);
	if (!is_accessible(cbw, cluster))
		goto out;
	ret = -ENOMEM;
	if (xa_err(xa_store(&cbw->lost, cluster, xa_mk_value(error), gfp)))
		goto out;
	spin_lock(&cbw->lock);
	/* After the note, so that a reader who finds no access finds the reason. */
	ret = take_access(cbw, cluster, is_copied, error, waiters);
	spin_unlock(&cbw->lock);
	if (!ret)
		/* It was released or copied a moment before. */
		xa_erase(&cbw->lost, cluster);
out:
	mutex_unlock(&cbw->lose_lock);
	return ret;
}

/*
 * The old data of a cluster cannot be kept: the snapshot does without it, or breaks.
 * @is_copied says that it may be in RAM, but can never get to its slot. Returns true if it is
 * lost by this call. The caller lets @waiters go, and tells of it.
 */
static bool give_up_cluster(struct fleece_cbw *cbw, cluster_t cluster, bool is_copied, int error,
			    struct list_head *waiters)
{
	int ret = note_lost(cbw, cluster, is_copied, error, waiters);

	if (ret < 0)
		fleece_cbw_break(cbw, error, cluster_to_sector(cbw, cluster),
				 "cannot note a lost cluster");
	return ret > 0;
}

static void tell_lost(struct fleece_cbw *cbw, cluster_t cluster, int error, const char *cause)
{
	DMERR_LIMIT("%s: cluster %llu (sector %llu of %pg) is lost: %s (errno %d)",
		    cbw->config.name, cluster,
		    cluster_to_sector(cbw, cluster), cbw->config.origin,
		    cause, error);
	raise_event(cbw);
}

/* Live writes come first, the news after them. */
static void lose_cluster(struct fleece_cbw *cbw, cluster_t cluster, bool is_copied, int error,
			 const char *cause)
{
	LIST_HEAD(waiters);
	bool is_lost;

	is_lost = give_up_cluster(cbw, cluster, is_copied, error, &waiters);
	resume_waiters(cbw, &waiters);
	if (is_lost)
		tell_lost(cbw, cluster, error, cause);
}

/* Nothing is to be had of a cluster for the writes that wait for its copy. */
static void note_bad_cluster(struct fleece_copy *copy, cluster_t cluster, int error)
{
	if (!copy->error)
		copy->bad_first = cluster;
	copy->bad_last = cluster;
	copy->error = error;
}

/*
 * The read of a run failed. A bad sector must not cost more than its own
 * cluster, so read them one by one.
 */
static void rescue_clusters(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	cluster_t c;
	int ret;

	fleece_cbw_finish_merge(cbw);
	for (c = copy->run.first; c <= copy->run.last && fleece_cbw_is_active(cbw); c++) {
		/* Released meanwhile: nobody wants it. */
		if (!is_accessible(cbw, c)) {
			blank_cluster(copy, c);
			continue;
		}
		ret = redo_cluster(copy, c, false, cluster_to_sector(cbw, c));
		if (!ret)
			continue;
		blank_cluster(copy, c);
		if (cbw->config.on_error == FLEECE_BREAK_WRITE)
			note_bad_cluster(copy, c, -ret);
		else
			lose_cluster(cbw, c, false, -ret, "its old data cannot be read");
	}
}

/*
 * The write of a run failed, and the snapshot is to go on: write its clusters one
 * by one, so that a bad place of the COW device costs no more than it must.
 */
static void rewrite_clusters(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	u32 slot = copy->slot;
	cluster_t c;
	int ret;

	fleece_cbw_finish_merge(cbw);
	for (c = copy->run.first; c <= copy->run.last && fleece_cbw_is_active(cbw); c++, slot++) {
		if (!is_accessible(cbw, c))
			continue;
		ret = redo_cluster(copy, c, true, slot_to_sector(cbw, slot));
		if (!ret)
			continue;
		note_bad_cluster(copy, c, -ret);
		if (cbw->config.on_error == FLEECE_BREAK_CLUSTER)
			lose_cluster(cbw, c, true, -ret,
				     "its old data cannot be written to the COW device");
	}
}

/* ------------------------- Waits that are too long ------------------------- */

/* Last cluster of the copy in flight at @cluster; false if there is none. */
static bool in_flight_until(struct fleece_cbw *cbw, cluster_t cluster, cluster_t *last)
{
	struct fleece_run *run;

	spin_lock(&cbw->lock);
	run = fleece_inflight_find(&cbw->inflight, cluster);
	if (run)
		*last = run->last;
	spin_unlock(&cbw->lock);
	return run;
}

/*
 * Lose what is neither copied nor, unless @also_in_flight, being copied. The caller lets
 * @waiters go.
 */
static void lose_range(struct fleece_cbw *cbw, cluster_t first, cluster_t last,
		       bool also_in_flight, int error, const char *cause,
		       struct list_head *waiters)
{
	cluster_t until;
	u64 length;

	fleece_cbw_finish_merge(cbw);
	while (first <= last) {
		if (!fleece_cbw_needs(cbw, first, last, &length)) {
			first += length;
		} else if (!also_in_flight && in_flight_until(cbw, first, &until)) {
			first = until + 1;
		} else {
			if (give_up_cluster(cbw, first, false, error, waiters))
				tell_lost(cbw, first, error, cause);
			first++;
			cond_resched();
		}
	}
}

/* A snapshot that breaks when writes are late does so for those alone that need a copy. */
static void take_expired(struct fleece_cbw *cbw, struct list_head *from, struct list_head *to)
{
	unsigned long timeout = msecs_to_jiffies(cbw->config.timeout_ms);
	bool may_break = cbw->config.on_error == FLEECE_BREAK_SNAPSHOT;
	struct fleece_waiter *waiter;
	struct fleece_waiter *next;

	lockdep_assert_held(&cbw->lock);
	list_for_each_entry_safe(waiter, next, from, node) {
		if (time_before(jiffies, waiter->since + timeout))
			continue;
		if (!may_break || !needs_any(cbw, waiter->first, waiter->last))
			take_waiter(cbw, waiter, to);
	}
}

static void take_all_expired(struct fleece_cbw *cbw, struct list_head *expired)
{
	struct fleece_run *run;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cbw->inflight.buckets); i++) {
		list_for_each_entry(run, &cbw->inflight.buckets[i], node)
			take_expired(cbw, &copy_of(run)->waiters, expired);
	}
	take_expired(cbw, &cbw->unserved, expired);
	/* There may be memory for the next one, which needs less. */
	if (!list_empty(&cbw->unserved))
		mod_delayed_work(cbw->memory_wq, &cbw->serve, 0);
}

/* But for those that need no copy any more, which begin anew, as @others. */
static void fail_expired(struct fleece_cbw *cbw, struct list_head *expired,
			 struct list_head *others)
{
	struct fleece_waiter *waiter;
	struct fleece_waiter *next;

	list_for_each_entry_safe(waiter, next, expired, node) {
		if (needs_any(cbw, waiter->first, waiter->last))
			waiter->error = ETIMEDOUT;
		else
			list_move_tail(&waiter->node, others);
	}
	if (!list_empty(expired))
		DMERR_LIMIT("%s: live writes fail: they have waited for cbw_timeout (%u ms) for their copies",
			    cbw->config.name, cbw->config.timeout_ms);
}

/* Writes have waited for too long, and the snapshot has not broken because of them. */
static void end_waits(struct fleece_cbw *cbw, struct list_head *expired)
{
	struct fleece_waiter *waiter;
	LIST_HEAD(others);

	if (cbw->config.on_error == FLEECE_BREAK_WRITE) {
		fail_expired(cbw, expired, &others);
	} else if (cbw->config.on_error == FLEECE_BREAK_CLUSTER) {
		list_for_each_entry(waiter, expired, node)
			lose_range(cbw, waiter->first, waiter->last, true, ETIMEDOUT,
				   "a live write has waited for cbw_timeout for its copy", &others);
		list_splice_tail_init(&others, expired);
	}
	/* Those that fail need nobody; those that go on may be throttled. */
	resume_waiters(cbw, expired);
	resume_waiters(cbw, &others);
}

static void watch_waiters(struct work_struct *work)
{
	struct fleece_cbw *cbw = container_of(to_delayed_work(work), struct fleece_cbw, watchdog);
	unsigned long timeout = msecs_to_jiffies(cbw->config.timeout_ms);
	bool may_break = cbw->config.on_error == FLEECE_BREAK_SNAPSHOT;
	struct fleece_waiter *oldest;
	LIST_HEAD(expired);
	sector_t sector = 0;
	unsigned long deadline;
	unsigned long earliest;
	bool is_late = false;

	spin_lock(&cbw->lock);
	cbw->is_watching = false;
	take_all_expired(cbw, &expired);
	oldest = oldest_waiter(cbw);
	if (oldest) {
		deadline = oldest->since + timeout;
		earliest = jiffies + 1 + timeout / WATCHDOG_PART;
		sector = cluster_to_sector(cbw, oldest->first);
		is_late = time_after_eq(jiffies, deadline);
		if (!is_late || !may_break)
			arm_watchdog(cbw, time_before(deadline, earliest) ? earliest : deadline);
	}
	spin_unlock(&cbw->lock);

	if (is_late && may_break)
		fleece_cbw_break(cbw, ETIMEDOUT, sector,
				 "a live write has waited for cbw_timeout for its copy");
	end_waits(cbw, &expired);
}

/* ------------------------- Steps of a copy ------------------------- */

static void set_done(struct fleece_copy *copy, struct list_head *waiters)
{
	struct fleece_cbw *cbw = copy->cbw;
	cluster_t c;

	lockdep_assert_held(&cbw->lock);
	for (c = copy->run.first; c <= copy->run.last; c++) {
		/* Lost, or released: its old data is in no slot. */
		if (!is_accessible(cbw, c))
			continue;
		cbw->nr_copied++;
		fleece_bits_set(cbw->done, c);
	}
	take_waiters(cbw, &copy->waiters, waiters);
	/* (A): readers see done before any write that was let go because of it. */
	smp_mb();
}

/* Has a copy still something to keep? */
static bool is_wanted(struct fleece_copy *copy)
{
	cluster_t c;

	if (!fleece_cbw_is_active(copy->cbw))
		return false;
	for (c = copy->run.first; c <= copy->run.last; c++) {
		if (is_accessible(copy->cbw, c))
			return true;
	}
	return false;
}

static bool is_bad(const struct fleece_copy *copy, cluster_t first, cluster_t last)
{
	return copy->error && first <= copy->bad_last && last >= copy->bad_first;
}

/* Released or lost meanwhile, a cluster is in nobody's way. */
static bool needs_bad(struct fleece_copy *copy, const struct fleece_waiter *waiter, cluster_t bad)
{
	return waiter->first <= bad && bad <= waiter->last && needs_copy(copy->cbw, bad);
}

/* The writes that no copy can be had for; the others begin anew. */
static void fail_waiters(struct fleece_copy *copy, struct list_head *waiters)
{
	struct fleece_cbw *cbw = copy->cbw;
	struct fleece_waiter *waiter;
	bool is_told = false;

	if (!copy->error || cbw->config.on_error != FLEECE_BREAK_WRITE)
		return;
	list_for_each_entry(waiter, waiters, node) {
		/* Between the two there may be good ones: those copies are tried again. */
		if (!needs_bad(copy, waiter, copy->bad_first) &&
		    !needs_bad(copy, waiter, copy->bad_last))
			continue;
		waiter->error = copy->error;
		is_told = true;
	}
	if (!is_told)
		return;
	DMERR_LIMIT("%s: live writes from sector %llu of %pg on fail: no copy of the old data (errno %d)",
		    cbw->config.name, cluster_to_sector(cbw, copy->bad_first),
		    cbw->config.origin, copy->error);
}

/* Slots have come free. Returns true if that is news. */
static bool note_free_slots(struct fleece_cbw *cbw)
{
	u32 nr_free = cbw->store.nr_slots - cbw->store.used;
	bool is_news = false;

	lockdep_assert_held(&cbw->lock);
	serve_again(cbw);
	if (cbw->low_water_told && nr_free >= cbw->config.low_water_slots) {
		cbw->low_water_told = false;
		is_news = true;
	}
	if (cbw->full_told && nr_free) {
		cbw->full_told = false;
		is_news = true;
	}
	return is_news;
}

/* Leave the table; @is_stored says that the COW device has what is not bad of the data. */
static void finish_copy(struct fleece_copy *copy, bool is_stored)
{
	struct fleece_cbw *cbw = copy->cbw;
	const struct fleece_cbw_methods *methods = cbw->config.methods;
	void *context = cbw->config.resume_context;
	LIST_HEAD(waiters);
	cluster_t c;
	u32 slot = copy->slot;
	bool is_news;

	spin_lock(&cbw->lock);
	is_stored = is_stored && fleece_cbw_is_active(cbw);
	if (is_stored && !copy->is_staged)
		set_done(copy, &waiters);
	for (c = copy->run.first; c <= copy->run.last; c++, slot++) {
		/* Released or lost meanwhile: that wins. */
		if (is_stored && is_accessible(cbw, c))
			fleece_store_insert(&cbw->store, c, slot);
		else if (copy->phase == COPY_WRITE && is_bad(copy, c, c))
			fleece_store_avoid(&cbw->store, slot);
		else
			fleece_store_free(&cbw->store, slot);
	}
	if (copy->is_staged)
		cbw->staged_bytes -= copy_memory(copy);
	fleece_inflight_remove(&copy->run);
	take_waiters(cbw, &copy->waiters, &waiters);
	is_news = note_free_slots(cbw);
	spin_unlock(&cbw->lock);

	fail_waiters(copy, &waiters);
	if (is_news)
		raise_event(cbw);
	put_copy(copy);
	resume_with(methods, context, &waiters);
}

static bool is_low_water_news(const struct fleece_cbw *cbw)
{
	lockdep_assert_held(&cbw->lock);
	return !cbw->low_water_told &&
	       cbw->store.nr_slots - cbw->store.used < cbw->config.low_water_slots;
}

/* Slots have been taken. Returns true if that is news. */
static bool note_low_water(struct fleece_cbw *cbw)
{
	bool is_news = is_low_water_news(cbw);

	cbw->low_water_told |= is_news;
	return is_news;
}

static void tell_low_water(struct fleece_cbw *cbw)
{
	DMWARN("%s: fewer than %u slots of %pg are free", cbw->config.name,
	       cbw->config.low_water_slots, cbw->config.cow);
	raise_event(cbw);
}

static void write_done(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	bool is_stored = !copy->status;

	if (copy->status && cbw->config.on_error == FLEECE_BREAK_SNAPSHOT) {
		fleece_cbw_break(cbw, -blk_status_to_errno(copy->status),
				 cluster_to_sector(cbw, copy->run.first),
				 "old data cannot be written to the COW device");
	} else if (copy->status) {
		rewrite_clusters(copy);
		/* What is lost is not accessible any more; the rest has its copy. */
		is_stored = !copy->error || cbw->config.on_error == FLEECE_BREAK_CLUSTER;
	}
	finish_copy(copy, is_stored);
}

/* Data that gets to its slots while it is submitted costs no other step. */
static void submit_writes(struct fleece_copy *copy)
{
	unsigned int i;

	copy->phase = COPY_WRITE;
	copy->status = BLK_STS_OK;
	prepare_writes(copy);
	/* One more, so that the copy is not gone before all is submitted. */
	atomic_set(&copy->pending, copy->nr_parts + 1);
	for (i = 0; i < copy->nr_parts; i++) {
		/* Live writes wait for it: as such, it is not held up as writeback is. */
		if (!copy->is_staged)
			copy->parts[i].bio->bi_opf |= REQ_SYNC | REQ_IDLE;
		submit_bio_noacct(copy->parts[i].bio);
		cond_resched();
	}
	if (!atomic_dec_and_test(&copy->pending))
		return;
	if (copy->status)
		queue_step(copy);
	else
		write_done(copy);
}

static void store_copy(struct fleece_copy *copy)
{
	/* Released or broken meanwhile? The COW device of a broken snapshot is left alone. */
	if (is_wanted(copy))
		submit_writes(copy);
	else
		finish_copy(copy, false);
}

/*
 * Not here, although another worker costs more than what it usually has to do: a slow COW
 * device holds up whoever submits to it, and others wait for the reading of old data. A
 * queue has no other worker if this is its rescuer.
 */
static void store_soon(struct fleece_copy *copy)
{
	copy->phase = COPY_STORE;
	queue_step(copy);
}

static u64 gather_limit(const struct fleece_cbw *cbw)
{
	return min_t(u64, GATHER_BYTES, cbw->config.staging_bytes / 2);
}

/* Is it small enough to wait for what comes next, and is there all of it? */
static bool can_gather(const struct fleece_copy *copy)
{
	return !copy->error && copy_bytes(copy) < gather_limit(copy->cbw);
}

/*
 * Nobody waits for data that is staged, so it is stored with what comes next: to wake
 * a worker for each small copy costs more than to write it.
 */
static void gather_copy(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	u64 before = cbw->gathered_bytes;

	lockdep_assert_held(&cbw->lock);
	list_add_tail(&copy->gathered, &cbw->gathered);
	cbw->gathered_bytes += copy_bytes(copy);
	if (!before)
		queue_delayed_work(cbw->cow_wq, &cbw->store_gathered, GATHER_JIFFIES);
	if (before < gather_limit(cbw) && cbw->gathered_bytes >= gather_limit(cbw))
		mod_delayed_work(cbw->cow_wq, &cbw->store_gathered, 0);
}

/* A write of several copies has ended. Each goes on as if it had been written alone. */
static void batch_done(struct work_struct *work)
{
	struct fleece_batch *batch = container_of(work, struct fleece_batch, work);
	blk_status_t status = batch->bio.bi_status;
	struct fleece_copy *copy;
	struct fleece_copy *next;
	LIST_HEAD(copies);

	list_splice_init(&batch->copies, &copies);
	bio_put(&batch->bio);
	list_for_each_entry_safe(copy, next, &copies, gathered) {
		copy->phase = COPY_WRITE;
		copy->status = status;
		if (status)
			queue_step(copy);
		else
			write_done(copy);
	}
}

static void batch_endio(struct bio *bio)
{
	struct fleece_batch *batch = container_of(bio, struct fleece_batch, bio);

	queue_work(batch->cbw->wq, &batch->work);
}

/* An empty one, from the slot of @copy on. NULL without memory: it is not worth waiting for. */
static struct fleece_batch *make_batch(const struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	struct fleece_batch *batch;
	struct bio *bio;

	bio = fleece_bio_alloc(cbw->config.cow, BATCH_PAGES, REQ_OP_WRITE,
			       GFP_NOWAIT | __GFP_NOWARN, &cbw->batches);
	if (!bio)
		return NULL;
	fleece_bio_disown(bio);
	bio->bi_iter.bi_sector = slot_to_sector(cbw, copy->slot);
	bio->bi_end_io = batch_endio;
	batch = container_of(bio, struct fleece_batch, bio);
	batch->cbw = cbw;
	INIT_LIST_HEAD(&batch->copies);
	INIT_WORK(&batch->work, batch_done);
	return batch;
}

/* Are the slots of @copy the next ones, and is it not too much? */
static bool fits_batch(const struct fleece_batch *batch, const struct fleece_copy *copy)
{
	return bio_end_sector(&batch->bio) == slot_to_sector(copy->cbw, copy->slot) &&
	       batch->bio.bi_vcnt + copy->parts[0].bio->bi_vcnt <= BATCH_PAGES;
}

static void add_to_batch(struct fleece_batch *batch, struct fleece_copy *copy)
{
	const struct bio *from = copy->parts[0].bio;
	unsigned int i;

	for (i = 0; i < from->bi_vcnt; i++)
		__bio_add_page(&batch->bio, from->bi_io_vec[i].bv_page,
			       from->bi_io_vec[i].bv_len, 0);
	list_add_tail(&copy->gathered, &batch->copies);
}

static void store_gathered(struct work_struct *work)
{
	struct fleece_cbw *cbw = container_of(to_delayed_work(work), struct fleece_cbw,
					      store_gathered);
	struct fleece_batch *batch = NULL;
	struct fleece_copy *copy;
	LIST_HEAD(copies);

	spin_lock(&cbw->lock);
	list_splice_init(&cbw->gathered, &copies);
	cbw->gathered_bytes = 0;
	spin_unlock(&cbw->lock);

	while ((copy = list_first_entry_or_null(&copies, struct fleece_copy, gathered))) {
		list_del(&copy->gathered);
		if (batch && !fits_batch(batch, copy)) {
			submit_bio_noacct(&batch->bio);
			batch = NULL;
			cond_resched();
		}
		if (!is_wanted(copy)) {
			finish_copy(copy, false);
			continue;
		}
		if (!batch && !list_empty(&copies))
			batch = make_batch(copy);
		if (batch)
			add_to_batch(batch, copy);
		else
			submit_writes(copy);
	}
	if (batch)
		submit_bio_noacct(&batch->bio);
}

static bool has_staging_room(const struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;

	lockdep_assert_held(&cbw->lock);
	return fleece_cbw_is_active(cbw) &&
	       cbw->staged_bytes + copy_memory(copy) <= cbw->config.staging_bytes;
}

/* Returns true if the copy is gathered. */
static bool stage_copy(struct fleece_copy *copy, struct list_head *waiters)
{
	struct fleece_cbw *cbw = copy->cbw;

	lockdep_assert_held(&cbw->lock);
	copy->is_staged = true;
	cbw->staged_bytes += copy_memory(copy);
	set_done(copy, waiters);
	if (!can_gather(copy))
		return false;
	gather_copy(copy);
	return true;
}

/*
 * May steps be made right here? The bios that they submit must not be executed before
 * those above us are through, and nothing here may be atomic: to submit may sleep. And it
 * must be the writer's thread, not one of a device below us, which has submitted the read
 * once more: the write that would end up on its list might wait for just this thread. A
 * kworker may have become one since.
 */
static bool may_go_on_here(const struct fleece_copy *copy)
{
	return FLEECE_BIO_LIST_IS_COMMON && in_task() && copy->reader == current &&
	       !(current->flags & PF_WQ_WORKER) && preemptible() &&
	       !rcu_preempt_depth() && current->bio_list;
}

/*
 * A read that ends while it is submitted, as with a RAM disk, is usually ended by the
 * very writer that waits for it. Then it costs no worker to let the write go on. The
 * data is stored by one, so that a writer never waits for the COW device.
 *
 * Returns false if this is not so, or if there is more to do than just that.
 */
static bool end_read_here(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	LIST_HEAD(waiters);
	bool is_simple;

	if (copy->status || !can_gather(copy) || !may_go_on_here(copy))
		return false;
	spin_lock(&cbw->lock);
	is_simple = list_empty(&copy->followers) && !is_low_water_news(cbw) &&
		    has_staging_room(copy);
	if (is_simple) {
		copy->is_read = true;
		/* Ours, as the copy may end at any time now, and the engine with it. */
		refcount_inc(&copy->refs);
		stage_copy(copy, &waiters);
	}
	spin_unlock(&cbw->lock);
	if (!is_simple)
		return false;
	resume_waiters(cbw, &waiters);
	put_copy(copy);
	return true;
}

/* Nobody joins the followers any more. They go on with what was read, or without it. */
static void end_reading(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	LIST_HEAD(followers);

	spin_lock(&cbw->lock);
	copy->is_read = true;
	list_splice_init(&copy->followers, &followers);
	spin_unlock(&cbw->lock);
	feed_followers(copy, &followers);
}

/* The old data is in RAM, or could not be read. */
static void read_done(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	const struct fleece_cbw_methods *methods = cbw->config.methods;
	void *context = cbw->config.resume_context;
	bool is_gathered = false;
	LIST_HEAD(waiters);
	bool is_low;

	/* Others come first: a bad sector takes its time. */
	end_reading(copy);
	if (copy->status)
		rescue_clusters(copy);

	/* Ours, as a copy that is gathered may end at any time. */
	refcount_inc(&copy->refs);
	spin_lock(&cbw->lock);
	is_low = note_low_water(cbw);
	if (has_staging_room(copy))
		is_gathered = stage_copy(copy, &waiters);
	spin_unlock(&cbw->lock);

	if (is_low)
		tell_low_water(cbw);
	/* If it is gathered, all but its memory is others'. */
	if (!is_gathered && copy->error)
		finish_copy(copy, false);
	else if (!is_gathered)
		store_soon(copy);
	put_copy(copy);
	resume_with(methods, context, &waiters);
}

static void copy_step(struct work_struct *work)
{
	struct fleece_copy *copy = container_of(work, struct fleece_copy, work);

	switch (copy->phase) {
	case COPY_READ:
		read_done(copy);
		break;
	case COPY_STORE:
		store_copy(copy);
		break;
	case COPY_WRITE:
		write_done(copy);
		break;
	}
}

/* ------------------------- Starting copies ------------------------- */

/* How many clusters from @first on, to @last at the most, one copy can take. */
static unsigned int claimable(struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	cluster_t c = first;

	lockdep_assert_held(&cbw->lock);
	last = min(last, fleece_inflight_window_last(&cbw->inflight, first));
	while (c <= last && needs_copy(cbw, c) && !fleece_inflight_find(&cbw->inflight, c))
		c++;
	return c - first;
}

/*
 * Enter a copy of the clusters from @first on into the table. Returns 1; 0 when
 * there is nothing to copy at @first; -EBUSY when copies in flight must give
 * back memory first; -ENOMEM when the store needs a page; -ENOSPC.
 */
static int claim_run(struct fleece_cbw *cbw, struct fleece_copy *copy, cluster_t first,
		     cluster_t last)
{
	unsigned int count = claimable(cbw, first, last);
	u64 bytes;
	int got;

	if (!count)
		return 0;
	bytes = clusters_memory(cbw, first, first + count - 1);
	if (cbw->nr_copies && cbw->buffered_bytes + bytes > cbw->buffer_limit_bytes)
		return -EBUSY;
	got = fleece_store_alloc(&cbw->store, count, &copy->slot);
	if (got < 0)
		return got == -EAGAIN ? -ENOMEM : got;

	copy->run.first = first;
	copy->run.last = first + got - 1;
	fleece_inflight_add(&cbw->inflight, &copy->run);
	if (!list_empty(&cbw->unserved))
		look_for_passable(cbw);
	cbw->buffered_bytes += copy_memory(copy);
	WRITE_ONCE(cbw->nr_copies, cbw->nr_copies + 1);
	return 1;
}

static void init_copy(struct fleece_copy *copy, struct fleece_cbw *cbw)
{
	memset(copy, 0, sizeof(*copy));
	copy->cbw = cbw;
	refcount_set(&copy->refs, 1);
	INIT_WORK(&copy->work, copy_step);
	INIT_LIST_HEAD(&copy->waiters);
	INIT_LIST_HEAD(&copy->followers);
}

/*
 * No memory for a copy that was just entered: who waits for it must be served. Without
 * memory it leads no other, see can_lead().
 */
static void unclaim_run(struct fleece_copy *copy)
{
	struct fleece_cbw *cbw = copy->cbw;
	u32 slot = copy->slot;
	cluster_t c;

	spin_lock(&cbw->lock);
	for (c = copy->run.first; c <= copy->run.last; c++, slot++)
		fleece_store_free(&cbw->store, slot);
	fleece_inflight_remove(&copy->run);
	/* They are still waiting, so they are still counted. */
	list_splice_tail_init(&copy->waiters, &cbw->unserved);
	spin_unlock(&cbw->lock);
	put_copy(copy);
}

/*
 * A page for the store, or NULL: there are others in reserve, and reclaiming for it could
 * last for ever. The last resort is what is kept for those who free memory: a page is
 * enough for the slots of 256 clusters, and reclaim may be waiting for just those writes.
 */
static void *get_spare(struct fleece_cbw *cbw, bool may_use_reserves)
{
	gfp_t gfp = GFP_NOWAIT | __GFP_NOWARN;
	void *page = fleece_store_refill(&cbw->store, gfp);

	if (!page && may_use_reserves && !READ_ONCE(cbw->store.nr_spares))
		page = fleece_store_refill(&cbw->store, gfp | __GFP_MEMALLOC);
	return page;
}

/*
 * Start one copy at @first, which then goes past the clusters of that copy; returns what
 * claim_run() returns. It follows a copy of the engine @leader, if there is one that can
 * lead it.
 */
static int start_copy(struct fleece_cbw *cbw, cluster_t *first, cluster_t last,
		      struct fleece_cbw *leader, bool may_sleep, struct bio_list *reads)
{
	gfp_t gfp = may_sleep ? GFP_NOIO : GFP_NOWAIT | __GFP_NOWARN;
	struct fleece_copy *copy;
	void *page;
	int ret;

	copy = mempool_alloc(&cbw->copies, gfp);
	if (!copy)
		return -ENOMEM;
	init_copy(copy, cbw);
	page = get_spare(cbw, may_sleep);

	spin_lock(&cbw->lock);
	fleece_store_add_spare(&cbw->store, page);
	ret = claim_run(cbw, copy, *first, last);
	spin_unlock(&cbw->lock);

	if (ret <= 0) {
		mempool_free(copy, &cbw->copies);
		return ret;
	}
	if (!alloc_bios(copy, may_sleep)) {
		unclaim_run(copy);
		return -ENOMEM;
	}
	WRITE_ONCE(copy->has_memory, true);
	/* Before it is submitted: then it may be gone. */
	*first = copy->run.last + 1;
	if (!leader || !follow(copy, leader))
		prepare_reads(copy, reads);
	/* Whoever may sleep may next wait for what this very copy is going to give back. */
	if (may_sleep)
		fleece_bios_submit(reads);
	return ret;
}

/*
 * Start copies until each cluster of the range is done, not needed or in
 * flight. Returns 0 or the error of claim_run().
 */
static int start_missing(struct fleece_cbw *cbw, cluster_t first, cluster_t last,
			 struct fleece_cbw *leader, bool may_sleep, struct bio_list *reads)
{
	cluster_t until;
	u64 length;
	int ret;

	while (first <= last) {
		if (!fleece_cbw_needs(cbw, first, last, &length)) {
			first += length;
			continue;
		}
		ret = start_copy(cbw, &first, last, leader, may_sleep, reads);
		if (ret < 0)
			return ret;
		if (!ret && in_flight_until(cbw, first, &until))
			first = until + 1;
	}
	return 0;
}

/*
 * The list that a write has to wait on: of the last copy of its range that is in
 * flight, so that the others get a head start; of the writes not yet served, if
 * a copy has not been started; NULL if nothing is to be waited for.
 */
static struct list_head *list_to_wait_on(struct fleece_cbw *cbw,
					 const struct fleece_waiter *waiter)
{
	struct list_head *list = NULL;
	cluster_t c = waiter->first;
	struct fleece_run *run;
	u64 length;

	lockdep_assert_held(&cbw->lock);
	while (c <= waiter->last) {
		if (!fleece_cbw_needs(cbw, c, waiter->last, &length)) {
			c += length;
			continue;
		}
		run = fleece_inflight_find(&cbw->inflight, c);
		if (!run)
			return &cbw->unserved;
		list = &copy_of(run)->waiters;
		c = run->last + 1;
	}
	return list;
}

/* First come, first served: who cannot start a copy yet must not be overtaken. */
static void start_in_turn(struct fleece_cbw *cbw, cluster_t first, cluster_t last,
			  struct fleece_cbw *leader, struct bio_list *reads)
{
	/*
	 * data_race(): a glance without the lock. Who sees a change a moment too late
	 * overtakes a write, or leaves its copies to serve.
	 */
	if (data_race(list_empty_careful(&cbw->unserved)))
		start_missing(cbw, first, last, leader, false, reads);
}

void fleece_cbw_start(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors,
		      struct fleece_cbw *leader, struct bio_list *reads)
{
	start_in_turn(cbw, fleece_cbw_cluster(cbw, sector),
		      fleece_cbw_cluster(cbw, sector + nr_sectors - 1), leader, reads);
}

bool fleece_cbw_park(struct fleece_cbw *cbw, struct fleece_waiter *waiter,
		     struct bio_list *reads)
{
	struct list_head *list;

	start_in_turn(cbw, waiter->first, waiter->last, NULL, reads);

	spin_lock(&cbw->lock);
	list = list_to_wait_on(cbw, waiter);
	/* For others serve is at work, or is called when there is more to be had for them. */
	if (list == &cbw->unserved && list_empty(list))
		mod_delayed_work(cbw->memory_wq, &cbw->serve, 0);
	if (list)
		add_waiter(cbw, waiter, list);
	spin_unlock(&cbw->lock);
	return list;
}

/* The oldest write for which a copy could not be started, and its range. */
static struct fleece_waiter *first_unserved(struct fleece_cbw *cbw, cluster_t *first,
					    cluster_t *last)
{
	struct fleece_waiter *waiter;

	spin_lock(&cbw->lock);
	waiter = list_first_entry_or_null(&cbw->unserved, struct fleece_waiter, node);
	if (waiter) {
		*first = waiter->first;
		*last = waiter->last;
	}
	spin_unlock(&cbw->lock);
	return waiter;
}

/* Writes wait until a slot is free, which may be so by now: say so, once. */
static void tell_full(struct fleece_cbw *cbw)
{
	bool is_news;

	spin_lock(&cbw->lock);
	is_news = !cbw->full_told && cbw->store.used == cbw->store.nr_slots;
	cbw->full_told |= is_news;
	spin_unlock(&cbw->lock);
	if (!is_news)
		return;
	DMWARN("%s: COW device %pg is full, live writes wait", cbw->config.name, cbw->config.cow);
	raise_event(cbw);
}

/* Those that wait for nothing any more are handed to @waiters, others to copies in flight. */
static void find_passable(struct fleece_cbw *cbw, struct list_head *waiters)
{
	struct fleece_waiter *waiter = cbw->pass_from;
	struct fleece_waiter *next;
	unsigned int left = PASS_MAX;
	struct list_head *list;

	lockdep_assert_held(&cbw->lock);
	cbw->pass_from = NULL;
	if (!waiter)
		waiter = list_first_entry(&cbw->unserved, struct fleece_waiter, node);
	list_for_each_entry_safe_from(waiter, next, &cbw->unserved, node) {
		if (!left--) {
			cbw->pass_from = waiter;
			return;
		}
		list = list_to_wait_on(cbw, waiter);
		if (!list)
			take_waiter(cbw, waiter, waiters);
		else if (list != &cbw->unserved)
			list_move_tail(&waiter->node, list);
	}
}

static void look_once(struct fleece_cbw *cbw, struct list_head *waiters)
{
	struct list_head *first = cbw->unserved.next;
	u64 begin = ktime_get_ns();
	u64 end;

	if (!cbw->pass_from)
		cbw->pass_again = false;
	find_passable(cbw, waiters);
	/* The next one has never been tried. */
	if (cbw->unserved.next != first)
		mod_delayed_work(cbw->memory_wq, &cbw->serve, 0);
	end = ktime_get_ns();
	cbw->pass_at = end + min(PASS_PAUSE * (end - begin), (u64)PASS_PAUSE_MAX_NS);
}

/*
 * Writes are served in their order, but who needs no copy of its own any more, because its
 * clusters were released, lost, copied or claimed, does not wait for those before it; nor for
 * serve, which may be waiting for memory. To look at them takes its time: no more than a part
 * of all.
 */
static void let_pass(struct work_struct *work)
{
	struct fleece_cbw *cbw = container_of(to_delayed_work(work), struct fleece_cbw, pass);
	LIST_HEAD(waiters);
	bool is_early;

	spin_lock(&cbw->lock);
	/* If it was queued while the last look was about to end. */
	is_early = ktime_get_ns() < cbw->pass_at;
	if (!is_early)
		look_once(cbw, &waiters);
	if (is_early || cbw->pass_from || cbw->pass_again)
		queue_pass(cbw);
	spin_unlock(&cbw->lock);
	resume_waiters(cbw, &waiters);
}

/*
 * There is no slot for what @waiter, the first of the writes not yet served, needs.
 * Returns true if it has been seen to and the next one can be looked at.
 */
static bool handle_full(struct fleece_cbw *cbw, struct fleece_waiter *waiter, cluster_t first,
			cluster_t last)
{
	LIST_HEAD(waiters);

	if (cbw->config.wait_when_full) {
		tell_full(cbw);
		return false;
	}
	switch (cbw->config.on_error) {
	case FLEECE_BREAK_SNAPSHOT:
		fleece_cbw_break(cbw, ENOSPC, cluster_to_sector(cbw, first),
				 "the COW device is full");
		return false;
	case FLEECE_BREAK_CLUSTER:
		lose_range(cbw, first, last, false, ENOSPC, "the COW device is full", &waiters);
		resume_waiters(cbw, &waiters);
		return true;
	case FLEECE_BREAK_WRITE:
		break;
	}
	spin_lock(&cbw->lock);
	/* Its memory may belong to another write by now. */
	if (cbw->unserved.next == &waiter->node && waiter->first == first &&
	    waiter->last == last) {
		waiter->error = ENOSPC;
		take_waiter(cbw, waiter, &waiters);
	}
	spin_unlock(&cbw->lock);
	if (!list_empty(&waiters))
		DMERR_LIMIT("%s: live writes fail: the COW device is full", cbw->config.name);
	resume_waiters(cbw, &waiters);
	return true;
}

/*
 * Start the copies that could not be started without sleeping. A write stays on
 * the list meanwhile, so that the watchdog and a break find it.
 */
static void serve_unserved(struct work_struct *work)
{
	struct fleece_cbw *cbw = container_of(to_delayed_work(work), struct fleece_cbw, serve);
	struct bio_list reads = BIO_EMPTY_LIST;
	struct fleece_waiter *waiter;
	LIST_HEAD(waiters);
	cluster_t first;
	cluster_t last;
	int ret;

	while ((waiter = first_unserved(cbw, &first, &last))) {
		ret = start_missing(cbw, first, last, NULL, true, &reads);
		if (ret == -ENOSPC && handle_full(cbw, waiter, first, last))
			continue;
		if (ret == -ENOMEM)
			/* For the store's entries: they have no reserve but the watchdog. */
			mod_delayed_work(cbw->memory_wq, &cbw->serve, SERVE_RETRY_JIFFIES);
		/* -EBUSY: the copies in flight queue this work when they give back memory. */
		if (ret)
			return;

		spin_lock(&cbw->lock);
		/* Unless somebody else has taken it. */
		if (cbw->unserved.next == &waiter->node)
			take_waiter(cbw, waiter, &waiters);
		spin_unlock(&cbw->lock);
		resume_waiters(cbw, &waiters);
	}
}

/* ------------------------- Reading ------------------------- */

static void locate_denied(struct fleece_cbw *cbw, cluster_t cluster, struct fleece_place *place)
{
	/* Pairs with the clearing in take_access(): who sees access gone sees the note. */
	smp_rmb();
	place->kind = xa_load(&cbw->lost, cluster) ? FLEECE_PLACE_LOST : FLEECE_PLACE_DENIED;
}

/* Cluster @cluster is done: in RAM, in a slot, or released a moment ago. */
static cluster_t locate_copied(struct fleece_cbw *cbw, cluster_t cluster, cluster_t last,
			       struct fleece_place *place)
{
	struct fleece_run *run;
	cluster_t c = cluster;
	u32 slot;

	last = min(last, cluster + LOCATE_MAX - 1);
	spin_lock(&cbw->lock);
	run = fleece_inflight_find(&cbw->inflight, cluster);
	slot = run ? FLEECE_SLOT_NONE : fleece_store_lookup(&cbw->store, cluster);
	if (!is_accessible(cbw, cluster)) {
		/* It fell after the caller looked: what a copy has of it may be no data. */
		locate_denied(cbw, cluster, place);
	} else if (run) {
		place->kind = FLEECE_PLACE_STAGED;
		place->copy = copy_of(run);
		refcount_inc(&place->copy->refs);
		last = min(last, run->last);
		while (c < last && is_accessible(cbw, c + 1))
			c++;
	} else if (slot != FLEECE_SLOT_NONE) {
		place->kind = FLEECE_PLACE_SLOT;
		place->sector = slot_to_sector(cbw, slot);
		while (c < last && fleece_store_lookup(&cbw->store, c + 1) == slot + 1) {
			c++;
			slot++;
		}
	} else {
		/* The snapshot broke before the copy was stored. */
		place->kind = FLEECE_PLACE_LOST;
	}
	spin_unlock(&cbw->lock);
	return c;
}

void fleece_cbw_locate(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors,
		       struct fleece_place *place)
{
	cluster_t first = fleece_cbw_cluster(cbw, sector);
	cluster_t last = fleece_cbw_cluster(cbw, sector + nr_sectors - 1);
	cluster_t c = first;
	u64 length;

	/* Until that is merged each cluster is looked at for itself, maybe in an interrupt. */
	if (unmerged_view(cbw))
		last = min(last, first + LOCATE_MAX - 1);
	/* What is read most comes first. It is accessible, and the snapshot is active. */
	if (fleece_cbw_needs(cbw, first, last, &length)) {
		place->kind = FLEECE_PLACE_ORIGIN;
		c = first + length - 1;
	} else if (!fleece_cbw_is_active(cbw)) {
		place->kind = FLEECE_PLACE_LOST;
		c = last;
	} else if (!is_accessible(cbw, first)) {
		locate_denied(cbw, first, place);
	} else {
		c = locate_copied(cbw, first, last, place);
	}
	place->nr_sectors = min(cluster_to_sector(cbw, c + 1), sector + nr_sectors) - sector;
	if (place->kind == FLEECE_PLACE_SLOT)
		place->sector += sector - cluster_to_sector(cbw, first);
}

void fleece_cbw_read_staged(struct fleece_cbw *cbw, struct fleece_place *place, sector_t sector,
			    struct bio *bio, struct bvec_iter iter)
{
	struct fleece_copy *copy = place->copy;
	u64 offset = (u64)(sector - cluster_to_sector(cbw, copy->run.first)) << SECTOR_SHIFT;
	unsigned int done;
	unsigned int bytes;
	struct bio_vec bv;
	char *to;

	while (iter.bi_size) {
		bv = bio_iter_iovec(bio, iter);
		to = kmap_local_page(bv.bv_page);
		for (done = 0; done < bv.bv_len; done += bytes, offset += bytes) {
			bytes = min_t(unsigned int, bv.bv_len - done,
				      PAGE_SIZE - offset_in_page(offset));
			memcpy(to + bv.bv_offset + done,
			       page_address(buffer_page(copy, offset)) + offset_in_page(offset),
			       bytes);
		}
		kunmap_local(to);
		flush_dcache_page(bv.bv_page);
		bio_advance_iter(bio, &iter, bv.bv_len);
	}
	put_copy(copy);
}

bool fleece_cbw_still_there(struct fleece_cbw *cbw, enum fleece_place_kind kind, sector_t sector,
			    sector_t nr_sectors)
{
	cluster_t c = fleece_cbw_cluster(cbw, sector);
	cluster_t last = fleece_cbw_cluster(cbw, sector + nr_sectors - 1);

	/* (B): the data first, then what is known of it. Pairs with (A). */
	smp_mb();
	if (kind == FLEECE_PLACE_ORIGIN)
		return needs_all(cbw, c, last);
	while (c <= last && is_accessible(cbw, c))
		c++;
	return c > last && fleece_cbw_is_active(cbw);
}

/* ------------------------- Releasing ------------------------- */

static void release_cluster(struct fleece_cbw *cbw, cluster_t cluster, struct list_head *waiters)
{
	struct fleece_run *run;

	lockdep_assert_held(&cbw->lock);
	if (!fleece_bits_test_and_clear(cbw->access, cluster))
		return;
	cbw->nr_accessible--;
	cbw->nr_released++;
	run = fleece_inflight_find(&cbw->inflight, cluster);
	if (run)
		/* The copy frees the slot when its write has ended. */
		take_waiters(cbw, &copy_of(run)->waiters, waiters);
	else
		fleece_store_remove(&cbw->store, cluster);
}

/*
 * The clusters of a word at once, if none of them is copied or being copied: most of
 * a large device is not. Returns false if that is not so.
 */
static bool release_word(struct fleece_cbw *cbw, cluster_t first, cluster_t end)
{
	u64 index = first / BITS_PER_LONG;
	unsigned int count;

	lockdep_assert_held(&cbw->lock);
	if (first % BITS_PER_LONG || end - first < BITS_PER_LONG ||
	    READ_ONCE(cbw->done[index]) ||
	    fleece_inflight_any(&cbw->inflight, first, first + BITS_PER_LONG - 1))
		return false;
	/* A full barrier, as clearing a bit is: as (A), it pairs with (B). */
	count = hweight_long(xchg(&cbw->access[index], 0));
	cbw->nr_accessible -= count;
	cbw->nr_released += count;
	return true;
}

/* Release clusters before @end, as long as the lock may be held. Returns the next one. */
static cluster_t release_batch(struct fleece_cbw *cbw, cluster_t first, cluster_t end,
			       struct list_head *waiters)
{
	unsigned int i;

	for (i = 0; i < RELEASE_STEPS && first < end; i++) {
		if (release_word(cbw, first, end))
			first += BITS_PER_LONG;
		else
			release_cluster(cbw, first++, waiters);
	}
	return first;
}

/* Returns true if there is something to tell. */
static bool release_whole(struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	struct fleece_view access = { &cbw->access, 1, cbw->nr_clusters };
	LIST_HEAD(waiters);
	bool is_news = false;
	cluster_t end;
	bool value;

	while (first <= last) {
		cond_resched();
		end = first + fleece_bits_run(&access, first, min(first + RELEASE_BATCH, last + 1),
					      &value);
		if (!value) {
			first = end;
			continue;
		}
		spin_lock(&cbw->lock);
		first = release_batch(cbw, first, end, &waiters);
		is_news |= note_free_slots(cbw);
		spin_unlock(&cbw->lock);
		resume_waiters(cbw, &waiters);
	}
	return is_news;
}

static void forget_partial(struct fleece_cbw *cbw, cluster_t cluster)
{
	unsigned long *partial = xa_erase(&cbw->partial, cluster);

	if (!partial)
		return;
	cbw->nr_partial--;
	kfree(partial);
}

/* Forget the clusters that cannot be read any more anyway. */
static void drop_useless_partials(struct fleece_cbw *cbw)
{
	unsigned long index;
	void *entry;

	xa_for_each(&cbw->partial, index, entry) {
		if (!fleece_bits_test(cbw->access, index))
			forget_partial(cbw, index);
	}
}

/* The released sectors of a cluster, a bit for each, or an ERR_PTR. */
static unsigned long *get_partial(struct fleece_cbw *cbw, cluster_t cluster)
{
	unsigned long *partial = xa_load(&cbw->partial, cluster);
	size_t longs = BITS_TO_LONGS(1UL << cbw->cluster_shift);
	int ret;

	if (partial)
		return partial;
	if (cbw->nr_partial >= PARTIAL_MAX)
		drop_useless_partials(cbw);
	if (cbw->nr_partial >= PARTIAL_MAX)
		return ERR_PTR(-ENOSPC);
	partial = kcalloc(longs, sizeof(unsigned long), GFP_NOIO);
	if (!partial)
		return ERR_PTR(-ENOMEM);
	ret = xa_err(xa_store(&cbw->partial, cluster, partial, GFP_NOIO));
	if (ret) {
		kfree(partial);
		return ERR_PTR(ret);
	}
	cbw->nr_partial++;
	return partial;
}

/*
 * Release the sectors from @sector to before @end, which are part of one cluster.
 * Sets @is_news if there is something to tell.
 */
static int release_part(struct fleece_cbw *cbw, sector_t sector, sector_t end, bool *is_news)
{
	cluster_t cluster = fleece_cbw_cluster(cbw, sector);
	unsigned int offset = sector - cluster_to_sector(cbw, cluster);
	unsigned long *partial;

	lockdep_assert_held(&cbw->release_lock);
	if (!fleece_bits_test(cbw->access, cluster))
		return 0;
	partial = get_partial(cbw, cluster);
	if (IS_ERR(partial))
		return PTR_ERR(partial);
	bitmap_set(partial, offset, end - sector);
	if (bitmap_full(partial, clusters_sectors(cbw, cluster, cluster))) {
		forget_partial(cbw, cluster);
		*is_news |= release_whole(cbw, cluster, cluster);
	}
	return 0;
}

static bool release_clusters(struct fleece_cbw *cbw, cluster_t first, cluster_t last)
{
	unsigned long index;
	void *entry;

	lockdep_assert_held(&cbw->release_lock);
	xa_for_each_range(&cbw->partial, index, entry, first, last)
		forget_partial(cbw, index);
	return release_whole(cbw, first, last);
}

int fleece_cbw_release(struct fleece_cbw *cbw, sector_t sector, sector_t nr_sectors)
{
	sector_t mask = (1ULL << cbw->cluster_shift) - 1;
	sector_t end = sector + nr_sectors;
	sector_t whole = (sector + mask) & ~mask;
	sector_t whole_end = end == cbw->config.nr_sectors ? end : end & ~mask;
	bool is_news = false;
	int head = 0;
	int tail = 0;

	if (!nr_sectors || !fleece_cbw_is_active(cbw))
		return 0;
	fleece_cbw_finish_merge(cbw);
	mutex_lock(&cbw->release_lock);
	if (sector < whole)
		head = release_part(cbw, sector, min(end, whole), &is_news);
	if (whole < whole_end)
		is_news |= release_clusters(cbw, fleece_cbw_cluster(cbw, whole),
					    fleece_cbw_cluster(cbw, whole_end - 1));
	if (whole_end < end && whole <= whole_end)
		tail = release_part(cbw, whole_end, end, &is_news);
	mutex_unlock(&cbw->release_lock);
	if (is_news)
		raise_event(cbw);
	return head ?: tail;
}

/* ------------------------- Life of the engine ------------------------- */

u32 fleece_cbw_slots(sector_t cow_sectors, unsigned int cluster_sectors)
{
	if (cow_sectors < FLEECE_HEADER_SECTORS)
		return 0;
	return min_t(u64, (cow_sectors - FLEECE_HEADER_SECTORS) >> ilog2(cluster_sectors),
		     FLEECE_SLOT_NONE - 1);
}

/* More slots than there are. @is_news: is to be told. */
static int grow_store(struct fleece_cbw *cbw, u32 nr_slots, bool *is_news)
{
	struct fleece_store_growth growth;
	bool is_moving = true;

	lockdep_assert_held(&cbw->grow_lock);
	if (fleece_store_growth_init(&growth, &cbw->store, nr_slots))
		return -ENOMEM;
	spin_lock(&cbw->lock);
	fleece_store_grow(&cbw->store, &growth);
	*is_news = note_free_slots(cbw);
	spin_unlock(&cbw->lock);
	while (is_moving) {
		cond_resched();
		spin_lock(&cbw->lock);
		is_moving = fleece_store_move(&cbw->store, &growth, MOVE_BATCH);
		spin_unlock(&cbw->lock);
	}
	fleece_store_growth_exit(&growth);
	return 0;
}

static int grow_locked(struct fleece_cbw *cbw, bool *is_news)
{
	sector_t nr_sectors = bdev_nr_sectors(cbw->config.cow);
	u32 nr_slots = fleece_cbw_slots(nr_sectors, cbw->config.cluster_sectors);
	u32 old = cbw->store.nr_slots;
	int ret = 0;

	if (!fleece_cbw_is_active(cbw)) {
		DMERR("%s: cannot grow: the snapshot is not active", cbw->config.name);
		return -EIO;
	}
	if (nr_slots < old) {
		DMERR("%s: COW device %pg is smaller than it was: %u slots instead of %u",
		      cbw->config.name, cbw->config.cow, nr_slots, old);
		return -EINVAL;
	}
	if (nr_slots > old)
		ret = grow_store(cbw, nr_slots, is_news);
	if (ret)
		DMERR("%s: cannot grow: no memory for %u slots", cbw->config.name, nr_slots);
	else if (nr_slots > old)
		DMINFO("%s: COW device %pg has grown: %u slots instead of %u",
		       cbw->config.name, cbw->config.cow, nr_slots, old);
	return ret;
}

int fleece_cbw_grow(struct fleece_cbw *cbw)
{
	unsigned int noio = memalloc_noio_save();
	bool is_news = false;
	int ret;

	mutex_lock(&cbw->grow_lock);
	ret = grow_locked(cbw, &is_news);
	mutex_unlock(&cbw->grow_lock);
	if (is_news)
		raise_event(cbw);
	memalloc_noio_restore(noio);
	return ret;
}

static int init_maps(struct fleece_cbw *cbw)
{
	u64 longs = BITS_TO_LONGS(cbw->nr_clusters);

	cbw->access = fleece_bits_alloc(cbw->nr_clusters);
	cbw->done = fleece_bits_alloc(cbw->nr_clusters);
	if (!cbw->access || !cbw->done)
		return -ENOMEM;
	if (!cbw->config.limited) {
		memset(cbw->access, 0xff, longs * sizeof(long));
		cbw->access[longs - 1] &= BITMAP_LAST_WORD_MASK(cbw->nr_clusters);
		cbw->nr_accessible = cbw->nr_clusters;
	}
	return 0;
}

static int init_pools(struct fleece_cbw *cbw)
{
	unsigned int copy_size = struct_size((struct fleece_copy *)NULL, parts, cbw->bios_per_copy);
	unsigned int copy_pages = cbw->bios_per_copy * BIO_PAGES;

	return mempool_init_kmalloc_pool(&cbw->copies, RESERVED_COPIES, copy_size) ?:
	       fleece_pages_init(&cbw->pages, copy_pages,
				 max_t(unsigned int, copy_pages, KEPT_PAGES)) ?:
	       bioset_init(&cbw->bios, RESERVED_BIOS, 0, BIOSET_NEED_BVECS) ?:
	       bioset_init(&cbw->batches, 1, offsetof(struct fleece_batch, bio),
			   BIOSET_NEED_BVECS) ?:
	       bioset_init(&cbw->rescue_bios, 1, 0, BIOSET_NEED_BVECS) ?:
	       bioset_init(&cbw->rewrite_bios, 1, 0, BIOSET_NEED_BVECS);
}

/* Pages for the store to begin with, which writers replace as they are used. */
static int fill_spares(struct fleece_cbw *cbw)
{
	void *page;

	while ((page = fleece_store_refill(&cbw->store, GFP_KERNEL | __GFP_RETRY_MAYFAIL)))
		fleece_store_add_spare(&cbw->store, page);
	return cbw->store.nr_spares ? 0 : -ENOMEM;
}

static void free_partials(struct fleece_cbw *cbw)
{
	unsigned long index;
	void *entry;

	xa_for_each(&cbw->partial, index, entry)
		forget_partial(cbw, index);
	xa_destroy(&cbw->partial);
}

void fleece_cbw_destroy(struct fleece_cbw *cbw)
{
	if (cbw->watch_wq)
		destroy_workqueue(cbw->watch_wq);
	if (cbw->cow_wq)
		destroy_workqueue(cbw->cow_wq);
	if (cbw->any_cpu_wq)
		destroy_workqueue(cbw->any_cpu_wq);
	if (cbw->wq)
		destroy_workqueue(cbw->wq);
	if (cbw->memory_wq)
		destroy_workqueue(cbw->memory_wq);
	free_partials(cbw);
	xa_destroy(&cbw->lost);
	bioset_exit(&cbw->rewrite_bios);
	bioset_exit(&cbw->rescue_bios);
	bioset_exit(&cbw->batches);
	bioset_exit(&cbw->bios);
	fleece_pages_exit(&cbw->pages);
	mempool_exit(&cbw->copies);
	fleece_store_exit(&cbw->store);
	vfree(cbw->done);
	vfree(cbw->access);
	kfree(cbw);
}

static void init_engine(struct fleece_cbw *cbw, const struct fleece_cbw_config *config)
{
	u64 copy_sectors = max(config->cluster_sectors, BIO_SECTORS);

	cbw->serial = atomic64_inc_return(&nr_engines);
	cbw->config = *config;
	cbw->cluster_shift = ilog2(config->cluster_sectors);
	cbw->nr_clusters = (config->nr_sectors + config->cluster_sectors - 1) >> cbw->cluster_shift;
	cbw->bios_per_copy = copy_sectors / BIO_SECTORS;
	cbw->buffer_limit_bytes = max3(config->staging_bytes, (u64)BUFFER_BYTES_MIN,
				       2 * (copy_sectors << SECTOR_SHIFT));
	xa_init(&cbw->lost);
	xa_init(&cbw->partial);
	spin_lock_init(&cbw->lock);
	mutex_init(&cbw->grow_lock);
	mutex_init(&cbw->merge_lock);
	mutex_init(&cbw->lose_lock);
	mutex_init(&cbw->release_lock);
	fleece_inflight_init(&cbw->inflight, ilog2(copy_sectors) - cbw->cluster_shift);
	INIT_LIST_HEAD(&cbw->unserved);
	init_waitqueue_head(&cbw->idle);
	INIT_LIST_HEAD(&cbw->gathered);
	INIT_DELAYED_WORK(&cbw->store_gathered, store_gathered);
	INIT_DELAYED_WORK(&cbw->serve, serve_unserved);
	INIT_DELAYED_WORK(&cbw->pass, let_pass);
	INIT_WORK(&cbw->merge, merge_in_background);
	INIT_DELAYED_WORK(&cbw->watchdog, watch_waiters);
}

static bool alloc_queues(struct fleece_cbw *cbw)
{
	unsigned int flags = WQ_MEM_RECLAIM | WQ_HIGHPRI;
	const char *name = cbw->config.name;

	/* A COW device that works with the CPU must not hold up the steps behind it. */
	cbw->wq = alloc_workqueue("fleece/%s", flags | WQ_PERCPU | WQ_CPU_INTENSIVE, 0, name);
	cbw->any_cpu_wq = alloc_workqueue("fleece-any/%s", flags | WQ_UNBOUND, 0, name);
	cbw->cow_wq = alloc_workqueue("fleece-cow/%s", flags | WQ_UNBOUND, STORING_MAX, name);
	cbw->memory_wq = alloc_ordered_workqueue("fleece-mem/%s", WQ_MEM_RECLAIM, name);
	cbw->watch_wq = alloc_ordered_workqueue("fleece-watch/%s", WQ_MEM_RECLAIM, name);
	return cbw->wq && cbw->any_cpu_wq && cbw->cow_wq && cbw->memory_wq && cbw->watch_wq;
}

struct fleece_cbw *fleece_cbw_create(const struct fleece_cbw_config *config, char **error)
{
	u32 nr_slots = fleece_cbw_slots(bdev_nr_sectors(config->cow), config->cluster_sectors);
	struct fleece_cbw *cbw;

	if (!nr_slots) {
		*error = "COW device too small: it must hold 1 MiB and one cluster at least";
		return ERR_PTR(-ENOSPC);
	}
	*error = "Cannot allocate the maps of the snapshot";
	cbw = kzalloc(sizeof(*cbw), GFP_KERNEL);
	if (!cbw)
		return ERR_PTR(-ENOMEM);
	init_engine(cbw, config);
	if (!alloc_queues(cbw) || init_maps(cbw) ||
	    fleece_store_init(&cbw->store, nr_slots) || init_pools(cbw) || fill_spares(cbw)) {
		fleece_cbw_destroy(cbw);
		return ERR_PTR(-ENOMEM);
	}
	return cbw;
}

void fleece_cbw_drain(struct fleece_cbw *cbw)
{
	cancel_delayed_work_sync(&cbw->watchdog);
	flush_work(&cbw->merge);
	wait_event(cbw->idle, !READ_ONCE(cbw->nr_copies));
	/* Let the one who woke us leave the lock. */
	spin_lock(&cbw->lock);
	spin_unlock(&cbw->lock);
	cancel_delayed_work_sync(&cbw->serve);
	cancel_delayed_work_sync(&cbw->pass);
	cancel_delayed_work_sync(&cbw->store_gathered);
}

void fleece_cbw_activate(struct fleece_cbw *cbw, struct fleece_view *changed,
			 unsigned int granule_sectors)
{
	if (changed) {
		cbw->unmerged_granule_shift = ilog2(granule_sectors);
		/* Pairs with unmerged_view(): whoever asks for the status may look already. */
		smp_store_release(&cbw->unmerged, changed);
	}
	spin_lock(&cbw->lock);
	WRITE_ONCE(cbw->state, FLEECE_CBW_ACTIVE);
	spin_unlock(&cbw->lock);
	if (changed)
		queue_work(cbw->any_cpu_wq, &cbw->merge);
}

void fleece_cbw_get_status(struct fleece_cbw *cbw, struct fleece_cbw_status *status)
{
	fleece_cbw_finish_merge(cbw);
	spin_lock(&cbw->lock);
	status->state = cbw->state;
	status->slots_used = cbw->store.used;
	status->slots_total = cbw->store.nr_slots;
	status->accessible = cbw->nr_accessible;
	status->copied = cbw->nr_copied;
	status->released = cbw->nr_released;
	status->lost = cbw->nr_lost;
	status->staged_bytes = cbw->staged_bytes;
	status->waiting = cbw->nr_waiting;
	status->error = cbw->error;
	status->error_sector = cbw->error_sector;
	if (cbw->state == FLEECE_CBW_NEW)
		status->error = EAGAIN;
	spin_unlock(&cbw->lock);
}
