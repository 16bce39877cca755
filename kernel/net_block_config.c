// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a device is made with: the module's parameters, which are the defaults,
 * and the words that are written to /sys/bus/netblk/add.
 */
#define pr_fmt(fmt) fmt

#include <linux/ctype.h>
#include <linux/inet.h>
#include <linux/kernel.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "net_block.h"

struct netblk_config netblk_defaults = {
	.server_port = NETBLK_DEFAULT_PORT,
	.size_mb = NETBLK_DEFAULT_SIZE_MB,
	.queue_depth = NETBLK_DEFAULT_QUEUE_DEPTH,
	.max_retries = NETBLK_DEFAULT_RETRIES,
	.connect_timeout_ms = NETBLK_DEFAULT_TIMEOUT_MS,
	.io_timeout_ms = NETBLK_DEFAULT_TIMEOUT_MS,
	.dead_time_ms = NETBLK_DEFAULT_DEAD_TIME_MS,
	.connections = 1,
	.heartbeat_ms = NETBLK_DEFAULT_HEARTBEAT_MS,
	.crc32c = 1,
	.number = NETBLK_ANY_NUMBER,
};

static char *server_ip = NETBLK_DEFAULT_IP;
module_param(server_ip, charp, 0444);
MODULE_PARM_DESC(server_ip, "IPv4 address of the server (" NETBLK_DEFAULT_IP ")");

module_param_named(server_port, netblk_defaults.server_port, ulong, 0444);
MODULE_PARM_DESC(server_port, "TCP port of the server, 1 to 65535 (10809)");

module_param_named(size_mb, netblk_defaults.size_mb, ulong, 0444);
MODULE_PARM_DESC(size_mb, "size of the device in MiB, at least 1 (100)");

module_param_named(queue_depth, netblk_defaults.queue_depth, ulong, 0444);
MODULE_PARM_DESC(queue_depth, "requests in the device at a time, 1 to 4096 (128)");

module_param_named(max_retries, netblk_defaults.max_retries, ulong, 0444);
MODULE_PARM_DESC(max_retries, "tries to reconnect a lost connection, 0 to 1000 (3)");

module_param_named(connect_timeout_ms, netblk_defaults.connect_timeout_ms,
		   ulong, 0444);
MODULE_PARM_DESC(connect_timeout_ms, "time for one try, and from one try to the next, 1 to 600000 (5000)");

module_param_named(io_timeout_ms, netblk_defaults.io_timeout_ms, ulong, 0444);
MODULE_PARM_DESC(io_timeout_ms, "time without progress after which a connection is lost, 1 to 600000 (5000)");

module_param_named(dead_time_ms, netblk_defaults.dead_time_ms, ulong, 0444);
MODULE_PARM_DESC(dead_time_ms, "time after a loss after which all I/O fails, 1 to 4294967295, which is for ever (0: 15000 on netblk/1, 120000 on netblk/2)");

module_param_named(connections, netblk_defaults.connections, ulong, 0444);
MODULE_PARM_DESC(connections, "connections of a netblk/2 session, 1 to 16 (1)");

module_param_named(heartbeat_ms, netblk_defaults.heartbeat_ms, ulong, 0444);
MODULE_PARM_DESC(heartbeat_ms, "period of netblk/2's heartbeats, 100 to 600000, or 0 for none (2000)");

module_param_named(crc32c, netblk_defaults.crc32c, ulong, 0444);
MODULE_PARM_DESC(crc32c, "ask a netblk/2 server for checksums, 0 or 1 (1)");

static char *protocol = "auto";
module_param(protocol, charp, 0444);
MODULE_PARM_DESC(protocol, "version of the netblk protocol: 1, 2 or auto (auto)");

static char *export = "";
module_param(export, charp, 0444);
MODULE_PARM_DESC(export, "name of the export on a netblk/2 server (the first)");

static char *access = "exclusive";
module_param(access, charp, 0444);
MODULE_PARM_DESC(access, "of a netblk/2 session: exclusive, shared, takeover or read_only (exclusive)");

static char *client_id = "";
module_param(client_id, charp, 0444);
MODULE_PARM_DESC(client_id, "who we are to netblk/2 servers, 32 hexadecimal digits (random)");

