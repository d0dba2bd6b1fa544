// SPDX-License-Identifier: GPL-2.0-only
/*
 * snapshot: target "fleece-snapshot", see snapshot.h. Owns the table line, the
 * taking of the point in time and the way of every read. Copying is the
 * engine's work.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "compat.h"
#include "snapshot.h"

#define DM_MSG_PREFIX		"fleece snapshot"

#define TIMEOUT_MS_DEFAULT	30000U
#define STAGING_SECTORS_DEFAULT	65536U

/* At the start of the COW device, so that its content is not taken for something else. */
#define HEADER_MAGIC		"dm-fleece COW device\n"
#define HEADER_BYTES_MIN	4096U

/**
 * struct snapshot_read - per-bio data
 * @snap: the snapshot.
 * @work: a release, or a read that goes on.
 * @iter: of the whole bio.
 * @done_bytes: how much of it has been served.
 * @piece_bytes: what is being read now.
 * @flags: of the bio as it came.
 * @opf: the same of its operation and flags.
 * @is_remapped: the bio is at a device, and its end is ours.
 * @kind: where it is reading.
 */
struct snapshot_read {
	struct fleece_snapshot *snap;
	struct work_struct work;
	struct bvec_iter iter;
	unsigned int done_bytes;
	unsigned int piece_bytes;
	unsigned short flags;
	unsigned int opf;
	bool is_remapped;
	enum fleece_place_kind kind;
};

/**
 * struct snapshot_table - one table of target "fleece-snapshot"
 * @snap: shared with other tables of the same device.
 * @origin: this table's handle of the lower device.
 * @cow: this table's handle of the COW device.
 * @features: the feature arguments as they were given.
 */
struct snapshot_table {
	struct fleece_snapshot *snap;
	struct dm_dev *origin;
	struct dm_dev *cow;
	char *features;
};

static DEFINE_MUTEX(registry_lock);
static LIST_HEAD(snapshots);

static struct snapshot_read *read_of(struct bio *bio)
{
	return dm_per_bio_data(bio, sizeof(struct snapshot_read));
}

static struct bio *bio_of(struct snapshot_read *read)
{
	return dm_bio_from_per_bio_data(read, sizeof(struct snapshot_read));
}

/* ------------------------- Reads ------------------------- */

enum piece {
	PIECE_REMAPPED,
	PIECE_FILLED,
	PIECE_FAILED,
};

static sector_t piece_sector(const struct snapshot_read *read)
{
	return read->iter.bi_sector + (read->done_bytes >> SECTOR_SHIFT);
}

/* Serve the part of a read that the bio's iterator now describes. */
static enum piece serve_piece(struct bio *bio, struct fleece_place *place)
{
	struct snapshot_read *read = read_of(bio);
	struct fleece_cbw *cbw = read->snap->cbw;

	read->piece_bytes = bio->bi_iter.bi_size;
	read->kind = place->kind;
	switch (place->kind) {
	case FLEECE_PLACE_ORIGIN:
		bio_set_dev(bio, cbw->config.origin);
		break;
	case FLEECE_PLACE_SLOT:
		bio_set_dev(bio, cbw->config.cow);
		bio->bi_iter.bi_sector = place->sector;
		break;
	case FLEECE_PLACE_STAGED:
		fleece_cbw_read_staged(cbw, place, piece_sector(read), bio, bio->bi_iter);
		return PIECE_FILLED;
	case FLEECE_PLACE_DENIED:
		bio->bi_status = BLK_STS_MEDIUM;
		return PIECE_FAILED;
	case FLEECE_PLACE_LOST:
		bio->bi_status = BLK_STS_IOERR;
		return PIECE_FAILED;
	}
	read->is_remapped = true;
	return PIECE_REMAPPED;
}

static int map_read(struct bio *bio)
{
	struct snapshot_read *read = read_of(bio);
	struct fleece_place place;

	fleece_cbw_locate(read->snap->cbw, bio->bi_iter.bi_sector, bio_sectors(bio), &place);
	if (place.nr_sectors < bio_sectors(bio))
		dm_accept_partial_bio(bio, place.nr_sectors);
	/* It may have to go on at the other device, whose queues are not those polled. */
	bio->bi_opf &= ~REQ_POLLED;
	read->opf = (__force unsigned int)bio->bi_opf;
	read->iter = bio->bi_iter;
	read->flags = bio->bi_flags;
	read->done_bytes = 0;
	if (serve_piece(bio, &place) == PIECE_REMAPPED)
		return DM_MAPIO_REMAPPED;
	bio_endio(bio);
	return DM_MAPIO_SUBMITTED;
}

/* Make the bio describe the part that is still to be served, @nr_sectors of it. */
static void aim_at_rest(struct bio *bio, sector_t nr_sectors)
{
	struct snapshot_read *read = read_of(bio);

	bio->bi_iter = read->iter;
	bio_advance_iter(bio, &bio->bi_iter, read->done_bytes);
	bio->bi_iter.bi_size = nr_sectors << SECTOR_SHIFT;
	/* As it came: it has been through a device, which may have put its own marks on it. */
	bio->bi_status = BLK_STS_OK;
	bio->bi_flags = read->flags;
	bio->bi_opf = (__force typeof(bio->bi_opf))read->opf & ~REQ_NOWAIT;
	atomic_set(&bio->__bi_remaining, 1);
	/* If it was merged into a request, it is still linked to the next one of that. */
	bio->bi_next = NULL;
}

