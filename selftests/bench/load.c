// SPDX-License-Identifier: GPL-2.0-only
/*
 * load: what the module does with the maps of a metadata device when an origin of 16 TiB is
 * attached, beyond reading them, measured with the same code outside of the kernel, with a
 * device in memory. Its checksum takes eight bytes at a time, as that of kernels without
 * CRC-32C instructions in crc32c() does.
 *
 *   load CHECKPOINTS WORDS
 *
 * WORDS of the 63 of each sector have a bit. Prints the processor's seconds: the least of
 * REPEAT measurements (default 5), because nothing makes it faster than it is.
 */
#include <asm/byteorder.h>
#include <linux/bitops.h>
#include <linux/crc32c.h>
#include <linux/kernel.h>
#include <linux/vmalloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "metadata.h"

#define SECTOR		FLEECE_MD_SECTOR_BYTES
#define ORIGIN		(16ULL * 1024 * 1024 * 2048)
#define GRANULE		128
#define POLYNOMIAL	0x82f63b78u

static u32 table[8][256];
static u8 *disk;

static void make_table(void)
{
	unsigned int byte, bit, k;
	u32 crc;

	for (byte = 0; byte < 256; byte++) {
		crc = byte;
		for (bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
		table[0][byte] = crc;
	}
	for (k = 1; k < 8; k++) {
		for (byte = 0; byte < 256; byte++)
			table[k][byte] = table[k - 1][byte] >> 8 ^
					 table[0][table[k - 1][byte] & 0xff];
	}
}

u32 crc32c(u32 crc, const void *data, size_t length)
{
	const u8 *bytes = data;
	u32 words[2];
	u32 k;

	for (; length >= sizeof(words); length -= sizeof(words), bytes += sizeof(words)) {
		memcpy(words, bytes, sizeof(words));
		words[0] ^= crc;
		crc = 0;
		for (k = 0; k < 4; k++)
			crc ^= table[7 - k][words[0] >> 8 * k & 0xff] ^
			       table[3 - k][words[1] >> 8 * k & 0xff];
	}
	while (length--)
		crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 0xff];
	return crc;
}

static void die(const char *why)
{
	fprintf(stderr, "load: %s\n", why);
	exit(1);
}

static int read_disk(void *context, u64 sector, void *data, unsigned int nr_sectors)
{
	(void)context;
	memcpy(data, disk + sector * SECTOR, (size_t)nr_sectors * SECTOR);
	return 0;
}

static int flush_disk(void *context)
{
	(void)context;
	return 0;
}

static const struct fleece_metadata_io io = { .read = read_disk, .flush = flush_disk };

static void fill_slot(const struct fleece_md_root *root, const struct fleece_md_layout *layout,
		      u32 slot, unsigned int nr_words)
{
	u64 sector = fleece_md_fine_start(layout, slot);
	struct fleece_md_map *map;
	unsigned int i;
	__le64 bit;
	u64 s;

	for (s = 0; s < layout->slot_sectors; s++, sector++) {
		map = (struct fleece_md_map *)(disk + sector * SECTOR);
		bit = __cpu_to_le64(1ULL << s % 64);
		for (i = 0; i < nr_words; i++)
			map->words[i * FLEECE_MD_MAP_WORDS / nr_words] = bit;
		fleece_md_seal(root->uuid, sector, root->checkpoints[slot].segment, map);
	}
}

static void make_disk(u32 nr_checkpoints, unsigned int nr_words, struct fleece_md_layout *layout)
{
	static struct fleece_md_root root = {
		.origin_sectors = ORIGIN, .capacity_sectors = ORIGIN, .granule_sectors = GRANULE,
		.region_sectors = FLEECE_MD_REGION_DEFAULT, .generation = 2, .base = 2,
		.state = FLEECE_MD_CLEAN,
	};
	u64 sector;
	u32 i;

	root.nr_slots = nr_checkpoints;
	root.nr_checkpoints = nr_checkpoints;
	root.next_segment = nr_checkpoints + 1;
	fleece_md_layout(&root, layout);
	disk = calloc(layout->nr_sectors, SECTOR);
	if (!disk)
		die("out of memory");
	for (i = 0; i < nr_checkpoints; i++) {
		snprintf(root.checkpoints[i].name, FLEECE_MD_NAME_BYTES, "c%u", i);
		root.checkpoints[i].slot = i;
		root.checkpoints[i].segment = i + 1;
		fill_slot(&root, layout, i, nr_words);
	}
	for (sector = FLEECE_MD_INTENTS_START; sector < layout->slots_start; sector++)
		fleece_md_seal(root.uuid, sector, 0, disk + sector * SECTOR);
	fleece_md_encode(&root, disk);
}

static double seconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* @bits: clear. */
static double measure(const struct fleece_metadata_origin *origin, unsigned long *bits)
{
	struct fleece_metadata *md;
	const char *error;
	double begin = seconds();
	u32 i;

	if (fleece_metadata_open(&io, NULL, origin, &md, &error))
		die(error);
	for (i = 0; i < md->root.nr_checkpoints; i++)
		fleece_metadata_load(md, i, bits);
	begin = seconds() - begin;
	if (md->nr_bad)
		die("a sector is bad");
	fleece_metadata_free(md);
	return begin;
}

int main(int argc, char **argv)
{
	struct fleece_metadata_origin origin = {
		.nr_sectors = ORIGIN, .granule_sectors = GRANULE,
	};
	u32 nr_checkpoints = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned int nr_words = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	unsigned int repeat = getenv("REPEAT") ? strtoul(getenv("REPEAT"), NULL, 10) : 5;
	struct fleece_md_layout layout;
	double took, least = 1e9;
	unsigned long *bits;

	if (!nr_checkpoints || nr_checkpoints > FLEECE_MD_SLOTS_MAX ||
	    nr_words > FLEECE_MD_MAP_WORDS)
		die("see the start of load.c for how it is called");
	make_table();
	make_disk(nr_checkpoints, nr_words, &layout);
	origin.device_sectors = layout.nr_sectors;
	bits = fleece_bits_alloc(ORIGIN / GRANULE);
	if (!bits)
		die("out of memory");
	while (repeat--) {
		took = measure(&origin, bits);
		if (took < least)
			least = took;
	}
	printf("maps of 16 TiB, %u checkpoints, %u of 63 words of each sector with a bit: %.2f s\n",
	       nr_checkpoints, nr_words, least);
	return 0;
}
