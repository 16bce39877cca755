// SPDX-License-Identifier: GPL-2.0-only
// Shard: one loop with its connections. A connection stays where it was put.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "coro/event.h"
#include "coro/scope.h"
#include "io/loop.h"
#include "server/connection.h"
#include "server/exports.h"

namespace netblk::server {

struct ShardOptions {
  // Sets what the transport wants on an accepted socket. Thread-safe.
  void (*prepare_socket)(int fd) = nullptr;
  uint64_t request_timeout_ms = limits::kRequestTimeoutMs;
  uint64_t send_timeout_ms = limits::kSendStallTimeoutMs;
  uint64_t handshake_timeout_ms = limits::kHandshakeTimeoutMs;
};

class Shard {
 public:
  Shard(std::unique_ptr<io::Loop> loop, const ExportTable& exports, const ShardOptions& options,
        std::atomic<uint32_t>& connections);

  io::Loop& loop() { return *loop_; }

  // Thread-safe. Takes over an accepted connection, which is counted in `connections` until it has ended.
  void adopt(io::UniqueFd fd, uint64_t number, Protocol protocol);

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

  coro::Task<void> connection(io::UniqueFd fd, uint64_t number, Protocol protocol);
  void sweep();
  void drained_if_empty();

  std::unique_ptr<io::Loop> loop_;
  const ExportTable& exports_;
  SessionContext context_;
  void (*prepare_socket_)(int fd);
  std::atomic<uint32_t>& connections_;
  coro::Scope scope_;
  std::set<Connection*> open_;
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
