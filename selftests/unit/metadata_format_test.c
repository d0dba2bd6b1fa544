// SPDX-License-Identifier: GPL-2.0-only
/*
 * This test will check the format of the metadata device: the places that
 * docs/metadata.rst gives, that what is encoded is decoded again, and that nothing
 * that was damaged, torn or is nonsense is taken for good.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <asm/byteorder.h>
#include <linux/crc32c.h>
#include <linux/kernel.h>

#include "metadata_format.h"
#include "unit.h"

#define SECTOR		FLEECE_MD_SECTOR_BYTES
#define TIB		(1ULL << 31)

/* Room for a copy, on the heap as far as the sanitizer is concerned. */
struct copy {
	__u8 bytes[FLEECE_MD_COPY_BYTES];
};

static struct fleece_md_root root;
static struct fleece_md_root other;
static struct copy copy;
static const char *error;

/* ------------------------- Helpers ------------------------- */

static void random_bytes(void *bytes, size_t count)
{
	__u8 *byte = bytes;

	while (count--)
		*byte++ = unit_random(256);
}

static void random_sizes(void)
{
	root.granule_sectors = FLEECE_MD_GRANULE_MIN << unit_random(13);
	root.region_sectors = root.granule_sectors;
	while (root.region_sectors < FLEECE_MD_REGION_MAX && !unit_chance(4))
		root.region_sectors *= 2;
	root.capacity_sectors = 1 + unit_random(FLEECE_MD_ORIGIN_MAX);
	root.origin_sectors = 1 + unit_random(root.capacity_sectors);
	root.nr_slots = 1 + unit_random(FLEECE_MD_SLOTS_MAX);
}

static void add_checkpoint(__u32 number)
{
	struct fleece_md_checkpoint *checkpoint = &root.checkpoints[number];
	__u32 last = number ? root.checkpoints[number - 1].segment : 0;

	snprintf(checkpoint->name, sizeof(checkpoint->name), "cp-%u.%llu", number,
		 (unsigned long long)unit_random(1000));
	random_bytes(checkpoint->uuid, sizeof(checkpoint->uuid));
	checkpoint->created = unit_random(1ULL << 40);
	checkpoint->segment = last + 1 + unit_random(3);
	checkpoint->slot = number;
	checkpoint->is_invalid = unit_chance(4);
	root.next_segment = checkpoint->segment + 1;
}

static void random_root(__u32 nr_checkpoints)
{
	__u32 i;

	memset(&root, 0, sizeof(root));
	random_sizes();
	root.nr_slots = max(root.nr_slots, nr_checkpoints);
	random_bytes(root.uuid, sizeof(root.uuid));
	root.state = FLEECE_MD_CLEAN + unit_random(3);
	root.generation = 1 + unit_random(FLEECE_MD_NUMBER_MAX);
	root.base = unit_random(root.generation + 1);
	root.compat = unit_random(2) << 40;
	root.ro_compat = unit_random(2) << 50;
	root.written = unit_random(1ULL << 40);
	root.has_head_hash = unit_chance(2);
	root.head_hash = root.has_head_hash ? unit_random(1ULL << 32) : 0;
	snprintf(root.identity, sizeof(root.identity), "wwid:%llu",
		 (unsigned long long)unit_random(1ULL << 60));
	root.next_segment = 1;
	root.nr_checkpoints = nr_checkpoints;
	for (i = 0; i < nr_checkpoints; i++)
		add_checkpoint(i);
}

static int decode(void)
{
	return fleece_md_decode(&copy, root.generation % 2, &other, &error);
}

/* Sectors of a copy that are in use. */
static unsigned int used_sectors(void)
{
	return 1 + (root.nr_checkpoints + 3) / 4;
}

static void reseal(unsigned int sector)
{
	fleece_md_seal(root.uuid, fleece_md_copy_start(root.generation) + sector, root.generation,
		       copy.bytes + sector * SECTOR);
}

