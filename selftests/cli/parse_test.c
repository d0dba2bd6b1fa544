// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, parse: sizes, ranges, status lines, checkpoint lists and JSON of
 * libfleece, the URIs of fleece serve, and how origins are told apart. Every
 * answer of the kernel is also tried with its end cut off.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../tap.h"
#include "image.h"
#include "json.h"
#include "size.h"
#include "status.h"
#include "uri.h"

static void test_sizes(void)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{ "0", 0 }, { "1", 1 }, { "512B", 512 }, { "8s", 4096 }, { "4k", 4096 },
		{ "64K", 65536 }, { "64KiB", 65536 }, { "1M", 1048576 }, { "2g", 2147483648 },
		{ "1TiB", 1099511627776 }, { "3P", 3377699720527872 }, { "15E", 15ULL << 60 },
		{ "18446744073709551615", UINT64_MAX },
	};
	static const struct {
		const char *text;
		int error;
	} bad[] = {
		{ "", -EINVAL }, { " 1", -EINVAL }, { "1 ", -EINVAL }, { "-1", -EINVAL },
		{ "+1", -EINVAL }, { "0x10", -EINVAL }, { "1.5G", -EINVAL }, { "K", -EINVAL },
		{ "1KB", -EINVAL }, { "1Ki", -EINVAL }, { "1X", -EINVAL }, { "1b", -EINVAL },
		{ "1KK", -EINVAL }, { "1%", -EINVAL }, { "16E", -ERANGE },
		{ "18446744073709551616", -ERANGE }, { "99999999999999999999999K", -ERANGE },
	};
	uint64_t bytes;
	size_t i;

	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		bytes = ~good[i].bytes;
		tap_ok(!fleece_size_parse(good[i].text, &bytes) && bytes == good[i].bytes,
		       "size '%s' is %llu bytes", good[i].text, (unsigned long long)good[i].bytes);
	}
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		tap_ok(fleece_size_parse(bad[i].text, &bytes) == bad[i].error,
		       "size '%s' is refused: %s", bad[i].text, strerror(-bad[i].error));
}

static void test_ranges(void)
{
	uint64_t offset, length;
	unsigned int percent;

	tap_ok(!fleece_range_parse("1M:64K", &offset, &length) && offset == 1048576 &&
	       length == 65536, "range 1M:64K");
	tap_ok(fleece_range_parse("1M", &offset, &length) == -EINVAL, "range without a colon");
	tap_ok(fleece_range_parse(":1", &offset, &length) == -EINVAL, "range without an offset");
	tap_ok(fleece_range_parse("1:", &offset, &length) == -EINVAL, "range without a length");
	tap_ok(fleece_range_parse("1:2:3", &offset, &length) == -EINVAL, "range of three");
	tap_ok(fleece_range_parse("1:0", &offset, &length) == -EINVAL, "range of length 0");
	tap_ok(fleece_range_parse("15E:1E", &offset, &length) == -ERANGE, "range beyond 2^64");
	tap_ok(!fleece_percent_parse("80%", &percent) && percent == 80, "80%%");
	tap_ok(!fleece_percent_parse("0", &percent) && percent == 0, "0 percent");
	tap_ok(fleece_percent_parse("101%", &percent) == -ERANGE, "101%% is refused");
	tap_ok(fleece_percent_parse("80%%", &percent) == -EINVAL, "80%%%% is refused");
	tap_ok(fleece_percent_parse("%", &percent) == -EINVAL, "a bare percent sign is refused");
}

static void test_format(void)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} sizes[] = {
		{ 0, "0" }, { 1023, "1023" }, { 1024, "1.0K" }, { 1536, "1.5K" },
		{ 1048575, "1023.9K" }, { 1048576, "1.0M" }, { UINT64_MAX, "15.9E" },
	};
	char text[FLEECE_SIZE_TEXT];
	size_t i;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		tap_ok(!strcmp(fleece_size_format(text, sizes[i].bytes), sizes[i].text),
		       "%llu bytes are written %s", (unsigned long long)sizes[i].bytes,
		       sizes[i].text);
}

