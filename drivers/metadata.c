// SPDX-License-Identifier: GPL-2.0-only
/*
 * metadata: the protocol of the metadata device, see metadata.h; why it is right stands
 * in docs/metadata.rst. Owns the intents and the order of all writes.
 */
#include <asm/byteorder.h>
#include <linux/bitops.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/log2.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "metadata.h"

/* Words of a bitmap that become one block: the lock is not held for more at a time. */
#define BLOCK_BITS	((u64)FLEECE_MD_BLOCK_SECTORS * FLEECE_MD_MAP_BITS)
#define BLOCK_WORDS	(BLOCK_BITS / BITS_PER_LONG)
/* Blocks of a long operation between two offers to grants. */
#define BLOCKS_PER_TURN	16

static_assert(FLEECE_METADATA_READ_BLOCKS * FLEECE_MD_BLOCK_BYTES >= FLEECE_MD_COPY_BYTES);

/* ------------------------- Words ------------------------- */

static u64 nr_words(u64 bits)
{
	return BITS_TO_LONGS(bits);
}

/* End of the words of a block, in a bitmap of so many. */
static u64 block_end(u64 block, u64 words)
{
	return min((block + 1) * BLOCK_WORDS, words);
}

static u64 region_words(const struct fleece_metadata *md)
{
	return nr_words(md->layout.nr_regions);
}

static u64 intent_blocks(const struct fleece_metadata *md)
{
	return md->layout.intent_sectors / FLEECE_MD_BLOCK_SECTORS;
}

static u64 region_of(const struct fleece_metadata *md, u64 granule)
{
	return granule >> md->region_shift;
}

/* The block of a map that a bit is in. */
static u64 block_of(u64 bit)
{
	return div_u64(bit, BLOCK_BITS);
}

/* Beyond the end of a view, which a block of the device has room for, all is clear. */
static unsigned long view_word(const struct fleece_view *view, u64 index)
{
	return index < nr_words(view->nr_bits) ? fleece_view_word(view, index) : 0;
}

static u64 view_word64(const struct fleece_view *view, u64 index)
{
#if BITS_PER_LONG == 64
	return view_word(view, index);
#else
	return view_word(view, 2 * index) | (u64)view_word(view, 2 * index + 1) << 32;
#endif
}

/* ------------------------- Blocks ------------------------- */

/* Fill md->block with a block of a map. Returns false if it has no bit set. */
static bool encode_block(struct fleece_metadata *md, const struct fleece_view *view, u64 block,
			 u64 start, u32 tag)
{
	u64 sector = block * FLEECE_MD_BLOCK_SECTORS;
	struct fleece_md_map *map = (struct fleece_md_map *)md->block;
	unsigned int i, k;
	u64 any = 0;
	u64 word;

	for (i = 0; i < FLEECE_MD_BLOCK_SECTORS; i++) {
		for (k = 0; k < FLEECE_MD_MAP_WORDS; k++) {
			word = view_word64(view, (sector + i) * FLEECE_MD_MAP_WORDS + k);
			map[i].words[k] = __cpu_to_le64(word);
			any |= word;
		}
		fleece_md_seal(md->root.uuid, start + sector + i, tag, &map[i]);
	}
	return any;
}

static int write_block(struct fleece_metadata *md, u64 block, u64 start)
{
	WRITE_ONCE(md->nr_blocks, md->nr_blocks + 1);
	return md->io->write(md->context, start + block * FLEECE_MD_BLOCK_SECTORS, md->block,
			     FLEECE_MD_BLOCK_SECTORS);
}

static int write_intents(struct fleece_metadata *md, u64 block)
{
	struct fleece_view view = {
		.maps = &md->written, .nr_maps = 1, .nr_bits = md->layout.nr_regions,
	};

	encode_block(md, &view, block, FLEECE_MD_INTENTS_START, md->root.generation);
	return write_block(md, block, FLEECE_MD_INTENTS_START);
}

/* ------------------------- Commit and failure ------------------------- */

/* Which copy the next commit writes. */
static unsigned int next_copy(const struct fleece_metadata *md)
{
	return (md->root.generation + 1) % FLEECE_METADATA_COPIES;
}

static int commit(struct fleece_metadata *md)
{
	unsigned int sectors;
	int ret = md->io->flush(md->context);

	if (ret)
		return ret;
	if (md->root.generation >= FLEECE_MD_NUMBER_MAX)
		return -EOVERFLOW;
	md->marks &= ~(1U << next_copy(md));
	/* Counted up with the attempt: one that may yet arrive is older than the next. */
	md->root.generation++;
	if (md->root.state == FLEECE_MD_CLEAN)
		md->root.base = md->root.generation;
	md->root.written = ktime_get_real_seconds();
	sectors = fleece_md_encode(&md->root, md->copy);
	WRITE_ONCE(md->nr_blocks, md->nr_blocks + sectors / FLEECE_MD_BLOCK_SECTORS);
	ret = md->io->write(md->context, fleece_md_copy_start(md->root.generation), md->copy,
			    sectors);
	return ret ?: md->io->flush(md->context);
}

