// SPDX-License-Identifier: GPL-2.0-only
/*
 * One TCP connection to a server. Nothing here blocks: the socket is used with
 * MSG_DONTWAIT only and its callbacks wake the device's thread, so that no
 * server, however silent, can hold the thread or a submitter.
 *
 * Any task that submits I/O may send (netblk_queue.tx_lock); only the
 * device's thread receives, and only it opens and closes.
 */
#include <linux/blk-mq.h>
#include <linux/bvec.h>
#include <linux/in.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <linux/uio.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "compat.h"
#include "net_block.h"
#include "net_block_trace.h"

/* An idle connection is probed after 5 s; the server is dead after 6 s more. */
#define NETBLK_KEEPALIVE_IDLE_S 5
#define NETBLK_KEEPALIVE_INTERVAL_S 2
#define NETBLK_KEEPALIVE_COUNT 3

/* Calls of recvmsg() before the thread looks at other things. */
#define NETBLK_RX_BUDGET 64

/*
 * Our sockets are locked below file systems and inside reclaim, other kernel
 * sockets may be locked above page allocation: lockdep has to tell them apart.
 * A subclass of the network core's own key does it. A key of our own would
 * either keep this module loaded while it is connected (sk_owner) or be gone
 * before the last user of the socket.
 */
static void netblk_reclassify(struct sock *sk)
{
#ifdef CONFIG_DEBUG_LOCK_ALLOC
	struct lockdep_map *map = &sk->sk_lock.dep_map;

	lockdep_init_map_type(map, map->name, map->key,
			      MAX_LOCKDEP_SUBCLASSES - 1, map->wait_type_inner,
			      map->wait_type_outer, map->lock_type);
#endif
}

/*
 * sk_user_data is cleared under sk_callback_lock before the connection is
 * freed, so a callback that finds it may use it.
 */
static void netblk_sk_wake(struct sock *sk)
{
	struct netblk_conn *nc;

	read_lock_bh(&sk->sk_callback_lock);
	nc = sk->sk_user_data;
	if (nc)
		netblk_kick(nc->nd);
	read_unlock_bh(&sk->sk_callback_lock);
}

static void netblk_sk_write_space(struct sock *sk)
{
	struct netblk_conn *nc;

	read_lock_bh(&sk->sk_callback_lock);
	nc = sk->sk_user_data;
	if (nc && sk_stream_is_writeable(sk)) {
		clear_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
		netblk_kick(nc->nd);
	}
	read_unlock_bh(&sk->sk_callback_lock);
}

/* -EBUSY: the socket is another user's in the kernel. */
static int netblk_set_callbacks(struct netblk_conn *nc)
{
	struct sock *sk = nc->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_user_data) {
		write_unlock_bh(&sk->sk_callback_lock);
		return -EBUSY;
	}
	nc->data_ready = sk->sk_data_ready;
	nc->state_change = sk->sk_state_change;
	nc->write_space = sk->sk_write_space;
	sk->sk_user_data = nc;
	sk->sk_data_ready = netblk_sk_wake;
	sk->sk_state_change = netblk_sk_wake;
	sk->sk_write_space = netblk_sk_write_space;
	write_unlock_bh(&sk->sk_callback_lock);
	return 0;
}

static void netblk_restore_callbacks(struct netblk_conn *nc)
{
	struct sock *sk = nc->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	sk->sk_user_data = NULL;
	sk->sk_data_ready = nc->data_ready;
	sk->sk_state_change = nc->state_change;
	sk->sk_write_space = nc->write_space;
	write_unlock_bh(&sk->sk_callback_lock);
}

/*
 * A connect() from an ephemeral port to that same port on the same host meets
 * itself (TCP's simultaneous open). We would then read our own requests as
 * replies.
 */
static bool netblk_self_connected(const struct sock *sk)
{
	const struct inet_sock *inet = inet_sk(sk);

	return inet->inet_sport == inet->inet_dport &&
	       inet->inet_saddr == inet->inet_daddr;
}

/*
 * Begin or continue a connect() that does not wait.
 * 0: established, -EINPROGRESS: ask again when the state has changed.
 */
