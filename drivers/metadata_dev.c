// SPDX-License-Identifier: GPL-2.0-only
/*
 * metadata_dev: the device that an origin's metadata is on, see metadata_dev.h. Owns
 * the I/O, its time limit, the worker, and the memory of what has failed.
 */
#include <linux/bio.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "compat.h"
#include "bios.h"
#include "metadata_dev.h"

/* Blocks of a copy, the longest write. */
#define COPY_BLOCKS		(FLEECE_MD_COPY_SECTORS / FLEECE_MD_BLOCK_SECTORS)

static_assert(FLEECE_MD_BLOCK_BYTES <= PAGE_SIZE);
static_assert(COPY_BLOCKS <= FLEECE_METADATA_BUFFERS);

static int set_milliseconds(const char *text, const struct kernel_param *param)
{
	unsigned int value;
	int ret = kstrtouint(text, 0, &value);

	if (ret)
		return ret;
	/* No device is that fast, and nobody wants to settle all the time. */
	if (!value)
		return -EINVAL;
	WRITE_ONCE(*(unsigned int *)param->arg, value);
	return 0;
}

static const struct kernel_param_ops milliseconds_ops = {
	.set = set_milliseconds,
	.get = param_get_uint,
};

static unsigned int metadata_timeout_ms = 10000;
module_param_cb(metadata_timeout_ms, &milliseconds_ops, &metadata_timeout_ms, 0644);
__MODULE_PARM_TYPE(metadata_timeout_ms, "uint");
MODULE_PARM_DESC(metadata_timeout_ms,
		 "A metadata device that does not get on for so long has failed (default 10000, not 0)");

/* An intent is taken back after one or two of these; each region costs a crash its size. */
static unsigned int metadata_settle_ms = 5000;
module_param_cb(metadata_settle_ms, &milliseconds_ops, &metadata_settle_ms, 0644);
__MODULE_PARM_TYPE(metadata_settle_ms, "uint");
MODULE_PARM_DESC(metadata_settle_ms,
		 "Time between two passes that write change bits and take intents back (default 5000, not 0)");

/* ------------------------- What has failed ------------------------- */

/**
 * struct fleece_metadata_note - metadata whose device could not be told that it failed
 * @node: in the list of notes.
 * @uuid: of the metadata.
 */
struct fleece_metadata_note {
	struct list_head node;
	u8 uuid[FLEECE_MD_UUID_BYTES];
};

static DEFINE_MUTEX(notes_lock);
static LIST_HEAD(notes);

static struct fleece_metadata_note *find_note(const u8 *uuid)
{
	struct fleece_metadata_note *note;

	lockdep_assert_held(&notes_lock);
	list_for_each_entry(note, &notes, node) {
		if (!memcmp(note->uuid, uuid, sizeof(note->uuid)))
			return note;
	}
	return NULL;
}

static void note_failure(struct fleece_metadata_dev *dev)
{
	mutex_lock(&notes_lock);
	if (dev->note && !find_note(dev->note->uuid)) {
		list_add(&dev->note->node, &notes);
		dev->note = NULL;
	}
	mutex_unlock(&notes_lock);
}

/* What its checkpoints miss is noted on the device itself now. */
static void forget_failure(const struct fleece_metadata_dev *dev)
{
	struct fleece_metadata_note *note;

	mutex_lock(&notes_lock);
	note = find_note(dev->meta->root.uuid);
	if (note)
		list_del(&note->node);
	mutex_unlock(&notes_lock);
	kfree(note);
}

static void heed_failure(struct fleece_md_root *root)
{
	bool has_failed;
	u32 i;

	mutex_lock(&notes_lock);
	has_failed = find_note(root->uuid);
	mutex_unlock(&notes_lock);
	for (i = 0; i < root->nr_checkpoints && has_failed; i++)
		root->checkpoints[i].is_invalid = true;
}

