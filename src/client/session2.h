// SPDX-License-Identifier: GPL-2.0-only
// Session2: the client's half of a netblk/2 session: slots, links, replay, fences, generation and loss.
// On one loop's thread, with a dialer for its network: the simulator runs this very code.
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
#include "client/link2.h"
#include "client/netblk2.h"
#include "client/slots2.h"
#include "client/timekeeper.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"
#include "proto/netblk/codec2.h"
#include "proto/netblk/compress.h"

namespace netblk::client {

// Of what is sent in a hello and may be in force after it.
std::vector<proto::Feature2> offered_features(const Options2& options);
// Null, or what of a welcome that is OK makes no sense (protocol/netblk.md, "Welcome").
std::optional<Error> unsound(const proto::Welcome2& welcome, const std::vector<proto::Feature2>& offered);
Terms2 terms_of(const proto::Welcome2& welcome);
Session2Info info_of(const proto::Welcome2& welcome);
// What a refused welcome says.
Error refusal(const proto::Welcome2& welcome);

class Session2 {
 public:
  // options are sound (client_id is not zero, counts are in their ranges): checked.
  Session2(io::Loop& loop, io::Dialer& dialer, const Options2& options, Random random);
  // After open() failed, or close() or drop() ended.
  ~Session2();

  coro::Task<Status> open();
  coro::Task<void> close();
  coro::Task<void> drop();

  // The request has its completion in `held`, is inside the device and whole blocks. On the loop's thread.
  void submit(block::Request& request);

  // Called at once with the size of now, and on the loop's thread with each later one: under the session's lock, so it
  // only notes it. Thread-safe, so that whoever has opened a session misses none.
  void watch_size(std::function<void(uint64_t)> on_size) {
    const std::lock_guard lock(mutex_);
    on_size_ = std::move(on_size);
    on_size_(info_.size_bytes);
  }

  io::Loop& loop() { return loop_; }
  // Thread-safe.
  Session2Info info() const;
  Status2 status() const;
  State state() const { return state_.load(std::memory_order_relaxed); }
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  void reset_lost();

 private:
  friend class Link2;

  static constexpr unsigned kNoLink = ~0u;
  static constexpr uint64_t kSweepMs = 100;
  // A link is given more until it is this far ahead of the one with the least: batches stay large.
  static constexpr uint64_t kSpreadLoad = 128u << 10;
  // A connection that lived longer than this is made again at once.
  static constexpr uint64_t kSoundMs = 1'000;

  struct Sweep : io::Timer {
    explicit Sweep(Session2& of)
        : Timer(of.loop_, [](coro::Runnable& self) { static_cast<Sweep&>(self).session.sweep(); }), session(of) {}
    Session2& session;
  };

  // ---- for links
  bool was_welcomed() const { return known_; }
  bool blocked() const { return fences_ > 0; }
  bool says_goodbye() const { return draining_; }
  void prefer(Link2& link) { preferred_ = &link; }
  // Gives the slot its sequence number and cookie, unless it has them from an earlier connection.
  void number(Slot2& slot);
  // The one who asked is gone, and the server has not heard of it: the slot is free again.
  bool withdrawn(uint32_t slot);
  void answered(uint32_t slot, int error);
  bool resized(uint64_t size_bytes);
  void goodbye_came() { closing_wake_.set(); }

  // ---- links (session2.cc)
  coro::Task<void> keep(Link2& link);
  coro::Task<bool> its_turn(Link2& link);
  coro::Task<Result<Terms2>> connect(Link2& link);
  bool may_connect(const Link2& link) const;
  void load_for_greeting(Link2& link);
  void ended(Link2& link);
  void failed(Link2& link, const Error& error);
  void back_off(Link2& link);
  void wake_links();
  void set_fence(Link2& link, bool on);
  bool usable() const;
  coro::Task<void> stop();

  // ---- welcome (session2_welcome.cc)
  uint32_t asked_slots() const;
  proto::Hello2 hello_of(const Link2& link);
  coro::Task<Result<Terms2>> adopt(Link2& link, const proto::Welcome2& welcome);
  std::optional<Error> breaks_session(const proto::Welcome2& welcome) const;
  Error refused(const proto::Welcome2& welcome);
  coro::Task<void> reset_others(const Link2& but);
  void note_generation(const proto::Welcome2& welcome);
  void inherit(const Link2& link);
  void set_size(uint64_t size_bytes);

  // ---- requests
  class Bulk;
  void pump();
  void slice_waiting();
  Link2* pick();
  void assign(uint32_t slot);
  void requeue();
  void pop_waiting();
  void end_part(block::Request& request, int error);
  void finish(block::Request& request, int error);
  void give_up_slot(uint32_t slot, int error);
  void end_all(int error);
  void end_waiting(int error);
  uint64_t age_ms(block::Request& request, uint64_t now_ms) const;
  uint64_t oldest_since_ns();
  void arm_sweep();
  void sweep();
  void expire(uint64_t now_ms);
  void give_up(std::string why);
  void finish_giving_up();

  void set_state(State state);
  void set_last_error(const std::string& text);
  uint64_t unflushed() const { return acknowledged_.load() - flushed_.load(); }

  io::Loop& loop_;
  io::Dialer& dialer_;
  const Options2 options_;
  const Random random_;
  const std::vector<proto::Feature2> offered_;
  proto::Compressor compressor_;
  proto::CompressionLuck luck_;

  Slots2 slots_;
  std::vector<std::unique_ptr<Link2>> links_;
  Link2* preferred_ = nullptr;
  Link2* greeting_ = nullptr;  // hellos go out one at a time: each knows what the one before has found
  unsigned fences_ = 0;        // links with must_fence
  unsigned up_ = 0;            // links that are up
  coro::Scope scope_;
  coro::Event others_ended_;
  coro::Event opened_;
  coro::Event closing_wake_;
  std::optional<Status> outcome_;  // of open()
  uint64_t open_until_ms_ = 0;

  // The session, as last told. known_: a welcome has told the store, which must stay the same.
  bool known_ = false;
  Id session_id_;  // chosen here, for the session's whole life
  uint64_t epoch_ = 0;
  uint64_t cookie_ = 0;
  block::Generation generation_;
  uint32_t block_bytes_ = 0;
  uint32_t max_payload_bytes_ = 0;
  unsigned max_links_ = 1;
  uint64_t size_bytes_ = 0;

  // Requests. Those that wait for slots are a queue through Held::next; only its head may have slots already.
  block::Request* waiting_ = nullptr;
  block::Request* last_waiting_ = nullptr;
  SlotList unassigned_;  // sliced, and no link is up
  uint64_t requests_ = 0;
  unsigned bulk_ = 0;
  Sweep sweep_;
  uint64_t dead_since_ms_ = 0;  // since when requests wait and nothing serves them; 0: all is well
  uint64_t close_at_ms_ = 0;

  bool draining_ = false;   // close() has begun: no new requests
  bool closing_ = false;    // links end
  bool fatal_ = false;      // ESTALE: no further attempt
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
  Session2Info info_;
  std::string last_error_;
  std::string lost_reason_;
  std::function<void(uint64_t)> on_size_;
};

// While slots end in numbers, queues of them are stale: they are made anew at its end, and only then filled.
class Session2::Bulk {
 public:
  explicit Bulk(Session2& session) : session_(session) { ++session_.bulk_; }
  Bulk(const Bulk&) = delete;
  Bulk& operator=(const Bulk&) = delete;
  ~Bulk() {
    if (--session_.bulk_ > 0) return;
    session_.requeue();
    session_.pump();
  }

 private:
  Session2& session_;
};

}  // namespace netblk::client
