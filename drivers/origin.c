// SPDX-License-Identifier: GPL-2.0-only
/*
 * origin: target "fleece", see origin.h. Owns the way of every bio to the lower
 * device, the registry of origins and the messages about checkpoints. What must
 * be copied before a write is asked of the engine; what is changed is told to
 * the tracker, and to the metadata if there is any.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "bios.h"
#include "origin.h"

#define DM_MSG_PREFIX		"fleece origin"

/*
 * Writes are held back for a second. If those under way take longer, there are some
 * more attempts, with a pause for the writes held back: every second one waits twice as
 * long, as the queue of a busy disk may take it some seconds.
 */
#define QUIESCE_TIMEOUT_MS	1000
#define QUIESCE_PAUSE_MS	200
#define QUIESCE_ATTEMPTS	7

/*
 * A write that must wait, for copies or for the end of quiescing, is cut to this
 * length, so that none waits for the copying of gigabytes (a write of zeroes can
 * be that long).
 */
#define WAIT_SECTORS_MAX	8192U

/* Granules that are marked before the CPU is offered once. */
#define MARK_BATCH		65536U

/**
 * struct live_write - per-bio data
 * @waiter: while it waits, or is held back.
 * @is_admitted: it holds a reference on origin->writes.
 * @is_advice: a discard, not worth any copying.
 * @waits_on: serial of the engine that it waits, or last waited, for; or 0. Its
 *	clock starts with each: the time limit of a snapshot is for its own copies.
 * @first: first sector.
 * @last: last sector; a bio that was cut ends earlier.
 */
struct live_write {
	struct fleece_waiter waiter;
	bool is_admitted;
	bool is_advice;
	u64 waits_on;
	sector_t first;
	sector_t last;
};

/**
 * struct fleece_table - one table of target "fleece"
 * @origin: shared with other tables of the same device.
 * @lower: this table's handle of the lower device.
 * @metadata: this table's handle of the metadata device, or NULL.
 * @copies_discards: feature discard_copy.
 * @shrinks: it is counted in origin->nr_shrinking, which protects it.
 */
struct fleece_table {
	struct fleece_origin *origin;
	struct dm_dev *lower;
	struct dm_dev *metadata;
	bool copies_discards;
	bool shrinks;
};

static DEFINE_MUTEX(registry_lock);
static LIST_HEAD(origins);
static LIST_HEAD(claims);

/* Of all origins: to join segments is never urgent. */
static struct workqueue_struct *compact_wq;

static struct live_write *write_of(struct bio *bio)
{
	return dm_per_bio_data(bio, sizeof(struct live_write));
}

static struct bio *bio_of(struct live_write *write)
{
	return dm_bio_from_per_bio_data(write, sizeof(struct live_write));
}

/*
 * What becomes of a bio on its way to the device: it may go; it waits, and is not
 * ours any more; it is to be completed at once; it is to be refused, because it
 * must not wait; what it would have to wait for has gone, so try again.
 */
enum verdict {
	GO,
	WAITS,
	ENDS,
	REFUSED,
	AGAIN,
};

/* ------------------------- Admission ------------------------- */

/* The last write under way has completed while new ones are held back. */
static void writes_drained(struct percpu_ref *ref)
{
	struct fleece_origin *origin = container_of(ref, struct fleece_origin, writes);

	complete(&origin->drained);
}

/* Only while a bio is being mapped; the rest of it is mapped again. */
static void cut_waiting(struct bio *bio)
{
	/* Its writer, who would poll for it, is not the one who will submit it. */
	bio->bi_opf &= ~REQ_POLLED;
	/* What is written as a whole is not that long; it must not be cut. */
	if (bio_sectors(bio) > WAIT_SECTORS_MAX && !(bio->bi_opf & REQ_ATOMIC))
		dm_accept_partial_bio(bio, WAIT_SECTORS_MAX);
}

static enum verdict admit_write(struct fleece_origin *origin, struct bio *bio, bool is_mapping)
{
	bool may_wait = !is_mapping || !(bio->bi_opf & REQ_NOWAIT);
	struct live_write *write = write_of(bio);
	enum verdict verdict = REFUSED;

	for (;;) {
		/*
		 * data_race(): its fallback reads the flags of the reference plainly, while
		 * we switch modes or kill it. Of both bits either value will do: whether the
		 * reference is had is decided by the atomic counter that comes next.
		 */
		if (likely(data_race(percpu_ref_tryget_live(&origin->writes)))) {
			/*
			 * Pairs with the smp_wmb() in fleece_origin_release(): a write
			 * that is admitted after it sees the new segment and snapshot.
			 */
			smp_rmb();
			write->is_admitted = true;
			return GO;
		}
		spin_lock(&origin->held_lock);
		if (origin->is_quiescing) {
			if (may_wait) {
				if (is_mapping)
					cut_waiting(bio);
				/* This is not the time of a copy. */
				write->waits_on = 0;
				list_add_tail(&write->waiter.node, &origin->held);
				verdict = WAITS;
			}
			spin_unlock(&origin->held_lock);
			return verdict;
		}
		/* Released between the two: try again. */
		spin_unlock(&origin->held_lock);
		cpu_relax();
	}
}

static void dismiss_write(struct fleece_origin *origin, struct live_write *write)
{
	write->is_admitted = false;
	percpu_ref_put(&origin->writes);
}

static int try_quiesce(struct fleece_origin *origin, unsigned int timeout_ms)
{
	/* Takes a while, but holds nobody back. */
	percpu_ref_switch_to_atomic_sync(&origin->writes);

	reinit_completion(&origin->drained);
	spin_lock(&origin->held_lock);
	origin->is_quiescing = true;
	spin_unlock(&origin->held_lock);
	percpu_ref_kill(&origin->writes);

	if (wait_for_completion_timeout(&origin->drained, msecs_to_jiffies(timeout_ms)))
		return 0;
	fleece_origin_release(origin);
	return -ETIMEDOUT;
}

int fleece_origin_quiesce(struct fleece_origin *origin)
{
	unsigned int timeout_ms = 0;
	unsigned int attempt;

	lockdep_assert_held(&origin->lock);
	for (attempt = 0; attempt < QUIESCE_ATTEMPTS; attempt++) {
		if (attempt)
			msleep(QUIESCE_PAUSE_MS);
		timeout_ms = QUIESCE_TIMEOUT_MS << attempt / 2;
		if (!try_quiesce(origin, timeout_ms))
			return 0;
	}
	DMERR("%pg: writes under way have not completed within %u ms, in %u attempts",
	      origin->lower, timeout_ms, QUIESCE_ATTEMPTS);
	return -ETIMEDOUT;
}

void fleece_origin_release(struct fleece_origin *origin)
{
	lockdep_assert_held(&origin->lock);

	/* What was done while no write was under way is seen by the next one. */
	smp_wmb();
	percpu_ref_resurrect(&origin->writes);
	spin_lock(&origin->held_lock);
	origin->is_quiescing = false;
	spin_unlock(&origin->held_lock);
	queue_work(origin->wq, &origin->resubmit);
	percpu_ref_switch_to_percpu(&origin->writes);
}

/* ------------------------- The way of a write ------------------------- */

/*
 * How much of a bio, from its start on, lies on what the snapshot is of: an origin
 * may have grown since.
 */
static sector_t sectors_of_snapshot(const struct fleece_cbw *cbw, const struct bio *bio)
{
	sector_t start = bio->bi_iter.bi_sector;

	if (start >= cbw->config.nr_sectors)
		return 0;
	return min_t(sector_t, bio_sectors(bio), cbw->config.nr_sectors - start);
}

static void set_waiter(struct live_write *write, struct fleece_cbw *cbw, struct bio *bio)
{
	sector_t start = bio->bi_iter.bi_sector;

	write->waiter.first = fleece_cbw_cluster(cbw, start);
	write->waiter.last = fleece_cbw_cluster(cbw, start + sectors_of_snapshot(cbw, bio) - 1);
	if (write->waits_on != cbw->serial) {
		write->waits_on = cbw->serial;
		write->waiter.since = jiffies;
	}
}

