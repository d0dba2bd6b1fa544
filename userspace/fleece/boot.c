// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, boot: attaches and detaches what fleecetab lists, see boot.h. What goes wrong with
 * one origin costs no other one: neither its attachment nor its time.
 */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "change.h"
#include "detach.h"
#include "fleecetab.h"
#include "metadata_device.h"
#include "process.h"
#include "stand_in.h"

static bool find_origin(const char *name, struct origin *origin)
{
	struct fleece_dm_info info;

	return !fleece_dm_info(name, &info) && !origin_read(&info, origin);
}

static bool is_held(const char *path)
{
	int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);

	if (fd < 0)
		return errno == EBUSY;
	close(fd);
	return false;
}

/* Is it a block device, but none of device-mapper? */
static bool is_plain(const char *path, dev_t *devno)
{
	struct fleece_dm_info info;
	struct stat st;

	if (stat(path, &st) || !S_ISBLK(st.st_mode))
		return false;
	*devno = st.st_rdev;
	return fleece_dm_info_devno(st.st_rdev, &info);
}

/* One of device-mapper can be attached in use; what is mounted is so for long. */
static bool is_plain_and_held(const char *path)
{
	char mountpoint[PATH_MAX];
	dev_t devno;

	return is_plain(path, &devno) &&
	       !device_mountpoint(devno, mountpoint, sizeof(mountpoint)) && is_held(path);
}

/* Are its devices held by somebody else, perhaps just for a look at them? */
static bool are_held(const struct fleecetab_entry *entry)
{
	struct origin origin;

	if (find_origin(entry->name, &origin))
		return false;
	return (entry->metadata[0] && is_held(entry->metadata)) || is_plain_and_held(entry->device);
}

/* Are all its devices there, and free? */
static bool is_ready(const struct fleecetab_entry *entry)
{
	return !access(entry->device, F_OK) &&
	       (!entry->metadata[0] || !access(entry->metadata, F_OK)) && !are_held(entry);
}

/* With its metadata: whoever says something else has another problem. */
static bool is_attached(const struct fleecetab_entry *entry)
{
	struct origin origin;

	return find_origin(entry->name, &origin) && device_is(entry->metadata, origin.metadata);
}

/*
 * It is, or will be used without its metadata: what is written must not look unchanged then.
 * One that is not there may be put to use whenever it appears.
 */
static void miss_entry(const struct fleecetab_entry *entry, const struct boot *boot)
{
	struct metadata_origin origin = { .path = entry->device };
	bool is_there = !access(entry->device, F_OK);
	enum status status = NO_DEVICE;
	struct stat st;

	if (!entry->metadata[0] || (!is_there && !boot->is_final) || is_attached(entry))
		return;
	if (is_there) {
		if (stat(entry->device, &st) || !S_ISBLK(st.st_mode) ||
		    device_size(st.st_rdev, &origin.size))
			return;
		origin.devno = st.st_rdev;
	}
	if (!access(entry->metadata, F_OK))
		status = metadata_miss(entry->metadata, &origin);
	if (status != DONE && status != NO_CHECKPOINT)
		report_note(entry->metadata,
			    "WARNING: nothing can be noted on it, so its checkpoints will look valid, but miss what is written to %s now; delete them, or make it anew with 'fleece metadata create --force', before the next backup",
			    entry->device);
}

/* Rather without checkpoints than not at all: what is mounted from it may be needed. */
static void attach_without_metadata(const struct fleecetab_entry *entry, struct attach *attach)
{
	attach->metadata = NULL;
	attach->metadata_devno = 0;
	attach->granularity = entry->granularity;
	if (attach_device(attach) == DONE)
		report_note(entry->name,
			    "WARNING: is attached WITHOUT its metadata device %s: changes are only kept in RAM, and the next backup must be a full one",
			    entry->metadata);
}

/* The initial RAM disk, for instance, did without the metadata device that is here now. */
static enum status compare_entry(const struct fleecetab_entry *entry, const struct boot *boot,
				 const struct attach *attach, const struct origin *origin)
{
	enum status status = attach_compare(attach, origin);

	if (status == DONE)
		printf("%s is attached already\n", entry->name);
	else
		miss_entry(entry, boot);
	return status;
}

/* Without the module. Is it wanted by this name, and rather without the target than not at all? */
static void do_without(const struct fleecetab_entry *entry, const struct boot *boot)
{
	char path[PATH_MAX];
	bool is_wanted = boot->is_final;

	snprintf(path, sizeof(path), "/dev/mapper/%s", entry->name);
	if (boot->root && !strcmp(boot->root, path))
		is_wanted = true;
	if (is_wanted && !entry->needs_metadata)
		stand_in_make(entry->device, entry->name);
}

static bool is_root(const struct fleecetab_entry *entry, const struct boot *boot)
{
	char path[PATH_MAX];
	dev_t root, devno;

	return boot->root && fleecetab_resolve(path, boot->root) && is_plain(path, &root) &&
	       is_plain(entry->device, &devno) && devno == root;
}

