// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, convert: a device-mapper device keeps its name, number and users while it becomes
 * an origin. Its table moves to a new device, NAME-lower, and a table that names that one
 * takes its place:
 *
 *   before   users -> NAME (table T)
 *   after    users -> NAME (fleece) -> NAME-lower (table T)
 *
 * Between suspend and resume of NAME, I/O is held for a moment and no table is live twice
 * with I/O on it. Until that resume, everything can be undone; the undoing is in one place
 * for each direction. dm uuids cannot change, so NAME keeps the one it has.
 *
 * Others, LVM for instance, may change NAME at the same time, and know nothing of our lock.
 * A table only becomes live by way of the one place for a loaded one. So T is compared once
 * more after ours has been loaded there: whoever changes it later takes ours away, which is
 * seen after the resume.
 */
#include "convert.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint.h"
#include "verbs.h"
#include "window.h"

/* "LVM-", and the ids of group and volume; internal devices have more. */
#define LVM_UUID_LENGTH		(4 + 32 + 32)

/* How long others suspend a device at most. */
#define UNDO_S			2

/* Room for NAME-lower, which may turn out to be too long. */
#define LOWER_NAME		(DM_NAME_LEN + sizeof(LOWER_SUFFIX))

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

static uint64_t table_sectors(const struct fleece_dm_table *table)
{
	const struct fleece_dm_target *last = &table->targets[table->count - 1];

	return last->start + last->length;
}

static bool is_same_table(const struct fleece_dm_table *one, const struct fleece_dm_table *other)
{
	const struct fleece_dm_target *a = one->targets, *b = other->targets;
	size_t i;

	for (i = 0; i < one->count && i < other->count; i++, a++, b++)
		if (a->start != b->start || a->length != b->length || strcmp(a->type, b->type) ||
		    strcmp(a->params, b->params))
			return false;
	return one->count == other->count;
}

/* Is @table what @read finds at the device? */
static bool finds_table(int (*read)(const char *name, struct fleece_dm_table *table),
			const char *name, const struct fleece_dm_table *table)
{
	struct fleece_dm_table found;
	bool is_same;

	if (read(name, &found))
		return false;
	is_same = is_same_table(&found, table);
	fleece_dm_table_free(&found);
	return is_same;
}

static bool has_table(const char *name, const struct fleece_dm_table *table)
{
	return finds_table(fleece_dm_table, name, table);
}

/* Is this the table that the next resume makes live? */
static bool has_loaded(const char *name, const struct fleece_dm_table *table)
{
	return finds_table(fleece_dm_inactive_table, name, table);
}

/* Give up a loaded table, unless it is somebody else's by now. */
static void unload(const char *name, const struct fleece_dm_table *table)
{
	if (has_loaded(name, table))
		fleece_dm_clear(name);
}

static enum status report_changed(const char *name)
{
	return report(BUSY, name,
		      "its table was changed by somebody else meanwhile, which was left alone; try again");
}

enum status convert_swap(const char *name, const struct fleece_dm_table *table,
			 unsigned int limit_ms)
{
	struct fleece_dm_switch suspend, clear, resume;
	struct window window = {
		.suspends = &suspend,
		.clears = &clear,
		.resumes = &resume,
		.origins = 1,
		.limit_ms = limit_ms,
	};
	struct window_result result;
	struct fleece_dm_info info;
	int ret;

	fleece_dm_suspend_prepare(&suspend, name, false);
	fleece_dm_clear_prepare(&clear, name);
	fleece_dm_resume_prepare(&resume, name, FLEECE_DM_UDEV_ALL);
	ret = window_run(&window, &result);
	if (has_table(name, table) && !fleece_dm_info(name, &info) && !info.is_suspended)
		return DONE;
	unload(name, table);
	return ret ? window_report(ret, &result, &name, NULL) : report_changed(name);
}

/* ------------------------- Leftovers ------------------------- */

static bool find_lower(const char *name, struct fleece_dm_info *lower)
{
	char text[LOWER_NAME];

	snprintf(text, sizeof(text), "%s" LOWER_SUFFIX, name);
	return strlen(text) < DM_NAME_LEN && !fleece_dm_info(text, lower) &&
	       device_has_prefix(lower->uuid, LOWER_UUID);
}

