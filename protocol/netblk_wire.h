/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * netblk on the wire, versions 1 and 2. Shared by the kernel driver (C) and user
 * space (C++20): constants and layouts only, no code, no other header than the
 * integer types. All integers are big-endian.
 *
 * netblk/1: the client speaks first and there is no handshake. Requests are
 * answered in the order in which they were sent.
 *
 *   request  command u8 | sector u64 | length u32 | data (WRITE only)
 *   reply    status u8  | data (READ answered by OK only)
 *
 * netblk/2: see protocol/netblk.md, which is normative.
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

/*
 * netblk/2. The client sends a hello, the server answers with a welcome; from
 * there on the client sends requests (with their payload) and the server replies
 * (with theirs) in any order.
 */

/* Opens the hello and the welcome. No netblk/1 request begins with 'N'. */
#define NETBLK2_MAGIC "NETBLK/2"
#define NETBLK2_MAGIC_SIZE 8
#define NETBLK2_ID_SIZE 16

/* Limits: of the hello with its features and name, of the welcome with its
 * features and body, of a name, and of the list of features.
 */
#define NETBLK2_MAX_HELLO 8192
#define NETBLK2_MAX_WELCOME 65536
#define NETBLK2_MAX_NAME 4096
#define NETBLK2_MAX_FEATURES 32
#define NETBLK2_FEATURE_NAME_SIZE 16

/* Slots of a session: what every server grants, and what none exceeds. */
#define NETBLK2_MIN_SLOTS 16
#define NETBLK2_MAX_SLOTS 4096

/* Connections of one session; a connection's index is below it. */
#define NETBLK2_MAX_CONNECTIONS 16

/* The payload of one READ or WRITE in bytes: what every server takes, and what
 * none exceeds. A TRIM or WRITE_ZEROES has no payload and may cover 2^32 - 512.
 */
#define NETBLK2_MIN_MAX_PAYLOAD (64u << 10)
#define NETBLK2_MAX_PAYLOAD (32u << 20)

/* Heartbeat period that may be negotiated, in milliseconds. */
#define NETBLK2_MIN_HEARTBEAT_MS 100
#define NETBLK2_MAX_HEARTBEAT_MS 600000
/* A peer that has sent nothing for this many periods is gone. */
#define NETBLK2_HEARTBEAT_PERIODS 3

/* The list of features is closed and ordered by number. */
enum netblk2_feature_number {
	/* checksums in headers and of payloads; value: 0 */
	NETBLK2_FEATURE_CRC32C = 1,
	/* payloads may be one LZ4 block; value: 0 */
	NETBLK2_FEATURE_LZ4 = 2,
	/* payloads may be one Zstandard frame; value: 0 */
	NETBLK2_FEATURE_ZSTD = 3,
	/* both sides send at least this often; value: the period in ms */
	NETBLK2_FEATURE_HEARTBEAT = 4,
	/* the server pushes changes of the size; value: 0 */
	NETBLK2_FEATURE_RESIZE = 5,
	/* the server tells how long it took; value: 0 */
	NETBLK2_FEATURE_TIMES = 6,
	NETBLK2_FEATURE_LAST = NETBLK2_FEATURE_TIMES,
};

/* netblk2_feature.flags: without it there shall be no session */
#define NETBLK2_FEATURE_MANDATORY 0x0001

struct netblk2_feature {
	__be16 number;
	__be16 flags;
	__be32 value;
	/* lower-case ASCII, padded with zero bytes: "crc32c" */
	__u8 name[NETBLK2_FEATURE_NAME_SIZE];
};

/* netblk2_hello.flags */
#define NETBLK2_HELLO_WRITE 0x0001 /* the session shall write */
#define NETBLK2_HELLO_SHARED 0x0002 /* beside other shared writers */
#define NETBLK2_HELLO_TAKEOVER 0x0004 /* from whoever writes now */
#define NETBLK2_HELLO_INFO 0x0008 /* tell about the export, make no session */
#define NETBLK2_HELLO_LIST 0x0010 /* tell all exports, make no session */
#define NETBLK2_HELLO_BEGIN 0x0020 /* begin the session if it is unknown */
#define NETBLK2_HELLO_KNOWN_FLAGS 0x003f

