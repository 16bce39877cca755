// SPDX-License-Identifier: GPL-2.0-only
// How far long work is: a line on a terminal, nothing elsewhere (DESIGN 5).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace netblk::tools {

// One line that is written over; a terminal's only.
class StatusLine {
 public:
  StatusLine();
  // Takes the line away: what follows begins at the left.
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool on() const { return on_; }
  void show(const std::string& line);

 private:
  const bool on_;
  bool shown_ = false;
};

class Progress {
 public:
  // total: nothing where it is not known; from: what was there before this run.
  Progress(std::optional<uint64_t> total_bytes, uint64_t from_bytes)
      : total_bytes_(total_bytes), from_bytes_(from_bytes) {}

  // remark: instead of the rate; "waiting for the server".
  void show(uint64_t done_bytes, const std::string& remark);

 private:
  StatusLine line_;
  const std::optional<uint64_t> total_bytes_;
  const uint64_t from_bytes_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace netblk::tools
