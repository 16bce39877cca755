/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * NBD on the wire: the fixed newstyle handshake and the transmission phase, with
 * simple, structured and extended headers. Constants and layouts only, no code,
 * no other header than the integer types. All integers are big-endian.
 *
 * The names are those of the protocol's public text (NetworkBlockDevice/nbd,
 * doc/proto.md; extended headers from its branch extension-ext-header), which is
 * normative.
 */
#ifndef NBD_WIRE_H
#define NBD_WIRE_H

#include <linux/types.h>

#ifdef __cplusplus
#define NBD_WIRE_ASSERT(condition, text) static_assert(condition, text)
#else
#define NBD_WIRE_ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* Of the public text, and of a URI that names none. */
#define NBD_DEFAULT_PORT 10809

/* No string is longer: export names, descriptions, queries, error messages. */
#define NBD_MAX_STRING 4096

/* Block sizes of whoever does not say: the smallest, the preferred one, and the
 * payload that every peer takes. The smallest one that may be said is 64 KiB at
 * most.
 */
#define NBD_DEFAULT_MIN_BLOCK 1
#define NBD_DEFAULT_PREFERRED_BLOCK 4096
#define NBD_DEFAULT_MAX_PAYLOAD (32u << 20)
#define NBD_MAX_MIN_BLOCK (64u << 10)

/* A READ of this length is never refused for NBD_CMD_FLAG_DF. */
#define NBD_MIN_DF_LENGTH (64u << 10)

/* Descriptors in one chunk of block status. */
#define NBD_MAX_EXTENTS (1u << 20)

/*
 * The handshake: the server's greeting, the client's flags, then options and
 * their replies.
 */
#define NBD_INIT_PASSWD 0x4e42444d41474943ULL /* "NBDMAGIC" */
#define NBD_OLDSTYLE_MAGIC 0x0000420281861253ULL /* instead of the next one */
#define NBD_OPTS_MAGIC 0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_OPT_REPLY_MAGIC 0x0003e889045565a9ULL

/* nbd_greeting.flags */
#define NBD_FLAG_FIXED_NEWSTYLE 0x0001
#define NBD_FLAG_NO_ZEROES 0x0002

/* The client's flags: 32 bits */
#define NBD_FLAG_C_FIXED_NEWSTYLE 0x00000001u
#define NBD_FLAG_C_NO_ZEROES 0x00000002u

#define NBD_CLIENT_FLAGS_SIZE 4

struct nbd_greeting {
	__be64 passwd; /* NBD_INIT_PASSWD */
	__be64 magic; /* NBD_OPTS_MAGIC */
	__be16 flags;
} __attribute__((packed));

#define NBD_GREETING_SIZE 18

/* The greeting of a server of the old style: 124 zero bytes follow, and there
 * is no negotiation. Known so that it can be refused by name.
 */
struct nbd_oldstyle_greeting {
	__be64 passwd; /* NBD_INIT_PASSWD */
	__be64 magic; /* NBD_OLDSTYLE_MAGIC */
	__be64 size;
	__be32 flags;
} __attribute__((packed));

#define NBD_OLDSTYLE_GREETING_SIZE 28

