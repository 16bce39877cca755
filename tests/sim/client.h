// SPDX-License-Identifier: GPL-2.0-only
// SimClient: one life of a client process: the real client on the simulated network, its users, who write, flush, trim
// and read and compare, and its owner, who takes note of a loss.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/netblk2_client.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "sim/disk.h"
#include "sim/model.h"
#include "sim/network.h"
#include "sim/sim_loop.h"
#include "sim/world.h"

namespace netblk::sim {

struct WorkPlan {
  unsigned workers = 3;
  uint64_t think_us = 20'000;   // at most, between two requests of a worker
  uint64_t max_blocks = 16;     // of a request
  uint64_t hot_blocks = 64;     // where half of the requests go
  // Of a hundred requests; the rest are reads.
  uint64_t writes = 45, flushes = 8, trims = 4, zeroes = 4;
  uint64_t fua = 10;            // of a hundred changes
  uint64_t soft = 30;           // of a hundred writes, that compress
};

class SimClient {
 public:
  SimClient(World& world, SimLoop& loop, Network& network, Host& host, Model& model, Disk& disk,
            client::Options2 options, const WorkPlan& work);
  SimClient(const SimClient&) = delete;
  SimClient& operator=(const SimClient&) = delete;
  ~SimClient();

  uint64_t writer() const { return writer_; }

  // From the opening to the end; `stop` and `kill` are how it ends.
  coro::Task<void> run();
  // In order: what is in flight ends, the client says goodbye. `drop`: without a goodbye.
  void stop(bool drop);
  // kill -9, or the power of its host. Nobody hears of its requests any more.
  void kill(bool peer_hears);

  // Why open() failed; nothing: it did not, or has not ended.
  const std::optional<Error>& open_error() const { return open_error_; }
  bool opened() const { return client_ != nullptr; }
  bool killed() const { return killed_; }
  bool ended() const { return ended_; }
  client::State state() const { return client_->state(); }
  std::string last_error() const { return client_->status().last_error; }

  // The faults are over: its users ask little from here on.
  void calm() { calm_ = true; }

  // A request that waits longer than a request may.
  void check_deadlines();
  // After all faults have ended: a write, a flush and a read must succeed; the words of what did not.
  coro::Task<std::string> prove();

 private:
  struct Asked;
  coro::Task<void> worker();
  coro::Task<void> owner();
  coro::Task<int> one_request();
  void choose(Asked& asked);
  void submit(Asked& asked);
  void ended(Asked& asked);
  uint64_t bound_ms() const { return options_.request_timeout_ms + 1'000; }

  World& world_;
  SimLoop& loop_;
  Model& model_;
  Disk& disk_;
  client::Options2 options_;
  const WorkPlan work_;
  const uint64_t writer_;
  SimDialer dialer_;
  std::unique_ptr<client::Netblk2Client> client_;
  std::optional<Error> open_error_;
  std::vector<Asked*> asked_;  // in flight
  coro::Event wake_;
  coro::Event owner_wake_;
  bool stopping_ = false;
  bool drop_ = false;
  bool calm_ = false;
  bool killed_ = false;
  bool ended_ = false;
  bool told_lost_ = false;  // and not acknowledged by its owner
};

}  // namespace netblk::sim
