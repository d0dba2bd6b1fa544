// SPDX-License-Identifier: GPL-2.0-only
/*
 * pattern: one operation on a block device, for the shell tests.
 *
 * Data is a function of a seed and of its place, so that it can be verified
 * without a copy. All I/O is direct, one call for up to 4 MiB, so that errors are
 * those of the device and not of the page cache. Prints "ok" or the name of the
 * error; exits 0 if the operation was carried out and the data was right.
 *
 *   pattern DEVICE write SEED OFFSET LENGTH
 *   pattern DEVICE huge SEED OFFSET LENGTH       one call for up to 32 MiB, of huge pages:
 *                                                a bio takes 256 pages of any size
 *   pattern DEVICE dsync SEED OFFSET LENGTH      with RWF_DSYNC: FUA
 *   pattern DEVICE nowait SEED OFFSET LENGTH     with RWF_NOWAIT: EAGAIN for waiting
 *   pattern DEVICE atomic SEED OFFSET LENGTH     with RWF_ATOMIC: each 64 KiB as a whole
 *   pattern DEVICE verify SEED OFFSET LENGTH     SEED "zero": zeroes
 *   pattern DEVICE survey SEED OFFSET LENGTH     verifies each 64 KiB for itself, whatever
 *                                                becomes of the others, and counts them
 *   pattern DEVICE read OFFSET LENGTH
 *   pattern DEVICE discard OFFSET LENGTH
 *   pattern DEVICE zero OFFSET LENGTH            zeroes, by the device if it can
 *   pattern DEVICE flush
 *
 * Offsets and lengths in bytes, or with k or M; a length of - is up to the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "stamp.h"

#define MAX_BYTES	(4u << 20)
#define HUGE_BYTES	(32u << 20)
#define HUGE_PAGE	(2u << 20)
#define SURVEY_BYTES	(64u << 10)
#define ATOMIC_BYTES	(64u << 10)

#ifndef RWF_ATOMIC
#define RWF_ATOMIC	0x40
#endif

/* The verbs that write, and in which manner. */
static const struct writer {
	const char *verb;
	size_t piece_bytes;
	int flags;
} writers[] = {
	{ "write", MAX_BYTES, 0 },
	{ "huge", HUGE_BYTES, 0 },
	{ "dsync", MAX_BYTES, RWF_DSYNC },
	{ "nowait", MAX_BYTES, RWF_NOWAIT },
	{ "atomic", ATOMIC_BYTES, RWF_ATOMIC },
};

static const struct {
	int error;
	const char *name;
} error_names[] = {
	{ EPERM, "EPERM" }, { EIO, "EIO" }, { ENODATA, "ENODATA" }, { EROFS, "EROFS" },
	{ EACCES, "EACCES" }, { EINVAL, "EINVAL" }, { ENOSPC, "ENOSPC" }, { ENXIO, "ENXIO" },
	{ EOPNOTSUPP, "EOPNOTSUPP" }, { ETIMEDOUT, "ETIMEDOUT" }, { ENOMEM, "ENOMEM" },
	{ EAGAIN, "EAGAIN" }, { EREMOTEIO, "EREMOTEIO" }, { ENODEV, "ENODEV" },
	{ EBUSY, "EBUSY" }, { ENOENT, "ENOENT" }, { EBADF, "EBADF" },
};

static int report(int error)
{
	size_t i;

	if (!error) {
		printf("ok\n");
		return 0;
	}
	for (i = 0; i < sizeof(error_names) / sizeof(error_names[0]); i++) {
		if (error_names[i].error == error) {
			printf("%s\n", error_names[i].name);
			return 1;
		}
	}
	printf("errno %d\n", error);
	return 1;
}

static uint64_t parse_bytes(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	if (*end == 'k')
		value <<= 10, end++;
	else if (*end == 'M')
		value <<= 20, end++;
	if (*end || end == text) {
		fprintf(stderr, "pattern: not a size: %s\n", text);
		exit(2);
	}
	return value;
}

static void fill(uint64_t *words, const char *seed_text, uint64_t offset, size_t bytes)
{
	bool is_zero = !strcmp(seed_text, "zero");
	uint64_t seed = strtoull(seed_text, NULL, 0);
	size_t i;

	for (i = 0; i < bytes / 8; i++)
		words[i] = is_zero ? 0 : mix64(seed << 48 ^ (offset / 8 + i));
}

static int write_pattern(int fd, const char *seed, uint64_t offset, size_t bytes, void *data,
			 int flags)
{
	struct iovec piece = { data, bytes };
	ssize_t done;

	fill(data, seed, offset, bytes);
	done = pwritev2(fd, &piece, 1, (off_t)offset, flags);
	if (done < 0)
		return errno;
	return (size_t)done == bytes ? 0 : EIO;
}

static int read_data(int fd, uint64_t offset, size_t bytes, void *data)
{
	ssize_t done = pread(fd, data, bytes, (off_t)offset);

	if (done < 0)
		return errno;
	return (size_t)done == bytes ? 0 : EIO;
}

