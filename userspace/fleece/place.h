/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, place: where in the system a file lies, as the kernel tells. */
#ifndef FLEECE_PLACE_H
#define FLEECE_PLACE_H

#include <stddef.h>
#include <sys/types.h>

/* A filesystem on more devices than that is looked at no further. */
#define PLACE_DEVICES	64

/**
 * place_devices() - the block devices that a file's data is on
 * @path: of a file or directory; a block device is its own.
 * @devices: room for PLACE_DEVICES numbers.
 *
 * Return: how many there are; 0 for filesystems in memory or on the network, and where it
 * cannot be told.
 */
size_t place_devices(const char *path, dev_t *devices);

/**
 * place_unescape() - undo what the kernel does to blanks and the like in /proc
 * @text: is changed.
 */
void place_unescape(char *text);

#endif