/*
 * A write waits for @cbw, but the engines after it on the list begin their copies
 * as well: they were not asked yet, those before it need none. What @cbw reads for
 * the write serves all.
 */
static void start_others(struct fleece_origin *origin, struct fleece_cbw *cbw, struct bio *bio,
			 struct bio_list *reads)
{
	struct fleece_cbw *other = cbw;
	bool is_reading = false;
	sector_t nr_sectors;

	list_for_each_entry_continue_rcu(other, &origin->cbws, node) {
		nr_sectors = sectors_of_snapshot(other, bio);
		if (!nr_sectors)
			continue;
		if (!is_reading)
			fleece_cbw_start(cbw, bio->bi_iter.bi_sector, sectors_of_snapshot(cbw, bio),
					 NULL, reads);
		is_reading = true;
		fleece_cbw_start(other, bio->bi_iter.bi_sector, nr_sectors, cbw, reads);
	}
}

/* Let an admitted write wait for its copies, of one snapshot at a time. */
static enum verdict park_write(struct fleece_origin *origin, struct fleece_cbw *cbw,
			       struct bio *bio, bool is_mapping, struct bio_list *reads)
{
	struct live_write *write = write_of(bio);

	if (is_mapping && bio->bi_opf & REQ_NOWAIT)
		return REFUSED;
	if (is_mapping)
		cut_waiting(bio);
	set_waiter(write, cbw, bio);
	start_others(origin, cbw, bio, reads);
	/*
	 * It leaves the device's writes before it waits: once parked, it may be
	 * admitted again and complete at any time.
	 */
	dismiss_write(origin, write);
	return fleece_cbw_park(cbw, &write->waiter, reads) ? WAITS : AGAIN;
}

/*
 * Over clusters that the snapshot still needs a discard is completed without
 * being passed down: it is advice, and not worth the copying. While the bio is
 * being mapped it can be cut to the part with the same answer.
 */
static enum verdict cover_discard(struct fleece_cbw *cbw, struct bio *bio, sector_t nr_sectors,
				  bool is_mapping)
{
	sector_t start = bio->bi_iter.bi_sector;
	cluster_t first = fleece_cbw_cluster(cbw, start);
	cluster_t last = fleece_cbw_cluster(cbw, start + nr_sectors - 1);
	bool swallow;
	sector_t end;
	u64 length;

	swallow = fleece_cbw_needs(cbw, first, last, &length);
	end = (sector_t)(first + length) << cbw->cluster_shift;
	if (end < bio_end_sector(bio)) {
		if (is_mapping)
			dm_accept_partial_bio(bio, end - start);
		else
			swallow = true;
	}
	return swallow ? ENDS : GO;
}

/* Does any snapshot stand in the way of an admitted bio? */
static enum verdict cover_write(struct fleece_origin *origin, struct bio *bio, bool is_mapping,
				struct bio_list *reads)
{
	enum verdict verdict = GO;
	struct fleece_cbw *cbw;
	sector_t nr_sectors;

	rcu_read_lock();
	list_for_each_entry_rcu(cbw, &origin->cbws, node) {
		nr_sectors = sectors_of_snapshot(cbw, bio);
		if (!nr_sectors)
			continue;
		if (write_of(bio)->is_advice)
			verdict = cover_discard(cbw, bio, nr_sectors, is_mapping);
		else if (fleece_cbw_blocks(cbw, bio->bi_iter.bi_sector, nr_sectors))
			verdict = park_write(origin, cbw, bio, is_mapping, reads);
		if (verdict != GO)
			break;
	}
	rcu_read_unlock();
	return verdict;
}

static u64 last_granule(const struct fleece_tracker *tracker, const struct bio *bio)
{
	return (bio_end_sector(bio) - 1) >> tracker->granule_shift;
}

/* The bits of an admitted write may only be set when their intents are durable. */
static enum verdict mark_durably(struct fleece_origin *origin, struct bio *bio, bool is_mapping)
{
	struct fleece_tracker *tracker = &origin->tracker;
	struct fleece_segment *live = fleece_tracker_live(tracker);
	struct fleece_metadata *meta = origin->metadata_dev->meta;
	u64 first = bio->bi_iter.bi_sector >> tracker->granule_shift;
	struct live_write *write = write_of(bio);
	u64 last = last_granule(tracker, bio);

	if (fleece_metadata_mark(meta, live ? live->bits : NULL, first, last))
		return GO;
	if (is_mapping && bio->bi_opf & REQ_NOWAIT)
		return REFUSED;
	if (is_mapping) {
		/* There may be a snapshot to wait for when it is admitted again. */
		cut_waiting(bio);
		last = last_granule(tracker, bio);
	}
	/* As in park_write(): once it waits, it may be admitted again at any time. */
	dismiss_write(origin, write);
	return fleece_metadata_wait(meta, first, last, &write->waiter.node) ? WAITS : AGAIN;
}

static enum verdict mark_write(struct fleece_origin *origin, struct bio *bio, bool is_mapping)
{
	if (origin->metadata_dev)
		return mark_durably(origin, bio, is_mapping);
	fleece_tracker_mark(&origin->tracker, bio->bi_iter.bi_sector, bio_sectors(bio));
	return GO;
}

static enum verdict try_write(struct fleece_origin *origin, struct bio *bio, bool is_mapping)
{
	struct bio_list reads = BIO_EMPTY_LIST;
	enum verdict verdict;

	verdict = admit_write(origin, bio, is_mapping);
	if (verdict == GO)
		verdict = cover_write(origin, bio, is_mapping, &reads);
	if (verdict == GO)
		verdict = mark_write(origin, bio, is_mapping);
	fleece_bios_submit(&reads);
	return verdict;
}

/* Returns true if the bio may go to the device, else it is no longer ours. */
static bool start_write(struct fleece_origin *origin, struct bio *bio, bool is_mapping)
{
	enum verdict verdict;

	do {
		verdict = try_write(origin, bio, is_mapping);
	} while (verdict == AGAIN);
	if (verdict == ENDS)
		bio_endio(bio);
	else if (verdict == REFUSED)
		bio_wouldblock_error(bio);
	return verdict == GO;
}

static void resume_write(struct fleece_origin *origin, struct live_write *write)
{
	struct bio *bio = bio_of(write);

	list_del(&write->waiter.node);
	if (write->waiter.error) {
		bio->bi_status = errno_to_blk_status(-write->waiter.error);
		bio_endio(bio);
	} else if (start_write(origin, bio, false)) {
		dm_submit_bio_remap(bio, NULL);
	}
}

/*
 * Those that somebody waits for come first: writeback may be throttled, and hold up this
 * thread.
 */
void fleece_origin_resume_writes(void *context, struct list_head *waiters)
{
	struct fleece_origin *origin = context;
	struct live_write *write;
	struct live_write *next;

	list_for_each_entry_safe(write, next, waiters, waiter.node) {
		if (op_is_sync(bio_of(write)->bi_opf))
			resume_write(origin, write);
	}
	list_for_each_entry_safe(write, next, waiters, waiter.node)
		resume_write(origin, write);
}

static void resubmit_held(struct work_struct *work)
{
	struct fleece_origin *origin = container_of(work, struct fleece_origin, resubmit);
	LIST_HEAD(held);

	spin_lock(&origin->held_lock);
	list_splice_init(&origin->held, &held);
	spin_unlock(&origin->held_lock);
	fleece_origin_resume_writes(origin, &held);
}

static int origin_map(struct dm_target *ti, struct bio *bio)
{
	struct fleece_table *table = ti->private;
	struct live_write *write = write_of(bio);

	write->is_admitted = false;
	bio_set_dev(bio, table->lower->bdev);
	/* A flush has no sectors: the device's own, like a read. */
	if (!op_is_write(bio_op(bio)) || !bio_sectors(bio))
		return DM_MAPIO_REMAPPED;
	write->is_advice = bio_op(bio) == REQ_OP_DISCARD && !table->copies_discards;
	write->waits_on = 0;
	write->waiter.error = 0;
	write->first = bio->bi_iter.bi_sector;
	write->last = bio_end_sector(bio) - 1;
	return start_write(table->origin, bio, true) ? DM_MAPIO_REMAPPED : DM_MAPIO_SUBMITTED;
}

