// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, attach: puts the target "fleece" on a device. A plain device is claimed by a new
 * device, /dev/mapper/NAME; of one that is a device-mapper device, convert.c takes care.
 */
#include "attach.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot.h"
#include "change.h"
#include "convert.h"
#include "fleecetab.h"
#include "metadata_device.h"
#include "size.h"
#include "stand_in.h"
#include "verbs.h"
#include "window.h"
#include "writers.h"

enum status attach_prepare_metadata(struct attach *attach, dev_t devno, uint64_t size,
				    bool is_used)
{
	struct metadata_origin origin = {
		.path = attach->device, .devno = devno, .size = size, .is_used = is_used,
		.is_by_hand = attach->is_by_hand,
	};
	enum status status = DONE;

	if (attach->metadata)
		status = metadata_prepare(attach->metadata, &origin, &attach->granularity,
					  &attach->metadata_devno);
	attach->is_metadata_refused = status != DONE;
	/* Now it is known in any case. */
	if (!attach->granularity)
		attach->granularity = DEFAULT_GRANULARITY;
	return status;
}

/* The one-line table of an origin on @lower. */
static int make_table(const struct attach *attach, struct fleece_dm_table *table, dev_t lower,
		      uint64_t sectors)
{
	char devno[DEVNO_TEXT], metadata[DEVNO_TEXT] = "-";
	struct fleece_dm_target *target = calloc(1, sizeof(*target));

	memset(table, 0, sizeof(*table));
	if (!target)
		return -ENOMEM;
	target->length = sectors;
	snprintf(target->type, sizeof(target->type), "%s", ORIGIN_TARGET);
	if (attach->metadata_devno)
		device_devno_text(metadata, attach->metadata_devno);
	if (asprintf(&target->params, "%s %s %llu", device_devno_text(devno, lower), metadata,
		     (unsigned long long)(attach->granularity / SECTOR_SIZE)) < 0) {
		free(target);
		return -ENOMEM;
	}
	table->targets = target;
	table->count = 1;
	return 0;
}

enum status attach_load(struct attach *attach, const char *name, dev_t lower, uint64_t sectors,
			bool is_read_only, struct fleece_dm_table *loaded)
{
	int ret = make_table(attach, loaded, lower, sectors);

	if (ret)
		return report_errno(ret, name, "cannot make its table");
	loaded->is_read_only = is_read_only;
	ret = fleece_dm_load(name, loaded);
	/* The module looks at more of the metadata than this command. */
	attach->is_metadata_refused = ret && attach->metadata;
	return ret ? report_dm(ret, name, "cannot load the table") : DONE;
}

enum status attach_compare(const struct attach *attach, const struct origin *origin)
{
	const char *metadata = attach->metadata ? attach->metadata : "none";
	char devno[DEVNO_TEXT] = "none";

	if (strchr(attach->device, '/') &&
	    !device_is(attach->device, origin->lower) &&
	    !device_is(attach->device, origin->dm.devno))
		return report(BUSY, origin->dm.name, "is attached already, but not to %s, but to %s",
			      attach->device, device_devno_text(devno, origin->lower));
	if (origin->metadata)
		device_devno_text(devno, origin->metadata);
	if (!attach->metadata != !origin->metadata ||
	    (attach->metadata && !device_is(attach->metadata, origin->metadata)))
		return report(BUSY, origin->dm.name,
			      "is attached already, but with metadata device %s, not %s; detach it first",
			      devno, metadata);
	if (attach->granularity && attach->granularity != origin->status.granularity)
		return report(BUSY, origin->dm.name,
			      "is attached already, but with a granularity of %llu, not %llu; detach it first",
			      (unsigned long long)origin->status.granularity,
			      (unsigned long long)attach->granularity);
	return DONE;
}

/* ------------------------- A plain device ------------------------- */

/* Nobody else may use a plain device: they would write below us. */
static enum status check_unused(const char *path, dev_t devno)
{
	char mountpoint[PATH_MAX], writer[WRITER_TEXT];
	int fd;

