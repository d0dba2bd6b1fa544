// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will run the protocol of the metadata device, with the real tracker, on a
 * device that loses what was not flushed: sector by sector, in any order. Live writes
 * come whenever the protocol waits for I/O. After each end, of whatever kind, what the
 * device says is compared with what was really written since each checkpoint: it must
 * not say less, and more only for regions that can have an intent.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/timekeeping.h>

#include "memory.h"
#include "metadata.h"
#include "tracker.h"
#include "unit.h"

#define SECTOR			FLEECE_MD_SECTOR_BYTES
#define GRANULE_SECTORS		8
/* A map of so many has one block, or three. */
#define GRANULES_FEW		9000
#define GRANULES_MAX		70000
#define REGIONS_MAX		GRANULES_MAX
#define SLOTS			5
#define DEVICE_SECTORS		(4096 + 24 + SLOTS * 24)
#define POINTS			16
#define WRITES			64
#define HEAD_HASH		17
#define PENDING_MAX		4096

/* ------------------------- The device ------------------------- */

struct pending {
	u64 sector;
	u8 data[SECTOR];
};

/*
 * is_dead: power is cut, or the machine killed: nothing arrives any more.
 * crash_at, fail_at: the I/O that this happens at, or that fails; 0: none.
 * is_out: no write and no flush succeeds, for now.
 * unreadable: sector that cannot be read for the rest of a life; 0: none.
 * unwritable: writes that begin at this sector fail, if it is not 0.
 */
static struct {
	u8 durable[DEVICE_SECTORS][SECTOR];
	struct pending pending[PENDING_MAX];
	unsigned int nr_pending;
	bool is_dead;
	bool is_out;
	bool has_failed;
	unsigned long count;
	unsigned long crash_at;
	unsigned long fail_at;
	u64 unreadable;
	u64 unwritable;
} device;

/* ------------------------- What is true ------------------------- */

/*
 * What may be on the device: it must be there, may be there, must not be there. An
 * invalid one need not say what is true.
 */
enum presence {
	NONE,
	PRESENT,
	UNSURE,
	ABSENT,
};

/*
 * changed: written for certain since. touched: asked for, or reported by an earlier
 * recovery.
 */
struct point {
	enum presence presence;
	bool is_invalid;
	struct fleece_moment moment;
	bool changed[GRANULES_MAX];
	bool touched[GRANULES_MAX];
};

struct live_write {
	struct list_head node;
	bool is_used;
	u64 first;
	u64 last;
};

static struct point points[POINTS];
static struct live_write writes[WRITES];
static struct fleece_tracker tracker;
static struct fleece_metadata *md;
static struct fleece_history held;
static bool is_kicked;
static bool may_write;
/* A settle was asked to end early. */
static bool is_hurried;
static u64 capacity;
static u64 nr_sectors;
static u32 region_granules;
static struct fleece_md_layout layout;
/* Number of settles that were completed, and that number when a region was asked for last. */
static unsigned int nr_settles;
static unsigned int asked_at[REGIONS_MAX];
static u64 hot_granule;
static bool was_closed;

/* What the random life has met, so that a case can be sure that it is worth something. */
static struct {
	unsigned int crashes, kills, failures, fallbacks, refusals, waits, excess, deletes, creates;
	unsigned int granted, shorter;
} met;

/* ------------------------- Live writes ------------------------- */

static void note_asked(u64 first, u64 last)
{
	unsigned int i;
	u64 g;

	for (g = first; g <= last; g++) {
		asked_at[g / region_granules] = nr_settles;
		for (i = 0; i < POINTS; i++)
			points[i].touched[g] = true;
	}
}

static void note_written(u64 first, u64 last)
{
	unsigned int i;
	u64 g;

	for (i = 0; i < POINTS; i++) {
		for (g = first; g <= last; g++)
			points[i].changed[g] = true;
	}
}

static void begin_write(struct live_write *write)
{
	unsigned long *live = tracker.live ? tracker.live->bits : NULL;

	for (;;) {
		note_asked(write->first, write->last);
		if (device.is_dead || fleece_metadata_mark(md, live, write->first, write->last))
			break;
		met.waits++;
		/* Some must not wait. */
		if (unit_chance(20)) {
			write->is_used = false;
			return;
		}
		if (fleece_metadata_wait(md, write->first, write->last, &write->node))
			return;
	}
	if (!device.is_dead)
		note_written(write->first, write->last);
	write->is_used = false;
}

static void new_write(void)
{
	u64 length = 1 + unit_random(unit_chance(8) ? 40 : 2);
	struct live_write *write = NULL;
	unsigned int i;

	for (i = 0; i < WRITES; i++) {
		if (!writes[i].is_used)
			write = &writes[i];
	}
	if (!write)
		return;
	write->is_used = true;
	if (unit_chance(30))
		hot_granule = unit_random(tracker.nr_granules);
	write->first = unit_chance(3) ? unit_random(tracker.nr_granules) :
		       (hot_granule + unit_random(30)) % tracker.nr_granules;
	write->last = min(write->first + length, tracker.nr_granules) - 1;
	begin_write(write);
}

static void switch_segment(const char *name)
{
	struct fleece_segment *segment = fleece_segment_alloc(tracker.nr_granules);

	require(segment, "memory");
	fleece_tracker_switch(&tracker, segment, name);
}

