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

#include "listen.h"
#include "service_manager.h"
#include "text.h"

#define EXIT_USAGE			2
#define MAX_CONNECTIONS_DEFAULT		100
#define HANDSHAKE_SECONDS_DEFAULT	10
#define STALL_SECONDS_DEFAULT		300
#define SOCKET_MODE_DEFAULT		0600
/* Until it is given: no permissions at all are a choice, too. */
#define SOCKET_MODE_UNSET		(~0U)

#ifndef FLEECED_VERSION
#define FLEECED_VERSION "0.1"
#endif

/*
 * enum option_kind - what becomes of an option
 * @OPTION_FLAG: a bool is set.
 * @OPTION_TEXT: its argument is kept; the last one counts.
 * @OPTION_TEXT_ONCE: its argument is kept; there may be only one.
 * @OPTION_NUMBER: its argument is decimal, with a limit.
 * @OPTION_MODE: its argument is octal, permissions.
 * @OPTION_TCP, @OPTION_VSOCK: its argument is an address, and appended to a list.
 * @OPTION_HELP: print the help and end.
 * @OPTION_VERSION: print the version and end.
 */
enum option_kind {
	OPTION_FLAG,
	OPTION_TEXT,
	OPTION_TEXT_ONCE,
	OPTION_NUMBER,
	OPTION_MODE,
	OPTION_TCP,
	OPTION_VSOCK,
	OPTION_HELP,
	OPTION_VERSION,
};

/*
 * struct option_rule - one option
 * @name: without dashes.
 * @has_argument: as getopt_long() wants it.
 * @kind: what becomes of it.
 * @field: offset in struct options of what it sets.
 * @extra: OPTION_NUMBER: the largest; OPTION_TCP, OPTION_VSOCK: offset of the list's count.
 */
struct option_rule {
	const char *name;
	int has_argument;
	enum option_kind kind;
	size_t field;
	size_t extra;
};

#define FIELD(name) offsetof(struct options, name)

static const struct option_rule rules[] = {
	{ "socket", required_argument, OPTION_TEXT_ONCE, FIELD(socket_path), 0 },
	{ "socket-mode", required_argument, OPTION_MODE, FIELD(socket_mode), 0 },
	{ "socket-owner", required_argument, OPTION_TEXT, FIELD(socket_owner), 0 },
	{ "listen", required_argument, OPTION_TCP, FIELD(listen), FIELD(listen_count) },
	{ "vsock", required_argument, OPTION_VSOCK, FIELD(vsock), FIELD(vsock_count) },
	{ "allow-release", no_argument, OPTION_FLAG, FIELD(allow_release), 0 },
	{ "read-once", no_argument, OPTION_FLAG, FIELD(read_once), 0 },
	{ "no-holes", no_argument, OPTION_FLAG, FIELD(no_holes), 0 },
	{ "max-connections", required_argument, OPTION_NUMBER, FIELD(max_connections), 100000 },
	{ "handshake-timeout", required_argument, OPTION_NUMBER, FIELD(handshake_seconds), 86400 },
	{ "stall-timeout", required_argument, OPTION_NUMBER, FIELD(stall_seconds), 86400 },
	{ "pid-file", required_argument, OPTION_TEXT, FIELD(pid_file), 0 },
	{ "stdio", no_argument, OPTION_FLAG, FIELD(stdio), 0 },
	{ "user", required_argument, OPTION_TEXT, FIELD(user), 0 },
	{ "no-sandbox", no_argument, OPTION_FLAG, FIELD(no_sandbox), 0 },
	{ "insecure", no_argument, OPTION_FLAG, FIELD(insecure), 0 },
	{ "tls-certs", required_argument, OPTION_TEXT, FIELD(tls_certs), 0 },
	{ "tls-psk", required_argument, OPTION_TEXT, FIELD(tls_psk), 0 },
	{ "help", no_argument, OPTION_HELP, 0, 0 },
	{ "version", no_argument, OPTION_VERSION, 0, 0 },
};

