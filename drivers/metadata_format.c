// SPDX-License-Identifier: GPL-2.0-only
/*
 * metadata_format: what is on a metadata device, see metadata_format.h. Nothing that
 * was read is trusted: each field is checked before it is used.
 */
#include <asm/byteorder.h>
#ifndef __KERNEL__
#include <linux/crc32c.h>
#endif
#include <linux/errno.h>
#include <linux/string.h>

#ifdef __KERNEL__
#include "compat.h"
#endif
#include "metadata_format.h"

/* Odd, so that nothing is lost; its bits are as good as random. */
#define HASH_FACTOR	0x9e3779b97f4a7c15ULL

/* ------------------------- Geometry ------------------------- */

static bool is_power_in(__u32 value, __u32 least, __u32 most)
{
	return value >= least && value <= most && !(value & (value - 1));
}

const char *fleece_md_geometry_error(const struct fleece_md_root *root)
{
	if (!is_power_in(root->granule_sectors, FLEECE_MD_GRANULE_MIN, FLEECE_MD_GRANULE_MAX))
		return "the granularity is not a power of two from 4 KiB to 16 MiB";
	if (!is_power_in(root->region_sectors, root->granule_sectors, FLEECE_MD_REGION_MAX))
		return "the region is not a power of two from a granule to 1 GiB";
	if (!root->origin_sectors)
		return "the origin has no size";
	if (root->capacity_sectors > FLEECE_MD_ORIGIN_MAX)
		return "the capacity is above 64 TiB";
	if (root->origin_sectors > root->capacity_sectors)
		return "the origin is larger than the capacity";
	if (!root->nr_slots || root->nr_slots > FLEECE_MD_SLOTS_MAX)
		return "the number of slots is not 1 to 256";
	return NULL;
}

/* @unit is a power of two. */
static __u64 units_of(__u64 sectors, __u32 unit)
{
	unsigned int shift = __builtin_ctz(unit);

	return (sectors + unit - 1) >> shift;
}

/* Sectors for a map, whole blocks. */
static __u64 map_sectors(__u64 bits)
{
	/* There are 2^34 bits at the most; 32-bit kernels cannot divide more than this. */
	__u32 words = (bits + 63) / 64;
	__u32 sectors = words / FLEECE_MD_MAP_WORDS + !!(words % FLEECE_MD_MAP_WORDS);

	return (sectors + FLEECE_MD_BLOCK_SECTORS - 1) / FLEECE_MD_BLOCK_SECTORS *
	       FLEECE_MD_BLOCK_SECTORS;
}

void fleece_md_layout(const struct fleece_md_root *root, struct fleece_md_layout *layout)
{
	layout->nr_regions = units_of(root->capacity_sectors, root->region_sectors);
	layout->nr_granules = units_of(root->capacity_sectors, root->granule_sectors);
	layout->intent_sectors = map_sectors(layout->nr_regions);
	layout->slot_sectors = map_sectors(layout->nr_granules);
	layout->slots_start = FLEECE_MD_INTENTS_START + layout->intent_sectors;
	layout->nr_sectors = layout->slots_start + root->nr_slots * layout->slot_sectors;
}

/* ------------------------- Sectors ------------------------- */

static __u32 crc_of(const void *data, unsigned int bytes)
{
	return ~crc32c(~0U, data, bytes);
}

/*
 * What each bit of a checksum has become after a payload of zeroes. Most sectors of a map
 * have no bit, and with 64 checkpoints of many TiB there are millions of them.
 */
static const __u32 after_zeroes[32] = {
	0xdd7e3b0c, 0xbf1000e9, 0x7bcc7723, 0xf798ee46,
	0xeaddaa7d, 0xd057220b, 0xa54232e7, 0x4f68133f,
	0x9ed0267e, 0x384c3a0d, 0x7098741a, 0xe130e834,
	0xc78da699, 0x8af73bc3, 0x10020177, 0x200402ee,
	0x400805dc, 0x80100bb8, 0x05cc6181, 0x0b98c302,
	0x17318604, 0x2e630c08, 0x5cc61810, 0xb98c3020,
	0x76f416b1, 0xede82d62, 0xde3c2c35, 0xb9942e9b,
	0x76c42bc7, 0xed88578e, 0xdefcd9ed, 0xb815c52b,
};

