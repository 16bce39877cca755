// SPDX-License-Identifier: GPL-2.0-only
/*
 * net_block_driver: a disk that lives on another machine, as /dev/netblk.
 */
#define pr_fmt(fmt) fmt

#include <linux/blk-mq.h>
#include <linux/hdreg.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "net_block.h"

static char *server_ip = NETBLK_DEFAULT_IP;
module_param(server_ip, charp, 0444);
MODULE_PARM_DESC(server_ip, "IPv4 address of the server (" NETBLK_DEFAULT_IP ")");

static unsigned int server_port = NETBLK_DEFAULT_PORT;
module_param(server_port, uint, 0444);
MODULE_PARM_DESC(server_port, "TCP port of the server, 1 to 65535 (10809)");

static unsigned long size_mb = NETBLK_DEFAULT_SIZE_MB;
module_param(size_mb, ulong, 0444);
MODULE_PARM_DESC(size_mb, "size of the device in MiB, at least 1 (100)");

static unsigned int queue_depth = NETBLK_DEFAULT_QUEUE_DEPTH;
module_param(queue_depth, uint, 0444);
MODULE_PARM_DESC(queue_depth, "requests in the device at a time, 1 to 4096 (128)");

static unsigned int max_retries = NETBLK_DEFAULT_RETRIES;
module_param(max_retries, uint, 0444);
MODULE_PARM_DESC(max_retries, "tries to reconnect a lost connection, 0 to 1000 (3)");

static unsigned int connect_timeout_ms = NETBLK_DEFAULT_TIMEOUT_MS;
module_param(connect_timeout_ms, uint, 0444);
MODULE_PARM_DESC(connect_timeout_ms, "time for one try, and from one try to the next, 1 to 600000 (5000)");

static unsigned int io_timeout_ms = NETBLK_DEFAULT_TIMEOUT_MS;
module_param(io_timeout_ms, uint, 0444);
MODULE_PARM_DESC(io_timeout_ms, "time without progress after which a connection is lost, 1 to 600000 (5000)");

static unsigned int dead_time_ms = NETBLK_DEFAULT_DEAD_TIME_MS;
module_param(dead_time_ms, uint, 0444);
MODULE_PARM_DESC(dead_time_ms, "time after a loss after which all I/O fails, 1 to 86400000 (15000)");

static unsigned int protocol = 1;
module_param(protocol, uint, 0444);
MODULE_PARM_DESC(protocol, "version of the netblk protocol, only 1 (1)");

static LIST_HEAD(netblk_devices);

/* For partitioning tools that still think in cylinders. */
static int netblk_getgeo(struct block_device *bdev, struct hd_geometry *geo)
{
	sector_t cylinders = get_capacity(bdev->bd_disk);

	geo->heads = 16;
	geo->sectors = 63;
	sector_div(cylinders, geo->heads * geo->sectors);
	geo->cylinders = min_t(sector_t, cylinders, USHRT_MAX);
	return 0;
}

static const struct block_device_operations netblk_fops = {
	.owner = THIS_MODULE,
	.getgeo = netblk_getgeo,
};

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
	enum netblk_state state;

	/* Others need a promise that the protocol does not give. */
	if (req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE)
		return BLK_STS_NOTSUPP;

	cmd->write = req_op(rq) == REQ_OP_WRITE;
	netblk_cmd_rewind(cmd);
	blk_mq_start_request(rq);

	spin_lock(&nd->lock);
	state = nd->state;
	if (state == NETBLK_STATE_CONNECTED ||
	    state == NETBLK_STATE_CONNECTING) {
		if (!nd->active++)
			nd->busy_since = jiffies;
		list_add_tail(&cmd->node, &nd->pending);
		spin_unlock(&nd->lock);
		/* From here on the request may be complete and gone. */
		if (bd->last)
			netblk_tx(nd);
		return BLK_STS_OK;
	}
	spin_unlock(&nd->lock);

	atomic64_inc(&nd->errors);
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
	netblk_tx(hctx->queue->queuedata);
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

static const struct blk_mq_ops netblk_mq_ops = {
	.queue_rq = netblk_queue_rq,
	.commit_rqs = netblk_commit_rqs,
	.timeout = netblk_timeout,
};

static int netblk_add_disk(struct netblk_device *nd)
{
	struct kernfs_node *state_node;
	int err = netblk_connect(nd);

	if (err == -EINTR)
		return err;
	/* Without a server, reading a partition table can only fail. */
	if (err)
		set_bit(GD_SUPPRESS_PART_SCAN, &nd->disk->state);

	err = device_add_disk(NULL, nd->disk, netblk_attr_groups);
	if (err) {
		pr_err("%s: cannot add the disk: %pe\n", netblk_name(nd),
		       ERR_PTR(err));
		return err;
	}
	state_node = sysfs_get_dirent(disk_to_dev(nd->disk)->kobj.sd, "state");
	spin_lock(&nd->lock);
	nd->state_node = state_node;
	spin_unlock(&nd->lock);
	return 0;
}

