// SPDX-License-Identifier: GPL-2.0-only
// Shard: one loop with its connections. A connection stays where it was put.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "coro/event.h"
#include "coro/scope.h"
#include "io/loop.h"
#include "server/connection.h"
#include "server/exports.h"
#include "server/gate.h"
#include "server/refusal_log.h"

namespace netblk::server {

struct Timeouts {
  uint64_t request_ms = limits::kRequestTimeoutMs;
  uint64_t send_ms = limits::kSendStallTimeoutMs;
  uint64_t handshake_ms = limits::kHandshakeTimeoutMs;
};

// What the shards of one server share, and outlives them; all of it is thread-safe.
struct ShardContext {
  const ExportTable& exports;
  Gate& gate;
  RefusalLog& refusals;
  // Sets what the transport wants on an accepted socket of the internet.
  void (*prepare_socket)(int fd) = nullptr;
  // A connection has ended; on its shard's thread.
  std::function<void()> on_end;
};

class Shard {
 public:
  Shard(std::unique_ptr<io::Loop> loop, ShardContext& shared, const Timeouts& timeouts);

  io::Loop& loop() { return *loop_; }

  // Thread-safe. Takes over an accepted connection, which has passed the gate.
  void adopt(io::UniqueFd fd, uint64_t number, Protocol protocol);

  // Thread-safe: closes that connection, unless its handshake was over just now.
  void shed(uint64_t number);

  // Thread-safe: for what begins from now on.
  void set_timeouts(const Timeouts& timeouts);

  // Thread-safe: see io::Loop::set_busy_poll_us().
  void set_busy_poll_us(uint32_t microseconds);

  // Thread-safe: every connection stops reading, answers what it accepted and closes; new ones are closed at once.
  void drain();

  // Thread-safe: looks at once whether an export was closed.
  void look_at_exports();

  // Thread-safe: lets serve() end, after every shard has drained: the stores' completions cross threads until then.
  void stop();

  // Runs connections on the calling thread's loop until stop(). `on_drained` is called there after a drain() when the
  // last connection has ended.
  coro::Task<void> serve(std::function<void()> on_drained);

 private:
  struct Adoption;
  struct Order;

  void order(std::function<void(Shard&)> what);
  coro::Task<void> connection(io::UniqueFd fd, uint64_t number, Protocol protocol);
  void sweep();
  void drained_if_empty();

  std::unique_ptr<io::Loop> loop_;
  ShardContext& shared_;
  SessionContext context_;
  coro::Scope scope_;
  std::map<uint64_t, Connection*> open_;  // by number
  coro::Event stop_event_;
  std::function<void()> on_drained_;
  size_t live_ = 0;  // connections that have not ended
  bool draining_ = false;
  unsigned quiet_sweeps_ = 0;  // without a buffer in use

  struct Sweep : io::Timer {
    explicit Sweep(Shard& owner);
    Shard& shard;
  };
  Sweep sweep_;
};

}  // namespace netblk::server
