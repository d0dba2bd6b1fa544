// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd tests: the backend of backend_memory.h. The ranges that are denied grow
 * by releases and are protected by a lock; everything else is constant.
 */
#include "backend_memory.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECKPOINTS_MAX	80
#define FACTOR		0x9e3779b97f4a7c15ULL

struct range {
	uint64_t start;
	uint64_t end;
};

struct ranges {
	struct range *array;
	size_t count;
};

/* A checkpoint's map: the ranges, or every other unit. */
struct map {
	struct ranges changed;
	uint64_t stripe;
};

struct memory_backend {
	struct backend base;
	pthread_mutex_t lock;
	struct ranges denied;
	struct ranges lost;
	struct ranges bad;
	struct ranges zero;
	struct map maps[CHECKPOINTS_MAX];
	uint64_t cluster;
	uint64_t cached;
	unsigned int delay_ms;
};

static atomic_bool is_broken;
static atomic_ullong read_bytes;

static struct memory_backend *to_memory(struct backend *backend)
{
	return (struct memory_backend *)backend;
}

void backend_memory_break(void)
{
	atomic_store(&is_broken, true);
}

void backend_memory_mend(void)
{
	atomic_store(&is_broken, false);
}

unsigned long long backend_memory_reads(void)
{
	return atomic_load(&read_bytes);
}

