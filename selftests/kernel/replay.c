// SPDX-License-Identifier: GPL-2.0-only
/*
 * replay: cuts the power, after the event, wherever it can have been cut.
 *
 * A log of dm-log-writes has what was written to the metadata device and to the origin
 * of a `fleece` target, which lie one behind the other on one device, in one order. Both
 * of them have a cache that a flush empties, or only one of them has: of that one are all
 * the flushes then, and the other one keeps each write. At each flush, and between two of
 * them with any part of what was written in between, the metadata is opened by the code
 * of the module. Each checkpoint must be there exactly if it was promised, and must say
 * "changed" for every granule that is not as it was at its moment, because it was written
 * since, or because what was written before was lost; it may say so of others only if
 * somebody was about to write there, or if their region has an intent. At some points the
 * recovery is cut short as well, and at some the images are kept, for a real target to be
 * started from.
 *
 *   replay --log FILE --meta-sectors N --origin-sectors N --granule SECTORS
 *          --meta-image FILE --head-image FILE [--writers N] [--points N] [--seed N]
 *          [--keep DIRECTORY --kept N]
 *
 * The images are of before the log: the metadata device, and the first 128 KiB of the
 * origin. --points 0 is all. What the marks of the log mean is written at note_mark().
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/vmalloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../random.h"
#include "metadata.h"
#include "write_log.h"

#define SECTOR			FLEECE_MD_SECTOR_BYTES
#define HEAD_SECTORS		(FLEECE_MD_HEAD_BYTES / SECTOR)
#define CHECKPOINTS_MAX		4096
/* Torn points between two flushes, and where a settle has written both of its kinds. */
#define TORN			4
#define TORN_SETTLE		8
/* One point in so many has a recovery that is cut short. */
#define RECOVERIES		4
#define PROBLEMS_MAX		10
#define NEVER			SIZE_MAX

/* What was asked for. */
static struct {
	const char *log, *meta_image, *head_image, *keep;
	uint64_t meta_sectors, origin_sectors, granule_sectors, writers, points, seed, kept;
} request = { .writers = 1 };

/*
 * A checkpoint of the log. Places are indices of entries.
 * asked: nothing that stands before this can be after its moment.
 * certain: everything that stands behind this is after its moment.
 * made, unmaking, unmade: it was promised; it may be gone; it is gone.
 * before: the entry that has touched a granule last when it was asked for: at its moment
 * there was this one, or a later one. Until it is gone.
 */
struct checkpoint {
	char name[FLEECE_MD_NAME_BYTES];
	size_t asked;
	size_t certain;
	size_t made;
	size_t unmaking;
	size_t unmade;
	size_t *before;
};

/*
 * What is on the devices. Of the origin: the entry that has written a granule last, its
 * head, and the checksum of that, if it is known.
 */
struct state {
	uint8_t *meta;
	uint8_t *head;
	size_t *latest;
	bool has_hash;
	uint32_t hash;
};

/* What is being asked about: entries before @end have been tried, @what is for messages. */
struct point {
	struct state *state;
	size_t end;
	const char *what;
	bool is_quiet;
	bool is_settled;
};

static struct write_log write_log;
static struct checkpoint checkpoints[CHECKPOINTS_MAX];
static unsigned int nr_checkpoints;
static uint64_t nr_granules;
/* The entry that has touched a granule last, lost or not; any granule of a word of a map. */
static size_t *touched, *touched_words;
/* What was written to the origin before this entry is in no cache. */
static size_t flushed;
/* When there was no intent last. */
static size_t settled;
/* Where things are on the metadata device. */
static struct fleece_md_layout layout;

/* Kinds of places. */
enum kind {
	SUPERBLOCKS,
	INTENTS,
	FINE_BITS,
	ORIGIN,
	NR_KINDS,
};

/*
 * What stands in a cache: whose writes do, and those that are there, in their order. The
 * next flush is only for the order of the log, and empties no cache.
 */
static struct {
	bool has_metadata, has_origin;
	size_t *entries;
	size_t nr_entries;
	unsigned int nr_of[NR_KINDS];
	bool is_ignoring;
} cache = { .has_metadata = true, .has_origin = true };
static struct state durable, tried, recovered;
static uint64_t random_state;
static unsigned int nr_problems;
static struct {
	unsigned long points, flushes, torn, quiet, recoveries, judged, excess, intents;
	unsigned long settles, lost;
} met;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	fprintf(stderr, "replay: ");
	vfprintf(stderr, format, values);
	fprintf(stderr, "\n");
	va_end(values);
	exit(2);
}

