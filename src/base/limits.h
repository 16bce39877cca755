// SPDX-License-Identifier: GPL-2.0-only
// Every queue, length and count has its limit here (DESIGN law 5), with the relations between them asserted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace netblk::limits {

inline constexpr uint32_t kSectorBytes = 512;

// The longest request that netblk/1 may carry (DESIGN 4.1).
inline constexpr uint32_t kMaxRequestBytes = 32u << 20;

// The largest device: offsets and sizes are signed 64-bit in every kernel interface that we use.
inline constexpr uint64_t kMaxDeviceBytes = (uint64_t{1} << 63) - kSectorBytes;

// Requests that one connection may have in flight; a client that pipelines more waits in its socket.
inline constexpr uint32_t kConnectionSlots = 64;

// Bytes of request and reply data that one connection may hold: this, or one request of any legal size.
inline constexpr uint64_t kConnectionDataBytes = 8u << 20;

// Of these, what a connection holds without asking its loop; also what of a long WRITE must have arrived before its
// client is believed.
inline constexpr uint64_t kConnectionFreeBytes = 256u << 10;

// What all the connections of one loop may hold beyond their free bytes, or one request of any legal size.
inline constexpr uint64_t kLoopDataBytes = 128u << 20;

// While others wait for these bytes, a client that holds some must take or give data at this rate, after a grace.
inline constexpr uint64_t kContendedGraceMs = 2'000;
inline constexpr uint64_t kContendedBytesPerMs = 1u << 10;

// A waiting request lets this many smaller ones go first.
inline constexpr uint32_t kBudgetOvertakes = 64;

// Receive buffer: what an idle connection keeps, and what a busy one grows to.
inline constexpr uint32_t kReceiveIdleBytes = 16u << 10;
inline constexpr uint32_t kReceiveBusyBytes = 256u << 10;

// One gathered send: replies in it (netblk/1, netblk/2), and the iovec limit of the kernel (UIO_MAXIOV).
inline constexpr uint32_t kSendReplies = 64;
inline constexpr uint32_t kSendReplies2 = 128;
inline constexpr uint32_t kKernelMaxIov = 1024;

// Free data buffers that a loop keeps for reuse.
inline constexpr uint64_t kBufferCacheBytes = 16u << 20;

// What a loop keeps of them when nothing has been in flight for a second.
inline constexpr uint64_t kIdleCacheBytes = 256u << 10;
inline constexpr unsigned kIdleSweeps = 4;

// Connections: the server's own bound; `max-conns=` sets one per export.
inline constexpr uint32_t kMaxConnections = 16384;

// Of these, NBD's that have not ended their handshake; a newcomer takes the place of the oldest. Each has a receive buffer
// of kReceiveIdleBytes and little else.
inline constexpr uint32_t kMaxHandshakes = 1024;
inline constexpr size_t kMaxHandshakeBytes = 64u << 10;

// Lines of the log about connections that were refused or came to nothing: so many a second, the others are counted.
inline constexpr uint32_t kRefusalLines = 100;

inline constexpr uint32_t kMaxLoops = 64;
inline constexpr uint32_t kMaxExports = 4096;
inline constexpr size_t kMaxExportNameBytes = 4096;
inline constexpr size_t kMaxDescriptionBytes = 4096;  // a string of NBD has no more
inline constexpr size_t kMaxConfigFileBytes = 1u << 20;

// What is written down about a store, its owners included.
inline constexpr size_t kMaxRecordBytes = 1u << 20;

// netblk/2 (protocol/netblk.md): slots that a session is given at most, which bounds a connection's requests too;
// writers that share one export; sessions that were fenced away and are still known by name; how long a fence may take.
inline constexpr uint32_t kSessionSlots = 2048;
inline constexpr uint32_t kMaxOwners = 64;
inline constexpr size_t kFencedMemory = 1024;
inline constexpr uint64_t kFenceTimeoutMs = 10'000;
inline constexpr uint32_t kMaxPayloadBytes = 8u << 20;
inline constexpr uint32_t kMaxSessionConnections = 16;

// The heartbeat's period that a server agrees to.
inline constexpr uint32_t kMinHeartbeatMs = 1'000;
inline constexpr uint32_t kMaxHeartbeatMs = 600'000;

