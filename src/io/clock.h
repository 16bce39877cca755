// SPDX-License-Identifier: GPL-2.0-only
// Clock: the only source of time, so that a simulator can own it.
#pragma once

#include <cstdint>

namespace netblk::io {

class Clock {
 public:
  virtual ~Clock() = default;
  // Milliseconds since an arbitrary start; never goes back (CLOCK_MONOTONIC).
  virtual uint64_t now_ms() const = 0;
  // The same clock more finely, where it can: for what is measured.
  virtual uint64_t now_ns() const { return now_ms() * 1'000'000; }
};

class SteadyClock final : public Clock {
 public:
  uint64_t now_ms() const override;
  uint64_t now_ns() const override;
};

// For what is measured, paced or written down, and no simulator runs: CLOCK_MONOTONIC in nanoseconds, and microseconds
// since 1970.
uint64_t monotonic_ns();
uint64_t wall_us();

}  // namespace netblk::io
