// SPDX-License-Identifier: GPL-2.0-only
/*
 * changes: change maps against a log of all writes.
 *
 * Writes, makes and deletes checkpoints, takes and removes snapshots at random,
 * and after each step asks for maps. A granule that was certainly written between
 * checkpoint and end of the map must be set, one that was certainly not must be
 * clear; only writes under way at one of the two moments leave a choice. While
 * no background writer runs, that is equality. All random choices come from one
 * seed that is printed; the first violation is printed and ends the program
 * with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "dm.h"
#include "stamp.h"

#define MAX_WRITES	(1u << 20)
#define MAX_MARKS	72
#define MAX_IO_SECTORS	512
#define IO_ALIGNMENT	4096
#define MAP_EXTENTS	9
#define JUDGED_MARKS	4
#define WRITERS		2

/* When a write was under way, by the clock of this program, and its granules. */
struct write {
	uint64_t issued;
	atomic_uint_least64_t completed;
	uint64_t first;
	uint64_t last;
};

/* A moment: it lies between two times of the clock. */
struct moment {
	uint64_t before;
	uint64_t after;
};

struct mark {
	bool is_alive;		/* on the origin */
	bool is_in_snapshot;
	char name[24];
	struct moment moment;
	uint8_t *frozen;	/* its map in the snapshot */
};

static struct {
	const char *name;
	const char *lower;
	const char *cow;
	uint64_t seed;
	uint64_t random;
	uint64_t sectors;
	uint64_t granularity;
	uint64_t granules;
	int control;
	int origin;
	int snapshot;		/* -1: there is none */
	bool can_discard;
	struct moment snapshot_moment;
	atomic_uint_least64_t clock;
	struct write *writes;
	atomic_uint_least32_t write_count;
	struct mark marks[MAX_MARKS];
	unsigned int names;
	atomic_bool writers_stop;
	bool writers_run;
	pthread_t writers[WRITERS];
	uint64_t judged;
	uint64_t exact;
	unsigned int snapshots;
} test;

