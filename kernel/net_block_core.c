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
void netblk_end_cmd(struct netblk_device *nd, struct netblk_cmd *cmd,
		    blk_status_t status)
{
	struct request *rq = blk_mq_rq_from_pdu(cmd);

	if (status != BLK_STS_OK)
		atomic64_inc(&nd->errors);
	else if (cmd->write)
		atomic64_add(blk_rq_bytes(rq), &nd->write_bytes);
	else
		atomic64_add(blk_rq_bytes(rq), &nd->read_bytes);

	spin_lock(&nd->lock);
	nd->active--;
	spin_unlock(&nd->lock);
	blk_mq_end_request(rq, status);
}

/*
 * Send what is pending, from the task that submitted it. Whoever holds tx_lock
 * sends for everybody: it looks at the list again after it has let go, and a
 * task that failed to get the lock put its request on the list before. Both
 * use netblk_device.lock for it, which orders the two.
 */
void netblk_tx(struct netblk_device *nd)
{
	bool again;

	do {
		struct netblk_conn *nc;
		int err;

		if (!mutex_trylock(&nd->tx_lock))
			return;
		nc = nd->conn;
		if (nc && !nc->tx_stalled && !nc->tx_error) {
			err = netblk_conn_tx(nc);
			if (err) {
				WRITE_ONCE(nc->tx_error, err);
				netblk_kick(nd);
			}
		}
		mutex_unlock(&nd->tx_lock);

		spin_lock(&nd->lock);
		nc = nd->conn;
		again = nc && !list_empty(&nd->pending) &&
			!READ_ONCE(nc->draining) &&
			!READ_ONCE(nc->tx_stalled) &&
			!READ_ONCE(nc->tx_error);
		spin_unlock(&nd->lock);
	} while (again);
}

/*
 * Take the connection away from senders and the thread; the requests in flight
 * go to @list in their order. The caller closes the connection.
 */
static struct netblk_conn *netblk_detach(struct netblk_device *nd,
					 enum netblk_state state,
					 struct list_head *list)
{
	struct netblk_conn *nc;

	mutex_lock(&nd->tx_lock);
	spin_lock(&nd->lock);
	nc = nd->conn;
	nd->conn = NULL;
	netblk_set_state(nd, state);
	if (nc)
		list_splice_init(&nc->inflight, list);
	spin_unlock(&nd->lock);
	mutex_unlock(&nd->tx_lock);
	return nc;
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
	if (nd->next)
		netblk_conn_close(nd->next);
	nd->next = NULL;
	nd->one_try = false;
	if (nd->conn) {
		mutex_lock(&nd->tx_lock);
		nd->conn->draining = false;
		mutex_unlock(&nd->tx_lock);
		netblk_tx(nd);
	}
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
	struct netblk_conn *nc;
	LIST_HEAD(failed);

	nc = netblk_detach(nd, state, &failed);
	if (nc) {
		if (list_empty(&failed))
			netblk_conn_goodbye(nc);
		netblk_conn_close(nc);
	}

	spin_lock(&nd->lock);
	list_splice_tail_init(&nd->pending, &failed);
	spin_unlock(&nd->lock);

	list_for_each_entry_safe(cmd, tmp, &failed, node) {
		list_del_init(&cmd->node);
		netblk_end_cmd(nd, cmd, BLK_STS_IOERR);
		cond_resched();
	}
	nd->dead = false;
	nd->tries = 0;
}

static void netblk_give_up(struct netblk_device *nd, const char *limit)
{
	pr_err("%s: gave up on %pI4:%u after %u tries in %u ms (%s): %s (%pe); I/O fails until connect\n",
	       netblk_name(nd), &nd->addr.ip, nd->addr.port, nd->tries,
	       jiffies_to_msecs(jiffies - nd->dead_since), limit, nd->why,
	       ERR_PTR(nd->error));
	netblk_fail_all(nd, NETBLK_STATE_ERROR);
	netblk_cancel_next(nd, -ETIMEDOUT);
}

/*
 * The connection is of no more use: reset it, then put what it carried in
 * front of what was never sent, in the original order.
 */
