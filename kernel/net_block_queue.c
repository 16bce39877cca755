// SPDX-License-Identifier: GPL-2.0-only
/*
 * The block layer's side: requests come in, are sent by the task that submits
 * them, and are ended. See net_block.h for who owns a request.
 */
#include <linux/blk-mq.h>
#include <linux/ktime.h>
#include <linux/slab.h>

#include "compat.h"
#include "net_block.h"

/* To the start of the request's data. */
void netblk_cmd_rewind_data(struct netblk_cmd *cmd)
{
	struct request *rq = blk_mq_rq_from_pdu(cmd);
	bool data = cmd->type == NETBLK2_READ || cmd->type == NETBLK2_WRITE;

	cmd->data.bio = rq->bio;
	if (rq->bio)
		cmd->data.iter = rq->bio->bi_iter;
	cmd->data.left = data ? blk_rq_bytes(rq) : 0;
}

/* Back to the start, to be sent again whole. Keeps its slot. */
void netblk_cmd_rewind(struct netblk_cmd *cmd)
{
	cmd->header_done = 0;
	cmd->sent = false;
	cmd->in_flight = false;
	cmd->receiving = false;
	netblk_cmd_rewind_data(cmd);
}

/* @cmd is on no list: the caller took it off and so has to end it. */
void netblk_end_cmd(struct netblk_cmd *cmd, blk_status_t status)
{
	struct request *rq = blk_mq_rq_from_pdu(cmd);
	struct netblk_queue *q = cmd->queue;

	netblk_stats_end(q->nd, rq, status);
	spin_lock(&q->lock);
	netblk_slot_put(q, cmd);
	q->active--;
	spin_unlock(&q->lock);
	blk_mq_end_request(rq, status);
}

/*
 * Send what is pending, from the task that submitted it. Whoever holds tx_lock
 * sends for everybody: it looks at the list again after it has let go, and a
 * task that failed to get the lock put its request on the list before. Both
 * use netblk_queue.lock for it, which orders the two.
 */
void netblk_tx(struct netblk_queue *q)
{
	bool again;

	do {
		struct netblk_conn *nc;
		int err;

		if (!mutex_trylock(&q->tx_lock))
			return;
		nc = q->conn;
		if (nc && !nc->tx_stalled && !nc->tx_error) {
			err = netblk_conn_tx(nc);
			if (err) {
				WRITE_ONCE(nc->tx_error, err);
				netblk_kick(q->nd);
			}
		}
		mutex_unlock(&q->tx_lock);

		spin_lock(&q->lock);
		nc = q->conn;
		again = nc && !list_empty(&q->pending) &&
			!READ_ONCE(nc->draining) &&
			!READ_ONCE(nc->tx_stalled) &&
			!READ_ONCE(nc->tx_error);
		spin_unlock(&q->lock);
	} while (again);
}

/* The request as a protocol sees it; 0: no version has it. */
static u8 netblk_type_of(const struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return NETBLK2_READ;
	case REQ_OP_WRITE:
		return NETBLK2_WRITE;
	case REQ_OP_FLUSH:
		return NETBLK2_FLUSH;
	case REQ_OP_DISCARD:
		return NETBLK2_TRIM;
	case REQ_OP_WRITE_ZEROES:
		return NETBLK2_WRITE_ZEROES;
	default:
		return 0;
	}
}

/* blk-mq has no more hardware queues than there are processors. */
static bool netblk_spreads(const struct netblk_device *nd)
{
	return nd->tag_set.nr_hw_queues < READ_ONCE(nd->nr_live);
}

/*
 * The queue that a request goes to. Several hardware queues may lead to one,
 * since a server may allow fewer connections than we have, and one may come
 * later; or one to several, a few neighbours to each.
 */
static struct netblk_queue *netblk_queue_of(struct netblk_device *nd,
					    const struct blk_mq_hw_ctx *hctx,
					    const struct request *rq)
{
	unsigned int number = hctx->queue_num;

	if (netblk_spreads(nd))
		number += nd->tag_set.nr_hw_queues *
			  ((unsigned int)rq->tag / NETBLK_NEIGHBOURS);
	return &nd->queues[number % READ_ONCE(nd->nr_live)];
}

/* A batch has ended: send what was queued, wherever it was. */
static void netblk_tx_batch(struct blk_mq_hw_ctx *hctx)
{
	struct netblk_device *nd = hctx->queue->queuedata;
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++)
		if (!list_empty_careful(&nd->queues[i].pending))
			netblk_tx(&nd->queues[i]);
}

/*
 * May sleep (BLK_MQ_F_BLOCKING): on the locks of the sending side, never on
 * the server.
 */