// NBD. The payload that is advertised, and the one that is taken from clients that cannot ask for it; an option's data, what
// of a longer one is read and dropped, and options in one handshake; requests of a connection at once; extents in one
// answer, and in a READ that tells its zeroes.
inline constexpr uint32_t kNbdAdvertisedBytes = 32u << 20;
inline constexpr uint32_t kMaxNbdPayloadBytes = 64u << 20;
inline constexpr uint32_t kMaxNbdOptionBytes = 16u << 10;
inline constexpr uint32_t kMaxNbdSkippedBytes = 1u << 20;
inline constexpr uint32_t kMaxNbdOptions = 1024;
inline constexpr uint32_t kNbdOperations = 512;
inline constexpr uint32_t kMaxNbdExtents = 8192;
inline constexpr uint32_t kMaxNbdContexts = 16;  // that a connection selects
inline constexpr uint32_t kNbdReadExtents = 16;

// Microseconds for which a loop looks for more before it waits, if it is told to without a number, and at most.
inline constexpr uint32_t kBusyPollUs = 50;
inline constexpr uint32_t kMaxBusyPollUs = 10'000;

// The largest buffer of a request's data.
inline constexpr uint32_t kMaxBufferBytes = kMaxNbdPayloadBytes;

// What one hint to cache makes a file read ahead.
inline constexpr uint64_t kMaxCacheBytes = 64u << 20;

// Times, in milliseconds. The header of a request has its deadline from its first byte on (DESIGN 4.1), the data of a
// WRITE from the moment when there is room for it.
inline constexpr uint64_t kHeaderTimeoutMs = 10'000;
inline constexpr uint64_t kRequestTimeoutMs = 30'000;
inline constexpr uint64_t kHandshakeTimeoutMs = 10'000;  // of NBD; of netblk/2 from the hello's first byte on
inline constexpr uint64_t kSendStallTimeoutMs = 30'000;
inline constexpr double kMinTimeoutSeconds = 0.1;  // of those that a user may set
inline constexpr double kMaxTimeoutSeconds = 86400;
inline constexpr uint64_t kStoreLockWaitMs = 10'000;
inline constexpr uint64_t kSweepPeriodMs = 250;
inline constexpr uint64_t kDrainTimeoutMs = 30'000;     // of the whole stop
inline constexpr uint64_t kDrainStallTimeoutMs = 5'000;  // of a client that takes no reply during the stop

static_assert(kMaxRequestBytes % kSectorBytes == 0);
static_assert(kSendReplies <= kConnectionSlots && kSendReplies <= kKernelMaxIov);
static_assert(kSendReplies2 * 2 + 2 <= kKernelMaxIov, "a header and data for each, and what is said unasked");
static_assert(kReceiveIdleBytes * 2 < kMaxHandshakeBytes && kMaxHandshakes < kMaxConnections);
static_assert(kReceiveIdleBytes < kReceiveBusyBytes && kReceiveBusyBytes < kConnectionDataBytes);
static_assert(kConnectionFreeBytes < kConnectionDataBytes && kConnectionDataBytes <= kLoopDataBytes);
static_assert(kMaxRequestBytes <= kLoopDataBytes);
static_assert(kMaxPayloadBytes <= kConnectionDataBytes && kMaxPayloadBytes <= kMaxRequestBytes);
static_assert(kMaxRequestBytes <= kMaxBufferBytes && kMaxBufferBytes <= kLoopDataBytes);
static_assert(kNbdAdvertisedBytes <= kMaxNbdPayloadBytes);
static_assert(kMaxNbdOptionBytes <= kReceiveIdleBytes, "an option's data are decoded where they arrived");
static_assert(kReceiveIdleBytes + 2 * kMaxNbdOptionBytes <= 64u << 10, "a handshake's memory: what came, and its replies");
static_assert(kSweepPeriodMs * 2 < kMinHeartbeatMs, "a heartbeat is sent in time by the sweep");
static_assert(kDrainStallTimeoutMs + kSweepPeriodMs < kDrainTimeoutMs);
static_assert(kSweepPeriodMs * 4 <= 1000, "a deadline is noticed within a quarter of a second");

}  // namespace netblk::limits
