/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, log: one line on stderr for each event that an administrator can
 * act on. Text that came from a client passes through log_quote() first.
 */
#ifndef FLEECED_LOG_H
#define FLEECED_LOG_H

#include <stddef.h>

/**
 * enum log_cause - who causes a line
 * @LOG_SERVER: the server itself. All are written.
 * @LOG_CLIENT: a client that has chosen an export, or shown who it is. Of more than a
 *	thousand lines at once, and one for each second, the others are lost.
 * @LOG_STRANGER: one that may be anybody. Likewise limited, for itself.
 * @LOG_CAUSES: how many there are.
 */
enum log_cause {
	LOG_SERVER,
	LOG_CLIENT,
	LOG_STRANGER,
	LOG_CAUSES,
};

/**
 * log_line() - write a line
 * @cause: whose doing it is.
 * @prefix: what it begins with.
 * @format: as for printf, without prefix and newline.
 *
 * Context: any thread; the line is written in one piece, or lost if nobody reads it.
 */
void log_line(enum log_cause cause, const char *prefix, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Something failed. */
#define log_error(...)		log_line(LOG_SERVER, "error: ", __VA_ARGS__)

/* Something happened, or somebody did something. */
#define log_info(...)		log_line(LOG_SERVER, "", __VA_ARGS__)
#define log_client(...)		log_line(LOG_CLIENT, "", __VA_ARGS__)
#define log_stranger(...)	log_line(LOG_STRANGER, "", __VA_ARGS__)

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
