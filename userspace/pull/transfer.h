/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece-pull, transfer: carries out a plan, with many requests at a time. */
#ifndef FLEECE_PULL_TRANSFER_H
#define FLEECE_PULL_TRANSFER_H

#include "plan.h"
#include "report.h"
#include "source.h"
#include "target.h"

/**
 * transfer_catch_signals() - let SIGINT and the like end a transfer
 *
 * From here on the first one makes transfer_run() fail, so that its caller can clean
 * up; the second one kills. What is ignored stays so.
 */
void transfer_catch_signals(void);

/**
 * transfer_run() - read and write everything in the plan
 * @source: the export, idle; more connections are made where the server allows it. Its
 *	own is closed if it has to be given up with answers on their way.
 * @plan: what to do.
 * @target: where to.
 * @connections: at most so many, not 0.
 * @released: set to the bytes that were released, where the export can: each range when
 *	the target has taken it. One that cannot be released is no failure.
 *
 * The progress is shown on stderr if that is a terminal.
 *
 * Return: DONE; BROKEN when the server says that the snapshot is; FAILED. All errors
 * are reported.
 */
enum status transfer_run(struct source *source, const struct plan *plan,
			 const struct target *target, unsigned int connections,
			 uint64_t *released);

#endif
