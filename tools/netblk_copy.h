// SPDX-License-Identifier: GPL-2.0-only
// `netblk copy SRC DST`.
#pragma once

#include <cstdint>
#include <string>

namespace netblk::tools {

struct CopyArguments {
  std::string source, target;
  bool resume = false;
  bool force = false;
  unsigned connections = 1;
  uint64_t timeout_ms = 120'000;
  std::string reconnect = "lost";  // or "trust"
};

// An exit status: 0 only after the target has been flushed.
int run_copy(const CopyArguments& arguments);

}  // namespace netblk::tools
