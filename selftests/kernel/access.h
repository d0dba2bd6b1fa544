/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a snapshot must, may and must not serve.
 *
 * Owns the oracle's model of the access map: which clusters were accessible at
 * the start (as far as the log of writes can tell) and which were released. One thread
 * may release while others ask.
 */
#ifndef FLEECE_TEST_ACCESS_H
#define FLEECE_TEST_ACCESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The cluster was certainly accessible at the start. */
#define ACCESS_MUST	0x1
/* The cluster was possibly accessible at the start. */
#define ACCESS_MAY	0x2
/* A release that may concern all of the cluster has been asked for. */
#define ACCESS_LEAVING	0x4
/* A release of the whole cluster has returned. */
#define ACCESS_GONE	0x8

/**
 * struct access - access map of one snapshot
 * @sectors: size of the device.
 * @cluster: sectors of a cluster.
 * @clusters: number of clusters.
 * @flags: ACCESS_* of each cluster.
 * @asked: for each sector: a release was asked for; only the releasing thread's.
 */
struct access {
	uint64_t sectors;
	uint64_t cluster;
	uint64_t clusters;
	atomic_uint_least8_t *flags;
	uint8_t *asked;
};

/** access_init() - model of a map in which nothing is accessible; 0 or -ENOMEM */
int access_init(struct access *access, uint64_t sectors, uint64_t cluster);

/** access_exit() - free what access_init() took */
void access_exit(struct access *access);

/** access_set() - add @flags to the cluster of @sector */
void access_set(struct access *access, uint64_t sector, uint8_t flags);

/** access_release_begin() - a release of the range is about to be asked for */
void access_release_begin(struct access *access, uint64_t sector, uint64_t count);

/** access_release_end() - that release has returned */
void access_release_end(struct access *access, uint64_t sector, uint64_t count);

/** access_is_denied() - from now on, a read of the range certainly fails */
bool access_is_denied(const struct access *access, uint64_t sector, uint64_t count);

/** access_is_doubtful() - a read of the range that has ended may have failed */
bool access_is_doubtful(const struct access *access, uint64_t sector, uint64_t count);

#endif
