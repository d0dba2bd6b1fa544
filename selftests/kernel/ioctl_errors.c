// SPDX-License-Identifier: GPL-2.0-only
/*
 * ioctl_errors ORIGIN SNAPSHOT STRANGER CHECKPOINT: gives /dev/fleece-control every
 * kind of bad argument, and prints a TAP line for each answer.
 *
 * ORIGIN and SNAPSHOT have CHECKPOINT and at least two more checkpoints each;
 * STRANGER is a block device that is not of dm-fleece. SNAPSHOT is new, has clusters of
 * 4 KiB, and at the end one that cannot have any more clusters released in part. With
 * "--compat" before them all calls enter the kernel as those of a 32-bit program do.
 *
 * ioctl_errors --has-compat: does this kernel know such calls?
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-fleece.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tap.h"

#define PAGE_BYTES	4096
#define COMPAT_GETPID	20
#define COMPAT_IOCTL	54
#define CLUSTER_BYTES	4096
/* Clusters that can be released in part at a time. */
#define PARTS_MAX	4096

static bool is_compat;
static int control;
static int origin;
static int snapshot;
static const char *checkpoint;
static struct fleece_info origin_info;

/*
 * Arguments live here, below 4 GiB, so that compat calls can name them; the page
 * behind is not accessible, so that too long answers are seen.
 */
static char *arena;

static void check(bool is_good, const char *what, const char *detail)
{
	tap_ok(is_good, "%s: %s", what, detail);
}

static int compat_call(int number, uint32_t first, uint32_t second, uint32_t third)
{
	int ret = -ENOSYS;

#ifdef __x86_64__
	asm volatile("int $0x80"
		     : "=a" (ret)
		     : "a" (number), "b" (first), "c" (second), "d" (third)
		     : "memory", "r8", "r9", "r10", "r11");
#endif
	return ret;
}

/* Where it knows none the first one is a fault. */
static bool has_compat(void)
{
	int status = 0;
	pid_t child = fork();

	if (!child)
		_exit(compat_call(COMPAT_GETPID, 0, 0, 0) != getpid());
	return child > 0 && waitpid(child, &status, 0) == child && !status;
}

static int enter(unsigned long code, uintptr_t argument)
{
	if (is_compat)
		return compat_call(COMPAT_IOCTL, control, code, argument);
	return ioctl(control, code, argument) < 0 ? -errno : 0;
}

/* Puts the argument at the very end of the arena, calls, and fetches the answer. */
static int call(unsigned long code, void *argument, size_t bytes)
{
	char *place = arena + PAGE_BYTES - bytes;
	int ret;

	memcpy(place, argument, bytes);
	ret = enter(code, (uintptr_t)place);
	memcpy(argument, place, bytes);
	return ret;
}

static void expect(const char *what, int ret, int error)
{
	char detail[96];

	snprintf(detail, sizeof(detail), "%s (found %s)", strerror(error), strerror(-ret));
	check(ret == -error, what, detail);
}

/* Where the contract leaves two answers. */
static void expect_either(const char *what, int ret, int error, int other)
{
	expect(what, ret, ret == -other ? other : error);
}

static void set_name(char *field, const char *name)
{
	snprintf(field, FLEECE_NAME_SIZE, "%s", name);
}

static struct fleece_extents extents_of(int fd, uint32_t map)
{
	struct fleece_extents request = {
		.fd = fd,
		.map = map,
		.capacity = 2,
		.length = origin_info.size,
		.extents = (uintptr_t)arena,
	};

	if (map == FLEECE_MAP_CHANGED)
		set_name(request.checkpoint, checkpoint);
	return request;
}

static struct fleece_bitmap bitmap_of(int fd, uint32_t map)
{
	struct fleece_bitmap request = {
		.fd = fd,
		.map = map,
		.length = origin_info.size,
		.bits = (uintptr_t)arena,
		.bits_size = PAGE_BYTES / 2,
	};

	if (map == FLEECE_MAP_CHANGED)
		set_name(request.checkpoint, checkpoint);
	return request;
}

