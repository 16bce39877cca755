// SPDX-License-Identifier: GPL-2.0-only
// PointName: a state of a volume, as people name it behind the @.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace netblk::store::volume {

struct PointName {
  enum class Kind {
    kHead,  // as it is now
    kName,  // a snapshot or a clone
    kLsn,   // as this record left it
    kTime,  // as it was then, ns since 1970
    kAgo,   // as it was so many ns ago
  };
  Kind kind = Kind::kHead;
  std::string name = {};
  uint64_t value = 0;

  PointName() = default;
  PointName(std::string named) : kind(Kind::kName), name(std::move(named)) {}  // NOLINT: a name is one
  PointName(const char* named) : PointName(std::string(named)) {}              // NOLINT
  PointName(Kind of, uint64_t number) : kind(of), value(number) {}
  bool operator==(const PointName&) const = default;
};

// "NAME", "lsn:N", "-10m" (s, m, h, d), or RFC 3339 with a zone. EINVAL, with words that name the text.
Result<PointName> parse_point_name(std::string_view text);

// "2026-11-21T10:00:00Z", or with a fraction and "+01:00": ns since 1970. EINVAL.
Result<uint64_t> parse_time_ns(std::string_view text);
// In UTC, down to the second.
std::string time_text(uint64_t ns);

}  // namespace netblk::store::volume
