// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, json: writes JSON text. It keeps no document in memory, so it
 * cannot know whether a key is written twice or a container is left open.
 */
#include "json.h"

#include <string.h>

static void write_indent(struct fleece_json *json)
{
	unsigned int i;

	fputc('\n', json->out);
	for (i = 0; i < json->depth; i++)
		fputs("  ", json->out);
}

/* Length of the well-formed UTF-8 sequence at @p, 0 if there is none. */
static size_t utf8_length(const unsigned char *p)
{
	size_t length, i;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		length = 2;
	else if (p[0] >= 0xe0 && p[0] <= 0xef)
		length = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		length = 4;
	else
		return 0;
	for (i = 1; i < length; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, and what lies beyond U+10FFFF. */
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
	    (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return length;
}

static void write_text(FILE *out, const char *text)
{
	const unsigned char *p = (const unsigned char *)text;

	fputc('"', out);
	while (*p) {
		size_t length = utf8_length(p);

		if (!length) {
			fputs("\\ufffd", out);
			p++;
			continue;
		}
		if (*p == '"' || *p == '\\')
			fprintf(out, "\\%c", *p);
		else if (*p == '\n')
			fputs("\\n", out);
		else if (*p == '\t')
			fputs("\\t", out);
		else if (*p < 0x20 || *p == 0x7f)
			fprintf(out, "\\u%04x", *p);
		else
			fwrite(p, 1, length, out);
		p += length;
	}
	fputc('"', out);
}

static void start_item(struct fleece_json *json, const char *key)
{
	if (json->has_items)
		fputc(',', json->out);
	if (json->depth)
		write_indent(json);
	json->has_items = true;
	if (key) {
		write_text(json->out, key);
		fputs(": ", json->out);
	}
}

static void open_container(struct fleece_json *json, const char *key, char bracket)
{
	start_item(json, key);
	fputc(bracket, json->out);
	json->depth++;
	json->has_items = false;
}

static void close_container(struct fleece_json *json, char bracket)
{
	json->depth--;
	if (json->has_items)
		write_indent(json);
	fputc(bracket, json->out);
	json->has_items = true;
	if (!json->depth)
		fputc('\n', json->out);
}

void fleece_json_object(struct fleece_json *json, const char *key)
{
	open_container(json, key, '{');
}

void fleece_json_object_end(struct fleece_json *json)
{
	close_container(json, '}');
}

void fleece_json_array(struct fleece_json *json, const char *key)
{
	open_container(json, key, '[');
}

void fleece_json_array_end(struct fleece_json *json)
{
	close_container(json, ']');
}

void fleece_json_string(struct fleece_json *json, const char *key, const char *value)
{
	start_item(json, key);
	if (value)
		write_text(json->out, value);
	else
		fputs("null", json->out);
}

void fleece_json_number(struct fleece_json *json, const char *key, uint64_t value)
{
	start_item(json, key);
	fprintf(json->out, "%llu", (unsigned long long)value);
}

void fleece_json_bool(struct fleece_json *json, const char *key, bool value)
{
	start_item(json, key);
	fputs(value ? "true" : "false", json->out);
}
