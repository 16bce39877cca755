/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * netblk: a network block device. What the parts of the driver share.
 *
 *   net_block_main.c    module, disk
 *   net_block_config.c  parameters and their ranges
 *   net_block_bus.c     which devices there are; /sys/bus/netblk/
 *   net_block_queue.c   blk-mq's entry points, sending, completion
 *   net_block_core.c    one thread per device: connect, lose, retry, give up
 *   net_block_carry.c   what connections carry: sent again, or ended
 *   net_block_next.c    the connection that is being made
 *   net_block_conn.c    one TCP connection: socket, sending, receiving
 *   net_block_proto1.c  netblk/1: encoding requests, decoding replies
 *   net_block_genl.c    the generic netlink family
 *   net_block_proto2.c  netblk/2: the same
 *   net_block_greet.c   netblk/2: hello and welcome
 *   net_block_session.c netblk/2: slots, generation, loss; geometry of the disk
 *   net_block_crc.c     CRC32C
 *   net_block_stats.c   /sys/block/netblk/statistics/, tracepoints
 *   net_block_sysfs.c   /sys/block/netblk/
 *
 * Who owns a request. From the moment netblk_queue_rq() puts it on a list it
 * belongs to the device's thread, and only that thread completes it: with the
 * server's answer, or with EIO when the device is disconnected or gives up.
 * blk-mq's time-out handler never completes anything. Exactly-once follows:
 * a request is on one list, and taking it off the list under netblk_queue.lock
 * is the right to complete it.
 *
 * A device has one queue for each connection that it may have. A queue has its
 * own list, locks and connection, so that tasks which submit to different
 * queues do not meet; the thread looks after all of them.
 *
 * Lock order: netblk_queue.tx_lock, then the socket's own lock; or
 * netblk_queue.tx_lock, then netblk_queue.lock or netblk_device.lock (leaves:
 * nothing sleeps and nothing else is taken under them). No task holds the
 * tx_lock of two queues. The socket's callbacks take none of them.
 */
#ifndef NETBLK_NET_BLOCK_H
#define NETBLK_NET_BLOCK_H

#include <linux/atomic.h>
#include <linux/blk-mq.h>
#include <linux/completion.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "netblk_wire.h"

/* Ranges of parameters and attributes; see ABI-sysfs-netblk. */
#define NETBLK_MAX_SIZE_MB ((u64)LLONG_MAX >> 20)
#define NETBLK_MAX_QUEUE_DEPTH 4096
#define NETBLK_MAX_RETRIES 1000
#define NETBLK_MAX_TIMEOUT_MS (10 * 60 * 1000)
/* the largest dead_time_ms: I/O waits for its server for ever */
#define NETBLK_FOR_EVER_MS U32_MAX

/* Devices at a time; the highest number is one less. */
#define NETBLK_MAX_DEVICES 1024
#define NETBLK_ANY_NUMBER (-1)

#define NETBLK_DEFAULT_IP "192.168.1.22"
#define NETBLK_DEFAULT_SIZE_MB 100
#define NETBLK_DEFAULT_QUEUE_DEPTH 128
#define NETBLK_DEFAULT_RETRIES 3
#define NETBLK_DEFAULT_TIMEOUT_MS 5000
/* 0: by the version of the protocol */
#define NETBLK_DEFAULT_DEAD_TIME_MS 0
#define NETBLK1_DEAD_TIME_MS 15000
#define NETBLK2_DEAD_TIME_MS 120000
#define NETBLK_DEFAULT_HEARTBEAT_MS 2000
#define NETBLK_PROTOCOL_AUTO 0

/* An export's name in this driver, with its zero byte; the protocol has more. */
#define NETBLK_EXPORT_SIZE 256

/* The longest request that the block layer may build. */
#define NETBLK_MAX_REQUEST_BYTES (4u << 20)

/* Requests by tag that go to one of several connections of a hardware queue. */
#define NETBLK_NEIGHBOURS 8

/* Segments to one sendmsg() or recvmsg(). */
#define NETBLK_SEGMENTS 64

