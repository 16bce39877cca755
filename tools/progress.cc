// SPDX-License-Identifier: GPL-2.0-only
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/parse.h"

namespace netblk::tools {
namespace {

constexpr unsigned kBarWidth = 24;

}  // namespace

StatusLine::StatusLine() : on_(::isatty(STDERR_FILENO) != 0) {}

StatusLine::~StatusLine() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

void StatusLine::show(const std::string& line) {
  if (!on_) return;
  std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
  std::fflush(stderr);
  shown_ = true;
}

void Progress::show(uint64_t done_bytes, const std::string& remark) {
  if (!line_.on()) return;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_bytes - from_bytes_) / seconds : 0;
  std::string line;
  if (total_bytes_ && *total_bytes_ > 0) {
    const double share = std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(*total_bytes_));
    const auto filled = static_cast<size_t>(share * kBarWidth);
    line = fmt::format("[{}{}] {:3.0f} %  ", std::string(filled, '='), std::string(kBarWidth - filled, ' '), share * 100);
  }
  line += size_text(done_bytes);
  if (total_bytes_) line += " of " + size_text(*total_bytes_);
  if (!remark.empty()) {
    line += "  " + remark;
  } else if (rate > 0) {
    line += fmt::format("  {}/s", size_text(static_cast<uint64_t>(rate)));
    if (total_bytes_ && *total_bytes_ > done_bytes) {
      const auto left = static_cast<uint64_t>(static_cast<double>(*total_bytes_ - done_bytes) / rate);
      line += fmt::format("  {}:{:02} left", left / 60, left % 60);
    }
  }
  line_.show(line);
}

}  // namespace netblk::tools
