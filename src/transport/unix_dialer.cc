// SPDX-License-Identifier: GPL-2.0-only
#include "transport/unix_dialer.h"

#include <cerrno>

#include "transport/unix.h"

namespace netblk::transport {

namespace {
constexpr uint64_t kBusyPauseMs = 5;
}  // namespace

// A unix socket is connected at once or not at all: only a full queue is waited for, by asking again.
coro::Task<Result<std::unique_ptr<io::Stream>>> UnixDialer::dial(io::Loop& loop, uint64_t give_up_at_ms) {
  for (;;) {
    auto connected = unix_connect(path_, 0);
    if (connected) co_return loop.make_stream(std::move(connected).value());
    if (connected.error().code != ETIMEDOUT) co_return std::move(connected).error();
    if (loop.now_ms() >= give_up_at_ms) co_return make_error(ETIMEDOUT, "cannot connect to {}: no answer in time", peer());
    io::SleepUntil pause(loop, loop.now_ms() + kBusyPauseMs);
    co_await pause;
  }
}

}  // namespace netblk::transport
