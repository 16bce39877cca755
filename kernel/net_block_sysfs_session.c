// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/block/netblk/: what a netblk/2 session is asked for, and what it is. See
 * ABI-sysfs-netblk.
 */
#include <linux/device.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "net_block.h"

/* A part of the wish, as it is for the next connect. */
static struct netblk_wish netblk_wish_of(struct netblk_device *nd)
{
	struct netblk_wish wish;

	spin_lock(&nd->lock);
	wish = nd->wish;
	spin_unlock(&nd->lock);
	return wish;
}

/* The version in use; before there is one, what is asked for. */
static ssize_t protocol_show(struct device *dev, struct device_attribute *attr,
			     char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	unsigned int version = READ_ONCE(nd->version);

	if (!version)
		version = READ_ONCE(nd->wish.protocol);
	return version ? sysfs_emit(buf, "%u\n", version) :
			 sysfs_emit(buf, "auto\n");
}

static ssize_t protocol_store(struct device *dev, struct device_attribute *attr,
			      const char *buf, size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u8 protocol;

	if (netblk_parse_protocol(buf, netblk_trim(buf, count), &protocol))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->wish.protocol = protocol;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(protocol);

static ssize_t export_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct netblk_wish wish = netblk_wish_of(netblk_from_dev(dev));

	return sysfs_emit(buf, "%s\n", wish.export);
}

static ssize_t export_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	char export[NETBLK_EXPORT_SIZE];

	if (netblk_parse_export(buf, netblk_trim(buf, count), export))
		return -EINVAL;
	spin_lock(&nd->lock);
	memcpy(nd->wish.export, export, sizeof(export));
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(export);

static ssize_t access_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct netblk_wish wish = netblk_wish_of(netblk_from_dev(dev));

	return sysfs_emit(buf, "%s\n", netblk_access_names[wish.access]);
}

static ssize_t access_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u8 access;

	if (netblk_parse_access(buf, netblk_trim(buf, count), &access))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->wish.access = access;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(access);

static ssize_t client_id_show(struct device *dev, struct device_attribute *attr,
			      char *buf)
{
	struct netblk_wish wish = netblk_wish_of(netblk_from_dev(dev));

	return sysfs_emit(buf, "%*phN\n", NETBLK2_ID_SIZE, wish.client_id);
}

static ssize_t client_id_store(struct device *dev,
			       struct device_attribute *attr, const char *buf,
			       size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u8 id[NETBLK2_ID_SIZE];

	if (netblk_parse_client_id(buf, netblk_trim(buf, count), id))
		return -EINVAL;
	spin_lock(&nd->lock);
	memcpy(nd->wish.client_id, id, sizeof(id));
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(client_id);

static ssize_t heartbeat_ms_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	struct netblk_wish wish = netblk_wish_of(netblk_from_dev(dev));

	return sysfs_emit(buf, "%u\n", wish.heartbeat_ms);
}

static ssize_t heartbeat_ms_store(struct device *dev,
				  struct device_attribute *attr,
				  const char *buf, size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u64 ms;

	if (netblk_parse_number(buf, netblk_trim(buf, count), 0,
				NETBLK2_MAX_HEARTBEAT_MS, &ms) ||
	    !netblk_heartbeat_possible(ms))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->wish.heartbeat_ms = ms;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(heartbeat_ms);

static ssize_t crc32c_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct netblk_wish wish = netblk_wish_of(netblk_from_dev(dev));

	return sysfs_emit(buf, "%u\n", wish.crc32c);
}

static ssize_t crc32c_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u64 on;

	if (netblk_parse_number(buf, netblk_trim(buf, count), 0, 1, &on))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->wish.crc32c = on;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(crc32c);

static ssize_t connections_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", netblk_from_dev(dev)->nr_queues);
}
static DEVICE_ATTR_RO(connections);

static ssize_t connections_up_show(struct device *dev,
				   struct device_attribute *attr, char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	unsigned int i, up = 0;

	for (i = 0; i < nd->nr_queues; i++)
		up += !!READ_ONCE(nd->queues[i].conn);
	return sysfs_emit(buf, "%u\n", up);
}
static DEVICE_ATTR_RO(connections_up);

static ssize_t queue_depth_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", netblk_from_dev(dev)->depth);
}
static DEVICE_ATTR_RO(queue_depth);

/* "UUID COUNTER", or nothing where no netblk/2 server has told. */
static ssize_t generation_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u8 uuid[NETBLK2_ID_SIZE];
	u64 generation;
	bool known;

	spin_lock(&nd->lock);
	known = nd->has_store;
	memcpy(uuid, nd->store_uuid, sizeof(uuid));
	generation = nd->generation;
	spin_unlock(&nd->lock);
	if (!known)
		return sysfs_emit(buf, "\n");
	return sysfs_emit(buf, "%pUb %llu\n", uuid,
			  (unsigned long long)generation);
}
static DEVICE_ATTR_RO(generation);

static ssize_t session_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	u8 id[NETBLK2_ID_SIZE];
	bool known;

	spin_lock(&nd->lock);
	known = nd->has_session;
	memcpy(id, nd->session_id, sizeof(id));
	spin_unlock(&nd->lock);
	if (!known)
		return sysfs_emit(buf, "\n");
	return sysfs_emit(buf, "%*phN\n", NETBLK2_ID_SIZE, id);
}
static DEVICE_ATTR_RO(session);

static ssize_t unflushed_show(struct device *dev, struct device_attribute *attr,
			      char *buf)
{
	return sysfs_emit(buf, "%llu\n", (unsigned long long)
			  netblk_unflushed(netblk_from_dev(dev)));
}
static DEVICE_ATTR_RO(unflushed);

static ssize_t lost_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	char why[sizeof(nd->lost_why)];
	bool lost;

	spin_lock(&nd->lock);
	lost = nd->lost;
	memcpy(why, nd->lost_why, sizeof(why));
	spin_unlock(&nd->lock);
	return lost ? sysfs_emit(buf, "yes: %s\n", why) :
		      sysfs_emit(buf, "no\n");
}
static DEVICE_ATTR_RO(lost);

static ssize_t reset_lost_store(struct device *dev,
				struct device_attribute *attr, const char *buf,
				size_t count)
{
	u64 one;

	if (netblk_parse_number(buf, netblk_trim(buf, count), 1, 1, &one))
		return -EINVAL;
	netblk_reset_lost(netblk_from_dev(dev));
	return count;
}
static DEVICE_ATTR_WO(reset_lost);

/* Why the last connection ended, or the last try failed. */
static ssize_t reason_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%s\n", READ_ONCE(netblk_from_dev(dev)->why));
}
static DEVICE_ATTR_RO(reason);

static struct attribute *netblk_session_attrs[] = {
	&dev_attr_protocol.attr,
	&dev_attr_export.attr,
	&dev_attr_access.attr,
	&dev_attr_client_id.attr,
	&dev_attr_heartbeat_ms.attr,
	&dev_attr_crc32c.attr,
	&dev_attr_connections.attr,
	&dev_attr_connections_up.attr,
	&dev_attr_queue_depth.attr,
	&dev_attr_generation.attr,
	&dev_attr_session.attr,
	&dev_attr_unflushed.attr,
	&dev_attr_lost.attr,
	&dev_attr_reset_lost.attr,
	&dev_attr_reason.attr,
	NULL,
};

const struct attribute_group netblk_session_attr_group = {
	.attrs = netblk_session_attrs,
};