struct netblk2_hello {
	__u8 magic[NETBLK2_MAGIC_SIZE];
	__be32 length; /* of the whole hello, a multiple of 8 */
	__be32 crc; /* CRC32C of the whole hello with this field zero */
	__be16 flags; /* NETBLK2_HELLO_* */
	__be16 connection; /* index of this connection in its session */
	__be32 slots; /* that the session would like to have */
	__u8 client_id[NETBLK2_ID_SIZE];
	__u8 session_id[NETBLK2_ID_SIZE]; /* the client's choice, random */
	__be64 epoch; /* above all earlier ones of this session and index */
	__u8 store_uuid[NETBLK2_ID_SIZE]; /* as last told; zero: never */
	__be64 generation; /* as last told */
	__be32 list_from; /* LIST: the first export's number in the list */
	__be16 feature_count;
	__be16 name_length; /* of the export; 0: the first */
	/* netblk2_feature[feature_count], the name, zero bytes up to length */
};

/* netblk2_welcome.flags */
#define NETBLK2_WELCOME_READ_ONLY 0x0001 /* this session may not write */
#define NETBLK2_WELCOME_TRIM 0x0002 /* TRIM and unmapping WRITE_ZEROES free space */
#define NETBLK2_WELCOME_NEW 0x0004 /* the session begins, its ledger is empty */
#define NETBLK2_WELCOME_ADOPTED 0x0008 /* the session goes on, its ledger is empty */
#define NETBLK2_WELCOME_ROTATIONAL 0x0010
#define NETBLK2_WELCOME_MORE 0x0020 /* LIST: ask again with a higher list_from */

struct netblk2_welcome {
	__u8 magic[NETBLK2_MAGIC_SIZE];
	__be32 length; /* of the whole welcome, a multiple of 8 */
	__be32 crc; /* CRC32C of the whole welcome with this field zero */
	__be32 status; /* enum netblk2_status; the body is a text unless OK */
	__be16 flags; /* NETBLK2_WELCOME_* */
	__be16 max_connections; /* of the session */
	__u8 session_id[NETBLK2_ID_SIZE];
	__u8 store_uuid[NETBLK2_ID_SIZE];
	__be64 generation;
	__be64 size_bytes;
	__be32 block_bytes; /* offsets and lengths are multiples of it */
	__be32 preferred_bytes; /* of one request, for speed */
	__be32 max_payload_bytes;
	__be32 slots; /* of the session, all connections together */
	__be32 body_length;
	__be16 feature_count;
	__be16 reserved; /* zero */
	/* netblk2_feature[feature_count], the body, zero bytes up to length */
};

/* The body of the answer to LIST is a row of these. */
struct netblk2_export {
	__be64 size_bytes;
	__be32 flags; /* NETBLK2_WELCOME_READ_ONLY */
	__be32 name_length;
	/* the name, zero bytes up to a multiple of 8 */
};

enum netblk2_type {
	NETBLK2_READ = 0x01,
	NETBLK2_WRITE = 0x02,
	NETBLK2_FLUSH = 0x03,
	NETBLK2_TRIM = 0x04,
	NETBLK2_WRITE_ZEROES = 0x05,
	/* does nothing; settles a slot whose request its client gave up */
	NETBLK2_NOP = 0x06,
	/* ends the connection, or with NETBLK2_END_SESSION the session */
	NETBLK2_GOODBYE = 0x07,
	/* in both directions, no reply; slot, sequence and cookie are zero */
	NETBLK2_HEARTBEAT = 0x08,
	/* from the server, unasked; the cookie is the new size in bytes */
	NETBLK2_RESIZE = 0x09,
	/* from the server, unasked: struct netblk2_times */
	NETBLK2_TIMES = 0x0a,
};

/* netblk2_request.flags; the last two also in netblk2_reply.flags */
#define NETBLK2_FUA 0x01 /* WRITE, TRIM, WRITE_ZEROES: durable before its reply */
#define NETBLK2_NO_UNMAP 0x02 /* WRITE_ZEROES: keep the space allocated */
#define NETBLK2_END_SESSION 0x04 /* GOODBYE */
#define NETBLK2_LZ4 0x10 /* the payload is compressed */
#define NETBLK2_ZSTD 0x20

/* Fields that a type does not use are zero. */
struct netblk2_request {
	__u8 type;
	__u8 flags;
	__be16 slot;
	__be32 sequence;
	__be64 cookie; /* the client's own; comes back in the reply */
	__be64 offset; /* bytes */
	__be32 length; /* bytes of the device */
	__be32 payload_length; /* bytes that follow: length unless compressed */
	__be32 payload_crc; /* CRC32C of these bytes */
	__be32 crc; /* CRC32C of the 36 bytes before */
};