static void __attribute__((format(printf, 2, 3)))
problem(const struct point *point, const char *format, ...)
{
	va_list values;

	va_start(values, format);
	printf("# %s before entry %zu: ", point->what, point->end);
	vprintf(format, values);
	printf("\n");
	va_end(values);
	if (++nr_problems == PROBLEMS_MAX)
		exit(1);
}

static bool chance(uint64_t times)
{
	return !random_below(&random_state, times);
}

/* ------------------------- Entries ------------------------- */

static bool is_of_metadata(const struct write_log_entry *entry)
{
	return entry->sector < request.meta_sectors;
}

static enum kind kind_of(const struct write_log_entry *entry)
{
	if (!is_of_metadata(entry))
		return ORIGIN;
	if (entry->sector < FLEECE_MD_INTENTS_START)
		return SUPERBLOCKS;
	return entry->sector < layout.slots_start ? INTENTS : FINE_BITS;
}

static uint64_t first_granule(const struct write_log_entry *entry)
{
	return (entry->sector - request.meta_sectors) / request.granule_sectors;
}

static uint64_t last_granule(const struct write_log_entry *entry)
{
	return (entry->sector + entry->nr_sectors - 1 - request.meta_sectors) /
	       request.granule_sectors;
}

static bool touches(const struct write_log_entry *entry, uint64_t first, uint64_t last)
{
	return entry->nr_sectors && !is_of_metadata(entry) && first_granule(entry) <= last &&
	       last_granule(entry) >= first;
}

static bool is_mark(const struct write_log_entry *entry, const char *mark)
{
	return entry->flags & WRITE_LOG_MARK && !strcmp((const char *)entry->data, mark);
}

static bool is_change_of_caches(const struct write_log_entry *entry)
{
	return entry->flags & WRITE_LOG_MARK &&
	       !strncmp((const char *)entry->data, "cache:", strlen("cache:"));
}

/* Marks of moments when nothing is on its way to the origin. */
static bool is_rest(const struct write_log_entry *entry)
{
	return is_mark(entry, "quiet") || is_mark(entry, "settled") ||
	       (entry->flags & WRITE_LOG_MARK &&
		!strncmp((const char *)entry->data, "moment:", strlen("moment:")));
}

/* ------------------------- What the log tells ------------------------- */

static struct checkpoint *find_checkpoint(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_checkpoints; i++) {
		if (!strcmp(checkpoints[i].name, name))
			return &checkpoints[i];
	}
	return NULL;
}

static struct checkpoint *new_checkpoint(const char *name, size_t place)
{
	struct checkpoint *checkpoint = &checkpoints[nr_checkpoints];

	if (nr_checkpoints++ == CHECKPOINTS_MAX || find_checkpoint(name))
		die("too many checkpoints, or %s twice", name);
	snprintf(checkpoint->name, sizeof(checkpoint->name), "%s", name);
	checkpoint->asked = place;
	checkpoint->certain = NEVER;
	checkpoint->made = NEVER;
	checkpoint->unmaking = NEVER;
	checkpoint->unmade = NEVER;
	return checkpoint;
}

/*
 * Marks of whoever made the log: "create:C": C is asked for. "moment:C": it is going to
 * be, nothing is on its way to the origin, and nothing gets there before its moment.
 * "created:C", "deleting:C", "deleted:C": as the words say. "quiet", "settled": nothing
 * is on its way to the origin; nor is there an intent. "cache:both", "cache:metadata",
 * "cache:origin": who has one from now on; all are empty. "ordering": the flush before the
 * next mark is of neither device. "end": it is complete.
 */
static void note_mark(const char *mark, size_t place)
{
	struct checkpoint *checkpoint;
	char verb[16], name[FLEECE_MD_NAME_BYTES];

	if (sscanf(mark, "%15[^:]:%63s", verb, name) != 2)
		return;
	if (!strcmp(verb, "create") || !strcmp(verb, "moment")) {
		checkpoint = new_checkpoint(name, place);
		if (!strcmp(verb, "moment"))
			checkpoint->certain = place;
		return;
	}
	checkpoint = find_checkpoint(name);
	if (!checkpoint)
		return;
	if (!strcmp(verb, "created"))
		checkpoint->made = place;
	else if (!strcmp(verb, "deleting"))
		checkpoint->unmaking = place;
	else if (!strcmp(verb, "deleted"))
		checkpoint->unmade = place;
}

