// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device's thread: the one place where connections are opened, lost,
 * sought again and given up, and where requests are completed.
 *
 * The thread never blocks on a server. It wakes when it is kicked (socket
 * callbacks, control operations, the watchdog) or when the nearest deadline
 * has come, looks at everything once (netblk_step) and sleeps again.
 *
 * After a loss the tries are counted until the server answers a request, not
 * until it accepts a connection: a stopped server's kernel still accepts.
 */
#include <linux/kthread.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "net_block.h"

enum netblk_op_kind {
	NETBLK_OP_CONNECT,
	NETBLK_OP_DISCONNECT,
	NETBLK_OP_HANDOVER,
	NETBLK_OP_SHUTDOWN,
};

/*
 * What a user asks of the thread. The asker may leave first, on a signal. The
 * state is set before an operation ends: who is told finds it there.
 */
struct netblk_op {
	struct list_head node;
	refcount_t refs;
	struct completion done;
	enum netblk_op_kind kind;
	struct netblk_addr addr;
	struct netblk_handover *handover; /* the asker's, who waits for the end */
	bool connected; /* a connection was made, not just found */
	int error;
};

static unsigned long netblk_ms(const unsigned int *ms)
{
	return msecs_to_jiffies(READ_ONCE(*ms));
}

static bool netblk_same_addr(const struct netblk_addr *a,
			     const struct netblk_addr *b)
{
	return a->ip == b->ip && a->port == b->port;
}

void netblk_kick(struct netblk_device *nd)
{
	/* what the thread is to see comes before the bit */
	smp_mb__before_atomic();
	set_bit(NETBLK_KICKED, &nd->flags);
	/* wq_has_sleeper() has the barrier between the bit and the sleeper. */
	if (wq_has_sleeper(&nd->wait))
		wake_up(&nd->wait);
}

static void netblk_watchdog(struct timer_list *t)
{
	netblk_kick(container_of(t, struct netblk_device, watchdog));
}

static void netblk_set_state(struct netblk_device *nd, enum netblk_state state)
{
	lockdep_assert_held(&nd->lock);
	if (nd->state == state)
		return;
	nd->state = state;
	if (nd->state_node)
		sysfs_notify_dirent(nd->state_node);
}

static void netblk_change_state(struct netblk_device *nd,
				enum netblk_state state)
{
	if (nd->state != state)
		nd->tell = true;
	spin_lock(&nd->lock);
	netblk_set_state(nd, state);
	spin_unlock(&nd->lock);
}

/*
 * Take the connection away from senders and the thread; the requests in flight
 * go to @list in their order. The caller closes the connection.
 */
static struct netblk_conn *netblk_detach(struct netblk_queue *q,
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
static void netblk_attach(struct netblk_queue *q, struct netblk_conn *nc,
			  struct list_head *again)
{
	mutex_lock(&q->tx_lock);
	spin_lock(&q->lock);
	list_splice(again, &q->pending);
	q->conn = nc;
	spin_unlock(&q->lock);
	mutex_unlock(&q->tx_lock);
}

static void netblk_set_draining(struct netblk_queue *q, bool draining)
{
	mutex_lock(&q->tx_lock);
	q->conn->draining = draining;
	mutex_unlock(&q->tx_lock);
}

static bool netblk_any_conn(const struct netblk_device *nd)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].conn)
			return true;
	return false;
}

static bool netblk_any_dead(const struct netblk_device *nd)
{
	unsigned int i;

	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].dead)
			return true;
	return false;
}

static void netblk_not_dead(struct netblk_queue *q)
{
	q->dead = false;
	q->tries = 0;
}

static void netblk_end_op(struct netblk_op *op, int error)
{
	op->error = error;
	complete(&op->done);
	if (refcount_dec_and_test(&op->refs))
		kfree(op);
}

static void netblk_end_waiting(struct netblk_device *nd, int error)
{
	struct netblk_op *op, *tmp;

	list_for_each_entry_safe(op, tmp, &nd->waiting, node) {
		list_del(&op->node);
		op->connected = !error;
		netblk_end_op(op, error);
	}
}

static void netblk_cancel_next(struct netblk_device *nd, int error)
{
	if (nd->next) {
		struct netblk_queue *q = nd->next->queue;

		netblk_conn_close(nd->next);
		nd->next = NULL;
		if (q->conn) {
			netblk_set_draining(q, false);
			netblk_tx(q);
		}
	}
	nd->one_try = false;
	netblk_end_waiting(nd, error);
}

