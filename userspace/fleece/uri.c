// SPDX-License-Identifier: GPL-2.0-only
/* fleece, uri: see uri.h. It knows nothing of sockets. */
#include "uri.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST_BYTES	256

struct text {
	char *bytes;
	size_t size;
	size_t length;
	bool is_cut;
};

static __attribute__((format(printf, 2, 3))) void add(struct text *text, const char *format, ...)
{
	size_t room = text->size - text->length;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text->bytes + text->length, room, format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= room)
		text->is_cut = true;
	else
		text->length += (size_t)n;
}

/* What may mean something in a part of a URI, or to a shell, is written as %XX. */
static void add_encoded(struct text *text, const char *part)
{
	static const char plain[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/@:";

	for (; *part; part++)
		add(text, strchr(plain, *part) ? "%c" : "%%%02X", (unsigned char)*part);
}

static struct text begin(char *uri, size_t size, const struct uri_export *export,
			 const char *transport)
{
	struct text text = { .bytes = uri, .size = size };

	add(&text, "%s%s://", export->is_tls ? "nbds" : "nbd", transport);
	return text;
}

static int end(const struct text *text)
{
	return text->is_cut ? -ENAMETOOLONG : 0;
}

int uri_of_unix(char *uri, size_t size, const struct uri_export *export, const char *path)
{
	struct text text = begin(uri, size, export, "+unix");

	add(&text, "/");
	add_encoded(&text, export->name);
	add(&text, "?socket=");
	add_encoded(&text, path);
	return end(&text);
}

/* Without brackets, and with or without a port: "" is the default one. */
static int split_tcp(const char *address, char *host, size_t size, const char **port)
{
	const char *colon = strrchr(address, ':'), *stop = strchr(address, ']');
	int length;

	*port = "";
	if (*address == '[' && stop) {
		address++;
		if (stop[1] == ':')
			*port = stop + 2;
		length = (int)(stop - address);
	} else if (colon && colon == strchr(address, ':')) {
		*port = colon + 1;
		length = (int)(colon - address);
	} else {
		length = (int)strlen(address);
	}
	return snprintf(host, size, "%.*s", length, address) >= (int)size ? -ENAMETOOLONG : 0;
}

int uri_of_tcp(char *uri, size_t size, const struct uri_export *export, const char *address,
	       const char *host)
{
	struct text text = begin(uri, size, export, "");
	char name[HOST_BYTES];
	const char *port;
	int ret = split_tcp(address, name, sizeof(name), &port);

	if (ret)
		return ret;
	if (*port && !strtoul(port, NULL, 10))
		return -EINVAL;
	if (!strcmp(name, "0.0.0.0") || !strcmp(name, "::"))
		snprintf(name, sizeof(name), "%s", host);
	add(&text, strchr(name, ':') ? "[" : "");
	add_encoded(&text, name);
	add(&text, strchr(name, ':') ? "]" : "");
	if (*port)
		add(&text, ":%s", port);
	add(&text, "/");
	add_encoded(&text, export->name);
	return end(&text);
}

int uri_of_vsock(char *uri, size_t size, const struct uri_export *export, const char *address,
		 unsigned int cid)
{
	struct text text = begin(uri, size, export, "+vsock");
	const char *colon = strchr(address, ':');
	const char *port = colon ? colon + 1 : address;

	if (!strtoul(port, NULL, 10))
		return -EINVAL;
	if (colon)
		add(&text, "%s/", address);
	else
		add(&text, "%u:%s/", cid, port);
	add_encoded(&text, export->name);
	return end(&text);
}
