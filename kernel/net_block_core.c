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
#include <linux/random.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "net_block.h"
#include "net_block_core.h"

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
	struct netblk_wish wish;
	bool connected; /* a connection was made, not just found */
	int error;
};

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

void netblk_change_state(struct netblk_device *nd,
			 enum netblk_state state)
{
	if (nd->state != state)
		nd->tell = true;
	spin_lock(&nd->lock);
	netblk_set_state(nd, state);
	spin_unlock(&nd->lock);
}

static void netblk_end_op(struct netblk_op *op, int error)
{
	op->error = error;
	complete(&op->done);
	if (refcount_dec_and_test(&op->refs))
		kfree(op);
}

void netblk_end_waiting(struct netblk_device *nd, int error)
{
	struct netblk_op *op, *tmp;

	list_for_each_entry_safe(op, tmp, &nd->waiting, node) {
		list_del(&op->node);
		op->connected = !error;
		netblk_end_op(op, error);
	}
}

void netblk_cancel_next(struct netblk_device *nd, int error)
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

static void netblk_give_up(struct netblk_queue *q, const char *limit)
{
	struct netblk_device *nd = q->nd;

	pr_err("%s: gave up on %pISpc after %u tries in %u ms (%s): %s (%pe); I/O fails until connect\n",
	       netblk_name(nd), &nd->peer, q->tries,
	       q->dead ? jiffies_to_msecs(jiffies - q->dead_since) : 0, limit,
	       nd->why,
	       ERR_PTR(nd->error));
	netblk_fail_all(nd, NETBLK_STATE_ERROR);
	netblk_cancel_next(nd, -ETIMEDOUT);
}

/*
 * From the beginning of one try to that of the next. Tries of netblk/1 are
 * counted, and so keep their distance; a netblk/2 session is sought until its
 * dead time, more and more seldom.
 */
static unsigned long netblk_pause(struct netblk_queue *q)
{
	unsigned int most = READ_ONCE(q->nd->connect_timeout_ms);

	if (q->nd->version != 2)
		return msecs_to_jiffies(most);
	return msecs_to_jiffies(min(most, NETBLK_FIRST_PAUSE_MS <<
						  min(q->tries, 10u)));
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
			  netblk_dead_by(nd, nc->up_at))) {
		q->dead = true;
		q->dead_since = now;
		q->tries = 0;
		q->try_at = now;
	} else {
		q->try_at = q->tried_at + netblk_pause(q);
	}

	list_for_each_entry(cmd, &again, node) {
		netblk_cmd_rewind(cmd);
		carried++;
	}
	pr_warn_ratelimited("%s: lost %pISpc: %s (%pe); %u requests to send again\n",
			    netblk_name(nd), &nc->peer, nd->why, ERR_PTR(error), carried);
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
	return netblk_dead_by(q->nd, from);
}

static void netblk_service(struct netblk_queue *q, unsigned long *wake_at)
{
	struct netblk_device *nd = q->nd;
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
	/* a heartbeat may have met it */
	if (!err)
		err = READ_ONCE(nc->tx_error);
	if (err == -ETIME) {
		nd->why = nc->why;
		nd->error = err;
		netblk_give_up(q, "dead_time_ms");
	} else if (err) {
		netblk_lost(q, err);
	}
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
	nd->next_wish = op->wish;
	get_random_bytes(nd->next_session_id, NETBLK2_ID_SIZE);
	netblk_open_next(&nd->queues[0], &op->addr,
			 op->wish.protocol == 1 ? 1 : 2, true);
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
			netblk_end_op(op, netblk_op_handover(nd, op->handover));
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
	if (nd->version != 2 && netblk_dead_time_ms(nd) != NETBLK_FOR_EVER_MS &&
	    q->tries >= READ_ONCE(nd->max_retries)) {
		netblk_give_up(q, "max_retries");
	} else if (time_after_eq(jiffies, q->try_at)) {
		q->tries++;
		q->tried_at = jiffies;
		q->try_at = q->tried_at + netblk_pause(q);
		netblk_open_next(q, &nd->addr, nd->version, false);
	} else if (time_before(q->try_at, *wake_at)) {
		*wake_at = q->try_at;
	}
}

/* Add one connection to a netblk/2 session that may have more. */
static void netblk_join(struct netblk_device *nd, unsigned long *wake_at)
{
	struct netblk_queue *q;

	if (!nd->has_session || nd->handed_over || nd->next ||
	    nd->nr_live >= nd->stride ||
	    !netblk_any_conn(nd))
		return;
	q = &nd->queues[nd->nr_live];
	if (time_after_eq(jiffies, nd->join_at))
		netblk_open_next(q, &nd->addr, 2, false);
	else if (time_before(nd->join_at, *wake_at))
		*wake_at = nd->join_at;
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
	netblk_join(nd, &wake_at);

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
	op->wish = nd->wish;
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

	/* The size is there when the caller is told so. */
	if (!err)
		flush_work(&nd->config_work);
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
	netblk_do_op(nd, NETBLK_OP_SHUTDOWN, NULL, NULL);
	/* It may wait for who waits for I/O, and I/O fails from here on. */
	cancel_work_sync(&nd->config_work);
}

int netblk_core_start(struct netblk_device *nd)
{
	spin_lock_init(&nd->lock);
	INIT_LIST_HEAD(&nd->ops);
	INIT_LIST_HEAD(&nd->waiting);
	init_waitqueue_head(&nd->wait);
	INIT_WORK(&nd->config_work, netblk_config_work);
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