/*
 * No more I/O: every request ends with EIO, and netblk_queue_rq() refuses new
 * ones from the moment the state is set. A connection with requests in flight
 * is reset before they end, so that a write is not applied after its failure
 * was reported.
 */
static void netblk_fail_all(struct netblk_device *nd, enum netblk_state state)
{
	struct netblk_cmd *cmd, *tmp;
	LIST_HEAD(failed);
	unsigned int i;

	netblk_change_state(nd, state);
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
}

static void netblk_give_up(struct netblk_queue *q, const char *limit)
{
	struct netblk_device *nd = q->nd;

	pr_err("%s: gave up on %pI4:%u after %u tries in %u ms (%s): %s (%pe); I/O fails until connect\n",
	       netblk_name(nd), &nd->addr.ip, nd->addr.port, q->tries,
	       jiffies_to_msecs(jiffies - q->dead_since), limit, nd->why,
	       ERR_PTR(nd->error));
	netblk_fail_all(nd, NETBLK_STATE_ERROR);
	netblk_cancel_next(nd, -ETIMEDOUT);
}

/*
 * The connection is of no more use: reset it, then put what it carried in
 * front of what was never sent, in the original order.
 */
static void netblk_lost(struct netblk_queue *q, int error)
{
	unsigned long now = jiffies, quiet_until = now;
	struct netblk_device *nd = q->nd;
	struct netblk_cmd *cmd;
	struct netblk_conn *nc;
	unsigned int carried = 0;
	LIST_HEAD(again);

	nc = netblk_detach(q, &again);
	if (!netblk_any_conn(nd))
		netblk_change_state(nd, NETBLK_STATE_CONNECTING);
	nd->why = nc->why ? nc->why : "connection failed";
	nd->error = error;
	nd->tell = true;

	/*
	 * The clock and the tries start over when the last loss was made good:
	 * by an answer (netblk_service), or by a connection that stayed up for
	 * the dead time with nothing to do.
	 */
	spin_lock(&q->lock);
	if (q->active)
		quiet_until = q->busy_since;
	spin_unlock(&q->lock);
	if (!q->dead ||
	    time_after_eq(quiet_until,
			  nc->up_at + netblk_ms(&nd->dead_time_ms))) {
		q->dead = true;
		q->dead_since = now;
		q->tries = 0;
		q->try_at = now;
	} else {
		q->try_at = q->tried_at + netblk_ms(&nd->connect_timeout_ms);
	}

	list_for_each_entry(cmd, &again, node) {
		netblk_cmd_rewind(cmd);
		carried++;
	}
	pr_warn_ratelimited("%s: lost %pI4:%u: %s (%pe); %u requests to send again\n",
			    netblk_name(nd), &nc->addr.ip, nc->addr.port,
			    nd->why, ERR_PTR(error), carried);
	netblk_conn_close(nc);

	spin_lock(&q->lock);
	list_splice(&again, &q->pending);
	spin_unlock(&q->lock);
}

/* The time by which a lost server must have answered something. */
static unsigned long netblk_dead_at(struct netblk_queue *q)
{
	unsigned long from = q->dead_since;

	spin_lock(&q->lock);
	if (q->active && time_after(q->busy_since, from))
		from = q->busy_since;
	spin_unlock(&q->lock);
	return from + netblk_ms(&q->nd->dead_time_ms);
}

/* next becomes its queue's connection. */
static void netblk_promote(struct netblk_device *nd)
{
	struct netblk_conn *old, *nc = nd->next;
	struct netblk_queue *q = nc->queue;
	struct netblk_cmd *cmd;
	LIST_HEAD(again);

	old = netblk_detach(q, &again);
	if (old) {
		/* A drain that ran out of time: the rest is sent to the new. */
		list_for_each_entry(cmd, &again, node)
			netblk_cmd_rewind(cmd);
		if (!list_empty(&again)) {
			netblk_conn_close(old);
			old = NULL;
		}
	}

	nd->next = NULL;
	nd->one_try = false;
	nd->handed_over = false;
	nd->addr = nc->addr;
	nc->up_at = jiffies;
	if (!list_empty(&nd->waiting))
		netblk_not_dead(q);
	pr_info_ratelimited("%s: %sconnected to %pI4:%u\n", netblk_name(nd),
			    q->dead ? "re" : "", &nc->addr.ip, nc->addr.port);
	if (q->dead)
		netblk_stats_reconnected(q);

	netblk_attach(q, nc, &again);
	netblk_change_state(nd, NETBLK_STATE_CONNECTED);
	netblk_end_waiting(nd, 0);
	netblk_tx(q);
	if (old) {
		netblk_conn_goodbye(old);
		netblk_conn_close(old);
	}
}

