// SPDX-License-Identifier: GPL-2.0-only
#include "coro/ready_queue.h"

namespace netblk::coro {

thread_local constinit ReadyQueue* ReadyQueue::current_ = nullptr;

ReadyQueue::~ReadyQueue() { NETBLK_CHECK(empty(), "a ready queue is destroyed with work in it"); }

size_t ReadyQueue::run_batch() {
  NETBLK_CHECK(current_ == this, "a ready queue is run by a thread that does not own it");
  Runnable* node = head_;
  head_ = nullptr;
  tail_ = nullptr;
  size_t count = 0;
  while (node != nullptr) {
    // Read before the call: run() may destroy the node or queue it again.
    Runnable* const next = node->next;
    node->queued = false;
    node->run(*node);
    node = next;
    ++count;
  }
  return count;
}

}  // namespace netblk::coro
