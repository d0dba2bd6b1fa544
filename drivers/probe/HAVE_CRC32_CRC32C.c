// SPDX-License-Identifier: GPL-2.0-only
/* crc32c() is with the other checksums, in the kernel itself. */
#include <linux/crc32.h>

u32 probe(const void *data);
u32 probe(const void *data)
{
	return crc32c(0, data, 1);
}
