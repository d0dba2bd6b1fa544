// SPDX-License-Identifier: GPL-2.0-only
/*
 * The oracle: writes, zeroes and discards, readers, releases, suspends and growing COW
 * devices against group snapshots of all policies, in rounds, and every sector read is
 * judged.
 *
 * Owns the threads, the course of a round and the random choices, all of which
 * come from one seed that is printed. What an image may contain is decided in
 * history.c, which clusters may be served in access.c; what is examined is behind
 * backend.h. The first violation is printed with its place and ends the program
 * with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/dm-fleece.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "access.h"
#include "backend.h"
#include "history.h"

#define WRITERS			3
#define READERS			2
#define MAX_IO_SECTORS		2048
#define IO_ALIGNMENT		4096
#define NAME_BYTES		64

/* Longer than any wait the snapshots allow themselves by default; times oracle.slowdown. */
#define LIVE_LIMIT_MS		40000
#define IDLE_LIMIT_MS		30000

#define FAKE_SECTORS		4093
#define SELFTEST_SECONDS	30

enum release_way {
	RELEASE_NEVER,
	RELEASE_MESSAGE,
	RELEASE_DISCARD,
	RELEASE_WAYS,
};

enum policy {
	POLICY_BREAK_SNAPSHOT,
	POLICY_BREAK_CLUSTER,
	POLICY_BREAK_WRITE,
	POLICY_WAIT,
	POLICIES,
};

/* What becomes of snapshot and writes when the COW device is full, as features. */
static const char *const policy_features[POLICIES] = {
	[POLICY_BREAK_SNAPSHOT] = "on_cbw_error break_snapshot",
	[POLICY_BREAK_CLUSTER] = "on_cbw_error break_cluster",
	[POLICY_BREAK_WRITE] = "on_cbw_error break_write",
	[POLICY_WAIT] = "on_cow_full wait",
};

/*
 * A checkpoint that a later round can start from. What was completed before it
 * is not in its change map, what was issued after it is.
 */
struct mark {
	bool is_valid;
	char name[NAME_BYTES];
	struct bounds clock;
};

/* One snapshot. Constant while readers run, except for the atomic fields. */
struct snapshot {
	struct cut *cut;
	struct cut own_cut;
	struct access access;
	uint8_t *changed;		/* the change map as it was first read */
	atomic_bool is_broken;		/* a reader knows that it is broken */
};

enum operation {
	OPERATION_WRITE,
	OPERATION_ZERO,
	OPERATION_DISCARD,
	OPERATIONS,
};

/* What discards of the origins do, which depends on their feature arguments. */
enum discards {
	DISCARDS_REFUSED,
	DISCARDS_ADVISORY,
	DISCARDS_ZEROING,
};

/*
 * A write of any kind. One that fails under POLICY_BREAK_WRITE, and may yet be there
 * in part, is repeated until it succeeds, if need be when the snapshots are gone.
 * Until then it is one that was issued and has not completed.
 */
struct live_write {
	enum operation operation;
	unsigned int device;
	uint64_t sector;
	uint64_t count;
};

/* The random choices of a round. */
struct choices {
	bool is_group;
	bool has_since;
	bool makes_checkpoint;
	bool is_small;			/* the COW device may become full */
	bool has_small_writes;
	bool has_pauses;		/* origins and snapshots are suspended at times */
	enum policy policy;
	enum release_way release;
	uint64_t cluster;
	uint64_t staging;
	uint64_t slots;
	unsigned int before_ms;
	unsigned int after_ms;
};

/* Nobody is to wait long for a slot that does not come; a copy may take its time. */
static const char *features_of(const struct choices *choices)
{
	if (choices->policy == POLICY_WAIT && choices->is_small)
		return "on_cow_full wait cbw_timeout 500";
	return policy_features[choices->policy];
}

static struct {
	const struct backend *backend;
	struct history history;
	struct choices choices;
	struct mark marks[MAX_DEVICES];
	struct snapshot snapshots[MAX_DEVICES];
	struct live_write failed[WRITERS];	/* of no sectors: there is none */
	char *buffers[WRITERS];
	enum discards discards;
	uint64_t seed;
	uint64_t granularity;
	unsigned int round;
	unsigned int slowdown;		/* of the machine, see run-tests */
	unsigned int pace;		/* percent of the normal length of a round */
	bool is_lossy;			/* the snapshots of all rounds lose clusters */
	bool has_faults;		/* allocations fail: not every loss can be noted */
	unsigned int checkpoints;	/* made so far, for their names */
	atomic_bool writers_stop;
	atomic_bool readers_stop;
	atomic_uint_least64_t written_sectors;
	atomic_uint_least64_t judged_sectors;
	atomic_uint_least64_t denied_reads;
	atomic_uint_least64_t failed_reads;
	atomic_uint_least64_t releases;
	atomic_uint_least64_t failed_writes;
	atomic_uint_least64_t operations[OPERATIONS];
	atomic_uint pauses;
	atomic_uint growths;
	atomic_uint slowest_ms;
	unsigned int broken;
	unsigned int groups;
	unsigned int sinces;
} oracle;

static atomic_bool is_held[MAX_DEVICES];