static enum status attach_entry(const struct fleecetab_entry *entry, const struct boot *boot)
{
	struct attach attach = {
		.device = entry->device,
		.name = entry->name,
		.metadata = entry->metadata[0] ? entry->metadata : NULL,
		.granularity = entry->granularity,
		.limit_ms = boot->limit_ms,
	};
	struct origin origin;
	enum status status;

	if (find_origin(entry->name, &origin))
		return compare_entry(entry, boot, &attach, &origin);
	if (is_root(entry, boot)) {
		miss_entry(entry, boot);
		return report(BUSY, entry->device,
			      "is left alone, as the root file system is mounted from it by this name; the kernel has to be told root=/dev/mapper/%s",
			      entry->name);
	}
	status = attach_device(&attach);
	if (status == DONE)
		return DONE;
	/* Before anybody can write to it. */
	miss_entry(entry, boot);
	if (attach.is_metadata_refused && !entry->needs_metadata)
		attach_without_metadata(entry, &attach);
	return status;
}

/* ------------------------- All of them ------------------------- */

/* Which have had their turn. */
struct run {
	const struct boot *boot;
	struct fleecetab tab;
	bool *is_done;
	enum status status;
};

static bool has_turn(const struct run *run, size_t index, bool is_last)
{
	const struct fleecetab_entry *entry = &run->tab.entries[index];

	return !run->is_done[index] && !entry->is_manual && (is_last || is_ready(entry));
}

/*
 * A service manager whose patience ends before ours: whoever comes last still has to tell
 * what will be used without being attached.
 */
static bool is_asked_to_end(const struct boot *boot)
{
	return boot->is_final && process_is_asked_to_end();
}

static void miss_rest(struct run *run)
{
	const struct fleecetab_entry *entry;
	struct origin origin;
	size_t i;

	for (i = 0; i < run->tab.count; i++) {
		entry = &run->tab.entries[i];
		if (!has_turn(run, i, true))
			continue;
		if (!find_origin(entry->name, &origin))
			run->status = report(FAILED, entry->name,
					     "is not attached, as this was asked to end");
		miss_entry(entry, run->boot);
		run->is_done[i] = true;
	}
}

/* Attach those that are ready, or with @is_last all that are left. Are any left then? */
static bool attach_some(struct run *run, bool is_last)
{
	enum status ready = DONE;
	bool is_begun = false, is_any_left = false;
	size_t i;

	for (i = 0; i < run->tab.count; i++) {
		if (!has_turn(run, i, is_last)) {
			is_any_left |= !run->is_done[i] && !run->tab.entries[i].is_manual;
			continue;
		}
		if (!is_begun)
			ready = change_begin();
		is_begun = true;
		if (is_asked_to_end(run->boot)) {
			is_any_left = true;
			break;
		}
		if (ready != DONE) {
			run->status = ready;
			if (ready != NO_PERMISSION)
				miss_entry(&run->tab.entries[i], run->boot);
			if (ready == NO_MODULE)
				do_without(&run->tab.entries[i], run->boot);
		} else if (attach_entry(&run->tab.entries[i], run->boot) != DONE) {
			run->status = FAILED;
		}
		run->is_done[i] = true;
	}
	fflush(stdout);
	/* Others are not to wait as long as we do. */
	if (is_begun && ready == DONE)
		change_end();
	return is_any_left;
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static void attach_all(struct run *run)
{
	const struct timespec pause = { .tv_nsec = 100000000 };
	const struct boot *boot = run->boot;
	time_t end = now_s() + boot->wait_ms / 1000;

	while (!is_asked_to_end(boot)) {
		if (!attach_some(run, !boot->is_early && now_s() >= end) || boot->is_early)
			return;
		nanosleep(&pause, NULL);
	}
	miss_rest(run);
}

enum status boot_attach(const struct boot *boot)
{
	struct run run = { .boot = boot };

	run.status = fleecetab_read(boot->tab, &run.tab);
	/* Up to the end of the process, whose exit status tells. */
	if (boot->is_final)
		process_hold_signals();
	/* One more than there are, so that none is no special case. */
	run.is_done = calloc(run.tab.count + 1, sizeof(*run.is_done));
	if (!run.is_done)
		run.status = report_errno(ENOMEM, boot->tab, "cannot prepare");
	else
		attach_all(&run);
	free(run.is_done);
	fleecetab_free(&run.tab);
	return run.status;
}

enum status boot_detach(const char *path, unsigned int limit_ms)
{
	struct fleecetab tab;
	enum status status = fleecetab_read(path, &tab), ret = change_begin();
	struct origin origin;
	size_t i;

	for (i = tab.count; i-- && ret == DONE;) {
		if (find_origin(tab.entries[i].name, &origin) &&
		    detach(tab.entries[i].name, limit_ms) != DONE)
			status = FAILED;
	}
	fleecetab_free(&tab);
	return ret == DONE ? status : ret;
}
