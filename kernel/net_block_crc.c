// SPDX-License-Identifier: GPL-2.0-only
/*
 * CRC32C, in the quickest of three ways that this machine has:
 *
 * - x86-64's instruction. It works on general registers, so there is no FPU to
 *   save, and User-Mode Linux has it as well, whose crypto API has only the
 *   table. One result takes three cycles and one can begin in each, so three
 *   parts of the data are summed side by side and joined.
 * - The crypto API, which has the instructions of other architectures.
 * - The kernel's table, where insmod has not loaded what the crypto API needs.
 *   libcrc32c would be a module that has to be loaded first.
 */
#include <crypto/hash.h>
#include <linux/bvec.h>
#include <linux/crc32.h>
#include <linux/highmem.h>
#include <linux/printk.h>
#include <linux/slab.h>

#include "net_block.h"

#ifdef CONFIG_X86_64
#include <asm/cpufeature.h>

/*
 * Bytes of each of the three parts, for what a page has (3 * 1360 + 16) and
 * for what a sector has (3 * 160 + 32).
 */
#define NETBLK_CRC_LONG 1360
#define NETBLK_CRC_SHORT 160

/* What zeroes that follow make of a sum: for each of its eight nibbles. */
struct netblk_crc_shift {
	u32 of[8][16];
};

static struct netblk_crc_shift netblk_crc_long __ro_after_init;
static struct netblk_crc_shift netblk_crc_short __ro_after_init;
static bool netblk_crc_instruction __ro_after_init;

static __always_inline u64 netblk_crc_word(u64 crc, u64 word)
{
	asm("crc32q %1, %0" : "+r" (crc) : "rm" (word));
	return crc;
}

static __always_inline u32 netblk_crc_byte(u32 crc, u8 byte)
{
	asm("crc32b %1, %0" : "+r" (crc) : "rm" (byte));
	return crc;
}

static void __init netblk_crc_shift_init(struct netblk_crc_shift *shift,
					 unsigned int bytes)
{
	unsigned int bit, value, i;

	for (bit = 0; bit < 32; bit++) {
		u32 (*row)[16] = &shift->of[bit / 4];
		u64 crc = BIT(bit);

		for (i = 0; i < bytes / sizeof(u64); i++)
			crc = netblk_crc_word(crc, 0);
		for (value = 0; value < 16; value++)
			if (value & BIT(bit % 4))
				(*row)[value] ^= crc;
	}
}

static __always_inline u32
netblk_crc_shifted(const struct netblk_crc_shift *shift, u32 crc)
{
	u32 sum = 0;
	int i;

	for (i = 0; i < 8; i++)
		sum ^= shift->of[i][(crc >> (4 * i)) & 15];
	return sum;
}

/* @part is a constant: the loop has no other counter than the offset. */
static __always_inline u32
netblk_crc_three(u32 crc, const u8 *p, unsigned int part,
		 const struct netblk_crc_shift *shift)
{
	u64 first = crc, second = 0, third = 0;
	unsigned int at;

	for (at = 0; at < part; at += sizeof(u64)) {
		first = netblk_crc_word(first, *(const u64 *)(p + at));
		second = netblk_crc_word(second,
					 *(const u64 *)(p + part + at));
		third = netblk_crc_word(third,
					*(const u64 *)(p + 2 * part + at));
	}
	second ^= netblk_crc_shifted(shift, first);
	return third ^ netblk_crc_shifted(shift, second);
}

static u32 netblk_crc_x86(u32 crc, const u8 *p, size_t length)
{
	u64 sum;

	for (; length >= 3 * NETBLK_CRC_LONG; length -= 3 * NETBLK_CRC_LONG) {
		crc = netblk_crc_three(crc, p, NETBLK_CRC_LONG,
				       &netblk_crc_long);
		p += 3 * NETBLK_CRC_LONG;
	}
	for (; length >= 3 * NETBLK_CRC_SHORT; length -= 3 * NETBLK_CRC_SHORT) {
		crc = netblk_crc_three(crc, p, NETBLK_CRC_SHORT,
				       &netblk_crc_short);
		p += 3 * NETBLK_CRC_SHORT;
	}
	for (sum = crc; length >= sizeof(u64); length -= sizeof(u64)) {
		sum = netblk_crc_word(sum, *(const u64 *)p);
		p += sizeof(u64);
	}
	for (crc = sum; length; length--)
		crc = netblk_crc_byte(crc, *p++);
	return crc;
}