static void violation(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* There is no going on after a violation: the model does not know what is true. */
static void violation(const char *format, ...)
{
	const struct choices *choices = &oracle.choices;
	unsigned int device;
	va_list args;

	flockfile(stderr);
	fprintf(stderr, "oracle: violation: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr,
		"\noracle: seed %" PRIu64 " round %u: cluster %" PRIu64 " staging %" PRIu64
		" slots %" PRIu64 " group %d since %d release %d pauses %d %s\n",
		oracle.seed, oracle.round, choices->cluster, choices->staging, choices->slots,
		choices->is_group, choices->has_since, choices->release, choices->has_pauses,
		features_of(choices));
	/* Writers that wait would keep this process from ending. */
	for (device = 0; device < MAX_DEVICES; device++)
		if (is_held[device])
			oracle.backend->let_go(device);
	_exit(1);
}

static void require(int ret, const char *what, unsigned int device)
{
	if (ret)
		violation("cannot %s of device %u: %s", what, device, strerror(-ret));
}

static void hold(unsigned int device)
{
	require(oracle.backend->hold(device), "suspend the origin", device);
	is_held[device] = true;
}

static void let_go(unsigned int device)
{
	is_held[device] = false;
	require(oracle.backend->let_go(device), "resume the origin", device);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void pass_ms(unsigned int ms)
{
	struct timespec delay = {
		.tv_sec = ms / 1000,
		.tv_nsec = (long)(ms % 1000) * 1000000,
	};

	nanosleep(&delay, NULL);
}

static void *io_buffer(void)
{
	void *buffer = aligned_alloc(IO_ALIGNMENT, MAX_IO_SECTORS * SECTOR_BYTES);

	if (!buffer)
		violation("out of memory");
	return buffer;
}

/* Small sizes are as likely as large ones, most are aligned to pages. */
static uint64_t random_count(uint64_t *random, uint64_t limit)
{
	uint64_t count = 1 + random_below(random, 1ull << random_below(random, 12));

	if (random_below(random, 4))
		count = (count + 7) / 8 * 8;
	return count < limit ? count : limit;
}

/* Writing. */

static int submit(const struct live_write *write, const char *data)
{
	switch (write->operation) {
	case OPERATION_ZERO:
		return oracle.backend->origin_zero(write->device, write->sector, write->count);
	case OPERATION_DISCARD:
		return oracle.backend->origin_discard(write->device, write->sector, write->count);
	default:
		return oracle.backend->origin_write(write->device, write->sector, write->count,
						    data);
	}
}

static enum write_kind kind_of(enum operation operation)
{
	if (operation == OPERATION_WRITE)
		return WRITE_DATA;
	if (operation == OPERATION_DISCARD && oracle.discards == DISCARDS_ADVISORY)
		return WRITE_ADVICE;
	return WRITE_ZEROES;
}

/* Returns false if it fails in a way that the snapshots' policy allows. */
static bool try_write(const struct live_write *write, const char *data)
{
	uint64_t begin_ms = now_ms();
	unsigned int took_ms;
	int ret;

	ret = submit(write, data);
	took_ms = (unsigned int)(now_ms() - begin_ms);
	if (took_ms > LIVE_LIMIT_MS * oracle.slowdown)
		violation("live write of device %u sector %" PRIu64 " took %u ms", write->device,
			  write->sector, took_ms);
	if (took_ms > atomic_load(&oracle.slowest_ms))
		atomic_store(&oracle.slowest_ms, took_ms);
	/* Advice is not worth a slot, so it can lack none. */
	if (ret == -ENOSPC && kind_of(write->operation) != WRITE_ADVICE &&
	    oracle.choices.is_small && oracle.choices.policy == POLICY_BREAK_WRITE) {
		atomic_fetch_add(&oracle.failed_writes, 1);
		return false;
	}
	if (ret)
		violation("live write of device %u sector %" PRIu64 "+%" PRIu64 " failed: %s (%d)",
			  write->device, write->sector, write->count, strerror(-ret),
			  write->operation);
	return true;
}

static void end_write(unsigned int writer, const struct live_write *write)
{
	history_end(&oracle.history, writer);
	atomic_fetch_add(&oracle.operations[write->operation], 1);
	atomic_fetch_add(&oracle.written_sectors, write->count);
}

/* Fills the writer's buffer for its next write. */
static void stamp_buffer(unsigned int writer, const struct live_write *write)
{
	struct stamp_id id = {
		.run = oracle.history.run, .device = write->device, .writer = writer,
	};
	uint64_t i;

	id.sequence = atomic_load(&oracle.history.logs[writer].issued) + 1;
	for (i = 0; i < write->count; i++) {
		id.sector = write->sector + i;
		stamp_write(oracle.buffers[writer] + i * SECTOR_BYTES, &id);
	}
}

/* Returns false if the write has failed for good. */
static bool write_logged(unsigned int writer, const struct live_write *write)
{
	if (write->operation == OPERATION_WRITE)
		stamp_buffer(writer, write);
	history_begin(&oracle.history, writer, kind_of(write->operation), write->device,
		      write->sector, write->count);
	while (!try_write(write, oracle.buffers[writer])) {
		if (atomic_load(&oracle.writers_stop)) {
			oracle.failed[writer] = *write;
			return false;
		}
		pass_ms(5);
	}
	end_write(writer, write);
	return true;
}

/* No snapshot is in their way any more. */
static void repeat_failed_writes(void)
{
	unsigned int writer;

	for (writer = 0; writer < WRITERS; writer++) {
		struct live_write *failed = &oracle.failed[writer];

		if (!failed->count)
			continue;
		if (!try_write(failed, oracle.buffers[writer]))
			violation("live write of device %u sector %" PRIu64
				  ": fails without a snapshot", failed->device, failed->sector);
		end_write(writer, failed);
		failed->count = 0;
	}
}

/* Three of four are of data. */
static enum operation random_operation(uint64_t *random)
{
	switch (random_below(random, 8)) {
	case 0:
		return OPERATION_ZERO;
	case 1:
		return oracle.discards == DISCARDS_REFUSED ? OPERATION_WRITE : OPERATION_DISCARD;
	default:
		return OPERATION_WRITE;
	}
}

static bool write_somewhere(unsigned int writer, uint64_t *random)
{
	const struct history *history = &oracle.history;
	unsigned int device = (unsigned int)random_below(random, history->devices);
	uint64_t sector = random_below(random, history->sectors);
	uint64_t begin = sector / history->region * history->region;
	uint64_t limit = oracle.choices.has_small_writes ? 16 : MAX_IO_SECTORS;
	struct live_write write = { .device = device };
	uint64_t room;

	if (history_owner(history, device, sector) != writer)
		return true;
	if (random_below(random, 4) && sector / 8 * 8 >= begin)
		sector = sector / 8 * 8;
	room = begin + history->region - sector;
	if (room > history->sectors - sector)
		room = history->sectors - sector;
	if (limit > room)
		limit = room;
	write.sector = sector;
	write.count = random_count(random, limit);
	write.operation = random_operation(random);
	return write_logged(writer, &write);
}

static void *writer_main(void *argument)
{
	unsigned int writer = (unsigned int)(uintptr_t)argument;
	uint64_t random = mix64(oracle.seed ^ mix64(oracle.round * 64 + writer));

	while (!atomic_load(&oracle.writers_stop) && write_somewhere(writer, &random))
		;
	return NULL;
}

static void write_everything(void)
{
	const struct history *history = &oracle.history;
	struct live_write write = { .operation = OPERATION_WRITE };

	for (write.device = 0; write.device < history->devices; write.device++) {
		for (write.sector = 0; write.sector < history->sectors;
		     write.sector += write.count) {
			write.count = history->region - write.sector % history->region;
			if (write.count > history->sectors - write.sector)
				write.count = history->sectors - write.sector;
			if (write.count > MAX_IO_SECTORS)
				write.count = MAX_IO_SECTORS;
			write_logged(history_owner(history, write.device, write.sector), &write);
		}
	}
}

/* Judging. */

static void judge_data(struct cut *cut, const char *what, unsigned int device, uint64_t sector,
		       uint64_t count, const char *data)
{
	struct finding finding = { 0 };
	enum verdict verdict;
	uint64_t bad;

	verdict = cut_check(cut, device, sector, data, count, &bad, &finding);
	if (verdict)
		violation("%s of device %u sector %" PRIu64 " (read of %" PRIu64 "+%" PRIu64
			  ") %s: expected a version of writer %u from %u to %u, found %s device %u sector %"
			  PRIu64 " writer %u version %u",
			  what, device, sector + bad, sector, count, verdict_text(verdict),
			  history_owner(&oracle.history, device, sector + bad), finding.lower,
			  finding.upper, finding.is_zero ? "zeroes, and no" : "those of",
			  finding.found.device, finding.found.sector,
			  finding.found.writer, finding.found.sequence);
	atomic_fetch_add(&oracle.judged_sectors, count);
}

/* Has it lost clusters of the range, as its policy allows when the COW device is full? */
static bool has_lost(unsigned int device, uint64_t sector, uint64_t count)
{
	return oracle.choices.is_small && oracle.choices.policy == POLICY_BREAK_CLUSTER &&
	       oracle.backend->snapshot_has_lost(device, sector, count) > 0;
}

static bool may_break(int state)
{
	if (!oracle.choices.is_small)
		return false;
	if (oracle.choices.policy == POLICY_BREAK_CLUSTER && state == -ENOSPC)
		return oracle.has_faults;
	return (oracle.choices.policy == POLICY_BREAK_SNAPSHOT && state == -ENOSPC) ||
	       (oracle.choices.policy == POLICY_WAIT && state == -ETIMEDOUT);
}

static void judge_eio(unsigned int device, uint64_t sector, uint64_t count)
{
	int state = oracle.backend->snapshot_state(device);

	if (!state && has_lost(device, sector, count)) {
		atomic_fetch_add(&oracle.failed_reads, 1);
		return;
	}
	if (!state)
		violation("snapshot of device %u sector %" PRIu64 "+%" PRIu64
			  ": I/O error although it is not broken", device, sector, count);
	if (!may_break(state))
		violation("snapshot of device %u is broken: %s", device, strerror(-state));
	atomic_store(&oracle.snapshots[device].is_broken, true);
	atomic_fetch_add(&oracle.failed_reads, 1);
}

/* Reads and judges a range. Returns 0, or the errno if that was in order. */
static int read_and_judge(unsigned int device, uint64_t sector, uint64_t count, char *buffer)
{
	struct snapshot *snapshot = &oracle.snapshots[device];
	bool was_denied = access_is_denied(&snapshot->access, sector, count);
	bool was_broken = atomic_load(&snapshot->is_broken);
	int ret;

	ret = oracle.backend->snapshot_read(device, sector, count, buffer);
	if (!ret) {
		if (was_denied)
			violation("snapshot of device %u sector %" PRIu64 "+%" PRIu64
				  ": can be read although released or never accessible",
				  device, sector, count);
		if (was_broken)
			violation("snapshot of device %u sector %" PRIu64 "+%" PRIu64
				  ": can be read although it is broken", device, sector, count);
		judge_data(snapshot->cut, "snapshot", device, sector, count, buffer);
	} else if (ret == -ENODATA) {
		if (!access_is_doubtful(&snapshot->access, sector, count))
			violation("snapshot of device %u sector %" PRIu64 "+%" PRIu64
				  ": refused although all of it is accessible", device, sector,
				  count);
		atomic_fetch_add(&oracle.denied_reads, 1);
	} else if (ret == -EIO) {
		judge_eio(device, sector, count);
	} else {
		violation("snapshot of device %u sector %" PRIu64 "+%" PRIu64 ": %s", device,
			  sector, count, strerror(-ret));
	}
	return ret;
}

static void *reader_main(void *argument)
{
	unsigned int reader = (unsigned int)(uintptr_t)argument;
	uint64_t random = mix64(oracle.seed ^ mix64(oracle.round * 64 + 32 + reader));
	char *buffer = io_buffer();

	while (!atomic_load(&oracle.readers_stop)) {
		unsigned int device =
			(unsigned int)random_below(&random, oracle.history.devices);
		uint64_t sector = random_below(&random, oracle.history.sectors);

		if (random_below(&random, 4))
			sector = sector / 8 * 8;
		read_and_judge(device, sector,
			       random_count(&random, oracle.history.sectors - sector), buffer);
	}
	free(buffer);
	return NULL;
}

static void release_somewhere(uint64_t *random)
{
	unsigned int device = (unsigned int)random_below(random, oracle.history.devices);
	struct access *access = &oracle.snapshots[device].access;
	uint64_t sector = random_below(random, oracle.history.sectors);
	uint64_t count = oracle.choices.cluster;
	int ret;

	if (random_below(random, 2))
		sector = sector / access->cluster * access->cluster;
	if (random_below(random, 4) == 0)
		count += random_below(random, 2 * access->cluster);
	if (count > oracle.history.sectors - sector)
		count = oracle.history.sectors - sector;
	access_release_begin(access, sector, count);
	ret = oracle.backend->snapshot_release(device, sector, count,
					       oracle.choices.release == RELEASE_DISCARD);
	/* A broken snapshot may refuse it. */
	if (ret && oracle.choices.is_small && oracle.backend->snapshot_state(device))
		return;
	/* Where memory is short a part of a cluster may not be remembered. */
	if (ret == -ENOMEM)
		return;
	require(ret, "release a part of the snapshot", device);
	access_release_end(access, sector, count);
	atomic_fetch_add(&oracle.releases, 1);
}

static void *releaser_main(void *argument)
{
	uint64_t random = mix64(oracle.seed ^ mix64(oracle.round * 64 + 63));

	(void)argument;
	while (!atomic_load(&oracle.readers_stop)) {
		release_somewhere(&random);
		pass_ms((unsigned int)random_below(&random, 40));
	}
	return NULL;
}

/*
 * The snapshot and its origin are suspended and resumed, and a COW device that is too
 * small grows.
 */
static void disturb(uint64_t *random)
{
	unsigned int device = (unsigned int)random_below(random, oracle.history.devices);
	const struct choices *choices = &oracle.choices;
	uint64_t all = (oracle.history.sectors + choices->cluster - 1) / choices->cluster;
	int ret;

	switch (random_below(random, 4)) {
	case 0:
		hold(device);
		pass_ms((unsigned int)random_below(random, 20));
		let_go(device);
		break;
	case 1:
		require(oracle.backend->snapshot_pause(device), "pause the snapshot", device);
		break;
	default:
		if (!choices->is_small || random_below(random, 8))
			return;
		ret = oracle.backend->snapshot_grow(device, choices->cluster, all);
		/* A broken snapshot does not grow. */
		if (!oracle.backend->snapshot_state(device))
			require(ret, "grow the COW device", device);
		atomic_fetch_add(&oracle.growths, 1);
		return;
	}
	atomic_fetch_add(&oracle.pauses, 1);
}

static void *disturber_main(void *argument)
{
	uint64_t random = mix64(oracle.seed ^ mix64(oracle.round * 64 + 62));

	(void)argument;
	while (!atomic_load(&oracle.readers_stop)) {
		disturb(&random);
		pass_ms((unsigned int)random_below(&random, 100));
	}
	return NULL;
}

/*
 * Where a sweep reads next: clusters in a row that must all be served, or must all
 * be refused, are read at once, those in doubt one by one.
 */
static uint64_t sweep_piece(const struct access *access, uint64_t sector, uint64_t count)
{
	bool is_denied = access_is_denied(access, sector, 1);
	bool is_doubtful = access_is_doubtful(access, sector, 1);
	uint64_t piece = access->cluster;

	while (piece < count && (is_denied || !is_doubtful) &&
	       access_is_denied(access, sector + piece, 1) == is_denied &&
	       access_is_doubtful(access, sector + piece, 1) == is_doubtful)
		piece += access->cluster;
	return piece < count ? piece : count;
}

/* Read everything once. */
static void sweep(unsigned int device, char *buffer)
{
	const struct access *access = &oracle.snapshots[device].access;
	uint64_t sector, count;

	for (sector = 0; sector < oracle.history.sectors; sector += count) {
		count = MAX_IO_SECTORS - sector % MAX_IO_SECTORS;
		if (count > oracle.history.sectors - sector)
			count = oracle.history.sectors - sector;
		count = sweep_piece(access, sector, count);
		read_and_judge(device, sector, count, buffer);
	}
}

/* What the origins hold when nobody writes is the newest version of all: no more is kept. */
static void judge_origins(char *buffer)
{
	struct bounds clock;
	struct cut cut;
	unsigned int device;
	uint64_t sector, count;

	bounds_completed(&clock, &oracle.history);
	bounds_issued(&clock, &oracle.history);
	require(cut_init(&cut, &oracle.history, &clock), "judge the origin", 0);
	for (device = 0; device < oracle.history.devices; device++) {
		for (sector = 0; sector < oracle.history.sectors; sector += count) {
			count = oracle.history.sectors - sector;
			if (count > MAX_IO_SECTORS)
				count = MAX_IO_SECTORS;
			require(oracle.backend->origin_read(device, sector, count, buffer),
				"read the origin", device);
			judge_data(&cut, "origin", device, sector, count, buffer);
		}
	}
	require(history_forget(&oracle.history, &cut), "keep the history", 0);
	cut_exit(&cut);
}

/* Maps. */

static void read_map(unsigned int device, uint32_t map, const char *checkpoint, uint8_t *values)
{
	require(oracle.backend->snapshot_map(device, map, checkpoint, values),
		"read a map of the snapshot", device);
}

/*
 * The change map between mark and snapshot, for one granule: sure is set if a
 * write certainly fell between them, possible if one may have.
 */
static void expect_changed(unsigned int device, uint64_t granule, bool *sure, bool *possible)
{
	const struct history *history = &oracle.history;
	const struct bounds *mark = &oracle.marks[device].clock;
	const struct bounds *cut = &oracle.snapshots[device].cut->clock;
	uint64_t sector = granule * oracle.granularity;
	uint64_t end = sector + oracle.granularity;

	*sure = false;
	*possible = false;
	for (; sector < end && sector < history->sectors; sector++) {
		unsigned int writer = history_owner(history, device, sector);

		*sure |= history_written(history, device, sector, mark->issued[writer],
					 cut->completed[writer], true);
		*possible |= history_written(history, device, sector, mark->completed[writer],
					     cut->issued[writer], false);
	}
}

static void judge_granule(unsigned int device, uint64_t granule, bool sure, bool possible)
{
	const struct snapshot *snapshot = &oracle.snapshots[device];
	uint64_t sector = granule * oracle.granularity;
	uint64_t end = sector + oracle.granularity;

	for (; sector < end && sector < oracle.history.sectors; sector++) {
		if (sure && !snapshot->changed[sector])
			violation("change map of device %u sector %" PRIu64
				  ": says clean, but it was written", device, sector);
		if (!possible && snapshot->changed[sector])
			violation("change map of device %u sector %" PRIu64
				  ": says changed, but nothing was written", device, sector);
	}
}

/* Fill in the access model from the log, and hold the change map against it. */
static void judge_since(unsigned int device)
{
	struct snapshot *snapshot = &oracle.snapshots[device];
	uint64_t granules =
		(oracle.history.sectors + oracle.granularity - 1) / oracle.granularity;
	bool sure, possible;
	uint64_t granule, sector;

	read_map(device, FLEECE_MAP_CHANGED, oracle.marks[device].name, snapshot->changed);
	for (granule = 0; granule < granules; granule++) {
		expect_changed(device, granule, &sure, &possible);
		judge_granule(device, granule, sure, possible);
		for (sector = granule * oracle.granularity;
		     sector < (granule + 1) * oracle.granularity &&
		     sector < oracle.history.sectors; sector++)
			access_set(&snapshot->access, sector,
				   (sure ? ACCESS_MUST : 0) | (possible ? ACCESS_MAY : 0));
	}
}

static void judge_access_map(unsigned int device, uint8_t *values)
{
	const struct access *access = &oracle.snapshots[device].access;
	bool is_lossy = has_lost(device, 0, oracle.history.sectors);
	uint64_t sector;

	read_map(device, FLEECE_MAP_ACCESSIBLE, NULL, values);
	for (sector = 0; sector < oracle.history.sectors; sector++) {
		if (!values[sector] && !is_lossy && !access_is_doubtful(access, sector, 1))
			violation("access map of device %u sector %" PRIu64
				  ": says not accessible", device, sector);
		if (values[sector] && access_is_denied(access, sector, 1))
			violation("access map of device %u sector %" PRIu64
				  ": says accessible", device, sector);
	}
}

static void judge_maps(unsigned int device)
{
	struct snapshot *snapshot = &oracle.snapshots[device];
	uint8_t *values = malloc(oracle.history.sectors);

	if (!values)
		violation("out of memory");
	if (!oracle.backend->snapshot_state(device))
		judge_access_map(device, values);
	if (oracle.choices.has_since) {
		read_map(device, FLEECE_MAP_CHANGED, oracle.marks[device].name, values);
		if (memcmp(values, snapshot->changed, oracle.history.sectors))
			violation("change map of the snapshot of device %u has moved", device);
	}
	free(values);
}

/* A round. */

static void choose(struct choices *choices, uint64_t *random)
{
	static const uint64_t clusters[] = { 8, 16, 128, 512, 2048 };
	static const uint64_t stagings[] = { 0, 128, 2048, 65536 };
	const uint64_t sectors = oracle.history.sectors;

	memset(choices, 0, sizeof(*choices));
	choices->is_group = random_below(random, 4) != 0;
	choices->has_since = oracle.backend->snapshot_map && random_below(random, 2);
	choices->makes_checkpoint = random_below(random, 2);
	choices->is_small = random_below(random, 3) == 0;
	choices->has_pauses = random_below(random, 3) == 0;
	choices->policy = (enum policy)random_below(random, POLICIES);
	if (oracle.is_lossy) {
		choices->is_small = true;
		choices->policy = POLICY_BREAK_CLUSTER;
	}
	choices->has_small_writes = random_below(random, 3) == 0;
	choices->release = (enum release_way)random_below(random, RELEASE_WAYS);
	choices->cluster = clusters[random_below(random, 5)];
	choices->staging = stagings[random_below(random, 4)];
	if (choices->policy == POLICY_BREAK_WRITE)
		choices->staging = 0;
	choices->slots = (sectors + choices->cluster - 1) / choices->cluster;
	if (choices->is_small && choices->slots > 4)
		choices->slots = 2 + random_below(random, choices->slots / 2);
	choices->before_ms = (unsigned int)(50 + random_below(random, 250)) * oracle.pace / 100;
	choices->after_ms = (unsigned int)(200 + random_below(random, 1000)) * oracle.pace / 100;
}

/* A checkpoint on each origin, while the writers run. */
static void make_marks(void)
{
	unsigned int device;
	int ret;

	for (device = 0; device < oracle.history.devices; device++) {
		struct mark *mark = &oracle.marks[device];

		if (mark->is_valid)
			continue;
		snprintf(mark->name, sizeof(mark->name), "c%u", ++oracle.checkpoints);
		bounds_completed(&mark->clock, &oracle.history);
		ret = oracle.backend->checkpoint_create(device, mark->name);
		require(ret, "create a checkpoint", device);
		bounds_issued(&mark->clock, &oracle.history);
		mark->is_valid = true;
	}
}

static void make_snapshot(unsigned int device, const char *checkpoint)
{
	const struct choices *choices = &oracle.choices;
	struct snapshot_options options = {
		.cluster = choices->cluster,
		.slots = choices->slots,
		.staging = choices->staging,
		.policy = features_of(choices),
		.since = choices->has_since ? oracle.marks[device].name : NULL,
		.checkpoint = checkpoint,
	};

	require(oracle.backend->snapshot_create(device, &options), "create a snapshot", device);
}

/*
 * The moment of a group is after the origins are held and before they are let
 * go: what is issued by then but not completed may be in or not.
 */
static void make_group(const char *checkpoint)
{
	struct snapshot *first = &oracle.snapshots[0];
	struct bounds clock;
	unsigned int device;

	for (device = 0; device < oracle.history.devices; device++)
		hold(device);
	bounds_issued(&clock, &oracle.history);
	for (device = 0; device < oracle.history.devices; device++)
		make_snapshot(device, checkpoint);
	bounds_completed(&clock, &oracle.history);
	for (device = 0; device < oracle.history.devices; device++)
		let_go(device);
	require(cut_init(&first->own_cut, &oracle.history, &clock), "judge the snapshot", 0);
	for (device = 0; device < oracle.history.devices; device++)
		oracle.snapshots[device].cut = &first->own_cut;
}

static void make_singles(const char *checkpoint)
{
	unsigned int device;

	for (device = 0; device < oracle.history.devices; device++) {
		struct snapshot *snapshot = &oracle.snapshots[device];
		struct bounds clock;

		bounds_completed(&clock, &oracle.history);
		make_snapshot(device, checkpoint);
		bounds_issued(&clock, &oracle.history);
		require(cut_init(&snapshot->own_cut, &oracle.history, &clock),
			"judge the snapshot", device);
		snapshot->cut = &snapshot->own_cut;
	}
}

static void begin_snapshots(const char *checkpoint)
{
	unsigned int device;
	uint64_t sector;

	if (oracle.choices.is_group)
		make_group(checkpoint);
	else
		make_singles(checkpoint);
	for (device = 0; device < oracle.history.devices; device++) {
		struct snapshot *snapshot = &oracle.snapshots[device];
		struct access *access = &snapshot->access;

		atomic_store(&snapshot->is_broken, false);
		require(access_init(access, oracle.history.sectors, oracle.choices.cluster),
			"judge the snapshot", device);
		if (oracle.choices.has_since)
			judge_since(device);
		else
			for (sector = 0; sector < access->sectors; sector += access->cluster)
				access_set(access, sector, ACCESS_MUST | ACCESS_MAY);
	}
}

static void delete_mark(unsigned int device)
{
	struct mark *mark = &oracle.marks[device];

	if (!mark->is_valid)
		return;
	require(oracle.backend->checkpoint_delete(device, mark->name), "delete a checkpoint",
		device);
	mark->is_valid = false;
}

/* The snapshot's own checkpoint becomes the mark of a later round. */
static void renew_marks(const char *checkpoint)
{
	unsigned int device;

	for (device = 0; device < oracle.history.devices; device++) {
		struct mark *mark = &oracle.marks[device];

		if (checkpoint || oracle.round % 3 == 0)
			delete_mark(device);
		if (checkpoint) {
			snprintf(mark->name, sizeof(mark->name), "%s", checkpoint);
			mark->clock = oracle.snapshots[device].cut->clock;
			mark->is_valid = true;
		}
	}
}

static void wait_idle(unsigned int device)
{
	uint64_t deadline_ms = now_ms() + IDLE_LIMIT_MS * oracle.slowdown;
	int ret;

	while ((ret = oracle.backend->snapshot_is_idle(device)) == 0) {
		if (now_ms() > deadline_ms)
			violation("snapshot of device %u: copies do not end", device);
		pass_ms(20);
	}
	if (ret < 0)
		require(ret, "read the status of the snapshot", device);
}

static void end_snapshots(const char *checkpoint)
{
	char *buffer = io_buffer();
	unsigned int device;
	int state;

	for (device = 0; device < oracle.history.devices; device++) {
		wait_idle(device);
		sweep(device, buffer);
		if (oracle.backend->snapshot_map)
			judge_maps(device);
		state = oracle.backend->snapshot_state(device);
		if (state)
			judge_eio(device, 0, 1);
		oracle.broken += !!state;
	}
	renew_marks(checkpoint);
	for (device = 0; device < oracle.history.devices; device++) {
		require(oracle.backend->snapshot_remove(device), "remove the snapshot", device);
		access_exit(&oracle.snapshots[device].access);
		if (oracle.snapshots[device].cut == &oracle.snapshots[device].own_cut)
			cut_exit(&oracle.snapshots[device].own_cut);
	}
	repeat_failed_writes();
	judge_origins(buffer);
	free(buffer);
}

static void start_threads(pthread_t *threads, unsigned int count, void *(*main)(void *))
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, main, (void *)(uintptr_t)i))
			violation("cannot start a thread");
}

