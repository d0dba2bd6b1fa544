/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unit, view: what tests want to know of a view.
 */
#ifndef UNIT_VIEW_H
#define UNIT_VIEW_H

#include "bits.h"

/**
 * count_bits() - number of set bits
 * @view: what to count in.
 */
static inline u64 count_bits(const struct fleece_view *view)
{
	u64 count;

	fleece_bits_count(view, NULL, &count);
	return count;
}

#endif
