/* SPDX-License-Identifier: GPL-2.0-only */
/* nbd tests: what the linker diverts on its way to the core, see --wrap in the Makefile. */
#ifndef WRAPPED_H
#define WRAPPED_H

#include <poll.h>
#include <stdint.h>
#include <sys/types.h>

#include "budget.h"

/** __real_budget_take() - budget_take() itself */
bool __real_budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes);

/** __real_read() - read() itself */
ssize_t __real_read(int file, void *buffer, size_t length);

/** __real_pread64() - pread64() itself */
ssize_t __real_pread64(int file, void *buffer, size_t length, off64_t offset);

/** __real_poll() - poll() itself */
int __real_poll(struct pollfd *files, nfds_t count, int milliseconds);

/** __real_clock_ms() - clock_ms() itself */
int64_t __real_clock_ms(void);

/** __real_sched_yield() - sched_yield() itself */
int __real_sched_yield(void);

#endif
