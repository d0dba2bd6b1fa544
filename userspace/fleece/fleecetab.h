/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, fleecetab: the origins that are attached at boot, see fleecetab(5). */
#ifndef FLEECE_FLEECETAB_H
#define FLEECE_FLEECETAB_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dm.h"
#include "report.h"

#define FLEECETAB_PATH		"/etc/fleece/fleecetab"

/**
 * struct fleecetab_entry - one line
 * @name: of the origin.
 * @device: path of the device.
 * @metadata: path of its metadata device; empty: none.
 * @granularity: bytes; 0: not given.
 * @is_manual: not to be attached with all others.
 * @needs_metadata: not to be attached without its metadata.
 */
struct fleecetab_entry {
	char name[DM_NAME_LEN];
	char device[PATH_MAX];
	char metadata[PATH_MAX];
	uint64_t granularity;
	bool is_manual;
	bool needs_metadata;
};

/**
 * struct fleecetab - the whole file
 * @entries: array, in the order of the file.
 * @count: its length.
 */
struct fleecetab {
	struct fleecetab_entry *entries;
	size_t count;
};

/**
 * fleecetab_read() - read the file
 * @path: which.
 * @tab: filled in, also after an error; the caller frees it with fleecetab_free().
 *
 * Lines that are wrong are reported, with their numbers, and left out: one mistake is not
 * to keep other origins from being attached.
 *
 * Return: DONE, or FAILED if the file cannot be read or a line is wrong.
 */
enum status fleecetab_read(const char *path, struct fleecetab *tab);

/**
 * fleecetab_resolve() - the path of a device that is named as in the file
 * @path: room for it.
 * @text: a path, or UUID= and the like.
 *
 * Return: false if it is neither.
 */
bool fleecetab_resolve(char path[PATH_MAX], const char *text);

/**
 * fleecetab_free() - free what fleecetab_read() has filled in
 * @tab: it.
 */
void fleecetab_free(struct fleecetab *tab);

#endif
