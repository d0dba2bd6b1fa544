// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece-maps: what /dev/fleece-control says about a device, for the shell tests.
 *
 *   fleece-maps DEVICE info                         one "key value" for each field
 *   fleece-maps DEVICE checkpoints                  NAME UUID CREATED FLAGS
 *   fleece-maps DEVICE extents MAP [CHECKPOINT]     OFFSET LENGTH VALUE
 *   fleece-maps DEVICE bitmap MAP [CHECKPOINT]      unit, then a line of 0 and 1
 *   fleece-maps DEVICE rules MAP [CHECKPOINT]       "ok", or which rule is broken
 *
 * MAP is changed, accessible or copied. `rules` asks for the map in many ways
 * (whole, in pieces, from the middle, as bits) and compares the answers, so the
 * map must not change meanwhile. Prints the name of the error on failure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "control.h"

#define SECTOR_BYTES	512
#define ALL_EXTENTS	65536

static int control;
static int device;
static struct fleece_info info;

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit(1);
}

static void require(int ret)
{
	static const struct {
		int error;
		const char *name;
	} names[] = {
		{ ENOENT, "ENOENT" }, { ESTALE, "ESTALE" }, { EINVAL, "EINVAL" },
		{ ERANGE, "ERANGE" }, { ENODEV, "ENODEV" }, { EBADF, "EBADF" },
		{ EIO, "EIO" }, { ENOSPC, "ENOSPC" }, { ENOMEM, "ENOMEM" },
	};
	size_t i;

	if (ret >= 0)
		return;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].error == -ret)
			fail("%s", names[i].name);
	fail("errno %d", -ret);
}

static int show_info(void)
{
	printf("kind %s\n", info.kind == FLEECE_KIND_ORIGIN ? "origin" :
	       info.kind == FLEECE_KIND_SNAPSHOT ? "snapshot" : "?");
	printf("state %s\n", info.state == FLEECE_STATE_ACTIVE ? "active" :
	       info.state == FLEECE_STATE_BROKEN ? "broken" : "?");
	printf("size %llu\ngranularity %llu\ncluster %llu\n", info.size, info.granularity,
	       info.cluster);
	printf("error %d\ncheckpoints %u\nerror_sector %llu\naccessible %llu\nsince %s\n",
	       info.error, info.checkpoints, info.error_sector, info.accessible,
	       info.since[0] ? info.since : "-");
	return 0;
}

static int show_checkpoints(void)
{
	struct fleece_checkpoint *list;
	size_t count, i;

	require(fleece_control_checkpoints(control, device, &list, &count));
	for (i = 0; i < count; i++)
		printf("%s %s %llu %u\n", list[i].name, list[i].uuid, list[i].created,
		       list[i].flags);
	free(list);
	return 0;
}

/* Extents of a range, at most @capacity in one call; checks all that one answer tells. */
static int read_extents(uint32_t map, const char *checkpoint, uint64_t offset, uint64_t length,
			struct fleece_extent *extents, uint32_t capacity)
{
	uint64_t end = offset + length;
	uint64_t covered = 0;
	uint64_t at;
	int total = 0;
	int count, i;

	while (offset < end) {
		count = fleece_control_extents(control, device, map, checkpoint, offset,
					       end - offset, extents + total, capacity,
					       &covered);
		require(count);
		if (!count || (uint32_t)count > capacity || !covered || covered > end - offset)
			fail("answer at %" PRIu64 ": %d extents cover %" PRIu64, offset, count,
			     covered);
		if (covered < end - offset && (uint32_t)count < capacity)
			fail("answer at %" PRIu64 " stops before it is full", offset);
		for (at = offset, i = total; i < total + count; i++) {
			if (extents[i].offset != at || !extents[i].length)
				fail("gap or overlap at %" PRIu64, at);
			if (extents[i].value > 1 || extents[i].reserved)
				fail("extent at %" PRIu64 " has value %u", at, extents[i].value);
			if (i > total && extents[i].value == extents[i - 1].value)
				fail("neighbours at %" PRIu64 " have the same value", at);
			at += extents[i].length;
		}
		if (at != offset + covered)
			fail("extents end at %" PRIu64 ", not at %" PRIu64, at, offset + covered);
		total += count;
		if (total + capacity > ALL_EXTENTS)
			fail("too many extents for this program");
		offset += covered;
	}
	return total;
}

