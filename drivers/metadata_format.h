/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * metadata_format: what is on a metadata device, see docs/metadata.rst.
 *
 * Places, structures, checksums, and the decoding of superblock and table. There is
 * no I/O here and no memory is allocated, so the module, the command and the tests
 * build it as it is. Who builds it elsewhere supplies crc32c() in <linux/crc32c.h>.
 *
 * The order in which things are written is the business of metadata.h.
 */
#ifndef FLEECE_METADATA_FORMAT_H
#define FLEECE_METADATA_FORMAT_H

#include <linux/build_bug.h>
#include <linux/types.h>

#define FLEECE_MD_SECTOR_BYTES		512
#define FLEECE_MD_BLOCK_SECTORS		8
#define FLEECE_MD_BLOCK_BYTES		(FLEECE_MD_BLOCK_SECTORS * FLEECE_MD_SECTOR_BYTES)

#define FLEECE_MD_MAGIC			"FLEECEMD"
#define FLEECE_MD_VERSION		1
/* Features of version 1: there are none yet. */
#define FLEECE_MD_COMPAT		0ULL
#define FLEECE_MD_RO_COMPAT		0ULL
#define FLEECE_MD_INCOMPAT		0ULL

#define FLEECE_MD_NAME_BYTES		64
#define FLEECE_MD_UUID_BYTES		16
#define FLEECE_MD_IDENTITY_BYTES	128
#define FLEECE_MD_SLOTS_MAX		256
/* Generations, tags and segment numbers. */
#define FLEECE_MD_NUMBER_MAX		0xffffffffU

/* Of the origin, in sectors: 4 KiB to 16 MiB, 1 GiB, 64 TiB. */
#define FLEECE_MD_GRANULE_MIN		8U
#define FLEECE_MD_GRANULE_MAX		32768U
#define FLEECE_MD_REGION_MAX		2097152U
#define FLEECE_MD_REGION_DEFAULT	8192U
#define FLEECE_MD_ORIGIN_MAX		137438953472ULL

/* head_hash is of the first 128 KiB of the origin. */
#define FLEECE_MD_HEAD_BYTES		131072

/* Places on the device. */
#define FLEECE_MD_COPY_DISTANCE		2048ULL
#define FLEECE_MD_INTENTS_START		4096ULL

#define FLEECE_MD_ENTRIES_PER_SECTOR	4
#define FLEECE_MD_TABLE_SECTORS		(FLEECE_MD_SLOTS_MAX / FLEECE_MD_ENTRIES_PER_SECTOR)
/* Superblock and table, up to a whole block. */
#define FLEECE_MD_COPY_SECTORS		72
#define FLEECE_MD_COPY_BYTES		(FLEECE_MD_COPY_SECTORS * FLEECE_MD_SECTOR_BYTES)

#define FLEECE_MD_MAP_WORDS		63
#define FLEECE_MD_MAP_BITS		(FLEECE_MD_MAP_WORDS * 64)

/* Flags of a superblock and of an entry. */
#define FLEECE_MD_HAS_HEAD_HASH		1U
#define FLEECE_MD_CHECKPOINT_INVALID	1U

/**
 * struct fleece_md_header - the start of each sector
 * @crc: of everything that comes after it, of the uuid and the place.
 * @tag: which writes the sector belongs to.
 */
struct fleece_md_header {
	__le32 crc;
	__le32 tag;
};

/**
 * struct fleece_md_superblock - sector 0 of a copy; fields as in docs/metadata.rst
 * @header: tag: low half of @generation.
 * @magic: FLEECE_MD_MAGIC without its NUL.
 * @version: FLEECE_MD_VERSION.
 * @state: enum fleece_md_state.
 * @compat: features that an older module may ignore.
 * @ro_compat: features that allow it to read only.
 * @incompat: features that it has to know.
 * @uuid: of this metadata.
 * @generation: of the commit.
 * @nr_sectors: size needed.
 * @origin_sectors: size of the origin.
 * @capacity_sectors: largest origin that there is room for.
 * @granule_sectors: granularity.
 * @region_sectors: size of a region.
 * @nr_slots: number of slots.
 * @nr_checkpoints: entries of the table.
 * @next_segment: number for the next checkpoint.
 * @base: intents with tags below are void.
 * @written: seconds since 1970.
 * @flags: FLEECE_MD_HAS_HEAD_HASH.
 * @head_hash: of the start of the origin.
 * @table_crc: of the table.
 * @reserved: zero.
 * @identity: of the origin.
 * @padding: zero.
 */
