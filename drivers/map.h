/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * map: memory for what may be as long as a device, above all bitmaps.
 */
#ifndef FLEECE_MAP_H
#define FLEECE_MAP_H

#include <linux/types.h>

/**
 * fleece_map_alloc() - memory for an array
 * @count: how many elements.
 * @size: bytes of each.
 *
 * The caller has an error for it. So nobody is killed for a map that does not fit, no
 * administrator is alarmed with a trace, and the kernel does not try for ever, as it does
 * for single pages where it may neither write nor kill.
 *
 * Context: Process, may sleep.
 * Return: zeroes, to be freed with vfree(), or NULL.
 */
void *fleece_map_alloc(u64 count, size_t size);

#endif
