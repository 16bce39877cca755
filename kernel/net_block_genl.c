// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink family "netblk": see netblk_genl.h.
 *
 * No command waits for a server: all families of generic netlink share a lock
 * that a command holds for reading, so a slow one would hold up others'.
 */
#define pr_fmt(fmt) fmt

#include <linux/log2.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <net/genetlink.h>
#include <net/sock.h>
#include <net/tcp_states.h>

#include "compat.h"
#include "net_block.h"
#include "netblk_genl.h"

#define NETBLK_MAX_OPTIONS 4096

/* What of netblk/2 the driver does on sockets that it is given. */
#define NETBLK_HANDOVER_FEATURES            \
	(BIT(NETBLK2_FEATURE_CRC32C) |      \
	 BIT(NETBLK2_FEATURE_HEARTBEAT) |  \
	 BIT(NETBLK2_FEATURE_RESIZE) |     \
	 BIT(NETBLK2_FEATURE_TIMES))

static struct netlink_range_validation netblk_numbers = {
	.max = NETBLK_MAX_DEVICES - 1,
};

static struct netlink_range_validation netblk_sizes = {
	.min = SECTOR_SIZE,
	.max = (u64)LLONG_MAX - (SECTOR_SIZE - 1),
};

static struct netlink_range_validation netblk_blocks = {
	.min = SECTOR_SIZE,
	.max = PAGE_SIZE,
};

static struct netlink_range_validation netblk_payloads = {
	.min = NETBLK2_MIN_MAX_PAYLOAD,
	.max = NETBLK2_MAX_PAYLOAD,
};

static struct netlink_range_validation netblk_heartbeats = {
	.min = NETBLK2_MIN_HEARTBEAT_MS,
	.max = NETBLK2_MAX_HEARTBEAT_MS,
};

static const struct nla_policy netblk_socket_policy[NETBLK_A_EPOCH + 1] = {
	[NETBLK_A_FD] = NLA_POLICY_MIN(NLA_S32, 0),
	[NETBLK_A_EPOCH] = { .type = NLA_U64 },
};

static const struct nla_policy netblk_add_policy[NETBLK_A_OPTIONS + 1] = {
	[NETBLK_A_OPTIONS] = { .type = NLA_NUL_STRING,
			       .len = NETBLK_MAX_OPTIONS },
};

static const struct nla_policy netblk_number_policy[NETBLK_A_NUMBER + 1] = {
	[NETBLK_A_NUMBER] = NLA_POLICY_FULL_RANGE(NLA_U32, &netblk_numbers),
};

static const struct nla_policy netblk_connect_policy[NETBLK_A_MAX + 1] = {
	[NETBLK_A_NUMBER] = NLA_POLICY_FULL_RANGE(NLA_U32, &netblk_numbers),
	[NETBLK_A_SOCKETS] = { .type = NLA_NESTED },
	[NETBLK_A_PROTOCOL] = NLA_POLICY_RANGE(NLA_U32, 1, 2),
	[NETBLK_A_SIZE_BYTES] = NLA_POLICY_FULL_RANGE(NLA_U64, &netblk_sizes),
	[NETBLK_A_BLOCK_BYTES] = NLA_POLICY_FULL_RANGE(NLA_U32, &netblk_blocks),
	[NETBLK_A_PREFERRED_BYTES] = { .type = NLA_U32 },
	[NETBLK_A_MAX_PAYLOAD_BYTES] = NLA_POLICY_FULL_RANGE(NLA_U32,
							     &netblk_payloads),
	[NETBLK_A_SLOTS] = NLA_POLICY_RANGE(NLA_U32, NETBLK2_MIN_SLOTS,
					    NETBLK2_MAX_SLOTS),
	[NETBLK_A_FLAGS] = { .type = NLA_U32 },
	[NETBLK_A_FEATURES] = { .type = NLA_U32 },
	[NETBLK_A_HEARTBEAT_MS] = NLA_POLICY_FULL_RANGE(NLA_U32,
							&netblk_heartbeats),
	[NETBLK_A_SESSION_ID] = NLA_POLICY_EXACT_LEN(NETBLK2_ID_SIZE),
	[NETBLK_A_CLIENT_ID] = NLA_POLICY_EXACT_LEN(NETBLK2_ID_SIZE),
	[NETBLK_A_STORE_UUID] = NLA_POLICY_EXACT_LEN(NETBLK2_ID_SIZE),
	[NETBLK_A_GENERATION] = { .type = NLA_U64 },
};

