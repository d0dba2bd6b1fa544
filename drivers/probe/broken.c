// SPDX-License-Identifier: GPL-2.0-only
/* Must not compile: it calls a function that no kernel has. */
#include <linux/blkdev.h>

int probe(void);
int probe(void)
{
	return fleece_no_kernel_has_this();
}
