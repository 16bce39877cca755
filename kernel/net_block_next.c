// SPDX-License-Identifier: GPL-2.0-only
/*
 * The connection that is being made (netblk_device.next), one at a time: TCP,
 * the handshake, what it changes for the device, and its promotion. With all
 * connections of a session lost, one is made first: two at once could be told
 * of two generations.
 */
#include <linux/jiffies.h>
#include <linux/printk.h>
#include <linux/string.h>

#include "compat.h"
#include "net_block.h"
#include "net_block_core.h"

static bool netblk_is_not_version1(const struct netblk_cmd *cmd)
{
	return cmd->type > NETBLK2_WRITE;
}

/* Before next is attached: what it changes for the device. */
static void netblk_promote_version1(struct netblk_device *nd)
{
	if (nd->version == 2) {
		netblk_session_leave(nd);
		netblk_reset_all(nd, false);
		netblk_shrink(nd, 1);
	}
	WRITE_ONCE(nd->version, 1);
	WRITE_ONCE(nd->crc32c, false);
	/* A flush of what another server has would be a lie. */
	netblk_end_pending(nd, netblk_is_not_version1, BLK_STS_IOERR);
}

/*
 * A session that its user has begun has an empty ledger: slots are dealt anew,
 * and one connection begins. One that goes on keeps its numbers, whatever the
 * server remembers: an empty place in the ledger takes any. But a server that
 * was away, or that tells of another generation, is no longer at the other end
 * of the other connections: they are reset before it is believed, and resumed.
 */
static void netblk_promote_version2(struct netblk_device *nd, bool lost)
{
	struct netblk_conn *nc = nd->next;
	const struct netblk_welcome *w = &nc->welcome;
	unsigned int index = nc->queue->index;
	bool other = w->generation != nd->generation ||
		     (w->flags & (NETBLK2_WELCOME_NEW |
				  NETBLK2_WELCOME_ADOPTED));

	if (nc->user) {
		netblk_reset_all(nd, false);
		nd->stride = clamp_t(unsigned int, w->max_connections,
				     index + 1, nd->nr_queues);
		nd->session_slots = w->slots;
		netblk_slots_reset(nd);
		netblk_shrink(nd, index + 1);
		nd->join_at = jiffies;
	} else {
		if (other)
			netblk_reset_all(nd, true);
		if (index >= nd->nr_live)
			WRITE_ONCE(nd->nr_live, index + 1);
	}
	if (nc->user)
		nd->session_wish = nd->next_wish;
	nc->wish = &nd->session_wish;
	netblk_session_enter(nc, lost);
	if (lost)
		netblk_end_pending(nd, netblk_is_durable, BLK_STS_IOERR);
	WRITE_ONCE(nd->version, 2);
	WRITE_ONCE(nd->crc32c, w->crc32c);
}

/* next becomes its queue's connection. */
static void netblk_promote(struct netblk_device *nd, bool lost)
{
	struct netblk_conn *old, *nc = nd->next;
	struct netblk_queue *q = nc->queue;
	struct netblk_cmd *cmd;
	LIST_HEAD(again);
	bool join;

	join = nc->proto->version == 2 && q->index >= nd->nr_live;
	if (nc->proto->version == 2)
		netblk_promote_version2(nd, lost);
	else
		netblk_promote_version1(nd);

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
	nd->peer = nc->peer;
	nc->up_at = jiffies;
	nc->rx_at = jiffies;
	nc->progress_at = jiffies;
	if (!list_empty(&nd->waiting))
		netblk_not_dead(q);
	if (q->dead)
		netblk_stats_reconnected(q);
	if (join)
		pr_info_ratelimited("%s: connection %u to %pISpc\n",
				    netblk_name(nd), q->index + 1, &nc->peer);
	else
		pr_info_ratelimited("%s: %sconnected to %pISpc%s\n",
				    netblk_name(nd), q->dead ? "re" : "",
				    &nc->peer,
				    nc->proto->version == 2 ?
					    " (netblk/2)" : "");

	netblk_attach(q, nc, &again);
	netblk_change_state(nd, NETBLK_STATE_CONNECTED);
	netblk_end_waiting(nd, 0);
	netblk_tx(q);
	if (old) {
		netblk_conn_goodbye(old);
		netblk_conn_close(old);
	}
	netblk_kick(nd);
}