/*
 * A commit begins with a flush, after the moment of a checkpoint that it adds, when
 * everything from before it has long been completed: so that stands before the flush.
 */
static void note_commit(const struct write_log_entry *entry, size_t flush)
{
	static uint8_t copy[FLEECE_MD_COPY_BYTES];
	static struct fleece_md_root root;
	struct checkpoint *checkpoint;
	const char *error;
	uint32_t i;

	memset(copy, 0, sizeof(copy));
	memcpy(copy, entry->data, entry->nr_sectors * SECTOR);
	if (fleece_md_decode(copy, entry->sector != 0, &root, &error))
		die("a commit that is torn: %s", error);
	fleece_md_layout(&root, &layout);
	for (i = 0; i < root.nr_checkpoints; i++) {
		checkpoint = find_checkpoint(root.checkpoints[i].name);
		if (!checkpoint)
			die("checkpoint %s is not in the marks", root.checkpoints[i].name);
		if (checkpoint->certain == NEVER)
			checkpoint->certain = flush;
	}
}

static void scan_log(void)
{
	const struct write_log_entry *entry;
	bool is_complete = false;
	size_t flush = 0;
	size_t i;

	/* Of what was written, place 0 means: before the log. */
	if (write_log.nr_entries && write_log.entries[0].nr_sectors)
		die("the log begins with a write");
	for (i = 0; i < write_log.nr_entries; i++) {
		entry = &write_log.entries[i];
		is_complete |= is_mark(entry, "end");
		if (entry->flags & WRITE_LOG_MARK)
			note_mark((const char *)entry->data, i);
		else if (entry->flags & WRITE_LOG_FLUSH)
			flush = i;
		else if (entry->nr_sectors && (entry->sector == 0 ||
					       entry->sector == FLEECE_MD_COPY_DISTANCE))
			note_commit(entry, flush);
	}
	if (!is_complete)
		die("the log has no end");
}

/* ------------------------- States ------------------------- */

static void *read_image(const char *path, size_t bytes)
{
	FILE *file = fopen(path, "rbe");
	void *image = malloc(bytes);

	if (!file || !image || fread(image, 1, bytes, file) != bytes)
		die("cannot read %zu bytes of %s", bytes, path);
	fclose(file);
	return image;
}

static void write_image(unsigned long number, const char *suffix, const void *image, size_t bytes)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%lu.%s", request.keep, number, suffix);
	file = fopen(path, "wbe");
	if (!file || fwrite(image, 1, bytes, file) != bytes || fclose(file))
		die("cannot write %s", path);
}

static void init_state(struct state *state)
{
	state->meta = read_image(request.meta_image, request.meta_sectors * SECTOR);
	state->head = read_image(request.head_image, FLEECE_MD_HEAD_BYTES);
	state->latest = calloc(nr_granules, sizeof(*state->latest));
	if (!state->latest)
		die("out of memory");
}

static void copy_state(struct state *to, const struct state *from)
{
	memcpy(to->meta, from->meta, request.meta_sectors * SECTOR);
	memcpy(to->head, from->head, FLEECE_MD_HEAD_BYTES);
	memcpy(to->latest, from->latest, nr_granules * sizeof(*to->latest));
	to->has_hash = false;
}

static uint32_t head_hash(struct state *state)
{
	if (!state->has_hash)
		state->hash = (uint32_t)fleece_md_hash(0, state->head, FLEECE_MD_HEAD_BYTES);
	state->has_hash = true;
	return state->hash;
}

/* To be written to: the sector of the metadata, or of the origin's head, or NULL. */
static uint8_t *place_of(struct state *state, uint64_t sector)
{
	if (sector < request.meta_sectors)
		return state->meta + sector * SECTOR;
	if (sector - request.meta_sectors >= HEAD_SECTORS)
		return NULL;
	state->has_hash = false;
	return state->head + (sector - request.meta_sectors) * SECTOR;
}

/* A sector of an entry arrives. */
static void apply_sector(struct state *state, size_t number, uint64_t k)
{
	const struct write_log_entry *entry = &write_log.entries[number];
	uint8_t *place = place_of(state, entry->sector + k);

	if (place)
		memcpy(place, entry->data + k * SECTOR, SECTOR);
	if (!is_of_metadata(entry))
		state->latest[(entry->sector + k - request.meta_sectors) /
			      request.granule_sectors] = number;
}

