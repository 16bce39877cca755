// SPDX-License-Identifier: GPL-2.0-only
// The ready queue: the one place from which work is resumed (DESIGN 3, coroutine rules).
//
// Nothing resumes a coroutine or calls a completion from inside another: whoever makes something runnable pushes it
// here, and the loop that owns the queue runs it later, in order. That keeps the stack flat and ownership plain.
#pragma once

#include <cstddef>

#include "base/check.h"

namespace netblk::coro {

// A node that its owner embeds in a frame, an operation or a request slot. It neither copies nor moves while queued,
// and it may be destroyed by its own run().
struct Runnable {
  using Run = void (*)(Runnable&);

  explicit Runnable(Run run_function) : run(run_function) {}
  Runnable(const Runnable&) = delete;
  Runnable& operator=(const Runnable&) = delete;

  Run run;
  Runnable* next = nullptr;
  bool queued = false;
};

// Owned by one thread. Pushing from another thread is a programmer error and aborts; other threads post (io::Loop).
class ReadyQueue {
 public:
  ReadyQueue() = default;
  ReadyQueue(const ReadyQueue&) = delete;
  ReadyQueue& operator=(const ReadyQueue&) = delete;
  ~ReadyQueue();

  // Appends a node that is not queued. The node must stay until it ran.
  void push(Runnable& node) {
    NETBLK_CHECK(current_ == this, "a ready queue is used from a thread that does not own it");
    NETBLK_CHECK(!node.queued, "a runnable is queued twice");
    node.queued = true;
    node.next = nullptr;
    (tail_ == nullptr ? head_ : tail_->next) = &node;
    tail_ = &node;
  }

  bool empty() const { return head_ == nullptr; }

  // Runs what is queued now, not what that queues in turn; returns how many ran.
  size_t run_batch();

  // The calling thread's queue; aborts where there is none.
  static ReadyQueue& current() {
    NETBLK_CHECK(current_ != nullptr, "this thread has no ready queue");
    return *current_;
  }

  // Makes a queue the calling thread's own for as long as the object lives. Nests.
  class Owner {
   public:
    explicit Owner(ReadyQueue& queue) : previous_(current_) { current_ = &queue; }
    Owner(const Owner&) = delete;
    Owner& operator=(const Owner&) = delete;
    ~Owner() { current_ = previous_; }

   private:
    ReadyQueue* previous_;
  };

 private:
  static thread_local constinit ReadyQueue* current_;
  Runnable* head_ = nullptr;
  Runnable* tail_ = nullptr;
};

}  // namespace netblk::coro
