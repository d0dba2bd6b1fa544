// SPDX-License-Identifier: GPL-2.0-only
/*
 * replay_test: does replay.c find what it is there for? Makes logs as dm-log-writes
 * would, of random lives of the protocol of the metadata device beside an origin, and
 * has them replayed: lives in which all is right, and lives in which one flush is missing.
 * The one that is not among them, after intents were taken back, is there for a device that
 * changes the order of two writes to one place; a log does not.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bitops.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../random.h"
#include "../tap.h"
#include "metadata.h"
#include "tracker.h"
#include "write_log.h"

#define SECTOR		FLEECE_MD_SECTOR_BYTES
#define GRANULE		8
#define GRANULES	4096
#define REGION		(16 * GRANULE)
#define SLOTS		5
#define META_MAX	4608
#define WRITERS		4
#define STEPS		450
#define LIVES		8
#define LOG_MAGIC	0x6a736677736872ull

/* Which flush is left out: that of the origin, or the one after these were written. */
enum defect {
	NONE,
	ORIGIN_AT_CHECKPOINT,
	INTENTS_IN_GRANT,
	BITS_IN_SETTLE,
	BITS_IN_COMMIT,
	SUPERBLOCK,
};

/* Who has a cache, as in the marks of the log. */
static const char *const caches[] = { "both", "origin", "metadata" };

/* With which of them a life has to be found out. */
#define BOTH		1u
#define OF_ORIGIN	2u
#define OF_METADATA	4u

static const struct {
	enum defect defect;
	unsigned int caches;
	const char *what;
} defects[] = {
	{ ORIGIN_AT_CHECKPOINT, OF_ORIGIN, "of the origin at its checkpoints" },
	{ INTENTS_IN_GRANT, BOTH | OF_METADATA, "between intents and what waits for them" },
	{ BITS_IN_SETTLE, BOTH | OF_METADATA, "between change bits and intents" },
	{ BITS_IN_COMMIT, BOTH | OF_METADATA, "between change bits and superblock" },
	{ SUPERBLOCK, BOTH | OF_METADATA, "after the superblock" },
};

struct waiter {
	struct list_head node;
	bool is_used;
	u64 first;
	u64 last;
};

static struct {
	enum defect defect;
	uint64_t random;
	unsigned int cache;
	FILE *log;
	uint64_t nr_entries;
	u8 meta[META_MAX * SECTOR];
	u8 head[FLEECE_MD_HEAD_BYTES];
	u8 *unflushed;
	struct write_log_entry entries[4096];
	unsigned int nr_unflushed;
	bool is_kicked;
	bool is_settling;
	u64 last_written;
	bool may_write;
	u64 home;
	unsigned int number;
	char alive[SLOTS][FLEECE_MD_NAME_BYTES];
	unsigned int nr_alive;
} life;

static struct fleece_md_layout layout;
static struct fleece_metadata *md;
static struct fleece_tracker tracker;
static struct fleece_history held;
static struct waiter waiters[WRITERS];
static char directory[48];

static u64 some(u64 below)
{
	return random_below(&life.random, below);
}

static void need(bool is_so, const char *what)
{
	if (is_so)
		return;
	printf("Bail out! %s\n", what);
	exit(1);
}

static FILE *open_file(const char *name, const char *mode)
{
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, mode);
	need(file, "cannot open a file");
	return file;
}

static void save(const char *name, const void *data, size_t bytes)
{
	FILE *file = open_file(name, "wbe");

	need(fwrite(data, 1, bytes, file) == bytes && !fclose(file), "cannot write a file");
}

/* ------------------------- The log ------------------------- */

static void log_entry(u64 sector, u64 nr_sectors, u64 flags, const void *data, size_t bytes)
{
	u64 fields[SECTOR / sizeof(u64)] = { sector, nr_sectors, flags, bytes };
	bool is_mark = flags & WRITE_LOG_MARK;

	if (is_mark)
		memcpy(fields + 4, data, bytes);
	need(fwrite(fields, SECTOR, 1, life.log) == 1 &&
	     (is_mark || fwrite(data, 1, bytes, life.log) == bytes), "cannot write the log");
	life.nr_entries++;
}

static void mark(const char *verb, const char *name)
{
	char text[96];

	snprintf(text, sizeof(text), "%s%s%s", verb, *name ? ":" : "", name);
	log_entry(0, 0, WRITE_LOG_MARK, text, strlen(text) + 1);
}

