// SPDX-License-Identifier: GPL-2.0-only
// Pacing: when a loop rests before it looks for more requests, so that several come at once.
#pragma once

#include <cstdint>

namespace netblk::io {

// A client that keeps many requests in flight and sends them one by one wakes the server for each of them, and pays for
// the wake-up itself; a server that does not listen for some microseconds finds several, and its client never stops. A
// client that waits for its answers would only lose that time. Which one it is shows by trying: a rest that brings little
// ends the trial at once, and of one that brings enough the speed must be as good as without.
class Pacing {
 public:
  static constexpr uint32_t kRestUs = 20;

  // now_ns: a clock that never goes back.
  explicit Pacing(uint64_t (*now_ns)()) : now_ns_(now_ns) {}

  // Asked whenever the loop has nothing left to do: with the requests that came since it was asked last. True: it rests
  // for kRestUs before it waits.
  bool should_rest(uint64_t requests);

 private:
  enum class State : uint8_t { kAwake, kTrying, kResting };

  // Requests that a speed is measured over.
  static constexpr uint64_t kWindow = 256;
  // A rest that brings fewer is not worth it.
  static constexpr uint64_t kFewest = 3;
  // Windows between two trials, at most, and those after which a rested loop looks again how fast it is without.
  static constexpr uint32_t kMostGap = 64;
  static constexpr uint32_t kRestedWindows = 128;
  // Between two asks: nobody sent anything, or the machine stood still. No speed is measured across it.
  static constexpr uint64_t kPauseNs = 1'000'000;

  void enter(State state);
  void begin_window();
  double window_speed(uint64_t now);

  uint64_t (*now_ns_)();
  State state_ = State::kAwake;
  uint64_t requests_ = 0;  // in this window
  uint64_t began_ns_ = 0;  // 0: the window begins with the next request
  uint64_t last_ns_ = 0;   // when it was asked last, with requests
  uint32_t windows_ = 0;   // in this state
  uint32_t gap_ = 1;
  double awake_speed_ = 0;
};

}  // namespace netblk::io