void fleece_metadata_dev_exit(void)
{
	struct fleece_metadata_note *note;
	struct fleece_metadata_note *next;

	list_for_each_entry_safe(note, next, &notes, node)
		kfree(note);
}

/* ------------------------- I/O ------------------------- */

static void submit_buffer(struct work_struct *work)
{
	struct fleece_metadata_buffer *buffer =
		container_of(work, struct fleece_metadata_buffer, work);

	submit_bio(buffer->bio);
}

static void end_buffer(struct bio *bio)
{
	struct fleece_metadata_buffer *buffer = bio->bi_private;
	struct fleece_metadata_dev *dev = buffer->dev;
	unsigned long flags;

	spin_lock_irqsave(&dev->io_lock, flags);
	if (bio->bi_status && !dev->io_error)
		dev->io_error = blk_status_to_errno(bio->bi_status);
	if (buffer->page)
		list_add_tail(&buffer->node, &dev->free);
	dev->nr_flying--;
	/* Under the lock: whoever sees that this was the last one may free the device. */
	wake_up(&dev->wait);
	spin_unlock_irqrestore(&dev->io_lock, flags);
}

static unsigned int count_flying(struct fleece_metadata_dev *dev)
{
	unsigned int count;

	spin_lock_irq(&dev->io_lock);
	count = dev->nr_flying;
	spin_unlock_irq(&dev->io_lock);
	return count;
}

/* Wait until no more than @most are under way, for as long as the device gets on. */
static int wait_flying(struct fleece_metadata_dev *dev, unsigned int most)
{
	unsigned long limit = msecs_to_jiffies(READ_ONCE(metadata_timeout_ms));
	unsigned int count = count_flying(dev);

	/* What comes back that late has had its consequences. */
	if (!count && dev->has_timed_out) {
		dev->has_timed_out = false;
		dev->io_error = 0;
	}
	while (count > most && !dev->has_timed_out) {
		if (!wait_event_timeout(dev->wait, count_flying(dev) < count, limit))
			dev->has_timed_out = true;
		count = count_flying(dev);
	}
	return dev->has_timed_out ? -ETIMEDOUT : 0;
}

static struct fleece_metadata_buffer *take_buffer(struct fleece_metadata_dev *dev)
{
	struct fleece_metadata_buffer *buffer;

	/* Only the worker takes any, so the one that is free now stays so. */
	if (wait_flying(dev, FLEECE_METADATA_BUFFERS - 1))
		return NULL;
	spin_lock_irq(&dev->io_lock);
	buffer = list_first_entry(&dev->free, struct fleece_metadata_buffer, node);
	list_del(&buffer->node);
	dev->nr_flying++;
	spin_unlock_irq(&dev->io_lock);
	return buffer;
}

static void send_buffer(struct fleece_metadata_buffer *buffer)
{
	fleece_bio_disown(buffer->bio);
	buffer->bio->bi_private = buffer;
	buffer->bio->bi_end_io = end_buffer;
	queue_work(buffer->dev->io_wq, &buffer->work);
}

static void send_block(struct fleece_metadata_buffer *buffer, u64 sector, bool is_write)
{
	struct block_device *bdev = buffer->dev->bdev;
	struct bio *bio = buffer->bio;

	if (is_write)
		fleece_bio_reset(bio, bdev, REQ_OP_WRITE | REQ_SYNC | REQ_META);
	else
		fleece_bio_reset(bio, bdev, REQ_OP_READ | REQ_SYNC | REQ_META);
	bio->bi_iter.bi_sector = sector;
	__bio_add_page(bio, buffer->page, FLEECE_MD_BLOCK_BYTES, 0);
	send_buffer(buffer);
}

static void send_flush(struct fleece_metadata_buffer *buffer)
{
	fleece_bio_reset(buffer->bio, buffer->dev->bdev, REQ_OP_WRITE | REQ_SYNC | REQ_PREFLUSH);
	send_buffer(buffer);
}

