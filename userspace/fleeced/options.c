// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, options: reads the command line and refuses what makes no sense.
 * Opens nothing.
 */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "service_manager.h"
#include "text.h"

#define EXIT_USAGE			2
#define MAX_CONNECTIONS_DEFAULT		100
#define HANDSHAKE_SECONDS_DEFAULT	10
#define STALL_SECONDS_DEFAULT		300
#define SOCKET_MODE_DEFAULT		0600

#ifndef FLEECED_VERSION
#define FLEECED_VERSION "0.1"
#endif

enum {
	OPTION_SOCKET = 256,
	OPTION_SOCKET_MODE,
	OPTION_SOCKET_OWNER,
	OPTION_LISTEN,
	OPTION_VSOCK,
	OPTION_ALLOW_RELEASE,
	OPTION_READ_ONCE,
	OPTION_NO_HOLES,
	OPTION_MAX_CONNECTIONS,
	OPTION_HANDSHAKE_TIMEOUT,
	OPTION_STALL_TIMEOUT,
	OPTION_PID_FILE,
	OPTION_STDIO,
	OPTION_USER,
	OPTION_NO_SANDBOX,
	OPTION_INSECURE,
	OPTION_TLS_CERTS,
	OPTION_TLS_PSK,
	OPTION_HELP,
	OPTION_VERSION,
};

static const struct option long_options[] = {
	{ "socket", required_argument, NULL, OPTION_SOCKET },
	{ "socket-mode", required_argument, NULL, OPTION_SOCKET_MODE },
	{ "socket-owner", required_argument, NULL, OPTION_SOCKET_OWNER },
	{ "listen", required_argument, NULL, OPTION_LISTEN },
	{ "vsock", required_argument, NULL, OPTION_VSOCK },
	{ "allow-release", no_argument, NULL, OPTION_ALLOW_RELEASE },
	{ "read-once", no_argument, NULL, OPTION_READ_ONCE },
	{ "no-holes", no_argument, NULL, OPTION_NO_HOLES },
	{ "max-connections", required_argument, NULL, OPTION_MAX_CONNECTIONS },
	{ "handshake-timeout", required_argument, NULL, OPTION_HANDSHAKE_TIMEOUT },
	{ "stall-timeout", required_argument, NULL, OPTION_STALL_TIMEOUT },
	{ "pid-file", required_argument, NULL, OPTION_PID_FILE },
	{ "stdio", no_argument, NULL, OPTION_STDIO },
	{ "user", required_argument, NULL, OPTION_USER },
	{ "no-sandbox", no_argument, NULL, OPTION_NO_SANDBOX },
	{ "insecure", no_argument, NULL, OPTION_INSECURE },
	{ "tls-certs", required_argument, NULL, OPTION_TLS_CERTS },
	{ "tls-psk", required_argument, NULL, OPTION_TLS_PSK },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ "version", no_argument, NULL, OPTION_VERSION },
	{ NULL, 0, NULL, 0 },
};

static const char help_text[] =
	"Usage: fleeced [OPTION]... [NAME=]DEVICE...\n"
	"Serve fleece snapshots, and other devices and files, read-only over NBD.\n"
	"\n"
	"  --socket PATH            listen on a Unix socket\n"
	"  --socket-mode MODE       permissions of its file, octal (600)\n"
	"  --socket-owner USER[:GROUP]\n"
	"                           owner of its file\n"
	"  --listen ADDR[:PORT]     listen on a TCP address (default port 10809);\n"
	"                           may be given several times\n"
	"  --vsock [CID:]PORT       listen for virtual machines, or for their host;\n"
	"                           may be given several times\n"
	"  --insecure               allow addresses that other machines can reach, without TLS\n"
	"  --tls-certs DIR          clients must use TLS, with certificates as those in DIR\n"
	"  --tls-psk FILE           clients must use TLS, with a shared key of FILE\n"
	"  --stdio                  serve one client on stdin and stdout\n"
	"  --allow-release          also serve NAME+release, where TRIM releases\n"
	"  --read-once              release what a READ has delivered\n"
	"  --no-holes               send zeroes as data, do not look for them\n"
	"  --max-connections N      clients served at once (100; 0: no limit)\n"
	"  --handshake-timeout S    seconds for a client's handshake (10; 0: no limit)\n"
	"  --stall-timeout S        seconds for a client to read a reply (300; 0: no limit)\n"
	"  --pid-file FILE          write the process id when ready\n"
	"  --user USER[:GROUP]      whom to become once all is open (nobody, if root)\n"
	"  --no-sandbox             keep all privileges, for debuggers only\n"
	"  --help, --version\n"
	"\n"
	"A name defaults to the device-mapper name, or to the last part of the path.\n"
	"Sockets can also be handed over, by systemd or who does the same.\n"
	"The first device is also the default export. Exit status: 0 stopped by a signal\n"
	"(or client gone, with --stdio), 1 failed, 2 usage.\n";

static int fail(const char *text, const char *what)
{
	fprintf(stderr, "fleeced: %s%s%s\n", text, what ? ": " : "", what ? what : "");
	fprintf(stderr, "fleeced: try --help\n");
	return EXIT_USAGE;
}

