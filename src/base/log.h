// SPDX-License-Identifier: GPL-2.0-only
// The process's log: one line an event, on stderr, with a time stamp and a level. Thread-safe.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace netblk {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Lines below the level are dropped. Default: kInfo.
void set_log_level(LogLevel level);

// Bytes of a peer can reach a line: control characters are written as \xNN, so that one event stays one line.
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace netblk
