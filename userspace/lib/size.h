/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece, size: sizes, ranges and percentages as people type them.
 *
 * Functions return 0 on success and -errno on failure; they never print.
 */
#ifndef FLEECE_LIB_SIZE_H
#define FLEECE_LIB_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* Room for what fleece_size_format() writes. */
#define FLEECE_SIZE_TEXT	32

/**
 * fleece_size_parse() - read a size
 * @text: decimal digits and an optional unit: K, M, G, T, P, E (powers of
 *	1024, also written KiB and so on, in either case), B for bytes, s for
 *	sectors of 512 bytes. Without a unit the number counts bytes.
 * @bytes: set to the size in bytes.
 *
 * Return: 0, -EINVAL when @text is not a size, -ERANGE when it does not fit.
 */
int fleece_size_parse(const char *text, uint64_t *bytes);

/**
 * fleece_percent_parse() - read a percentage
 * @text: 0 to 100, with or without a percent sign.
 * @percent: set to the number.
 *
 * Return: 0, -EINVAL when @text is not a number, -ERANGE above 100.
 */
int fleece_percent_parse(const char *text, unsigned int *percent);

/**
 * fleece_range_parse() - read OFFSET:LENGTH
 * @text: two sizes with a colon between them.
 * @offset: set to the first, in bytes.
 * @length: set to the second, in bytes, never 0.
 *
 * Return: 0, -EINVAL when @text is not a range, -ERANGE when its end does not fit.
 */
int fleece_range_parse(const char *text, uint64_t *offset, uint64_t *length);

/**
 * fleece_size_format() - write a size for people
 * @text: room for FLEECE_SIZE_TEXT characters.
 * @bytes: the size.
 *
 * Return: @text, for example "1.5G", or "512" below 1024 bytes.
 */
const char *fleece_size_format(char *text, uint64_t bytes);

#endif
