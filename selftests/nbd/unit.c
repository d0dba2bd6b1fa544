// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd tests: the protocol core of fleeced, on a transport and a backend in
 * memory. Prints TAP. What a sanitizer finds ends the program.
 */
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tap.h"
#include "backend_memory.h"
#include "budget.h"
#include "connection.h"
#include "extents.h"
#include "holes.h"
#include "listen.h"
#include "log.h"
#include "options.h"
#include "reply.h"
#include "session.h"
#include "text.h"
#include "transport_memory.h"
#include "wrapped.h"

#define RANDOM_SEED	20240807U
#define RANDOM_SESSIONS	30000
#define RANDOM_MAPS	300
#define ARGUMENTS_MAX	40

/* What is stopped while a request waits for its share of the budget. */
static struct stop *stopped_while_waiting;
/* Where to put how many bytes of earlier replies are kept back meanwhile. */
static size_t *kept_while_waiting;

bool __wrap_budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	if (stopped_while_waiting) {
		stop_request(stopped_while_waiting);
		budget_close(budget);
	}
	if (kept_while_waiting && bytes)
		*kept_while_waiting = ((struct connection *)((uint8_t *)share -
				       offsetof(struct connection, share)))->batch_length;
	return __real_budget_take(budget, share, bytes);
}

#define PIECE_BYTES	32
/* More than what is read ahead, and not a multiple of it. */
#define FLOOD_BYTES	100000

/* All that were made, in vain or not. */
static unsigned int reads, polls, yields;
/* Where a piece is sent as soon as somebody waits for it; -1: nowhere. */
static int late_file = -1;
/* Where one is sent when others have been let run so often, or at a wait before; -1: nowhere. */
static int soon_file = -1;
static unsigned int soon_yields;

static void send_piece(int file)
{
	uint8_t piece[PIECE_BYTES] = { 0 };

	if (write(file, piece, sizeof(piece)) != sizeof(piece))
		abort();
}

ssize_t __wrap_read(int file, void *buffer, size_t length)
{
	reads++;
	return __real_read(file, buffer, length);
}

int __wrap_poll(struct pollfd *files, nfds_t count, int milliseconds)
{
	polls++;
	if (late_file >= 0)
		send_piece(late_file);
	else if (soon_file >= 0 && yields < soon_yields)
		send_piece(soon_file);
	return __real_poll(files, count, milliseconds);
}

/* While it stands still, time passes only as the others take the processor. */
static int64_t still_ms;
static unsigned int yield_ms;

int64_t __wrap_clock_ms(void)
{
	return still_ms ? still_ms : __real_clock_ms();
}

int __wrap_sched_yield(void)
{
	if (still_ms)
		still_ms += yield_ms;
	if (++yields == soon_yields && soon_file >= 0)
		send_piece(soon_file);
	return __real_sched_yield();
}

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

struct fixture {
	struct stop stop;
	struct budget budget;
	struct slots slots;
	struct backend *backend;
	struct export_table table;
	struct connection_rules rules;
	uint8_t *out;
	size_t out_length;
	unsigned int writes;
};

static void set_up(struct fixture *fixture, const char *text)
{
	memset(fixture, 0, sizeof(*fixture));
	fixture->stop.fd = -1;
	if (backend_memory_open(text, &fixture->backend) ||
	    export_table_add(&fixture->table, "snap", fixture->backend, true))
		abort();
	fixture->rules.exports = &fixture->table;
	fixture->rules.stop = &fixture->stop;
	budget_init(&fixture->budget, BUDGET_POOL);
	fixture->rules.budget = &fixture->budget;
	slots_init(&fixture->slots, 1);
	fixture->rules.slots = &fixture->slots;
	fixture->rules.workers = 1;
}

static void tear_down(struct fixture *fixture)
{
	free(fixture->out);
	export_table_release(&fixture->table);
	fixture->backend->ops->close(fixture->backend);
	slots_release(&fixture->slots);
	budget_release(&fixture->budget);
}

/* One connection; its output stays in the fixture until the next one. */
static void run(struct fixture *fixture, const uint8_t *in, size_t length, size_t out_limit)
{
	struct memory_transport transport = {
		.base = { .ops = &memory_transport_ops, .peer = "unit" },
		.in = in,
		.in_length = length,
		.out_limit = out_limit,
	};
	struct connection *connection = connection_create(&transport.base, &fixture->rules);

	connection_serve(connection);
	connection_destroy(connection);
	free(fixture->out);
	fixture->out = transport.out;
	fixture->out_length = transport.out_length;
	fixture->writes = transport.writes;
}

