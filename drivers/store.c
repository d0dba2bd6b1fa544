// SPDX-License-Identifier: GPL-2.0-only
/*
 * store: which slot of the COW device holds which cluster, see store.h. Owns
 * the map in memory, not the device; does no I/O and takes no lock.
 */
#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/hash.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "bits.h"
#include "map.h"
#include "store.h"

/*
 * An entry belongs to a slot, not to a cluster: the hash chains link slots. So
 * the memory follows the slots in use, which are the lowest ones.
 */
struct fleece_slot_entry {
	cluster_t cluster;
	u32 next;
	u32 reserved;
};

#define ENTRIES_PER_PAGE	(PAGE_SIZE / sizeof(struct fleece_slot_entry))
#define HASH_BITS_MIN		8
#define HASH_BITS_MAX		26

static struct fleece_slot_entry *slot_entry(struct fleece_store *store, u32 slot)
{
	return &store->pages[slot / ENTRIES_PER_PAGE][slot % ENTRIES_PER_PAGE];
}

static u32 *hash_head(struct fleece_store *store, cluster_t cluster)
{
	u32 chain = hash_64(cluster, store->hash_bits);

	if (store->next_heads && chain < store->nr_moved)
		return &store->next_heads[hash_64(cluster, store->next_hash_bits)];
	return &store->heads[chain];
}

static unsigned int hash_bits_for(u32 nr_slots)
{
	return clamp(ilog2(nr_slots) - 1, HASH_BITS_MIN, HASH_BITS_MAX);
}

static u32 nr_groups(u32 nr_slots)
{
	/* Not DIV_ROUND_UP(), too large for 32 bits: 16 TiB have 2^32 - 256 slots of 4 KiB. */
	return nr_slots ? (nr_slots - 1) / FLEECE_STORE_GROUP + 1 : 0;
}

static u32 nr_entry_pages(u32 nr_slots)
{
	return nr_slots ? (nr_slots - 1) / ENTRIES_PER_PAGE + 1 : 0;
}

/* Empty chains, or NULL. */
static u32 *alloc_heads(unsigned int hash_bits)
{
	u32 *heads = fleece_map_alloc(1U << hash_bits, sizeof(*heads));
	u32 i;

	for (i = 0; heads && i < 1U << hash_bits; i++)
		heads[i] = FLEECE_SLOT_NONE;
	return heads;
}

int fleece_store_init(struct fleece_store *store, u32 nr_slots)
{
	store->nr_slots = nr_slots;
	store->avoided = FLEECE_SLOT_NONE;
	store->nr_pages = nr_entry_pages(nr_slots);
	store->hash_bits = hash_bits_for(nr_slots);

	store->bits = fleece_bits_alloc(nr_slots);
	store->full = fleece_bits_alloc(nr_groups(nr_slots));
	store->heads = alloc_heads(store->hash_bits);
	store->pages = fleece_map_alloc(store->nr_pages, sizeof(*store->pages));
	if (!store->bits || !store->full || !store->heads || !store->pages) {
		fleece_store_exit(store);
		return -ENOMEM;
	}
	return 0;
}

void fleece_store_exit(struct fleece_store *store)
{
	u32 i;

	if (store->pages) {
		/* Pages are made in order: the first missing one ends them. */
		for (i = 0; i < store->nr_pages && store->pages[i]; i++)
			free_page((unsigned long)store->pages[i]);
	}
	while (store->nr_spares)
		free_page((unsigned long)store->spares[--store->nr_spares]);
	vfree(store->pages);
	vfree(store->heads);
	vfree(store->full);
	vfree(store->bits);
	memset(store, 0, sizeof(*store));
}