/* Room for the longest request header of any protocol version. */
#define NETBLK_MAX_HEADER NETBLK2_REQUEST_SIZE

/* The longest welcome to a session: all features, and a text of 1024 bytes. */
#define NETBLK_GREETING_SIZE                                               \
	(NETBLK2_WELCOME_SIZE + NETBLK2_MAX_FEATURES * NETBLK2_FEATURE_SIZE + \
	 1024)

/* Reply headers that are received at once when no READ is in flight. */
#define NETBLK_RX_HEADERS 64

/* With protocol=auto a server that is silent for this long speaks netblk/1. */
#define NETBLK_AUTO_SILENCE_MS 1000u

/* The pause after a failed try for a netblk/2 session; it doubles each time. */
#define NETBLK_FIRST_PAUSE_MS 100u

/* The pause after one connection more was refused. */
#define NETBLK_JOIN_PAUSE_MS 10000

/* A request being answered slower than this (bytes per second) is stuck. */
#define NETBLK_MIN_RATE (64u << 10)

/* How long a polite close waits for the server to close as well. */
#define NETBLK_GOODBYE_MS 200

enum netblk_state {
	NETBLK_STATE_DISCONNECTED,
	NETBLK_STATE_CONNECTING,
	NETBLK_STATE_CONNECTED,
	NETBLK_STATE_ERROR,
};

struct netblk_addr {
	__be32 ip;
	u16 port; /* host order */
};

/* Who is at the other end, for %pISpc. A socket that was handed over may be of either family. */
union netblk_peer {
	struct sockaddr any;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
};

enum netblk_access {
	NETBLK_EXCLUSIVE,
	NETBLK_SHARED,
	NETBLK_TAKEOVER, /* exclusive, from whoever writes now */
	NETBLK_READ_ONLY,
};

/* What the next connect asks of a netblk/2 server. */
struct netblk_wish {
	u8 protocol; /* NETBLK_PROTOCOL_AUTO, 1 or 2 */
	u8 access; /* enum netblk_access */
	bool crc32c;
	u32 heartbeat_ms; /* 0: none */
	u8 client_id[NETBLK2_ID_SIZE];
	char export[NETBLK_EXPORT_SIZE];
};

/* A welcome whose status is OK, validated. */
struct netblk_welcome {
	u16 flags; /* NETBLK2_WELCOME_* */
	u16 max_connections;
	u8 session_id[NETBLK2_ID_SIZE];
	u8 store_uuid[NETBLK2_ID_SIZE];
	u64 generation;
	u64 size_bytes;
	u32 block_bytes;
	u32 preferred_bytes;
	u32 max_payload_bytes;
	u32 slots;
	bool crc32c;
	bool resize;
	bool times;
	u32 heartbeat_ms; /* 0: none */
};

/* What the block layer is told of the disk. */
struct netblk_geometry {
	u64 size_bytes;
	u32 block_bytes;
	u32 preferred_bytes;
	u32 max_request_bytes;
	bool cache; /* it is to be flushed */
	bool trim;
	bool zeroes;
	bool stable; /* pages must not change while they are sent: checksums */
	bool rotational;
	bool read_only;
	u8 unused[6]; /* zero: geometries are compared as bytes */
};

/* What a device is made with. */
struct netblk_config {
	int number; /* NETBLK_ANY_NUMBER: the lowest that is free */
	__be32 ip;
	/* in the order of netblk_numbers, which has their ranges */
	unsigned long server_port;
	unsigned long size_mb;
	unsigned long queue_depth;
	unsigned long max_retries;
	unsigned long connect_timeout_ms;
	unsigned long io_timeout_ms;
	unsigned long dead_time_ms;
	unsigned long connections;
	unsigned long heartbeat_ms;
	unsigned long crc32c;
	struct netblk_wish wish; /* protocol, access, client_id, export */
};

/* A place in a request's data. */
struct netblk_cursor {
	struct bio *bio;
	struct bvec_iter iter;
	u32 left; /* bytes */
};

