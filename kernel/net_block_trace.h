/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * /sys/kernel/tracing/events/netblk/: a request is given to a connection, a
 * request ends, a lost connection is there again.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM netblk

#if !defined(NETBLK_NET_BLOCK_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define NETBLK_NET_BLOCK_TRACE_H

#include <linux/blk-mq.h>
#include <linux/tracepoint.h>

#include "net_block.h"

#define netblk_show_kind(kind)                     \
	__print_symbolic(kind,                      \
			 { NETBLK_KIND_READ, "read" },   \
			 { NETBLK_KIND_WRITE, "write" }, \
			 { NETBLK_KIND_FLUSH, "flush" }, \
			 { NETBLK_KIND_TRIM, "trim" },   \
			 { NETBLK_KIND_ZEROES, "zeroes" })

DECLARE_EVENT_CLASS(netblk_request,
	TP_PROTO(const struct netblk_device *nd, struct request *rq),
	TP_ARGS(nd, rq),
	TP_STRUCT__entry(
		__array(char, device, DISK_NAME_LEN)
		__field(unsigned int, queue)
		__field(unsigned int, tag)
		__field(unsigned int, kind)
		__field(u64, sector)
		__field(unsigned int, bytes)
	),
	TP_fast_assign(
		strscpy(__entry->device, netblk_name(nd), DISK_NAME_LEN);
		__entry->queue = rq->mq_hctx->queue_num;
		__entry->tag = rq->tag;
		__entry->kind = netblk_kind_of(rq);
		__entry->sector = blk_rq_pos(rq);
		__entry->bytes = blk_rq_bytes(rq);
	),
	TP_printk("%s queue=%u tag=%u %s sector=%llu bytes=%u",
		  __entry->device, __entry->queue, __entry->tag,
		  netblk_show_kind(__entry->kind),
		  (unsigned long long)__entry->sector, __entry->bytes)
);

/* Each time that it is given to a connection: once more after each loss. */
DEFINE_EVENT(netblk_request, netblk_issue,
	TP_PROTO(const struct netblk_device *nd, struct request *rq),
	TP_ARGS(nd, rq)
);

TRACE_EVENT(netblk_complete,
	TP_PROTO(const struct netblk_device *nd, struct request *rq, int error,
		 u64 latency_ns),
	TP_ARGS(nd, rq, error, latency_ns),
	TP_STRUCT__entry(
		__array(char, device, DISK_NAME_LEN)
		__field(unsigned int, queue)
		__field(unsigned int, tag)
		__field(unsigned int, kind)
		__field(u64, sector)
		__field(unsigned int, bytes)
		__field(int, error)
		__field(u64, latency_ns)
	),
	TP_fast_assign(
		strscpy(__entry->device, netblk_name(nd), DISK_NAME_LEN);
		__entry->queue = rq->mq_hctx->queue_num;
		__entry->tag = rq->tag;
		__entry->kind = netblk_kind_of(rq);
		__entry->sector = blk_rq_pos(rq);
		__entry->bytes = blk_rq_bytes(rq);
		__entry->error = error;
		__entry->latency_ns = latency_ns;
	),
	TP_printk("%s queue=%u tag=%u %s sector=%llu bytes=%u error=%d latency_ns=%llu",
		  __entry->device, __entry->queue, __entry->tag,
		  netblk_show_kind(__entry->kind),
		  (unsigned long long)__entry->sector, __entry->bytes,
		  __entry->error, (unsigned long long)__entry->latency_ns)
);

TRACE_EVENT(netblk_reconnect,
	TP_PROTO(const struct netblk_device *nd, unsigned int queue,
		 unsigned int tries, unsigned int lost_ms),
	TP_ARGS(nd, queue, tries, lost_ms),
	TP_STRUCT__entry(
		__array(char, device, DISK_NAME_LEN)
		__field(unsigned int, queue)
		__field(unsigned int, tries)
		__field(unsigned int, lost_ms)
	),
	TP_fast_assign(
		strscpy(__entry->device, netblk_name(nd), DISK_NAME_LEN);
		__entry->queue = queue;
		__entry->tries = tries;
		__entry->lost_ms = lost_ms;
	),
	TP_printk("%s queue=%u tries=%u lost_ms=%u", __entry->device,
		  __entry->queue, __entry->tries, __entry->lost_ms)
);

#endif /* NETBLK_NET_BLOCK_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE net_block_trace
#include <trace/define_trace.h>
