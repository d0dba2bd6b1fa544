// SPDX-License-Identifier: GPL-2.0-only
/*
 * control: /dev/fleece-control, see uapi/linux/dm-fleece.h for the calls. Owns
 * the checks of what comes from userspace and the walk over a map. Holds no lock
 * while it walks: a map is held by references, so writes are never delayed.
 */
#include <linux/compat.h>
#include <linux/device-mapper.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <linux/dm-fleece.h>

#include "control.h"
#include "snapshot.h"

#define DM_MSG_PREFIX		"fleece control"

/* Extents handed to the caller at a time. */
#define EXTENTS_PER_TURN	128

/* Bits looked at before a signal is noticed. */
#define BITS_PER_TURN		0x400000ULL

static_assert(sizeof(struct fleece_version) == 32);
static_assert(sizeof(struct fleece_info) == 192);
static_assert(sizeof(struct fleece_checkpoint) == 120);
static_assert(sizeof(struct fleece_checkpoints) == 40);
static_assert(sizeof(struct fleece_extent) == 24);
static_assert(sizeof(struct fleece_extents) == 152);
static_assert(sizeof(struct fleece_bitmap) == 144);
static_assert(sizeof(struct fleece_release) == 40);
static_assert(sizeof_field(struct fleece_moment, name) == FLEECE_NAME_SIZE);

/**
 * struct subject - the device that a call is about
 * @origin: a reference, or NULL.
 * @snap: a reference, or NULL; one of both is set.
 * @held: history of an origin, held for this call.
 * @history: whichever history answers.
 * @nr_sectors: size of the device, as of @history.
 */
struct subject {
	struct fleece_origin *origin;
	struct fleece_snapshot *snap;
	struct fleece_history held;
	const struct fleece_history *history;
	sector_t nr_sectors;
};

static int device_of_fd(int fd, dev_t *devt)
{
	struct file *file = fget(fd);
	int ret = 0;

	if (!file)
		return -EBADF;
	if (!(file->f_mode & FMODE_READ))
		ret = -EBADF;
	else if (!S_ISBLK(file_inode(file)->i_mode))
		ret = -ENODEV;
	else
		*devt = file_inode(file)->i_rdev;
	fput(file);
	return ret;
}

static void put_subject(struct subject *subject)
{
	fleece_history_put(&subject->held);
	if (subject->origin) {
		fleece_origin_compact_later(subject->origin);
		fleece_origin_put(subject->origin);
	}
	if (subject->snap)
		fleece_snapshot_put(subject->snap);
}

static int get_subject(struct subject *subject, int fd)
{
	dev_t devt;
	int ret;
	unsigned int noio;

	memset(subject, 0, sizeof(*subject));
	ret = device_of_fd(fd, &devt);
	if (ret)
		return ret;
	subject->snap = fleece_snapshot_find_md(devt);
	if (subject->snap) {
		subject->history = &subject->snap->history;
		subject->nr_sectors = subject->snap->cbw->config.nr_sectors;
		return 0;
	}
	subject->origin = fleece_origin_find_md(devt);
	if (!subject->origin)
		return -ENODEV;
	noio = fleece_origin_lock(subject->origin);
	subject->nr_sectors = subject->origin->nr_sectors;
	ret = fleece_history_get(&subject->held, &subject->origin->tracker, GFP_KERNEL);
	fleece_origin_unlock(subject->origin, noio);
	subject->history = &subject->held;
	if (ret)
		put_subject(subject);
	return ret;
}

static const struct fleece_origin *origin_of(const struct subject *subject)
{
	return subject->origin ?: subject->snap->origin;
}

static u64 size_of_subject(const struct subject *subject)
{
	return (u64)subject->nr_sectors << SECTOR_SHIFT;
}

static bool is_zero(const u64 *words, size_t count)
{
	while (count--) {
		if (words[count])
			return false;
	}
	return true;
}

/* ------------------------- Maps ------------------------- */

/**
 * struct map - a map of a device
 * @view: its bits.
 * @shift: log2 of the bytes that a bit stands for.
 * @size: bytes of the device.
 */
