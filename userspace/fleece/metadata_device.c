// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, metadata_device: opens, judges and makes metadata devices, see
 * metadata_device.h. What is on them is the business of image.c.
 */
#include "metadata_device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "size.h"

#define SECTOR			FLEECE_MD_SECTOR_BYTES
/* Room to grow: twice the origin, if the device is large enough. */
#define DEFAULT_GROWTH		2

/* ------------------------- The device ------------------------- */

/* Whole transfers of sectors, or a negative errno. */
static int transfer(int fd, uint64_t sector, char *data, size_t bytes, bool is_write)
{
	off_t offset = sector * SECTOR;
	ssize_t done;

	while (bytes) {
		done = is_write ? pwrite(fd, data, bytes, offset) : pread(fd, data, bytes, offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done ? -errno : -EIO;
		data += done;
		offset += done;
		bytes -= done;
	}
	return 0;
}

static int read_sectors(void *context, __u64 sector, void *data, unsigned int count)
{
	return transfer(*(int *)context, sector, data, (size_t)count * SECTOR, false);
}

static int write_sectors(void *context, __u64 sector, const void *data, unsigned int count)
{
	return transfer(*(int *)context, sector, (char *)data, (size_t)count * SECTOR, true);
}

static int flush_device(void *context)
{
	return fsync(*(int *)context) ? -errno : 0;
}

static int size_of(int fd, uint64_t *bytes)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	if (S_ISBLK(st.st_mode))
		return ioctl(fd, BLKGETSIZE64, bytes) ? -errno : 0;
	if (!S_ISREG(st.st_mode))
		return -ENOTBLK;
	*bytes = st.st_size;
	return 0;
}

enum status metadata_open(const char *path, int flags, int *fd, struct image_io *io)
{
	uint64_t bytes;
	int ret;

	*fd = open(path, flags | O_CLOEXEC);
	if (*fd < 0 && errno == EBUSY)
		return report(BUSY, path,
			      "is in use: mounted, or by another origin, a snapshot, LVM, RAID or swap; choose another metadata device");
	if (*fd < 0)
		return report_errno(errno, path, "cannot open it");
	/* The module writes past the page cache: what is there may be from before. */
	posix_fadvise(*fd, 0, 0, POSIX_FADV_DONTNEED);
	ret = size_of(*fd, &bytes);
	if (ret) {
		close(*fd);
		return report_errno(ret, path, "cannot tell its size");
	}
	*io = (struct image_io){
		.context = fd, .nr_sectors = bytes / SECTOR, .read = read_sectors,
		.write = write_sectors, .flush = flush_device,
	};
	return DONE;
}

bool metadata_is_on(const char *path)
{
	static struct image image;
	struct image_io io;
	int fd;

	if (metadata_open(path, O_RDONLY, &fd, &io) != DONE)
		return false;
	image_read_root(&io, &image);
	close(fd);
	return image_has_root(&image);
}

/* ------------------------- The origin ------------------------- */

static bool read_attribute(dev_t devno, const char *attribute, char *text, size_t size)
{
	char path[128];
	FILE *file;
	bool is_read;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(devno), minor(devno),
		 attribute);
	file = fopen(path, "re");
	if (!file)
		return false;
	is_read = fgets(text, size, file);
	fclose(file);
	if (is_read)
		text[strcspn(text, "\n")] = 0;
	return is_read && text[0];
}

/* An origin on a plain device has a uuid of its own, which is another one each time. */
static dev_t lasting_device(dev_t devno)
{
	struct fleece_dm_info info;
	struct origin origin;

	if (fleece_dm_info_devno(devno, &info) || !device_has_prefix(info.uuid, ORIGIN_UUID) ||
	    origin_read(&info, &origin))
		return devno;
	return origin.lower;
}

