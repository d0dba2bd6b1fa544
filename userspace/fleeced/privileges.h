/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, privileges: gives up what the process needs no more, for good. There
 * is no way back for it, nor for a program that it would start.
 */
#ifndef FLEECED_PRIVILEGES_H
#define FLEECED_PRIVILEGES_H

#include <stdint.h>

#include "account.h"

/**
 * privileges_drop() - be another user, and keep no capability but some
 * @account: who to be, without any other group; NULL: who the process is now.
 * @keep: bit N is set: keep capability N if there is one.
 *
 * From now on no program can be started with more privileges, and no other
 * process of the same user can look into this one.
 *
 * Prints why it failed.
 *
 * Context: before any thread exists.
 * Return: 0 or -errno (-EPERM: only root can be another user).
 */
int privileges_drop(const struct account *account, uint64_t keep);

#endif
