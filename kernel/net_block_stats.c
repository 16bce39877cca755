// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a device has done: /sys/block/netblk/statistics/ and the tracepoints.
 *
 * Counts are kept per processor, so that completions on different queues do
 * not write to one cache line. A reader adds them up while they go on: each sum
 * only grows, but two of them may be of slightly different moments.
 */
#include <linux/blk-mq.h>
#include <linux/device.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/percpu.h>
#include <linux/sysfs.h>

#include "net_block.h"

#define CREATE_TRACE_POINTS
#include "net_block_trace.h"

int netblk_stats_alloc(struct netblk_device *nd)
{
	nd->stats = alloc_percpu(struct netblk_stats);
	return nd->stats ? 0 : -ENOMEM;
}

void netblk_stats_free(struct netblk_device *nd)
{
	free_percpu(nd->stats);
}

enum netblk_kind netblk_kind_of(const struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return NETBLK_KIND_READ;
	case REQ_OP_WRITE:
		return NETBLK_KIND_WRITE;
	case REQ_OP_DISCARD:
		return NETBLK_KIND_TRIM;
	case REQ_OP_WRITE_ZEROES:
		return NETBLK_KIND_ZEROES;
	default:
		return NETBLK_KIND_FLUSH;
	}
}

/* Bucket n has what took less than 2^n microseconds, and not less than half. */
static unsigned int netblk_bucket(u64 ns)
{
	u64 us = ns / NSEC_PER_USEC;
	unsigned int bucket = us ? ilog2(us) + 1 : 0;

	return min_t(unsigned int, bucket, NETBLK_LATENCY_BUCKETS - 1);
}

/* @rq ends now. Before it is given back to the block layer. */
void netblk_stats_end(struct netblk_device *nd, struct request *rq,
		      blk_status_t status)
{
	struct netblk_cmd *cmd = blk_mq_rq_to_pdu(rq);
	enum netblk_kind kind = netblk_kind_of(rq);
	u64 ns = ktime_get_ns() - cmd->queued_ns;

	trace_netblk_complete(nd, rq, blk_status_to_errno(status), ns);
	if (status != BLK_STS_OK) {
		this_cpu_inc(nd->stats->errors);
		return;
	}
	this_cpu_inc(nd->stats->requests[kind]);
	this_cpu_add(nd->stats->bytes[kind], blk_rq_bytes(rq));
	this_cpu_inc(nd->stats->latency[kind][netblk_bucket(ns)]);
	if (!cmd->sent_ns)
		return;
	this_cpu_add(nd->stats->queue_ns[kind], cmd->sent_ns - cmd->queued_ns);
	this_cpu_add(nd->stats->trip_ns[kind],
		     cmd->queued_ns + ns - cmd->sent_ns);
}

/*
 * What the server says of @count requests that were under way for @trip_ns, all
 * together. It cannot have had them for longer: the rest of it is cut.
 */
void netblk_stats_told(struct netblk_device *nd, u8 type, u32 count,
		       u64 trip_ns, u64 server_ns, u64 store_ns)
{
	static const u8 kinds[] = {
		[NETBLK2_READ] = NETBLK_KIND_READ,
		[NETBLK2_WRITE] = NETBLK_KIND_WRITE,
		[NETBLK2_FLUSH] = NETBLK_KIND_FLUSH,
		[NETBLK2_TRIM] = NETBLK_KIND_TRIM,
		[NETBLK2_WRITE_ZEROES] = NETBLK_KIND_ZEROES,
	};
	enum netblk_kind kind;

	if (type >= ARRAY_SIZE(kinds))
		return;
	kind = kinds[type];
	store_ns = min(store_ns, trip_ns);
	server_ns = min(server_ns, trip_ns - store_ns);
	this_cpu_add(nd->stats->told[kind], count);
	this_cpu_add(nd->stats->told_trip_ns[kind], trip_ns);
	this_cpu_add(nd->stats->server_ns[kind], server_ns);
	this_cpu_add(nd->stats->store_ns[kind], store_ns);
}

/* @rq was refused before it was on any list. */
void netblk_stats_refused(struct netblk_device *nd)
{
	this_cpu_inc(nd->stats->errors);
}

/* A lost connection is there again. */
void netblk_stats_reconnected(struct netblk_queue *q)
{
	atomic64_inc(&q->nd->reconnects);
	trace_netblk_reconnect(q->nd, q->index, q->tries,
			       jiffies_to_msecs(jiffies - q->dead_since));
}

static u64 netblk_sum(struct netblk_device *nd, size_t offset)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*(u64 *)((void *)per_cpu_ptr(nd->stats, cpu) +
					  offset));
	return sum;
}

u64 netblk_stats_bytes(struct netblk_device *nd, enum netblk_kind kind)
{
	return netblk_sum(nd, offsetof(struct netblk_stats, bytes[kind]));
}

u64 netblk_stats_errors(struct netblk_device *nd)
{
	return netblk_sum(nd, offsetof(struct netblk_stats, errors));
}

struct netblk_count {
	struct device_attribute attr;
	size_t offset; /* in struct netblk_stats */
};

static ssize_t count_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct netblk_count *count = container_of(attr, struct netblk_count,
						  attr);

	return sysfs_emit(buf, "%llu\n", (unsigned long long)
			  netblk_sum(netblk_from_dev(dev), count->offset));
}

static ssize_t latency_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct netblk_count *first = container_of(attr, struct netblk_count,
						  attr);
	unsigned int i;
	int length = 0;

	for (i = 0; i < NETBLK_LATENCY_BUCKETS; i++) {
		u64 sum = netblk_sum(netblk_from_dev(dev),
				     first->offset + i * sizeof(u64));

		if (i < NETBLK_LATENCY_BUCKETS - 1)
			length += sysfs_emit_at(buf, length, "%lu %llu\n",
						1UL << i,
						(unsigned long long)sum);
		else
			length += sysfs_emit_at(buf, length, "inf %llu\n",
						(unsigned long long)sum);
	}
	return length;
}

