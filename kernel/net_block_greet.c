// SPDX-License-Identifier: GPL-2.0-only
/*
 * netblk/2: hello and welcome. A welcome is believed only when its checksum and
 * every number in it is right; what cannot be is refused, never mended.
 */
#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/printk.h>
#include <linux/string.h>

#include "compat.h"
#include "net_block.h"

static const char * const netblk2_feature_names[] = {
	[NETBLK2_FEATURE_CRC32C] = "crc32c",
	[NETBLK2_FEATURE_HEARTBEAT] = "heartbeat",
	[NETBLK2_FEATURE_RESIZE] = "resize",
	[NETBLK2_FEATURE_TIMES] = "times",
};

static u8 *netblk2_put_feature(u8 *at, u16 number, u32 value)
{
	struct netblk2_feature *feature = (void *)at;

	memset(feature, 0, sizeof(*feature));
	feature->number = cpu_to_be16(number);
	feature->value = cpu_to_be32(value);
	strscpy((char *)feature->name, netblk2_feature_names[number],
		sizeof(feature->name));
	return at + sizeof(*feature);
}

static u16 netblk2_hello_flags(const struct netblk_conn *nc)
{
	switch (nc->wish->access) {
	case NETBLK_READ_ONLY:
		return 0;
	case NETBLK_SHARED:
		return NETBLK2_HELLO_WRITE | NETBLK2_HELLO_SHARED;
	case NETBLK_TAKEOVER:
		/* from others, once: a session that is resumed has it already */
		return NETBLK2_HELLO_WRITE |
		       (nc->user ? NETBLK2_HELLO_TAKEOVER : 0);
	default:
		return NETBLK2_HELLO_WRITE;
	}
}

/*
 * The first bytes of a connection that was just established. The session's id
 * is ours to choose: a hello that comes twice, or whose welcome is lost, begins
 * no second session.
 */
int netblk2_send_hello(struct netblk_conn *nc)
{
	struct netblk2_hello *hello = (void *)nc->greeting;
	const struct netblk_wish *wish = nc->wish;
	size_t name_length = strlen(wish->export), length;
	struct netblk_device *nd = nc->nd;
	u8 *at = nc->greeting + sizeof(*hello);
	unsigned int features = 2;
	struct bio_vec bv;
	int sent;

	BUILD_BUG_ON(sizeof(*hello) + 4 * NETBLK2_FEATURE_SIZE +
		     NETBLK_EXPORT_SIZE > sizeof(nc->greeting));

	memset(nc->greeting, 0, sizeof(nc->greeting));
	memcpy(hello->magic, NETBLK2_MAGIC, sizeof(hello->magic));
	hello->flags = cpu_to_be16(netblk2_hello_flags(nc) |
				   (nc->user ? NETBLK2_HELLO_BEGIN : 0));
	hello->connection = cpu_to_be16(nc->queue->index);
	hello->slots = cpu_to_be32(min(nd->depth * nd->nr_queues,
				       (unsigned int)NETBLK2_MAX_SLOTS));
	memcpy(hello->client_id, wish->client_id, NETBLK2_ID_SIZE);
	memcpy(hello->session_id,
	       nc->user ? nd->next_session_id : nd->session_id,
	       NETBLK2_ID_SIZE);
	hello->epoch = cpu_to_be64(nc->epoch);
	/* With nobody there to mistake it, another store is welcome. */
	if (nd->has_store && !(nc->user && !disk_openers(nd->disk))) {
		memcpy(hello->store_uuid, nd->store_uuid, NETBLK2_ID_SIZE);
		hello->generation = cpu_to_be64(nd->generation);
	}
	if (wish->crc32c) {
		at = netblk2_put_feature(at, NETBLK2_FEATURE_CRC32C, 0);
		features++;
	}
	if (wish->heartbeat_ms) {
		at = netblk2_put_feature(at, NETBLK2_FEATURE_HEARTBEAT,
					 wish->heartbeat_ms);
		features++;
	}
	at = netblk2_put_feature(at, NETBLK2_FEATURE_RESIZE, 0);
	at = netblk2_put_feature(at, NETBLK2_FEATURE_TIMES, 0);
	hello->feature_count = cpu_to_be16(features);
	hello->name_length = cpu_to_be16(name_length);
	memcpy(at, wish->export, name_length);
	length = round_up(at + name_length - nc->greeting, 8);
	hello->length = cpu_to_be32(length);
	hello->crc = cpu_to_be32(netblk_crc32c(nc->greeting, length));

	/* The socket is new: what does not fit now is a reason to try again. */
	netblk_bvec_set_virt(&bv, nc->greeting, length);
	sent = netblk_net_write(nc, &bv, 1, length, false);
	if (sent < 0)
		return sent;
	nc->rx_have = 0;
	return sent == length ? 0 : -ENOBUFS;
}