/* The driver's part of a request (blk-mq allocates it behind struct request). */
struct netblk_cmd {
	struct list_head node; /* netblk_queue.pending or netblk_conn.inflight */
	struct netblk_queue *queue;
	u64 queued_ns; /* when the block layer gave it to us */
	u64 sent_ns; /* when it was last given to a connection */
	struct netblk_cursor data; /* of the sender for a WRITE, else of the receiver */
	u64 cookie; /* netblk/2; as last sent */
	u64 flush_mark; /* FLUSH: changes acknowledged before it was issued */
	unsigned long sent_at; /* jiffies: first given to a connection */
	u32 payload_crc;
	u16 slot; /* index in netblk_queue.slots */
	u8 header[NETBLK_MAX_HEADER];
	u8 header_length;
	u8 header_done; /* bytes given to TCP */
	u8 type; /* enum netblk2_type, whatever the version */
	bool write; /* the request carries its data */
	bool fua;
	bool has_slot; /* netblk_queue.lock */
	bool in_flight; /* on a connection's list; netblk_queue.lock */
	bool has_crc; /* payload_crc is that of the data */
	bool sent; /* the last byte was given to TCP; netblk_queue.lock */
	bool receiving; /* the status was OK and data follows */
	u8 status; /* recvmsg() puts it here */
};

enum netblk_kind {
	NETBLK_KIND_READ,
	NETBLK_KIND_WRITE,
	NETBLK_KIND_FLUSH,
	NETBLK_KIND_TRIM,
	NETBLK_KIND_ZEROES,
	NETBLK_KINDS,
};

/* The last one has all that took 2^26 microseconds (67 s) and longer. */
#define NETBLK_LATENCY_BUCKETS 28

/* Of one processor. Only what succeeded counts, but for errors. */
struct netblk_stats {
	u64 requests[NETBLK_KINDS];
	u64 bytes[NETBLK_KINDS];
	u64 latency[NETBLK_KINDS][NETBLK_LATENCY_BUCKETS];
	u64 queue_ns[NETBLK_KINDS]; /* until they were given to a connection */
	u64 trip_ns[NETBLK_KINDS]; /* from there to their end */
	/* of those that a netblk/2 server told of, failed ones included */
	u64 told[NETBLK_KINDS];
	u64 told_trip_ns[NETBLK_KINDS];
	u64 server_ns[NETBLK_KINDS];
	u64 store_ns[NETBLK_KINDS];
	u64 errors;
};

/* Replies of one type since the server told of their times. */
struct netblk_untold {
	u32 count;
	u64 trip_ns;
};

struct netblk_conn;
struct netblk_device;

/*
 * What differs between versions of the protocol: how requests are written, and
 * how replies meet requests (in order, or by slot and cookie).
 */
struct netblk_proto {
	unsigned int version;

	/* Write cmd->header and set cmd->header_length. Holds tx_lock. */
	void (*encode)(struct netblk_conn *nc, struct netblk_cmd *cmd);

	/* Go on with what was received before. Negative: out of step. */
	int (*rx_begin)(struct netblk_conn *nc);

	/*
	 * Say where the next received bytes go: at most @max segments in @bv,
	 * *@bytes in all. Returns the number of segments, 0 when no byte is due.
	 */
	unsigned int (*rx_map)(struct netblk_conn *nc, struct bio_vec *bv,
			       unsigned int max, size_t *bytes);

	/* @bytes of what rx_map() named have arrived. Negative: out of step. */
	int (*rx_done)(struct netblk_conn *nc, size_t bytes);
};

extern const struct netblk_proto netblk_proto1;
extern const struct netblk_proto netblk_proto2;

/* How far a connection that is being made has come. */
enum netblk_phase {
	NETBLK_PHASE_TCP,
	NETBLK_PHASE_WELCOME, /* netblk/2: the hello was sent */
	NETBLK_PHASE_CONFIG, /* the block layer is being told of the disk */
	NETBLK_PHASE_READY, /* netblk/1: a move waits for the old to drain */
};

