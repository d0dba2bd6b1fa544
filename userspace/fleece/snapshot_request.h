/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, snapshot_request: what `fleece snapshot` was asked for. */
#ifndef FLEECE_SNAPSHOT_REQUEST_H
#define FLEECE_SNAPSHOT_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cow.h"
#include "report.h"

/**
 * struct snapshot_request - the command line
 * @names: the origins.
 * @count: number of them.
 * @devices: values of --cow, in their order.
 * @device_count: number of them, 0 or @count.
 * @snapshots: values of --name, in their order.
 * @snapshot_count: number of them, 0 or @count.
 * @cow: what COW space to make without --cow.
 * @percent: its size in percent of the origin; 0: @cow has it in bytes.
 * @cluster: bytes.
 * @since: checkpoint, or NULL.
 * @checkpoint: checkpoint, or NULL.
 * @on_error: value for on_cbw_error, or NULL.
 * @on_full: value for on_cow_full, or NULL.
 * @timeout_ms: value for cbw_timeout, or NULL.
 * @low_water: value, or NULL.
 * @staging: bytes.
 * @has_staging: @staging was given.
 * @is_releasing: --release-on-discard.
 * @limit_ms: longest freeze.
 * @is_json: --json.
 */
struct snapshot_request {
	char **names;
	size_t count;
	const char **devices;
	size_t device_count;
	const char **snapshots;
	size_t snapshot_count;
	struct cow_request cow;
	unsigned int percent;
	uint64_t cluster;
	const char *since;
	const char *checkpoint;
	const char *on_error;
	const char *on_full;
	const char *timeout_ms;
	const char *low_water;
	uint64_t staging;
	bool has_staging;
	bool is_releasing;
	unsigned int limit_ms;
	bool is_json;
};

/**
 * snapshot_request_parse() - read the command line
 * @argc: number of arguments.
 * @argv: the arguments, argv[0] being the verb.
 * @request: filled in; the caller frees it with snapshot_request_free(), also after an error.
 *
 * Return: DONE, or another status that has been reported.
 */
enum status snapshot_request_parse(int argc, char **argv, struct snapshot_request *request);

/**
 * snapshot_request_free() - free what snapshot_request_parse() has allocated
 * @request: it.
 */
void snapshot_request_free(struct snapshot_request *request);

#endif