static int call_info(struct fleece_info request)
{
	return call(FLEECE_IOC_INFO, &request, sizeof(request));
}

static int call_checkpoints(struct fleece_checkpoints request)
{
	return call(FLEECE_IOC_CHECKPOINTS, &request, sizeof(request));
}

static int call_extents(struct fleece_extents request)
{
	return call(FLEECE_IOC_EXTENTS, &request, sizeof(request));
}

static int call_bitmap(struct fleece_bitmap request)
{
	return call(FLEECE_IOC_BITMAP, &request, sizeof(request));
}

static int call_release(struct fleece_release request)
{
	return call(FLEECE_IOC_RELEASE, &request, sizeof(request));
}

/* The calls that name a device, all with the descriptor @fd. */
static void expect_of_fd(const char *what, int fd, int error)
{
	struct fleece_checkpoints list = { .fd = fd };
	char name[96];

	snprintf(name, sizeof(name), "INFO of %s", what);
	expect(name, call_info((struct fleece_info){ .fd = fd }), error);
	snprintf(name, sizeof(name), "CHECKPOINTS of %s", what);
	expect(name, call_checkpoints(list), error);
	snprintf(name, sizeof(name), "EXTENTS of %s", what);
	expect(name, call_extents(extents_of(fd, FLEECE_MAP_CHANGED)), error);
	snprintf(name, sizeof(name), "BITMAP of %s", what);
	expect(name, call_bitmap(bitmap_of(fd, FLEECE_MAP_CHANGED)), error);
	snprintf(name, sizeof(name), "RELEASE of %s", what);
	expect(name, call_release((struct fleece_release){ .fd = fd, .length = 512 }), error);
}

static void test_calls(void)
{
	struct fleece_version version = { .interface = 0 };

	expect("VERSION", call(FLEECE_IOC_VERSION, &version, sizeof(version)), 0);
	check(version.interface == FLEECE_INTERFACE_VERSION && !version.reserved &&
	      version.module[0] && memchr(version.module, '\0', sizeof(version.module)),
	      "VERSION", "names the interface and the module");
	expect("a call of no known number",
	       enter(_IO(FLEECE_IOC_MAGIC, 99), (uintptr_t)arena), ENOTTY);
	expect("a call of another driver", enter(_IO('z', 1), (uintptr_t)arena), ENOTTY);
	expect("a known number with another size",
	       enter(_IOWR(FLEECE_IOC_MAGIC, 1, uint64_t), (uintptr_t)arena), ENOTTY);
	expect("VERSION to nowhere", enter(FLEECE_IOC_VERSION, 8), EFAULT);
	expect("INFO to nowhere", enter(FLEECE_IOC_INFO, 8), EFAULT);
	expect("CHECKPOINTS to nowhere", enter(FLEECE_IOC_CHECKPOINTS, 8), EFAULT);
	expect("EXTENTS to nowhere", enter(FLEECE_IOC_EXTENTS, 8), EFAULT);
	expect("BITMAP to nowhere", enter(FLEECE_IOC_BITMAP, 8), EFAULT);
	expect("RELEASE from nowhere", enter(FLEECE_IOC_RELEASE, 8), EFAULT);
	expect("INFO that ends outside of memory",
	       enter(FLEECE_IOC_INFO, (uintptr_t)arena + PAGE_BYTES - 8), EFAULT);
}

static void test_descriptors(const char *origin_path, const char *stranger_path)
{
	int stranger = open(stranger_path, O_RDONLY | O_CLOEXEC);
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int directory = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int writer = open(origin_path, O_WRONLY | O_CLOEXEC);
	int path = open(origin_path, O_PATH | O_CLOEXEC);
	int ends[2];

	if (stranger < 0 || file < 0 || null < 0 || directory < 0 || writer < 0 || path < 0 ||
	    pipe(ends)) {
		check(false, "descriptors", strerror(errno));
		return;
	}
	expect_of_fd("descriptor -1", -1, EBADF);
	expect_of_fd("a closed descriptor", 1000, EBADF);
	expect_of_fd("a foreign block device", stranger, ENODEV);
	expect_of_fd("a file", file, ENODEV);
	expect_of_fd("a character device", null, ENODEV);
	expect_of_fd("a directory", directory, ENODEV);
	expect_of_fd("a pipe", ends[0], ENODEV);
	expect_of_fd("the control device itself", control, ENODEV);
	expect_of_fd("an origin open only for writing", writer, EBADF);
	expect_of_fd("an origin open only as a path", path, EBADF);
	close(stranger);
	close(file);
	close(null);
	close(directory);
	close(writer);
	close(path);
	close(ends[0]);
	close(ends[1]);
}

