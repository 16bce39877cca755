// SPDX-License-Identifier: GPL-2.0-only
// What every program's main() shares: exit statuses and the one line that says why (DESIGN 5).
#pragma once

#include <string>

namespace netblk::tools {

inline constexpr int kFailed = 1;
inline constexpr int kMalformed = 2;

// "netblk: message" on stderr, as one line; returns `status`.
int fail(int status, std::string message);

// The same for what is no failure.
void note(std::string message);

// The result, on stdout: 0, or a failure when it cannot be written.
int print(const std::string& text);

// For a terminal: control characters and bytes that are no UTF-8 as \xNN.
std::string printable(const std::string& text);

}  // namespace netblk::tools
