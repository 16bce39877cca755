// SPDX-License-Identifier: GPL-2.0-only
// Loop: one thread's scheduler: a ready queue, timers, a mailbox for other threads, and one source of completions
// (a ring, or epoll with threads).
#pragma once

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "coro/mailbox.h"
#include "coro/ready_queue.h"
#include "coro/task.h"
#include "io/clock.h"
#include "io/fd.h"
#include "io/file.h"
#include "io/pacing.h"
#include "io/stream.h"

namespace netblk::io {

class Loop;

// A timer of one loop. `run` is called from the ready queue after the time has come. Destroying it cancels it.
class Timer : public coro::Runnable {
 public:
  Timer(Loop& loop, Run run_function) : Runnable(run_function), loop_(loop) {}
  ~Timer();

  // Fires once, at or soon after the clock reads at_ms. Arming again moves it.
  void arm(uint64_t at_ms);
  void cancel();
  bool armed() const { return armed_; }

 private:
  friend class Loop;
  Loop& loop_;
  uint64_t at_ms_ = 0;
  uint64_t order_ = 0;  // of the arming: timers of one millisecond fire in it
  bool armed_ = false;
};

using coro::Posted;

class Loop : public coro::Mailbox {
 public:
  explicit Loop(const Clock& clock);
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  virtual ~Loop() = default;

  // Runs the task and all that it starts on the calling thread, until the task has ended.
  void run(coro::Task<void> main);

  void post(Posted& message) final;

  const Clock& clock() const { return clock_; }
  uint64_t now_ms() const { return clock_.now_ms(); }
  uint64_t now_ns() const { return clock_.now_ns(); }

  // Before the loop waits for the kernel it looks again and again for so long, if the last look brought something: what
  // comes meanwhile costs no wake-up. 0, as it begins: never. Before run(), or on the loop's thread.
  void set_busy_poll_us(uint32_t microseconds) { busy_poll_us_ = microseconds; }
  // How often it has looked for nothing, and went to wait; for tests.
  uint64_t vain_looks() const { return vain_looks_; }

  // From now on the loop may rest for some microseconds (pacing.h) while requests of one client after another are counted.
  // Before run(), or on the loop's thread. Not while it polls busily.
  void allow_rests() { may_rest_ = true; }
  void count_request() { ++requests_; }
  uint64_t rests() const { return rests_; }

  // Which round of ready work this is: what came in one receive runs in one round. Loop's thread only.
  uint64_t round() const { return rounds_; }

  // The descriptor belongs to the result, which sets its O_NONBLOCK as its back end needs it.
  virtual std::unique_ptr<Stream> make_stream(UniqueFd fd) = 0;
  virtual std::unique_ptr<Listener> make_listener(UniqueFd fd) = 0;

  // What serves this loop and which features it found, for the log: "io_uring (defer_taskrun, ...)".
  virtual std::string description() const = 0;

 protected:
  // Hands started operations to the kernel, waits for at least one completion, a wake() or the time (timeout_ms < 0:
  // no limit; 0: do not wait), and queues every completion that is there before any of them runs.
  virtual void poll(int64_t timeout_ms) = 0;
  // Without a system call: whether poll(0) may find something. An operation that was started has been handed over.
  virtual bool has_news() const { return true; }
  // Thread-safe: ends a poll that waits, or the next one.
  virtual void wake() = 0;
  // Called on the loop's thread before the first poll and after the last.
  virtual void enter() {}
  virtual void leave() {}

 private:
  friend class Timer;
  static coro::Task<void> run_and_stop(Loop& loop, coro::Task<void> main);
  void take_posted();
  int64_t fire_timers();
  bool poll_busily(int64_t timeout_ms);
  void rest();

  const Clock& clock_;
  coro::ReadyQueue ready_;
  // By time, then by the order of arming, never by address: a simulated run repeats exactly.
  struct Earlier {
    bool operator()(const Timer* a, const Timer* b) const {
      return a->at_ms_ != b->at_ms_ ? a->at_ms_ < b->at_ms_ : a->order_ < b->order_;
    }
  };
  std::set<Timer*, Earlier> timers_;
  uint64_t armed_so_far_ = 0;
  std::atomic<Posted*> posted_{nullptr};
  std::atomic<bool> sleeping_{false};
  std::atomic<unsigned> posters_{0};  // threads inside post()
  bool stopped_ = false;
  uint64_t rounds_ = 0;
  uint32_t busy_poll_us_ = 0;
  bool in_traffic_ = false;  // the last poll brought something
  uint64_t vain_looks_ = 0;
  bool may_rest_ = false;
  uint64_t requests_ = 0;  // since pacing_ was asked
  uint64_t rests_ = 0;
  Pacing pacing_;
};

// The loop behind a mailbox. Rooms without I/O know a loop as its mailbox; every mailbox of this process is a loop.
inline Loop& loop_of(coro::Mailbox& mailbox) { return static_cast<Loop&>(mailbox); }

// Makes loops, and files that all of them can use.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual Result<std::unique_ptr<Loop>> make_loop(const Clock& clock) = 0;

  // `direct`: the descriptor was opened with O_DIRECT, so that its page cache says nothing about blocking.
  virtual std::unique_ptr<File> make_file(UniqueFd fd, bool direct) = 0;
};

// co_await sleep_until(loop, at_ms)
class [[nodiscard]] SleepUntil {
 public:
  SleepUntil(Loop& loop, uint64_t at_ms)
      : timer_(loop, [](coro::Runnable& self) { static_cast<Alarm&>(self).waiter.resume(); }), at_ms_(at_ms) {}
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    timer_.waiter = waiter;
    timer_.arm(at_ms_);
  }
  void await_resume() const {}

 private:
  struct Alarm : Timer {
    using Timer::Timer;
    std::coroutine_handle<> waiter;
  };
  Alarm timer_;
  uint64_t at_ms_;
};

}  // namespace netblk::io