/* A text that is the same after a reboot, or "" if nothing is known. */
static void identify(dev_t devno, char *identity)
{
	/* Of device-mapper, md, NVMe, SCSI, virtio; of a partition with the place on its disk. */
	static const char *const attributes[] = {
		"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial",
		"../md/uuid", "../wwid", "../device/wwid", "../serial",
	};
	/* The kernel's own longest, too. */
	char start[32] = "0", text[4096];
	size_t i;

	identity[0] = 0;
	devno = lasting_device(devno);
	read_attribute(devno, "start", start, sizeof(start));
	for (i = 0; i < sizeof(attributes) / sizeof(attributes[0]); i++) {
		if (!read_attribute(devno, attributes[i], text, sizeof(text)))
			continue;
		image_identity(identity, text, start);
		return;
	}
}

enum status metadata_read_origin(const char *path, uint64_t *bytes, char *identity)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	int ret;

	identity[0] = 0;
	if (fd < 0)
		return report_errno(errno, path, "cannot open the origin");
	ret = size_of(fd, bytes);
	if (!ret && !fstat(fd, &st) && S_ISBLK(st.st_mode))
		identify(st.st_rdev, identity);
	close(fd);
	return ret ? report_errno(ret, path, "cannot tell the size of the origin") : DONE;
}

/* ------------------------- New metadata ------------------------- */

static uint64_t needed(const struct fleece_md_root *root)
{
	struct fleece_md_layout layout;

	fleece_md_layout(root, &layout);
	return layout.nr_sectors;
}

/* The most that the device has room for, up to what is a reasonable room to grow. */
static void choose_capacity(struct fleece_md_root *root, uint64_t device_sectors)
{
	uint64_t least = root->origin_sectors;
	uint64_t most = DEFAULT_GROWTH * least;

	if (most > FLEECE_MD_ORIGIN_MAX)
		most = FLEECE_MD_ORIGIN_MAX;
	while (least < most) {
		root->capacity_sectors = least + (most - least + 1) / 2;
		if (needed(root) <= device_sectors)
			least = root->capacity_sectors;
		else
			most = root->capacity_sectors - 1;
	}
	root->capacity_sectors = least;
}

static enum status make_root(const struct metadata_plan *plan, const char *path,
			     const struct image_io *io, struct fleece_md_root *root)
{
	uint64_t region = plan->region;
	char text[FLEECE_SIZE_TEXT];
	const char *error;
	uint64_t bytes;

	if (!region)
		region = plan->granularity > FLEECE_MD_REGION_DEFAULT * SECTOR ?
			 plan->granularity : FLEECE_MD_REGION_DEFAULT * SECTOR;
	root->origin_sectors = plan->origin_size / SECTOR;
	root->granule_sectors = plan->granularity / SECTOR;
	root->region_sectors = region / SECTOR;
	root->nr_slots = plan->checkpoints;
	root->capacity_sectors = plan->capacity ? plan->capacity / SECTOR :
						     root->origin_sectors;
	error = fleece_md_geometry_error(root);
	if (error)
		return report(USAGE, path, "%s", error);
	if (!plan->capacity)
		choose_capacity(root, io->nr_sectors);
	bytes = needed(root) * SECTOR;
	if (needed(root) <= io->nr_sectors)
		return DONE;
	return report(FAILED, path,
		      "is too small: %" PRIu64 " bytes (%s) are needed, it has %" PRIu64 "; make it larger, or take a larger --granularity",
		      bytes, fleece_size_format(text, bytes),
		      (uint64_t)io->nr_sectors * SECTOR);
}

static int new_uuid(__u8 *uuid)
{
	if (getrandom(uuid, FLEECE_MD_UUID_BYTES, 0) != FLEECE_MD_UUID_BYTES)
		return -EIO;
	/* Version 4, variant of RFC 4122. */
	uuid[6] = (uuid[6] & 0x0f) | 0x40;
	uuid[8] = (uuid[8] & 0x3f) | 0x80;
	return 0;
}

