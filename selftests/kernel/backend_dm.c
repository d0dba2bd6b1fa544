// SPDX-License-Identifier: GPL-2.0-only
/*
 * The real origins and snapshots, see backend.h.
 *
 * The origins exist already; snapshots are named NAME-snap and get a slice of
 * the COW device, named NAME-slice, of the size asked for.
 */
#define _GNU_SOURCE
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../userspace/lib/control.h"
#include "dm.h"
#include "history.h"

#define HEADER_SECTORS	2048
#define NAME_BYTES	64
#define PATH_BYTES	128

/* Small on purpose, so that maps come in many pieces. */
#define MAP_EXTENTS	7

struct device {
	char name[NAME_BYTES];
	char lower[PATH_BYTES];
	char cow[PATH_BYTES];
	int origin;
	char snapshot_name[NAME_BYTES + 8];
	char slice_name[NAME_BYTES + 8];
	int snapshot;
};

static struct device devices[MAX_DEVICES];
static uint64_t device_sectors;
static int control;

static int real_hold(unsigned int device)
{
	return dm_suspend(devices[device].name);
}

static int real_let_go(unsigned int device)
{
	return dm_resume(devices[device].name);
}

static int real_checkpoint_create(unsigned int device, const char *name)
{
	return dm_message(devices[device].name, "checkpoint_create %s", name);
}

static int real_checkpoint_delete(unsigned int device, const char *name)
{
	return dm_message(devices[device].name, "checkpoint_delete %s", name);
}

static void slice_params(const struct device *dev, char *params, size_t size)
{
	snprintf(params, size, "%s 0", dev->cow);
}

static int create_slice(const struct device *dev, const struct snapshot_options *options,
			char *path)
{
	char params[PATH_BYTES + 8];

	slice_params(dev, params, sizeof(params));
	return dm_create(dev->slice_name, HEADER_SECTORS + options->slots * options->cluster,
			 "linear", params, path);
}

static unsigned int count_words(const char *text)
{
	unsigned int count = 1;

	for (; *text; text++)
		count += *text == ' ';
	return count;
}

static void format_params(const struct device *dev, const struct snapshot_options *options,
			  const char *slice, char *params, size_t size)
{
	unsigned int features = 3 + count_words(options->policy) + (options->since ? 2 : 0) +
				(options->checkpoint ? 2 : 0);

	snprintf(params, size, "%s %s %llu %u staging %llu release_on_discard %s%s%s%s%s",
		 dev->lower, slice, (unsigned long long)options->cluster, features,
		 (unsigned long long)options->staging, options->policy,
		 options->since ? " since " : "",
		 options->since ? options->since : "", options->checkpoint ? " checkpoint " : "",
		 options->checkpoint ? options->checkpoint : "");
}

static int real_snapshot_create(unsigned int device, const struct snapshot_options *options)
{
	struct device *dev = &devices[device];
	char slice[32], path[32];
	char params[512];
	int ret;

	ret = create_slice(dev, options, slice);
	if (ret)
		return ret;
	format_params(dev, options, slice, params, sizeof(params));
	ret = dm_create(dev->snapshot_name, device_sectors, "fleece-snapshot", params, path);
	if (ret)
		goto err_remove_slice;
	dev->snapshot = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (dev->snapshot < 0) {
		ret = -errno;
		goto err_remove_snapshot;
	}
	return 0;

err_remove_snapshot:
	dm_remove(dev->snapshot_name);
err_remove_slice:
	dm_remove(dev->slice_name);
	return ret;
}

static int real_snapshot_remove(unsigned int device)
{
	struct device *dev = &devices[device];
	int ret;

	close(dev->snapshot);
	ret = dm_remove(dev->snapshot_name);
	if (!ret)
		ret = dm_remove(dev->slice_name);
	return ret;
}

static int range_ioctl(int fd, unsigned long request, uint64_t sector, uint64_t count)
{
	uint64_t range[2] = { sector * SECTOR_BYTES, count * SECTOR_BYTES };

	return ioctl(fd, request, range) < 0 ? -errno : 0;
}