/* So that none of the copies, read alone, says what was true before. */
static int commit_both(struct fleece_metadata *md)
{
	return commit(md) ?: commit(md);
}

/*
 * Both copies say it, so that none of them, read alone, does not. One that does is left
 * alone: were it written again and torn, and the other one cannot be written, nothing
 * would be left that says it.
 */
static void mark_failure(struct fleece_metadata *md)
{
	unsigned int i, copy;

	md->root.state = FLEECE_MD_INVALID;
	for (i = 0; i < FLEECE_METADATA_COPIES; i++) {
		copy = next_copy(md);
		if (!(md->marks & 1U << copy))
			md->marks |= !commit(md) << copy;
		else if (md->root.generation < FLEECE_MD_NUMBER_MAX)
			md->root.generation++;
	}
}

/* The device may have come back since. Returns the failure. */
static int retry_mark(struct fleece_metadata *md)
{
	if (md->marks != FLEECE_METADATA_MARKED)
		mark_failure(md);
	return md->error;
}

static void resume_all(struct fleece_metadata *md)
{
	struct list_head waiters;

	INIT_LIST_HEAD(&waiters);
	spin_lock(&md->lock);
	list_splice_init(&md->waiting, &waiters);
	spin_unlock(&md->lock);
	if (!list_empty(&waiters))
		md->io->resume(md->context, &waiters);
}

void fleece_metadata_fail(struct fleece_metadata *md, int error)
{
	if (!md->error) {
		/* While they wait, everything on the device is true: so at first the mark. */
		mark_failure(md);
		spin_lock(&md->lock);
		WRITE_ONCE(md->error, error);
		spin_unlock(&md->lock);
	}
	resume_all(md);
}

/* The result of an operation: an error is the end of the metadata. */
static int fail_on_error(struct fleece_metadata *md, int ret)
{
	if (ret)
		fleece_metadata_fail(md, ret);
	return ret;
}

/* ------------------------- The way of a live write ------------------------- */

static void ask_intent(struct fleece_metadata *md, u64 region)
{
	lockdep_assert_held(&md->lock);
	fleece_bits_assign(md->wanted, region, true);
	fleece_bits_assign(md->asked, block_of(region), true);
	if (!md->is_wanting) {
		WRITE_ONCE(md->is_wanting, true);
		md->io->kick(md->context);
	}
}

static bool mark_region(struct fleece_metadata *md, unsigned long *live, u64 region, u64 first,
			u64 last)
{
	bool may_go;

	spin_lock(&md->lock);
	may_go = md->error || fleece_bits_test(md->granted, region);
	if (may_go) {
		fleece_bits_set_range(live, first, last);
		fleece_bits_assign(md->dirty, region, true);
		fleece_bits_assign(md->recent, region, true);
	} else {
		ask_intent(md, region);
	}
	spin_unlock(&md->lock);
	return may_go;
}

static bool all_set(const unsigned long *bits, u64 first, u64 last)
{
	while (first <= last && fleece_bits_test(bits, first))
		first++;
	return first > last;
}

bool fleece_metadata_mark(struct fleece_metadata *md, unsigned long *live, u64 first, u64 last)
{
	u64 region = region_of(md, first);
	bool may_go = true;
	u64 end;

	if (!live)
		return true;
	for (; first <= last; first = end + 1, region++) {
		end = min(((region + 1) << md->region_shift) - 1, last);
		if (all_set(live, first, end))
			continue;
		/* All that are missing are asked for: one grant will serve the write. */
		if (!mark_region(md, live, region, first, end))
			may_go = false;
	}
	return may_go;
}

bool fleece_metadata_wait(struct fleece_metadata *md, u64 first, u64 last,
			  struct list_head *waiter)
{
	bool waits = false;
	u64 region;

	spin_lock(&md->lock);
	for (region = region_of(md, first); region <= region_of(md, last); region++) {
		if (md->error || fleece_bits_test(md->granted, region))
			continue;
		ask_intent(md, region);
		waits = true;
	}
	if (waits)
		list_add_tail(waiter, &md->waiting);
	spin_unlock(&md->lock);
	return waits;
}

/* ------------------------- Grant ------------------------- */