enum status metadata_make(const struct metadata_plan *plan, const char *path,
			  const struct image_io *io, const char *identity)
{
	static struct fleece_md_root root;
	enum status status;
	int ret;

	memset(&root, 0, sizeof(root));
	snprintf(root.identity, sizeof(root.identity), "%s", identity);
	status = make_root(plan, path, io, &root);
	if (status != DONE)
		return status;
	ret = plan->is_forced ? 1 : image_is_empty(io);
	if (!ret)
		return report(BUSY, path,
			      "holds something; --force destroys it, checkpoints included if it is metadata");
	if (ret > 0) {
		root.written = time(NULL);
		ret = new_uuid(root.uuid);
	}
	if (!ret)
		ret = image_create(io, &root);
	return ret ? report_errno(ret, path, "cannot write it") : DONE;
}

/* ------------------------- Is it the right one? ------------------------- */

enum status metadata_check_copies(const struct image *image, const char *path)
{
	const struct image_copy *chosen;

	if (image->chosen < 0)
		return report(NO_CHECKPOINT, path,
			      "is no metadata, or both superblocks are lost: %s, and %s; 'fleece metadata create' begins anew, the next backup is a full one",
			      image->copies[0].error, image->copies[1].error);
	chosen = &image->copies[image->chosen];
	if (chosen->result)
		return report(NO_MODULE, path, "%s; a newer version of dm-fleece wrote it",
			      chosen->error);
	return DONE;
}

enum status metadata_check_origin(const struct image *image, const char *path, const char *origin,
				  uint64_t bytes, const char *identity)
{
	if (bytes / SECTOR < image->root.origin_sectors)
		return report(NO_CHECKPOINT, path,
			      "belongs to a larger origin than %s: it is refused; another device, or it was shrunk",
			      origin);
	if (identity[0] && image->root.identity[0] && strcmp(identity, image->root.identity))
		return report(NO_CHECKPOINT, path, "belongs to origin '%s', but %s is '%s'",
			      image->root.identity, origin, identity);
	return DONE;
}

enum status metadata_report_short(const struct image *image, const char *path)
{
	return report(NO_CHECKPOINT, path,
		      "is shorter than its metadata, of %" PRIu64 " bytes: it was cut off, or is not the whole device",
		      (uint64_t)image->layout.nr_sectors * SECTOR);
}

/* ------------------------- For attach ------------------------- */

enum status metadata_check_free(const char *path)
{
	struct fleece_dm_info info;
	struct origin origin;
	struct stat st;

	if (stat(path, &st) || !S_ISBLK(st.st_mode) || fleece_dm_info_devno(st.st_rdev, &info) ||
	    origin_read(&info, &origin))
		return DONE;
	return report(BUSY, path, "is the origin %s; choose another metadata device", info.name);
}

static enum status check_place(const char *path, const struct metadata_origin *origin,
			       dev_t *devno)
{
	struct stat st;

	if (stat(path, &st))
		return report_errno(errno, path, "cannot find the metadata device");
	if (!S_ISBLK(st.st_mode))
		return report(NO_DEVICE, path, "is not a block device");
	*devno = st.st_rdev;
	if (origin->devno && device_depends(*devno, origin->devno))
		return report(FAILED, path,
			      "lies on %s itself; the metadata needs a device of its own",
			      origin->path);
	return metadata_check_free(path);
}

/* Nothing was there; or what was there is neither metadata nor to be destroyed. */
static enum status prepare_new(const char *path, const struct metadata_origin *origin,
			       const char *identity, const struct image_io *io,
			       uint64_t *granularity)
{
	struct metadata_plan plan = METADATA_PLAN_DEFAULT;
	enum status status;
	int ret = image_is_empty(io);

	if (ret < 0)
		return report_errno(ret, path, "cannot read it");
	if (!ret)
		return report(FAILED, path,
			      "holds something else than metadata; 'fleece metadata create %s --origin %s --force' destroys it and begins anew",
			      path, origin->path);
	plan.origin_size = origin->size;
	/* It is empty, as was just seen. */
	plan.is_forced = true;
	if (*granularity)
		plan.granularity = *granularity;
	status = metadata_make(&plan, path, io, identity);
	if (status != DONE)
		return status;
	*granularity = plan.granularity;
	report_note(path, "note: was empty, new metadata without checkpoints is on it now");
	return DONE;
}