static int real_snapshot_release(unsigned int device, uint64_t sector, uint64_t count,
				 bool discard)
{
	if (discard)
		return range_ioctl(devices[device].snapshot, BLKDISCARD, sector, count);
	return dm_message(devices[device].snapshot_name, "release %llu %llu",
			  (unsigned long long)sector, (unsigned long long)count);
}

static int real_snapshot_pause(unsigned int device)
{
	int ret = dm_suspend(devices[device].snapshot_name);

	return ret ? ret : dm_resume(devices[device].snapshot_name);
}

static int real_snapshot_grow(unsigned int device, uint64_t cluster, uint64_t slots)
{
	const struct device *dev = &devices[device];
	char params[PATH_BYTES + 8];
	int ret;

	slice_params(dev, params, sizeof(params));
	ret = dm_reload(dev->slice_name, HEADER_SECTORS + slots * cluster, "linear", params);
	return ret ? ret : dm_message(dev->snapshot_name, "cow_resize");
}

static int real_snapshot_state(unsigned int device)
{
	struct fleece_info info;
	int ret = fleece_control_info(control, devices[device].snapshot, &info);

	if (ret)
		return ret;
	if (info.state == FLEECE_STATE_ACTIVE)
		return 0;
	return info.error ? -info.error : -EPROTO;
}

static int real_snapshot_is_idle(unsigned int device)
{
	unsigned long long staged_bytes, waiting;
	char text[256];
	int ret;

	ret = dm_status(devices[device].snapshot_name, text, sizeof(text));
	if (ret)
		return ret;
	if (sscanf(text, "%*s %*u/%*u %*u %*u/%*u %*u %*u %*u %llu %llu", &staged_bytes,
		   &waiting) != 2)
		return -EPROTO;
	return !staged_bytes && !waiting;
}

static int read_all(int fd, uint64_t sector, uint64_t count, void *data)
{
	ssize_t done = pread(fd, data, count * SECTOR_BYTES, (off_t)(sector * SECTOR_BYTES));

	if (done < 0)
		return -errno;
	return (uint64_t)done == count * SECTOR_BYTES ? 0 : -EPROTO;
}

static int real_snapshot_read(unsigned int device, uint64_t sector, uint64_t count, void *data)
{
	return read_all(devices[device].snapshot, sector, count, data);
}

/*
 * Also checks the form of the extents: gapless, up to the end @bytes, no empty one. The
 * @values are of the sectors from the first one of the device on.
 */
static int read_extents(int fd, uint32_t map, const char *checkpoint, uint64_t offset,
			uint64_t bytes, uint8_t *values, uint64_t *covered)
{
	struct fleece_extent extents[MAP_EXTENTS];
	uint64_t at = offset;
	int count, i;

	count = fleece_control_extents(control, fd, map, checkpoint, offset, bytes - offset,
				       extents, MAP_EXTENTS, covered);
	if (count < 0)
		return count;
	for (i = 0; i < count; i++) {
		const struct fleece_extent *extent = &extents[i];

		if (extent->offset != at || !extent->length || extent->length > bytes - at ||
		    (i && extent->value == extents[i - 1].value))
			return -EPROTO;
		memset(values + at / SECTOR_BYTES, extent->value,
		       extent->length / SECTOR_BYTES);
		at += extent->length;
	}
	return count && at == offset + *covered ? 0 : -EPROTO;
}

static int read_map(unsigned int device, uint32_t map, const char *checkpoint, uint64_t offset,
		    uint64_t end, uint8_t *values)
{
	uint64_t covered;
	int ret;

	for (; offset < end; offset += covered) {
		ret = read_extents(devices[device].snapshot, map, checkpoint, offset, end, values,
				   &covered);
		if (ret)
			return ret;
	}
	return 0;
}

static int real_snapshot_map(unsigned int device, uint32_t map, const char *checkpoint,
			     uint8_t *values)
{
	return read_map(device, map, checkpoint, 0, device_sectors * SECTOR_BYTES, values);
}

static int count_lost(unsigned int device)
{
	char text[256];
	int lost;
	int ret;

	ret = dm_status(devices[device].snapshot_name, text, sizeof(text));
	if (ret)
		return ret;
	return sscanf(text, "%*s %*u/%*u %*u %*u/%*u %*u %*u %d", &lost) == 1 ? lost : -EPROTO;
}