bool convert_has_lower(const char *name)
{
	struct fleece_dm_info lower;

	return find_lower(name, &lower);
}

/* A table that was loaded to be an origin on @lower, or to be what @lower is. */
static bool is_ours(const struct fleece_dm_table *loaded, const struct fleece_dm_info *lower)
{
	char devno[DEVNO_TEXT + 1];

	if (loaded->count == 1 && !strcmp(loaded->targets[0].type, ORIGIN_TARGET)) {
		device_devno_text(devno, lower->devno);
		strcat(devno, " ");
		return device_has_prefix(loaded->targets[0].params, devno);
	}
	return has_table(lower->name, loaded);
}

/* Or is it LVM, which does not take our lock, that works on it, with the same table? */
static bool stays_suspended(const char *name)
{
	const struct timespec while_others_work = { .tv_sec = UNDO_S };
	struct fleece_dm_info now;

	nanosleep(&while_others_work, NULL);
	return !fleece_dm_info(name, &now) && now.is_suspended && now.has_inactive;
}

/* Whoever would have resumed it was killed, too. */
static bool undo_suspend(const char *name)
{
	int ret = fleece_dm_resume(name, FLEECE_DM_UDEV_ALL);

	if (ret)
		report_dm(ret, name, "is suspended, and cannot be resumed");
	else
		report_note(name, "note: was suspended still, and has been resumed");
	return !ret;
}

/* Returns whether no table is loaded then. */
static bool undo_load(const struct fleece_dm_info *info, const struct fleece_dm_info *lower)
{
	struct fleece_dm_table loaded;
	bool is_undone;

	if (!info->has_inactive)
		return true;
	if (fleece_dm_inactive_table(info->name, &loaded))
		return false;
	is_undone = is_ours(&loaded, lower) &&
		    (!info->is_suspended || stays_suspended(info->name)) &&
		    !fleece_dm_clear(info->name);
	fleece_dm_table_free(&loaded);
	if (is_undone && info->is_suspended)
		is_undone = undo_suspend(info->name);
	return is_undone;
}

bool convert_forget(const char *name)
{
	struct fleece_dm_info info, lower;

	return strlen(name) < DM_NAME_LEN && fleece_dm_info(name, &info) == -ENXIO &&
	       find_lower(name, &lower) && !lower.open_count && !fleece_dm_remove(lower.name);
}

bool convert_undo(const struct fleece_dm_info *info)
{
	struct fleece_dm_info lower;
	struct origin origin;

	if (!find_lower(info->name, &lower) || !undo_load(info, &lower))
		return false;
	if (!origin_read(info, &origin) && origin.lower == lower.devno) {
		/* In use; only a table may have been left. */
		if (!info->has_inactive)
			return false;
		report_note(info->name, "note: an interrupted detach has been undone");
		return true;
	}
	if (fleece_dm_remove(lower.name))
		return false;
	report_note(info->name, "note: %s, left over from an interrupted attach or detach, was removed",
		    lower.name);
	return true;
}

/* ------------------------- To an origin ------------------------- */

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
		if (!is_movable(table->targets[i].type))
			return report(FAILED, info->name,
				      "its target '%s' cannot be moved while it is live; attach a volume above it, or what lies below it at boot (fleece(8), LVM)",
				      table->targets[i].type);
	}
	return DONE;
}

/* Make NAME-lower with the table of NAME. */
static enum status make_lower(const struct fleece_dm_info *info,
			      const struct fleece_dm_table *table,
			      struct fleece_dm_info *lower)
{
	char name[LOWER_NAME], uuid[DM_UUID_LEN];
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
	if (!ret)
		return DONE;
	fleece_dm_remove(name);
	if (ret == -ENOKEY)
		return report(FAILED, info->name,
			      "its key is in a keyring that only cryptsetup can read; 'cryptsetup refresh --disable-keyring %s' puts it into the table, live",
			      info->name);
	return report_dm(ret, name, "cannot set it up");
}

static enum status attach_over_lower(struct attach *attach, const struct fleece_dm_info *info,
				     const struct fleece_dm_table *table,
				     const struct fleece_dm_info *lower)
{
	struct fleece_dm_table loaded;
	struct fleece_dm_info now;
	enum status status;

	/* In the place that ours needs. */
	if (fleece_dm_info(info->name, &now) || now.has_inactive)
		return report_changed(info->name);
	status = attach_load(attach, info->name, lower->devno, table_sectors(table),
			     table->is_read_only, &loaded);
	if (status == DONE && !has_table(info->name, table)) {
		unload(info->name, &loaded);
		status = report_changed(info->name);
	}
	if (status == DONE)
		status = convert_swap(info->name, &loaded, attach->limit_ms);
	fleece_dm_table_free(&loaded);
	return status;
}

