/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, text: which bytes are acceptable as names and as numbers. Pure functions. */
#ifndef FLEECED_TEXT_H
#define FLEECED_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/**
 * text_is_utf8() - is this a string of the protocol
 * @bytes: not terminated.
 * @length: of @bytes.
 *
 * Return: true for well-formed UTF-8 without NUL (no overlong forms, no
 * surrogates, nothing above U+10FFFF); true for the empty string.
 */
bool text_is_utf8(const void *bytes, size_t length);

/**
 * text_is_export_name() - is this a name that an export may have
 * @name: NUL-terminated.
 *
 * Only such names need no quoting in any URI: A-Z a-z 0-9 . _ @ + -.
 *
 * Return: true when it is, and not empty.
 */
bool text_is_export_name(const char *name);

/**
 * text_to_number() - a decimal number, without sign and blanks
 * @text: NUL-terminated, with nothing but the number.
 * @max: greatest that is accepted.
 * @number: set to the number; not changed otherwise.
 *
 * Return: true when it is one.
 */
bool text_to_number(const char *text, unsigned int max, unsigned int *number);

#endif