/* After a change of the table. */
static void reseal_table(void)
{
	struct fleece_md_superblock *super = (struct fleece_md_superblock *)&copy;
	unsigned int i;

	for (i = 1; i < used_sectors(); i++)
		reseal(i);
	super->table_crc = __cpu_to_le32(~crc32c(~0U, copy.bytes + SECTOR,
						 (used_sectors() - 1) * SECTOR));
	reseal(0);
}

/* ------------------------- Cases ------------------------- */

static void test_crc32c(void)
{
	static const __u8 zeroes[32];

	/* The check value of the catalogues, and one of RFC 3720. */
	require(~crc32c(~0U, "123456789", 9) == 0xe3069283, "check value");
	require(~crc32c(~0U, zeroes, sizeof(zeroes)) == 0x8a9136aa, "zeroes");
	require(crc32c(crc32c(7, "ab", 2), "c", 1) == crc32c(7, "abc", 3), "in pieces");
}

/* The numbers of docs/metadata.rst. */
static void test_places(void)
{
#define AT(type, field, place)	static_assert(offsetof(struct fleece_md_##type, field) == (place))
#define SUPER(field, place)	AT(superblock, field, place)
#define ENTRY(field, place)	AT(entry, field, place)
	SUPER(magic, 8);
	SUPER(version, 16);
	SUPER(state, 20);
	SUPER(compat, 24);
	SUPER(ro_compat, 32);
	SUPER(incompat, 40);
	SUPER(uuid, 48);
	SUPER(generation, 64);
	SUPER(nr_sectors, 72);
	SUPER(origin_sectors, 80);
	SUPER(capacity_sectors, 88);
	SUPER(granule_sectors, 96);
	SUPER(region_sectors, 100);
	SUPER(nr_slots, 104);
	SUPER(nr_checkpoints, 108);
	SUPER(next_segment, 112);
	SUPER(base, 116);
	SUPER(written, 120);
	SUPER(flags, 128);
	SUPER(head_hash, 132);
	SUPER(table_crc, 136);
	SUPER(identity, 144);
	SUPER(padding, 272);
	ENTRY(uuid, 64);
	ENTRY(created, 80);
	ENTRY(segment, 88);
	ENTRY(slot, 92);
	ENTRY(flags, 96);
	ENTRY(reserved, 100);
	require(fleece_md_copy_start(4) == 0 && fleece_md_copy_start(5) == 2048, "copies");
}

/* A superblock like those of file systems: it ends with its own checksum. */
static __u64 hash_of_superblock(__u8 content)
{
	__u8 head[4096] = { 0 };
	__u8 *superblock = head + 1024;
	__le32 crc;

	memset(superblock, content, 1020);
	crc = __cpu_to_le32(crc32c(~0U, superblock, 1020));
	memcpy(superblock + 1020, &crc, sizeof(crc));
	require(fleece_md_hash(fleece_md_hash(0, head, 2048), head + 2048, 2048) ==
		fleece_md_hash(0, head, sizeof(head)), "in parts it is another one");
	return fleece_md_hash(0, head, sizeof(head));
}

static void test_hash(void)
{
	static const __u8 known[16] = { 1, 0, 0, 0, 0, 0, 0, 0x80, 0xff };

	require(fleece_md_hash(0, known, 8) == 0x1e3779b9617d05acULL, "%llx",
		(unsigned long long)fleece_md_hash(0, known, 8));
	require(fleece_md_hash(0, known, 16) == 0x6a280f302efbacffULL, "%llx",
		(unsigned long long)fleece_md_hash(0, known, 16));
	require((__u32)hash_of_superblock(1) != (__u32)hash_of_superblock(2),
		"what is in a superblock makes no difference");
}