struct fleece_md_superblock {
	struct fleece_md_header header;
	__u8 magic[8];
	__le32 version;
	__le32 state;
	__le64 compat;
	__le64 ro_compat;
	__le64 incompat;
	__u8 uuid[FLEECE_MD_UUID_BYTES];
	__le64 generation;
	__le64 nr_sectors;
	__le64 origin_sectors;
	__le64 capacity_sectors;
	__le32 granule_sectors;
	__le32 region_sectors;
	__le32 nr_slots;
	__le32 nr_checkpoints;
	__le32 next_segment;
	__le32 base;
	__le64 written;
	__le32 flags;
	__le32 head_hash;
	__le32 table_crc;
	__le32 reserved;
	__u8 identity[FLEECE_MD_IDENTITY_BYTES];
	__u8 padding[240];
};

static_assert(sizeof(struct fleece_md_superblock) == FLEECE_MD_SECTOR_BYTES);

/**
 * struct fleece_md_entry - a checkpoint in the table
 * @name: NUL-terminated, filled with zeroes.
 * @uuid: of the checkpoint.
 * @created: seconds since 1970.
 * @segment: tag of its fine bits.
 * @slot: place of its fine bits.
 * @flags: FLEECE_MD_CHECKPOINT_INVALID.
 * @reserved: zero.
 */
struct fleece_md_entry {
	__u8 name[FLEECE_MD_NAME_BYTES];
	__u8 uuid[FLEECE_MD_UUID_BYTES];
	__le64 created;
	__le32 segment;
	__le32 slot;
	__le32 flags;
	__u8 reserved[20];
};

static_assert(sizeof(struct fleece_md_entry) == 120);

/**
 * struct fleece_md_table - a sector of the table
 * @header: tag: low half of the generation.
 * @entries: oldest first.
 * @padding: zero.
 */
struct fleece_md_table {
	struct fleece_md_header header;
	struct fleece_md_entry entries[FLEECE_MD_ENTRIES_PER_SECTOR];
	__u8 padding[24];
};

static_assert(sizeof(struct fleece_md_table) == FLEECE_MD_SECTOR_BYTES);

/**
 * struct fleece_md_map - a sector of intents or of fine bits
 * @header: tag: generation, or segment number.
 * @words: bit n of the sector is bit n % 64 of word n / 64.
 */
struct fleece_md_map {
	struct fleece_md_header header;
	__le64 words[FLEECE_MD_MAP_WORDS];
};

static_assert(sizeof(struct fleece_md_map) == FLEECE_MD_SECTOR_BYTES);

/**
 * enum fleece_md_state - how the last session ended
 * @FLEECE_MD_CLEAN: closed; there are no intents.
 * @FLEECE_MD_DIRTY: in use, or crashed.
 * @FLEECE_MD_INVALID: changes were missed: no checkpoint can be trusted.
 */
enum fleece_md_state {
	FLEECE_MD_CLEAN = 1,
	FLEECE_MD_DIRTY = 2,
	FLEECE_MD_INVALID = 3,
};

/**
 * struct fleece_md_checkpoint - a checkpoint, decoded
 * @name: NUL-terminated.
 * @uuid: of the checkpoint.
 * @created: seconds since 1970.
 * @segment: tag of its fine bits.
 * @slot: place of its fine bits.
 * @is_invalid: changes since were missed.
 */
struct fleece_md_checkpoint {
	char name[FLEECE_MD_NAME_BYTES];
	__u8 uuid[FLEECE_MD_UUID_BYTES];
	__u64 created;
	__u32 segment;
	__u32 slot;
	bool is_invalid;
};

/**
 * struct fleece_md_root - superblock and table, decoded
 * @uuid: of this metadata.
 * @state: see there.
 * @generation: of the commit; the copy is @generation % 2.
 * @compat: features, kept by every commit.
 * @ro_compat: likewise.
 * @origin_sectors: size of the origin.
 * @capacity_sectors: largest origin that there is room for.
 * @granule_sectors: granularity.
 * @region_sectors: size of a region.
 * @next_segment: number for the next checkpoint.
 * @base: intents with tags below are void.
 * @written: seconds since 1970.
 * @has_head_hash: @head_hash is given.
 * @head_hash: of the start of the origin.
 * @identity: of the origin; NUL-terminated.
 * @nr_slots: number of slots.
 * @nr_checkpoints: length of @checkpoints.
 * @checkpoints: oldest first.
 */
struct fleece_md_root {
	__u8 uuid[FLEECE_MD_UUID_BYTES];
	enum fleece_md_state state;
	__u64 generation;
	__u64 compat;
	__u64 ro_compat;
	__u64 origin_sectors;
	__u64 capacity_sectors;
	__u32 granule_sectors;
	__u32 region_sectors;
	__u32 next_segment;
	__u32 base;
	__u64 written;
	bool has_head_hash;
	__u32 head_hash;
	char identity[FLEECE_MD_IDENTITY_BYTES];
	__u32 nr_slots;
	__u32 nr_checkpoints;
	struct fleece_md_checkpoint checkpoints[FLEECE_MD_SLOTS_MAX];
};

