// SPDX-License-Identifier: GPL-2.0-only
#include "io/patience.h"

#include <algorithm>
#include <limits>

namespace netblk::io {

namespace {

constexpr uint64_t kNsPerMs = 1'000'000;
constexpr uint64_t kMostMs = std::numeric_limits<uint64_t>::max() / kNsPerMs;

}  // namespace

const Clock& Patience::steady() {
  static const SteadyClock clock;
  return clock;
}

Patience::Patience(uint64_t ms, const Clock& clock) : clock_(clock), left_ns_(std::min(ms, kMostMs) * kNsPerMs) {}

uint64_t Patience::begin(uint64_t most_ms) {
  const uint64_t left_ms = (left_ns_ + kNsPerMs - 1) / kNsPerMs;
  const uint64_t step_ms = std::min({left_ms, most_ms, kStepMs});
  step_ns_ = std::min(step_ms * kNsPerMs, left_ns_);
  begun_ns_ = clock_.now_ns();
  return step_ms;
}

void Patience::end() { left_ns_ -= std::min(step_ns_, clock_.now_ns() - begun_ns_); }

int Patience::poll(std::span<pollfd> waiting, uint64_t most_ms) {
  const int ready = ::poll(waiting.data(), waiting.size(), static_cast<int>(begin(most_ms)));
  end();
  return ready;
}

int Patience::wait(pollfd& waiting) {
  for (;;) {
    const bool last = over();
    const int ready = poll({&waiting, 1});
    if (ready != 0 || last) return ready;
  }
}

}  // namespace netblk::io