/*
 * Go on with a read whose data has moved while it was read, or of which a part
 * has been served: piece by piece, from where each is now. A cluster moves at
 * most twice (to RAM, to its slot), so this ends.
 */
static void continue_read(struct work_struct *work)
{
	struct snapshot_read *read = container_of(work, struct snapshot_read, work);
	struct fleece_snapshot *snap = read->snap;
	struct bio *bio = bio_of(read);
	struct fleece_place place;
	unsigned int left;

	if (!fleece_origin_is_watched(snap->origin))
		fleece_cbw_break(snap->cbw, ENODEV, piece_sector(read),
				 "the origin's table was replaced");
	while ((left = read->iter.bi_size - read->done_bytes)) {
		fleece_cbw_locate(snap->cbw, piece_sector(read), left >> SECTOR_SHIFT, &place);
		aim_at_rest(bio, place.nr_sectors);
		switch (serve_piece(bio, &place)) {
		case PIECE_REMAPPED:
			dm_submit_bio_remap(bio, NULL);
			return;
		case PIECE_FAILED:
			bio_endio(bio);
			return;
		case PIECE_FILLED:
			read->done_bytes += read->piece_bytes;
			break;
		}
	}
	bio_endio(bio);
}

static int snapshot_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct snapshot_read *read = read_of(bio);
	struct fleece_snapshot *snap = read->snap;
	bool is_right;

	if (!read->is_remapped)
		return DM_ENDIO_DONE;
	read->is_remapped = false;

	is_right = fleece_cbw_still_there(snap->cbw, read->kind, piece_sector(read),
					  read->piece_bytes >> SECTOR_SHIFT);
	if (is_right && read->kind == FLEECE_PLACE_ORIGIN)
		is_right = fleece_origin_is_watched(snap->origin);
	if (is_right) {
		/* Of a bad sector, which is none of those that the snapshot does not have. */
		if (*error == BLK_STS_MEDIUM)
			*error = BLK_STS_IOERR;
		if (*error)
			return DM_ENDIO_DONE;
		read->done_bytes += read->piece_bytes;
		if (read->done_bytes == read->iter.bi_size)
			return DM_ENDIO_DONE;
	}
	INIT_WORK(&read->work, continue_read);
	queue_work(snap->wq, &read->work);
	return DM_ENDIO_INCOMPLETE;
}

/* ------------------------- Everything but reads ------------------------- */

static void release_discarded(struct work_struct *work)
{
	struct snapshot_read *read = container_of(work, struct snapshot_read, work);
	struct bio *bio = bio_of(read);
	int ret = fleece_cbw_release(read->snap->cbw, bio->bi_iter.bi_sector, bio_sectors(bio));

	bio->bi_status = errno_to_blk_status(ret);
	bio_endio(bio);
}

static int snapshot_map(struct dm_target *ti, struct bio *bio)
{
	struct snapshot_table *table = ti->private;
	struct snapshot_read *read = read_of(bio);

	read->snap = table->snap;
	read->is_remapped = false;
	if (bio_op(bio) == REQ_OP_READ)
		return map_read(bio);
	if (bio_op(bio) == REQ_OP_DISCARD && table->snap->options.release_on_discard) {
		INIT_WORK(&read->work, release_discarded);
		queue_work(table->snap->wq, &read->work);
		return DM_MAPIO_SUBMITTED;
	}
	/* A snapshot is never written. */
	return DM_MAPIO_KILL;
}

/* ------------------------- Taking the snapshot ------------------------- */

static int write_header(struct block_device *cow)
{
	unsigned int bytes = max(HEADER_BYTES_MIN, bdev_logical_block_size(cow));
	struct page *page;
	struct bio *bio;
	int ret;

	ret = blkdev_issue_zeroout(cow, 0, FLEECE_HEADER_SECTORS, GFP_NOIO, 0);
	if (ret)
		return ret;
	page = alloc_pages(GFP_NOIO | __GFP_ZERO, get_order(bytes));
	if (!page)
		return -ENOMEM;
	strscpy(page_address(page), HEADER_MAGIC, bytes);
	bio = fleece_bio_alloc(cow, 1, REQ_OP_WRITE | REQ_SYNC, GFP_NOIO, &fs_bio_set);
	__bio_add_page(bio, page, bytes, 0);
	ret = submit_bio_wait(bio);
	bio_put(bio);
	__free_pages(page, get_order(bytes));
	return ret;
}

/* Why a checkpoint cannot be created, by the errno. */
static char *checkpoint_error(int error)
{
	switch (error) {
	case -EEXIST:
		return "checkpoint: the origin already has a checkpoint of this name";
	case -ENOSPC:
		return "checkpoint: the origin has too many checkpoints, or its metadata no room";
	default:
		return "checkpoint: it cannot be added to the origin's";
	}
}

