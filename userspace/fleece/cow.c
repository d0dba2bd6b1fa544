// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, cow: chooses, makes and frees COW space, see cow.h. It sees to it that
 * COW space never lies on an origin: a copy would then wait for a write that waits
 * for a copy. What is written to the space is the module's business.
 */
#include "cow.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow_file.h"
#include "cow_lvm.h"
#include "cow_zram.h"
#include "metadata_device.h"
#include "process.h"

/* zram has blocks of a page. */
#define ZRAM_BLOCK		4096

/* Exit status of blkid(8): no signature, or several that contradict each other. */
#define BLKID_NOTHING		2
#define BLKID_AMBIVALENT	8

static const char *const kind_names[] = {
	[COW_AUTO] = "auto",
	[COW_USER] = "user",
	[COW_LVM] = "lvm",
	[COW_ZRAM] = "zram",
	[COW_FILE] = "file",
};

const char *cow_kind_name(enum cow_kind kind)
{
	return kind_names[kind];
}

int cow_kind_parse(const char *name, enum cow_kind *kind)
{
	int i;

	for (i = COW_LVM; i <= COW_FILE; i++) {
		if (!strcmp(name, kind_names[i])) {
			*kind = (enum cow_kind)i;
			return 0;
		}
	}
	return -EINVAL;
}

enum cow_kind cow_kind_of(const char *uuid)
{
	const char *dash = strrchr(uuid, '-');
	enum cow_kind kind;

	if (!device_has_prefix(uuid, SNAPSHOT_UUID) || cow_kind_parse(dash + 1, &kind))
		return COW_USER;
	return kind;
}

static enum status stat_device(const char *snapshot, struct cow *cow)
{
	struct stat st;

	if (stat(cow->path, &st))
		return report_errno(errno, snapshot, "cannot find the COW device %s", cow->path);
	if (!S_ISBLK(st.st_mode))
		return report(NO_DEVICE, snapshot, "%s is not a block device", cow->path);
	cow->devno = st.st_rdev;
	return DONE;
}

/*
 * What data a device seems to hold, as blkid(8) judges by signatures. The header of a COW
 * device wipes those at the start, which is where almost all are. A blkid that cannot tell
 * is not one that says that there is nothing; one that is not there is for the user to judge.
 */
static enum status check_content(const char *path, const char *snapshot)
{
	const char *const argv[] = {
		"blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", path, NULL
	};
	char what[256] = "metadata of dm-fleece";
	int ret = 0;

	if (!metadata_is_on(path))
		ret = process_run(argv, what, sizeof(what));
	if (ret == BLKID_NOTHING || (!ret && !what[0]))
		return DONE;
	if (ret == -ENOENT) {
		report_note(snapshot, "note: whether %s holds data was not looked at: there is no blkid here",
			    path);
		return DONE;
	}
	if (ret && ret != BLKID_AMBIVALENT)
		return report(FAILED, snapshot,
			      "cannot tell whether the COW device %s holds data (%s); --force uses it without",
			      path, ret < 0 ? strerror(-ret) : what);
	if (ret)
		snprintf(what, sizeof(what), "several signatures");
	what[strcspn(what, "\n")] = 0;
	return report(BUSY, snapshot,
		      "the COW device %s holds data (%s); --force destroys it, or choose another one",
		      path, what);
}

static enum status report_on_origin(const char *snapshot, const struct cow *cow, const char *name)
{
	return report(BUSY, snapshot, "the COW device %s lies on the origin %s", cow->path, name);
}

