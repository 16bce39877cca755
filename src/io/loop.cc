// SPDX-License-Identifier: GPL-2.0-only
#include "io/loop.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/check.h"
#include "coro/scope.h"

namespace netblk::io {
namespace {

// Rounds of ready work between two looks at the kernel: one round of completions usually makes one of replies, and
// both belong into one submission; a chain that feeds itself must not starve the others.
constexpr int kRoundsPerPoll = 8;

uint64_t steady_now_ns() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

uint64_t SteadyClock::now_ms() const { return steady_now_ns() / 1'000'000; }
uint64_t SteadyClock::now_ns() const { return steady_now_ns(); }

Loop::Loop(const Clock& clock) : clock_(clock), pacing_(&steady_now_ns) {}

Timer::~Timer() {
  cancel();
  NETBLK_CHECK(!queued, "a timer is destroyed between its firing and its run");
}

void Timer::arm(uint64_t at_ms) {
  cancel();
  at_ms_ = at_ms;
  armed_ = true;
  order_ = loop_.armed_so_far_++;
  loop_.timers_.insert(this);
}

void Timer::cancel() {
  if (!armed_) return;
  armed_ = false;
  loop_.timers_.erase(this);
}

void Loop::post(Posted& message) {
  // The loop may run the message, and end because of it, before this thread has looked at sleeping_: run() waits for
  // posters that are still here.
  posters_.fetch_add(1, std::memory_order_relaxed);
  Posted* head = posted_.load(std::memory_order_relaxed);
  do {
    message.next_posted = head;
  } while (!posted_.compare_exchange_weak(head, &message, std::memory_order_seq_cst));
  // The loop sets sleeping_ before it looks at posted_ a last time: one of the two sides sees the other. The first who
  // finds it asleep wakes it, for all that post until it runs.
  if (sleeping_.load(std::memory_order_seq_cst) && sleeping_.exchange(false, std::memory_order_seq_cst)) wake();
  posters_.fetch_sub(1, std::memory_order_release);
}

void Loop::take_posted() {
  if (posted_.load(std::memory_order_relaxed) == nullptr) return;
  Posted* newest_first = posted_.exchange(nullptr, std::memory_order_seq_cst);
  Posted* oldest_first = nullptr;
  while (newest_first != nullptr) {
    Posted* const next = newest_first->next_posted;
    newest_first->next_posted = oldest_first;
    oldest_first = newest_first;
    newest_first = next;
  }
  while (oldest_first != nullptr) {
    Posted* const next = oldest_first->next_posted;
    ready_.push(*oldest_first);
    oldest_first = next;
  }
}

int64_t Loop::fire_timers() {
  if (timers_.empty()) return -1;
  const uint64_t now = now_ms();
  while (!timers_.empty() && (*timers_.begin())->at_ms_ <= now) {
    Timer& timer = **timers_.begin();
    timers_.erase(timers_.begin());
    timer.armed_ = false;
    if (!timer.queued) ready_.push(timer);
  }
  if (timers_.empty()) return -1;
  return static_cast<int64_t>((*timers_.begin())->at_ms_ - now);
}

// True: there is work. Timers alone are no traffic: a loop that nobody talks to looks once in vain, and then waits.
bool Loop::poll_busily(int64_t timeout_ms) {
  if (busy_poll_us_ == 0 || !in_traffic_) return false;
  uint64_t window_us = busy_poll_us_;
  if (timeout_ms >= 0) window_us = std::min(window_us, static_cast<uint64_t>(timeout_ms) * 1000);
  const uint64_t end_ns = steady_now_ns() + window_us * 1000;
  poll(0);
  while (ready_.empty() && posted_.load(std::memory_order_relaxed) == nullptr) {
    if (has_news()) poll(0);
    if (!ready_.empty()) break;
    if (steady_now_ns() >= end_ns) {
      in_traffic_ = false;
      ++vain_looks_;
      return false;
    }
    // Who is to send the next request may be waiting for this processor.
    ::sched_yield();
  }
  return true;
}

// Nothing is handed to the kernel before: who sends meanwhile finds nobody to wake.
void Loop::rest() {
  // A thread's timers come 50 us late unless it says that it minds.
  if (rests_++ == 0) (void)::prctl(PR_SET_TIMERSLACK, 1);
  const timespec pause{.tv_sec = 0, .tv_nsec = Pacing::kRestUs * 1000};
  ::nanosleep(&pause, nullptr);
}

coro::Task<void> Loop::run_and_stop(Loop& loop, coro::Task<void> main) {
  co_await std::move(main);
  loop.stopped_ = true;
}

void Loop::run(coro::Task<void> main) {
  const coro::ReadyQueue::Owner owner(ready_);
  stopped_ = false;
  enter();
  coro::Scope scope;
  scope.spawn(run_and_stop(*this, std::move(main)));
  for (;;) {
    for (int round = 0; round < kRoundsPerPoll && !ready_.empty(); ++round) {
      ++rounds_;
      ready_.run_batch();
    }
    take_posted();
    if (stopped_ && ready_.empty()) break;
    int64_t timeout_ms = fire_timers();
    if (ready_.empty() && poll_busily(timeout_ms)) continue;
    // A look in vain took its time.
    if (ready_.empty() && busy_poll_us_ != 0) timeout_ms = fire_timers();
    if (!ready_.empty()) {
      timeout_ms = 0;
    } else {
      if (may_rest_ && busy_poll_us_ == 0 && pacing_.should_rest(std::exchange(requests_, 0))) rest();
      sleeping_.store(true, std::memory_order_seq_cst);
      if (posted_.load(std::memory_order_seq_cst) != nullptr) timeout_ms = 0;
    }
    const bool was_idle = ready_.empty();
    poll(timeout_ms);
    sleeping_.store(false, std::memory_order_relaxed);
    if (was_idle) in_traffic_ = !ready_.empty();
  }
  leave();
  while (posters_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
}

}  // namespace netblk::io
