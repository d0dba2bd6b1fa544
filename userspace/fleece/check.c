// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, check: looks whether module, server and command fit together, and
 * for what an interrupted verb may have left behind. It changes nothing.
 */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "convert.h"
#include "cow_lvm.h"
#include "device.h"
#include "fleecetab.h"
#include "json.h"
#include "process.h"
#include "verbs.h"
#include "writers.h"

/* Room for a version. */
#define VERSION_TEXT	64

/* For programs; NULL: lines for people. */
static struct fleece_json *document;

static void print_line(bool is_good, const char *what, const char *detail)
{
	if (document) {
		fleece_json_object(document, NULL);
		fleece_json_string(document, "name", what);
		fleece_json_bool(document, "ok", is_good);
		fleece_json_string(document, "detail", detail);
		fleece_json_object_end(document);
		return;
	}
	printf("%-5s %s%s%s\n", is_good ? "ok" : "BAD", what, detail[0] ? ": " : "", detail);
}

static bool check_targets(void)
{
	static const char *const targets[] = { ORIGIN_TARGET, SNAPSHOT_TARGET };
	bool is_good = true;
	size_t i;

	for (i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
		char what[64];
		int ret = fleece_dm_target_version(targets[i]);

		snprintf(what, sizeof(what), "target %s", targets[i]);
		print_line(!ret, what, ret ? "not registered" : "");
		is_good &= !ret;
	}
	return is_good;
}

/* All three come of one tree. */
static bool is_ours(const char *version)
{
	return !strcmp(version, FLEECE_VERSION);
}

/* Has the one that modprobe would load been made from other sources? */
static bool is_outdated(void)
{
	const char *const argv[] = { "modinfo", "-F", "srcversion", "dm-fleece", NULL };
	char loaded[VERSION_TEXT] = "", installed[VERSION_TEXT];
	FILE *file = fopen("/sys/module/dm_fleece/srcversion", "re");

	if (!file)
		return false;
	if (fscanf(file, "%63s", loaded) != 1)
		loaded[0] = '\0';
	fclose(file);
	return loaded[0] && !process_run(argv, installed, sizeof(installed)) &&
	       strcmp(loaded, installed);
}

static bool check_module(int control)
{
	struct fleece_version version;
	char detail[128];
	bool is_good;

	if (fleece_control_version(control, &version)) {
		print_line(false, "module dm-fleece", "does not tell its version");
		return false;
	}
	is_good = is_ours(version.module);
	snprintf(detail, sizeof(detail), "version %.23s, interface %u%s", version.module,
		 version.interface, is_good ? "" : "; the command is of another version");
	if (is_good && is_outdated()) {
		is_good = false;
		snprintf(detail, sizeof(detail),
			 "another one is installed than is loaded; boot again (after update-initramfs -u -k all, if it is in there)");
	}
	print_line(is_good, "module dm-fleece", detail);
	print_line(true, "command fleece", "version " FLEECE_VERSION);
	return is_good;
}

static bool check_server(void)
{
	char path[PATH_MAX], output[128], version[VERSION_TEXT] = "", detail[2 * VERSION_TEXT];
	const char *const argv[] = { path, "--version", NULL };
	bool is_good;

	process_find(path, sizeof(path), "fleeced", "fleeced");
	if (process_run(argv, output, sizeof(output)) ||
	    sscanf(output, "fleeced %63s", version) != 1) {
		print_line(false, "server fleeced", "not found, or it does not run");
		return false;
	}
	is_good = is_ours(version);
	snprintf(detail, sizeof(detail), "version %s%s", version,
		 is_good ? "" : "; the command is of another version");
	print_line(is_good, "server fleeced", detail);
	return is_good;
}

__attribute__((format(printf, 2, 3)))
static bool tell(const char *name, const char *format, ...)
{
	char detail[192 + 4 * DM_NAME_LEN];
	va_list args;

	va_start(args, format);
	vsnprintf(detail, sizeof(detail), format, args);
	va_end(args);
	print_line(false, name, detail);
	return false;
}

static bool check_origin(const struct fleece_dm_info *info, const struct origin *origin)
{
	char path[PATH_MAX], writer[WRITER_TEXT];

	if (!convert_has_lower(info->name) && writers_find(origin->lower, writer))
		return tell(info->name,
			    "%s writes to its lower device past it, so changes are missed: have it use /dev/mapper/%s, and delete the checkpoints",
			    writer, info->name);
	if (device_bypass(origin, path))
		return tell(info->name,
			    "%.128s uses its lower device past it, so changes are missed: detach it, and let that device use the origin",
			    path);
	/* Its checkpoints are invalid when it is attached again. */
	return strcmp(origin->status.metadata, "failed") ||
	       tell(info->name,
		    "its metadata device has failed; changes are tracked in memory, up to a reboot");
}

/*
 * An origin that holds I/O, a conversion that was not ended, a lower one whose origin is
 * gone, a snapshot that is of no use.
 */