static void netblk_lost(struct netblk_device *nd, int error)
{
	unsigned long now = jiffies, quiet_until = now;
	struct netblk_cmd *cmd;
	struct netblk_conn *nc;
	unsigned int carried = 0;
	LIST_HEAD(again);

	nc = netblk_detach(nd, NETBLK_STATE_CONNECTING, &again);
	nd->why = nc->why ? nc->why : "connection failed";
	nd->error = error;

	/*
	 * The clock and the tries start over when the last loss was made good:
	 * by an answer (netblk_service), or by a connection that stayed up for
	 * the dead time with nothing to do.
	 */
	spin_lock(&nd->lock);
	if (nd->active)
		quiet_until = nd->busy_since;
	spin_unlock(&nd->lock);
	if (!nd->dead ||
	    time_after_eq(quiet_until,
			  nc->up_at + netblk_ms(&nd->dead_time_ms))) {
		nd->dead = true;
		nd->dead_since = now;
		nd->tries = 0;
		nd->try_at = now;
	} else {
		nd->try_at = nd->tried_at + netblk_ms(&nd->connect_timeout_ms);
	}

	list_for_each_entry(cmd, &again, node) {
		netblk_cmd_rewind(cmd);
		carried++;
	}
	pr_warn_ratelimited("%s: lost %pI4:%u: %s (%pe); %u requests to send again\n",
			    netblk_name(nd), &nc->addr.ip, nc->addr.port,
			    nd->why, ERR_PTR(error), carried);
	netblk_conn_close(nc);

	spin_lock(&nd->lock);
	list_splice(&again, &nd->pending);
	spin_unlock(&nd->lock);
}

/* The time by which a lost server must have answered something. */
static unsigned long netblk_dead_at(struct netblk_device *nd)
{
	unsigned long from = nd->dead_since;

	spin_lock(&nd->lock);
	if (nd->active && time_after(nd->busy_since, from))
		from = nd->busy_since;
	spin_unlock(&nd->lock);
	return from + netblk_ms(&nd->dead_time_ms);
}

/* next becomes conn. */
static void netblk_promote(struct netblk_device *nd)
{
	struct netblk_conn *old, *nc = nd->next;
	struct netblk_cmd *cmd;
	LIST_HEAD(again);
	bool user = !list_empty(&nd->waiting);

	old = netblk_detach(nd, nd->state, &again);
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
	nd->addr = nc->addr;
	nc->up_at = jiffies;
	if (user) {
		nd->dead = false;
		nd->tries = 0;
	}
	pr_info_ratelimited("%s: %sconnected to %pI4:%u\n", netblk_name(nd),
			    nd->dead ? "re" : "", &nc->addr.ip, nc->addr.port);

	mutex_lock(&nd->tx_lock);
	spin_lock(&nd->lock);
	list_splice(&again, &nd->pending);
	nd->conn = nc;
	netblk_set_state(nd, NETBLK_STATE_CONNECTED);
	spin_unlock(&nd->lock);
	mutex_unlock(&nd->tx_lock);

	netblk_end_waiting(nd, 0);
	netblk_tx(nd);
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

/* Begin to connect to @addr. */
static void netblk_open_next(struct netblk_device *nd,
			     const struct netblk_addr *addr)
{
	struct netblk_conn *nc = netblk_conn_open(nd, addr);

	if (IS_ERR(nc)) {
		netblk_try_failed(nd, PTR_ERR(nc));
		return;
	}
	nd->next = nc;
}

/* Look at the connection being made; a move waits for the old one to drain. */
static void netblk_service_next(struct netblk_device *nd)
{
	struct netblk_conn *nc = nd->next;
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
		if (nd->conn) {
			mutex_lock(&nd->tx_lock);
			nd->conn->draining = true;
			mutex_unlock(&nd->tx_lock);
		}
	}

	spin_lock(&nd->lock);
	drained = !nd->conn || list_empty(&nd->conn->inflight);
	spin_unlock(&nd->lock);
	if (drained || time_after_eq(jiffies, nc->deadline))
		netblk_promote(nd);
}

static void netblk_service(struct netblk_device *nd, unsigned long *wake_at)
{
	struct netblk_conn *nc = nd->conn;
	u64 replies = nc->replies;
	int err;

	err = netblk_conn_rx(nc);
	if (nc->replies != replies) {
		nd->dead = false;
		nd->tries = 0;
	}
	if (!err && READ_ONCE(nc->tx_stalled)) {
		mutex_lock(&nd->tx_lock);
		nc->tx_stalled = false;
		if (!nc->tx_error)
			nc->tx_error = netblk_conn_tx(nc);
		mutex_unlock(&nd->tx_lock);
	} else if (!err && !list_empty(&nd->pending)) {
		/* left by a drain; who adds a request sends it, too */
		netblk_tx(nd);
	}
	if (!err)
		err = READ_ONCE(nc->tx_error);
	if (!err)
		err = netblk_conn_check(nc, wake_at);
	if (err)
		netblk_lost(nd, err);
}