static void join_threads(pthread_t *threads, unsigned int count)
{
	while (count--)
		pthread_join(threads[count], NULL);
}

/* Writers stop first, last or in the middle of the reading: all must be right. */
static void run_load(pthread_t *writers, uint64_t *random)
{
	pthread_t readers[READERS];
	pthread_t releaser;
	pthread_t disturber;
	unsigned int writers_ms = oracle.choices.after_ms;

	if (random_below(random, 3) == 0)
		writers_ms = (unsigned int)random_below(random, writers_ms + 1);
	start_threads(readers, READERS, reader_main);
	if (oracle.choices.release != RELEASE_NEVER)
		start_threads(&releaser, 1, releaser_main);
	if (oracle.choices.has_pauses)
		start_threads(&disturber, 1, disturber_main);
	pass_ms(writers_ms);
	atomic_store(&oracle.writers_stop, true);
	join_threads(writers, WRITERS);
	pass_ms(oracle.choices.after_ms - writers_ms);
	atomic_store(&oracle.readers_stop, true);
	join_threads(readers, READERS);
	if (oracle.choices.release != RELEASE_NEVER)
		join_threads(&releaser, 1);
	if (oracle.choices.has_pauses)
		join_threads(&disturber, 1);
}

static void run_round(void)
{
	uint64_t random = mix64(oracle.seed ^ mix64(oracle.round));
	pthread_t writers[WRITERS];
	char checkpoint[NAME_BYTES];
	const char *made = NULL;

	choose(&oracle.choices, &random);
	if (oracle.choices.makes_checkpoint) {
		snprintf(checkpoint, sizeof(checkpoint), "c%u", ++oracle.checkpoints);
		made = checkpoint;
	}
	atomic_store(&oracle.writers_stop, false);
	atomic_store(&oracle.readers_stop, false);
	start_threads(writers, WRITERS, writer_main);
	oracle.groups += oracle.choices.is_group;
	oracle.sinces += oracle.choices.has_since;
	pass_ms(oracle.choices.before_ms);
	if (oracle.choices.has_since)
		make_marks();
	pass_ms(oracle.choices.before_ms);
	begin_snapshots(made);
	run_load(writers, &random);
	end_snapshots(made);
}

