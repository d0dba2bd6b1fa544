// SPDX-License-Identifier: LGPL-2.1-or-later
/* libfleece, keepalive: see keepalive.h. */
#include "keepalive.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* When it is asked for the first time, how long it may take to answer, and how often. */
#define IDLE_S		60
#define INTERVAL_S	15
#define PROBES		4

_Static_assert((IDLE_S + PROBES * INTERVAL_S) * 1000 == FLEECE_KEEPALIVE_MS, "two minutes in all");

static void set_option(int fd, int level, int option, int value)
{
	setsockopt(fd, level, option, &value, sizeof(value));
}

void fleece_keepalive(int fd, int unacknowledged_ms)
{
	if (unacknowledged_ms)
		set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, unacknowledged_ms);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, IDLE_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, INTERVAL_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, PROBES);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}