static int real_snapshot_has_lost(unsigned int device, uint64_t sector, uint64_t count)
{
	int ret = count_lost(device);
	uint8_t *values;

	if (ret <= 0)
		return ret;
	values = malloc(device_sectors);
	if (!values)
		return -ENOMEM;
	ret = read_map(device, FLEECE_MAP_ACCESSIBLE, NULL, sector * SECTOR_BYTES,
		       (sector + count) * SECTOR_BYTES, values);
	if (!ret)
		ret = !!memchr(values + sector, 0, count);
	free(values);
	return ret;
}

static int real_origin_read(unsigned int device, uint64_t sector, uint64_t count, void *data)
{
	return read_all(devices[device].origin, sector, count, data);
}

static int real_origin_write(unsigned int device, uint64_t sector, uint64_t count,
			     const void *data)
{
	ssize_t done = pwrite(devices[device].origin, data, count * SECTOR_BYTES,
			      (off_t)(sector * SECTOR_BYTES));

	if (done < 0)
		return -errno;
	return (uint64_t)done == count * SECTOR_BYTES ? 0 : -EPROTO;
}

static int real_origin_zero(unsigned int device, uint64_t sector, uint64_t count)
{
	return range_ioctl(devices[device].origin, BLKZEROOUT, sector, count);
}

static int real_origin_discard(unsigned int device, uint64_t sector, uint64_t count)
{
	return range_ioctl(devices[device].origin, BLKDISCARD, sector, count);
}

static const struct backend real_backend = {
	.hold = real_hold,
	.let_go = real_let_go,
	.checkpoint_create = real_checkpoint_create,
	.checkpoint_delete = real_checkpoint_delete,
	.snapshot_create = real_snapshot_create,
	.snapshot_remove = real_snapshot_remove,
	.snapshot_release = real_snapshot_release,
	.snapshot_pause = real_snapshot_pause,
	.snapshot_grow = real_snapshot_grow,
	.snapshot_has_lost = real_snapshot_has_lost,
	.snapshot_state = real_snapshot_state,
	.snapshot_is_idle = real_snapshot_is_idle,
	.snapshot_read = real_snapshot_read,
	.snapshot_map = real_snapshot_map,
	.origin_read = real_origin_read,
	.origin_write = real_origin_write,
	.origin_zero = real_origin_zero,
	.origin_discard = real_origin_discard,
};

static int open_device(struct device *dev, const char *text)
{
	char path[32];
	int ret;

	if (sscanf(text, "%63[^:]:%127[^:]:%127s", dev->name, dev->lower, dev->cow) != 3)
		return -EINVAL;
	snprintf(dev->snapshot_name, sizeof(dev->snapshot_name), "%.63s-snap", dev->name);
	snprintf(dev->slice_name, sizeof(dev->slice_name), "%.63s-slice", dev->name);
	ret = dm_path(dev->name, path);
	if (ret)
		return ret;
	dev->origin = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	return dev->origin < 0 ? -errno : 0;
}

const struct backend *backend_dm_open(char *const *origins, unsigned int count,
				      uint64_t *sectors)
{
	uint64_t bytes;
	unsigned int i;
	int ret;

	control = fleece_control_open();
	if (control < 0) {
		fprintf(stderr, "oracle: cannot open control device: %s\n", strerror(-control));
		return NULL;
	}
	for (i = 0; i < count; i++) {
		ret = open_device(&devices[i], origins[i]);
		if (!ret && ioctl(devices[i].origin, BLKGETSIZE64, &bytes) < 0)
			ret = -errno;
		if (!ret && i && bytes / SECTOR_BYTES != device_sectors)
			ret = -EMSGSIZE;
		if (ret) {
			fprintf(stderr, "oracle: cannot use '%s': %s\n", origins[i],
				strerror(-ret));
			return NULL;
		}
		device_sectors = bytes / SECTOR_BYTES;
	}
	*sectors = device_sectors;
	return &real_backend;
}
