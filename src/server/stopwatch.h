// SPDX-License-Identifier: GPL-2.0-only
// Stopwatch: how long the requests of a netblk/2 connection spend in the server and in the store (protocol/netblk.md,
// "Times").
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "io/loop.h"
#include "proto/netblk/codec2.h"

namespace netblk::server {

// The clock is read twice for all the requests of one receive, and once for all that end in one round of the loop: not
// for each request. Those that end while they are submitted share the time of their burst: each was in the store for its
// part of it, and waited in the server for the others. Until begin() nothing is measured, and no clock is read.
class Stopwatch {
 public:
  // In the operation.
  struct Stamp {
    uint64_t came_ns = 0;
    uint64_t submitted_ns = 0;
    uint64_t ended_ns = 0;  // 0: at once
  };

  explicit Stopwatch(const io::Loop& loop) : loop_(loop) {}

  void begin() { runs_ = true; }
  bool runs() const { return runs_; }

  // ---- the reader

  // Bytes came, or the reader has waited for something else.
  void go_on() {
    if (runs_) now_ns_ = burst_ns_ = loop_.now_ns();
  }
  // It is about to wait.
  void pause() {
    if (at_once_ == 0) return;
    const uint64_t burst_ns = loop_.now_ns() - burst_ns_;
    part_.store_ns = burst_ns / at_once_;
    part_.server_ns = burst_ns - part_.store_ns;
    at_once_ = 0;
  }
  uint64_t now_ns() const { return now_ns_; }
  void submit(Stamp& stamp, uint64_t came_ns) {
    if (!runs_) return;
    stamp = {came_ns, now_ns_, 0};
    submitted_ = &stamp;
  }
  void submitted() { submitted_ = nullptr; }

  // ---- ends and replies

  void end(Stamp& stamp) {
    if (!runs_) return;
    if (submitted_ == &stamp) {
      ++at_once_;
    } else {
      stamp.ended_ns = round_ns();
    }
  }
  // Its reply is the next that is sent.
  void reply(uint8_t type, const Stamp& stamp) {
    if (!runs_ || type > NETBLK2_NOP) return;
    proto::Times2& sum = sums_[type];
    ++sum.count;
    if (stamp.ended_ns == 0) {
      sum.server_ns += part_.server_ns;
      sum.store_ns += part_.store_ns;
    } else {
      sum.server_ns += stamp.submitted_ns - stamp.came_ns;
      sum.store_ns += stamp.ended_ns - stamp.submitted_ns;
    }
  }
  bool has_news() const {
    for (const proto::Times2& sum : sums_)
      if (sum.count != 0) return true;
    return false;
  }
  // What is to be told of one type, and is forgotten by that; nothing: all has been.
  std::optional<proto::Times2> take() {
    for (uint8_t type = NETBLK2_READ; type <= NETBLK2_NOP; ++type) {
      if (sums_[type].count == 0) continue;
      proto::Times2 told = sums_[type];
      told.request_type = type;
      sums_[type] = {};
      return told;
    }
    return std::nullopt;
  }

  static constexpr size_t kTypes = NETBLK2_NOP;

 private:
  uint64_t round_ns() {
    if (round_ != loop_.round()) {
      round_ = loop_.round();
      round_ns_ = loop_.now_ns();
    }
    return round_ns_;
  }

  const io::Loop& loop_;
  bool runs_ = false;
  uint32_t at_once_ = 0;  // requests of this burst
  uint64_t burst_ns_ = 0;
  uint64_t now_ns_ = 0;
  const Stamp* submitted_ = nullptr;
  proto::Times2 part_{};  // of one request, in the burst before
  uint64_t round_ = ~uint64_t{0};
  uint64_t round_ns_ = 0;
  std::array<proto::Times2, kTypes + 1> sums_{};
};

}  // namespace netblk::server