/* Add what is wanted to what a block of intents will say. */
static bool take_wanted(struct fleece_metadata *md, u64 block)
{
	u64 end = block_end(block, region_words(md));
	unsigned long fresh = 0;
	u64 i;

	fleece_bits_assign(md->taken, block, true);
	spin_lock(&md->lock);
	fleece_bits_assign(md->asked, block, false);
	for (i = block * BLOCK_WORDS; i < end; i++) {
		fresh |= md->wanted[i] & ~md->written[i];
		md->written[i] |= md->wanted[i];
	}
	spin_unlock(&md->lock);
	return fresh;
}

/* What is wanted and was written is durable now. */
static void give_granted(struct fleece_metadata *md, u64 block)
{
	u64 end = block_end(block, region_words(md));
	unsigned int count = 0;
	unsigned long word;
	u64 i;

	fleece_bits_assign(md->taken, block, false);
	spin_lock(&md->lock);
	for (i = block * BLOCK_WORDS; i < end; i++) {
		word = md->wanted[i] & md->written[i];
		count += hweight_long(word & ~md->granted[i]);
		md->granted[i] |= word;
		md->recent[i] |= word;
		md->wanted[i] &= ~word;
	}
	WRITE_ONCE(md->nr_granted, md->nr_granted + count);
	spin_unlock(&md->lock);
}

static u64 next_asked(struct fleece_metadata *md, u64 block)
{
	spin_lock(&md->lock);
	block = find_next_bit(md->asked, intent_blocks(md), block);
	spin_unlock(&md->lock);
	return block;
}

/* Of an origin of many TiB, only the blocks that somebody has asked for are looked at. */
static int write_wanted(struct fleece_metadata *md)
{
	u64 blocks = intent_blocks(md);
	bool has_written = false;
	int ret = 0;
	u64 block;

	for (block = next_asked(md, 0); block < blocks && !ret; block = next_asked(md, block + 1)) {
		if (!take_wanted(md, block))
			continue;
		has_written = true;
		ret = write_intents(md, block);
	}
	if (ret || !has_written)
		return ret;
	WRITE_ONCE(md->nr_grants, md->nr_grants + 1);
	return md->io->flush(md->context);
}

static void give_all(struct fleece_metadata *md)
{
	u64 blocks = intent_blocks(md);
	u64 block;

	block = find_next_bit(md->taken, blocks, 0);
	for (; block < blocks; block = find_next_bit(md->taken, blocks, block + 1))
		give_granted(md, block);
}

void fleece_metadata_grant(struct fleece_metadata *md)
{
	int ret;

	spin_lock(&md->lock);
	WRITE_ONCE(md->is_wanting, false);
	spin_unlock(&md->lock);
	if (!md->error) {
		ret = write_wanted(md);
		if (ret) {
			fleece_metadata_fail(md, ret);
			return;
		}
		give_all(md);
	}
	resume_all(md);
}

/* Between the blocks of a long operation. Returns the failure, if there was one. */
static int give_way(struct fleece_metadata *md)
{
	if (READ_ONCE(md->is_wanting))
		fleece_metadata_grant(md);
	return md->error;
}

/* ------------------------- Fine bits ------------------------- */

/* Select regions with new fine bits. */
static void select_dirty(struct fleece_metadata *md, bool forget)
{
	u64 words = region_words(md);
	u64 block, end, i;

	for (block = 0; block < intent_blocks(md); block++) {
		end = block_end(block, words);
		spin_lock(&md->lock);
		for (i = block * BLOCK_WORDS; i < end; i++) {
			md->selected[i] = md->dirty[i];
			if (forget)
				md->dirty[i] = 0;
		}
		spin_unlock(&md->lock);
		cond_resched();
	}
}

/* Select the regions of some granules. */
static void select_granules(struct fleece_metadata *md, u64 first, u64 end)
{
	memset(md->selected, 0, region_words(md) * sizeof(unsigned long));
	if (first < end)
		fleece_bits_fill(md->selected, region_of(md, first), region_of(md, end - 1) + 1);
}

/* Write the blocks from *@block on that region @region needs, and leave the next one there. */
static int write_region(struct fleece_metadata *md, const struct fleece_view *view,
			const struct fleece_md_checkpoint *checkpoint, u64 region, u64 *block)
{
	u64 start = fleece_md_fine_start(&md->layout, checkpoint->slot);
	u64 first = region << md->region_shift;
	u64 end = min((region + 1) << md->region_shift, md->nr_granules);
	int ret = 0;

	if (first >= end)
		return 0;
	*block = max(*block, block_of(first));
	for (; *block <= block_of(end - 1) && !ret; (*block)++) {
		encode_block(md, view, *block, start, checkpoint->segment);
		ret = write_block(md, *block, start);
		cond_resched();
		if (!ret && md->nr_blocks % BLOCKS_PER_TURN == 0)
			ret = give_way(md);
	}
	return ret;
}

/*
 * All that was changed since a checkpoint. To be asked for after regions were selected:
 * a bit that is set later makes its region dirty again.
 */
