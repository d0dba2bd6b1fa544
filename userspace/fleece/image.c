// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, image: reads, judges and makes what is on a metadata device, see image.h.
 * What the sectors mean is in drivers/metadata_format.c, which the module shares.
 */
#include "image.h"

#include <asm/byteorder.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/crc32c.h>

#define CHUNK_SECTORS	2048
#define CHUNK_BYTES	(CHUNK_SECTORS * FLEECE_MD_SECTOR_BYTES)
#define BLOCK_SECTORS	FLEECE_MD_BLOCK_SECTORS
#define BLOCK_WORDS	(BLOCK_SECTORS * FLEECE_MD_MAP_WORDS)
#define BLOCK_BITS	(BLOCK_WORDS * 64ULL)

/* ------------------------- Superblock and table ------------------------- */

static void read_copy(const struct image_io *io, unsigned int index, struct image_copy *copy,
		      struct fleece_md_root *root)
{
	static __u8 bytes[FLEECE_MD_COPY_BYTES];
	__u64 start = fleece_md_copy_start(index);
	int ret = -ENODATA;

	copy->error = "the device ends before it";
	if (start + FLEECE_MD_COPY_SECTORS <= io->nr_sectors) {
		copy->error = "it cannot be read";
		ret = io->read(io->context, start, bytes, FLEECE_MD_COPY_SECTORS);
		if (!ret)
			ret = fleece_md_decode(bytes, index, root, &copy->error);
	}
	copy->result = ret;
	copy->generation = ret && ret != -EOPNOTSUPP ? 0 : root->generation;
}

static void choose_copy(const struct image_io *io, struct image *image)
{
	static struct fleece_md_root roots[2];
	__u64 generations[2];
	int results[2];
	unsigned int i;

	for (i = 0; i < 2; i++) {
		read_copy(io, i, &image->copies[i], &roots[i]);
		generations[i] = image->copies[i].generation;
		results[i] = image->copies[i].result;
	}
	image->chosen = fleece_md_choose(results, generations);
	if (image->chosen >= 0)
		image->root = roots[image->chosen];
}

/* ------------------------- Maps ------------------------- */

/* Words of all sectors of a block. */
struct block {
	__u64 words[BLOCK_WORDS];
};

/* Add a block of a map. @bits: how many there are from the start of the block on. */
static __u64 add_block(const struct image_io *io, const __u8 *uuid, __u64 place, __u32 first,
		       __u32 last, __u64 bits, struct block *block)
{
	struct fleece_md_map maps[BLOCK_SECTORS];
	bool is_readable = !io->read(io->context, place, maps, BLOCK_SECTORS);
	enum fleece_md_verdict verdict;
	__u64 nr_bad = 0;
	unsigned int i, k;
	__u64 *words;

	for (i = 0; i < BLOCK_SECTORS; i++) {
		if (bits <= (__u64)i * FLEECE_MD_MAP_BITS)
			break;
		words = block->words + i * FLEECE_MD_MAP_WORDS;
		verdict = FLEECE_MD_BAD;
		if (is_readable)
			verdict = fleece_md_verify(uuid, place + i, first, last, &maps[i]);
		nr_bad += verdict == FLEECE_MD_BAD;
		for (k = 0; k < FLEECE_MD_MAP_WORDS && verdict != FLEECE_MD_VOID; k++)
			words[k] |= verdict == FLEECE_MD_BAD ? ~0ULL :
							       __le64_to_cpu(maps[i].words[k]);
	}
	return nr_bad;
}

static __u64 count_bits(const struct block *block, __u64 bits)
{
	__u64 count = 0;
	unsigned int i;

	for (i = 0; i < BLOCK_WORDS && i * 64ULL < bits; i++) {
		if (bits - i * 64ULL < 64)
			count += __builtin_popcountll(block->words[i] << (64 - bits % 64));
		else
			count += __builtin_popcountll(block->words[i]);
	}
	return count;
}

static void read_intents(const struct image_io *io, struct image *image, struct block *intents)
{
	const struct fleece_md_root *root = &image->root;
	__u64 regions = (root->origin_sectors + root->region_sectors - 1) / root->region_sectors;
	__u64 b;

	for (b = 0; b * BLOCK_BITS < regions; b++) {
		image->nr_bad_intents += add_block(io, root->uuid,
						   FLEECE_MD_INTENTS_START + b * BLOCK_SECTORS,
						   root->base, root->generation,
						   regions - b * BLOCK_BITS, &intents[b]);
		image->nr_intents += count_bits(&intents[b], regions - b * BLOCK_BITS);
	}
}

