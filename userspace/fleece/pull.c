// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, pull: hands over to fleece-pull, which needs libnbd. This command must
 * not need it: it also runs early at boot.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "verbs.h"

#define PROGRAM		"fleece-pull"

enum status verb_pull(int argc, char **argv)
{
	char path[PATH_MAX];

	(void)argc;
	process_find(path, sizeof(path), "pull", PROGRAM);
	execvp(path, argv);
	if (errno == ENOENT)
		return report(FAILED, NULL, PROGRAM
			      " is not installed; it is built where libnbd-dev is, see README.md");
	return report_errno(errno, NULL, "cannot run %s", path);
}