/* Reads and compares. Sets *difference to the place of the first one, or to the end. */
static int compare(int fd, const char *seed, uint64_t offset, size_t bytes, uint64_t *words,
		   uint64_t *expected, size_t *difference)
{
	int error = read_data(fd, offset, bytes, words);
	size_t i = 0;

	fill(expected, seed, offset, bytes);
	while (!error && i < bytes / 8 && words[i] == expected[i])
		i++;
	*difference = i;
	return error;
}

static int survey(int fd, const char *seed, uint64_t offset, uint64_t bytes)
{
	uint64_t *words = aligned_alloc(SURVEY_BYTES, SURVEY_BYTES);
	uint64_t *expected = malloc(SURVEY_BYTES);
	unsigned int right = 0, failed = 0, different = 0;
	size_t piece, difference;

	for (; words && expected && bytes; bytes -= piece, offset += piece) {
		piece = bytes < SURVEY_BYTES ? bytes : SURVEY_BYTES;
		if (compare(fd, seed, offset, piece, words, expected, &difference))
			failed++;
		else if (difference < piece / 8)
			different++;
		else
			right++;
	}
	free(words);
	free(expected);
	printf("%u right, %u failed, %u different\n", right, failed, different);
	return bytes || different;
}

static int verify_pattern(int fd, const char *seed, uint64_t offset, size_t bytes, void *data)
{
	uint64_t *words = data;
	uint64_t *expected = malloc(bytes);
	int error = ENOMEM;
	size_t i;

	if (expected)
		error = compare(fd, seed, offset, bytes, words, expected, &i);
	if (!error && i < bytes / 8) {
		printf("differs at byte %" PRIu64 ": found %016" PRIx64 " expected %016"
		       PRIx64 "\n", offset + i * 8, words[i], expected[i]);
		exit(1);
	}
	free(expected);
	return error;
}

static int range_ioctl(int fd, unsigned long code, uint64_t offset, uint64_t bytes)
{
	uint64_t range[2] = { offset, bytes };

	return ioctl(fd, code, range) < 0 ? errno : 0;
}

static const struct writer *find_writer(const char *verb)
{
	size_t i;

	for (i = 0; i < sizeof(writers) / sizeof(writers[0]); i++)
		if (!strcmp(writers[i].verb, verb))
			return &writers[i];
	return NULL;
}

static int transfer(int fd, const char *verb, const char *seed, uint64_t offset, uint64_t bytes)
{
	const struct writer *writer = find_writer(verb);
	size_t piece_bytes = writer ? writer->piece_bytes : MAX_BYTES;
	void *data = aligned_alloc(HUGE_PAGE, piece_bytes);
	int error = data ? 0 : ENOMEM;
	size_t piece;

	/* Where that fails the bios are smaller; the tests look at how many there were. */
	if (!error && piece_bytes > MAX_BYTES)
		madvise(data, piece_bytes, MADV_HUGEPAGE);
	while (!error && bytes) {
		piece = bytes < piece_bytes ? bytes : piece_bytes;
		if (writer)
			error = write_pattern(fd, seed, offset, piece, data, writer->flags);
		else if (!strcmp(verb, "verify"))
			error = verify_pattern(fd, seed, offset, piece, data);
		else
			error = read_data(fd, offset, piece, data);
		offset += piece;
		bytes -= piece;
	}
	free(data);
	return error;
}

static uint64_t device_bytes(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

	if (end < 0)
		exit(report(errno));
	close(fd);
	return (uint64_t)end;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 2 ? argv[2] : "";
	bool is_survey = !strcmp(verb, "survey");
	bool has_seed = find_writer(verb) || !strcmp(verb, "verify") || is_survey;
	bool is_reader = !strcmp(verb, "read") || !strcmp(verb, "verify") || is_survey;
	uint64_t offset, bytes;
	int fd;

	if (argc != (!strcmp(verb, "flush") ? 3 : has_seed ? 6 : 5)) {
		fprintf(stderr, "usage: pattern DEVICE VERB [SEED] OFFSET LENGTH\n");
		return 2;
	}
	fd = open(argv[1], (is_reader ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		return report(errno);
	if (argc == 3)
		return report(fsync(fd) < 0 ? errno : 0);
	offset = parse_bytes(argv[argc - 2]);
	if (strcmp(argv[argc - 1], "-"))
		bytes = parse_bytes(argv[argc - 1]);
	else
		bytes = device_bytes(argv[1]) - offset;
	if (!strcmp(verb, "discard"))
		return report(range_ioctl(fd, BLKDISCARD, offset, bytes));
	if (!strcmp(verb, "zero"))
		return report(range_ioctl(fd, BLKZEROOUT, offset, bytes));
	if (is_survey)
		return survey(fd, argv[3], offset, bytes);
	return report(transfer(fd, verb, argv[3], offset, bytes));
}