static int get_changes(struct fleece_metadata *md, u32 index, struct fleece_view *view)
{
	return md->io->since(md->context, md->root.checkpoints[index].name, view);
}

/*
 * Write the fine bits of the selected regions for a checkpoint. What has been written, or
 * has failed, which is the end of all, is no longer selected. @has_stopped: NULL, or to be
 * set if somebody else wanted to be the worker before the end. Ends the view.
 */
static int write_some(struct fleece_metadata *md, u32 index, const struct fleece_view *view,
		      bool *has_stopped)
{
	const struct fleece_md_checkpoint *checkpoint = &md->root.checkpoints[index];
	u64 nr_regions = md->layout.nr_regions;
	u64 region, block = 0;
	int ret = 0;

	region = find_next_bit(md->selected, nr_regions, 0);
	while (region < nr_regions && !ret) {
		if (has_stopped && md->io->is_wanted(md->context)) {
			*has_stopped = true;
			break;
		}
		ret = write_region(md, view, checkpoint, region, &block);
		fleece_bits_assign(md->selected, region, false);
		region = find_next_bit(md->selected, nr_regions, region + 1);
	}
	md->io->done(md->context);
	return ret;
}

static int write_selected(struct fleece_metadata *md, u32 index, const struct fleece_view *view)
{
	return write_some(md, index, view, NULL);
}

/* ------------------------- Settle ------------------------- */

/* Take back the intents of a block that are not needed. Returns true if there are any. */
static bool take_back(struct fleece_metadata *md, u64 block)
{
	u64 end = block_end(block, region_words(md));
	unsigned int count = 0;
	unsigned long any = 0;
	unsigned long idle;
	u64 i;

	spin_lock(&md->lock);
	for (i = block * BLOCK_WORDS; i < end; i++) {
		/* Wanted or not: without its bit in granted a write waits for the next grant. */
		idle = md->written[i] & ~md->recent[i] & ~md->dirty[i];
		md->recent[i] = 0;
		count += hweight_long(idle & md->granted[i]);
		md->granted[i] &= ~idle;
		md->written[i] &= ~idle;
		any |= idle;
	}
	WRITE_ONCE(md->nr_granted, md->nr_granted - count);
	spin_unlock(&md->lock);
	return any;
}

static int take_back_intents(struct fleece_metadata *md)
{
	bool has_written = false;
	int ret = 0;
	u64 block;

	for (block = 0; block < intent_blocks(md) && !ret; block++) {
		cond_resched();
		if (!take_back(md, block))
			continue;
		has_written = true;
		ret = write_intents(md, block);
	}
	if (ret || !has_written)
		return ret;
	/* The next grant may write the same block: not before this has arrived. */
	return md->io->flush(md->context);
}

/* What is selected was not written. */
static void unselect(struct fleece_metadata *md)
{
	u64 words = region_words(md);
	u64 block, end, i;

	for (block = 0; block < intent_blocks(md); block++) {
		end = block_end(block, words);
		spin_lock(&md->lock);
		for (i = block * BLOCK_WORDS; i < end; i++) {
			if (md->selected[i])
				md->dirty[i] |= md->selected[i];
		}
		spin_unlock(&md->lock);
		cond_resched();
	}
}

int fleece_metadata_settle(struct fleece_metadata *md)
{
	u32 newest = md->root.nr_checkpoints - 1;
	bool has_stopped = false;
	struct fleece_view view;
	int ret = 0;

	if (md->error)
		return retry_mark(md);
	if (md->is_creating)
		return 0;
	select_dirty(md, true);
	if (md->root.nr_checkpoints) {
		ret = get_changes(md, newest, &view);
		if (ret) {
			unselect(md);
			return ret;
		}
		ret = write_some(md, newest, &view, &has_stopped);
		/* These keep their intents. */
		if (has_stopped)
			unselect(md);
	}
	if (!ret)
		ret = md->io->flush(md->context);
	return fail_on_error(md, ret ?: take_back_intents(md));
}

/* ------------------------- Checkpoints ------------------------- */

int fleece_metadata_begin_create(struct fleece_metadata *md)
{
	if (md->error)
		return md->error;
	if (md->root.nr_checkpoints >= md->root.nr_slots ||
	    md->root.next_segment >= FLEECE_MD_NUMBER_MAX)
		return -ENOSPC;
	md->is_creating = true;
	return 0;
}

void fleece_metadata_abort_create(struct fleece_metadata *md)
{
	md->is_creating = false;
}

static u32 free_slot(const struct fleece_md_root *root)
{
	u32 slot = 0;
	u32 i = 0;

	while (i < root->nr_checkpoints) {
		if (root->checkpoints[i++].slot == slot) {
			slot++;
			i = 0;
		}
	}
	return slot;
}

