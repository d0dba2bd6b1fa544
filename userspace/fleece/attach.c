// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, attach: puts the target "fleece" on a device and takes it off again.
 *
 * A plain device is claimed by a new device, /dev/mapper/NAME. A device-mapper
 * device keeps its name, number and users. Its table moves to a new device,
 * NAME-lower, and a table that names that one takes its place:
 *
 *   before   users -> NAME (table T)
 *   after    users -> NAME (fleece) -> NAME-lower (table T)
 *
 * Between suspend and resume of NAME, I/O is held for a moment and no table is
 * live twice with I/O on it. Until that resume, everything can be undone; the
 * undoing is in one place for each direction. dm uuids cannot change, so NAME
 * keeps the one it has.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "checkpoint.h"
#include "device.h"
#include "fleecetab.h"
#include "lock.h"
#include "metadata_device.h"
#include "process.h"
#include "size.h"
#include "verbs.h"
#include "window.h"

/* "LVM-", and the ids of group and volume; internal devices have more. */
#define LVM_UUID_LENGTH		(4 + 32 + 32)

struct attach {
	const char *device;
	const char *name;
	const char *metadata;
	/* 0: not given. */
	dev_t metadata_devno;
	uint64_t granularity;
	unsigned int limit_ms;
	/* All that this file lists, instead. */
	const char *tab;
	unsigned int wait_ms;
};

/* From here on devices are changed, and signals wait. */
static enum status start_change(void)
{
	enum status status = device_start(NULL);

	if (status == DONE)
		status = lock_changes();
	if (status == DONE)
		process_hold_signals();
	return status;
}

/*
 * Targets whose table may be live on two devices as long as only one of them
 * does I/O. Others keep state on disk that a second instance would overwrite.
 */
static const char *const movable_targets[] = {
	"linear", "striped", "crypt", "thin", "delay", "flakey", "dust", "error", "zero",
};

static bool is_movable(const char *type)
{
	size_t i;

	for (i = 0; i < sizeof(movable_targets) / sizeof(movable_targets[0]); i++)
		if (!strcmp(type, movable_targets[i]))
			return true;
	return false;
}

/* The one-line table of an origin on @lower. */
static int make_table(const struct attach *attach, struct fleece_dm_table *table,
		      struct fleece_dm_target *target, dev_t lower, uint64_t sectors)
{
	char devno[DEVNO_TEXT], metadata[DEVNO_TEXT] = "-";

	memset(target, 0, sizeof(*target));
	target->length = sectors;
	snprintf(target->type, sizeof(target->type), "%s", ORIGIN_TARGET);
	table->targets = target;
	table->count = 1;
	if (attach->metadata_devno)
		device_devno_text(metadata, attach->metadata_devno);
	if (asprintf(&target->params, "%s %s %llu", device_devno_text(devno, lower), metadata,
		     (unsigned long long)(attach->granularity / SECTOR_SIZE)) < 0)
		return -ENOMEM;
	return 0;
}

/* Load the table of an origin into @name. */
static int load_origin(const struct attach *attach, const char *name, dev_t lower,
		       uint64_t sectors, bool is_read_only)
{
	struct fleece_dm_table table = { .is_read_only = is_read_only };
	struct fleece_dm_target target;
	int ret = make_table(attach, &table, &target, lower, sectors);

	if (ret)
		return ret;
	ret = fleece_dm_load(name, &table);
	free(target.params);
	return ret;
}

/* Now the granularity is known in any case. */
static enum status prepare_metadata(struct attach *attach, dev_t devno, uint64_t size,
				    bool is_used)
{
	struct metadata_origin origin = {
		.path = attach->device, .devno = devno, .size = size, .is_used = is_used,
	};
	enum status status = DONE;

	if (attach->metadata)
		status = metadata_prepare(attach->metadata, &origin, &attach->granularity,
					  &attach->metadata_devno);
	if (!attach->granularity)
		attach->granularity = DEFAULT_GRANULARITY;
	return status;
}

static uint64_t table_sectors(const struct fleece_dm_table *table)
{
	const struct fleece_dm_target *last = &table->targets[table->count - 1];

	return last->start + last->length;
}

static bool is_origin(const char *name)
{
	struct fleece_dm_table table;
	bool found;

	if (fleece_dm_table(name, &table))
		return false;
	found = table.count == 1 && !strcmp(table.targets[0].type, ORIGIN_TARGET);
	fleece_dm_table_free(&table);
	return found;
}

