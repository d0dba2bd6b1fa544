/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * types: the kernel's exported types, and bool, which sources shared with the module
 * expect to come from here.
 */
#ifndef FLEECE_LIB_LINUX_TYPES_H
#define FLEECE_LIB_LINUX_TYPES_H

#include_next <linux/types.h>

#include <stdbool.h>
#include <stddef.h>

#endif
