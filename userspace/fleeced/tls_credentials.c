// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, tls_credentials: loads what proves who the server is, and decides on
 * clients. Credentials do not change once loaded.
 */
#include "tls_credentials.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

#include "log.h"
#include "tls_file.h"
#include "tls_names.h"
#include "tls_users.h"

/*
 * Added to the system's own policy: nothing below TLS 1.2; ChaCha20 comes last, also for
 * clients that like it better, since processors that have AES need a fifth of the time
 * for that; and with shared keys, only key exchanges that protect old recordings when the
 * key becomes known.
 */
#define PRIORITY_X509	"-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1:%SERVER_PRECEDENCE:" \
	"-CHACHA20-POLY1305:+CHACHA20-POLY1305"
#define PRIORITY_PSK	PRIORITY_X509 ":+ECDHE-PSK:+DHE-PSK"

/*
 * struct tls_credentials - of the server; either certificates or shared keys
 * @priority: versions and algorithms.
 * @x509: certificates and keys of the server and of its authority, or NULL.
 * @names: with @x509: clients that may connect.
 * @psk: or NULL.
 * @users: with @psk: users and their keys.
 */
struct tls_credentials {
	gnutls_priority_t priority;
	gnutls_certificate_credentials_t x509;
	struct tls_names names;
	gnutls_psk_server_credentials_t psk;
	struct tls_users users;
};

/* All errors of the library here are wrong files, but for a lack of memory. */
static int fail(const char *what, const char *directory, const char *name, int code)
{
	log_error("%s %s/%s: %s", what, directory, name, gnutls_strerror(code));
	return code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
}

static int read_part(const char *directory, const char *name, bool is_secret,
		     gnutls_datum_t *content)
{
	char *path;
	int ret;

	if (asprintf(&path, "%s/%s", directory, name) < 0)
		return -ENOMEM;
	ret = tls_file_read(path, is_secret, content);
	free(path);
	return ret;
}

static int read_needed(const char *directory, const char *name, bool is_secret,
		       gnutls_datum_t *content)
{
	int ret = read_part(directory, name, is_secret, content);

	if (ret == -ENOENT)
		log_error("cannot read %s/%s: %s", directory, name, strerror(ENOENT));
	return ret;
}

static int load_authority(struct tls_credentials *credentials, const char *directory)
{
	gnutls_datum_t content = { .data = NULL };
	int count;
	int ret = read_needed(directory, "ca-cert.pem", false, &content);

	if (ret)
		return ret;
	count = gnutls_certificate_set_x509_trust_mem(credentials->x509, &content,
						      GNUTLS_X509_FMT_PEM);
	tls_file_release(&content);
	if (count > 0)
		return 0;
	return fail("no certificate of an authority in", directory, "ca-cert.pem",
		    count ? count : GNUTLS_E_NO_CERTIFICATE_FOUND);
}

static int load_withdrawn(struct tls_credentials *credentials, const char *directory)
{
	gnutls_datum_t content = { .data = NULL };
	int count;
	int ret = read_part(directory, "ca-crl.pem", false, &content);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	count = gnutls_certificate_set_x509_crl_mem(credentials->x509, &content,
						    GNUTLS_X509_FMT_PEM);
	tls_file_release(&content);
	if (count > 0)
		return 0;
	return fail("no list of withdrawn certificates in", directory, "ca-crl.pem",
		    count ? count : GNUTLS_E_BASE64_DECODING_ERROR);
}

static int load_own(struct tls_credentials *credentials, const char *directory)
{
	gnutls_datum_t certificate = { .data = NULL }, key = { .data = NULL };
	int code;
	int ret = read_needed(directory, "server-cert.pem", false, &certificate);

	if (!ret)
		ret = read_needed(directory, "server-key.pem", true, &key);
	if (!ret) {
		code = gnutls_certificate_set_x509_key_mem2(credentials->x509, &certificate, &key,
							    GNUTLS_X509_FMT_PEM, NULL, 0);
		if (code < 0)
			ret = fail("cannot use the certificate and key", directory,
				   "server-{cert,key}.pem", code);
	}
	tls_file_release(&certificate);
	tls_file_release(&key);
	return ret;
}

static int load_names(struct tls_credentials *credentials, const char *directory)
{
	char *path;
	int ret;

	if (asprintf(&path, "%s/allowed-clients", directory) < 0)
		return -ENOMEM;
	ret = tls_names_load(&credentials->names, path);
	if (!ret && credentials->names.exists)
		log_info("TLS: clients with certificates, of %zu names in %s",
			 credentials->names.count, path);
	else if (!ret)
		log_info("TLS: all clients with certificates of %s/ca-cert.pem, as there is no %s",
			 directory, path);
	free(path);
	return ret;
}

static int fill_x509(struct tls_credentials *credentials, const char *directory)
{
	int ret;

	if (gnutls_certificate_allocate_credentials(&credentials->x509))
		return -ENOMEM;
	ret = load_authority(credentials, directory);
	if (!ret)
		ret = load_withdrawn(credentials, directory);
	if (!ret)
		ret = load_own(credentials, directory);
	if (!ret)
		ret = load_names(credentials, directory);
	return ret;
}

/* Other than log_quote(), keeps blanks: many names of certificates have some. */
static void take_name(struct tls_peer *peer, const gnutls_datum_t *name)
{
	size_t length = name->size < sizeof(peer->name) ? name->size : sizeof(peer->name) - 1;
	size_t i;

	for (i = 0; i < length; i++)
		peer->name[i] = name->data[i] >= ' ' && name->data[i] < 0x7f ? name->data[i] : '?';
	peer->name[i] = '\0';
}

