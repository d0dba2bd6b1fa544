// SPDX-License-Identifier: GPL-2.0-only
/*
 * memory: see memory.h. A piece is preceded by a header that the address sanitizer
 * guards like the space around any other piece.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sanitizer/asan_interface.h>

#include "map.h"
#include "memory.h"

#define GARBAGE		0xa5

/* The size keeps the alignment that malloc() gives. */
struct header {
	enum memory_kind kind __attribute__((aligned(16)));
};

static unsigned long allocations;
static unsigned long fail_at;
static long pieces;

void *unit_alloc(enum memory_kind kind, size_t bytes, bool is_zero, unsigned int gfp)
{
	struct header *header;

	if (!gfp)
		abort();
	if (++allocations == fail_at)
		return NULL;
	header = malloc(sizeof(*header) + bytes);
	if (!header)
		abort();
	header->kind = kind;
	memset(header + 1, is_zero ? 0 : GARBAGE, bytes);
	ASAN_POISON_MEMORY_REGION(header, sizeof(*header));
	pieces++;
	return header + 1;
}

void *unit_alloc_array(size_t count, size_t bytes, bool is_zero, unsigned int gfp)
{
	size_t total;

	/* More than this the kernel refuses to allocate in one piece. */
	if (__builtin_mul_overflow(count, bytes, &total) || total > INT32_MAX)
		return NULL;
	return unit_alloc(MEMORY_SLAB_OR_VIRTUAL, total, is_zero, gfp);
}

void *fleece_map_alloc(u64 count, size_t size)
{
	size_t total;

	if (__builtin_mul_overflow(count, size, &total))
		return NULL;
	return unit_alloc(MEMORY_VIRTUAL, total, true, 1);
}

void unit_free(enum memory_kind kind, const void *memory)
{
	struct header *header;

	if (!memory)
		return;
	header = (struct header *)memory - 1;
	ASAN_UNPOISON_MEMORY_REGION(header, sizeof(*header));
	if (header->kind != kind) {
		fprintf(stderr, "memory of kind %d is given back as kind %d\n", header->kind, kind);
		abort();
	}
	pieces--;
	free(header);
}

void unit_fail_allocation(unsigned long nth)
{
	fail_at = nth ? allocations + nth : 0;
}

unsigned long unit_allocations(void)
{
	return allocations;
}

long unit_pieces(void)
{
	return pieces;
}
