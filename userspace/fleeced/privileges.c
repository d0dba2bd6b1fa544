// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, privileges: users and capabilities of the process. Keeps nothing. */
#include "privileges.h"

#include <errno.h>
#include <grp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/capability.h>

#include "log.h"

#define CAPABILITIES_MAX	64

static int become(const struct account *account)
{
	bool stays = account->user == getuid() && account->group == getgid();

	/* Who has no privilege cannot give up groups, nor become anybody else. */
	if ((setgroups(0, NULL) && !(stays && errno == EPERM)) ||
	    setresgid(account->group, account->group, account->group) ||
	    setresuid(account->user, account->user, account->user)) {
		int ret = -errno;

		log_error("cannot become user %u: %s%s", account->user, strerror(-ret),
			  ret == -EPERM ? "; only root can" : "");
		return ret;
	}
	return 0;
}

/*
 * What a program that is started could get back. Who may not change this set has
 * no use for it either: no program gets more once no_new_privs is set.
 */
static void reduce_bounding_set(uint64_t keep)
{
	unsigned int number;

	for (number = 0; number < CAPABILITIES_MAX; number++)
		if (!(keep >> number & 1))
			prctl(PR_CAPBSET_DROP, number, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

/* The C library has no call for this, and libcap far more than this. */
static int reduce_sets(uint64_t keep)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	unsigned int i;

	if (syscall(SYS_capget, &header, data))
		return -errno;
	for (i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		data[i].permitted &= (uint32_t)(keep >> 32 * i);
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

int privileges_drop(const struct account *account, uint64_t keep)
{
	int ret;

	/* Needs a privilege that another user does not have. */
	reduce_bounding_set(keep);
	ret = account ? become(account) : 0;
	if (ret)
		return ret;
	ret = reduce_sets(keep);
	if (!ret && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)))
		ret = -errno;
	if (ret)
		log_error("cannot give up privileges: %s", strerror(-ret));
	return ret;
}
