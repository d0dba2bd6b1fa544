// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, extents: gathers the maps of a backend into the lists of an answer.
 * Memory is bounded by EXTENTS_MAX, whatever the size of the device: a map is
 * read in pieces until the range is covered or the list is full, and what did
 * not fit is the client's next question.
 */
#include "extents.h"

#include <errno.h>
#include <stdlib.h>

/* Extents asked of the backend in one call: many, or as few as REQ_ONE needs. */
#define PIECE_MANY	256
#define PIECE_ONE	2

#define ALIGNMENT	512ULL

void extent_list_release(struct extent_list *list)
{
	free(list->extents);
	list->extents = NULL;
	list->count = 0;
	list->room = 0;
	list->covered = 0;
}

static int grow(struct extent_list *list)
{
	size_t room = list->room ? 2 * list->room : 16;
	struct extent *bigger;

	if (room > list->limit)
		room = list->limit;
	bigger = realloc(list->extents, room * sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	list->extents = bigger;
	list->room = room;
	return 0;
}

int extent_list_append(struct extent_list *list, uint64_t length, uint32_t flags)
{
	struct extent *last = list->count ? &list->extents[list->count - 1] : NULL;
	int ret;

	if (last && last->flags == flags) {
		last->length += length;
		list->covered += length;
		return 0;
	}
	if (list->count == list->limit)
		return -ENOSPC;
	if (list->count == list->room) {
		ret = grow(list);
		if (ret)
			return ret;
	}
	list->extents[list->count].length = length;
	list->extents[list->count].flags = flags;
	list->count++;
	list->covered += length;
	return 0;
}

void extent_list_cut(struct extent_list *list, uint64_t length)
{
	while (list->covered > length) {
		struct extent *last = &list->extents[list->count - 1];
		uint64_t excess = list->covered - length;

		if (excess < last->length) {
			last->length -= excess;
			list->covered -= excess;
		} else {
			list->covered -= last->length;
			list->count--;
		}
	}
}

/* Status of a range of which the backend's map has this value. */
static uint32_t status_of(const struct context *context, uint32_t value)
{
	switch (context->kind) {
	case CONTEXT_DIRTY:
		return value;
	case CONTEXT_CLEAN:
	case CONTEXT_ACCESS:
		return !value;
	default:
		return 0;
	}
}

/*
 * One piece of a map. @at is the first byte not covered yet, @end the end of
 * the question; the map is asked for whole sectors around them. A backend that
 * answers nonsense must not become an endless or an overlapping answer.
 */
static int gather_piece(struct backend *backend, const struct context *context, uint64_t at,
			uint64_t end, uint32_t capacity, struct extent_list *list)
{
	struct fleece_extent piece[PIECE_MANY];
	uint64_t start = at & ~(ALIGNMENT - 1);
	uint64_t stop = (end + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
	uint64_t expected = start;
	uint64_t covered = 0;
	uint64_t first, last;
	enum fleece_map map = context->kind == CONTEXT_ACCESS ? FLEECE_MAP_ACCESSIBLE :
								FLEECE_MAP_CHANGED;
	int count, i, ret;

	if (stop > backend->size)
		stop = backend->size;
	count = backend->ops->extents(backend, map, context->checkpoint, start, stop - start,
				      piece, capacity, &covered);
	if (count < 0)
		return count;
	if (!count || (uint32_t)count > capacity)
		return -EIO;
	for (i = 0; i < count; i++) {
		if (piece[i].offset != expected || !piece[i].length ||
		    piece[i].length > stop - expected || piece[i].value > 1)
			return -EIO;
		expected += piece[i].length;
		first = piece[i].offset > at ? piece[i].offset : at;
		last = expected < end ? expected : end;
		if (last <= first)
			continue;
		ret = extent_list_append(list, last - first, status_of(context, piece[i].value));
		if (ret)
			return ret;
	}
	return expected > at ? 0 : -EIO;
}

static int gather_context(struct backend *backend, const struct context *context, uint64_t offset,
			  uint64_t length, struct extent_list *list)
{
	uint32_t capacity = list->limit == 1 ? PIECE_ONE : PIECE_MANY;
	int ret = 0;

	if (context->kind == CONTEXT_ALLOCATION)
		return extent_list_append(list, length, 0);
	while (!ret && list->covered < length)
		ret = gather_piece(backend, context, offset + list->covered, offset + length,
				   capacity, list);
	return ret == -ENOSPC ? 0 : ret;
}

/*
 * Clients may ask for 2^32 - 1 bytes; the answer then ends at a whole sector,
 * so that the next question is aligned again.
 */
static uint64_t usable_length(const struct backend *backend, uint64_t offset, uint64_t length)
{
	uint64_t end = offset + length;
	uint64_t aligned = end & ~(ALIGNMENT - 1);

	if (end == backend->size || aligned <= offset)
		return length;
	return aligned - offset;
}

int extents_gather(const struct export *export, const unsigned int *ids, size_t count,
		   uint64_t offset, uint64_t length, bool only_one, struct extent_list *lists)
{
	uint64_t common = usable_length(export->backend, offset, length);
	size_t i;
	int ret;

	for (i = 0; i < count; i++) {
		lists[i].limit = only_one ? 1 : EXTENTS_MAX / count;
		ret = gather_context(export->backend, &export->contexts[ids[i]], offset, common,
				     &lists[i]);
		if (ret)
			return ret;
		/* What one context could not cover need not be asked for the others. */
		if (lists[i].covered < common)
			common = lists[i].covered;
	}
	for (i = 0; i < count; i++)
		extent_list_cut(&lists[i], common);
	return 0;
}

int extents_find_denied(struct backend *backend, uint64_t offset, uint64_t length, uint64_t *at)
{
	static const struct context access = { .kind = CONTEXT_ACCESS };
	struct extent_list list = { .limit = 2 };
	int ret = gather_context(backend, &access, offset, length, &list);

	/* Neighbours differ: it is in the first extent or in the second. */
	if (!ret && list.extents[0].flags)
		*at = offset;
	else if (!ret && list.count > 1)
		*at = offset + list.extents[0].length;
	else if (!ret)
		ret = -ENOENT;
	extent_list_release(&list);
	return ret;
}