/*
 * Make the loaded table of a device live, without freezing its filesystem. What
 * counts is which table is live in the end: after a suspend that failed, and
 * when the guardian steps in, the resume swaps the tables all the same.
 */
static enum status swap_table(const char *name, bool to_origin, unsigned int limit_ms)
{
	struct fleece_dm_switch suspend, resume;
	struct window window = {
		.suspends = &suspend,
		.resumes = &resume,
		.origins = 1,
		.limit_ms = limit_ms,
	};
	struct window_result result;
	struct fleece_dm_info info;
	int ret;

	fleece_dm_suspend_prepare(&suspend, name, false);
	fleece_dm_resume_prepare(&resume, name, FLEECE_DM_UDEV_ALL);
	ret = window_run(&window, &result);
	if (!ret || (is_origin(name) == to_origin && !fleece_dm_info(name, &info) &&
		     !info.is_suspended))
		return DONE;
	return window_report(ret, &result, &name, NULL);
}

static enum status check_live(const struct fleece_dm_info *info,
			      const struct fleece_dm_table *table)
{
	size_t i;

	if (device_has_prefix(info->uuid, "FLEECE-"))
		return report(BUSY, info->name, "is a device of dm-fleece itself");
	if (device_has_prefix(info->uuid, "LVM-") && strlen(info->uuid) > LVM_UUID_LENGTH)
		return report(FAILED, info->name, "is an internal device of LVM; attach the volume");
	if (!info->is_live || !table->count)
		return report(FAILED, info->name, "has no table");
	if (info->is_suspended || info->has_inactive)
		return report(BUSY, info->name, "is being changed by somebody else (%s); try again later",
			      info->is_suspended ? "suspended" : "a table is loaded");
	for (i = 0; i < table->count; i++) {
		if (!strcmp(table->targets[i].type, ORIGIN_TARGET))
			return report(BUSY, info->name, "is attached already");
		if (!is_movable(table->targets[i].type))
			return report(FAILED, info->name,
				      "its target '%s' cannot be moved while it is live; attach a volume above it, or what lies below it at boot",
				      table->targets[i].type);
	}
	return DONE;
}

/* Make NAME-lower with the table of NAME. */
static enum status make_lower(const struct fleece_dm_info *info,
			      const struct fleece_dm_table *table,
			      struct fleece_dm_info *lower)
{
	char name[DM_NAME_LEN + sizeof(LOWER_SUFFIX)], uuid[DM_UUID_LEN];
	int ret;

	snprintf(name, sizeof(name), "%s" LOWER_SUFFIX, info->name);
	if (strlen(name) >= DM_NAME_LEN)
		return report(FAILED, info->name, "its name is too long for %s" LOWER_SUFFIX,
			      info->name);
	if (!fleece_dm_info(name, lower))
		return report(BUSY, info->name, "there is a device %s already", name);
	ret = device_uuid(uuid, LOWER_UUID, "");
	if (ret)
		return report_errno(ret, info->name, "cannot make a uuid");
	ret = fleece_dm_create(name, uuid);
	if (ret)
		return report_dm(ret, name, "cannot create it");
	ret = fleece_dm_load(name, table);
	if (!ret)
		ret = fleece_dm_resume(name, FLEECE_DM_UDEV_NODE_ONLY);
	if (!ret)
		ret = fleece_dm_info(name, lower);
	if (ret) {
		enum status status = report_dm(ret, name, "cannot set it up");

		fleece_dm_remove(name);
		return status;
	}
	return DONE;
}

static enum status attach_over_lower(const struct attach *attach,
				     const struct fleece_dm_info *info,
				     const struct fleece_dm_table *table,
				     const struct fleece_dm_info *lower)
{
	enum status status;
	int ret = load_origin(attach, info->name, lower->devno, table_sectors(table),
			      table->is_read_only);

	if (ret)
		return report_dm(ret, info->name, "cannot load the table");
	status = swap_table(info->name, true, attach->limit_ms);
	if (status != DONE)
		fleece_dm_clear(info->name);
	return status;
}

static enum status attach_live(struct attach *attach, const struct fleece_dm_info *info)
{
	struct fleece_dm_info lower;
	struct fleece_dm_table table;
	enum status status;
	int ret;