/* The numbers among the parameters, with their ranges. */
static const struct netblk_number {
	const char *name;
	size_t offset; /* of an unsigned long in struct netblk_config */
	u64 low;
	u64 high;
} netblk_numbers[] = {
#define NETBLK_NUMBER(field, from, to) \
	{ #field, offsetof(struct netblk_config, field), from, to }
	NETBLK_NUMBER(server_port, 1, U16_MAX),
	NETBLK_NUMBER(size_mb, 1, NETBLK_MAX_SIZE_MB),
	NETBLK_NUMBER(queue_depth, 1, NETBLK_MAX_QUEUE_DEPTH),
	NETBLK_NUMBER(max_retries, 0, NETBLK_MAX_RETRIES),
	NETBLK_NUMBER(connect_timeout_ms, 1, NETBLK_MAX_TIMEOUT_MS),
	NETBLK_NUMBER(io_timeout_ms, 1, NETBLK_MAX_TIMEOUT_MS),
	NETBLK_NUMBER(dead_time_ms, 0, NETBLK_FOR_EVER_MS),
	NETBLK_NUMBER(connections, 1, NETBLK2_MAX_CONNECTIONS),
	NETBLK_NUMBER(heartbeat_ms, 0, NETBLK2_MAX_HEARTBEAT_MS),
	NETBLK_NUMBER(crc32c, 0, 1),
#undef NETBLK_NUMBER
};

/* Dotted decimal, all four parts, of an address that a server can have. */
int netblk_parse_ip(const char *text, size_t length, __be32 *ip)
{
	const char *end;
	__be32 addr;

	if (!length || length >= sizeof("255.255.255.255") ||
	    !in4_pton(text, length, (u8 *)&addr, -1, &end) ||
	    end != text + length)
		return -EINVAL;
	if (ipv4_is_zeronet(addr) || ipv4_is_multicast(addr) ||
	    ipv4_is_lbcast(addr))
		return -EINVAL;
	*ip = addr;
	return 0;
}

static bool netblk_is_word(const char *text, size_t length, const char *word)
{
	return length == strlen(word) && !memcmp(text, word, length);
}

int netblk_parse_protocol(const char *text, size_t length, u8 *protocol)
{
	if (netblk_is_word(text, length, "auto"))
		*protocol = NETBLK_PROTOCOL_AUTO;
	else if (netblk_is_word(text, length, "1"))
		*protocol = 1;
	else if (netblk_is_word(text, length, "2"))
		*protocol = 2;
	else
		return -EINVAL;
	return 0;
}

const char * const netblk_access_names[] = {
	[NETBLK_EXCLUSIVE] = "exclusive",
	[NETBLK_SHARED] = "shared",
	[NETBLK_TAKEOVER] = "takeover",
	[NETBLK_READ_ONLY] = "read_only",
};

int netblk_parse_access(const char *text, size_t length, u8 *access)
{
	u8 i;

	for (i = 0; i <= NETBLK_READ_ONLY; i++) {
		if (!netblk_is_word(text, length, netblk_access_names[i]))
			continue;
		*access = i;
		return 0;
	}
	return -EINVAL;
}

/* 32 hexadecimal digits, not all zero. */
int netblk_parse_client_id(const char *text, size_t length, u8 *id)
{
	u8 parsed[NETBLK2_ID_SIZE];

	if (length != 2 * NETBLK2_ID_SIZE ||
	    hex2bin(parsed, text, NETBLK2_ID_SIZE) ||
	    !memchr_inv(parsed, 0, NETBLK2_ID_SIZE))
		return -EINVAL;
	memcpy(id, parsed, NETBLK2_ID_SIZE);
	return 0;
}

/* Any bytes but zero and control characters; empty: the first export. */
int netblk_parse_export(const char *text, size_t length, char *export)
{
	size_t i;

	if (length >= NETBLK_EXPORT_SIZE)
		return -EINVAL;
	for (i = 0; i < length; i++)
		if ((u8)text[i] < ' ' || text[i] == 0x7f)
			return -EINVAL;
	memset(export, 0, NETBLK_EXPORT_SIZE);
	memcpy(export, text, length);
	return 0;
}

bool netblk_heartbeat_possible(u64 ms)
{
	return !ms || (ms >= NETBLK2_MIN_HEARTBEAT_MS &&
		       ms <= NETBLK2_MAX_HEARTBEAT_MS);
}

/* Decimal digits and nothing else. */
int netblk_parse_number(const char *text, size_t length, u64 low, u64 high,
			u64 *value)
{
	char digits[sizeof("18446744073709551615")];
	u64 parsed;
	size_t i;

	if (!length || length >= sizeof(digits))
		return -EINVAL;
	for (i = 0; i < length; i++) {
		if (!isdigit(text[i]))
			return -EINVAL;
		digits[i] = text[i];
	}
	digits[length] = '\0';
	if (kstrtou64(digits, 10, &parsed) || parsed < low || parsed > high)
		return -EINVAL;
	*value = parsed;
	return 0;
}

static unsigned long *netblk_number_in(struct netblk_config *config,
				       const struct netblk_number *number)
{
	return (void *)config + number->offset;
}

static int netblk_parse_text(struct netblk_config *config, const char *name,
			     const char *value)
{
	struct netblk_wish *wish = &config->wish;
	size_t length = strlen(value);

	if (!strcmp(name, "server_ip"))
		return netblk_parse_ip(value, length, &config->ip);
	if (!strcmp(name, "protocol"))
		return netblk_parse_protocol(value, length, &wish->protocol);
	if (!strcmp(name, "access"))
		return netblk_parse_access(value, length, &wish->access);
	if (!strcmp(name, "export"))
		return netblk_parse_export(value, length, wish->export);
	if (!strcmp(name, "client_id"))
		return netblk_parse_client_id(value, length, wish->client_id);
	return -ENOENT;
}

/* The parameters of the module, as they were given to insmod. */
int __init netblk_config_init(void)
{
	const struct {
		const char *name, *value, *hint;
	} texts[] = {
		{ "protocol", protocol, "1, 2 or auto" },
		{ "access", access,
		  "exclusive, shared, takeover or read_only" },
		{ "export", export, "a name of at most 255 bytes" },
		{ "client_id", client_id,
		  "32 hexadecimal digits that are not all zero" },
	};
	size_t i;

	if (netblk_parse_ip(server_ip, strlen(server_ip),
			    &netblk_defaults.ip)) {
		pr_err("netblk: server_ip=%s is not the IPv4 address of a host, such as %s\n",
		       server_ip, NETBLK_DEFAULT_IP);
		return -EINVAL;
	}
	/* No id given: one for as long as the module is loaded. */
	get_random_bytes(netblk_defaults.wish.client_id, NETBLK2_ID_SIZE);
	for (i = 0; i < ARRAY_SIZE(texts); i++) {
		if (!*texts[i].value && !strcmp(texts[i].name, "client_id"))
			continue;
		if (!netblk_parse_text(&netblk_defaults, texts[i].name,
				       texts[i].value))
			continue;
		pr_err("netblk: %s=%s is not %s\n", texts[i].name,
		       texts[i].value, texts[i].hint);
		return -EINVAL;
	}
	if (!netblk_heartbeat_possible(netblk_defaults.heartbeat_ms)) {
		pr_err("netblk: heartbeat_ms=%lu is out of range: 100 to 600000, or 0\n",
		       netblk_defaults.heartbeat_ms);
		return -EINVAL;
	}
	for (i = 0; i < ARRAY_SIZE(netblk_numbers); i++) {
		const struct netblk_number *number = &netblk_numbers[i];
		u64 value = *netblk_number_in(&netblk_defaults, number);

		if (value >= number->low && value <= number->high)
			continue;
		pr_err("netblk: %s=%llu is out of range: %llu to %llu\n",
		       number->name, (unsigned long long)value,
		       (unsigned long long)number->low,
		       (unsigned long long)number->high);
		return -EINVAL;
	}
	return 0;
}

static int netblk_parse_word(struct netblk_config *config, const char *name,
			     const char *value)
{
	int err = netblk_parse_text(config, name, value);
	size_t length = strlen(value), i;
	u64 parsed;

	if (err != -ENOENT)
		return err;
	if (!strcmp(name, "number")) {
		if (netblk_parse_number(value, length, 0,
					NETBLK_MAX_DEVICES - 1, &parsed))
			return -EINVAL;
		config->number = parsed;
		return 0;
	}
	for (i = 0; i < ARRAY_SIZE(netblk_numbers); i++) {
		const struct netblk_number *number = &netblk_numbers[i];

		if (strcmp(name, number->name))
			continue;
		if (netblk_parse_number(value, length, number->low,
					min_t(u64, number->high, ULONG_MAX),
					&parsed))
			return -EINVAL;
		if (!strcmp(name, "heartbeat_ms") &&
		    !netblk_heartbeat_possible(parsed))
			return -EINVAL;
		*netblk_number_in(config, number) = parsed;
		return 0;
	}
	return -EINVAL;
}

/*
 * NAME=VALUE words over the defaults. Each name at most once would be a rule
 * that nobody needs: as on insmod's command line the last one counts.
 */
int netblk_config_parse(struct netblk_config *config, const char *text,
			size_t length)
{
	char *copy = kstrndup(text, length, GFP_KERNEL), *rest = copy, *word;
	int err = 0;

	if (!copy)
		return -ENOMEM;
	/* a zero byte would hide the words after it */
	if (strlen(copy) != length)
		err = -EINVAL;
	*config = netblk_defaults;
	while (!err && (word = strsep(&rest, " \t\n"))) {
		char *value = strchr(word, '=');

		if (!*word)
			continue;
		if (!value) {
			pr_err_ratelimited("netblk: add: \"%.32s\" is no NAME=VALUE\n",
					   word);
			err = -EINVAL;
			break;
		}
		*value++ = '\0';
		err = netblk_parse_word(config, word, value);
		if (err)
			pr_err_ratelimited("netblk: add: %.32s=%.32s is no option, or out of range\n",
					   word, value);
	}
	kfree(copy);
	return err;
}