/* Number of words at the start of @text without which @parse refuses it. */
static size_t cut_is_refused(const char *text, bool (*parse)(const char *text))
{
	char *copy = strdup(text), *blank;
	size_t refused = 0;

	while (copy && (blank = strrchr(copy, ' '))) {
		*blank = 0;
		refused += !parse(copy);
	}
	free(copy);
	return refused;
}

static bool parse_origin(const char *text)
{
	struct fleece_origin_status status;

	return !fleece_origin_status_parse(text, &status);
}

static bool parse_snapshot(const char *text)
{
	struct fleece_snapshot_status status;

	return !fleece_snapshot_status_parse(text, &status);
}

static void test_origin_status(void)
{
	struct fleece_origin_status status;

	tap_ok(parse_origin("128 16384 77 none 1 2 monday") &&
	       !fleece_origin_status_parse("128 16384 77 none 1 2 monday", &status) &&
	       status.granularity == 65536 && status.total_granules == 16384 &&
	       status.changed_granules == 77 && !strcmp(status.metadata, "none") &&
	       status.snapshots == 1 && status.checkpoints == 2 &&
	       !strcmp(status.newest, "monday"), "origin status");
	tap_ok(!fleece_origin_status_parse("8 1 0 clean 0 0 -", &status) && !status.newest[0],
	       "origin status without a checkpoint");
	tap_ok(parse_origin("8 1 0 none 0 0 - more 1"), "origin status of a newer module");
	tap_ok(cut_is_refused("8 1 0 none 0 0 -", parse_origin) == 6, "origin status cut off");
	tap_ok(!parse_origin("x 1 0 none 0 0 -"), "origin status: granularity no number");
	tap_ok(!parse_origin("8 1 0 averyveryverylongword 0 0 -"), "origin status: word too long");
	tap_ok(!parse_origin("8 1 0 none 0 5000000000 -"), "origin status: count too large");
	tap_ok(!parse_origin("36028797018963968 1 0 none 0 0 -"), "origin status: size overflows");
	tap_ok(!parse_origin(""), "origin status: empty");
}

static bool parse_metadata(const char *text)
{
	struct fleece_metadata_status status;

	return !fleece_metadata_status_parse(text, &status);
}

static void test_metadata_status(void)
{
	struct fleece_metadata_status status;

	tap_ok(!fleece_metadata_status_parse("failed 5 3 100 7", &status) &&
	       !strcmp(status.state, "failed") && status.error == EIO &&
	       status.bad_sectors == 3 && status.written_bytes == 409600 && status.grants == 7,
	       "metadata status");
	tap_ok(parse_metadata("none 0 0 0 0 more\n"), "metadata status of a newer module");
	tap_ok(cut_is_refused("none 0 0 0 0", parse_metadata) == 4, "metadata status cut off");
	tap_ok(!parse_metadata("clean -5 0 0 0"), "metadata status: errno no number");
	tap_ok(!parse_metadata("clean 0 0 9007199254740992 0"), "metadata status: size overflows");
}

static void test_snapshot_status(void)
{
	static const char line[] = "active 3/100 128 40/50 7 2 1 65536 4 5 99";
	struct fleece_snapshot_status status;

	tap_ok(!fleece_snapshot_status_parse(line, &status) && !status.is_broken &&
	       status.used_slots == 3 && status.total_slots == 100 && status.cluster == 65536 &&
	       status.accessible_clusters == 40 && status.total_clusters == 50 &&
	       status.copied_clusters == 7 && status.released_clusters == 2 &&
	       status.lost_clusters == 1 && status.staged_bytes == 65536 &&
	       status.waiting_writes == 4 && status.error == 5 && status.error_sector == 99,
	       "snapshot status");
	tap_ok(!fleece_snapshot_status_parse("broken 0/1 8 0/9 0 0 0 0 0 28 0", &status) &&
	       status.is_broken && status.error == ENOSPC, "snapshot status: broken");
	tap_ok(cut_is_refused(line, parse_snapshot) == 10, "snapshot status cut off");
	tap_ok(!parse_snapshot("lost 3/100 128 40/50 7 2 1 65536 4 5 99"),
	       "snapshot status: unknown state");
	tap_ok(!parse_snapshot("active 3 100 128 40/50 7 2 1 65536 4 5 99"),
	       "snapshot status: slots without a slash");
	tap_ok(!parse_snapshot("active 3/100/4 128 40/50 7 2 1 65536 4 5 99"),
	       "snapshot status: slots with two slashes");
	tap_ok(!parse_snapshot("active -3/100 128 40/50 7 2 1 65536 4 5 99"),
	       "snapshot status: negative number");
}