static void test_info(void)
{
	struct fleece_info request = { .fd = origin, .flags = 1 };
	size_t i;

	expect("INFO with a flag", call_info(request), EINVAL);
	for (i = 0; i < 8; i++) {
		request = (struct fleece_info){ .fd = origin };
		request.reserved[i] = 1;
		expect("INFO with a reserved field", call_info(request), EINVAL);
	}
	request = (struct fleece_info){ .fd = snapshot };
	expect("INFO of a snapshot", call(FLEECE_IOC_INFO, &request, sizeof(request)), 0);
	check(request.kind == FLEECE_KIND_SNAPSHOT && request.size == origin_info.size &&
	      request.cluster, "INFO of a snapshot", "has kind, size and cluster");
}

static void test_checkpoints(void)
{
	struct fleece_checkpoint *list = (struct fleece_checkpoint *)arena;
	struct fleece_checkpoints request = { .fd = origin, .flags = 1 };
	size_t i;

	expect("CHECKPOINTS with a flag", call_checkpoints(request), EINVAL);
	for (i = 0; i < 2; i++) {
		request = (struct fleece_checkpoints){ .fd = origin };
		request.reserved[i] = 1;
		expect("CHECKPOINTS with a reserved field", call_checkpoints(request), EINVAL);
	}
	request = (struct fleece_checkpoints){ .fd = origin, .capacity = 1, .entries = 8 };
	expect("CHECKPOINTS with entries nowhere", call_checkpoints(request), EFAULT);
	request = (struct fleece_checkpoints){ .fd = origin };
	expect("CHECKPOINTS with no room",
	       call(FLEECE_IOC_CHECKPOINTS, &request, sizeof(request)), 0);
	check(request.count >= 3, "CHECKPOINTS with no room", "counts");
	memset(list, 0x55, 2 * sizeof(*list));
	request = (struct fleece_checkpoints){
		.fd = origin, .capacity = 1, .entries = (uintptr_t)list,
	};
	expect("CHECKPOINTS with room for one",
	       call(FLEECE_IOC_CHECKPOINTS, &request, sizeof(request)), 0);
	check(request.count >= 3 && list[0].name[0] && strlen(list[0].uuid) == 36 &&
	      list[0].created && !list[0].reserved && list[1].name[0] == 0x55,
	      "CHECKPOINTS with room for one", "writes one and counts all");
	request = (struct fleece_checkpoints){
		.fd = origin, .capacity = UINT32_MAX, .entries = (uintptr_t)list,
	};
	expect("CHECKPOINTS with all room of the world", call_checkpoints(request), 0);
}

