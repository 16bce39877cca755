// SPDX-License-Identifier: GPL-2.0-only
/*
 * What connections carry when they end: requests are taken from them, moved to
 * where they are sent again, or ended. The device's thread is the only one here.
 */
#include <linux/jiffies.h>
#include <linux/sched.h>

#include "compat.h"
#include "net_block.h"
#include "net_block_core.h"

/*
 * Take the connection away from senders and the thread; the requests in flight
 * go to @list in their order. The caller closes the connection.
 */
struct netblk_conn *netblk_detach(struct netblk_queue *q,
				  struct list_head *list)
{
	struct netblk_conn *nc;

	mutex_lock(&q->tx_lock);
	spin_lock(&q->lock);
	nc = q->conn;
	q->conn = NULL;
	if (nc)
		list_splice_tail_init(&nc->inflight, list);
	spin_unlock(&q->lock);
	mutex_unlock(&q->tx_lock);
	return nc;
}

/* Senders see @nc from here on; what is in @again is sent first. */
void netblk_attach(struct netblk_queue *q, struct netblk_conn *nc,
		   struct list_head *again)
{
	mutex_lock(&q->tx_lock);
	spin_lock(&q->lock);
	list_splice(again, &q->pending);
	q->conn = nc;
	spin_unlock(&q->lock);
	mutex_unlock(&q->tx_lock);
}

void netblk_set_draining(struct netblk_queue *q, bool draining)
{
	mutex_lock(&q->tx_lock);
	q->conn->draining = draining;
	mutex_unlock(&q->tx_lock);
}

bool netblk_any_conn(const struct netblk_device *nd)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].conn)
			return true;
	return false;
}

bool netblk_any_dead(const struct netblk_device *nd)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].dead)
			return true;
	return false;
}

void netblk_not_dead(struct netblk_queue *q)
{
	q->dead = false;
	q->tries = 0;
}

/*
 * End a netblk/2 session that its user ends: another client may own the disk
 * at once. What is answered meanwhile is answered; the rest fails after it.
 */
static void netblk_end_session(struct netblk_device *nd)
{
	unsigned long until = jiffies + msecs_to_jiffies(NETBLK_GOODBYE_MS);
	struct netblk_conn *nc = NULL;
	unsigned int i;

	for (i = 0; i < nd->nr_queues && !nc; i++)
		nc = nd->queues[i].conn;
	if (!nc || nc->proto->version != 2)
		return;
	netblk_set_draining(nc->queue, true);
	if (!netblk2_end_session(nc))
		return;
	while (!nc->farewell && !nc->tx_error && !netblk_conn_rx(nc) &&
	       !nc->farewell && time_before(jiffies, until)) {
		wait_event_idle_timeout(nd->wait,
					test_bit(NETBLK_KICKED, &nd->flags),
					until - jiffies);
		clear_bit(NETBLK_KICKED, &nd->flags);
		/* The bit is cleared before anything it stands for is read. */
		smp_mb__after_atomic();
	}
	/* Kicks that were meant for others have been taken. */
	netblk_kick(nd);
}

/*
 * No more I/O: every request ends with EIO, and netblk_queue_rq() refuses new
 * ones from the moment the state is set. A connection with requests in flight
 * is reset before they end, so that a write is not applied after its failure
 * was reported; in netblk/2 what the server has already got of it is fenced by
 * the session that the next connect begins.
 */
void netblk_fail_all(struct netblk_device *nd, enum netblk_state state)
{
	struct netblk_cmd *cmd, *tmp;
	LIST_HEAD(failed);
	unsigned int i;

	netblk_change_state(nd, state);
	if (state == NETBLK_STATE_DISCONNECTED)
		netblk_end_session(nd);
	netblk_session_leave(nd);
	for (i = 0; i < nd->nr_queues; i++) {
		struct netblk_queue *q = &nd->queues[i];
		LIST_HEAD(unanswered);
		struct netblk_conn *nc = netblk_detach(q, &unanswered);

		if (nc) {
			if (list_empty(&unanswered))
				netblk_conn_goodbye(nc);
			netblk_conn_close(nc);
		}
		spin_lock(&q->lock);
		list_splice_tail_init(&q->pending, &unanswered);
		spin_unlock(&q->lock);
		list_splice_tail(&unanswered, &failed);
		netblk_not_dead(q);
	}

	list_for_each_entry_safe(cmd, tmp, &failed, node) {
		list_del_init(&cmd->node);
		netblk_end_cmd(cmd, BLK_STS_IOERR);
		cond_resched();
	}
	WRITE_ONCE(nd->nr_live, 1);
}

/* Hand what waits on queues from @live on to those before; no more comes. */
void netblk_shrink(struct netblk_device *nd, unsigned int live)
{
	unsigned int i;

	WRITE_ONCE(nd->nr_live, live);
	for (i = live; i < nd->nr_queues; i++) {
		struct netblk_queue *from = &nd->queues[i];
		struct netblk_queue *to = &nd->queues[i % live];
		struct netblk_cmd *cmd;
		unsigned int moved = 0;
		LIST_HEAD(list);

		netblk_not_dead(from);
		spin_lock(&from->lock);
		list_splice_init(&from->pending, &list);
		list_for_each_entry(cmd, &list, node) {
			cmd->queue = to;
			moved++;
		}
		from->active -= moved;
		spin_unlock(&from->lock);
		if (!moved)
			continue;
		spin_lock(&to->lock);
		if (!to->active)
			to->busy_since = jiffies;
		to->active += moved;
		list_splice_tail(&list, &to->pending);
		spin_unlock(&to->lock);
	}
}

/*
 * Reset all connections, and nothing that they still had to say is read. What
 * they carried waits for what comes next, on the same queues. Without @ledger
 * the server knows nothing of it any more: slots are dealt anew.
 */
void netblk_reset_all(struct netblk_device *nd, bool ledger)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++) {
		struct netblk_queue *q = &nd->queues[i];
		LIST_HEAD(again);
		struct netblk_conn *nc = netblk_detach(q, &again);
		struct netblk_cmd *cmd;

		if (nc)
			netblk_conn_close(nc);
		list_for_each_entry(cmd, &again, node)
			netblk_cmd_rewind(cmd);
		spin_lock(&q->lock);
		list_splice(&again, &q->pending);
		if (!ledger)
			list_for_each_entry(cmd, &q->pending, node)
				netblk_slot_put(q, cmd);
		spin_unlock(&q->lock);
		if (nc && !q->dead) {
			q->dead = true;
			q->dead_since = jiffies;
			q->tries = 0;
			q->try_at = jiffies;
		}
	}
}

/*
 * End, of all that waits, what @which chooses. On a loss that is what promises
 * durability; on a move to netblk/1, what it does not have.
 */
void netblk_end_pending(struct netblk_device *nd,
			bool (*which)(const struct netblk_cmd *cmd),
			blk_status_t status)
{
	struct netblk_cmd *cmd, *tmp;
	LIST_HEAD(list);
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++) {
		struct netblk_queue *q = &nd->queues[i];

		spin_lock(&q->lock);
		list_for_each_entry_safe(cmd, tmp, &q->pending, node)
			if (which(cmd))
				list_move_tail(&cmd->node, &list);
		spin_unlock(&q->lock);
	}
	list_for_each_entry_safe(cmd, tmp, &list, node) {
		list_del_init(&cmd->node);
		netblk_end_cmd(cmd, status);
	}
}

bool netblk_is_durable(const struct netblk_cmd *cmd)
{
	return cmd->type == NETBLK2_FLUSH || cmd->fua;
}
