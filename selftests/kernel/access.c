// SPDX-License-Identifier: GPL-2.0-only
/* What a snapshot must, may and must not serve, see access.h. */
#include "access.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int access_init(struct access *access, uint64_t sectors, uint64_t cluster)
{
	access->sectors = sectors;
	access->cluster = cluster;
	access->clusters = (sectors + cluster - 1) / cluster;
	access->flags = calloc(access->clusters, sizeof(*access->flags));
	access->asked = calloc(sectors, 1);
	if (!access->flags || !access->asked) {
		access_exit(access);
		return -ENOMEM;
	}
	return 0;
}

void access_exit(struct access *access)
{
	free((void *)access->flags);
	free(access->asked);
	memset(access, 0, sizeof(*access));
}

void access_set(struct access *access, uint64_t sector, uint8_t flags)
{
	atomic_fetch_or(&access->flags[sector / access->cluster], flags);
}

static uint64_t cluster_end(const struct access *access, uint64_t cluster)
{
	uint64_t end = (cluster + 1) * access->cluster;

	return end < access->sectors ? end : access->sectors;
}

static bool is_asked(const struct access *access, uint64_t cluster)
{
	uint64_t sector = cluster * access->cluster;

	while (sector < cluster_end(access, cluster))
		if (!access->asked[sector++])
			return false;
	return true;
}

void access_release_begin(struct access *access, uint64_t sector, uint64_t count)
{
	uint64_t cluster;

	memset(access->asked + sector, 1, count);
	for (cluster = sector / access->cluster;
	     cluster <= (sector + count - 1) / access->cluster; cluster++)
		if (is_asked(access, cluster))
			atomic_fetch_or(&access->flags[cluster], ACCESS_LEAVING);
}

void access_release_end(struct access *access, uint64_t sector, uint64_t count)
{
	uint64_t cluster;

	for (cluster = sector / access->cluster;
	     cluster <= (sector + count - 1) / access->cluster; cluster++)
		if (sector <= cluster * access->cluster &&
		    sector + count >= cluster_end(access, cluster))
			atomic_fetch_or(&access->flags[cluster], ACCESS_GONE);
}

bool access_is_denied(const struct access *access, uint64_t sector, uint64_t count)
{
	uint64_t cluster;

	for (cluster = sector / access->cluster;
	     cluster <= (sector + count - 1) / access->cluster; cluster++) {
		uint8_t flags = atomic_load(&access->flags[cluster]);

		if (!(flags & ACCESS_MAY) || flags & ACCESS_GONE)
			return true;
	}
	return false;
}

bool access_is_doubtful(const struct access *access, uint64_t sector, uint64_t count)
{
	uint64_t cluster;

	for (cluster = sector / access->cluster;
	     cluster <= (sector + count - 1) / access->cluster; cluster++) {
		uint8_t flags = atomic_load(&access->flags[cluster]);

		if (!(flags & ACCESS_MUST) || flags & ACCESS_LEAVING)
			return true;
	}
	return false;
}