/*
 * A write has completed. If a checkpoint is being made, it counts as after that one, whether
 * the checkpoint waits for this write or lets it go on while it waits for another. Called with
 * rcu_read_lock().
 */
static void note_late(struct fleece_origin *origin, const struct live_write *write)
{
	unsigned int shift = origin->tracker.granule_shift;
	unsigned long *late = rcu_dereference(origin->late);

	if (unlikely(late))
		fleece_bits_set_range(late, write->first >> shift, write->last >> shift);
}

static int origin_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct fleece_table *table = ti->private;
	struct live_write *write = write_of(bio);

	if (!write->is_admitted)
		return DM_ENDIO_DONE;
	/*
	 * At first, as without writes under way the notes are read; and both as one, so that
	 * to quiesce, which waits for readers of RCU, waits for who has seen none to write into.
	 */
	rcu_read_lock();
	note_late(table->origin, write);
	dismiss_write(table->origin, write);
	rcu_read_unlock();
	return DM_ENDIO_DONE;
}

/* ------------------------- The registry ------------------------- */

static void compact_tracker(struct work_struct *work)
{
	struct fleece_origin *origin = container_of(work, struct fleece_origin, compact);
	unsigned int noio;

	noio = fleece_origin_lock(origin);
	fleece_tracker_compact(&origin->tracker, &origin->may_hold_io);
	fleece_origin_unlock(origin, noio);
}

/*
 * Not by @wq: writes may be resubmitted by its rescuer, which must not wait for a lock; and
 * by no CPU's own workers, whose other work would wait for the whole pass.
 */
void fleece_origin_compact_later(struct fleece_origin *origin)
{
	if (!READ_ONCE(origin->may_hold_io))
		queue_work(compact_wq, &origin->compact);
}

static void free_origin(struct kref *kref)
{
	struct fleece_origin *origin = container_of(kref, struct fleece_origin, kref);

	cancel_work_sync(&origin->compact);
	fleece_tracker_exit(&origin->tracker);
	destroy_workqueue(origin->wq);
	percpu_ref_exit(&origin->writes);
	kfree(origin);
}

void fleece_origin_put(struct fleece_origin *origin)
{
	kref_put(&origin->kref, free_origin);
}

static struct fleece_origin *make_origin(struct dm_target *ti, struct block_device *lower,
					 unsigned int granule_sectors)
{
	struct mapped_device *md = dm_table_get_md(ti->table);
	struct fleece_origin *origin = kzalloc(sizeof(*origin), GFP_KERNEL);

	if (!origin)
		return NULL;
	if (percpu_ref_init(&origin->writes, writes_drained, PERCPU_REF_ALLOW_REINIT, GFP_KERNEL))
		goto err_free;
	origin->wq = alloc_workqueue("fleece-origin/%s", WQ_MEM_RECLAIM | WQ_HIGHPRI | WQ_PERCPU |
				     WQ_CPU_INTENSIVE, 0, dm_device_name(md));
	if (!origin->wq)
		goto err_exit_ref;

	kref_init(&origin->kref);
	origin->lower = lower;
	origin->md = md;
	origin->md_devt = disk_devt(dm_disk(md));
	origin->nr_sectors = ti->len;
	origin->granule_sectors = granule_sectors;
	mutex_init(&origin->message_lock);
	mutex_init(&origin->change_lock);
	mutex_init(&origin->lock);
	mutex_init(&origin->ti_lock);
	fleece_tracker_init(&origin->tracker, ti->len, granule_sectors);
	init_completion(&origin->drained);
	spin_lock_init(&origin->held_lock);
	INIT_LIST_HEAD(&origin->held);
	INIT_LIST_HEAD(&origin->cbws);
	INIT_WORK(&origin->resubmit, resubmit_held);
	INIT_WORK(&origin->compact, compact_tracker);
	return origin;

err_exit_ref:
	percpu_ref_exit(&origin->writes);
err_free:
	kfree(origin);
	return NULL;
}

static struct fleece_origin *lookup_lower(struct block_device *lower)
{
	struct fleece_origin *origin;

	lockdep_assert_held(&registry_lock);
	list_for_each_entry(origin, &origins, node) {
		if (origin->lower->bd_dev == lower->bd_dev)
			return origin;
	}
	return NULL;
}

struct fleece_origin *fleece_origin_find(struct block_device *lower)
{
	struct fleece_origin *origin;

	mutex_lock(&registry_lock);
	origin = lookup_lower(lower);
	if (origin)
		kref_get(&origin->kref);
	mutex_unlock(&registry_lock);
	return origin;
}

struct fleece_origin *fleece_origin_find_md(dev_t devt)
{
	struct fleece_origin *origin;
	struct fleece_origin *found = NULL;

	mutex_lock(&registry_lock);
	list_for_each_entry(origin, &origins, node) {
		if (origin->md_devt == devt && rcu_access_pointer(origin->ti)) {
			kref_get(&origin->kref);
			found = origin;
			break;
		}
	}
	mutex_unlock(&registry_lock);
	return found;
}

static const struct fleece_claim *find_claim(dev_t devt)
{
	struct fleece_claim *claim;

	lockdep_assert_held(&registry_lock);
	list_for_each_entry(claim, &claims, node) {
		if (claim->devt == devt)
			return claim;
	}
	return NULL;
}

static bool is_origin(dev_t devt)
{
	struct fleece_origin *origin;

	lockdep_assert_held(&registry_lock);
	list_for_each_entry(origin, &origins, node) {
		if (origin->lower->bd_dev == devt || origin->md_devt == devt)
			return true;
	}
	return false;
}

static void add_claim(struct fleece_claim *claim, dev_t devt, bool is_metadata)
{
	lockdep_assert_held(&registry_lock);
	claim->devt = devt;
	claim->is_metadata = is_metadata;
	list_add(&claim->node, &claims);
}

int fleece_origin_claim_cow(struct fleece_claim *claim, struct block_device *cow, char **error)
{
	const struct fleece_claim *other;
	int ret = -EBUSY;

	mutex_lock(&registry_lock);
	other = find_claim(cow->bd_dev);
	if (is_origin(cow->bd_dev)) {
		*error = "COW device is itself an origin";
	} else if (other) {
		*error = other->is_metadata ? "COW device is the metadata device of an origin" :
					      "COW device already belongs to another snapshot";
	} else {
		add_claim(claim, cow->bd_dev, false);
		ret = 0;
	}
	mutex_unlock(&registry_lock);
	return ret;
}

void fleece_origin_unclaim_cow(struct fleece_claim *claim)
{
	mutex_lock(&registry_lock);
	list_del(&claim->node);
	mutex_unlock(&registry_lock);
}

/* Are the devices of a new origin used for something else? */
static int check_free(struct dm_target *ti, dev_t lower, dev_t metadata)
{
	const struct fleece_claim *claim = find_claim(lower);

	if (claim)
		ti->error = claim->is_metadata ?
			    "Origin device is the metadata device of another origin" :
			    "Origin device is the COW device of a snapshot";
	if (claim || !metadata)
		return claim ? -EBUSY : 0;
	claim = find_claim(metadata);
	if (claim)
		ti->error = claim->is_metadata ?
			    "Metadata device already belongs to another origin" :
			    "Metadata device is the COW device of a snapshot";
	else if (is_origin(metadata) || metadata == disk_devt(dm_disk(dm_table_get_md(ti->table))))
		ti->error = "Metadata device is itself an origin";
	else
		return 0;
	return -EBUSY;
}

static void register_origin(struct fleece_origin *origin, dev_t metadata)
{
	list_add(&origin->node, &origins);
	if (metadata)
		add_claim(&origin->metadata_claim, metadata, true);
}

/*
 * The origin of a new table: the one that another table of the same device
 * already has, or a new one.
 */