	if (attach->name && strcmp(attach->name, info->name))
		return verb_usage("%s is a device-mapper device and keeps its name, so --name %s makes no sense",
				  info->name, attach->name);
	ret = fleece_dm_table(info->name, &table);
	if (ret)
		return report_dm(ret, info->name, "cannot read its table");
	status = check_live(info, &table);
	if (status == DONE)
		status = prepare_metadata(attach, info->devno, table_sectors(&table) * SECTOR_SIZE,
					  device_is_used(info));
	if (status == DONE)
		status = make_lower(info, &table, &lower);
	if (status == DONE) {
		status = attach_over_lower(attach, info, &table, &lower);
		if (status != DONE && fleece_dm_remove(lower.name))
			report(FAILED, lower.name, "is left over; try 'dmsetup remove %s'",
			       lower.name);
	}
	fleece_dm_table_free(&table);
	if (status == DONE)
		printf("%s attached, on %s\n", info->name, lower.name);
	return status;
}

/* Nobody else may use a plain device: they would write below us. */
static enum status check_unused(const char *path, dev_t devno)
{
	char mountpoint[PATH_MAX];
	int fd;

	if (device_mountpoint(devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, path,
			      "is mounted on %s, and a plain device cannot be attached below its users; unmount it, attach it and mount /dev/mapper/NAME instead, or attach it at boot before it is mounted",
			      mountpoint);
	fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return report(BUSY, path,
			      "is in use (swap, RAID, LVM, or one of its partitions); stop that first, or attach the volume above it");
	if (fd < 0)
		return report_errno(errno, path, "cannot open it for writing");
	close(fd);
	return DONE;
}

static enum status check_plain(const struct attach *attach, const char *name, uint64_t size)
{
	struct fleece_dm_info info;

	if (!*name || strchr(name, '/') || !fleece_name_is_valid(name) ||
	    strlen(name) + sizeof(SNAPSHOT_SUFFIX) > DM_NAME_LEN)
		return verb_usage("'%s' cannot be the name of a device; choose one with --name",
				  name);
	if (!size)
		return report(FAILED, attach->device, "has no size");
	if (!fleece_dm_info(name, &info))
		return report(BUSY, attach->device,
			      "there is a device /dev/mapper/%s already; choose another --name",
			      name);
	return DONE;
}

static enum status attach_plain(struct attach *attach, dev_t devno)
{
	const char *base = strrchr(attach->device, '/');
	const char *name = attach->name ? attach->name : base ? base + 1 : attach->device;
	char uuid[DM_UUID_LEN];
	uint64_t size = 0;
	enum status status;
	int ret;

	ret = device_size(devno, &size);
	if (ret)
		return report_errno(ret, attach->device, "cannot read its size");
	status = check_plain(attach, name, size);
	if (status == DONE)
		status = check_unused(attach->device, devno);
	if (status == DONE)
		status = prepare_metadata(attach, devno, size, false);
	if (status != DONE)
		return status;
	ret = device_uuid(uuid, ORIGIN_UUID, "");
	if (!ret)
		ret = fleece_dm_create(name, uuid);
	if (ret)
		return report_dm(ret, name, "cannot create it");
	ret = load_origin(attach, name, devno, size / SECTOR_SIZE, false);
	if (!ret)
		ret = fleece_dm_resume(name, FLEECE_DM_UDEV_ALL);
	if (ret) {
		status = report_dm(ret, name, "cannot set it up");
		fleece_dm_remove(name);
		return status;
	}
	fleece_dm_settle(name);
	printf("%s attached, use /dev/mapper/%s from now on\n", attach->device, name);
	return DONE;
}

/* The device of @attach, whatever kind it is. */
static enum status attach_device(struct attach *attach)
{
	struct fleece_dm_info info;
	struct stat st;

	if (!strchr(attach->device, '/') && !fleece_dm_info(attach->device, &info))
		return attach_live(attach, &info);
	if (stat(attach->device, &st))
		return report_errno(errno, attach->device, "cannot find the device");
	if (!S_ISBLK(st.st_mode))
		return report(NO_DEVICE, attach->device, "is not a block device");
	if (!fleece_dm_info_devno(st.st_rdev, &info))
		return attach_live(attach, &info);
	return attach_plain(attach, st.st_rdev);
}

static enum status attach_entry(const struct fleecetab_entry *entry, unsigned int limit_ms)
{
	struct attach attach = {
		.device = entry->device,
		.name = entry->name,
		.metadata = entry->metadata[0] ? entry->metadata : NULL,
		.granularity = entry->granularity,
		.limit_ms = limit_ms,
	};