int netblk_conn_poll(struct netblk_conn *nc)
{
	struct sockaddr_in to = nc->peer.in4;
	unsigned int noreclaim = memalloc_noreclaim_save();
	int err;

	err = kernel_connect(nc->sock, (struct sockaddr *)&to, sizeof(to),
			     O_NONBLOCK);
	memalloc_noreclaim_restore(noreclaim);

	if (err == -EALREADY)
		return -EINPROGRESS;
	if (!err && netblk_self_connected(nc->sock->sk))
		return -ECONNREFUSED;
	if (!err) {
		nc->established = true;
		nc->up_at = jiffies;
		nc->rx_at = jiffies;
		nc->tx_at = jiffies;
		nc->acked = READ_ONCE(tcp_sk(nc->sock->sk)->snd_una);
	}
	return err;
}

static void netblk_set_options(struct sock *sk)
{
	/* Write-back through this socket must not wait for write-back. */
	sk->sk_allocation = GFP_NOIO;
	sk_set_memalloc(sk);
	netblk_compat_no_task_frag(sk);

	tcp_sock_set_nodelay(sk);
	tcp_sock_set_keepidle(sk, NETBLK_KEEPALIVE_IDLE_S);
	tcp_sock_set_keepintvl(sk, NETBLK_KEEPALIVE_INTERVAL_S);
	tcp_sock_set_keepcnt(sk, NETBLK_KEEPALIVE_COUNT);
	sock_set_keepalive(sk);
	/* Release means RST: what is queued must not reach the server later. */
	sock_no_linger(sk);
}

void netblk_peer_of(union netblk_peer *peer, const struct netblk_addr *addr)
{
	peer->in4 = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr.s_addr = addr->ip,
		.sin_port = htons(addr->port),
	};
}

/* Of a socket of user space, which may be of either family. */
static void netblk_peer_of_sock(struct netblk_conn *nc, const struct sock *sk)
{
#if IS_ENABLED(CONFIG_IPV6)
	/* Its inet_daddr is an address that stands for none. */
	if (sk->sk_family == AF_INET6 && !ipv6_addr_v4mapped(&sk->sk_v6_daddr)) {
		nc->peer.in6 = (struct sockaddr_in6){
			.sin6_family = AF_INET6,
			.sin6_addr = sk->sk_v6_daddr,
			.sin6_port = inet_sk(sk)->inet_dport,
		};
		return;
	}
#endif
	nc->addr.ip = inet_sk(sk)->inet_daddr;
	nc->addr.port = ntohs(inet_sk(sk)->inet_dport);
	netblk_peer_of(&nc->peer, &nc->addr);
}

/*
 * The sockets live in the initial network namespace: the device is seen by all
 * namespaces and has to reconnect long after the process that wrote "connect",
 * and perhaps its namespace, are gone.
 */
struct netblk_conn *netblk_conn_open(struct netblk_queue *q,
				     const struct netblk_addr *addr,
				     const struct netblk_proto *proto)
{
	struct netblk_device *nd = q->nd;
	unsigned int noreclaim = memalloc_noreclaim_save();
	struct netblk_conn *nc;
	struct sock *sk;
	int err = -ENOMEM;

	nc = kzalloc(sizeof(*nc), GFP_NOIO);
	if (!nc)
		goto out;
	nc->nd = nd;
	nc->queue = q;
	nc->proto = proto;
	nc->addr = *addr;
	netblk_peer_of(&nc->peer, addr);
	nc->epoch = ++nd->epoch;
	nc->deadline = jiffies +
		msecs_to_jiffies(READ_ONCE(nd->connect_timeout_ms));
	INIT_LIST_HEAD(&nc->inflight);

	err = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
			       &nc->sock);
	if (err)
		goto free;
	sk = nc->sock->sk;
	netblk_reclassify(sk);

	netblk_set_options(sk);
	netblk_set_callbacks(nc);

	memalloc_noreclaim_restore(noreclaim);
	return nc;
free:
	kfree(nc);
out:
	memalloc_noreclaim_restore(noreclaim);
	return ERR_PTR(err);
}

/*
 * A connection on a socket that user space has connected. The connection owns
 * the caller's reference to it; user space may have others, and so the end is a
 * tcp_abort() and not a release.
 */
struct netblk_conn *netblk_conn_adopt(struct netblk_queue *q,
				      struct socket *sock)
{
	struct netblk_conn *nc = kzalloc(sizeof(*nc), GFP_KERNEL);
	int err;

	if (!nc)
		return ERR_PTR(-ENOMEM);
	nc->nd = q->nd;
	nc->queue = q;
	nc->sock = sock;
	nc->adopted = true;
	nc->established = true;
	netblk_peer_of_sock(nc, sock->sk);
	INIT_LIST_HEAD(&nc->inflight);