struct map {
	struct fleece_view view;
	unsigned int shift;
	u64 size;
};

static int get_changed(struct subject *subject, const char *checkpoint, struct map *map)
{
	map->shift = ilog2(origin_of(subject)->granule_sectors) + SECTOR_SHIFT;
	return fleece_history_since(subject->history, checkpoint, &map->view);
}

static int get_clusters(struct subject *subject, unsigned long **bits, struct map *map)
{
	struct fleece_cbw *cbw = subject->snap->cbw;

	fleece_cbw_finish_merge(cbw);
	map->shift = cbw->cluster_shift + SECTOR_SHIFT;
	map->view.maps = bits;
	map->view.nr_maps = 1;
	map->view.nr_bits = cbw->nr_clusters;
	return 0;
}

static int get_map(struct subject *subject, u32 kind, const char *checkpoint, struct map *map)
{
	size_t length = strnlen(checkpoint, FLEECE_NAME_SIZE);

	map->size = size_of_subject(subject);
	if (length == FLEECE_NAME_SIZE)
		return -EINVAL;
	if (kind == FLEECE_MAP_CHANGED)
		return get_changed(subject, checkpoint, map);
	if (!subject->snap || length)
		return -EINVAL;
	if (kind == FLEECE_MAP_ACCESSIBLE)
		return get_clusters(subject, &subject->snap->cbw->access, map);
	if (kind == FLEECE_MAP_COPIED)
		return get_clusters(subject, &subject->snap->cbw->done, map);
	return -EINVAL;
}

static int check_range(u64 size, u64 offset, u64 length, u64 unit)
{
	if (offset > size || length > size - offset)
		return -ERANGE;
	/* A power of two. */
	if (!length || offset & (unit - 1))
		return -EINVAL;
	if (length & (unit - 1) && offset + length != size)
		return -EINVAL;
	return 0;
}

/* ------------------------- Calls ------------------------- */

static long get_version(void __user *arg)
{
	struct fleece_version version = {
		.interface = FLEECE_INTERFACE_VERSION,
		.module = FLEECE_MODULE_VERSION,
	};

	return copy_to_user(arg, &version, sizeof(version)) ? -EFAULT : 0;
}

static void fill_snapshot_info(struct fleece_snapshot *snap, struct fleece_info *info)
{
	struct fleece_cbw_status status;

	fleece_cbw_get_status(snap->cbw, &status);
	info->kind = FLEECE_KIND_SNAPSHOT;
	info->state = status.state == FLEECE_CBW_ACTIVE ? FLEECE_STATE_ACTIVE :
							  FLEECE_STATE_BROKEN;
	info->cluster = (u64)snap->options.cluster_sectors << SECTOR_SHIFT;
	info->error = status.error;
	info->error_sector = status.error_sector;
	info->accessible = status.accessible;
	strscpy(info->since, snap->options.since, sizeof(info->since));
}

static long get_info(void __user *arg)
{
	struct fleece_info info = { .kind = FLEECE_KIND_ORIGIN };
	struct fleece_info request;
	struct subject subject;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.flags || !is_zero(request.reserved, ARRAY_SIZE(request.reserved)))
		return -EINVAL;
	ret = get_subject(&subject, request.fd);
	if (ret)
		return ret;

	info.fd = request.fd;
	if (subject.snap)
		fill_snapshot_info(subject.snap, &info);
	info.size = size_of_subject(&subject);
	info.granularity = (u64)origin_of(&subject)->granule_sectors << SECTOR_SHIFT;
	info.checkpoints = subject.history->nr_entries;
	put_subject(&subject);
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static int put_checkpoint(const struct fleece_history *history, unsigned int i,
			  struct fleece_checkpoint __user *to)
{
	const struct fleece_history_entry *entry = &history->entries[i];
	struct fleece_checkpoint checkpoint = { .created = entry->moment.created };

