// SPDX-License-Identifier: GPL-2.0-only
// Device: the seam where every front end meets every back end (DESIGN law 6).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "block/request.h"
#include "coro/task.h"

namespace netblk::block {

struct Geometry {
  uint64_t size_bytes = 0;
  bool read_only = false;
  bool can_trim = false;
  // Zeroes may be faster than a write of them; a single request may still be answered EOPNOTSUPP.
  bool can_fast_zero = false;
  // Without: kBlockStatus says one extent that is neither hole nor zero, and kCache does nothing; the device itself is
  // not asked.
  bool can_block_status = false;
  bool can_cache = false;
  bool rotational = false;  // a seek costs
  // Writes end inside submit(): their data needs to be stable no longer than that.
  bool writes_inline = false;
  // Request::in_place is understood.
  bool reads_in_place = false;
};

// Which contents these are (DESIGN 4.2, "Generation"): the uuid names the store, the counter moves whenever writes that
// were acknowledged and not flushed may be gone.
struct Generation {
  Id uuid;
  uint64_t counter = 0;
  bool operator==(const Generation&) const = default;
};

// Since the device was opened. A failed request counts as an error and moves no bytes; kCache and kBlockStatus count
// only as errors.
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

  // As it is now: the size may change while the device is open, nothing else does.
  Geometry geometry() const {
    Geometry now = geometry_;
    now.size_bytes = size_bytes();
    return now;
  }
  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_acquire); }

  // Looks whether the storage has grown or shrunk below the device; size_bytes() says it from then on. Thread-safe,
  // cheap enough for once a second.
  virtual void refresh_size() {}

  // Makes the storage at least that large while it is in use; a larger one stays as it is. May block on the disk.
  // EOPNOTSUPP: it has the size that it was made with.
  virtual Status grow(uint64_t size_bytes);

  // A descriptor whose bytes at the device's own offsets are what a READ gives, so that they can be sent without passing
  // user space (splice, sendfile); -1: none, as wherever something must see or delay the data. It belongs to the device.
  // A read past the end of a file that was cut is short, and then an error as in a READ. Such reads are not counted here.
  virtual int read_fd() const { return -1; }

  // Here: a store that lives as long as this process.
  virtual Generation generation() const { return generation_; }

  // A record that the server keeps with the store: who owns it. keep_owners() returns when it is as durable as the store
  // itself (here: in memory); one call at a time. Empty: none was ever kept.
  virtual std::vector<std::byte> owners() const { return owners_; }
  virtual coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record);

  // The moments that kBlockStatus can compare with (Request::since), by name, and one of them; null: there is none of that name.
  virtual std::vector<std::string> bases() const { return {}; }
  virtual std::shared_ptr<const Base> base(std::string_view name) {
    (void)name;
    return nullptr;
  }

  // Validates and starts. Any offset and length in bytes is legal. Never fails by itself: errors come through the request.
  // EINVAL: outside the device, or a length of 0 (but kFlush); EROFS: a change to a read-only device; EOPNOTSUPP: a
  // fast_zero that would not be fast; EIO and others: the store's.
  void submit(Request& request);

  Counters counters() const;

 protected:
  explicit Device(const Geometry& geometry)
      : geometry_(geometry), size_bytes_(geometry.size_bytes), generation_{random_id(), 1} {}

  // Thread-safe. Requests that are beyond a smaller size and were submitted before are the store's to fail.
  void set_size_bytes(uint64_t size_bytes) { size_bytes_.store(size_bytes, std::memory_order_release); }

  // For filters that show a part of the device below: `offset` is the caller's again when the request has ended.
  static void move_range(Request& request, uint64_t by) {
    request.offset += by;
    request.held.shift += by;
  }

  // The request is inside the device and allowed. The completion may be finished at once or later.
  virtual void start(Request& request, Completion completion) = 0;

  // For filters: hands a request on to the device below, without asking its edge again; but what the device below does
  // not know is answered here, too.
  static void forward(Device& below, Request& request, Completion completion) {
    if (!below.answer_for(request, completion)) below.start(request, std::move(completion));
  }

 private:
  // Threads count on lines of their own: two cores that serve one device do not fight for one cache line.
  struct alignas(64) Shard {
    std::atomic<uint64_t> reads{0}, writes{0}, flushes{0}, trims{0}, read_bytes{0}, write_bytes{0}, errors{0};
  };
  static constexpr size_t kShards = 32;
  void count(const Request& request);
  bool answer_for(Request& request, Completion& completion);

  const Geometry geometry_;
  std::atomic<uint64_t> size_bytes_;
  const Generation generation_;
  std::vector<std::byte> owners_;
  std::array<Shard, kShards> shards_;

  friend class Completion;
};

// The word for logs: "read", "write", "flush", "trim", "write-zeroes", "cache", "block-status".
const char* command_text(Command command);

}  // namespace netblk::block