	err = netblk_set_callbacks(nc);
	if (err) {
		kfree(nc);
		return ERR_PTR(err);
	}
	if (sock_allow_reclassification(sock->sk))
		netblk_reclassify(sock->sk);
	netblk_set_options(sock->sk);
	nc->acked = READ_ONCE(tcp_sk(sock->sk)->snd_una);
	return nc;
}

/*
 * Reset the connection, unless both sides have closed already. Nothing is in
 * flight on it any more, and no sender can see it.
 */
void netblk_conn_close(struct netblk_conn *nc)
{
	unsigned int noreclaim = memalloc_noreclaim_save();

	netblk_restore_callbacks(nc);
	sk_clear_memalloc(nc->sock->sk);
	if (nc->adopted) {
		tcp_abort(nc->sock->sk, ECONNRESET);
		sockfd_put(nc->sock);
	} else {
		sock_release(nc->sock);
	}
	kfree(nc);
	memalloc_noreclaim_restore(noreclaim);
}

static bool netblk_peer_closed(const struct sock *sk)
{
	return (READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN) ||
	       READ_ONCE(sk->sk_state) == TCP_CLOSE;
}

/*
 * Take leave of a netblk/1 server that owes us nothing: farewell and FIN, then
 * wait a little for its FIN. What is left is for netblk_conn_close() to reset.
 */
void netblk_conn_goodbye(struct netblk_conn *nc)
{
	struct netblk1_request goodbye = { .command = NETBLK1_CMD_DISCONNECT };
	struct sock *sk = nc->sock->sk;
	struct bio_vec bv;

	if (nc->proto->version != 1 || !nc->established || nc->tx_next ||
	    !list_empty(&nc->inflight))
		return;
	memcpy(nc->ctl, &goodbye, sizeof(goodbye));
	netblk_bvec_set_virt(&bv, nc->ctl, sizeof(goodbye));
	if (netblk_net_write(nc, &bv, 1, sizeof(goodbye), false) !=
	    sizeof(goodbye))
		return;
	kernel_sock_shutdown(nc->sock, SHUT_WR);
	wait_event_idle_timeout(nc->nd->wait, netblk_peer_closed(sk),
				msecs_to_jiffies(NETBLK_GOODBYE_MS));
}

void netblk_bvec_set_virt(struct bio_vec *bv, void *p, unsigned int length)
{
	bv->bv_page = virt_to_page(p);
	bv->bv_offset = offset_in_page(p);
	bv->bv_len = length;
}

/* The data from @c on, at most @max segments of it; adds to *@bytes. */
unsigned int netblk_cursor_map(const struct netblk_cursor *c,
			       struct bio_vec *bv, unsigned int max,
			       size_t *bytes)
{
	struct bvec_iter iter = c->iter;
	struct bio *bio = c->bio;
	u32 left = c->left;
	unsigned int n = 0;

	while (left && n < max) {
		if (!iter.bi_size) {
			bio = bio->bi_next;
			iter = bio->bi_iter;
			continue;
		}
		bv[n] = mp_bvec_iter_bvec(bio->bi_io_vec, iter);
		left -= bv[n].bv_len;
		*bytes += bv[n].bv_len;
		bio_advance_iter_single(bio, &iter, bv[n].bv_len);
		n++;
	}
	return n;
}

void netblk_cursor_advance(struct netblk_cursor *c, size_t bytes)
{
	c->left -= bytes;
	while (bytes) {
		unsigned int step = min_t(size_t, bytes, c->iter.bi_size);

		bio_advance_iter(c->bio, &c->iter, step);
		bytes -= step;
		if (!c->iter.bi_size && (bytes || c->left)) {
			c->bio = c->bio->bi_next;
			c->iter = c->bio->bi_iter;
		}
	}
}

/* The data at @c, as far as it is in one page. */
struct bio_vec netblk_cursor_page(const struct netblk_cursor *c)
{
	struct bvec_iter iter = c->iter;
	struct bio *bio = c->bio;

	while (!iter.bi_size) {
		bio = bio->bi_next;
		iter = bio->bi_iter;
	}
	return bvec_iter_bvec(bio->bi_io_vec, iter);
}

/*
 * Sends copy. Zero-copy would leave the user's pages in TCP's retransmit queue
 * after the request was answered, failed or reissued, with whatever the user
 * puts there next. A page that its user changes during the copy is torn, as it
 * would be on any disk: no checksum of ours covers it.
 */
