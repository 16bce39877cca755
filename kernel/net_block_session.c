// SPDX-License-Identifier: GPL-2.0-only
/*
 * netblk/2: what a session remembers, and what the block layer is told of the
 * disk.
 *
 * Slots. A session's slots are dealt out to its connections: number
 * index * stride + queue. A request has its slot from its first sending to its
 * end, over every loss and replay, so the server's ledger answers a replay of
 * what it has already done (scenario: the reply was lost with the connection).
 *
 * Loss. The client keeps no data, only a count: changes that were acknowledged
 * and that no FLUSH issued later has covered. A server that comes back with
 * another generation may have lost them (scenario: its machine went down). Then
 * every flush fails until somebody says that he knows.
 */
#include <linux/blk-mq.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "compat.h"
#include "net_block.h"

/* The ledger is empty: all slots that were granted are free. No sender runs. */
void netblk_slots_reset(struct netblk_device *nd)
{
	unsigned int i, k;

	for (i = 0; i < nd->nr_queues; i++) {
		struct netblk_queue *q = &nd->queues[i];

		spin_lock(&q->lock);
		q->nr_free = 0;
		/* the lowest index is on top: few slots are used again and again */
		for (k = nd->depth; k-- > 0;) {
			q->slots[k].cmd = NULL;
			if (i < nd->stride &&
			    k * nd->stride + i < nd->session_slots)
				q->free_slots[q->nr_free++] = k;
		}
		spin_unlock(&q->lock);
	}
}

/* False: all are outstanding. A request that has one keeps it. */
bool netblk_slot_get(struct netblk_queue *q, struct netblk_cmd *cmd)
{
	lockdep_assert_held(&q->lock);
	if (cmd->has_slot)
		return true;
	if (!q->nr_free)
		return false;
	cmd->slot = q->free_slots[--q->nr_free];
	cmd->has_slot = true;
	q->slots[cmd->slot].cmd = cmd;
	q->slots[cmd->slot].sequence++;
	return true;
}

void netblk_slot_put(struct netblk_queue *q, struct netblk_cmd *cmd)
{
	lockdep_assert_held(&q->lock);
	if (!cmd->has_slot)
		return;
	cmd->has_slot = false;
	q->slots[cmd->slot].cmd = NULL;
	q->free_slots[q->nr_free++] = cmd->slot;
}

u64 netblk_unflushed(struct netblk_device *nd)
{
	u64 covered = atomic64_read(&nd->covered);

	/* Read in this order, the difference is never negative. */
	smp_rmb();
	return atomic64_read(&nd->acknowledged) - covered;
}

/* A FLUSH that was issued at @mark has succeeded. The thread's. */
void netblk_covered(struct netblk_device *nd, u64 mark)
{
	if (mark > atomic64_read(&nd->covered))
		atomic64_set(&nd->covered, mark);
}

void netblk_reset_lost(struct netblk_device *nd)
{
	bool was;

	spin_lock(&nd->lock);
	was = nd->lost;
	nd->lost = false;
	spin_unlock(&nd->lock);
	if (was)
		pr_warn("%s: the loss is acknowledged; flushes work again\n",
			netblk_name(nd));
}

/*
 * What the welcome says of the store, against what we know of it. Negative: this
 * is not our disk. *@lost: acknowledged changes may be gone.
 */
int netblk_session_judge(struct netblk_conn *nc, bool *lost)
{
	const struct netblk_welcome *w = &nc->welcome;
	struct netblk_device *nd = nc->nd;

	*lost = false;
	if (!nd->has_store)
		return 0;
	if (memcmp(w->store_uuid, nd->store_uuid, NETBLK2_ID_SIZE)) {
		/* With nobody there to mistake it, the user may have meant it. */
		if (nc->user && !disk_openers(nd->disk))
			return 0;
		nc->why = "it has another store than before";
		nc->final = true;
		return -ESTALE;
	}
	*lost = w->generation != nd->generation && netblk_unflushed(nd);
	return 0;
}

/*
 * The session is the welcome's. All other connections of an older one have been
 * reset: what they still had to say will never be read. @lost is set before a
 * reply of the new generation can be.
 */
void netblk_session_enter(struct netblk_conn *nc, bool lost)
{
	const struct netblk_welcome *w = &nc->welcome;
	struct netblk_device *nd = nc->nd;
	bool other = !nd->has_store ||
		     memcmp(w->store_uuid, nd->store_uuid, NETBLK2_ID_SIZE);
	u64 unflushed = netblk_unflushed(nd), from = nd->generation;

	spin_lock(&nd->lock);
	memcpy(nd->session_id, w->session_id, NETBLK2_ID_SIZE);
	memcpy(nd->store_uuid, w->store_uuid, NETBLK2_ID_SIZE);
	nd->generation = w->generation;
	nd->has_session = true;
	nd->has_store = true;
	if (other)
		nd->lost = false;
	if (lost) {
		nd->lost = true;
		snprintf(nd->lost_why, sizeof(nd->lost_why),
			 "generation %llu became %llu with %llu acknowledged changes not flushed",
			 (unsigned long long)from,
			 (unsigned long long)w->generation,
			 (unsigned long long)unflushed);
	}
	spin_unlock(&nd->lock);

	/* What a new generation lost is in lost, and counted no more. */
	if (other || lost || from != w->generation)
		atomic64_set(&nd->covered, atomic64_read(&nd->acknowledged));
	if (lost)
		pr_crit("%s: LOST: %s. The server's machine or its store went down, and acknowledged writes may be gone. Every flush fails until the loss is acknowledged: check the data, then write 1 to /sys/block/%s/reset_lost, or close the device everywhere\n",
			netblk_name(nd), nd->lost_why, netblk_name(nd));
}

