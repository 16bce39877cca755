// SPDX-License-Identifier: GPL-2.0-only
// Log: changes become records at the log's end, in groups; a sync makes them durable (docs/volume-format.md, "What is written
// when").
//
// One group is written at a time, on the loop of one whose request is in it, straight from the requests' memory. What comes
// meanwhile is in the next. Requests are answered when their group has been written, in the order of their LSNs.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "block/request.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/codec.h"
#include "store/volume/core.h"
#include "store/volume/fifo.h"
#include "store/volume/request_task.h"
#include "store/volume/space.h"

namespace netblk::store::volume {

class Log {
 public:
  // on_growth: asked on any loop, when the log since the last checkpoint or the table is over its limit, or when a request
  // found no space.
  Log(Core& core, std::function<void()> on_growth);
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;
  ~Log();

  // WRITE, TRIM, WRITE_ZEROES and FLUSH of a VolumeDevice, which is request.held.owner; the completion is in request.held. On the
  // thread of request.loop.
  void submit(block::Request& request);
  void flush(block::Request& request);

  // Appends a record of names of a branch, and makes it durable: its LSN. What was answered before is in front of it.
  coro::Task<Result<uint64_t>> change(io::Loop& loop, uint32_t branch, Change what);
  // What has been written is durable. 0 or errno.
  coro::Task<int> sync(io::Loop& loop);
  // As sync(), for what else is in the file: a sync that begins after the call, even if the log has nothing for it.
  coro::Task<int> sync_file(io::Loop& loop);

 private:
  // A coroutine that waits for a group or a sync; resumed on its own loop.
  struct Waiter : io::Posted {
    explicit Waiter(io::Loop& on)
        : Posted([](coro::Runnable& self) { static_cast<Waiter&>(self).handle.resume(); }), loop(on) {}
    io::Loop& loop;
    std::coroutine_handle<> handle;
    Waiter* next_waiter = nullptr;
    const Change* change = nullptr;
    uint32_t branch = 0;  // that it is of
    bool always = false;  // waits for a sync though the log is durable
    std::optional<Error> error;
    uint64_t lsn = 0;
  };
  struct WaitForGroup;
  struct WaitForSync;
  struct Kick : io::Posted {
    Kick(Log& owner, Run function) : Posted(function), log(owner) {}
    Log& log;
    io::Loop* loop = nullptr;  // of what is scheduled
  };
  static block::Request*& next_request(block::Request& request) { return request.held.next; }
  static Waiter*& next_waiter(Waiter& waiter) { return waiter.next_waiter; }
  using Requests = Fifo<block::Request, next_request>;
  using Waiters = Fifo<Waiter, next_waiter>;

  // What is being written, in memory that stays from group to group.
  struct Group {
    // Parts that follow one another in the file.
    struct Stretch {
      uint64_t offset = 0;
      size_t first_part = 0;
    };
    struct Touched {
      uint64_t segment = 0;
      uint64_t lsn = 0;
    };
    std::vector<Stretch> stretches;
    std::vector<iovec> parts;
    uint64_t end = 0;  // of the last stretch
    uint64_t bytes = 0;
    std::unique_ptr<std::byte[]> headers, edges;
    size_t records = 0, edge_blocks = 0;
    std::unique_ptr<std::byte[]> stored;  // payloads that are not as the requests have them
    size_t stored_bytes = 0;
    std::vector<std::vector<std::byte>> payloads;  // of changes
    std::vector<Touched> touched;
    std::vector<Entry> entries;
    // What changes of names in the group make of them.
    std::optional<Points> points;
    std::optional<std::vector<std::byte>> owners;
    uint64_t rewinds = 0;
    uint64_t time_ns = 0;
    uint64_t durable_lsn = 0;
    bool align = false;

    bool empty() const { return stretches.empty(); }
    void clear();
  };

  // A part of a request: its blocks [first, last), of which the first and the last may be in buffers of the group.
  struct Part {
    const block::Request* request = nullptr;
    const Head* on = nullptr;
    uint64_t offset = 0, end = 0;
    uint64_t first = 0, last = 0;
    std::byte* head = nullptr;
    std::byte* tail = nullptr;

    std::span<const std::byte> block(uint64_t number) const;
  };
  // A record of it.
  struct Planned {
    RecordType type = RecordType::kData;
    uint32_t blocks = 0;
    uint64_t block = 0;
    // Compressed, in the group's memory, with zeroes up to a unit's end; none: as it is.
    std::byte* stored = nullptr;
    uint32_t stored_payload = 0;
    uint8_t flags = 0;
    uint64_t stored_bytes(bool encrypted) const;
  };
  enum class Placed { kYes, kGroupIsFull, kRefused };

  static RequestTask run_group(Log& log, io::Loop& loop);
  static RequestTask run_sync(Log& log, io::Loop& loop);

  uint64_t pause_ms();
  void begin_group();
  coro::Task<void> fill_group(io::Loop& loop, Requests& done, Waiters& changes);
  coro::Task<int> wait_for_merge(io::Loop& loop);
  coro::Task<Placed> place_part(io::Loop& loop, block::Request& request);
  coro::Task<int> read_edges(io::Loop& loop, Part& part);
  bool in_group(uint32_t branch, uint64_t block) const;
  void plan(const Part& part);
  void plan_blocks(const Part& part, uint64_t from, uint64_t until);
  void plan_hollow(RecordType type, uint64_t from, uint64_t until);
  void compress(const Part& part, Planned& planned);
  void place(const Part& part, const Planned& planned, bool first, bool last);
  size_t gather(const Part& part, const Planned& planned, RecordHeader& header, std::span<iovec> payload);
  size_t seal(const Part& part, const Planned& planned, RecordHeader& header, std::span<iovec> payload);
  coro::Task<void> place_change(io::Loop& loop, Waiter& waiter);
  coro::Task<bool> give_up_history(io::Loop& loop);
  uint64_t owners_bytes();
  Status apply_change(const Change& change, Point at);
  coro::Task<int> make_room(io::Loop& loop, std::span<const uint64_t> sizes, Purpose purpose);
  bool fits(uint64_t stored_bytes) const;
  void next_segment(bool continued);
  void begin_stretch();
  void append(RecordHeader& header, std::span<const iovec> payload);
  coro::Task<int> write_group(io::Loop& loop);
  bool publish();
  io::Loop* next_group_loop();
  void schedule(Kick& kick, io::Loop& here, io::Loop& loop);

  void join_sync(io::Loop& here, block::Request& request);
  bool begin_waiting(Waiter& waiter);

  Core& core_;
  const std::function<void()> on_growth_;
  const uint64_t most_blocks_;  // of a record

  // Guarded by core_.mutex.
  Requests pending_;
  Waiters changes_;
  bool group_scheduled_ = false;  // a group is queued on some loop, or written
  Requests sync_requests_;
  Waiters sync_waiters_;
  bool sync_scheduled_ = false;

  // Of whoever runs the group that is scheduled.
  Requests work_;
  Group group_;
  LogPosition at_;
  uint64_t full_since_ = 0;  // the next LSN when a request found no space, if none has been placed since
  std::vector<uint64_t> next_segments_;  // taken for what is being placed
  std::vector<Planned> plan_;
  std::optional<Cipher::Use> sealing_;  // the key of this opening's records
  Compressor compressor_;
  std::vector<std::byte> gathered_;  // blocks that do not follow one another in memory
  std::vector<uint64_t> sizes_;
  std::vector<Entry> gone_;
  bool stirred_ = false;
  uint64_t pause_debt_us_ = 0;

  Kick group_kick_;
  Kick sync_kick_;
};

}  // namespace netblk::store::volume