static void begin_structured(struct bytes *session, const char *export)
{
	begin_session(session);
	put_option(session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_contexts(session, NBD_OPT_SET_META_CONTEXT, export, 3, "base:allocation",
		     "qemu:dirty-bitmap:one", "fleece:access");
	put_go(session, NBD_OPT_GO, export);
}

static void test_text(void)
{
	static const char *const bad[] = {
		"\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
		"\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "a\xe2\x82", "\xff",
	};
	char quoted[12];
	bool passed = true;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		passed &= !text_is_utf8(bad[i], strlen(bad[i]));
	tap_ok(passed, "C14 malformed UTF-8 is refused");
	tap_ok(!text_is_utf8("a\0b", 3), "C14 NUL is refused");
	tap_ok(text_is_utf8("", 0) && text_is_utf8("na\xc3\xafv\xe2\x82\xac\xf0\x9f\x98\x80", 12),
	       "C14 well-formed UTF-8 is accepted");
	tap_ok(text_is_export_name("a-b_c.d@e+f9") && !text_is_export_name("") &&
	       !text_is_export_name("a b") && !text_is_export_name("a/b"),
	       "export names need no quoting");
	tap_ok(!strcmp(log_quote(quoted, sizeof(quoted), "a\n\x1b[b", 5), "a??[b") &&
	       !strcmp(log_quote(quoted, sizeof(quoted), "0123456789abcdef", 16), "01234567..."),
	       "C14 names are made harmless before they are logged");
}

static void test_errors(void)
{
	tap_ok(reply_error_of(EROFS) == NBD_EPERM && reply_error_of(EFBIG) == NBD_ENOSPC &&
	       reply_error_of(EDQUOT) == NBD_ENOSPC && reply_error_of(EINVAL) == NBD_EINVAL &&
	       reply_error_of(ESHUTDOWN) == NBD_ESHUTDOWN, "C48 errors that have a match keep it");
	tap_ok(reply_error_of(ENODATA) == NBD_EIO && reply_error_of(ETIMEDOUT) == NBD_EIO &&
	       reply_error_of(ENODEV) == NBD_EIO && reply_error_of(ENOENT) == NBD_EIO,
	       "C48 others become EIO");
}

/* Runs that were found, as (hole ? -length : length), against what was wanted. */
static bool runs_are(const uint8_t *data, size_t length, uint64_t offset, const long *wanted)
{
	size_t done = 0, step;
	bool is_hole;

	while (done < length) {
		step = holes_next_run(data + done, length - done, offset + done,
				      holes_unit(length), &is_hole);
		if (!step || (is_hole ? -(long)step : (long)step) != *wanted++)
			return false;
		done += step;
	}
	return done == length;
}

static void test_holes(void)
{
	static uint8_t data[64 << 10];
	bool passed = true;
	size_t i;

	passed &= runs_are(data, sizeof(data), 0, (long[]){ -65536 });
	passed &= runs_are(data, 1, 4095, (long[]){ -1 });
	data[8191] = 1;
	passed &= runs_are(data, sizeof(data), 0, (long[]){ -4096, 4096, -57344 });
	passed &= runs_are(data, 12288, 100, (long[]){ -8092, 4096, -100 });
	data[8191] = 0;
	for (i = 0; i < 4096; i++) {
		data[i] = 1;
		passed &= runs_are(data, 8192, 0, (long[]){ 4096, -4096 });
		data[i] = 0;
	}
	tap_ok(passed, "C63 a hole begins and ends where the zeroes do, in units of 4 KiB");
	for (i = 1, passed = true; i < 64U << 20; i = i * 3 + 1)
		passed &= i / holes_unit(i) + 2 <= HOLES_RUNS_MAX &&
			  !(holes_unit(i) & (holes_unit(i) - 1)) && holes_unit(i) >= 4096;
	tap_ok(passed, "C63 the number of chunks is bounded");
}

static void test_lists(void)
{
	struct extent_list list = { .limit = 3 };
	bool passed;

	passed = !extent_list_append(&list, 10, 0) && !extent_list_append(&list, 5, 0) &&
		 !extent_list_append(&list, 7, 1) && !extent_list_append(&list, 1, 0);
	tap_ok(passed && list.count == 3 && list.covered == 23 && list.extents[0].length == 15,
	       "C67 neighbours of one status are joined");
	tap_ok(extent_list_append(&list, 1, 1) == -ENOSPC && list.covered == 23 &&
	       !extent_list_append(&list, 1, 0), "C67 the number of extents is limited");
	extent_list_cut(&list, 16);
	tap_ok(list.count == 2 && list.covered == 16 && list.extents[1].length == 1,
	       "a list is cut inside an extent");
	extent_list_cut(&list, 15);
	tap_ok(list.count == 1 && list.covered == 15, "a list is cut between extents");
	extent_list_release(&list);
}

/* What a context says of one byte, asked of the backend in the dullest way. */
static uint32_t status_at(struct backend *backend, const struct context *context, uint64_t at)
{
	struct fleece_extent extent = { .value = 9 };
	uint64_t covered;
	bool is_access = context->kind == CONTEXT_ACCESS;

	if (context->kind == CONTEXT_ALLOCATION)
		return 0;
	backend->ops->extents(backend, is_access ? FLEECE_MAP_ACCESSIBLE : FLEECE_MAP_CHANGED,
			      context->checkpoint, at & ~511ULL, 512, &extent, 1, &covered);
	return context->kind == CONTEXT_DIRTY ? extent.value : !extent.value;
}

static bool is_right(struct fixture *fixture, const struct context *context, uint64_t offset,
		     const struct extent_list *list)
{
	uint64_t at = offset;
	size_t i;

	for (i = 0; i < list->count; i++) {
		const struct extent *extent = &list->extents[i];

		if (!extent->length || (i && list->extents[i - 1].flags == extent->flags) ||
		    status_at(fixture->backend, context, at) != extent->flags ||
		    status_at(fixture->backend, context, at + extent->length - 1) != extent->flags)
			return false;
		at += extent->length;
	}
	return at - offset == list->covered;
}

static bool gather_random(struct fixture *fixture, uint32_t *state)
{
	const struct export *export = &fixture->table.exports[0];
	unsigned int ids[4] = { next_random(state) % 6, 0, 3, 5 };
	struct extent_list lists[4];
	uint64_t offset = next_random(state) % fixture->backend->size;
	uint32_t length = 1 + next_random(state) % (fixture->backend->size - offset);
	bool only_one = next_random(state) % 2;
	bool passed;
	int i;

	memset(lists, 0, sizeof(lists));
	passed = !extents_gather(export, ids, 4, offset, length, only_one, lists);
	for (i = 0; i < 4; i++)
		passed &= lists[i].covered == lists[0].covered && lists[i].covered &&
			  lists[i].covered <= length && (!only_one || lists[i].count == 1) &&
			  is_right(fixture, &export->contexts[ids[i]], offset, &lists[i]);
	for (i = 0; i < 4; i++)
		extent_list_release(&lists[i]);
	return passed;
}

static void test_coverage(void)
{
	struct fixture fixture;
	uint32_t state = RANDOM_SEED;
	bool passed = true;
	int i;

	set_up(&fixture, SNAPSHOT);
	for (i = 0; i < RANDOM_MAPS; i++)
		passed &= gather_random(&fixture, &state);
	tear_down(&fixture);
	tap_ok(passed,
	       "C67 all contexts cover the same range, at most the one asked for, and are right");
}

static void test_large(void)
{
	struct extent_list lists[2];
	const struct export *export;
	unsigned int ids[2] = { 0, 1 };
	struct fixture fixture;
	bool passed;

	set_up(&fixture, "mem:size=20T,cp=five/1T-2T");
	export = fixture.table.exports;
	memset(lists, 0, sizeof(lists));
	passed = !extents_gather(export, ids, 2, 1ULL << 40, 0xffffffffU, false, lists);
	tap_ok(passed && lists[1].count == 1 && lists[1].covered == 0xfffffe00 &&
	       lists[1].extents[0].flags == 1 && lists[0].covered == 0xfffffe00,
	       "C68 a run of more than 4 GiB stays below 2^32 and ends at a sector");
	extent_list_release(&lists[0]);
	extent_list_release(&lists[1]);
	passed = !extents_gather(export, ids, 2, (20ULL << 40) - 0xfffffe00U, 0xfffffe00U, false,
				 lists);
	tap_ok(passed && lists[1].covered == 0xfffffe00, "C68 up to the end beyond 16 TiB");
	extent_list_release(&lists[0]);
	extent_list_release(&lists[1]);
	tear_down(&fixture);

	set_up(&fixture, "mem:size=1G,stripes=all/512");
	export = fixture.table.exports;
	passed = !extents_gather(export, ids, 2, 0, 1U << 30, false, lists);
	tap_ok(passed && lists[1].count == EXTENTS_MAX / 2 &&
	       lists[1].covered == EXTENTS_MAX / 2 * 512 && lists[0].covered == lists[1].covered,
	       "C67 a fragmented map is answered in parts");
	extent_list_release(&lists[0]);
	extent_list_release(&lists[1]);
	tear_down(&fixture);
}

static int nonsense;

static int nonsense_extents(struct backend *backend, enum fleece_map map, const char *checkpoint,
			    uint64_t offset, uint64_t length, struct fleece_extent *extents,
			    uint32_t capacity, uint64_t *covered)
{
	(void)backend;
	(void)map;
	(void)checkpoint;
	memset(extents, 0, capacity * sizeof(*extents));
	extents[0].offset = offset + (nonsense == 0 ? 512 : 0);
	extents[0].length = nonsense == 1 ? 0 : nonsense == 2 ? length + 512 : 512;
	extents[0].value = nonsense == 3 ? 2 : 0;
	*covered = 512;
	return nonsense == 4 ? 0 : nonsense == 5 ? (int)capacity + 1 : 1;
}

static int breaking_extents(struct backend *backend, enum fleece_map map, const char *checkpoint,
			    uint64_t offset, uint64_t length, struct fleece_extent *extents,
			    uint32_t capacity, uint64_t *covered)
{
	(void)backend;
	(void)map;
	(void)checkpoint;
	(void)capacity;
	memset(extents, 0, sizeof(*extents));
	extents[0].offset = offset;
	extents[0].length = length;
	*covered = length;
	backend_memory_break();
	return 1;
}

static void test_nonsense(void)
{
	struct extent_list list = { .limit = 0 };
	struct backend_ops ops;
	struct fixture fixture;
	unsigned int id = 1;
	bool passed = true;

	set_up(&fixture, SNAPSHOT);
	ops = *fixture.backend->ops;
	ops.extents = nonsense_extents;
	fixture.backend->ops = &ops;
	for (nonsense = 0; nonsense < 6; nonsense++) {
		passed &= extents_gather(fixture.table.exports, &id, 1, 0, 8192, false, &list) ==
			  -EIO;
		extent_list_release(&list);
	}
	tap_ok(passed, "a backend whose map makes no sense is an error");
	tear_down(&fixture);
}

/* Is the last reply of a structured session this error, with a text that ends so? */
static bool ends_with_chunk(const struct fixture *fixture, enum nbd_chunk type, uint32_t error,
			    const char *text)
{
	size_t tail = type == NBD_CHUNK_ERROR_OFFSET ? sizeof(uint64_t) : 0;
	size_t length = strlen(text);
	size_t size = sizeof(struct nbd_chunk_header) + sizeof(struct nbd_chunk_error);
	struct nbd_chunk_header header;
	struct nbd_chunk_error chunk;
	const uint8_t *at;

	if (fixture->out_length < size + length + tail)
		return false;
	at = fixture->out + fixture->out_length - length - tail;
	if (memcmp(at, text, length))
		return false;
	/* The whole text is longer than @text: find the header that fits. */
	for (at -= size; at > fixture->out; at--) {
		memcpy(&header, at, sizeof(header));
		memcpy(&chunk, at + sizeof(header), sizeof(chunk));
		if (header.magic == htobe32(NBD_CHUNK_MAGIC))
			return header.type == htobe16(type) &&
			       header.flags == htobe16(NBD_CHUNK_FLAG_DONE) &&
			       chunk.error == htobe32(error) &&
			       at + size + be16toh(chunk.length) + tail ==
			       fixture->out + fixture->out_length;
	}
	return false;
}

static bool ends_with_error(const struct fixture *fixture, uint32_t error, const char *text)
{
	return ends_with_chunk(fixture, NBD_CHUNK_ERROR, error, text);
}

static bool contains_pattern(const struct fixture *fixture, uint64_t offset)
{
	uint64_t word = htobe64(offset * 0x9e3779b97f4a7c15ULL);

	return memmem(fixture->out, fixture->out_length, &word, sizeof(word));
}

static int operations;

static int counting_read(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	(void)backend;
	(void)offset;
	operations++;
	memset(buffer, 0xaa, length);
	return 0;
}

static int counting_extents(struct backend *backend, enum fleece_map map, const char *checkpoint,
			    uint64_t offset, uint64_t length, struct fleece_extent *extents,
			    uint32_t capacity, uint64_t *covered)
{
	operations++;
	return nonsense_extents(backend, map, checkpoint, offset, length, extents, capacity,
				covered);
}

static int counting_state(struct backend *backend, char *text, size_t size)
{
	(void)backend;
	(void)size;
	operations++;
	*text = '\0';
	return 0;
}

/* All that a client can do before it has chosen an export, and then the choice. */
static void test_untouched(void)
{
	struct backend_ops ops;
	struct fixture fixture;
	struct bytes session;

	set_up(&fixture, SNAPSHOT);
	ops = *fixture.backend->ops;
	ops.read = counting_read;
	ops.extents = counting_extents;
	ops.state = counting_state;
	fixture.backend->ops = &ops;
	begin_session(&session);
	put_option(&session, NBD_OPT_LIST, NULL);
	put_go(&session, NBD_OPT_INFO, "snap");
	put_contexts(&session, NBD_OPT_LIST_META_CONTEXT, "snap", 0);
	put_option(&session, NBD_OPT_STRUCTURED_REPLY, NULL);
	put_contexts(&session, NBD_OPT_SET_META_CONTEXT, "snap", 2, "base:allocation",
		     "fleece:access");
	put_go(&session, NBD_OPT_GO, "snap");
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(!operations,
	       "C7 the handshake causes no operation on a device (CVE-2019-14850)");
	put_request(&session, NBD_CMD_READ, 0, 0, 512);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(operations == 1, "C7 the first READ does");
	tear_down(&fixture);
}

static int socket_option(int fd, int level, int option)
{
	socklen_t size = sizeof(int);
	int value = -1;

	return getsockopt(fd, level, option, &value, &size) ? -1 : value;
}

/* Seconds until a client that has gone without a word is noticed; 0: never. */
static int keepalive_seconds(int fd)
{
	if (socket_option(fd, SOL_SOCKET, SO_KEEPALIVE) != 1)
		return 0;
	return socket_option(fd, IPPROTO_TCP, TCP_KEEPIDLE) +
	       socket_option(fd, IPPROTO_TCP, TCP_KEEPINTVL) *
	       socket_option(fd, IPPROTO_TCP, TCP_KEEPCNT);
}

/* The server's end of a new connection. */
static int accept_tcp(struct listener_set *set, int64_t stall_ms)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int client = socket(AF_INET, SOCK_STREAM, 0), served;
	char peer[80];

	if (getsockname(set->listeners[0].fd, (struct sockaddr *)&address, &length) ||
	    client < 0 || connect(client, (struct sockaddr *)&address, length))
		abort();
	served = listen_accept(&set->listeners[0], stall_ms, peer, sizeof(peer));
	close(client);
	return served;
}