static struct fleece_origin *join_origin(struct dm_target *ti, const struct fleece_table *table,
					 unsigned int granule_sectors)
{
	dev_t metadata = table->metadata ? table->metadata->bdev->bd_dev : 0;
	struct block_device *lower = table->lower->bdev;
	struct fleece_origin *candidate;
	struct fleece_origin *origin;
	int ret;

	/* Without the lock: memory may be waited for. */
	candidate = make_origin(ti, lower, granule_sectors);
	if (!candidate) {
		ti->error = "Out of memory";
		return ERR_PTR(-ENOMEM);
	}
	mutex_lock(&registry_lock);
	origin = lookup_lower(lower);
	if (!origin) {
		ret = check_free(ti, lower->bd_dev, metadata);
		origin = ret ? ERR_PTR(ret) : candidate;
		if (!ret) {
			register_origin(candidate, metadata);
			candidate = NULL;
		}
	} else if (origin->md != dm_table_get_md(ti->table)) {
		ti->error = "Origin device already belongs to another fleece device";
		origin = ERR_PTR(-EBUSY);
	} else if (origin->granule_sectors != granule_sectors) {
		ti->error = "The granularity of an origin cannot be changed";
		origin = ERR_PTR(-EINVAL);
	} else if (origin->metadata_claim.devt != metadata) {
		ti->error = "The metadata device of an origin cannot be changed";
		origin = ERR_PTR(-EINVAL);
	}
	if (!IS_ERR(origin))
		origin->nr_tables++;
	mutex_unlock(&registry_lock);
	if (candidate)
		fleece_origin_put(candidate);
	return origin;
}

/* ------------------------- Metadata ------------------------- */

unsigned int fleece_origin_begin_change(struct fleece_origin *origin)
{
	unsigned int noio = memalloc_noio_save();

	mutex_lock(&origin->change_lock);
	return noio;
}

void fleece_origin_end_change(struct fleece_origin *origin, unsigned int noio)
{
	mutex_unlock(&origin->change_lock);
	memalloc_noio_restore(noio);
}

/* dev->lock is held, so there is no I/O for memory. */
static int view_since(void *owner, const char *name, bool try, struct fleece_view *view)
{
	struct fleece_origin *origin = owner;
	int ret;

	if (!try)
		mutex_lock(&origin->lock);
	else if (!mutex_trylock(&origin->lock))
		return -EBUSY;
	/* If @try, live writes may wait for this to end, and whoever reclaims for them. */
	ret = fleece_history_get(&origin->view_history, &origin->tracker,
				 try ? GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN : GFP_KERNEL);
	mutex_unlock(&origin->lock);
	if (ret)
		return ret;
	ret = fleece_history_known_since(&origin->view_history, name, view);
	if (ret)
		fleece_history_put(&origin->view_history);
	return ret;
}

static void view_done(void *owner)
{
	struct fleece_origin *origin = owner;

	fleece_history_put(&origin->view_history);
	fleece_origin_compact_later(origin);
}

/* By way of the writes held back: dev->lock is not held while they are submitted. */
static void resume_granted(void *owner, struct list_head *waiters)
{
	struct fleece_origin *origin = owner;

	spin_lock(&origin->held_lock);
	list_splice_tail_init(waiters, &origin->held);
	spin_unlock(&origin->held_lock);
	queue_work(origin->wq, &origin->resubmit);
}

static void tell_failure(void *owner, int error)
{
	struct fleece_origin *origin = owner;
	struct dm_target *ti;

	DMERR("%s: the metadata has failed (errno %d): changes are tracked in RAM only, and all checkpoints are invalid when the device is attached again",
	      dm_device_name(origin->md), -error);
	mutex_lock(&origin->ti_lock);
	ti = rcu_dereference_protected(origin->ti, lockdep_is_held(&origin->ti_lock));
	origin->has_untold_event = !ti;
	if (ti)
		dm_table_event(ti->table);
	mutex_unlock(&origin->ti_lock);
}

static const struct fleece_metadata_owner metadata_owner = {
	.since = view_since,
	.done = view_done,
	.resume = resume_granted,
	.failed = tell_failure,
};

/* The table that I/O comes through, or NULL. */
static void set_live_table(struct fleece_origin *origin, struct dm_target *ti)
{
	mutex_lock(&origin->ti_lock);
	rcu_assign_pointer(origin->ti, ti);
	if (ti && origin->has_untold_event) {
		dm_table_event(ti->table);
		origin->has_untold_event = false;
	}
	mutex_unlock(&origin->ti_lock);
}

static int restore_checkpoint(struct fleece_origin *origin, struct fleece_metadata *meta, u32 index)
{
	const struct fleece_md_checkpoint *checkpoint = &meta->root.checkpoints[index];
	struct fleece_segment *segment = fleece_segment_alloc(origin->tracker.nr_granules);
	struct fleece_moment moment = {
		.created = checkpoint->created, .is_invalid = checkpoint->is_invalid,
	};
	unsigned int noio;

	if (!segment)
		return -ENOMEM;
	strscpy(moment.name, checkpoint->name, sizeof(moment.name));
	import_uuid(&moment.uuid, checkpoint->uuid);
	fleece_metadata_load(meta, index, segment->bits);
	noio = fleece_origin_lock(origin);
	fleece_tracker_restore(&origin->tracker, segment, &moment);
	fleece_origin_unlock(origin, noio);
	return 0;
}

static int restore_checkpoints(struct fleece_origin *origin, struct fleece_metadata *meta)
{
	unsigned int noio;
	int ret = 0;
	u32 i;

	for (i = 0; i < meta->root.nr_checkpoints && !ret; i++)
		ret = restore_checkpoint(origin, meta, i);
	if (ret) {
		noio = fleece_origin_lock(origin);
		fleece_tracker_exit(&origin->tracker);
		fleece_origin_unlock(origin, noio);
	}
	return ret;
}

static int read_metadata(struct fleece_origin *origin, const struct fleece_table *table,
			 const char **error)
{
	struct fleece_metadata_config config = {
		.methods = &metadata_owner,
		.owner = origin,
		.name = dm_device_name(origin->md),
		.bdev = table->metadata->bdev,
		.lower = table->lower->bdev,
		.nr_sectors = origin->nr_sectors,
		.granule_sectors = origin->granule_sectors,
	};
	struct fleece_metadata_dev *dev = fleece_metadata_dev_open(&config, error);
	int ret;

	if (IS_ERR(dev))
		return PTR_ERR(dev);
	*error = "out of memory";
	ret = restore_checkpoints(origin, dev->meta);
	if (ret) {
		fleece_metadata_dev_free(dev);
		return ret;
	}
	if (dev->meta->nr_bad)
		DMWARN("%s: %u sectors of the metadata are bad: what they tell of counts as changed",
		       dm_device_name(origin->md), dev->meta->nr_bad);
	origin->metadata_dev = dev;
	return 0;
}

/* The metadata of a new origin is read; a further table finds it there. */
static int open_metadata(struct dm_target *ti, struct fleece_table *table)
{
	struct fleece_origin *origin = table->origin;
	const char *error = "it has no room for an origin of this size";
	unsigned int noio;
	int ret = 0;

	if (!table->metadata)
		return 0;
	noio = fleece_origin_begin_change(origin);
	if (!origin->metadata_dev)
		ret = read_metadata(origin, table, &error);
	if (!ret && ti->len > origin->metadata_dev->meta->root.capacity_sectors)
		ret = -ENOSPC;
	fleece_origin_end_change(origin, noio);
	if (ret) {
		DMERR("%s: metadata device %s cannot be used: %s", dm_device_name(origin->md),
		      table->metadata->name, error);
		ti->error = (char *)error;
	}
	return ret;
}

static void fail_metadata(struct fleece_origin *origin, int error)
{
	struct fleece_metadata_dev *dev = origin->metadata_dev;
	unsigned int noio;

	if (!dev)
		return;
	noio = fleece_metadata_dev_lock(dev);
	fleece_metadata_fail(dev->meta, error);
	fleece_metadata_dev_unlock(dev, noio);
}

/* Has the device got another table, instead of being removed? */
static bool is_replaced(struct fleece_origin *origin)
{
	struct mapped_device *md = dm_get_md(origin->md_devt);

	if (md)
		dm_put(md);
	return md;
}

/*
 * The live table has gone. If the device goes as well, nobody writes to it any more. If
 * it stays, it has another target now, and what is written through that is not seen.
 */
