// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, metadata: makes, checks and shows metadata devices. It needs neither the
 * module nor a running origin, and changes nothing but in `create`. What is on the
 * device is the business of image.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "json.h"
#include "metadata_device.h"
#include "size.h"
#include "verbs.h"

#define SECTOR			FLEECE_MD_SECTOR_BYTES
#define UUID_TEXT		37

/* What was asked for. */
struct request {
	const char *origin;
	struct metadata_plan plan;
	bool is_json;
};

/* ------------------------- Create ------------------------- */

/* Two names of one device, or of one file? */
static bool is_same(const char *one, const char *other)
{
	struct stat a, b;

	if (stat(one, &a) || stat(other, &b))
		return false;
	if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode))
		return a.st_rdev == b.st_rdev;
	return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static enum status create(struct request *request, const char *path)
{
	char identity[FLEECE_MD_IDENTITY_BYTES] = "";
	enum status status = DONE;
	struct image_io io;
	int fd;

	if (!request->origin == !request->plan.origin_size)
		return verb_usage("create needs one of --origin and --origin-size");
	if (request->origin && is_same(request->origin, path))
		return report(USAGE, path, "is the origin itself, which would be overwritten");
	if (request->origin)
		status = metadata_read_origin(request->origin, &request->plan.origin_size,
					      identity);
	if (status == DONE)
		status = metadata_check_free(path);
	if (status == DONE)
		/* For a block device: not while anybody uses it. */
		status = metadata_open(path, O_RDWR | O_EXCL, &fd, &io);
	if (status != DONE)
		return status;
	status = metadata_make(&request->plan, path, &io, identity);
	if (close(fd) && status == DONE)
		status = report_errno(errno, path, "cannot write it");
	return status;
}

/* ------------------------- Check ------------------------- */

/* The worse of two; of what is wrong, a needed full backup is the worst. */
static enum status worse(enum status a, enum status b)
{
	if (a == NO_CHECKPOINT || b == NO_CHECKPOINT)
		return NO_CHECKPOINT;
	return a > b ? a : b;
}

/* The other copy is written by the next start. */
static void note_other_copy(const struct image *image, const char *path)
{
	const struct image_copy *other = &image->copies[!image->chosen];

	if (other->result && image->root.generation > 1)
		report_note(path, "note: copy %d of the superblock does not count: %s; no harm after a crash, else damage",
			    !image->chosen, other->error);
}

static enum status check_root(const struct image *image, const char *path)
{
	const struct fleece_md_root *root = &image->root;
	enum status status = DONE;
	unsigned int nr_invalid = 0;
	__u32 i;

	if (image->is_short)
		return metadata_report_short(image, path);
	for (i = 0; i < root->nr_checkpoints; i++)
		nr_invalid += root->checkpoints[i].is_invalid || root->state == FLEECE_MD_INVALID;
	if (nr_invalid)
		status = report(NO_CHECKPOINT, path,
				"%u of %u checkpoints are invalid: changes were missed when the device failed or the origin was written to without the target; make a full backup",
				nr_invalid, root->nr_checkpoints);
	if (!fleece_md_is_writable(root)) {
		report_note(path, "it has features that are not known: this version's module refuses it");
		status = worse(status, NO_MODULE);
	}
	if (root->state == FLEECE_MD_DIRTY)
		report_note(path, "note: in use, or it ended with a crash: %" PRIu64 " regions count as changed",
			    (uint64_t)image->nr_intents);
	return status;
}

static enum status check_maps(const struct image *image, const char *path)
{
	enum status status = DONE;
	__u32 i;

	if (image->nr_bad_intents)
		status = report(FAILED, path,
				"%" PRIu64 " sectors of the intents are damaged: each makes up to %u regions count as changed, since every checkpoint",
				(uint64_t)image->nr_bad_intents, FLEECE_MD_MAP_BITS);
	for (i = 0; i < image->root.nr_checkpoints; i++) {
		if (image->maps[i].nr_bad)
			status = report(FAILED, path,
					"%" PRIu64 " sectors of checkpoint %s are damaged: each makes up to %u granules count as changed, since it and older ones",
					(uint64_t)image->maps[i].nr_bad,
					image->root.checkpoints[i].name, FLEECE_MD_MAP_BITS);
	}
	return status;
}

static enum status check_origin(const struct request *request, const struct image *image,
				const char *path)
{
	char identity[FLEECE_MD_IDENTITY_BYTES];
	uint64_t bytes;
	enum status status;

	if (!request->origin)
		return DONE;
	status = metadata_read_origin(request->origin, &bytes, identity);
	if (status != DONE)
		return status;
	if (bytes / SECTOR > image->root.origin_sectors)
		report_note(path, "note: %s is larger than recorded: attach drops the checkpoints then",
			    request->origin);
	return metadata_check_origin(image, path, request->origin, bytes, identity);
}

