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
	.protocol = 1,
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
MODULE_PARM_DESC(dead_time_ms, "time after a loss after which all I/O fails, 1 to 86400000 (15000)");

module_param_named(protocol, netblk_defaults.protocol, ulong, 0444);
MODULE_PARM_DESC(protocol, "version of the netblk protocol, only 1 (1)");

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
	NETBLK_NUMBER(dead_time_ms, 1, NETBLK_MAX_DEAD_TIME_MS),
	NETBLK_NUMBER(protocol, 1, 1),
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

/* The parameters of the module, as they were given to insmod. */
int __init netblk_config_init(void)
{
	size_t i;

	if (netblk_parse_ip(server_ip, strlen(server_ip),
			    &netblk_defaults.ip)) {
		pr_err("netblk: server_ip=%s is not the IPv4 address of a host, such as %s\n",
		       server_ip, NETBLK_DEFAULT_IP);
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
	size_t length = strlen(value), i;
	u64 parsed;

	if (!strcmp(name, "server_ip"))
		return netblk_parse_ip(value, length, &config->ip);
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