static void netblk_try_failed(struct netblk_device *nd, int error)
{
	struct netblk_conn *nc = nd->next;
	bool user = !list_empty(&nd->waiting);
	bool one_try = nd->one_try;

	if (nc) {
		pr_warn_ratelimited("%s: cannot connect to %pI4:%u: %pe\n",
				    netblk_name(nd), &nc->addr.ip,
				    nc->addr.port, ERR_PTR(error));
	} else {
		pr_warn_ratelimited("%s: cannot make a socket: %pe\n",
				    netblk_name(nd), ERR_PTR(error));
	}
	if (!user || one_try) {
		nd->why = "cannot connect";
		nd->error = error;
	}
	if (one_try)
		netblk_fail_all(nd, NETBLK_STATE_ERROR);
	netblk_cancel_next(nd, error);
}

/* Begin to connect @q to @addr. */
static void netblk_open_next(struct netblk_queue *q,
			     const struct netblk_addr *addr)
{
	struct netblk_conn *nc = netblk_conn_open(q, addr);

	if (IS_ERR(nc)) {
		netblk_try_failed(q->nd, PTR_ERR(nc));
		return;
	}
	q->nd->next = nc;
}

/* Look at the connection being made; a move waits for the old one to drain. */
static void netblk_service_next(struct netblk_device *nd)
{
	struct netblk_conn *nc = nd->next;
	struct netblk_queue *q = nc->queue;
	bool drained;
	int err;

	if (!nc->established) {
		err = netblk_conn_poll(nc);
		if (err == -EINPROGRESS &&
		    time_after_eq(jiffies, nc->deadline))
			err = -ETIMEDOUT;
		if (err == -EINPROGRESS)
			return;
		if (err) {
			netblk_try_failed(nd, err);
			return;
		}
		nc->deadline = jiffies + netblk_ms(&nd->io_timeout_ms);
		if (q->conn)
			netblk_set_draining(q, true);
	}

	spin_lock(&q->lock);
	drained = !q->conn || list_empty(&q->conn->inflight);
	spin_unlock(&q->lock);
	if (drained || time_after_eq(jiffies, nc->deadline))
		netblk_promote(nd);
}

static void netblk_service(struct netblk_queue *q, unsigned long *wake_at)
{
	struct netblk_conn *nc = q->conn;
	u64 replies = nc->replies;
	int err;

	err = netblk_conn_rx(nc);
	if (nc->replies != replies)
		netblk_not_dead(q);
	if (!err && READ_ONCE(nc->tx_stalled)) {
		mutex_lock(&q->tx_lock);
		nc->tx_stalled = false;
		if (!nc->tx_error)
			nc->tx_error = netblk_conn_tx(nc);
		mutex_unlock(&q->tx_lock);
	} else if (!err && !list_empty(&q->pending)) {
		/* left by a drain; who adds a request sends it, too */
		netblk_tx(q);
	}
	if (!err)
		err = READ_ONCE(nc->tx_error);
	if (!err)
		err = netblk_conn_check(nc, wake_at);
	if (err)
		netblk_lost(q, err);
}

static void netblk_op_connect(struct netblk_device *nd, struct netblk_op *op)
{
	if (nd->next && netblk_same_addr(&op->addr, &nd->next->addr)) {
		list_add_tail(&op->node, &nd->waiting);
		return;
	}
	if (nd->next)
		netblk_cancel_next(nd, -ECANCELED);
	if (netblk_any_conn(nd) && netblk_same_addr(&op->addr, &nd->addr)) {
		netblk_end_op(op, 0);
		return;
	}

	list_add_tail(&op->node, &nd->waiting);
	/* With neither a connection nor a lost one, failure ends in error. */
	nd->one_try = !netblk_any_conn(nd) && !netblk_any_dead(nd);
	if (nd->one_try)
		netblk_change_state(nd, NETBLK_STATE_CONNECTING);
	netblk_open_next(&nd->queues[0], &op->addr);
}

/*
 * Sockets from user space take the place of all connections. Those are reset
 * first, and what they carried is sent again on the new ones.
 */
static void netblk_op_handover(struct netblk_device *nd,
			       struct netblk_handover *h)
{
	struct netblk_cmd *cmd;
	unsigned int i;

