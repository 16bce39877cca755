// SPDX-License-Identifier: GPL-2.0-only
// A trace: one line of text for each request that has ended, in the order of the ends.
//
//   TIME CONNECTION DISK COMMAND OFFSET LENGTH FLAGS STATUS LATENCY
//
// TIME: when the request came, in seconds since 1970 with six digits after the point. CONNECTION: a number. DISK: the
// name of the export, "-" for none; bytes that are blanks, '%' or no printable ASCII are %XX. COMMAND: the words of
// block::command_text(). OFFSET, LENGTH: bytes. FLAGS: "-", or fua, no-hole and fast-zero, joined by commas. STATUS: "ok"
// or the name of an errno value ("EIO"). LATENCY: microseconds. Lines that begin with '#' are remarks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "block/request.h"

namespace netblk::store {

struct TraceLine {
  uint64_t time_us = 0;
  uint64_t connection = 0;
  std::string disk;
  block::Command command = block::Command::kRead;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool fua = false;
  bool keep_allocated = false;
  bool fast_zero = false;
  std::string status = "ok";
  uint64_t latency_us = 0;

  bool operator==(const TraceLine&) const = default;
};

// Without a newline.
std::string trace_text(const TraceLine& line);

// EINVAL: what is wrong with it.
Result<TraceLine> parse_trace(std::string_view text);

// "EIO", or the number where it has no name.
std::string errno_word(int error);

}  // namespace netblk::store