static enum status use_device(const struct cow_request *request, const struct origin *origin,
			      const char *snapshot, struct cow *cow)
{
	char mountpoint[PATH_MAX], base[DM_NAME_LEN];
	enum status status;
	int fd;

	cow->kind = COW_USER;
	snprintf(cow->path, sizeof(cow->path), "%s", request->path);
	status = stat_device(snapshot, cow);
	if (status != DONE)
		return status;
	if (device_depends(cow->devno, origin->dm.devno) ||
	    device_depends(cow->devno, origin->lower))
		return report(BUSY, snapshot, "the COW device %s is the origin or lies on it",
			      cow->path);
	if (device_on_origin(cow->devno, base))
		return report_on_origin(snapshot, cow, base);
	if (device_mountpoint(cow->devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, snapshot, "the COW device %s is mounted on %s", cow->path,
			      mountpoint);
	fd = open(cow->path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return report(BUSY, snapshot,
			      "the COW device %s is in use (swap, RAID, LVM or another device)",
			      cow->path);
	if (fd < 0)
		return report_errno(errno, snapshot, "cannot open the COW device %s", cow->path);
	close(fd);
	return request->is_forced ? DONE : check_content(cow->path, snapshot);
}

/* A snapshot's blocks are the larger ones of its two devices. */
static bool zram_fits(const struct origin *origin)
{
	return !(origin->size % ZRAM_BLOCK);
}

/*
 * zram comes last: its blocks of 4096 bytes become those of the snapshot, from
 * which a filesystem with smaller blocks cannot be mounted then. COW_AUTO: there is no
 * room anywhere.
 */
static enum cow_kind choose_beside_lvm(const struct cow_request *request,
				       const struct origin *origin)
{
	if (cow_file_has_room(request->bytes))
		return COW_FILE;
	return zram_fits(origin) && cow_zram_has_room(request->bytes) ? COW_ZRAM : COW_AUTO;
}

static enum cow_kind choose_kind(const struct cow_request *request, const struct origin *origin)
{
	char base[DM_NAME_LEN];

	if (request->dir)
		return COW_FILE;
	if (!device_on_origin(origin->lower, base) && cow_lvm_has_room(origin, request->bytes))
		return COW_LVM;
	return choose_beside_lvm(request, origin);
}

static enum status make_kind(enum cow_kind kind, const struct cow_request *request,
			     const struct origin *origin, const char *snapshot, struct cow *cow)
{
	enum status status = FAILED;

	memset(cow, 0, sizeof(*cow));
	cow->held = -1;
	switch (kind) {
	case COW_USER:
		return use_device(request, origin, snapshot, cow);
	case COW_LVM:
		status = cow_lvm_make(request, origin, snapshot, cow);
		break;
	case COW_ZRAM:
		if (!zram_fits(origin))
			return report(FAILED, snapshot,
				      "zram has blocks of 4096 bytes, of which the size of the origin is no multiple; choose another --cow-kind");
		status = cow_zram_make(request, snapshot, cow);
		break;
	case COW_FILE:
		status = cow_file_make(request, snapshot, cow);
		break;
	case COW_AUTO:
		status = report(FAILED, snapshot,
				"there is no room for %llu bytes of COW space beside the origin, in half of what is free in %s (on no origin), or in half of the memory; choose a smaller --cow-size, a --cow-dir, or a device with --cow",
				(unsigned long long)request->bytes, COW_DEFAULT_DIR);
		break;
	}
	return status == DONE ? stat_device(snapshot, cow) : status;
}

static void undo_make(struct cow *cow, const char *snapshot)
{
	cow_put(cow);
	cow_free(cow->kind, cow->devno, snapshot);
}

/* LVM has put it on the origin @base. */
static enum status make_elsewhere(const struct cow_request *request, const struct origin *origin,
				  const char *snapshot, struct cow *cow, const char *base)
{
	report_note(snapshot,
		    "note: LVM puts its COW space on the origin %s, so it is made elsewhere", base);
	undo_make(cow, snapshot);
	return make_kind(choose_beside_lvm(request, origin), request, origin, snapshot, cow);
}

enum status cow_make(const struct cow_request *request, const struct origin *origin,
		     const char *snapshot, struct cow *cow)
{
	enum cow_kind kind = request->kind;
	char base[DM_NAME_LEN];
	enum status status;
	uint64_t bytes;

	if (kind == COW_AUTO)
		kind = choose_kind(request, origin);
	status = make_kind(kind, request, origin, snapshot, cow);
	/* Only LVM knows which disk of the group it will choose. */
	if (status == DONE && kind == COW_LVM && device_on_origin(cow->devno, base)) {
		if (request->kind == COW_LVM)
			status = report_on_origin(snapshot, cow, base);
		else
			status = make_elsewhere(request, origin, snapshot, cow, base);
	}
	if (status == DONE && !device_size(cow->devno, &bytes) && bytes <= COW_HEADER_BYTES)
		status = report(FAILED, snapshot,
				"the COW device %s is too small: %llu bytes, of which its header takes %llu",
				cow->path, (unsigned long long)bytes, COW_HEADER_BYTES);
	if (status != DONE && cow->devno)
		undo_make(cow, snapshot);
	return status;
}

void cow_put(struct cow *cow)
{
	if (cow->held >= 0)
		close(cow->held);
	cow->held = -1;
}

enum status cow_free(enum cow_kind kind, dev_t devno, const char *snapshot)
{
	switch (kind) {
	case COW_LVM:
		return cow_lvm_free(devno, snapshot);
	case COW_ZRAM:
		return cow_zram_free(devno, snapshot);
	case COW_AUTO:
	case COW_USER:
	case COW_FILE:
		break;
	}
	return DONE;
}

enum status cow_grow(enum cow_kind kind, dev_t devno, const char *snapshot, uint64_t bytes)
{
	char path[PATH_MAX];
	uint64_t now;
	int ret = device_size(devno, &now);

	device_path(path, sizeof(path), devno);
	if (ret)
		return report_errno(ret, snapshot, "cannot read the size of its COW device %s",
				    path);
	if (bytes < now)
		return report(FAILED, snapshot,
			      "its COW device %s has %llu bytes already, and does not shrink", path,
			      (unsigned long long)now);
	if (bytes == now)
		return DONE;
	switch (kind) {
	case COW_LVM:
		return cow_lvm_grow(devno, snapshot, bytes);
	case COW_USER:
		return report(FAILED, snapshot,
			      "its COW device %s has %llu bytes; grow it first, then try again",
			      path, (unsigned long long)now);
	case COW_AUTO:
	case COW_ZRAM:
	case COW_FILE:
		break;
	}
	return report(FAILED, snapshot,
		      "its COW space is %s, which cannot grow; only LVM's can, and devices named with --cow",
		      kind == COW_ZRAM ? "zram" : "a file without a name");
}
