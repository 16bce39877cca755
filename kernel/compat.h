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
#else
#define netblk_compat_opened block_device
typedef fmode_t netblk_compat_mode_t;

static inline struct gendisk *netblk_compat_disk(struct block_device *bdev)
{
	return bdev->bd_disk;
}
#endif

/* 6.4: a bus's attributes get it const. */
#ifdef NETBLK_HAVE_BUS_CONST
#define NETBLK_BUS_CONST const
#else
#define NETBLK_BUS_CONST
#endif

#endif /* NETBLK_COMPAT_H */