/* One TCP connection. Made, serviced and closed by the device's thread. */
struct netblk_conn {
	struct netblk_device *nd;
	struct netblk_queue *queue;
	const struct netblk_proto *proto;
	const struct netblk_wish *wish; /* what its hello asks for */
	struct socket *sock;
	struct netblk_addr addr; /* zero: it is not of IPv4 */
	union netblk_peer peer; /* for people */
	u64 epoch; /* no two connections of a device have the same */
	enum netblk_phase phase;
	bool established;
	bool adopted; /* the socket came from user space */
	bool user; /* made for a connect: netblk/2 begins a new session */
	bool config_asked;
	bool draining_old;
	unsigned long deadline; /* jiffies: of the phase */

	/* the socket's own callbacks, put back before it is released */
	void (*data_ready)(struct sock *sk);
	void (*state_change)(struct sock *sk);
	void (*write_space)(struct sock *sk);

	struct list_head inflight; /* in the order of sending; netblk_queue.lock */
	unsigned int reads_in_flight; /* netblk_queue.lock */

	/* netblk_queue.tx_lock */
	struct netblk_cmd *tx_next; /* the first one in flight not wholly sent */
	bool tx_stalled; /* the socket is full: the thread goes on */
	bool draining; /* take no new request */
	int tx_error;
	unsigned long tx_at; /* jiffies: TCP last took a byte */
	u64 tx_ns; /* when this batch began; 0: it has no request yet */
	u8 ctl[NETBLK_MAX_HEADER]; /* a message of the connection's own */
	u8 ctl_length;
	u8 ctl_done;

	/* netblk/2: as the welcome has it */
	struct netblk_welcome welcome;

	/* the thread's; the first two are set under netblk_queue.lock */
	unsigned long head_at; /* jiffies: the oldest request became the oldest */
	unsigned long progress_at; /* jiffies: a byte last moved */
	unsigned long up_at; /* jiffies */
	u32 acked; /* snd_una when last looked at */
	unsigned long rx_at; /* jiffies: a byte last came */
	u64 rx_ns; /* the same, more finely */
	struct netblk_untold untold[NETBLK2_NOP + 1];
	u64 replies;
	const char *why; /* what is wrong with it, when something is */
	bool final; /* trying again would not help */
	bool farewell; /* netblk/2: a GOODBYE was sent, and answered */

	/* netblk/2, receiving: headers not yet looked at, and a READ's data */
	struct netblk_cmd *rx_cmd;
	u32 rx_crc; /* of the data of rx_cmd that have come */
	unsigned int rx_have; /* bytes in rx_buf */
	bool rx_early; /* its request is not wholly sent; netblk_queue.lock */
	union {
		u8 rx_buf[NETBLK_RX_HEADERS * NETBLK2_REPLY_SIZE];
		u8 greeting[NETBLK_GREETING_SIZE];
	} __aligned(8);

	struct bio_vec tx_bv[NETBLK_SEGMENTS];
	struct bio_vec rx_bv[NETBLK_SEGMENTS];
};

/* What user space hands over: sockets, and what their handshake agreed on. */
struct netblk_handover {
	unsigned int protocol;
	const struct netblk_proto *proto;
	unsigned int count;
	struct socket *sockets[NETBLK2_MAX_CONNECTIONS];
	u64 epochs[NETBLK2_MAX_CONNECTIONS];
	struct netblk_conn *conns[NETBLK2_MAX_CONNECTIONS];
	u64 size_bytes; /* 0: netblk/1, and the device keeps its own */
	u32 block_bytes;
	u32 preferred_bytes;
	u32 max_payload_bytes;
	u32 slots;
	u32 flags; /* NETBLK2_WELCOME_* */
	u32 features; /* bit n is feature n */
	u32 heartbeat_ms;
	u64 generation;
	u8 session_id[NETBLK2_ID_SIZE];
	u8 client_id[NETBLK2_ID_SIZE];
	u8 store_uuid[NETBLK2_ID_SIZE];
};

/* Number index * stride + queue in a session of stride connections. */
struct netblk_slot {
	struct netblk_cmd *cmd; /* the one outstanding, or NULL */
	u32 sequence; /* the last that was used */
};