static void apply_entry(struct state *state, size_t number)
{
	uint64_t k;

	for (k = 0; k < write_log.entries[number].nr_sectors; k++)
		apply_sector(state, number, k);
}

/* As it is on the durable state again. */
static void revert_entry(size_t number)
{
	const struct write_log_entry *entry = &write_log.entries[number];
	uint8_t *place;
	uint64_t k, g;

	for (k = 0; k < entry->nr_sectors; k++) {
		place = place_of(&tried, entry->sector + k);
		if (place)
			memcpy(place, place_of(&durable, entry->sector + k), SECTOR);
	}
	if (!entry->nr_sectors || is_of_metadata(entry))
		return;
	for (g = first_granule(entry); g <= last_granule(entry); g++)
		tried.latest[g] = durable.latest[g];
}

/* ------------------------- The metadata ------------------------- */

/* The device that metadata.c sees. What is written waits for a flush, or for its end. */
static struct {
	struct state *state;
	struct {
		uint64_t sector;
		uint8_t data[SECTOR];
	} *pending;
	size_t nr_pending;
	unsigned int ios_left;
} device;

static unsigned long *maps[FLEECE_MD_SLOTS_MAX];
static unsigned long *reported[FLEECE_MD_SLOTS_MAX];
static struct fleece_metadata *md;

static int device_read(void *context, u64 sector, void *data, unsigned int count)
{
	(void)context;
	memcpy(data, device.state->meta + sector * SECTOR, (size_t)count * SECTOR);
	return 0;
}

static int device_write(void *context, u64 sector, const void *data, unsigned int count)
{
	unsigned int i;

	(void)context;
	if (!device.ios_left)
		return -EIO;
	device.ios_left--;
	device.pending = realloc(device.pending,
				 (device.nr_pending + count) * sizeof(*device.pending));
	if (!device.pending)
		die("out of memory");
	for (i = 0; i < count; i++) {
		device.pending[device.nr_pending].sector = sector + i;
		memcpy(device.pending[device.nr_pending++].data,
		       (const uint8_t *)data + i * SECTOR, SECTOR);
	}
	return 0;
}

/* Each pending sector arrives, or one in @times. */
static void drain_device(uint64_t times)
{
	size_t i;

	for (i = 0; i < device.nr_pending; i++) {
		if (chance(times))
			memcpy(device.state->meta + device.pending[i].sector * SECTOR,
			       device.pending[i].data, SECTOR);
	}
	device.nr_pending = 0;
}

static int device_flush(void *context)
{
	(void)context;
	if (!device.ios_left)
		return -EIO;
	device.ios_left--;
	drain_device(1);
	return 0;
}

static int owner_since(void *context, const char *name, struct fleece_view *view)
{
	u32 i;

	(void)context;
	for (i = 0; strcmp(md->root.checkpoints[i].name, name); i++)
		;
	view->maps = maps + i;
	view->nr_maps = md->root.nr_checkpoints - i;
	view->nr_bits = nr_granules;
	return 0;
}

static void owner_done(void *context)
{
	(void)context;
}

static bool owner_is_wanted(void *context)
{
	(void)context;
	return false;
}

static const struct fleece_metadata_io io = {
	.read = device_read,
	.write = device_write,
	.flush = device_flush,
	.since = owner_since,
	.done = owner_done,
	.is_wanted = owner_is_wanted,
};

static void close_metadata(void)
{
	u32 i;

	for (i = 0; i < md->root.nr_checkpoints; i++)
		vfree(maps[i]);
	fleece_metadata_free(md);
	md = NULL;
}

static bool open_metadata(const struct point *point)
{
	struct fleece_metadata_origin origin = {
		.nr_sectors = request.origin_sectors, .granule_sectors = request.granule_sectors,
		.device_sectors = request.meta_sectors, .has_head_hash = true,
		.head_hash = head_hash(point->state),
	};
	const char *error;
	u32 i;

	device.state = point->state;
	device.ios_left = 1;
	if (fleece_metadata_open(&io, NULL, &origin, &md, &error)) {
		problem(point, "it is refused: %s", error);
		return false;
	}
	for (i = 0; i < md->root.nr_checkpoints; i++) {
		maps[i] = fleece_bits_alloc(nr_granules);
		if (!maps[i])
			die("out of memory");
		fleece_metadata_load(md, i, maps[i]);
	}
	return true;
}

