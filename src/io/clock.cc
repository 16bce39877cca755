// SPDX-License-Identifier: GPL-2.0-only
#include "io/clock.h"

#include <time.h>

namespace netblk::io {
namespace {

timespec read_clock(clockid_t which) {
  timespec now{};
  ::clock_gettime(which, &now);
  return now;
}

}  // namespace

uint64_t monotonic_ns() {
  const timespec now = read_clock(CLOCK_MONOTONIC);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

uint64_t wall_us() {
  const timespec now = read_clock(CLOCK_REALTIME);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

}  // namespace netblk::io