/*
 * A wrong sum would take every connection down, or let every error through:
 * the instruction is used when it agrees with the table on every length and
 * alignment that the parts make a difference for.
 */
static bool __init netblk_crc_agrees(void)
{
	const size_t most = 3 * NETBLK_CRC_LONG + 3 * NETBLK_CRC_SHORT + 64;
	u8 *data = kmalloc(most + 8, GFP_KERNEL);
	bool agrees = true;
	size_t i, length;

	if (!data)
		return false;
	for (i = 0; i < most + 8; i++)
		data[i] = i * 167 + (i >> 8) * 59 + 1;
	for (length = 0; length <= most; length++) {
		const u8 *p = data + length % 8;

		if (netblk_crc_x86(~0u, p, length) !=
		    __crc32c_le(~0u, p, length))
			agrees = false;
	}
	kfree(data);
	return agrees;
}

static void __init netblk_crc_x86_init(void)
{
	if (!boot_cpu_has(X86_FEATURE_XMM4_2))
		return;
	netblk_crc_shift_init(&netblk_crc_long, NETBLK_CRC_LONG);
	netblk_crc_shift_init(&netblk_crc_short, NETBLK_CRC_SHORT);
	netblk_crc_instruction = netblk_crc_agrees();
	if (netblk_crc_instruction)
		pr_info("netblk: CRC32C by the processor's instruction, which agrees with the table\n");
	else
		pr_warn("netblk: CRC32C: the processor's instruction disagrees with the table, or there was no memory to see: it is not used\n");
}

#else

#define netblk_crc_instruction false

static u32 netblk_crc_x86(u32 crc, const u8 *p, size_t length)
{
	return crc;
}

static void __init netblk_crc_x86_init(void)
{
}

#endif

#if IS_REACHABLE(CONFIG_CRYPTO_HASH)

static struct crypto_shash *netblk_crc_tfm;

static void __init netblk_crc_api_init(void)
{
	struct crypto_shash *tfm = crypto_alloc_shash("crc32c", 0, 0);

	if (IS_ERR(tfm))
		return;
	/* The state of all of them is the sum; one that is more is not ours. */
	if (crypto_shash_descsize(tfm) == sizeof(u32))
		netblk_crc_tfm = tfm;
	else
		crypto_free_shash(tfm);
}

void netblk_crc_exit(void)
{
	crypto_free_shash(netblk_crc_tfm);
}

static bool netblk_crc_api(u32 *crc, const void *data, size_t length)
{
	if (!netblk_crc_tfm)
		return false;
	{
		SHASH_DESC_ON_STACK(desc, netblk_crc_tfm);
		u32 *state = shash_desc_ctx(desc);

		desc->tfm = netblk_crc_tfm;
		*state = *crc;
		if (crypto_shash_update(desc, data, length))
			return false;
		*crc = *state;
	}
	return true;
}

#else

static void __init netblk_crc_api_init(void)
{
}

void netblk_crc_exit(void)
{
}

static bool netblk_crc_api(u32 *crc, const void *data, size_t length)
{
	return false;
}

#endif

void __init netblk_crc_init(void)
{
	netblk_crc_x86_init();
	if (!netblk_crc_instruction)
		netblk_crc_api_init();
}

static u32 netblk_crc_more(u32 crc, const void *data, size_t length)
{
	if (netblk_crc_instruction)
		return netblk_crc_x86(crc, data, length);
	if (netblk_crc_api(&crc, data, length))
		return crc;
	return __crc32c_le(crc, data, length);
}

u32 netblk_crc32c(const void *data, size_t length)
{
	return ~netblk_crc_more(~0u, data, length);
}

/* Of @bytes from *@c on, after the data whose sum @before is; moves *@c. */
u32 netblk_crc32c_advance(u32 before, struct netblk_cursor *c, size_t bytes)
{
	u32 crc = ~before;

	while (bytes) {
		struct bio_vec bv = netblk_cursor_page(c);
		void *p = bvec_kmap_local(&bv);

		bv.bv_len = min_t(size_t, bv.bv_len, bytes);
		crc = netblk_crc_more(crc, p, bv.bv_len);
		kunmap_local(p);
		netblk_cursor_advance(c, bv.bv_len);
		bytes -= bv.bv_len;
	}
	return ~crc;
}

/* Of all the data from @c on. */
u32 netblk_crc32c_cursor(const struct netblk_cursor *c)
{
	struct netblk_cursor at = *c;

	return netblk_crc32c_advance(0, &at, at.left);
}