static int check_checkpoints(struct fleece_origin *origin,
			     const struct fleece_snapshot_options *options, char **error)
{
	const struct fleece_moment *since;
	int ret;

	lockdep_assert_held(&origin->lock);
	since = fleece_tracker_find(&origin->tracker, options->since);
	if (options->since[0] && !since) {
		*error = "since: the origin has no such checkpoint";
		return -ENOENT;
	}
	if (since && since->is_invalid) {
		*error = "since: the checkpoint is invalid, as tracking was interrupted";
		return -ESTALE;
	}
	if (!options->checkpoint[0])
		return 0;
	ret = fleece_tracker_check_new(&origin->tracker, options->checkpoint);
	if (ret)
		*error = checkpoint_error(ret);
	return ret;
}

static int check_origin(struct fleece_snapshot *snap, char **error)
{
	struct fleece_origin *origin = snap->origin;

	lockdep_assert_held(&origin->lock);
	if (origin->is_ended || !rcu_access_pointer(origin->ti)) {
		*error = "the origin's device is not active";
		return -ENODEV;
	}
	if (origin->nr_sectors != snap->cbw->config.nr_sectors ||
	    origin->tracker.nr_granules != snap->spare->nr_granules) {
		*error = "the origin's size was changed since the table was loaded";
		return -EINVAL;
	}
	if (origin->nr_shrinking) {
		*error = "the origin is going to be shrunk: a shorter table is loaded";
		return -EBUSY;
	}
	return check_checkpoints(origin, &snap->options, error);
}

/* The moment: no write of the origin is on the device. Constant time. */
static void take_here(struct fleece_snapshot *snap, bool is_tracked)
{
	const char *checkpoint = snap->options.checkpoint;
	struct fleece_origin *origin = snap->origin;

	if (is_tracked) {
		fleece_tracker_switch(&origin->tracker, snap->spare,
				      *checkpoint ? checkpoint : NULL);
		snap->spare = NULL;
	}
	fleece_cbw_activate(snap->cbw, snap->options.since[0] ? &snap->since : NULL,
			    origin->granule_sectors);
	list_add_tail_rcu(&snap->cbw->node, &origin->cbws);
}

static int take_locked(struct fleece_snapshot *snap, char **error)
{
	struct fleece_origin *origin = snap->origin;
	bool is_tracked;
	int ret;

	ret = check_origin(snap, error);
	if (ret)
		return ret;
	*error = "out of memory";
	ret = fleece_history_get(&snap->history, &origin->tracker, GFP_KERNEL);
	if (ret)
		return ret;
	/* All segments that there are now: the live one ends at the moment. */
	if (snap->options.since[0])
		fleece_history_since(&snap->history, snap->options.since, &snap->since);

	*error = "writes of the origin under way do not complete";
	ret = fleece_origin_quiesce(origin);
	if (ret) {
		fleece_history_put(&snap->history);
		return ret;
	}
	is_tracked = origin->tracker.nr_checkpoints || snap->options.checkpoint[0];
	take_here(snap, is_tracked);
	fleece_origin_release(origin);

	if (!is_tracked)
		fleece_history_put(&snap->history);
	if (snap->options.checkpoint[0])
		fleece_history_end_here(&snap->history, &origin->tracker);
	fleece_origin_compact_later(origin);
	return 0;
}

static int take_snapshot(struct fleece_snapshot *snap, char **error)
{
	unsigned int noio;
	int ret;

	noio = fleece_origin_lock(snap->origin);
	ret = take_locked(snap, error);
	fleece_origin_unlock(snap->origin, noio);
	if (!ret)
		/* Whoever sees it sees the history: pairs with fleece_snapshot_find_md(). */
		smp_store_release(&snap->is_taken, true);
	return ret;
}

/*
 * With a checkpoint of the same moment. There is none of both without the other: a
 * snapshot whose checkpoint did not become durable breaks.
 */
static int take_with_checkpoint(struct fleece_snapshot *snap, char **error)
{
	const char *checkpoint = snap->options.checkpoint;
	struct fleece_origin *origin = snap->origin;
	unsigned int change;
	int ret;

	change = fleece_origin_begin_change(origin);
	ret = fleece_origin_begin_checkpoint(origin, checkpoint);
	if (ret) {
		*error = checkpoint_error(ret);
	} else {
		ret = take_snapshot(snap, error);
		ret = fleece_origin_end_checkpoint(origin, checkpoint, ret);
		if (ret && snap->is_taken) {
			*error = "checkpoint: it did not become durable";
			fleece_cbw_break(snap->cbw, EIO, 0, *error);
		}
	}
	fleece_origin_end_change(origin, change);
	return ret;
}

