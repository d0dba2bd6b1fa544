/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, tls_names: the clients that may connect, as a file lists them. */
#ifndef FLEECED_TLS_NAMES_H
#define FLEECED_TLS_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#include <gnutls/x509.h>

/**
 * struct tls_names - the list
 * @exists: there is one; without it, every client is allowed.
 * @text: content of the file.
 * @names: parts of @text.
 * @count: of @names.
 */
struct tls_names {
	bool exists;
	gnutls_datum_t text;
	const char **names;
	size_t count;
};

/**
 * tls_names_load() - read the list
 * @names: zeroed; filled in. No such file is no error.
 * @path: a name on each line; lines that begin with # are left out.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int tls_names_load(struct tls_names *names, const char *path);

/** tls_names_release() - free the list */
void tls_names_release(struct tls_names *names);

/**
 * tls_names_allow() - may the owner of this certificate connect
 * @names: the list.
 * @certificate: verified.
 *
 * Return: true when there is no list, or when it has the subject's distinguished
 * name (RFC 4514), or its common name if it has one and not several, and it has no =.
 */
bool tls_names_allow(const struct tls_names *names, gnutls_x509_crt_t certificate);

#endif
