/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, status: what the targets answer, taken apart.
 *
 * Functions return 0 on success and -errno on failure; they never print.
 */
#ifndef FLEECE_LIB_STATUS_H
#define FLEECE_LIB_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/dm-fleece.h>

/**
 * struct fleece_origin_status - status line of target "fleece"
 * @granularity: bytes of one granule.
 * @total_granules: granules of the device.
 * @changed_granules: changed since the newest checkpoint.
 * @metadata: "none", "clean", "dirty" or "failed".
 * @snapshots: number of them.
 * @checkpoints: number of them.
 * @newest: name of the newest checkpoint, empty if there is none.
 */
struct fleece_origin_status {
	uint64_t granularity;
	uint64_t total_granules;
	uint64_t changed_granules;
	char metadata[16];
	unsigned int snapshots;
	unsigned int checkpoints;
	char newest[FLEECE_NAME_SIZE];
};

/**
 * struct fleece_snapshot_status - status line of target "fleece-snapshot"
 * @is_broken: the snapshot cannot be read any more.
 * @used_slots: clusters stored on the COW device.
 * @total_slots: clusters that fit there.
 * @cluster: bytes of one cluster.
 * @accessible_clusters: those that can be read.
 * @total_clusters: clusters of the device.
 * @copied_clusters: copied so far.
 * @released_clusters: given up by the client.
 * @lost_clusters: lost to errors.
 * @staged_bytes: old data in RAM, not yet on the COW device.
 * @waiting_writes: live writes that wait for a copy.
 * @error: errno (positive) of the first loss, else 0.
 * @error_sector: sector of 512 bytes that it concerns.
 */
struct fleece_snapshot_status {
	bool is_broken;
	uint64_t used_slots;
	uint64_t total_slots;
	uint64_t cluster;
	uint64_t accessible_clusters;
	uint64_t total_clusters;
	uint64_t copied_clusters;
	uint64_t released_clusters;
	uint64_t lost_clusters;
	uint64_t staged_bytes;
	uint64_t waiting_writes;
	int error;
	uint64_t error_sector;
};

/**
 * struct fleece_metadata_status - answer to message metadata_status
 * @state: as in struct fleece_origin_status.
 * @error: errno (positive) of its failure, else 0.
 * @bad_sectors: how many were bad when it was read.
 * @written_bytes: written to the device since then.
 * @grants: writes of intents that live writes have waited for.
 */
struct fleece_metadata_status {
	char state[16];
	int error;
	unsigned int bad_sectors;
	uint64_t written_bytes;
	uint64_t grants;
};

/**
 * struct fleece_checkpoint_line - one line of message checkpoint_list
 * @name: of the checkpoint.
 * @uuid: new for every creation.
 * @created: seconds since 1970 (UTC).
 * @changed_granules: changed since.
 * @is_valid: tracking was not interrupted since.
 */
struct fleece_checkpoint_line {
	char name[FLEECE_NAME_SIZE];
	char uuid[FLEECE_UUID_SIZE];
	uint64_t created;
	uint64_t changed_granules;
	bool is_valid;
};

/**
 * fleece_origin_status_parse() - take apart the status of an origin
 * @text: status without start, length and target name.
 * @status: filled in.
 *
 * Return: 0, or -EPROTO when the line is not as documented.
 */
int fleece_origin_status_parse(const char *text, struct fleece_origin_status *status);

/**
 * fleece_metadata_status_parse() - take apart the answer to metadata_status
 * @text: a line.
 * @status: filled in.
 *
 * Return: 0, or -EPROTO when the line is not as documented.
 */
int fleece_metadata_status_parse(const char *text, struct fleece_metadata_status *status);

/**
 * fleece_snapshot_status_parse() - take apart the status of a snapshot
 * @text: status without start, length and target name.
 * @status: filled in.
 *
 * Return: 0, or -EPROTO when the line is not as documented.
 */
int fleece_snapshot_status_parse(const char *text, struct fleece_snapshot_status *status);

/**
 * fleece_checkpoint_list_parse() - take apart the answer of checkpoint_list
 * @text: lines, the last one with or without a line feed.
 * @list: set to an array that the caller frees; NULL if there is none.
 * @count: set to its length.
 *
 * Return: 0, -ENOMEM, or -EPROTO when a line is not as documented.
 */
int fleece_checkpoint_list_parse(const char *text, struct fleece_checkpoint_line **list,
				 size_t *count);

/**
 * fleece_name_is_valid() - whether a text can name a checkpoint
 * @name: the text.
 *
 * Return: true for 1 to 63 of A-Z a-z 0-9 . _ -, not starting with - or a dot.
 */
bool fleece_name_is_valid(const char *name);

#endif
