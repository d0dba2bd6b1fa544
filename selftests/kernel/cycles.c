// SPDX-License-Identifier: GPL-2.0-only
/*
 * cycles: an origin and its snapshots go through random cycles of creation, suspension,
 * reload, renaming, release and removal, while a thread writes to the origin.
 *
 * A snapshot is read as a whole when it is new, now and then, after each release, and at its
 * end: what it may contain is decided in history.c, what is released in access.c. After so
 * many writes all snapshots are removed and the origin is judged, too. All random choices
 * come from one seed that is printed. The first violation is printed with its cycle and ends
 * the program with status 1; otherwise it leaves nothing behind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "access.h"
#include "dm.h"
#include "history.h"

#define MAX_SNAPSHOTS		8
#define MAX_SECTORS		8192
#define MAX_WRITE_SECTORS	256
#define NAME_BYTES		128
#define PARAMS_BYTES		512

/* The log of writes has room for twice as many, and for what is written in a wait. */
#define WRITES_OF_A_ROUND	50000

/* The writer's, so that the cycles get a processor where there are few. */
#define WRITER_DELAY_NS		1000000

/* What takes longer hangs. */
#define WAIT_TRIES		12000
#define WAIT_DELAY_NS		5000000

/* A device has one of two names. */
struct device {
	char names[2][NAME_BYTES];
	unsigned int name;
	const char *type;
	char path[32];
};

struct snapshot {
	struct device device;
	const char *cow;
	bool exists;
	struct cut cut;
	struct access access;
};

struct status {
	char state[16];
	unsigned int used;
	unsigned int lost;
	unsigned long long staged;
	int error;
};

static struct {
	struct history history;
	struct device origin;
	struct snapshot snapshots[MAX_SNAPSHOTS];
	unsigned int count;
	const char *lower;
	uint64_t seed;
	uint64_t random;
	uint64_t writer_random;
	unsigned int cycle;
	const char *operation;
	const char *on;			/* name of the device that it is about */
	int fd;				/* of the origin */
	pthread_t writer;
	struct bounds written;		/* before it was started */
	atomic_bool writer_stop;
	uint64_t judged;
} test;

static char read_buffer[MAX_SECTORS * SECTOR_BYTES] __attribute__((aligned(4096)));
static char write_buffer[MAX_WRITE_SECTORS * SECTOR_BYTES] __attribute__((aligned(4096)));

