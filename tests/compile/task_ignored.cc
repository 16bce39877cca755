// SPDX-License-Identifier: GPL-2.0-only
// A task that is neither awaited nor spawned is a mistake: it is lazy.
// room: coro
// error: ignoring return.*a task does nothing until it is awaited
#include "coro/scope.h"
#include "coro/task.h"

netblk::coro::Task<void> work() { co_return; }

netblk::coro::Task<void> caller() {
#ifdef FAULT
  work();
#else
  co_await work();
#endif
}
