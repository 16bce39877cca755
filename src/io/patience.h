// SPDX-License-Identifier: GPL-2.0-only
// Patience: how long somebody waits for another, counted in small steps. Of a step that took longer than it was to take only
// the step counts: a machine that is suspended, or stands still, holds up both, and says nothing of the other.
#pragma once

#include <poll.h>

#include <cstdint>
#include <span>

#include "io/clock.h"

namespace netblk::io {

class Patience {
 public:
  static constexpr uint64_t kStepMs = 100;

  explicit Patience(uint64_t ms, const Clock& clock = steady());
  bool over() const { return left_ns_ == 0; }
  // How long the next step is, at most `most_ms`; 0: it is over, or only to look.
  uint64_t begin(uint64_t most_ms = kStepMs);
  // The step has ended, early or late.
  void end();

  // poll(2) for one step.
  int poll(std::span<pollfd> waiting, uint64_t most_ms = kStepMs);
  // poll(2) until something is there, or an error; 0: it is over, and nothing was there after its end.
  int wait(pollfd& waiting);

 private:
  static const Clock& steady();

  const Clock& clock_;
  uint64_t left_ns_;
  uint64_t step_ns_ = 0;
  uint64_t begun_ns_ = 0;
};

}  // namespace netblk::io