static void close_metadata(struct fleece_origin *origin, bool was_replaced)
{
	if (!origin->metadata_dev)
		return;
	if (was_replaced) {
		DMWARN("%s: the table was replaced by another target", dm_device_name(origin->md));
		fail_metadata(origin, -ENODEV);
	}
	fleece_metadata_dev_close(origin->metadata_dev, origin->lower);
}

/* The last table has gone, and with it what keeps the metadata device open. */
static void free_metadata(struct fleece_origin *origin)
{
	struct fleece_metadata_dev *dev;
	unsigned int noio;

	noio = fleece_origin_begin_change(origin);
	dev = origin->metadata_dev;
	origin->metadata_dev = NULL;
	fleece_origin_end_change(origin, noio);
	fleece_metadata_dev_free(dev);
	if (!origin->metadata_claim.devt)
		return;
	mutex_lock(&registry_lock);
	list_del(&origin->metadata_claim.node);
	mutex_unlock(&registry_lock);
}

static void resize_metadata(struct fleece_origin *origin, sector_t nr_sectors)
{
	if (origin->metadata_dev)
		fleece_metadata_dev_resize(origin->metadata_dev, nr_sectors);
}

/* ------------------------- Checkpoints ------------------------- */

int fleece_origin_begin_checkpoint(struct fleece_origin *origin, const char *name)
{
	struct fleece_metadata_dev *dev = origin->metadata_dev;
	unsigned int noio;
	int ret;

	lockdep_assert_held(&origin->change_lock);
	noio = fleece_origin_lock(origin);
	ret = fleece_tracker_check_new(&origin->tracker, name);
	fleece_origin_unlock(origin, noio);
	if (ret || !dev)
		return ret;
	noio = fleece_metadata_dev_lock(dev);
	ret = fleece_metadata_begin_create(dev->meta);
	fleece_metadata_dev_unlock(dev, noio);
	return ret;
}

static int describe_checkpoint(struct fleece_origin *origin, const char *name,
			       struct fleece_md_checkpoint *checkpoint)
{
	const struct fleece_moment *moment;
	unsigned int noio;

	memset(checkpoint, 0, sizeof(*checkpoint));
	noio = fleece_origin_lock(origin);
	moment = fleece_tracker_find(&origin->tracker, name);
	if (moment) {
		strscpy(checkpoint->name, moment->name, sizeof(checkpoint->name));
		export_uuid(checkpoint->uuid, &moment->uuid);
		checkpoint->created = moment->created;
	}
	fleece_origin_unlock(origin, noio);
	return moment ? 0 : -ENODEV;
}

static int forget_checkpoint(struct fleece_origin *origin, const char *name)
{
	unsigned int noio;
	int ret;

	noio = fleece_origin_lock(origin);
	ret = fleece_tracker_delete(&origin->tracker, name);
	fleece_origin_unlock(origin, noio);
	return ret;
}

/*
 * Whoever holds the lock may be waiting for live writes, and they for a grant: so it is
 * waited for without being the metadata's worker. Returns true if @result, of one of its
 * operations, says that this is needed, and it is to be called again.
 */
static bool wait_for_lock(struct fleece_origin *origin, int result)
{
	unsigned int noio;

	if (result != -EBUSY || READ_ONCE(origin->metadata_dev->meta->error))
		return false;
	noio = fleece_origin_lock(origin);
	fleece_origin_unlock(origin, noio);
	return true;
}

static void abort_durably(struct fleece_metadata_dev *dev)
{
	unsigned int noio = fleece_metadata_dev_lock(dev);

	fleece_metadata_abort_create(dev->meta);
	fleece_metadata_dev_unlock(dev, noio);
}

static int create_durably(struct fleece_origin *origin,
			  const struct fleece_md_checkpoint *checkpoint)
{
	struct fleece_metadata_dev *dev = origin->metadata_dev;
	unsigned int noio;
	int ret;

	do {
		noio = fleece_metadata_dev_lock(dev);
		ret = fleece_metadata_create(dev->meta, checkpoint);
		fleece_metadata_dev_unlock(dev, noio);
	} while (wait_for_lock(origin, ret));
	return ret;
}

int fleece_origin_end_checkpoint(struct fleece_origin *origin, const char *name, int error)
{
	struct fleece_md_checkpoint checkpoint;

	lockdep_assert_held(&origin->change_lock);
	if (!origin->metadata_dev)
		return error;
	/*
	 * A write before the moment that is lost in a power cut after the commit would be a
	 * change since the checkpoint that nothing tells of.
	 */
	if (!error)
		error = fleece_metadata_dev_flush_lower(origin->lower);
	if (!error)
		error = describe_checkpoint(origin, name, &checkpoint);
	if (error)
		abort_durably(origin->metadata_dev);
	else
		error = create_durably(origin, &checkpoint);
	/* If it is there: there was none of this name before. */
	if (error)
		forget_checkpoint(origin, name);
	return error;
}

static int report_suspended(struct fleece_origin *origin)
{
	DMERR("%s: the device is suspended, or just being suspended", dm_device_name(origin->md));
	return -EBUSY;
}

/* Returns whether they are marked. */
static bool mark_granules(struct fleece_origin *origin, u64 first, u64 last)
{
	struct fleece_tracker *tracker = &origin->tracker;
	struct fleece_segment *live = fleece_tracker_live(tracker);
	unsigned int shift = tracker->granule_shift;

	lockdep_assert_held(&origin->lock);
	if (origin->metadata_dev)
		return fleece_metadata_mark(origin->metadata_dev->meta, live ? live->bits : NULL,
					    first, last);
	fleece_tracker_mark(tracker, first << shift, (last - first + 1) << shift);
	return true;
}

/*
 * The writes that were under way at the moment of a checkpoint count as after it. If an
 * intent is missing it is asked for, and the granule is not marked yet. Returns whether all
 * are.
 */
static bool mark_late(struct fleece_origin *origin, unsigned long *late)
{
	u64 nr_granules = origin->tracker.nr_granules;
	struct fleece_view view = { &late, 1, nr_granules };
	bool is_marked = true;
	u64 length;
	bool value;
	u64 g;

	for (g = 0; g < nr_granules; g += length) {
		length = fleece_bits_run(&view, g, min(g + MARK_BATCH, nr_granules), &value);
		if (value && !mark_granules(origin, g, g + length - 1))
			is_marked = false;
		cond_resched();
	}
	return is_marked;
}

/* Begin to note the writes that complete. */
static void begin_late(struct fleece_origin *origin, unsigned long *late)
{
	lockdep_assert_held(&origin->change_lock);
	rcu_assign_pointer(origin->late, late);
}

/* As writes may still be under way after a failure, they may be just noting it. */
static void end_late(struct fleece_origin *origin)
{
	lockdep_assert_held(&origin->change_lock);
	RCU_INIT_POINTER(origin->late, NULL);
	synchronize_rcu();
}

/* The moment of a checkpoint. The segment is used up. */
static int switch_checkpoint(struct fleece_origin *origin, struct fleece_segment *segment,
			     unsigned long *late, const char *name)
{
	unsigned int noio;
	int ret;

	noio = fleece_origin_lock(origin);
	/* Its size may have been changed meanwhile. */
	ret = segment->nr_granules == origin->tracker.nr_granules ? 0 : -EAGAIN;
	if (!ret) {
		begin_late(origin, late);
		ret = fleece_origin_quiesce(origin);
	}
	if (!ret) {
		fleece_tracker_switch(&origin->tracker, segment, name);
		fleece_origin_release(origin);
		mark_late(origin, late);
		fleece_origin_compact_later(origin);
		segment = NULL;
	}
	fleece_origin_unlock(origin, noio);
	end_late(origin);
	fleece_segment_put(segment);
	return ret;
}

/* Once more, with the intents that were missing, unless they are taken back meanwhile. */
static void mark_rest(struct fleece_origin *origin, unsigned long *late)
{
	struct fleece_metadata_dev *dev = origin->metadata_dev;
	unsigned int noio;
	bool is_marked;

	do {
		noio = fleece_metadata_dev_lock(dev);
		fleece_metadata_grant(dev->meta);
		fleece_metadata_dev_unlock(dev, noio);
		noio = fleece_origin_lock(origin);
		is_marked = mark_late(origin, late);
		fleece_origin_unlock(origin, noio);
	} while (!is_marked);
}

