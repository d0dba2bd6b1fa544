// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, metadata_fuzz: damages metadata in all kinds of ways and inspects it as
 * `fleece metadata check` does.
 *
 *   metadata_fuzz                          with FUZZ_RUNS runs (default 6000) from FUZZ_SEED
 *   metadata_fuzz FILE [newer|featured|invalid]     only write the metadata that it begins with
 *
 * Whatever has happened to it: nothing crashes; what is taken for good is what it was;
 * and no checkpoint has fewer changes than it had.
 */
#include <asm/byteorder.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../random.h"
#include "../tap.h"
#include "image.h"

#define SECTOR		FLEECE_MD_SECTOR_BYTES
#define GRANULES	16384
#define GRANULE		128
#define SLOTS		4
#define NR_SECTORS	(4096 + 8 + SLOTS * 8)
#define NEWEST		12
#define BASE		8

static __u8 good[NR_SECTORS][SECTOR];
static __u8 mutated[NR_SECTORS][SECTOR];
static struct image image, before;
/* Of the copies: what was committed. */
static struct fleece_md_root roots[2];
static __u64 device_sectors;
static uint64_t state;

/* ------------------------- Good metadata ------------------------- */

static int read_good(void *context, __u64 sector, void *data, unsigned int count)
{
	__u8 (*sectors)[SECTOR] = context;

	if (sector + count > device_sectors)
		abort();
	memcpy(data, sectors[sector], (size_t)count * SECTOR);
	return 0;
}

static int write_good(void *context, __u64 sector, const void *data, unsigned int count)
{
	__u8 (*sectors)[SECTOR] = context;

	memcpy(sectors[sector], data, (size_t)count * SECTOR);
	return 0;
}

static int flush_good(void *context)
{
	(void)context;
	return 0;
}

static struct image_io io_of(void *sectors, __u64 nr_sectors)
{
	device_sectors = nr_sectors;
	return (struct image_io){
		.context = sectors, .nr_sectors = nr_sectors, .read = read_good,
		.write = write_good, .flush = flush_good,
	};
}

/* Some bits of a sector of a map. */
static void set_map(__u64 sector, __u32 tag, unsigned int nr_bits)
{
	struct fleece_md_map *map = (struct fleece_md_map *)good[sector];
	unsigned int bit;

	memset(map, 0, sizeof(*map));
	while (nr_bits--) {
		/* Never the same twice: 13 has no factor of 4032 but 1. */
		bit = nr_bits * 13 % FLEECE_MD_MAP_BITS;
		map->words[bit / 64] |= __cpu_to_le64(1ULL << bit % 64);
	}
	fleece_md_seal(roots[0].uuid, sector, tag, map);
}

static void add_checkpoint(struct fleece_md_root *root, const char *name, __u32 segment,
			   __u32 slot)
{
	struct fleece_md_checkpoint *checkpoint = &root->checkpoints[root->nr_checkpoints++];

	snprintf(checkpoint->name, sizeof(checkpoint->name), "%s", name);
	memset(checkpoint->uuid, segment, sizeof(checkpoint->uuid));
	checkpoint->segment = segment;
	checkpoint->slot = slot;
}

static void commit(unsigned int index, __u64 generation)
{
	struct fleece_md_root *root = &roots[index];
	__u8 copy[FLEECE_MD_COPY_BYTES];

	*root = roots[0];
	root->generation = generation;
	fleece_md_encode(root, copy);
	memcpy(good[fleece_md_copy_start(generation)], copy, sizeof(copy));
}

static void make_good(enum fleece_md_state how)
{
	struct fleece_md_root *root = &roots[0];
	struct image_io io = io_of(good, NR_SECTORS);
	unsigned int i;

	root->origin_sectors = (__u64)GRANULES * GRANULE - 5;
	root->capacity_sectors = (__u64)GRANULES * GRANULE;
	root->granule_sectors = GRANULE;
	root->region_sectors = GRANULE;
	root->nr_slots = SLOTS;
	memcpy(root->uuid, "sixteen bytes...", sizeof(root->uuid));
	snprintf(root->identity, sizeof(root->identity), "wwid:1+0");
	if (image_create(&io, root))
		abort();
	root->state = how;
	root->base = BASE;
	root->next_segment = 12;
	add_checkpoint(root, "one", 3, 2);
	add_checkpoint(root, "two", 5, 0);
	add_checkpoint(root, "three", 9, 3);
	commit(1, NEWEST - 1);
	commit(0, NEWEST);
	/* Intents of several generations, and void ones. */
	for (i = 0; i < 4; i++)
		set_map(FLEECE_MD_INTENTS_START + i, NEWEST + 1 - 3 * i, 0);
	set_map(FLEECE_MD_INTENTS_START, NEWEST, 20);
	set_map(FLEECE_MD_INTENTS_START + 1, BASE, 6);
	set_map(FLEECE_MD_INTENTS_START + 2, BASE - 1, 30);
	for (i = 0; i < 5; i++) {
		set_map(FLEECE_MD_INTENTS_START + 8 + 16 + i, 3, 100 * i);
		set_map(FLEECE_MD_INTENTS_START + 8 + i, i % 2 ? 5 : 1, 50);
		set_map(FLEECE_MD_INTENTS_START + 8 + 24 + i, 9, i == 2 ? 7 : 0);
	}
}

/* ------------------------- Damage ------------------------- */

/* A sector that means something, mostly. */
static unsigned int some_sector(void)
{
	switch (random_below(&state, 4)) {
	case 0:
		return random_below(&state, 2) * FLEECE_MD_COPY_DISTANCE + random_below(&state, 2);
	case 1:
		return FLEECE_MD_INTENTS_START + random_below(&state, 6);
	case 2:
		return FLEECE_MD_INTENTS_START + 8 + random_below(&state, SLOTS * 8);
	default:
		return random_below(&state, NR_SECTORS);
	}
}