static int parse_mode(const char *text, unsigned int *mode)
{
	unsigned long value;
	char *end;

	value = strtoul(text, &end, 8);
	if (*text < '0' || *text > '7' || *end || value > 0777)
		return fail("--socket-mode is not an octal number up to 777", text);
	*mode = (unsigned int)value;
	return -1;
}

static int add_address(const char **list, size_t *count)
{
	if (*count == LISTEN_MAX)
		return fail("too many addresses to listen on", optarg);
	list[(*count)++] = optarg;
	return -1;
}

static int parse_socket(struct options *options, int code)
{
	switch (code) {
	case OPTION_SOCKET:
		if (options->socket_path)
			return fail("--socket was given twice", NULL);
		options->socket_path = optarg;
		return -1;
	case OPTION_SOCKET_MODE:
		return parse_mode(optarg, &options->socket_mode);
	case OPTION_SOCKET_OWNER:
		options->socket_owner = optarg;
		return -1;
	case OPTION_LISTEN:
		return add_address(options->listen, &options->listen_count);
	default:
		return add_address(options->vsock, &options->vsock_count);
	}
}

static int parse_limit(struct options *options, int code)
{
	switch (code) {
	case OPTION_MAX_CONNECTIONS:
		if (!text_to_number(optarg, 100000, &options->max_connections))
			return fail("--max-connections is not a number up to 100000", optarg);
		return -1;
	case OPTION_HANDSHAKE_TIMEOUT:
		if (!text_to_number(optarg, 86400, &options->handshake_seconds))
			return fail("--handshake-timeout is not a number up to 86400", optarg);
		return -1;
	default:
		if (!text_to_number(optarg, 86400, &options->stall_seconds))
			return fail("--stall-timeout is not a number up to 86400", optarg);
		return -1;
	}
}

static int parse_one(struct options *options, int code)
{
	switch (code) {
	case OPTION_SOCKET:
	case OPTION_SOCKET_MODE:
	case OPTION_SOCKET_OWNER:
	case OPTION_LISTEN:
	case OPTION_VSOCK:
		return parse_socket(options, code);
	case OPTION_MAX_CONNECTIONS:
	case OPTION_HANDSHAKE_TIMEOUT:
	case OPTION_STALL_TIMEOUT:
		return parse_limit(options, code);
	case OPTION_ALLOW_RELEASE:
		options->allow_release = true;
		return -1;
	case OPTION_READ_ONCE:
		options->read_once = true;
		return -1;
	case OPTION_NO_HOLES:
		options->no_holes = true;
		return -1;
	case OPTION_PID_FILE:
		options->pid_file = optarg;
		return -1;
	case OPTION_USER:
		options->user = optarg;
		return -1;
	case OPTION_NO_SANDBOX:
		options->no_sandbox = true;
		return -1;
	case OPTION_STDIO:
		options->stdio = true;
		return -1;
	case OPTION_INSECURE:
		options->insecure = true;
		return -1;
	case OPTION_TLS_CERTS:
		options->tls_certs = optarg;
		return -1;
	case OPTION_TLS_PSK:
		options->tls_psk = optarg;
		return -1;
	case OPTION_HELP:
		fputs(help_text, stdout);
		return 0;
	case OPTION_VERSION:
		puts("fleeced " FLEECED_VERSION);
		return 0;
	default:
		return fail("wrong usage", NULL);
	}
}

static int check(const struct options *options)
{
	int sockets = service_manager_sockets();
	bool has_listener = options->socket_path || options->listen_count ||
			    options->vsock_count || sockets > 0;

	if (!options->device_count)
		return fail("no device given", NULL);
	if (sockets < 0)
		return fail("LISTEN_FDS is not a number of sockets up to 16", getenv("LISTEN_FDS"));
	if (options->stdio && has_listener)
		return fail("--stdio excludes --socket, --listen, --vsock and sockets handed over",
			    NULL);
	if (!options->stdio && !has_listener)
		return fail("one of --socket, --listen, --vsock or --stdio is needed", NULL);
	if (options->user && options->no_sandbox)
		return fail("--user and --no-sandbox exclude each other", NULL);
	if (options->socket_owner && !options->socket_path)
		return fail("--socket-owner needs --socket", NULL);
	if (options->tls_certs && options->tls_psk)
		return fail("--tls-certs and --tls-psk exclude each other", NULL);
	return -1;
}

int options_parse(struct options *options, int argc, char **argv)
{
	int code, ret;

	memset(options, 0, sizeof(*options));
	options->max_connections = MAX_CONNECTIONS_DEFAULT;
	options->handshake_seconds = HANDSHAKE_SECONDS_DEFAULT;
	options->stall_seconds = STALL_SECONDS_DEFAULT;
	options->socket_mode = SOCKET_MODE_DEFAULT;
	for (;;) {
		code = getopt_long(argc, argv, "", long_options, NULL);
		if (code == -1)
			break;
		/* getopt has said which. */
		if (code == '?')
			return fail("wrong usage", NULL);
		ret = parse_one(options, code);
		if (ret >= 0)
			return ret;
	}
	options->devices = argv + optind;
	options->device_count = argc - optind;
	return check(options);
}
