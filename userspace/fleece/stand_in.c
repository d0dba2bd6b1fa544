// SPDX-License-Identifier: GPL-2.0-only
/* fleece, stand_in: see stand_in.h. */
#include "stand_in.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "device.h"

/* The target that a stand-in is of, all over the device. */
#define LINEAR			"linear"
#define LINEAR_PARAMS		(DEVNO_TEXT + 2)

static char *linear_params(char params[LINEAR_PARAMS], dev_t devno)
{
	char text[DEVNO_TEXT];

	snprintf(params, LINEAR_PARAMS, "%s 0", device_devno_text(text, devno));
	return params;
}

static int make_linear(const char *name, dev_t devno, uint64_t size)
{
	char params[LINEAR_PARAMS];
	struct fleece_dm_target target = {
		.length = size / SECTOR_SIZE,
		.type = LINEAR,
		.params = linear_params(params, devno),
	};
	struct fleece_dm_table table = { .targets = &target, .count = 1 };
	int ret = fleece_dm_create(name, "");

	if (ret)
		return ret;
	ret = fleece_dm_load(name, &table);
	if (!ret)
		ret = fleece_dm_resume(name, FLEECE_DM_UDEV_ALL);
	if (ret)
		fleece_dm_remove(name);
	else
		fleece_dm_settle(name);
	return ret;
}

void stand_in_make(const char *device, const char *name)
{
	struct fleece_dm_info info;
	uint64_t size = 0;
	struct stat st;
	int ret;

	ret = stat(device, &st) ? -errno : device_size(st.st_rdev, &size);
	if (!ret)
		ret = fleece_dm_open();
	if (ret) {
		report_errno(ret, device, "cannot be named /dev/mapper/%s", name);
		return;
	}
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
}

bool stand_in_is(const char *name, dev_t devno)
{
	char params[LINEAR_PARAMS];
	struct fleece_dm_table table;
	bool is_one;

	if (fleece_dm_table(name, &table))
		return false;
	is_one = table.count == 1 && !strcmp(table.targets[0].type, LINEAR) &&
		 !strcmp(table.targets[0].params, linear_params(params, devno));
	fleece_dm_table_free(&table);
	return is_one;
}