static void add_entry(struct fleece_metadata *md, const struct fleece_md_checkpoint *checkpoint)
{
	struct fleece_md_root *root = &md->root;
	struct fleece_md_checkpoint *entry = &root->checkpoints[root->nr_checkpoints];

	*entry = *checkpoint;
	entry->slot = free_slot(root);
	entry->segment = root->next_segment++;
	entry->is_invalid = false;
	root->nr_checkpoints++;
}

static void remove_entry(struct fleece_md_root *root, u32 index)
{
	root->nr_checkpoints--;
	memmove(&root->checkpoints[index], &root->checkpoints[index + 1],
		(root->nr_checkpoints - index) * sizeof(root->checkpoints[0]));
	memset(&root->checkpoints[root->nr_checkpoints], 0, sizeof(root->checkpoints[0]));
}

/* Write what the checkpoint before the new one has got, which nobody asks for later. */
static int write_previous(struct fleece_metadata *md)
{
	u32 newest = md->root.nr_checkpoints - 1;
	struct fleece_view view;
	int ret;

	if (!md->root.nr_checkpoints)
		return 0;
	/* They stay dirty: what came after the point in time belongs into the new slot. */
	select_dirty(md, false);
	ret = get_changes(md, newest, &view);
	return ret ?: fail_on_error(md, write_selected(md, newest, &view));
}

int fleece_metadata_create(struct fleece_metadata *md,
			   const struct fleece_md_checkpoint *checkpoint)
{
	int ret = md->error ?: write_previous(md);

	if (ret == -EBUSY && !md->error)
		return ret;
	if (!ret) {
		add_entry(md, checkpoint);
		ret = commit(md);
		if (ret)
			remove_entry(&md->root, md->root.nr_checkpoints - 1);
		fail_on_error(md, ret);
	}
	md->is_creating = false;
	return ret;
}

static u32 find_entry(const struct fleece_md_root *root, const char *name)
{
	u32 i;

	for (i = 0; i < root->nr_checkpoints; i++) {
		if (!strcmp(root->checkpoints[i].name, name))
			break;
	}
	return i;
}

/* Write all that was changed since a checkpoint to its own slot. */
static int write_since(struct fleece_metadata *md, u32 index)
{
	struct fleece_view view;
	int ret = get_changes(md, index, &view);

	if (ret)
		return ret;
	select_granules(md, 0, md->nr_granules);
	return fail_on_error(md, write_selected(md, index, &view));
}

int fleece_metadata_delete(struct fleece_metadata *md, const char *name)
{
	u32 index = find_entry(&md->root, name);
	bool is_newest;
	int ret = 0;

	if (md->error)
		return md->error;
	if (index == md->root.nr_checkpoints)
		return -ENOENT;
	if (index)
		ret = write_since(md, index - 1);
	if (ret)
		return ret;
	remove_entry(&md->root, index);
	/*
	 * Its bits are those of the one before it now, and a write to one of them needs no
	 * intent. Were the newest one back, it would miss that write.
	 */
	is_newest = index == md->root.nr_checkpoints;
	return fail_on_error(md, is_newest ? commit_both(md) : commit(md));
}

/* ------------------------- Size ------------------------- */

static void set_size(struct fleece_metadata *md, u64 nr_sectors)
{
	md->root.origin_sectors = nr_sectors;
	md->nr_granules = (nr_sectors + (1ULL << md->granule_shift) - 1) >> md->granule_shift;
}

int fleece_metadata_resize(struct fleece_metadata *md, u64 nr_sectors)
{
	u64 first_new = md->root.origin_sectors >> md->granule_shift;
	bool is_growing = nr_sectors > md->root.origin_sectors;
	u32 newest = md->root.nr_checkpoints - 1;
	struct fleece_view view;
	int ret = 0;

	if (md->error)
		return md->error;
	if (nr_sectors > md->root.capacity_sectors)
		return -ENOSPC;
	set_size(md, nr_sectors);
	if (is_growing && md->root.nr_checkpoints) {
		ret = get_changes(md, newest, &view);
		if (!ret) {
			select_granules(md, first_new, md->nr_granules);
			ret = write_selected(md, newest, &view);
		}
	}
	return fail_on_error(md, ret ?: commit(md));
}

/* ------------------------- Open ------------------------- */

static int decode_copy(struct fleece_metadata *md, unsigned int index, struct fleece_md_root *root,
		       const char **error)
{
	int ret = md->io->read(md->context, fleece_md_copy_start(index), md->copy,
			       FLEECE_MD_COPY_SECTORS);

	*error = "it cannot be read";
	return ret ? -EIO : fleece_md_decode(md->copy, index, root, error);
}

