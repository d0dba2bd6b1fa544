// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, backend_snapshot: a fleece snapshot, its maps and its releases.
 *
 * Reads go past the page cache (O_DIRECT). The cache would give out clusters
 * after their release, and it turns every failure into EIO, so that "not
 * accessible" and "broken" could not be told apart.
 *
 * Releases go through /dev/fleece-control: a message to the device would need a
 * privilege that fleeced gives up. No lock is needed.
 */
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <linux/fs.h>

#include "../lib/control.h"
#include "log.h"
#include "text.h"

#define SECTOR_BYTES		512U
#define PREFERRED_MIN		4096U
#define PREFERRED_MAX		(1U << 20)

/*
 * Set at construction, then constant: all but the atomic flags, which make
 * sure that each kind of trouble is logged once.
 */
struct snapshot_backend {
	struct backend base;
	const char *path;
	int device;
	int control;
	uint64_t number;
	atomic_bool is_break_logged;
	atomic_bool is_error_logged;
	atomic_bool is_part_logged;
};

static struct snapshot_backend *to_snapshot(struct backend *backend)
{
	return (struct snapshot_backend *)backend;
}

static int snapshot_state(struct backend *backend, char *text, size_t size)
{
	struct snapshot_backend *snapshot = to_snapshot(backend);
	struct fleece_info info;
	int ret = fleece_control_info(snapshot->control, snapshot->device, &info);

	text[0] = '\0';
	if (ret) {
		snprintf(text, size, "the snapshot's state cannot be read: %s", strerror(-ret));
		return -EIO;
	}
	if (info.state == FLEECE_STATE_ACTIVE)
		return 0;
	snprintf(text, size, "the snapshot is broken: %s at origin sector %llu",
		 info.error ? strerror(info.error) : "unknown cause",
		 (unsigned long long)info.error_sector);
	if (!atomic_exchange(&snapshot->is_break_logged, true))
		log_error("%s: %s; all that is read from it fails", snapshot->path, text);
	return -EIO;
}

static int read_direct(struct snapshot_backend *snapshot, uint8_t *buffer, uint64_t offset,
		       size_t length)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pread(snapshot->device, buffer + done, length - done, offset + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		done += n;
	}
	return 0;
}

/*
 * The module answers ENODATA for what is not accessible, and for nothing else. An older one also
 * passed on that of a disk, for a bad sector. The access map knows.
 */
static bool is_accessible(struct snapshot_backend *snapshot, uint64_t offset, uint32_t length)
{
	uint64_t start = offset & ~(uint64_t)(SECTOR_BYTES - 1);
	uint64_t end = (offset + length + SECTOR_BYTES - 1) & ~(uint64_t)(SECTOR_BYTES - 1);
	struct fleece_extent extent;
	uint64_t covered = 0;
	int count = fleece_control_extents(snapshot->control, snapshot->device,
					   FLEECE_MAP_ACCESSIBLE, NULL, start, end - start,
					   &extent, 1, &covered);

	return count == 1 && extent.value && covered == end - start;
}

static int snapshot_read(struct backend *backend, void *buffer, uint64_t offset, uint32_t length)
{
	struct snapshot_backend *snapshot = to_snapshot(backend);
	int ret = read_direct(snapshot, buffer, offset, length);
	char text[BACKEND_TEXT_SIZE];

	if (!ret)
		return 0;
	if (ret == -ENODATA && !is_accessible(snapshot, offset, length))
		return -EPERM;
	if (!snapshot_state(backend, text, sizeof(text)) &&
	    !atomic_exchange(&snapshot->is_error_logged, true))
		log_error("%s: cannot read %u bytes at %llu: %s; further errors are only told to clients",
			  snapshot->path, length, (unsigned long long)offset, strerror(-ret));
	return -EIO;
}

static int snapshot_release(struct backend *backend, uint64_t offset, uint64_t length)
{
	struct snapshot_backend *snapshot = to_snapshot(backend);
	uint64_t mask = SECTOR_BYTES - 1;
	uint64_t first = (offset + mask) & ~mask;
	uint64_t end = (offset + length) & ~mask;
	char text[BACKEND_TEXT_SIZE];
	int ret;

	if (end <= first)
		return 0;
	ret = fleece_control_release(snapshot->control, snapshot->device, first, end - first);
	/* What is whole was released, and the snapshot is as good as before. */
	if (ret == -ENOSPC || ret == -ENOMEM) {
		if (!atomic_exchange(&snapshot->is_part_logged, true))
			log_error("%s: parts of too many clusters are released to remember more of them (%s); clusters of which a part is forgotten keep their COW space",
				  snapshot->path, strerror(-ret));
		return 0;
	}
	if (ret && !snapshot_state(backend, text, sizeof(text)) &&
	    !atomic_exchange(&snapshot->is_error_logged, true))
		log_error("%s: cannot release %llu bytes at %llu: %s; further errors are only told to clients",
			  snapshot->path, (unsigned long long)length, (unsigned long long)offset,
			  strerror(-ret));
	return ret ? -EIO : 0;
}