/* Milliseconds for which a client may leave unacknowledged what it was sent. */
static int acknowledge_ms(struct listener_set *set, int64_t stall_ms)
{
	int served = accept_tcp(set, stall_ms);
	int ms = socket_option(served, IPPROTO_TCP, TCP_USER_TIMEOUT);

	close(served);
	return ms;
}

static void test_tcp(void)
{
	struct listener_set set = { .count = 0 };
	int served, seconds;

	if (listen_tcp(&set, "127.0.0.1:0", false))
		abort();
	served = accept_tcp(&set, 0);
	tap_ok(socket_option(served, IPPROTO_TCP, TCP_NODELAY) == 1,
	       "C5 a TCP connection has TCP_NODELAY");
	seconds = keepalive_seconds(served);
	tap_ok(seconds > 0 && seconds <= 120,
	       "a TCP client that is gone without a word is noticed within two minutes");
	close(served);
	tap_ok(acknowledge_ms(&set, 1000) == 120000 && acknowledge_ms(&set, 300000) == 300000 &&
	       acknowledge_ms(&set, 0) == 0,
	       "also when it has not acknowledged everything, but not before --stall-timeout");
	listen_close(&set);
}

static void test_failing_reads(void)
{
	struct fixture fixture;
	struct bytes session;
	size_t before;

	set_up(&fixture, SNAPSHOT);
	begin_structured(&session, "snap");
	put_request(&session, NBD_CMD_READ, 0, 512 << 10, 4096);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(ends_with_chunk(&fixture, NBD_CHUNK_ERROR_OFFSET, NBD_EPERM, "released") &&
	       !contains_pattern(&fixture, (512 << 10) + 8),
	       "C60 a denied read sends an error and none of the data");
	begin_structured(&session, "snap");
	put_request(&session, NBD_CMD_READ, 0, (640 << 10) - 512, 4096);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(ends_with_error(&fixture, NBD_EIO, "a lost cluster") &&
	       !contains_pattern(&fixture, (640 << 10) - 8),
	       "C60 a partly lost read sends an error and none of the data");
	begin_structured(&session, "snap");
	put_request(&session, NBD_CMD_READ, 0, 512 << 10, 4096);
	put_request(&session, NBD_CMD_READ, 0, (640 << 10) - 512, 4096);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(ends_with_error(&fixture, NBD_EIO, "a lost cluster"),
	       "the next error of a thread does not have the place of a denied read");
	begin_session(&session);
	put_go(&session, NBD_OPT_GO, "snap");
	run(&fixture, session.data, session.length, SIZE_MAX);
	before = fixture.out_length;
	put_request(&session, NBD_CMD_READ, 0, 512 << 10, 4096);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(fixture.out_length == before + sizeof(struct nbd_simple_reply),
	       "C60 a failed simple reply has no data");
	tear_down(&fixture);
}