/* All that was begun has come back; the first error since this was asked last. */
static int wait_idle(struct fleece_metadata_dev *dev)
{
	int ret = wait_flying(dev, 0);

	if (ret)
		return ret;
	spin_lock_irq(&dev->io_lock);
	ret = dev->io_error;
	dev->io_error = 0;
	spin_unlock_irq(&dev->io_lock);
	return ret;
}

/* One bio, however much it is: attaching reads all that is there. */
static void send_read(struct fleece_metadata_dev *dev, u64 sector, unsigned int count)
{
	struct bio *bio = dev->reader.bio;
	unsigned int i;

	fleece_bio_reset(bio, dev->bdev, REQ_OP_READ | REQ_SYNC | REQ_META);
	bio->bi_iter.bi_sector = sector;
	for (i = 0; i < count; i++)
		__bio_add_page(bio, dev->window[i], FLEECE_MD_BLOCK_BYTES, 0);
	spin_lock_irq(&dev->io_lock);
	dev->nr_flying++;
	spin_unlock_irq(&dev->io_lock);
	send_buffer(&dev->reader);
}

static int dev_read(void *context, u64 sector, void *data, unsigned int nr_sectors)
{
	unsigned int count = nr_sectors / FLEECE_MD_BLOCK_SECTORS;
	struct fleece_metadata_dev *dev = context;
	int ret = wait_idle(dev);
	unsigned int i;

	if (ret)
		return ret;
	send_read(dev, sector, count);
	ret = wait_idle(dev);
	for (i = 0; i < count && !ret; i++)
		memcpy(data + i * FLEECE_MD_BLOCK_BYTES, page_address(dev->window[i]),
		       FLEECE_MD_BLOCK_BYTES);
	return ret;
}

static int dev_write(void *context, u64 sector, const void *data, unsigned int nr_sectors)
{
	unsigned int count = nr_sectors / FLEECE_MD_BLOCK_SECTORS;
	struct fleece_metadata_dev *dev = context;
	struct fleece_metadata_buffer *buffer;
	unsigned int i;

	for (i = 0; i < count; i++) {
		buffer = take_buffer(dev);
		if (!buffer)
			return -ETIMEDOUT;
		memcpy(page_address(buffer->page), data + i * FLEECE_MD_BLOCK_BYTES,
		       FLEECE_MD_BLOCK_BYTES);
		send_block(buffer, sector + i * FLEECE_MD_BLOCK_SECTORS, true);
	}
	return 0;
}

static int dev_flush(void *context)
{
	struct fleece_metadata_dev *dev = context;
	struct fleece_metadata_buffer *buffer;
	int ret = wait_idle(dev);

	if (ret)
		return ret;
	buffer = take_buffer(dev);
	if (!buffer)
		return -ETIMEDOUT;
	send_flush(buffer);
	return wait_idle(dev);
}

/* ------------------------- The protocol's other callbacks ------------------------- */

static int dev_since(void *context, const char *name, struct fleece_view *view)
{
	struct fleece_metadata_dev *dev = context;

	return dev->methods->since(dev->owner, name, !dev->may_wait, view);
}

static void dev_done(void *context)
{
	struct fleece_metadata_dev *dev = context;

	dev->methods->done(dev->owner);
}

static void dev_kick(void *context)
{
	struct fleece_metadata_dev *dev = context;

	queue_work(dev->wq, &dev->grant);
}

static bool dev_is_wanted(void *context)
{
	struct fleece_metadata_dev *dev = context;

	return atomic_read(&dev->nr_waiting);
}

static void dev_resume(void *context, struct list_head *waiters)
{
	struct fleece_metadata_dev *dev = context;

	dev->methods->resume(dev->owner, waiters);
}

static const struct fleece_metadata_io dev_io = {
	.read = dev_read,
	.write = dev_write,
	.flush = dev_flush,
	.since = dev_since,
	.done = dev_done,
	.kick = dev_kick,
	.is_wanted = dev_is_wanted,
	.resume = dev_resume,
};

