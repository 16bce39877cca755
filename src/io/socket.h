// SPDX-License-Identifier: GPL-2.0-only
// What both back ends do with a descriptor in the same way.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "io/op.h"

namespace netblk::io {

void set_nonblocking(int fd, bool on);

// Ends a connection at once, with RST where the transport knows it: what is in flight on it fails, what was not
// delivered is thrown away, and the peer reads ECONNRESET.
void abort_now(int fd);

// A receive that does not wait: bytes, 0 at the end, or a negative errno value (-EAGAIN when nothing is there).
int32_t recv_now(int fd, std::span<std::byte> into);

// A send that does not wait: bytes sent, or a negative errno value (-EAGAIN when nothing fits). more: something follows at
// once, and may share a packet.
int32_t send_now(int fd, std::span<const iovec> parts, bool more = false);

// A send of a file's bytes that does not wait for the peer: bytes, 0 at the file's end, or a negative errno value.
int32_t send_file_now(int socket, int fd, uint64_t offset, size_t bytes);

// Fills a msghdr for a gathered send.
msghdr gathered(std::span<const iovec> parts);

// A read that does not wait for storage (RWF_NOWAIT): bytes, or a negative errno value; -EAGAIN when it would wait or
// the file system cannot tell.
int32_t read_now(int fd, std::span<std::byte> into, uint64_t offset, bool in_memory = false);
int32_t read_vector_now(int fd, std::span<const iovec> into, uint64_t offset, bool in_memory = false);
// Of a file system that lies in memory (tmpfs): it knows no reading without waiting, and does not wait.
bool is_in_memory(int fd);

// Buffered writes of at most this many bytes run on the calling thread: they are a copy into the page cache, and
// handing a small one to another thread costs more than the copy. The price: a write that the kernel throttles, or that
// must first read the rest of its page, holds up its loop for that long.
inline constexpr size_t kInlineWriteBytes = 1u << 20;

// A plain positioned write on the calling thread.
int32_t write_now(int fd, std::span<const std::byte> from, uint64_t offset);
int32_t write_vector_now(int fd, std::span<const iovec> from, uint64_t offset);
size_t total_bytes(std::span<const iovec> parts);

// Modes of fallocate(2) that File::punch_hole(), zero_range() and allocate() stand for.
inline constexpr int kPunchHoleMode = 0x02 | 0x01;  // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
inline constexpr int kZeroRangeMode = 0x10 | 0x01;  // FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
inline constexpr int kAllocateMode = 0x01;          // FALLOC_FL_KEEP_SIZE

// fallocate: 0, or -EOPNOTSUPP where the storage cannot, or another negative errno value.
int32_t fallocate_now(int fd, int mode, uint64_t offset, uint64_t length);

}  // namespace netblk::io