/* What a welcome says, and so a hand-over of netblk/2 has to. */
static const u16 netblk_welcome_attributes[] = {
	NETBLK_A_SIZE_BYTES, NETBLK_A_BLOCK_BYTES, NETBLK_A_MAX_PAYLOAD_BYTES,
	NETBLK_A_SLOTS, NETBLK_A_SESSION_ID, NETBLK_A_CLIENT_ID,
	NETBLK_A_STORE_UUID, NETBLK_A_GENERATION,
};

static struct genl_family netblk_family;

/* The device of NETBLK_A_NUMBER, which netblk_put() gives back. */
static struct netblk_device *netblk_genl_device(struct genl_info *info)
{
	struct netblk_device *nd;

	if (GENL_REQ_ATTR_CHECK(info, NETBLK_A_NUMBER)) {
		GENL_SET_ERR_MSG(info, "the number of the device is missing");
		return ERR_PTR(-EINVAL);
	}
	nd = netblk_get(nla_get_u32(info->attrs[NETBLK_A_NUMBER]), false);
	if (!nd) {
		GENL_SET_ERR_MSG(info, "there is no device of this number");
		return ERR_PTR(-ENODEV);
	}
	return nd;
}

static int netblk_genl_fill(struct sk_buff *skb, struct netblk_device *nd,
			    u8 command, u32 portid, u32 sequence, int flags)
{
	void *header = genlmsg_put(skb, portid, sequence, &netblk_family, flags,
				   command);

	if (!header)
		return -EMSGSIZE;
	if (nla_put_u32(skb, NETBLK_A_NUMBER, nd->number) ||
	    nla_put_string(skb, NETBLK_A_NAME, netblk_name(nd)) ||
	    nla_put_string(skb, NETBLK_A_STATE,
			   netblk_state_name(READ_ONCE(nd->state))) ||
	    nla_put_string(skb, NETBLK_A_WHY, READ_ONCE(nd->why)) ||
	    nla_put_s32(skb, NETBLK_A_ERROR, READ_ONCE(nd->error)) ||
	    nla_put_u32(skb, NETBLK_A_PROTOCOL,
			READ_ONCE(nd->version)) ||
	    (READ_ONCE(nd->handed_over) &&
	     nla_put_flag(skb, NETBLK_A_HANDED_OVER)) ||
	    nla_put_u64_64bit(skb, NETBLK_A_SIZE_BYTES,
			      get_capacity(nd->disk) << SECTOR_SHIFT,
			      NETBLK_A_PAD) ||
	    nla_put_u64_64bit(skb, NETBLK_A_RECONNECTS,
			      atomic64_read(&nd->reconnects), NETBLK_A_PAD)) {
		genlmsg_cancel(skb, header);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, header);
	return 0;
}

static int netblk_genl_reply(struct genl_info *info, struct netblk_device *nd)
{
	struct sk_buff *skb = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	int err;

	if (!skb)
		return -ENOMEM;
	err = netblk_genl_fill(skb, nd, NETBLK_GENL_STATUS, info->snd_portid,
			       info->snd_seq, 0);
	if (err) {
		nlmsg_free(skb);
		return err;
	}
	return genlmsg_reply(skb, info);
}

/* A new device, connected to nothing. Returns its number. */
static int netblk_genl_make(struct genl_info *info)
{
	struct nlattr *options = info->attrs[NETBLK_A_OPTIONS];
	struct netblk_config config = netblk_defaults;
	int err = 0;

	if (options)
		err = netblk_config_parse(&config, nla_data(options),
					  strlen(nla_data(options)));
	if (err) {
		GENL_SET_ERR_MSG(info, "an option is unknown or out of range; the kernel log names it");
		return err;
	}
	err = netblk_add(&config, false);
	if (err == -EEXIST)
		GENL_SET_ERR_MSG(info, "this number is in use");
	if (err == -ENOSPC)
		GENL_SET_ERR_MSG(info, "all numbers are in use");
	return err;
}