static int breaking_release(struct backend *backend, uint64_t offset, uint64_t length)
{
	(void)backend;
	(void)offset;
	(void)length;
	backend_memory_break();
	return 0;
}

/* A snapshot that breaks within the operation which a request is carried out by. */
static bool breaks_within(const struct backend_ops *breaking, const char *export,
			  uint16_t command, uint32_t length)
{
	struct backend_ops ops;
	struct fixture fixture;
	struct bytes session;
	bool is_error;

	set_up(&fixture, SNAPSHOT);
	ops = *fixture.backend->ops;
	if (breaking->extents)
		ops.extents = breaking->extents;
	if (breaking->release)
		ops.release = breaking->release;
	fixture.backend->ops = &ops;
	begin_structured(&session, export);
	put_request(&session, command, 0, 0, length);
	run(&fixture, session.data, session.length, SIZE_MAX);
	is_error = ends_with_error(&fixture, NBD_EIO, "sector 4711");
	backend_memory_mend();
	tear_down(&fixture);
	return is_error;
}

static void test_breaking(void)
{
	const struct backend_ops map = { .extents = breaking_extents };
	const struct backend_ops release = { .release = breaking_release };

	tap_ok(breaks_within(&map, "snap", NBD_CMD_BLOCK_STATUS, 65536),
	       "C69 a snapshot that breaks while its map is read gives no map");
	tap_ok(breaks_within(&release, "snap+release", NBD_CMD_TRIM, 512),
	       "a TRIM that meets a broken snapshot fails, also where it releases nothing");
}

static void test_stopping(void)
{
	struct fixture fixture;
	struct bytes session;

	set_up(&fixture, SNAPSHOT);
	atomic_store(&fixture.stop.since_ms, 1);
	begin_session(&session);
	put_option(&session, NBD_OPT_LIST, NULL);
	put_option(&session, NBD_OPT_ABORT, NULL);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(fixture.out_length > 60 &&
	       !memcmp(fixture.out + 18 + 12, "\x80\x00\x00\x07", 4) &&
	       !memcmp(fixture.out + fixture.out_length - 8, "\0\0\0\1\0\0\0\0", 8),
	       "C16 while stopping, options get ERR_SHUTDOWN and ABORT its ACK");
	tear_down(&fixture);
}

static void test_stopping_while_waiting(void)
{
	struct fixture fixture;
	struct bytes session;

	set_up(&fixture, SNAPSHOT);
	stopped_while_waiting = &fixture.stop;
	begin_structured(&session, "snap");
	put_request(&session, NBD_CMD_READ, 0, 0, 512 << 10);
	run(&fixture, session.data, session.length, SIZE_MAX);
	stopped_while_waiting = NULL;
	tap_ok(ends_with_error(&fixture, NBD_ESHUTDOWN, "shutting down"),
	       "C16 a request that waited for others until the server ends gets ESHUTDOWN");
	tear_down(&fixture);
}

/* Whatever byte a client dies at, what it was told until then is the same. */
static void test_death(const char *form, void (*make)(struct bytes *session))
{
	struct fixture fixture, whole;
	struct bytes session;
	bool passed = true;
	char text[128];
	size_t i;

	make(&session);
	set_up(&whole, SNAPSHOT);
	run(&whole, session.data, session.length, SIZE_MAX);
	for (i = 0; i < session.length; i++) {
		set_up(&fixture, SNAPSHOT);
		run(&fixture, session.data, i, SIZE_MAX);
		passed &= fixture.out_length <= whole.out_length &&
			  !memcmp(fixture.out, whole.out, fixture.out_length);
		tear_down(&fixture);
	}
	snprintf(text, sizeof(text), "client death at every byte of a session, %s", form);
	tap_ok(passed, "%s", text);
	passed = true;
	for (i = 0; i < whole.out_length; i++) {
		set_up(&fixture, SNAPSHOT);
		run(&fixture, session.data, session.length, i);
		passed &= fixture.out_length == i;
		tear_down(&fixture);
	}
	snprintf(text, sizeof(text), "clients that stop listening at every byte of the replies, %s",
		 form);
	tap_ok(passed, "%s", text);
	tear_down(&whole);
}

