// SPDX-License-Identifier: GPL-2.0-only
#include "base/parse.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "base/limits.h"

namespace netblk {

std::optional<uint64_t> parse_unsigned(std::string_view text, uint64_t minimum, uint64_t maximum) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc{} || stopped != end) return std::nullopt;
  if (value < minimum || value > maximum) return std::nullopt;
  return value;
}

std::optional<uint64_t> parse_size(std::string_view text) {
  if (text.empty()) return std::nullopt;
  unsigned shift = 0;
  switch (text.back()) {
    case 'k': case 'K': shift = 10; break;
    case 'm': case 'M': shift = 20; break;
    case 'g': case 'G': shift = 30; break;
    case 't': case 'T': shift = 40; break;
    default: break;
  }
  if (shift != 0) text.remove_suffix(1);
  const auto number = parse_unsigned(text, 0, limits::kMaxDeviceBytes >> shift);
  if (!number) return std::nullopt;
  return *number << shift;
}

namespace {

// The byte of a %XX at the beginning of the text.
std::optional<char> escaped_byte(std::string_view text) {
  unsigned byte = 0;
  if (text.size() < 3 || std::from_chars(text.data() + 1, text.data() + 3, byte, 16).ptr != text.data() + 3) return std::nullopt;
  return static_cast<char>(byte);
}

}  // namespace

std::optional<std::string> percent_decoded(std::string_view text) {
  for (size_t at = text.find('%'); at != std::string_view::npos; at = text.find('%', at + 3))
    if (!escaped_byte(text.substr(at))) return std::nullopt;
  return percent_decoded_loosely(text);
}

std::string percent_decoded_loosely(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = text[i] == '%' ? escaped_byte(text.substr(i)) : std::nullopt;
    decoded += byte.value_or(text[i]);
    if (byte) i += 2;
  }
  return decoded;
}

std::string percent_encoded(std::string_view text) {
  constexpr std::string_view kPlain = "-._~!$&'()*+,;=:@/";
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       kPlain.find(c) != std::string_view::npos;
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

std::string size_text(uint64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  size_t unit = 0;
  uint64_t whole = uint64_t{1} << 10;
  while (unit + 1 < kUnits.size() && bytes >> 10 >= whole) {
    whole <<= 10;
    ++unit;
  }
  if (bytes % whole == 0) return fmt::format("{} {}", bytes / whole, kUnits[unit]);
  return fmt::format("{:.1f} {}", static_cast<double>(bytes) / static_cast<double>(whole), kUnits[unit]);
}

}  // namespace netblk