static int netblk_genl_add(struct sk_buff *skb, struct genl_info *info)
{
	struct netblk_device *nd;
	int number = netblk_genl_make(info);
	int err;

	if (number < 0)
		return number;
	/* Somebody may have removed it since: then it was there, all the same. */
	nd = netblk_get(number, false);
	if (!nd)
		return -ENODEV;
	err = netblk_genl_reply(info, nd);
	netblk_put(nd);
	return err;
}

static int netblk_genl_remove(struct sk_buff *skb, struct genl_info *info)
{
	int err;

	if (GENL_REQ_ATTR_CHECK(info, NETBLK_A_NUMBER)) {
		GENL_SET_ERR_MSG(info, "the number of the device is missing");
		return -EINVAL;
	}
	err = netblk_remove(nla_get_u32(info->attrs[NETBLK_A_NUMBER]));
	if (err == -EBUSY)
		GENL_SET_ERR_MSG(info, "the device is in use");
	if (err == -ENODEV)
		GENL_SET_ERR_MSG(info, "there is no device of this number");
	return err;
}

static int netblk_genl_disconnect(struct sk_buff *skb, struct genl_info *info)
{
	struct netblk_device *nd = netblk_genl_device(info);
	int err;

	if (IS_ERR(nd))
		return PTR_ERR(nd);
	err = netblk_disconnect(nd);
	netblk_put(nd);
	return err;
}

static int netblk_genl_status(struct sk_buff *skb, struct genl_info *info)
{
	struct netblk_device *nd = netblk_genl_device(info);
	int err;

	if (IS_ERR(nd))
		return PTR_ERR(nd);
	err = netblk_genl_reply(info, nd);
	netblk_put(nd);
	return err;
}

static int netblk_genl_dump(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct netblk_device *nd;

	/* args[0] is the number after which to go on, plus one */
	while ((nd = netblk_get((int)cb->args[0] - 1, true))) {
		int number = nd->number;
		int err = netblk_genl_fill(skb, nd, NETBLK_GENL_STATUS,
					   NETLINK_CB(cb->skb).portid,
					   cb->nlh->nlmsg_seq, NLM_F_MULTI);

		netblk_put(nd);
		if (err)
			return skb->len ? skb->len : err;
		cb->args[0] = number + 1;
	}
	return skb->len;
}

static void netblk_release_sockets(struct netblk_handover *h)
{
	while (h->count--) {
		if (h->sockets[h->count])
			sockfd_put(h->sockets[h->count]);
	}
}

/*
 * What the driver does with a socket (sequence numbers, RST, the inside of
 * tcp_sock) it can do with an established TCP socket only.
 */
static int netblk_take_socket(struct netblk_handover *h, struct nlattr *attr,
			      struct netlink_ext_ack *extack)
{
	struct nlattr *tb[NETBLK_A_EPOCH + 1];
	struct socket *socket;
	unsigned int i;
	int err;