/* A transport that fails in the middle of a reply; looks at the connection on its shutdown. */
struct failing_transport {
	struct transport base;
	struct connection *connection;
	unsigned int writes;
	bool was_locked;
};

static int failing_write(struct transport *transport, struct iovec *vector, int count)
{
	(void)vector;
	(void)count;
	((struct failing_transport *)transport)->writes++;
	return -EPIPE;
}

static void failing_shutdown(struct transport *transport)
{
	struct failing_transport *failing = (struct failing_transport *)transport;
	pthread_mutex_t *lock = &failing->connection->send_lock;

	failing->was_locked = pthread_mutex_trylock(lock) == EBUSY;
	if (!failing->was_locked)
		pthread_mutex_unlock(lock);
}

static void failing_close(struct transport *transport)
{
	(void)transport;
}

static void test_lost_reply(void)
{
	const struct transport_ops ops = {
		.write = failing_write, .shutdown = failing_shutdown, .close = failing_close,
	};
	struct failing_transport failing = { .base = { .ops = &ops, .peer = "unit" } };
	struct request request = { .command = NBD_CMD_FLUSH };
	struct fixture fixture;

	set_up(&fixture, SNAPSHOT);
	failing.connection = connection_create(&failing.base, &fixture.rules);
	tap_ok(reply_success(failing.connection, &request) == -EPIPE && failing.was_locked &&
	       connection_status(failing.connection) == CONNECTION_DEAD,
	       "a reply that is sent in part ends the connection before another one can begin");
	tap_ok(reply_success(failing.connection, &request) == -ECONNRESET && failing.writes == 1,
	       "and no other reply follows it");
	tap_ok(failing.connection->share.is_closed && failing.connection->slot.is_closed,
	       "nor do its threads wait for the budget or a place");
	connection_destroy(failing.connection);
	tear_down(&fixture);
}

/* What is late is late from the first part on, and not from the last. */
static void test_stalled_parts(void)
{
	struct stop stop = { .fd = -1 };
	struct iovec vector = { .iov_base = "x", .iov_len = 1 };
	struct transport *transport;
	int64_t begin;
	int files[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, files))
		abort();
	transport = transport_fd_create(files[0], files[0], "unit", &stop, 1);
	begin = clock_ms();
	transport->ops->begin_write(transport, 0);
	while (clock_ms() < begin + 3)
		usleep(1000);
	tap_ok(transport->ops->write_part(transport, &vector, 1) == -ETIMEDOUT,
	       "all parts of a reply share one limit of time");
	transport->ops->close(transport);
	close(files[1]);
}

/* What is left unread when the socket is closed resets the connection. */
static void test_end_after_stop(void)
{
	struct stop stop = { .fd = -1, .since_ms = 1 };
	struct transport *transport;
	int files[2], left = -1;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, files))
		abort();
	transport = transport_fd_create(files[0], files[0], "unit", &stop, 0);
	send_piece(files[1]);
	shutdown(files[1], SHUT_WR);
	transport->ops->end(transport);
	tap_ok(!ioctl(files[0], FIONREAD, &left) && !left,
	       "what a client still sends is taken, also long after the stop");
	transport->ops->close(transport);
	close(files[1]);
}

/* Pieces that come while they are waited for; the reads that this takes, or 0 for an error. */
static unsigned int reads_for_late(struct transport *transport, int file, unsigned int pieces)
{
	uint8_t piece[PIECE_BYTES];
	bool passed = true;

	reads = 0;
	late_file = file;
	for (; pieces--;)
		passed = !transport->ops->read(transport, piece, sizeof(piece)) && passed;
	late_file = -1;
	return passed ? reads : 0;
}

/* Pieces that have come before they are asked for; the waits that this takes. */
static unsigned int waits_for_early(struct transport *transport, int file, unsigned int pieces)
{
	uint8_t piece[PIECE_BYTES];

	polls = 0;
	for (; pieces--;) {
		send_piece(file);
		if (transport->ops->read(transport, piece, sizeof(piece)))
			return ~0U;
	}
	return polls;
}

static bool passes_flood(struct transport *transport, int file)
{
	static uint8_t sent[FLOOD_BYTES], got[FLOOD_BYTES];
	size_t i;

	for (i = 0; i < FLOOD_BYTES; i++)
		sent[i] = (uint8_t)(i * 7 / 5);
	if (write(file, sent, FLOOD_BYTES) != FLOOD_BYTES)
		abort();
	for (i = 0; i < FLOOD_BYTES; i += PIECE_BYTES)
		if (transport->ops->read(transport, got + i, PIECE_BYTES))
			return false;
	return !memcmp(sent, got, FLOOD_BYTES);
}

static void test_reads(void)
{
	struct stop stop = { .fd = -1 };
	struct transport *transport;
	uint8_t piece[PIECE_BYTES];
	unsigned int count;
	int files[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, files))
		abort();
	transport = transport_fd_create(files[0], files[0], "unit", &stop, 0);
	transport->ops->set_readahead(transport, true);
	count = reads_for_late(transport, files[1], 4);
	tap_ok(count == 8, "a request that comes late is looked for before it is waited for: %u",
	       count);
	count = reads_for_late(transport, files[1], 16);
	tap_ok(count == 16, "if that was in vain four times, then no more: %u", count);
	count = reads_for_late(transport, files[1], 18);
	tap_ok(count == 20, "but for one in seventeen: %u", count);
	count = waits_for_early(transport, files[1], 17);
	tap_ok(count == 16, "one that is there already is waited for until then: %u", count);
	count = waits_for_early(transport, files[1], 100);
	tap_ok(!count, "and then no more: %u", count);
	tap_ok(passes_flood(transport, files[1]), "many that come together are all read");
	close(files[1]);
	tap_ok(transport->ops->read(transport, piece, sizeof(piece)) == TRANSPORT_END,
	       "and the end after them");
	transport->ops->close(transport);
}

static bool is_brisk(void *context)
{
	return *(bool *)context;
}

/* One piece, after so many looks, or when it is waited for; "LOOKS WAITS", or "failed". */
static const char *take_piece(struct transport *transport, int file, unsigned int after)
{
	static char text[32];
	uint8_t piece[PIECE_BYTES];

	yields = 0;
	polls = 0;
	soon_yields = after;
	soon_file = file;
	late_file = after ? -1 : file;
	snprintf(text, sizeof(text), "failed");
	if (!transport->ops->read(transport, piece, sizeof(piece)))
		snprintf(text, sizeof(text), "%u %u", yields, polls);
	soon_file = -1;
	late_file = -1;
	return text;
}