static struct fleece_extent *new_extents(void)
{
	struct fleece_extent *extents = calloc(ALL_EXTENTS, sizeof(*extents));

	if (!extents)
		fail("out of memory");
	return extents;
}

static int show_extents(uint32_t map, const char *checkpoint)
{
	struct fleece_extent *extents = new_extents();
	int count = read_extents(map, checkpoint, 0, info.size, extents, ALL_EXTENTS / 2);
	int i;

	for (i = 0; i < count; i++)
		printf("%llu %llu %u\n", extents[i].offset, extents[i].length,
		       extents[i].value);
	free(extents);
	return 0;
}

static uint64_t read_bits(uint32_t map, const char *checkpoint, uint64_t offset,
			  uint64_t length, uint8_t *bits, size_t bytes, uint64_t *unit)
{
	struct fleece_bitmap request = {
		.fd = device,
		.map = map,
		.offset = offset,
		.length = length,
		.bits = (uintptr_t)bits,
		.bits_size = bytes,
	};

	if (checkpoint)
		snprintf(request.checkpoint, sizeof(request.checkpoint), "%s", checkpoint);
	if (ioctl(control, FLEECE_IOC_BITMAP, &request) < 0)
		require(-errno);
	*unit = request.unit;
	return request.count;
}

static int bit_at(const uint8_t *bits, uint64_t index)
{
	return bits[index / 8] >> (index % 8) & 1;
}

static uint8_t *read_all_bits(uint32_t map, const char *checkpoint, uint64_t *unit,
			      uint64_t *count)
{
	size_t bytes = info.size / SECTOR_BYTES / 8 + 8;
	uint8_t *bits = malloc(bytes);

	if (!bits)
		fail("out of memory");
	memset(bits, 0xff, bytes);
	*count = read_bits(map, checkpoint, 0, info.size, bits, bytes, unit);
	return bits;
}

static int show_bitmap(uint32_t map, const char *checkpoint)
{
	uint64_t unit, count, i;
	uint8_t *bits = read_all_bits(map, checkpoint, &unit, &count);

	printf("%" PRIu64 "\n", unit);
	for (i = 0; i < count; i++)
		putchar('0' + bit_at(bits, i));
	printf("\n");
	free(bits);
	return 0;
}

/* Spread extents over one byte for each sector. */
static void spread(const struct fleece_extent *extents, int count, uint8_t *values)
{
	int i;

	for (i = 0; i < count; i++)
		memset(values + extents[i].offset / SECTOR_BYTES, (int)extents[i].value,
		       extents[i].length / SECTOR_BYTES);
}

static void check_pieces(uint32_t map, const char *checkpoint, const uint8_t *expected)
{
	static const uint32_t capacities[] = { 1, 2, 3, 7 };
	uint64_t sectors = info.size / SECTOR_BYTES;
	struct fleece_extent *extents = new_extents();
	uint8_t *values = malloc(sectors);
	size_t i;
	int count;

	for (i = 0; values && i < sizeof(capacities) / sizeof(capacities[0]); i++) {
		memset(values, 2, sectors);
		count = read_extents(map, checkpoint, 0, info.size, extents, capacities[i]);
		spread(extents, count, values);
		if (memcmp(values, expected, sectors))
			fail("in pieces of %u extents the map differs", capacities[i]);
	}
	free(values);
	free(extents);
}

