// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, account: looks up users and groups. Keeps nothing. */
#include "account.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "text.h"

/* The highest number is "no change" to the system calls. */
#define ID_MAX		(UINT_MAX - 1)

static int find_user(const char *text, bool has_group, struct account *account)
{
	const struct passwd *entry;
	bool is_number = text_to_number(text, ID_MAX, &account->user);

	if (is_number && has_group)
		return 0;
	entry = is_number ? getpwuid(account->user) : getpwnam(text);
	if (!entry) {
		log_error("no such user: %s%s", text,
			  is_number ? "; a number that is no user's needs a group, as USER:GROUP" : "");
		return -ENOENT;
	}
	account->user = entry->pw_uid;
	account->group = entry->pw_gid;
	return 0;
}

static int find_group(const char *text, struct account *account)
{
	const struct group *entry;

	if (text_to_number(text, ID_MAX, &account->group))
		return 0;
	entry = getgrnam(text);
	if (!entry) {
		log_error("no such group: %s", text);
		return -ENOENT;
	}
	account->group = entry->gr_gid;
	return 0;
}

int account_find(const char *text, struct account *account)
{
	char *user = strdup(text);
	char *group;
	int ret;

	if (!user)
		return -ENOMEM;
	group = strchr(user, ':');
	if (group)
		*group++ = '\0';
	ret = find_user(user, group, account);
	if (!ret && group)
		ret = find_group(group, account);
	free(user);
	return ret;
}
