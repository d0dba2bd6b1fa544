/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * uuid: sixteen bytes that differ each time.
 */
#ifndef UNIT_LINUX_UUID_H
#define UNIT_LINUX_UUID_H

#include <linux/types.h>

struct unit_uuid {
	u8 b[16];
};

#define uuid_t	struct unit_uuid

void uuid_gen(uuid_t *uuid);

#endif
