/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, tls_credentials: who the server is, and which clients it accepts.
 *
 * Loaded once, while the server may still read the files, and constant from
 * then on: all connections share them without a lock.
 */
#ifndef FLEECED_TLS_CREDENTIALS_H
#define FLEECED_TLS_CREDENTIALS_H

#include <stddef.h>

#include <gnutls/gnutls.h>

#define TLS_TEXT_SIZE 256

struct tls_credentials;

/**
 * struct tls_peer - what one handshake has found out about the client
 * @credentials: of the server.
 * @name: the distinguished name of its certificate, or its user name; fit for the
 *	log; empty until it has said so.
 * @refusal: why it is not accepted; empty: no reason known.
 */
struct tls_peer {
	const struct tls_credentials *credentials;
	char name[TLS_TEXT_SIZE];
	char refusal[TLS_TEXT_SIZE];
};

/**
 * tls_credentials_load_x509() - clients prove who they are with certificates
 * @credentials: set to the credentials.
 * @directory: with ca-cert.pem, server-cert.pem and server-key.pem; may have
 *	ca-crl.pem, the certificates that were withdrawn, and allowed-clients, a name
 *	on each line: either a common name or a whole distinguished name (RFC 4514).
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int tls_credentials_load_x509(struct tls_credentials **credentials, const char *directory);

/**
 * tls_credentials_load_psk() - clients prove who they are with shared keys
 * @credentials: set to the credentials.
 * @path: a file of lines USER:KEY, the key in hexadecimal, as psktool writes it.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno.
 */
int tls_credentials_load_psk(struct tls_credentials **credentials, const char *path);

/** tls_credentials_release() - wipe and free; NULL is allowed */
void tls_credentials_release(struct tls_credentials *credentials);

/**
 * tls_credentials_begin() - a session that has these credentials
 * @credentials: outlive the session.
 * @peer: outlives the session; filled in while it shakes hands.
 * @session: set to the session, which still needs its transport.
 *
 * Return: 0 or a GNUTLS_E_ code.
 */
int tls_credentials_begin(const struct tls_credentials *credentials, struct tls_peer *peer,
			  gnutls_session_t *session);

#endif