/* Others are at work while the protocol waits. A snapshot ends a segment, too. */
static void let_others_run(void)
{
	if (!may_write || device.is_dead)
		return;
	while (!unit_chance(3))
		new_write();
	if (unit_chance(40) && tracker.live) {
		switch_segment(NULL);
		fleece_tracker_compact(&tracker, NULL);
	}
}

/* ------------------------- The owner's functions ------------------------- */

/* Returns true if this I/O must not be done. */
static bool io_ends(void)
{
	device.count++;
	if (device.count == device.crash_at)
		device.is_dead = true;
	if (device.count == device.fail_at) {
		device.has_failed = true;
		return true;
	}
	if (device.is_out)
		device.has_failed = true;
	return device.is_dead || device.is_out;
}

static int device_read(void *context, u64 sector, void *data, unsigned int count)
{
	unsigned int i;
	u8 *to = data;

	(void)context;
	require(sector + count <= DEVICE_SECTORS, "read of sector %llu", sector);
	if (device.unreadable && device.unreadable >= sector && device.unreadable < sector + count)
		return -EIO;
	memcpy(data, device.durable[sector], count * SECTOR);
	for (i = 0; i < device.nr_pending; i++) {
		if (device.pending[i].sector >= sector && device.pending[i].sector < sector + count)
			memcpy(to + (device.pending[i].sector - sector) * SECTOR,
			       device.pending[i].data, SECTOR);
	}
	return 0;
}

static void check_write(u64 sector, unsigned int count)
{
	unsigned int i;

	require(sector % 8 == 0 && count % 8 == 0 && count, "not in blocks");
	require(sector + count <= DEVICE_SECTORS, "write of sector %llu", sector);
	/* After a failed flush it is not known what has been written. */
	for (i = 0; i < device.nr_pending && !device.has_failed && !device.is_dead; i++)
		require(device.pending[i].sector < sector ||
			device.pending[i].sector >= sector + count,
			"sector %llu is written twice without a flush", device.pending[i].sector);
}

static int device_write(void *context, u64 sector, const void *data, unsigned int count)
{
	const u8 *from = data;
	struct pending *pending;
	unsigned int i;

	(void)context;
	check_write(sector, count);
	let_others_run();
	if (io_ends())
		return -EIO;
	if (device.unwritable && sector == device.unwritable) {
		device.has_failed = true;
		return -EIO;
	}
	for (i = 0; i < count; i++) {
		require(device.nr_pending < PENDING_MAX, "too much is pending");
		pending = &device.pending[device.nr_pending++];
		pending->sector = sector + i;
		memcpy(pending->data, from + i * SECTOR, SECTOR);
	}
	return 0;
}

static void make_durable(const struct pending *pending)
{
	memcpy(device.durable[pending->sector], pending->data, SECTOR);
}

static int device_flush(void *context)
{
	unsigned int i;

	(void)context;
	let_others_run();
	if (io_ends())
		return -EIO;
	for (i = 0; i < device.nr_pending; i++)
		make_durable(&device.pending[i]);
	device.nr_pending = 0;
	let_others_run();
	return 0;
}

static int owner_since(void *context, const char *name, struct fleece_view *view)
{
	(void)context;
	if (may_write && unit_chance(25))
		return unit_chance(2) ? -ENOMEM : -EBUSY;
	require(!fleece_history_get(&held, &tracker, GFP_KERNEL), "history");
	require(!fleece_history_since(&held, name, view), "no checkpoint %s", name);
	return 0;
}

static void owner_done(void *context)
{
	(void)context;
	fleece_history_put(&held);
}

static void owner_kick(void *context)
{
	(void)context;
	is_kicked = true;
}

static bool owner_is_wanted(void *context)
{
	(void)context;
	if (!may_write || !unit_chance(50))
		return false;
	is_hurried = true;
	return true;
}

static void owner_resume(void *context, struct list_head *waiters)
{
	struct live_write *write;
	struct live_write *next;

	(void)context;
	list_for_each_entry_safe(write, next, waiters, node)
		begin_write(write);
}

static const struct fleece_metadata_io io = {
	.read = device_read,
	.write = device_write,
	.flush = device_flush,
	.since = owner_since,
	.done = owner_done,
	.kick = owner_kick,
	.is_wanted = owner_is_wanted,
	.resume = owner_resume,
};

/* ------------------------- The device: making and breaking ------------------------- */

static void format_map(const struct fleece_md_root *root, u64 start, u64 count)
{
	u64 sector;

	for (sector = start; sector < start + count; sector++) {
		memset(device.durable[sector], 0, SECTOR);
		fleece_md_seal(root->uuid, sector, 0, device.durable[sector]);
	}
}

