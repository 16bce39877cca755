// SPDX-License-Identifier: GPL-2.0-only
// An operation that is not awaited was never started.
// room: io
// error: ignoring return
#include "coro/task.h"
#include "io/stream.h"

netblk::coro::Task<void> receives(netblk::io::Stream& stream, std::span<std::byte> into) {
#ifdef FAULT
  netblk::io::recv(stream, into);
  co_return;
#else
  const int got = co_await netblk::io::recv(stream, into);
  (void)got;
#endif
}
