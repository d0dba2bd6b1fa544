/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece, window: the moment in which origins are suspended.
 */
#ifndef FLEECE_WINDOW_H
#define FLEECE_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#include "dm.h"
#include "report.h"

/**
 * struct window - what happens between suspending and resuming
 * @suspends: one for each origin.
 * @clears: one for each origin whose loaded table its resume makes live, or NULL.
 * @resumes: one for each origin, in the same order; they are run backwards.
 * @origins: number of origins.
 * @starts: resumes of the new snapshots' devices.
 * @snapshots: number of @starts.
 * @limit_ms: longest time that origins may stay suspended.
 */
struct window {
	const struct fleece_dm_switch *suspends;
	const struct fleece_dm_switch *clears;
	const struct fleece_dm_switch *resumes;
	size_t origins;
	const struct fleece_dm_switch *starts;
	size_t snapshots;
	unsigned int limit_ms;
};

/**
 * enum window_step - where a window failed
 * @WINDOW_PREPARE: before anything was suspended.
 * @WINDOW_SUSPEND: suspending an origin.
 * @WINDOW_START: resuming a snapshot.
 * @WINDOW_LATE: the limit passed; the origins were resumed by the guardian.
 * @WINDOW_RESUME: resuming an origin, also at the second attempt.
 */
enum window_step {
	WINDOW_PREPARE,
	WINDOW_SUSPEND,
	WINDOW_START,
	WINDOW_LATE,
	WINDOW_RESUME,
};

/**
 * struct window_result - how it went
 * @step: where it failed, if it failed.
 * @index: which origin or snapshot.
 * @frozen_us: from the first suspend to the last resume.
 */
struct window_result {
	enum window_step step;
	size_t index;
	uint64_t frozen_us;
};

/**
 * window_run() - suspend all origins, start all snapshots, resume all origins
 * @window: what to do, made ready.
 * @result: filled in.
 *
 * Every origin is resumed before the function returns, whatever happened; also
 * when the process is killed in between. If it succeeds, no origin took a write
 * between the first and the last start. If it was given up before that, what was loaded
 * is cleared.
 *
 * Return: 0 or -errno (-ETIMEDOUT with WINDOW_LATE).
 */
int window_run(const struct window *window, struct window_result *result);

/**
 * window_report() - report why a window failed
 * @error: what window_run() returned, not 0.
 * @result: filled in by it.
 * @origins: names of the origins, in the window's order.
 * @snapshots: names of the snapshots, in the window's order.
 *
 * Return: the exit status.
 */
enum status window_report(int error, const struct window_result *result,
			  const char *const *origins, const char *const *snapshots);

/* Longest time that origins stay suspended unless the user says otherwise. */
#define WINDOW_LIMIT_MS		10000

/**
 * window_limit_parse() - read the value of --freeze-timeout
 * @text: seconds, 1 to 3600.
 * @limit_ms: set to it in milliseconds.
 *
 * Return: 0 or -EINVAL.
 */
int window_limit_parse(const char *text, unsigned int *limit_ms);

#endif
