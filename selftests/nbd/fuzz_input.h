/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nbd fuzzing, input: what the fuzzer's bytes mean. A head says how the server is
 * set up and what happens to it; all that follows is what the client sends.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_HOLES	(1U << 0)
#define FUZZ_MULTI_CONN	(1U << 1)
#define FUZZ_READ_ONCE	(1U << 2)
#define FUZZ_TLS	(1U << 3)
#define FUZZ_BREAK	(1U << 4)
#define FUZZ_STOP	(1U << 5)

/* Backends to choose from. */
#define FUZZ_BACKENDS	4

/**
 * struct fuzz_head - in front of what the client sends
 * @flags: FUZZ_*.
 * @backend: modulo FUZZ_BACKENDS.
 * @event_at: number of reads from the client after which FUZZ_BREAK and FUZZ_STOP
 *	happen.
 * @death_at: big-endian; the client is gone when it has got so many bytes; 0: never.
 */
struct fuzz_head {
	uint8_t flags;
	uint8_t backend;
	uint8_t event_at;
	uint16_t death_at;
} __attribute__((packed));

/* Longest input. */
#define FUZZ_INPUT_MAX	8192

/**
 * LLVMFuzzerMutate() - libFuzzer's own changes
 * @data: bytes to change.
 * @size: their number.
 * @max_size: room for them.
 *
 * Return: their new number.
 */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#endif