/* ------------------------- The worker ------------------------- */

static void arm_settle(struct fleece_metadata_dev *dev)
{
	queue_delayed_work(dev->wq, &dev->settle, msecs_to_jiffies(READ_ONCE(metadata_settle_ms)));
}

unsigned int fleece_metadata_dev_lock(struct fleece_metadata_dev *dev)
{
	unsigned int noio = memalloc_noio_save();

	atomic_inc(&dev->nr_waiting);
	mutex_lock(&dev->lock);
	atomic_dec(&dev->nr_waiting);
	return noio;
}

void fleece_metadata_dev_unlock(struct fleece_metadata_dev *dev, unsigned int noio)
{
	int error = dev->meta->error;
	bool is_news = error && !dev->is_reported;

	if (is_news) {
		dev->is_reported = true;
		note_failure(dev);
		/* Until the device has the mark of failure. */
		arm_settle(dev);
	}
	mutex_unlock(&dev->lock);
	memalloc_noio_restore(noio);
	if (is_news)
		dev->methods->failed(dev->owner, error);
}

static void grant_intents(struct work_struct *work)
{
	struct fleece_metadata_dev *dev = container_of(work, struct fleece_metadata_dev, grant);
	unsigned int noio = fleece_metadata_dev_lock(dev);

	fleece_metadata_grant(dev->meta);
	arm_settle(dev);
	fleece_metadata_dev_unlock(dev, noio);
}

static void settle_intents(struct work_struct *work)
{
	struct fleece_metadata_dev *dev =
		container_of(to_delayed_work(work), struct fleece_metadata_dev, settle);
	unsigned int noio = fleece_metadata_dev_lock(dev);

	fleece_metadata_settle(dev->meta);
	/* Without intents there is nothing to be done before the next grant. */
	if (dev->meta->error ? dev->meta->marks != FLEECE_METADATA_MARKED :
			     READ_ONCE(dev->meta->nr_granted))
		arm_settle(dev);
	fleece_metadata_dev_unlock(dev, noio);
}

/* ------------------------- Beginning and end ------------------------- */

/* Where many file systems count how often they were used. */
static bool read_head(struct block_device *lower, u64 nr_sectors, u32 *head_hash)
{
	/* Newer kernels have devices whose blocks are larger than ours. */
	unsigned int bytes = max_t(unsigned int, FLEECE_MD_BLOCK_BYTES,
				   bdev_logical_block_size(lower));
	struct page *page;
	unsigned int at;
	struct bio *bio;
	u64 hash = 0;
	int ret = 0;

	if (nr_sectors < FLEECE_MD_HEAD_BYTES / SECTOR_SIZE)
		return false;
	page = alloc_pages(GFP_KERNEL | __GFP_COMP, get_order(bytes));
	if (!page)
		return false;
	bio = fleece_bio_alloc(lower, 1, REQ_OP_READ, GFP_KERNEL, &fs_bio_set);
	for (at = 0; at < FLEECE_MD_HEAD_BYTES && !ret; at += bytes) {
		fleece_bio_reset(bio, lower, REQ_OP_READ | REQ_SYNC);
		bio->bi_iter.bi_sector = at >> SECTOR_SHIFT;
		__bio_add_page(bio, page, bytes, 0);
		ret = submit_bio_wait(bio);
		hash = fleece_md_hash(hash, page_address(page), bytes);
	}
	*head_hash = (u32)hash;
	bio_put(bio);
	__free_pages(page, get_order(bytes));
	return !ret;
}

int fleece_metadata_dev_flush_lower(struct block_device *lower)
{
	struct bio *bio = fleece_bio_alloc(lower, 0, REQ_OP_WRITE | REQ_SYNC | REQ_PREFLUSH,
					   GFP_NOIO, &fs_bio_set);
	int ret;

	fleece_bio_disown(bio);
	ret = submit_bio_wait(bio);
	bio_put(bio);
	return ret;
}