static enum status check(const struct request *request, const struct image *image,
			 const char *path)
{
	enum status status = metadata_check_copies(image, path);

	if (status != DONE)
		return status;
	note_other_copy(image, path);
	status = check_root(image, path);
	if (!image->is_short)
		status = worse(status, check_maps(image, path));
	status = worse(status, check_origin(request, image, path));
	if (status == DONE)
		printf("%s: in order, generation %" PRIu64 ", %u checkpoints\n", path,
		       (uint64_t)image->root.generation, image->root.nr_checkpoints);
	return status;
}

/* ------------------------- Dump ------------------------- */

static const char *uuid_text(char *text, const __u8 *uuid)
{
	char *to = text;
	unsigned int i;

	for (i = 0; i < FLEECE_MD_UUID_BYTES; i++)
		to += sprintf(to, i >= 4 && i <= 10 && !(i % 2) ? "-%02x" : "%02x", uuid[i]);
	return text;
}

static const char *state_text(enum fleece_md_state state)
{
	switch (state) {
	case FLEECE_MD_CLEAN:
		return "clean";
	case FLEECE_MD_DIRTY:
		return "dirty";
	default:
		return "invalid";
	}
}

static bool is_invalid(const struct image *image, __u32 index)
{
	return image->is_short || image->root.state == FLEECE_MD_INVALID ||
	       image->root.checkpoints[index].is_invalid;
}

/* The last granule may be a part only. */
static uint64_t changed_bytes(const struct image *image, __u32 index)
{
	uint64_t bytes = image->maps[index].changed * image->root.granule_sectors * SECTOR;
	uint64_t all = image->root.origin_sectors * SECTOR;

	return bytes < all ? bytes : all;
}

static void dump_json(const struct image *image)
{
	struct fleece_json json = { .out = stdout };
	const struct fleece_md_root *root = &image->root;
	char uuid[UUID_TEXT];
	__u32 i;

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_string(&json, "uuid", uuid_text(uuid, root->uuid));
	fleece_json_string(&json, "state", state_text(root->state));
	fleece_json_number(&json, "generation", root->generation);
	fleece_json_number(&json, "written", root->written);
	fleece_json_number(&json, "size_needed_bytes", image->layout.nr_sectors * SECTOR);
	fleece_json_bool(&json, "is_short", image->is_short);
	fleece_json_number(&json, "origin_size_bytes", root->origin_sectors * SECTOR);
	fleece_json_number(&json, "capacity_bytes", root->capacity_sectors * SECTOR);
	fleece_json_string(&json, "origin_identity", root->identity);
	fleece_json_number(&json, "granularity_bytes", (uint64_t)root->granule_sectors * SECTOR);
	fleece_json_number(&json, "region_bytes", (uint64_t)root->region_sectors * SECTOR);
	fleece_json_number(&json, "checkpoints_max", root->nr_slots);
	fleece_json_number(&json, "intents", image->nr_intents);
	fleece_json_number(&json, "damaged_intent_sectors", image->nr_bad_intents);
	fleece_json_array(&json, "checkpoints");
	for (i = 0; i < root->nr_checkpoints; i++) {
		fleece_json_object(&json, NULL);
		fleece_json_string(&json, "name", root->checkpoints[i].name);
		fleece_json_string(&json, "uuid", uuid_text(uuid, root->checkpoints[i].uuid));
		fleece_json_number(&json, "created", root->checkpoints[i].created);
		fleece_json_bool(&json, "valid", !is_invalid(image, i));
		fleece_json_number(&json, "changed_bytes", changed_bytes(image, i));
		fleece_json_number(&json, "damaged_sectors", image->maps[i].nr_bad);
		fleece_json_object_end(&json);
	}
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
}

static void print_size(const char *what, uint64_t bytes)
{
	char text[FLEECE_SIZE_TEXT];

	printf("%-14s %" PRIu64 " (%s)\n", what, bytes, fleece_size_format(text, bytes));
}

static void dump_text(const struct image *image)
{
	const struct fleece_md_root *root = &image->root;
	char uuid[UUID_TEXT], text[FLEECE_SIZE_TEXT];
	__u32 i;

	printf("%-14s %s\n", "uuid", uuid_text(uuid, root->uuid));
	printf("%-14s %s\n", "state", state_text(root->state));
	printf("%-14s %" PRIu64 ", at %" PRIu64 "\n", "generation", (uint64_t)root->generation,
	       (uint64_t)root->written);
	print_size("size needed", image->layout.nr_sectors * SECTOR);
	print_size("origin", root->origin_sectors * SECTOR);
	print_size("capacity", root->capacity_sectors * SECTOR);
	printf("%-14s %s\n", "identity", root->identity[0] ? root->identity : "-");
	print_size("granularity", (uint64_t)root->granule_sectors * SECTOR);
	print_size("region", (uint64_t)root->region_sectors * SECTOR);
	printf("%-14s %" PRIu64 "\n", "intents", (uint64_t)image->nr_intents);
	printf("%-14s %u of %u\n", "checkpoints", root->nr_checkpoints, root->nr_slots);
	for (i = 0; i < root->nr_checkpoints; i++)
		printf("  %-24s %s  created %" PRIu64 "  changed %s  %s\n",
		       root->checkpoints[i].name, uuid_text(uuid, root->checkpoints[i].uuid),
		       (uint64_t)root->checkpoints[i].created,
		       fleece_size_format(text, changed_bytes(image, i)),
		       is_invalid(image, i) ? "invalid" : "valid");
}

