/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* crc32c: the checksum, under the name and with the conventions of the kernel. */
#ifndef FLEECE_LIB_LINUX_CRC32C_H
#define FLEECE_LIB_LINUX_CRC32C_H

#include <linux/types.h>

/**
 * crc32c() - go on with a CRC-32C (Castagnoli, reflected)
 * @crc: of what came before; all ones to begin with. Nothing is inverted here.
 * @data: what to add.
 * @length: its bytes.
 *
 * Return: the new value.
 */
__u32 crc32c(__u32 crc, const void *data, size_t length);

#endif
