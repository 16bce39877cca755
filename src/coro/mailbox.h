// SPDX-License-Identifier: GPL-2.0-only
// Mailbox: how other threads reach the thread that owns a ready queue. They post; they never resume there.
#pragma once

#include "coro/ready_queue.h"

namespace netblk::coro {

// A message from another thread: `run` is called once on the owner's thread, from its ready queue.
struct Posted : Runnable {
  explicit Posted(Run run_function) : Runnable(run_function) {}
  Posted* next_posted = nullptr;
};

class Mailbox {
 public:
  // Thread-safe. The message lives until it ran.
  virtual void post(Posted& message) = 0;

 protected:
  ~Mailbox() = default;
};

}  // namespace netblk::coro
