// SPDX-License-Identifier: GPL-2.0-only
// Device: the seam where every front end meets every back end (DESIGN law 6).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "block/request.h"

namespace netblk::block {

struct Geometry {
  uint64_t size_bytes = 0;
  bool read_only = false;
  bool can_trim = false;
  // Writes end inside submit(): their data needs to be stable no longer than that.
  bool writes_inline = false;
};

// Since the device was opened. A failed request counts as an error and moves no bytes.
struct Counters {
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t flushes = 0;
  uint64_t trims = 0;  // and write-zeroes
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t errors = 0;
};

// Thread-safe: each request is submitted on the thread of its own loop. The device outlives its requests.
class Device {
 public:
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  const Geometry& geometry() const { return geometry_; }

  // Validates and starts. Never fails by itself: errors come through the request. EINVAL: outside the device, or a
  // length of 0 (but kFlush); EROFS: a change to a read-only device; EIO and others: the store's.
  void submit(Request& request);

  Counters counters() const;

 protected:
  explicit Device(const Geometry& geometry) : geometry_(geometry) {}

  // The request is inside the device and allowed. The completion may be finished at once or later.
  virtual void start(Request& request, Completion completion) = 0;

  // For filters: hands a request on to the device below, without asking its edge again.
  static void forward(Device& below, Request& request, Completion completion) {
    below.start(request, std::move(completion));
  }

 private:
  // Threads count on lines of their own: two cores that serve one device do not fight for one cache line.
  struct alignas(64) Shard {
    std::atomic<uint64_t> reads{0}, writes{0}, flushes{0}, trims{0}, read_bytes{0}, write_bytes{0}, errors{0};
  };
  static constexpr size_t kShards = 32;
  void count(const Request& request);

  Geometry geometry_;
  std::array<Shard, kShards> shards_;

  friend class Completion;
};

// The word for logs: "read", "write", "flush", "trim", "write-zeroes".
const char* command_text(Command command);

}  // namespace netblk::block
