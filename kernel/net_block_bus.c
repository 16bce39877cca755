// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which devices there are, and /sys/bus/netblk/{add,remove}.
 *
 * A device is on the list from before its first connect until its removal
 * begins, so that unloading finds, and ends, every wait. Only who takes it off
 * the list destroys it; nobody can while it is being made (!ready), while a
 * command works with it (users), or while it is open.
 *
 * Lock order: netblk_devices_lock, then gendisk.open_mutex. Nothing that waits
 * for a server is done under either, but for the 200 ms of a polite close.
 */
#define pr_fmt(fmt) fmt

#include <linux/device.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "compat.h"
#include "net_block.h"

static DEFINE_MUTEX(netblk_devices_lock);
static LIST_HEAD(netblk_devices); /* in the order of their numbers */
static DEFINE_IDA(netblk_numbers);
static bool netblk_leaving; /* the module is being unloaded */

static void netblk_list_add(struct netblk_device *nd)
{
	struct netblk_device *other;

	list_for_each_entry(other, &netblk_devices, node) {
		if (other->number > nd->number)
			break;
	}
	list_add_tail(&nd->node, &other->node);
}

/*
 * Make a device, and show it. With @connect one try is made first, as loading
 * does: without a server it is there all the same. Returns its number.
 */
int netblk_add(const struct netblk_config *config, bool connect)
{
	bool any = config->number == NETBLK_ANY_NUMBER;
	int number, err;
	struct netblk_device *nd;

	number = ida_alloc_range(&netblk_numbers, any ? 0 : config->number,
				 any ? NETBLK_MAX_DEVICES - 1 : config->number,
				 GFP_KERNEL);
	if (number < 0)
		return !any && number == -ENOSPC ? -EEXIST : number;

	nd = netblk_create(config, number);
	if (IS_ERR(nd)) {
		err = PTR_ERR(nd);
		goto free_number;
	}

	mutex_lock(&netblk_devices_lock);
	err = netblk_leaving ? -ENODEV : 0;
	if (!err)
		netblk_list_add(nd);
	mutex_unlock(&netblk_devices_lock);
	if (err)
		goto destroy;

	err = netblk_show(nd, connect);
	mutex_lock(&netblk_devices_lock);
	if (!err && netblk_leaving)
		err = -ENODEV;
	if (err)
		list_del(&nd->node);
	else
		nd->ready = true;
	mutex_unlock(&netblk_devices_lock);
	if (!err)
		return number;
destroy:
	netblk_destroy(nd);
free_number:
	ida_free(&netblk_numbers, number);
	return err;
}

static struct netblk_device *netblk_find(int number)
{
	struct netblk_device *nd;

	lockdep_assert_held(&netblk_devices_lock);
	list_for_each_entry(nd, &netblk_devices, node) {
		if (nd->number == number && nd->ready)
			return nd;
	}
	return NULL;
}

/*
 * Keep a device from being removed until netblk_put(). It is that of @number or,
 * for @next, the first with a higher one.
 */
struct netblk_device *netblk_get(int number, bool next)
{
	struct netblk_device *nd = NULL, *other;

	mutex_lock(&netblk_devices_lock);
	if (!next) {
		nd = netblk_find(number);
	} else {
		list_for_each_entry(other, &netblk_devices, node) {
			if (other->number > number && other->ready) {
				nd = other;
				break;
			}
		}
	}
	if (nd)
		nd->users++;
	mutex_unlock(&netblk_devices_lock);
	return nd;
}

void netblk_put(struct netblk_device *nd)
{
	mutex_lock(&netblk_devices_lock);
	nd->users--;
	mutex_unlock(&netblk_devices_lock);
}

/* Take @nd off the list, unless somebody uses it. */
static int netblk_claim(struct netblk_device *nd)
{
	int err = 0;

	lockdep_assert_held(&netblk_devices_lock);
	if (nd->users)
		return -EBUSY;
	mutex_lock(&nd->disk->open_mutex);
	if (disk_openers(nd->disk))
		err = -EBUSY;
	else
		nd->removed = true; /* netblk_open() refuses from here on */
	mutex_unlock(&nd->disk->open_mutex);
	if (!err)
		list_del(&nd->node);
	return err;
}

int netblk_remove(int number)
{
	struct netblk_device *nd;
	int err = -ENODEV;

	mutex_lock(&netblk_devices_lock);
	nd = netblk_find(number);
	if (nd)
		err = netblk_claim(nd);
	mutex_unlock(&netblk_devices_lock);
	if (err)
		return err;
	netblk_destroy(nd);
	ida_free(&netblk_numbers, number);
	return 0;
}

/* "netblk", "netblk-1", the same behind /dev/, or the bare number. */
int netblk_parse_name(const char *text, size_t length)
{
	u64 number;

	if (length >= 5 && !memcmp(text, "/dev/", 5)) {
		text += 5;
		length -= 5;
	}
	if (length == 6 && !memcmp(text, "netblk", 6))
		return 0;
	if (length > 7 && !memcmp(text, "netblk-", 7)) {
		text += 7;
		length -= 7;
		/* the first has no number in its name, and none has leading zeroes */
		if (*text == '0')
			return -EINVAL;
	}
	if (netblk_parse_number(text, length, 0, NETBLK_MAX_DEVICES - 1,
				&number))
		return -EINVAL;
	return number;
}

static ssize_t add_store(NETBLK_BUS_CONST struct bus_type *bus, const char *buf,
			 size_t count)
{
	struct netblk_config config;
	int err = netblk_config_parse(&config, buf, count);

	if (!err)
		err = netblk_add(&config, true);
	return err < 0 ? err : count;
}
static BUS_ATTR_WO(add);

static ssize_t remove_store(NETBLK_BUS_CONST struct bus_type *bus,
			    const char *buf, size_t count)
{
	int number = netblk_parse_name(buf, netblk_trim(buf, count));
	int err = number < 0 ? number : netblk_remove(number);

	return err ? err : count;
}
static BUS_ATTR_WO(remove);

static struct attribute *netblk_bus_attrs[] = {
	&bus_attr_add.attr,
	&bus_attr_remove.attr,
	NULL,
};
ATTRIBUTE_GROUPS(netblk_bus);

static struct bus_type netblk_bus = {
	.name = "netblk",
	.bus_groups = netblk_bus_groups,
};

int __init netblk_bus_init(void)
{
	return bus_register(&netblk_bus);
}

/*
 * No device is made from here on, and every wait for a server has ended. Comes
 * before anything waits for the commands that may be waiting.
 */
void netblk_bus_leave(void)
{
	struct netblk_device *nd;

	mutex_lock(&netblk_devices_lock);
	netblk_leaving = true;
	list_for_each_entry(nd, &netblk_devices, node)
		netblk_shutdown(nd);
	mutex_unlock(&netblk_devices_lock);
}

/* Waits for who is writing to add or remove. */
void netblk_bus_exit(void)
{
	bus_unregister(&netblk_bus);
}

/* Nothing can be open any more, and no command is under way. */
void netblk_remove_all(void)
{
	struct netblk_device *nd, *tmp;

	list_for_each_entry_safe(nd, tmp, &netblk_devices, node) {
		list_del(&nd->node);
		netblk_destroy(nd);
	}
	ida_destroy(&netblk_numbers);
}