static void run(unsigned int seconds)
{
	uint64_t end_ms;
	unsigned int device, writer;

	for (device = 0; device < oracle.history.devices; device++) {
		oracle.snapshots[device].changed = calloc(oracle.history.sectors, 1);
		if (!oracle.snapshots[device].changed)
			violation("out of memory");
	}
	for (writer = 0; writer < WRITERS; writer++)
		oracle.buffers[writer] = io_buffer();
	write_everything();
	end_ms = now_ms() + (uint64_t)seconds * 1000;
	do {
		oracle.round++;
		run_round();
	} while (now_ms() < end_ms);
	for (writer = 0; writer < WRITERS; writer++)
		free(oracle.buffers[writer]);
	for (device = 0; device < oracle.history.devices; device++) {
		/* The next run begins with the same names. */
		delete_mark(device);
		free(oracle.snapshots[device].changed);
	}
}

static void prepare(unsigned int devices, uint64_t sectors)
{
	static const uint64_t regions[] = { 24, 135, 600, 2048 };

	oracle.history.run = mix64(oracle.seed);
	oracle.history.devices = devices;
	oracle.history.writers = WRITERS;
	oracle.history.sectors = sectors;
	oracle.history.region = regions[mix64(oracle.seed + 1) % 4];
	if (history_init(&oracle.history))
		violation("out of memory");
}

