// SPDX-License-Identifier: GPL-2.0-only
// A task is one frame with one owner.
// room: coro
// error: use of deleted function|cannot bind
#include <utility>

#include "coro/task.h"

netblk::coro::Task<void> twin(netblk::coro::Task<void> task) {
#ifdef FAULT
  netblk::coro::Task<void> other = task;
#else
  netblk::coro::Task<void> other = std::move(task);
#endif
  co_await std::move(other);
}