static void test_looking(void)
{
	struct stop stop = { .fd = -1 };
	struct transport *transport;
	bool brisk = true;
	int files[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, files))
		abort();
	transport = transport_fd_create(files[0], files[0], "unit", &stop, 0);
	transport->ops->set_readahead(transport, true);
	transport->ops->set_before_wait(transport, is_brisk, &brisk);
	still_ms = clock_ms();
	tap_ok(!strcmp(take_piece(transport, files[1], 10), "10 0"),
	       "what a brisk client sends soon is not waited for");
	brisk = false;
	tap_ok(!strcmp(take_piece(transport, files[1], 64), "64 0"),
	       "nor is what comes after it, where looking was of use");
	tap_ok(!strcmp(take_piece(transport, files[1], 0), "64 1"),
	       "what does not come soon is waited for");
	tap_ok(!strcmp(take_piece(transport, files[1], 0), "0 1"),
	       "then there is no looking any more");
	brisk = true;
	tap_ok(!strcmp(take_piece(transport, files[1], 1), "1 0"), "unless the client is brisk again");
	yield_ms = 1;
	tap_ok(!strcmp(take_piece(transport, files[1], 0), "2 1"),
	       "where each look takes long there are few");
	yield_ms = 0;
	still_ms = 0;
	transport->ops->close(transport);
	close(files[1]);
}

/* Who gets small replies together has sent several requests at once, and goes on so. */
static void test_brisk(void)
{
	struct memory_transport memory = {
		.base = { .ops = &memory_transport_ops, .peer = "unit" }, .out_limit = SIZE_MAX,
	};
	struct request request = { .command = NBD_CMD_READ, .length = 4096, .is_followed = true };
	struct connection *connection;
	uint8_t *data = calloc(1, 64 << 10);
	struct fixture fixture;

	set_up(&fixture, SNAPSHOT);
	connection = connection_create(&memory.base, &fixture.rules);
	reply_data(connection, &request, data);
	tap_ok(connection->is_brisk, "a small reply that is followed by another is for a brisk client");
	request.is_followed = false;
	reply_data(connection, &request, data);
	tap_ok(connection->is_brisk && memory.writes == 1, "so is the last one of them");
	reply_data(connection, &request, data);
	tap_ok(!connection->is_brisk, "one that is sent alone is not");
	request.is_followed = true;
	request.length = 64 << 10;
	connection->is_brisk = true;
	reply_data(connection, &request, data);
	tap_ok(!connection->is_brisk, "nor is a large one");
	connection_destroy(connection);
	free(memory.out);
	free(data);
	tear_down(&fixture);
}

static void test_read_once(void)
{
	struct fixture fixture;
	struct bytes session;
	size_t length;
	bool passed;

	set_up(&fixture, SNAPSHOT);
	fixture.rules.read_once = true;
	begin_structured(&session, "snap");
	put_request(&session, NBD_CMD_READ, 0, 0, 65536);
	run(&fixture, session.data, session.length, SIZE_MAX);
	length = fixture.out_length;
	tear_down(&fixture);

	set_up(&fixture, SNAPSHOT);
	fixture.rules.read_once = true;
	run(&fixture, session.data, session.length, length - 1);
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(fixture.out_length == length, "read-once keeps what was not sent in full");
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(ends_with_chunk(&fixture, NBD_CHUNK_ERROR_OFFSET, NBD_EPERM, "released"),
	       "read-once releases what was sent in full");
	tear_down(&fixture);

	set_up(&fixture, SNAPSHOT);
	fixture.rules.read_once = true;
	backend_memory_break();
	run(&fixture, session.data, session.length, SIZE_MAX);
	passed = ends_with_error(&fixture, NBD_EIO, "sector 4711");
	backend_memory_mend();
	run(&fixture, session.data, session.length, SIZE_MAX);
	tap_ok(passed && fixture.out_length == length,
	       "read-once releases nothing of a broken snapshot");
	tear_down(&fixture);
}

#define TOGETHER	40
#define TOGETHER_BYTES	4096U

/* Sends so many READs at once; returns how many writes their replies took. */
static unsigned int read_together(struct fixture *fixture, const char *backend, uint32_t length,
				  bool read_once)
{
	struct bytes session;
	unsigned int writes, i;

	set_up(fixture, backend);
	fixture->rules.read_once = read_once;
	begin_session(&session);
	put_go(&session, NBD_OPT_GO, "snap");
	run(fixture, session.data, session.length, SIZE_MAX);
	writes = fixture->writes;
	for (i = 0; i < TOGETHER; i++)
		put_request(&session, NBD_CMD_READ, 0, i * length, length);
	run(fixture, session.data, session.length, SIZE_MAX);
	return fixture->writes - writes;
}

/* Are these the replies, in order? */
static bool has_all_replies(struct fixture *fixture, uint32_t length)
{
	size_t whole = sizeof(struct nbd_simple_reply) + length;
	const uint8_t *at = fixture->out + fixture->out_length - TOGETHER * whole;
	uint8_t *expected = malloc(length);
	bool passed = fixture->out_length > TOGETHER * whole;
	unsigned int i;

	for (i = 0; passed && i < TOGETHER; i++, at += whole) {
		backend_memory_fill(fixture->backend, expected, i * length, length);
		passed = !memcmp(at + sizeof(struct nbd_simple_reply), expected, length);
	}
	free(expected);
	return passed;
}

static void test_before_budget(void)
{
	struct fixture fixture;
	struct bytes session;
	size_t kept = 1;

	set_up(&fixture, "mem:size=8M,plain,cached=1G");
	begin_session(&session);
	put_go(&session, NBD_OPT_GO, "snap");
	put_request(&session, NBD_CMD_READ, 0, 0, 4096);
	put_request(&session, NBD_CMD_READ, 0, 0, 512 << 10);
	kept_while_waiting = &kept;
	run(&fixture, session.data, session.length, SIZE_MAX);
	kept_while_waiting = NULL;
	tap_ok(!kept, "a reply does not wait for one that may have to wait for the budget");
	tear_down(&fixture);
}

