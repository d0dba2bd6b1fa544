// SPDX-License-Identifier: GPL-2.0-only
/* Histories of writers, see history.h. */
#include "history.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Address space only: pages that are not used are never there. */
#define MAX_VERSIONS	(1u << 25)
#define VERSIONS_BYTES	((size_t)MAX_VERSIONS * sizeof(struct version))

static struct version *map_versions(void)
{
	void *versions = mmap(NULL, VERSIONS_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return versions == MAP_FAILED ? NULL : versions;
}

int history_init(struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->devices; i++) {
		history->newest[i] = calloc(history->sectors, sizeof(*history->newest[i]));
		if (!history->newest[i])
			goto err_exit;
	}
	for (i = 0; i < history->writers; i++) {
		history->logs[i].versions = map_versions();
		if (!history->logs[i].versions)
			goto err_exit;
	}
	return 0;

err_exit:
	history_exit(history);
	return -ENOMEM;
}

void history_exit(struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->writers; i++) {
		if (history->logs[i].versions)
			munmap(history->logs[i].versions, VERSIONS_BYTES);
		history->logs[i].versions = NULL;
	}
	for (i = 0; i < history->devices; i++) {
		free((void *)history->newest[i]);
		history->newest[i] = NULL;
	}
}

unsigned int history_owner(const struct history *history, unsigned int device, uint64_t sector)
{
	return (sector / history->region + device) % history->writers;
}

/* Whoever finds the version finds its fields. */
static void add_version(struct history *history, struct writer_log *log, unsigned int device,
			uint64_t sector, struct version version)
{
	if (log->used == MAX_VERSIONS)
		abort();
	log->versions[log->used++] = version;
	atomic_store_explicit(&history->newest[device][sector], log->used, memory_order_release);
}

uint32_t history_begin(struct history *history, unsigned int writer, enum write_kind kind,
		       unsigned int device, uint64_t sector, uint64_t count)
{
	struct writer_log *log = &history->logs[writer];
	uint32_t sequence = atomic_load(&log->issued) + 1;
	uint64_t i;

	for (i = sector; i < sector + count; i++) {
		struct version version = {
			.sequence = sequence,
			.older = atomic_load_explicit(&history->newest[device][i],
						      memory_order_relaxed),
			.kind = kind,
		};

		add_version(history, log, device, i, version);
	}
	/* Whoever reads the number as issued finds its versions. */
	atomic_store(&log->issued, sequence);
	return sequence;
}

void history_end(struct history *history, unsigned int writer)
{
	struct writer_log *log = &history->logs[writer];

	atomic_store(&log->completed, atomic_load(&log->issued));
}

static const struct version *newest_version(const struct history *history, unsigned int device,
					    uint64_t sector)
{
	const struct writer_log *log =
		&history->logs[history_owner(history, device, sector)];
	uint32_t index = atomic_load_explicit(&history->newest[device][sector],
					      memory_order_acquire);

	return index ? &log->versions[index - 1] : NULL;
}

static const struct version *older_version(const struct history *history, unsigned int device,
					   uint64_t sector, const struct version *version)
{
	const struct writer_log *log =
		&history->logs[history_owner(history, device, sector)];

	return version->older ? &log->versions[version->older - 1] : NULL;
}

/*
 * The version that a sector is known to hold. Where it holds zeroes, that is the first
 * one of a row that leaves zeroes, or a later one that is no mere advice.
 */
static struct version held_version(const struct history *history, unsigned int device,
				   uint64_t sector, uint32_t seen)
{
	const struct version *version = newest_version(history, device, sector);
	struct version held = { .sequence = seen, .kind = WRITE_DATA };

	if (seen != SEEN_ZEROES)
		return held;
	held = (struct version){ .kind = WRITE_ZEROES };
	for (; version && version->kind != WRITE_DATA;
	     version = older_version(history, device, sector, version)) {
		if (version->kind == WRITE_ZEROES || version->kind == WRITE_ADVICE)
			held.sequence = version->sequence;
		if (version->kind == WRITE_ZEROES)
			break;
	}
	return held;
}

/* Moves what is known about a sector to new logs: one version, or two. */
static void keep_sector(struct history *history, struct writer_log *logs, unsigned int device,
			uint64_t sector, uint32_t seen)
{
	struct writer_log *log = &logs[history_owner(history, device, sector)];
	struct version newest = {
		.sequence = history_newest(history, device, sector), .kind = WRITE_NOTHING,
	};
	struct version held = held_version(history, device, sector, seen);

	if (!newest.sequence)
		return;
	add_version(history, log, device, sector, held);
	newest.older = log->used;
	if (newest.sequence != held.sequence)
		add_version(history, log, device, sector, newest);
}

