/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mm: the size of a page.
 */
#ifndef UNIT_LINUX_MM_H
#define UNIT_LINUX_MM_H

#include <linux/gfp.h>

#endif
