// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, checkpoint: named moments of an origin. The module keeps them; here
 * they are only asked for, by messages.
 */
#include "checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "json.h"
#include "size.h"
#include "verbs.h"

int checkpoint_list(const struct origin *origin, struct fleece_checkpoint_line **list,
		    size_t *count)
{
	char *reply;
	int ret = fleece_dm_message(origin->dm.name, "checkpoint_list", &reply);

	if (ret)
		return ret;
	ret = fleece_checkpoint_list_parse(reply, list, count);
	free(reply);
	return ret;
}

enum status checkpoint_report(int error, const char *name, const char *checkpoint)
{
	switch (error) {
	case -ENOENT:
		return report(NO_CHECKPOINT, name, "has no checkpoint '%s'; make a full backup",
			      checkpoint);
	case -ESTALE:
		return report(NO_CHECKPOINT, name,
			      "its checkpoint '%s' is invalid, as tracking was interrupted; make a full backup",
			      checkpoint);
	case -EEXIST:
		return report(BUSY, name, "has a checkpoint '%s' already", checkpoint);
	case -EINVAL:
		return report(USAGE, name, "'%s' cannot be the name of a checkpoint", checkpoint);
	case -ENOSPC:
		return report(FAILED, name, "has no room for the checkpoint '%s'; delete another one",
			      checkpoint);
	default:
		return report_dm(error, name, "cannot do it");
	}
}

/* Its name stays empty if there is none. */
static int look_up(const struct origin *origin, const char *checkpoint,
		   struct fleece_checkpoint_line *found)
{
	struct fleece_checkpoint_line *list;
	size_t count, i;
	int ret = checkpoint_list(origin, &list, &count);

	memset(found, 0, sizeof(*found));
	if (ret)
		return ret;
	for (i = 0; i < count; i++)
		if (!strcmp(list[i].name, checkpoint))
			*found = list[i];
	free(list);
	return 0;
}

enum status checkpoint_find(const struct origin *origin, const char *checkpoint,
			    struct fleece_checkpoint_line *found)
{
	int error = look_up(origin, checkpoint, found);

	if (error)
		return report_dm(error, origin->dm.name, "cannot list its checkpoints");
	if (!found->name[0])
		return checkpoint_report(-ENOENT, origin->dm.name, checkpoint);
	return found->is_valid ? DONE : checkpoint_report(-ESTALE, origin->dm.name, checkpoint);
}

bool checkpoint_exists(const struct origin *origin, const char *checkpoint)
{
	struct fleece_checkpoint_line found;

	return !look_up(origin, checkpoint, &found) && found.name[0];
}

bool checkpoint_is_valid(const struct origin *origin, const char *checkpoint)
{
	struct fleece_checkpoint *list = NULL;
	int control = fleece_control_open();
	int device = device_open(&origin->dm);
	bool is_valid = false;
	size_t count, i;

	/* The message counts what has changed, which may take long: suspended, it is refused. */
	if (!fleece_control_checkpoints(control, device, &list, &count))
		for (i = 0; i < count; i++)
			if (!strcmp(list[i].name, checkpoint))
				is_valid = !(list[i].flags & FLEECE_CHECKPOINT_INVALID);
	free(list);
	if (device >= 0)
		close(device);
	if (control >= 0)
		close(control);
	return is_valid;
}

static void print_json(const struct origin *origin, const struct fleece_checkpoint_line *list,
		       size_t count)
{
	struct fleece_json json = { .out = stdout };
	size_t i;

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_string(&json, "origin", origin->dm.name);
	fleece_json_array(&json, "checkpoints");
	for (i = 0; i < count; i++) {
		fleece_json_object(&json, NULL);
		fleece_json_string(&json, "name", list[i].name);
		fleece_json_string(&json, "uuid", list[i].uuid);
		fleece_json_number(&json, "created", list[i].created);
		fleece_json_number(&json, "changed_bytes",
				   origin_bytes(origin, list[i].changed_granules));
		fleece_json_bool(&json, "valid", list[i].is_valid);
		fleece_json_object_end(&json);
	}
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
}