static void format_device(bool is_full)
{
	static struct fleece_md_root root;
	static u8 copy[FLEECE_MD_COPY_BYTES];
	uuid_t uuid;

	memset(&device, 0, sizeof(device));
	memset(points, 0, sizeof(points));
	memset(&root, 0, sizeof(root));
	uuid_gen(&uuid);
	memcpy(root.uuid, &uuid, sizeof(root.uuid));
	region_granules = 1 << unit_random(5);
	capacity = (unit_chance(4) ? GRANULES_MAX : GRANULES_FEW) * GRANULE_SECTORS;
	nr_sectors = is_full ? capacity : 1 + unit_random(capacity);
	root.state = FLEECE_MD_CLEAN;
	root.generation = 1;
	root.base = 1;
	root.next_segment = 1;
	root.origin_sectors = nr_sectors;
	root.capacity_sectors = capacity;
	root.granule_sectors = GRANULE_SECTORS;
	root.region_sectors = GRANULE_SECTORS * region_granules;
	root.nr_slots = SLOTS;
	fleece_md_layout(&root, &layout);
	require(layout.nr_sectors <= DEVICE_SECTORS, "%llu sectors", layout.nr_sectors);
	format_map(&root, FLEECE_MD_INTENTS_START, layout.nr_sectors - FLEECE_MD_INTENTS_START);
	fleece_md_encode(&root, copy);
	memcpy(device.durable[FLEECE_MD_COPY_DISTANCE], copy, sizeof(copy));
}

/* Superblock and table, intents, or fine bits. */
static unsigned int area_of(u64 sector)
{
	return (sector >= FLEECE_MD_INTENTS_START) + (sector >= layout.slots_start);
}

/* All of the cache that is of one of some areas, a bit for each, has arrived, the rest is lost. */
static void lose_areas(unsigned int areas)
{
	unsigned int i;

	for (i = 0; i < device.nr_pending; i++) {
		if (areas >> area_of(device.pending[i].sector) & 1)
			make_durable(&device.pending[i]);
	}
	device.nr_pending = 0;
}

/*
 * The cache is lost: each sector in it has arrived or not. By chance, or all those of
 * an area have and none of another.
 */
static void lose_cache(void)
{
	unsigned int odds = unit_random(5);
	unsigned int i;

	if (unit_chance(2)) {
		lose_areas(unit_random(8));
		return;
	}
	for (i = 0; i < device.nr_pending; i++) {
		if (unit_random(4) < odds)
			make_durable(&device.pending[i]);
	}
	device.nr_pending = 0;
}

/* ------------------------- Lives ------------------------- */

static struct point *find_point(const void *uuid)
{
	unsigned int i;

	for (i = 0; i < POINTS; i++) {
		if (points[i].presence != NONE &&
		    !memcmp(&points[i].moment.uuid, uuid, FLEECE_MD_UUID_BYTES))
			return &points[i];
	}
	return NULL;
}

/* What comes in between must not confuse it; nor that it has to be asked twice. */
static int finish_creating(const struct fleece_md_checkpoint *checkpoint)
{
	int ret;

	do {
		let_others_run();
		if (unit_chance(2))
			require(fleece_metadata_settle(md) == md->error, "settle in create");
		if (unit_chance(2))
			fleece_metadata_grant(md);
		ret = fleece_metadata_create(md, checkpoint);
	} while (ret == -EBUSY);
	return ret;
}

static void create_checkpoint(void)
{
	struct fleece_md_checkpoint checkpoint = { };
	static unsigned int number;
	struct point *point = &points[unit_random(POINTS)];

	if (point->presence == PRESENT || point->presence == UNSURE)
		return;
	if (fleece_metadata_begin_create(md))
		return;
	if (unit_chance(10)) {
		fleece_metadata_abort_create(md);
		return;
	}
	snprintf(checkpoint.name, sizeof(checkpoint.name), "cp%u", number++);
	switch_segment(checkpoint.name);
	memset(point, 0, sizeof(*point));
	point->presence = UNSURE;
	point->moment = tracker.live->start;
	memcpy(checkpoint.uuid, &point->moment.uuid, sizeof(checkpoint.uuid));
	if (!finish_creating(&checkpoint)) {
		point->presence = PRESENT;
		met.creates++;
		return;
	}
	/* Without a failure it was not even begun. */
	if (!md->error)
		point->presence = ABSENT;
	require(!fleece_tracker_delete(&tracker, checkpoint.name), "take back");
}

static void delete_checkpoint(void)
{
	struct point *point = &points[unit_random(POINTS)];

	if (point->presence != PRESENT)
		return;
	point->presence = UNSURE;
	if (!fleece_metadata_delete(md, point->moment.name)) {
		point->presence = ABSENT;
		met.deletes++;
		require(!fleece_tracker_delete(&tracker, point->moment.name), "delete");
	} else if (!md->error) {
		point->presence = PRESENT;
	}
}

static void forget_points(void)
{
	memset(points, 0, sizeof(points));
}

/*
 * What is gained is changed since all. A granule that was there in part counts too, but
 * only if the growth is recorded.
 */
static void note_gained(u64 old_sectors, bool is_recorded)
{
	u64 first = old_sectors / GRANULE_SECTORS;
	u64 last = (nr_sectors - 1) / GRANULE_SECTORS;

	note_asked(first, last);
	if (!is_recorded)
		first = (old_sectors - 1) / GRANULE_SECTORS + 1;
	if (first <= last)
		note_written(first, last);
}

/* None comes any more, and whoever waits is served. */
static void suspend(void)
{
	may_write = false;
	while (!list_empty(&md->waiting))
		fleece_metadata_grant(md);
}

