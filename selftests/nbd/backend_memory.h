/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nbd tests: a backend without a kernel module. Its data is a pattern of the
 * offset, its maps are given by a text, so that devices of any size cost
 * nothing. The text, in commas:
 *
 *   mem:size=64M          size in bytes; K, M, G, T may follow any number
 *   cluster=64K           unit of releases (default 64K)
 *   cp=NAME[/A-B]...      a checkpoint, with the ranges that changed since
 *   stripes=NAME/UNIT     a checkpoint where every other UNIT changed
 *   here=NAME             a checkpoint made at this very moment
 *   since=NAME            named in the description
 *   denied=A-B            a range that is not accessible
 *   lost=A-B              a range that is not accessible, as it is lost: EIO
 *   bad=A-B               a range that a disk cannot read, which no map tells
 *   zero=A-B              a range of zeroes
 *   block=BYTES           unit of reads (default 1); others end the program
 *   delay=MS              each read takes so long
 *   plain                 a device without maps and releases
 *   cached=UNIT           after plain: of every second UNIT, reads need not wait
 *
 * 8 bytes at offset P, P a multiple of 8, are P * 0x9e3779b97f4a7c15, big-endian.
 */
#ifndef BACKEND_MEMORY_H
#define BACKEND_MEMORY_H

#include "backend.h"

/**
 * backend_memory_open() - a backend as the text says
 * @path: the text.
 * @backend: set to the backend, which the caller closes.
 *
 * Return: 0, -EINVAL for a malformed text, -ENOMEM.
 */
int backend_memory_open(const char *path, struct backend **backend);

/**
 * backend_memory_fill() - what a range contains, whether or not it can be read
 * @backend: of this kind.
 * @buffer: gets the bytes.
 * @offset: first byte.
 * @length: bytes.
 */
void backend_memory_fill(struct backend *backend, void *buffer, uint64_t offset, uint32_t length);

/**
 * backend_memory_break() - break all backends of this kind
 *
 * Context: also a signal handler.
 */
void backend_memory_break(void);

/** backend_memory_mend() - make them whole again */
void backend_memory_mend(void);

/** backend_memory_reads() - bytes read from all of them so far */
unsigned long long backend_memory_reads(void);

#endif
