// SPDX-License-Identifier: GPL-2.0-only
/*
 * netblk/2: requests and replies. Replies come in any order; slot, sequence and
 * cookie say whose each is. The cookie is random and new each time a request
 * is sent, so that no reply but the one to this sending fits (K3).
 *
 * Receiving. With a READ in flight one header is received at a time, together
 * with the rest of the data before it, so that data goes straight into the
 * pages of its request. Without, all that may come is headers, and many are
 * received at once. Should data be among them after all (the READ was sent
 * between the look and the call), it is copied.
 */
#include <linux/blk-mq.h>
#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/highmem.h>
#include <linux/printk.h>
#include <linux/random.h>

#include "compat.h"
#include "net_block.h"

static __be32 netblk2_header_crc(struct netblk_conn *nc, const void *header,
				 size_t length)
{
	if (!nc->welcome.crc32c)
		return 0;
	return cpu_to_be32(netblk_crc32c(header, length - sizeof(__be32)));
}

static void netblk2_encode(struct netblk_conn *nc, struct netblk_cmd *cmd)
{
	struct netblk2_request *header = (void *)cmd->header;
	struct request *rq = blk_mq_rq_from_pdu(cmd);
	struct netblk_queue *q = cmd->queue;

	BUILD_BUG_ON(sizeof(*header) > sizeof(cmd->header));
	BUILD_BUG_ON(NETBLK2_MAX_SLOTS > U16_MAX);

	memset(header, 0, sizeof(*header));
	cmd->cookie = get_random_u64();
	header->type = cmd->type;
	header->flags = cmd->fua ? NETBLK2_FUA : 0;
	header->slot = cpu_to_be16(cmd->slot * q->nd->stride + q->index);
	header->sequence = cpu_to_be32(q->slots[cmd->slot].sequence);
	header->cookie = cpu_to_be64(cmd->cookie);
	if (cmd->type != NETBLK2_FLUSH) {
		header->offset = cpu_to_be64((u64)blk_rq_pos(rq) <<
					     SECTOR_SHIFT);
		header->length = cpu_to_be32(blk_rq_bytes(rq));
	}
	if (cmd->type == NETBLK2_WRITE_ZEROES &&
	    (rq->cmd_flags & REQ_NOUNMAP))
		header->flags |= NETBLK2_NO_UNMAP;
	if (cmd->write) {
		header->payload_length = cpu_to_be32(blk_rq_bytes(rq));
		if (nc->welcome.crc32c) {
			if (!cmd->has_crc)
				cmd->payload_crc =
					netblk_crc32c_cursor(&cmd->data);
			cmd->has_crc = true;
			header->payload_crc = cpu_to_be32(cmd->payload_crc);
		}
	}
	header->crc = netblk2_header_crc(nc, header, sizeof(*header));
	cmd->header_length = sizeof(*header);
}

/* Say that we live, unless bytes of ours are on their way in any case. */
void netblk2_heartbeat(struct netblk_conn *nc)
{
	struct netblk2_request header = { .type = NETBLK2_HEARTBEAT };

	header.crc = netblk2_header_crc(nc, &header, sizeof(header));
	netblk_conn_control(nc, (u8 *)&header, sizeof(header));
}

/* False: the stream is in the middle of a request. */
bool netblk2_end_session(struct netblk_conn *nc)
{
	struct netblk2_request header = {
		.type = NETBLK2_GOODBYE,
		.flags = NETBLK2_END_SESSION,
	};

	header.crc = netblk2_header_crc(nc, &header, sizeof(header));
	return netblk_conn_control(nc, (u8 *)&header, sizeof(header));
}

static blk_status_t netblk2_status(u32 status)
{
	switch (status) {
	case NETBLK2_OK:
		return BLK_STS_OK;
	case NETBLK2_ENOSPC:
		return BLK_STS_NOSPC;
	case NETBLK2_EOPNOTSUPP:
		return BLK_STS_NOTSUPP;
	default:
		return BLK_STS_IOERR;
	}
}

static const char *netblk2_type_name(u8 type)
{
	switch (type) {
	case NETBLK2_READ:
		return "read";
	case NETBLK2_WRITE:
		return "write";
	case NETBLK2_FLUSH:
		return "flush";
	case NETBLK2_TRIM:
		return "trim";
	default:
		return "write of zeroes";
	}
}

