// SPDX-License-Identifier: GPL-2.0-only
/*
 * hog MIB: makes memory short. Fills so much of it, each page with what only it has,
 * and looks at all of it. Exit status 0: everything was still there.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../random.h"

static uint64_t *get_memory(size_t bytes)
{
	void *memory;

	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("hog: mmap");
		exit(2);
	}
	return memory;
}

static size_t parse_mib(const char *text)
{
	char *end;
	size_t value = strtoul(text, &end, 10);

	if (end == text || *end) {
		fprintf(stderr, "hog: not a number of MiB: %s\n", text);
		exit(2);
	}
	return value << 20;
}

/* Words of all pages in order, so that none is like another one. */
static void fill(uint64_t *words, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		words[i] = mix64(i);
}

static int check(const uint64_t *words, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		if (words[i] != mix64(i)) {
			fprintf(stderr, "hog: byte %zu has changed\n", i * sizeof(*words));
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t *words;
	size_t count;

	if (argc != 2) {
		fprintf(stderr, "usage: hog MIB\n");
		return 2;
	}
	count = parse_mib(argv[1]) / sizeof(*words);
	words = get_memory(count * sizeof(*words));
	fill(words, count);
	return check(words, count);
}