/* A new session is begun by the next connect. */
void netblk_session_leave(struct netblk_device *nd)
{
	spin_lock(&nd->lock);
	nd->has_session = false;
	spin_unlock(&nd->lock);
}

/*
 * The disk.
 *
 * Limits are changed by a work item and never by the thread: the lock for them
 * may be held by who waits for I/O, which waits for the thread.
 */
int netblk_geometry_of(struct netblk_conn *nc, struct netblk_geometry *g)
{
	const struct netblk_welcome *w = &nc->welcome;
	struct netblk_device *nd = nc->nd;

	memset(g, 0, sizeof(*g));
	if (nc->proto->version == 1) {
		g->size_bytes = nd->size_mb << 20;
		g->block_bytes = SECTOR_SIZE;
		g->max_request_bytes = NETBLK_MAX_REQUEST_BYTES;
		return 0;
	}
	if (w->block_bytes > PAGE_SIZE) {
		nc->why = "its blocks are larger than this kernel's pages";
		nc->final = true;
		return -EOPNOTSUPP;
	}
	g->size_bytes = w->size_bytes;
	g->block_bytes = w->block_bytes;
	g->preferred_bytes = w->preferred_bytes;
	g->max_request_bytes =
		round_down(min(w->max_payload_bytes, NETBLK_MAX_REQUEST_BYTES),
			   w->block_bytes);
	g->cache = true;
	g->trim = w->flags & NETBLK2_WELCOME_TRIM;
	g->zeroes = true;
	g->stable = w->crc32c;
	g->rotational = w->flags & NETBLK2_WELCOME_ROTATIONAL;
	g->read_only = w->flags & NETBLK2_WELCOME_READ_ONLY;
	return 0;
}

/* Tell the block layer, soon. True: it knows already. The thread's. */
bool netblk_geometry_want(struct netblk_device *nd,
			  const struct netblk_geometry *wanted)
{
	bool known;

	spin_lock(&nd->lock);
	known = nd->wanted_seq == nd->applied_seq && !nd->applied_error &&
		!memcmp(wanted, &nd->applied, sizeof(*wanted));
	if (!known) {
		nd->wanted = *wanted;
		nd->wanted_seq++;
	}
	spin_unlock(&nd->lock);
	if (!known)
		queue_work(system_long_wq, &nd->config_work);
	return known;
}

void netblk_geometry_resize(struct netblk_device *nd, u64 size_bytes)
{
	struct netblk_geometry wanted;

	spin_lock(&nd->lock);
	wanted = nd->wanted;
	spin_unlock(&nd->lock);
	if (wanted.size_bytes == size_bytes)
		return;
	pr_info_ratelimited("%s: the server changed the size from %llu to %llu bytes\n",
			    netblk_name(nd),
			    (unsigned long long)wanted.size_bytes,
			    (unsigned long long)size_bytes);
	wanted.size_bytes = size_bytes;
	netblk_geometry_want(nd, &wanted);
}

static bool netblk_same_limits(const struct netblk_geometry *a,
			       const struct netblk_geometry *b)
{
	struct netblk_geometry c = *b;

	c.size_bytes = a->size_bytes;
	c.read_only = a->read_only;
	return !memcmp(a, &c, sizeof(c));
}

static int netblk_apply(struct netblk_device *nd,
			const struct netblk_geometry *to,
			const struct netblk_geometry *from)
{
	struct gendisk *disk = nd->disk;
	int err = 0;

	if (!netblk_same_limits(to, from)) {
		bool blocks = to->block_bytes != from->block_bytes;

		/*
		 * Whoever has the device open counts on its block size. Only
		 * tried: an open may be waiting for the I/O that waits for us.
		 */
		if (blocks && !mutex_trylock(&disk->open_mutex))
			return -EBUSY;
		if (blocks && disk_openers(disk))
			err = -EBUSY;
		else
			err = netblk_compat_set_geometry(disk, to);
		if (blocks)
			mutex_unlock(&disk->open_mutex);
	}
	if (err)
		return err;
	netblk_compat_set_flags(disk, to);
	set_disk_ro(disk, to->read_only);
	set_capacity_and_notify(disk, to->size_bytes >> SECTOR_SHIFT);
	return 0;
}

void netblk_config_work(struct work_struct *work)
{
	struct netblk_device *nd = container_of(work, struct netblk_device,
						config_work);
	struct netblk_geometry to, from;
	unsigned int seq;
	int err;

	spin_lock(&nd->lock);
	to = nd->wanted;
	from = nd->applied;
	seq = nd->wanted_seq;
	spin_unlock(&nd->lock);

	err = netblk_apply(nd, &to, &from);

	spin_lock(&nd->lock);
	if (!err)
		nd->applied = to;
	nd->applied_seq = seq;
	nd->applied_error = err;
	spin_unlock(&nd->lock);
	netblk_kick(nd);
}