/* The reply to @cmd is whole: take it off its list, and end it. */
static void netblk2_end(struct netblk_conn *nc, struct netblk_cmd *cmd,
			u32 status)
{
	struct netblk_queue *q = nc->queue;
	struct netblk_device *nd = nc->nd;
	struct request *rq = blk_mq_rq_from_pdu(cmd);
	struct netblk_untold *untold = &nc->untold[cmd->type];

	untold->count++;
	untold->trip_ns += nc->rx_ns - cmd->sent_ns;
	spin_lock(&q->lock);
	list_del_init(&cmd->node);
	netblk_slot_put(q, cmd);
	if (cmd->type == NETBLK2_READ)
		nc->reads_in_flight--;
	nc->progress_at = jiffies;
	spin_unlock(&q->lock);
	nc->replies++;

	/* Counted before the user can know of it: a loss must not miss it. */
	if (status == NETBLK2_OK && cmd->type == NETBLK2_FLUSH)
		netblk_covered(nd, cmd->flush_mark);
	else if (status == NETBLK2_OK && cmd->type != NETBLK2_READ && !cmd->fua)
		atomic64_inc(&nd->acknowledged);

	if (status != NETBLK2_OK && status != NETBLK2_EOPNOTSUPP)
		pr_err_ratelimited("%s: the server failed a %s of %u bytes at sector %llu (%u)\n",
				   netblk_name(nd),
				   netblk2_type_name(cmd->type),
				   blk_rq_bytes(rq),
				   (unsigned long long)blk_rq_pos(rq), status);
	netblk_end_cmd(cmd, netblk2_status(status));
}

/*
 * @bytes of the data of rx_cmd are in its pages, where its cursor is. They are
 * summed now, while they are in the processor's cache, and not when all came.
 */
static int netblk2_took(struct netblk_conn *nc, size_t bytes)
{
	struct netblk_cmd *cmd = nc->rx_cmd;

	if (nc->welcome.crc32c)
		nc->rx_crc = netblk_crc32c_advance(nc->rx_crc, &cmd->data,
						   bytes);
	else
		netblk_cursor_advance(&cmd->data, bytes);
	if (cmd->data.left)
		return 0;
	nc->rx_cmd = NULL;
	if (nc->welcome.crc32c && nc->rx_crc != cmd->payload_crc) {
		nc->why = "the checksum of a READ's data is wrong";
		return -EBADMSG;
	}
	netblk2_end(nc, cmd, NETBLK2_OK);
	return 0;
}

static int netblk2_bad(struct netblk_conn *nc, const char *why)
{
	nc->why = why;
	return -EPROTO;
}

/* HEARTBEAT, RESIZE and the answer to a GOODBYE: no request is meant. */
static int netblk2_message(struct netblk_conn *nc,
			   const struct netblk2_reply *reply)
{
	u64 cookie = be64_to_cpu(reply->cookie);

	if (reply->slot || reply->sequence)
		return netblk2_bad(nc, "it sent a message with a slot");
	switch (reply->type) {
	case NETBLK2_HEARTBEAT:
		if (!nc->welcome.heartbeat_ms || cookie || reply->status)
			return netblk2_bad(nc, "it sent an unasked heartbeat");
		return 0;
	case NETBLK2_RESIZE:
		if (!nc->welcome.resize || reply->status ||
		    cookie > LLONG_MAX || cookie % nc->welcome.block_bytes)
			return netblk2_bad(nc, "it sent an impossible size");
		netblk_geometry_resize(nc->nd, cookie);
		return 0;
	default:
		if (!nc->draining || cookie)
			return netblk2_bad(nc, "it took leave unasked");
		nc->farewell = true;
		return 0;
	}
}

/* How long the requests took that were answered since the last such message. */
static int netblk2_times(struct netblk_conn *nc,
			 const struct netblk2_times *times)
{
	unsigned int type = be16_to_cpu(times->request_type);
	struct netblk_untold *untold;

	BUILD_BUG_ON(sizeof(*times) != NETBLK2_REPLY_SIZE);
	if (!nc->welcome.times)
		return netblk2_bad(nc, "it told its times unasked");
	if (times->flags || times->reserved || !times->count ||
	    type < NETBLK2_READ || type > NETBLK2_NOP)
		return netblk2_bad(nc, "it told times that cannot be");
	untold = &nc->untold[type];
	if (be32_to_cpu(times->count) != untold->count)
		return netblk2_bad(nc, "it told times of other requests than it answered");
	netblk_stats_told(nc->nd, type, untold->count, untold->trip_ns,
			  be64_to_cpu(times->server_ns),
			  be64_to_cpu(times->store_ns));
	memset(untold, 0, sizeof(*untold));
	return 0;
}