static bool has_intent(const struct block *intents, __u64 region)
{
	return intents[region / BLOCK_BITS].words[region % BLOCK_BITS / 64] >> region % 64 & 1;
}

/* What the intents say of the granules of a block of fine bits. */
static void spread_intents(const struct image *image, const struct block *intents, __u64 first,
			   struct block *block)
{
	__u32 granules = image->root.region_sectors / image->root.granule_sectors;
	__u64 i;

	memset(block, 0, sizeof(*block));
	for (i = 0; i < BLOCK_BITS && first + i < image->nr_granules; i++) {
		if (has_intent(intents, (first + i) / granules))
			block->words[i / 64] |= 1ULL << i % 64;
	}
}

/* From the newest to the oldest: each one's changes are also those of the ones before. */
static void read_fine(const struct image_io *io, struct image *image, const struct block *intents)
{
	const struct fleece_md_checkpoint *checkpoint;
	struct block block;
	__u64 b, bits, place;
	__u32 i;

	for (b = 0; b * BLOCK_BITS < image->nr_granules && image->root.nr_checkpoints; b++) {
		bits = image->nr_granules - b * BLOCK_BITS;
		spread_intents(image, intents, b * BLOCK_BITS, &block);
		for (i = image->root.nr_checkpoints; i--;) {
			checkpoint = &image->root.checkpoints[i];
			place = fleece_md_fine_start(&image->layout, checkpoint->slot) +
				b * BLOCK_SECTORS;
			image->maps[i].nr_bad += add_block(io, image->root.uuid, place,
							   checkpoint->segment,
							   checkpoint->segment, bits, &block);
			image->maps[i].changed += count_bits(&block, bits);
		}
	}
}

bool image_has_root(const struct image *image)
{
	return image->chosen >= 0 && !image->copies[image->chosen].result;
}

void image_read_root(const struct image_io *io, struct image *image)
{
	memset(image, 0, sizeof(*image));
	choose_copy(io, image);
	if (!image_has_root(image))
		return;
	fleece_md_layout(&image->root, &image->layout);
	image->nr_granules = (image->root.origin_sectors + image->root.granule_sectors - 1) /
			     image->root.granule_sectors;
	image->is_short = io->nr_sectors < image->layout.nr_sectors;
}

int image_inspect(const struct image_io *io, struct image *image)
{
	struct block *intents;

	image_read_root(io, image);
	if (!image_has_root(image) || image->is_short)
		return 0;
	intents = calloc(image->layout.intent_sectors / BLOCK_SECTORS, sizeof(*intents));
	if (!intents)
		return -ENOMEM;
	read_intents(io, image, intents);
	read_fine(io, image, intents);
	free(intents);
	return 0;
}

/* ------------------------- New metadata ------------------------- */

static int write_zeroes(const struct image_io *io, __u64 end, __u8 *chunk)
{
	__u64 sector;
	int ret = 0;

	memset(chunk, 0, CHUNK_BYTES);
	for (sector = 0; sector < end && !ret; sector += CHUNK_SECTORS)
		ret = io->write(io->context, sector, chunk, CHUNK_SECTORS);
	return ret ? ret : io->flush(io->context);
}

static int write_maps(const struct image_io *io, const __u8 *uuid, __u64 end, __u8 *chunk)
{
	__u64 sector = FLEECE_MD_INTENTS_START;
	unsigned int count, i;
	int ret = 0;

	for (; sector < end && !ret; sector += count) {
		count = end - sector < CHUNK_SECTORS ? end - sector : CHUNK_SECTORS;
		for (i = 0; i < count; i++)
			fleece_md_seal(uuid, sector + i, 0, chunk + i * FLEECE_MD_SECTOR_BYTES);
		ret = io->write(io->context, sector, chunk, count);
	}
	return ret ? ret : io->flush(io->context);
}