/* With its table, and what it was found to be used for. */
static enum status attach_claimed(struct attach *attach, const struct fleece_dm_info *info,
				  const struct fleece_dm_table *table, bool is_used)
{
	struct fleece_dm_info lower;
	enum status status = attach_prepare_metadata(attach, info->devno,
						     table_sectors(table) * SECTOR_SIZE, is_used);

	if (status == DONE)
		status = make_lower(info, table, &lower);
	if (status != DONE)
		return status;
	status = attach_over_lower(attach, info, table, &lower);
	if (status != DONE && fleece_dm_remove(lower.name))
		report(FAILED, lower.name, "is left over; try 'dmsetup remove %s'", lower.name);
	if (status == DONE)
		printf("%s attached, on %s\n", info->name, lower.name);
	return status;
}

enum status convert_attach(struct attach *attach, const struct fleece_dm_info *info)
{
	struct fleece_dm_info now = *info;
	struct fleece_dm_table table;
	enum status status;
	int ret, claim;

	if (attach->name && strcmp(attach->name, info->name))
		return verb_usage("%s is a device-mapper device and keeps its name; it cannot be attached as %s",
				  info->name, attach->name);
	ret = convert_undo(info) ? fleece_dm_info(info->name, &now) : 0;
	if (!ret)
		ret = fleece_dm_table(info->name, &table);
	if (ret)
		return report_dm(ret, info->name, "cannot read its table");
	status = check_live(&now, &table);
	if (status == DONE) {
		/* Who mounts it from now on would write something that is not seen. */
		claim = device_claim(&now);
		status = attach_claimed(attach, &now, &table, claim < 0);
		if (claim >= 0)
			close(claim);
	}
	fleece_dm_table_free(&table);
	return status;
}

/* ------------------------- And back ------------------------- */

bool convert_lower(const struct origin *origin, struct fleece_dm_info *lower)
{
	return !fleece_dm_info_devno(origin->lower, lower) &&
	       device_has_prefix(lower->uuid, LOWER_UUID);
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

/* Put @table in the place of that of the origin. */
static enum status replace_origin(const struct origin *origin, const struct fleece_dm_info *lower,
				  const struct fleece_dm_table *table, unsigned int limit_ms)
{
	struct origin now;
	int ret = fleece_dm_load(origin->dm.name, table);

	if (ret)
		return report_dm(ret, origin->dm.name, "cannot load the old table");
	if (origin_read(&origin->dm, &now) || now.lower != lower->devno ||
	    !has_table(lower->name, table)) {
		unload(origin->dm.name, table);
		return report_changed(origin->dm.name);
	}
	return convert_swap(origin->dm.name, table, limit_ms);
}

static enum status detach_claimed(const struct origin *origin, const struct fleece_dm_info *lower,
				  unsigned int limit_ms, bool is_used)
{
	struct fleece_dm_table table;
	enum status status = DONE;
	int ret;

	if (is_durable(origin) && is_used)
		status = drop_checkpoints(origin);
	if (status != DONE)
		return status;
	ret = fleece_dm_table(lower->name, &table);
	if (ret)
		return report_dm(ret, lower->name, "cannot read its table");
	table.is_read_only = origin->dm.is_read_only;
	status = replace_origin(origin, lower, &table, limit_ms);
	fleece_dm_table_free(&table);
	if (status != DONE)
		return status;
	ret = fleece_dm_remove(lower->name);
	if (ret)
		return report_dm(ret, lower->name,
				 "the origin is detached, but this device cannot be removed");
	printf("%s detached\n", origin->dm.name);
	return DONE;
}

enum status convert_detach(const struct origin *origin, const struct fleece_dm_info *lower,
			   unsigned int limit_ms)
{
	int claim = device_claim(&origin->dm);
	enum status status = detach_claimed(origin, lower, limit_ms, claim < 0);

	if (claim >= 0)
		close(claim);
	return status;
}
