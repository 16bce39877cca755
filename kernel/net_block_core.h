/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of a device's thread share: everything here is called by that
 * thread only.
 */
#ifndef NETBLK_NET_BLOCK_CORE_H
#define NETBLK_NET_BLOCK_CORE_H

#include <linux/jiffies.h>

#include "net_block.h"

/* net_block_core.c */
void netblk_change_state(struct netblk_device *nd,
			 enum netblk_state state);
void netblk_end_waiting(struct netblk_device *nd, int error);
void netblk_cancel_next(struct netblk_device *nd, int error);

/* net_block_carry.c */
struct netblk_conn *netblk_detach(struct netblk_queue *q,
				  struct list_head *list);
void netblk_attach(struct netblk_queue *q, struct netblk_conn *nc,
		   struct list_head *again);
void netblk_set_draining(struct netblk_queue *q, bool draining);
bool netblk_any_conn(const struct netblk_device *nd);
bool netblk_any_dead(const struct netblk_device *nd);
void netblk_not_dead(struct netblk_queue *q);
void netblk_fail_all(struct netblk_device *nd, enum netblk_state state);
void netblk_shrink(struct netblk_device *nd, unsigned int live);
void netblk_reset_all(struct netblk_device *nd, bool ledger);
void netblk_end_pending(struct netblk_device *nd,
			bool (*which)(const struct netblk_cmd *cmd),
			blk_status_t status);
bool netblk_is_durable(const struct netblk_cmd *cmd);

/* net_block_next.c */
void netblk_open_next(struct netblk_queue *q,
		      const struct netblk_addr *addr,
		      unsigned int version, bool user);
void netblk_service_next(struct netblk_device *nd);
int netblk_op_handover(struct netblk_device *nd,
		       struct netblk_handover *h);

static inline unsigned long netblk_ms(const unsigned int *ms)
{
	return msecs_to_jiffies(READ_ONCE(*ms));
}

#endif /* NETBLK_NET_BLOCK_CORE_H */