/* The segment is used up. */
static int create_with(struct fleece_origin *origin, struct fleece_segment *segment,
		       unsigned long *late, const char *name)
{
	unsigned int change;
	int ret;

	change = fleece_origin_begin_change(origin);
	ret = fleece_origin_begin_checkpoint(origin, name);
	if (ret) {
		fleece_segment_put(segment);
	} else {
		ret = switch_checkpoint(origin, segment, late, name);
		ret = fleece_origin_end_checkpoint(origin, name, ret);
	}
	if (!ret && origin->metadata_dev)
		mark_rest(origin, late);
	fleece_origin_end_change(origin, change);
	return ret;
}

static int create_checkpoint(struct fleece_origin *origin, const char *name)
{
	u64 nr_granules = READ_ONCE(origin->tracker.nr_granules);
	struct fleece_segment *segment;
	unsigned long *late;
	unsigned int noio;
	int ret = -ENOMEM;

	/* The origin may be suspended, and its resume then waits for the end of the message. */
	noio = memalloc_noio_save();
	segment = fleece_segment_alloc(nr_granules);
	late = fleece_bits_alloc(nr_granules);
	memalloc_noio_restore(noio);
	if (segment && late)
		ret = create_with(origin, segment, late, name);
	else
		fleece_segment_put(segment);
	vfree(late);
	return ret;
}

/*
 * After a failure there is nothing that the checkpoint could be deleted from but RAM:
 * they are all invalid at the next start anyway.
 */
static int delete_durably(struct fleece_origin *origin, const char *name)
{
	struct fleece_metadata_dev *dev = origin->metadata_dev;
	unsigned int noio;
	int ret;

	do {
		noio = fleece_metadata_dev_lock(dev);
		ret = dev->meta->error ? 0 : fleece_metadata_delete(dev->meta, name);
		fleece_metadata_dev_unlock(dev, noio);
	} while (wait_for_lock(origin, ret));
	return ret ?: forget_checkpoint(origin, name);
}

static bool has_checkpoint(struct fleece_origin *origin, const char *name)
{
	unsigned int noio;
	bool has;

	noio = fleece_origin_lock(origin);
	has = fleece_tracker_find(&origin->tracker, name);
	fleece_origin_unlock(origin, noio);
	return has;
}

static int delete_checkpoint(struct fleece_origin *origin, const char *name)
{
	unsigned int change;
	int ret;

	if (fleece_checkpoint_name_error(name))
		return -EINVAL;
	change = fleece_origin_begin_change(origin);
	/* It may take as long as the writing of a map, and I/O is held until the resume. */
	if (origin->metadata_dev && READ_ONCE(origin->is_suspended) && has_checkpoint(origin, name))
		ret = report_suspended(origin);
	else
		ret = origin->metadata_dev ? delete_durably(origin, name) :
					     forget_checkpoint(origin, name);
	fleece_origin_end_change(origin, change);
	return ret;
}

/* ------------------------- Changes of size ------------------------- */

/*
 * A shorter table is refused while there is a snapshot; as long as it is loaded,
 * none is taken. So nothing is left that could fail when it is resumed.
 */
static int check_shrinking(struct dm_target *ti, struct fleece_table *table)
{
	struct fleece_origin *origin = table->origin;
	unsigned int noio;
	int ret = 0;

	noio = fleece_origin_lock(origin);
	if (ti->len < origin->nr_sectors) {
		if (!list_empty(&origin->cbws)) {
			ti->error = "An origin that has snapshots cannot be shrunk";
			ret = -EBUSY;
		} else {
			table->shrinks = true;
			origin->nr_shrinking++;
		}
	}
	fleece_origin_unlock(origin, noio);
	return ret;
}

static void end_shrinking(struct fleece_table *table)
{
	lockdep_assert_held(&table->origin->lock);
	if (table->shrinks)
		table->origin->nr_shrinking--;
	table->shrinks = false;
}

/*
 * The device is suspended, and the writes under way have been waited for. The metadata
 * is told before it shrinks, and after it has grown: what it says is never of less. If
 * the tracker has lost all checkpoints, it fails.
 */
static void adopt_size(struct fleece_table *table, sector_t nr_sectors)
{
	struct fleece_origin *origin = table->origin;
	sector_t old_sectors = origin->nr_sectors;
	unsigned int change;
	unsigned int noio;
	int ret = 0;

	/* Do not wait, with the device suspended, for a pass over the maps that holds the lock. */
	if (!table->shrinks && nr_sectors == old_sectors)
		return;
	change = fleece_origin_begin_change(origin);
	if (nr_sectors < old_sectors)
		resize_metadata(origin, nr_sectors);
	noio = fleece_origin_lock(origin);
	end_shrinking(table);
	if (nr_sectors != old_sectors) {
		ret = fleece_tracker_resize(&origin->tracker, nr_sectors);
		if (ret)
			DMERR("%s: out of memory for the new size: all checkpoints are dropped",
			      dm_device_name(origin->md));
		else if (nr_sectors > old_sectors && origin->tracker.nr_checkpoints)
			DMINFO("%s: grown from %llu to %llu sectors: what it gained counts as changed",
			       dm_device_name(origin->md), old_sectors, nr_sectors);
		WRITE_ONCE(origin->nr_sectors, nr_sectors);
	}
	fleece_origin_unlock(origin, noio);
	if (ret)
		fail_metadata(origin, ret);
	else if (nr_sectors > old_sectors)
		resize_metadata(origin, nr_sectors);
	fleece_origin_end_change(origin, change);
}

/* Writes can no longer be seen: the live table has gone without a successor. */
static void stop_watching(struct fleece_origin *origin, bool was_replaced)
{
	struct fleece_cbw *cbw;
	unsigned int change;
	unsigned int noio;

	change = fleece_origin_begin_change(origin);
	/* While its maps are there. */
	close_metadata(origin, was_replaced);
	noio = fleece_origin_lock(origin);
	list_for_each_entry(cbw, &origin->cbws, node)
		fleece_cbw_break(cbw, ENODEV, 0, "the origin's device was removed or replaced");
	fleece_tracker_forget(&origin->tracker);
	fleece_origin_unlock(origin, noio);
	fleece_origin_end_change(origin, change);
}

static void end_origin(struct fleece_origin *origin)
{
	unsigned int noio;

	noio = fleece_origin_lock(origin);
	origin->is_ended = true;
	fleece_origin_unlock(origin, noio);
	free_metadata(origin);
	/* No write is left, but the work of the last release may still be queued. */
	flush_workqueue(origin->wq);
	fleece_origin_put(origin);
}

static void leave_origin(struct fleece_origin *origin)
{
	bool is_last;

	mutex_lock(&registry_lock);
	is_last = !--origin->nr_tables;
	if (is_last)
		list_del(&origin->node);
	mutex_unlock(&registry_lock);
	if (is_last)
		end_origin(origin);
}

/* ------------------------- Constructor and destructor ------------------------- */

static int parse_granularity(struct dm_target *ti, const char *arg, unsigned int *sectors)
{
	if (kstrtouint(arg, 10, sectors)) {
		ti->error = "Granularity is not a number of sectors";
		return -EINVAL;
	}
	if (!fleece_is_unit(*sectors)) {
		ti->error = "Granularity is not a power of two from 8 to 32768 sectors";
		return -EINVAL;
	}
	return 0;
}

static int parse_origin_features(struct dm_target *ti, unsigned int argc, char **argv,
				 struct fleece_table *table)
{
	unsigned int count;

	if (!argc)
		return 0;
	if (kstrtouint(argv[0], 10, &count) || count != argc - 1) {
		ti->error = "Number of feature arguments is wrong";
		return -EINVAL;
	}
	for (argv++; count--; argv++) {
		if (strcasecmp(*argv, "discard_copy")) {
			ti->error = "Unknown feature argument";
			DMERR("unknown feature argument '%s'", *argv);
			return -EINVAL;
		}
		if (table->copies_discards) {
			ti->error = "Feature discard_copy is given twice";
			return -EINVAL;
		}
		table->copies_discards = true;
	}
	return 0;
}

