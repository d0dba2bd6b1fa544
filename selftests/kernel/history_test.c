// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the rules by which the oracle judges images: every verdict
 * of history.h is provoked by a hand-made image, and none by a right one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "history.h"

#define SECTORS		64
#define REGION		16

static int count, failures;

static void check(bool is_good, const char *what)
{
	failures += !is_good;
	printf("%s %d - %s\n", is_good ? "ok" : "not ok", ++count, what);
}

static struct history history;

/* Writer 0 owns sectors 0-15 of device 0 and 16-31 of device 1. */
static void begin_history(void)
{
	memset(&history, 0, sizeof(history));
	history.run = 42;
	history.devices = 2;
	history.writers = 2;
	history.sectors = SECTORS;
	history.region = REGION;
	if (history_init(&history))
		abort();
}

static void written_as(enum write_kind kind, unsigned int device, uint64_t sector,
		       uint64_t sectors)
{
	history_begin(&history, 0, kind, device, sector, sectors);
	history_end(&history, 0);
}

static void written(unsigned int device, uint64_t sector, uint64_t sectors)
{
	written_as(WRITE_DATA, device, sector, sectors);
}

static struct stamp_id stamp_of(unsigned int device, uint64_t sector, uint32_t sequence)
{
	return (struct stamp_id){
		.run = history.run, .device = device, .sector = sector, .sequence = sequence,
	};
}

static enum verdict judge_raw(struct cut *cut, unsigned int device, uint64_t sector,
			      const void *data)
{
	struct finding finding;
	uint64_t bad;

	return cut_check(cut, device, sector, data, 1, &bad, &finding);
}

static enum verdict judge_id(struct cut *cut, unsigned int device, uint64_t sector,
			     struct stamp_id id)
{
	uint64_t data[SECTOR_BYTES / 8];

	stamp_write(data, &id);
	return judge_raw(cut, device, sector, data);
}

static enum verdict judge(struct cut *cut, unsigned int device, uint64_t sector,
			  uint32_t sequence)
{
	return judge_id(cut, device, sector, stamp_of(device, sector, sequence));
}

static void begin_cut(struct cut *cut, uint32_t completed, uint32_t issued)
{
	struct bounds clock = { .completed = { completed }, .issued = { issued } };

	if (cut_init(cut, &history, &clock))
		abort();
}

static void test_stamps(void)
{
	uint64_t data[SECTOR_BYTES / 8] = { 0 };
	struct stamp_id id, other;
	struct cut cut;

	begin_history();
	written(0, 0, 4);
	written(0, 0, 4);
	begin_cut(&cut, 2, 2);
	check(judge_raw(&cut, 0, 0, data) == VERDICT_NO_STAMP, "zeroes are no stamp");
	data[63] = 1;
	check(judge_raw(&cut, 0, 0, data) == VERDICT_NO_STAMP, "nor is anything else");
	id = stamp_of(0, 0, 2);
	stamp_write(data, &id);
	data[63] ^= 1;
	check(judge_raw(&cut, 0, 0, data) == VERDICT_TORN, "a changed last bit is seen");
	stamp_write(data, &id);
	data[4] = 1;
	check(judge_raw(&cut, 0, 0, data) == VERDICT_TORN, "a changed number is seen");
	other = id;
	other.run = 1;
	check(judge_id(&cut, 0, 0, other) == VERDICT_WRONG_RUN, "an earlier run is seen");
	check(judge_id(&cut, 0, 0, stamp_of(0, 1, 2)) == VERDICT_WRONG_PLACE,
	      "another sector is seen");
	check(judge_id(&cut, 0, 0, stamp_of(1, 0, 2)) == VERDICT_WRONG_PLACE,
	      "another device is seen");
	check(judge(&cut, 0, 0, 2) == VERDICT_GOOD, "the right data is good");
	cut_exit(&cut);
	history_exit(&history);
}

