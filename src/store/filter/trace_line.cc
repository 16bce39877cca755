// SPDX-License-Identifier: GPL-2.0-only
#include "store/filter/trace_line.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <vector>

#include "base/parse.h"
#include "block/device.h"

namespace netblk::store {
namespace {

using block::Command;

constexpr Command kCommands[] = {Command::kRead, Command::kWrite, Command::kFlush, Command::kTrim,
                                 Command::kWriteZeroes, Command::kCache, Command::kBlockStatus};
constexpr uint64_t kUsPerSecond = 1'000'000;

bool is_plain(char c) { return c > ' ' && c < 0x7f && c != '%'; }

std::string escaped(const std::string& name) {
  if (name.empty()) return "-";
  if (name == "-") return "%2D";
  std::string text;
  for (const char c : name) {
    if (is_plain(c)) {
      text += c;
    } else {
      text += fmt::format("%{:02X}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    }
  }
  return text;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

std::optional<std::string> unescaped(std::string_view text) {
  if (text == "-") return std::string();
  std::string name;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      name += text[i];
      continue;
    }
    if (i + 2 >= text.size() || hex_digit(text[i + 1]) < 0 || hex_digit(text[i + 2]) < 0) return std::nullopt;
    name += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
    i += 2;
  }
  return name;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::optional<uint64_t> number(std::string_view text) { return parse_unsigned(text, 0, UINT64_MAX); }

std::optional<uint64_t> time_of(std::string_view text) {
  const size_t point = text.find('.');
  if (point == std::string_view::npos || text.size() != point + 7) return std::nullopt;
  const auto seconds = parse_unsigned(text.substr(0, point), 0, UINT64_MAX / kUsPerSecond - 1);
  const auto rest = number(text.substr(point + 1));
  if (!seconds || !rest) return std::nullopt;
  return *seconds * kUsPerSecond + *rest;
}

}  // namespace

std::string errno_word(int error) {
  if (error == 0) return "ok";
  const char* const name = ::strerrorname_np(error);
  return name != nullptr ? std::string(name) : std::to_string(error);
}

std::string trace_text(const TraceLine& line) {
  std::string flags;
  for (const auto& [set, word] : {std::pair(line.fua, "fua"), std::pair(line.keep_allocated, "no-hole"),
                                  std::pair(line.fast_zero, "fast-zero")}) {
    if (!set) continue;
    if (!flags.empty()) flags += ',';
    flags += word;
  }
  if (flags.empty()) flags = "-";
  return fmt::format("{}.{:06} {} {} {} {} {} {} {} {}", line.time_us / kUsPerSecond, line.time_us % kUsPerSecond,
                     line.connection, escaped(line.disk), block::command_text(line.command), line.offset, line.length,
                     flags, line.status, line.latency_us);
}

Result<TraceLine> parse_trace(std::string_view text) {
  const auto words = split(text, ' ');
  if (words.size() != 9) return make_error(EINVAL, "a line of a trace has 9 words, this one {}", words.size());
  TraceLine line;
  const auto time = time_of(words[0]);
  if (!time) return make_error(EINVAL, "bad time '{}': seconds with six digits after the point", words[0]);
  const auto disk = unescaped(words[2]);
  if (!disk) return make_error(EINVAL, "bad name '{}'", words[2]);
  bool known = false;
  for (const Command command : kCommands) {
    if (words[3] != block::command_text(command)) continue;
    line.command = command;
    known = true;
  }
  if (!known) return make_error(EINVAL, "unknown command '{}'", words[3]);
  const auto connection = number(words[1]), offset = number(words[4]), length = number(words[5]), latency = number(words[8]);
  if (!connection || !offset || !length || !latency)
    return make_error(EINVAL, "connection, offset, length and latency are numbers");
  if (words[6] != "-")
    for (const std::string_view flag : split(words[6], ',')) {
      if (flag == "fua") line.fua = true;
      else if (flag == "no-hole") line.keep_allocated = true;
      else if (flag == "fast-zero") line.fast_zero = true;
      else return make_error(EINVAL, "unknown flag '{}'", flag);
    }
  if (words[7].empty()) return make_error(EINVAL, "the status is missing");
  line.time_us = *time;
  line.connection = *connection;
  line.disk = *disk;
  line.offset = *offset;
  line.length = *length;
  line.status = words[7];
  line.latency_us = *latency;
  return line;
}

}  // namespace netblk::store