static void test_ranges(void)
{
	static const struct {
		const char *what;
		int64_t offset;		/* from the end if negative */
		uint64_t length;
		int error;
	} ranges[] = {
		{ "an unaligned offset", 100, 512, EINVAL },
		{ "an unaligned length", 0, 100, EINVAL },
		{ "no length", 0, 0, EINVAL },
		{ "a length beyond the end", -512, 1024, ERANGE },
		{ "an offset beyond the end", INT64_MAX / 1024 * 512, 512, ERANGE },
		{ "the largest length", 512, UINT64_MAX - 511, ERANGE },
	};
	struct fleece_extents extents;
	struct fleece_bitmap bitmap;
	char name[96];
	size_t i;

	for (i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		uint64_t offset = (uint64_t)ranges[i].offset;

		if (ranges[i].offset < 0)
			offset += origin_info.size;
		extents = extents_of(origin, FLEECE_MAP_CHANGED);
		extents.offset = offset;
		extents.length = ranges[i].length;
		snprintf(name, sizeof(name), "EXTENTS with %s", ranges[i].what);
		expect(name, call_extents(extents), ranges[i].error);
		bitmap = bitmap_of(origin, FLEECE_MAP_CHANGED);
		bitmap.offset = offset / 512 % 2 ? origin_info.size : offset;
		bitmap.length = ranges[i].length;
		snprintf(name, sizeof(name), "BITMAP with %s", ranges[i].what);
		expect_either(name, call_bitmap(bitmap), ranges[i].error,
			      bitmap.length % 512 ? EINVAL : ERANGE);
	}
	extents = extents_of(origin, FLEECE_MAP_CHANGED);
	extents.offset = origin_info.size;
	extents.length = 512;
	expect("EXTENTS that begin at the end", call_extents(extents), ERANGE);
}

static void test_extents(void)
{
	struct fleece_extents request;
	static const uint32_t maps[] = { 0, 4, UINT32_MAX };
	size_t i;

	for (i = 0; i < 3; i++)
		expect("EXTENTS of an unknown map", call_extents(extents_of(snapshot, maps[i])),
		       EINVAL);
	expect("EXTENTS of an origin's access map",
	       call_extents(extents_of(origin, FLEECE_MAP_ACCESSIBLE)), EINVAL);
	expect("EXTENTS of an origin's copies",
	       call_extents(extents_of(origin, FLEECE_MAP_COPIED)), EINVAL);
	request = extents_of(origin, FLEECE_MAP_CHANGED);
	request.flags = 1;
	expect("EXTENTS with a flag", call_extents(request), EINVAL);
	request = extents_of(origin, FLEECE_MAP_CHANGED);
	request.reserved0 = 1;
	expect("EXTENTS with the first reserved field", call_extents(request), EINVAL);
	for (i = 0; i < 4; i++) {
		request = extents_of(origin, FLEECE_MAP_CHANGED);
		request.reserved[i] = 1;
		expect("EXTENTS with a reserved field", call_extents(request), EINVAL);
	}
	request = extents_of(origin, FLEECE_MAP_CHANGED);
	request.capacity = 0;
	expect("EXTENTS without room", call_extents(request), EINVAL);
	request = extents_of(origin, FLEECE_MAP_CHANGED);
	request.extents = 8;
	expect("EXTENTS to nowhere", call_extents(request), EFAULT);
	request = extents_of(snapshot, FLEECE_MAP_ACCESSIBLE);
	request.capacity = UINT32_MAX;
	expect("EXTENTS with all room of the world", call_extents(request), 0);
}

static void test_names(void)
{
	struct fleece_extents request = extents_of(origin, FLEECE_MAP_CHANGED);

	set_name(request.checkpoint, "nobody");
	expect("EXTENTS since an unknown checkpoint", call_extents(request), ENOENT);
	request.fd = snapshot;
	expect("EXTENTS of a snapshot since an unknown checkpoint", call_extents(request),
	       ENOENT);
	memset(request.checkpoint, 'a', sizeof(request.checkpoint));
	expect_either("EXTENTS since a name without end", call_extents(request), EINVAL, ENOENT);
	memset(request.checkpoint, 0, sizeof(request.checkpoint));
	expect_either("EXTENTS since no name", call_extents(request), EINVAL, ENOENT);
	request = extents_of(snapshot, FLEECE_MAP_ACCESSIBLE);
	set_name(request.checkpoint, checkpoint);
	expect("EXTENTS of the access map since a checkpoint", call_extents(request), EINVAL);
}

