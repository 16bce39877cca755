// SPDX-License-Identifier: GPL-2.0-only
// Bench: keeps a number of requests in flight on a Device, and measures.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/task.h"
#include "histogram.h"
#include "io/loop.h"

namespace netblk::tools {

enum class Access : uint8_t { kRead, kWrite, kMixed };  // kMixed: half and half, by chance

struct BenchPlan {
  Access access = Access::kRead;
  bool random = false;
  uint32_t block_bytes = 4096;
  unsigned in_flight = 32;
  uint64_t warm_up_ms = 0;
  uint64_t measure_ms = 5000;
  uint64_t seed = 1;
  // Ten times a second; true: end now.
  std::function<bool(double seconds, uint64_t requests)> on_tick;
};

struct BenchResult {
  double seconds = 0;
  uint64_t reads = 0, writes = 0;  // that succeeded
  uint64_t errors = 0;
  int first_error = 0;  // an errno value
  Histogram latency_ns;

  uint64_t requests() const { return reads + writes; }
};

class Bench {
 public:
  Bench(io::Loop& loop, block::Device& device, BenchPlan plan);
  ~Bench();

  // Until the time is over and a request has ended, or nothing but errors comes back.
  coro::Task<void> run();
  const BenchResult& result() const { return result_; }

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Slot;
  struct Tick : io::Timer {
    explicit Tick(Bench& of)
        : Timer(of.loop_, [](coro::Runnable& self) { static_cast<Tick&>(self).bench.tick(); }), bench(of) {}
    Bench& bench;
  };
  struct FreeBuffer {
    void operator()(std::byte* memory) const;
  };

  void submit(Slot& slot);
  void ended(Slot& slot);
  void tick();
  void stop();
  uint64_t next_offset();
  uint64_t random_bits();
  double seconds_since(Time begin) const;

  io::Loop& loop_;
  block::Device& device_;
  const BenchPlan plan_;
  const uint64_t blocks_;
  std::unique_ptr<std::byte, FreeBuffer> memory_;
  std::vector<std::unique_ptr<Slot>> slots_;
  uint64_t random_state_;
  uint64_t next_block_ = 0;
  unsigned in_flight_ = 0;
  unsigned errors_in_a_row_ = 0;
  bool measuring_ = false;
  bool stopped_ = false;
  uint64_t measure_at_ms_ = 0;
  Time begin_{};
  BenchResult result_;
  coro::Event drained_;
  Tick tick_;
};

}  // namespace netblk::tools