int netblk_net_write(struct netblk_conn *nc, const struct bio_vec *bv,
		     unsigned int segments, size_t bytes, bool more)
{
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0),
	};
	unsigned int noreclaim = memalloc_noreclaim_save();
	int sent;

	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, bv, segments, bytes);
	sent = sock_sendmsg(nc->sock, &msg);
	memalloc_noreclaim_restore(noreclaim);
	return sent;
}

/* Straight into the pages of the request. 0: the server has closed. */
int netblk_net_read(struct netblk_conn *nc, const struct bio_vec *bv,
		    unsigned int segments, size_t bytes)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	unsigned int noreclaim = memalloc_noreclaim_save();
	int got;

	iov_iter_bvec(&msg.msg_iter, ITER_DEST, bv, segments, bytes);
	got = sock_recvmsg(nc->sock, &msg, msg.msg_flags);
	memalloc_noreclaim_restore(noreclaim);
	return got;
}

bool netblk_conn_has_input(struct netblk_conn *nc)
{
	return tcp_inq(nc->sock->sk) > 0;
}

static unsigned long netblk_tick(struct netblk_device *nd)
{
	return max(1UL, msecs_to_jiffies(READ_ONCE(nd->io_timeout_ms)) / 8);
}

/*
 * The next request to send, which is in flight from here on; NULL: there is
 * none, or no slot for it.
 */
static struct netblk_cmd *netblk_tx_pop(struct netblk_conn *nc)
{
	struct netblk_queue *q = nc->queue;
	struct netblk_cmd *cmd = NULL;
	bool first = false;

	spin_lock(&q->lock);
	if (!nc->draining)
		cmd = list_first_entry_or_null(&q->pending, struct netblk_cmd,
					       node);
	if (cmd && nc->proto->version == 2 && !netblk_slot_get(q, cmd))
		cmd = NULL;
	if (cmd) {
		first = list_empty(&nc->inflight);
		if (first) {
			nc->head_at = jiffies;
			nc->progress_at = nc->head_at;
		}
		list_move_tail(&cmd->node, &nc->inflight);
		cmd->in_flight = true;
		if (cmd->type == NETBLK2_READ)
			nc->reads_in_flight++;
		if (!nc->tx_ns)
			nc->tx_ns = ktime_get_ns();
		/* it may have come after the batch began */
		cmd->sent_ns = max(nc->tx_ns, cmd->queued_ns);
		if (!cmd->sent_at)
			cmd->sent_at = jiffies | 1;
	}
	spin_unlock(&q->lock);
	/* The thread may sleep with no deadline. */
	if (first && !timer_pending(&nc->nd->watchdog))
		mod_timer(&nc->nd->watchdog, jiffies + netblk_tick(nc->nd));
	return cmd;
}

/*
 * Fill tx_bv from the requests in flight that are not wholly sent, and then
 * from the pending ones. One sendmsg() may carry many requests, or a part of
 * one. A request that is not wholly sent belongs to who holds tx_lock.
 */
static unsigned int netblk_tx_map(struct netblk_conn *nc, size_t *bytes,
				  bool *more)
{
	struct netblk_queue *q = nc->queue;
	struct netblk_cmd *cmd = nc->tx_next;
	unsigned int n = 0;

	*bytes = 0;
	*more = false;
	nc->tx_ns = 0;
	/* A message of the connection's own stands between requests only. */
	if (nc->ctl_done < nc->ctl_length) {
		*bytes = nc->ctl_length - nc->ctl_done;
		netblk_bvec_set_virt(&nc->tx_bv[n++], nc->ctl + nc->ctl_done,
				     *bytes);
	}
	for (;;) {
		size_t mapped = 0;

		if (n == NETBLK_SEGMENTS) {
			*more = cmd || !list_empty(&q->pending);
			break;
		}
		if (!cmd) {
			cmd = netblk_tx_pop(nc);
			if (!cmd)
				break;
			nc->proto->encode(nc, cmd);
			trace_netblk_issue(nc->nd, blk_mq_rq_from_pdu(cmd));
			if (!nc->tx_next)
				nc->tx_next = cmd;
		}
		if (cmd->header_done < cmd->header_length) {
			netblk_bvec_set_virt(&nc->tx_bv[n++],
					     cmd->header + cmd->header_done,
					     cmd->header_length -
						     cmd->header_done);
			*bytes += cmd->header_length - cmd->header_done;
		}
		if (cmd->write) {
			n += netblk_cursor_map(&cmd->data, &nc->tx_bv[n],
					       NETBLK_SEGMENTS - n, &mapped);
			*bytes += mapped;
			if (mapped < cmd->data.left) {
				*more = true;
				break;
			}
		}
		spin_lock(&q->lock);
		cmd = list_is_last(&cmd->node, &nc->inflight) ?
			NULL : list_next_entry(cmd, node);
		spin_unlock(&q->lock);
	}
	return n;
}