static void netblk_try_failed(struct netblk_device *nd, int error)
{
	struct netblk_conn *nc = nd->next;
	bool user = !list_empty(&nd->waiting);
	bool one_try = nd->one_try, final = false;

	if (nc) {
		pr_warn_ratelimited("%s: cannot connect to %pISpc: %s%s%pe\n",
				    netblk_name(nd), &nc->peer, nc->why ? nc->why : "",
				    nc->why ? ": " : "", ERR_PTR(error));
	} else {
		pr_warn_ratelimited("%s: cannot make a socket: %pe\n",
				    netblk_name(nd), ERR_PTR(error));
	}
	if (!user || one_try) {
		nd->why = nc && nc->why ? nc->why : "cannot connect";
		nd->error = error;
	}
	if (nc && nc->proto->version == 2 && !nc->user) {
		if (nc->queue->index >= nd->nr_live)
			nd->join_at = jiffies +
				      msecs_to_jiffies(NETBLK_JOIN_PAUSE_MS);
		else
			final = nc->final;
	}
	if (one_try) {
		netblk_fail_all(nd, NETBLK_STATE_ERROR);
	} else if (final) {
		/* ESTALE above all: there is no new session without consent. */
		pr_err("%s: I/O fails until connect: %s\n", netblk_name(nd),
		       nd->why);
		netblk_fail_all(nd, NETBLK_STATE_ERROR);
	}
	netblk_cancel_next(nd, error);
}

/* Begin to connect @q to @addr. @user: for nd->next_wish, not to resume. */
void netblk_open_next(struct netblk_queue *q,
		      const struct netblk_addr *addr,
		      unsigned int version, bool user)
{
	struct netblk_device *nd = q->nd;
	struct netblk_conn *nc = netblk_conn_open(q, addr, version == 2 ?
						  &netblk_proto2 :
						  &netblk_proto1);

	if (IS_ERR(nc)) {
		netblk_try_failed(nd, PTR_ERR(nc));
		return;
	}
	nc->user = user;
	nc->wish = user ? &nd->next_wish : &nd->session_wish;
	nd->next = nc;
	netblk_kick(nd);
}

/*
 * netblk/1 has no names: for a device that asked for one it would be a disk,
 * but not that one.
 */
static bool netblk_may_fall_back(const struct netblk_device *nd)
{
	const struct netblk_conn *nc = nd->next;

	return nc->user && nc->wish->protocol == NETBLK_PROTOCOL_AUTO &&
	       !nc->wish->export[0] && !nd->has_store;
}

/* Does what came instead of a welcome, if anything, mean netblk/1? */
static bool netblk_fall_back(struct netblk_device *nd, int error)
{
	struct netblk_conn *nc = nd->next;
	struct netblk_queue *q = nc->queue;
	struct netblk_addr addr = nc->addr;

	if (!netblk_may_fall_back(nd))
		return false;
	if (nc->rx_have ? nc->greeting[0] != NETBLK1_STATUS_ERROR :
			  error != -ECONNRESET && error != -EPIPE &&
			  error != -ETIMEDOUT)
		return false;
	netblk_conn_close(nc);
	nd->next = NULL;
	netblk_open_next(q, &addr, 1, true);
	return true;
}

/* TCP is there: the hello, or for netblk/1 straight to the disk. */
static int netblk_next_established(struct netblk_device *nd)
{
	struct netblk_conn *nc = nd->next;

	if (nc->proto->version == 1) {
		nc->phase = NETBLK_PHASE_CONFIG;
		return 0;
	}
	/* What a new session fences must not be read after its hello. */
	if (nc->user && nd->version == 2 && netblk_any_conn(nd)) {
		netblk_reset_all(nd, true);
		netblk_change_state(nd, NETBLK_STATE_CONNECTING);
	}
	if (netblk_may_fall_back(nd))
		nc->deadline = jiffies +
			msecs_to_jiffies(min(READ_ONCE(nd->connect_timeout_ms),
					     NETBLK_AUTO_SILENCE_MS));
	nc->phase = NETBLK_PHASE_WELCOME;
	return netblk2_send_hello(nc);
}