static bool check_device(const struct fleece_dm_info *info)
{
	int length = (int)strlen(info->name) - (int)strlen(LOWER_SUFFIX);
	struct snapshot snapshot;
	struct origin origin;
	bool is_origin = info->is_live && !origin_read(info, &origin);
	bool is_changed = is_origin || (info->is_live && convert_has_lower(info->name));

	if (is_changed && info->is_suspended)
		return tell(info->name,
			    "is suspended, so its users wait; if nobody is at work on it, try '%s %s'",
			    is_origin || !info->has_inactive ? "dmsetup resume" : "fleece detach",
			    info->name);
	if (is_changed && info->has_inactive)
		return tell(info->name,
			    "has another table loaded, which is not live; if nobody is at work on it, try '%s %s'",
			    is_origin ? "dmsetup clear" : "fleece detach", info->name);
	if (is_origin)
		return check_origin(info, &origin);
	if (device_has_prefix(info->uuid, LOWER_UUID) && !info->open_count)
		return tell(info->name, "no origin uses it; try 'fleece detach %.*s'",
			    length > 0 ? length : 0, info->name);
	if (device_has_prefix(info->uuid, ORIGIN_UUID) && !info->is_live)
		return tell(info->name, "was never started; try 'dmsetup remove %s'", info->name);
	if (device_has_prefix(info->uuid, SNAPSHOT_UUID) && !info->is_live)
		return tell(info->name, "was never started; try 'fleece remove %s'", info->name);
	if (!snapshot_read(info, &snapshot) && snapshot.status.is_broken)
		return tell(info->name,
			    "is broken (%s); take another one after 'fleece remove %s'",
			    snapshot_error(&snapshot), info->name);
	return true;
}

/* ------------------------- What fleecetab says ------------------------- */

static bool check_entry(const struct fleecetab_entry *entry)
{
	struct fleece_dm_info info;
	struct origin origin;

	if (fleece_dm_info(entry->name, &info) || origin_read(&info, &origin))
		return tell(entry->name,
			    "is not attached, although " FLEECETAB_PATH " lists it; 'fleece attach --all' does it, or says why not");
	if (!device_is(entry->device, origin.lower) && !device_is(entry->device, origin.dm.devno))
		return tell(entry->name, "is attached to another device than " FLEECETAB_PATH " says");
	if (entry->metadata[0] && !device_is(entry->metadata, origin.metadata))
		return tell(entry->name,
			    "is attached without, or with another metadata device than %s says",
			    FLEECETAB_PATH);
	return true;
}

static bool check_tab(void)
{
	struct fleecetab tab;
	bool is_good = true;
	size_t i;

	if (access(FLEECETAB_PATH, F_OK))
		return true;
	if (fleecetab_read(FLEECETAB_PATH, &tab) != DONE)
		is_good = tell(FLEECETAB_PATH, "has an error");
	for (i = 0; i < tab.count; i++)
		if (!tab.entries[i].is_manual)
			is_good &= check_entry(&tab.entries[i]);
	fleecetab_free(&tab);
	return is_good;
}

/* ------------------------- All of it ------------------------- */

static void tell_leftover(const char *volume)
{
	tell(volume, "was COW space of a snapshot that is gone; try 'lvremove %s'", volume);
}

/* LVM reads all devices, and waits for one that is suspended, whatever it is asked for. */
static bool check_volumes(const char *suspended)
{
	char detail[DM_NAME_LEN + 64];

	if (!suspended[0])
		return !cow_lvm_leftovers(tell_leftover);
	snprintf(detail, sizeof(detail), "not looked for, as %s is suspended", suspended);
	print_line(true, "volumes that are left over", detail);
	return true;
}

static bool check_devices(void)
{
	char suspended[DM_NAME_LEN] = "";
	struct fleece_dm_info info;
	bool is_good = true;
	size_t count, i;
	char **names;

	if (fleece_dm_list(&names, &count))
		return false;
	for (i = 0; i < count; i++) {
		if (fleece_dm_info(names[i], &info))
			continue;
		is_good &= check_device(&info);
		if (info.is_suspended)
			snprintf(suspended, sizeof(suspended), "%s", info.name);
	}
	fleece_dm_list_free(names, count);
	is_good &= check_volumes(suspended);
	if (is_good)
		print_line(true, "no leftovers", "");
	return is_good & check_tab();
}

/* @started: what became of the attempt to open the control device. */
static enum status check_all(int control, enum status started)
{
	bool is_complete, is_good;

	if (started != DONE) {
		print_line(false, "module dm-fleece", "cannot be used");
		return started;
	}
	is_complete = check_module(control);
	if (!check_targets())
		return NO_MODULE;
	is_complete &= check_server();
	is_good = check_devices();
	if (!is_complete)
		return NO_MODULE;
	return is_good ? DONE : FAILED;
}

static enum status check_for_programs(int control, enum status started)
{
	struct fleece_json json = { .out = stdout };
	enum status status;

	document = &json;
	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_array(&json, "checks");
	status = check_all(control, started);
	fleece_json_array_end(&json);
	fleece_json_bool(&json, "ok", status == DONE);
	fleece_json_object_end(&json);
	document = NULL;
	return status;
}

enum status verb_check(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	enum status started, status;
	bool is_json = false;
	int control;

	while (verb_option(argc, argv, options) >= 0)
		is_json = true;
	if (optind < argc)
		return verb_usage("unexpected argument '%s'", argv[optind]);
	started = device_start(&control);
	status = is_json ? check_for_programs(control, started) : check_all(control, started);
	if (started == DONE)
		close(control);
	return status;
}
