// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/block/netblk/: see ABI-sysfs-netblk. A write either is wholly valid or
 * changes nothing and fails with EINVAL.
 */
#include <linux/device.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "net_block.h"

/* The text without the newline that echo adds. */
size_t netblk_trim(const char *text, size_t length)
{
	return length && text[length - 1] == '\n' ? length - 1 : length;
}

static int netblk_parse_uint(const char *text, size_t length, unsigned int low,
			     unsigned int high, unsigned int *value)
{
	u64 parsed;
	int err = netblk_parse_number(text, netblk_trim(text, length), low,
				      high, &parsed);

	if (!err)
		*value = parsed;
	return err;
}

static ssize_t server_ip_show(struct device *dev, struct device_attribute *attr,
			      char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	__be32 ip;

	spin_lock(&nd->lock);
	ip = nd->configured.ip;
	spin_unlock(&nd->lock);
	return sysfs_emit(buf, "%pI4\n", &ip);
}

static ssize_t server_ip_store(struct device *dev,
			       struct device_attribute *attr, const char *buf,
			       size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	__be32 ip;

	if (netblk_parse_ip(buf, netblk_trim(buf, count), &ip))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->configured.ip = ip;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(server_ip);

static ssize_t server_port_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);

	return sysfs_emit(buf, "%u\n", READ_ONCE(nd->configured.port));
}

static ssize_t server_port_store(struct device *dev,
				 struct device_attribute *attr, const char *buf,
				 size_t count)
{
	struct netblk_device *nd = netblk_from_dev(dev);
	unsigned int port;

	if (netblk_parse_uint(buf, count, 1, U16_MAX, &port))
		return -EINVAL;
	spin_lock(&nd->lock);
	nd->configured.port = port;
	spin_unlock(&nd->lock);
	return count;
}
static DEVICE_ATTR_RW(server_port);

const char *netblk_state_name(enum netblk_state state)
{
	static const char * const names[] = {
		[NETBLK_STATE_DISCONNECTED] = "disconnected",
		[NETBLK_STATE_CONNECTING] = "connecting",
		[NETBLK_STATE_CONNECTED] = "connected",
		[NETBLK_STATE_ERROR] = "error",
	};

	return names[state];
}

static ssize_t state_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	enum netblk_state state = READ_ONCE(netblk_from_dev(dev)->state);

	return sysfs_emit(buf, "%s\n", netblk_state_name(state));
}
static DEVICE_ATTR_RO(state);

static ssize_t stats_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct netblk_device *nd = netblk_from_dev(dev);

	return sysfs_emit(buf,
			  "read_bytes:  %llu\nwrite_bytes: %llu\nerrors:      %llu\n",
			  (unsigned long long)
			  netblk_stats_bytes(nd, NETBLK_KIND_READ),
			  (unsigned long long)
			  netblk_stats_bytes(nd, NETBLK_KIND_WRITE),
			  (unsigned long long)netblk_stats_errors(nd));
}
static DEVICE_ATTR_RO(stats);

static ssize_t connect_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t count)
{
	unsigned int one;
	int err;

	if (netblk_parse_uint(buf, count, 1, 1, &one))
		return -EINVAL;
	err = netblk_connect(netblk_from_dev(dev));
	return err ? err : count;
}
static DEVICE_ATTR_WO(connect);

static ssize_t disconnect_store(struct device *dev,
				struct device_attribute *attr, const char *buf,
				size_t count)
{
	unsigned int one;
	int err;

	if (netblk_parse_uint(buf, count, 1, 1, &one))
		return -EINVAL;
	err = netblk_disconnect(netblk_from_dev(dev));
	return err ? err : count;
}
static DEVICE_ATTR_WO(disconnect);

/* A number that is read with READ_ONCE at each use: a write counts at once. */
struct netblk_limit {
	struct device_attribute attr;
	size_t offset; /* of the number in struct netblk_device */
	unsigned int low;
	unsigned int high;
};

static ssize_t limit_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct netblk_limit *limit = container_of(attr, struct netblk_limit,
						  attr);
	unsigned int *value = (void *)netblk_from_dev(dev) + limit->offset;

	return sysfs_emit(buf, "%u\n", READ_ONCE(*value));
}

static ssize_t limit_store(struct device *dev, struct device_attribute *attr,
			   const char *buf, size_t count)
{
	struct netblk_limit *limit = container_of(attr, struct netblk_limit,
						  attr);
	struct netblk_device *nd = netblk_from_dev(dev);
	unsigned int *value = (void *)nd + limit->offset;
	unsigned int parsed;

	if (netblk_parse_uint(buf, count, limit->low, limit->high, &parsed))
		return -EINVAL;
	WRITE_ONCE(*value, parsed);
	/* the thread may be asleep until a deadline that has changed */
	netblk_kick(nd);
	return count;
}

static struct netblk_limit netblk_max_retries = {
	.attr = __ATTR(max_retries, 0644, limit_show, limit_store),
	.offset = offsetof(struct netblk_device, max_retries),
	.high = NETBLK_MAX_RETRIES,
};

static struct netblk_limit netblk_connect_timeout_ms = {
	.attr = __ATTR(connect_timeout_ms, 0644, limit_show, limit_store),
	.offset = offsetof(struct netblk_device, connect_timeout_ms),
	.low = 1,
	.high = NETBLK_MAX_TIMEOUT_MS,
};

static struct netblk_limit netblk_io_timeout_ms = {
	.attr = __ATTR(io_timeout_ms, 0644, limit_show, limit_store),
	.offset = offsetof(struct netblk_device, io_timeout_ms),
	.low = 1,
	.high = NETBLK_MAX_TIMEOUT_MS,
};

/* What is in force: 0, the default, means that the protocol decides. */
static ssize_t dead_time_ms_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n",
			  netblk_dead_time_ms(netblk_from_dev(dev)));
}

static struct netblk_limit netblk_dead_time_attr = {
	.attr = __ATTR(dead_time_ms, 0644, dead_time_ms_show, limit_store),
	.offset = offsetof(struct netblk_device, dead_time_ms),
	.high = NETBLK_FOR_EVER_MS,
};

static ssize_t size_mb_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%llu\n",
			  (unsigned long long)netblk_from_dev(dev)->size_mb);
}
static DEVICE_ATTR_RO(size_mb);

static struct attribute *netblk_attrs[] = {
	&dev_attr_server_ip.attr,
	&dev_attr_server_port.attr,
	&dev_attr_state.attr,
	&dev_attr_stats.attr,
	&dev_attr_connect.attr,
	&dev_attr_disconnect.attr,
	&netblk_max_retries.attr.attr,
	&netblk_connect_timeout_ms.attr.attr,
	&netblk_io_timeout_ms.attr.attr,
	&netblk_dead_time_attr.attr.attr,
	&dev_attr_size_mb.attr,
	NULL,
};

static const struct attribute_group netblk_attr_group = {
	.attrs = netblk_attrs,
};

const struct attribute_group *netblk_attr_groups[] = {
	&netblk_attr_group,
	&netblk_session_attr_group,
	&netblk_stats_group,
	NULL,
};
