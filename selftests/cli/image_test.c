// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, image: cuts the power at each write of what changes metadata as a whole. What
 * is left must be good metadata, of before or of after, or an empty device.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../tap.h"
#include "image.h"

#define SECTOR		FLEECE_MD_SECTOR_BYTES
#define NR_SECTORS	12288
#define GRANULE		128
#define SLOTS		4
#define ORIGIN		(16384ULL * GRANULE)
#define LARGER		(65536ULL * GRANULE)

static __u8 device[NR_SECTORS][SECTOR];
/* Sectors that can be written until the power is cut. */
static unsigned int sectors_left;

static int read_sectors(void *context, __u64 sector, void *data, unsigned int count)
{
	(void)context;
	memcpy(data, device[sector], (size_t)count * SECTOR);
	return 0;
}

/* What does not fit any more is lost. */
static int write_sectors(void *context, __u64 sector, const void *data, unsigned int count)
{
	unsigned int fits = count < sectors_left ? count : sectors_left;

	(void)context;
	memcpy(device[sector], data, (size_t)fits * SECTOR);
	sectors_left -= fits;
	return fits < count ? -EIO : 0;
}

static int flush(void *context)
{
	(void)context;
	return 0;
}

static const struct image_io io = {
	.nr_sectors = NR_SECTORS, .read = read_sectors, .write = write_sectors, .flush = flush,
};

static void set_up_root(struct fleece_md_root *root)
{
	memset(root, 0, sizeof(*root));
	root->origin_sectors = ORIGIN;
	root->capacity_sectors = ORIGIN;
	root->granule_sectors = GRANULE;
	root->region_sectors = GRANULE;
	root->nr_slots = SLOTS;
	memcpy(root->uuid, "sixteen bytes...", sizeof(root->uuid));
}

/* Metadata with a checkpoint, all intents and fine bits set, in use when the power was cut. */
static void set_up_metadata(struct fleece_md_root *root)
{
	static __u8 copy[FLEECE_MD_COPY_BYTES];
	struct fleece_md_layout layout;
	struct fleece_md_map map;
	unsigned int i;

	memset(device, 0, sizeof(device));
	sectors_left = -1U;
	set_up_root(root);
	image_create(&io, root);
	fleece_md_layout(root, &layout);
	root->state = FLEECE_MD_DIRTY;
	root->nr_checkpoints = 1;
	root->next_segment = 2;
	memset(&root->checkpoints[0], 0, sizeof(root->checkpoints[0]));
	root->checkpoints[0].segment = 1;
	root->checkpoints[0].name[0] = 'c';
	for (i = 0; i < 2; i++) {
		root->generation++;
		fleece_md_encode(root, copy);
		memcpy(device[fleece_md_copy_start(root->generation)], copy, sizeof(copy));
	}
	for (i = FLEECE_MD_INTENTS_START; i < layout.nr_sectors; i++) {
		memset(&map, 0xff, sizeof(map));
		fleece_md_seal(root->uuid, i, i < layout.slots_start ? root->generation : 1, &map);
		memcpy(device[i], &map, sizeof(map));
	}
}

/* As found, with what it says of its maps: 0 or 1 checkpoint, or -1: no metadata. */
static int found(struct image *image)
{
	if (image_inspect(&io, image) || !image_has_root(image) || image->is_short)
		return -1;
	return image->root.nr_checkpoints;
}

static void test_create(void)
{
	static struct fleece_md_root root;
	static struct image image;
	unsigned int at, nr_lost = 0;
	int ret = -EIO;

	/* Zeroes come first, on a device of zeroes. */
	for (at = FLEECE_MD_INTENTS_START - 1; ret; at++) {
		memset(device, 0, sizeof(device));
		set_up_root(&root);
		sectors_left = at;
		ret = image_create(&io, &root);
		nr_lost += found(&image) < 0 ? image_is_empty(&io) != 1 : image.nr_intents != 0;
	}
	tap_ok(!nr_lost && at > FLEECE_MD_INTENTS_START + SLOTS * 8,
	       "cut at any of %u sectors, the creation can begin anew", at - 1);
	tap_ok(found(&image) == 0, "uncut, it is metadata");
	device[FLEECE_MD_INTENTS_START][4] = 1;
	memset(device, 0, FLEECE_MD_INTENTS_START * SECTOR);
	tap_ok(!image_is_empty(&io), "maps that somebody has used are not taken for a creation");
}

static void test_drop(void)
{
	static struct fleece_md_root root;
	static struct image image;
	unsigned int at, nr_bad = 0;
	int ret = -EIO, now;

	for (at = 0; ret; at++) {
		set_up_metadata(&root);
		if (!at)
			tap_ok(found(&image) == 1 && image.nr_intents == ORIGIN / GRANULE,
			       "there is a checkpoint, and everything has an intent");
		sectors_left = at;
		ret = image_drop_checkpoints(&io, &root);
		now = found(&image);
		nr_bad += now < 0 || (now == 0 && image.nr_intents);
		if (at >= 8 && now)
			nr_bad++;
	}
	tap_ok(!nr_bad && at > 2,
	       "cut at each of %u sectors, the checkpoint is there or properly dropped", at - 1);
	tap_ok(found(&image) == 0 && image.root.state == FLEECE_MD_CLEAN &&
	       !image.nr_bad_intents, "uncut, it is dropped");
	device[fleece_md_copy_start(image.root.generation)][20] ^= 1;
	tap_ok(found(&image) == 0, "and it does not come back when a copy goes bad");
	device[fleece_md_copy_start(image.root.generation)][20] ^= 1;
	tap_ok(found(&image) < 0, "two bad copies are refused");
}

static void test_numbers_end(void)
{
	static struct fleece_md_root root;
	static struct image image;

	set_up_metadata(&root);
	root.generation = FLEECE_MD_NUMBER_MAX;
	tap_ok(image_drop_checkpoints(&io, &root) == -EOVERFLOW && found(&image) == 1,
	       "generations do not wrap");
}

static void test_change_layout(void)
{
	static struct fleece_md_root root;
	static struct image image;
	unsigned int at, nr_bad = 0;
	int ret = -EIO;

	for (at = 0; ret; at++) {
		set_up_metadata(&root);
		image_drop_checkpoints(&io, &root);
		root.capacity_sectors = LARGER;
		root.origin_sectors = LARGER;
		sectors_left = at;
		ret = image_change_layout(&io, &root);
		nr_bad += found(&image) != 0;
	}
	tap_ok(!nr_bad && at > SLOTS * 8,
	       "cut at each of %u sectors, there is the one layout or the other", at - 1);
	tap_ok(found(&image) == 0 && image.root.capacity_sectors == LARGER &&
	       !image.nr_intents && !image.nr_bad_intents, "uncut, it is the other one");
}

int main(void)
{
	test_create();
	test_drop();
	test_numbers_end();
	test_change_layout();
	return tap_end();
}