	strscpy(checkpoint.name, entry->moment.name, sizeof(checkpoint.name));
	snprintf(checkpoint.uuid, sizeof(checkpoint.uuid), "%pUb", &entry->moment.uuid);
	if (entry->first == history->nr_segments)
		checkpoint.flags |= FLEECE_CHECKPOINT_HERE;
	if (entry->moment.is_invalid)
		checkpoint.flags |= FLEECE_CHECKPOINT_INVALID;
	return copy_to_user(&to[i], &checkpoint, sizeof(checkpoint)) ? -EFAULT : 0;
}

static long get_checkpoints(void __user *arg)
{
	struct fleece_checkpoint __user *entries;
	struct fleece_checkpoints request;
	struct subject subject;
	unsigned int i;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.flags || !is_zero(request.reserved, ARRAY_SIZE(request.reserved)))
		return -EINVAL;
	ret = get_subject(&subject, request.fd);
	if (ret)
		return ret;

	entries = u64_to_user_ptr(request.entries);
	request.count = subject.history->nr_entries;
	for (i = 0; i < min(request.capacity, request.count) && !ret; i++)
		ret = put_checkpoint(subject.history, i, entries);
	put_subject(&subject);
	if (!ret && copy_to_user(arg, &request, sizeof(request)))
		ret = -EFAULT;
	return ret;
}

/* The extent that begins at @offset and goes no further than @end. */
static void find_extent(const struct map *map, u64 offset, u64 end, struct fleece_extent *extent)
{
	u64 bit = offset >> map->shift;
	u64 bit_end = ((end - 1) >> map->shift) + 1;
	bool value;
	bool next;

	/* In turns, so that a long run offers the CPU. */
	bit += fleece_bits_run(&map->view, bit, min(bit + BITS_PER_TURN, bit_end), &value);
	while (bit < bit_end && !fatal_signal_pending(current)) {
		cond_resched();
		fleece_bits_run(&map->view, bit, bit + 1, &next);
		if (next != value)
			break;
		bit += fleece_bits_run(&map->view, bit, min(bit + BITS_PER_TURN, bit_end), &next);
	}
	memset(extent, 0, sizeof(*extent));
	extent->offset = offset;
	extent->length = min(bit << map->shift, end) - offset;
	extent->value = value;
}

/*
 * Fill a buffer that has @n extents before *offset; returns how many it has then, and moves
 * *offset. Bits may change between two looks at them: neighbours that have become equal are
 * joined.
 */
static u32 find_extents(const struct map *map, u64 *offset, u64 end, struct fleece_extent *buffer,
			u32 n, u32 capacity)
{
	struct fleece_extent extent;

	while (*offset < end && !fatal_signal_pending(current)) {
		find_extent(map, *offset, end, &extent);
		if (n && buffer[n - 1].value == extent.value)
			buffer[n - 1].length += extent.length;
		else if (n < capacity)
			buffer[n++] = extent;
		else
			break;
		*offset += extent.length;
	}
	return n;
}

/* Fill the caller's array; returns 0 or an errno. */
static long put_extents(const struct map *map, struct fleece_extents *request,
			struct fleece_extent *buffer)
{
	struct fleece_extent __user *to = u64_to_user_ptr(request->extents);
	u64 end = request->offset + request->length;
	u64 offset = request->offset;
	u32 kept = 0;
	u32 n;

	request->count = 0;
	while (offset < end && request->count < request->capacity) {
		n = min_t(u32, request->capacity - request->count, EXTENTS_PER_TURN);
		n = find_extents(map, &offset, end, buffer, kept, n);
		/* One is kept back, so that the next turn can join it with its first. */
		kept = n == EXTENTS_PER_TURN && offset < end;
		n -= kept;
		if (copy_to_user(to + request->count, buffer, n * sizeof(*buffer)))
			return -EFAULT;
		request->count += n;
		if (kept)
			buffer[0] = buffer[n];
		cond_resched();
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	request->covered = offset - request->offset;
	return 0;
}

static long get_extents(void __user *arg)
{
	struct fleece_extents request;
	struct fleece_extent *buffer;
	struct subject subject;
	struct map map;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.flags || request.reserved0 || !request.capacity ||
	    !is_zero(request.reserved, ARRAY_SIZE(request.reserved)))
		return -EINVAL;
	ret = get_subject(&subject, request.fd);
	if (ret)
		return ret;
	buffer = kmalloc_array(EXTENTS_PER_TURN, sizeof(*buffer), GFP_KERNEL);
	ret = buffer ? get_map(&subject, request.map, request.checkpoint, &map) : -ENOMEM;
	if (!ret)
		ret = check_range(map.size, request.offset, request.length, SECTOR_SIZE);
	if (!ret)
		ret = put_extents(&map, &request, buffer);
	kfree(buffer);
	put_subject(&subject);
	if (!ret && copy_to_user(arg, &request, sizeof(request)))
		ret = -EFAULT;
	return ret;
}