/* ------------------------- Judging ------------------------- */

static bool is_there(const char *name)
{
	u32 i;

	for (i = 0; i < md->root.nr_checkpoints; i++) {
		if (!strcmp(md->root.checkpoints[i].name, name))
			return true;
	}
	return false;
}

static void judge_presence(const struct point *point)
{
	const struct checkpoint *checkpoint;
	bool may_be, must_be;
	unsigned int i;

	for (i = 0; i < nr_checkpoints; i++) {
		checkpoint = &checkpoints[i];
		may_be = point->end > checkpoint->asked && point->end <= checkpoint->unmade;
		must_be = point->end > checkpoint->made && point->end <= checkpoint->unmaking;
		if (is_there(checkpoint->name) ? !may_be : must_be)
			problem(point, "%s is %s", checkpoint->name, must_be ? "gone" : "there");
	}
}

/* The next entry that touches these granules, while writes that have begun complete. */
static size_t next_touch(const struct point *point, uint64_t first, uint64_t last)
{
	const struct write_log_entry *entry;
	size_t i;

	for (i = point->end; i < write_log.nr_entries && !point->is_quiet; i++) {
		entry = &write_log.entries[i];
		if (is_rest(entry))
			break;
		if (touches(entry, first, last))
			return i;
	}
	return NEVER;
}

/* Writes on their way are as many as there are writers, at the most. */
struct flying {
	size_t entries[64];
	uint64_t count;
};

static bool is_flying(const struct point *point, struct flying *flying, uint64_t first,
		      uint64_t last)
{
	size_t entry = next_touch(point, first, last);
	uint64_t i;

	if (entry == NEVER)
		return false;
	for (i = 0; i < flying->count; i++) {
		if (flying->entries[i] == entry)
			return true;
	}
	if (flying->count == request.writers)
		return false;
	flying->entries[flying->count++] = entry;
	return true;
}

/* What was there at the moment, or something older than what came then, is not there now. */
static bool is_lost(const struct point *point, const struct checkpoint *checkpoint, uint64_t g)
{
	return checkpoint->before && point->state->latest[g] < checkpoint->before[g];
}

/*
 * Of all granules of a word: none is said to be changed, nobody has written there since the
 * checkpoint was asked for, and what was written before is there. Most of them are such.
 */
static bool is_at_rest(const struct checkpoint *checkpoint, const unsigned long *bits,
		       uint64_t word)
{
	return !bits[word] && touched_words[word] <= checkpoint->asked &&
	       touched_words[word] <= flushed;
}

/* Of one checkpoint: @bits is all that it says. */
static void judge_map(const struct point *point, const struct checkpoint *checkpoint,
		      const unsigned long *bits, const unsigned long *before)
{
	struct flying flying = { .count = 0 };
	uint64_t g;

	for (g = 0; g < nr_granules; g++) {
		if (!(g % BITS_PER_LONG) && is_at_rest(checkpoint, bits, g / BITS_PER_LONG)) {
			g += BITS_PER_LONG - 1;
			continue;
		}
		met.lost += is_lost(point, checkpoint, g);
		if (!test_bit(g, bits)) {
			if (is_lost(point, checkpoint, g))
				problem(point, "%s: granule %" PRIu64 ", where entry %zu was lost, is missing",
					checkpoint->name, g, checkpoint->before[g]);
			if (checkpoint->certain != NEVER &&
			    point->state->latest[g] > checkpoint->certain)
				problem(point, "%s: granule %" PRIu64 ", written by entry %zu, is missing",
					checkpoint->name, g, point->state->latest[g]);
			continue;
		}
		if (touched[g] > checkpoint->asked || (before && test_bit(g, before)))
			continue;
		met.excess++;
		if (!test_bit(g >> md->region_shift, md->written) &&
		    !is_flying(point, &flying, g, g))
			problem(point, "%s: granule %" PRIu64 " is too much", checkpoint->name, g);
	}
	met.judged++;
}

/* Only regions that were written to since there was no intent have one. */
static void judge_intents(const struct point *point)
{
	struct flying flying = { .count = 0 };
	uint64_t region, first, last, g;

	for (region = 0; region < md->layout.nr_regions; region++) {
		if (!test_bit(region, md->written))
			continue;
		met.intents++;
		first = region << md->region_shift;
		last = min(((region + 1) << md->region_shift), nr_granules) - 1;
		for (g = first; g <= last && touched[g] <= settled; g++)
			;
		if (point->is_settled || (g > last && !is_flying(point, &flying, first, last)))
			problem(point, "region %" PRIu64 " has an intent", region);
	}
}

