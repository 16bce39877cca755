// SPDX-License-Identifier: GPL-2.0-only
// Event: one coroutine waits until another part of the same thread sets it.
#pragma once

#include <coroutine>

#include "base/check.h"
#include "coro/ready_queue.h"
#include "coro/task.h"

namespace netblk::coro {

// Auto-reset, one waiter: set() lets one wait() through, now or later; several sets before a wait count as one.
// The waiter must look at its own condition again after it wakes.
class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { NETBLK_CHECK(!waiter_.handle, "an event is destroyed with a coroutine waiting on it"); }

  void set() {
    if (set_) return;
    set_ = true;
    if (waiter_.handle && !waiter_.queued) ReadyQueue::current().push(waiter_);
  }

  auto wait() {
    struct Awaiter {
      Event& event;
      bool await_ready() const { return event.set_; }
      void await_suspend(std::coroutine_handle<> waiter) const {
        NETBLK_CHECK(!event.waiter_.handle, "two coroutines wait on one event");
        event.waiter_.handle = waiter;
      }
      void await_resume() const {
        event.waiter_.handle = nullptr;
        event.set_ = false;
      }
    };
    return Awaiter{*this};
  }

 private:
  bool set_ = false;
  detail::Resumption waiter_;
};

}  // namespace netblk::coro
