/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, uri: the URIs of NBD exports, as their specification writes them. */
#ifndef FLEECE_URI_H
#define FLEECE_URI_H

#include <stdbool.h>
#include <stddef.h>

/**
 * struct uri_export - what all URIs of an export share
 * @name: of the export.
 * @is_tls: clients must use TLS.
 */
struct uri_export {
	const char *name;
	bool is_tls;
};

/**
 * uri_of_unix() - of an export on a Unix socket
 * @uri: gets the URI; nothing in it is special to a shell within single quotes.
 * @size: of @uri.
 * @export: the export.
 * @path: of the socket.
 *
 * Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
 *
 * Return: 0 or -ENAMETOOLONG.
 */
int uri_of_unix(char *uri, size_t size, const struct uri_export *export, const char *path);

/**
 * uri_of_tcp() - of an export at a TCP address
 * @uri: as uri_of_unix().
 * @size: of @uri.
 * @export: the export.
 * @address: ADDR, ADDR:PORT, [ADDR6] or [ADDR6]:PORT, as fleeced takes it.
 * @host: name of this machine, which stands for all addresses (0.0.0.0 and ::).
 *
 * Return: 0, -ENAMETOOLONG, or -EINVAL when the port is 0, so that fleeced chooses one.
 */
int uri_of_tcp(char *uri, size_t size, const struct uri_export *export, const char *address,
	       const char *host);

/**
 * uri_of_vsock() - of an export at a vsock address
 * @uri: as uri_of_unix().
 * @size: of @uri.
 * @export: the export.
 * @address: PORT or CID:PORT, as fleeced takes it.
 * @cid: of this machine, for an address without one.
 *
 * Return: 0, -ENAMETOOLONG, or -EINVAL when the port is 0, so that fleeced chooses one.
 */
int uri_of_vsock(char *uri, size_t size, const struct uri_export *export, const char *address,
		 unsigned int cid);

#endif
