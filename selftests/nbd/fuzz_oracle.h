/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nbd fuzzing, oracle: what a client may expect of a server, whatever it has sent.
 *
 * Reads both streams of a session side by side, with no code of the server but the
 * numbers and structures of the wire: each option and each request has one
 * well-formed answer, in order, or the connection ends where it may; data is the
 * right data; all contexts cover the same; nothing follows.
 */
#ifndef FUZZ_ORACLE_H
#define FUZZ_ORACLE_H

#include "export.h"

/** struct oracle_range - bytes from @start up to, not including, @end */
struct oracle_range {
	uint64_t start;
	uint64_t end;
};

/**
 * struct oracle_session - a session that is over
 * @in: what the client sent, and the server could take.
 * @in_length: of @in.
 * @out: what the client got.
 * @out_length: of @out.
 * @exports: that were offered, on backends in memory.
 * @unreadable: ranges of the backend that cannot be read.
 * @unreadable_count: of @unreadable.
 * @is_cut: the client was gone when it had got all of @out.
 * @is_troubled: the server was stopped or a backend broke, at any time.
 * @releases_reads: what was read once cannot be read again.
 * @has_tls: the server needs STARTTLS, and what follows it is in the clear.
 */
struct oracle_session {
	const uint8_t *in;
	size_t in_length;
	const uint8_t *out;
	size_t out_length;
	const struct export_table *exports;
	const struct oracle_range *unreadable;
	size_t unreadable_count;
	bool is_cut;
	bool is_troubled;
	bool releases_reads;
	bool has_tls;
};

/** oracle_check() - say on stderr what is wrong with a session, and abort */
void oracle_check(const struct oracle_session *session);

#endif
