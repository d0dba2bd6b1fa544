/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, options: the command line. */
#ifndef FLEECED_OPTIONS_H
#define FLEECED_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "listen.h"

/**
 * struct options - what the command line asks for
 * @socket_path: Unix socket, or NULL.
 * @socket_mode: permissions of its file.
 * @socket_owner: USER[:GROUP] of its file, or NULL.
 * @listen: TCP addresses.
 * @listen_count: their number.
 * @vsock: PORT or CID:PORT.
 * @vsock_count: their number.
 * @allow_release: also serve NAME+release.
 * @read_once: release what a READ has delivered.
 * @no_holes: send zeroes as data.
 * @insecure: listen on any address, also without TLS.
 * @tls_certs: directory with certificates, or NULL.
 * @tls_psk: file with shared keys, or NULL.
 * @stdio: serve one client on stdin and stdout.
 * @max_connections: 0: no limit.
 * @handshake_seconds: 0: no limit.
 * @stall_seconds: 0: no limit.
 * @pid_file: or NULL.
 * @user: USER[:GROUP] to become, or NULL.
 * @no_sandbox: keep all privileges and system calls.
 * @devices: [NAME=]DEVICE.
 * @device_count: their number.
 */
struct options {
	const char *socket_path;
	unsigned int socket_mode;
	const char *socket_owner;
	const char *listen[LISTEN_MAX];
	size_t listen_count;
	const char *vsock[LISTEN_MAX];
	size_t vsock_count;
	bool allow_release;
	bool read_once;
	bool no_holes;
	bool insecure;
	const char *tls_certs;
	const char *tls_psk;
	bool stdio;
	unsigned int max_connections;
	unsigned int handshake_seconds;
	unsigned int stall_seconds;
	const char *pid_file;
	const char *user;
	bool no_sandbox;
	char **devices;
	size_t device_count;
};

/**
 * options_parse() - read the command line
 * @options: filled in; points into @argv.
 * @argc: of main().
 * @argv: of main(); may be reordered.
 *
 * Prints what is wrong, or what was asked for (--help, --version).
 *
 * Return: -1 to go on, else the exit status: 0, or 2 for a usage error.
 */
int options_parse(struct options *options, int argc, char **argv);

#endif