static void damage_once(void)
{
	unsigned int sector = some_sector(), other = some_sector(), i;
	__u8 bytes[SECTOR];

	switch (random_below(&state, 6)) {
	case 0:
		mutated[sector][random_below(&state, SECTOR)] ^= 1 << random_below(&state, 8);
		break;
	case 1:
		mutated[sector][random_below(&state, SECTOR)] = random_below(&state, 256);
		break;
	case 2:
		memset(mutated[sector], random_below(&state, 2) ? 0 : 0xff, SECTOR);
		break;
	case 3:
		memcpy(bytes, mutated[sector], SECTOR);
		memcpy(mutated[sector], mutated[other], SECTOR);
		memcpy(mutated[other], bytes, SECTOR);
		break;
	case 4:
		memcpy(mutated[sector], mutated[other], 1 + random_below(&state, SECTOR - 1));
		break;
	default:
		for (i = random_below(&state, SECTOR); i < SECTOR; i++)
			mutated[sector][i] = random_below(&state, 256);
	}
}

/* Nonsense with a good checksum, as only a program could write it. */
static void forge(void)
{
	unsigned int sector = some_sector();
	unsigned int place = 8 + random_below(&state, SECTOR - 8);
	__u32 tag = random_below(&state, 2) ? random_below(&state, 16) : NEWEST;

	/* The fields of the superblock are all in its first part. */
	if (random_below(&state, 2))
		place = 16 + random_below(&state, 128);
	mutated[sector][place] = random_below(&state, 3) ? random_below(&state, 256) : 0xff;
	fleece_md_seal(roots[0].uuid, sector, tag, mutated[sector]);
}

/* ------------------------- Judging ------------------------- */

static bool is_whole(void)
{
	__u64 nr_bad = image.nr_bad_intents;
	__u32 i;

	if (image.chosen < 0 || image.copies[image.chosen].result || image.is_short)
		return false;
	for (i = 0; i < image.root.nr_checkpoints; i++)
		nr_bad += image.maps[i].nr_bad;
	return !nr_bad;
}

/* What is wrong with the judgement, or NULL. */
static const char *misjudged(void)
{
	bool is_same = is_whole() && image.chosen == before.chosen;
	__u32 i;

	if (image.chosen < 0 || image.copies[image.chosen].result)
		return NULL;
	if (memcmp(&image.root, &roots[image.chosen], sizeof(image.root)))
		return "superblock or table are taken for good, and were changed";
	if (image.is_short)
		return NULL;
	for (i = 0; i < image.root.nr_checkpoints; i++) {
		if (image.maps[i].changed < before.maps[i].changed)
			return "a checkpoint has fewer changes";
		if (is_same && image.maps[i].changed != before.maps[i].changed)
			return "maps are taken for good, and were changed";
	}
	return NULL;
}

static unsigned long fuzz(unsigned long runs, void (*change)(void), bool is_judged)
{
	struct image_io io;
	unsigned long nr_whole = 0, run;
	const char *error = NULL;
	unsigned int times;

	for (run = 0; run < runs && !error; run++) {
		memcpy(mutated, good, sizeof(good));
		for (times = 1 + random_below(&state, 4); times; times--)
			change();
		io = io_of(mutated, random_below(&state, 50) ? NR_SECTORS :
				    random_below(&state, NR_SECTORS));
		if (image_inspect(&io, &image))
			abort();
		nr_whole += is_whole();
		if (is_judged)
			error = misjudged();
		if (error)
			printf("# run %lu: %s\n", run, error);
	}
	tap_ok(!error && nr_whole && nr_whole < runs, "%lu pieces of %s metadata, %lu of them whole",
	       runs, is_judged ? "damaged" : "forged", nr_whole);
	return nr_whole;
}

static int write_file(const char *path, const char *how)
{
	struct fleece_md_superblock *newest = (struct fleece_md_superblock *)good[0];
	FILE *file = fopen(path, "wb");

	make_good(!strcmp(how, "invalid") ? FLEECE_MD_INVALID : FLEECE_MD_DIRTY);
	if (!strcmp(how, "newer"))
		newest->version = __cpu_to_le32(2);
	if (!strcmp(how, "featured"))
		newest->ro_compat = __cpu_to_le64(1ULL << 63);
	fleece_md_seal(roots[0].uuid, 0, NEWEST, good[0]);
	if (!file)
		return 1;
	return fwrite(good, sizeof(good), 1, file) != 1 || fclose(file) ? 1 : 0;
}

int main(int argc, char **argv)
{
	const char *runs = getenv("FUZZ_RUNS"), *seed = getenv("FUZZ_SEED");
	unsigned long count = runs ? strtoul(runs, NULL, 0) : 6000;
	struct image_io io = io_of(good, NR_SECTORS);

	if (argc > 1)
		return write_file(argv[1], argc > 2 ? argv[2] : "");
	state = seed ? strtoull(seed, NULL, 0) : 1;
	printf("# seed %" PRIu64 "\n", state);
	make_good(FLEECE_MD_DIRTY);
	if (image_inspect(&io, &before))
		return 1;
	image = before;
	tap_ok(is_whole() && before.root.nr_checkpoints == 3 && before.nr_intents == 26 &&
	       before.maps[0].changed == 20 + 100 + 200 + 300 + 39 &&
	       before.maps[1].changed == 20 + 50 + 7 + 50 && before.maps[2].changed == 26 + 7, "what it begins with is good: %llu, %llu, %llu",
	       before.maps[0].changed, before.maps[1].changed, before.maps[2].changed);
	fuzz(count, damage_once, true);
	fuzz(count, forge, false);
	return tap_end();
}