static int open_lower(struct dm_target *ti, const char *path, struct fleece_table *table)
{
	int ret = dm_get_device(ti, path, dm_table_get_mode(ti->table), &table->lower);

	if (ret) {
		ti->error = ret == -EBUSY ? "Origin device is in use (mounted?)" :
					    "Cannot open the origin device";
		return ret;
	}
	if (bdev_is_zoned(table->lower->bdev)) {
		ti->error = "Origin device is zoned: not supported";
		ret = -EOPNOTSUPP;
	} else if (ti->len > bdev_nr_sectors(table->lower->bdev)) {
		/* Device-mapper would find out when the table is resumed. */
		ti->error = "Length is beyond the end of the origin device";
		ret = -EINVAL;
	}
	if (ret)
		dm_put_device(ti, table->lower);
	return ret;
}

static int open_metadata_device(struct dm_target *ti, const char *path, struct fleece_table *table)
{
	struct block_device *bdev;
	int ret;

	if (!strcmp(path, "-"))
		return 0;
	ret = dm_get_device(ti, path, FLEECE_OPEN_RW, &table->metadata);
	if (ret) {
		ti->error = ret == -EBUSY ? "Metadata device is in use" :
					    "Cannot open the metadata device";
		return ret;
	}
	bdev = table->metadata->bdev;
	ret = -EINVAL;
	if (bdev_is_zoned(bdev))
		ti->error = "Metadata device is zoned: not supported";
	else if (bdev_logical_block_size(bdev) > FLEECE_MD_BLOCK_BYTES)
		ti->error = "Metadata device has blocks of more than 4096 bytes: not supported";
	else
		return 0;
	dm_put_device(ti, table->metadata);
	return ret;
}

static void put_devices(struct dm_target *ti, struct fleece_table *table)
{
	dm_put_device(ti, table->lower);
	if (table->metadata)
		dm_put_device(ti, table->metadata);
}

/*
 * The one that is written to first: if they are the same, device-mapper would replace what
 * was opened for less, and who has it is not told.
 */
static int open_devices(struct dm_target *ti, char **argv, struct fleece_table *table)
{
	int ret = open_metadata_device(ti, argv[1], table);

	if (ret)
		return ret;
	ret = open_lower(ti, argv[0], table);
	if (ret) {
		if (table->metadata)
			dm_put_device(ti, table->metadata);
		return ret;
	}
	if (!table->metadata || table->metadata->bdev->bd_dev != table->lower->bdev->bd_dev)
		return 0;
	ti->error = "Metadata device is the origin device";
	put_devices(ti, table);
	return -EINVAL;
}

static void set_origin_target(struct dm_target *ti, struct fleece_table *table)
{
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->per_io_data_size = sizeof(struct live_write);
	fleece_set_accounts_remapped(ti);
	ti->private = table;
}

static int origin_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct fleece_table *table;
	unsigned int granule_sectors;
	int ret;

	if (argc < 3) {
		ti->error = "Arguments: <origin_dev> <metadata_dev|-> <granularity> [<#args> ...]";
		return -EINVAL;
	}
	if (ti->begin) {
		ti->error = "The target must begin at sector 0";
		return -EINVAL;
	}
	ret = parse_granularity(ti, argv[2], &granule_sectors);
	if (ret)
		return ret;

	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table) {
		ti->error = "Out of memory";
		return -ENOMEM;
	}
	ret = parse_origin_features(ti, argc - 3, argv + 3, table);
	if (ret)
		goto err_free_table;
	ret = open_devices(ti, argv, table);
	if (ret)
		goto err_free_table;
	table->origin = join_origin(ti, table, granule_sectors);
	if (IS_ERR(table->origin)) {
		ret = PTR_ERR(table->origin);
		goto err_put_devices;
	}
	ret = open_metadata(ti, table) ?: check_shrinking(ti, table);
	if (ret)
		goto err_leave;
	set_origin_target(ti, table);
	return 0;

err_leave:
	leave_origin(table->origin);
err_put_devices:
	put_devices(ti, table);
err_free_table:
	kfree(table);
	return ret;
}

static void origin_dtr(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;
	struct fleece_origin *origin = table->origin;
	/* Before any lock is waited for: a device that was replaced may be removed meanwhile. */
	bool was_replaced = is_replaced(origin);
	unsigned int noio;

	noio = fleece_origin_lock(origin);
	end_shrinking(table);
	fleece_origin_unlock(origin, noio);
	if (rcu_access_pointer(origin->ti) == ti) {
		set_live_table(origin, NULL);
		stop_watching(origin, was_replaced);
	}
	/* fleece_origin_is_watched() may be looking at this table. */
	synchronize_rcu();
	leave_origin(origin);
	put_devices(ti, table);
	kfree(table);
}

static void set_suspending(struct dm_target *ti, bool is_suspending)
{
	struct fleece_table *table = ti->private;

	mutex_lock(&table->origin->message_lock);
	WRITE_ONCE(table->origin->is_suspending, is_suspending);
	mutex_unlock(&table->origin->message_lock);
}

/* What was not begun, or given up, meanwhile. */
static void end_holding(struct fleece_origin *origin)
{
	WRITE_ONCE(origin->may_hold_io, false);
	fleece_origin_compact_later(origin);
}

/*
 * Device-mapper holds back all I/O until the message under way has ended, which may be a
 * long one. So it is waited for here, where I/O still goes on, and none is begun after it.
 */
static void origin_presuspend(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;

	set_suspending(ti, true);
	WRITE_ONCE(table->origin->may_hold_io, true);
	cancel_work_sync(&table->origin->compact);
}

static void origin_presuspend_undo(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;

	set_suspending(ti, false);
	end_holding(table->origin);
}

static void origin_postsuspend(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;

	/* After device-mapper's own state: see fleece_origin_is_watched(). */
	smp_store_release(&table->origin->nr_suspends, table->origin->nr_suspends + 1);
	/* After the count, too. */
	smp_store_release(&table->origin->is_suspended, true);
	set_suspending(ti, false);
}

/* A metadata device that fails now does not keep the origin from starting. */
static void start_metadata(struct fleece_origin *origin)
{
	unsigned int noio;

	if (!origin->metadata_dev || !fleece_metadata_dev_start(origin->metadata_dev))
		return;
	noio = fleece_origin_lock(origin);
	fleece_tracker_invalidate(&origin->tracker);
	fleece_origin_unlock(origin, noio);
}

/*
 * The origin may have grown since the table was loaded, by the resume of one that was
 * loaded before: then this one shrinks it, and nobody has looked whether it may.
 */
static int origin_preresume(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;
	struct fleece_origin *origin = table->origin;

	if (table->shrinks || ti->len >= READ_ONCE(origin->nr_sectors)) {
		start_metadata(origin);
		return 0;
	}
	DMERR("%s: the table is shorter than the device has become: load it again",
	      dm_device_name(origin->md));
	/*
	 * This table stays, suspended, and the one before it goes: that is not the end
	 * of the origin.
	 */
	set_live_table(origin, ti);
	return -EBUSY;
}

static void origin_resume(struct dm_target *ti)
{
	struct fleece_table *table = ti->private;

	adopt_size(table, ti->len);
	set_live_table(table->origin, ti);
	WRITE_ONCE(table->origin->is_suspended, false);
	end_holding(table->origin);
}

bool fleece_origin_is_watched(struct fleece_origin *origin)
{
	/*
	 * Pairs with the release in origin_postsuspend(): of a suspend that is counted here,
	 * device-mapper's own state is seen below.
	 */
	unsigned int nr_suspends = smp_load_acquire(&origin->nr_suspends);
	struct dm_target *ti;
	bool is_watched;

	rcu_read_lock();
	ti = rcu_dereference(origin->ti);
	/*
	 * Not suspended any more, and we have not been resumed: somebody else was. Pairs with
	 * the release in origin_postsuspend().
	 */
	is_watched = ti && (!smp_load_acquire(&origin->is_suspended) || dm_suspended(ti));
	if (ti && !is_watched) {
		/*
		 * Our own resume between the two looks like that too. It clears
		 * is_suspended before device-mapper ends the suspended state; it may have
		 * been set again since.
		 */
		smp_rmb();
		is_watched = !READ_ONCE(origin->is_suspended);
		/* Pairs with the release, too: who sees a second suspend sees its count. */
		smp_rmb();
		is_watched |= READ_ONCE(origin->nr_suspends) != nr_suspends;
	}
	rcu_read_unlock();
	return is_watched;
}