static int read_root(struct fleece_metadata *md, const char **error)
{
	struct fleece_md_root *other = kvcalloc(1, sizeof(*other), GFP_KERNEL);
	u64 generations[2];
	const char *errors[2];
	int results[2];
	int chosen;

	if (!other)
		return -ENOMEM;
	results[0] = decode_copy(md, 0, &md->root, &errors[0]);
	results[1] = decode_copy(md, 1, other, &errors[1]);
	generations[0] = md->root.generation;
	generations[1] = other->generation;
	md->marks = !results[0] && md->root.state == FLEECE_MD_INVALID;
	md->marks |= (!results[1] && other->state == FLEECE_MD_INVALID) << 1;
	chosen = fleece_md_choose(results, generations);
	if (chosen == 1)
		md->root = *other;
	kvfree(other);
	/* Of two that are bad, the one that is damaged says more than the one that is not there. */
	if (chosen < 0)
		chosen = results[0] == -ENODATA;
	*error = errors[chosen];
	return results[chosen];
}

static int check_origin(struct fleece_metadata *md, const struct fleece_metadata_origin *origin,
			const char **error)
{
	const struct fleece_md_root *root = &md->root;

	*error = NULL;
	if (!fleece_md_is_writable(root)) {
		*error = "it has features that are not known: it may only be read";
		return -EOPNOTSUPP;
	}
	fleece_md_layout(root, &md->layout);
	if (origin->device_sectors < md->layout.nr_sectors) {
		*error = "the device is smaller than its metadata";
		return -ENOSPC;
	}
	if (origin->granule_sectors != root->granule_sectors)
		*error = "it was made for another granularity";
	else if (origin->nr_sectors < root->origin_sectors)
		*error = "it was made for a larger origin";
	else if (origin->nr_sectors > root->origin_sectors)
		*error = "it was made for a smaller origin: load a table of the old length first";
	return *error ? -EINVAL : 0;
}

static void invalidate_all(struct fleece_md_root *root)
{
	u32 i;

	for (i = 0; i < root->nr_checkpoints; i++)
		root->checkpoints[i].is_invalid = true;
}

static bool has_invalid(const struct fleece_md_root *root)
{
	u32 i;

	for (i = 0; i < root->nr_checkpoints; i++) {
		if (root->checkpoints[i].is_invalid)
			return true;
	}
	return false;
}

/* Changes were missed, or somebody has written to the origin meanwhile. */
static void invalidate_checkpoints(struct fleece_metadata *md,
				   const struct fleece_metadata_origin *origin)
{
	struct fleece_md_root *root = &md->root;
	/* A start that cannot be read any more is not the same. */
	bool was_written = root->state == FLEECE_MD_CLEAN && root->has_head_hash &&
			   !(origin->has_head_hash && root->head_hash == origin->head_hash);

	if (root->state == FLEECE_MD_INVALID || was_written)
		invalidate_all(root);
}

static void free_maps(struct fleece_metadata *md)
{
	vfree(md->written);
	vfree(md->selected);
	vfree(md->granted);
	vfree(md->wanted);
	vfree(md->dirty);
	vfree(md->recent);
	vfree(md->asked);
	vfree(md->taken);
}

static int alloc_maps(struct fleece_metadata *md)
{
	unsigned long **maps[] = {
		&md->written, &md->selected, &md->granted, &md->wanted, &md->dirty, &md->recent,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		*maps[i] = fleece_bits_alloc(md->layout.nr_regions);
		if (!*maps[i])
			return -ENOMEM;
	}
	md->asked = fleece_bits_alloc(intent_blocks(md));
	md->taken = fleece_bits_alloc(intent_blocks(md));
	return md->asked && md->taken ? 0 : -ENOMEM;
}

static void add_word64(unsigned long *bits, u64 index, u64 word)
{
#if BITS_PER_LONG == 64
	bits[index] |= word;
#else
	bits[2 * index] |= (unsigned long)word;
	/* There is no such word in a bitmap that ends before it. */
	if (word >> 32)
		bits[2 * index + 1] |= word >> 32;
#endif
}

/* Add the bits of a sector to a bitmap, from bit @first on, a multiple of 64. */
static void add_bits(const struct fleece_md_map *map, unsigned long *bits, u64 first, u32 count)
{
	u32 words = count / 64;
	u64 index = first / 64;
	u32 i;

	for (i = 0; i < words; i++) {
		/* Of most sectors there are none; what is not touched stays out of the cache. */
		if (map->words[i])
			add_word64(bits, index + i, __le64_to_cpu(map->words[i]));
	}
	if (count % 64)
		add_word64(bits, index + words,
			   __le64_to_cpu(map->words[words]) & ((1ULL << count % 64) - 1));
}

/*
 * A block of a map, or NULL if it cannot be read. They are asked for one after the other,
 * from the first to that before @end, and read some at a time.
 */
