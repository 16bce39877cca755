// SPDX-License-Identifier: GPL-2.0-only
// Awaiting consumes the task: it must be an rvalue, so that a second await stands out.
// room: coro
// error: passing .* as .this. argument discards qualifiers|cannot (call|bind)|no matching function|could not convert|await
#include <utility>

#include "coro/task.h"

netblk::coro::Task<void> waits(netblk::coro::Task<void> task) {
#ifdef FAULT
  co_await task;
#else
  co_await std::move(task);
#endif
}
