/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, protocol: the NBD protocol as it stands on the wire.
 *
 * Owns the numbers, the packed structures and their names for messages. Knows
 * nothing of connections or data. All integers on the wire are big-endian;
 * they are converted where a structure is filled or read, nowhere else.
 */
#ifndef FLEECED_PROTOCOL_H
#define FLEECED_PROTOCOL_H

#include <stdint.h>

#define NBD_MAGIC			0x4e42444d41474943ULL	/* "NBDMAGIC" */
#define NBD_OPTION_MAGIC		0x49484156454f5054ULL	/* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC		0x0003e889045565a9ULL
#define NBD_REQUEST_MAGIC		0x25609513U
#define NBD_SIMPLE_REPLY_MAGIC		0x67446698U
#define NBD_CHUNK_MAGIC			0x668e33efU
#define NBD_EXTENDED_REQUEST_MAGIC	0x21e41c71U
#define NBD_EXTENDED_CHUNK_MAGIC	0x6e8a278cU

/* Flags of the greeting (server) and of its answer (client). */
#define NBD_FLAG_FIXED_NEWSTYLE		(1U << 0)
#define NBD_FLAG_NO_ZEROES		(1U << 1)

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_PEEK_EXPORT = 4,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERROR(n)		((1U << 31) | (n))

enum nbd_option_reply {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2,
	NBD_REP_INFO = 3,
	NBD_REP_META_CONTEXT = 4,
};

#define NBD_REP_ERR_UNSUP		NBD_REP_ERROR(1)
#define NBD_REP_ERR_POLICY		NBD_REP_ERROR(2)
#define NBD_REP_ERR_INVALID		NBD_REP_ERROR(3)
#define NBD_REP_ERR_PLATFORM		NBD_REP_ERROR(4)
#define NBD_REP_ERR_TLS_REQD		NBD_REP_ERROR(5)
#define NBD_REP_ERR_UNKNOWN		NBD_REP_ERROR(6)
#define NBD_REP_ERR_SHUTDOWN		NBD_REP_ERROR(7)
#define NBD_REP_ERR_TOO_BIG		NBD_REP_ERROR(9)
#define NBD_REP_ERR_EXT_HEADER_REQD	NBD_REP_ERROR(10)

enum nbd_info {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags of an export. */
#define NBD_FLAG_HAS_FLAGS		(1U << 0)
#define NBD_FLAG_READ_ONLY		(1U << 1)
#define NBD_FLAG_SEND_FLUSH		(1U << 2)
#define NBD_FLAG_SEND_FUA		(1U << 3)
#define NBD_FLAG_ROTATIONAL		(1U << 4)
#define NBD_FLAG_SEND_TRIM		(1U << 5)
#define NBD_FLAG_SEND_DF		(1U << 7)
#define NBD_FLAG_CAN_MULTI_CONN		(1U << 8)
#define NBD_FLAG_SEND_CACHE		(1U << 10)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD	(1U << 12)

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA		(1U << 0)
#define NBD_CMD_FLAG_DF			(1U << 2)
#define NBD_CMD_FLAG_REQ_ONE		(1U << 3)
#define NBD_CMD_FLAG_PAYLOAD_LEN	(1U << 5)

#define NBD_CHUNK_FLAG_DONE		(1U << 0)

enum nbd_chunk {
	NBD_CHUNK_NONE = 0,
	NBD_CHUNK_OFFSET_DATA = 1,
	NBD_CHUNK_OFFSET_HOLE = 2,
	NBD_CHUNK_BLOCK_STATUS = 5,
	NBD_CHUNK_BLOCK_STATUS_EXT = 6,
	NBD_CHUNK_ERROR = (1U << 15) | 1,
	NBD_CHUNK_ERROR_OFFSET = (1U << 15) | 2,
};

/* Error numbers on the wire. They are the protocol's, not the host's. */
enum nbd_error {
	NBD_SUCCESS = 0,
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

/* The longest string that the protocol allows. */
#define NBD_MAX_STRING			4096U

/* Block sizes of every export, in INFO_BLOCK_SIZE; the preferred one is the backend's. */
#define NBD_BLOCK_MINIMUM		1U
#define NBD_BLOCK_MAXIMUM		(32U << 20)

struct nbd_greeting {
	uint64_t magic;
	uint64_t option_magic;
	uint16_t flags;
} __attribute__((packed));

struct nbd_option_header {
	uint64_t magic;
	uint32_t option;
	uint32_t length;
} __attribute__((packed));

struct nbd_option_reply_header {
	uint64_t magic;
	uint32_t option;
	uint32_t type;
	uint32_t length;
} __attribute__((packed));

struct nbd_export_name_reply {
	uint64_t size;
	uint16_t flags;
	uint8_t zeroes[124];
} __attribute__((packed));

struct nbd_info_export {
	uint16_t type;
	uint64_t size;
	uint16_t flags;
} __attribute__((packed));

struct nbd_info_block_size {
	uint16_t type;
	uint32_t minimum;
	uint32_t preferred;
	uint32_t maximum;
} __attribute__((packed));

struct nbd_request_header {
	uint32_t magic;
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint32_t length;
} __attribute__((packed));

struct nbd_extended_request_header {
	uint32_t magic;
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset;
	uint64_t length;
} __attribute__((packed));

struct nbd_simple_reply {
	uint32_t magic;
	uint32_t error;
	uint64_t cookie;
} __attribute__((packed));

struct nbd_chunk_header {
	uint32_t magic;
	uint16_t flags;
	uint16_t type;
	uint64_t cookie;
	uint32_t length;
} __attribute__((packed));

struct nbd_extended_chunk_header {
	uint32_t magic;
	uint16_t flags;
	uint16_t type;
	uint64_t cookie;
	uint64_t offset;
	uint64_t length;
} __attribute__((packed));

struct nbd_chunk_hole {
	uint64_t offset;
	uint32_t length;
} __attribute__((packed));

struct nbd_chunk_error {
	uint32_t error;
	uint16_t length;
} __attribute__((packed));

struct nbd_extent {
	uint32_t length;
	uint32_t flags;
} __attribute__((packed));

struct nbd_chunk_status_ext {
	uint32_t id;
	uint32_t count;
} __attribute__((packed));

struct nbd_extent_ext {
	uint64_t length;
	uint64_t flags;
} __attribute__((packed));

_Static_assert(sizeof(struct nbd_greeting) == 18, "greeting");
_Static_assert(sizeof(struct nbd_option_header) == 16, "option header");
_Static_assert(sizeof(struct nbd_option_reply_header) == 20, "option reply header");
_Static_assert(sizeof(struct nbd_export_name_reply) == 134, "EXPORT_NAME reply");
_Static_assert(sizeof(struct nbd_info_export) == 12, "INFO_EXPORT");
_Static_assert(sizeof(struct nbd_info_block_size) == 14, "INFO_BLOCK_SIZE");
_Static_assert(sizeof(struct nbd_request_header) == 28, "request");
_Static_assert(sizeof(struct nbd_extended_request_header) == 32, "extended request");
_Static_assert(sizeof(struct nbd_simple_reply) == 16, "simple reply");
_Static_assert(sizeof(struct nbd_chunk_header) == 20, "chunk header");
_Static_assert(sizeof(struct nbd_extended_chunk_header) == 32, "extended chunk header");
_Static_assert(sizeof(struct nbd_chunk_hole) == 12, "hole");
_Static_assert(sizeof(struct nbd_extent_ext) == 16, "extended extent");

#endif