static int snapshot_preresume(struct dm_target *ti)
{
	struct snapshot_table *table = ti->private;
	struct fleece_snapshot *snap = table->snap;
	char *error;
	int ret;

	if (snap->is_taken)
		return 0;
	ret = snap->options.checkpoint[0] ? take_with_checkpoint(snap, &error) :
					    take_snapshot(snap, &error);
	if (ret)
		DMERR("%s: snapshot not taken: %s (errno %d)", dm_device_name(snap->md), error,
		      -ret);
	return ret;
}

static void snapshot_resume(struct dm_target *ti)
{
	struct snapshot_table *table = ti->private;
	struct fleece_snapshot *snap = table->snap;
	/* The origin may be suspended: to wait for memory may be to wait for it. */
	unsigned int noio = memalloc_noio_save();

	mutex_lock(&snap->ti_lock);
	snap->ti = ti;
	if (snap->has_untold_event)
		dm_table_event(ti->table);
	snap->has_untold_event = false;
	mutex_unlock(&snap->ti_lock);
	/* Whoever has grown the COW device need not send a message as well. */
	if (fleece_cbw_is_active(snap->cbw))
		fleece_cbw_grow(snap->cbw);
	/* Discards need a device that can be opened for writing. */
	if (!snap->options.release_on_discard)
		set_disk_ro(dm_disk(snap->md), true);
	memalloc_noio_restore(noio);
}

/* Event method of the engine. */
static void tell_event(void *context)
{
	struct fleece_snapshot *snap = context;

	mutex_lock(&snap->ti_lock);
	snap->has_untold_event = !snap->ti;
	if (snap->ti)
		dm_table_event(snap->ti->table);
	mutex_unlock(&snap->ti_lock);
}

static const struct fleece_cbw_methods engine_methods = {
	.resume = fleece_origin_resume_writes,
	.event = tell_event,
};

/* ------------------------- Feature arguments ------------------------- */

static int parse_number(const char *value, unsigned int *number, char **error)
{
	if (!kstrtouint(value, 10, number))
		return 0;
	*error = "Value of a feature argument is not a number";
	return -EINVAL;
}

static int parse_name(const char *value, char *name, char **error)
{
	if (!fleece_checkpoint_name_error(value)) {
		strscpy(name, value, FLEECE_CHECKPOINT_NAME_MAX + 1);
		return 0;
	}
	*error = "Checkpoint name is not 1 to 63 of A-Z a-z 0-9 . _ - (not first: . -)";
	return -EINVAL;
}

static int parse_since(struct fleece_snapshot_options *options, const char *value, char **error)
{
	return parse_name(value, options->since, error);
}

static int parse_checkpoint(struct fleece_snapshot_options *options, const char *value,
			    char **error)
{
	return parse_name(value, options->checkpoint, error);
}

static int parse_on_cbw_error(struct fleece_snapshot_options *options, const char *value,
			      char **error)
{
	static const char * const names[] = {
		[FLEECE_BREAK_SNAPSHOT] = "break_snapshot",
		[FLEECE_BREAK_CLUSTER] = "break_cluster",
		[FLEECE_BREAK_WRITE] = "break_write",
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcasecmp(value, names[i])) {
			options->on_error = i;
			return 0;
		}
	}
	*error = "on_cbw_error: not one of break_snapshot, break_cluster, break_write";
	return -EINVAL;
}

static int parse_on_cow_full(struct fleece_snapshot_options *options, const char *value,
			     char **error)
{
	options->wait_when_full = !strcasecmp(value, "wait");
	if (options->wait_when_full || !strcasecmp(value, "break"))
		return 0;
	*error = "on_cow_full: not one of break, wait";
	return -EINVAL;
}

static int parse_cbw_timeout(struct fleece_snapshot_options *options, const char *value,
			     char **error)
{
	return parse_number(value, &options->timeout_ms, error);
}

static int parse_low_water(struct fleece_snapshot_options *options, const char *value,
			   char **error)
{
	return parse_number(value, &options->low_water_slots, error);
}

static int parse_staging(struct fleece_snapshot_options *options, const char *value,
			 char **error)
{
	return parse_number(value, &options->staging_sectors, error);
}

static int parse_release_on_discard(struct fleece_snapshot_options *options, const char *value,
				    char **error)
{
	options->release_on_discard = true;
	return 0;
}

static const struct feature {
	const char *name;
	bool has_value;
	int (*parse)(struct fleece_snapshot_options *options, const char *value, char **error);
} features[] = {
	{ "since", true, parse_since },
	{ "checkpoint", true, parse_checkpoint },
	{ "on_cbw_error", true, parse_on_cbw_error },
	{ "cbw_timeout", true, parse_cbw_timeout },
	{ "on_cow_full", true, parse_on_cow_full },
	{ "low_water", true, parse_low_water },
	{ "staging", true, parse_staging },
	{ "release_on_discard", false, parse_release_on_discard },
};

static int find_feature(const char *name)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		if (!strcasecmp(features[i].name, name))
			return i;
	}
	return -1;
}