/* As it was, without checkpoints. @why: what has been missed. */
static enum status drop_checkpoints(const char *path, const struct metadata_origin *origin,
				    const struct image_io *io, struct fleece_md_root *root,
				    const char *why)
{
	uint32_t nr_dropped = root->nr_checkpoints;
	int ret;

	if (!fleece_md_is_writable(root))
		return report(NO_MODULE, path,
			      "has features that are not known; a newer version of dm-fleece wrote it");
	root->written = time(NULL);
	if (origin->size / SECTOR <= root->capacity_sectors)
		root->origin_sectors = origin->size / SECTOR;
	ret = image_drop_checkpoints(io, root);
	if (ret)
		return report_errno(ret, path, "cannot drop its checkpoints");
	if (nr_dropped)
		report_note(origin->path, "note: %s: %u checkpoint%s dropped, the next backup is a full one",
			    why, nr_dropped, nr_dropped == 1 ? " was" : "s were");
	return DONE;
}

/* The origin has become larger than there is room for: another layout, without checkpoints. */
static enum status make_room(const char *path, const struct metadata_origin *origin,
			     const struct image_io *io, struct fleece_md_root *root)
{
	struct metadata_plan plan = {
		.origin_size = origin->size,
		.granularity = (uint64_t)root->granule_sectors * SECTOR,
		.region = (uint64_t)root->region_sectors * SECTOR,
		.checkpoints = root->nr_slots,
	};
	enum status status = make_root(&plan, path, io, root);
	int ret;

	if (status != DONE)
		return status;
	ret = image_change_layout(io, root);
	return ret ? report_errno(ret, path, "cannot make room for the origin on it") : DONE;
}

/* Seconds since 1970, 0 if that is not known. */
static uint64_t boot_time(void)
{
	FILE *file = fopen("/proc/stat", "re");
	unsigned long long seconds = 0;
	char *line = NULL;
	size_t room = 0;

	while (file && getline(&line, &room, file) > 0)
		if (sscanf(line, "btime %llu", &seconds) == 1)
			break;
	free(line);
	if (file)
		fclose(file);
	return seconds;
}

/* Whoever has used the device since, and does so no more, has left no trace. */
static void warn_of_reboot(const char *path, const struct metadata_origin *origin,
			   const struct fleece_md_root *root)
{
	if (origin->is_by_hand && root->nr_checkpoints && root->written < boot_time())
		report_note(path,
			    "WARNING: its checkpoints are from before the last boot; if anything has written to %s since, they do not know of it: delete them then, and see fleecetab(5)",
			    origin->path);
}

static enum status prepare_found(const char *path, const struct metadata_origin *origin,
				 const char *identity, const struct image_io *io,
				 struct image *image, uint64_t *granularity)
{
	uint64_t found = (uint64_t)image->root.granule_sectors * SECTOR;
	enum status status = metadata_check_origin(image, path, origin->path, origin->size,
						   identity);

	if (status != DONE)
		return status;
	if (*granularity && *granularity != found)
		return report(FAILED, path,
			      "is for a granularity of %" PRIu64 ", not %" PRIu64 "; leave --granularity out, or begin anew with 'fleece metadata create'",
			      found, *granularity);
	*granularity = found;
	if (origin->size / SECTOR > image->root.origin_sectors) {
		status = drop_checkpoints(path, origin, io, &image->root,
					  "has grown without the target, which cannot tell what else was written");
		if (status == DONE && origin->size / SECTOR > image->root.capacity_sectors)
			status = make_room(path, origin, io, &image->root);
		return status;
	}
	if (origin->is_used && image->root.nr_checkpoints)
		return drop_checkpoints(path, origin, io, &image->root,
					"has been in use without the target, which knows nothing of what was written then");
	warn_of_reboot(path, origin, &image->root);
	return DONE;
}

