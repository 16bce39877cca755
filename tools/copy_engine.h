// SPDX-License-Identifier: GPL-2.0-only
// Copy: moves a disk from one place to another, many requests in flight. What the places are is copy_ends.h's affair.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/loop.h"
#include "pipe_file.h"

namespace netblk::tools {

// Where data lies in a source: from the offset that was asked for up to `end`.
struct Extent {
  bool hole = false;
  uint64_t end = 0;
};

// One of device and pipe is there.
struct CopySource {
  std::string name;  // for messages
  block::Device* device = nullptr;
  PipeFile* pipe = nullptr;
  std::optional<uint64_t> size_bytes;  // nothing: until a pipe's end
  // Empty: the device is asked for its block status, if it has one; otherwise all of it is data.
  std::function<Extent(uint64_t offset)> extent_at;
};

struct CopyTarget {
  std::string name;
  block::Device* device = nullptr;
  PipeFile* pipe = nullptr;
  // Offsets and lengths of requests are multiples of it; the rest of the source's last block becomes zeroes.
  uint32_t block_bytes = 1;
  // It has nothing but zeroes: holes need no request.
  bool fresh = false;
};

struct CopyPlan {
  CopySource source;
  CopyTarget target;
  uint64_t start_at = 0;  // everything before is there already
  // Every so often: what is below `bytes` has been copied and flushed. Empty: no such flushes.
  std::function<void(uint64_t bytes)> on_checkpoint;
  uint64_t checkpoint_ms = 1000;
  // Ten times a second: what is below `bytes`, or beside it already, is copied. True: stop.
  std::function<bool(uint64_t bytes)> on_tick;
};

class Copy {
 public:
  Copy(io::Loop& loop, CopyPlan plan);

  // Ok only after a successful flush of the target. EINTR: on_tick asked for the end; what was copied until then is
  // flushed, and on_checkpoint was told.
  coro::Task<Status> run();

  // Bytes from the start of the source that were read, written, or seen to be holes.
  uint64_t copied_bytes() const { return copied_bytes_; }
  // Bytes that the target did not have to be sent.
  uint64_t hole_bytes() const { return hole_bytes_; }

 private:
  struct Piece {
    uint64_t number = 0;
    uint64_t offset = 0;
    uint64_t length = 0;  // 0: there is no more
    bool hole = false;
    uint64_t end() const { return offset + length; }
  };
  // The workers take their turns at a pipe in the order of the pieces.
  class Turns {
   public:
    coro::Task<void> wait_for(uint64_t number);
    void done();

   private:
    uint64_t next_ = 0;
    std::map<uint64_t, coro::Event*> waiting_;
  };
  struct Tick : io::Timer {
    explicit Tick(Copy& of)
        : Timer(of.loop_, [](coro::Runnable& self) { static_cast<Tick&>(self).copy.tick(); }), copy(of) {}
    Copy& copy;
  };

  coro::Task<void> work();
  coro::Task<void> look_ahead();
  bool must_look();
  void next_extent();
  Piece take();
  coro::Task<bool> fetch(Piece& piece, std::span<std::byte> buffer);
  coro::Task<bool> store(const Piece& piece, std::span<std::byte> buffer);
  coro::Task<bool> store_runs(const Piece& piece, std::span<std::byte> bytes);
  coro::Task<bool> put(uint64_t offset, std::span<std::byte> bytes);
  coro::Task<bool> put_zeroes(uint64_t offset, uint64_t length);
  coro::Task<Status> flush();
  coro::Task<void> checkpoint();
  uint64_t low_mark() const { return in_flight_.empty() ? cursor_ : *in_flight_.begin(); }
  uint64_t padded(uint64_t end) const;
  bool fail(Error error);
  void tick();

  io::Loop& loop_;
  const CopyPlan plan_;
  const uint64_t granule_;  // of holes
  uint64_t cursor_;
  uint64_t next_number_ = 0;
  std::optional<Extent> extent_;  // around the cursor, in whole granules
  // What the device said of its status, from the cursor on. One worker asks, the others wait for it.
  std::deque<Extent> seen_;
  bool looking_ = false;
  uint64_t look_bytes_;
  bool is_blind_ = false;
  std::vector<coro::Event*> lookers_;
  uint64_t pipe_end_ = UINT64_MAX;
  std::set<uint64_t> in_flight_;  // offsets of pieces that were taken and are not done
  Turns reading_, writing_;
  std::optional<Error> error_;
  uint64_t copied_bytes_ = 0;
  uint64_t hole_bytes_ = 0;
  bool ended_ = false;
  bool checkpointing_ = false;
  uint64_t next_checkpoint_ms_ = 0;
  uint64_t checkpointed_ = 0;
  coro::Scope scope_;
  Tick tick_;
};

}  // namespace netblk::tools