int history_forget(struct history *history, const struct cut *now)
{
	struct writer_log logs[MAX_WRITERS] = { 0 };
	unsigned int i;
	uint64_t sector;

	for (i = 0; i < history->writers; i++) {
		logs[i].versions = map_versions();
		if (!logs[i].versions)
			goto err_unmap;
	}
	for (i = 0; i < history->devices; i++)
		for (sector = 0; sector < history->sectors; sector++)
			keep_sector(history, logs, i, sector, now->seen[i][sector]);
	for (i = 0; i < history->writers; i++) {
		munmap(history->logs[i].versions, VERSIONS_BYTES);
		history->logs[i].versions = logs[i].versions;
		history->logs[i].used = logs[i].used;
	}
	return 0;

err_unmap:
	while (i--)
		munmap(logs[i].versions, VERSIONS_BYTES);
	return -ENOMEM;
}

uint32_t history_newest(const struct history *history, unsigned int device, uint64_t sector)
{
	const struct version *version = newest_version(history, device, sector);

	return version ? version->sequence : 0;
}

static bool is_advice(const struct version *version)
{
	return version->kind == WRITE_ADVICE || version->kind == WRITE_NOTHING;
}

bool history_written(const struct history *history, unsigned int device, uint64_t sector,
		     uint32_t after, uint32_t until, bool surely)
{
	const struct version *version = newest_version(history, device, sector);

	while (version && (version->sequence > until || (surely && is_advice(version))))
		version = older_version(history, device, sector, version);
	return version && version->sequence > after;
}

void bounds_completed(struct bounds *bounds, const struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->writers; i++)
		bounds->completed[i] = atomic_load(&history->logs[i].completed);
}

void bounds_issued(struct bounds *bounds, const struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->writers; i++)
		bounds->issued[i] = atomic_load(&history->logs[i].issued);
}

int cut_init(struct cut *cut, struct history *history, const struct bounds *clock)
{
	unsigned int i;

	memset(cut, 0, sizeof(*cut));
	cut->history = history;
	cut->clock = *clock;
	memcpy(cut->lower, clock->completed, sizeof(cut->lower));
	memcpy(cut->upper, clock->issued, sizeof(cut->upper));
	pthread_mutex_init(&cut->lock, NULL);
	for (i = 0; i < history->devices; i++) {
		cut->seen[i] = calloc(history->sectors, sizeof(*cut->seen[i]));
		if (!cut->seen[i]) {
			cut_exit(cut);
			return -ENOMEM;
		}
	}
	return 0;
}

void cut_exit(struct cut *cut)
{
	unsigned int i;

	for (i = 0; i < MAX_DEVICES; i++)
		free(cut->seen[i]);
	pthread_mutex_destroy(&cut->lock);
	memset(cut, 0, sizeof(*cut));
}

/*
 * The image shows what a sector held from version @first until @next took its place,
 * which NULL has not: can that be?
 */
static enum verdict check_span(const struct cut *cut, unsigned int writer, uint32_t first,
			       const struct version *next)
{
	if (first > cut->clock.issued[writer])
		return VERDICT_NEWER;
	if (next && next->sequence <= cut->clock.completed[writer])
		return VERDICT_OLDER;
	if (first > cut->upper[writer] || (next && next->sequence <= cut->lower[writer]))
		return VERDICT_NOT_PREFIX;
	return VERDICT_GOOD;
}

/*
 * It is so: what does that say about the writer? It had finished all writes before
 * @first, and @next is not or not entirely in.
 */
static enum verdict learn_span(struct cut *cut, unsigned int writer, uint32_t first,
			       const struct version *next)
{
	if (cut->lower[writer] < first - 1)
		cut->lower[writer] = first - 1;
	if (next && cut->upper[writer] > next->sequence)
		cut->upper[writer] = next->sequence;
	return cut->lower[writer] <= cut->upper[writer] ? VERDICT_GOOD : VERDICT_NOT_PREFIX;
}

static enum verdict learn_data(struct cut *cut, unsigned int device, uint64_t sector,
			       uint32_t sequence, unsigned int writer)
{
	const struct version *version = newest_version(cut->history, device, sector);
	const struct version *next = NULL;
	enum verdict verdict;

	if (sequence > cut->clock.issued[writer])
		return VERDICT_NEWER;
	while (version && version->sequence > sequence) {
		if (!is_advice(version))
			next = version;
		version = older_version(cut->history, device, sector, version);
	}
	if (!version || version->sequence != sequence || version->kind != WRITE_DATA)
		return VERDICT_NEVER_WRITTEN;
	verdict = check_span(cut, writer, sequence, next);
	return verdict ? verdict : learn_span(cut, writer, sequence, next);
}

/*
 * Zeroes may be of several times, each from a write that leaves zeroes until the
 * next one of data. If only one of them is possible, something is learned from it.
 */