static bool list_is(const char *text, int result, size_t count)
{
	struct fleece_checkpoint_line *list = NULL;
	size_t got = 0;
	int ret = fleece_checkpoint_list_parse(text, &list, &got);

	if (!ret)
		free(list);
	return ret == result && got == count;
}

static void test_checkpoints(void)
{
	static const char two[] =
		"monday 0a0a-1 1700000000 5 valid\ntuesday 0b-2 1700000001 0 invalid\n";
	struct fleece_checkpoint_line *list = NULL;
	char name[65];
	size_t count = 0;

	tap_ok(!fleece_checkpoint_list_parse(two, &list, &count) && count == 2 &&
	       !strcmp(list[0].name, "monday") && !strcmp(list[0].uuid, "0a0a-1") &&
	       list[0].created == 1700000000 && list[0].changed_granules == 5 &&
	       list[0].is_valid && !strcmp(list[1].name, "tuesday") && !list[1].is_valid,
	       "list of two checkpoints");
	free(list);
	tap_ok(list_is("", 0, 0), "list without a checkpoint");
	tap_ok(list_is("a u 1 2 valid", 0, 1), "list without a last line feed");
	tap_ok(list_is("a u 1 2\n", -EPROTO, 0), "list with a short line");
	tap_ok(list_is("a u 1 2 maybe\n", -EPROTO, 0), "list with an unknown validity");
	tap_ok(list_is("a u 1 2 valid\n\n", -EPROTO, 0), "list with an empty line");

	memset(name, 'x', 63);
	name[63] = 0;
	tap_ok(fleece_name_is_valid(name), "a name of 63 characters");
	strcat(name, "x");
	tap_ok(!fleece_name_is_valid(name), "a name of 64 is refused");
	tap_ok(fleece_name_is_valid("A-z.0_9"), "a name of all kinds of characters");
	tap_ok(!fleece_name_is_valid("") && !fleece_name_is_valid("-a") &&
	       !fleece_name_is_valid(".a") && !fleece_name_is_valid("a b") &&
	       !fleece_name_is_valid("a/b") && !fleece_name_is_valid("\xc3\xa4"),
	       "other names are refused");
}

static void test_json(void)
{
	static const char expected[] =
		"{\n  \"a\\\"\\\\\\n\\t\\u0001\": 18446744073709551615,\n"
		"  \"utf8\": \"\xc3\xa4\xf0\x9f\x90\x91\",\n"
		"  \"bad\": \"\\ufffd\\ufffd\\ufffdx\",\n"
		"  \"none\": null,\n"
		"  \"empty\": [],\n"
		"  \"list\": [\n    true,\n    {\n      \"x\": false\n    }\n  ]\n}\n";
	char *text = NULL;
	size_t size = 0;
	struct fleece_json json = { .out = open_memstream(&text, &size) };

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "a\"\\\n\t\x01", UINT64_MAX);
	fleece_json_string(&json, "utf8", "\xc3\xa4\xf0\x9f\x90\x91");
	/* A lone byte, an overlong slash, of which each byte counts. */
	fleece_json_string(&json, "bad", "\xff\xc0\xafx");
	fleece_json_string(&json, "none", NULL);
	fleece_json_array(&json, "empty");
	fleece_json_array_end(&json);
	fleece_json_array(&json, "list");
	fleece_json_bool(&json, NULL, true);
	fleece_json_object(&json, NULL);
	fleece_json_bool(&json, "x", false);
	fleece_json_object_end(&json);
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
	fclose(json.out);
	tap_ok(text && !strcmp(text, expected), "JSON of all kinds");
	if (text && strcmp(text, expected))
		printf("# got:\n%s", text);
	free(text);
}