static void print_table(const struct origin *origin, const struct fleece_checkpoint_line *list,
			size_t count)
{
	char size[FLEECE_SIZE_TEXT], when[32];
	size_t i;

	printf("%-24s %-19s %9s %-7s %s\n", "CHECKPOINT", "CREATED", "CHANGED", "STATE", "UUID");
	for (i = 0; i < count; i++) {
		time_t created = (time_t)list[i].created;
		struct tm local;

		localtime_r(&created, &local);
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &local);
		fleece_size_format(size, origin_bytes(origin, list[i].changed_granules));
		printf("%-24s %-19s %9s %-7s %s\n", list[i].name, when, size,
		       list[i].is_valid ? "valid" : "invalid", list[i].uuid);
	}
}

static enum status list_checkpoints(const struct origin *origin, bool is_json)
{
	struct fleece_checkpoint_line *list;
	size_t count;
	int ret = checkpoint_list(origin, &list, &count);

	if (ret)
		return report_dm(ret, origin->dm.name, "cannot list its checkpoints");
	if (is_json)
		print_json(origin, list, count);
	else
		print_table(origin, list, count);
	free(list);
	return DONE;
}

static int send_message(const struct origin *origin, const char *action, const char *checkpoint)
{
	char message[64 + FLEECE_NAME_SIZE];

	snprintf(message, sizeof(message), "checkpoint_%s %s", action, checkpoint);
	return fleece_dm_message(origin->dm.name, message, NULL);
}

int checkpoint_delete_all(const struct origin *origin, size_t *count)
{
	struct fleece_checkpoint_line *list;
	size_t i;
	int ret = checkpoint_list(origin, &list, count);

	if (ret)
		return ret;
	for (i = 0; i < *count && !ret; i++)
		ret = send_message(origin, "delete", list[i].name);
	free(list);
	return ret;
}

/* As the list would have it. */
static enum status show_checkpoint(const struct origin *origin, const char *checkpoint)
{
	struct fleece_checkpoint_line found;
	int ret = look_up(origin, checkpoint, &found);

	if (ret)
		return report_dm(ret, origin->dm.name, "the checkpoint is created, but cannot be shown");
	/* Somebody else may have deleted it already. */
	print_json(origin, &found, found.name[0] ? 1 : 0);
	return DONE;
}

static enum status change_checkpoint(const struct origin *origin, const char *action,
				     const char *checkpoint, bool is_json)
{
	int ret = send_message(origin, action, checkpoint);

	/* Who wanted to be rid of it needs no other backup. */
	if (ret == -ENOENT)
		return report(NO_CHECKPOINT, origin->dm.name, "has no checkpoint '%s'", checkpoint);
	if (ret)
		return checkpoint_report(ret, origin->dm.name, checkpoint);
	return is_json ? show_checkpoint(origin, checkpoint) : DONE;
}

enum status verb_checkpoint(int argc, char **argv)
{
	enum { JSON = 256 };
	static const struct option options[] = {
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool is_json = false, is_list;
	struct origin origin;
	enum status status;
	char **words;
	int count;

	while (verb_option(argc, argv, options) >= 0)
		is_json = true;
	words = argv + optind;
	count = argc - optind;
	if (!count)
		return verb_usage("create, delete or list is needed");
	is_list = !strcmp(words[0], "list");
	if (!is_list && strcmp(words[0], "create") && strcmp(words[0], "delete"))
		return verb_usage("'%s' is none of create, delete and list", words[0]);
	if (count != (is_list ? 2 : 3))
		return verb_usage("%s needs %s", words[0], is_list ? "NAME" : "NAME and CHECKPOINT");
	if (is_json && !strcmp(words[0], "delete"))
		return verb_usage("--json goes with create and list");
	if (!is_list && !fleece_name_is_valid(words[2]))
		return verb_usage("'%s' cannot be the name of a checkpoint", words[2]);
	status = device_start(NULL);
	if (status == DONE)
		status = device_origin(words[1], &origin);
	if (status != DONE)
		return status;
	return is_list ? list_checkpoints(&origin, is_json) :
			 change_checkpoint(&origin, words[0], words[2], is_json);
}