static blk_status_t netblk_queue_rq(struct blk_mq_hw_ctx *hctx,
				    const struct blk_mq_queue_data *bd)
{
	struct netblk_device *nd = hctx->queue->queuedata;
	struct request *rq = bd->rq;
	struct netblk_cmd *cmd = blk_mq_rq_to_pdu(rq);
	u8 type = netblk_type_of(rq);
	enum netblk_state state;
	struct netblk_queue *q;
	bool lost = false, foreign = false;

	if (!type)
		return BLK_STS_NOTSUPP;

	cmd->type = type;
	cmd->write = type == NETBLK2_WRITE;
	cmd->fua = rq->cmd_flags & REQ_FUA;
	cmd->has_slot = false;
	cmd->has_crc = false;
	cmd->sent_at = 0;
	cmd->sent_ns = 0;
	cmd->flush_mark = atomic64_read(&nd->acknowledged);
	netblk_cmd_rewind(cmd);
	cmd->queued_ns = ktime_get_ns();
	blk_mq_start_request(rq);
	if (cmd->write && READ_ONCE(nd->crc32c)) {
		/* here, where tasks do not wait for each other */
		cmd->payload_crc = netblk_crc32c_cursor(&cmd->data);
		cmd->has_crc = true;
	}

	for (;;) {
		q = netblk_queue_of(nd, hctx, rq);
		spin_lock(&q->lock);
		/* netblk_shrink() takes what is there, and no more may come */
		if (q->index < READ_ONCE(nd->nr_live))
			break;
		spin_unlock(&q->lock);
	}
	state = READ_ONCE(nd->state);
	if (READ_ONCE(nd->lost) && (type == NETBLK2_FLUSH || cmd->fua)) {
		lost = true;
	} else if (READ_ONCE(nd->version) == 1 && type > NETBLK2_WRITE) {
		/* the limits say so, too, but not to who is on his way */
		foreign = true;
	} else if (state == NETBLK_STATE_CONNECTED ||
		   state == NETBLK_STATE_CONNECTING) {
		cmd->queue = q;
		if (!q->active++)
			q->busy_since = jiffies;
		list_add_tail(&cmd->node, &q->pending);
		spin_unlock(&q->lock);
		/* From here on the request may be complete and gone. */
		if (bd->last) {
			netblk_tx(q);
			if (netblk_spreads(nd))
				netblk_tx_batch(hctx);
		}
		return BLK_STS_OK;
	}
	spin_unlock(&q->lock);

	if (foreign)
		return BLK_STS_NOTSUPP;
	netblk_stats_refused(nd);
	if (lost)
		pr_err_ratelimited("%s: a flush fails, for acknowledged writes were lost: see /sys/block/%s/lost\n",
				   netblk_name(nd), netblk_name(nd));
	else
		pr_err_ratelimited("%s: %s of %u bytes at sector %llu refused: the state is %s\n",
				   netblk_name(nd),
				   cmd->type == NETBLK2_READ ? "read" : "write",
				   blk_rq_bytes(rq),
				   (unsigned long long)blk_rq_pos(rq),
				   state == NETBLK_STATE_ERROR ?
					   "error" : "disconnected");
	return BLK_STS_IOERR;
}

static void netblk_commit_rqs(struct blk_mq_hw_ctx *hctx)
{
	netblk_tx_batch(hctx);
}

/*
 * Never completes: the thread is the only one who does, and its deadlines are
 * nearer than this one. It is woken, should a wake-up ever be missing.
 */
static enum blk_eh_timer_return netblk_timeout(struct request *rq)
{
	netblk_kick(rq->q->queuedata);
	return BLK_EH_RESET_TIMER;
}

const struct blk_mq_ops netblk_mq_ops = {
	.queue_rq = netblk_queue_rq,
	.commit_rqs = netblk_commit_rqs,
	.timeout = netblk_timeout,
};

int netblk_queues_alloc(struct netblk_device *nd, unsigned int count,
			unsigned int depth)
{
	unsigned int i;

	nd->queues = kcalloc(count, sizeof(*nd->queues), GFP_KERNEL);
	if (!nd->queues)
		return -ENOMEM;
	nd->nr_queues = count;
	nd->nr_live = 1;
	nd->depth = depth;
	nd->stride = 1;
	for (i = 0; i < count; i++) {
		struct netblk_queue *q = &nd->queues[i];

		q->nd = nd;
		q->index = i;
		mutex_init(&q->tx_lock);
		spin_lock_init(&q->lock);
		INIT_LIST_HEAD(&q->pending);
		q->slots = kvcalloc(depth, sizeof(*q->slots), GFP_KERNEL);
		q->free_slots = kvcalloc(depth, sizeof(*q->free_slots),
					 GFP_KERNEL);
		if (!q->slots || !q->free_slots) {
			netblk_queues_free(nd);
			return -ENOMEM;
		}
	}
	return 0;
}

/* The disk is gone, or was never there. */
void netblk_queues_free(struct netblk_device *nd)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++) {
		kvfree(nd->queues[i].slots);
		kvfree(nd->queues[i].free_slots);
	}
	kfree(nd->queues);
}