static struct netblk_device *netblk_create(const struct netblk_addr *addr,
					   const char *name)
{
	struct netblk_device *nd = kzalloc(sizeof(*nd), GFP_KERNEL);
	int err = -ENOMEM;

	if (!nd)
		return ERR_PTR(err);
	nd->proto = &netblk_proto1;
	nd->size_mb = size_mb;
	nd->configured = *addr;
	nd->addr = *addr;
	nd->max_retries = max_retries;
	nd->connect_timeout_ms = connect_timeout_ms;
	nd->io_timeout_ms = io_timeout_ms;
	nd->dead_time_ms = dead_time_ms;

	nd->tag_set.ops = &netblk_mq_ops;
	nd->tag_set.nr_hw_queues = 1;
	nd->tag_set.queue_depth = queue_depth;
	nd->tag_set.numa_node = NUMA_NO_NODE;
	nd->tag_set.cmd_size = sizeof(struct netblk_cmd);
	/* No scheduler by default: the disk, and what it likes, is elsewhere. */
	nd->tag_set.flags = BLK_MQ_F_BLOCKING | BLK_MQ_F_NO_SCHED_BY_DEFAULT |
			    NETBLK_F_SHOULD_MERGE;
	err = blk_mq_alloc_tag_set(&nd->tag_set);
	if (err)
		goto free;

	nd->disk = netblk_compat_alloc_mq_disk(&nd->tag_set,
					       NETBLK_MAX_REQUEST_BYTES >>
						       SECTOR_SHIFT, nd);
	if (IS_ERR(nd->disk)) {
		err = PTR_ERR(nd->disk);
		goto free_tags;
	}
	netblk_compat_disk_ready(nd->disk);
	nd->disk->fops = &netblk_fops;
	nd->disk->private_data = nd;
	strscpy(nd->disk->disk_name, name, DISK_NAME_LEN);
	set_capacity(nd->disk, nd->size_mb << (20 - SECTOR_SHIFT));

	err = netblk_core_start(nd);
	if (err)
		goto put;
	err = netblk_add_disk(nd);
	if (err)
		goto stop;
	return nd;

stop:
	netblk_shutdown(nd);
	netblk_core_stop(nd);
put:
	put_disk(nd->disk);
free_tags:
	blk_mq_free_tag_set(&nd->tag_set);
free:
	kfree(nd);
	return ERR_PTR(err);
}

/* Nobody has the device open (fops->owner), and it has no more users after. */
static void netblk_destroy(struct netblk_device *nd)
{
	struct kernfs_node *state_node;

	/* First, so that a "connect" being written returns and sysfs can go. */
	netblk_shutdown(nd);

	spin_lock(&nd->lock);
	state_node = nd->state_node;
	nd->state_node = NULL;
	spin_unlock(&nd->lock);
	sysfs_put(state_node);

	del_gendisk(nd->disk);
	netblk_core_stop(nd);
	put_disk(nd->disk);
	blk_mq_free_tag_set(&nd->tag_set);
	kfree(nd);
}

static int __init netblk_check(const char *name, u64 value, u64 low, u64 high)
{
	if (value >= low && value <= high)
		return 0;
	pr_err("netblk: %s=%llu is out of range: %llu to %llu\n", name,
	       (unsigned long long)value, (unsigned long long)low,
	       (unsigned long long)high);
	return -EINVAL;
}

static int __init netblk_check_params(struct netblk_addr *addr)
{
	if (netblk_parse_ip(server_ip, strlen(server_ip), &addr->ip)) {
		pr_err("netblk: server_ip=%s is not the IPv4 address of a host, such as %s\n",
		       server_ip, NETBLK_DEFAULT_IP);
		return -EINVAL;
	}
	if (protocol != 1) {
		pr_err("netblk: protocol=%u is not supported, only 1 is\n",
		       protocol);
		return -EINVAL;
	}
	if (netblk_check("server_port", server_port, 1, U16_MAX) ||
	    netblk_check("size_mb", size_mb, 1, NETBLK_MAX_SIZE_MB) ||
	    netblk_check("queue_depth", queue_depth, 1,
			 NETBLK_MAX_QUEUE_DEPTH) ||
	    netblk_check("max_retries", max_retries, 0, NETBLK_MAX_RETRIES) ||
	    netblk_check("connect_timeout_ms", connect_timeout_ms, 1,
			 NETBLK_MAX_TIMEOUT_MS) ||
	    netblk_check("io_timeout_ms", io_timeout_ms, 1,
			 NETBLK_MAX_TIMEOUT_MS) ||
	    netblk_check("dead_time_ms", dead_time_ms, 1,
			 NETBLK_MAX_DEAD_TIME_MS))
		return -EINVAL;
	addr->port = server_port;
	return 0;
}

static int __init netblk_init(void)
{
	struct netblk_device *nd;
	struct netblk_addr addr;
	int err;

	err = netblk_check_params(&addr);
	if (err)
		return err;

	/*
	 * What makes the network look for SOCK_MEMALLOC sockets is a patch of
	 * its hot path on all processors, under the CPU hotplug lock: nothing
	 * that a reconnect in the middle of reclaim may wait for. So it is
	 * made here, once, and stays, as it does after any use of nbd or
	 * nvme-tcp; a connection only counts up and down above it.
	 */
	static_branch_inc(&memalloc_socks_key);

	nd = netblk_create(&addr, "netblk");
	if (IS_ERR(nd))
		return PTR_ERR(nd);
	list_add_tail(&nd->node, &netblk_devices);
	return 0;
}

static void __exit netblk_exit(void)
{
	struct netblk_device *nd, *tmp;

	list_for_each_entry_safe(nd, tmp, &netblk_devices, node) {
		list_del(&nd->node);
		netblk_destroy(nd);
	}
}

module_init(netblk_init);
module_exit(netblk_exit);

MODULE_DESCRIPTION("netblk network block device");
MODULE_AUTHOR("The netblk authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
