// SPDX-License-Identifier: GPL-2.0-only
/*
 * ram_block_driver: a disk in memory, /dev/ramblk, as small as a block driver
 * can be. Read it from the end: module_init() is where things begin.
 *
 * A block driver has one duty: to take a description of a transfer ("these
 * 8 sectors from sector 100 on, into these pages") and to report, exactly
 * once, that it was done or failed. The description comes in two forms, and
 * queue_mode= shows the three usual ways to take it:
 *
 *   rq      (default) blk-mq gives us requests. A request is one contiguous
 *           range of the disk made of one or more bios that the block layer
 *           merged; hardware likes that, since it counts commands. We walk all
 *           of it with rq_for_each_segment(), one page or less at a time.
 *   rq_bio  requests again, but walked bio by bio, each bio as the contiguous
 *           pieces of memory it was built from (multi-page bvecs): fewer and
 *           longer copies.
 *   bio     no request queue. The block layer calls us with every bio as the
 *           file system made it: no merging, no tags, no scheduler, no limit
 *           on how many are under way. It is the shortest way, and right when
 *           the "device" is as fast as memory.
 *
 * What we do not do, since a RAM disk needs none of it: interrupts (we finish
 * before we return), time-outs, a write cache to flush. See net_block_*.c for
 * a driver whose device is slow, remote and may vanish.
 */
#define pr_fmt(fmt) "ramblk: " fmt

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sysfs.h>

#include "compat.h"

#define RAMBLK_QUEUE_DEPTH 128
#define RAMBLK_MAX_SECTORS 8192

enum ramblk_mode { RAMBLK_RQ, RAMBLK_RQ_BIO, RAMBLK_BIO };

static const char * const ramblk_modes[] = {
	[RAMBLK_RQ] = "rq",
	[RAMBLK_RQ_BIO] = "rq_bio",
	[RAMBLK_BIO] = "bio",
};

static char *queue_mode = "rq";
module_param(queue_mode, charp, 0444);
MODULE_PARM_DESC(queue_mode, "rq, rq_bio or bio (rq)");

static unsigned long size_mb = 100;
module_param(size_mb, ulong, 0444);
MODULE_PARM_DESC(size_mb, "size in MiB, all of it allocated at load (100)");

static struct ramblk {
	enum ramblk_mode mode;
	struct page **pages; /* page n holds bytes [n << PAGE_SHIFT, ...) */
	unsigned long nr_pages;
	struct blk_mq_tag_set tag_set;
	struct gendisk *disk;
} ramblk;

/*
 * Copy between the memory of one segment and the disk at @pos. Nothing checks
 * @pos here: the block layer has compared every bio with the capacity before
 * it came to us. A segment's page may have no kernel address on a 32-bit
 * machine (highmem), hence the mapping, which is free elsewhere.
 */
static void ramblk_copy(const struct bio_vec *bv, loff_t pos, bool write)
{
	unsigned int done = 0;

	while (done < bv->bv_len) {
		unsigned int from = bv->bv_offset + done;
		struct page *page = bv->bv_page + (from >> PAGE_SHIFT);
		char *disk = page_address(ramblk.pages[pos >> PAGE_SHIFT]);
		unsigned int step;
		char *memory;

		/* to the nearest end: of the segment, or of either page */
		step = min3(bv->bv_len - done,
			    (unsigned int)(PAGE_SIZE - offset_in_page(from)),
			    (unsigned int)(PAGE_SIZE - offset_in_page(pos)));
		memory = kmap_local_page(page);
		if (write)
			memcpy(disk + offset_in_page(pos),
			       memory + offset_in_page(from), step);
		else
			memcpy(memory + offset_in_page(from),
			       disk + offset_in_page(pos), step);
		kunmap_local(memory);
		done += step;
		pos += step;
	}
	if (!write)
		flush_dcache_page(bv->bv_page);
}

/* One bio; each bvec as long as its memory is contiguous. */
static void ramblk_copy_bio(struct bio *bio)
{
	loff_t pos = (loff_t)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	struct bvec_iter iter;
	struct bio_vec bv;

	for_each_bvec(bv, bio->bi_io_vec, iter, bio->bi_iter) {
		ramblk_copy(&bv, pos, bio_op(bio) == REQ_OP_WRITE);
		pos += bv.bv_len;
	}
}

/*
 * blk-mq's call for each request. blk_mq_start_request() says that the device
 * has it (this starts its time-out and the statistics), blk_mq_end_request()
 * that the device is done. A real driver returns between the two, and an
 * interrupt does the second.
 */
static blk_status_t ramblk_queue_rq(struct blk_mq_hw_ctx *hctx,
				    const struct blk_mq_queue_data *bd)
{
	struct request *rq = bd->rq;
	loff_t pos = (loff_t)blk_rq_pos(rq) << SECTOR_SHIFT;
	struct req_iterator iter;
	struct bio_vec bv;
	struct bio *bio;

	/* We asked for no discard and no flush; whatever else comes, refuse. */
	if (req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE)
		return BLK_STS_NOTSUPP;

	blk_mq_start_request(rq);
	if (ramblk.mode == RAMBLK_RQ_BIO) {
		__rq_for_each_bio(bio, rq)
			ramblk_copy_bio(bio);
	} else {
		rq_for_each_segment(bv, rq, iter) {
			ramblk_copy(&bv, pos, req_op(rq) == REQ_OP_WRITE);
			pos += bv.bv_len;
		}
	}
	blk_mq_end_request(rq, BLK_STS_OK);
	return BLK_STS_OK;
}

static const struct blk_mq_ops ramblk_mq_ops = {
	.queue_rq = ramblk_queue_rq,
};

