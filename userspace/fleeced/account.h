/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, account: users and groups as they are written on a command line. */
#ifndef FLEECED_ACCOUNT_H
#define FLEECED_ACCOUNT_H

#include <sys/types.h>

/**
 * struct account - a user and a group
 * @user: of the account.
 * @group: the one given, or the user's own.
 */
struct account {
	uid_t user;
	gid_t group;
};

/**
 * account_find() - look up USER[:GROUP]
 * @text: names or numbers. A number without GROUP must be that of a known user.
 * @account: filled in.
 *
 * Prints why it failed.
 *
 * Return: 0 or -errno (-ENOENT: no such user or group).
 */
int account_find(const char *text, struct account *account);

#endif