static const void *fetch_block(struct fleece_metadata *md, u64 start, u64 block, u64 end)
{
	unsigned int index = block % FLEECE_METADATA_READ_BLOCKS;
	u64 sector = start + block * FLEECE_MD_BLOCK_SECTORS;
	unsigned int count;

	if (!index) {
		count = min(end - block, (u64)FLEECE_METADATA_READ_BLOCKS);
		md->nr_fetched = count;
		if (md->io->read(md->context, sector, md->window, count * FLEECE_MD_BLOCK_SECTORS))
			md->nr_fetched = 0;
	}
	if (index < md->nr_fetched)
		return md->window + index * FLEECE_MD_BLOCK_BYTES;
	/* One of them is to blame; the others can be read. */
	if (md->io->read(md->context, sector, md->block, FLEECE_MD_BLOCK_SECTORS))
		return NULL;
	return md->block;
}

/*
 * Read a block of a map into a bitmap; a sector that is bad counts as all set. Returns
 * how many are bad.
 */
static unsigned int read_block(struct fleece_metadata *md, u64 start, u64 block, u64 end,
			       u32 first_tag, u32 last_tag, unsigned long *bits, u64 nr_bits)
{
	const struct fleece_md_map *map = fetch_block(md, start, block, end);
	u64 sector = start + block * FLEECE_MD_BLOCK_SECTORS;
	bool is_readable = map;
	enum fleece_md_verdict verdict;
	u64 bit = block * BLOCK_BITS;
	unsigned int nr_bad = 0;
	unsigned int i;
	u64 count;

	for (i = 0; i < FLEECE_MD_BLOCK_SECTORS && bit < nr_bits; i++) {
		verdict = FLEECE_MD_BAD;
		if (is_readable)
			verdict = fleece_md_verify(md->root.uuid, sector + i, first_tag, last_tag,
						   map);
		nr_bad += verdict == FLEECE_MD_BAD;
		count = min((u64)FLEECE_MD_MAP_BITS, nr_bits - bit);
		if (verdict == FLEECE_MD_BAD)
			fleece_bits_fill(bits, bit, bit + count);
		else if (verdict == FLEECE_MD_CURRENT)
			add_bits(map, bits, bit, count);
		bit += FLEECE_MD_MAP_BITS;
		map += is_readable;
	}
	md->nr_bad += nr_bad;
	return nr_bad;
}

static void read_intents(struct fleece_metadata *md)
{
	u64 words = region_words(md);
	u64 block, i;

	for (block = 0; block < intent_blocks(md); block++) {
		if (read_block(md, FLEECE_MD_INTENTS_START, block, intent_blocks(md),
			       md->root.base, md->root.generation, md->written,
			       md->layout.nr_regions))
			md->has_repairs = true;
	}
	for (i = 0; i < words; i++) {
		md->granted[i] = md->written[i];
		/* Their fine bits will be set, and are not durable. */
		md->dirty[i] = md->written[i];
		md->nr_granted += hweight_long(md->written[i]);
	}
}

static struct fleece_metadata *alloc_metadata(const struct fleece_metadata_io *io, void *context)
{
	struct fleece_metadata *md = kvcalloc(1, sizeof(*md), GFP_KERNEL);

	if (!md)
		return NULL;
	md->io = io;
	md->context = context;
	spin_lock_init(&md->lock);
	INIT_LIST_HEAD(&md->waiting);
	md->block = kvcalloc(1, FLEECE_MD_BLOCK_BYTES, GFP_KERNEL);
	md->copy = kvcalloc(1, FLEECE_MD_COPY_BYTES, GFP_KERNEL);
	md->window = kvcalloc(FLEECE_METADATA_READ_BLOCKS, FLEECE_MD_BLOCK_BYTES, GFP_KERNEL);
	if (md->block && md->copy && md->window)
		return md;
	fleece_metadata_free(md);
	return NULL;
}

static int read_metadata(struct fleece_metadata *md, const struct fleece_metadata_origin *origin,
			 const char **error)
{
	int ret;

	*error = "the device cannot be flushed";
	if (origin->device_sectors < FLEECE_MD_INTENTS_START) {
		*error = "the device is too small for any metadata";
		return -ENOSPC;
	}
	ret = md->io->flush(md->context);
	if (!ret)
		ret = read_root(md, error);
	if (!ret)
		ret = check_origin(md, origin, error);
	if (ret)
		return ret;
	md->granule_shift = ilog2(md->root.granule_sectors);
	md->region_shift = ilog2(md->root.region_sectors) - md->granule_shift;
	set_size(md, md->root.origin_sectors);
	*error = "out of memory";
	ret = alloc_maps(md);
	if (ret)
		return ret;
	invalidate_checkpoints(md, origin);
	read_intents(md);
	return 0;
}

