// SPDX-License-Identifier: GPL-2.0-only
#include "base/id.h"

#include <sys/random.h>

#include <cerrno>

#include "base/check.h"

namespace netblk {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";

}  // namespace

Id random_id() {
  Id id;
  while (id.is_zero()) {
    const ssize_t got = ::getrandom(id.bytes.data(), id.bytes.size(), 0);
    NETBLK_CHECK(got == static_cast<ssize_t>(id.bytes.size()) || errno == EINTR, "the kernel gives no random bytes");
  }
  return id;
}

std::string id_text(const Id& id) {
  std::string text;
  for (const uint8_t byte : id.bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

Result<Id> parse_id(std::string_view text) {
  Id id;
  size_t digits = 0;
  for (const char c : text) {
    if (c == '-') continue;
    const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    const size_t value = kDigits.find(lower);
    if (value == std::string_view::npos || digits == 32)
      return make_error(EINVAL, "'{}' is not 32 hexadecimal digits", text);
    uint8_t& byte = id.bytes[digits / 2];
    byte = static_cast<uint8_t>(static_cast<unsigned>(byte) << 4 | value);
    ++digits;
  }
  if (digits != 32) return make_error(EINVAL, "'{}' is not 32 hexadecimal digits", text);
  return id;
}

}  // namespace netblk