static void netblk_op_connect(struct netblk_device *nd, struct netblk_op *op)
{
	if (nd->next && netblk_same_addr(&op->addr, &nd->next->addr)) {
		list_add_tail(&op->node, &nd->waiting);
		return;
	}
	if (nd->next)
		netblk_cancel_next(nd, -ECANCELED);
	if (nd->conn && netblk_same_addr(&op->addr, &nd->addr)) {
		netblk_end_op(op, 0);
		return;
	}

	list_add_tail(&op->node, &nd->waiting);
	/* With neither a connection nor a lost one, failure ends in error. */
	nd->one_try = !nd->conn && !nd->dead;
	if (nd->one_try) {
		spin_lock(&nd->lock);
		netblk_set_state(nd, NETBLK_STATE_CONNECTING);
		spin_unlock(&nd->lock);
	}
	netblk_open_next(nd, &op->addr);
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
		} else {
			netblk_op_disconnect(nd);
			netblk_end_op(op, 0);
		}
	}
}

/* One look at everything. Returns how long to sleep at most, in jiffies. */
static long netblk_step(struct netblk_device *nd)
{
	unsigned long now = jiffies;
	unsigned long wake_at = now + MAX_JIFFY_OFFSET;
	bool lost, busy;

	netblk_take_ops(nd);
	if (nd->conn)
		netblk_service(nd, &wake_at);
	if (nd->next)
		netblk_service_next(nd);
	if (nd->next && time_before(nd->next->deadline, wake_at))
		wake_at = nd->next->deadline;

	spin_lock(&nd->lock);
	busy = nd->active;
	spin_unlock(&nd->lock);
	lost = nd->dead && !nd->one_try && !nd->conn;

	if (nd->dead && !nd->one_try && (lost || busy)) {
		unsigned long dead_at = netblk_dead_at(nd);

		if (time_after_eq(jiffies, dead_at)) {
			netblk_give_up(nd, "dead_time_ms");
			lost = false;
		} else if (time_before(dead_at, wake_at)) {
			wake_at = dead_at;
		}
	}
	if (lost && !nd->next) {
		if (nd->tries >= READ_ONCE(nd->max_retries)) {
			netblk_give_up(nd, "max_retries");
		} else if (time_after_eq(jiffies, nd->try_at)) {
			nd->tries++;
			nd->tried_at = jiffies;
			nd->try_at = nd->tried_at +
				netblk_ms(&nd->connect_timeout_ms);
			netblk_open_next(nd, &nd->addr);
			netblk_kick(nd);
		} else if (time_before(nd->try_at, wake_at)) {
			wake_at = nd->try_at;
		}
	}

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
		cond_resched();
	}
	return 0;
}

/*
 * Hand an operation to the thread and wait for its end. The thread's deadlines
 * bound the wait; a signal ends it at once and leaves the operation running.
 */
static int netblk_do_op(struct netblk_device *nd, enum netblk_op_kind kind,
			bool *connected)
{
	struct netblk_op *op = kzalloc(sizeof(*op), GFP_KERNEL);
	int err;

	if (!op)
		return -ENOMEM;
	refcount_set(&op->refs, 2);
	init_completion(&op->done);
	op->kind = kind;

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

	if (kind == NETBLK_OP_SHUTDOWN) {
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
 * Connect to the configured server: one try of at most connect_timeout_ms.
 * Returns 0 at once when connected to it already.
 */
int netblk_connect(struct netblk_device *nd)
{
	bool connected = false;
	int err = netblk_do_op(nd, NETBLK_OP_CONNECT, &connected);

	/*
	 * Another server may have another partition table. The next open looks
	 * at it; udev opens the device when it sees the event.
	 */
	if (!err && connected && test_bit(GD_ADDED, &nd->disk->state)) {
		clear_bit(GD_SUPPRESS_PART_SCAN, &nd->disk->state);
		set_bit(GD_NEED_PART_SCAN, &nd->disk->state);
		kobject_uevent(&disk_to_dev(nd->disk)->kobj, KOBJ_CHANGE);
	}
	return err;
}

/* Every wait ends now: tries, requests in flight and queued (with EIO). */
int netblk_disconnect(struct netblk_device *nd)
{
	return netblk_do_op(nd, NETBLK_OP_DISCONNECT, NULL);
}

/* A disconnect after which no operation is accepted any more. */
void netblk_shutdown(struct netblk_device *nd)
{
	netblk_do_op(nd, NETBLK_OP_SHUTDOWN, NULL);
}

int netblk_core_start(struct netblk_device *nd)
{
	mutex_init(&nd->tx_lock);
	spin_lock_init(&nd->lock);
	INIT_LIST_HEAD(&nd->ops);
	INIT_LIST_HEAD(&nd->pending);
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