enum nbd_opt {
	NBD_OPT_EXPORT_NAME = 1, /* data: the name; not answered by a reply */
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_PEEK_EXPORT = 4, /* withdrawn */
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

struct nbd_option {
	__be64 magic; /* NBD_OPTS_MAGIC */
	__be32 option; /* enum nbd_opt */
	__be32 length; /* of the data that follow */
} __attribute__((packed));

#define NBD_OPTION_SIZE 16

#define NBD_REP_IS_ERROR 0x80000000u

enum nbd_rep {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2, /* u32 length of the name, name, description */
	NBD_REP_INFO = 3, /* u16 enum nbd_info, the rest as it says */
	NBD_REP_META_CONTEXT = 4, /* u32 id, name */
};

/* Replies that are errors carry a text for people. */
#define NBD_REP_ERR_UNSUP (NBD_REP_IS_ERROR | 1u)
#define NBD_REP_ERR_POLICY (NBD_REP_IS_ERROR | 2u)
#define NBD_REP_ERR_INVALID (NBD_REP_IS_ERROR | 3u)
#define NBD_REP_ERR_PLATFORM (NBD_REP_IS_ERROR | 4u)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_IS_ERROR | 5u)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_IS_ERROR | 6u)
#define NBD_REP_ERR_SHUTDOWN (NBD_REP_IS_ERROR | 7u)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_IS_ERROR | 8u)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_IS_ERROR | 9u)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_IS_ERROR | 10u)

struct nbd_option_reply {
	__be64 magic; /* NBD_OPT_REPLY_MAGIC */
	__be32 option; /* the one that is answered */
	__be32 type; /* enum nbd_rep, or NBD_REP_ERR_* */
	__be32 length; /* of the data that follow */
} __attribute__((packed));

#define NBD_OPTION_REPLY_SIZE 20

/* NBD_OPT_INFO and NBD_OPT_GO: u32 length of the name, name, u16 number of
 * requests, as many u16 of these.
 */
enum nbd_info {
	NBD_INFO_EXPORT = 0, /* struct nbd_info_export */
	NBD_INFO_NAME = 1, /* the canonical name */
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3, /* struct nbd_info_block_size */
};

struct nbd_info_export {
	__be16 type; /* NBD_INFO_EXPORT */
	__be64 size;
	__be16 flags; /* transmission flags */
} __attribute__((packed));

#define NBD_INFO_EXPORT_SIZE 12

struct nbd_info_block_size {
	__be16 type; /* NBD_INFO_BLOCK_SIZE */
	__be32 minimum;
	__be32 preferred;
	__be32 maximum; /* of a payload */
} __attribute__((packed));

#define NBD_INFO_BLOCK_SIZE_SIZE 14

/* Answers NBD_OPT_EXPORT_NAME; NBD_EXPORT_ZEROES of them follow without
 * NBD_FLAG_C_NO_ZEROES.
 */
struct nbd_export_reply {
	__be64 size;
	__be16 flags; /* transmission flags */
} __attribute__((packed));

#define NBD_EXPORT_REPLY_SIZE 10
#define NBD_EXPORT_ZEROES 124

/* NBD_OPT_{LIST,SET}_META_CONTEXT: u32 length of the name, name, u32 number of
 * queries, each u32 length, text.
 */
#define NBD_CONTEXT_BASE_ALLOCATION "base:allocation"
/* QEMU's name of what has changed since a moment, and ours (docs/nbd.md). */
#define NBD_CONTEXT_QEMU_DIRTY "qemu:dirty-bitmap:"
#define NBD_CONTEXT_NETBLK_DIRTY "netblk:dirty-since:"

/* base:allocation's flags */
#define NBD_STATE_HOLE 0x1u
#define NBD_STATE_ZERO 0x2u
#define NBD_STATE_DIRTY 0x1u /* of both dirty contexts */

/* Transmission flags */
#define NBD_FLAG_HAS_FLAGS 0x0001
#define NBD_FLAG_READ_ONLY 0x0002
#define NBD_FLAG_SEND_FLUSH 0x0004
#define NBD_FLAG_SEND_FUA 0x0008
#define NBD_FLAG_ROTATIONAL 0x0010
#define NBD_FLAG_SEND_TRIM 0x0020
#define NBD_FLAG_SEND_WRITE_ZEROES 0x0040
#define NBD_FLAG_SEND_DF 0x0080
#define NBD_FLAG_CAN_MULTI_CONN 0x0100
#define NBD_FLAG_SEND_RESIZE 0x0200
#define NBD_FLAG_SEND_CACHE 0x0400
#define NBD_FLAG_SEND_FAST_ZERO 0x0800
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD 0x1000

/*
 * Transmission
 */
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC 0x6e8a278cu

enum nbd_cmd {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
	NBD_CMD_RESIZE = 8,
};

#define NBD_CMD_FLAG_FUA 0x0001
#define NBD_CMD_FLAG_NO_HOLE 0x0002
#define NBD_CMD_FLAG_DF 0x0004
#define NBD_CMD_FLAG_REQ_ONE 0x0008
#define NBD_CMD_FLAG_FAST_ZERO 0x0010
#define NBD_CMD_FLAG_PAYLOAD_LEN 0x0020

struct nbd_request {
	__be32 magic; /* NBD_REQUEST_MAGIC */
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be64 offset;
	__be32 length; /* a WRITE is followed by as many bytes */
} __attribute__((packed));

#define NBD_REQUEST_SIZE 28

struct nbd_extended_request {
	__be32 magic; /* NBD_EXTENDED_REQUEST_MAGIC */
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be64 offset;
	/* of the payload with NBD_CMD_FLAG_PAYLOAD_LEN, else of the effect */
	__be64 length;
} __attribute__((packed));

#define NBD_EXTENDED_REQUEST_SIZE 32

/* The payload of NBD_CMD_BLOCK_STATUS with NBD_CMD_FLAG_PAYLOAD_LEN: u64 length
 * of the effect, then as many u32 ids of contexts as there is room for.
 */
#define NBD_STATUS_PAYLOAD_SIZE 8
#define NBD_CONTEXT_ID_SIZE 4

struct nbd_simple_reply {
	__be32 magic; /* NBD_SIMPLE_REPLY_MAGIC */
	__be32 error;
	__be64 cookie;
} __attribute__((packed));

#define NBD_SIMPLE_REPLY_SIZE 16

#define NBD_REPLY_FLAG_DONE 0x0001

#define NBD_REPLY_TYPE_IS_ERROR 0x8000

#define NBD_REPLY_TYPE_NONE 0
#define NBD_REPLY_TYPE_OFFSET_DATA 1 /* u64 offset, data */
#define NBD_REPLY_TYPE_OFFSET_HOLE 2 /* struct nbd_chunk_hole */
/* u32 id of the context, then struct nbd_extent: */
#define NBD_REPLY_TYPE_BLOCK_STATUS 5
/* u32 id of the context, u32 count, then struct nbd_extended_extent: */
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6
/* struct nbd_chunk_error, text: */
#define NBD_REPLY_TYPE_ERROR (NBD_REPLY_TYPE_IS_ERROR | 1)
/* struct nbd_chunk_error, text, u64 offset: */
#define NBD_REPLY_TYPE_ERROR_OFFSET (NBD_REPLY_TYPE_IS_ERROR | 2)

struct nbd_structured_reply {
	__be32 magic; /* NBD_STRUCTURED_REPLY_MAGIC */
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be32 length; /* of the payload that follows */
} __attribute__((packed));

#define NBD_STRUCTURED_REPLY_SIZE 20

struct nbd_extended_reply {
	__be32 magic; /* NBD_EXTENDED_REPLY_MAGIC */
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be64 offset; /* of the request */
	__be64 length; /* of the payload that follows */
} __attribute__((packed));

#define NBD_EXTENDED_REPLY_SIZE 32

#define NBD_CHUNK_OFFSET_SIZE 8

struct nbd_chunk_hole {
	__be64 offset;
	__be32 length;
} __attribute__((packed));

#define NBD_CHUNK_HOLE_SIZE 12

struct nbd_chunk_error {
	__be32 error;
	__be16 length; /* of the text that follows */
} __attribute__((packed));

#define NBD_CHUNK_ERROR_SIZE 6

struct nbd_extent {
	__be32 length;
	__be32 status;
} __attribute__((packed));

#define NBD_EXTENT_SIZE 8
#define NBD_CHUNK_STATUS_SIZE 4

struct nbd_extended_extent {
	__be64 length;
	__be64 status;
} __attribute__((packed));

#define NBD_EXTENDED_EXTENT_SIZE 16
#define NBD_CHUNK_EXTENDED_STATUS_SIZE 8

/* Errors; whatever else arrives counts as NBD_EINVAL. */
#define NBD_SUCCESS 0
#define NBD_EPERM 1
#define NBD_EIO 5
#define NBD_ENOMEM 12
#define NBD_EINVAL 22
#define NBD_ENOSPC 28
#define NBD_EOVERFLOW 75
#define NBD_ENOTSUP 95
#define NBD_ESHUTDOWN 108

#define NBD_WIRE_LAYOUT(type, size)                       \
	NBD_WIRE_ASSERT(sizeof(struct type) == size,      \
			"the size of struct " #type)
#define NBD_WIRE_AT(type, field, at)                                      \
	NBD_WIRE_ASSERT(__builtin_offsetof(struct type, field) == at,     \
			"where " #field " is in struct " #type)

NBD_WIRE_LAYOUT(nbd_greeting, NBD_GREETING_SIZE);
NBD_WIRE_AT(nbd_greeting, flags, 16);
NBD_WIRE_LAYOUT(nbd_oldstyle_greeting, NBD_OLDSTYLE_GREETING_SIZE);
NBD_WIRE_LAYOUT(nbd_option, NBD_OPTION_SIZE);
NBD_WIRE_AT(nbd_option, option, 8);
NBD_WIRE_AT(nbd_option, length, 12);
NBD_WIRE_LAYOUT(nbd_option_reply, NBD_OPTION_REPLY_SIZE);
NBD_WIRE_AT(nbd_option_reply, option, 8);
NBD_WIRE_AT(nbd_option_reply, type, 12);
NBD_WIRE_AT(nbd_option_reply, length, 16);
NBD_WIRE_LAYOUT(nbd_info_export, NBD_INFO_EXPORT_SIZE);
NBD_WIRE_AT(nbd_info_export, size, 2);
NBD_WIRE_AT(nbd_info_export, flags, 10);
NBD_WIRE_LAYOUT(nbd_info_block_size, NBD_INFO_BLOCK_SIZE_SIZE);
NBD_WIRE_AT(nbd_info_block_size, minimum, 2);
NBD_WIRE_AT(nbd_info_block_size, maximum, 10);
NBD_WIRE_LAYOUT(nbd_export_reply, NBD_EXPORT_REPLY_SIZE);
NBD_WIRE_AT(nbd_export_reply, flags, 8);
NBD_WIRE_LAYOUT(nbd_request, NBD_REQUEST_SIZE);
NBD_WIRE_AT(nbd_request, flags, 4);
NBD_WIRE_AT(nbd_request, type, 6);
NBD_WIRE_AT(nbd_request, cookie, 8);
NBD_WIRE_AT(nbd_request, offset, 16);
NBD_WIRE_AT(nbd_request, length, 24);
NBD_WIRE_LAYOUT(nbd_extended_request, NBD_EXTENDED_REQUEST_SIZE);
NBD_WIRE_AT(nbd_extended_request, length, 24);
NBD_WIRE_LAYOUT(nbd_simple_reply, NBD_SIMPLE_REPLY_SIZE);
NBD_WIRE_AT(nbd_simple_reply, error, 4);
NBD_WIRE_AT(nbd_simple_reply, cookie, 8);
NBD_WIRE_LAYOUT(nbd_structured_reply, NBD_STRUCTURED_REPLY_SIZE);
NBD_WIRE_AT(nbd_structured_reply, flags, 4);
NBD_WIRE_AT(nbd_structured_reply, type, 6);
NBD_WIRE_AT(nbd_structured_reply, cookie, 8);
NBD_WIRE_AT(nbd_structured_reply, length, 16);
NBD_WIRE_LAYOUT(nbd_extended_reply, NBD_EXTENDED_REPLY_SIZE);
NBD_WIRE_AT(nbd_extended_reply, offset, 16);
NBD_WIRE_AT(nbd_extended_reply, length, 24);
NBD_WIRE_LAYOUT(nbd_chunk_hole, NBD_CHUNK_HOLE_SIZE);
NBD_WIRE_AT(nbd_chunk_hole, length, 8);
NBD_WIRE_LAYOUT(nbd_chunk_error, NBD_CHUNK_ERROR_SIZE);
NBD_WIRE_AT(nbd_chunk_error, length, 4);
NBD_WIRE_LAYOUT(nbd_extent, NBD_EXTENT_SIZE);
NBD_WIRE_AT(nbd_extent, status, 4);
NBD_WIRE_LAYOUT(nbd_extended_extent, NBD_EXTENDED_EXTENT_SIZE);
NBD_WIRE_AT(nbd_extended_extent, status, 8);

#endif
