// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, export: builds the table of exports from the backends, and finds
 * exports and contexts by name. Constant once built.
 */
#include "export.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"
#include "text.h"

#define DIRTY_PREFIX "qemu:dirty-bitmap:"
#define CLEAN_PREFIX "fleece:clean:"

/* Room that a description keeps for "; N older checkpoints". */
#define DESCRIPTION_TAIL 64

struct text {
	char bytes[NBD_MAX_STRING];
	size_t length;
};

static void append(struct text *text, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void append(struct text *text, const char *format, ...)
{
	size_t room = sizeof(text->bytes) - text->length;
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vsnprintf(text->bytes + text->length, room, format, arguments);
	va_end(arguments);
	if (n > 0)
		text->length += (size_t)n < room ? (size_t)n : room - 1;
}

static void describe_checkpoint(struct text *text, const struct fleece_checkpoint *checkpoint)
{
	append(text, "; checkpoint %s %s%s", checkpoint->name, checkpoint->uuid,
	       checkpoint->flags & FLEECE_CHECKPOINT_HERE ? " (this moment)" : "");
}

/* Of the first of those that there is room for, behind so many bytes: the newest ones. */
static size_t first_described(const struct backend *backend, size_t length)
{
	size_t i = backend->checkpoint_count;

	for (length += DESCRIPTION_TAIL; i > 0; i--) {
		struct text text = { .length = 0 };

		describe_checkpoint(&text, &backend->checkpoints[i - 1]);
		length += text.length;
		if (length >= sizeof(text.bytes))
			break;
	}
	return i;
}

/*
 * An agent finds here which checkpoint its bitmaps and its next backup are
 * based on: a name can be reused, a uuid cannot.
 */
static char *describe(const struct backend *backend, const struct fleece_checkpoint *only,
		      bool can_release)
{
	struct text text = { .length = 0 };
	size_t first, i;

	if (!backend->has_maps)
		return strdup("plain data, read-only");
	append(&text, "fleece snapshot%s", can_release ? ", TRIM releases" : "");
	if (*backend->since)
		append(&text, "; only what changed since %s is accessible", backend->since);
	first = only ? 0 : first_described(backend, text.length);
	if (first)
		append(&text, "; %zu older checkpoints", first);
	for (i = first; i < backend->checkpoint_count; i++) {
		const struct fleece_checkpoint *checkpoint = &backend->checkpoints[i];

		if (!only || checkpoint == only || checkpoint->flags & FLEECE_CHECKPOINT_HERE)
			describe_checkpoint(&text, checkpoint);
	}
	return strdup(text.bytes);
}

static void add_context(struct export *export, enum context_kind kind, const char *prefix,
			const char *checkpoint)
{
	struct context *context = &export->contexts[export->context_count++];

	context->kind = kind;
	context->checkpoint = checkpoint;
	snprintf(context->name, sizeof(context->name), "%s%s", prefix,
		 checkpoint ? checkpoint : "");
}

static int add_contexts(struct export *export, const struct fleece_checkpoint *only)
{
	const struct backend *backend = export->backend;
	size_t i;

	export->contexts = calloc(2 + 2 * backend->checkpoint_count, sizeof(*export->contexts));
	if (!export->contexts)
		return -ENOMEM;
	add_context(export, CONTEXT_ALLOCATION, "base:allocation", NULL);
	if (!backend->has_maps)
		return 0;
	for (i = 0; i < backend->checkpoint_count; i++)
		if (!only || only == &backend->checkpoints[i])
			add_context(export, CONTEXT_DIRTY, DIRTY_PREFIX,
				    backend->checkpoints[i].name);
	for (i = 0; i < backend->checkpoint_count; i++)
		if (!only || only == &backend->checkpoints[i])
			add_context(export, CONTEXT_CLEAN, CLEAN_PREFIX,
				    backend->checkpoints[i].name);
	add_context(export, CONTEXT_ACCESS, "fleece:access", NULL);
	return 0;
}

static int add_export(struct export_table *table, const char *name, const char *suffix,
		      struct backend *backend, const struct fleece_checkpoint *only,
		      bool can_release)
{
	struct export *bigger, *export;
	char full[EXPORT_NAME_SIZE];
	int n = snprintf(full, sizeof(full), "%s%s%s", name, suffix, only ? only->name : "");

	if (n < 0 || (size_t)n >= sizeof(full) || !text_is_export_name(full))
		return -EINVAL;
	if (export_table_find(table, full, n))
		return -EEXIST;
	bigger = realloc(table->exports, (table->count + 1) * sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	table->exports = bigger;
	export = &bigger[table->count++];
	memset(export, 0, sizeof(*export));
	memcpy(export->name, full, n + 1);
	export->backend = backend;
	export->can_release = can_release;
	export->description = describe(backend, only, can_release);
	if (!export->description)
		return -ENOMEM;
	return add_contexts(export, only);
}

int export_table_add(struct export_table *table, const char *name, struct backend *backend,
		     bool allow_release)
{
	int ret = add_export(table, name, "", backend, NULL, false);
	size_t i;

	for (i = 0; !ret && i < backend->checkpoint_count; i++)
		ret = add_export(table, name, "@", backend, &backend->checkpoints[i], false);
	if (!ret && allow_release && backend->ops->release)
		ret = add_export(table, name, "+release", backend, NULL, true);
	return ret;
}

const struct export *export_table_find(const struct export_table *table, const void *name,
				       size_t length)
{
	size_t i;

	if (!length)
		return table->count ? &table->exports[0] : NULL;
	for (i = 0; i < table->count; i++) {
		const struct export *export = &table->exports[i];

		if (strlen(export->name) == length && !memcmp(export->name, name, length))
			return export;
	}
	return NULL;
}

void export_table_release(struct export_table *table)
{
	size_t i;

	for (i = 0; i < table->count; i++) {
		free(table->exports[i].description);
		free(table->exports[i].contexts);
	}
	free(table->exports);
	table->exports = NULL;
	table->count = 0;
}

static bool is_same(const char *name, size_t name_length, const void *query, size_t length)
{
	return name_length == length && !memcmp(name, query, length);
}

bool context_matches(const struct context *context, const void *query, size_t length)
{
	size_t i;

	if (is_same(context->name, strlen(context->name), query, length))
		return true;
	/* Every part of the name that ends with a colon stands for all that begin so. */
	for (i = 0; context->name[i]; i++)
		if (context->name[i] == ':' && is_same(context->name, i + 1, query, length))
			return true;
	return false;
}

int export_find_context(const struct export *export, const void *name, size_t length)
{
	size_t i;

	for (i = 0; i < export->context_count; i++)
		if (is_same(export->contexts[i].name, strlen(export->contexts[i].name), name,
			    length))
			return (int)i;
	return -ENOENT;
}