static int add_range(struct ranges *ranges, uint64_t start, uint64_t end)
{
	struct range *bigger = realloc(ranges->array, (ranges->count + 1) * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	ranges->array = bigger;
	bigger[ranges->count].start = start;
	bigger[ranges->count].end = end;
	ranges->count++;
	return 0;
}

static bool touches(const struct ranges *ranges, uint64_t start, uint64_t end)
{
	size_t i;

	for (i = 0; i < ranges->count; i++)
		if (start < ranges->array[i].end && end > ranges->array[i].start)
			return true;
	return false;
}

/* Is @at in one of the ranges? *@end is lowered to where that may change. */
static bool run_at(const struct ranges *ranges, uint64_t at, uint64_t *end)
{
	bool inside = false;
	size_t i;

	for (i = 0; i < ranges->count; i++) {
		const struct range *range = &ranges->array[i];

		inside |= at >= range->start && at < range->end;
		if (range->start > at && range->start < *end)
			*end = range->start;
		if (range->end > at && range->end < *end)
			*end = range->end;
	}
	return inside;
}

static void fill_zeroes(const struct ranges *ranges, uint8_t *buffer, uint64_t offset,
			uint32_t length)
{
	uint64_t start, end;
	size_t i;

	for (i = 0; i < ranges->count; i++) {
		start = ranges->array[i].start > offset ? ranges->array[i].start : offset;
		end = ranges->array[i].end < offset + length ? ranges->array[i].end :
							       offset + length;
		if (start < end)
			memset(buffer + (start - offset), 0, end - start);
	}
}

static void fill_pattern(uint8_t *buffer, uint64_t offset, uint32_t length)
{
	uint64_t end = offset + length;
	uint64_t word;
	size_t first, n;

	for (; offset < end; offset += n) {
		word = htobe64((offset & ~7ULL) * FACTOR);
		first = offset & 7;
		n = end - offset < sizeof(word) - first ? end - offset : sizeof(word) - first;
		memcpy(buffer, (uint8_t *)&word + first, n);
		buffer += n;
	}
}

void backend_memory_fill(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	fill_pattern(buffer, offset, length);
	fill_zeroes(&to_memory(backend)->zero, buffer, offset, length);
}

static int memory_read(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	struct memory_backend *memory = to_memory(backend);
	int ret = 0;

	if (((uintptr_t)buffer | offset | length) & (backend->block - 1))
		abort();
	if (memory->delay_ms)
		usleep(memory->delay_ms * 1000);
	if (atomic_load(&is_broken))
		return -EIO;
	pthread_mutex_lock(&memory->lock);
	if (touches(&memory->denied, offset, offset + length))
		ret = -EPERM;
	else if (touches(&memory->lost, offset, offset + length) ||
		 touches(&memory->bad, offset, offset + length))
		ret = -EIO;
	pthread_mutex_unlock(&memory->lock);
	/* What a failed read leaves behind must never get to a client. */
	backend_memory_fill(backend, buffer, offset, length);
	if (!ret)
		atomic_fetch_add(&read_bytes, length);
	return ret;
}

static int memory_read_now(struct backend *backend, void *buffer, uint64_t offset,
			   uint32_t length)
{
	if (offset / to_memory(backend)->cached & 1)
		return -EAGAIN;
	return memory_read(backend, buffer, offset, length);
}

static int memory_release(struct backend *backend, uint64_t offset, uint64_t length)
{
	struct memory_backend *memory = to_memory(backend);
	uint64_t mask = memory->cluster - 1;
	uint64_t start = (offset + mask) & ~mask;
	uint64_t end = offset + length;
	int ret = 0;

	if (atomic_load(&is_broken))
		return -EIO;
	if (end != backend->size)
		end &= ~mask;
	if (end <= start)
		return 0;
	pthread_mutex_lock(&memory->lock);
	if (memory->denied.count < 100000)
		ret = add_range(&memory->denied, start, end);
	pthread_mutex_unlock(&memory->lock);
	return ret;
}

static bool map_at(const struct map *map, uint64_t at, uint64_t *end)
{
	if (!map->stripe)
		return run_at(&map->changed, at, end);
	if ((at / map->stripe + 1) * map->stripe < *end)
		*end = (at / map->stripe + 1) * map->stripe;
	return (at / map->stripe) & 1;
}

static const struct map *find_map(struct memory_backend *memory, const char *checkpoint)
{
	size_t i;

	for (i = 0; checkpoint && i < memory->base.checkpoint_count; i++)
		if (!strcmp(memory->base.checkpoints[i].name, checkpoint))
			return &memory->maps[i];
	return NULL;
}

static int memory_extents(struct backend *backend, enum fleece_map kind, const char *checkpoint,
			  uint64_t offset, uint64_t length, struct fleece_extent *extents,
			  uint32_t capacity, uint64_t *covered)
{
	struct memory_backend *memory = to_memory(backend);
	const struct map *map = find_map(memory, checkpoint);
	uint64_t at = offset, end;
	uint32_t count = 0;
	bool value;

	if (offset % 512 || !length || offset + length > backend->size)
		return -EINVAL;
	if (kind == FLEECE_MAP_CHANGED && !map)
		return -ENOENT;
	pthread_mutex_lock(&memory->lock);
	while (at < offset + length) {
		end = offset + length;
		value = kind == FLEECE_MAP_CHANGED ? map_at(map, at, &end) :
						     !run_at(&memory->denied, at, &end) &&
						     !run_at(&memory->lost, at, &end);
		if (count && extents[count - 1].value == value) {
			extents[count - 1].length += end - at;
		} else {
			if (count == capacity)
				break;
			memset(&extents[count], 0, sizeof(*extents));
			extents[count].offset = at;
			extents[count].length = end - at;
			extents[count].value = value;
			count++;
		}
		at = end;
	}
	pthread_mutex_unlock(&memory->lock);
	*covered = at - offset;
	return (int)count;
}

static int memory_state(struct backend *backend, char *text, size_t size)
{
	(void)backend;
	if (!atomic_load(&is_broken)) {
		text[0] = '\0';
		return 0;
	}
	snprintf(text, size, "the snapshot is broken: No space left on device at origin sector 4711");
	return -EIO;
}

static void memory_close(struct backend *backend)
{
	struct memory_backend *memory = to_memory(backend);
	size_t i;

	for (i = 0; i < CHECKPOINTS_MAX; i++)
		free(memory->maps[i].changed.array);
	free(memory->denied.array);
	free(memory->lost.array);
	free(memory->bad.array);
	free(memory->zero.array);
	free(memory->base.checkpoints);
	pthread_mutex_destroy(&memory->lock);
	free(memory);
}

static const struct backend_ops memory_ops = {
	.read = memory_read,
	.release = memory_release,
	.extents = memory_extents,
	.state = memory_state,
	.close = memory_close,
};

static const struct backend_ops plain_ops = {
	.read = memory_read,
	.state = memory_state,
	.close = memory_close,
};

static const struct backend_ops cached_ops = {
	.read = memory_read,
	.read_now = memory_read_now,
	.state = memory_state,
	.close = memory_close,
};

static int parse_size(const char *text, char **end, uint64_t *size)
{
	static const char units[] = "KMGT";
	const char *unit;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	*size = strtoull(text, end, 10);
	unit = **end ? strchr(units, **end) : NULL;
	if (unit) {
		*size <<= 10 * (unit - units + 1);
		(*end)++;
	}
	return 0;
}

static int parse_range(const char *text, struct ranges *ranges)
{
	uint64_t start, end;
	char *rest;

	if (parse_size(text, &rest, &start) || *rest != '-' || parse_size(rest + 1, &rest, &end) ||
	    *rest || end <= start)
		return -EINVAL;
	return add_range(ranges, start, end);
}

static int parse_checkpoint(struct memory_backend *memory, char *text, bool is_striped,
			    uint32_t flags)
{
	size_t index = memory->base.checkpoint_count;
	struct fleece_checkpoint *checkpoint = &memory->base.checkpoints[index];
	char *save, *rest, *part;
	int ret = 0;

	if (index == CHECKPOINTS_MAX)
		return -EINVAL;
	part = strtok_r(text, "/", &save);
	if (!part)
		return -EINVAL;
	snprintf(checkpoint->name, sizeof(checkpoint->name), "%s", part);
	snprintf(checkpoint->uuid, sizeof(checkpoint->uuid), "00000000-0000-4000-8000-%012zu",
		 index);
	checkpoint->flags = flags;
	while (!ret && (part = strtok_r(NULL, "/", &save)))
		ret = is_striped ? parse_size(part, &rest, &memory->maps[index].stripe) :
				   parse_range(part, &memory->maps[index].changed);
	memory->base.checkpoint_count++;
	return ret;
}

static int parse_number(const char *text, char **rest, unsigned int *number)
{
	uint64_t value = 0;
	int ret = parse_size(text, rest, &value);

	*number = value;
	return ret;
}

static int parse_cached(struct memory_backend *memory, const char *text, char **rest)
{
	if (memory->base.ops != &plain_ops)
		return -EINVAL;
	memory->base.ops = &cached_ops;
	return parse_size(text, rest, &memory->cached);
}

static int parse_word(struct memory_backend *memory, char *word)
{
	char *value = strchr(word, '=');
	char *rest = "";
	int ret = 0;

	if (!value) {
		memory->base.ops = &plain_ops;
		memory->base.has_maps = false;
		return strcmp(word, "plain") ? -EINVAL : 0;
	}
	*value++ = '\0';
	if (!strcmp(word, "size"))
		ret = parse_size(value, &rest, &memory->base.size);
	else if (!strcmp(word, "cluster"))
		ret = parse_size(value, &rest, &memory->cluster);
	else if (!strcmp(word, "cp"))
		return parse_checkpoint(memory, value, false, 0);
	else if (!strcmp(word, "here"))
		return parse_checkpoint(memory, value, false, FLEECE_CHECKPOINT_HERE);
	else if (!strcmp(word, "stripes"))
		return parse_checkpoint(memory, value, true, 0);
	else if (!strcmp(word, "since"))
		snprintf(memory->base.since, sizeof(memory->base.since), "%s", value);
	else if (!strcmp(word, "denied"))
		return parse_range(value, &memory->denied);
	else if (!strcmp(word, "lost"))
		return parse_range(value, &memory->lost);
	else if (!strcmp(word, "bad"))
		return parse_range(value, &memory->bad);
	else if (!strcmp(word, "zero"))
		return parse_range(value, &memory->zero);
	else if (!strcmp(word, "delay"))
		ret = parse_number(value, &rest, &memory->delay_ms);
	else if (!strcmp(word, "cached"))
		ret = parse_cached(memory, value, &rest);
	else if (!strcmp(word, "block"))
		ret = parse_number(value, &rest, &memory->base.block);
	else
		return -EINVAL;
	return ret || *rest ? -EINVAL : 0;
}

int backend_memory_open(const char *path, struct backend **backend)
{
	struct memory_backend *memory;
	char *text, *word, *save;
	int ret = 0;

	if (strncmp(path, "mem:", 4))
		return -EINVAL;
	memory = calloc(1, sizeof(*memory));
	text = strdup(path + 4);
	if (memory)
		memory->base.checkpoints = calloc(CHECKPOINTS_MAX,
						  sizeof(*memory->base.checkpoints));
	if (!memory || !text || !memory->base.checkpoints)
		abort();
	pthread_mutex_init(&memory->lock, NULL);
	memory->base.ops = &memory_ops;
	memory->base.has_maps = true;
	memory->base.block = 1;
	memory->cluster = 65536;
	for (word = strtok_r(text, ",", &save); !ret && word; word = strtok_r(NULL, ",", &save))
		ret = parse_word(memory, word);
	free(text);
	memory->base.preferred = memory->cluster;
	if (ret) {
		memory_close(&memory->base);
		return ret;
	}
	*backend = &memory->base;
	return 0;
}