/* The bits of all maps, from the newest on, become those since each checkpoint. */
static void unite_maps(void)
{
	u32 i = md->root.nr_checkpoints;
	uint64_t word;

	while (i > 1) {
		i--;
		for (word = 0; word < BITS_TO_LONGS(nr_granules); word++)
			maps[i - 1][word] |= maps[i][word];
	}
}

/* @is_again: after a recovery, when everything that was reported before may be so. */
static void judge(const struct point *point, bool is_again)
{
	const struct fleece_md_checkpoint *found;
	struct checkpoint *checkpoint;
	u32 i;

	judge_presence(point);
	if (!is_again)
		judge_intents(point);
	unite_maps();
	for (i = 0; i < md->root.nr_checkpoints; i++) {
		found = &md->root.checkpoints[i];
		checkpoint = find_checkpoint(found->name);
		if (!checkpoint || found->is_invalid)
			problem(point, "%s is %s", found->name, checkpoint ? "invalid" : "unknown");
		else
			judge_map(point, checkpoint, maps[i], is_again ? reported[i] : NULL);
		if (!is_again)
			memcpy(reported[i], maps[i],
			       BITS_TO_LONGS(nr_granules) * sizeof(unsigned long));
	}
}

/* Power is cut again, while the target starts. */
static void recover(const struct point *point)
{
	struct point again = { .state = &recovered, .end = point->end, .what = "recovery" };

	copy_state(&recovered, point->state);
	again.state = &recovered;
	if (!open_metadata(&again))
		return;
	device.ios_left = random_below(&random_state, 12);
	fleece_metadata_start(md);
	drain_device(1 + random_below(&random_state, 4));
	close_metadata();
	if (!open_metadata(&again))
		return;
	judge(&again, true);
	close_metadata();
	met.recoveries++;
}

/* For a real target: the images, and what the maps have to be. */
static void keep(const struct point *point)
{
	static unsigned long number;
	char path[4096];
	FILE *file;
	uint64_t g;
	u32 i;

	number++;
	write_image(number, "meta", point->state->meta, request.meta_sectors * SECTOR);
	write_image(number, "head", point->state->head, FLEECE_MD_HEAD_BYTES);
	snprintf(path, sizeof(path), "%s/%lu.maps", request.keep, number);
	file = fopen(path, "we");
	if (!file)
		die("cannot write %s", path);
	for (i = 0; i < md->root.nr_checkpoints; i++) {
		fprintf(file, "%s ", md->root.checkpoints[i].name);
		for (g = 0; g < nr_granules; g++)
			fputc('0' + test_bit(g, maps[i]), file);
		fputc('\n', file);
	}
	if (fclose(file))
		die("cannot write %s", path);
}

static void examine(const struct point *point, bool is_kept)
{
	met.points++;
	if (!open_metadata(point))
		return;
	judge(point, false);
	if (is_kept)
		keep(point);
	close_metadata();
	if (chance(RECOVERIES))
		recover(point);
}

/* ------------------------- The way through the log ------------------------- */

/* How many points of all, and of these to be kept. */
static uint64_t every_point = 1, every_kept = UINT64_MAX;

static bool is_kept(void)
{
	return met.points % every_kept == every_kept - 1;
}

static bool has_cache(const struct write_log_entry *entry)
{
	return is_of_metadata(entry) ? cache.has_metadata : cache.has_origin;
}

/* A part of an entry arrives: of kinds of places, or of sectors. */
static void apply_part(size_t number, bool is_by_kind, uint64_t kinds, uint64_t odds)
{
	const struct write_log_entry *entry = &write_log.entries[number];
	uint64_t k;

	for (k = 0; k < entry->nr_sectors; k++) {
		if (is_by_kind ? kinds >> kind_of(entry) & 1 :
				 random_below(&random_state, 5) < odds)
			apply_sector(&tried, number, k);
	}
}

/*
 * A part of what is in a cache has arrived, and of the entry that is on its way, if it is
 * not a flush.
 */