/* What was written is in the log from the next flush on. */
static void flush_log(void)
{
	const struct write_log_entry *entry;
	unsigned int i;

	for (i = 0; i < life.nr_unflushed; i++) {
		entry = &life.entries[i];
		log_entry(entry->sector, entry->nr_sectors, 0, entry->data,
			  entry->nr_sectors * SECTOR);
		free((void *)entry->data);
	}
	life.nr_unflushed = 0;
	log_entry(0, 0, WRITE_LOG_FLUSH, "", 0);
}

static void note_write(u64 sector, const void *data, u64 nr_sectors)
{
	struct write_log_entry *entry = &life.entries[life.nr_unflushed++];
	u8 *copy = malloc(nr_sectors * SECTOR);

	need(copy && life.nr_unflushed < ARRAY_SIZE(life.entries), "too much is not flushed");
	memcpy(copy, data, nr_sectors * SECTOR);
	*entry = (struct write_log_entry){
		.sector = sector, .nr_sectors = nr_sectors, .data = copy,
	};
}

/* As the functions of the same names in metadata_replay.sh. */
static void order_record(void)
{
	if (!strcmp(caches[life.cache], "origin"))
		mark("ordering", "");
	flush_log();
}

static void mark_done(const char *verb, const char *name)
{
	if (!strcmp(caches[life.cache], "origin"))
		order_record();
	mark(verb, name);
}

static void flush_origin(void)
{
	if (strcmp(caches[life.cache], "metadata"))
		flush_log();
}

/* ------------------------- Live writes ------------------------- */

static void write_origin(const struct waiter *waiter)
{
	u64 sector = waiter->first * GRANULE;
	u64 nr_sectors = (waiter->last - waiter->first + 1) * GRANULE;
	u8 data[4 * GRANULE * SECTOR];
	u64 k;

	memset(data, some(256), sizeof(data));
	note_write(layout.nr_sectors + sector, data, nr_sectors);
	for (k = 0; k < nr_sectors && sector + k < FLEECE_MD_HEAD_BYTES / SECTOR; k++)
		memcpy(life.head + (sector + k) * SECTOR, data, SECTOR);
}

static void begin_write(struct waiter *waiter)
{
	unsigned long *bits = tracker.live ? tracker.live->bits : NULL;

	do {
		if (fleece_metadata_mark(md, bits, waiter->first, waiter->last)) {
			write_origin(waiter);
			waiter->is_used = false;
			return;
		}
	} while (!fleece_metadata_wait(md, waiter->first, waiter->last, &waiter->node));
}

static void new_write(void)
{
	unsigned int i;

	for (i = 0; i < WRITERS && waiters[i].is_used; i++)
		;
	if (i == WRITERS)
		return;
	if (!some(30))
		life.home = some(GRANULES);
	waiters[i].is_used = true;
	waiters[i].first = (some(8) ? life.home + some(64) : some(GRANULES)) % GRANULES;
	waiters[i].last = min(waiters[i].first + some(4), (u64)GRANULES - 1);
	begin_write(&waiters[i]);
}

static void let_others_run(void)
{
	while (life.may_write && some(3))
		new_write();
}

/* No write comes, and none waits. */
static void hush(void)
{
	life.may_write = false;
	while (!list_empty(&md->waiting))
		fleece_metadata_grant(md);
}

/* ------------------------- The owner's functions ------------------------- */

static int device_read(void *context, u64 sector, void *data, unsigned int count)
{
	(void)context;
	memcpy(data, life.meta + sector * SECTOR, count * SECTOR);
	return 0;
}

static int device_write(void *context, u64 sector, const void *data, unsigned int count)
{
	(void)context;
	memcpy(life.meta + sector * SECTOR, data, count * SECTOR);
	note_write(sector, data, count);
	life.last_written = sector;
	let_others_run();
	return 0;
}

static bool is_left_out(void)
{
	bool is_of_bits = life.last_written >= layout.slots_start;

	switch (life.defect) {
	case INTENTS_IN_GRANT:
		return !life.is_settling && !is_of_bits &&
		       life.last_written >= FLEECE_MD_INTENTS_START;
	case BITS_IN_SETTLE:
		return life.is_settling && is_of_bits;
	case BITS_IN_COMMIT:
		return !life.is_settling && is_of_bits;
	case SUPERBLOCK:
		return life.last_written < FLEECE_MD_INTENTS_START;
	default:
		return false;
	}
}

static int device_flush(void *context)
{
	(void)context;
	if (is_left_out())
		return 0;
	if (strcmp(caches[life.cache], "origin"))
		flush_log();
	let_others_run();
	return 0;
}

static int owner_since(void *context, const char *name, struct fleece_view *view)
{
	(void)context;
	need(!fleece_history_get(&held, &tracker, GFP_KERNEL) &&
	     !fleece_history_known_since(&held, name, view), "no such checkpoint");
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
	life.is_kicked = true;
}

