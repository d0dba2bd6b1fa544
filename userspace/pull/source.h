/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleece-pull, source: an export of an NBD server, and what it says about its
 * ranges.
 *
 * Functions that return an enum status have reported the error already.
 */
#ifndef FLEECE_PULL_SOURCE_H
#define FLEECE_PULL_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

#include "plan.h"
#include "report.h"

/**
 * struct source - a connected export
 * @uri: as it was typed.
 * @checkpoint: what changed since it is wanted; NULL: everything.
 * @nbd: the first connection.
 * @size: bytes.
 * @name: what the server calls it; NULL: it does not say.
 * @description: what the server says that it is; NULL: nothing.
 * @request_max: bytes that one READ may ask for.
 * @can_multi_conn: several connections see the same data.
 * @can_release: it is fleeced's export NAME+release: TRIM says that its client is done
 *	with a range. On anything else TRIM loses data, so it is never sent there.
 */
struct source {
	const char *uri;
	const char *checkpoint;
	struct nbd_handle *nbd;
	uint64_t size;
	char *name;
	char *description;
	uint32_t request_max;
	bool can_multi_conn;
	bool can_release;
};

/**
 * source_open() - connect, and see to it that the server knows the checkpoint
 * @source: filled in; to be closed also after a failure.
 * @uri: of the export.
 * @checkpoint: name of a checkpoint, or NULL.
 *
 * Return: DONE; NO_CHECKPOINT when its dirty bitmap is not offered, NO_DEVICE when
 * there is no such server or export, FAILED and others as report_status_of().
 */
enum status source_open(struct source *source, const char *uri, const char *checkpoint);

/**
 * source_close() - disconnect
 * @source: what source_open() filled in.
 */
void source_close(struct source *source);

/**
 * source_connect_again() - begin one more connection, without contexts
 * @source: the export.
 *
 * A server that has enough clients may let it wait until one of them leaves: it is
 * the caller who polls it, for as long as it is of use.
 *
 * Return: the connection, which the caller closes, or NULL.
 */
struct nbd_handle *source_connect_again(const struct source *source);

/**
 * source_watch() - notice within two minutes that the host of the server is gone
 * @nbd: a connection; only TCP does not tell by itself.
 *
 * A server that takes long to answer is waited for, as its host says that it is there.
 */
void source_watch(struct nbd_handle *nbd);

/**
 * source_is_same() - does this connection lead to the same export, by all that is said?
 * @source: the export.
 * @nbd: what source_connect_again() returned, ready.
 *
 * Two snapshots may have the same size, name and description. Whether the server that
 * is asked now is still the one from the beginning is for source_is_alive() to tell.
 *
 * Return: false when size, name or description differ, so also the uuids of checkpoints,
 * which fleeced puts into the description.
 */
bool source_is_same(const struct source *source, struct nbd_handle *nbd);

/**
 * source_is_alive() - does the server still answer on the first connection?
 * @source: the export, idle.
 *
 * To be asked after all that came by other connections: as long as the server lives that
 * the plan is from, no other one has taken its address.
 *
 * Return: true when it answers, be it with an error; false when it is gone or ending.
 */
bool source_is_alive(const struct source *source);

/**
 * source_plan() - ask about the whole export
 * @source: the export, idle.
 * @plan: filled in; to be released also after a failure.
 *
 * Every byte is in exactly one range of the plan: what the server leaves out is a
 * failure, not "unchanged".
 *
 * Return: DONE, BROKEN when the server cannot tell any more, or FAILED.
 */
enum status source_plan(struct source *source, struct plan *plan);

/**
 * source_is_broken() - after a READ that failed with EIO: is all of it lost?
 * @source: the export.
 *
 * fleeced answers questions about a lost cluster, but none about a broken snapshot.
 *
 * Return: true when the server does not even answer for the first byte.
 */
bool source_is_broken(const struct source *source);

#endif