static enum status dump(const struct request *request, const struct image *image,
			const char *path)
{
	enum status status = metadata_check_copies(image, path);

	if (status != DONE)
		return status;
	if (request->is_json)
		dump_json(image);
	else
		dump_text(image);
	return DONE;
}

/* ------------------------- The verb ------------------------- */

static enum status inspect(const struct request *request, const char *path, bool is_dump)
{
	static struct image image;
	struct image_io io;
	enum status status;
	int fd, ret;

	status = metadata_open(path, O_RDONLY, &fd, &io);
	if (status != DONE)
		return status;
	ret = image_inspect(&io, &image);
	close(fd);
	if (ret)
		return report_errno(ret, path, "cannot inspect it");
	return is_dump ? dump(request, &image, path) : check(request, &image, path);
}

/* A size of whole sectors. */
static void parse_size(const char *option, const char *text, uint64_t *bytes)
{
	if (fleece_size_parse(text, bytes) || !*bytes || *bytes % SECTOR)
		exit(verb_usage("%s: '%s' is not a size of whole sectors", option, text));
}

static void parse_count(const char *text, uint64_t *count)
{
	char *end;

	errno = 0;
	*count = strtoull(text, &end, 10);
	if (errno || *end || end == text || !*count || *count > FLEECE_MD_SLOTS_MAX)
		exit(verb_usage("--checkpoints: '%s' is not a number from 1 to %u", text,
				FLEECE_MD_SLOTS_MAX));
}

enum { ORIGIN = 256, ORIGIN_SIZE, CAPACITY, GRANULARITY, REGION, CHECKPOINTS, FORCE, JSON };

/* Returns whether an option was given that only create has. */
static bool parse_options(int argc, char **argv, struct request *request)
{
	static const struct option options[] = {
		{ "origin", required_argument, NULL, ORIGIN },
		{ "origin-size", required_argument, NULL, ORIGIN_SIZE },
		{ "capacity", required_argument, NULL, CAPACITY },
		{ "granularity", required_argument, NULL, GRANULARITY },
		{ "region", required_argument, NULL, REGION },
		{ "checkpoints", required_argument, NULL, CHECKPOINTS },
		{ "force", no_argument, NULL, FORCE },
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool is_create = false;
	int option;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		is_create |= option != ORIGIN && option != JSON;
		if (option == ORIGIN)
			request->origin = optarg;
		else if (option == ORIGIN_SIZE)
			parse_size("--origin-size", optarg, &request->plan.origin_size);
		else if (option == CAPACITY)
			parse_size("--capacity", optarg, &request->plan.capacity);
		else if (option == GRANULARITY)
			parse_size("--granularity", optarg, &request->plan.granularity);
		else if (option == REGION)
			parse_size("--region", optarg, &request->plan.region);
		else if (option == CHECKPOINTS)
			parse_count(optarg, &request->plan.checkpoints);
		else if (option == FORCE)
			request->plan.is_forced = true;
		else
			request->is_json = true;
	}
	return is_create;
}

enum status verb_metadata(int argc, char **argv)
{
	struct request request = { .plan = METADATA_PLAN_DEFAULT };
	bool has_create_option = parse_options(argc, argv, &request);
	bool is_create, is_dump;
	char **words = argv + optind;

	if (argc - optind < 1)
		return verb_usage("create, check or dump is needed");
	is_create = !strcmp(words[0], "create");
	is_dump = !strcmp(words[0], "dump");
	if (!is_create && !is_dump && strcmp(words[0], "check"))
		return verb_usage("'%s' is none of create, check and dump", words[0]);
	if (argc - optind != 2)
		return verb_usage("%s needs exactly one DEVICE", words[0]);
	if (request.is_json && !is_dump)
		return verb_usage("--json goes with dump");
	if (request.origin && is_dump)
		return verb_usage("--origin goes with create and check");
	if (has_create_option && !is_create)
		return verb_usage("only create makes something of these options");
	return is_create ? create(&request, words[1]) : inspect(&request, words[1], is_dump);
}