static void resize_origin(void)
{
	u64 old = nr_sectors;
	u64 size = 1 + unit_random(capacity);
	bool is_recorded;

	suspend();
	if (size > old)
		require(!fleece_tracker_resize(&tracker, size), "growing");
	is_recorded = !fleece_metadata_resize(md, size);
	if (is_recorded || size > old)
		nr_sectors = size;
	if (size > old)
		note_gained(old, is_recorded);
	else if (nr_sectors == size)
		require(!fleece_tracker_resize(&tracker, size), "shrinking");
	else
		/* Perhaps it says so on the device: then this is gained again. */
		note_asked(size / GRANULE_SECTORS, (old - 1) / GRANULE_SECTORS);
	may_write = true;
}

static void settle(void)
{
	unsigned int i;

	is_hurried = false;
	if (fleece_metadata_settle(md) || is_hurried)
		return;
	nr_settles++;
	/* Asked for, but not yet granted. */
	for (i = 0; i < md->layout.nr_regions; i++) {
		if (test_bit(i, md->wanted))
			asked_at[i] = nr_settles;
	}
}

static void step(void)
{
	unsigned int count;

	switch (unit_random(40)) {
	case 0:
	case 1:
	case 2:
		create_checkpoint();
		break;
	case 3:
	case 4:
		delete_checkpoint();
		break;
	case 5:
		resize_origin();
		break;
	case 6 ... 12:
		settle();
		break;
	default:
		for (count = unit_random(10); count; count--)
			new_write();
	}
	if (is_kicked && !unit_chance(3)) {
		is_kicked = false;
		fleece_metadata_grant(md);
	}
}

/* ------------------------- Opening and judging ------------------------- */

static void judge_point(const struct fleece_md_checkpoint *checkpoint, struct point *point,
			bool is_exact)
{
	struct fleece_view view;
	bool value;
	u64 g;

	if (checkpoint->is_invalid || point->is_invalid) {
		require(checkpoint->is_invalid, "%s is valid again", checkpoint->name);
		point->is_invalid = true;
		return;
	}
	require(!fleece_history_get(&held, &tracker, GFP_KERNEL), "history");
	require(!fleece_history_since(&held, checkpoint->name, &view), "since");
	for (g = 0; g < tracker.nr_granules; g++) {
		value = fleece_bits_any(&view, g, g);
		require(value || !point->changed[g], "%s: granule %llu is missing",
			checkpoint->name, g);
		if (value && !point->touched[g]) {
			require(!is_exact || test_bit(g / region_granules, md->written),
				"%s: granule %llu is too much", checkpoint->name, g);
			met.excess++;
		}
		point->touched[g] |= value;
	}
	fleece_history_put(&held);
}

/* Exactly the checkpoints that were there, if nothing was damaged. */
static void judge(bool is_exact)
{
	bool is_found[POINTS] = { };
	struct point *point;
	unsigned int i;

	for (i = 0; i < md->root.nr_checkpoints; i++) {
		point = find_point(md->root.checkpoints[i].uuid);
		/* The older copy may have one that was deleted, and that we have forgotten. */
		require(point || !is_exact, "%s was never there", md->root.checkpoints[i].name);
		if (!point)
			continue;
		require(!is_exact || point->presence != ABSENT, "%s was deleted",
			md->root.checkpoints[i].name);
		is_found[point - points] = true;
		judge_point(&md->root.checkpoints[i], point, is_exact);
		point->presence = PRESENT;
	}
	for (i = 0; i < POINTS; i++) {
		if (is_found[i])
			continue;
		require(!is_exact || points[i].presence != PRESENT, "%s is gone",
			points[i].moment.name);
		points[i].presence = NONE;
	}
	require(!is_exact || !was_closed || !md->nr_granted, "intents after a clean end");
	was_closed = false;
	for (i = 0; is_exact && i < md->layout.nr_regions; i++) {
		if (!test_bit(i, md->written))
			continue;
		met.granted++;
		/* Asked for during the last settle but one, it may have come too late for it. */
		require(asked_at[i] + 2 >= nr_settles, "region %u still has its intent", i);
	}
}

static void load_all(void)
{
	const struct fleece_md_checkpoint *checkpoint;
	struct fleece_segment *segment;
	struct fleece_moment moment;
	u32 i;

	fleece_tracker_init(&tracker, nr_sectors, GRANULE_SECTORS);
	for (i = 0; i < md->root.nr_checkpoints; i++) {
		checkpoint = &md->root.checkpoints[i];
		segment = fleece_segment_alloc(tracker.nr_granules);
		require(segment, "memory");
		fleece_metadata_load(md, i, segment->bits);
		memset(&moment, 0, sizeof(moment));
		snprintf(moment.name, sizeof(moment.name), "%s", checkpoint->name);
		memcpy(&moment.uuid, checkpoint->uuid, FLEECE_MD_UUID_BYTES);
		fleece_tracker_restore(&tracker, segment, &moment);
	}
}

static struct fleece_metadata_origin sample_origin(void)
{
	return (struct fleece_metadata_origin){
		.nr_sectors = nr_sectors, .granule_sectors = GRANULE_SECTORS,
		.device_sectors = layout.nr_sectors, .has_head_hash = true, .head_hash = HEAD_HASH,
	};
}

/* Returns an errno of the opening. */
static int open_for(const struct fleece_metadata_origin *origin)
{
	const char *error = NULL;
	int ret;

	may_write = false;
	device.is_dead = false;
	device.has_failed = false;
	device.crash_at = 0;
	device.fail_at = 0;
	ret = fleece_metadata_open(&io, NULL, origin, &md, &error);
	require(!ret || error, "no reason for errno %d", -ret);
	if (ret)
		return ret;
	load_all();
	return 0;
}

