// SPDX-License-Identifier: GPL-2.0-only
// NbdSession: an export of an NBD server over one or several connections: in-flight table, reconnect, replay and loss.
// On one loop's thread, with a dialer for its network.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/request.h"
#include "client/nbd.h"
#include "client/nbd_link.h"
#include "client/nbd_slots.h"
#include "client/timekeeper.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"

namespace netblk::client {

class NbdSession {
 public:
  // options are sound (counts are in their ranges): checked.
  NbdSession(io::Loop& loop, io::Dialer& dialer, const NbdOptions& options, Random random);
  // After open() failed, or close() ended.
  ~NbdSession();

  coro::Task<Status> open();
  coro::Task<void> close();

  // The request has its completion in `held`, is inside the device, whole blocks, and of a kind that the export has. On
  // the loop's thread.
  void submit(block::Request& request);

  // Called at once with the size of now, and on the loop's thread with each later one: under the session's lock, so it
  // only notes it. Thread-safe, so that whoever has opened a session misses none.
  void watch_size(std::function<void(uint64_t)> on_size) {
    const std::lock_guard lock(mutex_);
    on_size_ = std::move(on_size);
    on_size_(info_.found.size_bytes);
  }

  io::Loop& loop() { return loop_; }
  // Thread-safe.
  NbdInfo info() const;
  ClientStatus status() const;
  State state() const { return state_.load(std::memory_order_relaxed); }
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  void reset_lost();

 private:
  friend class NbdLink;

  static constexpr unsigned kNoLink = ~0u;
  static constexpr uint64_t kSweepMs = 100;
  // A link is given more until it is this far ahead of the one with the least: batches stay large.
  static constexpr uint64_t kSpreadLoad = 128u << 10;
  // A connection that lived longer than this is made again at once.
  static constexpr uint64_t kSoundMs = 1'000;
  // A request that was on so many connections when the server's nonsense ended them is given up.
  static constexpr uint8_t kMaxFaults = 3;

  struct Sweep : io::Timer {
    explicit Sweep(NbdSession& of)
        : Timer(of.loop_, [](coro::Runnable& self) { static_cast<Sweep&>(self).session.sweep(); }), session(of) {}
    NbdSession& session;
  };

  // ---- for links
  void prefer(NbdLink& link) { preferred_ = &link; }
  void sending(NbdSlot& slot, uint32_t number, unsigned link);
  // The one who asked is gone, and the server has not heard of it; or it must not be sent any more: the slot is free.
  bool withdrawn(uint32_t slot);
  void answered(uint32_t slot, int error);

  // ---- links
  coro::Task<void> keep(NbdLink& link);
  coro::Task<bool> its_turn(NbdLink& link);
  coro::Task<Result<proto::NbdExport>> connect(NbdLink& link);
  Status adopt(NbdLink& link, const proto::NbdExport& found);
  std::optional<Error> is_another(const proto::NbdExport& found) const;
  void set_lost();
  bool may_connect(const NbdLink& link) const;
  void ended(NbdLink& link, const Error& why);
  void failed(NbdLink& link, const Error& error);
  void back_off(NbdLink& link);
  void wake_links();
  coro::Task<void> stop();

  // ---- requests
  void pump();
  void slice_waiting();
  void slice(block::Request& request, NbdSlot& slot);
  bool needs_flush(const block::Request& request) const;
  NbdLink* pick();
  void assign(uint32_t slot);
  void requeue();
  void pop_waiting();
  void push_waiting(block::Request& request);
  void end_part(block::Request& request, int error);
  void finish(block::Request& request, int error);
  void end_slot(uint32_t slot, int error);
  void end_all(int error);
  uint64_t age_ms(block::Request& request, uint64_t now_ms) const;
  uint64_t oldest_since_ns();
  void arm_sweep();
  void sweep();
  void expire(uint64_t now_ms);
  void give_up(std::string why);
  void finish_giving_up();

  bool has(unsigned flag) const { return known_->has(flag); }
  bool refuses(const block::Request& request) const;
  void set_state(State state);
  void set_last_error(const std::string& text);
  uint64_t unflushed() const { return acknowledged_.load() - flushed_.load(); }

  io::Loop& loop_;
  io::Dialer& dialer_;
  const NbdOptions options_;
  const Random random_;

  NbdSlots slots_;
  std::vector<std::unique_ptr<NbdLink>> links_;
  NbdLink* preferred_ = nullptr;
  unsigned up_ = 0;  // links that are up
  coro::Scope scope_;
  coro::Event opened_;
  coro::Event closing_wake_;
  std::optional<Status> outcome_;  // of open()

  // The export as it was first told; its size as last told.
  std::optional<proto::NbdExport> known_;

  // Requests. Those that wait for slots are a queue through Held::next; only its head may have slots already.
  block::Request* waiting_ = nullptr;
  block::Request* last_waiting_ = nullptr;
  NbdSlotList unassigned_;  // sliced, and no link is up
  uint64_t requests_ = 0;
  // While slots end in numbers, queues of them are stale: they are made anew after, and only then filled.
  bool bulk_ = false;
  Sweep sweep_;
  uint64_t dead_since_ms_ = 0;  // since when requests wait and nothing serves them; 0: all is well
  uint64_t close_at_ms_ = 0;

  bool draining_ = false;   // close() has begun: no new requests
  bool closing_ = false;    // links end
  bool fatal_ = false;      // another export, or open() failed: no further attempt
  bool giving_up_ = false;  // connections end, then all requests

  // Read by any thread.
  std::atomic<State> state_{State::kConnecting};
  std::atomic<bool> lost_{false};
  std::atomic<unsigned> shown_up_{0};
  std::atomic<uint64_t> reconnects_{0}, replayed_{0}, timed_out_{0};
  // Changes without FUA that were acknowledged, ever; and how many of them a successful flush covers.
  std::atomic<uint64_t> acknowledged_{0}, flushed_{0};
  Timekeeper times_;
  mutable std::mutex mutex_;  // a leaf: guards what follows
  NbdInfo info_;
  std::string last_error_;
  std::string lost_reason_;
  std::function<void(uint64_t)> on_size_;
};

}  // namespace netblk::client