/* One hardware queue of the device, and its connection. */
struct netblk_queue {
	struct netblk_device *nd;
	unsigned int index; /* of the hardware queue, and of the connection */

	struct mutex tx_lock; /* the sending side of conn */

	spinlock_t lock; /* a leaf; protects what follows up to conn */
	struct list_head pending; /* requests not yet given to a connection */
	unsigned int active; /* requests on any list */
	unsigned long busy_since; /* jiffies: active left 0 */
	struct netblk_slot *slots;
	u16 *free_slots; /* a stack of indices */
	unsigned int nr_free;
	struct netblk_conn *conn; /* written under tx_lock too */

	/* the thread's: */
	bool dead; /* lost, and nothing answered since */
	unsigned long dead_since; /* jiffies */
	unsigned int tries; /* since dead_since */
	unsigned long tried_at; /* jiffies */
	unsigned long try_at; /* jiffies: the next one */
} ____cacheline_aligned_in_smp;

enum { NETBLK_KICKED }; /* netblk_device.flags */

struct netblk_device {
	/* net_block_bus.c's, under its lock; removed: under disk->open_mutex */
	struct list_head node;
	int number;
	unsigned int users;
	bool ready;
	bool removed; /* nobody can open it any more */

	bool shown; /* the disk was added */
	struct gendisk *disk;
	struct blk_mq_tag_set tag_set;
	struct kernfs_node *state_node; /* for poll() on the state attribute */
	u64 size_mb;

	/* by sysfs at any time, read with READ_ONCE */
	unsigned int max_retries;
	unsigned int connect_timeout_ms;
	unsigned int io_timeout_ms;
	unsigned int dead_time_ms;

	struct netblk_stats __percpu *stats;
	atomic64_t reconnects;

	struct netblk_queue *queues;
	unsigned int nr_queues; /* as many as blk-mq has hardware queues */
	unsigned int nr_live; /* queues in use; the thread's, read anywhere */
	unsigned int depth; /* slots of a queue */

	unsigned int version; /* in use, 0: none yet; the thread's, read anywhere */
	bool crc32c; /* the same; requests are submitted with their checksum */

	/* changes acknowledged, and how many of them a FLUSH has covered */
	atomic64_t acknowledged;
	atomic64_t covered;

	spinlock_t lock; /* a leaf; protects what follows up to ops */
	enum netblk_state state; /* changed before the queues are emptied */
	bool removing;
	struct netblk_addr configured; /* used by the next connect */
	struct netblk_wish wish; /* the same */
	struct netblk_geometry wanted; /* by the thread, for config_work */
	struct netblk_geometry applied;
	unsigned int wanted_seq;
	unsigned int applied_seq;
	int applied_error;
	/* written by the thread, but for lost, which is also reset */
	bool has_session;
	u8 session_id[NETBLK2_ID_SIZE];
	bool has_store; /* a netblk/2 server has told of its store: no fall-back */
	u8 store_uuid[NETBLK2_ID_SIZE];
	u64 generation;
	bool lost; /* acknowledged changes may be gone */
	char lost_why[160];
	struct list_head ops; /* struct netblk_op, for the thread */

	struct task_struct *thread;
	wait_queue_head_t wait;
	unsigned long flags;
	struct timer_list watchdog;
	struct work_struct config_work;

	/* the thread's: */
	struct list_head waiting; /* struct netblk_op, for next */
	struct netblk_conn *next; /* being connected, or waiting for a drain */
	struct netblk_addr addr; /* where connections lead, and where a lost one is sought */
	union netblk_peer peer; /* the same for people, or who was handed over */
	struct netblk_wish session_wish; /* what the session was made with */
	struct netblk_wish next_wish; /* what next, made for a user, asks for */
	u8 next_session_id[NETBLK2_ID_SIZE];
	unsigned int stride; /* of slot numbers */
	unsigned int session_slots;
	unsigned long join_at; /* jiffies: when to add the next connection */
	u64 epoch;
	bool handed_over; /* user space brings the connections */
	bool tell; /* listeners of the netlink family */
	bool one_try; /* next is the user's, from disconnected or error */
	const char *why; /* the last connection's or try's end */
	int error;
};