/* Some granules are set in the newest map, and must be durable before the start. */
static void note_repair(struct fleece_metadata *md, u64 first, u64 end)
{
	u64 region;

	for (region = region_of(md, first); region <= region_of(md, end - 1); region++)
		fleece_bits_assign(md->dirty, region, true);
	md->has_repairs = true;
}

int fleece_metadata_open(const struct fleece_metadata_io *io, void *context,
			 const struct fleece_metadata_origin *origin,
			 struct fleece_metadata **opened, const char **error)
{
	struct fleece_metadata *md = alloc_metadata(io, context);
	int ret;

	*error = "out of memory";
	if (!md)
		return -ENOMEM;
	ret = read_metadata(md, origin, error);
	if (ret) {
		fleece_metadata_free(md);
		return ret;
	}
	*opened = md;
	return 0;
}

/* What the newest map has beyond its slot. */
static void load_newest(struct fleece_metadata *md, unsigned long *bits)
{
	u64 nr_regions = md->layout.nr_regions;
	u64 region;

	region = find_next_bit(md->written, nr_regions, 0);
	for (; region < nr_regions; region = find_next_bit(md->written, nr_regions, region + 1))
		fleece_bits_fill(bits, region << md->region_shift,
				 min((region + 1) << md->region_shift, md->nr_granules));
}

void fleece_metadata_load(struct fleece_metadata *md, u32 index, unsigned long *bits)
{
	const struct fleece_md_checkpoint *checkpoint = &md->root.checkpoints[index];
	bool is_newest = index + 1 == md->root.nr_checkpoints;
	u64 start = fleece_md_fine_start(&md->layout, checkpoint->slot);
	u64 end = block_of(md->nr_granules - 1) + 1;
	unsigned int bad;
	u64 block;

	for (block = 0; block < end; block++) {
		bad = read_block(md, start, block, end, checkpoint->segment, checkpoint->segment,
				 bits, md->nr_granules);
		/* The bits of frozen maps are relied on by nobody but readers. */
		if (bad && is_newest)
			note_repair(md, block * BLOCK_BITS,
				    min((block + 1) * BLOCK_BITS, md->nr_granules));
	}
	if (is_newest)
		load_newest(md, bits);
}

/* Write anew what was bad. */
static int write_repairs(struct fleece_metadata *md)
{
	u32 newest = md->root.nr_checkpoints - 1;
	struct fleece_view view;
	int ret = 0;
	u64 block;

	if (md->root.nr_checkpoints) {
		select_dirty(md, false);
		ret = get_changes(md, newest, &view);
		if (!ret)
			ret = write_selected(md, newest, &view);
	}
	for (block = 0; block < intent_blocks(md) && !ret; block++)
		ret = write_intents(md, block);
	return ret;
}

int fleece_metadata_start(struct fleece_metadata *md)
{
	int ret = md->has_repairs ? write_repairs(md) : 0;

	kvfree(md->window);
	md->window = NULL;
	md->root.state = FLEECE_MD_DIRTY;
	md->root.has_head_hash = false;
	md->root.head_hash = 0;
	/* One that a commit has lost, which was durable once, may have used this number. */
	if (md->root.next_segment < FLEECE_MD_NUMBER_MAX)
		md->root.next_segment++;
	if (!ret)
		ret = has_invalid(&md->root) ? commit_both(md) : commit(md);
	if (ret)
		/*
		 * It may have been like this the last time as well, and nothing of that session
		 * is on the device.
		 */
		invalidate_all(&md->root);
	return fail_on_error(md, ret);
}

/* ------------------------- Close ------------------------- */

static int write_dirty(struct fleece_metadata *md)
{
	u32 newest = md->root.nr_checkpoints - 1;
	struct fleece_view view;
	int ret;

	if (!md->root.nr_checkpoints)
		return 0;
	select_dirty(md, true);
	ret = get_changes(md, newest, &view);
	return ret ?: fail_on_error(md, write_selected(md, newest, &view));
}

int fleece_metadata_close(struct fleece_metadata *md, bool has_head_hash, u32 head_hash)
{
	int ret;

	if (md->error)
		return retry_mark(md);
	/* Without memory for it, it stays as after a crash. */
	ret = write_dirty(md);
	if (ret)
		return ret;
	md->root.state = FLEECE_MD_CLEAN;
	md->root.has_head_hash = has_head_hash;
	md->root.head_hash = has_head_hash ? head_hash : 0;
	return fail_on_error(md, commit(md));
}

void fleece_metadata_free(struct fleece_metadata *md)
{
	if (!md)
		return;
	free_maps(md);
	kvfree(md->block);
	kvfree(md->copy);
	kvfree(md->window);
	kvfree(md);
}