	if (nla_type(attr) != NETBLK_A_SOCKET) {
		NL_SET_ERR_MSG_ATTR(extack, attr, "this is no socket attribute");
		return -EINVAL;
	}
	if (h->count == NETBLK2_MAX_CONNECTIONS) {
		NL_SET_ERR_MSG_ATTR(extack, attr, "these are more sockets than a session has connections");
		return -E2BIG;
	}
	err = nla_parse_nested(tb, NETBLK_A_EPOCH, attr, netblk_socket_policy,
			       extack);
	if (err)
		return err;
	if (!tb[NETBLK_A_FD]) {
		NL_SET_ERR_MSG_ATTR(extack, attr, "the file descriptor is missing");
		return -EINVAL;
	}
	if (h->protocol != 1 && !tb[NETBLK_A_EPOCH]) {
		NL_SET_ERR_MSG_ATTR(extack, attr, "the epoch is missing");
		return -EINVAL;
	}
	socket = sockfd_lookup(nla_get_s32(tb[NETBLK_A_FD]), &err);
	if (!socket) {
		NL_SET_ERR_MSG_ATTR(extack, tb[NETBLK_A_FD], "the file descriptor is no open socket");
		return err;
	}
	err = -EINVAL;
	if ((socket->sk->sk_family != AF_INET &&
	     socket->sk->sk_family != AF_INET6) ||
	    socket->sk->sk_type != SOCK_STREAM ||
	    socket->sk->sk_protocol != IPPROTO_TCP) {
		NL_SET_ERR_MSG_ATTR(extack, tb[NETBLK_A_FD], "the socket is none of TCP");
		goto put;
	}
	for (i = 0; i < h->count; i++) {
		if (h->sockets[i]->sk == socket->sk) {
			NL_SET_ERR_MSG_ATTR(extack, tb[NETBLK_A_FD], "the socket is given twice");
			goto put;
		}
	}
	if (READ_ONCE(socket->sk->sk_state) != TCP_ESTABLISHED) {
		NL_SET_ERR_MSG_ATTR(extack, tb[NETBLK_A_FD], "the socket is not connected");
		err = -ENOTCONN;
		goto put;
	}
	h->epochs[h->count] = tb[NETBLK_A_EPOCH] ?
		nla_get_u64(tb[NETBLK_A_EPOCH]) : 0;
	h->sockets[h->count++] = socket;
	return 0;
put:
	sockfd_put(socket);
	return err;
}

static u32 netblk_u32_or(struct nlattr *attr, u32 otherwise)
{
	return attr ? nla_get_u32(attr) : otherwise;
}

static int netblk_take_welcome(struct netblk_handover *h,
			       struct genl_info *info)
{
	struct nlattr **a = info->attrs;
	size_t i;

	h->protocol = netblk_u32_or(a[NETBLK_A_PROTOCOL], 2);
	if (a[NETBLK_A_SIZE_BYTES])
		h->size_bytes = nla_get_u64(a[NETBLK_A_SIZE_BYTES]);
	h->block_bytes = netblk_u32_or(a[NETBLK_A_BLOCK_BYTES], SECTOR_SIZE);
	if (!is_power_of_2(h->block_bytes)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[NETBLK_A_BLOCK_BYTES],
				    "the block size is no power of two");
		return -EINVAL;
	}
	if (h->size_bytes & (h->block_bytes - 1)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[NETBLK_A_SIZE_BYTES],
				    "the size is not in whole blocks");
		return -EINVAL;
	}
	if (h->protocol == 1)
		return 0;

	for (i = 0; i < ARRAY_SIZE(netblk_welcome_attributes); i++) {
		if (GENL_REQ_ATTR_CHECK(info, netblk_welcome_attributes[i])) {
			GENL_SET_ERR_MSG(info, "something that the welcome said is missing");
			return -EINVAL;
		}
	}
	h->preferred_bytes = netblk_u32_or(a[NETBLK_A_PREFERRED_BYTES], 0);
	h->max_payload_bytes = nla_get_u32(a[NETBLK_A_MAX_PAYLOAD_BYTES]);
	h->slots = nla_get_u32(a[NETBLK_A_SLOTS]);
	h->flags = netblk_u32_or(a[NETBLK_A_FLAGS], 0);
	h->features = netblk_u32_or(a[NETBLK_A_FEATURES], 0);
	h->heartbeat_ms = netblk_u32_or(a[NETBLK_A_HEARTBEAT_MS], 0);
	h->generation = nla_get_u64(a[NETBLK_A_GENERATION]);
	nla_memcpy(h->session_id, a[NETBLK_A_SESSION_ID], NETBLK2_ID_SIZE);
	nla_memcpy(h->client_id, a[NETBLK_A_CLIENT_ID], NETBLK2_ID_SIZE);
	nla_memcpy(h->store_uuid, a[NETBLK_A_STORE_UUID], NETBLK2_ID_SIZE);
	if (!memchr_inv(h->session_id, 0, NETBLK2_ID_SIZE) ||
	    !memchr_inv(h->client_id, 0, NETBLK2_ID_SIZE)) {
		GENL_SET_ERR_MSG(info, "an id is zero");
		return -EINVAL;
	}
	if (h->max_payload_bytes & (h->block_bytes - 1)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[NETBLK_A_MAX_PAYLOAD_BYTES],
				    "the longest payload is not in whole blocks");
		return -EINVAL;
	}
	if (h->features & ~NETBLK_HANDOVER_FEATURES) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[NETBLK_A_FEATURES],
				    "the driver does not have one of these features");
		return -EOPNOTSUPP;
	}
	if (!(h->features & BIT(NETBLK2_FEATURE_HEARTBEAT)) !=
	    !h->heartbeat_ms) {
		GENL_SET_ERR_MSG(info, "the heartbeat has a period exactly when it is in force");
		return -EINVAL;
	}
	return 0;
}