static int snapshot_extents(struct backend *backend, enum fleece_map map, const char *checkpoint,
			    uint64_t offset, uint64_t length, struct fleece_extent *extents,
			    uint32_t capacity, uint64_t *covered)
{
	struct snapshot_backend *snapshot = to_snapshot(backend);

	return fleece_control_extents(snapshot->control, snapshot->device, map, checkpoint, offset,
				      length, extents, capacity, covered);
}

static void snapshot_close(struct backend *backend)
{
	struct snapshot_backend *snapshot = to_snapshot(backend);

	close(snapshot->control);
	close(snapshot->device);
	free(snapshot->base.checkpoints);
	free(snapshot);
}

static const struct backend_ops snapshot_ops = {
	.read = snapshot_read,
	.release = snapshot_release,
	.extents = snapshot_extents,
	.state = snapshot_state,
	.close = snapshot_close,
};

/* Of a module that is older than FLEECE_IOC_RELEASE, which did not change the version. */
static const struct backend_ops unreleasable_ops = {
	.read = snapshot_read,
	.extents = snapshot_extents,
	.state = snapshot_state,
	.close = snapshot_close,
};

/* A release of nothing is refused by a module that knows what it is. */
static const struct backend_ops *find_ops(const struct snapshot_backend *snapshot)
{
	if (fleece_control_release(snapshot->control, snapshot->device, 0, 0) != -ENOTTY)
		return &snapshot_ops;
	log_info("%s: the dm_fleece module that is loaded is too old to release anything for fleeced: load the one that came with it",
		 snapshot->path);
	return &unreleasable_ops;
}

/* A checkpoint that cannot be relied on is not offered at all. */
static int load_checkpoints(struct snapshot_backend *snapshot)
{
	struct fleece_checkpoint *list = NULL;
	size_t count = 0, kept = 0, i;
	int ret = fleece_control_checkpoints(snapshot->control, snapshot->device, &list, &count);

	if (ret)
		return ret;
	for (i = 0; i < count; i++) {
		if (list[i].flags & FLEECE_CHECKPOINT_INVALID)
			log_info("%s: checkpoint %s is invalid and not offered", snapshot->path,
				 list[i].name);
		else
			list[kept++] = list[i];
	}
	snapshot->base.checkpoints = list;
	snapshot->base.checkpoint_count = kept;
	return 0;
}

static int find_geometry(struct snapshot_backend *snapshot, uint64_t cluster)
{
	char value[128];
	int block = 0;

	if (ioctl(snapshot->device, BLKSSZGET, &block) < 0)
		return -errno;
	if (block <= 0 || (uint32_t)block > BACKEND_BLOCK_MAX)
		return -EINVAL;
	snapshot->base.block = block;
	if (cluster < PREFERRED_MIN)
		cluster = PREFERRED_MIN;
	snapshot->base.preferred = cluster > PREFERRED_MAX ? PREFERRED_MAX : cluster;
	if (!backend_read_sysfs(snapshot->number, "queue/rotational", value, sizeof(value)))
		snapshot->base.is_rotational = value[0] == '1';
	if (!backend_read_sysfs(snapshot->number, "dm/name", value, sizeof(value)) &&
	    text_is_export_name(value))
		snprintf(snapshot->base.name, sizeof(snapshot->base.name), "%s", value);
	return 0;
}

int backend_snapshot_create(const char *path, int device, int control,
			    const struct fleece_info *info, struct backend **backend)
{
	struct snapshot_backend *snapshot = calloc(1, sizeof(*snapshot));
	struct stat status;
	int ret;

	if (!snapshot)
		return -ENOMEM;
	snapshot->base.size = info->size;
	snapshot->base.has_maps = true;
	snprintf(snapshot->base.since, sizeof(snapshot->base.since), "%s", info->since);
	snapshot->path = path;
	snapshot->device = device;
	snapshot->control = control;
	snapshot->base.ops = find_ops(snapshot);
	ret = fstat(device, &status) || fcntl(device, F_SETFL, O_DIRECT) ? -errno : 0;
	if (!ret) {
		snapshot->number = status.st_rdev;
		ret = find_geometry(snapshot, info->cluster);
	}
	if (!ret)
		ret = load_checkpoints(snapshot);
	if (ret) {
		free(snapshot);
		return ret;
	}
	*backend = &snapshot->base;
	return 0;
}