static void test_together(void)
{
	struct fixture fixture;
	unsigned int writes;
	bool passed;

	writes = read_together(&fixture, "mem:size=8M,plain,cached=1G", TOGETHER_BYTES, false);
	passed = has_all_replies(&fixture, TOGETHER_BYTES);
	tap_ok(passed && writes <= 1 + TOGETHER * (TOGETHER_BYTES + 16) / (60 << 10),
	       "small replies to requests that came together are sent together");
	tear_down(&fixture);
	writes = read_together(&fixture, "mem:size=8M,plain,cached=1G", 64 << 10, false);
	tap_ok(writes == TOGETHER && has_all_replies(&fixture, 64 << 10), "large ones are not");
	tear_down(&fixture);
	writes = read_together(&fixture, "mem:size=8M,plain", TOGETHER_BYTES, false);
	tap_ok(writes == TOGETHER && has_all_replies(&fixture, TOGETHER_BYTES),
	       "a reply does not wait for one that has to wait for a device");
	tear_down(&fixture);
	writes = read_together(&fixture, "mem:size=8M,plain,cached=4K", TOGETHER_BYTES, false);
	tap_ok(writes == TOGETHER && has_all_replies(&fixture, TOGETHER_BYTES),
	       "nor when the one before need not");
	tear_down(&fixture);
	writes = read_together(&fixture, "mem:size=8M,plain,cached=1G", TOGETHER_BYTES, true);
	tap_ok(writes == TOGETHER && has_all_replies(&fixture, TOGETHER_BYTES),
	       "with read-once each reply is sent at once");
	tear_down(&fixture);
}

static void test_descriptions(void)
{
	char text[4096] = "mem:size=1M";
	struct fixture fixture;
	size_t length;
	int i;

	for (i = 0; i < 70; i++) {
		length = strlen(text);
		snprintf(text + length, sizeof(text) - length,
			 ",cp=a-name-that-is-long-enough-to-fill-its-room-%02d", i);
	}
	set_up(&fixture, text);
	length = strlen(fixture.table.exports[0].description);
	tap_ok(length <= NBD_MAX_STRING &&
	       strstr(fixture.table.exports[0].description, "older checkpoints; ") &&
	       strstr(fixture.table.exports[0].description, "room-69 00000000-"),
	       "C14 a long description stays within a protocol string, and has the newest");
	tap_ok(strstr(fixture.table.exports[70].description, "room-69 00000000-"),
	       "NAME@CHECKPOINT describes its checkpoint");
	tap_ok(fixture.table.count == 72 && fixture.table.exports[0].context_count == 142 &&
	       fixture.table.exports[70].context_count == 4,
	       "70 checkpoints make 72 exports");
	tap_ok(export_table_add(&fixture.table, "snap", fixture.backend, false) == -EEXIST,
	       "a name can be used once");
	tear_down(&fixture);
}

/* Sessions with some bytes changed, doubled or left out. */
static void test_random(void)
{
	struct fixture fixture;
	struct bytes changed;
	uint32_t state = RANDOM_SEED;
	bool passed = true;
	uint32_t at;
	int i, changes;

	printf("# seed %u, %d sessions\n", RANDOM_SEED, RANDOM_SESSIONS);
	for (i = 0; i < RANDOM_SESSIONS; i++) {
		set_up(&fixture, SNAPSHOT);
		if (i % 2)
			extended_session(&changed);
		else
			full_session(&changed);
		for (changes = 1 + next_random(&state) % 4; changes--;) {
			at = next_random(&state) % changed.length;
			if (next_random(&state) % 8)
				changed.data[at] ^= 1 << next_random(&state) % 8;
			else
				memmove(changed.data + at, changed.data + at + 1,
					--changed.length - at);
		}
		run(&fixture, changed.data, changed.length, SIZE_MAX);
		passed &= fixture.out_length >= sizeof(struct nbd_greeting) &&
			  !memcmp(fixture.out, "NBDMAGICIHAVEOPT\0\3", 18);
		tear_down(&fixture);
	}
	tap_ok(passed, "C11 mutated sessions are greeted, and end without harm");
}

/*
 * struct taker - a client that waits for bytes in a thread of its own
 * @order: set to the position among all that got theirs.
 * @ret: what budget_take() said.
 * @is_done: both are set.
 */
struct taker {
	struct budget *budget;
	struct budget_share share;
	uint64_t bytes;
	pthread_t thread;
	unsigned int order;
	bool ret;
	atomic_bool is_done;
};

static atomic_uint takers_done;

static void *take(void *argument)
{
	struct taker *taker = argument;

	taker->ret = budget_take(taker->budget, &taker->share, taker->bytes);
	taker->order = atomic_fetch_add(&takers_done, 1);
	atomic_store(&taker->is_done, true);
	return NULL;
}

static bool waits(struct budget *budget, struct budget_share *share)
{
	bool is_waiting;

	pthread_mutex_lock(&budget->lock);
	is_waiting = share->wanted;
	pthread_mutex_unlock(&budget->lock);
	return is_waiting;
}

static void start_taker(struct taker *taker, struct budget *budget, uint64_t bytes)
{
	atomic_store(&taker->is_done, false);
	taker->budget = budget;
	taker->bytes = bytes;
	if (pthread_create(&taker->thread, NULL, take, taker))
		abort();
}

/* Comes back when it waits. */
static void begin_waiting(struct taker *taker, struct budget *budget, uint64_t bytes)
{
	start_taker(taker, budget, bytes);
	while (!waits(budget, &taker->share) && !atomic_load(&taker->is_done))
		usleep(1000);
}

static bool end_taker(struct taker *taker)
{
	pthread_join(taker->thread, NULL);
	return taker->ret;
}

/* Would it have to wait? It does not get the bytes. */
static bool has_to_wait(struct budget *budget, struct budget_share *share, uint64_t bytes)
{
	bool is_refused;

	share->is_closed = true;
	is_refused = !budget_take(budget, share, bytes);
	share->is_closed = false;
	if (!is_refused)
		budget_give(budget, share, bytes);
	return is_refused;
}

/* So many clients take as much as each can, in steps of @step. */
static void drain_budget(struct budget *budget, struct budget_share *shares, unsigned int clients,
			 uint64_t step)
{
	for (; clients--; shares++) {
		budget_share_init(shares);
		while (!has_to_wait(budget, shares, step))
			budget_take(budget, shares, step);
	}
}

#define CROWD 1000

static void test_budget(void)
{
	struct budget_share *shares = calloc(CROWD, sizeof(*shares));
	struct budget_share share;
	struct budget budget;

	budget_init(&budget, BUDGET_POOL);
	drain_budget(&budget, shares, 1, 1 << 20);
	tap_ok(shares[0].held == BUDGET_CLIENT_MAX, "one client alone can have its most, no more");
	budget_release(&budget);
	budget_init(&budget, BUDGET_POOL);
	drain_budget(&budget, shares, CROWD, 1 << 20);
	tap_ok(budget.used <= BUDGET_POOL && budget.held <= BUDGET_POOL + CROWD * BUDGET_OWN,
	       "a thousand clients take no more than the pool, and what is their own");
	budget_share_init(&share);
	tap_ok(has_to_wait(&budget, &share, 32 << 20), "then a large reply has to wait");
	tap_ok(!has_to_wait(&budget, &share, BUDGET_OWN), "but a small one has not");
	budget_take(&budget, &share, BUDGET_OWN);
	tap_ok(has_to_wait(&budget, &share, BUDGET_OWN), "but for a second one of the same client");
	budget_give(&budget, &share, BUDGET_OWN);
	tap_ok(!share.held && !has_to_wait(&budget, &share, 1), "until the first was sent");
	while (shares[0].held)
		budget_give(&budget, &shares[0], 1 << 20);
	tap_ok(budget.used < BUDGET_POOL && budget.held < BUDGET_POOL + CROWD * BUDGET_OWN,
	       "what is given back is there again");
	budget_release(&budget);
	free(shares);
}