/* The other way in: called in the context of whoever submits the bio. */
static void ramblk_submit_bio(struct bio *bio)
{
	if (bio_op(bio) != REQ_OP_READ && bio_op(bio) != REQ_OP_WRITE) {
		bio->bi_status = BLK_STS_NOTSUPP;
	} else {
		unsigned long start = bio_start_io_acct(bio);

		ramblk_copy_bio(bio);
		bio_end_io_acct(bio, start);
	}
	bio_endio(bio);
}

/* .owner is what makes rmmod fail with EBUSY while the disk is open. */
static const struct block_device_operations ramblk_rq_fops = {
	.owner = THIS_MODULE,
};

/* Having ->submit_bio is what makes a disk bio-based. */
static const struct block_device_operations ramblk_bio_fops = {
	.owner = THIS_MODULE,
	.submit_bio = ramblk_submit_bio,
};

static void ramblk_free_pages(void)
{
	unsigned long i;

	for (i = 0; i < ramblk.nr_pages; i++)
		__free_page(ramblk.pages[i]);
	kvfree(ramblk.pages);
}

/*
 * All of it now, zeroed: a disk that runs out of memory in the middle of a
 * write would be a bad example. __GFP_NORETRY lets a size that does not fit
 * fail here instead of sending the OOM killer after other programs.
 */
static int ramblk_alloc_pages(void)
{
	unsigned long wanted = size_mb << (20 - PAGE_SHIFT);

	ramblk.pages = kvcalloc(wanted, sizeof(*ramblk.pages),
				GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN);
	if (!ramblk.pages)
		return -ENOMEM;
	for (; ramblk.nr_pages < wanted; ramblk.nr_pages++) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO |
					       __GFP_NORETRY | __GFP_NOWARN);

		if (!page || signal_pending(current)) {
			if (page)
				__free_page(page);
			ramblk_free_pages();
			return page ? -EINTR : -ENOMEM;
		}
		ramblk.pages[ramblk.nr_pages] = page;
		cond_resched();
	}
	return 0;
}

/*
 * The gendisk is the disk that the system sees; for the request modes a tag
 * set comes first: the pool of requests, whose size is the queue depth.
 */
static int ramblk_alloc_disk(void)
{
	int err;

	if (ramblk.mode == RAMBLK_BIO) {
		ramblk.disk = netblk_compat_alloc_bio_disk(RAMBLK_MAX_SECTORS);
		return PTR_ERR_OR_ZERO(ramblk.disk);
	}

	ramblk.tag_set.ops = &ramblk_mq_ops;
	ramblk.tag_set.nr_hw_queues = num_online_cpus();
	ramblk.tag_set.queue_depth = RAMBLK_QUEUE_DEPTH;
	ramblk.tag_set.numa_node = NUMA_NO_NODE;
	ramblk.tag_set.flags = BLK_MQ_F_NO_SCHED_BY_DEFAULT |
			       NETBLK_F_SHOULD_MERGE;
	err = blk_mq_alloc_tag_set(&ramblk.tag_set);
	if (err)
		return err;
	ramblk.disk = netblk_compat_alloc_mq_disk(&ramblk.tag_set,
						  RAMBLK_MAX_SECTORS, NULL);
	if (IS_ERR(ramblk.disk)) {
		blk_mq_free_tag_set(&ramblk.tag_set);
		return PTR_ERR(ramblk.disk);
	}
	return 0;
}

static void ramblk_free_disk(void)
{
	put_disk(ramblk.disk);
	if (ramblk.mode != RAMBLK_BIO)
		blk_mq_free_tag_set(&ramblk.tag_set);
}

static int __init ramblk_init(void)
{
	int err = sysfs_match_string(ramblk_modes, queue_mode);

	if (err < 0) {
		pr_err("queue_mode=%s is none of rq, rq_bio, bio\n", queue_mode);
		return -EINVAL;
	}
	ramblk.mode = err;
	if (!size_mb || size_mb > totalram_pages() >> (20 - PAGE_SHIFT)) {
		pr_err("size_mb=%lu is out of range: 1 to %lu, the memory of this machine\n",
		       size_mb, totalram_pages() >> (20 - PAGE_SHIFT));
		return -EINVAL;
	}

	err = ramblk_alloc_pages();
	if (err) {
		pr_err("cannot allocate %lu MiB: %pe\n", size_mb, ERR_PTR(err));
		return err;
	}
	err = ramblk_alloc_disk();
	if (err)
		goto free_pages;
	netblk_compat_disk_ready(ramblk.disk);
	ramblk.disk->fops = ramblk.mode == RAMBLK_BIO ? &ramblk_bio_fops :
							&ramblk_rq_fops;
	strscpy(ramblk.disk->disk_name, "ramblk", DISK_NAME_LEN);
	set_capacity(ramblk.disk, (sector_t)size_mb << (20 - SECTOR_SHIFT));

	/* From here on the disk is in use: partitions are looked for in it. */
	err = add_disk(ramblk.disk);
	if (err)
		goto free_disk;
	pr_info("%lu MiB, queue_mode=%s\n", size_mb, ramblk_modes[ramblk.mode]);
	return 0;

free_disk:
	ramblk_free_disk();
free_pages:
	ramblk_free_pages();
	return err;
}

/* The reverse order. del_gendisk() waits for the I/O that is under way. */
static void __exit ramblk_exit(void)
{
	del_gendisk(ramblk.disk);
	ramblk_free_disk();
	ramblk_free_pages();
}

module_init(ramblk_init);
module_exit(ramblk_exit);

MODULE_DESCRIPTION("RAM disk: the textbook block driver");
MODULE_AUTHOR("The netblk authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
