// SPDX-License-Identifier: GPL-2.0-only
/*
 * Origins and snapshots in memory, with faults on order, see backend.h.
 *
 * A gate for each origin stands for suspend: writers pass it with the read lock
 * and sector by sector, so that a write of many sectors can be cut as a real one
 * can. A snapshot is a copy of the whole origin.
 */
#include "backend.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "history.h"

/* One in so many operations does what the fault says. */
#define FAULT_INTERVAL	40

struct device {
	pthread_rwlock_t gate;
	bool is_held;
	char *live;
	char *image;
	char *older;		/* of each sector, what was there before live */
	uint8_t *released;
	uint64_t cluster;
	uint64_t lost;		/* so many sectors from the first one on */
};

static struct device fakes[MAX_DEVICES];
static unsigned int fake_count;
static uint64_t fake_sectors;
static enum fault fake_fault;
static bool fake_is_advisory;
static atomic_uint fault_clock;

static bool fault_strikes(enum fault fault)
{
	return fake_fault == fault && atomic_fetch_add(&fault_clock, 1) % FAULT_INTERVAL == 0;
}

static int fake_hold(unsigned int device)
{
	pthread_rwlock_wrlock(&fakes[device].gate);
	fakes[device].is_held = true;
	return 0;
}

static int fake_let_go(unsigned int device)
{
	fakes[device].is_held = false;
	pthread_rwlock_unlock(&fakes[device].gate);
	return 0;
}

static int fake_checkpoint(unsigned int device, const char *name)
{
	(void)device;
	(void)name;
	return 0;
}

/* Let the origins run on for a moment that should not be. */
static void run_unheld(unsigned int device)
{
	fake_let_go(device);
	usleep(50000);
	fake_hold(device);
}

static void lose_writes(struct device *fake)
{
	uint64_t sector;

	for (sector = 0; sector < fake_sectors; sector += FAULT_INTERVAL)
		memcpy(fake->image + sector * SECTOR_BYTES, fake->older + sector * SECTOR_BYTES,
		       SECTOR_BYTES);
}

static int fake_snapshot_create(unsigned int device, const struct snapshot_options *options)
{
	struct device *fake = &fakes[device];
	bool was_held = fake->is_held;

	if (!was_held)
		fake_hold(device);
	if (was_held && device > 0 && fake_fault == FAULT_UNHELD) {
		fake_let_go(0);
		run_unheld(device);
		fake_hold(0);
	}
	memcpy(fake->image, fake->live, fake_sectors * SECTOR_BYTES);
	if (fake_fault == FAULT_LOST)
		lose_writes(fake);
	memset(fake->released, 0, fake_sectors);
	fake->cluster = options->cluster;
	fake->lost = 0;
	if (fake_fault == FAULT_EIO_ELSEWHERE && options->slots * options->cluster < fake_sectors)
		fake->lost = options->cluster;
	if (!was_held)
		fake_let_go(device);
	return 0;
}

static int fake_snapshot_remove(unsigned int device)
{
	memset(fakes[device].image, 0, fake_sectors * SECTOR_BYTES);
	return 0;
}

static int fake_snapshot_release(unsigned int device, uint64_t sector, uint64_t count,
				 bool discard)
{
	struct device *fake = &fakes[device];
	uint64_t first = (sector + fake->cluster - 1) / fake->cluster * fake->cluster;
	uint64_t end = sector + count;

	(void)discard;
	if (end < fake_sectors)
		end = end / fake->cluster * fake->cluster;
	if (first < end && fake_fault != FAULT_GHOST)
		memset(fake->released + first, 1, end - first);
	return 0;
}

static int fake_snapshot_pause(unsigned int device)
{
	(void)device;
	return 0;
}

static int fake_snapshot_grow(unsigned int device, uint64_t cluster, uint64_t slots)
{
	(void)device;
	(void)cluster;
	(void)slots;
	return 0;
}

static int fake_snapshot_has_lost(unsigned int device, uint64_t sector, uint64_t count)
{
	(void)count;
	return sector < fakes[device].lost;
}

static int fake_snapshot_state(unsigned int device)
{
	(void)device;
	return 0;
}

static int fake_snapshot_is_idle(unsigned int device)
{
	(void)device;
	return 1;
}

static const char *faulty_sector(const struct device *fake, uint64_t sector)
{
	static _Thread_local char torn[SECTOR_BYTES];
	const char *image = fake->image + sector * SECTOR_BYTES;
	const char *live = fake->live + sector * SECTOR_BYTES;
	unsigned int device = fake - fakes;

	memset(torn, 0, sizeof(torn));
	switch (fake_fault) {
	case FAULT_NEWER:
		return live;
	case FAULT_TORN:
		memcpy(torn, image, SECTOR_BYTES / 2);
		memcpy(torn + SECTOR_BYTES / 2, live + SECTOR_BYTES / 2, SECTOR_BYTES / 2);
		return torn;
	case FAULT_PLACE:
		return sector ? image - SECTOR_BYTES : image;
	case FAULT_DEVICE:
		return fakes[(device + 1) % fake_count].image + sector * SECTOR_BYTES;
	case FAULT_ZERO:
		return torn;
	default:
		return image;
	}
}