/*
 * TCP took @bytes. A request is marked sent, and tx_next moved past it, in one
 * hold of the lock: once marked, the thread may complete and free it.
 */
static void netblk_tx_done(struct netblk_conn *nc, size_t bytes)
{
	struct netblk_queue *q = nc->queue;
	size_t control = min_t(size_t, bytes, nc->ctl_length - nc->ctl_done);
	bool complete = false, early;

	nc->tx_at = jiffies;
	nc->ctl_done += control;
	bytes -= control;
	spin_lock(&q->lock);
	while (bytes) {
		struct netblk_cmd *cmd = nc->tx_next;
		size_t step = min_t(size_t, bytes,
				    cmd->header_length - cmd->header_done);

		cmd->header_done += step;
		bytes -= step;
		if (cmd->write) {
			step = min_t(size_t, bytes, cmd->data.left);
			netblk_cursor_advance(&cmd->data, step);
			bytes -= step;
		}
		if (cmd->header_done < cmd->header_length ||
		    (cmd->write && cmd->data.left))
			break;
		nc->tx_next = list_is_last(&cmd->node, &nc->inflight) ?
			NULL : list_next_entry(cmd, node);
		cmd->sent = true;
		complete = true;
	}
	early = nc->rx_early;
	spin_unlock(&q->lock);

	/*
	 * An answer that came before its request was marked sent has been left
	 * where it is (rx_map), and nothing will announce it again.
	 */
	if (complete && (early || netblk_conn_has_input(nc)))
		netblk_kick(nc->nd);
}

/* Send until nothing is left or the socket is full. Holds tx_lock. */
int netblk_conn_tx(struct netblk_conn *nc)
{
	lockdep_assert_held(&nc->queue->tx_lock);

	for (;;) {
		unsigned int segments;
		size_t bytes;
		bool more;
		int sent;

		segments = netblk_tx_map(nc, &bytes, &more);
		if (!segments)
			return 0;
		sent = netblk_net_write(nc, nc->tx_bv, segments, bytes, more);
		if (sent == -EAGAIN || sent == -ENOMEM || sent == -ENOBUFS) {
			WRITE_ONCE(nc->tx_stalled, true);
			/*
			 * Space may have come before the flag was seen. The
			 * thread, when it is the caller, is kicked by
			 * netblk_sk_write_space() itself.
			 */
			smp_mb();
			if (current != nc->nd->thread &&
			    sk_stream_is_writeable(nc->sock->sk))
				netblk_kick(nc->nd);
			return 0;
		}
		if (sent < 0)
			return sent;
		netblk_tx_done(nc, sent);
	}
}

/*
 * Send a message of the connection's own, between two requests. False: one is
 * being sent, or waits to be.
 */
bool netblk_conn_control(struct netblk_conn *nc, const u8 *header,
			 size_t length)
{
	bool taken;

	mutex_lock(&nc->queue->tx_lock);
	taken = !nc->tx_next && nc->ctl_done == nc->ctl_length && !nc->tx_error;
	if (taken) {
		memcpy(nc->ctl, header, length);
		nc->ctl_length = length;
		nc->ctl_done = 0;
		nc->tx_error = netblk_conn_tx(nc);
	}
	mutex_unlock(&nc->queue->tx_lock);
	return taken;
}