static void tear(size_t end)
{
	struct point point = { .state = &tried, .end = end, .what = "power cut" };
	bool is_by_kind = chance(2);
	uint64_t kinds = random_below(&random_state, 1 << NR_KINDS);
	uint64_t odds = 1 + random_below(&random_state, 4);
	size_t i;

	for (i = 0; i < cache.nr_entries; i++)
		apply_part(cache.entries[i], is_by_kind, kinds, odds);
	apply_part(end, false, 0, random_below(&random_state, 6));
	met.torn++;
	examine(&point, is_kept());
	for (i = 0; i < cache.nr_entries; i++)
		revert_entry(cache.entries[i]);
	revert_entry(end);
}

/* What a settle has written is looked at each time: it is written rarely. */
static void tear_often(size_t end)
{
	bool is_settle = cache.nr_of[INTENTS] && cache.nr_of[FINE_BITS];
	unsigned int times = is_settle ? TORN_SETTLE : TORN;
	unsigned int n;

	met.settles += is_settle;
	for (n = 0; n < times && cache.nr_entries; n++) {
		if (is_settle || chance(every_point))
			tear(end);
	}
}

static void empty_cache(size_t end)
{
	size_t i;

	for (i = 0; i < cache.nr_entries; i++) {
		apply_entry(&durable, cache.entries[i]);
		apply_entry(&tried, cache.entries[i]);
	}
	cache.nr_entries = 0;
	flushed = end;
	memset(cache.nr_of, 0, sizeof(cache.nr_of));
}

static void flush(size_t end)
{
	struct point point = { .state = &durable, .end = end, .what = "flush" };

	if (cache.is_ignoring)
		return;
	tear_often(end);
	empty_cache(end);
	if (chance(every_point)) {
		met.flushes++;
		examine(&point, is_kept());
	}
}

/* Writes that stay in no cache: of the metadata, each is like a flush. */
static void arrive(size_t number)
{
	if (is_of_metadata(&write_log.entries[number]))
		tear_often(number);
	apply_entry(&durable, number);
	apply_entry(&tried, number);
}

static void write_entry(size_t number)
{
	const struct write_log_entry *entry = &write_log.entries[number];

	if (!has_cache(entry)) {
		arrive(number);
		return;
	}
	cache.entries[cache.nr_entries++] = number;
	cache.nr_of[kind_of(entry)]++;
}

/* Nothing is on its way, so nothing may be too much. If all has arrived, cache or not. */
static void rest(size_t number)
{
	struct point point = {
		.state = &tried, .end = number, .what = "rest", .is_quiet = true,
		.is_settled = is_mark(&write_log.entries[number], "settled"),
	};
	size_t i;

	if (point.is_settled)
		settled = number;
	met.quiet++;
	for (i = 0; i < cache.nr_entries; i++)
		apply_entry(&tried, cache.entries[i]);
	examine(&point, false);
	for (i = 0; i < cache.nr_entries; i++)
		revert_entry(cache.entries[i]);
}

/* What there is when a checkpoint is asked for, as long as it can be there. */
static void remember_before(size_t number)
{
	size_t bytes = nr_granules * sizeof(*touched);
	unsigned int i;

	for (i = 0; i < nr_checkpoints; i++) {
		if (checkpoints[i].asked == number) {
			checkpoints[i].before = malloc(bytes);
			if (!checkpoints[i].before)
				die("out of memory");
			memcpy(checkpoints[i].before, touched, bytes);
		} else if (checkpoints[i].unmade == number) {
			free(checkpoints[i].before);
			checkpoints[i].before = NULL;
		}
	}
}

static void pass_mark(size_t number)
{
	const struct write_log_entry *entry = &write_log.entries[number];
	const char *mark = (const char *)entry->data;

	cache.is_ignoring = !strcmp(mark, "ordering");
	remember_before(number);
	if (is_rest(entry))
		rest(number);
	if (!is_change_of_caches(entry))
		return;
	empty_cache(number);
	cache.has_metadata = strcmp(mark, "cache:origin");
	cache.has_origin = strcmp(mark, "cache:metadata");
}

static void touch(size_t number)
{
	const struct write_log_entry *entry = &write_log.entries[number];
	uint64_t g;

	if (!entry->nr_sectors || is_of_metadata(entry))
		return;
	if (entry->sector + entry->nr_sectors > request.meta_sectors + request.origin_sectors)
		die("entry %zu is beyond the end", number);
	for (g = first_granule(entry); g <= last_granule(entry); g++) {
		touched[g] = number;
		touched_words[g / BITS_PER_LONG] = number;
	}
}