/* net_block_main.c */
struct netblk_device *netblk_create(const struct netblk_config *config,
				    int number);
int netblk_show(struct netblk_device *nd, bool connect);
void netblk_destroy(struct netblk_device *nd);

/* net_block_config.c */
extern struct netblk_config netblk_defaults;
int netblk_config_init(void);
int netblk_config_parse(struct netblk_config *config, const char *text,
			size_t length);
int netblk_parse_ip(const char *text, size_t length, __be32 *ip);
int netblk_parse_protocol(const char *text, size_t length, u8 *protocol);
int netblk_parse_access(const char *text, size_t length, u8 *access);
int netblk_parse_client_id(const char *text, size_t length, u8 *id);
int netblk_parse_export(const char *text, size_t length, char *export);
bool netblk_heartbeat_possible(u64 ms);
extern const char * const netblk_access_names[];
int netblk_parse_number(const char *text, size_t length, u64 low, u64 high,
			u64 *value);

/* net_block_bus.c */
int netblk_bus_init(void);
void netblk_bus_leave(void);
void netblk_bus_exit(void);
void netblk_remove_all(void);
int netblk_add(const struct netblk_config *config, bool connect);
int netblk_remove(int number);
struct netblk_device *netblk_get(int number, bool next);
void netblk_put(struct netblk_device *nd);
int netblk_parse_name(const char *text, size_t length);

/* net_block_core.c */
int netblk_core_start(struct netblk_device *nd);
void netblk_core_stop(struct netblk_device *nd);
void netblk_kick(struct netblk_device *nd);
int netblk_connect(struct netblk_device *nd);
int netblk_disconnect(struct netblk_device *nd);
int netblk_handover(struct netblk_device *nd, struct netblk_handover *h);
void netblk_shutdown(struct netblk_device *nd);

/* net_block_queue.c */
extern const struct blk_mq_ops netblk_mq_ops;
int netblk_queues_alloc(struct netblk_device *nd, unsigned int count,
			unsigned int depth);
void netblk_queues_free(struct netblk_device *nd);
void netblk_tx(struct netblk_queue *q);
void netblk_end_cmd(struct netblk_cmd *cmd, blk_status_t status);
void netblk_cmd_rewind(struct netblk_cmd *cmd);
void netblk_cmd_rewind_data(struct netblk_cmd *cmd);

/* net_block_conn.c */
struct netblk_conn *netblk_conn_open(struct netblk_queue *q,
				     const struct netblk_addr *addr,
				     const struct netblk_proto *proto);
void netblk_peer_of(union netblk_peer *peer, const struct netblk_addr *addr);
struct netblk_conn *netblk_conn_adopt(struct netblk_queue *q,
				      struct socket *sock);
int netblk_conn_poll(struct netblk_conn *nc);
void netblk_conn_close(struct netblk_conn *nc);
void netblk_conn_goodbye(struct netblk_conn *nc);
int netblk_conn_tx(struct netblk_conn *nc);
int netblk_conn_rx(struct netblk_conn *nc);
int netblk_conn_check(struct netblk_conn *nc, unsigned long *wake_at);
bool netblk_conn_has_input(struct netblk_conn *nc);
bool netblk_conn_control(struct netblk_conn *nc, const u8 *header,
			 size_t length);
int netblk_net_read(struct netblk_conn *nc, const struct bio_vec *bv,
		    unsigned int segments, size_t bytes);
int netblk_net_write(struct netblk_conn *nc, const struct bio_vec *bv,
		     unsigned int segments, size_t bytes, bool more);
void netblk_bvec_set_virt(struct bio_vec *bv, void *p, unsigned int length);
unsigned int netblk_cursor_map(const struct netblk_cursor *c,
			       struct bio_vec *bv, unsigned int max,
			       size_t *bytes);
