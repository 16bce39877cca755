// SPDX-License-Identifier: GPL-2.0-only
// The log's lines about connections that were refused or came to nothing: a flood of them gets so many lines and a count.
#pragma once

#include <cstdint>
#include <mutex>
#include <string_view>

#include "base/limits.h"
#include "base/log.h"

namespace netblk::server {

// Thread-safe; the mutex is a leaf.
class RefusalLog {
 public:
  void line(LogLevel level, std::string_view text) {
    {
      const std::lock_guard lock(mutex_);
      if (lines_ == limits::kRefusalLines) {
        ++left_out_;
        return;
      }
      ++lines_;
    }
    log_line(level, text);
  }

  // Once a second.
  void tick() {
    uint64_t left_out = 0;
    {
      const std::lock_guard lock(mutex_);
      left_out = left_out_;
      lines_ = 0;
      left_out_ = 0;
    }
    if (left_out != 0) log_warning("{} more connections were refused or came to nothing in this second", left_out);
  }

 private:
  std::mutex mutex_;
  uint32_t lines_ = 0;
  uint64_t left_out_ = 0;
};

}  // namespace netblk::server