static int fake_snapshot_read(unsigned int device, uint64_t sector, uint64_t count, void *data)
{
	const struct device *fake = &fakes[device];
	uint64_t i;

	if (fault_strikes(FAULT_DENIED))
		return -ENODATA;
	if (fault_strikes(FAULT_EIO) || sector < fake->lost ||
	    (fake->lost && fault_strikes(FAULT_EIO_ELSEWHERE)))
		return -EIO;
	for (i = 0; i < count; i++) {
		const char *source = fake->image + (sector + i) * SECTOR_BYTES;

		if (fake->released[sector + i])
			return -ENODATA;
		if (fault_strikes(fake_fault))
			source = faulty_sector(fake, sector + i);
		memcpy((char *)data + i * SECTOR_BYTES, source, SECTOR_BYTES);
	}
	return 0;
}

static int fake_origin_read(unsigned int device, uint64_t sector, uint64_t count, void *data)
{
	memcpy(data, fakes[device].live + sector * SECTOR_BYTES, count * SECTOR_BYTES);
	return 0;
}

static void overwrite(struct device *fake, uint64_t sector, const char *data)
{
	char *live = fake->live + sector * SECTOR_BYTES;

	pthread_rwlock_rdlock(&fake->gate);
	memcpy(fake->older + sector * SECTOR_BYTES, live, SECTOR_BYTES);
	memcpy(live, data, SECTOR_BYTES);
	pthread_rwlock_unlock(&fake->gate);
}

static int fake_origin_write(unsigned int device, uint64_t sector, uint64_t count,
			     const void *data)
{
	struct device *fake = &fakes[device];
	uint64_t i;

	if (fault_strikes(FAULT_LIVE_ERROR))
		return -EIO;
	if (fault_strikes(FAULT_LIVE_LOST))
		return 0;
	for (i = 0; i < count; i++)
		overwrite(fake, sector + i, (const char *)data + i * SECTOR_BYTES);
	return 0;
}

/* If that fault strikes the snapshot loses the sectors as well. */
static void clear(struct device *fake, uint64_t sector, uint64_t count, enum fault through)
{
	static const char zeroes[SECTOR_BYTES];
	uint64_t i;

	for (i = sector; i < sector + count; i++)
		overwrite(fake, i, zeroes);
	if (fault_strikes(through))
		memset(fake->image + sector * SECTOR_BYTES, 0, count * SECTOR_BYTES);
}

static int fake_origin_zero(unsigned int device, uint64_t sector, uint64_t count)
{
	if (!fault_strikes(FAULT_ZEROES_LOST))
		clear(&fakes[device], sector, count, FAULT_ZEROES_THROUGH);
	return 0;
}

/* Advice is heeded by half. */
static int fake_origin_discard(unsigned int device, uint64_t sector, uint64_t count)
{
	if (fault_strikes(FAULT_DISCARD_LOST))
		return 0;
	if (fake_is_advisory)
		count = (count + 1) / 2;
	clear(&fakes[device], sector, count, FAULT_DISCARD_THROUGH);
	return 0;
}

static const struct backend fake_backend = {
	.hold = fake_hold,
	.let_go = fake_let_go,
	.checkpoint_create = fake_checkpoint,
	.checkpoint_delete = fake_checkpoint,
	.snapshot_create = fake_snapshot_create,
	.snapshot_remove = fake_snapshot_remove,
	.snapshot_release = fake_snapshot_release,
	.snapshot_pause = fake_snapshot_pause,
	.snapshot_grow = fake_snapshot_grow,
	.snapshot_has_lost = fake_snapshot_has_lost,
	.snapshot_state = fake_snapshot_state,
	.snapshot_is_idle = fake_snapshot_is_idle,
	.snapshot_read = fake_snapshot_read,
	.origin_read = fake_origin_read,
	.origin_write = fake_origin_write,
	.origin_zero = fake_origin_zero,
	.origin_discard = fake_origin_discard,
};

const struct backend *backend_fake_open(unsigned int devices, uint64_t sectors,
					enum fault fault, bool advisory)
{
	pthread_rwlockattr_t attributes;
	unsigned int i;

	/* Or the writers never let a snapshot through. */
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	fake_count = devices;
	fake_sectors = sectors;
	fake_fault = fault;
	fake_is_advisory = advisory;
	for (i = 0; i < devices; i++) {
		pthread_rwlock_init(&fakes[i].gate, &attributes);
		fakes[i].live = calloc(sectors, SECTOR_BYTES);
		fakes[i].image = calloc(sectors, SECTOR_BYTES);
		fakes[i].older = calloc(sectors, SECTOR_BYTES);
		fakes[i].released = calloc(sectors, 1);
		if (!fakes[i].live || !fakes[i].image || !fakes[i].older || !fakes[i].released)
			return NULL;
	}
	return &fake_backend;
}