void netblk_cursor_advance(struct netblk_cursor *c, size_t bytes);
struct bio_vec netblk_cursor_page(const struct netblk_cursor *c);

/* net_block_proto2.c */
void netblk2_heartbeat(struct netblk_conn *nc);
bool netblk2_end_session(struct netblk_conn *nc);

/* net_block_greet.c */
int netblk2_send_hello(struct netblk_conn *nc);
int netblk2_receive_welcome(struct netblk_conn *nc);

/* net_block_session.c */
void netblk_slots_reset(struct netblk_device *nd);
bool netblk_slot_get(struct netblk_queue *q, struct netblk_cmd *cmd);
void netblk_slot_put(struct netblk_queue *q, struct netblk_cmd *cmd);
u64 netblk_unflushed(struct netblk_device *nd);
void netblk_covered(struct netblk_device *nd, u64 mark);
void netblk_reset_lost(struct netblk_device *nd);
int netblk_session_judge(struct netblk_conn *nc, bool *lost);
void netblk_session_enter(struct netblk_conn *nc, bool lost);
void netblk_session_leave(struct netblk_device *nd);
bool netblk_geometry_want(struct netblk_device *nd,
			  const struct netblk_geometry *wanted);
int netblk_geometry_of(struct netblk_conn *nc, struct netblk_geometry *g);
void netblk_geometry_resize(struct netblk_device *nd, u64 size_bytes);
void netblk_config_work(struct work_struct *work);

/* net_block_crc.c */
void netblk_crc_init(void);
void netblk_crc_exit(void);
u32 netblk_crc32c(const void *data, size_t length);
u32 netblk_crc32c_advance(u32 before, struct netblk_cursor *c, size_t bytes);
u32 netblk_crc32c_cursor(const struct netblk_cursor *c);

/* net_block_sysfs_session.c */
extern const struct attribute_group netblk_session_attr_group;

/* net_block_genl.c */
int netblk_genl_init(void);
void netblk_genl_exit(void);
void netblk_genl_event(struct netblk_device *nd);

/* net_block_stats.c */
extern const struct attribute_group netblk_stats_group;
int netblk_stats_alloc(struct netblk_device *nd);
void netblk_stats_free(struct netblk_device *nd);
enum netblk_kind netblk_kind_of(const struct request *rq);
void netblk_stats_end(struct netblk_device *nd, struct request *rq,
		      blk_status_t status);
void netblk_stats_told(struct netblk_device *nd, u8 type, u32 count,
		       u64 trip_ns, u64 server_ns, u64 store_ns);
void netblk_stats_refused(struct netblk_device *nd);
void netblk_stats_reconnected(struct netblk_queue *q);
u64 netblk_stats_bytes(struct netblk_device *nd, enum netblk_kind kind);
u64 netblk_stats_errors(struct netblk_device *nd);

/* net_block_sysfs.c */
extern const struct attribute_group *netblk_attr_groups[];
size_t netblk_trim(const char *text, size_t length);
const char *netblk_state_name(enum netblk_state state);

static inline struct netblk_device *netblk_from_dev(struct device *dev)
{
	return dev_to_disk(dev)->private_data;
}

static inline const char *netblk_name(const struct netblk_device *nd)
{
	return nd->disk->disk_name;
}

static inline unsigned int netblk_dead_time_ms(const struct netblk_device *nd)
{
	unsigned int ms = READ_ONCE(nd->dead_time_ms);

	if (ms)
		return ms;
	return READ_ONCE(nd->version) == 2 ? NETBLK2_DEAD_TIME_MS :
					     NETBLK1_DEAD_TIME_MS;
}

/* The end of a dead time that began at @from. */
static inline unsigned long netblk_dead_by(const struct netblk_device *nd,
					   unsigned long from)
{
	unsigned int ms = netblk_dead_time_ms(nd);

	/* as far away as times can be compared; it moves on with the clock */
	if (ms == NETBLK_FOR_EVER_MS)
		return jiffies + MAX_JIFFY_OFFSET;
	return from + msecs_to_jiffies(ms);
}

#endif /* NETBLK_NET_BLOCK_H */
