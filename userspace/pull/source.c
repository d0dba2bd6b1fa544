// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-pull, source: connects with libnbd and turns the answers of several
 * metadata contexts, which need not be cut at the same places, into one plan.
 */
#include "source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keepalive.h"

#define ALLOCATION	"base:allocation"
#define ACCESS		"fleece:access"
#define DIRTY		"qemu:dirty-bitmap:"
/* End of the name of an export of fleeced on which TRIM releases. */
#define RELEASE		"+release"

/* One question covers at most this. */
#define ASK_BYTES	(1ULL << 30)
/* One READ; a large one keeps other requests of its connection waiting. */
#define REQUEST_BYTES	(1U << 20)
/* A question whose answer does not matter, if the server takes such short ones. */
#define PROBE_BYTES	512
/* The protocol knows no larger minimum. */
#define PROBE_MAX	(64U << 10)
#define NAME_BYTES	256

/* A context, and its answer to one question. */
struct map {
	char name[NAME_BYTES];
	bool is_offered;
	uint32_t *entries;
	size_t count;
	size_t capacity;
	/* While the answers are merged. */
	size_t index;
	uint64_t left;
};

enum { MAP_ALLOCATION, MAP_ACCESS, MAP_DIRTY, MAPS };

struct maps {
	struct map map[MAPS];
};

static enum status report_nbd(const struct source *source, const char *what)
{
	int error = nbd_get_errno();

	return report(error ? report_status_of(error) : FAILED, source->uri, "%s: %s", what,
		      nbd_get_error());
}

static struct nbd_handle *create(void)
{
	struct nbd_handle *nbd = nbd_create();

	if (!nbd)
		return NULL;
	/* Who types a URI may as well name his key file in it. */
	if (nbd_set_uri_allow_local_file(nbd, true) < 0 || nbd_set_full_info(nbd, true) < 0) {
		nbd_close(nbd);
		return NULL;
	}
	return nbd;
}

void source_watch(struct nbd_handle *nbd)
{
	fleece_keepalive(nbd_aio_get_fd(nbd), FLEECE_KEEPALIVE_MS);
}

/* The host may die while they still shake hands; each address is tried on a new socket. */
static int connect_uri(struct nbd_handle *nbd, const char *uri)
{
	int ret = nbd_aio_connect_uri(nbd, uri);

	while (ret >= 0 && nbd_aio_is_connecting(nbd) > 0) {
		source_watch(nbd);
		ret = nbd_poll(nbd, -1);
	}
	return ret;
}

static void dirty_name(char *name, const char *checkpoint)
{
	snprintf(name, NAME_BYTES, DIRTY "%s", checkpoint);
}

/* By the name that was asked for, and by what only fleeced has. */
static bool can_release(struct nbd_handle *nbd)
{
	char *name = nbd_get_export_name(nbd);
	size_t length = name ? strlen(name) : 0;
	bool is_asked_for = length > strlen(RELEASE) &&
			    !strcmp(name + length - strlen(RELEASE), RELEASE);

	free(name);
	return is_asked_for && nbd_can_meta_context(nbd, ACCESS) > 0 &&
	       nbd_is_read_only(nbd) == 0 && nbd_can_trim(nbd) > 0;
}

static enum status read_facts(struct source *source)
{
	int64_t size = nbd_get_size(source->nbd);
	int64_t maximum = nbd_get_block_size(source->nbd, LIBNBD_SIZE_MAXIMUM);

	if (size < 0)
		return report_nbd(source, "cannot learn its size");
	if (size == 0)
		return report(FAILED, source->uri, "is empty");
	source->size = (uint64_t)size;
	source->request_max = REQUEST_BYTES;
	if (maximum > 0 && maximum < REQUEST_BYTES)
		source->request_max = (uint32_t)maximum;
	source->can_multi_conn = nbd_can_multi_conn(source->nbd) > 0;
	source->can_release = can_release(source->nbd);
	source->name = nbd_get_canonical_export_name(source->nbd);
	source->description = nbd_get_export_description(source->nbd);
	return DONE;
}

enum status source_open(struct source *source, const char *uri, const char *checkpoint)
{
	char dirty[NAME_BYTES];