/* Or 0, if there is nothing that can be read. */
static u64 recorded_sectors(void)
{
	static u8 copy[FLEECE_MD_COPY_BYTES];
	static struct fleece_md_root roots[2];
	u64 generations[2];
	const char *error;
	int results[2];
	int i;

	for (i = 0; i < 2; i++) {
		results[i] = device_read(NULL, fleece_md_copy_start(i), copy,
					 FLEECE_MD_COPY_SECTORS);
		if (!results[i])
			results[i] = fleece_md_decode(copy, i, &roots[i], &error);
		generations[i] = roots[i].generation;
	}
	i = fleece_md_choose(results, generations);
	return i < 0 ? 0 : roots[i].origin_sectors;
}

/* For a growth that did not get as far as here, the refusal says what to do. */
static int open_device(void)
{
	struct fleece_metadata_origin origin = sample_origin();
	int ret = open_for(&origin);
	u64 recorded = recorded_sectors();

	if (ret != -EINVAL || recorded >= nr_sectors)
		return ret;
	met.shorter++;
	nr_sectors = recorded;
	origin.nr_sectors = recorded;
	return open_for(&origin);
}

static void end_life(void)
{
	memset(writes, 0, sizeof(writes));
	fleece_metadata_free(md);
	fleece_tracker_exit(&tracker);
	md = NULL;
}

/* Begin after opening; may be cut short, too. Returns true if it has succeeded. */
static bool start(void)
{
	unsigned int i;

	device.count = 0;
	device.crash_at = unit_chance(10) ? 1 + unit_random(12) : 0;
	device.fail_at = 0;
	if (fleece_metadata_start(md)) {
		require(device.is_dead, "start fails");
		return false;
	}
	for (i = 0; i < md->layout.nr_regions; i++) {
		if (test_bit(i, md->written))
			asked_at[i] = nr_settles;
	}
	may_write = true;
	return true;
}

/* Power cut, kill, or a clean end. */
static void end(bool may_close)
{
	if (may_close && !device.is_dead && unit_chance(4)) {
		suspend();
		was_closed = !fleece_metadata_close(md, true, HEAD_HASH);
		require(was_closed || md->error || device.is_dead, "close");
	}
	may_write = false;
	device.unreadable = 0;
	device.is_dead = true;
	if (unit_chance(4)) {
		met.kills++;
	} else {
		met.crashes++;
		lose_cache();
	}
	end_life();
}

static void live(unsigned int steps)
{
	device.count = 0;
	device.crash_at = unit_chance(3) ? 0 : 1 + unit_random(400);
	while (steps-- && !device.is_dead)
		step();
}

static void begin_with(bool is_full)
{
	format_device(is_full);
	nr_settles = 1;
	memset(asked_at, 0, sizeof(asked_at));
	is_kicked = false;
	was_closed = false;
}

static void begin_anew(void)
{
	begin_with(false);
}

/* ------------------------- Cases ------------------------- */

static void test_crashes(void)
{
	unsigned int lives, i;

	memset(&met, 0, sizeof(met));
	for (lives = 0; lives < 60; lives++) {
		begin_anew();
		for (i = 0; i < 25; i++) {
			require(!open_device(), "cannot be opened");
			judge(true);
			if (start())
				live(1 + unit_random(120));
			end(true);
		}
	}
	printf("# %u power cuts, %u kills, %u created, %u deleted, %u waits, %u granules too many, %u intents\n",
	       met.crashes, met.kills, met.creates, met.deletes, met.waits, met.excess,
	       met.granted);
	require(met.crashes > 500 && met.kills > 100 && met.creates > 500 && met.deletes > 200 &&
		met.waits > 1000 && met.excess > 100 && met.shorter, "nothing much has happened");
}

/* Of one life, each I/O is the last one once. */
static void test_every_crash(void)
{
	unsigned long crash_at;
	unsigned int steps;
	bool is_over = false;

	memset(&met, 0, sizeof(met));
	for (crash_at = 1; !is_over; crash_at++) {
		begin_anew();
		require(!open_device(), "cannot be opened");
		device.count = 0;
		device.crash_at = crash_at;
		device.fail_at = 0;
		if (!fleece_metadata_start(md)) {
			may_write = true;
			for (steps = 0; steps < 60 && !device.is_dead; steps++)
				step();
		}
		is_over = !device.is_dead && crash_at > 300;
		end(true);
		require(!open_device(), "cannot be opened after %lu", crash_at);
		judge(true);
		require(start() || device.is_dead, "start");
		end(false);
	}
}