/* Parse one feature; returns how many arguments it has taken, or an errno. */
static int parse_feature(struct fleece_snapshot_options *options, unsigned int argc, char **argv,
			 char **error)
{
	int i = find_feature(argv[0]);
	int ret;

	if (i < 0) {
		DMERR("unknown feature argument '%s'", argv[0]);
		*error = "Unknown feature argument";
		return -EINVAL;
	}
	if (test_and_set_bit(i, &options->given)) {
		DMERR("feature argument '%s' is given twice", argv[0]);
		*error = "A feature argument is given twice";
		return -EINVAL;
	}
	if (features[i].has_value && argc < 2) {
		DMERR("feature argument '%s' has no value", argv[0]);
		*error = "A feature argument has no value";
		return -EINVAL;
	}
	ret = features[i].parse(options, features[i].has_value ? argv[1] : NULL, error);
	if (ret) {
		DMERR("feature argument '%s': %s", argv[0], *error);
		return ret;
	}
	return 1 + features[i].has_value;
}

static int parse_features(struct fleece_snapshot_options *options, unsigned int argc,
			  char **argv, char **error)
{
	unsigned int count;
	int ret;

	options->timeout_ms = TIMEOUT_MS_DEFAULT;
	options->staging_sectors = STAGING_SECTORS_DEFAULT;
	if (!argc)
		return 0;
	if (kstrtouint(argv[0], 10, &count) || count != argc - 1) {
		*error = "Number of feature arguments is wrong";
		return -EINVAL;
	}
	for (argv++; count; count -= ret, argv += ret) {
		ret = parse_feature(options, count, argv, error);
		if (ret < 0)
			return ret;
	}
	/* A write that may still fail cannot be let go before its copy is safe. */
	if (options->on_error == FLEECE_BREAK_WRITE)
		options->staging_sectors = 0;
	return 0;
}

static int parse_cluster(struct fleece_snapshot_options *options, const char *arg, char **error)
{
	unsigned int sectors;

	*error = "Cluster is not a power of two from 8 to 32768 sectors";
	if (kstrtouint(arg, 10, &sectors) || !fleece_is_unit(sectors))
		return -EINVAL;
	options->cluster_sectors = sectors;
	return 0;
}

/* ------------------------- Devices of a table ------------------------- */

/*
 * The one that is written to comes first. If both are the same device, opening it
 * again with more rights would replace, and free, what the first opening returned.
 */
static int open_devices(struct dm_target *ti, char **argv, struct snapshot_table *table)
{
	int ret;

	ret = dm_get_device(ti, argv[1], FLEECE_OPEN_RW, &table->cow);
	if (ret) {
		ti->error = ret == -EBUSY ? "COW device is in use (mounted, or claimed otherwise)" :
					    "Cannot open the COW device";
		return ret;
	}
	ret = dm_get_device(ti, argv[0], FLEECE_OPEN_READ, &table->origin);
	if (ret) {
		ti->error = "Cannot open the origin device";
		dm_put_device(ti, table->cow);
	}
	return ret;
}

static void close_devices(struct dm_target *ti, struct snapshot_table *table)
{
	dm_put_device(ti, table->origin);
	dm_put_device(ti, table->cow);
}

static int check_devices(struct dm_target *ti, struct snapshot_table *table,
			 unsigned int cluster_sectors)
{
	struct block_device *origin = table->origin->bdev;
	struct block_device *cow = table->cow->bdev;
	unsigned int block = max(bdev_logical_block_size(origin), bdev_logical_block_size(cow));

	if (bdev_is_zoned(origin) || bdev_is_zoned(cow)) {
		ti->error = "Zoned devices are not supported";
		return -EOPNOTSUPP;
	}
	/* Of a disk and its partition only one can be claimed, so both were not opened. */
	if (origin->bd_dev == cow->bd_dev) {
		ti->error = "COW device is the same as the origin";
		return -EINVAL;
	}
	if (cluster_sectors << SECTOR_SHIFT < block) {
		ti->error = "Cluster is smaller than a block of the origin or the COW device";
		return -EINVAL;
	}
	if ((ti->len << SECTOR_SHIFT) & (block - 1)) {
		ti->error = "Length is not a multiple of the block size of both devices";
		return -EINVAL;
	}
	return 0;
}

/* ------------------------- The registry ------------------------- */

static void free_snapshot(struct kref *kref)
{
	struct fleece_snapshot *snap = container_of(kref, struct fleece_snapshot, kref);

	fleece_cbw_destroy(snap->cbw);
	fleece_history_put(&snap->history);
	fleece_origin_compact_later(snap->origin);
	fleece_segment_put(snap->spare);
	destroy_workqueue(snap->wq);
	fleece_origin_put(snap->origin);
	kfree(snap);
}

void fleece_snapshot_put(struct fleece_snapshot *snap)
{
	kref_put(&snap->kref, free_snapshot);
}

static struct fleece_snapshot *lookup_md(dev_t devt)
{
	struct fleece_snapshot *snap;

	lockdep_assert_held(&registry_lock);
	list_for_each_entry(snap, &snapshots, node) {
		if (snap->md_devt == devt)
			return snap;
	}
	return NULL;
}

struct fleece_snapshot *fleece_snapshot_find_md(dev_t devt)
{
	struct fleece_snapshot *snap;