static void refuse(struct tls_peer *peer, const char *why)
{
	snprintf(peer->refusal, sizeof(peer->refusal), "%s", why);
}

/* What is not verified yet is the client's claim, and only for the log. */
static int take_certificate(gnutls_session_t session, struct tls_peer *peer,
			    gnutls_x509_crt_t certificate)
{
	unsigned int count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);
	gnutls_datum_t name;
	int ret;

	if (!chain || !count)
		return GNUTLS_E_NO_CERTIFICATE_FOUND;
	ret = gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER);
	if (!ret)
		ret = gnutls_x509_crt_get_dn3(certificate, &name, 0);
	if (ret)
		return ret;
	take_name(peer, &name);
	gnutls_free(name.data);
	return 0;
}

static int verify_chain(gnutls_session_t session, struct tls_peer *peer)
{
	gnutls_typed_vdata_st purpose = {
		.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
	};
	gnutls_datum_t text;
	unsigned int status;
	int ret = gnutls_certificate_verify_peers(session, &purpose, 1, &status);

	if (ret || !status)
		return ret;
	if (!gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0)) {
		refuse(peer, (const char *)text.data);
		gnutls_free(text.data);
	}
	return GNUTLS_E_CERTIFICATE_ERROR;
}

/* Called in the handshake, so that the client learns from it, too. */
static int verify(gnutls_session_t session)
{
	struct tls_peer *peer = gnutls_session_get_ptr(session);
	gnutls_x509_crt_t certificate;
	int ret = gnutls_x509_crt_init(&certificate);

	if (ret)
		return ret;
	ret = take_certificate(session, peer, certificate);
	if (!ret)
		ret = verify_chain(session, peer);
	if (!ret && !tls_names_allow(&peer->credentials->names, certificate)) {
		refuse(peer, "its name is not in allowed-clients");
		ret = GNUTLS_E_CERTIFICATE_ERROR;
	}
	gnutls_x509_crt_deinit(certificate);
	return ret;
}

/*
 * An unknown user goes on with a key made up by the library, and fails like one
 * whose key is wrong: a stranger does not learn which users there are.
 */
static int find_key(gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key)
{
	struct tls_peer *peer = gnutls_session_get_ptr(session);
	const gnutls_datum_t *found = tls_users_find(&peer->credentials->users, name->data,
						     name->size);

	take_name(peer, name);
	refuse(peer, found ? "wrong key" : "unknown user");
	if (!found)
		return 1;
	key->data = gnutls_malloc(found->size);
	if (!key->data)
		return -1;
	memcpy(key->data, found->data, found->size);
	key->size = found->size;
	return 0;
}

static int set_priority(struct tls_credentials *credentials, const char *priority)
{
	int code = gnutls_priority_init2(&credentials->priority, priority, NULL,
					 GNUTLS_PRIORITY_INIT_DEF_APPEND);

	if (!code)
		return 0;
	log_error("cannot restrict TLS to %s: %s", priority, gnutls_strerror(code));
	return -EINVAL;
}

int tls_credentials_load_x509(struct tls_credentials **credentials, const char *directory)
{
	struct tls_credentials *fresh = calloc(1, sizeof(*fresh));
	int ret = fresh ? set_priority(fresh, PRIORITY_X509) : -ENOMEM;

	if (!ret)
		ret = fill_x509(fresh, directory);
	if (ret)
		tls_credentials_release(fresh);
	else
		*credentials = fresh;
	return ret;
}

int tls_credentials_load_psk(struct tls_credentials **credentials, const char *path)
{
	struct tls_credentials *fresh = calloc(1, sizeof(*fresh));
	int ret = fresh ? set_priority(fresh, PRIORITY_PSK) : -ENOMEM;

	if (!ret && gnutls_psk_allocate_server_credentials(&fresh->psk))
		ret = -ENOMEM;
	if (!ret)
		ret = tls_users_load(&fresh->users, path);
	if (ret) {
		tls_credentials_release(fresh);
		return ret;
	}
	gnutls_psk_set_server_credentials_function2(fresh->psk, find_key);
	log_info("TLS: clients with shared keys, of %zu users in %s", fresh->users.count, path);
	*credentials = fresh;
	return 0;
}

void tls_credentials_release(struct tls_credentials *credentials)
{
	if (!credentials)
		return;
	if (credentials->x509)
		gnutls_certificate_free_credentials(credentials->x509);
	if (credentials->psk)
		gnutls_psk_free_server_credentials(credentials->psk);
	if (credentials->priority)
		gnutls_priority_deinit(credentials->priority);
	tls_names_release(&credentials->names);
	tls_users_release(&credentials->users);
	free(credentials);
}

static int set_up(gnutls_session_t session, const struct tls_credentials *credentials)
{
	int ret = gnutls_priority_set(session, credentials->priority);

	if (ret)
		return ret;
	if (credentials->psk)
		return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials->psk);
	gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
	gnutls_session_set_verify_function(session, verify);
	return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->x509);
}

int tls_credentials_begin(const struct tls_credentials *credentials, struct tls_peer *peer,
			  gnutls_session_t *session)
{
	/* No tickets: each connection is checked against certificates, list and clock. */
	int ret = gnutls_init(session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS);

	if (ret)
		return ret;
	memset(peer, 0, sizeof(*peer));
	peer->credentials = credentials;
	gnutls_session_set_ptr(*session, peer);
	ret = set_up(*session, credentials);
	if (ret)
		gnutls_deinit(*session);
	return ret;
}
