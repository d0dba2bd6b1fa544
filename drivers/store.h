/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * store: which slot of the COW device holds which cluster.
 *
 * A slot is free, taken (by a copy that is still under way) or owned by one
 * cluster. Slots are taken lowest first, so the store stays compact and slots
 * given back are used again. Memory: 1/8 byte and 2 bytes for each slot at
 * once, 16 bytes more for each slot of the part in use.
 *
 * The store has no lock: the caller serialises all calls but
 * fleece_store_refill(). It knows nothing of bios and builds in userspace.
 */
#ifndef FLEECE_STORE_H
#define FLEECE_STORE_H

#include <linux/gfp.h>
#include <linux/types.h>

#include "dm-fleece.h"

#define FLEECE_SLOT_NONE	U32_MAX

/* Pages of entries that are kept ready. One has those of 256 slots, if it has 4 KiB. */
#define FLEECE_STORE_SPARES	4U

struct fleece_slot_entry;

/* Slots that one bit of @full stands for: no more of them are looked at in vain. */
#define FLEECE_STORE_GROUP	512U

/**
 * struct fleece_store - slots and their owners
 * @nr_slots: how many there are; changed by fleece_store_grow(), as are @bits,
 *	@nr_pages and @pages.
 * @end: no slot from here on has ever been taken.
 * @used: slots that are taken or owned.
 * @lowest: no slot below is free, but those that are avoided.
 * @avoided: no avoided slot is below; FLEECE_SLOT_NONE if there is none.
 * @bits: set for slots that are not free.
 * @full: set for groups of slots that are known to have none that is free; a hint that
 *	keeps the search for one short.
 * @heads: first slot of each hash chain of owned slots.
 * @hash_bits: log2 of the number of @heads.
 * @next_heads: while the store gets more chains, the new ones; else NULL.
 * @next_hash_bits: log2 of their number.
 * @nr_moved: chains of @heads that have been emptied into @next_heads.
 * @nr_pages: length of @pages.
 * @pages: entries of the slots, a page at a time, made when first needed.
 * @spares: pages for the next ones that are needed, see fleece_store_refill().
 * @nr_spares: how many there are; read by fleece_store_refill() meanwhile.
 */
struct fleece_store {
	u32 nr_slots;
	u32 end;
	u32 used;
	u32 lowest;
	u32 avoided;
	unsigned long *bits;
	unsigned long *full;
	u32 *heads;
	unsigned int hash_bits;
	u32 *next_heads;
	unsigned int next_hash_bits;
	u32 nr_moved;
	u32 nr_pages;
	struct fleece_slot_entry **pages;
	struct fleece_slot_entry *spares[FLEECE_STORE_SPARES];
	unsigned int nr_spares;
};

/**
 * struct fleece_store_growth - memory for a store to grow into
 * @nr_slots: slots that the store will have.
 * @bits: see struct fleece_store; after fleece_store_grow() the old one, as are
 * @full: see there.
 * @nr_pages: length of @pages and
 * @pages: see there.
 * @heads: new chains, or NULL; after fleece_store_move() has ended the old ones.
 * @hash_bits: log2 of the number of @heads.
 */
struct fleece_store_growth {
	u32 nr_slots;
	unsigned long *bits;
	unsigned long *full;
	u32 nr_pages;
	struct fleece_slot_entry **pages;
	u32 *heads;
	unsigned int hash_bits;
};

/**
 * fleece_store_init() - make an empty store
 * @store: to be filled in; zeroed by the caller.
 * @nr_slots: number of slots, above 0.
 *
 * Context: Process, may sleep.
 * Return: 0, or -ENOMEM; then nothing is left to be freed.
 */
int fleece_store_init(struct fleece_store *store, u32 nr_slots);

/**
 * fleece_store_exit() - free what a store holds
 * @store: a store that fleece_store_init() made.
 */
void fleece_store_exit(struct fleece_store *store);

