/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * write_log: what dm-log-writes has recorded, in the order in which it became durable.
 *
 * The format is that of the kernel's Documentation/admin-guide/device-mapper/log-writes.rst
 * and of its drivers/md/dm-log-writes.c: a superblock in the first sector, then for each
 * entry one sector that describes it, followed by its data. Writes that completed
 * before a flush began stand before the flush.
 */
#ifndef WRITE_LOG_H
#define WRITE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WRITE_LOG_FLUSH		1u
#define WRITE_LOG_FUA		2u
#define WRITE_LOG_DISCARD	4u
#define WRITE_LOG_MARK		8u

/**
 * struct write_log_entry - one entry
 * @sector: first one, of 512 bytes.
 * @nr_sectors: how many.
 * @flags: WRITE_LOG_*.
 * @data: where its data is in the log; of a mark its text, which ends with NUL.
 */
struct write_log_entry {
	uint64_t sector;
	uint64_t nr_sectors;
	uint64_t flags;
	const uint8_t *data;
};

/**
 * struct write_log - a log
 * @entries: in their order.
 * @nr_entries: how many.
 */
struct write_log {
	struct write_log_entry *entries;
	size_t nr_entries;
};

/**
 * write_log_map() - read a log
 * @log: filled in; kept until the program ends.
 * @path: device or file.
 *
 * Return: NULL, or what is wrong.
 */
const char *write_log_map(struct write_log *log, const char *path);

#endif