static void test_moment(void)
{
	struct cut cut;

	begin_history();
	written(0, 0, 1);
	written(0, 1, 1);
	written(0, 0, 2);
	begin_cut(&cut, 1, 2);
	check(judge(&cut, 0, 0, 3) == VERDICT_NEWER, "a later write is seen");
	check(judge(&cut, 0, 1, 1) == VERDICT_NEVER_WRITTEN, "an invented write is seen");
	check(judge(&cut, 0, 0, 1) == VERDICT_GOOD, "the write before is good");
	cut_exit(&cut);
	begin_cut(&cut, 3, 3);
	check(judge(&cut, 0, 0, 1) == VERDICT_OLDER, "a lost write is seen");
	check(judge(&cut, 0, 1, 2) == VERDICT_OLDER, "a lost part of a write is seen");
	cut_exit(&cut);
	history_exit(&history);
}

static void test_order(void)
{
	struct cut cut;

	begin_history();
	written(0, 0, 4);	/* 1 */
	written(1, 16, 4);	/* 2 */
	written(0, 0, 4);	/* 3 */
	written(1, 16, 4);	/* 4 */
	begin_cut(&cut, 2, 4);
	check(judge(&cut, 1, 16, 4) == VERDICT_GOOD, "the last write may be in");
	check(judge(&cut, 1, 17, 2) == VERDICT_GOOD, "the last write may be in by half");
	check(judge(&cut, 0, 0, 1) == VERDICT_NOT_PREFIX,
	      "a gap before it is seen on the other device");
	cut_exit(&cut);
	begin_cut(&cut, 2, 4);
	check(judge(&cut, 0, 0, 1) == VERDICT_GOOD, "a write in flight may be missing");
	check(judge(&cut, 0, 1, 3) == VERDICT_GOOD, "or in by half");
	check(judge(&cut, 1, 16, 4) == VERDICT_NOT_PREFIX, "but not with one after it");
	check(judge(&cut, 0, 0, 3) == VERDICT_UNSTABLE, "an answer that changes is seen");
	cut_exit(&cut);
	history_exit(&history);
}

static void test_log(void)
{
	struct cut cut;

	begin_history();
	written(0, 0, 4);
	written(0, 2, 4);
	written(0, 8, 4);
	check(history_written(&history, 0, 2, 0, 1, true), "a write in the span is found");
	check(!history_written(&history, 0, 0, 1, 3, true), "one before the span is not");
	check(!history_written(&history, 0, 8, 0, 2, true), "one after the span is not");
	begin_cut(&cut, 3, 3);
	check(judge(&cut, 0, 3, 2) == VERDICT_GOOD && judge(&cut, 0, 0, 1) == VERDICT_GOOD,
	      "images can be judged");
	check(!history_forget(&history, &cut), "what they do not show can be forgotten");
	cut_exit(&cut);
	check(history_newest(&history, 0, 3) == 2 && history_newest(&history, 0, 0) == 1 &&
	      !history_newest(&history, 0, 6), "the newest versions are not forgotten");
	begin_cut(&cut, 3, 3);
	check(judge(&cut, 0, 3, 2) == VERDICT_GOOD && judge(&cut, 0, 0, 1) == VERDICT_GOOD,
	      "images can be judged after forgetting");
	cut_exit(&cut);
	history_exit(&history);
}

static enum verdict judge_zeroes(struct cut *cut, unsigned int device, uint64_t sector)
{
	static const uint64_t zeroes[SECTOR_BYTES / 8];

	return judge_raw(cut, device, sector, zeroes);
}

static void test_zeroes(void)
{
	struct cut cut;

	begin_history();
	written(0, 0, 4);			/* 1 */
	written_as(WRITE_ZEROES, 0, 0, 4);	/* 2 */
	written(1, 16, 4);			/* 3 */
	written(0, 0, 2);			/* 4 */
	written_as(WRITE_ZEROES, 0, 0, 1);	/* 5 */
	begin_cut(&cut, 1, 1);
	check(judge_zeroes(&cut, 0, 0) == VERDICT_NEWER, "later zeroes are seen");
	cut_exit(&cut);
	begin_cut(&cut, 4, 4);
	check(judge_zeroes(&cut, 0, 1) == VERDICT_OLDER, "zeroes that were overwritten are seen");
	check(judge(&cut, 0, 2, 1) == VERDICT_OLDER, "lost zeroes are seen");
	check(judge_zeroes(&cut, 0, 2) == VERDICT_GOOD, "the last zeroes are good");
	cut_exit(&cut);
	begin_cut(&cut, 1, 4);
	check(judge_zeroes(&cut, 0, 2) == VERDICT_GOOD, "zeroes may be in");
	check(judge(&cut, 1, 16, 3) == VERDICT_GOOD, "and what came after them");
	check(judge(&cut, 0, 1, 1) == VERDICT_NOT_PREFIX, "but then all of them");
	check(judge(&cut, 0, 2, 1) == VERDICT_NOT_PREFIX, "also where they were seen");
	cut_exit(&cut);
	begin_cut(&cut, 1, 5);
	check(judge(&cut, 0, 3, 1) == VERDICT_GOOD && judge_zeroes(&cut, 0, 0) == VERDICT_GOOD,
	      "of two times the first may be it");
	check(judge(&cut, 1, 16, 3) == VERDICT_NOT_PREFIX, "and is it if the second cannot be");
	check(judge(&cut, 0, 0, 1) == VERDICT_UNSTABLE, "zeroes that turn into data are seen");
	cut_exit(&cut);
	history_exit(&history);
}