struct netblk2_reply {
	__u8 type; /* of the request */
	__u8 flags;
	__be16 slot;
	__be32 sequence;
	__be64 cookie;
	__be32 status; /* enum netblk2_status */
	__be32 payload_length; /* 0 unless a READ was OK */
	__be32 payload_crc;
	__be32 crc; /* CRC32C of the 28 bytes before */
};

/*
 * In the place of a reply: how long the requests of one type took, which were
 * answered on this connection since the message before, in nanoseconds and all
 * together.
 */
struct netblk2_times {
	__u8 type; /* NETBLK2_TIMES */
	__u8 flags; /* zero */
	__be16 request_type; /* NETBLK2_READ to NETBLK2_NOP */
	__be32 count; /* of replies, 1 or more */
	__be64 server_ns; /* whole at the server, and not in the store */
	__be64 store_ns; /* in the store */
	__be32 reserved; /* zero */
	__be32 crc; /* CRC32C of the 28 bytes before */
};

/* The numbers are Linux's errno values. A client takes any other for EIO. */
enum netblk2_status {
	NETBLK2_OK = 0,
	NETBLK2_EPERM = 1, /* welcome: this client may not use the export */
	NETBLK2_ENOENT = 2, /* welcome: no such export */
	NETBLK2_EIO = 5, /* the store failed, or its cache was lost */
	NETBLK2_EAGAIN = 11, /* welcome: a fence is under way, try again */
	NETBLK2_ENOMEM = 12, /* a limit of the server's memory */
	NETBLK2_EBUSY = 16, /* welcome: another client writes */
	NETBLK2_EINVAL = 22, /* outside the device, or not whole blocks */
	NETBLK2_ENOSPC = 28, /* the store is full */
	NETBLK2_EROFS = 30, /* a change to what is read-only */
	NETBLK2_EPROTO = 71, /* welcome: the hello breaks the protocol */
	NETBLK2_EOPNOTSUPP = 95, /* a mandatory feature, or a type, is not here */
	NETBLK2_ESHUTDOWN = 108, /* welcome: the server stops */
	NETBLK2_ESTALE = 116, /* welcome: the session was fenced, and is over */
};

#define NETBLK2_FEATURE_SIZE 24
#define NETBLK2_HELLO_SIZE 96
#define NETBLK2_WELCOME_SIZE 96
#define NETBLK2_EXPORT_SIZE 16
#define NETBLK2_REQUEST_SIZE 40
#define NETBLK2_REPLY_SIZE 32
#define NETBLK2_TIMES_SIZE 32

#define NETBLK_WIRE_AT(type, field, at)                                  \
	NETBLK_WIRE_ASSERT(__builtin_offsetof(struct type, field) == (at), \
			   #type "." #field " is not at byte " #at)

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_feature) == NETBLK2_FEATURE_SIZE,
		   "the size of netblk2_feature");
NETBLK_WIRE_AT(netblk2_feature, number, 0);
NETBLK_WIRE_AT(netblk2_feature, flags, 2);
NETBLK_WIRE_AT(netblk2_feature, value, 4);
NETBLK_WIRE_AT(netblk2_feature, name, 8);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_hello) == NETBLK2_HELLO_SIZE,
		   "the size of netblk2_hello");
NETBLK_WIRE_AT(netblk2_hello, magic, 0);
NETBLK_WIRE_AT(netblk2_hello, length, 8);
NETBLK_WIRE_AT(netblk2_hello, crc, 12);
NETBLK_WIRE_AT(netblk2_hello, flags, 16);
NETBLK_WIRE_AT(netblk2_hello, connection, 18);
NETBLK_WIRE_AT(netblk2_hello, slots, 20);
NETBLK_WIRE_AT(netblk2_hello, client_id, 24);
NETBLK_WIRE_AT(netblk2_hello, session_id, 40);
NETBLK_WIRE_AT(netblk2_hello, epoch, 56);
NETBLK_WIRE_AT(netblk2_hello, store_uuid, 64);
NETBLK_WIRE_AT(netblk2_hello, generation, 80);
NETBLK_WIRE_AT(netblk2_hello, list_from, 88);
NETBLK_WIRE_AT(netblk2_hello, feature_count, 92);
NETBLK_WIRE_AT(netblk2_hello, name_length, 94);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_welcome) == NETBLK2_WELCOME_SIZE,
		   "the size of netblk2_welcome");