static void violation(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void violation(const char *format, ...)
{
	va_list args;

	flockfile(stderr);
	fprintf(stderr, "cycles: violation: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\ncycles: seed %" PRIu64 " cycle %u: %s %s\n", test.seed, test.cycle,
		test.operation, test.on);
	_exit(1);
}

static void require(int ret, const char *what)
{
	if (ret)
		violation("cannot %s: %s", what, strerror(-ret));
}

static const char *name_of(const struct device *device)
{
	return device->names[device->name];
}

/* Returns false when it has been tried for so long that it will not be. */
static bool wait_until(bool (*is_so)(const struct snapshot *), const struct snapshot *snapshot)
{
	struct timespec delay = { .tv_nsec = WAIT_DELAY_NS };
	unsigned int tries;

	for (tries = 0; tries < WAIT_TRIES; tries++) {
		if (is_so(snapshot))
			return true;
		nanosleep(&delay, NULL);
	}
	return false;
}

/* Writing. */

static void write_stamped(uint64_t sector, uint64_t count)
{
	struct stamp_id id = { .run = test.history.run };
	uint64_t i;

	id.sequence = history_begin(&test.history, 0, WRITE_DATA, 0, sector, count);
	for (i = 0; i < count; i++) {
		id.sector = sector + i;
		stamp_write(write_buffer + i * SECTOR_BYTES, &id);
	}
	if (pwrite(test.fd, write_buffer, count * SECTOR_BYTES,
		   (off_t)(sector * SECTOR_BYTES)) != (ssize_t)(count * SECTOR_BYTES))
		violation("live write of sector %" PRIu64 "+%" PRIu64 " failed: %s", sector,
			  count, strerror(errno));
	history_end(&test.history, 0);
}

static uint64_t at_most(uint64_t count, uint64_t limit)
{
	return count < limit ? count : limit;
}

static void write_everything(void)
{
	uint64_t sector, count;

	for (sector = 0; sector < test.history.sectors; sector += count) {
		count = at_most(test.history.sectors - sector, MAX_WRITE_SECTORS);
		write_stamped(sector, count);
	}
}

static void *writer_main(void *argument)
{
	struct timespec delay = { .tv_nsec = WRITER_DELAY_NS };
	uint64_t *random = &test.writer_random;

	(void)argument;
	while (!atomic_load(&test.writer_stop)) {
		uint64_t sector = random_below(random, test.history.sectors) / 8 * 8;
		uint64_t count = 8ull << random_below(random, 6);

		write_stamped(sector, at_most(count, test.history.sectors - sector));
		if (!random_below(random, 4))
			nanosleep(&delay, NULL);
	}
	return NULL;
}

/* Judging. */

static void judge_data(struct cut *cut, const char *what, uint64_t sector, uint64_t count)
{
	struct finding finding = { 0 };
	enum verdict verdict;
	uint64_t bad;

	verdict = cut_check(cut, 0, sector, read_buffer, count, &bad, &finding);
	if (verdict)
		violation("%s sector %" PRIu64 " %s: expected a version from %u to %u, found %u of sector %"
			  PRIu64, what, sector + bad, verdict_text(verdict), finding.lower,
			  finding.upper, finding.found.sequence, finding.found.sector);
	test.judged += count;
}

static int read_sectors(int fd, uint64_t sector, uint64_t count)
{
	ssize_t bytes = (ssize_t)(count * SECTOR_BYTES);
	ssize_t done = pread(fd, read_buffer, (size_t)bytes, (off_t)(sector * SECTOR_BYTES));

	if (done < 0)
		return -errno;
	return done == bytes ? 0 : -EPROTO;
}

/* What has been asked for is gone, for no release is under way. */
static bool is_released(const struct snapshot *snapshot, uint64_t sector)
{
	return access_is_doubtful(&snapshot->access, sector, 1);
}

/* Clusters in a row that must be served are read at once, released ones one by one. */
static uint64_t judge_piece(struct snapshot *snapshot, int fd, uint64_t sector)
{
	uint64_t sectors = test.history.sectors;
	uint64_t count = snapshot->access.cluster;
	bool is_gone = is_released(snapshot, sector);
	int ret;

	while (!is_gone && sector + count < sectors && !is_released(snapshot, sector + count))
		count += snapshot->access.cluster;
	count = at_most(count, sectors - sector);
	ret = read_sectors(fd, sector, count);
	if (is_gone && ret != -ENODATA)
		violation("sector %" PRIu64 "+%" PRIu64 " is released, but reading it: %s", sector,
			  count, strerror(-ret));
	if (!is_gone && ret)
		violation("cannot read sector %" PRIu64 "+%" PRIu64 ": %s", sector, count,
			  strerror(-ret));
	if (!is_gone)
		judge_data(&snapshot->cut, "snapshot", sector, count);
	return count;
}

static void read_status(const struct snapshot *snapshot, struct status *status)
{
	char text[256];

	require(dm_status(name_of(&snapshot->device), text, sizeof(text)), "read the status");
	if (sscanf(text, "%15s %u/%*u %*u %*u/%*u %*u %*u %u %llu %*u %d", status->state,
		   &status->used, &status->lost, &status->staged, &status->error) != 5)
		violation("the status is '%s'", text);
	if (strcmp(status->state, "active") || status->lost || status->error)
		violation("the snapshot is not whole: '%s'", text);
}

static int open_snapshot(const struct snapshot *snapshot)
{
	int fd = open(snapshot->device.path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0)
		violation("cannot open %s: %s", snapshot->device.path, strerror(errno));
	return fd;
}

static void compare(struct snapshot *snapshot)
{
	int fd = open_snapshot(snapshot);
	struct status status;
	uint64_t sector = 0;

	while (sector < test.history.sectors)
		sector += judge_piece(snapshot, fd, sector);
	close(fd);
	read_status(snapshot, &status);
}

/* Operations on a snapshot that does not exist. */

/* Any of the features goes with any other one; each is some words. */
static void choose_params(const struct snapshot *snapshot, uint64_t cluster, char *params)
{
	static const struct {
		unsigned int words;
		const char *text;
	} features[] = {
		{ 2, " staging 0" },
		{ 2, " on_cbw_error break_cluster" },
		{ 2, " on_cow_full wait" },
		{ 1, " release_on_discard" },
	};
	char text[128] = "";
	unsigned int words = 0;
	unsigned int i;

	for (i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		if (random_below(&test.random, 2))
			continue;
		words += features[i].words;
		strcat(text, features[i].text);
	}
	snprintf(params, PARAMS_BYTES, "%s %s %" PRIu64 " %u%s", test.lower, snapshot->cow,
		 cluster, words, text);
}

/* The moment is between the two times of the clock. */
static void create(struct snapshot *snapshot, bool is_suspended)
{
	static const uint64_t clusters[] = { 8, 32, 128, 1024 };
	uint64_t cluster = clusters[random_below(&test.random, 4)];
	struct device *device = &snapshot->device;
	char params[PARAMS_BYTES];
	struct bounds clock;
	uint64_t sector;
	int resumed = 0;
	int ret;

	choose_params(snapshot, cluster, params);
	if (is_suspended) {
		require(dm_suspend(name_of(&test.origin)), "suspend the origin");
		bounds_issued(&clock, &test.history);
	} else {
		bounds_completed(&clock, &test.history);
	}
	ret = dm_create(name_of(device), test.history.sectors, device->type, params,
			device->path);
	if (is_suspended) {
		bounds_completed(&clock, &test.history);
		/* Even after an error: a writer that is held cannot be ended. */
		resumed = dm_resume(name_of(&test.origin));
	} else {
		bounds_issued(&clock, &test.history);
	}
	require(ret, "create it");
	require(resumed, "resume the origin");
	require(cut_init(&snapshot->cut, &test.history, &clock), "judge it");
	require(access_init(&snapshot->access, test.history.sectors, cluster), "judge it");
	for (sector = 0; sector < test.history.sectors; sector += cluster)
		access_set(&snapshot->access, sector, ACCESS_MUST | ACCESS_MAY);
	snapshot->exists = true;
	compare(snapshot);
}

static void create_live(struct snapshot *snapshot)
{
	create(snapshot, false);
}

/* The order of a group: the origin suspended, the snapshot resumed, the origin resumed. */
static void create_suspended(struct snapshot *snapshot)
{
	create(snapshot, true);
}

/* Operations on one that exists. */

static void forget(struct snapshot *snapshot)
{
	snapshot->exists = false;
	cut_exit(&snapshot->cut);
	access_exit(&snapshot->access);
}

static void remove_snapshot(struct snapshot *snapshot)
{
	compare(snapshot);
	require(dm_remove(name_of(&snapshot->device)), "remove it");
	forget(snapshot);
}

/* The name goes first; with the node, what it uses is free as well. */
static bool is_gone(const struct snapshot *snapshot)
{
	return access(snapshot->device.path, F_OK) < 0;
}

/* Its reader is served as long as he has it open. */
static void remove_deferred(struct snapshot *snapshot)
{
	int fd = open_snapshot(snapshot);

	require(dm_remove_deferred(name_of(&snapshot->device)), "remove it when it is closed");
	judge_piece(snapshot, fd, 0);
	close(fd);
	if (!wait_until(is_gone, snapshot))
		violation("it has been closed and is still there");
	forget(snapshot);
}

static bool has_no_slot(const struct snapshot *snapshot)
{
	struct status status;

	read_status(snapshot, &status);
	return !status.used && !status.staged;
}

/* A part, or all of it. */
static void release(struct snapshot *snapshot)
{
	uint64_t sectors = test.history.sectors;
	bool is_all = random_below(&test.random, 2);
	uint64_t sector = is_all ? 0 : random_below(&test.random, sectors);
	uint64_t count = is_all ? sectors : 1 + random_below(&test.random, sectors - sector);

	require(dm_message(name_of(&snapshot->device), "release %" PRIu64 " %" PRIu64, sector,
			   count), "release a part of it");
	access_release_begin(&snapshot->access, sector, count);
	if (is_all && !wait_until(has_no_slot, snapshot))
		violation("all is released, and it still has slots");
	compare(snapshot);
}

/* Operations on any device. */

static void suspend(const struct device *device)
{
	require(dm_suspend(name_of(device)), "suspend it");
	require(dm_resume(name_of(device)), "resume it");
}

/* The table that it has, loaded before it is suspended or while it is. */
static void reload(const struct device *device)
{
	const char *name = name_of(device);
	char params[PARAMS_BYTES];
	int resumed;
	int ret;

	require(dm_params(name, params, sizeof(params)), "read its table");
	if (random_below(&test.random, 2)) {
		ret = dm_reload(name, test.history.sectors, device->type, params);
		if (ret)
			dm_resume(name);
		require(ret, "reload it");
		return;
	}
	require(dm_suspend(name), "suspend it");
	ret = dm_load(name, test.history.sectors, device->type, params);
	resumed = dm_resume(name);
	require(ret, "load its table while it is suspended");
	require(resumed, "resume it with its table");
}

static void rename_device(struct device *device)
{
	require(dm_rename(name_of(device), device->names[!device->name]), "rename it");
	device->name = !device->name;
}

static void suspend_snapshot(struct snapshot *snapshot)
{
	suspend(&snapshot->device);
}

static void reload_snapshot(struct snapshot *snapshot)
{
	reload(&snapshot->device);
}

static void rename_snapshot(struct snapshot *snapshot)
{
	rename_device(&snapshot->device);
}

static void suspend_origin(struct snapshot *unused)
{
	(void)unused;
	suspend(&test.origin);
}

static void suspend_origin_noflush(struct snapshot *unused)
{
	(void)unused;
	require(dm_suspend_noflush(name_of(&test.origin)), "suspend it");
	require(dm_resume(name_of(&test.origin)), "resume it");
}

static void reload_origin(struct snapshot *unused)
{
	(void)unused;
	reload(&test.origin);
}

static void rename_origin(struct snapshot *unused)
{
	(void)unused;
	rename_device(&test.origin);
}

static void make_checkpoint(struct snapshot *unused)
{
	const char *name = name_of(&test.origin);

	(void)unused;
	require(dm_message(name, "checkpoint_create now"), "create a checkpoint");
	require(dm_message(name, "checkpoint_list"), "list the checkpoints");
	require(dm_message(name, "checkpoint_delete now"), "delete a checkpoint");
}

/* Cycles. */

struct operation {
	const char *name;
	void (*run)(struct snapshot *snapshot);
	unsigned int count;
};

static struct operation if_absent[] = {
	{ "create", create_live, 0 },
	{ "create suspended", create_suspended, 0 },
};

static struct operation if_present[] = {
	{ "compare", compare, 0 },
	{ "suspend", suspend_snapshot, 0 },
	{ "reload", reload_snapshot, 0 },
	{ "rename", rename_snapshot, 0 },
	{ "release", release, 0 },
	{ "remove", remove_snapshot, 0 },
	{ "remove deferred", remove_deferred, 0 },
};

static struct operation always[] = {
	{ "suspend", suspend_origin, 0 },
	{ "suspend noflush", suspend_origin_noflush, 0 },
	{ "reload", reload_origin, 0 },
	{ "rename", rename_origin, 0 },
	{ "make a checkpoint", make_checkpoint, 0 },
};

#define COUNT(operations) (sizeof(operations) / sizeof((operations)[0]))

static void run_operation(struct operation *operations, size_t count, struct device *device,
			  struct snapshot *snapshot)
{
	struct operation *operation = &operations[random_below(&test.random, count)];

	test.operation = operation->name;
	test.on = name_of(device);
	operation->run(snapshot);
	operation->count++;
}

static void run_cycle(void)
{
	struct snapshot *snapshot = &test.snapshots[random_below(&test.random, test.count)];

	if (random_below(&test.random, 4) == 0)
		run_operation(always, COUNT(always), &test.origin, snapshot);
	else if (snapshot->exists)
		run_operation(if_present, COUNT(if_present), &snapshot->device, snapshot);
	else
		run_operation(if_absent, COUNT(if_absent), &snapshot->device, snapshot);
}

static void print_counts(const char *of, const struct operation *operations, size_t count)
{
	printf("# cycles: %s:", of);
	while (count--) {
		printf(" %u %s%s", operations->count, operations->name, count ? "," : "\n");
		operations++;
	}
}

/* Rounds. */

static void start_writer(void)
{
	atomic_store(&test.writer_stop, false);
	bounds_completed(&test.written, &test.history);
	if (pthread_create(&test.writer, NULL, writer_main, NULL))
		violation("cannot start a thread");
}

static bool has_written(const struct snapshot *unused)
{
	struct bounds now;

	(void)unused;
	bounds_completed(&now, &test.history);
	return now.completed[0] > test.written.completed[0];
}

static void stop_writer(void)
{
	if (!wait_until(has_written, NULL))
		violation("nothing is written any more");
	atomic_store(&test.writer_stop, true);
	pthread_join(test.writer, NULL);
}

/* The origin has all that was written to it. No more is kept of the log. */
static void judge_origin(void)
{
	struct bounds clock;
	struct cut cut;

	bounds_completed(&clock, &test.history);
	bounds_issued(&clock, &test.history);
	require(cut_init(&cut, &test.history, &clock), "judge it");
	require(read_sectors(test.fd, 0, test.history.sectors), "read it");
	judge_data(&cut, "origin", 0, test.history.sectors);
	require(history_forget(&test.history, &cut), "keep the log of writes");
	cut_exit(&cut);
}

static bool log_is_full(void)
{
	struct bounds now;

	bounds_issued(&now, &test.history);
	return now.issued[0] - test.written.completed[0] >= WRITES_OF_A_ROUND;
}

static void run_round(unsigned int cycles)
{
	unsigned int i;

	start_writer();
	while (test.cycle < cycles && !log_is_full()) {
		run_cycle();
		test.cycle++;
	}
	test.operation = "end of the round";
	for (i = 0; i < test.count; i++) {
		test.on = name_of(&test.snapshots[i].device);
		if (test.snapshots[i].exists)
			remove_snapshot(&test.snapshots[i]);
	}
	test.on = name_of(&test.origin);
	stop_writer();
	judge_origin();
}

static void init_device(struct device *device, const char *type, const char *name)
{
	device->type = type;
	snprintf(device->names[0], NAME_BYTES, "%.100s", name);
	snprintf(device->names[1], NAME_BYTES, "%.100s-renamed", name);
}

static void prepare(char *const *arguments, unsigned int snapshots)
{
	char name[NAME_BYTES];
	uint64_t bytes = 0;
	unsigned int i;

	test.operation = "preparation of";
	test.on = arguments[0];
	test.random = test.seed;
	test.writer_random = mix64(test.seed);
	init_device(&test.origin, "fleece", arguments[0]);
	test.lower = arguments[1];
	test.count = snapshots;
	for (i = 0; i < snapshots; i++) {
		test.snapshots[i].cow = arguments[2 + i];
		snprintf(name, sizeof(name), "%.80s-%u", arguments[0], i);
		init_device(&test.snapshots[i].device, "fleece-snapshot", name);
	}
	require(dm_path(arguments[0], test.origin.path), "find it");
	test.fd = open(test.origin.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (test.fd < 0 || ioctl(test.fd, BLKGETSIZE64, &bytes) < 0)
		violation("cannot open %s: %s", test.origin.path, strerror(errno));
	test.history.run = mix64(test.seed + 1);
	test.history.devices = 1;
	test.history.writers = 1;
	test.history.sectors = bytes / SECTOR_BYTES;
	test.history.region = test.history.sectors;
	if (test.history.sectors > MAX_SECTORS)
		violation("it is too large");
	require(history_init(&test.history), "log writes");
	write_everything();
}

static void report(void)
{
	struct bounds clock;

	bounds_completed(&clock, &test.history);
	print_counts("of the origin", always, COUNT(always));
	print_counts("without a snapshot", if_absent, COUNT(if_absent));
	print_counts("of a snapshot", if_present, COUNT(if_present));
	printf("# cycles: %u in all, %u live writes, %" PRIu64 " MiB judged, 0 violations\n",
	       test.cycle, clock.completed[0], test.judged * SECTOR_BYTES >> 20);
}

static int usage(void)
{
	fprintf(stderr, "usage: cycles [--seed N] [--cycles N] ORIGIN LOWER COW...\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 'r' },
		{ "cycles", required_argument, NULL, 'c' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int cycles = 100;
	int option;

	test.seed = (uint64_t)time(NULL);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'r')
			test.seed = strtoull(optarg, NULL, 10);
		else if (option == 'c')
			cycles = (unsigned int)strtoul(optarg, NULL, 10);
		else
			return usage();
	}
	if (argc - optind < 3 || argc - optind > 2 + MAX_SNAPSHOTS)
		return usage();
	printf("# cycles: seed %" PRIu64 "\n", test.seed);
	fflush(stdout);
	prepare(argv + optind, (unsigned int)(argc - optind) - 2);
	while (test.cycle < cycles)
		run_round(cycles);
	if (test.origin.name)
		rename_device(&test.origin);
	report();
	return 0;
}
