/* SPDX-License-Identifier: GPL-2.0-only */
/* bios: what is done with the bios of the module's own making. */
#ifndef DM_FLEECE_BIOS_H
#define DM_FLEECE_BIOS_H

#include <linux/bio.h>
#include <linux/blk-cgroup.h>
#include <linux/ioprio.h>

/**
 * fleece_bio_disown() - have a bio be nobody's
 * @bio: it; has its device already, and is not submitted yet.
 *
 * A program with a limit on its I/O, or a low priority, must not slow down what others wait
 * for: it may be in its thread that the bio was made.
 *
 * Context: Any.
 */
static inline void fleece_bio_disown(struct bio *bio)
{
	bio_associate_blkg_from_css(bio, blkcg_root_css);
	bio->bi_ioprio = IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, IOPRIO_NORM);
}

/**
 * fleece_bios_submit() - submit all bios of a list
 * @bios: empty afterwards.
 *
 * Context: Process, may sleep.
 */
static inline void fleece_bios_submit(struct bio_list *bios)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		submit_bio_noacct(bio);
}

#endif