/* One write or flush fails, and the next ones may succeed. */
static void test_failures(void)
{
	unsigned int marks, i, k;
	bool is_marked;

	memset(&met, 0, sizeof(met));
	for (i = 0; i < 500; i++) {
		begin_anew();
		require(!open_device(), "cannot be opened");
		if (!start()) {
			end(false);
			continue;
		}
		device.count = 0;
		device.crash_at = unit_chance(2) ? 1 + unit_random(200) : 0;
		device.fail_at = 1 + unit_random(100);
		for (k = 0; k < 150 && !device.is_dead; k++)
			step();
		/* Live writes are let go only when the mark is there, or not to be had. */
		marks = md->error ? md->marks : 0;
		is_marked = marks;
		require(!md->error || device.is_dead || marks == FLEECE_METADATA_MARKED,
			"marks %x", marks);
		require(!md->error || list_empty(&md->waiting), "somebody waits for ever");
		met.failures += is_marked;
		end(true);
		if (marks == FLEECE_METADATA_MARKED && unit_chance(2))
			memset(device.durable[unit_random(2) * FLEECE_MD_COPY_DISTANCE], 0, SECTOR);
		require(!open_device(), "cannot be opened after a failure");
		for (k = 0; k < md->root.nr_checkpoints; k++)
			require(!is_marked || md->root.checkpoints[k].is_invalid, "%s is valid",
				md->root.checkpoints[k].name);
		judge(!is_marked && md->root.state != FLEECE_MD_INVALID);
		if (start())
			live(30);
		end(true);
		require(!open_device(), "cannot be opened the next time");
		judge(md->root.state != FLEECE_MD_INVALID && !is_marked);
		end(false);
	}
	require(met.failures > 100, "%u failures", met.failures);
}

/* One sector is damaged, or several, of one kind. */
static void damage(void)
{
	u64 sector;
	u8 *byte;

	switch (unit_random(3)) {
	case 0:
		sector = unit_random(2) * FLEECE_MD_COPY_DISTANCE + unit_random(2);
		break;
	case 1:
		sector = FLEECE_MD_INTENTS_START + unit_random(3);
		break;
	default:
		sector = layout.slots_start + unit_random(SLOTS * layout.slot_sectors);
	}
	/* It may be readable again the next time. */
	if (unit_chance(3)) {
		device.unreadable = sector;
		return;
	}
	byte = &device.durable[sector][unit_random(SECTOR)];
	*byte ^= 1 << unit_random(8);
	if (unit_chance(2))
		memset(device.durable[sector], 0, SECTOR);
}

static void test_damage(void)
{
	unsigned int lives, i;
	u64 generation = 0;

	memset(&met, 0, sizeof(met));
	for (lives = 0; lives < 150; lives++) {
		begin_anew();
		for (i = 0; i < 10; i++) {
			if (open_device()) {
				/* Both superblocks, or a size that was lost with one of them. */
				met.refusals++;
				break;
			}
			met.fallbacks += md->root.generation < generation;
			judge(false);
			if (start())
				live(1 + unit_random(60));
			generation = md->root.generation;
			end(true);
			if (unit_chance(2))
				damage();
		}
		forget_points();
	}
	printf("# %u older copies, %u refusals\n", met.fallbacks, met.refusals);
	require(met.fallbacks > 50, "%u older copies", met.fallbacks);
}

/* ------------------------- Single rules ------------------------- */

static void begin_quietly(void)
{
	begin_with(true);
	require(!open_device(), "cannot be opened");
	device.crash_at = 0;
	require(!fleece_metadata_start(md), "start");
}

static void create_named(const char *name)
{
	struct fleece_md_checkpoint checkpoint = { };

	require(!fleece_metadata_begin_create(md), "begin");
	snprintf(checkpoint.name, sizeof(checkpoint.name), "%s", name);
	switch_segment(name);
	memcpy(checkpoint.uuid, &tracker.live->start.uuid, sizeof(checkpoint.uuid));
	require(!fleece_metadata_create(md, &checkpoint), "create");
}

/* A write that may wait once. */
static void write_granules(u64 first, u64 last)
{
	if (fleece_metadata_mark(md, tracker.live->bits, first, last))
		return;
	fleece_metadata_grant(md);
	require(fleece_metadata_mark(md, tracker.live->bits, first, last), "no intent");
}

static void test_hot(void)
{
	u64 blocks;
	int i;

	begin_quietly();
	create_named("one");
	write_granules(100, 131);
	require(md->nr_granted == 32 / region_granules + !!(100 % region_granules), "%llu intents",
		md->nr_granted);
	require(!fleece_metadata_settle(md) && !fleece_metadata_settle(md) &&
		!fleece_metadata_settle(md), "settle");
	require(!md->nr_granted, "an intent is left");
	blocks = md->nr_blocks;
	for (i = 0; i < 1000; i++) {
		write_granules(100 + i % 32, 100 + i % 32);
		require(!fleece_metadata_settle(md), "settle");
	}
	require(md->nr_blocks == blocks, "%llu blocks for writes to hot granules",
		md->nr_blocks - blocks);
	/* A thousand cold writes that wait together cost one grant, of one block. */
	for (i = 200; i < 1200; i++)
		require(!fleece_metadata_mark(md, tracker.live->bits, i, i), "granule %d", i);
	fleece_metadata_grant(md);
	require(md->nr_blocks == blocks + 1 && md->nr_grants == 2, "%llu blocks, %llu grants",
		md->nr_blocks - blocks, md->nr_grants);
	device.is_dead = true;
	end_life();
}

