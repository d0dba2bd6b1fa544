// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, dm_switch: the bare form of suspend, clear and resume, for while filesystems are
 * frozen: libdevmapper allocates memory, keeps lists of nodes to make and may wait for udev;
 * any of these can end up waiting for a frozen filesystem.
 */
#include "dm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "dm_task.h"

static void prepare_switch(struct fleece_dm_switch *run, unsigned long request,
			   const char *name, uint32_t flags)
{
	struct dm_ioctl *argument = &run->argument;

	memset(run, 0, sizeof(*run));
	run->request = request;
	/* The oldest interface will do; the kernel refuses a newer one than its own. */
	argument->version[0] = DM_VERSION_MAJOR;
	argument->data_size = sizeof(*argument);
	argument->flags = flags;
	snprintf(argument->name, sizeof(argument->name), "%s", name);
}

void fleece_dm_suspend_prepare(struct fleece_dm_switch *run, const char *name, bool freeze)
{
	prepare_switch(run, DM_DEV_SUSPEND, name,
		       DM_SUSPEND_FLAG | (freeze ? 0 : DM_SKIP_LOCKFS_FLAG));
}

void fleece_dm_clear_prepare(struct fleece_dm_switch *run, const char *name)
{
	prepare_switch(run, DM_TABLE_CLEAR, name, 0);
}

void fleece_dm_resume_prepare(struct fleece_dm_switch *run, const char *name,
			      enum fleece_dm_udev udev)
{
	uint32_t flags;

	/*
	 * A new table is swapped in with an implied suspend, for which nothing
	 * has to be frozen. The flags for udev's rules travel as a cookie that
	 * belongs to no semaphore, so nobody waits for its completion.
	 */
	prepare_switch(run, DM_DEV_SUSPEND, name, DM_SKIP_LOCKFS_FLAG);
	flags = fleece_dm_task_udev_flags(udev) | DM_UDEV_PRIMARY_SOURCE_FLAG;
	run->argument.event_nr = flags << DM_UDEV_FLAGS_SHIFT;
}

int fleece_dm_switch_run(const struct fleece_dm_switch *run)
{
	struct dm_ioctl argument = run->argument;

	return ioctl(fleece_dm_control(), run->request, &argument) < 0 ? -errno : 0;
}