/* Sums of one kind, all in nanoseconds but for how many of them were told of. */
static ssize_t split_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	size_t kind = container_of(attr, struct netblk_count, attr)->offset;
	const struct {
		const char *name;
		size_t offset;
	} sums[] = {
		{ "queue", offsetof(struct netblk_stats, queue_ns[kind]) },
		{ "round_trip", offsetof(struct netblk_stats, trip_ns[kind]) },
		{ "told", offsetof(struct netblk_stats, told[kind]) },
		{ "told_round_trip",
		  offsetof(struct netblk_stats, told_trip_ns[kind]) },
		{ "server", offsetof(struct netblk_stats, server_ns[kind]) },
		{ "store", offsetof(struct netblk_stats, store_ns[kind]) },
	};
	unsigned int i;
	int length = 0;

	for (i = 0; i < ARRAY_SIZE(sums); i++)
		length += sysfs_emit_at(buf, length, "%s %llu\n", sums[i].name,
					(unsigned long long)
					netblk_sum(netblk_from_dev(dev),
						   sums[i].offset));
	return length;
}

static bool netblk_older(struct request *rq, void *data)
{
	const struct netblk_cmd *cmd = blk_mq_rq_to_pdu(rq);
	u64 *oldest_ns = data;

	*oldest_ns = min(*oldest_ns, READ_ONCE(cmd->queued_ns));
	return true;
}

/* The age of the oldest request that the block layer waits for. */
static ssize_t oldest_ms_show(struct device *dev,
			      struct device_attribute *attr, char *buf)
{
	u64 now = ktime_get_ns(), oldest_ns = now;

	blk_mq_tagset_busy_iter(&netblk_from_dev(dev)->tag_set, netblk_older,
				&oldest_ns);
	return sysfs_emit(buf, "%llu\n", (unsigned long long)
			  div_u64(now - oldest_ns, NSEC_PER_MSEC));
}
static DEVICE_ATTR_RO(oldest_ms);

#define NETBLK_COUNT(name, field)                                          \
	static struct netblk_count netblk_count_##name = {                  \
		.attr = __ATTR(name, 0444, count_show, NULL),               \
		.offset = offsetof(struct netblk_stats, field),             \
	}
#define NETBLK_LATENCY(name, kind)                                         \
	static struct netblk_count netblk_count_##name = {                  \
		.attr = __ATTR(name, 0444, latency_show, NULL),             \
		.offset = offsetof(struct netblk_stats, latency[kind]),     \
	}

#define NETBLK_SPLIT(name, kind)                                           \
	static struct netblk_count netblk_count_##name = {                  \
		.attr = __ATTR(name, 0444, split_show, NULL),               \
		.offset = kind,                                             \
	}

NETBLK_COUNT(read_requests, requests[NETBLK_KIND_READ]);
NETBLK_COUNT(write_requests, requests[NETBLK_KIND_WRITE]);
NETBLK_COUNT(flush_requests, requests[NETBLK_KIND_FLUSH]);
NETBLK_COUNT(trim_requests, requests[NETBLK_KIND_TRIM]);
NETBLK_COUNT(zeroes_requests, requests[NETBLK_KIND_ZEROES]);
NETBLK_COUNT(read_bytes, bytes[NETBLK_KIND_READ]);
NETBLK_COUNT(write_bytes, bytes[NETBLK_KIND_WRITE]);
NETBLK_COUNT(trim_bytes, bytes[NETBLK_KIND_TRIM]);
NETBLK_COUNT(zeroes_bytes, bytes[NETBLK_KIND_ZEROES]);
NETBLK_COUNT(errors, errors);
NETBLK_LATENCY(read_latency_us, NETBLK_KIND_READ);
NETBLK_LATENCY(write_latency_us, NETBLK_KIND_WRITE);
NETBLK_LATENCY(flush_latency_us, NETBLK_KIND_FLUSH);
NETBLK_SPLIT(read_split_ns, NETBLK_KIND_READ);
NETBLK_SPLIT(write_split_ns, NETBLK_KIND_WRITE);
NETBLK_SPLIT(flush_split_ns, NETBLK_KIND_FLUSH);

static ssize_t reconnects_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", (unsigned long long)
			  atomic64_read(&netblk_from_dev(dev)->reconnects));
}
static DEVICE_ATTR_RO(reconnects);

static struct attribute *netblk_stats_attrs[] = {
	&netblk_count_read_requests.attr.attr,
	&netblk_count_write_requests.attr.attr,
	&netblk_count_flush_requests.attr.attr,
	&netblk_count_trim_requests.attr.attr,
	&netblk_count_zeroes_requests.attr.attr,
	&netblk_count_read_bytes.attr.attr,
	&netblk_count_write_bytes.attr.attr,
	&netblk_count_trim_bytes.attr.attr,
	&netblk_count_zeroes_bytes.attr.attr,
	&netblk_count_errors.attr.attr,
	&netblk_count_read_latency_us.attr.attr,
	&netblk_count_write_latency_us.attr.attr,
	&netblk_count_flush_latency_us.attr.attr,
	&netblk_count_read_split_ns.attr.attr,
	&netblk_count_write_split_ns.attr.attr,
	&netblk_count_flush_split_ns.attr.attr,
	&dev_attr_oldest_ms.attr,
	&dev_attr_reconnects.attr,
	NULL,
};

const struct attribute_group netblk_stats_group = {
	.name = "statistics",
	.attrs = netblk_stats_attrs,
};