static __u32 crc_of_zeroes(__u32 crc)
{
	__u32 result = 0;

	for (; crc; crc &= crc - 1)
		result ^= after_zeroes[__builtin_ctz(crc)];
	return result;
}

static bool is_clear(const struct fleece_md_map *map)
{
	unsigned int i;

	for (i = 0; i < FLEECE_MD_MAP_WORDS; i++) {
		if (map->words[i])
			return false;
	}
	return true;
}

static __u32 sector_crc(const __u8 *uuid, __u64 sector, const void *content)
{
	const struct fleece_md_map *map = content;
	struct {
		__u8 uuid[FLEECE_MD_UUID_BYTES];
		__le64 sector;
	} place = { .sector = __cpu_to_le64(sector) };
	__u32 crc;

	memcpy(place.uuid, uuid, sizeof(place.uuid));
	crc = crc32c(~0U, &place, sizeof(place));
	crc = crc32c(crc, &map->header.tag, sizeof(map->header.tag));
	return ~(is_clear(map) ? crc_of_zeroes(crc) : crc32c(crc, map->words, sizeof(map->words)));
}

void fleece_md_seal(const __u8 *uuid, __u64 sector, __u32 tag, void *content)
{
	struct fleece_md_header *header = content;

	header->tag = __cpu_to_le32(tag);
	header->crc = __cpu_to_le32(sector_crc(uuid, sector, content));
}

enum fleece_md_verdict fleece_md_verify(const __u8 *uuid, __u64 sector, __u32 first, __u32 last,
					const void *content)
{
	const struct fleece_md_header *header = content;
	__u32 tag = __le32_to_cpu(header->tag);

	if (__le32_to_cpu(header->crc) != sector_crc(uuid, sector, content) || tag > last)
		return FLEECE_MD_BAD;
	return tag < first ? FLEECE_MD_VOID : FLEECE_MD_CURRENT;
}

/* ------------------------- Start of the origin ------------------------- */

__u64 fleece_md_hash(__u64 hash, const void *content, unsigned int bytes)
{
	__le64 word;
	unsigned int at;

	for (at = 0; at < bytes; at += sizeof(word)) {
		memcpy(&word, (const __u8 *)content + at, sizeof(word));
		hash = (hash ^ __le64_to_cpu(word)) * HASH_FACTOR;
		hash ^= hash >> 32;
	}
	return hash;
}

/* ------------------------- Encoding ------------------------- */

static unsigned int table_sectors(__u32 nr_checkpoints)
{
	return (nr_checkpoints + FLEECE_MD_ENTRIES_PER_SECTOR - 1) / FLEECE_MD_ENTRIES_PER_SECTOR;
}

static void encode_entry(const struct fleece_md_checkpoint *checkpoint,
			 struct fleece_md_entry *entry)
{
	memcpy(entry->name, checkpoint->name, strnlen(checkpoint->name, sizeof(entry->name) - 1));
	memcpy(entry->uuid, checkpoint->uuid, sizeof(entry->uuid));
	entry->created = __cpu_to_le64(checkpoint->created);
	entry->segment = __cpu_to_le32(checkpoint->segment);
	entry->slot = __cpu_to_le32(checkpoint->slot);
	entry->flags = __cpu_to_le32(checkpoint->is_invalid ? FLEECE_MD_CHECKPOINT_INVALID : 0);
}

static void encode_sizes(const struct fleece_md_root *root, struct fleece_md_superblock *super)
{
	struct fleece_md_layout layout;

	fleece_md_layout(root, &layout);
	super->nr_sectors = __cpu_to_le64(layout.nr_sectors);
	super->origin_sectors = __cpu_to_le64(root->origin_sectors);
	super->capacity_sectors = __cpu_to_le64(root->capacity_sectors);
	super->granule_sectors = __cpu_to_le32(root->granule_sectors);
	super->region_sectors = __cpu_to_le32(root->region_sectors);
	super->nr_slots = __cpu_to_le32(root->nr_slots);
}

