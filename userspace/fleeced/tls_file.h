/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, tls_file: files with keys, certificates and names. They are read as a
 * whole when the server starts, while it still may, and not trusted when everybody
 * could have read or changed them; the owner and the group may.
 */
#ifndef FLEECED_TLS_FILE_H
#define FLEECED_TLS_FILE_H

#include <stdbool.h>

#include <gnutls/gnutls.h>

/**
 * tls_file_read() - read a file
 * @path: a regular file of at most 1 MiB; nobody but its owner and group may be
 *	able to write it.
 * @is_secret: nobody but its owner and group may be able to read it either.
 * @content: set to the bytes and one NUL, which the size does not count; given back
 *	with tls_file_release().
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno (-ENOENT, which is not printed: no such file; -EACCES: too
 * many can read or write it).
 */
int tls_file_read(const char *path, bool is_secret, gnutls_datum_t *content);

/** tls_file_release() - wipe and free what tls_file_read() has read */
void tls_file_release(gnutls_datum_t *content);

/**
 * tls_file_next_line() - the next line that is not empty
 * @rest: where the text begins; set to what follows the line.
 * @number: counts lines, the first one is 1; set to 0 before the first call.
 *
 * Changes the text: ends the line with a NUL, and takes off the white space around.
 *
 * Return: the line, or NULL at the end.
 */
char *tls_file_next_line(char **rest, unsigned int *number);

#endif