	netblk_cancel_next(nd, -ECANCELED);
	nd->proto = h->proto;
	for (i = 0; i < nd->nr_queues; i++) {
		struct netblk_queue *q = &nd->queues[i];
		LIST_HEAD(again);
		struct netblk_conn *old = netblk_detach(q, &again);

		if (old)
			netblk_conn_close(old);
		list_for_each_entry(cmd, &again, node)
			netblk_cmd_rewind(cmd);
		if (q->dead)
			netblk_stats_reconnected(q);
		netblk_not_dead(q);
		h->conns[i]->up_at = jiffies;
		netblk_attach(q, h->conns[i], &again);
	}
	nd->addr = h->conns[0]->addr;
	nd->handed_over = true;
	netblk_change_state(nd, NETBLK_STATE_CONNECTED);
	for (i = 0; i < nd->nr_queues; i++) {
		h->conns[i] = NULL;
		netblk_tx(&nd->queues[i]);
	}
	pr_info_ratelimited("%s: was handed a connection to %pI4:%u\n",
			    netblk_name(nd), &nd->addr.ip, nd->addr.port);
	/* what came before the callbacks were ours has woken nobody */
	netblk_kick(nd);
}

static void netblk_op_disconnect(struct netblk_device *nd)
{
	bool was_up = nd->state != NETBLK_STATE_DISCONNECTED;

	netblk_fail_all(nd, NETBLK_STATE_DISCONNECTED);
	netblk_cancel_next(nd, -ECANCELED);
	if (was_up)
		pr_info_ratelimited("%s: disconnected\n", netblk_name(nd));
}

static void netblk_take_ops(struct netblk_device *nd)
{
	for (;;) {
		struct netblk_op *op;

		spin_lock(&nd->lock);
		op = list_first_entry_or_null(&nd->ops, struct netblk_op, node);
		if (op)
			list_del(&op->node);
		spin_unlock(&nd->lock);
		if (!op)
			return;
		if (op->kind == NETBLK_OP_CONNECT) {
			netblk_op_connect(nd, op);
		} else if (op->kind == NETBLK_OP_HANDOVER) {
			netblk_op_handover(nd, op->handover);
			netblk_end_op(op, 0);
		} else {
			netblk_op_disconnect(nd);
			netblk_end_op(op, 0);
		}
	}
}

/* A queue that is lost: give up, or try again when it is time. */
static void netblk_seek(struct netblk_queue *q, unsigned long *wake_at)
{
	struct netblk_device *nd = q->nd;
	bool busy;

	spin_lock(&q->lock);
	busy = q->active;
	spin_unlock(&q->lock);

	if (!q->conn || busy) {
		unsigned long dead_at = netblk_dead_at(q);

		if (time_after_eq(jiffies, dead_at)) {
			netblk_give_up(q, "dead_time_ms");
			return;
		}
		if (time_before(dead_at, *wake_at))
			*wake_at = dead_at;
	}
	/* user space has to bring the next connection of what it handed over */
	if (q->conn || nd->next || nd->handed_over)
		return;
	if (q->tries >= READ_ONCE(nd->max_retries)) {
		netblk_give_up(q, "max_retries");
	} else if (time_after_eq(jiffies, q->try_at)) {
		q->tries++;
		q->tried_at = jiffies;
		q->try_at = q->tried_at + netblk_ms(&nd->connect_timeout_ms);
		netblk_open_next(q, &nd->addr);
		netblk_kick(nd);
	} else if (time_before(q->try_at, *wake_at)) {
		*wake_at = q->try_at;
	}
}

/* One look at everything. Returns how long to sleep at most, in jiffies. */
static long netblk_step(struct netblk_device *nd)
{
	unsigned long now = jiffies;
	unsigned long wake_at = now + MAX_JIFFY_OFFSET;
	unsigned int i;

	netblk_take_ops(nd);
	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].conn)
			netblk_service(&nd->queues[i], &wake_at);
	if (nd->next)
		netblk_service_next(nd);
	if (nd->next && time_before(nd->next->deadline, wake_at))
		wake_at = nd->next->deadline;
	for (i = 0; i < nd->nr_queues; i++)
		if (nd->queues[i].dead && !nd->one_try)
			netblk_seek(&nd->queues[i], &wake_at);

	now = jiffies;
	return time_after(wake_at, now) ? (long)(wake_at - now) : 0;
}

