/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, transport_tls: a transport that can become a TLS session. */
#ifndef FLEECED_TRANSPORT_TLS_H
#define FLEECED_TRANSPORT_TLS_H

#include "tls_credentials.h"
#include "transport.h"

/**
 * transport_tls_create() - add TLS to a transport
 * @lower: to the client; its readahead must be off. Owned on success.
 * @credentials: of the server; outlive the transport.
 *
 * In the clear until its @secure operation has succeeded.
 *
 * Return: the transport, or NULL when there is no memory.
 */
struct transport *transport_tls_create(struct transport *lower,
				       const struct tls_credentials *credentials);

#endif