static void check_size(__u64 capacity, __u32 granule, __u64 intent_kib, __u64 slot_kib,
		       __u64 mib)
{
	struct fleece_md_layout layout;

	memset(&root, 0, sizeof(root));
	root.origin_sectors = capacity;
	root.capacity_sectors = capacity;
	root.granule_sectors = granule;
	root.region_sectors = max(granule, FLEECE_MD_REGION_DEFAULT);
	root.nr_slots = 64;
	require(!fleece_md_geometry_error(&root), "%s", fleece_md_geometry_error(&root));
	fleece_md_layout(&root, &layout);
	require(layout.intent_sectors == intent_kib * 2, "%llu sectors of intents",
		layout.intent_sectors);
	require(layout.slot_sectors / 2 == slot_kib, "%llu sectors of a slot", layout.slot_sectors);
	require(layout.nr_sectors / 2048 == mib, "%llu sectors", layout.nr_sectors);
}

static void test_sizes(void)
{
	check_size(1, 8, 4, 4, 2);
	check_size(100 * TIB / 1024, 128, 4, 204, 14);
	check_size(TIB, 128, 36, 2084, 132);
	check_size(16 * TIB, 128, 524, 33292, 2083);
	check_size(64 * TIB, 128, 2084, 133156, 8326);
	check_size(64 * TIB, 8, 2084, 2130444, 133156);
	check_size(64 * TIB, FLEECE_MD_GRANULE_MAX, 524, 524, 35);
}

/* By the formula as it stands in the document, slowly. */
static void test_layout(void)
{
	struct fleece_md_layout layout;
	__u64 intents, slot;
	int i;

	for (i = 0; i < 20000; i++) {
		random_root(0);
		fleece_md_layout(&root, &layout);
		intents = DIV_ROUND_UP(root.capacity_sectors, (__u64)root.region_sectors);
		slot = DIV_ROUND_UP(root.capacity_sectors, (__u64)root.granule_sectors);
		intents = 8 * DIV_ROUND_UP(DIV_ROUND_UP(intents, 4032), 8);
		slot = 8 * DIV_ROUND_UP(DIV_ROUND_UP(slot, 4032), 8);
		require(layout.intent_sectors == intents && layout.slot_sectors == slot, "lengths");
		require(layout.nr_sectors == 4096 + intents + root.nr_slots * slot, "size");
		require(fleece_md_fine_start(&layout, root.nr_slots) == layout.nr_sectors, "end");
	}
}

static void test_round_trip(void)
{
	struct copy again;
	unsigned int sectors;
	int i;

	for (i = 0; i < 2000; i++) {
		random_root(i % 257);
		sectors = fleece_md_encode(&root, &copy);
		require(sectors % 8 == 0 && sectors >= used_sectors() &&
			sectors < used_sectors() + 8 && sectors <= FLEECE_MD_COPY_SECTORS,
			"%u sectors for %u checkpoints", sectors, root.nr_checkpoints);
		/* What is not written is what an earlier commit has left. */
		random_bytes(copy.bytes + sectors * SECTOR, sizeof(copy) - sectors * SECTOR);
		require(!decode(), "%u checkpoints: %s", root.nr_checkpoints, error);
		require(!memcmp(&root, &other, sizeof(root)), "decoded to something else");
		require(fleece_md_encode(&other, &again) == sectors &&
			!memcmp(&copy, &again, sectors * SECTOR), "encoded to something else");
	}
}

static void test_flipped(void)
{
	size_t i;

	random_root(21);
	fleece_md_encode(&root, &copy);
	for (i = 0; i < used_sectors() * SECTOR * 8; i++) {
		copy.bytes[i / 8] ^= 1 << i % 8;
		require(decode() < 0 && error, "bit %zu is not missed", i);
		copy.bytes[i / 8] ^= 1 << i % 8;
	}
	require(!decode(), "whole again");
}

