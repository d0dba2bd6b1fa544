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

int history_init(struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->devices; i++) {
		history->newest[i] = calloc(history->sectors, sizeof(*history->newest[i]));
		if (!history->newest[i])
			goto err_exit;
	}
	for (i = 0; i < history->writers; i++) {
		void *versions = mmap(NULL, VERSIONS_BYTES, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (versions == MAP_FAILED)
			goto err_exit;
		history->logs[i].versions = versions;
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

uint32_t history_begin(struct history *history, unsigned int writer, unsigned int device,
		       uint64_t sector, uint64_t count)
{
	struct writer_log *log = &history->logs[writer];
	uint32_t sequence = atomic_load(&log->issued) + 1;
	uint64_t i;

	if (log->used + count > MAX_VERSIONS)
		abort();
	for (i = sector; i < sector + count; i++) {
		struct version *version = &log->versions[log->used++];

		version->sequence = sequence;
		version->older = atomic_load_explicit(&history->newest[device][i],
						      memory_order_relaxed);
		/* Whoever finds the version finds its fields. */
		atomic_store_explicit(&history->newest[device][i], log->used,
				      memory_order_release);
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

/* First half of history_forget(): heads hold numbers instead of indexes. */
static void forget_versions(struct history *history, unsigned int device)
{
	uint64_t sector;

	for (sector = 0; sector < history->sectors; sector++)
		atomic_store_explicit(&history->newest[device][sector],
				      history_newest(history, device, sector),
				      memory_order_relaxed);
}

/* Second half: each sector gets one version with the number of its head. */
static void relearn_versions(struct history *history, unsigned int device)
{
	uint64_t sector;

	for (sector = 0; sector < history->sectors; sector++) {
		struct writer_log *log =
			&history->logs[history_owner(history, device, sector)];
		uint32_t sequence = atomic_load(&history->newest[device][sector]);

		if (!sequence)
			continue;
		log->versions[log->used++] = (struct version){ .sequence = sequence };
		atomic_store(&history->newest[device][sector], log->used);
	}
}

void history_forget(struct history *history)
{
	unsigned int i;

	for (i = 0; i < history->devices; i++)
		forget_versions(history, i);
	for (i = 0; i < history->writers; i++)
		history->logs[i].used = 0;
	for (i = 0; i < history->devices; i++)
		relearn_versions(history, i);
}

uint32_t history_newest(const struct history *history, unsigned int device, uint64_t sector)
{
	const struct version *version = newest_version(history, device, sector);

	return version ? version->sequence : 0;
}

bool history_written(const struct history *history, unsigned int device, uint64_t sector,
		     uint32_t after, uint32_t until)
{
	const struct version *version = newest_version(history, device, sector);

	while (version && version->sequence > until)
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
 * A sector with @sequence is in the image: what does that say about the writer?
 * It had finished all its earlier writes, and the next write to this sector, if
 * there is one, is not or not entirely in.
 */
static enum verdict learn(struct cut *cut, unsigned int device, uint64_t sector,
			  uint32_t sequence, unsigned int writer)
{
	const struct version *version = newest_version(cut->history, device, sector);
	const struct version *next = NULL;

	if (sequence > cut->clock.issued[writer])
		return VERDICT_NEWER;
	while (version && version->sequence > sequence) {
		next = version;
		version = older_version(cut->history, device, sector, version);
	}
	if (!version || version->sequence != sequence)
		return VERDICT_NEVER_WRITTEN;
	if (next && next->sequence <= cut->clock.completed[writer])
		return VERDICT_OLDER;
	if (sequence > cut->upper[writer] || (next && next->sequence <= cut->lower[writer]))
		return VERDICT_NOT_PREFIX;
	if (cut->lower[writer] < sequence - 1)
		cut->lower[writer] = sequence - 1;
	if (next && cut->upper[writer] > next->sequence)
		cut->upper[writer] = next->sequence;
	return cut->lower[writer] <= cut->upper[writer] ? VERDICT_GOOD : VERDICT_NOT_PREFIX;
}

static enum verdict check_sector(struct cut *cut, unsigned int device, uint64_t sector,
				 const void *data, struct finding *finding)
{
	const struct history *history = cut->history;
	unsigned int writer = history_owner(history, device, sector);
	enum stamp_state state = stamp_read(data, &finding->found);
	uint32_t *seen = &cut->seen[device][sector];
	uint32_t sequence = finding->found.sequence;
	enum verdict verdict;

	finding->lower = cut->lower[writer];
	finding->upper = cut->upper[writer];
	if (state != STAMP_GOOD)
		return state == STAMP_TORN ? VERDICT_TORN : VERDICT_NO_STAMP;
	if (finding->found.run != history->run)
		return VERDICT_WRONG_RUN;
	if (finding->found.device != device || finding->found.sector != sector)
		return VERDICT_WRONG_PLACE;
	if (finding->found.writer != writer || !sequence)
		return VERDICT_NEVER_WRITTEN;
	if (*seen == sequence)
		return VERDICT_GOOD;
	verdict = learn(cut, device, sector, sequence, writer);
	if (verdict)
		return verdict;
	if (*seen) {
		finding->lower = *seen;
		finding->upper = *seen;
		return VERDICT_UNSTABLE;
	}
	*seen = sequence;
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