int fleece_store_growth_init(struct fleece_store_growth *growth, const struct fleece_store *store,
			     u32 nr_slots)
{
	bool has_heads;

	growth->nr_slots = nr_slots;
	growth->nr_pages = nr_entry_pages(nr_slots);
	growth->hash_bits = hash_bits_for(nr_slots);
	growth->bits = fleece_bits_alloc(nr_slots);
	growth->full = fleece_bits_alloc(nr_groups(nr_slots));
	growth->pages = fleece_map_alloc(growth->nr_pages, sizeof(*growth->pages));
	growth->heads = NULL;
	has_heads = growth->hash_bits == store->hash_bits;
	if (!has_heads) {
		growth->heads = alloc_heads(growth->hash_bits);
		has_heads = growth->heads;
	}
	if (!growth->bits || !growth->full || !growth->pages || !has_heads) {
		fleece_store_growth_exit(growth);
		return -ENOMEM;
	}
	return 0;
}

void fleece_store_growth_exit(struct fleece_store_growth *growth)
{
	vfree(growth->heads);
	vfree(growth->pages);
	vfree(growth->full);
	vfree(growth->bits);
	memset(growth, 0, sizeof(*growth));
}

void fleece_store_grow(struct fleece_store *store, struct fleece_store_growth *growth)
{
	/* Live writes wait meanwhile, so no more than there is anything in. */
	memcpy(growth->bits, store->bits, BITS_TO_LONGS(store->end) * sizeof(unsigned long));
	/* The last group is going to be longer. */
	memcpy(growth->full, store->full,
	       BITS_TO_LONGS(nr_groups(store->end)) * sizeof(unsigned long));
	fleece_bits_assign(growth->full, (store->nr_slots - 1) / FLEECE_STORE_GROUP, false);
	memcpy(growth->pages, store->pages,
	       DIV_ROUND_UP(store->end, ENTRIES_PER_PAGE) * sizeof(*store->pages));
	swap(growth->bits, store->bits);
	swap(growth->full, store->full);
	swap(growth->pages, store->pages);
	swap(growth->nr_pages, store->nr_pages);
	store->nr_slots = growth->nr_slots;
	store->next_heads = growth->heads;
	store->next_hash_bits = growth->hash_bits;
	store->nr_moved = 0;
	growth->heads = NULL;
}

/* Empty one chain of the old ones into the new ones. */
static void move_chain(struct fleece_store *store, u32 chain)
{
	struct fleece_slot_entry *entry;
	u32 next;
	u32 slot;
	u32 *head;

	for (slot = store->heads[chain]; slot != FLEECE_SLOT_NONE; slot = next) {
		entry = slot_entry(store, slot);
		next = entry->next;
		head = &store->next_heads[hash_64(entry->cluster, store->next_hash_bits)];
		entry->next = *head;
		*head = slot;
	}
	store->heads[chain] = FLEECE_SLOT_NONE;
}

bool fleece_store_move(struct fleece_store *store, struct fleece_store_growth *growth, u32 count)
{
	u32 nr_heads = 1U << store->hash_bits;

	if (!store->next_heads)
		return false;
	for (; count && store->nr_moved < nr_heads; count--)
		move_chain(store, store->nr_moved++);
	if (store->nr_moved < nr_heads)
		return true;
	growth->heads = store->heads;
	store->heads = store->next_heads;
	store->hash_bits = store->next_hash_bits;
	store->next_heads = NULL;
	return false;
}

void *fleece_store_refill(struct fleece_store *store, gfp_t gfp)
{
	if (READ_ONCE(store->nr_spares) >= FLEECE_STORE_SPARES)
		return NULL;
	return (void *)__get_free_page(gfp);
}

void fleece_store_add_spare(struct fleece_store *store, void *page)
{
	if (store->nr_spares >= FLEECE_STORE_SPARES) {
		free_page((unsigned long)page);
		return;
	}
	if (!page)
		return;
	store->spares[store->nr_spares] = page;
	WRITE_ONCE(store->nr_spares, store->nr_spares + 1);
}

/* Have entries for @slot, if need be by using a spare page. */
static bool have_entries(struct fleece_store *store, u32 slot)
{
	struct fleece_slot_entry **page = &store->pages[slot / ENTRIES_PER_PAGE];

	if (!*page && store->nr_spares) {
		WRITE_ONCE(store->nr_spares, store->nr_spares - 1);
		*page = store->spares[store->nr_spares];
	}
	return *page;
}