static void test_elsewhere(void)
{
	random_root(5);
	fleece_md_encode(&root, &copy);
	require(fleece_md_decode(&copy, (root.generation + 1) % 2, &other, &error) == -EUCLEAN,
		"as the other copy");
	/* A generation of the other copy under a good checksum. */
	random_root(0);
	root.generation = 13;
	root.base = 0;
	fleece_md_encode(&root, &copy);
	fleece_md_seal(root.uuid, 0, 13, &copy);
	require(fleece_md_decode(&copy, 0, &other, &error) == -EUCLEAN, "13 in copy 0");
	memset(&copy, 0, sizeof(copy));
	require(decode() == -ENODATA, "zeroes");
	random_bytes(&copy, sizeof(copy));
	require(decode() == -ENODATA, "garbage");
}

/* Each sector of a copy is of one of two commits. */
static void check_mixture(const struct copy *old, const struct copy *new, unsigned int sectors)
{
	unsigned int mask;
	unsigned int i;

	for (mask = 1; mask + 1 < 1U << sectors; mask++) {
		for (i = 0; i < sectors; i++)
			memcpy(copy.bytes + i * SECTOR,
			       (mask >> i & 1 ? old : new)->bytes + i * SECTOR, SECTOR);
		require(decode() == -EUCLEAN, "mixture %#x is taken for good", mask);
	}
	copy = *old;
	require(!decode(), "the old one: %s", error);
	copy = *new;
	require(!decode(), "the new one: %s", error);
}

static void test_torn(void)
{
	struct copy old, new;
	__u32 k;
	int i;

	for (i = 0; i < 20; i++) {
		random_root(17 + unit_random(4));
		root.generation = 4 + unit_random(100);
		root.base = unit_random(4);
		fleece_md_encode(&root, &old);
		/* The commit after the next, into the same copy. */
		root.generation += 2;
		root.written++;
		fleece_md_encode(&root, &new);
		check_mixture(&old, &new, used_sectors());
		/* Two attempts at the same commit. */
		for (k = 0; k < root.nr_checkpoints; k++)
			root.checkpoints[k].created++;
		root.written++;
		fleece_md_encode(&root, &old);
		check_mixture(&old, &new, used_sectors());
	}
}

/* A field that is out of its limits under a good checksum. */
struct nonsense {
	size_t place;
	__u8 value;
	int ret;
};

/* One whose every field is known. */
static void sample_root(void)
{
	__u32 i;

	random_root(0);
	root.granule_sectors = 128;
	root.region_sectors = 8192;
	root.capacity_sectors = TIB;
	root.origin_sectors = TIB - 256;
	root.nr_slots = 64;
	root.state = FLEECE_MD_DIRTY;
	root.generation = 12;
	root.base = 7;
	root.has_head_hash = false;
	root.head_hash = 0;
	snprintf(root.identity, sizeof(root.identity), "identity of it");
	root.nr_checkpoints = 5;
	for (i = 0; i < root.nr_checkpoints; i++)
		add_checkpoint(i);
}

static void test_nonsense_superblock(void)
{
	static const struct nonsense cases[] = {
		{ 8, 'f', -ENODATA }, { 16, 2, -EOPNOTSUPP }, { 19, 1, -EOPNOTSUPP },
		{ 20, 0, -EUCLEAN }, { 20, 4, -EUCLEAN }, { 40, 1, -EOPNOTSUPP },
		{ 47, 0x80, -EOPNOTSUPP }, { 64, 0, -EUCLEAN }, { 64, 13, -EUCLEAN },
		{ 68, 1, -EUCLEAN }, { 72, 0, -EUCLEAN }, { 87, 1, -EUCLEAN },
		{ 91, 0x40, -EUCLEAN }, { 95, 1, -EUCLEAN }, { 96, 9, -EUCLEAN },
		{ 100, 1, -EUCLEAN }, { 103, 1, -EUCLEAN }, { 104, 4, -EUCLEAN },
		{ 106, 1, -EUCLEAN }, { 108, 4, -EUCLEAN },
		{ 108, 6, -EUCLEAN }, { 108, 65, -EUCLEAN }, { 112, 0, -EUCLEAN },
		{ 119, 1, -EUCLEAN }, { 128, 2, -EUCLEAN }, { 136, 1, -EUCLEAN },
		{ 140, 1, -EUCLEAN }, { 271, 'x', -EUCLEAN }, { 150, 0, -EUCLEAN },
		{ 272, 1, -EUCLEAN }, { 511, 1, -EUCLEAN },
	};
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		sample_root();
		fleece_md_encode(&root, &copy);
		require(!decode(), "case %zu before: %s", i, error);
		copy.bytes[cases[i].place] = cases[i].value;
		reseal(0);
		ret = decode();
		require(ret == cases[i].ret && error, "case %zu, byte %zu: %d", i, cases[i].place,
			ret);
	}
}