/**
 * struct fleece_md_layout - where things are
 * @nr_regions: of the capacity.
 * @nr_granules: of the capacity.
 * @intent_sectors: length of the intents.
 * @slots_start: first sector of slot 0.
 * @slot_sectors: length of a slot.
 * @nr_sectors: size needed.
 */
struct fleece_md_layout {
	__u64 nr_regions;
	__u64 nr_granules;
	__u64 intent_sectors;
	__u64 slots_start;
	__u64 slot_sectors;
	__u64 nr_sectors;
};

/**
 * enum fleece_md_verdict - what a sector of a map is
 * @FLEECE_MD_CURRENT: its bits count.
 * @FLEECE_MD_VOID: all its bits are clear.
 * @FLEECE_MD_BAD: all its bits are to be taken for set.
 */
enum fleece_md_verdict {
	FLEECE_MD_CURRENT,
	FLEECE_MD_VOID,
	FLEECE_MD_BAD,
};

/**
 * fleece_md_geometry_error() - can this be the metadata of an origin?
 * @root: its sizes and @nr_slots.
 *
 * Return: NULL if so, else what is wrong, for a message.
 */
const char *fleece_md_geometry_error(const struct fleece_md_root *root);

/**
 * fleece_md_layout() - compute where things are
 * @root: its sizes and @nr_slots; without an error of geometry.
 * @layout: filled in.
 */
void fleece_md_layout(const struct fleece_md_root *root, struct fleece_md_layout *layout);

/**
 * fleece_md_copy_start() - first sector of the copy of a generation
 * @generation: the generation.
 */
static inline __u64 fleece_md_copy_start(__u64 generation)
{
	return generation % 2 * FLEECE_MD_COPY_DISTANCE;
}

/**
 * fleece_md_fine_start() - first sector of a slot
 * @layout: of the metadata.
 * @slot: its number.
 */
static inline __u64 fleece_md_fine_start(const struct fleece_md_layout *layout, __u32 slot)
{
	return layout->slots_start + slot * layout->slot_sectors;
}

/**
 * fleece_md_seal() - give a sector its tag and checksum
 * @uuid: of the metadata.
 * @sector: its place.
 * @tag: its tag.
 * @content: FLEECE_MD_SECTOR_BYTES that begin with a header.
 */
void fleece_md_seal(const __u8 *uuid, __u64 sector, __u32 tag, void *content);

/**
 * fleece_md_verify() - look at checksum and tag of a sector
 * @uuid: of the metadata.
 * @sector: where it was read.
 * @first: lowest tag of a sector that counts.
 * @last: highest one.
 * @content: FLEECE_MD_SECTOR_BYTES.
 *
 * Return: the verdict.
 */
enum fleece_md_verdict fleece_md_verify(const __u8 *uuid, __u64 sector, __u32 first, __u32 last,
					const void *content);

/**
 * fleece_md_hash() - the hash of the start of an origin, or of a part of it
 * @hash: what the call for the part before has returned, 0 for the first one.
 * @content: the content.
 * @bytes: length, a multiple of 8.
 *
 * Not a CRC: file systems write superblocks that end with their own CRC-32C, and that of
 * such a one is the same whatever is in it.
 *
 * Return: the hash; its low half is what is recorded.
 */
__u64 fleece_md_hash(__u64 hash, const void *content, unsigned int bytes);

/**
 * fleece_md_encode() - make the copy of superblock and table
 * @root: without an error.
 * @copy: FLEECE_MD_COPY_BYTES, filled in.
 *
 * Return: number of sectors that are to be written, whole blocks, from
 * fleece_md_copy_start() on.
 */
unsigned int fleece_md_encode(const struct fleece_md_root *root, void *copy);

/**
 * fleece_md_decode() - read a copy of superblock and table
 * @copy: FLEECE_MD_COPY_BYTES, as read.
 * @index: 0 or 1: which copy it is.
 * @root: filled in; of use only on success. With -EOPNOTSUPP its @generation is.
 * @error: set to what is wrong, for a message.
 *
 * Return: 0; -ENODATA: this is not metadata of ours; -EUCLEAN: it is damaged;
 * -EOPNOTSUPP: it has a version or features that are not known.
 */
int fleece_md_decode(const void *copy, unsigned int index, struct fleece_md_root *root,
		     const char **error);

/**
 * fleece_md_choose() - which of two copies counts?
 * @results: what fleece_md_decode() has returned for each.
 * @generations: of each that was good or of another version.
 *
 * Return: 0 or 1, or -1: none of them can be read.
 */
int fleece_md_choose(const int *results, const __u64 *generations);

/**
 * fleece_md_is_writable() - may this version write to the metadata?
 * @root: decoded.
 */
static inline bool fleece_md_is_writable(const struct fleece_md_root *root)
{
	return !(root->ro_compat & ~FLEECE_MD_RO_COMPAT);
}

#endif
