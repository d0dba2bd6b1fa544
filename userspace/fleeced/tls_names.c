// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, tls_names: reads the list of clients, and looks for one. Owns no state. */
#include "tls_names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "tls_file.h"

static int add_name(struct tls_names *names, const char *name)
{
	const char **bigger = realloc(names->names, (names->count + 1) * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	names->names = bigger;
	names->names[names->count++] = name;
	return 0;
}

int tls_names_load(struct tls_names *names, const char *path)
{
	unsigned int number = 0;
	char *rest, *line;
	int ret = tls_file_read(path, false, &names->text);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	names->exists = true;
	rest = (char *)names->text.data;
	if (strlen(rest) != names->text.size) {
		log_error("%s: not a text", path);
		return -EINVAL;
	}
	while (!ret && (line = tls_file_next_line(&rest, &number)))
		if (*line != '#')
			ret = add_name(names, line);
	return ret;
}

void tls_names_release(struct tls_names *names)
{
	free(names->names);
	tls_file_release(&names->text);
}

static bool has_name(const struct tls_names *names, const void *name, size_t length)
{
	size_t i;

	for (i = 0; i < names->count; i++)
		if (strlen(names->names[i]) == length && !memcmp(names->names[i], name, length))
			return true;
	return false;
}

/* Reads one of the common names; see gnutls_x509_crt_get_dn_by_oid(). */
static int common_name(gnutls_x509_crt_t certificate, unsigned int index, char *name,
		       size_t *size)
{
	return gnutls_x509_crt_get_dn_by_oid(certificate, GNUTLS_OID_X520_COMMON_NAME, index, 0,
					     name, size);
}

bool tls_names_allow(const struct tls_names *names, gnutls_x509_crt_t certificate)
{
	size_t length, no_room = 0;
	gnutls_datum_t full;
	char name[256];
	bool allowed;

	if (!names->exists)
		return true;
	if (gnutls_x509_crt_get_dn3(certificate, &full, 0))
		return false;
	allowed = has_name(names, full.data, full.size);
	gnutls_free(full.data);
	if (allowed)
		return true;
	/* With several common names, which one is meant would depend on who looks. */
	if (common_name(certificate, 1, NULL, &no_room) != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
		return false;
	length = sizeof(name);
	/* What looks like a distinguished name in the list is one. */
	return !common_name(certificate, 0, name, &length) && !memchr(name, '=', length) &&
	       has_name(names, name, length);
}