static int netblk_thread(void *data)
{
	struct netblk_device *nd = data;
	long timeout = MAX_SCHEDULE_TIMEOUT;

	while (!kthread_should_stop()) {
		/* With a timeout of 0 the condition is not waited for. */
		wait_event_idle_timeout(nd->wait,
					test_bit(NETBLK_KICKED, &nd->flags) ||
					kthread_should_stop(), timeout);
		clear_bit(NETBLK_KICKED, &nd->flags);
		/* The bit is cleared before anything it stands for is read. */
		smp_mb__after_atomic();
		timeout = netblk_step(nd);
		if (nd->tell) {
			nd->tell = false;
			netblk_genl_event(nd);
		}
		cond_resched();
	}
	return 0;
}

/*
 * Hand an operation to the thread and wait for its end. The thread's deadlines
 * bound the wait; a signal ends it at once and leaves the operation running.
 */
static int netblk_do_op(struct netblk_device *nd, enum netblk_op_kind kind,
			struct netblk_handover *handover, bool *connected)
{
	struct netblk_op *op = kzalloc(sizeof(*op), GFP_KERNEL);
	int err;

	if (!op)
		return -ENOMEM;
	refcount_set(&op->refs, 2);
	init_completion(&op->done);
	op->kind = kind;
	op->handover = handover;

	spin_lock(&nd->lock);
	if (nd->removing) {
		spin_unlock(&nd->lock);
		kfree(op);
		return -ENODEV;
	}
	if (kind == NETBLK_OP_SHUTDOWN)
		nd->removing = true;
	op->addr = nd->configured;
	list_add_tail(&op->node, &nd->ops);
	spin_unlock(&nd->lock);
	netblk_kick(nd);

	if (kind == NETBLK_OP_SHUTDOWN || handover) {
		wait_for_completion(&op->done);
		err = 0;
	} else {
		err = wait_for_completion_interruptible(&op->done);
	}
	if (err) {
		/* The write starts again after the handler, and finds the try. */
		err = -ERESTARTSYS;
	} else {
		err = op->error;
		if (connected)
			*connected = op->connected;
	}
	if (refcount_dec_and_test(&op->refs))
		kfree(op);
	return err;
}

/*
 * Another server may have another partition table. The next open looks at it;
 * udev opens the device when it sees the event.
 */
static void netblk_new_server(struct netblk_device *nd)
{
	if (!test_bit(GD_ADDED, &nd->disk->state))
		return;
	clear_bit(GD_SUPPRESS_PART_SCAN, &nd->disk->state);
	set_bit(GD_NEED_PART_SCAN, &nd->disk->state);
	kobject_uevent(&disk_to_dev(nd->disk)->kobj, KOBJ_CHANGE);
}

/*
 * Connect to the configured server: one try of at most connect_timeout_ms.
 * Returns 0 at once when connected to it already.
 */
int netblk_connect(struct netblk_device *nd)
{
	bool connected = false;
	int err = netblk_do_op(nd, NETBLK_OP_CONNECT, NULL, &connected);

	if (!err && connected)
		netblk_new_server(nd);
	return err;
}

/* Use the connections of @h, and leave there what was not used. */
int netblk_handover(struct netblk_device *nd, struct netblk_handover *h)
{
	bool fresh = READ_ONCE(nd->state) != NETBLK_STATE_CONNECTING;
	int err = netblk_do_op(nd, NETBLK_OP_HANDOVER, h, NULL);

	if (!err && h->size_bytes)
		set_capacity_and_notify(nd->disk,
					h->size_bytes >> SECTOR_SHIFT);
	if (!err && fresh)
		netblk_new_server(nd);
	return err;
}

/* Every wait ends now: tries, requests in flight and queued (with EIO). */
int netblk_disconnect(struct netblk_device *nd)
{
	return netblk_do_op(nd, NETBLK_OP_DISCONNECT, NULL, NULL);
}

/* A disconnect after which no operation is accepted any more. */
void netblk_shutdown(struct netblk_device *nd)
{
	netblk_do_op(nd, NETBLK_OP_SHUTDOWN, NULL, NULL);
}

int netblk_core_start(struct netblk_device *nd)
{
	spin_lock_init(&nd->lock);
	INIT_LIST_HEAD(&nd->ops);
	INIT_LIST_HEAD(&nd->waiting);
	init_waitqueue_head(&nd->wait);
	timer_setup(&nd->watchdog, netblk_watchdog, 0);
	nd->why = "not connected";

	nd->thread = kthread_run(netblk_thread, nd, "%s", netblk_name(nd));
	return PTR_ERR_OR_ZERO(nd->thread);
}

/* After netblk_shutdown(), and when the disk can submit nothing any more. */
void netblk_core_stop(struct netblk_device *nd)
{
	kthread_stop(nd->thread);
	timer_delete_sync(&nd->watchdog);
}