	if (is_origin(entry->name)) {
		printf("%s is attached already\n", entry->name);
		return DONE;
	}
	return attach_device(&attach);
}

/* It is there, and will be used as it is: what is written then must not look unchanged. */
static void miss_entry(const struct fleecetab_entry *entry)
{
	struct metadata_origin origin = { .path = entry->device };
	struct stat st;

	if (!entry->metadata[0] || stat(entry->device, &st) || !S_ISBLK(st.st_mode))
		return;
	origin.devno = st.st_rdev;
	if (!device_size(st.st_rdev, &origin.size))
		metadata_miss(entry->metadata, &origin);
}

static enum status attach_all(const struct attach *attach)
{
	struct fleecetab tab;
	enum status status = fleecetab_read(attach->tab, &tab), ret;
	size_t i;

	fleecetab_wait(&tab, attach->wait_ms / 1000);
	ret = start_change();
	for (i = 0; i < tab.count; i++) {
		if (tab.entries[i].is_manual)
			continue;
		if (ret == DONE && attach_entry(&tab.entries[i], attach->limit_ms) == DONE)
			continue;
		miss_entry(&tab.entries[i]);
		status = FAILED;
	}
	fleecetab_free(&tab);
	return ret == DONE ? status : ret;
}

static enum status check_attach(const struct attach *attach, int nr_words)
{
	if (attach->tab && (nr_words || attach->name || attach->metadata || attach->granularity))
		return verb_usage("--all takes devices, names and the like from the file");
	if (!attach->tab && nr_words != 1)
		return verb_usage("exactly one DEVICE is needed");
	if (!attach->tab && attach->wait_ms)
		return verb_usage("--wait goes with --all");
	if (attach->granularity && !device_unit_is_valid(attach->granularity))
		return verb_usage("the granularity must be a power of two from 4K to 16M");
	return DONE;
}

static enum status parse_attach(int argc, char **argv, struct attach *attach)
{
	enum { NAME = 256, METADATA, GRANULARITY, LIMIT, ALL, WAIT };
	static const struct option options[] = {
		{ "name", required_argument, NULL, NAME },
		{ "metadata", required_argument, NULL, METADATA },
		{ "granularity", required_argument, NULL, GRANULARITY },
		{ "freeze-timeout", required_argument, NULL, LIMIT },
		{ "all", optional_argument, NULL, ALL },
		{ "wait", required_argument, NULL, WAIT },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int option;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		if (option == NAME)
			attach->name = optarg;
		else if (option == METADATA)
			attach->metadata = strcmp(optarg, "-") ? optarg : NULL;
		else if (option == GRANULARITY &&
			 (fleece_size_parse(optarg, &attach->granularity) || !attach->granularity))
			return verb_usage("'%s' is not a size", optarg);
		else if (option == LIMIT && window_limit_parse(optarg, &attach->limit_ms))
			return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
		else if (option == ALL)
			attach->tab = optarg ? optarg : FLEECETAB_PATH;
		else if (option == WAIT && window_limit_parse(optarg, &attach->wait_ms))
			return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
	}
	attach->device = argv[optind];
	return check_attach(attach, argc - optind);
}

enum status verb_attach(int argc, char **argv)
{
	struct attach attach = { .limit_ms = WINDOW_LIMIT_MS };
	enum status status = parse_attach(argc, argv, &attach);

	if (status != DONE)
		return status;
	if (attach.tab)
		return attach_all(&attach);
	status = start_change();
	return status == DONE ? attach_device(&attach) : status;
}

static enum status detach_plain(const struct origin *origin)
{
	char mountpoint[PATH_MAX];
	int ret;

	if (device_mountpoint(origin->dm.devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, origin->dm.name, "is mounted on %s; unmount it first",
			      mountpoint);
	ret = fleece_dm_remove(origin->dm.name);
	if (ret == -EBUSY)
		return report(BUSY, origin->dm.name, "is in use; stop its users first");
	if (ret)
		return report_dm(ret, origin->dm.name, "cannot remove it");
	printf("%s detached\n", origin->dm.name);
	return DONE;
}

/* What is written from now on is not seen: nothing that lasts may say it was not. */
static enum status drop_checkpoints(const struct origin *origin)
{
	size_t count;
	int ret = checkpoint_delete_all(origin, &count);