/* ------------------------- Status and messages ------------------------- */

/* What the status line of an origin says of its snapshots and checkpoints. */
struct origin_info {
	unsigned int nr_snapshots;
	unsigned int nr_checkpoints;
	u64 nr_granules;
	u64 changed;
	char newest[FLEECE_CHECKPOINT_NAME_MAX + 1];
};

static void read_info(struct fleece_origin *origin, struct origin_info *info)
{
	const struct fleece_moment *newest;
	struct fleece_history history;
	struct fleece_cbw *cbw;
	unsigned int noio;
	int ret;

	noio = fleece_origin_lock(origin);
	info->nr_snapshots = 0;
	list_for_each_entry(cbw, &origin->cbws, node)
		info->nr_snapshots++;
	info->nr_checkpoints = origin->tracker.nr_checkpoints;
	info->nr_granules = origin->tracker.nr_granules;
	newest = fleece_tracker_newest(&origin->tracker);
	strscpy(info->newest, newest ? newest->name : "-", sizeof(info->newest));
	ret = fleece_history_get(&history, &origin->tracker, GFP_KERNEL);
	fleece_origin_unlock(origin, noio);

	/* Out of memory: nobody knows, and a count of all is never too low. */
	info->changed = newest ? info->nr_granules : 0;
	if (ret)
		return;
	/* Without the lock, and given up rather than that all I/O waits for it. */
	info->changed = fleece_history_changed(&history, &origin->may_hold_io);
	fleece_history_put(&history);
	fleece_origin_compact_later(origin);
}

static void emit_origin_info(struct fleece_origin *origin, char *result, unsigned int maxlen)
{
	struct origin_info info;
	unsigned int sz = 0;

	read_info(origin, &info);
	DMEMIT("%u %llu %llu %s %u %u %s", origin->granule_sectors, info.nr_granules,
	       info.changed, fleece_metadata_dev_state(origin->metadata_dev), info.nr_snapshots,
	       info.nr_checkpoints, info.newest);
}

static void origin_status(struct dm_target *ti, status_type_t type, unsigned int flags,
			  char *result, unsigned int maxlen)
{
	struct fleece_table *table = ti->private;
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_origin_info(table->origin, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s %s %u", table->lower->name,
		       table->metadata ? table->metadata->name : "-",
		       table->origin->granule_sectors);
		if (table->copies_discards)
			DMEMIT(" 1 discard_copy");
		break;
	default:
		/* STATUSTYPE_IMA, where there is such a thing. */
		*result = '\0';
		DMEMIT_TARGET_NAME_VERSION(ti->type);
		DMEMIT(",device_name=%s,metadata_device_name=%s,granularity=%u,discard_copy=%c;",
		       table->lower->name, table->metadata ? table->metadata->name : "-",
		       table->origin->granule_sectors, table->copies_discards ? 'y' : 'n');
		break;
	}
}

static int emit_checkpoints(struct fleece_history *history, char *result, unsigned int maxlen)
{
	const struct fleece_moment *moment;
	unsigned int sz = 0;
	unsigned int i;

	*result = '\0';
	for (i = 0; i < history->nr_entries; i++) {
		moment = &history->entries[i].moment;
		DMEMIT("%s%s %pUb %llu %llu %s", i ? "\n" : "", moment->name, &moment->uuid,
		       moment->created, history->entries[i].changed,
		       moment->is_invalid ? "invalid" : "valid");
	}
	return 1;
}

/* See docs/dm-fleece.rst. Takes no lock: it does not wait for whatever the worker does. */
static int emit_metadata_status(struct fleece_origin *origin, char *result, unsigned int maxlen)
{
	struct fleece_metadata *meta = origin->metadata_dev ? origin->metadata_dev->meta : NULL;
	unsigned int sz = 0;

	DMEMIT("%s", fleece_metadata_dev_state(origin->metadata_dev));
	if (meta)
		DMEMIT(" %d %u %llu %llu", -READ_ONCE(meta->error), meta->nr_bad,
		       READ_ONCE(meta->nr_blocks), READ_ONCE(meta->nr_grants));
	else
		DMEMIT(" 0 0 0 0");
	return 1;
}

static int list_checkpoints(struct fleece_origin *origin, char *result, unsigned int maxlen)
{
	struct fleece_history history;
	int ret;
	unsigned int noio;

	noio = fleece_origin_lock(origin);
	ret = fleece_history_get(&history, &origin->tracker, GFP_KERNEL);
	fleece_origin_unlock(origin, noio);
	if (ret)
		return ret;
	if (fleece_history_count(&history, &origin->may_hold_io))
		ret = emit_checkpoints(&history, result, maxlen);
	else
		ret = report_suspended(origin);
	fleece_history_put(&history);
	fleece_origin_compact_later(origin);
	return ret;
}

/* A message that waited for the suspending would keep device-mapper from it. */
static int change_checkpoints(struct fleece_origin *origin, const char *name,
			      int (*change)(struct fleece_origin *origin, const char *name))
{
	int ret;

	mutex_lock(&origin->message_lock);
	ret = origin->is_suspending ? report_suspended(origin) : change(origin, name);
	mutex_unlock(&origin->message_lock);
	return ret;
}

static int origin_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
			  unsigned int maxlen)
{
	struct fleece_table *table = ti->private;
	struct fleece_origin *origin = table->origin;
	const char *error;
	int ret;

	if (argc == 1 && !strcasecmp(argv[0], "checkpoint_list"))
		return list_checkpoints(origin, result, maxlen);
	if (argc == 1 && !strcasecmp(argv[0], "metadata_status"))
		return emit_metadata_status(origin, result, maxlen);
	if (argc == 2 && !strcasecmp(argv[0], "checkpoint_create")) {
		ret = change_checkpoints(origin, argv[1], create_checkpoint);
	} else if (argc == 2 && !strcasecmp(argv[0], "checkpoint_delete")) {
		ret = change_checkpoints(origin, argv[1], delete_checkpoint);
	} else {
		DMERR("%s: unknown message '%s' with %u arguments", dm_device_name(origin->md),
		      argv[0], argc - 1);
		return -EINVAL;
	}

	if (ret) {
		error = fleece_checkpoint_name_error(argv[1]);
		DMERR("%s: message %s '%.64s' failed with errno %d%s%s",
		      dm_device_name(origin->md), argv[0], argv[1], -ret, error ? ": " : "",
		      error ?: "");
	}
	return ret;
}

static int origin_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct fleece_table *table = ti->private;

	return fn(ti, table->lower, 0, ti->len, data);
}

static struct target_type origin_target = {
	.name = "fleece",
	.version = {1, 0, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_NOWAIT | DM_TARGET_ATOMIC_WRITES,
	.module = THIS_MODULE,
	.ctr = origin_ctr,
	.dtr = origin_dtr,
	.map = origin_map,
	.end_io = origin_end_io,
	.presuspend = origin_presuspend,
	.presuspend_undo = origin_presuspend_undo,
	.postsuspend = origin_postsuspend,
	.preresume = origin_preresume,
	.resume = origin_resume,
	.status = origin_status,
	.message = origin_message,
	.iterate_devices = origin_iterate_devices,
};

int fleece_origin_init(void)
{
	int ret;

	compact_wq = alloc_workqueue("fleece-compact", WQ_UNBOUND, 0);
	if (!compact_wq)
		return -ENOMEM;
	ret = dm_register_target(&origin_target);
	if (ret)
		destroy_workqueue(compact_wq);
	return ret;
}

void fleece_origin_exit(void)
{
	dm_unregister_target(&origin_target);
	fleece_metadata_dev_exit();
	destroy_workqueue(compact_wq);
}