/* Up to eight bits from @first on as a byte, the lowest bit first. */
static u8 take_byte(const struct fleece_view *view, u64 first, u64 end)
{
	u8 byte = 0;
	u64 bit = first;
	u64 length;
	bool value;

	end = min(first + 8, end);
	while (bit < end) {
		length = fleece_bits_run(view, bit, end, &value);
		if (value)
			byte |= GENMASK(bit - first + length - 1, bit - first);
		bit += length;
	}
	return byte;
}

static long put_bits(const struct fleece_view *view, u64 first, u64 count, u8 __user *to)
{
	u64 end = first + count;
	u64 bit;

	for (bit = first; bit < end; bit += 8, to++) {
		if (put_user(take_byte(view, bit, end), to))
			return -EFAULT;
		if (!((bit - first) % BITS_PER_LONG) && fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static long get_bitmap(void __user *arg)
{
	struct fleece_bitmap request;
	struct subject subject;
	struct map map;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.flags || request.reserved0 ||
	    !is_zero(request.reserved, ARRAY_SIZE(request.reserved)))
		return -EINVAL;
	ret = get_subject(&subject, request.fd);
	if (ret)
		return ret;
	ret = get_map(&subject, request.map, request.checkpoint, &map);
	if (!ret) {
		request.unit = 1ULL << map.shift;
		ret = check_range(map.size, request.offset, request.length, request.unit);
	}
	if (!ret) {
		request.count = DIV_ROUND_UP_ULL(request.length, request.unit);
		if (request.bits_size < DIV_ROUND_UP_ULL(request.count, 8))
			ret = -ENOSPC;
		else
			ret = put_bits(&map.view, request.offset >> map.shift, request.count,
				       u64_to_user_ptr(request.bits));
	}
	put_subject(&subject);
	if (!ret && copy_to_user(arg, &request, sizeof(request)))
		ret = -EFAULT;
	return ret;
}

static long release(const struct file *file, const void __user *arg)
{
	struct fleece_release request;
	struct subject subject;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.flags || !is_zero(request.reserved, ARRAY_SIZE(request.reserved)))
		return -EINVAL;
	/* Who was only given the right to look cannot make data inaccessible. */
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	ret = get_subject(&subject, request.fd);
	if (ret)
		return ret;
	ret = -EINVAL;
	if (subject.snap)
		ret = check_range(size_of_subject(&subject), request.offset, request.length,
				  SECTOR_SIZE);
	if (!ret)
		ret = fleece_cbw_release(subject.snap->cbw, request.offset >> SECTOR_SHIFT,
					 request.length >> SECTOR_SHIFT);
	put_subject(&subject);
	return ret;
}

static long control_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *argp = (void __user *)arg;

	switch (cmd) {
	case FLEECE_IOC_VERSION:
		return get_version(argp);
	case FLEECE_IOC_INFO:
		return get_info(argp);
	case FLEECE_IOC_CHECKPOINTS:
		return get_checkpoints(argp);
	case FLEECE_IOC_EXTENTS:
		return get_extents(argp);
	case FLEECE_IOC_BITMAP:
		return get_bitmap(argp);
	case FLEECE_IOC_RELEASE:
		return release(file, argp);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = control_ioctl,
	/* The structures are the same for 32-bit callers. */
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice control_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = FLEECE_CONTROL_NAME,
	.mode = 0600,
	.fops = &control_fops,
};

int fleece_control_init(void)
{
	return misc_register(&control_device);
}

void fleece_control_exit(void)
{
	misc_deregister(&control_device);
}
