// SPDX-License-Identifier: GPL-2.0-only
// Data buffers of request slots, and the budget of bytes that a loop's connections hold.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "coro/event.h"

namespace netblk::server {

class BufferPool;

// Memory for one request's data, aligned to 4096 bytes (so that direct I/O takes it). Goes back to its pool.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : pool_(other.pool_), data_(std::exchange(other.data_, nullptr)), size_bytes_(other.size_bytes_) {}
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { reset(); }

  std::byte* data() const { return data_; }
  uint32_t size_bytes() const { return size_bytes_; }
  void reset();

 private:
  friend class BufferPool;
  Buffer(BufferPool& pool, std::byte* data, uint32_t size_bytes)
      : pool_(&pool), data_(data), size_bytes_(size_bytes) {}
  BufferPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  uint32_t size_bytes_ = 0;
};

// One thread's. Buffers of up to 1 MiB are kept for reuse, limits::kBufferCacheBytes at most; larger ones are mapped and
// unmapped each time.
class BufferPool {
 public:
  BufferPool() = default;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool();

  // size_bytes: 1 to limits::kMaxBufferBytes. The contents are whatever was there: the caller overwrites all of it
  // before anyone else sees it.
  Buffer take(uint32_t size_bytes);

  // Buffers that are out, and bytes that are kept for reuse.
  uint64_t taken() const { return taken_; }
  uint64_t cached_bytes() const { return cached_bytes_; }
  // Gives what is kept back to the system.
  void trim();

 private:
  friend class Buffer;
  static constexpr unsigned kSmallestShift = 12;
  static constexpr unsigned kLargestShift = 20;
  static unsigned shift_for(uint32_t size_bytes);
  void give_back(std::byte* data, uint32_t size_bytes);

  std::array<std::vector<std::byte*>, kLargestShift - kSmallestShift + 1> free_;
  uint64_t cached_bytes_ = 0;
  uint64_t taken_ = 0;
};

// Bytes that the connections of one loop hold beyond their free ones. The smallest of those that wait and fit goes first,
// so that a few large requests do not hold up the others, but no one is overtaken for ever.
class DataBudget {
 public:
  // True: taken. False: `waiter` is set when they have been taken for it.
  bool take(uint64_t bytes, coro::Event& waiter);
  void give_back(uint64_t bytes);

  // Somebody waits.
  bool contended() const { return !waiting_.empty(); }

 private:
  struct Waiting {
    uint64_t bytes;
    coro::Event* waiter;
    uint32_t overtaken;
  };
  bool fits(uint64_t bytes) const { return held_ == 0 || held_ + bytes <= limits::kLoopDataBytes; }

  uint64_t held_ = 0;
  std::deque<Waiting> waiting_;  // oldest first
};

}  // namespace netblk::server
