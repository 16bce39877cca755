// SPDX-License-Identifier: GPL-2.0-only
// Replay: asks a Device for what a trace has.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/task.h"
#include "histogram.h"
#include "io/loop.h"

namespace netblk::tools {

// A request of a trace, without what is not needed to ask it again.
struct ReplayStep {
  uint64_t time_us = 0;
  uint64_t latency_us = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  block::Command command = block::Command::kRead;
  bool fua = false;
  bool keep_allocated = false;
  bool fast_zero = false;
  bool failed = false;  // in the trace
};

struct ReplayPlan {
  std::vector<ReplayStep> steps;  // by time_us
  // How many times faster than they were; 0: as fast as possible.
  double speed = 1;
  // Ten times a second at least while it waits; true: end now.
  std::function<bool(uint64_t ended)> on_tick;
};

struct ReplayResult {
  std::map<block::Command, uint64_t> ended;  // successfully
  uint64_t read_bytes = 0, write_bytes = 0;
  uint64_t errors = 0;
  int first_error = 0;
  uint64_t differ = 0;  // succeeded where the trace has an error, or the other way about
  uint64_t late_ms = 0;  // the most that one began after its time
  double seconds = 0;
  Histogram latency_ns;

  uint64_t requests() const;
};

// The most of the trace's requests that were in flight at a time.
unsigned concurrency_of(const std::vector<ReplayStep>& steps);

// Never more in flight than the trace had. Requests that overlap, one of which changes the disk, keep the order of the
// trace; a flush begins when the changes have ended that had ended before it in the trace.
class Replay {
 public:
  Replay(io::Loop& loop, block::Device& device, ReplayPlan plan);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  coro::Task<void> run();
  const ReplayResult& result() const { return result_; }

 private:
  struct Asked;
  bool must_wait(const ReplayStep& step) const;
  void begin(const ReplayStep& step);
  void ended(Asked& asked);

  io::Loop& loop_;
  block::Device& device_;
  const ReplayPlan plan_;
  const unsigned most_in_flight_;
  std::vector<std::unique_ptr<Asked>> in_flight_;
  uint64_t bytes_in_flight_ = 0;
  uint64_t ended_ = 0;
  coro::Event changed_;
  ReplayResult result_;
};

}  // namespace netblk::tools
