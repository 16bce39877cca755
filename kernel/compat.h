/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The one place that knows how kernels differ. Built and tested on 6.1 and 6.12.
 *
 * Kbuild looks into the kernel's own headers and sets NETBLK_HAVE_...: a
 * version number would not do, since stable kernels take backports.
 */
#ifndef NETBLK_COMPAT_H
#define NETBLK_COMPAT_H

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/timer.h>
#include <linux/uio.h>
#include <net/sock.h>

#include "net_block.h"

/* 6.2: the direction of an iov_iter got names of its own. */
#ifndef ITER_SOURCE
#define ITER_SOURCE WRITE
#define ITER_DEST READ
#endif

/* 6.14: merging is what every queue does, and the flag is gone. */
#ifdef NETBLK_HAVE_F_SHOULD_MERGE
#define NETBLK_F_SHOULD_MERGE BLK_MQ_F_SHOULD_MERGE
#else
#define NETBLK_F_SHOULD_MERGE 0
#endif

/*
 * What our disks ask of the block layer: 512-byte sectors, any number of
 * segments of any length, not rotational, no volatile write cache, no discard.
 * 6.9 made limits an argument of the allocation.
 */
#ifdef NETBLK_HAVE_LIMITS_ARGUMENT

static inline struct queue_limits
netblk_compat_limits(unsigned int max_hw_sectors)
{
	struct queue_limits lim = {
		.logical_block_size = SECTOR_SIZE,
		.max_hw_sectors = max_hw_sectors,
		.max_segments = USHRT_MAX,
		.max_segment_size = UINT_MAX,
	};

	return lim;
}

static inline struct gendisk *
netblk_compat_alloc_mq_disk(struct blk_mq_tag_set *set,
			    unsigned int max_hw_sectors, void *data)
{
	struct queue_limits lim = netblk_compat_limits(max_hw_sectors);

	return blk_mq_alloc_disk(set, &lim, data);
}

static inline struct gendisk *
netblk_compat_alloc_bio_disk(unsigned int max_hw_sectors)
{
	struct queue_limits lim = netblk_compat_limits(max_hw_sectors);

	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}

#else

static inline void netblk_compat_set_limits(struct request_queue *q,
					    unsigned int max_hw_sectors)
{
	blk_queue_logical_block_size(q, SECTOR_SIZE);
	blk_queue_max_hw_sectors(q, max_hw_sectors);
	blk_queue_max_segments(q, USHRT_MAX);
	blk_queue_max_segment_size(q, UINT_MAX);
}

static inline struct gendisk *
netblk_compat_alloc_mq_disk(struct blk_mq_tag_set *set,
			    unsigned int max_hw_sectors, void *data)
{
	struct gendisk *disk = blk_mq_alloc_disk(set, data);

	if (!IS_ERR(disk))
		netblk_compat_set_limits(disk->queue, max_hw_sectors);
	return disk;
}

/* NULL became ERR_PTR() together with the limits argument. */
static inline struct gendisk *
netblk_compat_alloc_bio_disk(unsigned int max_hw_sectors)
{
	struct gendisk *disk = blk_alloc_disk(NUMA_NO_NODE);

	if (!disk)
		return ERR_PTR(-ENOMEM);
	netblk_compat_set_limits(disk->queue, max_hw_sectors);
	return disk;
}

#endif

/*
 * What a netblk/2 server tells of its disk. Requests that are on their way may
 * have been built by the old limits; the server checks each.
 * 6.11 made flags of the queue features of its limits.
 */
#define NETBLK_MAX_TRIM_BYTES (1u << 30)

#ifdef NETBLK_HAVE_LIMITS_ARGUMENT

static inline int netblk_compat_set_geometry(struct gendisk *disk,
					     const struct netblk_geometry *g)
{
	struct queue_limits lim = queue_limits_start_update(disk->queue);
	unsigned int most = NETBLK_MAX_TRIM_BYTES >> SECTOR_SHIFT;

	lim.logical_block_size = g->block_bytes;
	lim.physical_block_size = g->block_bytes;
	lim.io_min = g->block_bytes;
	lim.io_opt = g->preferred_bytes;
	lim.max_hw_sectors = g->max_request_bytes >> SECTOR_SHIFT;
	lim.max_hw_discard_sectors = g->trim ? most : 0;
	lim.discard_granularity = g->trim ? g->block_bytes : 0;
	lim.max_write_zeroes_sectors = g->zeroes ? most : 0;
#ifdef BLK_FEAT_WRITE_CACHE
	lim.features &= ~(BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA |
			  BLK_FEAT_STABLE_WRITES | BLK_FEAT_ROTATIONAL);
	if (g->cache)
		lim.features |= BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA;
	if (g->stable)
		lim.features |= BLK_FEAT_STABLE_WRITES;
	if (g->rotational)
		lim.features |= BLK_FEAT_ROTATIONAL;
#else
	blk_queue_write_cache(disk->queue, g->cache, g->cache);
#endif
	return queue_limits_commit_update(disk->queue, &lim);
}