static void init_buffer(struct fleece_metadata_dev *dev, struct fleece_metadata_buffer *buffer,
			unsigned int nr_blocks)
{
	buffer->dev = dev;
	INIT_WORK(&buffer->work, submit_buffer);
	buffer->bio = fleece_bio_alloc(dev->bdev, nr_blocks, REQ_OP_READ, GFP_KERNEL, &dev->bios);
}

static int alloc_buffers(struct fleece_metadata_dev *dev)
{
	struct fleece_metadata_buffer *buffer;
	unsigned int i;

	/* They are kept, so they must not come from a set that others share. */
	if (bioset_init(&dev->bios, FLEECE_METADATA_BUFFERS + 1, 0, BIOSET_NEED_BVECS))
		return -ENOMEM;
	for (i = 0; i < FLEECE_METADATA_BUFFERS; i++) {
		buffer = &dev->buffers[i];
		init_buffer(dev, buffer, 1);
		buffer->page = alloc_page(GFP_KERNEL);
		if (!buffer->page)
			return -ENOMEM;
		list_add(&buffer->node, &dev->free);
	}
	init_buffer(dev, &dev->reader, FLEECE_METADATA_READ_BLOCKS);
	for (i = 0; i < FLEECE_METADATA_READ_BLOCKS; i++) {
		dev->window[i] = alloc_page(GFP_KERNEL);
		if (!dev->window[i])
			return -ENOMEM;
	}
	return 0;
}

/* No live write comes any more. In this order: a grant arms the settling. */
static void stop_works(struct fleece_metadata_dev *dev)
{
	cancel_work_sync(&dev->grant);
	cancel_delayed_work_sync(&dev->settle);
}

static void free_window(struct fleece_metadata_dev *dev)
{
	unsigned int i;

	for (i = 0; i < FLEECE_METADATA_READ_BLOCKS; i++) {
		if (dev->window[i])
			__free_page(dev->window[i]);
		dev->window[i] = NULL;
	}
}

static void free_buffers(struct fleece_metadata_dev *dev)
{
	unsigned int i;

	for (i = 0; i < FLEECE_METADATA_BUFFERS; i++) {
		if (dev->buffers[i].bio)
			bio_put(dev->buffers[i].bio);
		if (dev->buffers[i].page)
			__free_page(dev->buffers[i].page);
	}
	if (dev->reader.bio)
		bio_put(dev->reader.bio);
	bioset_exit(&dev->bios);
	free_window(dev);
}

static struct fleece_metadata_dev *alloc_dev(const struct fleece_metadata_config *config)
{
	struct fleece_metadata_dev *dev = kzalloc(sizeof(*dev), GFP_KERNEL);

	if (!dev)
		return NULL;
	dev->methods = config->methods;
	dev->owner = config->owner;
	dev->bdev = config->bdev;
	mutex_init(&dev->lock);
	spin_lock_init(&dev->io_lock);
	INIT_LIST_HEAD(&dev->free);
	init_waitqueue_head(&dev->wait);
	INIT_WORK(&dev->grant, grant_intents);
	INIT_DELAYED_WORK(&dev->settle, settle_intents);
	dev->note = kzalloc(sizeof(*dev->note), GFP_KERNEL);
	dev->wq = alloc_ordered_workqueue("fleece-md/%s", WQ_MEM_RECLAIM | WQ_HIGHPRI,
					  config->name);
	dev->io_wq = alloc_workqueue("fleece-md-io/%s", WQ_MEM_RECLAIM | WQ_HIGHPRI | WQ_UNBOUND, 0,
				     config->name);
	if (dev->note && dev->wq && dev->io_wq && !alloc_buffers(dev))
		return dev;
	fleece_metadata_dev_free(dev);
	return NULL;
}

