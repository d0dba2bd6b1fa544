/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nbd tests: what a client sends, piece by piece. What does not fit into struct
 * bytes ends the program. Numbers are in the host's byte order.
 */
#ifndef SESSION_H
#define SESSION_H

#include <stddef.h>
#include <stdint.h>

/* The backend that the sessions below are made for, as the export "snap". */
#define SNAPSHOT \
	"mem:size=1M,cluster=64K,cp=one/64K-128K/256K-300K,cp=two,since=one,denied=512K-576K," \
	"lost=640K-641K"

/** struct bytes - bytes to send */
struct bytes {
	uint8_t data[8192];
	size_t length;
};

/** put() - append bytes */
void put(struct bytes *bytes, const void *data, size_t length);

/** put16() - append a number */
void put16(struct bytes *bytes, uint16_t value);

/** put32() - append a number */
void put32(struct bytes *bytes, uint32_t value);

/** put64() - append a number */
void put64(struct bytes *bytes, uint64_t value);

/** put_string() - append a string after its length */
void put_string(struct bytes *bytes, const char *text);

/** put_option() - append an option; no data when @data is NULL */
void put_option(struct bytes *bytes, uint32_t code, const struct bytes *data);

/** put_request() - append a request */
void put_request(struct bytes *bytes, uint16_t command, uint16_t flags, uint64_t offset,
		 uint32_t length);

/** put_extended() - append a request with an extended header */
void put_extended(struct bytes *bytes, uint16_t command, uint16_t flags, uint64_t offset,
		  uint64_t length);

/** put_contexts() - append LIST_META_CONTEXT or SET_META_CONTEXT with @count names */
void put_contexts(struct bytes *bytes, uint32_t option, const char *export, int count, ...);

/** put_go() - append GO or INFO, which asks for all that there is */
void put_go(struct bytes *bytes, uint32_t option, const char *export);

/** begin_session() - nothing but the flags of the client */
void begin_session(struct bytes *session);

/** full_session() - something of everything, with structured replies */
void full_session(struct bytes *session);

/** extended_session() - the same with extended headers, their payloads included */
void extended_session(struct bytes *session);

#endif