static void test_nonsense_table(void)
{
	static const struct {
		size_t place;
		const char *text;
	} cases[] = {
		{ 0, "" }, { 0, "-x" }, { 0, ".x" }, { 0, "a b" }, { 0, "a\303\244" },
		{ 1, "" }, { 120, "cp-same" }, { 88, "" }, { 91, "\1" }, { 120 + 91, "\377" },
		{ 95, "\1" }, { 96, "\2" }, { 100, "x" }, { 119, "x" }, { 480, "x" }, { 503, "x" },
		{ 360, "surplus" },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		random_root(3);
		snprintf(root.checkpoints[0].name, FLEECE_MD_NAME_BYTES, "cp-same");
		fleece_md_encode(&root, &copy);
		reseal_table();
		require(!decode(), "case %zu before: %s", i, error);
		memcpy(copy.bytes + SECTOR + 8 + cases[i].place, cases[i].text,
		       strlen(cases[i].text) + 1);
		reseal_table();
		require(decode() == -EUCLEAN && error, "case %zu", i);
	}
	random_root(2);
	root.checkpoints[1].slot = 0;
	fleece_md_encode(&root, &copy);
	require(decode() == -EUCLEAN, "one slot for two");
	random_root(2);
	swap(root.checkpoints[0].segment, root.checkpoints[1].segment);
	fleece_md_encode(&root, &copy);
	require(decode() == -EUCLEAN, "segments descend");
	random_root(1);
	memset(root.checkpoints[0].name, 'x', 63);
	fleece_md_encode(&root, &copy);
	require(!decode(), "the longest name: %s", error);
	copy.bytes[SECTOR + 8 + 63] = 'x';
	reseal_table();
	require(decode() == -EUCLEAN, "a name without an end");
}

static void test_maps(void)
{
	struct fleece_md_map map;
	size_t i;

	random_root(0);
	random_bytes(&map, sizeof(map));
	require(fleece_md_verify(root.uuid, 5000, 0, FLEECE_MD_NUMBER_MAX, &map) == FLEECE_MD_BAD,
		"garbage");
	fleece_md_seal(root.uuid, 5000, 10, &map);
	require(fleece_md_verify(root.uuid, 5000, 10, 10, &map) == FLEECE_MD_CURRENT, "10 of 10");
	require(fleece_md_verify(root.uuid, 5000, 7, 12, &map) == FLEECE_MD_CURRENT, "of 7 to 12");
	require(fleece_md_verify(root.uuid, 5000, 11, 20, &map) == FLEECE_MD_VOID, "of 11 on");
	require(fleece_md_verify(root.uuid, 5000, 0, 9, &map) == FLEECE_MD_BAD, "of up to 9");
	require(fleece_md_verify(root.uuid, 5001, 10, 10, &map) == FLEECE_MD_BAD, "elsewhere");
	root.uuid[3] ^= 1;
	require(fleece_md_verify(root.uuid, 5000, 10, 10, &map) == FLEECE_MD_BAD, "of another");
	root.uuid[3] ^= 1;
	for (i = 0; i < sizeof(map) * 8; i++) {
		((__u8 *)&map)[i / 8] ^= 1 << i % 8;
		require(fleece_md_verify(root.uuid, 5000, 0, FLEECE_MD_NUMBER_MAX, &map) ==
			FLEECE_MD_BAD, "bit %zu", i);
		((__u8 *)&map)[i / 8] ^= 1 << i % 8;
	}
	memset(&map, 0, sizeof(map));
	require(fleece_md_verify(root.uuid, 5000, 0, FLEECE_MD_NUMBER_MAX, &map) == FLEECE_MD_BAD,
		"zeroes");
}