static void report(void)
{
	printf("# oracle: seed %" PRIu64 ": %u rounds (%u of groups, %u since a checkpoint, ",
	       oracle.seed, oracle.round, oracle.groups, oracle.sinces);
	printf("%u snapshots broken), %" PRIu64 " MiB written (%" PRIu64 " of data, %" PRIu64
	       " of zeroes, %" PRIu64 " discards), %" PRIu64 " MiB judged, ",
	       oracle.broken, atomic_load(&oracle.written_sectors) / 2048,
	       atomic_load(&oracle.operations[OPERATION_WRITE]),
	       atomic_load(&oracle.operations[OPERATION_ZERO]),
	       atomic_load(&oracle.operations[OPERATION_DISCARD]),
	       atomic_load(&oracle.judged_sectors) / 2048);
	printf("%" PRIu64 " releases, %" PRIu64 " reads denied, %" PRIu64 " failed, ",
	       atomic_load(&oracle.releases), atomic_load(&oracle.denied_reads),
	       atomic_load(&oracle.failed_reads));
	printf("%" PRIu64 " live writes repeated, %u pauses, %u growths, ",
	       atomic_load(&oracle.failed_writes), atomic_load(&oracle.pauses),
	       atomic_load(&oracle.growths));
	printf("slowest live write %u ms, 0 violations\n", atomic_load(&oracle.slowest_ms));
}

