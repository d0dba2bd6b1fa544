// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, status: takes apart what the targets answer. Further fields at
 * the end of a line are ignored, so that a newer module can add some; anything
 * else unexpected is an error rather than a guess.
 */
#include "status.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR_SIZE	512
#define METADATA_BLOCK	4096
#define WORD_ENDS	"\n "

/* A line being read field by field; the first error sticks. */
struct line {
	const char *at;
	bool has_error;
};

static uint64_t read_number(struct line *line)
{
	uint64_t number = 0;

	if (!isdigit((unsigned char)*line->at))
		line->has_error = true;
	for (; isdigit((unsigned char)*line->at); line->at++) {
		if (__builtin_mul_overflow(number, 10, &number) ||
		    __builtin_add_overflow(number, *line->at - '0', &number))
			line->has_error = true;
	}
	return number;
}

static void read_separator(struct line *line, char separator)
{
	if (*line->at == separator)
		line->at++;
	else
		line->has_error = true;
}

/* A field may be the last one, or be followed by a blank. */
static void read_end(struct line *line)
{
	if (*line->at == ' ')
		line->at++;
	else if (*line->at && *line->at != '\n')
		line->has_error = true;
}

static uint64_t read_field(struct line *line)
{
	uint64_t number = read_number(line);

	read_end(line);
	return number;
}

static uint64_t read_sectors(struct line *line)
{
	uint64_t bytes;

	if (__builtin_mul_overflow(read_field(line), SECTOR_SIZE, &bytes))
		line->has_error = true;
	return bytes;
}

static unsigned int read_count(struct line *line)
{
	uint64_t number = read_field(line);

	if (number > UINT32_MAX)
		line->has_error = true;
	return (unsigned int)number;
}

static void read_word(struct line *line, char *word, size_t size)
{
	size_t length = strcspn(line->at, WORD_ENDS);

	if (!length || length >= size) {
		line->has_error = true;
		length = 0;
	}
	memcpy(word, line->at, length);
	word[length] = 0;
	line->at += length;
	read_end(line);
}

int fleece_origin_status_parse(const char *text, struct fleece_origin_status *status)
{
	struct line line = { .at = text };

	memset(status, 0, sizeof(*status));
	status->granularity = read_sectors(&line);
	status->total_granules = read_field(&line);
	status->changed_granules = read_field(&line);
	read_word(&line, status->metadata, sizeof(status->metadata));
	status->snapshots = read_count(&line);
	status->checkpoints = read_count(&line);
	read_word(&line, status->newest, sizeof(status->newest));
	if (line.has_error)
		return -EPROTO;
	if (!strcmp(status->newest, "-"))
		status->newest[0] = 0;
	return 0;
}

int fleece_metadata_status_parse(const char *text, struct fleece_metadata_status *status)
{
	struct line line = { .at = text };

	memset(status, 0, sizeof(*status));
	read_word(&line, status->state, sizeof(status->state));
	status->error = (int)(read_count(&line) & INT32_MAX);
	status->bad_sectors = read_count(&line);
	if (__builtin_mul_overflow(read_field(&line), METADATA_BLOCK, &status->written_bytes))
		line.has_error = true;
	status->grants = read_field(&line);
	return line.has_error ? -EPROTO : 0;
}

int fleece_snapshot_status_parse(const char *text, struct fleece_snapshot_status *status)
{
	struct line line = { .at = text };
	char state[16];

	memset(status, 0, sizeof(*status));
	read_word(&line, state, sizeof(state));
	status->is_broken = !strcmp(state, "broken");
	if (!status->is_broken && strcmp(state, "active"))
		line.has_error = true;
	status->used_slots = read_number(&line);
	read_separator(&line, '/');
	status->total_slots = read_field(&line);
	status->cluster = read_sectors(&line);
	status->accessible_clusters = read_number(&line);
	read_separator(&line, '/');
	status->total_clusters = read_field(&line);
	status->copied_clusters = read_field(&line);
	status->released_clusters = read_field(&line);
	status->lost_clusters = read_field(&line);
	status->staged_bytes = read_field(&line);
	status->waiting_writes = read_field(&line);
	status->error = (int)(read_count(&line) & INT32_MAX);
	status->error_sector = read_field(&line);
	return line.has_error ? -EPROTO : 0;
}

static int parse_checkpoint(struct line *line, struct fleece_checkpoint_line *entry)
{
	char validity[16];

	read_word(line, entry->name, sizeof(entry->name));
	read_word(line, entry->uuid, sizeof(entry->uuid));
	entry->created = read_field(line);
	entry->changed_granules = read_field(line);
	read_word(line, validity, sizeof(validity));
	entry->is_valid = !strcmp(validity, "valid");
	if (!entry->is_valid && strcmp(validity, "invalid"))
		line->has_error = true;
	return line->has_error ? -EPROTO : 0;
}

int fleece_checkpoint_list_parse(const char *text, struct fleece_checkpoint_line **list,
				 size_t *count)
{
	struct fleece_checkpoint_line *entries = NULL, *grown;
	size_t used = 0;

	while (*text) {
		struct line line = { .at = text };

		grown = reallocarray(entries, used + 1, sizeof(*entries));
		if (!grown) {
			free(entries);
			return -ENOMEM;
		}
		entries = grown;
		if (parse_checkpoint(&line, &entries[used])) {
			free(entries);
			return -EPROTO;
		}
		used++;
		text = line.at + strcspn(line.at, "\n");
		if (*text)
			text++;
	}
	*list = entries;
	*count = used;
	return 0;
}

bool fleece_name_is_valid(const char *name)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t length = strlen(name);

	if (!length || length >= FLEECE_NAME_SIZE || name[0] == '-' || name[0] == '.')
		return false;
	return strspn(name, allowed) == length;
}