static bool owner_is_wanted(void *context)
{
	(void)context;
	return !some(40);
}

static void owner_resume(void *context, struct list_head *list)
{
	struct waiter *waiter, *next;

	(void)context;
	list_for_each_entry_safe(waiter, next, list, node)
		begin_write(waiter);
}

static const struct fleece_metadata_io io = {
	.read = device_read, .write = device_write, .flush = device_flush,
	.since = owner_since, .done = owner_done, .kick = owner_kick,
	.is_wanted = owner_is_wanted, .resume = owner_resume,
};

/* ------------------------- A life ------------------------- */

static void format(void)
{
	static struct fleece_md_root root;
	u64 sector;

	memset(&root, 0, sizeof(root));
	memcpy(root.uuid, "made by the test", sizeof(root.uuid));
	root.state = FLEECE_MD_CLEAN;
	root.generation = 1;
	root.base = 1;
	root.next_segment = 1;
	root.origin_sectors = GRANULES * GRANULE;
	root.capacity_sectors = root.origin_sectors;
	root.granule_sectors = GRANULE;
	root.region_sectors = REGION;
	root.nr_slots = SLOTS;
	fleece_md_layout(&root, &layout);
	need(layout.nr_sectors <= META_MAX, "the device is too small");
	for (sector = FLEECE_MD_INTENTS_START; sector < layout.nr_sectors; sector++)
		fleece_md_seal(root.uuid, sector, 0, life.meta + sector * SECTOR);
	fleece_md_encode(&root, life.meta + FLEECE_MD_COPY_DISTANCE * SECTOR);
}

static void switch_segment(const char *name)
{
	struct fleece_segment *segment = fleece_segment_alloc(GRANULES);

	need(segment, "out of memory");
	fleece_tracker_switch(&tracker, segment, name);
}

static void load_checkpoints(void)
{
	struct fleece_segment *segment;
	struct fleece_moment moment;
	u32 i;

	fleece_tracker_init(&tracker, GRANULES * GRANULE, GRANULE);
	for (i = 0; i < md->root.nr_checkpoints; i++) {
		segment = fleece_segment_alloc(GRANULES);
		need(segment, "out of memory");
		fleece_metadata_load(md, i, segment->bits);
		memset(&moment, 0, sizeof(moment));
		snprintf(moment.name, sizeof(moment.name), "%s", md->root.checkpoints[i].name);
		fleece_tracker_restore(&tracker, segment, &moment);
	}
}

static u32 head_hash(void)
{
	return (u32)fleece_md_hash(0, life.head, sizeof(life.head));
}

static void start(void)
{
	struct fleece_metadata_origin origin = {
		.nr_sectors = GRANULES * GRANULE, .granule_sectors = GRANULE,
		.device_sectors = layout.nr_sectors, .has_head_hash = true,
		.head_hash = head_hash(),
	};
	const char *error;

	need(!fleece_metadata_open(&io, NULL, &origin, &md, &error), "cannot be opened");
	load_checkpoints();
	need(!fleece_metadata_start(md), "cannot be started");
	life.may_write = true;
}

static void stop(void)
{
	hush();
	flush_origin();
	need(!fleece_metadata_close(md, true, head_hash()), "cannot be closed");
	fleece_metadata_free(md);
	fleece_tracker_exit(&tracker);
	order_record();
	mark("settled", "");
}

static void settle(void)
{
	life.is_settling = true;
	need(!fleece_metadata_settle(md), "cannot settle");
	life.is_settling = false;
}

static void come_to_rest(void)
{
	hush();
	while (md->nr_granted)
		settle();
	order_record();
	mark("settled", "");
	life.may_write = true;
}

static void create(void)
{
	struct fleece_md_checkpoint checkpoint = { };
	bool is_quiet = some(2);

	if (life.nr_alive == SLOTS)
		return;
	snprintf(checkpoint.name, sizeof(checkpoint.name), "c%u", life.number++);
	memcpy(checkpoint.uuid, checkpoint.name, sizeof(checkpoint.uuid));
	if (is_quiet) {
		hush();
		order_record();
	}
	mark(is_quiet ? "moment" : "create", checkpoint.name);
	need(!fleece_metadata_begin_create(md), "cannot create");
	let_others_run();
	switch_segment(checkpoint.name);
	life.may_write = true;
	let_others_run();
	if (life.defect != ORIGIN_AT_CHECKPOINT)
		flush_origin();
	need(!fleece_metadata_create(md, &checkpoint), "cannot create");
	mark_done("created", checkpoint.name);
	memcpy(life.alive[life.nr_alive++], checkpoint.name, sizeof(checkpoint.name));
}