NETBLK_WIRE_AT(netblk2_welcome, magic, 0);
NETBLK_WIRE_AT(netblk2_welcome, length, 8);
NETBLK_WIRE_AT(netblk2_welcome, crc, 12);
NETBLK_WIRE_AT(netblk2_welcome, status, 16);
NETBLK_WIRE_AT(netblk2_welcome, flags, 20);
NETBLK_WIRE_AT(netblk2_welcome, max_connections, 22);
NETBLK_WIRE_AT(netblk2_welcome, session_id, 24);
NETBLK_WIRE_AT(netblk2_welcome, store_uuid, 40);
NETBLK_WIRE_AT(netblk2_welcome, generation, 56);
NETBLK_WIRE_AT(netblk2_welcome, size_bytes, 64);
NETBLK_WIRE_AT(netblk2_welcome, block_bytes, 72);
NETBLK_WIRE_AT(netblk2_welcome, preferred_bytes, 76);
NETBLK_WIRE_AT(netblk2_welcome, max_payload_bytes, 80);
NETBLK_WIRE_AT(netblk2_welcome, slots, 84);
NETBLK_WIRE_AT(netblk2_welcome, body_length, 88);
NETBLK_WIRE_AT(netblk2_welcome, feature_count, 92);
NETBLK_WIRE_AT(netblk2_welcome, reserved, 94);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_export) == NETBLK2_EXPORT_SIZE,
		   "the size of netblk2_export");
NETBLK_WIRE_AT(netblk2_export, size_bytes, 0);
NETBLK_WIRE_AT(netblk2_export, flags, 8);
NETBLK_WIRE_AT(netblk2_export, name_length, 12);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_request) == NETBLK2_REQUEST_SIZE,
		   "the size of netblk2_request");
NETBLK_WIRE_AT(netblk2_request, type, 0);
NETBLK_WIRE_AT(netblk2_request, flags, 1);
NETBLK_WIRE_AT(netblk2_request, slot, 2);
NETBLK_WIRE_AT(netblk2_request, sequence, 4);
NETBLK_WIRE_AT(netblk2_request, cookie, 8);
NETBLK_WIRE_AT(netblk2_request, offset, 16);
NETBLK_WIRE_AT(netblk2_request, length, 24);
NETBLK_WIRE_AT(netblk2_request, payload_length, 28);
NETBLK_WIRE_AT(netblk2_request, payload_crc, 32);
NETBLK_WIRE_AT(netblk2_request, crc, 36);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_reply) == NETBLK2_REPLY_SIZE,
		   "the size of netblk2_reply");
NETBLK_WIRE_AT(netblk2_reply, type, 0);
NETBLK_WIRE_AT(netblk2_reply, flags, 1);
NETBLK_WIRE_AT(netblk2_reply, slot, 2);
NETBLK_WIRE_AT(netblk2_reply, sequence, 4);
NETBLK_WIRE_AT(netblk2_reply, cookie, 8);
NETBLK_WIRE_AT(netblk2_reply, status, 16);
NETBLK_WIRE_AT(netblk2_reply, payload_length, 20);
NETBLK_WIRE_AT(netblk2_reply, payload_crc, 24);
NETBLK_WIRE_AT(netblk2_reply, crc, 28);

NETBLK_WIRE_ASSERT(sizeof(struct netblk2_times) == NETBLK2_TIMES_SIZE,
		   "the size of netblk2_times");
NETBLK_WIRE_AT(netblk2_times, type, 0);
NETBLK_WIRE_AT(netblk2_times, flags, 1);
NETBLK_WIRE_AT(netblk2_times, request_type, 2);
NETBLK_WIRE_AT(netblk2_times, count, 4);
NETBLK_WIRE_AT(netblk2_times, server_ns, 8);
NETBLK_WIRE_AT(netblk2_times, store_ns, 16);
NETBLK_WIRE_AT(netblk2_times, reserved, 24);
NETBLK_WIRE_AT(netblk2_times, crc, 28);
NETBLK_WIRE_ASSERT(NETBLK2_TIMES_SIZE == NETBLK2_REPLY_SIZE,
		   "what a server sends begins with so many bytes");

NETBLK_WIRE_ASSERT(NETBLK2_HELLO_SIZE + NETBLK2_MAX_FEATURES * NETBLK2_FEATURE_SIZE +
			   NETBLK2_MAX_NAME <= NETBLK2_MAX_HELLO,
		   "the longest hello holds the longest lists");
NETBLK_WIRE_ASSERT(NETBLK2_MIN_SLOTS <= NETBLK2_MAX_SLOTS && NETBLK2_MAX_SLOTS <= 1 << 16,
		   "a slot's number fits its field");
NETBLK_WIRE_ASSERT(NETBLK2_MIN_MAX_PAYLOAD <= NETBLK2_MAX_PAYLOAD, "payload limits");

#endif /* NETBLK_WIRE_H */
