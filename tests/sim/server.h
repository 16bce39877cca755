// SPDX-License-Identifier: GPL-2.0-only
// SimServer: the server's own session code on a simulated host, whose process can be killed, stopped and started, and
// whose machine can lose its power.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "coro/scope.h"
#include "server/connection.h"
#include "server/exports.h"
#include "sim/disk.h"
#include "sim/network.h"
#include "sim/sim_loop.h"
#include "sim/world.h"

namespace netblk::sim {

class SimServer {
 public:
  SimServer(World& world, SimLoop& loop, Network& network, Disk& disk);
  SimServer(const SimServer&) = delete;
  SimServer& operator=(const SimServer&) = delete;
  ~SimServer();

  Host& host() { return host_; }
  bool running() const { return process_ != nullptr; }

  // A process opens the store and listens.
  void start();
  // kill -9: its connections end, its requests end in part or not at all, and nobody hears a reply any more. `power`: of
  // the whole host: no connection's peer hears of it, and what was not flushed may be lost.
  void kill(bool power);
  // The host is on again: what peers still send to its old connections is answered by a reset.
  void host_is_back();
  // SIGTERM: what was accepted is answered, then the store is closed clean.
  coro::Task<void> stop();

  // Until every process that was killed has come to its end; they have no effect meanwhile.
  coro::Task<void> join();

 private:
  struct Process;
  void reap();

  World& world_;
  SimLoop& loop_;
  Network& network_;
  Disk& disk_;
  Host host_;
  uint64_t next_process_ = 1;
  std::unique_ptr<Process> process_;
  std::vector<std::unique_ptr<Process>> dead_;
};

}  // namespace netblk::sim
