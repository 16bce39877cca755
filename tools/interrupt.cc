// SPDX-License-Identifier: GPL-2.0-only
#include "interrupt.h"

#include <signal.h>
#include <time.h>

#include <atomic>
#include <cstdint>

namespace netblk::tools {
namespace {

// timeout(1) and some shells send a signal twice: what comes this soon after the first is no second wish.
constexpr int64_t kSameWishMs = 500;

std::atomic<int64_t> wanted_at_ms{0};
static_assert(std::atomic<int64_t>::is_always_lock_free, "a signal handler sets it");

int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000 + 1;
}

void wish(int number) {
  const int64_t now = now_ms();
  int64_t first = 0;
  if (wanted_at_ms.compare_exchange_strong(first, now) || now - first < kSameWishMs) return;
  ::signal(number, SIG_DFL);
  ::raise(number);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action{};
  action.sa_handler = wish;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return wanted_at_ms.load(std::memory_order_relaxed) != 0; }

}  // namespace netblk::tools
