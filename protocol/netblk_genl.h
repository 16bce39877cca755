/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The generic netlink family "netblk": how user space commands the driver, and
 * hands it sockets on which a netblk handshake is done. Shared by the driver (C)
 * and user space (C++20): constants only.
 *
 * All commands need CAP_NET_ADMIN. A refusal has an extack message. Attributes
 * are those of this header, in the machine's byte order, and nothing else is
 * accepted. What a command needs or may have is beside its name.
 */
#ifndef NETBLK_GENL_H
#define NETBLK_GENL_H

#define NETBLK_GENL_NAME "netblk"
#define NETBLK_GENL_VERSION 1

/* The multicast group that gets NETBLK_GENL_EVENT. */
#define NETBLK_GENL_GROUP "events"

enum netblk_genl_command {
	NETBLK_GENL_UNSPEC,
	/* Make a device, connected to nothing: OPTIONS. Answered by NETBLK_GENL_STATUS. */
	NETBLK_GENL_ADD,
	/* Disconnect and remove: NUMBER. EBUSY: it is open. */
	NETBLK_GENL_REMOVE,
	/*
	 * Hand over sockets: NUMBER, SOCKETS and, unless PROTOCOL is 1, all that the
	 * welcome said. On a device that is connected, or seeks its server, they
	 * take the place of the connections that it has. Answered by
	 * NETBLK_GENL_STATUS.
	 */
	NETBLK_GENL_CONNECT,
	/* NUMBER */
	NETBLK_GENL_DISCONNECT,
	/*
	 * NUMBER, or a dump of all devices. The answer: NUMBER, NAME, STATE, SIZE_BYTES,
	 * PROTOCOL, HANDED_OVER, RECONNECTS, and what else there is to say.
	 */
	NETBLK_GENL_STATUS,
	/* From the driver, to the group: the attributes of NETBLK_GENL_STATUS. */
	NETBLK_GENL_EVENT,
};

enum netblk_genl_attribute {
	NETBLK_A_UNSPEC,
	NETBLK_A_PAD,
	NETBLK_A_NUMBER, /* u32: 0 is /dev/netblk, 1 is /dev/netblk-1 */
	NETBLK_A_NAME, /* string: "netblk-1" */
	NETBLK_A_OPTIONS, /* string: as written to /sys/bus/netblk/add */
	NETBLK_A_STATE, /* string: as /sys/block/netblk/state has it */
	NETBLK_A_WHY, /* string: why the last connection ended */
	NETBLK_A_ERROR, /* s32: the same as an errno, negative */
	NETBLK_A_HANDED_OVER, /* flag: the connections came by NETBLK_GENL_CONNECT */
	NETBLK_A_LOST, /* flag: acknowledged writes may be lost */
	NETBLK_A_RECONNECTS, /* u64 */
	NETBLK_A_SOCKETS, /* nested: NETBLK_A_SOCKET, one for each connection */
	NETBLK_A_SOCKET, /* nested: NETBLK_A_FD, NETBLK_A_EPOCH */
	NETBLK_A_FD, /* s32: of an established TCP socket */
	NETBLK_A_EPOCH, /* u64: of the hello on that connection */
	NETBLK_A_PROTOCOL, /* u32: 1 or 2 (the default) */
	NETBLK_A_SIZE_BYTES, /* u64: of the disk, from 512 up to 2^63 - 512 */
	NETBLK_A_BLOCK_BYTES, /* u32 */
	NETBLK_A_PREFERRED_BYTES, /* u32 */
	NETBLK_A_MAX_PAYLOAD_BYTES, /* u32 */
	NETBLK_A_SLOTS, /* u32 */
	NETBLK_A_FLAGS, /* u32: NETBLK2_WELCOME_* */
	NETBLK_A_FEATURES, /* u32: bit n is feature n */
	NETBLK_A_HEARTBEAT_MS, /* u32: its period, when that feature is in force */
	NETBLK_A_SESSION_ID, /* 16 bytes */
	NETBLK_A_CLIENT_ID, /* 16 bytes */
	NETBLK_A_STORE_UUID, /* 16 bytes */
	NETBLK_A_GENERATION, /* u64 */
	NETBLK_A_END,
};

#define NETBLK_A_MAX (NETBLK_A_END - 1)

#endif /* NETBLK_GENL_H */
