// SPDX-License-Identifier: GPL-2.0-only
/*
 * main: loading and unloading of dm-fleece. Owns nothing but the order in which
 * the targets and the control node come and go.
 */
#include <linux/module.h>

#include "control.h"
#include "origin.h"
#include "snapshot.h"

static int __init fleece_init(void)
{
	int ret;

	ret = fleece_origin_init();
	if (ret)
		return ret;
	ret = fleece_snapshot_init();
	if (ret)
		goto err_exit_origin;
	/* Last, so that whoever sees the node finds everything in place. */
	ret = fleece_control_init();
	if (ret)
		goto err_exit_snapshot;
	return 0;

err_exit_snapshot:
	fleece_snapshot_exit();
err_exit_origin:
	fleece_origin_exit();
	return ret;
}

static void __exit fleece_exit(void)
{
	fleece_control_exit();
	fleece_snapshot_exit();
	fleece_origin_exit();
}

module_init(fleece_init);
module_exit(fleece_exit);

MODULE_DESCRIPTION("device-mapper copy-before-write snapshots with change tracking");
MODULE_AUTHOR("dm-fleece contributors");
MODULE_VERSION(FLEECE_MODULE_VERSION);
MODULE_LICENSE("GPL");
/* By this name device-mapper asks for the target, if it does not know it. */
MODULE_ALIAS("dm-fleece-snapshot");
