// SPDX-License-Identifier: GPL-2.0-only
#include "io/pacing.h"

#include <algorithm>
#include <utility>

namespace netblk::io {
namespace {

// What the processor saves by resting is worth so much of the speed.
constexpr double kWorth = 0.95;

}  // namespace

void Pacing::enter(State state) {
  state_ = state;
  windows_ = 0;
  begin_window();
}

void Pacing::begin_window() {
  requests_ = 0;
  began_ns_ = 0;
}

double Pacing::window_speed(uint64_t now) {
  const double speed = static_cast<double>(requests_) / static_cast<double>(std::max<uint64_t>(now - began_ns_, 1));
  began_ns_ = now;
  requests_ = 0;
  ++windows_;
  return speed;
}

bool Pacing::should_rest(uint64_t requests) {
  if (state_ != State::kAwake && requests < kFewest) {
    if (state_ == State::kTrying) gap_ = std::min(gap_ * 2, kMostGap);
    enter(State::kAwake);
    return false;
  }
  if (requests == 0) return false;
  const uint64_t now = now_ns_();
  const bool paused = now - std::exchange(last_ns_, now) > kPauseNs;
  if (paused) {
    // Awake, the windows before it count: who pauses often is tried too.
    if (state_ == State::kAwake) begin_window();
    else enter(State::kAwake);
  }
  if (began_ns_ == 0) began_ns_ = now;
  else requests_ += requests;
  if (requests_ < kWindow) return state_ != State::kAwake;
  const double speed = window_speed(now);
  switch (state_) {
    case State::kAwake:
      awake_speed_ = speed;
      if (windows_ >= gap_) enter(State::kTrying);
      break;
    case State::kTrying:
      if (speed >= kWorth * awake_speed_) {
        gap_ = 1;
        enter(State::kResting);
      } else {
        gap_ = std::min(gap_ * 2, kMostGap);
        enter(State::kAwake);
      }
      break;
    case State::kResting:
      if (windows_ >= kRestedWindows) enter(State::kAwake);
      break;
  }
  return state_ != State::kAwake;
}

}  // namespace netblk::io
