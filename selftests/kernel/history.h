/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Histories of writers, and what an image of one moment may contain.
 *
 * Owns the rules of the oracle; it does no I/O. Each sector belongs to one
 * writer, each writer has one write under way at a time, and numbers its writes
 * over all devices. So the image of any moment is, for each writer, all writes up to
 * some number, of the next one possibly some sectors, and nothing after it. How
 * a writer's numbers are bounded is learned from the clock (struct cut begins
 * with what was completed and what was issued) and from every sector seen.
 */
#ifndef FLEECE_TEST_HISTORY_H
#define FLEECE_TEST_HISTORY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "stamp.h"

#define MAX_DEVICES	2
#define MAX_WRITERS	8

/**
 * enum write_kind - what a write leaves in its sectors
 * @WRITE_DATA: stamps.
 * @WRITE_ZEROES: zeroes.
 * @WRITE_ADVICE: zeroes or what was there before: a discard that may be ignored.
 * @WRITE_NOTHING: what was there before: such a discard, when that is known.
 */
enum write_kind {
	WRITE_DATA,
	WRITE_ZEROES,
	WRITE_ADVICE,
	WRITE_NOTHING,
};

/* One write to one sector. */
struct version {
	uint32_t sequence;
	uint32_t older : 30;	/* index of the one before plus 1, 0: none known */
	uint32_t kind : 2;	/* enum write_kind */
};

/*
 * What one writer did. The versions are only added to by the writer, and only
 * forgotten by history_forget() while nothing else runs.
 */
struct writer_log {
	atomic_uint_least32_t issued;	/* number of the newest write begun */
	atomic_uint_least32_t completed;	/* number of the newest write finished */
	struct version *versions;
	uint32_t used;
};

/**
 * struct history - all writes of a run
 * @run: goes into the stamps.
 * @devices: number of devices.
 * @writers: number of writers.
 * @sectors: size of each device.
 * @region: sectors in a row that belong to the same writer.
 * @logs: of the writers.
 * @newest: for each device and sector, index of its newest version plus 1.
 */
struct history {
	uint64_t run;
	unsigned int devices;
	unsigned int writers;
	uint64_t sectors;
	uint64_t region;
	struct writer_log logs[MAX_WRITERS];
	atomic_uint_least32_t *newest[MAX_DEVICES];
};

/**
 * struct bounds - where each writer was at some moment
 * @completed: all writes up to this number were finished before the moment.
 * @issued: no write after this number was begun before the moment.
 */
struct bounds {
	uint32_t completed[MAX_WRITERS];
	uint32_t issued[MAX_WRITERS];
};

/**
 * enum verdict - what is wrong with a sector of an image
 * @VERDICT_GOOD: nothing.
 * @VERDICT_NO_STAMP: was never written by this test.
 * @VERDICT_TORN: bytes of several writes.
 * @VERDICT_WRONG_RUN: data of an earlier run.
 * @VERDICT_WRONG_PLACE: data of another device or sector.
 * @VERDICT_NEVER_WRITTEN: names a write that did not touch this sector.
 * @VERDICT_NEWER: of a write begun after the moment.
 * @VERDICT_OLDER: a write finished before the moment is missing.
 * @VERDICT_NOT_PREFIX: contradicts other sectors about which writes are in.
 * @VERDICT_UNSTABLE: the same sector was seen with another version before.
 */
enum verdict {
	VERDICT_GOOD,
	VERDICT_NO_STAMP,
	VERDICT_TORN,
	VERDICT_WRONG_RUN,
	VERDICT_WRONG_PLACE,
	VERDICT_NEVER_WRITTEN,
	VERDICT_NEWER,
	VERDICT_OLDER,
	VERDICT_NOT_PREFIX,
	VERDICT_UNSTABLE,
};

/* Zeroes do not say which write they are of. */
#define SEEN_ZEROES	UINT32_MAX

/**
 * struct cut - an image under examination, of one or several devices
 * @history: the writes.
 * @clock: what the clock said; constant.
 * @lock: protects what follows.
 * @lower: all writes of a writer up to this are in the image.
 * @upper: no write of a writer after this is in the image.
 * @seen: for each device and sector, version found, 0 when not yet read, SEEN_ZEROES.
 */
