// SPDX-License-Identifier: GPL-2.0-only
#include "command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/result.h"

namespace netblk::tools {
namespace {

// How many bytes the UTF-8 character at `at` has; 0: none is there, or a control character.
size_t character_at(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const size_t bytes = first >= 0xf0 && first < 0xf5 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (bytes == 0 || first >= 0xf5) return 0;
  for (size_t i = 1; i < bytes; ++i)
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  // U+0080 to U+009F are control characters too.
  if (first == 0xc2 && byte(at + 1) < 0xa0) return 0;
  return bytes;
}

void say(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, printable(message).c_str());
}

}  // namespace

int fail(int status, std::string message) {
  say(std::move(message));
  return status;
}

void note(std::string message) { say(std::move(message)); }

int print(const std::string& text) {
  if (std::printf("%s\n", text.c_str()) < 0 || std::fflush(stdout) != 0)
    return fail(kFailed, "cannot write to the standard output: " + errno_text(errno));
  return 0;
}

std::string printable(const std::string& text) {
  std::string shown;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = character_at(text, at);
    if (bytes == 0) {
      shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[at++]));
    } else {
      shown += text.substr(at, bytes);
      at += bytes;
    }
  }
  return shown;
}

}  // namespace netblk::tools