/* The oracle on trial: each fault must be found, for the right reason. */

struct trial {
	const char *name;
	enum fault fault;
	enum discards discards;
	const char *expected[6];	/* parts of the message, any; NULL: no violation */
};

/*
 * The first violation ends a trial, so each verdict that a fault can lead to is named.
 * What is wrong but possible by the clock alone, because a write was in flight at the
 * moment, is believed: then it is something right that contradicts it, later.
 */
static const struct trial trials[] = {
	{ "no fault", FAULT_NONE, DISCARDS_REFUSED,
	  { NULL } },
	{ "no fault, discards are advice", FAULT_NONE, DISCARDS_ADVISORY,
	  { NULL } },
	{ "no fault, discards are zeroes", FAULT_NONE, DISCARDS_ZEROING,
	  { NULL } },
	/* it may be read while it is written */
	{ "newer data", FAULT_NEWER, DISCARDS_REFUSED,
	  { "is newer than the snapshot", "contradicts the order of its writer",
	    "differs from what was read there before", "is torn between several writes",
	    "is not data of this test", "found zeroes" } },
	{ "torn sector", FAULT_TORN, DISCARDS_REFUSED,
	  { "is torn between several writes", "is not data of this test" } },
	{ "other sector's data", FAULT_PLACE, DISCARDS_REFUSED,
	  { "is data of another place", "contradicts the order of its writer",
	    "differs from what was read there before", "found zeroes" } },
	{ "other device's data", FAULT_DEVICE, DISCARDS_REFUSED,
	  { "is data of another place", "contradicts the order of its writer",
	    "differs from what was read there before", "found zeroes" } },
	/* before the first write to a sector there is nothing */
	{ "lost write", FAULT_LOST, DISCARDS_REFUSED,
	  { "misses a write finished before the snapshot", "is not data of this test",
	    "contradicts the order of its writer", "found zeroes" } },
	/*
	 * Of a sector that was not written between the two moments it is the clock that
	 * contradicts: more had been completed than was issued.
	 */
	{ "snapshots of two moments", FAULT_UNHELD, DISCARDS_REFUSED,
	  { "is newer than the snapshot", "misses a write finished before the snapshot",
	    "contradicts the order of its writer", "found zeroes" } },
	{ "released data", FAULT_GHOST, DISCARDS_REFUSED,
	  { "can be read although released" } },
	{ "refused data", FAULT_DENIED, DISCARDS_REFUSED,
	  { "refused although all of it is accessible" } },
	{ "unfounded error", FAULT_EIO, DISCARDS_REFUSED,
	  { "I/O error although it is not broken" } },
	{ "unfounded error beside a lost cluster", FAULT_EIO_ELSEWHERE, DISCARDS_REFUSED,
	  { "I/O error although it is not broken" } },
	{ "zeroes", FAULT_ZERO, DISCARDS_REFUSED,
	  { "found zeroes", "contradicts the order of its writer",
	    "differs from what was read there before" } },
	{ "failed live write", FAULT_LIVE_ERROR, DISCARDS_REFUSED,
	  { "live write of device" } },
	/*
	 * Writes are in flight between the two readings of the clock: of one that is lost
	 * there only the writer's next ones, which the image has, say that it is missing.
	 */
	{ "lost live write", FAULT_LIVE_LOST, DISCARDS_REFUSED,
	  { "misses a write", "contradicts the order of its writer", "is not data of this test",
	    "found zeroes" } },
	{ "lost zeroes", FAULT_ZEROES_LOST, DISCARDS_REFUSED,
	  { "misses a write", "contradicts the order of its writer" } },
	/* Who reads while it is zeroed may see a part of a sector. */
	{ "later zeroes", FAULT_ZEROES_THROUGH, DISCARDS_REFUSED,
	  { "found zeroes", "contradicts the order of its writer", "is torn between several writes",
	    "is not data of this test" } },
	{ "lost discard", FAULT_DISCARD_LOST, DISCARDS_ZEROING,
	  { "misses a write", "contradicts the order of its writer" } },
	{ "later discard", FAULT_DISCARD_THROUGH, DISCARDS_ADVISORY,
	  { "found zeroes", "contradicts the order of its writer", "is torn between several writes",
	    "is not data of this test" } },
	{ "later discard of zeroes", FAULT_DISCARD_THROUGH, DISCARDS_ZEROING,
	  { "found zeroes", "contradicts the order of its writer", "is torn between several writes",
	    "is not data of this test" } },
};