/*
 * A session that goes on: the disk may have another size, and that is all that
 * those who have it open can bear.
 */
static int netblk_next_resumed(struct netblk_device *nd,
			       struct netblk_geometry *g)
{
	struct netblk_conn *nc = nd->next;
	const struct netblk_welcome *w = &nc->welcome;
	struct netblk_geometry now;

	spin_lock(&nd->lock);
	now = nd->wanted;
	spin_unlock(&nd->lock);
	if (g->block_bytes != now.block_bytes ||
	    g->max_request_bytes < now.max_request_bytes) {
		nc->why = "it has other limits than before";
		nc->final = true;
		return -EMEDIUMTYPE;
	}
	if (w->slots < nd->session_slots || w->max_connections < nd->nr_live) {
		nc->why = "it grants less than before";
		nc->final = true;
		return -EMEDIUMTYPE;
	}
	now.size_bytes = g->size_bytes;
	now.read_only = g->read_only;
	*g = now;
	return 0;
}

/* The server has told what it has. 1: the block layer is being told first. */
static int netblk_next_config(struct netblk_device *nd)
{
	struct netblk_conn *nc = nd->next;
	const u8 *id = nc->user ? nd->next_session_id : nd->session_id;
	struct netblk_geometry g;
	bool resumed = !nc->user && nc->proto->version == 2, lost, known;
	int err;

	if (nc->proto->version == 2 &&
	    memcmp(nc->welcome.session_id, id, NETBLK2_ID_SIZE)) {
		nc->why = "it welcomes another session";
		return -EPROTO;
	}
	err = netblk_geometry_of(nc, &g);
	if (!err && nc->proto->version == 2)
		err = netblk_session_judge(nc, &lost);
	if (!err && resumed)
		err = netblk_next_resumed(nd, &g);
	if (err)
		return err;
	known = netblk_geometry_want(nd, &g);
	nc->deadline = jiffies + netblk_ms(&nd->connect_timeout_ms);
	return known || resumed ? 0 : 1;
}

/* Look at the connection being made; a move waits for the old one to drain. */
void netblk_service_next(struct netblk_device *nd)
{
	struct netblk_conn *nc = nd->next;
	struct netblk_queue *q = nc->queue;
	bool drained, lost = false;
	int err = 0;

	if (nc->phase == NETBLK_PHASE_TCP) {
		err = netblk_conn_poll(nc);
		if (!err)
			err = netblk_next_established(nd);
	}
	if (!err && nc->phase == NETBLK_PHASE_WELCOME) {
		err = netblk2_receive_welcome(nc);
		if (!err)
			nc->phase = NETBLK_PHASE_CONFIG;
	}
	if (err == -EINPROGRESS && time_after_eq(jiffies, nc->deadline))
		err = -ETIMEDOUT;
	if (err == -EINPROGRESS)
		return;
	if (err && nc->phase == NETBLK_PHASE_WELCOME &&
	    netblk_fall_back(nd, err))
		return;

	if (!err && nc->phase == NETBLK_PHASE_CONFIG && !nc->config_asked) {
		nc->config_asked = true;
		err = netblk_next_config(nd);
		if (!err)
			nc->phase = NETBLK_PHASE_READY;
		if (err == 1)
			err = 0;
	}
	if (!err && nc->phase == NETBLK_PHASE_CONFIG) {
		spin_lock(&nd->lock);
		if (nd->applied_seq == nd->wanted_seq) {
			err = nd->applied_error;
			nc->phase = NETBLK_PHASE_READY;
		}
		spin_unlock(&nd->lock);
		if (nc->phase == NETBLK_PHASE_CONFIG) {
			if (time_before(jiffies, nc->deadline))
				return;
			err = -ETIMEDOUT;
		}
		if (err)
			nc->why = "the disk cannot be changed while it is in use";
	}
	if (err) {
		netblk_try_failed(nd, err);
		return;
	}

	if (nc->proto->version == 2) {
		netblk_session_judge(nc, &lost);
		netblk_promote(nd, lost);
		return;
	}
	if (!nc->draining_old) {
		nc->draining_old = true;
		nc->deadline = jiffies + netblk_ms(&nd->io_timeout_ms);
		if (q->conn)
			netblk_set_draining(q, true);
	}
	spin_lock(&q->lock);
	drained = !q->conn || list_empty(&q->conn->inflight);
	spin_unlock(&q->lock);
	if (drained || time_after_eq(jiffies, nc->deadline))
		netblk_promote(nd, false);
}

