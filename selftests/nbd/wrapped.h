/* SPDX-License-Identifier: GPL-2.0-only */
/* nbd tests: what the linker diverts on its way to the core, see --wrap in the Makefile. */
#ifndef WRAPPED_H
#define WRAPPED_H

#include "budget.h"

/** __real_budget_take() - budget_take() itself */
bool __real_budget_take(struct budget *budget, struct budget_share *share, uint64_t bytes);

#endif