static void run_trial(const struct trial *trial, int output)
{
	if (output >= 0)
		dup2(output, STDERR_FILENO);
	oracle.pace = 20;
	oracle.granularity = 128;
	oracle.discards = trial->discards;
	oracle.is_lossy = trial->fault == FAULT_EIO_ELSEWHERE;
	oracle.backend = backend_fake_open(MAX_DEVICES, FAKE_SECTORS, trial->fault,
					   trial->discards == DISCARDS_ADVISORY);
	if (!oracle.backend)
		violation("out of memory");
	prepare(MAX_DEVICES, FAKE_SECTORS);
	run(trial->fault ? SELFTEST_SECONDS : 3);
	_exit(0);
}

static bool is_caught(const struct trial *trial)
{
	char text[2048];
	size_t used = 0;
	ssize_t got = 0;
	int ends[2];
	unsigned int i;
	pid_t child;
	int status;

	if (pipe(ends))
		return false;
	fflush(stdout);
	child = fork();
	if (!child)
		run_trial(trial, ends[1]);
	close(ends[1]);
	while (child > 0 && used < sizeof(text) - 1 &&
	       (got = read(ends[0], text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)got;
	text[used] = '\0';
	close(ends[0]);
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return false;
	if (used)
		printf("# %.*s\n", (int)strcspn(text, "\n"), text);
	if (!trial->expected[0])
		return WEXITSTATUS(status) == 0 && !used;
	if (WEXITSTATUS(status) != 1)
		return false;
	for (i = 0; i < sizeof(trial->expected) / sizeof(trial->expected[0]); i++)
		if (trial->expected[i] && strstr(text, trial->expected[i]))
			return true;
	return false;
}

static int selftest(void)
{
	unsigned int count = sizeof(trials) / sizeof(trials[0]);
	unsigned int i, failed = 0;

	printf("TAP version 13\n1..%u\n", count);
	for (i = 0; i < count; i++) {
		bool is_good = is_caught(&trials[i]);

		failed += !is_good;
		printf("%s %u - the oracle judges rightly: %s\n", is_good ? "ok" : "not ok",
		       i + 1, trials[i].name);
	}
	return failed ? 1 : 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: oracle [--seconds N] [--seed N] [--granularity SECTORS]\n"
		"              [--discards advisory|zeroing] [--faults] NAME:LOWER:COW...\n"
		"       oracle --selftest [--seed N]\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "granularity", required_argument, NULL, 'g' },
		{ "discards", required_argument, NULL, 'd' },
		{ "faults", no_argument, NULL, 'f' },
		{ "selftest", no_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	bool is_selftest = false;
	const char *slowdown = getenv("FLEECE_SLOWDOWN");
	unsigned int seconds = 20;
	uint64_t sectors;
	int option;

	oracle.slowdown = slowdown ? (unsigned int)atoi(slowdown) : 1;
	oracle.seed = (uint64_t)time(NULL);
	oracle.pace = 100;
	oracle.granularity = 128;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 's')
			seconds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (option == 'r')
			oracle.seed = strtoull(optarg, NULL, 10);
		else if (option == 'g')
			oracle.granularity = strtoull(optarg, NULL, 10);
		else if (option == 'd' && !strcmp(optarg, "advisory"))
			oracle.discards = DISCARDS_ADVISORY;
		else if (option == 'd' && !strcmp(optarg, "zeroing"))
			oracle.discards = DISCARDS_ZEROING;
		else if (option == 'f')
			oracle.has_faults = true;
		else if (option == 't')
			is_selftest = true;
		else
			return usage();
	}
	if (is_selftest)
		return selftest();
	if (optind == argc || argc - optind > MAX_DEVICES || !oracle.granularity)
		return usage();
	printf("# oracle: seed %" PRIu64 "\n", oracle.seed);
	fflush(stdout);
	oracle.backend = backend_dm_open(argv + optind, (unsigned int)(argc - optind), &sectors);
	if (!oracle.backend)
		return 1;
	prepare((unsigned int)(argc - optind), sectors);
	run(seconds);
	report();
	return 0;
}