static void encode_superblock(const struct fleece_md_root *root,
			      struct fleece_md_superblock *super)
{
	memcpy(super->magic, FLEECE_MD_MAGIC, sizeof(super->magic));
	super->version = __cpu_to_le32(FLEECE_MD_VERSION);
	super->state = __cpu_to_le32(root->state);
	super->compat = __cpu_to_le64(root->compat);
	super->ro_compat = __cpu_to_le64(root->ro_compat);
	memcpy(super->uuid, root->uuid, sizeof(super->uuid));
	super->generation = __cpu_to_le64(root->generation);
	encode_sizes(root, super);
	super->nr_checkpoints = __cpu_to_le32(root->nr_checkpoints);
	super->next_segment = __cpu_to_le32(root->next_segment);
	super->base = __cpu_to_le32(root->base);
	super->written = __cpu_to_le64(root->written);
	super->flags = __cpu_to_le32(root->has_head_hash ? FLEECE_MD_HAS_HEAD_HASH : 0);
	super->head_hash = __cpu_to_le32(root->has_head_hash ? root->head_hash : 0);
	memcpy(super->identity, root->identity,
	       strnlen(root->identity, sizeof(super->identity) - 1));
}

unsigned int fleece_md_encode(const struct fleece_md_root *root, void *copy)
{
	__u64 start = fleece_md_copy_start(root->generation);
	unsigned int sectors = table_sectors(root->nr_checkpoints);
	struct fleece_md_superblock *super = copy;
	struct fleece_md_table *table = (struct fleece_md_table *)(super + 1);
	unsigned int i;

	memset(copy, 0, FLEECE_MD_COPY_BYTES);
	for (i = 0; i < root->nr_checkpoints; i++)
		encode_entry(&root->checkpoints[i], &table[i / FLEECE_MD_ENTRIES_PER_SECTOR]
			     .entries[i % FLEECE_MD_ENTRIES_PER_SECTOR]);
	for (i = 0; i < sectors; i++)
		fleece_md_seal(root->uuid, start + 1 + i, root->generation, &table[i]);
	encode_superblock(root, super);
	super->table_crc = __cpu_to_le32(crc_of(table, sectors * FLEECE_MD_SECTOR_BYTES));
	fleece_md_seal(root->uuid, start, root->generation, super);
	return (sectors + FLEECE_MD_BLOCK_SECTORS) / FLEECE_MD_BLOCK_SECTORS *
	       FLEECE_MD_BLOCK_SECTORS;
}

/* ------------------------- Decoding ------------------------- */

static bool is_zero(const __u8 *bytes, size_t count)
{
	while (count--) {
		if (*bytes++)
			return false;
	}
	return true;
}

/* A text that ends within its field and is followed by zeroes. */
static bool is_text(const __u8 *field, size_t size)
{
	size_t length = strnlen((const char *)field, size);

	return length < size && is_zero(field + length, size - length);
}

static bool is_name_char(__u8 c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '_' || c == '-';
}

static bool is_name(const __u8 *name)
{
	size_t i;

	if (!is_text(name, FLEECE_MD_NAME_BYTES) || !*name || *name == '-' || *name == '.')
		return false;
	for (i = 0; name[i]; i++) {
		if (!is_name_char(name[i]))
			return false;
	}
	return true;
}

/* Is this sector 0 of a copy, as somebody of ours has written it? */
static int check_superblock(const struct fleece_md_superblock *super, unsigned int index,
			    const char **error)
{
	if (memcmp(super->magic, FLEECE_MD_MAGIC, sizeof(super->magic))) {
		*error = "there is no superblock";
		return -ENODATA;
	}
	if (fleece_md_verify(super->uuid, index * FLEECE_MD_COPY_DISTANCE, 0,
			     FLEECE_MD_NUMBER_MAX, super) != FLEECE_MD_CURRENT) {
		*error = "the checksum of the superblock is wrong";
		return -EUCLEAN;
	}
	return 0;
}