	mutex_lock(&registry_lock);
	snap = lookup_md(devt);
	/* Pairs with take_snapshot(). */
	if (snap && smp_load_acquire(&snap->is_taken))
		kref_get(&snap->kref);
	else
		snap = NULL;
	mutex_unlock(&registry_lock);
	return snap;
}

static struct fleece_cbw *make_engine(struct dm_target *ti, struct fleece_snapshot *snap,
				      struct snapshot_table *table)
{
	const struct fleece_snapshot_options *options = &snap->options;
	struct fleece_cbw_config config = {
		.name = dm_device_name(snap->md),
		.origin = table->origin->bdev,
		.cow = table->cow->bdev,
		.nr_sectors = ti->len,
		.cluster_sectors = options->cluster_sectors,
		.limited = options->since[0],
		.on_error = options->on_error,
		.wait_when_full = options->wait_when_full,
		.staging_bytes = (u64)options->staging_sectors << SECTOR_SHIFT,
		.timeout_ms = options->timeout_ms,
		.low_water_slots = options->low_water_slots,
		.methods = &engine_methods,
		.resume_context = snap->origin,
		.event_context = snap,
	};

	return fleece_cbw_create(&config, &ti->error);
}

static struct fleece_snapshot *make_snapshot(struct dm_target *ti, struct snapshot_table *table,
					     const struct fleece_snapshot_options *options,
					     struct fleece_origin *origin)
{
	struct mapped_device *md = dm_table_get_md(ti->table);
	struct fleece_snapshot *snap = kzalloc(sizeof(*snap), GFP_KERNEL);
	int ret = -ENOMEM;

	ti->error = "Out of memory";
	if (!snap)
		return ERR_PTR(-ENOMEM);
	kref_init(&snap->kref);
	snap->md = md;
	snap->md_devt = disk_devt(dm_disk(md));
	snap->origin = origin;
	snap->options = *options;
	mutex_init(&snap->ti_lock);
	snap->wq = alloc_workqueue("fleece-snap/%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 0,
				   dm_device_name(md));
	if (!snap->wq)
		goto err_free;
	snap->spare = fleece_segment_alloc(READ_ONCE(origin->tracker.nr_granules));
	if (!snap->spare)
		goto err_destroy_wq;
	ret = fleece_origin_claim_cow(&snap->cow, table->cow->bdev, &ti->error);
	if (ret)
		goto err_put_spare;
	snap->cbw = make_engine(ti, snap, table);
	if (IS_ERR(snap->cbw)) {
		ret = PTR_ERR(snap->cbw);
		goto err_unclaim_cow;
	}
	return snap;

err_unclaim_cow:
	fleece_origin_unclaim_cow(&snap->cow);
err_put_spare:
	fleece_segment_put(snap->spare);
err_destroy_wq:
	destroy_workqueue(snap->wq);
err_free:
	kfree(snap);
	return ERR_PTR(ret);
}

static bool same_options(const struct fleece_snapshot_options *a,
			 const struct fleece_snapshot_options *b)
{
	return a->cluster_sectors == b->cluster_sectors && !strcmp(a->since, b->since) &&
	       !strcmp(a->checkpoint, b->checkpoint) && a->on_error == b->on_error &&
	       a->wait_when_full == b->wait_when_full && a->timeout_ms == b->timeout_ms &&
	       a->low_water_slots == b->low_water_slots &&
	       a->staging_sectors == b->staging_sectors &&
	       a->release_on_discard == b->release_on_discard;
}

static int check_new(struct dm_target *ti, const struct fleece_snapshot_options *options,
		     struct fleece_origin *origin)
{
	unsigned int noio;
	int ret;

	noio = fleece_origin_lock(origin);
	ret = check_checkpoints(origin, options, &ti->error);
	fleece_origin_unlock(origin, noio);
	return ret;
}

/*
 * The snapshot of a new table: the one that another table of the same device
 * already has, or a new one. The reference of @origin is used up then; after an
 * error it is still the caller's.
 */
static struct fleece_snapshot *join_snapshot(struct dm_target *ti, struct snapshot_table *table,
					     const struct fleece_snapshot_options *options,
					     struct fleece_origin *origin)
{
	struct fleece_snapshot *snap;

	lockdep_assert_held(&registry_lock);
	snap = lookup_md(disk_devt(dm_disk(dm_table_get_md(ti->table))));
	if (snap) {
		if (!snap->is_prepared) {
			ti->error = "The first table of the snapshot is just being loaded";
			return ERR_PTR(-EBUSY);
		}
		/* An origin may have grown since, the snapshot has not. */
		if (snap->cbw->config.nr_sectors != ti->len) {
			ti->error = "Length differs from the snapshot's";
			return ERR_PTR(-EINVAL);
		}
		if (snap->origin != origin || snap->cow.devt != table->cow->bdev->bd_dev ||
		    !same_options(&snap->options, options)) {
			ti->error = "Devices and arguments of a snapshot cannot be changed";
			return ERR_PTR(-EOPNOTSUPP);
		}
		fleece_origin_put(origin);
	} else {
		if (ti->len != READ_ONCE(origin->nr_sectors)) {
			ti->error = "Length differs from the origin's";
			return ERR_PTR(-EINVAL);
		}
		snap = make_snapshot(ti, table, options, origin);
		if (IS_ERR(snap))
			return snap;
		list_add(&snap->node, &snapshots);
	}
	snap->nr_tables++;
	return snap;
}

