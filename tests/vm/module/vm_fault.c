// SPDX-License-Identifier: GPL-2.0-only
/*
 * vm_fault: commits one fault of the chosen kind when it is loaded, so that the rig can show that each kernel's
 * checkers see it and that the rig fails on what they say.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "use-after-free, out-of-bounds, leak, lock-inversion, sleep-in-atomic, oops, none");

static DEFINE_MUTEX(first_mutex);
static DEFINE_MUTEX(second_mutex);
static DEFINE_SPINLOCK(spin);

static void lock_inversion(void)
{
	mutex_lock(&first_mutex);
	mutex_lock(&second_mutex);
	mutex_unlock(&second_mutex);
	mutex_unlock(&first_mutex);

	mutex_lock(&second_mutex);
	mutex_lock(&first_mutex);
	mutex_unlock(&first_mutex);
	mutex_unlock(&second_mutex);
}

static int __init vm_fault_init(void)
{
	/* volatile: the compiler must neither drop the bad access nor warn of it */
	volatile char *bytes = kmalloc(64, GFP_KERNEL);

	if (!bytes)
		return -ENOMEM;
	if (!strcmp(fault, "use-after-free")) {
		kfree((void *)bytes);
		bytes[8] = 1;
		return 0;
	}
	if (!strcmp(fault, "leak"))
		return 0;
	if (!strcmp(fault, "out-of-bounds")) {
		bytes[64] = 1;
	} else if (!strcmp(fault, "lock-inversion")) {
		lock_inversion();
	} else if (!strcmp(fault, "sleep-in-atomic")) {
		spin_lock(&spin);
		msleep(1);
		spin_unlock(&spin);
	} else if (!strcmp(fault, "oops")) {
		*(volatile char *)8 = 1;
	} else if (strcmp(fault, "none")) {
		kfree((void *)bytes);
		return -EINVAL;
	}
	kfree((void *)bytes);
	return 0;
}

static void __exit vm_fault_exit(void)
{
}

module_init(vm_fault_init);
module_exit(vm_fault_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("netblk: planted faults that prove the kernel test rig");
