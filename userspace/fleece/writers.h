/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, writers: programs that have a block device open for writing. */
#ifndef FLEECE_WRITERS_H
#define FLEECE_WRITERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Room for what writers_find() says. */
#define WRITER_TEXT	64

/**
 * writers_find() - has a program a device, its disk or a partition of it open for writing?
 * @devno: of a block device.
 * @who: set to the first one that is found, as "NAME (pid N)".
 *
 * Not just for a moment: it takes two seconds to say yes.
 *
 * The kernel refuses nobody who does not ask for the device for himself (O_EXCL), so that a
 * virtual machine or a database on a raw device is seen by this alone. The calling process is
 * not meant. What is in another namespace of processes is seen if this one is above it.
 */
bool writers_find(dev_t devno, char who[WRITER_TEXT]);

#endif