static int check_version(const struct fleece_md_superblock *super, const char **error)
{
	if (__le32_to_cpu(super->version) != FLEECE_MD_VERSION)
		*error = "its version is not known";
	else if (__le64_to_cpu(super->incompat) & ~FLEECE_MD_INCOMPAT)
		*error = "it has features that are not known";
	else
		return 0;
	return -EOPNOTSUPP;
}

static const char *decode_sizes(const struct fleece_md_superblock *super,
				struct fleece_md_root *root)
{
	struct fleece_md_layout layout;
	const char *error;

	root->origin_sectors = __le64_to_cpu(super->origin_sectors);
	root->capacity_sectors = __le64_to_cpu(super->capacity_sectors);
	root->granule_sectors = __le32_to_cpu(super->granule_sectors);
	root->region_sectors = __le32_to_cpu(super->region_sectors);
	root->nr_slots = __le32_to_cpu(super->nr_slots);
	error = fleece_md_geometry_error(root);
	if (error)
		return error;
	fleece_md_layout(root, &layout);
	if (__le64_to_cpu(super->nr_sectors) != layout.nr_sectors)
		return "the size does not follow from the others";
	return NULL;
}

static const char *decode_numbers(const struct fleece_md_superblock *super, unsigned int index,
				  struct fleece_md_root *root)
{
	root->generation = __le64_to_cpu(super->generation);
	root->next_segment = __le32_to_cpu(super->next_segment);
	root->base = __le32_to_cpu(super->base);
	root->nr_checkpoints = __le32_to_cpu(super->nr_checkpoints);
	if (!root->generation || root->generation > FLEECE_MD_NUMBER_MAX ||
	    root->generation % 2 != index)
		return "the generation does not belong here";
	if (root->generation != __le32_to_cpu(super->header.tag))
		return "the tag is not the generation";
	if (root->base > root->generation)
		return "the base of the intents is above the generation";
	if (!root->next_segment)
		return "the next segment number is 0";
	if (root->nr_checkpoints > root->nr_slots)
		return "there are more checkpoints than slots";
	return NULL;
}

static const char *decode_rest(const struct fleece_md_superblock *super,
			       struct fleece_md_root *root)
{
	__u32 flags = __le32_to_cpu(super->flags);
	__u32 state = __le32_to_cpu(super->state);

	if (state < FLEECE_MD_CLEAN || state > FLEECE_MD_INVALID)
		return "the state is not known";
	if (flags & ~FLEECE_MD_HAS_HEAD_HASH)
		return "a flag is not known";
	root->state = state;
	root->compat = __le64_to_cpu(super->compat);
	root->ro_compat = __le64_to_cpu(super->ro_compat);
	root->written = __le64_to_cpu(super->written);
	root->has_head_hash = flags & FLEECE_MD_HAS_HEAD_HASH;
	root->head_hash = __le32_to_cpu(super->head_hash);
	if (root->head_hash && !root->has_head_hash)
		return "there is a checksum of the origin that is not said to be there";
	if (super->reserved || !is_zero(super->padding, sizeof(super->padding)))
		return "a reserved field is not zero";
	if (!is_text(super->identity, sizeof(super->identity)))
		return "the identity of the origin is not a text";
	memcpy(root->identity, super->identity, sizeof(root->identity));
	memcpy(root->uuid, super->uuid, sizeof(root->uuid));
	return NULL;
}

static const char *decode_entry(const struct fleece_md_entry *entry, struct fleece_md_root *root,
				struct fleece_md_checkpoint *checkpoint)
{
	__u32 flags = __le32_to_cpu(entry->flags);

	if (!is_name(entry->name))
		return "a checkpoint has a malformed name";
	if (flags & ~FLEECE_MD_CHECKPOINT_INVALID ||
	    !is_zero(entry->reserved, sizeof(entry->reserved)))
		return "a checkpoint has a field that is not known";
	memcpy(checkpoint->name, entry->name, sizeof(checkpoint->name));
	memcpy(checkpoint->uuid, entry->uuid, sizeof(checkpoint->uuid));
	checkpoint->created = __le64_to_cpu(entry->created);
	checkpoint->segment = __le32_to_cpu(entry->segment);
	checkpoint->slot = __le32_to_cpu(entry->slot);
	checkpoint->is_invalid = flags & FLEECE_MD_CHECKPOINT_INVALID;
	if (!checkpoint->segment || checkpoint->segment >= root->next_segment)
		return "a checkpoint has a segment number that was never given";
	if (checkpoint->slot >= root->nr_slots)
		return "a checkpoint has a slot that does not exist";
	return NULL;
}