static void test_advice(void)
{
	struct cut cut;

	begin_history();
	written(0, 0, 4);			/* 1 */
	written_as(WRITE_ADVICE, 0, 0, 4);	/* 2 */
	written_as(WRITE_ADVICE, 0, 0, 4);	/* 3 */
	begin_cut(&cut, 1, 1);
	check(judge_zeroes(&cut, 0, 0) == VERDICT_NEWER, "a later discard is seen");
	cut_exit(&cut);
	check(!history_written(&history, 0, 0, 1, 3, true) &&
	      history_written(&history, 0, 0, 1, 3, false), "a discard may be a change");
	begin_cut(&cut, 3, 3);
	check(judge_zeroes(&cut, 0, 0) == VERDICT_GOOD, "a discard may leave zeroes");
	check(judge(&cut, 0, 1, 1) == VERDICT_GOOD, "or what was there");
	check(judge(&cut, 0, 0, 1) == VERDICT_UNSTABLE, "but not the one and then the other");
	check(!history_forget(&history, &cut), "what is seen is kept");
	cut_exit(&cut);
	check(history_written(&history, 0, 0, 1, 3, true) &&
	      !history_written(&history, 0, 1, 1, 3, true), "zeroes that were seen are a change");
	check(history_written(&history, 0, 1, 2, 3, false), "what was not may still be one");
	begin_cut(&cut, 3, 3);
	check(judge(&cut, 0, 0, 1) == VERDICT_NEVER_WRITTEN, "zeroes do not turn into data");
	check(judge_zeroes(&cut, 0, 1) == VERDICT_NO_STAMP, "nor data into zeroes");
	check(judge(&cut, 0, 1, 1) == VERDICT_GOOD && judge_zeroes(&cut, 0, 0) == VERDICT_GOOD,
	      "they stay what they are");
	cut_exit(&cut);
	written(0, 0, 1);			/* 4 */
	begin_cut(&cut, 4, 4);
	check(judge_zeroes(&cut, 0, 0) == VERDICT_OLDER, "a lost write after a discard is seen");
	cut_exit(&cut);
	history_exit(&history);
}

static void test_access(void)
{
	struct access access;

	if (access_init(&access, 20, 8))
		abort();
	access_set(&access, 0, ACCESS_MUST | ACCESS_MAY);
	access_set(&access, 16, ACCESS_MUST | ACCESS_MAY);
	check(access_is_denied(&access, 7, 2), "a read that touches the outside must fail");
	check(!access_is_denied(&access, 0, 8) && !access_is_doubtful(&access, 0, 8),
	      "one inside must not");
	access_release_begin(&access, 0, 4);
	check(!access_is_doubtful(&access, 0, 8), "half a cluster stays");
	access_release_begin(&access, 4, 4);
	check(access_is_doubtful(&access, 0, 1) && !access_is_denied(&access, 0, 1),
	      "two halves may go");
	access_release_begin(&access, 15, 5);
	access_release_end(&access, 15, 5);
	check(access_is_denied(&access, 19, 1), "a partial last cluster goes");
	access_exit(&access);
}

int main(void)
{
	printf("TAP version 13\n");
	test_stamps();
	test_moment();
	test_order();
	test_log();
	test_zeroes();
	test_advice();
	test_access();
	printf("1..%d\n", count);
	return failures ? 1 : 0;
}