#else

static inline int netblk_compat_set_geometry(struct gendisk *disk,
					     const struct netblk_geometry *g)
{
	struct request_queue *q = disk->queue;
	unsigned int most = NETBLK_MAX_TRIM_BYTES >> SECTOR_SHIFT;

	blk_queue_logical_block_size(q, g->block_bytes);
	blk_queue_physical_block_size(q, g->block_bytes);
	blk_queue_io_min(q, g->block_bytes);
	blk_queue_io_opt(q, g->preferred_bytes);
	blk_queue_max_hw_sectors(q, g->max_request_bytes >> SECTOR_SHIFT);
	blk_queue_max_discard_sectors(q, g->trim ? most : 0);
	q->limits.discard_granularity = g->trim ? g->block_bytes : 0;
	blk_queue_max_write_zeroes_sectors(q, g->zeroes ? most : 0);
	blk_queue_write_cache(q, g->cache, g->cache);
	return 0;
}

#endif

/* Where the queue's flags are not among its limits. */
static inline void netblk_compat_set_flags(struct gendisk *disk,
					   const struct netblk_geometry *g)
{
#ifdef QUEUE_FLAG_STABLE_WRITES
	if (g->stable)
		blk_queue_flag_set(QUEUE_FLAG_STABLE_WRITES, disk->queue);
	else
		blk_queue_flag_clear(QUEUE_FLAG_STABLE_WRITES, disk->queue);
#endif
#ifdef QUEUE_FLAG_NONROT
	if (g->rotational)
		blk_queue_flag_clear(QUEUE_FLAG_NONROT, disk->queue);
	else
		blk_queue_flag_set(QUEUE_FLAG_NONROT, disk->queue);
#endif
}

/* Before 6.11 a queue was rotational unless it said otherwise. */
static inline void netblk_compat_disk_ready(struct gendisk *disk)
{
#ifdef QUEUE_FLAG_NONROT
	blk_queue_flag_set(QUEUE_FLAG_NONROT, disk->queue);
#endif
}

/* 6.2: timer_delete_sync() is the name; 6.1's stable series has both. */
#ifndef NETBLK_HAVE_TIMER_DELETE_SYNC
#define timer_delete_sync del_timer_sync
#endif

/*
 * A kernel socket must not use current->task_frag: the sender may be in the
 * middle of a user's own sendmsg() and have entered us through reclaim.
 * Without the field, sk_page_frag() decides by sk_allocation, and ours
 * (GFP_NOIO) already keeps it away.
 */
static inline void netblk_compat_no_task_frag(struct sock *sk)
{
#ifdef NETBLK_HAVE_SK_USE_TASK_FRAG
	sk->sk_use_task_frag = false;
#endif
}

/* 6.5: block_device_operations.open() gets the disk. */
#ifdef NETBLK_HAVE_OPEN_DISK
#define netblk_compat_opened gendisk
typedef blk_mode_t netblk_compat_mode_t;

static inline struct gendisk *netblk_compat_disk(struct gendisk *disk)
{
	return disk;
}

#define NETBLK_COMPAT_RELEASE(function)                        \
	static void netblk_compat_release(struct gendisk *disk) \
	{                                                      \
		function(disk);                                \
	}
#else
#define netblk_compat_opened block_device
typedef fmode_t netblk_compat_mode_t;

static inline struct gendisk *netblk_compat_disk(struct block_device *bdev)
{
	return bdev->bd_disk;
}

#define NETBLK_COMPAT_RELEASE(function)                                      \
	static void netblk_compat_release(struct gendisk *disk, fmode_t mode) \
	{                                                                    \
		function(disk);                                              \
	}
#endif

/* 6.4: a bus's attributes get it const. */
#ifdef NETBLK_HAVE_BUS_CONST
#define NETBLK_BUS_CONST const
#else
#define NETBLK_BUS_CONST
#endif

#endif /* NETBLK_COMPAT_H */