/* The checksum of the document, whatever is in the sector. */
static void require_checksum(const struct fleece_md_map *map, u64 number)
{
	struct {
		u8 uuid[FLEECE_MD_UUID_BYTES];
		__le64 sector;
	} place = { .sector = __cpu_to_le64(number) };
	u32 crc;

	memcpy(place.uuid, root.uuid, sizeof(place.uuid));
	crc = crc32c(~0U, &place, sizeof(place));
	crc = ~crc32c(crc, (const u8 *)map + 4, FLEECE_MD_SECTOR_BYTES - 4);
	require(__le32_to_cpu(map->header.crc) == crc, "sector %llu", (unsigned long long)number);
}

static void test_checksums(void)
{
	struct fleece_md_map map = { };
	unsigned int i;

	/* Each bit of the checksum before the payload is met, set and clear. */
	for (i = 0; i < 1000; i++) {
		fleece_md_seal(root.uuid, i, i * i, &map);
		require_checksum(&map, i);
	}
	for (i = 0; i < FLEECE_MD_MAP_BITS; i++) {
		map.words[i / 64] = __cpu_to_le64(1ULL << i % 64);
		fleece_md_seal(root.uuid, i, 7, &map);
		require_checksum(&map, i);
		map.words[i / 64] = 0;
	}
}

static void test_choose(void)
{
	static const struct {
		int results[2];
		__u64 generations[2];
		int chosen;
	} cases[] = {
		{ { 0, 0 }, { 8, 7 }, 0 }, { { 0, 0 }, { 8, 9 }, 1 },
		{ { -EUCLEAN, 0 }, { 8, 7 }, 1 }, { { 0, -ENODATA }, { 6, 7 }, 0 },
		/* A newer version is never passed over for an older copy. */
		{ { -EOPNOTSUPP, 0 }, { 8, 7 }, 0 }, { { -EOPNOTSUPP, 0 }, { 8, 9 }, 1 },
		{ { -EUCLEAN, -ENODATA }, { 8, 9 }, -1 },
		{ { -EIO, -EOPNOTSUPP }, { 0, 9 }, 1 },
	};
	size_t i;
	int chosen;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		chosen = fleece_md_choose(cases[i].results, cases[i].generations);
		require(chosen == cases[i].chosen, "case %zu: copy %d", i, chosen);
	}
}

static const struct unit_case cases[] = {
	{ "format: the checksum is CRC-32C", test_crc32c },
	{ "format: fields are where the document says", test_places },
	{ "format: the hash of the start of an origin is the document's, and no CRC", test_hash },
	{ "format: sizes of the document", test_sizes },
	{ "format: the formula of the document", test_layout },
	{ "format: superblock and table are read as they were written", test_round_trip },
	{ "format: no flipped bit is missed", test_flipped },
	{ "format: a copy in another place, zeroes, garbage", test_elsewhere },
	{ "format: a torn commit is never taken for good", test_torn },
	{ "format: nonsense in the superblock is refused", test_nonsense_superblock },
	{ "format: nonsense in the table is refused", test_nonsense_table },
	{ "format: sectors of maps by checksum, place and tag", test_maps },
	{ "format: with and without bits, the checksum is the document's", test_checksums },
	{ "format: which copy counts", test_choose },
	{ }
};

int main(void)
{
	return unit_main(cases);
}