static void test_bitmap(void)
{
	struct fleece_bitmap request;
	size_t i;

	expect("BITMAP of an unknown map", call_bitmap(bitmap_of(snapshot, 4)), EINVAL);
	expect("BITMAP of an origin's access map",
	       call_bitmap(bitmap_of(origin, FLEECE_MAP_ACCESSIBLE)), EINVAL);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	set_name(request.checkpoint, "nobody");
	expect("BITMAP since an unknown checkpoint", call_bitmap(request), ENOENT);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.flags = 1;
	expect("BITMAP with a flag", call_bitmap(request), EINVAL);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.reserved0 = 1;
	expect("BITMAP with the first reserved field", call_bitmap(request), EINVAL);
	for (i = 0; i < 2; i++) {
		request = bitmap_of(origin, FLEECE_MAP_CHANGED);
		request.reserved[i] = 1;
		expect("BITMAP with a reserved field", call_bitmap(request), EINVAL);
	}
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.bits_size = 1;
	expect("BITMAP with too little room", call_bitmap(request), ENOSPC);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.bits = 8;
	expect("BITMAP to nowhere", call_bitmap(request), EFAULT);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.offset = 512;
	request.length = origin_info.size - 512;
	expect("BITMAP from inside of a granule", call_bitmap(request), EINVAL);
	request = bitmap_of(origin, FLEECE_MAP_CHANGED);
	request.length = origin_info.granularity + 512;
	expect("BITMAP to inside of a granule", call_bitmap(request), EINVAL);
}

static uint64_t accessible(void)
{
	struct fleece_info request = { .fd = snapshot };

	return call(FLEECE_IOC_INFO, &request, sizeof(request)) ? 0 : request.accessible;
}

static int release_from(uint64_t offset, uint64_t length)
{
	return call_release((struct fleece_release){
		.fd = snapshot, .offset = offset, .length = length,
	});
}

static void test_release(void)
{
	struct fleece_release request = { .fd = snapshot, .length = 512, .flags = 1 };
	uint64_t before = accessible();
	int writable = control;
	size_t i;

	expect("RELEASE with a flag", call_release(request), EINVAL);
	for (i = 0; i < 2; i++) {
		request = (struct fleece_release){ .fd = snapshot, .length = 512 };
		request.reserved[i] = 1;
		expect("RELEASE with a reserved field", call_release(request), EINVAL);
	}
	request = (struct fleece_release){ .fd = origin, .length = origin_info.size };
	expect("RELEASE of an origin", call_release(request), EINVAL);
	request = (struct fleece_release){ .fd = snapshot, .length = 100 };
	expect("RELEASE of an unaligned length", call_release(request), EINVAL);
	request = (struct fleece_release){ .fd = snapshot, .offset = 100, .length = 512 };
	expect("RELEASE from an unaligned offset", call_release(request), EINVAL);
	request = (struct fleece_release){ .fd = snapshot };
	expect("RELEASE of nothing", call_release(request), EINVAL);
	request = (struct fleece_release){ .fd = snapshot, .length = origin_info.size + 512 };
	expect("RELEASE beyond the end", call_release(request), ERANGE);
	request = (struct fleece_release){ .fd = snapshot, .offset = UINT64_MAX - 511,
					   .length = 1024 };
	expect("RELEASE that wraps around", call_release(request), ERANGE);
	request = (struct fleece_release){ .fd = snapshot, .length = origin_info.size };
	control = open("/dev/" FLEECE_CONTROL_NAME, O_RDONLY | O_CLOEXEC);
	expect("RELEASE with a control device open only for reading", call_release(request), EBADF);
	close(control);
	control = writable;
	check(accessible() == before, "RELEASE that fails", "releases nothing");
	expect("RELEASE", release_from(0, 64 * CLUSTER_BYTES), 0);
	check(accessible() == before - 64, "RELEASE", "releases what it was told");
}

