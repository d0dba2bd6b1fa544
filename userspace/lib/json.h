/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, json: a small writer of JSON text.
 *
 * The caller opens and closes objects and arrays in pairs; commas, indentation
 * and escapes are the writer's. Inside an object every value has a key, inside
 * an array and at the top the key is NULL.
 */
#ifndef FLEECE_LIB_JSON_H
#define FLEECE_LIB_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/**
 * struct fleece_json - a document being written; start with { .out = FILE }
 * @out: where the text goes.
 * @depth: open objects and arrays.
 * @has_items: the innermost one has an item already.
 */
struct fleece_json {
	FILE *out;
	unsigned int depth;
	bool has_items;
};

/**
 * fleece_json_object() - open an object
 * @json: the document.
 * @key: its key in the enclosing object, else NULL.
 */
void fleece_json_object(struct fleece_json *json, const char *key);

/**
 * fleece_json_object_end() - close the innermost object
 * @json: the document.
 */
void fleece_json_object_end(struct fleece_json *json);

/**
 * fleece_json_array() - open an array
 * @json: the document.
 * @key: its key in the enclosing object, else NULL.
 */
void fleece_json_array(struct fleece_json *json, const char *key);

/**
 * fleece_json_array_end() - close the innermost array
 * @json: the document.
 */
void fleece_json_array_end(struct fleece_json *json);

/**
 * fleece_json_string() - write a string
 * @json: the document.
 * @key: its key, or NULL in an array.
 * @value: text; NULL writes null. Bytes that are not UTF-8 become U+FFFD.
 */
void fleece_json_string(struct fleece_json *json, const char *key, const char *value);

/**
 * fleece_json_number() - write a whole number
 * @json: the document.
 * @key: its key, or NULL in an array.
 * @value: the number.
 */
void fleece_json_number(struct fleece_json *json, const char *key, uint64_t value);

/**
 * fleece_json_bool() - write true or false
 * @json: the document.
 * @key: its key, or NULL in an array.
 * @value: which one.
 */
void fleece_json_bool(struct fleece_json *json, const char *key, bool value);

#endif
