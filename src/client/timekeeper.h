// SPDX-License-Identifier: GPL-2.0-only
// Timekeeper: where the time of a client's requests goes, and since when the oldest of them has been waiting.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "block/request.h"
#include "client/state.h"

namespace netblk::client {

// Written by the thread of the client's loop, read by any. A reader adds up while it goes on: what it sees of one request
// may lack a part of another's.
class Timekeeper {
 public:
  // A request, or a part of one that was too long for the wire.
  void answered(block::Command command, uint64_t queue_ns, uint64_t trip_ns) {
    Sums* const sums = of(command);
    if (sums == nullptr) return;
    add(sums->requests, 1);
    add(sums->queue_ns, queue_ns);
    add(sums->trip_ns, trip_ns);
  }
  // What the server says of `count` of them, which were under way for trip_ns. It cannot have had them for longer: what
  // it says too much is cut.
  void told(block::Command command, uint32_t count, uint64_t trip_ns, uint64_t server_ns, uint64_t store_ns) {
    Sums* const sums = of(command);
    if (sums == nullptr) return;
    store_ns = std::min(store_ns, trip_ns);
    server_ns = std::min(server_ns, trip_ns - store_ns);
    add(sums->told, count);
    add(sums->told_trip_ns, trip_ns);
    add(sums->server_ns, server_ns);
    add(sums->store_ns, store_ns);
  }
  // 0: none is waiting.
  void set_oldest_since(uint64_t since_ns) { oldest_since_ns_.store(since_ns, std::memory_order_relaxed); }

  void show(ClientStatus& status, uint64_t now_ns) const {
    const uint64_t since_ns = oldest_since_ns_.load(std::memory_order_relaxed);
    status.oldest_ms = since_ns == 0 || now_ns < since_ns ? 0 : (now_ns - since_ns) / 1'000'000;
    status.reads = read(kinds_[0]);
    status.writes = read(kinds_[1]);
    status.flushes = read(kinds_[2]);
    status.trims = read(kinds_[3]);
  }

 private:
  struct Sums {
    std::atomic<uint64_t> requests{0}, queue_ns{0}, trip_ns{0}, told{0}, told_trip_ns{0}, server_ns{0}, store_ns{0};
  };

  // One thread writes: it needs no locked instruction.
  static void add(std::atomic<uint64_t>& sum, uint64_t more) {
    sum.store(sum.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  }
  static Latency read(const Sums& sums) {
    const auto get = [](const std::atomic<uint64_t>& sum) { return sum.load(std::memory_order_relaxed); };
    return {.requests = get(sums.requests),
            .queue_ns = get(sums.queue_ns),
            .trip_ns = get(sums.trip_ns),
            .told = get(sums.told),
            .told_trip_ns = get(sums.told_trip_ns),
            .server_ns = get(sums.server_ns),
            .store_ns = get(sums.store_ns)};
  }
  Sums* of(block::Command command) {
    switch (command) {
      case block::Command::kRead: return &kinds_[0];
      case block::Command::kWrite: return &kinds_[1];
      case block::Command::kFlush: return &kinds_[2];
      case block::Command::kTrim:
      case block::Command::kWriteZeroes: return &kinds_[3];
      case block::Command::kCache:
      case block::Command::kBlockStatus: break;
    }
    return nullptr;
  }

  std::array<Sums, 4> kinds_;
  std::atomic<uint64_t> oldest_since_ns_{0};
};

}  // namespace netblk::client
