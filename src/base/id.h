// SPDX-License-Identifier: GPL-2.0-only
// Id: 128 bits that name a client, a session or a store.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace netblk {

struct Id {
  std::array<uint8_t, 16> bytes{};

  bool is_zero() const { return *this == Id{}; }
  auto operator<=>(const Id&) const = default;
};

// From the kernel's generator; never zero.
Id random_id();

// 32 lower-case hexadecimal digits; parse_id takes upper case and dashes too.
std::string id_text(const Id& id);
Result<Id> parse_id(std::string_view text);

}  // namespace netblk
