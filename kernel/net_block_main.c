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

/* With gendisk.open_mutex held, like netblk_claim(): one of the two comes first. */
static int netblk_open(struct netblk_compat_opened *opened,
		       netblk_compat_mode_t mode)
{
	struct netblk_device *nd = netblk_compat_disk(opened)->private_data;

	return nd->removed ? -ENXIO : 0;
}

/* The last user has gone: nobody is left who counts on what was lost. */
static void netblk_release(struct gendisk *disk)
{
	if (!disk_openers(disk))
		netblk_reset_lost(disk->private_data);
}
NETBLK_COMPAT_RELEASE(netblk_release)

static const struct block_device_operations netblk_fops = {
	.owner = THIS_MODULE,
	.open = netblk_open,
	.release = netblk_compat_release,
	.getgeo = netblk_getgeo,
};

/*
 * Add the disk. With @connect one try is made first, so that the partition
 * table can be read.
 */
int netblk_show(struct netblk_device *nd, bool connect)
{
	struct kernfs_node *state_node;
	int err = connect ? netblk_connect(nd) : -ENOTCONN;

	/* Whoever asked for the device has been killed, or the module goes. */
	if (err == -ERESTARTSYS || err == -ENODEV)
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
	nd->shown = true;
	state_node = sysfs_get_dirent(disk_to_dev(nd->disk)->kobj.sd, "state");
	spin_lock(&nd->lock);
	nd->state_node = state_node;
	spin_unlock(&nd->lock);
	return 0;
}

/* A device with its thread. Nobody sees it before netblk_show(). */
struct netblk_device *netblk_create(const struct netblk_config *config,
				    int number)
{
	struct netblk_device *nd = kzalloc(sizeof(*nd), GFP_KERNEL);
	int err = -ENOMEM;

	if (!nd)
		return ERR_PTR(err);
	nd->number = number;
	nd->size_mb = config->size_mb;
	nd->configured.ip = config->ip;
	nd->configured.port = config->server_port;
	nd->addr = nd->configured;
	netblk_peer_of(&nd->peer, &nd->addr);
	nd->max_retries = config->max_retries;
	nd->connect_timeout_ms = config->connect_timeout_ms;
	nd->io_timeout_ms = config->io_timeout_ms;
	nd->dead_time_ms = config->dead_time_ms;
	nd->wish = config->wish;
	nd->wish.heartbeat_ms = config->heartbeat_ms;
	nd->wish.crc32c = config->crc32c;
	/* Two devices on one export are two clients, or one would fence the other. */
	nd->wish.client_id[NETBLK2_ID_SIZE - 2] ^= number >> 8;
	nd->wish.client_id[NETBLK2_ID_SIZE - 1] ^= number;
	nd->applied.size_bytes = nd->size_mb << 20;
	nd->applied.block_bytes = SECTOR_SIZE;
	nd->applied.max_request_bytes = NETBLK_MAX_REQUEST_BYTES;
	nd->wanted = nd->applied;

	err = netblk_stats_alloc(nd);
	if (err)
		goto free;
	err = netblk_queues_alloc(nd, config->connections,
				  config->queue_depth);
	if (err)
		goto free_stats;
	nd->tag_set.ops = &netblk_mq_ops;
	nd->tag_set.nr_hw_queues = nd->nr_queues;
	nd->tag_set.queue_depth = config->queue_depth;
	nd->tag_set.numa_node = NUMA_NO_NODE;
	nd->tag_set.cmd_size = sizeof(struct netblk_cmd);
	/* No scheduler by default: the disk, and what it likes, is elsewhere. */
	nd->tag_set.flags = BLK_MQ_F_BLOCKING | BLK_MQ_F_NO_SCHED_BY_DEFAULT |
			    NETBLK_F_SHOULD_MERGE;
	err = blk_mq_alloc_tag_set(&nd->tag_set);
	if (err)
		goto free_queues;

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
	/* "netblk1" would be a partition of the first one */
	if (number)
		snprintf(nd->disk->disk_name, DISK_NAME_LEN, "netblk-%d",
			 number);
	else
		strscpy(nd->disk->disk_name, "netblk", DISK_NAME_LEN);
	set_capacity(nd->disk, nd->size_mb << (20 - SECTOR_SHIFT));

	err = netblk_core_start(nd);
	if (err)
		goto put;
	return nd;

put:
	put_disk(nd->disk);
free_tags:
	blk_mq_free_tag_set(&nd->tag_set);
free_queues:
	netblk_queues_free(nd);
free_stats:
	netblk_stats_free(nd);
free:
	kfree(nd);
	return ERR_PTR(err);
}

/* Nobody has the device open, nor finds it any more. */
void netblk_destroy(struct netblk_device *nd)
{
	struct kernfs_node *state_node;

	/* First, so that a "connect" being written returns and sysfs can go. */
	netblk_shutdown(nd);

	spin_lock(&nd->lock);
	state_node = nd->state_node;
	nd->state_node = NULL;
	spin_unlock(&nd->lock);
	sysfs_put(state_node);

	if (nd->shown)
		del_gendisk(nd->disk);
	netblk_core_stop(nd);
	put_disk(nd->disk);
	blk_mq_free_tag_set(&nd->tag_set);
	netblk_queues_free(nd);
	netblk_stats_free(nd);
	kfree(nd);
}

static int __init netblk_init(void)
{
	int err = netblk_config_init();

	if (err)
		return err;
	netblk_crc_init();

	/*
	 * What makes the network look for SOCK_MEMALLOC sockets is a patch of
	 * its hot path on all processors, under the CPU hotplug lock: nothing
	 * that a reconnect in the middle of reclaim may wait for. So it is
	 * made here, once, and stays, as it does after any use of nbd or
	 * nvme-tcp; a connection only counts up and down above it.
	 */
	static_branch_inc(&memalloc_socks_key);

	/* Before others can add one: the first is /dev/netblk. */
	err = netblk_add(&netblk_defaults, true);
	if (err < 0)
		goto exit_crc;
	err = netblk_bus_init();
	if (err)
		goto leave;
	err = netblk_genl_init();
	if (err)
		goto bus;
	return 0;

bus:
	netblk_bus_leave();
	netblk_bus_exit();
leave:
	netblk_bus_leave();
	netblk_remove_all();
exit_crc:
	netblk_crc_exit();
	return err;
}

static void __exit netblk_exit(void)
{
	netblk_bus_leave();
	netblk_genl_exit();
	netblk_bus_exit();
	netblk_remove_all();
	netblk_crc_exit();
}

module_init(netblk_init);
module_exit(netblk_exit);

MODULE_DESCRIPTION("netblk network block device");
MODULE_AUTHOR("The netblk authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
