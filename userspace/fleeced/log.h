/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, log: one line on stderr for each event that an administrator can
 * act on. Text that came from a client passes through log_quote() first.
 */
#ifndef FLEECED_LOG_H
#define FLEECED_LOG_H

#include <stddef.h>

/**
 * log_error() - something failed
 * @format: as for printf, without prefix and newline.
 *
 * Context: any thread; the line is written in one piece, or lost if nobody reads it.
 */
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * log_info() - something happened
 * @format: as for printf, without prefix and newline.
 *
 * Context: any thread; the line is written in one piece, or lost if nobody reads it.
 */
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * log_client() - a client did something that has chosen an export, or shown who it is
 * @format: as for printf, without prefix and newline.
 *
 * Of more than a thousand lines at once, and one for each second, the others are lost.
 *
 * Context: any thread, as for log_info().
 */
void log_client(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * log_stranger() - a client did something that may be anybody
 * @format: as for printf, without prefix and newline.
 *
 * Likewise limited, for itself.
 *
 * Context: any thread, as for log_info().
 */
void log_stranger(const char *format, ...) __attribute__((format(printf, 1, 2)));

/**
 * log_quote() - make bytes of unknown origin fit for a line
 * @target: at least 8 bytes; gets a NUL-terminated string of printable ASCII.
 * @size: size of @target.
 * @text: bytes, not terminated.
 * @length: of @text; what does not fit is replaced by "...".
 *
 * Return: @target.
 */
const char *log_quote(char *target, size_t size, const void *text, size_t length);

#endif
