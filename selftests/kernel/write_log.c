// SPDX-License-Identifier: GPL-2.0-only
/*
 * write_log: see write_log.h.
 */
#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "write_log.h"

#define MAGIC		0x6a736677736872ull
#define VERSION		1
#define SECTOR		512

struct log_super {
	uint64_t magic;
	uint64_t version;
	uint64_t nr_entries;
	uint32_t sector_bytes;
};

struct log_entry {
	uint64_t sector;
	uint64_t nr_sectors;
	uint64_t flags;
	uint64_t data_bytes;
};

/* The whole of a device or file, or NULL. */
static const uint8_t *map_all(const char *path, uint64_t *bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	void *all = MAP_FAILED;

	if (end > 0)
		all = mmap(NULL, end, PROT_READ, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	*bytes = end;
	return all == MAP_FAILED ? NULL : all;
}

/* Reads the entry at *place and moves that to the next one. */
static const char *read_entry(const uint8_t *all, uint64_t bytes, uint32_t unit, uint64_t *place,
			      struct write_log_entry *entry)
{
	struct log_entry found;
	uint64_t length;

	if (*place + unit > bytes)
		return "the log ends within an entry";
	memcpy(&found, all + *place, sizeof(found));
	entry->sector = le64toh(found.sector) * (unit / SECTOR);
	entry->nr_sectors = le64toh(found.nr_sectors) * (unit / SECTOR);
	entry->flags = le64toh(found.flags);
	if (entry->flags & WRITE_LOG_MARK) {
		entry->data = all + *place + sizeof(found);
		*place += unit;
		return memchr(entry->data, 0, unit - sizeof(found)) ? NULL : "a mark has no end";
	}
	*place += unit;
	entry->data = all + *place;
	length = entry->flags & WRITE_LOG_DISCARD ? 0 : entry->nr_sectors * SECTOR;
	if (length > bytes - *place)
		return "the log ends within data";
	*place += length;
	return NULL;
}

const char *write_log_map(struct write_log *log, const char *path)
{
	const char *error = NULL;
	struct log_super super;
	uint64_t bytes, place;
	const uint8_t *all = map_all(path, &bytes);
	uint32_t unit;
	size_t i;

	if (!all || bytes < sizeof(super))
		return "it cannot be read";
	memcpy(&super, all, sizeof(super));
	unit = le32toh(super.sector_bytes);
	if (le64toh(super.magic) != MAGIC || le64toh(super.version) != VERSION)
		return "it is no log of dm-log-writes";
	if (unit < SECTOR || unit % SECTOR || le64toh(super.nr_entries) > bytes / SECTOR)
		return "its superblock is nonsense";
	log->nr_entries = le64toh(super.nr_entries);
	log->entries = calloc(log->nr_entries + 1, sizeof(*log->entries));
	if (!log->entries)
		return "out of memory";
	place = unit;
	for (i = 0; i < log->nr_entries && !error; i++)
		error = read_entry(all, bytes, unit, &place, &log->entries[i]);
	return error;
}