	if (ret)
		return report_dm(ret, origin->dm.name, "cannot delete its checkpoints");
	if (count)
		report_note(origin->dm.name,
			    "note: goes on being used, unseen: %zu checkpoint%s deleted, the next backup is a full one",
			    count, count == 1 ? " was" : "s were");
	return DONE;
}

/* After a failure of its metadata device no checkpoint is valid later anyway. */
static bool is_durable(const struct origin *origin)
{
	return strcmp(origin->status.metadata, "none") &&
	       strcmp(origin->status.metadata, "failed");
}

static enum status detach_live(const struct origin *origin, const struct fleece_dm_info *lower,
			       unsigned int limit_ms)
{
	struct fleece_dm_table table;
	enum status status;
	int ret;

	if (is_durable(origin) && device_is_used(&origin->dm)) {
		status = drop_checkpoints(origin);
		if (status != DONE)
			return status;
	}
	ret = fleece_dm_table(lower->name, &table);
	if (ret)
		return report_dm(ret, lower->name, "cannot read its table");
	table.is_read_only = origin->dm.is_read_only;
	ret = fleece_dm_load(origin->dm.name, &table);
	fleece_dm_table_free(&table);
	if (ret)
		return report_dm(ret, origin->dm.name, "cannot load the old table");
	status = swap_table(origin->dm.name, false, limit_ms);
	if (status != DONE) {
		fleece_dm_clear(origin->dm.name);
		return status;
	}
	ret = fleece_dm_remove(lower->name);
	if (ret)
		return report_dm(ret, lower->name,
				 "the origin is detached, but this device cannot be removed");
	printf("%s detached\n", origin->dm.name);
	return DONE;
}

static enum status detach(const char *name, unsigned int limit_ms)
{
	struct fleece_dm_info lower;
	struct origin origin;
	enum status status = device_origin(name, &origin);

	if (status != DONE)
		return status;
	if (origin.status.snapshots)
		return report(BUSY, name, "has %u snapshot%s; remove %s first with 'fleece remove'",
			      origin.status.snapshots, origin.status.snapshots == 1 ? "" : "s",
			      origin.status.snapshots == 1 ? "it" : "them");
	if (origin.dm.is_suspended || origin.dm.has_inactive)
		return report(BUSY, name, "is being changed by somebody else; try again later");
	if (!fleece_dm_info_devno(origin.lower, &lower) &&
	    device_has_prefix(lower.uuid, LOWER_UUID))
		return detach_live(&origin, &lower, limit_ms);
	return detach_plain(&origin);
}

/* The reverse of attach_all(), in the reverse order. */
static enum status detach_all(const char *path, unsigned int limit_ms)
{
	struct fleecetab tab;
	enum status status = fleecetab_read(path, &tab), ret = start_change();
	size_t i;

	for (i = tab.count; i-- && ret == DONE;) {
		if (is_origin(tab.entries[i].name) && detach(tab.entries[i].name, limit_ms) != DONE)
			status = FAILED;
	}
	fleecetab_free(&tab);
	return ret == DONE ? status : ret;
}

enum status verb_detach(int argc, char **argv)
{
	enum { LIMIT = 256, ALL };
	static const struct option options[] = {
		{ "freeze-timeout", required_argument, NULL, LIMIT },
		{ "all", optional_argument, NULL, ALL },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	unsigned int limit_ms = WINDOW_LIMIT_MS;
	const char *tab = NULL;
	enum status status;
	int option;

	while ((option = verb_option(argc, argv, options)) >= 0) {
		if (option == LIMIT && window_limit_parse(optarg, &limit_ms))
			return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
		if (option == ALL)
			tab = optarg ? optarg : FLEECETAB_PATH;
	}
	if (tab && argc > optind)
		return verb_usage("--all takes the names from the file");
	if (!tab && argc - optind != 1)
		return verb_usage("exactly one NAME is needed");
	if (tab)
		return detach_all(tab, limit_ms);
	status = start_change();
	return status == DONE ? detach(argv[optind], limit_ms) : status;
}