static void is_uri(int ret, const char *uri, const char *expected)
{
	tap_ok(!ret && !strcmp(uri, expected), "URI %s", expected);
	if (ret || strcmp(uri, expected))
		printf("# found: %d %s\n", ret, uri);
}

static void test_uris(void)
{
	static const struct {
		const char *address;
		const char *uri;
	} tcp[] = {
		{ "127.0.0.1", "nbd://127.0.0.1/vg-db" },
		{ "127.0.0.1:10810", "nbd://127.0.0.1:10810/vg-db" },
		{ "db1.example.com:1", "nbd://db1.example.com:1/vg-db" },
		{ "::1", "nbd://[::1]/vg-db" },
		{ "[::1]", "nbd://[::1]/vg-db" },
		{ "[fe80::1%eth0]:10810", "nbd://[fe80::1%25eth0]:10810/vg-db" },
		{ "0.0.0.0", "nbd://here/vg-db" },
		{ "[::]:7", "nbd://here:7/vg-db" },
	};
	const struct uri_export export = { .name = "vg-db" };
	const struct uri_export secret = { .name = "a+b@monday", .is_tls = true };
	char uri[256], shorter[16];
	size_t i;
	int ret;

	for (i = 0; i < sizeof(tcp) / sizeof(tcp[0]); i++) {
		ret = uri_of_tcp(uri, sizeof(uri), &export, tcp[i].address, "here");
		is_uri(ret, uri, tcp[i].uri);
	}
	ret = uri_of_tcp(uri, sizeof(uri), &secret, "127.0.0.1", "here");
	is_uri(ret, uri, "nbds://127.0.0.1/a%2Bb@monday");
	ret = uri_of_unix(uri, sizeof(uri), &export, "/run/fleece/vg-db.sock");
	is_uri(ret, uri, "nbd+unix:///vg-db?socket=/run/fleece/vg-db.sock");
	ret = uri_of_unix(uri, sizeof(uri), &secret, "/a b'&c=%d+\xc3\xa4?#\"");
	is_uri(ret, uri, "nbds+unix:///a%2Bb@monday?socket=/a%20b%27%26c%3D%25d%2B%C3%A4%3F%23%22");
	ret = uri_of_vsock(uri, sizeof(uri), &export, "1:10809", 3);
	is_uri(ret, uri, "nbd+vsock://1:10809/vg-db");
	ret = uri_of_vsock(uri, sizeof(uri), &secret, "10809", 3);
	is_uri(ret, uri, "nbds+vsock://3:10809/a%2Bb@monday");
	tap_ok(uri_of_tcp(uri, sizeof(uri), &export, "127.0.0.1:0", "here") == -EINVAL,
	       "no URI for a port that the server chooses");
	tap_ok(uri_of_vsock(uri, sizeof(uri), &export, "1:0", 3) == -EINVAL,
	       "no URI for a vsock port that the server chooses");
	tap_ok(uri_of_unix(shorter, sizeof(shorter), &export, "/run") == -ENAMETOOLONG,
	       "no URI that is cut off");
}

/* Long names that are the same but for their last character. */
static void test_identities(void)
{
	char name[200], one[FLEECE_MD_IDENTITY_BYTES], other[FLEECE_MD_IDENTITY_BYTES];
	size_t length;
	bool differ = true;

	image_identity(one, "LVM-abc", "2048");
	tap_ok(!strcmp(one, "LVM-abc+2048"), "an identity has the name and the start");
	for (length = 1; length < sizeof(name); length++) {
		memset(name, 'x', length);
		name[length] = '\0';
		image_identity(one, name, "1");
		name[length - 1] = 'y';
		image_identity(other, name, "1");
		differ &= !!strcmp(one, other);
		name[length - 1] = 'x';
		image_identity(other, name, "2");
		differ &= !!strcmp(one, other);
	}
	tap_ok(differ, "identities of long names, and of parts of one disk, differ");
}

int main(void)
{
	test_sizes();
	test_ranges();
	test_format();
	test_origin_status();
	test_metadata_status();
	test_snapshot_status();
	test_checkpoints();
	test_json();
	test_uris();
	test_identities();
	return tap_end();
}
