/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, change: the time in which this command changes devices. */
#ifndef FLEECE_CHANGE_H
#define FLEECE_CHANGE_H

#include "report.h"

/**
 * change_begin() - get ready to change devices
 *
 * Opens device-mapper, loads the module, waits for other commands, and from then on signals
 * wait: a change is never left half made.
 *
 * Return: DONE or, reported, NO_MODULE, NO_PERMISSION or FAILED; then there is nothing to end.
 */
enum status change_begin(void);

/**
 * change_end() - let other commands, and signals, have their turn
 *
 * For verbs that go on with something else; the end of the process does it, too.
 */
void change_end(void);

#endif