/* Of the blocks of intents, only those are looked at that are asked for, and all of them. */
static void test_asked(void)
{
	const u64 far = 2 * FLEECE_MD_BLOCK_SECTORS * FLEECE_MD_MAP_BITS + 5;
	u64 blocks;

	do {
		begin_quietly();
		if (region_granules > 1 || capacity / GRANULE_SECTORS <= far)
			end_life();
	} while (!md);
	create_named("one");
	blocks = md->nr_blocks;
	require(!fleece_metadata_mark(md, tracker.live->bits, 3, 3), "no intent is needed");
	require(!fleece_metadata_mark(md, tracker.live->bits, far, far + 1), "nor far away");
	fleece_metadata_grant(md);
	require(md->nr_grants == 1 && md->nr_blocks == blocks + 2, "%llu grants, %llu blocks",
		md->nr_grants, md->nr_blocks - blocks);
	require(md->nr_granted == 3 && fleece_metadata_mark(md, tracker.live->bits, 3, 3) &&
		fleece_metadata_mark(md, tracker.live->bits, far, far + 1), "%llu are granted",
		md->nr_granted);
	require(!fleece_metadata_mark(md, tracker.live->bits, far + 2, far + 2), "not asked for");
	fleece_metadata_grant(md);
	require(md->nr_grants == 2 && md->nr_blocks == blocks + 3 && md->nr_granted == 4,
		"%llu grants, %llu blocks, %llu granted", md->nr_grants, md->nr_blocks - blocks,
		md->nr_granted);
	fleece_metadata_grant(md);
	require(md->nr_grants == 2 && md->nr_blocks == blocks + 3, "a grant of nothing");
	device.is_dead = true;
	end_life();
}

/*
 * A write, and settles while nothing else happens, so that nobody else flushes. Returns
 * false if they were all done before the I/O at which the power is cut.
 */
static bool settle_and_crash(unsigned long crash_at)
{
	begin_quietly();
	create_named("one");
	write_granules(100, 100);
	device.count = 0;
	device.crash_at = crash_at;
	while (md->nr_granted && !device.is_dead)
		fleece_metadata_settle(md);
	return device.is_dead;
}

/* What the device has kept of its cache is all of some areas, and nothing of the others. */
static void test_settle(void)
{
	unsigned long crash_at = 1;
	unsigned int areas;
	bool is_over;

	do {
		for (areas = 0; areas < 8; areas++) {
			is_over = !settle_and_crash(crash_at);
			lose_areas(areas);
			device.is_dead = true;
			end_life();
			require(!open_device(), "cannot be opened");
			require(test_bit(100, tracker.live->bits),
				"the write is missing after a cut at I/O %lu, areas %u", crash_at,
				areas);
			end_life();
		}
		crash_at++;
	} while (!is_over);
	require(crash_at > 5, "only %lu", crash_at);
}

/* An outage longer than the failure, and no clean end afterwards. */
static void test_outage(void)
{
	begin_quietly();
	create_named("one");
	device.is_out = true;
	require(!fleece_metadata_mark(md, tracker.live->bits, 100, 100), "no intent is needed");
	fleece_metadata_grant(md);
	require(md->error && !md->marks, "no failure");
	require(fleece_metadata_settle(md) == md->error && !md->marks, "settle in the outage");
	device.is_out = false;
	require(fleece_metadata_settle(md) == md->error, "settle");
	require(md->marks == FLEECE_METADATA_MARKED, "marks %x", md->marks);
	device.is_dead = true;
	lose_cache();
	end_life();
	require(!open_device() && md->root.checkpoints[0].is_invalid, "valid after an outage");
	end_life();
}

static u8 *copy_at(u64 generation)
{
	return device.durable[fleece_md_copy_start(generation)];
}

static void crash(void)
{
	device.is_dead = true;
	device.nr_pending = 0;
	end_life();
}

/* One place cannot be written: the other one has the only mark, and keeps it untouched. */
static void test_one_mark(void)
{
	u64 odd = fleece_md_copy_start(1);
	u8 mark[SECTOR];
	unsigned int i;

	begin_quietly();
	create_named("one");
	device.unwritable = odd;
	require(!fleece_metadata_mark(md, tracker.live->bits, 100, 100), "no intent is needed");
	fleece_metadata_fail(md, -EIO);
	require(md->marks == 1, "marks %x", md->marks);
	memcpy(mark, copy_at(0), SECTOR);
	for (i = 0; i < 3; i++)
		require(fleece_metadata_settle(md) == -EIO && md->marks == 1, "marks %x",
			md->marks);
	require(!memcmp(mark, copy_at(0), SECTOR), "the only mark was written again");
	crash();

	/* Nor does the next start. Its session knows as well that they are invalid. */
	require(!open_device() && md->root.checkpoints[0].is_invalid && md->marks == 1, "open");
	while (fleece_md_copy_start(md->root.generation + 1) != odd)
		md->root.generation++;
	require(fleece_metadata_start(md) == -EIO && md->marks == 1, "marks %x", md->marks);
	require(!memcmp(mark, copy_at(0), SECTOR), "the only mark was written at the start");
	device.unwritable = 0;
	require(fleece_metadata_settle(md) == -EIO && md->marks == FLEECE_METADATA_MARKED,
		"marks %x", md->marks);
	require(!memcmp(mark, copy_at(0), SECTOR), "the first mark was written with the second");
	crash();
	require(!open_device() && md->root.checkpoints[0].is_invalid, "valid");
	end_life();
}