/* The first free slot from @from on, or @nr_slots. */
static u32 next_free(struct fleece_store *store, u64 from)
{
	u64 group, first, end, slot;

	while (from < store->nr_slots) {
		group = from / FLEECE_STORE_GROUP;
		first = group * FLEECE_STORE_GROUP;
		end = min((u64)store->nr_slots, first + FLEECE_STORE_GROUP);
		if (!fleece_bits_test(store->full, group)) {
			slot = find_next_zero_bit(store->bits, end, from);
			if (slot < end)
				return slot;
			if (from == first)
				fleece_bits_assign(store->full, group, true);
		}
		group = find_next_zero_bit(store->full, nr_groups(store->nr_slots), group + 1);
		from = group * FLEECE_STORE_GROUP;
	}
	return store->nr_slots;
}

/* Slots from @first to before @end were taken: groups that end among them may be full. */
static void close_groups(struct fleece_store *store, u64 first, u64 end)
{
	u64 group;

	for (group = first / FLEECE_STORE_GROUP; group < end / FLEECE_STORE_GROUP; group++)
		next_free(store, group * FLEECE_STORE_GROUP);
}

int fleece_store_alloc(struct fleece_store *store, unsigned int want, u32 *slot)
{
	unsigned long first;
	unsigned long end;
	unsigned long s;

	first = next_free(store, store->lowest);
	if (first >= store->nr_slots && store->avoided != FLEECE_SLOT_NONE) {
		first = next_free(store, store->avoided);
		store->avoided = FLEECE_SLOT_NONE;
	}
	if (first >= store->nr_slots) {
		store->lowest = store->nr_slots;
		return -ENOSPC;
	}
	store->lowest = first;

	end = min_t(unsigned long, first + want, store->nr_slots);
	end = find_next_bit(store->bits, end, first);
	for (s = first; s < end; s++) {
		if (!have_entries(store, s))
			break;
		fleece_bits_assign(store->bits, s, true);
	}
	if (s == first)
		return -EAGAIN;

	close_groups(store, first, s);
	*slot = first;
	store->lowest = s;
	if (s > store->end)
		store->end = s;
	store->used += s - first;
	return s - first;
}

static void give_back(struct fleece_store *store, u32 slot)
{
	fleece_bits_assign(store->bits, slot, false);
	fleece_bits_assign(store->full, slot / FLEECE_STORE_GROUP, false);
	store->used--;
}

void fleece_store_free(struct fleece_store *store, u32 slot)
{
	give_back(store, slot);
	/* Going back to a slot below one that is avoided would lead to that one again. */
	if (store->avoided != FLEECE_SLOT_NONE && slot < store->lowest)
		store->avoided = min(store->avoided, slot);
	else
		store->lowest = min(store->lowest, slot);
}

void fleece_store_avoid(struct fleece_store *store, u32 slot)
{
	give_back(store, slot);
	/* What is free between the two is not looked at either, so it counts as avoided. */
	store->avoided = min(store->avoided, store->lowest);
	store->avoided = min(store->avoided, slot);
	store->lowest = max(store->lowest, slot + 1);
}

void fleece_store_insert(struct fleece_store *store, cluster_t cluster, u32 slot)
{
	struct fleece_slot_entry *entry = slot_entry(store, slot);
	u32 *head = hash_head(store, cluster);

	entry->cluster = cluster;
	entry->next = *head;
	*head = slot;
}

/* The link that names the slot of @cluster, or the end of its chain. */
static u32 *find_link(struct fleece_store *store, cluster_t cluster)
{
	u32 *link = hash_head(store, cluster);

	while (*link != FLEECE_SLOT_NONE && slot_entry(store, *link)->cluster != cluster)
		link = &slot_entry(store, *link)->next;
	return link;
}

u32 fleece_store_lookup(struct fleece_store *store, cluster_t cluster)
{
	return *find_link(store, cluster);
}

bool fleece_store_remove(struct fleece_store *store, cluster_t cluster)
{
	u32 *link = find_link(store, cluster);
	u32 slot = *link;

	if (slot == FLEECE_SLOT_NONE)
		return false;
	*link = slot_entry(store, slot)->next;
	fleece_store_free(store, slot);
	return true;
}
