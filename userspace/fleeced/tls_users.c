// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, tls_users: reads users and keys, and finds a user. Owns no state. */
#include "tls_users.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "tls_file.h"

/* What is shorter can be guessed from one recorded handshake. */
#define KEY_BYTES_MIN 16

static int complain(const char *path, unsigned int number, const char *what)
{
	log_error("%s, line %u: %s", path, number, what);
	return -EINVAL;
}

static int add_user(struct tls_users *users, const char *name, const gnutls_datum_t *key)
{
	struct tls_user *bigger = realloc(users->users, (users->count + 1) * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	users->users = bigger;
	users->users[users->count++] = (struct tls_user){ .name = name, .key = *key };
	return 0;
}

static int take_line(struct tls_users *users, char *line, const char *path, unsigned int number)
{
	gnutls_datum_t key, text;
	char *colon = strchr(line, ':');
	int ret;

	if (!colon || colon == line)
		return complain(path, number, "not of the form USER:KEY");
	/* In such files, a user after # is written in hexadecimal. */
	if (*line == '#')
		return complain(path, number, "a user cannot begin with #");
	*colon = '\0';
	if (tls_users_find(users, line, strlen(line)))
		return complain(path, number, "this user has a key already");
	text.data = (unsigned char *)colon + 1;
	text.size = strlen(colon + 1);
	if (gnutls_hex_decode2(&text, &key))
		return complain(path, number, "the key is not hexadecimal");
	if (key.size < KEY_BYTES_MIN)
		ret = complain(path, number, "the key has less than 16 bytes");
	else
		ret = add_user(users, line, &key);
	if (ret) {
		explicit_bzero(key.data, key.size);
		gnutls_free(key.data);
	}
	return ret;
}

int tls_users_load(struct tls_users *users, const char *path)
{
	unsigned int number = 0;
	char *rest, *line;
	int ret = tls_file_read(path, true, &users->text);

	if (ret == -ENOENT)
		log_error("cannot read %s: %s", path, strerror(ENOENT));
	if (ret)
		return ret;
	rest = (char *)users->text.data;
	if (strlen(rest) != users->text.size) {
		log_error("%s: not a text", path);
		return -EINVAL;
	}
	while (!ret && (line = tls_file_next_line(&rest, &number)))
		ret = take_line(users, line, path, number);
	if (!ret && !users->count) {
		log_error("%s has no user", path);
		ret = -EINVAL;
	}
	return ret;
}

void tls_users_release(struct tls_users *users)
{
	size_t i;

	for (i = 0; i < users->count; i++) {
		explicit_bzero(users->users[i].key.data, users->users[i].key.size);
		gnutls_free(users->users[i].key.data);
	}
	free(users->users);
	tls_file_release(&users->text);
}

const gnutls_datum_t *tls_users_find(const struct tls_users *users, const void *name,
				     size_t length)
{
	size_t i;

	for (i = 0; i < users->count; i++)
		if (strlen(users->users[i].name) == length &&
		    !memcmp(users->users[i].name, name, length))
			return &users->users[i].key;
	return NULL;
}