static void init_takers(struct taker *takers, size_t count)
{
	memset(takers, 0, count * sizeof(*takers));
	while (count--)
		budget_share_init(&takers[count].share);
	atomic_store(&takers_done, 0);
}

/* Of a pool of 40 MiB, one client holds 20: no more than it leaves to others. */
static void test_budget_queue(void)
{
	struct taker takers[4];
	struct budget budget;

	budget_init(&budget, 40 << 20);
	init_takers(takers, 4);
	budget_take(&budget, &takers[0].share, BUDGET_OWN + (20 << 20));
	begin_waiting(&takers[1], &budget, BUDGET_OWN + (16 << 20));
	begin_waiting(&takers[2], &budget, BUDGET_OWN + (8 << 20));
	tap_ok(waits(&budget, &takers[1].share), "who asks for less later does not get it before");
	start_taker(&takers[3], &budget, BUDGET_OWN);
	tap_ok(end_taker(&takers[3]) && !takers[3].order, "what is a client's own needs no queue");
	budget_give(&budget, &takers[0].share, BUDGET_OWN + (20 << 20));
	tap_ok(end_taker(&takers[1]) && end_taker(&takers[2]) &&
	       budget.used == 24 << 20 && budget.held == 3 * BUDGET_OWN + (24 << 20),
	       "all get theirs when it is given back");
	begin_waiting(&takers[1], &budget, 8 << 20);
	start_taker(&takers[3], &budget, 1 << 20);
	tap_ok(end_taker(&takers[3]) && waits(&budget, &takers[1].share),
	       "who holds something and waits for more does not keep others from it");
	budget_share_close(&budget, &takers[1].share);
	tap_ok(!end_taker(&takers[1]), "a client that is lost does not wait on");
	begin_waiting(&takers[0], &budget, BUDGET_OWN + (30 << 20));
	begin_waiting(&takers[2], &budget, 30 << 20);
	budget_close(&budget);
	tap_ok(!end_taker(&takers[0]) && !end_taker(&takers[2]),
	       "nor does anybody when the server ends");
	budget_release(&budget);
}

/* The memory backend ends the program when it is asked for anything but whole blocks. */
static void test_blocks(void)
{
	static const uint32_t ranges[][2] = {
		{ 0, 1 }, { 4095, 2 }, { 4096, 4096 }, { 1, 8192 }, { (1 << 20) - 5, 5 },
		{ 777, 300000 },
	};
	uint8_t *expected = malloc(300000);
	struct fixture fixture;
	struct bytes session;
	bool passed = true;
	uint32_t length;
	size_t i;

	for (i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		length = ranges[i][1];
		set_up(&fixture, "mem:size=1M,block=4096");
		begin_session(&session);
		put_go(&session, NBD_OPT_GO, "snap");
		put_request(&session, NBD_CMD_READ, 0, ranges[i][0], length);
		run(&fixture, session.data, session.length, SIZE_MAX);
		backend_memory_fill(fixture.backend, expected, ranges[i][0], length);
		passed &= fixture.out_length > length &&
			  !memcmp(fixture.out + fixture.out_length - length, expected, length);
		tear_down(&fixture);
	}
	free(expected);
	tap_ok(passed, "any range of a device is read in whole blocks");
}

/* getopt_long() starts anew, and may reorder @argv, which ends with NULL. */
static int parse(struct options *options, char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	optind = 0;
	return options_parse(options, argc, argv);
}

/* Each option sets its own field, and no other one. */
static void test_options(void)
{
	char *flags[ARGUMENTS_MAX] = {
		"fleeced", "--read-once", "--no-sandbox", "--insecure", "--stdio", NULL,
	};
	char *texts[ARGUMENTS_MAX] = {
		"fleeced", "--socket", "s", "--socket-mode", "640", "--socket-owner", "o",
		"--listen", "a", "--vsock", "1", "--listen", "b", "--max-connections", "7",
		"--handshake-timeout", "86400", "--stall-timeout", "9", "--pid-file", "p",
		"--user", "u", "--tls-psk", "k", "--allow-release", "--no-holes",
		"one", "two", NULL,
	};
	struct options options;
	int ret;

	ret = parse(&options, texts);
	tap_ok(ret == -1 && !strcmp(options.socket_path, "s") && options.socket_mode == 0640 &&
	       !strcmp(options.socket_owner, "o") && !strcmp(options.pid_file, "p") &&
	       !strcmp(options.user, "u") && !strcmp(options.tls_psk, "k") && !options.tls_certs,
	       "options that take a text");
	tap_ok(options.max_connections == 7 && options.handshake_seconds == 86400 &&
	       options.stall_seconds == 9, "options that take a number");
	tap_ok(options.listen_count == 2 && !strcmp(options.listen[0], "a") &&
	       !strcmp(options.listen[1], "b") && options.vsock_count == 1 &&
	       !strcmp(options.vsock[0], "1") && options.device_count == 2 &&
	       !strcmp(options.devices[1], "two"), "options that are given several times");
	tap_ok(options.allow_release && options.no_holes && !options.read_once &&
	       !options.no_sandbox && !options.insecure && !options.stdio, "flags, some of them");
	ret = parse(&options, flags);
	tap_ok(ret == 2 && options.read_once && options.no_sandbox && options.insecure &&
	       options.stdio && !options.allow_release && !options.no_holes,
	       "the other flags, without a device");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_options();
	test_text();
	test_errors();
	test_holes();
	test_lists();
	test_coverage();
	test_large();
	test_nonsense();
	test_untouched();
	test_tcp();
	test_failing_reads();
	test_breaking();
	test_stopping();
	test_stopping_while_waiting();
	test_death("structured", full_session);
	test_death("extended", extended_session);
	test_lost_reply();
	test_stalled_parts();
	test_end_after_stop();
	test_reads();
	test_looking();
	test_brisk();
	test_read_once();
	test_together();
	test_before_budget();
	test_descriptions();
	test_budget();
	test_budget_queue();
	test_blocks();
	test_random();
	return tap_end();
}
