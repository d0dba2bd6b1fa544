// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd fuzzing, seeds: writes the sessions that a fuzzer begins with, one file each.
 *
 *   fuzz_seeds DIRECTORY
 */
#include <endian.h>
#include <err.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_input.h"
#include "protocol.h"
#include "session.h"

static const char *directory;

static void save(const char *name, uint8_t flags, uint8_t backend, uint16_t death_at,
		 const struct bytes *session)
{
	struct fuzz_head head = {
		.flags = flags, .backend = backend, .event_at = 12,
		.death_at = htobe16(death_at),
	};
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "w");
	if (!file || fwrite(&head, sizeof(head), 1, file) != 1 ||
	    fwrite(session->data, session->length, 1, file) != 1 || fclose(file))
		err(EXIT_FAILURE, "%s", path);
}

/* One session for each option: what it looks like when it is accepted. */
static void save_options(void)
{
	struct bytes session;
	char name[64];
	uint32_t code;

	for (code = NBD_OPT_ABORT; code <= NBD_OPT_EXTENDED_HEADERS + 1; code++) {
		begin_session(&session);
		if (code == NBD_OPT_INFO || code == NBD_OPT_GO)
			put_go(&session, code, "snap@one");
		else if (code == NBD_OPT_LIST_META_CONTEXT)
			put_contexts(&session, code, "snap", 2, "qemu:", "base:allocation");
		else if (code != NBD_OPT_SET_META_CONTEXT)
			put_option(&session, code, NULL);
		put_option(&session, NBD_OPT_ABORT, NULL);
		snprintf(name, sizeof(name), "option-%02u", code);
		save(name, 0, 0, 0, &session);
	}
}

static void put_command(struct bytes *session, bool is_extended, uint16_t command)
{
	uint16_t flags = command == NBD_CMD_WRITE && is_extended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
	uint32_t length = command == NBD_CMD_FLUSH || command == NBD_CMD_DISC ? 0 : 512;
	static const uint8_t payload[512] = { 0xee };

	if (is_extended)
		put_extended(session, command, flags, 0, length);
	else
		put_request(session, command, flags, 0, length);
	if (command == NBD_CMD_WRITE)
		put(session, payload, sizeof(payload));
}

/* One session for each command in each form of replies: 0 simple, 1 structured, 2 extended. */
static void save_commands(void)
{
	static const uint32_t forms[] = { NBD_OPT_LIST, NBD_OPT_STRUCTURED_REPLY,
					  NBD_OPT_EXTENDED_HEADERS };
	struct bytes session;
	uint16_t command;
	char name[64];
	size_t i;

	for (i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		for (command = 0; command <= NBD_CMD_BLOCK_STATUS + 1; command++) {
			begin_session(&session);
			put_option(&session, forms[i], NULL);
			if (i)
				put_contexts(&session, NBD_OPT_SET_META_CONTEXT, "snap+release", 3,
					     "base:allocation", "qemu:dirty-bitmap:one",
					     "fleece:access");
			put_go(&session, NBD_OPT_GO, "snap+release");
			put_command(&session, i == 2, command);
			put_command(&session, i == 2, NBD_CMD_READ);
			put_command(&session, i == 2, NBD_CMD_DISC);
			snprintf(name, sizeof(name), "command-%zu-%02u", i, command);
			save(name, FUZZ_HOLES, 0, 0, &session);
		}
	}
}

/* A client that names its export as the first ones did. */
static void save_old(void)
{
	struct bytes session = { .length = 0 }, export = { .length = 0 };

	put(&export, "snap", 4);
	put32(&session, 0);
	put_option(&session, NBD_OPT_EXPORT_NAME, &export);
	put_request(&session, NBD_CMD_READ, 0, 0, 4096);
	put_request(&session, NBD_CMD_DISC, 0, 0, 0);
	save("old", 0, 3, 0, &session);
}

