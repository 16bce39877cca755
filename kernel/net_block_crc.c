// SPDX-License-Identifier: GPL-2.0-only
/*
 * CRC32C. The kernel's crypto API has the processor's own instructions for it;
 * where it is not to be had (a module that insmod does not load for us), the
 * kernel's table does. libcrc32c would be a module that has to be loaded first.
 */
#include <crypto/hash.h>
#include <linux/bvec.h>
#include <linux/crc32.h>
#include <linux/highmem.h>

#include "net_block.h"

#if IS_REACHABLE(CONFIG_CRYPTO_HASH)

static struct crypto_shash *netblk_crc_tfm;

void netblk_crc_init(void)
{
	struct crypto_shash *tfm = crypto_alloc_shash("crc32c", 0, 0);

	netblk_crc_tfm = IS_ERR(tfm) ? NULL : tfm;
}

void netblk_crc_exit(void)
{
	crypto_free_shash(netblk_crc_tfm);
}

static bool netblk_crc_fast(const void *data, size_t length, u32 *crc)
{
	__le32 digest;

	if (!netblk_crc_tfm ||
	    crypto_shash_tfm_digest(netblk_crc_tfm, data, length,
				    (u8 *)&digest))
		return false;
	*crc = le32_to_cpu(digest);
	return true;
}

static bool netblk_crc_cursor_fast(const struct netblk_cursor *c, u32 *crc)
{
	struct netblk_cursor at = *c;
	__le32 digest;
	int err;

	if (!netblk_crc_tfm)
		return false;
	{
		SHASH_DESC_ON_STACK(desc, netblk_crc_tfm);

		desc->tfm = netblk_crc_tfm;
		err = crypto_shash_init(desc);
		while (!err && at.left) {
			struct bio_vec bv = netblk_cursor_page(&at);
			void *p = bvec_kmap_local(&bv);

			err = crypto_shash_update(desc, p, bv.bv_len);
			kunmap_local(p);
			netblk_cursor_advance(&at, bv.bv_len);
		}
		if (!err)
			err = crypto_shash_final(desc, (u8 *)&digest);
	}
	if (err)
		return false;
	*crc = le32_to_cpu(digest);
	return true;
}

#else

void netblk_crc_init(void)
{
}

void netblk_crc_exit(void)
{
}

static bool netblk_crc_fast(const void *data, size_t length, u32 *crc)
{
	return false;
}

static bool netblk_crc_cursor_fast(const struct netblk_cursor *c, u32 *crc)
{
	return false;
}

#endif

u32 netblk_crc32c(const void *data, size_t length)
{
	u32 crc;

	if (netblk_crc_fast(data, length, &crc))
		return crc;
	return ~__crc32c_le(~0u, data, length);
}

/* Of all the data from @c on. */
u32 netblk_crc32c_cursor(const struct netblk_cursor *c)
{
	struct netblk_cursor at = *c;
	u32 crc;

	if (netblk_crc_cursor_fast(c, &crc))
		return crc;
	crc = ~0u;
	while (at.left) {
		struct bio_vec bv = netblk_cursor_page(&at);
		void *p = bvec_kmap_local(&bv);

		crc = __crc32c_le(crc, p, bv.bv_len);
		kunmap_local(p);
		netblk_cursor_advance(&at, bv.bv_len);
	}
	return ~crc;
}