struct zero_search {
	uint32_t first;
	const struct version *next;
	unsigned int possible;
	enum verdict verdict;
};

static void try_span(const struct cut *cut, struct zero_search *search, unsigned int writer,
		     uint32_t first, const struct version *next)
{
	enum verdict verdict = check_span(cut, writer, first, next);

	if (verdict == VERDICT_GOOD) {
		search->first = first;
		search->next = next;
		search->possible++;
	}
	if (search->verdict == VERDICT_NO_STAMP)
		search->verdict = verdict;
}

static enum verdict learn_zeroes(struct cut *cut, unsigned int device, uint64_t sector,
				 unsigned int writer)
{
	const struct version *version = newest_version(cut->history, device, sector);
	struct zero_search search = { .verdict = VERDICT_NO_STAMP };
	const struct version *next = NULL;
	uint32_t first = 0;

	for (; version; version = older_version(cut->history, device, sector, version)) {
		if (version->kind == WRITE_ZEROES || version->kind == WRITE_ADVICE)
			first = version->sequence;
		if (version->kind != WRITE_DATA)
			continue;
		if (first)
			try_span(cut, &search, writer, first, next);
		first = 0;
		next = version;
	}
	if (first)
		try_span(cut, &search, writer, first, next);
	if (!search.possible)
		return search.verdict;
	if (search.possible > 1)
		return VERDICT_GOOD;
	return learn_span(cut, writer, search.first, search.next);
}

/* Is a stamp one that its place can have? */
static enum verdict check_stamp(const struct history *history, unsigned int device,
				uint64_t sector, const struct stamp_id *id)
{
	if (id->run != history->run)
		return VERDICT_WRONG_RUN;
	if (id->device != device || id->sector != sector)
		return VERDICT_WRONG_PLACE;
	if (id->writer != history_owner(history, device, sector) || !id->sequence ||
	    id->sequence == SEEN_ZEROES)
		return VERDICT_NEVER_WRITTEN;
	return VERDICT_GOOD;
}

static enum verdict check_sector(struct cut *cut, unsigned int device, uint64_t sector,
				 const void *data, struct finding *finding)
{
	unsigned int writer = history_owner(cut->history, device, sector);
	enum stamp_state state = stamp_read(data, &finding->found);
	uint32_t *seen = &cut->seen[device][sector];
	uint32_t found = state == STAMP_ZERO ? SEEN_ZEROES : finding->found.sequence;
	enum verdict verdict = VERDICT_GOOD;

	finding->is_zero = state == STAMP_ZERO;
	finding->lower = cut->lower[writer];
	finding->upper = cut->upper[writer];
	if (state == STAMP_TORN || state == STAMP_NONE)
		return state == STAMP_TORN ? VERDICT_TORN : VERDICT_NO_STAMP;
	if (state == STAMP_GOOD)
		verdict = check_stamp(cut->history, device, sector, &finding->found);
	if (verdict || *seen == found)
		return verdict;
	if (state == STAMP_GOOD)
		verdict = learn_data(cut, device, sector, found, writer);
	else
		verdict = learn_zeroes(cut, device, sector, writer);
	if (verdict)
		return verdict;
	if (*seen) {
		finding->lower = *seen;
		finding->upper = *seen;
		return VERDICT_UNSTABLE;
	}
	*seen = found;
	return VERDICT_GOOD;
}

enum verdict cut_check(struct cut *cut, unsigned int device, uint64_t sector, const void *data,
		       uint64_t count, uint64_t *bad, struct finding *finding)
{
	enum verdict verdict = VERDICT_GOOD;
	uint64_t i;

	pthread_mutex_lock(&cut->lock);
	for (i = 0; i < count; i++) {
		verdict = check_sector(cut, device, sector + i,
				       (const char *)data + i * SECTOR_BYTES, finding);
		if (verdict) {
			*bad = i;
			break;
		}
	}
	pthread_mutex_unlock(&cut->lock);
	return verdict;
}

const char *verdict_text(enum verdict verdict)
{
	static const char *const texts[] = {
		[VERDICT_GOOD] = "good",
		[VERDICT_NO_STAMP] = "is not data of this test",
		[VERDICT_TORN] = "is torn between several writes",
		[VERDICT_WRONG_RUN] = "is data of an earlier run",
		[VERDICT_WRONG_PLACE] = "is data of another place",
		[VERDICT_NEVER_WRITTEN] = "names a write that was not to this sector",
		[VERDICT_NEWER] = "is newer than the snapshot",
		[VERDICT_OLDER] = "misses a write finished before the snapshot",
		[VERDICT_NOT_PREFIX] = "contradicts the order of its writer",
		[VERDICT_UNSTABLE] = "differs from what was read there before",
	};

	return texts[verdict];
}