static void delete(void)
{
	u64 victim;
	char *name;

	if (!life.nr_alive)
		return;
	victim = some(life.nr_alive);
	name = life.alive[victim];
	mark("deleting", name);
	need(!fleece_metadata_delete(md, name) && !fleece_tracker_delete(&tracker, name),
	     "cannot delete");
	mark_done("deleted", name);
	memmove(name, life.alive[--life.nr_alive], sizeof(life.alive[0]));
}

static void step(void)
{
	switch (some(24)) {
	case 0:
	case 1:
		create();
		break;
	case 2:
		delete();
		break;
	case 3:
		come_to_rest();
		break;
	case 4:
	case 5:
	case 6:
		settle();
		break;
	default:
		let_others_run();
	}
	if (life.is_kicked && some(3)) {
		life.is_kicked = false;
		fleece_metadata_grant(md);
	}
}

static void write_super(void)
{
	u64 fields[SECTOR / sizeof(u64)] = { LOG_MAGIC, 1, life.nr_entries, SECTOR };

	rewind(life.log);
	need(fwrite(fields, SECTOR, 1, life.log) == 1, "cannot write the log");
}

/* With each cache of a mask one after the other, for as long in all. */
static void live(enum defect defect, unsigned int with, uint64_t seed)
{
	unsigned int steps = STEPS / hweight_long(with);
	unsigned int i;

	memset(&life, 0, sizeof(life));
	memset(waiters, 0, sizeof(waiters));
	life.defect = defect;
	life.random = seed;
	format();
	save("meta", life.meta, layout.nr_sectors * SECTOR);
	save("head", life.head, sizeof(life.head));
	life.log = open_file("log", "w+be");
	write_super();
	flush_log();
	for (life.cache = 0; life.cache < ARRAY_SIZE(caches); life.cache++) {
		if (!(with >> life.cache & 1))
			continue;
		mark("cache", caches[life.cache]);
		start();
		for (i = 0; i < steps; i++)
			step();
		stop();
	}
	mark("end", "");
	write_super();
	need(!fclose(life.log), "cannot write the log");
}

/* ------------------------- Replaying it ------------------------- */

static void run_replay(const char *seed)
{
	char sectors[16], origin_sectors[16];
	int null = open("/dev/null", O_WRONLY);

	snprintf(sectors, sizeof(sectors), "%u", (unsigned int)layout.nr_sectors);
	snprintf(origin_sectors, sizeof(origin_sectors), "%u", GRANULES * GRANULE);
	if (life.defect != NONE)
		dup2(null, STDOUT_FILENO);
	if (chdir(directory))
		_exit(3);
	execl(getenv("REPLAY"), "replay", "--log", "log", "--meta-image", "meta", "--head-image",
	      "head", "--meta-sectors", sectors, "--origin-sectors", origin_sectors, "--granule",
	      "8", "--writers", "4", "--seed", seed, NULL);
	_exit(3);
}

/* Returns the exit status of replay. */
static int replay(enum defect defect, unsigned int with, unsigned int seed)
{
	char text[16];
	int status;
	pid_t pid;

	live(defect, with, seed);
	snprintf(text, sizeof(text), "%u", seed);
	fflush(stdout);
	pid = fork();
	if (!pid)
		run_replay(text);
	need(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status), "replay has died");
	return WEXITSTATUS(status);
}

/* How many lives with a defect it takes exception to. */
static unsigned int count_found(enum defect defect, unsigned int with)
{
	unsigned int found = 0;
	unsigned int seed;
	int status;

	for (seed = 1; seed <= LIVES; seed++) {
		status = replay(defect, with, seed);
		need(status < 2, "replay could not read the log");
		found += status;
	}
	return found;
}

int main(void)
{
	static const char *const files[] = { "log", "meta", "head" };
	char path[64];
	unsigned int i, k;

	snprintf(directory, sizeof(directory), "/tmp/replay-XXXXXX");
	need(getenv("REPLAY") && mkdtemp(directory), "cannot begin");
	tap_ok(count_found(NONE, BOTH | OF_ORIGIN | OF_METADATA) == 0, "lives in which all is right");
	for (i = 0; i < ARRAY_SIZE(defects); i++) {
		for (k = 0; k < ARRAY_SIZE(caches); k++) {
			if (defects[i].caches >> k & 1)
				tap_ok(count_found(defects[i].defect, 1u << k) == LIVES,
				       "each life without a flush %s, cache: %s", defects[i].what,
				       caches[k]);
		}
	}
	for (i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, files[i]);
		unlink(path);
	}
	rmdir(directory);
	return tap_end();
}