static int netblk2_features(struct netblk_conn *nc, const u8 *at,
			    unsigned int count)
{
	struct netblk_welcome *w = &nc->welcome;
	unsigned int last = 0;

	for (; count; count--, at += NETBLK2_FEATURE_SIZE) {
		const struct netblk2_feature *feature = (const void *)at;
		unsigned int number = be16_to_cpu(feature->number);
		u32 value = be32_to_cpu(feature->value);

		if (number <= last)
			return -EPROTO;
		last = number;
		if (number == NETBLK2_FEATURE_CRC32C && nc->wish->crc32c &&
		    !value) {
			w->crc32c = true;
		} else if (number == NETBLK2_FEATURE_RESIZE && !value) {
			w->resize = true;
		} else if (number == NETBLK2_FEATURE_TIMES && !value) {
			w->times = true;
		} else if (number == NETBLK2_FEATURE_HEARTBEAT &&
			   nc->wish->heartbeat_ms &&
			   value >= NETBLK2_MIN_HEARTBEAT_MS &&
			   value <= NETBLK2_MAX_HEARTBEAT_MS) {
			w->heartbeat_ms = value;
		} else {
			return -EPROTO;
		}
	}
	return 0;
}

static bool netblk2_numbers_possible(const struct netblk_welcome *w)
{
	return w->slots >= NETBLK2_MIN_SLOTS && w->slots <= NETBLK2_MAX_SLOTS &&
	       w->max_connections &&
	       w->max_connections <= NETBLK2_MAX_CONNECTIONS &&
	       w->max_payload_bytes >= NETBLK2_MIN_MAX_PAYLOAD &&
	       w->max_payload_bytes <= NETBLK2_MAX_PAYLOAD &&
	       is_power_of_2(w->block_bytes) && w->block_bytes >= SECTOR_SIZE &&
	       w->block_bytes <= 65536 && w->preferred_bytes &&
	       w->preferred_bytes % w->block_bytes == 0 &&
	       w->size_bytes % w->block_bytes == 0 &&
	       w->size_bytes <= LLONG_MAX &&
	       memchr_inv(w->session_id, 0, NETBLK2_ID_SIZE);
}

