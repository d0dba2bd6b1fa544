// SPDX-License-Identifier: GPL-2.0-only
/* fleece, change: see change.h. */
#include "change.h"

#include "device.h"
#include "lock.h"
#include "process.h"

enum status change_begin(void)
{
	enum status status = device_start(NULL);

	if (status == DONE)
		status = lock_changes();
	if (status == DONE)
		process_hold_signals();
	return status;
}

void change_end(void)
{
	fleece_dm_close();
	lock_release();
	process_release_signals();
}