static void violation(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void violation(const char *format, ...)
{
	va_list args;

	flockfile(stderr);
	fprintf(stderr, "changes: violation: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nchanges: seed %" PRIu64 "\n", test.seed);
	_exit(1);
}

static void require(int ret, const char *what)
{
	if (ret)
		violation("cannot %s: %s", what, strerror(-ret));
}

static uint64_t tick(void)
{
	return atomic_fetch_add(&test.clock, 1) + 1;
}

/* Writing. */

static struct write *log_write(uint64_t sector, uint64_t count)
{
	uint32_t index = atomic_fetch_add(&test.write_count, 1);
	struct write *write = &test.writes[index];

	if (index >= MAX_WRITES)
		violation("the log is full");
	write->first = sector / test.granularity;
	write->last = (sector + count - 1) / test.granularity;
	atomic_store(&write->completed, UINT64_MAX);
	write->issued = tick();
	return write;
}

/*
 * Zeroes and discards change the data as well, where the device offers them. A
 * discard marks nothing where a snapshot has not copied yet, so it must not be
 * under way when one is taken: only the main thread discards.
 */
static int write_data(uint64_t *random, uint64_t sector, uint64_t count, const void *data)
{
	uint64_t range[2] = { sector * SECTOR_BYTES, count * SECTOR_BYTES };
	uint64_t kind = random_below(random, 8);

	if (kind == 0)
		return ioctl(test.origin, BLKZEROOUT, range);
	if (kind == 1 && test.can_discard && test.snapshot < 0 && random == &test.random)
		return ioctl(test.origin, BLKDISCARD, range);
	return pwrite(test.origin, data, range[1], (off_t)range[0]) == (ssize_t)range[1] ? 0 : -1;
}

static void write_somewhere(uint64_t *random, const void *data)
{
	uint64_t sector = random_below(random, test.sectors);
	uint64_t count = 1 + random_below(random, 1ull << random_below(random, 10));
	struct write *write;

	if (count > MAX_IO_SECTORS)
		count = MAX_IO_SECTORS;
	if (count > test.sectors - sector)
		count = test.sectors - sector;
	write = log_write(sector, count);
	if (write_data(random, sector, count, data))
		violation("write of sector %" PRIu64 "+%" PRIu64 " failed: %s", sector, count,
			  strerror(errno));
	atomic_store(&write->completed, tick());
}

static void *io_buffer(void)
{
	void *buffer = aligned_alloc(IO_ALIGNMENT, MAX_IO_SECTORS * SECTOR_BYTES);

	if (!buffer)
		violation("out of memory");
	memset(buffer, 0x5a, MAX_IO_SECTORS * SECTOR_BYTES);
	return buffer;
}

static void *writer_main(void *argument)
{
	uint64_t random = mix64(test.seed ^ (uintptr_t)argument);
	void *data = io_buffer();

	while (!atomic_load(&test.writers_stop))
		write_somewhere(&random, data);
	free(data);
	return NULL;
}

static void start_writers(void)
{
	unsigned int i;

	if (test.writers_run)
		return;
	atomic_store(&test.writers_stop, false);
	for (i = 0; i < WRITERS; i++)
		if (pthread_create(&test.writers[i], NULL, writer_main,
				   (void *)(uintptr_t)random_next(&test.random)))
			violation("cannot start a thread");
	test.writers_run = true;
}

static void stop_writers(void)
{
	unsigned int i;

	if (!test.writers_run)
		return;
	atomic_store(&test.writers_stop, true);
	for (i = 0; i < WRITERS; i++)
		pthread_join(test.writers[i], NULL);
	test.writers_run = false;
}

/* Judging. */

/* One byte for each granule; also checks that no extent ends inside of one. */
static void read_map(int fd, const char *checkpoint, uint8_t *values)
{
	uint64_t bytes = test.sectors * SECTOR_BYTES;
	uint64_t granule_bytes = test.granularity * SECTOR_BYTES;
	struct fleece_extent extents[MAP_EXTENTS];
	uint64_t offset = 0;
	uint64_t covered;
	int count, i;

	while (offset < bytes) {
		count = fleece_control_extents(test.control, fd, FLEECE_MAP_CHANGED, checkpoint,
					       offset, bytes - offset, extents, MAP_EXTENTS,
					       &covered);
		if (count < 0)
			violation("cannot read the map since %s: %s", checkpoint,
				  strerror(-count));
		for (i = 0; i < count; i++) {
			uint64_t end = extents[i].offset + extents[i].length;

			if (extents[i].offset % granule_bytes ||
			    (end % granule_bytes && end != bytes))
				violation("map since %s: extent %llu+%llu is not of granules",
					  checkpoint, extents[i].offset, extents[i].length);
			memset(values + extents[i].offset / granule_bytes, (int)extents[i].value,
			       (extents[i].length + granule_bytes - 1) / granule_bytes);
		}
		if (!covered)
			violation("map since %s: an answer covers nothing", checkpoint);
		offset += covered;
	}
}

#define IS_SURE		1
#define IS_POSSIBLE	2

static void expect_map(const struct moment *from, const struct moment *until, uint8_t *expected)
{
	uint32_t count = atomic_load(&test.write_count);
	uint32_t i;

	memset(expected, 0, test.granules);
	for (i = 0; i < count; i++) {
		const struct write *write = &test.writes[i];
		uint64_t completed = atomic_load(&write->completed);
		uint8_t flags = 0;
		uint64_t granule;

		if (completed > from->before && write->issued < until->after)
			flags |= IS_POSSIBLE;
		if (write->issued > from->after && completed < until->before)
			flags |= IS_SURE;
		for (granule = write->first; flags && granule <= write->last; granule++)
			expected[granule] |= flags;
	}
}

static void judge_map(const char *what, const struct mark *mark, const struct moment *until,
		      const uint8_t *values)
{
	uint8_t *expected = malloc(test.granules);
	bool is_exact = true;
	uint64_t i;

	if (!expected)
		violation("out of memory");
	expect_map(&mark->moment, until, expected);
	for (i = 0; i < test.granules; i++) {
		if (expected[i] & IS_SURE && !values[i])
			violation("%s, map since %s: granule %" PRIu64
				  " is clean, but it was written", what, mark->name, i);
		if (!(expected[i] & IS_POSSIBLE) && values[i])
			violation("%s, map since %s: granule %" PRIu64
				  " is changed, but it was not written", what, mark->name, i);
		is_exact &= expected[i] != IS_POSSIBLE;
	}
	free(expected);
	test.judged++;
	test.exact += is_exact;
}

static void judge_origin(const struct mark *mark)
{
	uint8_t *values = calloc(test.granules, 1);
	struct moment now;

	if (!values)
		violation("out of memory");
	now.before = tick();
	read_map(test.origin, mark->name, values);
	now.after = tick();
	judge_map("origin", mark, &now, values);
	free(values);
}

/* A snapshot's maps are right at first, and stay what they are. */
static void judge_snapshot(struct mark *mark)
{
	uint8_t *values = calloc(test.granules, 1);

	if (!values)
		violation("out of memory");
	read_map(test.snapshot, mark->name, values);
	if (mark->frozen && memcmp(values, mark->frozen, test.granules))
		violation("snapshot, map since %s has moved", mark->name);
	if (!mark->frozen) {
		judge_map("snapshot", mark, &test.snapshot_moment, values);
		mark->frozen = values;
	} else {
		free(values);
	}
}

static void judge_some(void)
{
	unsigned int start = (unsigned int)random_below(&test.random, MAX_MARKS);
	unsigned int left = JUDGED_MARKS;
	unsigned int i;

	for (i = 0; i < MAX_MARKS && left; i++) {
		struct mark *mark = &test.marks[(start + i) % MAX_MARKS];

		if (!mark->is_alive && !mark->is_in_snapshot)
			continue;
		left--;
		if (mark->is_alive)
			judge_origin(mark);
		if (mark->is_in_snapshot)
			judge_snapshot(mark);
	}
}

/* Steps. */

static struct mark *free_mark(void)
{
	unsigned int i;

	for (i = 0; i < MAX_MARKS; i++)
		if (!test.marks[i].is_alive && !test.marks[i].is_in_snapshot)
			return &test.marks[i];
	return NULL;
}

static struct mark *some_mark(void)
{
	unsigned int start = (unsigned int)random_below(&test.random, MAX_MARKS);
	unsigned int i;

	for (i = 0; i < MAX_MARKS; i++)
		if (test.marks[(start + i) % MAX_MARKS].is_alive)
			return &test.marks[(start + i) % MAX_MARKS];
	return NULL;
}

static void create_mark(void)
{
	struct mark *mark = free_mark();

	if (!mark)
		return;
	snprintf(mark->name, sizeof(mark->name), "m%u", ++test.names);
	mark->moment.before = tick();
	require(dm_message(test.name, "checkpoint_create %s", mark->name),
		"create a checkpoint");
	mark->moment.after = tick();
	mark->is_alive = true;
}

static void delete_mark(void)
{
	struct mark *mark = some_mark();

	if (!mark)
		return;
	require(dm_message(test.name, "checkpoint_delete %s", mark->name),
		"delete a checkpoint");
	mark->is_alive = false;
}

static void create_snapshot(void)
{
	const struct mark *since = random_below(&test.random, 2) ? some_mark() : NULL;
	char params[256], features[96];
	char name[96], path[32];
	struct mark *made = free_mark();
	unsigned int i;

	if (test.snapshot >= 0 || !made)
		return;
	snprintf(made->name, sizeof(made->name), "m%u", ++test.names);
	if (since)
		snprintf(features, sizeof(features), "4 checkpoint %s since %s", made->name,
			 since->name);
	else
		snprintf(features, sizeof(features), "2 checkpoint %s", made->name);
	snprintf(params, sizeof(params), "%s %s 128 %s", test.lower, test.cow, features);
	snprintf(name, sizeof(name), "%s-snap", test.name);
	test.snapshot_moment.before = tick();
	require(dm_create(name, test.sectors, "fleece-snapshot", params, path),
		"create a snapshot");
	test.snapshot_moment.after = tick();
	made->moment = test.snapshot_moment;
	made->is_alive = true;
	test.snapshot = open(path, O_RDONLY | O_CLOEXEC);
	if (test.snapshot < 0)
		violation("cannot open the snapshot: %s", strerror(errno));
	for (i = 0; i < MAX_MARKS; i++)
		test.marks[i].is_in_snapshot = test.marks[i].is_alive;
	test.snapshots++;
}

static void remove_snapshot(void)
{
	char name[96];
	unsigned int i;

	if (test.snapshot < 0)
		return;
	for (i = 0; i < MAX_MARKS; i++) {
		if (test.marks[i].is_in_snapshot)
			judge_snapshot(&test.marks[i]);
		test.marks[i].is_in_snapshot = false;
		free(test.marks[i].frozen);
		test.marks[i].frozen = NULL;
	}
	close(test.snapshot);
	test.snapshot = -1;
	snprintf(name, sizeof(name), "%s-snap", test.name);
	require(dm_remove(name), "remove the snapshot");
}

static void step(void *data)
{
	uint64_t kind = random_below(&test.random, 20);
	unsigned int i;

	if (kind < 6)
		create_mark();
	else if (kind < 9)
		delete_mark();
	else if (kind < 11)
		create_snapshot();
	else if (kind < 12)
		remove_snapshot();
	else if (kind < 13)
		start_writers();
	else if (kind < 15)
		stop_writers();
	else
		for (i = 0; i <= random_below(&test.random, 20); i++)
			write_somewhere(&test.random, data);
	judge_some();
}

static int open_all(void)
{
	struct fleece_info info;
	uint64_t bytes;
	char path[32];
	int ret;

	test.snapshot = -1;
	test.control = fleece_control_open();
	if (test.control < 0)
		return test.control;
	ret = dm_path(test.name, path);
	if (ret)
		return ret;
	test.origin = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (test.origin < 0 || ioctl(test.origin, BLKGETSIZE64, &bytes) < 0)
		return -errno;
	ret = fleece_control_info(test.control, test.origin, &info);
	if (ret)
		return ret;
	test.sectors = bytes / SECTOR_BYTES;
	test.granularity = info.granularity / SECTOR_BYTES;
	test.granules = (test.sectors + test.granularity - 1) / test.granularity;
	test.writes = calloc(MAX_WRITES, sizeof(*test.writes));
	return test.writes ? 0 : -ENOMEM;
}

static uint64_t now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "discard", no_argument, NULL, 'd' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int seconds = 10, steps = 0;
	uint64_t end;
	void *data;
	int option, ret;

	test.seed = (uint64_t)time(NULL);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 's')
			seconds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (option == 'r')
			test.seed = strtoull(optarg, NULL, 10);
		else if (option == 'd')
			test.can_discard = true;
		else
			return 2;
	}
	if (argc - optind != 3) {
		fprintf(stderr, "usage: changes [--seconds N] [--seed N] [--discard] NAME LOWER COW\n");
		return 2;
	}
	test.name = argv[optind];
	test.lower = argv[optind + 1];
	test.cow = argv[optind + 2];
	test.random = test.seed;
	ret = open_all();
	if (ret) {
		fprintf(stderr, "changes: cannot use '%s': %s\n", test.name, strerror(-ret));
		return 1;
	}
	data = io_buffer();
	end = now_seconds() + seconds;
	while (now_seconds() < end) {
		step(data);
		steps++;
	}
	stop_writers();
	judge_some();
	remove_snapshot();
	free(data);
	printf("# changes: seed %" PRIu64 ": %u steps, %u writes, %u checkpoints, %u snapshots, %"
	       PRIu64 " maps judged, %" PRIu64 " of them exactly, 0 violations\n",
	       test.seed, steps, atomic_load(&test.write_count), test.names, test.snapshots,
	       test.judged, test.exact);
	return test.exact ? 0 : 1;
}