/* A start that cannot be written: the session before may have been such a one. */
static void test_silent_session(void)
{
	begin_quietly();
	create_named("one");
	crash();
	require(!open_device() && !md->root.checkpoints[0].is_invalid, "open");
	device.is_out = true;
	require(fleece_metadata_start(md) && md->root.checkpoints[0].is_invalid, "valid");
	device.is_out = false;
	crash();
}

/* The newest copy goes bad: what the one before must not say, it does not. */
static void test_both_copies(void)
{
	begin_quietly();
	create_named("one");
	create_named("two");
	require(!fleece_metadata_delete(md, "two") && !fleece_tracker_delete(&tracker, "two"),
		"delete");
	memset(copy_at(md->root.generation), 0, SECTOR);
	crash();
	require(!open_device() && md->root.nr_checkpoints == 1, "the deleted one is back");
	md->root.checkpoints[0].is_invalid = true;
	require(!fleece_metadata_start(md), "start");
	memset(copy_at(md->root.generation), 0, SECTOR);
	crash();
	require(!open_device() && md->root.checkpoints[0].is_invalid, "the invalid one is valid");
	crash();
}

static void test_limits(void)
{
	char name[16];
	int i;

	begin_quietly();
	for (i = 0; i < SLOTS; i++) {
		snprintf(name, sizeof(name), "cp%d", i);
		create_named(name);
	}
	require(fleece_metadata_begin_create(md) == -ENOSPC, "a sixth one of five");
	require(fleece_metadata_delete(md, "cp9") == -ENOENT, "delete what is not there");
	require(!fleece_metadata_delete(md, "cp2") && !fleece_tracker_delete(&tracker, "cp2"),
		"delete");
	create_named("again");
	require(md->root.checkpoints[4].slot == 2, "slot %u", md->root.checkpoints[4].slot);
	require(fleece_metadata_resize(md, nr_sectors + 1) == -ENOSPC && !md->error, "too large");
	md->root.generation = FLEECE_MD_NUMBER_MAX;
	require(fleece_metadata_delete(md, "cp0") == -EOVERFLOW && md->error, "generations");
	end_life();
}

/* Close, and open for an origin that is not quite the same. */
static void test_other_origins(void)
{
	struct fleece_metadata_origin origin;

	begin_quietly();
	require(!fleece_metadata_resize(md, 8000), "shrink");
	require(!fleece_tracker_resize(&tracker, 8000), "shrink");
	nr_sectors = 8000;
	create_named("one");
	require(!fleece_metadata_close(md, true, HEAD_HASH), "close");
	end_life();

	origin = sample_origin();
	origin.granule_sectors *= 2;
	require(open_for(&origin) == -EINVAL, "another granularity");
	origin = sample_origin();
	origin.nr_sectors--;
	require(open_for(&origin) == -EINVAL, "smaller");
	origin.nr_sectors += 2;
	require(open_for(&origin) == -EINVAL, "larger");
	origin = sample_origin();
	origin.device_sectors--;
	require(open_for(&origin) == -ENOSPC, "too small a device");
	origin.device_sectors = 100;
	require(open_for(&origin) == -ENOSPC, "too small for anything");

	origin = sample_origin();
	require(!open_for(&origin) && !md->root.checkpoints[0].is_invalid, "the same head");
	end_life();
	origin.has_head_hash = false;
	require(!open_for(&origin) && md->root.checkpoints[0].is_invalid, "no head");
	end_life();
	origin.has_head_hash = true;
	origin.head_hash = HEAD_HASH + 1;
	require(!open_for(&origin) && md->root.checkpoints[0].is_invalid, "another head");
	require(!fleece_metadata_start(md), "start");
	end_life();
	origin.head_hash = HEAD_HASH;
	require(!open_for(&origin) && md->root.checkpoints[0].is_invalid, "valid again");
	end_life();
}

static void test_memory(void)
{
	struct fleece_metadata_origin origin = sample_origin();
	const char *error;
	unsigned int nth = 0;
	int ret;

	begin_anew();
	origin = sample_origin();
	do {
		unit_fail_allocation(++nth);
		error = NULL;
		ret = fleece_metadata_open(&io, NULL, &origin, &md, &error);
		require(!ret || (ret == -ENOMEM && error), "errno %d", -ret);
	} while (ret);
	unit_fail_allocation(0);
	require(nth > 8, "only %u allocations", nth);
	end_life();
}

static const struct unit_case cases[] = {
	{ "metadata: power cuts, kills and clean ends in random lives", test_crashes },
	{ "metadata: a crash at every single I/O", test_every_crash },
	{ "metadata: a write or a flush fails", test_failures },
	{ "metadata: the mark of failure is made when an outage ends", test_outage },
	{ "metadata: the only mark of failure is left alone", test_one_mark },
	{ "metadata: a start that fails trusts no checkpoint", test_silent_session },
	{ "metadata: both copies say what one alone must not deny", test_both_copies },
	{ "metadata: writes to hot granules cost nothing, cold ones share a grant", test_hot },
	{ "metadata: a grant looks where it is asked to", test_asked },
	{ "metadata: a write is known wherever settling ends", test_settle },
	{ "metadata: slots, capacity and generations come to an end", test_limits },
	{ "metadata: another origin, or one that was written to", test_other_origins },
	{ "metadata: no memory at any moment of opening", test_memory },
	{ "metadata: a damaged sector is never less than the truth", test_damage },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