/* The clusters from @first on are accessible. */
static void test_parts(uint64_t first)
{
	uint64_t next = (first + PARTS_MAX) * CLUSTER_BYTES;
	uint64_t before = accessible();
	unsigned int released = 0;
	uint64_t i;

	for (i = first; i < first + PARTS_MAX; i++)
		released += !release_from(i * CLUSTER_BYTES, 512);
	check(released == PARTS_MAX, "RELEASE of parts", "as many as can be remembered");
	expect("RELEASE of one part too many", release_from(next, 512), ENOSPC);
	expect("RELEASE of more of a part that is remembered",
	       release_from(first * CLUSTER_BYTES, 1024), 0);
	check(accessible() == before, "RELEASE of parts", "releases no cluster");
	expect("RELEASE of a cluster, and of one part too many",
	       release_from(next + 512, 2 * CLUSTER_BYTES - 512), ENOSPC);
	check(accessible() == before - 1, "RELEASE of a cluster, and of one part too many",
	      "releases the cluster");
	expect("RELEASE of a cluster that was released in part",
	       release_from(first * CLUSTER_BYTES, CLUSTER_BYTES), 0);
	expect("RELEASE of one part instead", release_from(next, 512), 0);
	expect("RELEASE of one part too many again",
	       release_from(next + 2 * CLUSTER_BYTES, 512), ENOSPC);
	check(accessible() == before - 2, "RELEASE of parts", "releases no other cluster");
}

/* Answers of exactly the size there is room for, up to the edge of memory. */
static void test_edges(void)
{
	size_t bytes;
	struct fleece_extents *extents = (struct fleece_extents *)arena;
	struct fleece_bitmap *bitmap = (struct fleece_bitmap *)arena;

	bytes = ((origin_info.size + origin_info.granularity - 1) / origin_info.granularity + 7)
		/ 8;
	*bitmap = bitmap_of(origin, FLEECE_MAP_CHANGED);
	bitmap->bits = (uintptr_t)arena + PAGE_BYTES - bytes;
	bitmap->bits_size = bytes;
	expect("BITMAP into exactly enough room",
	       enter(FLEECE_IOC_BITMAP, (uintptr_t)bitmap), 0);
	*extents = extents_of(origin, FLEECE_MAP_CHANGED);
	extents->capacity = 1;
	extents->extents = (uintptr_t)arena + PAGE_BYTES - sizeof(struct fleece_extent);
	expect("EXTENTS into room for one", enter(FLEECE_IOC_EXTENTS, (uintptr_t)extents), 0);
	check(extents->count == 1 && extents->covered, "EXTENTS into room for one",
	      "says how far it got");
	/* What a call has answered must not stand in the way of the next one. */
	expect("EXTENTS with the answer of the call before",
	       enter(FLEECE_IOC_EXTENTS, (uintptr_t)extents), 0);
}

static char *low_page(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *page;

#ifdef MAP_32BIT
	flags |= MAP_32BIT;
#endif
	page = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (page == MAP_FAILED || mprotect(page + PAGE_BYTES, PAGE_BYTES, PROT_NONE))
		return NULL;
	return page;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--has-compat"))
		return has_compat() ? 0 : 1;
	is_compat = argc > 1 && !strcmp(argv[1], "--compat");
	argv += is_compat;
	argc -= is_compat;
	if (argc != 5) {
		fprintf(stderr,
			"usage: ioctl_errors [--compat] ORIGIN SNAPSHOT STRANGER CHECKPOINT\n"
			"       ioctl_errors --has-compat\n");
		return 2;
	}
	control = open("/dev/" FLEECE_CONTROL_NAME, O_RDWR | O_CLOEXEC);
	origin = open(argv[1], O_RDONLY | O_CLOEXEC);
	snapshot = open(argv[2], O_RDONLY | O_CLOEXEC);
	checkpoint = argv[4];
	arena = low_page();
	if (control < 0 || origin < 0 || snapshot < 0 || !arena) {
		perror("ioctl_errors");
		return 1;
	}
	origin_info.fd = origin;
	expect("INFO of an origin",
	       call(FLEECE_IOC_INFO, &origin_info, sizeof(origin_info)), 0);
	check(origin_info.kind == FLEECE_KIND_ORIGIN && origin_info.granularity &&
	      origin_info.size, "INFO of an origin", "has kind, size and granularity");
	if (!origin_info.granularity)
		return 1;
	test_calls();
	test_descriptors(argv[1], argv[3]);
	test_info();
	test_checkpoints();
	test_ranges();
	test_extents();
	test_names();
	test_bitmap();
	test_edges();
	test_release();
	test_parts(64);
	return tap_end();
}
