/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, export: what clients can choose. Owns the exports' names, their
 * descriptions and their metadata contexts; the data belongs to the backends.
 * Built before the first client comes, then constant: no locks.
 */
#ifndef FLEECED_EXPORT_H
#define FLEECED_EXPORT_H

#include "backend.h"

#define EXPORT_NAME_SIZE	256
#define CONTEXT_NAME_SIZE	96

/**
 * enum context_kind - what a metadata context tells
 * @CONTEXT_ALLOCATION: base:allocation; always 0, "data".
 * @CONTEXT_DIRTY: bit 0: changed since the checkpoint.
 * @CONTEXT_CLEAN: bit 0: not changed since the checkpoint.
 * @CONTEXT_ACCESS: bit 0: not accessible.
 */
enum context_kind {
	CONTEXT_ALLOCATION,
	CONTEXT_DIRTY,
	CONTEXT_CLEAN,
	CONTEXT_ACCESS,
};

/**
 * struct context - one metadata context of an export
 * @kind: what it tells.
 * @checkpoint: for CONTEXT_DIRTY and CONTEXT_CLEAN, else NULL.
 * @name: as clients ask for it.
 */
struct context {
	enum context_kind kind;
	const char *checkpoint;
	char name[CONTEXT_NAME_SIZE];
};

/**
 * struct export - one export
 * @name: unique among all exports.
 * @description: text for people, at most NBD_MAX_STRING bytes.
 * @backend: its data; several exports may share it.
 * @can_release: not read-only: TRIM releases.
 * @contexts: the position in this array, plus one, is a context's id.
 * @context_count: their number.
 */
struct export {
	char name[EXPORT_NAME_SIZE];
	char *description;
	struct backend *backend;
	bool can_release;
	struct context *contexts;
	size_t context_count;
};

/**
 * struct export_table - all exports; the first is also the default export
 * @exports: in the order of LIST.
 * @count: their number.
 */
struct export_table {
	struct export *exports;
	size_t count;
};

/**
 * export_table_add() - make the exports of one backend
 * @table: zeroed, or with earlier exports.
 * @name: of the first of them.
 * @backend: outlives the table.
 * @allow_release: also make NAME+release, if the backend can release.
 *
 * NAME, then NAME@CHECKPOINT for each checkpoint, then NAME+release.
 *
 * Return: 0, -EINVAL for a name that an export cannot have, -EEXIST when one of
 * the names is taken, -ENOMEM. After an error the table can only be released.
 */
int export_table_add(struct export_table *table, const char *name, struct backend *backend,
		     bool allow_release);

/**
 * export_table_find() - the export that a client asks for
 * @table: the exports.
 * @name: not terminated.
 * @length: of @name; 0 is the default export.
 *
 * Return: the export, or NULL.
 */
const struct export *export_table_find(const struct export_table *table, const void *name,
				       size_t length);

/** export_table_release() - free the table, not its backends */
void export_table_release(struct export_table *table);

/**
 * context_matches() - does a query of LIST_META_CONTEXT ask for this context
 * @context: of an export.
 * @query: not terminated; its name, or a namespace with its colon ("base:",
 *	"qemu:", "qemu:dirty-bitmap:", "fleece:", "fleece:clean:").
 * @length: of @query.
 *
 * Return: true when it does.
 */
bool context_matches(const struct context *context, const void *query, size_t length);

/**
 * export_find_context() - the context of exactly this name
 * @export: where to look.
 * @name: not terminated.
 * @length: of @name.
 *
 * Return: its position in the export's contexts, or -ENOENT.
 */
int export_find_context(const struct export *export, const void *name, size_t length);

#endif
