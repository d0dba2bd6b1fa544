// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libfleece, crc32c: the checksum of the metadata device, byte by byte with a table.
 */
#include <linux/crc32c.h>

#define POLYNOMIAL	0x82f63b78U

static __u32 table[256];

/* Before main(), so that no two threads do it. */
static void __attribute__((constructor)) make_table(void)
{
	unsigned int byte, bit;
	__u32 crc;

	for (byte = 0; byte < 256; byte++) {
		crc = byte;
		for (bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
		table[byte] = crc;
	}
}

__u32 crc32c(__u32 crc, const void *data, size_t length)
{
	const __u8 *bytes = data;

	while (length--)
		crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
	return crc;
}
