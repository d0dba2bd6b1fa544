/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libfleece, keepalive: a TCP connection to a host that may be gone without a word. */
#ifndef FLEECE_LIB_KEEPALIVE_H
#define FLEECE_LIB_KEEPALIVE_H

/* A host that is silent is asked for a sign of life; after so long it counts as dead. */
#define FLEECE_KEEPALIVE_MS	120000

/**
 * fleece_keepalive() - notice that the other host is gone
 * @fd: a socket. Others than those of TCP tell by themselves, and stay as they are.
 * @unacknowledged_ms: how long it may leave unacknowledged what it was sent, for which it is
 *	not asked, or be silent; 0: as long as the kernel thinks fit, about a quarter of an
 *	hour, and FLEECE_KEEPALIVE_MS of silence.
 *
 * A host that says it is there is waited for, however long its answer takes.
 */
void fleece_keepalive(int fd, int unacknowledged_ms);

#endif