/* The last table is gone: no reader is left, writers must forget the engine. */
static void end_snapshot(struct fleece_snapshot *snap)
{
	struct fleece_origin *origin = snap->origin;
	unsigned int noio;

	noio = fleece_origin_lock(origin);
	if (snap->is_taken)
		list_del_rcu(&snap->cbw->node);
	fleece_origin_unlock(origin, noio);
	fleece_cbw_stop(snap->cbw);
	synchronize_rcu();
	fleece_cbw_drain(snap->cbw);
	fleece_origin_unclaim_cow(&snap->cow);
	flush_workqueue(snap->wq);
	fleece_snapshot_put(snap);
}

static void leave_snapshot(struct fleece_snapshot *snap)
{
	bool is_last;

	mutex_lock(&registry_lock);
	is_last = !--snap->nr_tables;
	if (is_last)
		list_del(&snap->node);
	mutex_unlock(&registry_lock);
	if (is_last)
		end_snapshot(snap);
}

static int begin_snapshot(struct dm_target *ti, struct fleece_snapshot *snap,
			  struct block_device *cow)
{
	int ret = check_new(ti, &snap->options, snap->origin);

	if (ret)
		return ret;
	ti->error = "Cannot write the header of the COW device";
	return write_header(cow);
}

static struct fleece_snapshot *find_or_make(struct dm_target *ti, struct snapshot_table *table,
					    const struct fleece_snapshot_options *options)
{
	struct fleece_origin *origin = fleece_origin_find(table->origin->bdev);
	struct fleece_snapshot *snap;
	bool is_new = false;
	unsigned int noio;
	int ret = 0;

	if (!origin) {
		ti->error = "Origin device is not attached: no fleece target is on it";
		return ERR_PTR(-ENODEV);
	}
	/* The origin may be suspended: memory must not be waited for by writing to it. */
	noio = memalloc_noio_save();
	mutex_lock(&registry_lock);
	snap = join_snapshot(ti, table, options, origin);
	if (!IS_ERR(snap))
		is_new = snap->nr_tables == 1;
	mutex_unlock(&registry_lock);
	if (IS_ERR(snap))
		fleece_origin_put(origin);
	/* Without the lock: devices may be slow, or not get on at all. */
	if (is_new)
		ret = begin_snapshot(ti, snap, table->cow->bdev);
	memalloc_noio_restore(noio);
	if (ret) {
		leave_snapshot(snap);
		return ERR_PTR(ret);
	}
	if (is_new) {
		mutex_lock(&registry_lock);
		snap->is_prepared = true;
		mutex_unlock(&registry_lock);
	}
	return snap;
}

/* ------------------------- Constructor and destructor ------------------------- */

/* The arguments as they were written, for the table status. */
static char *join_arguments(unsigned int argc, char **argv)
{
	size_t size = 1;
	unsigned int i;
	char *text;

	for (i = 0; i < argc; i++)
		size += strlen(argv[i]) + 1;
	text = kzalloc(size, GFP_KERNEL);
	for (i = 0; text && i < argc; i++) {
		strcat(text, " ");
		strcat(text, argv[i]);
	}
	return text;
}

static void set_snapshot_target(struct dm_target *ti, struct snapshot_table *table)
{
	ti->per_io_data_size = sizeof(struct snapshot_read);
	fleece_set_accounts_remapped(ti);
	if (table->snap->options.release_on_discard) {
		ti->num_discard_bios = 1;
		ti->discards_supported = true;
	}
	ti->private = table;
}

static int snapshot_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct fleece_snapshot_options options = {};
	struct snapshot_table *table;
	int ret;

	if (argc < 3) {
		ti->error = "Arguments: <origin_dev> <cow_dev> <cluster> [<#args> ...]";
		return -EINVAL;
	}
	if (ti->begin) {
		ti->error = "The target must begin at sector 0";
		return -EINVAL;
	}
	ret = parse_cluster(&options, argv[2], &ti->error) ?:
	      parse_features(&options, argc - 3, argv + 3, &ti->error);
	if (ret)
		return ret;

	ti->error = "Out of memory";
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table)
		return -ENOMEM;
	ret = -ENOMEM;
	table->features = join_arguments(argc - 3, argv + 3);
	if (!table->features)
		goto err_free_table;
	ret = open_devices(ti, argv, table);
	if (ret)
		goto err_free_features;
	ret = check_devices(ti, table, options.cluster_sectors);
	if (ret)
		goto err_close_devices;
	table->snap = find_or_make(ti, table, &options);
	if (IS_ERR(table->snap)) {
		ret = PTR_ERR(table->snap);
		goto err_close_devices;
	}
	set_snapshot_target(ti, table);
	return 0;

