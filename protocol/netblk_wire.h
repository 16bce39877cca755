/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * netblk/1 on the wire. Shared by the kernel driver (C) and user space (C++20):
 * constants and layouts only, no code, no other header than the integer types.
 *
 * The client speaks first and there is no handshake. Requests are answered in
 * the order in which they were sent. All integers are big-endian.
 *
 *   request  command u8 | sector u64 | length u32 | data (WRITE only)
 *   reply    status u8  | data (READ answered by OK only)
 */
#ifndef NETBLK_WIRE_H
#define NETBLK_WIRE_H

#include <linux/types.h>

#ifdef __cplusplus
#define NETBLK_WIRE_ASSERT(condition, text) static_assert(condition, text)
#else
#define NETBLK_WIRE_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#define NETBLK_DEFAULT_PORT 10809

/* The unit of netblk1_request.sector, and the granule of every length. */
#define NETBLK_SECTOR_SHIFT 9
#define NETBLK_SECTOR_SIZE (1u << NETBLK_SECTOR_SHIFT)

/* The longest legal length of a READ or WRITE in bytes; a server closes the
 * connection of a client that asks for more.
 */
#define NETBLK1_MAX_LENGTH (32u << 20)

enum netblk1_command {
	NETBLK1_CMD_READ = 0x01,
	NETBLK1_CMD_WRITE = 0x02,
	/* sector and length are zero; no reply, the server closes */
	NETBLK1_CMD_DISCONNECT = 0x03,
};

enum netblk1_status {
	/* to a WRITE: the data is durable */
	NETBLK1_STATUS_OK = 0x00,
	/* no data follows; the stream stays in step */
	NETBLK1_STATUS_ERROR = 0x01,
};

struct netblk1_request {
	__u8 command;
	__be64 sector; /* in NETBLK_SECTOR_SIZE units */
	__be32 length; /* in bytes */
} __attribute__((packed));

#define NETBLK1_REQUEST_SIZE 13
#define NETBLK1_STATUS_SIZE 1

NETBLK_WIRE_ASSERT(sizeof(struct netblk1_request) == NETBLK1_REQUEST_SIZE,
		   "a netblk/1 request header is 13 bytes, packed");
NETBLK_WIRE_ASSERT(__builtin_offsetof(struct netblk1_request, sector) == 1,
		   "the sector starts at byte 1");
NETBLK_WIRE_ASSERT(__builtin_offsetof(struct netblk1_request, length) == 9,
		   "the length starts at byte 9");
NETBLK_WIRE_ASSERT(NETBLK1_MAX_LENGTH % NETBLK_SECTOR_SIZE == 0,
		   "the longest request is whole sectors");

#endif /* NETBLK_WIRE_H */
