// SPDX-License-Identifier: GPL-2.0-only
// Settings of a volume, which are kept in it: their names, their values as people type them, and what they mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "store/volume/format.h"

namespace netblk::store::volume {

struct Settings {
  // How far back every moment can be seen, beside what has a name.
  struct History {
    enum class Unit { kNone, kNanoseconds, kLogBytes } unit = Unit::kNone;
    uint64_t value = 0;  // 0: none
    bool operator==(const History&) const = default;
  } history;
  // Where space runs out, writes are refused and the history stays; otherwise it becomes shorter first.
  bool keep_history = false;
  Compression compression = Compression::kNone;
  // What the file has of space, in hundredths of what is live.
  uint64_t space_percent = 130;
  bool operator==(const Settings&) const = default;
};

// What a list of a volume says. Values that make no sense count as if they were not there.
Settings parse_settings(const std::vector<Setting>& list);
// Changes or adds one of the list, which is by key. EINVAL, with words that say what can be set.
Status put_setting(std::vector<Setting>& list, std::string_view key, std::string_view value);
// Of all that can be set, what it is now.
std::vector<Setting> all_settings(const std::vector<Setting>& list);

// "90s", "10m", "24h", "7d": nanoseconds, at most a hundred years.
std::optional<uint64_t> parse_duration_ns(std::string_view text);

}  // namespace netblk::store::volume