	if (device_mountpoint(devno, mountpoint, sizeof(mountpoint)))
		return report(BUSY, path,
			      "is mounted on %s, and a plain device cannot be attached below its users; unmount it, attach it and mount /dev/mapper/NAME instead, or attach it at boot before it is mounted",
			      mountpoint);
	/* From when its table is loaded, the target claims it. */
	fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return report(BUSY, path,
			      "is in use (swap, RAID, LVM, or one of its partitions); stop that first, or attach the volume above it");
	if (fd < 0)
		return report_errno(errno, path, "cannot open it for writing");
	close(fd);
	if (writers_find(devno, writer))
		return report(BUSY, path,
			      "is open for writing by %s, whose writes would not be seen; have it use /dev/mapper/NAME instead, once that is there",
			      writer);
	return DONE;
}

/* The name of a device that an interrupted attach has made, but never started, is free. */
static bool is_name_free(const char *name)
{
	struct fleece_dm_info info;

	if (fleece_dm_info(name, &info))
		return true;
	if (info.is_live || !device_has_prefix(info.uuid, ORIGIN_UUID) || fleece_dm_remove(name))
		return false;
	report_note(name, "note: left over from an interrupted attach, was removed");
	return true;
}

static enum status check_plain(const struct attach *attach, const char *name, dev_t devno,
			       uint64_t size)
{
	struct fleece_dm_info info;
	struct origin origin;

	if (!*name || strchr(name, '/') || !fleece_name_is_valid(name) ||
	    strlen(name) + sizeof(SNAPSHOT_SUFFIX) > DM_NAME_LEN)
		return verb_usage("'%s' cannot be a name: letters, digits, '.', '_' and '-' are allowed, at most %d of them, and neither '.' nor '-' first; choose one with --name",
				  name, FLEECE_NAME_SIZE - 1);
	if (!size)
		return report(FAILED, attach->device, "has no size");
	if (is_name_free(name))
		return check_unused(attach->device, devno);
	if (!fleece_dm_info(name, &info) && !origin_read(&info, &origin) && origin.lower == devno)
		return report(BUSY, attach->device, "is attached already, as /dev/mapper/%s", name);
	if (stand_in_is(name, devno))
		return report(BUSY, attach->device,
			      "is /dev/mapper/%s without the target, as the module was missing at boot; boot again, or until then attach that: 'fleece attach /dev/mapper/%s'",
			      name, name);
	return report(BUSY, attach->device,
		      "there is a device /dev/mapper/%s already; choose another --name", name);
}

/*
 * The loaded table has the device from now on, but another device-mapper device may have come
 * to use it since check_unused(), or still come.
 */
static enum status check_alone(const char *device, const char *name, dev_t devno)
{
	struct origin origin = { .lower = devno };
	char path[PATH_MAX];
	int ret = fleece_dm_info(name, &origin.dm);

	if (ret)
		return report_dm(ret, name, "cannot set it up");
	if (!device_bypass(&origin, path))
		return DONE;
	return report(BUSY, device, "is used by %s now; stop that first, or attach the volume above it",
		      path);
}

static enum status start_plain(struct attach *attach, const char *name, dev_t devno, uint64_t size)
{
	struct fleece_dm_table table;
	char uuid[DM_UUID_LEN];
	enum status status;
	int ret = device_uuid(uuid, ORIGIN_UUID, "");

	if (!ret)
		ret = fleece_dm_create(name, uuid);
	if (ret)
		return report_dm(ret, name, "cannot create it");
	status = attach_load(attach, name, devno, size / SECTOR_SIZE, false, &table);
	fleece_dm_table_free(&table);
	if (status == DONE)
		status = check_alone(attach->device, name, devno);
	if (status == DONE) {
		ret = fleece_dm_resume(name, FLEECE_DM_UDEV_ALL);
		if (ret)
			status = report_dm(ret, name, "cannot set it up");
	}
	if (status != DONE) {
		fleece_dm_remove(name);
		return status;
	}
	fleece_dm_settle(name);
	printf("%s attached, use /dev/mapper/%s from now on\n", attach->device, name);
	if (device_has_partitions(devno))
		report_note(attach->device,
			    "note: has partitions, which cannot be used while it is attached; 'kpartx -a /dev/mapper/%s' makes them anew",
			    name);
	return DONE;
}

static enum status attach_plain(struct attach *attach, dev_t devno)
{
	const char *base = strrchr(attach->device, '/');
	const char *name = attach->name ? attach->name : base ? base + 1 : attach->device;
	enum status status;
	uint64_t size = 0;
	int ret = device_size(devno, &size);

