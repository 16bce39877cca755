// SPDX-License-Identifier: GPL-2.0-only
/*
 * netblk/1. Replies come in the order of the requests and carry nothing that
 * names them, so the oldest request in flight is the one being answered.
 */
#include <linux/blk-mq.h>
#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/printk.h>

#include "net_block.h"

static void netblk1_encode(struct netblk_conn *nc, struct netblk_cmd *cmd)
{
	struct netblk1_request *header = (void *)cmd->header;
	struct request *rq = blk_mq_rq_from_pdu(cmd);

	BUILD_BUG_ON(sizeof(*header) > sizeof(cmd->header));
	BUILD_BUG_ON(NETBLK_MAX_REQUEST_BYTES > NETBLK1_MAX_LENGTH);

	header->command = cmd->write ? NETBLK1_CMD_WRITE : NETBLK1_CMD_READ;
	header->sector = cpu_to_be64(blk_rq_pos(rq));
	header->length = cpu_to_be32(blk_rq_bytes(rq));
	cmd->header_length = sizeof(*header);
}

/*
 * As far as the next bytes are certain: the rest of the oldest READ's data,
 * then status bytes up to and including the next READ's, since only its value
 * tells whether data follows. A request that is not wholly sent is not
 * answered yet, whatever is in the socket: its pages are still being read.
 */
static unsigned int netblk1_rx_map(struct netblk_conn *nc, struct bio_vec *bv,
				   unsigned int max, size_t *bytes)
{
	struct netblk_cmd *cmd;
	unsigned int n = 0;

	*bytes = 0;
	spin_lock(&nc->queue->lock);
	list_for_each_entry(cmd, &nc->inflight, node) {
		if (!cmd->sent || n == max)
			break;
		if (cmd->receiving) {
			size_t mapped = 0;

			n += netblk_cursor_map(&cmd->data, bv, max, &mapped);
			*bytes += mapped;
			if (mapped < cmd->data.left)
				break;
			continue;
		}
		netblk_bvec_set_virt(&bv[n++], &cmd->status,
				     NETBLK1_STATUS_SIZE);
		*bytes += NETBLK1_STATUS_SIZE;
		if (!cmd->write)
			break;
	}
	spin_unlock(&nc->queue->lock);
	return n;
}

/* Complete the oldest request, unless the server sent more than an answer. */
static int netblk1_end_oldest(struct netblk_conn *nc, struct netblk_cmd *cmd,
			      blk_status_t status)
{
	bool excess;

	/*
	 * With nothing else in flight no byte may follow. Tested before the
	 * completion: a stream that is out of step answers nothing.
	 */
	spin_lock(&nc->queue->lock);
	excess = list_is_singular(&nc->inflight) && netblk_conn_has_input(nc);
	if (!excess) {
		list_del_init(&cmd->node);
		if (!cmd->write)
			nc->reads_in_flight--;
		nc->head_at = jiffies;
		nc->progress_at = nc->head_at;
	}
	spin_unlock(&nc->queue->lock);
	if (excess) {
		nc->why = "it sent more than was asked for";
		return -EPROTO;
	}
	nc->replies++;
	netblk_end_cmd(cmd, status);
	return 0;
}

static int netblk1_rx_done(struct netblk_conn *nc, size_t bytes)
{
	struct netblk_device *nd = nc->nd;

	while (bytes) {
		/*
		 * Only this thread takes requests off the list, and rx_map()
		 * named no byte without one: it is not empty.
		 */
		struct netblk_cmd *cmd = list_first_entry(&nc->inflight,
						struct netblk_cmd, node);
		struct request *rq = blk_mq_rq_from_pdu(cmd);
		int err = 0;

		if (cmd->receiving) {
			size_t step = min_t(size_t, bytes, cmd->data.left);

			netblk_cursor_advance(&cmd->data, step);
			bytes -= step;
			if (!cmd->data.left)
				err = netblk1_end_oldest(nc, cmd, BLK_STS_OK);
			if (err)
				return err;
			continue;
		}

		bytes -= NETBLK1_STATUS_SIZE;
		switch (cmd->status) {
		case NETBLK1_STATUS_OK:
			if (cmd->write)
				err = netblk1_end_oldest(nc, cmd, BLK_STS_OK);
			else
				cmd->receiving = true;
			break;
		case NETBLK1_STATUS_ERROR:
			pr_err_ratelimited("%s: the server failed a %s of %u bytes at sector %llu\n",
					   netblk_name(nd),
					   cmd->write ? "write" : "read",
					   blk_rq_bytes(rq),
					   (unsigned long long)blk_rq_pos(rq));
			err = netblk1_end_oldest(nc, cmd, BLK_STS_IOERR);
			break;
		default:
			nc->why = "it sent a status that netblk/1 does not have";
			err = -EPROTO;
		}
		if (err)
			return err;
	}
	return 0;
}

const struct netblk_proto netblk_proto1 = {
	.version = 1,
	.encode = netblk1_encode,
	.rx_map = netblk1_rx_map,
	.rx_done = netblk1_rx_done,
};