static int netblk_take_handover(struct netblk_handover *h,
				struct genl_info *info)
{
	struct nlattr *attr;
	int err = netblk_take_welcome(h, info), rest;

	if (err)
		return err;
	if (GENL_REQ_ATTR_CHECK(info, NETBLK_A_SOCKETS)) {
		GENL_SET_ERR_MSG(info, "the sockets are missing");
		return -EINVAL;
	}
	nla_for_each_nested(attr, info->attrs[NETBLK_A_SOCKETS], rest) {
		err = netblk_take_socket(h, attr, info->extack);
		if (err)
			return err;
	}
	if (h->count && (h->protocol != 1 || h->count == 1))
		return 0;
	NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[NETBLK_A_SOCKETS],
			    "these are too few sockets, or too many");
	return -EINVAL;
}

/* What the kernel's own handshake would have made of the server's welcome. */
static void netblk_welcome_of(const struct netblk_handover *h,
			      struct netblk_welcome *w)
{
	w->flags = h->flags;
	w->max_connections = h->count;
	memcpy(w->session_id, h->session_id, NETBLK2_ID_SIZE);
	memcpy(w->store_uuid, h->store_uuid, NETBLK2_ID_SIZE);
	w->generation = h->generation;
	w->size_bytes = h->size_bytes;
	w->block_bytes = h->block_bytes;
	w->preferred_bytes = h->preferred_bytes;
	w->max_payload_bytes = h->max_payload_bytes;
	w->slots = h->slots;
	w->crc32c = h->features & BIT(NETBLK2_FEATURE_CRC32C);
	w->resize = h->features & BIT(NETBLK2_FEATURE_RESIZE);
	w->times = h->features & BIT(NETBLK2_FEATURE_TIMES);
	w->heartbeat_ms = h->heartbeat_ms;
}

/*
 * Make connections of the sockets, and let the device's thread have them. It
 * resets those that it has before it uses the new ones.
 */
static int netblk_hand_over(struct netblk_device *nd, struct netblk_handover *h,
			    struct netlink_ext_ack *extack)
{
	unsigned int i;
	int err;

	h->proto = h->protocol == 1 ? &netblk_proto1 : &netblk_proto2;
	if (h->count > nd->nr_queues) {
		NL_SET_ERR_MSG(extack, "the device has fewer queues");
		return -EINVAL;
	}
	for (i = 0; i < h->count; i++) {
		struct netblk_conn *nc = netblk_conn_adopt(&nd->queues[i],
							   h->sockets[i]);

		if (IS_ERR(nc)) {
			err = PTR_ERR(nc);
			NL_SET_ERR_MSG(extack, "a socket is used by somebody else in the kernel");
			goto close;
		}
		nc->proto = h->proto;
		nc->epoch = h->epochs[i];
		netblk_welcome_of(h, &nc->welcome);
		h->conns[i] = nc;
		h->sockets[i] = NULL; /* it is the connection's now */
	}
	err = netblk_handover(nd, h);
close:
	/* what the thread has taken is not there any more */
	for (i = 0; i < h->count; i++) {
		if (h->conns[i])
			netblk_conn_close(h->conns[i]);
	}
	return err;
}