	if (ret)
		return report_errno(ret, attach->device, "cannot read its size");
	status = check_plain(attach, name, devno, size);
	if (status == DONE)
		status = attach_prepare_metadata(attach, devno, size, false);
	return status == DONE ? start_plain(attach, name, devno, size) : status;
}

/* ------------------------- Any device ------------------------- */

static enum status attach_dm(struct attach *attach, const struct fleece_dm_info *info)
{
	struct origin origin;

	if (origin_read(info, &origin))
		return convert_attach(attach, info);
	if (info->is_suspended)
		convert_undo(info);
	if (attach_compare(attach, &origin) == DONE)
		report(BUSY, info->name, "is attached already");
	return BUSY;
}

enum status attach_device(struct attach *attach)
{
	struct fleece_dm_info info;
	struct stat st;

	if (!strchr(attach->device, '/') && !fleece_dm_info(attach->device, &info))
		return attach_dm(attach, &info);
	if (stat(attach->device, &st))
		return report_errno(errno, attach->device, "cannot find the device");
	if (!S_ISBLK(st.st_mode))
		return report(NO_DEVICE, attach->device, "is not a block device");
	if (!fleece_dm_info_devno(st.st_rdev, &info))
		return attach_dm(attach, &info);
	return attach_plain(attach, st.st_rdev);
}

/* ------------------------- The verb ------------------------- */

static enum status check_request(const struct attach *attach, const struct boot *boot,
				 int nr_words)
{
	if (boot->tab && (nr_words || attach->name || attach->metadata || attach->granularity))
		return verb_usage("--all takes devices, names and the like from the file");
	if (!boot->tab && nr_words != 1)
		return verb_usage("exactly one DEVICE is needed");
	if (!boot->tab && (boot->wait_ms || boot->is_early || boot->is_final || boot->root))
		return verb_usage("--wait, --early, --final and --root go with --all");
	if (boot->is_early && (boot->wait_ms || boot->is_final))
		return verb_usage("--early does not wait, and is not --final");
	if (attach->granularity && !device_unit_is_valid(attach->granularity))
		return verb_usage("the granularity must be a power of two from 4K to 16M");
	return DONE;
}

enum { NAME = 256, METADATA, GRANULARITY, LIMIT, ALL, WAIT, EARLY, FINAL, ROOT };

static enum status parse_option(int option, struct attach *attach, struct boot *boot)
{
	if (option == NAME)
		attach->name = optarg;
	else if (option == METADATA)
		attach->metadata = strcmp(optarg, "-") ? optarg : NULL;
	else if (option == GRANULARITY &&
		 (fleece_size_parse(optarg, &attach->granularity) || !attach->granularity))
		return verb_usage("'%s' is not a size", optarg);
	else if (option == LIMIT && window_limit_parse(optarg, &attach->limit_ms))
		return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
	else if (option == WAIT && window_limit_parse(optarg, &boot->wait_ms))
		return verb_usage("'%s' is not a number of seconds from 1 to 3600", optarg);
	else if (option == ALL)
		boot->tab = optarg ? optarg : FLEECETAB_PATH;
	else if (option == EARLY)
		boot->is_early = true;
	else if (option == FINAL)
		boot->is_final = true;
	else if (option == ROOT)
		boot->root = optarg;
	return DONE;
}

enum status verb_attach(int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, NAME },
		{ "metadata", required_argument, NULL, METADATA },
		{ "granularity", required_argument, NULL, GRANULARITY },
		{ "freeze-timeout", required_argument, NULL, LIMIT },
		{ "all", optional_argument, NULL, ALL },
		{ "wait", required_argument, NULL, WAIT },
		{ "early", no_argument, NULL, EARLY },
		{ "final", no_argument, NULL, FINAL },
		{ "root", required_argument, NULL, ROOT },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct attach attach = { .limit_ms = WINDOW_LIMIT_MS, .is_by_hand = true };
	struct boot boot = { .tab = NULL };
	enum status status = DONE;
	int option;

	while (status == DONE && (option = verb_option(argc, argv, options)) >= 0)
		status = parse_option(option, &attach, &boot);
	attach.device = argv[optind];
	if (status == DONE)
		status = check_request(&attach, &boot, argc - optind);
	if (status != DONE)
		return status;
	boot.limit_ms = attach.limit_ms;
	if (boot.tab)
		return boot_attach(&boot);
	status = change_begin();
	return status == DONE ? attach_device(&attach) : status;
}
