// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, account: looks up users and groups. Keeps nothing. */
#include "account.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

/* The highest number is "no change" to the system calls. */
static bool parse_id(const char *text, unsigned int *id)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value >= (unsigned int)-1)
		return false;
	*id = (unsigned int)value;
	return true;
}

static int find_user(const char *text, bool has_group, struct account *account)
{
	const struct passwd *entry;
	bool is_number = parse_id(text, &account->user);

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

	if (parse_id(text, &account->group))
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
