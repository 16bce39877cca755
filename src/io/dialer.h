// SPDX-License-Identifier: GPL-2.0-only
// Dialer: how a client reaches its server, so that a simulator can be the network between them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "io/stream.h"

namespace netblk::io {

class Dialer {
 public:
  virtual ~Dialer() = default;

  // A new connection, for use on `loop`, or why there is none. Called on the thread of `loop`, several at a time; ends by
  // itself soon after give_up_at_ms of the loop's clock (ETIMEDOUT). The dialer outlives its calls.
  virtual coro::Task<Result<std::unique_ptr<Stream>>> dial(Loop& loop, uint64_t give_up_at_ms) = 0;

  // Whom it reaches, for the log: "192.0.2.1:10809".
  virtual std::string peer() const = 0;
};

}  // namespace netblk::io