err_close_devices:
	close_devices(ti, table);
err_free_features:
	kfree(table->features);
err_free_table:
	kfree(table);
	return ret;
}

static void snapshot_dtr(struct dm_target *ti)
{
	struct snapshot_table *table = ti->private;
	struct fleece_snapshot *snap = table->snap;

	mutex_lock(&snap->ti_lock);
	if (snap->ti == ti)
		snap->ti = NULL;
	mutex_unlock(&snap->ti_lock);
	leave_snapshot(snap);
	close_devices(ti, table);
	kfree(table->features);
	kfree(table);
}

/* ------------------------- Status and messages ------------------------- */

static void emit_snapshot_info(struct fleece_snapshot *snap, char *result, unsigned int maxlen)
{
	struct fleece_cbw_status status;
	unsigned int sz = 0;

	fleece_cbw_get_status(snap->cbw, &status);
	DMEMIT("%s %u/%u %u %llu/%llu %llu %llu %llu %llu %u %d %llu",
	       status.state == FLEECE_CBW_ACTIVE ? "active" : "broken", status.slots_used,
	       status.slots_total, snap->options.cluster_sectors, status.accessible,
	       snap->cbw->nr_clusters, status.copied, status.released, status.lost,
	       status.staged_bytes, status.waiting, status.error, status.error_sector);
}

static void snapshot_status(struct dm_target *ti, status_type_t type, unsigned int flags,
			    char *result, unsigned int maxlen)
{
	struct snapshot_table *table = ti->private;
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_snapshot_info(table->snap, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s %s %u%s", table->origin->name, table->cow->name,
		       table->snap->options.cluster_sectors, table->features);
		break;
	default:
		/* STATUSTYPE_IMA, where there is such a thing. */
		*result = '\0';
		DMEMIT_TARGET_NAME_VERSION(ti->type);
		DMEMIT(",device_name=%s,cow_device_name=%s,cluster=%u,features=%s;",
		       table->origin->name, table->cow->name,
		       table->snap->options.cluster_sectors, table->features);
		break;
	}
}

static int release_message(struct dm_target *ti, const char *sector_arg, const char *count_arg)
{
	struct snapshot_table *table = ti->private;
	const char *name = dm_device_name(table->snap->md);
	u64 sector;
	u64 count;

	if (kstrtou64(sector_arg, 10, &sector) || kstrtou64(count_arg, 10, &count)) {
		DMERR("%s: release: '%s %s' is not a range of sectors", name, sector_arg,
		      count_arg);
		return -EINVAL;
	}
	if (sector > ti->len || count > ti->len - sector) {
		DMERR("%s: release: %llu sectors from %llu on are beyond the end (%llu)", name,
		      count, sector, ti->len);
		return -ERANGE;
	}
	return fleece_cbw_release(table->snap->cbw, sector, count);
}

static int snapshot_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
			    unsigned int maxlen)
{
	struct snapshot_table *table = ti->private;

	if (argc == 3 && !strcasecmp(argv[0], "release"))
		return release_message(ti, argv[1], argv[2]);
	if (argc == 1 && !strcasecmp(argv[0], "cow_resize"))
		return fleece_cbw_grow(table->snap->cbw);
	DMERR("%s: unknown message '%s' with %u arguments", dm_device_name(table->snap->md),
	      argv[0], argc - 1);
	return -EINVAL;
}

static int snapshot_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn,
				    void *data)
{
	struct snapshot_table *table = ti->private;

	/*
	 * Blocks must suit both. The COW device may be smaller than the target. It comes first:
	 * what device-mapper asks of one device alone, such as a persistent reservation, must
	 * not be had of the disk that others write to.
	 */
	return fn(ti, table->cow, 0, FLEECE_HEADER_SECTORS, data) ?:
	       fn(ti, table->origin, 0, ti->len, data);
}

static void snapshot_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct snapshot_table *table = ti->private;

	if (!table->snap->options.release_on_discard)
		return;
	/* Parts of clusters add up, so there is no coarser granularity to respect. */
	limits->discard_granularity = limits->logical_block_size;
	fleece_set_max_discard(limits, UINT_MAX >> SECTOR_SHIFT);
}

static struct target_type snapshot_target = {
	.name = "fleece-snapshot",
	.version = {1, 0, 0},
	.features = DM_TARGET_SINGLETON,
	.module = THIS_MODULE,
	.ctr = snapshot_ctr,
	.dtr = snapshot_dtr,
	.map = snapshot_map,
	.end_io = snapshot_end_io,
	.preresume = snapshot_preresume,
	.resume = snapshot_resume,
	.status = snapshot_status,
	.message = snapshot_message,
	.iterate_devices = snapshot_iterate_devices,
	.io_hints = snapshot_io_hints,
};

int fleece_snapshot_init(void)
{
	return dm_register_target(&snapshot_target);
}

void fleece_snapshot_exit(void)
{
	dm_unregister_target(&snapshot_target);
}
