// SPDX-License-Identifier: GPL-2.0-only
/* fleece, stand_in: see stand_in.h. */
#include "stand_in.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "device.h"

/* All of the device, as one line of a table of dm-linear. */
static void describe(struct fleece_dm_target *target, char params[DEVNO_TEXT + 2], dev_t devno,
		     uint64_t size)
{
	char text[DEVNO_TEXT];

	memset(target, 0, sizeof(*target));
	target->length = size / SECTOR_SIZE;
	snprintf(target->type, sizeof(target->type), "linear");
	snprintf(params, DEVNO_TEXT + 2, "%s 0", device_devno_text(text, devno));
	target->params = params;
}

static int make_linear(const char *name, dev_t devno, uint64_t size)
{
	char params[DEVNO_TEXT + 2];
	struct fleece_dm_target target;
	struct fleece_dm_table table = { .targets = &target, .count = 1 };
	int ret = fleece_dm_create(name, "");

	if (ret)
		return ret;
	describe(&target, params, devno, size);
	ret = fleece_dm_load(name, &table);
	if (!ret)
		ret = fleece_dm_resume(name, FLEECE_DM_UDEV_ALL);
	if (ret)
		fleece_dm_remove(name);
	else
		fleece_dm_settle(name);
	return ret;
}

enum status stand_in_make(const char *device, const char *name)
{
	struct fleece_dm_info info;
	uint64_t size = 0;
	struct stat st;
	int ret;

	if (stat(device, &st))
		return report_errno(errno, device, "cannot find the device");
	ret = device_size(st.st_rdev, &size);
	if (!ret)
		ret = fleece_dm_open();
	if (ret)
		return report_errno(ret, device, "cannot be named /dev/mapper/%s", name);
	if (fleece_dm_info_devno(st.st_rdev, &info) && fleece_dm_info(name, &info)) {
		ret = make_linear(name, st.st_rdev, size);
		if (ret)
			report_dm(ret, name, "cannot set it up without the target");
		else
			report_note(name,
				    "WARNING: is %s WITHOUT the target, as the module is missing: what is written to it is not seen",
				    device);
	}
	fleece_dm_close();
	return ret ? FAILED : DONE;
}

bool stand_in_is(const char *name, dev_t devno)
{
	char text[DEVNO_TEXT], params[DEVNO_TEXT + 2];
	struct fleece_dm_table table;
	bool is_one;

	if (fleece_dm_table(name, &table))
		return false;
	snprintf(params, sizeof(params), "%s 0", device_devno_text(text, devno));
	is_one = table.count == 1 && !strcmp(table.targets[0].type, "linear") &&
		 !strcmp(table.targets[0].params, params);
	fleece_dm_table_free(&table);
	return is_one;
}