/* -EAGAIN: it answers a request that we have not wholly sent. */
static int netblk2_reply(struct netblk_conn *nc,
			 const struct netblk2_reply *reply)
{
	struct netblk_queue *q = nc->queue;
	u32 status = be32_to_cpu(reply->status);
	u32 length = be32_to_cpu(reply->payload_length);
	unsigned int number = be16_to_cpu(reply->slot);
	unsigned int index = number / nc->nd->stride;
	struct netblk_cmd *cmd = NULL;
	bool early = false;
	u32 expected;

	if (nc->welcome.crc32c &&
	    reply->crc != netblk2_header_crc(nc, reply, sizeof(*reply))) {
		nc->why = "the checksum of a header is wrong";
		return -EBADMSG;
	}
	if (reply->type == NETBLK2_TIMES)
		return netblk2_times(nc, (const void *)reply);
	if (reply->flags)
		return netblk2_bad(nc, "it sent an unknown flag");
	if (!length && reply->payload_crc)
		return netblk2_bad(nc, "it sent a checksum of nothing");
	if (reply->type >= NETBLK2_GOODBYE && reply->type <= NETBLK2_RESIZE)
		return length ? netblk2_bad(nc, "it sent unasked data") :
				netblk2_message(nc, reply);

	spin_lock(&q->lock);
	if (number % nc->nd->stride == q->index && index < nc->nd->depth)
		cmd = q->slots[index].cmd;
	if (cmd && (cmd->type != reply->type ||
		    cmd->cookie != be64_to_cpu(reply->cookie) ||
		    q->slots[index].sequence != be32_to_cpu(reply->sequence)))
		cmd = NULL;
	/* A slot is kept over a loss: what waits to be replayed has no answer. */
	if (cmd && !cmd->in_flight)
		cmd = NULL;
	if (cmd && !cmd->sent) {
		early = true;
		nc->rx_early = true;
	}
	spin_unlock(&q->lock);
	if (!cmd)
		return netblk2_bad(nc, "it answered what was not asked");
	if (early)
		return -EAGAIN;

	expected = cmd->type == NETBLK2_READ && status == NETBLK2_OK ?
			   blk_rq_bytes(blk_mq_rq_from_pdu(cmd)) : 0;
	if (length != expected)
		return netblk2_bad(nc, "it sent more or less data than was asked for");
	if (!expected) {
		netblk2_end(nc, cmd, status);
		return 0;
	}
	cmd->payload_crc = be32_to_cpu(reply->payload_crc);
	nc->rx_crc = 0;
	nc->rx_cmd = cmd;
	return 0;
}

static void netblk2_copy_in(const struct netblk_cursor *c, const u8 *from,
			    size_t bytes)
{
	struct netblk_cursor at = *c;

	while (bytes) {
		struct bio_vec bv = netblk_cursor_page(&at);

		bv.bv_len = min_t(size_t, bv.bv_len, bytes);
		memcpy_to_bvec(&bv, from);
		netblk_cursor_advance(&at, bv.bv_len);
		from += bv.bv_len;
		bytes -= bv.bv_len;
	}
}

/* Look at what is in rx_buf, as far as it is whole. */
static int netblk2_parse(struct netblk_conn *nc)
{
	unsigned int at = 0;
	int err = 0;

	while (!err) {
		unsigned int have = nc->rx_have - at;

		if (nc->rx_cmd) {
			unsigned int step = min(have, nc->rx_cmd->data.left);

			if (!step)
				break;
			netblk2_copy_in(&nc->rx_cmd->data, nc->rx_buf + at,
					step);
			at += step;
			err = netblk2_took(nc, step);
			continue;
		}
		if (have < NETBLK2_REPLY_SIZE)
			break;
		err = netblk2_reply(nc, (void *)(nc->rx_buf + at));
		if (!err)
			at += NETBLK2_REPLY_SIZE;
	}
	nc->rx_have -= at;
	memmove(nc->rx_buf, nc->rx_buf + at, nc->rx_have);
	return err == -EAGAIN ? 0 : err;
}

static int netblk2_rx_begin(struct netblk_conn *nc)
{
	bool early;

	spin_lock(&nc->queue->lock);
	early = nc->rx_early;
	nc->rx_early = false;
	spin_unlock(&nc->queue->lock);
	return early ? netblk2_parse(nc) : 0;
}

static unsigned int netblk2_rx_map(struct netblk_conn *nc, struct bio_vec *bv,
				   unsigned int max, size_t *bytes)
{
	struct netblk_cmd *cmd = nc->rx_cmd;
	unsigned int n = 0, room;
	bool reads;

	*bytes = 0;
	if (cmd) {
		n = netblk_cursor_map(&cmd->data, bv, max - 1, bytes);
		if (*bytes < cmd->data.left)
			return n;
		netblk_bvec_set_virt(&bv[n], nc->rx_buf, NETBLK2_REPLY_SIZE);
		*bytes += NETBLK2_REPLY_SIZE;
		return n + 1;
	}
	spin_lock(&nc->queue->lock);
	reads = nc->reads_in_flight;
	if (nc->rx_early)
		max = 0;
	spin_unlock(&nc->queue->lock);
	if (!max)
		return 0;
	room = (reads ? NETBLK2_REPLY_SIZE : sizeof(nc->rx_buf)) - nc->rx_have;
	netblk_bvec_set_virt(bv, nc->rx_buf + nc->rx_have, room);
	*bytes = room;
	return 1;
}

static int netblk2_rx_done(struct netblk_conn *nc, size_t bytes)
{
	struct netblk_cmd *cmd = nc->rx_cmd;
	int err = 0;

	if (cmd) {
		size_t step = min_t(size_t, bytes, cmd->data.left);

		bytes -= step;
		err = netblk2_took(nc, step);
	}
	nc->rx_have += bytes;
	return err ? err : netblk2_parse(nc);
}

const struct netblk_proto netblk_proto2 = {
	.version = 2,
	.encode = netblk2_encode,
	.rx_begin = netblk2_rx_begin,
	.rx_map = netblk2_rx_map,
	.rx_done = netblk2_rx_done,
};