static enum status prepare_opened(const char *path, const struct metadata_origin *origin,
				  const struct image_io *io, uint64_t *granularity)
{
	char identity[FLEECE_MD_IDENTITY_BYTES];
	static struct image image;
	enum status status;

	identify(origin->devno, identity);
	image_read_root(io, &image);
	if (image.chosen < 0)
		return prepare_new(path, origin, identity, io, granularity);
	status = metadata_check_copies(&image, path);
	if (status == DONE && image.is_short)
		status = metadata_report_short(&image, path);
	if (status != DONE)
		return status;
	return prepare_found(path, origin, identity, io, &image, granularity);
}

enum status metadata_prepare(const char *path, const struct metadata_origin *origin,
			     uint64_t *granularity, dev_t *devno)
{
	enum status status = check_place(path, origin, devno);
	struct image_io io;
	int fd;

	if (status == DONE)
		status = metadata_open(path, O_RDWR | O_EXCL, &fd, &io);
	if (status != DONE)
		return status;
	status = prepare_opened(path, origin, &io, granularity);
	if (close(fd) && status == DONE)
		status = report_errno(errno, path, "cannot write it");
	return status;
}

static bool has_unread_copy(const struct image *image)
{
	size_t i;

	for (i = 0; i < sizeof(image->copies) / sizeof(image->copies[0]); i++)
		if (image->copies[i].result != -ENODATA && image->copies[i].result != -EUCLEAN)
			return true;
	return false;
}

/*
 * Is it that of the origin, although it may have been refused? A volume that was made too
 * small by mistake is as large as ever at the next boot, so size alone says nothing.
 */
static bool is_of(const struct image *image, const struct metadata_origin *origin)
{
	char identity[FLEECE_MD_IDENTITY_BYTES];

	identify(origin->devno, identity);
	if (!strcmp(identity, image->root.identity))
		return true;
	return origin->size / SECTOR >= image->root.origin_sectors &&
	       (!identity[0] || !image->root.identity[0]);
}

static enum status miss_opened(const char *path, struct metadata_origin *origin,
			       const struct image_io *io)
{
	const char *why = "is used without the target, which could not be attached";
	static struct image image;

	image_read_root(io, &image);
	/* Later it may be possible to read what cannot be read now. */
	if (image.chosen < 0 && has_unread_copy(&image))
		return report(FAILED, path, "cannot read it: %s", image.copies[0].error);
	if (image.chosen < 0)
		return NO_CHECKPOINT;
	if (!image_has_root(&image))
		return NO_MODULE;
	if (!image.root.nr_checkpoints)
		return DONE;
	if (!origin->devno) {
		origin->size = (uint64_t)image.root.origin_sectors * SECTOR;
		why = "was not there in time, and may be used without the target now";
	} else if (!is_of(&image, origin)) {
		return NO_CHECKPOINT;
	}
	return drop_checkpoints(path, origin, io, &image.root, why);
}

enum status metadata_miss(const char *path, const struct metadata_origin *origin)
{
	struct metadata_origin missed = *origin;
	enum status status;
	struct image_io io;
	dev_t devno;
	int fd;

	status = check_place(path, origin, &devno);
	if (status == DONE)
		status = metadata_open(path, O_RDWR | O_EXCL, &fd, &io);
	if (status != DONE)
		return status;
	status = miss_opened(path, &missed, &io);
	if (close(fd) && status == DONE)
		status = report_errno(errno, path, "cannot write it");
	return status;
}
