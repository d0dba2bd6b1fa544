/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, tls_users: users and the keys that they share with the server. */
#ifndef FLEECED_TLS_USERS_H
#define FLEECED_TLS_USERS_H

#include <stddef.h>

#include <gnutls/gnutls.h>

/**
 * struct tls_user - one line of the file
 * @name: of the user.
 * @key: owned, wiped when released.
 */
struct tls_user {
	const char *name;
	gnutls_datum_t key;
};

/**
 * struct tls_users - the file
 * @text: its content.
 * @users: each name once; the names are parts of @text.
 * @count: of @users.
 */
struct tls_users {
	gnutls_datum_t text;
	struct tls_user *users;
	size_t count;
};

/**
 * tls_users_load() - read users and keys
 * @users: zeroed; filled in, with at least one; released also after an error.
 * @path: lines of USER:KEY.
 *
 * Prints why it failed; never prints a key.
 *
 * Return: 0 or -errno.
 */
int tls_users_load(struct tls_users *users, const char *path);

/** tls_users_release() - wipe and free */
void tls_users_release(struct tls_users *users);

/**
 * tls_users_find() - the key of a user
 * @users: the file.
 * @name: not terminated.
 * @length: of @name.
 *
 * Return: the key, not to be changed, or NULL: no such user.
 */
const gnutls_datum_t *tls_users_find(const struct tls_users *users, const void *name,
				     size_t length);

#endif