static int netblk_genl_connect(struct sk_buff *skb, struct genl_info *info)
{
	struct netblk_device *nd = netblk_genl_device(info);
	struct netblk_handover *h;
	int err = -ENOMEM;

	if (IS_ERR(nd))
		return PTR_ERR(nd);
	h = kzalloc(sizeof(*h), GFP_KERNEL);
	if (h)
		err = netblk_take_handover(h, info);
	if (!err) {
		err = netblk_hand_over(nd, h, info->extack);
		if (!err)
			err = netblk_genl_reply(info, nd);
	}
	if (h)
		netblk_release_sockets(h);
	kfree(h);
	netblk_put(nd);
	return err;
}

static const struct genl_ops netblk_genl_ops[] = {
	{
		.cmd = NETBLK_GENL_ADD,
		.doit = netblk_genl_add,
		.flags = GENL_ADMIN_PERM,
		.policy = netblk_add_policy,
		.maxattr = ARRAY_SIZE(netblk_add_policy) - 1,
	},
	{
		.cmd = NETBLK_GENL_REMOVE,
		.doit = netblk_genl_remove,
		.flags = GENL_ADMIN_PERM,
		.policy = netblk_number_policy,
		.maxattr = ARRAY_SIZE(netblk_number_policy) - 1,
	},
	{
		.cmd = NETBLK_GENL_CONNECT,
		.doit = netblk_genl_connect,
		.flags = GENL_ADMIN_PERM,
		.policy = netblk_connect_policy,
		.maxattr = ARRAY_SIZE(netblk_connect_policy) - 1,
	},
	{
		.cmd = NETBLK_GENL_DISCONNECT,
		.doit = netblk_genl_disconnect,
		.flags = GENL_ADMIN_PERM,
		.policy = netblk_number_policy,
		.maxattr = ARRAY_SIZE(netblk_number_policy) - 1,
	},
	{
		.cmd = NETBLK_GENL_STATUS,
		.doit = netblk_genl_status,
		.dumpit = netblk_genl_dump,
		.flags = GENL_ADMIN_PERM,
		.policy = netblk_number_policy,
		.maxattr = ARRAY_SIZE(netblk_number_policy) - 1,
	},
};

static const struct genl_multicast_group netblk_genl_groups[] = {
	{ .name = NETBLK_GENL_GROUP },
};

static struct genl_family netblk_family __ro_after_init = {
	.name = NETBLK_GENL_NAME,
	.version = NETBLK_GENL_VERSION,
	.module = THIS_MODULE,
	.ops = netblk_genl_ops,
	.n_ops = ARRAY_SIZE(netblk_genl_ops),
	.resv_start_op = NETBLK_GENL_EVENT + 1,
	.mcgrps = netblk_genl_groups,
	.n_mcgrps = ARRAY_SIZE(netblk_genl_groups),
	/* devices have their own locks, and a disconnect may take 200 ms */
	.parallel_ops = true,
};

/* An event is not sent to a group whose number may be another's by now. */
static DEFINE_MUTEX(netblk_event_lock);
static bool netblk_events;

/*
 * Tell the group. From the device's thread, which is in the way of write-back:
 * without memory the event is dropped, and a listener finds out by looking.
 */
void netblk_genl_event(struct netblk_device *nd)
{
	struct sk_buff *skb;

	mutex_lock(&netblk_event_lock);
	if (!netblk_events || !genl_has_listeners(&netblk_family, &init_net, 0))
		goto out;
	skb = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_NOWAIT | __GFP_NOWARN);
	if (!skb)
		goto out;
	if (netblk_genl_fill(skb, nd, NETBLK_GENL_EVENT, 0, 0, 0))
		nlmsg_free(skb);
	else
		genlmsg_multicast(&netblk_family, skb, 0, 0,
				  GFP_NOWAIT | __GFP_NOWARN);
out:
	mutex_unlock(&netblk_event_lock);
}

static void netblk_allow_events(bool allow)
{
	mutex_lock(&netblk_event_lock);
	netblk_events = allow;
	mutex_unlock(&netblk_event_lock);
}

int __init netblk_genl_init(void)
{
	int err = genl_register_family(&netblk_family);

	if (!err)
		netblk_allow_events(true);
	return err;
}

/* Waits for the commands under way. After netblk_bus_leave(). */
void netblk_genl_exit(void)
{
	netblk_allow_events(false);
	genl_unregister_family(&netblk_family);
}