/**
 * fleece_store_growth_init() - find the memory for more slots
 * @growth: to be filled in.
 * @store: the store. Another growth of it must not be under way.
 * @nr_slots: more than it has.
 *
 * Context: Process, may sleep; the store's lock is not needed.
 * Return: 0, or -ENOMEM; then nothing is left to be freed.
 */
int fleece_store_growth_init(struct fleece_store_growth *growth, const struct fleece_store *store,
			     u32 nr_slots);

/**
 * fleece_store_growth_exit() - free what a growth holds
 * @growth: from fleece_store_growth_init(), used or not.
 *
 * Context: Process, may sleep.
 */
void fleece_store_growth_exit(struct fleece_store_growth *growth);

/**
 * fleece_store_grow() - use the memory
 * @store: the store.
 * @growth: its growth; holds the old memory afterwards.
 *
 * Copies a bit for each slot and a pointer for each page of entries that there
 * are: 0.6 MiB for a million slots. fleece_store_move() has to be called until it
 * has ended; meanwhile the store can be used.
 */
void fleece_store_grow(struct fleece_store *store, struct fleece_store_growth *growth);

/**
 * fleece_store_move() - move some owners into the new hash chains
 * @store: the store.
 * @growth: the growth that the store was grown with.
 * @count: chains to move at the most, above 0.
 *
 * Return: false when there is nothing left to move.
 */
bool fleece_store_move(struct fleece_store *store, struct fleece_store_growth *growth, u32 count);

/**
 * fleece_store_refill() - have a page of entries ready
 * @store: the store.
 * @gfp: how to allocate.
 *
 * fleece_store_alloc() never allocates. It takes a spare page each time it
 * enters a part of the store that was not used before.
 *
 * Context: As @gfp allows.
 * Return: a page to hand to fleece_store_add_spare(); NULL when there are enough
 * or none is to be had.
 */
void *fleece_store_refill(struct fleece_store *store, gfp_t gfp);

/**
 * fleece_store_add_spare() - give the store a page
 * @store: the store.
 * @page: from fleece_store_refill(), may be NULL. Owned by the store from now on.
 */
void fleece_store_add_spare(struct fleece_store *store, void *page);

/**
 * fleece_store_alloc() - take contiguous slots
 * @store: the store.
 * @want: how many at the most, above 0.
 * @slot: set to the first one.
 *
 * Return: how many were taken from *@slot on, 1 to @want; -ENOSPC when none is
 * free; -EAGAIN when a spare page is needed first.
 */
int fleece_store_alloc(struct fleece_store *store, unsigned int want, u32 *slot);

/**
 * fleece_store_free() - give back a slot that is taken and not owned
 * @store: the store.
 * @slot: the slot.
 */
void fleece_store_free(struct fleece_store *store, u32 slot);

/**
 * fleece_store_avoid() - give back a slot that could not be written
 * @store: the store.
 * @slot: taken and not owned.
 *
 * It is used again only when no slot above it is free: a bad place on the
 * device does not spoil one cluster after the other, and a device that failed for
 * a while is not lost. The same holds for slots below it that come free later.
 */
void fleece_store_avoid(struct fleece_store *store, u32 slot);

/**
 * fleece_store_insert() - a cluster becomes the owner of a taken slot
 * @store: the store.
 * @cluster: owns no slot yet.
 * @slot: from fleece_store_alloc().
 */
void fleece_store_insert(struct fleece_store *store, cluster_t cluster, u32 slot);

/**
 * fleece_store_lookup() - the slot of a cluster
 * @store: the store.
 * @cluster: the cluster.
 *
 * Return: its slot, or FLEECE_SLOT_NONE.
 */
u32 fleece_store_lookup(struct fleece_store *store, cluster_t cluster);

/**
 * fleece_store_remove() - a cluster gives up its slot, which becomes free
 * @store: the store.
 * @cluster: the cluster.
 *
 * Return: true if it had one.
 */
bool fleece_store_remove(struct fleece_store *store, cluster_t cluster);

#endif