/* The server has said no, and why. */
static int netblk2_refused(struct netblk_conn *nc, u32 status, const u8 *text,
			   size_t length)
{
	char why[128];
	size_t i;

	/* a peer's text in our log: printable ASCII and nothing else */
	length = min(length, sizeof(why) - 1);
	for (i = 0; i < length; i++)
		why[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
	why[length] = '\0';
	pr_warn_ratelimited("%s: %pISpc refuses: %s\n", netblk_name(nc->nd),
			    &nc->peer, why);

	switch (status) {
	case NETBLK2_ESTALE:
		nc->why = "fenced: the session is over";
		break;
	case NETBLK2_EBUSY:
		nc->why = "another client writes";
		break;
	case NETBLK2_ENOENT:
		nc->why = "the server has no such export";
		break;
	case NETBLK2_EPERM:
		nc->why = "the server does not let this client in";
		break;
	case NETBLK2_EPROTO:
	case NETBLK2_EOPNOTSUPP:
		nc->why = "the server does not take our hello";
		break;
	case NETBLK2_EAGAIN:
	case NETBLK2_ENOMEM:
	case NETBLK2_ESHUTDOWN:
	case NETBLK2_EIO:
		nc->why = "the server is not ready";
		return -(int)status;
	default:
		nc->why = "the server refuses, for a reason that we do not know";
		return -EIO;
	}
	nc->final = true;
	return -(int)status;
}

static int netblk2_bad_welcome(struct netblk_conn *nc)
{
	nc->why = "it sent a welcome that cannot be";
	return -EPROTO;
}

static int netblk2_parse_welcome(struct netblk_conn *nc, size_t length)
{
	struct netblk2_welcome *welcome = (void *)nc->greeting;
	unsigned int features = be16_to_cpu(welcome->feature_count);
	u32 status = be32_to_cpu(welcome->status);
	u32 body = be32_to_cpu(welcome->body_length);
	u32 crc = be32_to_cpu(welcome->crc);
	struct netblk_welcome *w = &nc->welcome;
	const u8 *tail;
	size_t used;

	welcome->crc = 0;
	if (netblk_crc32c(nc->greeting, length) != crc ||
	    features > NETBLK2_MAX_FEATURES || body > length)
		return netblk2_bad_welcome(nc);
	used = sizeof(*welcome) + features * NETBLK2_FEATURE_SIZE + body;
	tail = nc->greeting + used;
	if (round_up(used, 8) != length || memchr_inv(tail, 0, length - used))
		return netblk2_bad_welcome(nc);
	if (status != NETBLK2_OK)
		return netblk2_refused(nc, status, tail - body, body);

	memset(w, 0, sizeof(*w));
	w->flags = be16_to_cpu(welcome->flags);
	w->max_connections = be16_to_cpu(welcome->max_connections);
	memcpy(w->session_id, welcome->session_id, NETBLK2_ID_SIZE);
	memcpy(w->store_uuid, welcome->store_uuid, NETBLK2_ID_SIZE);
	w->generation = be64_to_cpu(welcome->generation);
	w->size_bytes = be64_to_cpu(welcome->size_bytes);
	w->block_bytes = be32_to_cpu(welcome->block_bytes);
	w->preferred_bytes = be32_to_cpu(welcome->preferred_bytes);
	w->max_payload_bytes = be32_to_cpu(welcome->max_payload_bytes);
	w->slots = be32_to_cpu(welcome->slots);
	if (body || !netblk2_numbers_possible(w) ||
	    netblk2_features(nc, nc->greeting + sizeof(*welcome), features))
		return netblk2_bad_welcome(nc);
	return 0;
}

/*
 * Receive what has come. -EINPROGRESS: the welcome is not whole.
 * nc->rx_have tells whether the server has sent anything at all.
 */
int netblk2_receive_welcome(struct netblk_conn *nc)
{
	const struct netblk2_welcome *welcome = (const void *)nc->greeting;

	for (;;) {
		size_t length = sizeof(*welcome);
		struct bio_vec bv;
		int got;

		if (nc->rx_have &&
		    memcmp(nc->greeting, NETBLK2_MAGIC,
			   min_t(size_t, nc->rx_have, NETBLK2_MAGIC_SIZE)))
			return netblk2_bad_welcome(nc);
		if (nc->rx_have >= sizeof(*welcome)) {
			length = be32_to_cpu(welcome->length);
			if (length < sizeof(*welcome) || length % 8 ||
			    length > sizeof(nc->greeting))
				return netblk2_bad_welcome(nc);
		}
		if (nc->rx_have == length && length >= sizeof(*welcome)) {
			int err = netblk2_parse_welcome(nc, length);

			nc->rx_have = 0;
			return err;
		}
		netblk_bvec_set_virt(&bv, nc->greeting + nc->rx_have,
				     length - nc->rx_have);
		got = netblk_net_read(nc, &bv, 1, length - nc->rx_have);
		if (got == -EAGAIN)
			return -EINPROGRESS;
		if (!got) {
			nc->why = "the server closed it";
			return -ECONNRESET;
		}
		if (got < 0)
			return got;
		nc->rx_have += got;
	}
}
