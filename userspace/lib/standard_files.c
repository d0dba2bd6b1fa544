// SPDX-License-Identifier: LGPL-2.1-or-later
/* libfleece, standard_files: see standard_files.h. */
#include "standard_files.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int fleece_fill_standard_files(void)
{
	int file;

	/* Programs that are started from here need them, too. */
	do {
		file = open("/dev/null", O_RDONLY);
	} while (file >= 0 && file <= STDERR_FILENO);
	if (file < 0)
		return -errno;
	close(file);
	return 0;
}