#define RULES (sizeof(rules) / sizeof(rules[0]))

/* What getopt_long() returns for the first rule: beyond all characters. */
#define FIRST_CODE 256

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

static int parse_text(const char **text, const char *name, bool once)
{
	char problem[64];

	if (once && *text) {
		snprintf(problem, sizeof(problem), "--%s was given twice", name);
		return fail(problem, NULL);
	}
	if (!*optarg) {
		snprintf(problem, sizeof(problem), "--%s is empty", name);
		return fail(problem, NULL);
	}
	*text = optarg;
	return -1;
}

static int parse_number(const struct option_rule *rule, unsigned int *number)
{
	char problem[64];

	if (text_to_number(optarg, rule->extra, number))
		return -1;
	snprintf(problem, sizeof(problem), "--%s is not a number up to %zu", rule->name,
		 rule->extra);
	return fail(problem, optarg);
}

static int add_address(const struct option_rule *rule, const char **list, size_t *count)
{
	if (rule->kind == OPTION_TCP && !listen_tcp_is_valid(optarg))
		return fail("--listen is not ADDRESS or ADDRESS:PORT, with a PORT up to 65535",
			    optarg);
	if (rule->kind == OPTION_VSOCK && !listen_vsock_is_valid(optarg))
		return fail("--vsock is not PORT or CID:PORT", optarg);
	if (*count == LISTEN_MAX)
		return fail("too many addresses to listen on", optarg);
	list[(*count)++] = optarg;
	return -1;
}

static int parse_one(struct options *options, const struct option_rule *rule)
{
	void *field = (char *)options + rule->field;

	switch (rule->kind) {
	case OPTION_FLAG:
		*(bool *)field = true;
		return -1;
	case OPTION_TEXT:
	case OPTION_TEXT_ONCE:
		return parse_text(field, rule->name, rule->kind == OPTION_TEXT_ONCE);
	case OPTION_NUMBER:
		return parse_number(rule, field);
	case OPTION_MODE:
		return parse_mode(optarg, field);
	case OPTION_TCP:
	case OPTION_VSOCK:
		return add_address(rule, field, (size_t *)((char *)options + rule->extra));
	case OPTION_HELP:
		fputs(help_text, stdout);
		return 0;
	default:
		puts("fleeced " FLEECED_VERSION);
		return 0;
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
	if (options->socket_mode != SOCKET_MODE_UNSET && !options->socket_path)
		return fail("--socket-mode needs --socket", NULL);
	if (options->tls_certs && options->tls_psk)
		return fail("--tls-certs and --tls-psk exclude each other", NULL);
	return -1;
}

static int parse_all(struct options *options, int argc, char **argv)
{
	struct option long_options[RULES + 1] = { { NULL, 0, NULL, 0 } };
	size_t i;
	int code, ret = -1;

	for (i = 0; i < RULES; i++)
		long_options[i] = (struct option){ rules[i].name, rules[i].has_argument, NULL,
						   FIRST_CODE + (int)i };
	while (ret < 0) {
		code = getopt_long(argc, argv, "", long_options, NULL);
		if (code == -1)
			break;
		/* getopt has said which. */
		ret = code == '?' ? fail("wrong usage", NULL) :
				    parse_one(options, &rules[code - FIRST_CODE]);
	}
	return ret;
}

int options_parse(struct options *options, int argc, char **argv)
{
	int ret;

	memset(options, 0, sizeof(*options));
	options->max_connections = MAX_CONNECTIONS_DEFAULT;
	options->handshake_seconds = HANDSHAKE_SECONDS_DEFAULT;
	options->stall_seconds = STALL_SECONDS_DEFAULT;
	options->socket_mode = SOCKET_MODE_UNSET;
	ret = parse_all(options, argc, argv);
	if (ret >= 0)
		return ret;
	options->devices = argv + optind;
	options->device_count = argc - optind;
	ret = check(options);
	if (options->socket_mode == SOCKET_MODE_UNSET)
		options->socket_mode = SOCKET_MODE_DEFAULT;
	return ret;
}
