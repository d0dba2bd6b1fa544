/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, context_options: LIST_META_CONTEXT and SET_META_CONTEXT. */
#ifndef FLEECED_CONTEXT_OPTIONS_H
#define FLEECED_CONTEXT_OPTIONS_H

#include "client_option.h"

/**
 * context_options_run() - list or select the metadata contexts of an export
 * @option: LIST_META_CONTEXT or SET_META_CONTEXT.
 *
 * An earlier selection is replaced, also by one that fails.
 *
 * Return: enum option_next.
 */
int context_options_run(struct client_option *option);

#endif
