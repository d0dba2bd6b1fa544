/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libfleece, standard_files: stdin, stdout and stderr, which a program may be started without. */
#ifndef FLEECE_LIB_STANDARD_FILES_H
#define FLEECE_LIB_STANDARD_FILES_H

/**
 * fleece_fill_standard_files() - open those that are closed
 *
 * What is opened later would get their place, and what is printed. Reading from what is
 * opened here gives nothing, and writing to it fails, as it did before.
 *
 * Context: before anything else is opened.
 *
 * Return: 0 or -errno.
 */
int fleece_fill_standard_files(void);

#endif
