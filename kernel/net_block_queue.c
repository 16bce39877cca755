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

/* Back to the start, to be sent again whole. */
void netblk_cmd_rewind(struct netblk_cmd *cmd)
{
	struct request *rq = blk_mq_rq_from_pdu(cmd);

	cmd->header_done = 0;
	cmd->sent = false;
	cmd->receiving = false;
	cmd->data.bio = rq->bio;
	cmd->data.iter = rq->bio->bi_iter;
	cmd->data.left = blk_rq_bytes(rq);
}

/* @cmd is on no list: the caller took it off and so has to end it. */
void netblk_end_cmd(struct netblk_cmd *cmd, blk_status_t status)
{
	struct request *rq = blk_mq_rq_from_pdu(cmd);
	struct netblk_queue *q = cmd->queue;

	netblk_stats_end(q->nd, rq, status);
	spin_lock(&q->lock);
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

/*
 * May sleep (BLK_MQ_F_BLOCKING): on the locks of the sending side, never on
 * the server.
 */
static blk_status_t netblk_queue_rq(struct blk_mq_hw_ctx *hctx,
				    const struct blk_mq_queue_data *bd)
{
	struct netblk_device *nd = hctx->queue->queuedata;
	struct netblk_queue *q = &nd->queues[hctx->queue_num];
	struct request *rq = bd->rq;
	struct netblk_cmd *cmd = blk_mq_rq_to_pdu(rq);
	enum netblk_state state;

	/* Others need a promise that the protocol does not give. */
	if (req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE)
		return BLK_STS_NOTSUPP;

	cmd->queue = q;
	cmd->write = req_op(rq) == REQ_OP_WRITE;
	cmd->queued_ns = ktime_get_ns();
	netblk_cmd_rewind(cmd);
	blk_mq_start_request(rq);

	spin_lock(&q->lock);
	state = READ_ONCE(nd->state);
	if (state == NETBLK_STATE_CONNECTED ||
	    state == NETBLK_STATE_CONNECTING) {
		if (!q->active++)
			q->busy_since = jiffies;
		list_add_tail(&cmd->node, &q->pending);
		spin_unlock(&q->lock);
		/* From here on the request may be complete and gone. */
		if (bd->last)
			netblk_tx(q);
		return BLK_STS_OK;
	}
	spin_unlock(&q->lock);

	netblk_stats_refused(nd);
	pr_err_ratelimited("%s: %s of %u bytes at sector %llu refused: the state is %s\n",
			   netblk_name(nd), cmd->write ? "write" : "read",
			   blk_rq_bytes(rq),
			   (unsigned long long)blk_rq_pos(rq),
			   state == NETBLK_STATE_ERROR ? "error" :
			   "disconnected");
	return BLK_STS_IOERR;
}

static void netblk_commit_rqs(struct blk_mq_hw_ctx *hctx)
{
	struct netblk_device *nd = hctx->queue->queuedata;

	netblk_tx(&nd->queues[hctx->queue_num]);
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

int netblk_queues_alloc(struct netblk_device *nd, unsigned int count)
{
	unsigned int i;

	nd->queues = kcalloc(count, sizeof(*nd->queues), GFP_KERNEL);
	if (!nd->queues)
		return -ENOMEM;
	nd->nr_queues = count;
	for (i = 0; i < count; i++) {
		struct netblk_queue *q = &nd->queues[i];

		q->nd = nd;
		q->index = i;
		mutex_init(&q->tx_lock);
		spin_lock_init(&q->lock);
		INIT_LIST_HEAD(&q->pending);
	}
	return 0;
}

/* The disk is gone, or was never there. */
void netblk_queues_free(struct netblk_device *nd)
{
	kfree(nd->queues);
}
