// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, fleecetab: reads the file of the origins that are attached at boot, see
 * fleecetab(5) for its format.
 */
#include "fleecetab.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "size.h"

#define BLANKS	" \t\r\n"

/* Where in the file something is wrong. */
struct place {
	const char *path;
	unsigned int line;
};

static enum status report_line(const struct place *place, const char *what, const char *text)
{
	char where[PATH_MAX];

	snprintf(where, sizeof(where), "%s:%u", place->path, place->line);
	return report(FAILED, where, "%s '%s'", what, text);
}

/* A path, or TAG=value as in fstab(5), which is a name that udev makes. */
bool fleecetab_resolve(char path[PATH_MAX], const char *text)
{
	static const struct {
		const char *tag;
		const char *directory;
	} tags[] = {
		{ "UUID=", "uuid" }, { "LABEL=", "label" }, { "PARTUUID=", "partuuid" },
		{ "PARTLABEL=", "partlabel" }, { "ID=", "id" },
	};
	const char *value;
	size_t i;
	int length = -1;

	if (*text == '/')
		length = snprintf(path, PATH_MAX, "%s", text);
	for (i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		value = text + strlen(tags[i].tag);
		if (device_has_prefix(text, tags[i].tag) && *value && !strchr(value, '/'))
			length = snprintf(path, PATH_MAX, "/dev/disk/by-%s/%s", tags[i].directory,
					  value);
	}
	return length > 0 && length < PATH_MAX;
}

static enum status parse_option(const struct place *place, char *text,
				struct fleecetab_entry *entry)
{
	if (!strcmp(text, "noauto")) {
		entry->is_manual = true;
		return DONE;
	}
	if (!strcmp(text, "needs-metadata")) {
		entry->needs_metadata = true;
		return DONE;
	}
	/* For the scripts that make the initial RAM disk. */
	if (!strcmp(text, "initramfs"))
		return DONE;
	if (!device_has_prefix(text, "granularity="))
		return report_line(place, "there is no option", text);
	if (fleece_size_parse(text + strlen("granularity="), &entry->granularity) ||
	    !device_unit_is_valid(entry->granularity))
		return report_line(place, "it must be a power of two from 4K to 16M:", text);
	return DONE;
}

static enum status parse_options(const struct place *place, char *text,
				 struct fleecetab_entry *entry)
{
	char *rest = text, *option;
	enum status status = DONE;

	if (!text || !strcmp(text, "-"))
		return DONE;
	while (status == DONE && (option = strsep(&rest, ",")))
		status = parse_option(place, option, entry);
	return status;
}

static enum status parse_fields(const struct place *place, char *fields[5],
				struct fleecetab_entry *entry)
{
	memset(entry, 0, sizeof(*entry));
	if (!fields[2])
		return report_line(place, "name, device and metadata are needed after", fields[0]);
	if (fields[4])
		return report_line(place, "there are more than four fields:", fields[4]);
	if (!fleece_name_is_valid(fields[0]) ||
	    strlen(fields[0]) + sizeof(SNAPSHOT_SUFFIX) > DM_NAME_LEN)
		return report_line(place, "no name of a device:", fields[0]);
	snprintf(entry->name, sizeof(entry->name), "%s", fields[0]);
	if (!fleecetab_resolve(entry->device, fields[1]))
		return report_line(place, "neither a path nor UUID=, LABEL= and the like:",
				   fields[1]);
	if (strcmp(fields[2], "-") && !fleecetab_resolve(entry->metadata, fields[2]))
		return report_line(place, "neither -, a path, nor UUID=, LABEL= and the like:",
				   fields[2]);
	return parse_options(place, fields[3], entry);
}

static bool has_name(const struct fleecetab *tab, const char *name)
{
	size_t i;

	for (i = 0; i < tab->count; i++)
		if (!strcmp(tab->entries[i].name, name))
			return true;
	return false;
}

/* It begins where a field could: names of devices may have the character in them. */
static void cut_comment(char *line)
{
	char *at;

	for (at = strchr(line, '#'); at; at = strchr(at + 1, '#')) {
		if (at == line || strchr(BLANKS, at[-1])) {
			*at = 0;
			return;
		}
	}
}

static enum status add_line(const struct place *place, char *line, struct fleecetab *tab)
{
	struct fleecetab_entry entry, *entries;
	char *fields[5] = { NULL }, *rest = NULL;
	enum status status;
	size_t i;

	cut_comment(line);
	for (i = 0; i < 5; i++)
		fields[i] = strtok_r(i ? NULL : line, BLANKS, &rest);
	if (!fields[0])
		return DONE;
	status = parse_fields(place, fields, &entry);
	if (status != DONE)
		return status;
	if (has_name(tab, entry.name))
		return report_line(place, "a line above is of the same name:", entry.name);
	entries = reallocarray(tab->entries, tab->count + 1, sizeof(*entries));
	if (!entries)
		return report_errno(ENOMEM, place->path, "cannot read it");
	tab->entries = entries;
	tab->entries[tab->count++] = entry;
	return DONE;
}

enum status fleecetab_read(const char *path, struct fleecetab *tab)
{
	struct place place = { .path = path };
	enum status status = DONE;
	char *line = NULL;
	size_t room = 0;
	FILE *file;

	memset(tab, 0, sizeof(*tab));
	file = fopen(path, "re");
	if (!file && errno == ENOENT)
		return report(FAILED, path,
			      "there is no such file; it lists the origins, see fleecetab(5)");
	if (!file) {
		report_errno(errno, path, "cannot read it");
		return FAILED;
	}
	while (getline(&line, &room, file) >= 0) {
		place.line++;
		if (add_line(&place, line, tab) != DONE)
			status = FAILED;
	}
	if (ferror(file))
		status = report(FAILED, path, "cannot read it");
	free(line);
	fclose(file);
	return status;
}

void fleecetab_free(struct fleecetab *tab)
{
	free(tab->entries);
	tab->entries = NULL;
	tab->count = 0;
}
