// SPDX-License-Identifier: GPL-2.0-only
// Op: one operation in flight, and its awaiter.
#pragma once

#include <coroutine>
#include <cstdint>
#include <utility>

#include "base/check.h"
#include "coro/ready_queue.h"

namespace netblk::coro {

// The address of an Op is what the kernel or a thread pool holds: it neither copies nor moves, and it and every
// buffer that it names live until its own completion, cancelled or not.
//
// Protocol: start functions (Stream::recv, File::read, ...) return true when the operation ended at once, with `result`
// set and `run` never called; or false, and then `run` is called once, from the ready queue of the loop that the
// operation was started on. An Op may be started again after that.
struct Op : Runnable {
  explicit Op(Run run_function) : Runnable(run_function) {}

  // Bytes or another count when >= 0; a negative errno value otherwise.
  int32_t result = 0;
  // What the back end says beside the result; for the back end alone.
  uint32_t backend_flags = 0;
  bool in_flight = false;

  bool finish_now(int32_t value) {
    NETBLK_CHECK(!in_flight, "an operation is started while it is in flight");
    result = value;
    return true;
  }
  // owner_count: how many operations are in flight on the object that this one is started on; may be null.
  bool begin(uint32_t* owner_count = nullptr) {
    NETBLK_CHECK(!in_flight && !queued, "an operation is started while it is in flight");
    in_flight = true;
    owner_count_ = owner_count;
    if (owner_count_ != nullptr) ++*owner_count_;
    return false;
  }
  // Called by the loop when it reaps the completion; queues `run`.
  void complete(int32_t value) {
    NETBLK_CHECK(in_flight, "an operation completes twice");
    in_flight = false;
    if (owner_count_ != nullptr) --*owner_count_;
    result = value;
    ReadyQueue::current().push(*this);
  }

 protected:
  ~Op() { NETBLK_CHECK(!in_flight && !queued, "an operation is destroyed while it is in flight"); }

 private:
  uint32_t* owner_count_ = nullptr;
};

// Awaits an operation that `start(Op&)` begins: `const int result = co_await coro::await([&](Op& op) { ... });`
template <class Start>
class [[nodiscard]] Await : private Op {
 public:
  explicit Await(Start start)
      : Op([](Runnable& self) { static_cast<Await&>(self).waiter_.resume(); }), start_(std::move(start)) {}

  bool await_ready() { return start_(static_cast<Op&>(*this)); }
  void await_suspend(std::coroutine_handle<> waiter) { waiter_ = waiter; }
  int32_t await_resume() const { return result; }

 private:
  Start start_;
  std::coroutine_handle<> waiter_;
};

template <class Start>
Await<Start> await(Start start) {
  return Await<Start>(std::move(start));
}

}  // namespace netblk::coro