int image_create(const struct image_io *io, struct fleece_md_root *root)
{
	struct fleece_md_layout layout;
	__u8 *chunk = malloc(CHUNK_BYTES);
	unsigned int count;
	int ret;

	if (!chunk)
		return -ENOMEM;
	root->state = FLEECE_MD_CLEAN;
	root->generation = 1;
	root->base = 1;
	root->next_segment = 1;
	fleece_md_layout(root, &layout);
	/* Both superblocks, and with them whatever else was there. */
	ret = write_zeroes(io, FLEECE_MD_INTENTS_START, chunk);
	if (!ret)
		ret = write_maps(io, root->uuid, layout.nr_sectors, chunk);
	if (!ret) {
		count = fleece_md_encode(root, chunk);
		ret = io->write(io->context, fleece_md_copy_start(root->generation), chunk, count);
	}
	if (!ret)
		ret = io->flush(io->context);
	free(chunk);
	return ret;
}

/* ------------------------- Without checkpoints ------------------------- */

/* Once for each copy: otherwise the old state would be back if the new one went bad. */
static int commit_both(const struct image_io *io, struct fleece_md_root *root)
{
	static __u8 copy[FLEECE_MD_COPY_BYTES];
	unsigned int i, count;
	int ret = io->flush(io->context);

	for (i = 0; i < 2 && !ret; i++) {
		if (root->generation == FLEECE_MD_NUMBER_MAX)
			return -EOVERFLOW;
		root->generation++;
		root->base = root->generation;
		count = fleece_md_encode(root, copy);
		ret = io->write(io->context, fleece_md_copy_start(root->generation), copy, count);
		if (!ret)
			ret = io->flush(io->context);
	}
	return ret;
}

int image_drop_checkpoints(const struct image_io *io, struct fleece_md_root *root)
{
	root->state = FLEECE_MD_CLEAN;
	root->nr_checkpoints = 0;
	root->has_head_hash = false;
	root->head_hash = 0;
	return commit_both(io, root);
}

int image_change_layout(const struct image_io *io, struct fleece_md_root *root)
{
	struct fleece_md_layout layout;
	__u8 *chunk = calloc(1, CHUNK_BYTES);
	int ret;

	if (!chunk)
		return -ENOMEM;
	fleece_md_layout(root, &layout);
	ret = write_maps(io, root->uuid, layout.nr_sectors, chunk);
	free(chunk);
	return ret ? ret : commit_both(io, root);
}

/* ------------------------- Is it empty? ------------------------- */

/* Nothing, or what image_create() had sealed before the power was cut: a checksum of nothing. */
static bool is_blank(const __u8 *sector)
{
	unsigned int i;

	for (i = sizeof(__le32); i < FLEECE_MD_SECTOR_BYTES; i++) {
		if (sector[i])
			return false;
	}
	return true;
}

static int is_blank_at(const struct image_io *io, __u64 sector, __u64 end, __u8 *chunk)
{
	unsigned int count, i;
	__u32 crc;
	int ret;

	for (; sector < end; sector += count) {
		count = end - sector < CHUNK_SECTORS ? end - sector : CHUNK_SECTORS;
		ret = io->read(io->context, sector, chunk, count);
		if (ret)
			return ret;
		for (i = 0; i < count; i++) {
			memcpy(&crc, chunk + i * FLEECE_MD_SECTOR_BYTES, sizeof(crc));
			if ((crc && sector + i < FLEECE_MD_INTENTS_START) ||
			    !is_blank(chunk + i * FLEECE_MD_SECTOR_BYTES))
				return 0;
		}
	}
	return 1;
}

int image_is_empty(const struct image_io *io)
{
	__u64 end = io->nr_sectors;
	__u64 head = FLEECE_MD_INTENTS_START + CHUNK_SECTORS;
	__u8 *chunk = malloc(CHUNK_BYTES);
	int ret;

	if (!chunk)
		return -ENOMEM;
	ret = is_blank_at(io, 0, head < end ? head : end, chunk);
	if (ret == 1)
		ret = is_blank_at(io, end < CHUNK_SECTORS ? 0 : end - CHUNK_SECTORS, end, chunk);
	free(chunk);
	return ret;
}

/* ------------------------- The origin ------------------------- */

void image_identity(char *identity, const char *name, const char *start)
{
	int length = snprintf(identity, FLEECE_MD_IDENTITY_BYTES, "%s+%s", name, start);

	if (length >= FLEECE_MD_IDENTITY_BYTES)
		snprintf(identity, FLEECE_MD_IDENTITY_BYTES, "%.80s#%08x+%.32s", name,
			 crc32c(~0U, name, strlen(name)), start);
}