/* Ranges that begin and end inside granules and clusters. */
static void check_ranges(uint32_t map, const char *checkpoint, const uint8_t *expected)
{
	uint64_t sectors = info.size / SECTOR_BYTES;
	struct fleece_extent *extents = new_extents();
	uint8_t *values = malloc(sectors);
	uint64_t first, length;
	int count, tries;

	for (tries = 0; values && tries < 100; tries++) {
		first = (uint64_t)tries * 7919 % sectors;
		length = 1 + (uint64_t)tries * tries * 104729 % (sectors - first);
		count = read_extents(map, checkpoint, first * SECTOR_BYTES,
				     length * SECTOR_BYTES, extents, 5);
		spread(extents, count, values);
		if (memcmp(values + first, expected + first, length))
			fail("the map from sector %" PRIu64 "+%" PRIu64 " differs", first,
			     length);
	}
	free(values);
	free(extents);
}

static void check_bits(uint32_t map, const char *checkpoint, const uint8_t *expected)
{
	uint64_t sectors = info.size / SECTOR_BYTES;
	uint64_t unit, count, part_unit, part, i;
	uint8_t *bits = read_all_bits(map, checkpoint, &unit, &count);
	uint8_t part_bits[2];

	if (unit != (map == FLEECE_MAP_CHANGED ? info.granularity : info.cluster))
		fail("unit of the bitmap is %" PRIu64, unit);
	if (count != (info.size + unit - 1) / unit)
		fail("bitmap has %" PRIu64 " bits", count);
	for (i = 0; i < sectors; i++)
		if (bit_at(bits, i * SECTOR_BYTES / unit) != expected[i])
			fail("bitmap and extents differ at sector %" PRIu64, i);
	for (i = count; i % 8; i++)
		if (bit_at(bits, i))
			fail("unused bits are set");
	if (count > 4) {
		part = read_bits(map, checkpoint, unit, 3 * unit, part_bits, 1, &part_unit);
		if (part != 3 || part_bits[0] !=
		    (bit_at(bits, 1) | bit_at(bits, 2) << 1 | bit_at(bits, 3) << 2))
			fail("bits 1 to 3 alone are %#x", part_bits[0]);
	}
	free(bits);
}

static int check_rules(uint32_t map, const char *checkpoint)
{
	uint64_t sectors = info.size / SECTOR_BYTES;
	struct fleece_extent *extents = new_extents();
	uint8_t *expected = malloc(sectors);
	int count;

	if (!expected)
		fail("out of memory");
	count = read_extents(map, checkpoint, 0, info.size, extents, ALL_EXTENTS / 2);
	spread(extents, count, expected);
	free(extents);
	check_pieces(map, checkpoint, expected);
	check_ranges(map, checkpoint, expected);
	check_bits(map, checkpoint, expected);
	free(expected);
	printf("ok\n");
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: fleece-maps DEVICE info|checkpoints\n"
		"       fleece-maps DEVICE extents|bitmap|rules changed|accessible|copied [CHECKPOINT]\n");
	return 2;
}

static uint32_t parse_map(const char *text)
{
	if (!strcmp(text, "changed"))
		return FLEECE_MAP_CHANGED;
	if (!strcmp(text, "accessible"))
		return FLEECE_MAP_ACCESSIBLE;
	if (!strcmp(text, "copied"))
		return FLEECE_MAP_COPIED;
	return 0;
}

int main(int argc, char **argv)
{
	const char *checkpoint = argc > 4 ? argv[4] : NULL;
	uint32_t map;

	if (argc < 3 || argc > 5)
		return usage();
	control = fleece_control_open();
	require(control);
	device = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (device < 0)
		require(-errno);
	require(fleece_control_info(control, device, &info));
	if (!strcmp(argv[2], "info"))
		return show_info();
	if (!strcmp(argv[2], "checkpoints"))
		return show_checkpoints();
	map = argc > 3 ? parse_map(argv[3]) : 0;
	if (!map)
		return usage();
	if (!strcmp(argv[2], "extents"))
		return show_extents(map, checkpoint);
	if (!strcmp(argv[2], "bitmap"))
		return show_bitmap(map, checkpoint);
	if (!strcmp(argv[2], "rules"))
		return check_rules(map, checkpoint);
	return usage();
}