/* Receive until nothing is left. Negative: the connection is of no more use. */
int netblk_conn_rx(struct netblk_conn *nc)
{
	struct netblk_queue *q = nc->queue;
	struct sock *sk = nc->sock->sk;
	unsigned int budget;
	bool unsolicited;
	int err = nc->proto->rx_begin ? nc->proto->rx_begin(nc) : 0;

	if (err)
		return err;
	for (budget = NETBLK_RX_BUDGET; budget; budget--) {
		unsigned int segments;
		size_t bytes;
		int got;

		segments = nc->proto->rx_map(nc, nc->rx_bv, NETBLK_SEGMENTS,
					     &bytes);
		if (!segments)
			break;
		got = netblk_net_read(nc, nc->rx_bv, segments, bytes);
		if (got == -EAGAIN)
			return 0;
		if (got <= 0) {
			if (!got)
				nc->why = "the server closed it";
			return got ? got : -ECONNRESET;
		}
		nc->progress_at = jiffies;
		nc->rx_at = nc->progress_at;
		nc->rx_ns = ktime_get_ns();
		err = nc->proto->rx_done(nc, got);
		if (err)
			return err;
		cond_resched();
	}
	if (!budget) {
		netblk_kick(nc->nd);
		return 0;
	}

	/*
	 * No answer is due. A request is in flight before its first byte is
	 * sent, so with none in flight no byte can be an answer.
	 */
	spin_lock(&q->lock);
	unsolicited = list_empty(&nc->inflight) && netblk_conn_has_input(nc);
	spin_unlock(&q->lock);
	if (unsolicited) {
		nc->why = "it sent what was not asked for";
		return -EPROTO;
	}
	if (netblk_peer_closed(sk)) {
		err = sock_error(sk);
		if (!err)
			nc->why = "the server closed it";
		return err ? err : -ECONNRESET;
	}
	return 0;
}

static void netblk_sooner(unsigned long *wake_at, unsigned long at)
{
	if (time_before(at, *wake_at))
		*wake_at = at;
}

/*
 * Is the oldest request being answered? Its connection is dead when for
 * io_timeout_ms neither a byte came nor a byte of ours was acknowledged, or
 * when the whole of it goes slower than NETBLK_MIN_RATE: a server that sends a
 * byte now and then would hold its client for ever.
 *
 * In netblk/2 a slow request delays no other, and the server's heartbeats are
 * bytes. There a request may take dead_time_ms, over all connections that carry
 * it; -ETIME says that this has passed.
 */
int netblk_conn_check(struct netblk_conn *nc, unsigned long *wake_at)
{
	struct netblk_device *nd = nc->nd;
	struct netblk_queue *q = nc->queue;
	unsigned int timeout_ms = READ_ONCE(nd->io_timeout_ms);
	u32 acked = READ_ONCE(tcp_sk(nc->sock->sk)->snd_una);
	unsigned long now = jiffies, silent_at, slow_at;
	unsigned long heartbeat = msecs_to_jiffies(nc->welcome.heartbeat_ms);
	struct netblk_cmd *oldest;
	unsigned int length = 0;

	spin_lock(&q->lock);
	oldest = list_first_entry_or_null(&nc->inflight, struct netblk_cmd,
					  node);
	if (oldest)
		length = blk_rq_bytes(blk_mq_rq_from_pdu(oldest));
	if (acked != nc->acked) {
		nc->acked = acked;
		nc->progress_at = now;
	}
	silent_at = nc->progress_at + msecs_to_jiffies(timeout_ms);
	slow_at = nc->head_at +
		msecs_to_jiffies(timeout_ms + length / (NETBLK_MIN_RATE / 1000));
	if (oldest && nc->proto->version == 2)
		slow_at = netblk_dead_by(nd, oldest->sent_at);
	spin_unlock(&q->lock);
	if (heartbeat) {
		unsigned long gone_at = nc->rx_at +
			NETBLK2_HEARTBEAT_PERIODS * heartbeat;
		unsigned long say_at = READ_ONCE(nc->tx_at) + heartbeat / 2;

		if (time_after_eq(now, gone_at)) {
			nc->why = "no heartbeat for three periods";
			return -ETIMEDOUT;
		}
		if (time_after_eq(now, say_at)) {
			netblk2_heartbeat(nc);
			/* also when bytes of ours are on their way */
			say_at = now + heartbeat / 2;
		}
		netblk_sooner(wake_at, gone_at);
		netblk_sooner(wake_at, say_at);
	}
	if (!oldest)
		return 0;

	if (time_after_eq(now, silent_at)) {
		nc->why = "no answer within io_timeout_ms";
		return -ETIMEDOUT;
	}
	if (time_after_eq(now, slow_at)) {
		if (nc->proto->version == 2) {
			nc->why = "a request is not answered within dead_time_ms";
			return -ETIME;
		}
		nc->why = "it answers too slowly";
		return -ETIMEDOUT;
	}
	netblk_sooner(wake_at, silent_at);
	netblk_sooner(wake_at, slow_at);
	netblk_sooner(wake_at, now + netblk_tick(nd));
	return 0;
}