/* What was said before TLS must be forgotten. */
static void save_secure(void)
{
	struct bytes session;

	begin_session(&session);
	put_option(&session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_go(&session, NBD_OPT_GO, "snap");
	put_option(&session, NBD_OPT_STARTTLS, NULL);
	put_option(&session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_go(&session, NBD_OPT_GO, "snap");
	put_request(&session, NBD_CMD_READ, 0, 0, 512);
	save("secure", FUZZ_TLS, 0, 0, &session);
}

/* 20 TiB whose every other sector has changed. */
static void save_huge(void)
{
	struct bytes session;

	begin_session(&session);
	put_option(&session, NBD_OPT_EXTENDED_HEADERS, NULL);
	put_contexts(&session, NBD_OPT_SET_META_CONTEXT, "snap", 3, "qemu:dirty-bitmap:fine",
		     "fleece:clean:five", "fleece:access");
	put_go(&session, NBD_OPT_GO, "snap");
	put_extended(&session, NBD_CMD_BLOCK_STATUS, 0, 1000, 20ULL << 40);
	put_extended(&session, NBD_CMD_BLOCK_STATUS, 0, 513, (20ULL << 40) - 513);
	put_extended(&session, NBD_CMD_READ, 0, (64 << 20) - 100000, 200000);
	put_extended(&session, NBD_CMD_READ, 0, 0, (32U << 20) + 1);
	put_extended(&session, NBD_CMD_CACHE, 0, 0, 20ULL << 40);
	save("huge", FUZZ_HOLES, 2, 0, &session);
}

/* Zeroes that end in the middle of a unit that is a hole or not. */
static void save_holes(void)
{
	struct bytes session;

	begin_session(&session);
	put_option(&session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_go(&session, NBD_OPT_GO, "snap");
	put_request(&session, NBD_CMD_READ, 0, 0, 200000);
	put_request(&session, NBD_CMD_READ, NBD_CMD_FLAG_DF, 4096, 100000);
	put_request(&session, NBD_CMD_READ, 0, 99999, 1);
	put_request(&session, NBD_CMD_READ, 0, 4096, 8192);
	save("holes", FUZZ_HOLES, 1, 0, &session);
	save("no-holes", 0, 1, 0, &session);
}

/* BLOCK_STATUS for one context, for one twice, for an unknown one, for too many, for none. */
static void save_filters(void)
{
	static const uint32_t filters[][3] = { { 2 }, { 2, 2 }, { 99 }, { 1, 2, 3 }, { 0 } };
	static const uint32_t counts[] = { 1, 2, 1, 3, 0 };
	struct bytes session;
	size_t i, j;

	begin_session(&session);
	put_option(&session, NBD_OPT_EXTENDED_HEADERS, NULL);
	put_contexts(&session, NBD_OPT_SET_META_CONTEXT, "snap", 2, "base:allocation",
		     "qemu:dirty-bitmap:one");
	put_go(&session, NBD_OPT_GO, "snap");
	for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		put_extended(&session, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0,
			     sizeof(uint64_t) + counts[i] * sizeof(uint32_t));
		put64(&session, 1 << 20);
		for (j = 0; j < counts[i]; j++)
			put32(&session, filters[i][j]);
	}
	save("filters", 0, 0, 0, &session);
}

/* Contexts that were selected for another name are not selected. */
static void save_foreign(void)
{
	struct bytes session;

	begin_session(&session);
	put_option(&session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_contexts(&session, NBD_OPT_SET_META_CONTEXT, "snap@one", 1, "base:allocation");
	put_go(&session, NBD_OPT_GO, "snap@two");
	put_request(&session, NBD_CMD_BLOCK_STATUS, 0, 0, 4096);
	save("foreign", 0, 0, 0, &session);
}

/* More than a server should put up with. */
static void save_many(void)
{
	struct bytes session;
	int i;

	begin_session(&session);
	for (i = 0; i < 300; i++)
		put_option(&session, NBD_OPT_STARTTLS, NULL);
	save("many", 0, 0, 0, &session);
}

int main(int argc, char **argv)
{
	struct bytes session;

	if (argc != 2)
		errx(EXIT_FAILURE, "usage: fuzz_seeds DIRECTORY");
	directory = argv[1];
	full_session(&session);
	save("full", 0, 0, 0, &session);
	save("full-once", FUZZ_READ_ONCE | FUZZ_MULTI_CONN, 0, 0, &session);
	save("full-stop", FUZZ_STOP, 0, 0, &session);
	save("full-death", 0, 0, 1500, &session);
	save("full-plain", FUZZ_HOLES, 1, 0, &session);
	extended_session(&session);
	save("extended", FUZZ_HOLES, 0, 0, &session);
	save("extended-break", FUZZ_BREAK, 0, 0, &session);
	save("extended-tiny", 0, 3, 0, &session);
	save_options();
	save_commands();
	save_old();
	save_secure();
	save_huge();
	save_holes();
	save_filters();
	save_foreign();
	save_many();
	return EXIT_SUCCESS;
}