static void replay(void)
{
	const struct write_log_entry *entry;
	size_t i;

	for (i = 0; i < write_log.nr_entries; i++) {
		entry = &write_log.entries[i];
		if (entry->flags & (WRITE_LOG_FUA | WRITE_LOG_DISCARD))
			die("entry %zu is of a kind that this program does not replay", i);
		if (entry->flags & WRITE_LOG_MARK)
			pass_mark(i);
		else if (entry->flags & WRITE_LOG_FLUSH)
			flush(i);
		else if (entry->nr_sectors)
			write_entry(i);
		touch(i);
	}
}

/* ------------------------- The program ------------------------- */

static void plan_points(void)
{
	const struct write_log_entry *entry;
	uint64_t nr_flushes = 0;
	bool is_through = false;
	uint64_t all;
	size_t i;

	for (i = 0; i < write_log.nr_entries; i++) {
		entry = &write_log.entries[i];
		if (entry->flags & WRITE_LOG_MARK)
			is_through = is_mark(entry, "cache:origin") ||
				     (is_through && !is_change_of_caches(entry));
		else
			nr_flushes += entry->flags & WRITE_LOG_FLUSH ||
				      (is_through && is_of_metadata(entry));
	}
	all = nr_flushes * (TORN + 1);
	if (request.points && all > request.points)
		every_point = all / request.points;
	if (request.kept)
		every_kept = all / every_point / (request.kept + 1) + 1;
}

static uint64_t number_of(const char *text)
{
	char *end;
	uint64_t number = strtoull(text, &end, 10);

	if (*end || end == text)
		die("'%s' is not a number", text);
	return number;
}

static void parse(int argc, char **argv)
{
	static const struct {
		const char *name;
		const char **text;
		uint64_t *number;
	} options[] = {
		{ "--log", &request.log, NULL },
		{ "--meta-image", &request.meta_image, NULL },
		{ "--head-image", &request.head_image, NULL },
		{ "--keep", &request.keep, NULL },
		{ "--kept", NULL, &request.kept },
		{ "--meta-sectors", NULL, &request.meta_sectors },
		{ "--origin-sectors", NULL, &request.origin_sectors },
		{ "--granule", NULL, &request.granule_sectors },
		{ "--writers", NULL, &request.writers },
		{ "--points", NULL, &request.points },
		{ "--seed", NULL, &request.seed },
	};
	const size_t count = sizeof(options) / sizeof(options[0]);
	size_t k;
	int i;

	for (i = 1; i + 1 < argc; i += 2) {
		for (k = 0; k < count && strcmp(options[k].name, argv[i]); k++)
			;
		if (k == count)
			die("unknown option %s", argv[i]);
		if (options[k].text)
			*options[k].text = argv[i + 1];
		else
			*options[k].number = number_of(argv[i + 1]);
	}
	if (i < argc || !request.log || !request.meta_image || !request.head_image ||
	    !request.meta_sectors || !request.origin_sectors || !request.granule_sectors ||
	    request.writers > 64)
		die("see the start of replay.c for how it is called");
}

int main(int argc, char **argv)
{
	const char *error;
	unsigned int i;

	parse(argc, argv);
	error = write_log_map(&write_log, request.log);
	if (error)
		die("%s: %s", request.log, error);
	nr_granules = (request.origin_sectors + request.granule_sectors - 1) /
		      request.granule_sectors;
	random_state = request.seed;
	touched = calloc(nr_granules, sizeof(*touched));
	touched_words = calloc(BITS_TO_LONGS(nr_granules), sizeof(*touched_words));
	cache.entries = calloc(write_log.nr_entries, sizeof(*cache.entries));
	if (!touched || !touched_words || !cache.entries)
		die("out of memory");
	for (i = 0; i < FLEECE_MD_SLOTS_MAX; i++)
		reported[i] = malloc(BITS_TO_LONGS(nr_granules) * sizeof(unsigned long));
	init_state(&durable);
	init_state(&tried);
	init_state(&recovered);
	scan_log();
	plan_points();
	replay();
	printf("# %zu entries, %u checkpoints; %lu points: %lu flushes, %lu torn, %lu at rest; %lu times in a settle; %lu recoveries cut short\n",
	       write_log.nr_entries, nr_checkpoints, met.points, met.flushes, met.torn, met.quiet,
	       met.settles, met.recoveries);
	printf("# %lu maps judged, %lu intents, %lu granules too many, %lu lost\n",
	       met.judged, met.intents, met.excess, met.lost);
	return nr_problems != 0;
}