/* What the checkpoints have to be among each other. */
static const char *compare_checkpoints(const struct fleece_md_root *root, __u32 number)
{
	const struct fleece_md_checkpoint *checkpoint = &root->checkpoints[number];
	__u32 i;

	for (i = 0; i < number; i++) {
		if (!strcmp(root->checkpoints[i].name, checkpoint->name))
			return "two checkpoints have the same name";
		if (root->checkpoints[i].slot == checkpoint->slot)
			return "two checkpoints have the same slot";
		if (root->checkpoints[i].segment >= checkpoint->segment)
			return "the segment numbers do not ascend";
	}
	return NULL;
}

static const char *check_table(const struct fleece_md_superblock *super,
			       const struct fleece_md_table *table,
			       const struct fleece_md_root *root)
{
	__u64 start = fleece_md_copy_start(root->generation);
	unsigned int sectors = table_sectors(root->nr_checkpoints);
	unsigned int i;

	for (i = 0; i < sectors; i++) {
		if (fleece_md_verify(root->uuid, start + 1 + i, root->generation, root->generation,
				     &table[i]) != FLEECE_MD_CURRENT)
			return "the checksum or the tag of a sector of the table is wrong";
		if (!is_zero(table[i].padding, sizeof(table[i].padding)))
			return "a reserved field of the table is not zero";
	}
	if (__le32_to_cpu(super->table_crc) != crc_of(table, sectors * FLEECE_MD_SECTOR_BYTES))
		return "the table belongs to another superblock";
	return NULL;
}

static const char *decode_table(const struct fleece_md_table *table, struct fleece_md_root *root)
{
	__u32 places = table_sectors(root->nr_checkpoints) * FLEECE_MD_ENTRIES_PER_SECTOR;
	const struct fleece_md_entry *entry;
	const char *error = NULL;
	__u32 i;

	for (i = 0; i < places && !error; i++) {
		entry = &table[i / FLEECE_MD_ENTRIES_PER_SECTOR]
			 .entries[i % FLEECE_MD_ENTRIES_PER_SECTOR];
		if (i >= root->nr_checkpoints) {
			if (!is_zero((const __u8 *)entry, sizeof(*entry)))
				error = "there are more checkpoints than are counted";
			continue;
		}
		error = decode_entry(entry, root, &root->checkpoints[i]);
		if (!error)
			error = compare_checkpoints(root, i);
	}
	return error;
}

int fleece_md_decode(const void *copy, unsigned int index, struct fleece_md_root *root,
		     const char **error)
{
	const struct fleece_md_superblock *super = copy;
	const struct fleece_md_table *table = (const struct fleece_md_table *)(super + 1);
	int ret;

	memset(root, 0, sizeof(*root));
	*error = NULL;
	ret = check_superblock(super, index, error);
	if (ret)
		return ret;
	ret = check_version(super, error);
	if (ret) {
		root->generation = __le64_to_cpu(super->generation);
		return ret;
	}
	*error = decode_sizes(super, root);
	if (!*error)
		*error = decode_numbers(super, index, root);
	if (!*error)
		*error = decode_rest(super, root);
	if (!*error)
		*error = check_table(super, table, root);
	if (!*error)
		*error = decode_table(table, root);
	return *error ? -EUCLEAN : 0;
}

int fleece_md_choose(const int *results, const __u64 *generations)
{
	int chosen = -1;
	int i;

	for (i = 0; i < 2; i++) {
		if (results[i] && results[i] != -EOPNOTSUPP)
			continue;
		if (chosen < 0 || generations[i] > generations[chosen])
			chosen = i;
	}
	return chosen;
}