/* A netblk/2 session from user space: a new one, or ours once more. */
static int netblk_handover_version2(struct netblk_device *nd,
				    struct netblk_handover *h)
{
	struct netblk_conn *first = h->conns[0];
	const struct netblk_welcome *w = &first->welcome;
	bool fresh = !nd->has_session ||
		     memcmp(w->session_id, nd->session_id, NETBLK2_ID_SIZE) ||
		     (w->flags & (NETBLK2_WELCOME_NEW |
				  NETBLK2_WELCOME_ADOPTED));
	struct netblk_geometry g;
	bool lost;
	int err;

	first->user = true;
	err = netblk_session_judge(first, &lost);
	if (!err)
		err = netblk_geometry_of(first, &g);
	if (!err && !fresh && (h->count != nd->stride ||
			       w->slots != nd->session_slots))
		err = -EINVAL;
	if (err)
		return err;

	netblk_cancel_next(nd, -ECANCELED);
	netblk_reset_all(nd, !fresh);
	if (fresh) {
		nd->stride = h->count;
		nd->session_slots = w->slots;
		netblk_slots_reset(nd);
		netblk_geometry_want(nd, &g);
	} else {
		netblk_geometry_resize(nd, g.size_bytes);
	}
	netblk_shrink(nd, h->count);
	netblk_session_enter(first, lost);
	if (lost)
		netblk_end_pending(nd, netblk_is_durable, BLK_STS_IOERR);
	WRITE_ONCE(nd->version, 2);
	WRITE_ONCE(nd->crc32c, w->crc32c);
	return 0;
}

/*
 * Sockets from user space take the place of all connections. Those are reset
 * first, and what they carried is sent again on the new ones.
 */
int netblk_op_handover(struct netblk_device *nd,
		       struct netblk_handover *h)
{
	unsigned int i;

	if (h->protocol == 2) {
		int err = netblk_handover_version2(nd, h);

		if (err)
			return err;
	} else {
		netblk_cancel_next(nd, -ECANCELED);
		netblk_reset_all(nd, false);
		netblk_shrink(nd, 1);
		netblk_promote_version1(nd);
		if (h->size_bytes)
			netblk_geometry_resize(nd, h->size_bytes);
	}
	for (i = 0; i < h->count; i++) {
		struct netblk_queue *q = &nd->queues[i];
		LIST_HEAD(nothing);

		if (q->dead)
			netblk_stats_reconnected(q);
		netblk_not_dead(q);
		h->conns[i]->up_at = jiffies;
		h->conns[i]->rx_at = jiffies;
		h->conns[i]->tx_at = jiffies;
		netblk_attach(q, h->conns[i], &nothing);
	}
	nd->addr = h->conns[0]->addr;
	nd->peer = h->conns[0]->peer;
	nd->handed_over = true;
	netblk_change_state(nd, NETBLK_STATE_CONNECTED);
	for (i = 0; i < h->count; i++) {
		h->conns[i] = NULL;
		netblk_tx(&nd->queues[i]);
	}
	pr_info_ratelimited("%s: was handed a connection to %pISpc\n",
			    netblk_name(nd), &nd->peer);
	/* what came before the callbacks were ours has woken nobody */
	netblk_kick(nd);
	return 0;
}