	memset(source, 0, sizeof(*source));
	source->uri = uri;
	source->checkpoint = checkpoint;
	source->nbd = create();
	if (!source->nbd || nbd_add_meta_context(source->nbd, ALLOCATION) < 0 ||
	    nbd_add_meta_context(source->nbd, ACCESS) < 0)
		return report_nbd(source, "cannot prepare");
	if (checkpoint) {
		dirty_name(dirty, checkpoint);
		if (nbd_add_meta_context(source->nbd, dirty) < 0)
			return report_nbd(source, "cannot prepare");
	}
	if (connect_uri(source->nbd, uri) < 0)
		return report_nbd(source, "cannot connect");
	if (checkpoint && nbd_can_meta_context(source->nbd, dirty) <= 0)
		return report(NO_CHECKPOINT, uri,
			      "the server does not offer %s; make a full backup", dirty);
	return read_facts(source);
}

void source_close(struct source *source)
{
	if (source->nbd) {
		/* A server that is gone is no news here. */
		if (nbd_aio_is_ready(source->nbd) > 0)
			nbd_shutdown(source->nbd, 0);
		nbd_close(source->nbd);
	}
	free(source->name);
	free(source->description);
	memset(source, 0, sizeof(*source));
}

struct nbd_handle *source_connect_again(const struct source *source)
{
	struct nbd_handle *nbd = create();

	if (!nbd)
		return NULL;
	if (nbd_aio_connect_uri(nbd, source->uri) < 0) {
		nbd_close(nbd);
		return NULL;
	}
	return nbd;
}

static bool is_text(const char *text, char *other)
{
	bool equal = text && other ? !strcmp(text, other) : text == other;

	free(other);
	return equal;
}

bool source_is_same(const struct source *source, struct nbd_handle *nbd)
{
	bool same = nbd_get_size(nbd) == (int64_t)source->size;

	same &= is_text(source->name, nbd_get_canonical_export_name(nbd));
	same &= is_text(source->description, nbd_get_export_description(nbd));
	return same;
}