struct cut {
	struct history *history;
	struct bounds clock;
	pthread_mutex_t lock;
	uint32_t lower[MAX_WRITERS];
	uint32_t upper[MAX_WRITERS];
	uint32_t *seen[MAX_DEVICES];
};

/**
 * struct finding - details of a verdict
 * @is_zero: there are zeroes; else
 * @found: the stamp.
 * @lower: least version that could have been there.
 * @upper: greatest version that could have been there.
 */
struct finding {
	bool is_zero;
	struct stamp_id found;
	uint32_t lower;
	uint32_t upper;
};

/**
 * history_init() - begin a run
 * @history: with run, devices, writers, sectors and region set, else zero.
 *
 * Return: 0 or -ENOMEM.
 */
int history_init(struct history *history);

/** history_exit() - free what history_init() took */
void history_exit(struct history *history);

/**
 * history_owner() - the only writer of a sector
 * @history: the run.
 * @device: number of the device.
 * @sector: place.
 *
 * Return: number of the writer.
 */
unsigned int history_owner(const struct history *history, unsigned int device, uint64_t sector);

/**
 * history_begin() - log a write before it is issued
 * @history: the run.
 * @writer: its writer; has no other write under way, owns all the sectors.
 * @kind: what it writes.
 * @device: number of the device.
 * @sector: first sector.
 * @count: number of sectors.
 *
 * Return: number of the write.
 */
uint32_t history_begin(struct history *history, unsigned int writer, enum write_kind kind,
		       unsigned int device, uint64_t sector, uint64_t count);

/** history_end() - log that the newest write of @writer is finished */
void history_end(struct history *history, unsigned int writer);

/**
 * history_forget() - keep only what an image of now has shown
 * @history: the run; no writer may be running.
 * @now: has seen all sectors since the last write.
 *
 * Return: 0 or -ENOMEM.
 */
int history_forget(struct history *history, const struct cut *now);

/**
 * history_newest() - newest version of a sector
 * @history: the run.
 * @device: number of the device.
 * @sector: place.
 *
 * Return: number of the write, 0 if there was none.
 */
uint32_t history_newest(const struct history *history, unsigned int device, uint64_t sector);

/**
 * history_written() - was a sector written between two moments
 * @history: the run.
 * @device: number of the device.
 * @sector: place.
 * @after: only writes with a greater number count.
 * @until: only writes with this number or a smaller one count.
 * @surely: only writes that are not mere advice count.
 *
 * Return: true if there is such a write.
 */
bool history_written(const struct history *history, unsigned int device, uint64_t sector,
		     uint32_t after, uint32_t until, bool surely);

/** bounds_completed() - read the finished writes of now into @bounds */
void bounds_completed(struct bounds *bounds, const struct history *history);

/** bounds_issued() - read the begun writes of now into @bounds */
void bounds_issued(struct bounds *bounds, const struct history *history);

/**
 * cut_init() - begin to examine an image
 * @cut: to be filled.
 * @history: the writes.
 * @clock: what is known about the moment.
 *
 * Return: 0 or -ENOMEM.
 */
int cut_init(struct cut *cut, struct history *history, const struct bounds *clock);

/** cut_exit() - free what cut_init() took */
void cut_exit(struct cut *cut);

/**
 * cut_check() - examine sectors of an image
 * @cut: the image.
 * @device: number of the device.
 * @sector: first sector.
 * @data: what was read.
 * @count: number of sectors.
 * @bad: set to the number of good sectors before the bad one.
 * @finding: details of the bad one.
 *
 * Context: any thread, takes @cut->lock.
 * Return: VERDICT_GOOD, or what is wrong with the first bad sector.
 */
enum verdict cut_check(struct cut *cut, unsigned int device, uint64_t sector, const void *data,
		       uint64_t count, uint64_t *bad, struct finding *finding);

/** verdict_text() - @verdict in words */
const char *verdict_text(enum verdict verdict);

#endif
