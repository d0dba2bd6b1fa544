/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, extents: the answer to BLOCK_STATUS, before it takes its form on
 * the wire. Owns the rules of coverage: every context of an answer covers
 * exactly the same range, which begins at the offset asked for and is never
 * longer than what was asked for.
 */
#ifndef FLEECED_EXTENTS_H
#define FLEECED_EXTENTS_H

#include "export.h"

/* Extents in one answer, over all its contexts. */
#define EXTENTS_MAX (1U << 17)

/**
 * struct extent - a run of one status
 * @length: bytes, never 0.
 * @flags: status of the context.
 */
struct extent {
	uint64_t length;
	uint32_t flags;
};

/**
 * struct extent_list - neighbouring extents differ
 * @extents: array.
 * @count: of extents.
 * @room: of @extents.
 * @limit: no more extents than this.
 * @covered: sum of the lengths.
 */
struct extent_list {
	struct extent *extents;
	size_t count;
	size_t room;
	size_t limit;
	uint64_t covered;
};

/** extent_list_release() - free what the list holds */
void extent_list_release(struct extent_list *list);

/**
 * extent_list_append() - add a run at the end
 * @list: to extend; joins the run to the last extent if their status is equal.
 * @length: bytes, not 0.
 * @flags: status.
 *
 * Return: 0, -ENOSPC when the limit is reached (nothing was added), -ENOMEM.
 */
int extent_list_append(struct extent_list *list, uint64_t length, uint32_t flags);

/**
 * extent_list_cut() - shorten a list
 * @list: covers at least @length.
 * @length: bytes that it shall cover, not 0.
 */
void extent_list_cut(struct extent_list *list, uint64_t length);

/**
 * extents_gather() - the answer to one BLOCK_STATUS request
 * @export: whose contexts.
 * @ids: positions of the contexts asked for in the export's array.
 * @count: of @ids, not 0.
 * @offset: first byte; inside the export.
 * @length: bytes, not 0; the end is inside the export too.
 * @only_one: one extent for each context.
 * @lists: array of @count zeroed lists; the caller releases them, also after
 *	an error.
 *
 * After success every list covers the same range.
 *
 * Return: 0 or -errno.
 */
int extents_gather(const struct export *export, const unsigned int *ids, size_t count,
		   uint64_t offset, uint64_t length, bool only_one, struct extent_list *lists);

/**
 * extents_find_denied() - the first byte of a range that is not accessible
 * @backend: a snapshot.
 * @offset: first byte of the range; inside the device.
 * @length: bytes, not 0; the end is inside the device too.
 * @at: set to that byte.
 *
 * Return: 0, -ENOENT when all of the range is accessible, or another -errno.
 */
int extents_find_denied(struct backend *backend, uint64_t offset, uint64_t length, uint64_t *at);

#endif