static int store_entries(struct map *map, const uint32_t *entries, size_t count)
{
	size_t needed = map->count + count;
	uint32_t *bigger;

	if (needed > map->capacity) {
		bigger = reallocarray(map->entries, needed, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		map->entries = bigger;
		map->capacity = needed;
	}
	memcpy(map->entries + map->count, entries, count * sizeof(*entries));
	map->count = needed;
	return 0;
}

/* Called by libnbd for each context that an answer has. */
static int take_answer(void *data, const char *name, uint64_t offset, uint32_t *entries,
		       size_t count, int *error)
{
	struct maps *maps = data;
	size_t i;

	(void)offset;
	if (*error)
		return -1;
	for (i = 0; i < MAPS; i++) {
		if (strcmp(maps->map[i].name, name))
			continue;
		if (store_entries(&maps->map[i], entries, count)) {
			*error = ENOMEM;
			return -1;
		}
	}
	return 0;
}

/* How far do all answers reach? 0: not at all, for one of them. */
static uint64_t common_reach(const struct maps *maps, uint64_t asked)
{
	uint64_t reach = asked, sum;
	size_t i, k;

	for (i = 0; i < MAPS; i++) {
		const struct map *map = &maps->map[i];

		if (!map->is_offered)
			continue;
		sum = 0;
		for (k = 0; k + 1 < map->count; k += 2)
			sum += map->entries[k];
		if (sum < reach)
			reach = sum;
	}
	return reach;
}

/* Flags of a context at the place that has been reached; *@length is lowered to
 * where they may change. A context that is not offered has none.
 */
static uint32_t flags_here(struct map *map, uint64_t *length)
{
	if (!map->is_offered)
		return 0;
	while (!map->left) {
		map->left = map->entries[2 * map->index];
		map->index++;
	}
	if (map->left < *length)
		*length = map->left;
	return map->entries[2 * map->index - 1];
}

static void go_on(struct map *map, uint64_t length)
{
	if (map->is_offered)
		map->left -= length;
}

static enum plan_kind choose(const struct source *source, const uint32_t flags[MAPS])
{
	/* Any bit that is not known to mean "clean" means that it may have changed. */
	if (source->checkpoint && !flags[MAP_DIRTY])
		return PLAN_UNCHANGED;
	if (flags[MAP_ACCESS])
		return PLAN_DENIED;
	return flags[MAP_ALLOCATION] & LIBNBD_STATE_ZERO ? PLAN_ZERO : PLAN_READ;
}

static int merge(const struct source *source, struct plan *plan, struct maps *maps,
		 uint64_t offset, uint64_t reach)
{
	uint64_t end = offset + reach, length;
	uint32_t flags[MAPS];
	int ret, i;

	while (offset < end) {
		length = end - offset;
		for (i = 0; i < MAPS; i++)
			flags[i] = flags_here(&maps->map[i], &length);
		for (i = 0; i < MAPS; i++)
			go_on(&maps->map[i], length);
		ret = plan_add(plan, offset, length, choose(source, flags));
		if (ret)
			return ret;
		offset += length;
	}
	return 0;
}

static void forget_answers(struct maps *maps)
{
	size_t i;

	for (i = 0; i < MAPS; i++) {
		maps->map[i].count = 0;
		maps->map[i].index = 0;
		maps->map[i].left = 0;
	}
}

/* Ask once; *@offset is moved to where the answers end. */
static enum status ask(struct source *source, struct plan *plan, struct maps *maps,
		       uint64_t *offset)
{
	uint64_t asked = source->size - *offset, reach;
	nbd_extent_callback callback = { .callback = take_answer, .user_data = maps };

	if (asked > ASK_BYTES)
		asked = ASK_BYTES;
	forget_answers(maps);
	if (nbd_block_status(source->nbd, asked, *offset, callback, 0) < 0) {
		if (nbd_get_errno() == EIO && source_is_broken(source))
			return report(BROKEN, source->uri,
				      "the server cannot tell what is in it, as of a broken snapshot: %s",
				      nbd_get_error());
		return report_nbd(source, "cannot read its maps");
	}
	reach = common_reach(maps, asked);
	if (!reach)
		return report(FAILED, source->uri,
			      "the server says nothing about the range at %llu",
			      (unsigned long long)*offset);
	if (merge(source, plan, maps, *offset, reach))
		return report_errno(ENOMEM, source->uri, "cannot keep its maps");
	*offset += reach;
	return DONE;
}

static void prepare_maps(const struct source *source, struct maps *maps)
{
	size_t i;

	memset(maps, 0, sizeof(*maps));
	snprintf(maps->map[MAP_ALLOCATION].name, NAME_BYTES, ALLOCATION);
	snprintf(maps->map[MAP_ACCESS].name, NAME_BYTES, ACCESS);
	if (source->checkpoint)
		dirty_name(maps->map[MAP_DIRTY].name, source->checkpoint);
	for (i = 0; i < MAPS; i++)
		maps->map[i].is_offered = maps->map[i].name[0] &&
			nbd_can_meta_context(source->nbd, maps->map[i].name) > 0;
}

enum status source_plan(struct source *source, struct plan *plan)
{
	enum status status = DONE;
	uint64_t offset = 0;
	struct maps maps;
	size_t i;

	prepare_maps(source, &maps);
	if (!maps.map[MAP_ALLOCATION].is_offered && !maps.map[MAP_ACCESS].is_offered &&
	    !maps.map[MAP_DIRTY].is_offered) {
		if (plan_add(plan, 0, source->size, PLAN_READ))
			return report_errno(ENOMEM, source->uri, "cannot keep its maps");
		return DONE;
	}
	while (status == DONE && offset < source->size)
		status = ask(source, plan, &maps, &offset);
	for (i = 0; i < MAPS; i++)
		free(maps.map[i].entries);
	return status;
}

static int ignore_answer(void *data, const char *name, uint64_t offset, uint32_t *entries,
			 size_t count, int *error)
{
	(void)data;
	(void)name;
	(void)offset;
	(void)entries;
	(void)count;
	(void)error;
	return 0;
}

/* libnbd itself refuses what is shorter than a block of the server. */
static uint64_t probe_length(const struct source *source)
{
	int64_t minimum = nbd_get_block_size(source->nbd, LIBNBD_SIZE_MINIMUM);
	uint64_t length = minimum > PROBE_BYTES ? (uint64_t)minimum : PROBE_BYTES;

	if (length > PROBE_MAX)
		length = PROBE_MAX;
	return length < source->size ? length : source->size;
}

static int read_probe(const struct source *source)
{
	char data[PROBE_MAX];

	return nbd_pread(source->nbd, data, probe_length(source), 0, 0);
}

static int ask_probe(const struct source *source)
{
	nbd_extent_callback callback = { .callback = ignore_answer };

	return nbd_block_status(source->nbd, probe_length(source), 0, callback, 0);
}

bool source_is_alive(const struct source *source)
{
	int ret;

	if (!source->nbd || nbd_aio_is_ready(source->nbd) <= 0)
		return false;
	if (nbd_can_meta_context(source->nbd, ALLOCATION) > 0)
		ret = ask_probe(source);
	else
		ret = read_probe(source);
	return !ret || (nbd_get_errno() != ESHUTDOWN && nbd_aio_is_ready(source->nbd) > 0);
}

bool source_is_broken(const struct source *source)
{
	if (!source->nbd || nbd_can_meta_context(source->nbd, ACCESS) <= 0)
		return false;
	return ask_probe(source) < 0 && nbd_get_errno() == EIO;
}