struct fleece_metadata_dev *fleece_metadata_dev_open(const struct fleece_metadata_config *config,
						     const char **error)
{
	struct fleece_metadata_origin origin = {
		.nr_sectors = config->nr_sectors,
		.granule_sectors = config->granule_sectors,
		.device_sectors = bdev_nr_sectors(config->bdev),
	};
	struct fleece_metadata_dev *dev = alloc_dev(config);
	unsigned int noio;
	int ret;

	*error = "out of memory";
	if (!dev)
		return ERR_PTR(-ENOMEM);
	origin.has_head_hash = read_head(config->lower, config->nr_sectors, &origin.head_hash);
	noio = memalloc_noio_save();
	ret = fleece_metadata_open(&dev_io, dev, &origin, &dev->meta, error);
	memalloc_noio_restore(noio);
	if (ret) {
		fleece_metadata_dev_free(dev);
		return ERR_PTR(ret);
	}
	memcpy(dev->note->uuid, dev->meta->root.uuid, sizeof(dev->note->uuid));
	heed_failure(&dev->meta->root);
	return dev;
}

int fleece_metadata_dev_start(struct fleece_metadata_dev *dev)
{
	unsigned int noio;
	int ret = 0;

	/*
	 * The origin is suspended: do not wait for a settle only to see that. The resumes
	 * of a device come one after the other, so who sees this sees what the start did.
	 */
	if (READ_ONCE(dev->is_started))
		return 0;
	noio = fleece_metadata_dev_lock(dev);
	if (!dev->is_started) {
		WRITE_ONCE(dev->is_started, true);
		/* But for a read that was given up, and may yet arrive. */
		if (!count_flying(dev))
			free_window(dev);
		dev->may_wait = true;
		ret = fleece_metadata_start(dev->meta);
		if (!ret)
			forget_failure(dev);
		dev->may_wait = false;
		/* Intents that a crash has left are taken back. */
		arm_settle(dev);
	}
	fleece_metadata_dev_unlock(dev, noio);
	return ret;
}

/* However long it takes: the bios are in our memory, and call our code. */
static void wait_for_device(struct fleece_metadata_dev *dev)
{
	wait_event(dev->wait, !count_flying(dev));
}

void fleece_metadata_dev_close(struct fleece_metadata_dev *dev, struct block_device *lower)
{
	bool has_head;
	unsigned int noio;
	u32 head;

	if (!dev->is_started)
		return;
	stop_works(dev);
	/*
	 * What is noted of the origin's start shall be there after a power cut. If it cannot
	 * be flushed, it is taken for written by somebody else then.
	 */
	fleece_metadata_dev_flush_lower(lower);
	has_head = read_head(lower, dev->meta->root.origin_sectors, &head);
	noio = fleece_metadata_dev_lock(dev);
	/* One that is late, not lost, can yet be told that it failed. */
	wait_for_device(dev);
	dev->may_wait = true;
	fleece_metadata_close(dev->meta, has_head, head);
	fleece_metadata_dev_unlock(dev, noio);
}

void fleece_metadata_dev_resize(struct fleece_metadata_dev *dev, u64 nr_sectors)
{
	unsigned int noio = fleece_metadata_dev_lock(dev);

	dev->may_wait = true;
	fleece_metadata_resize(dev->meta, nr_sectors);
	dev->may_wait = false;
	fleece_metadata_dev_unlock(dev, noio);
}

void fleece_metadata_dev_free(struct fleece_metadata_dev *dev)
{
	if (!dev)
		return;
	stop_works(dev);
	wait_for_device(dev);
	if (dev->wq)
		destroy_workqueue(dev->wq);
	if (dev->io_wq)
		destroy_workqueue(dev->io_wq);
	fleece_metadata_free(dev->meta);
	free_buffers(dev);
	kfree(dev->note);
	kfree(dev);
}

const char *fleece_metadata_dev_state(const struct fleece_metadata_dev *dev)
{
	if (!dev)
		return "none";
	if (READ_ONCE(dev->meta->error))
		return "failed";
	return READ_ONCE(dev->meta->nr_granted) ? "dirty" : "clean";
}
