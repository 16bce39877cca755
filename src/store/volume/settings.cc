// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/settings.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/parse.h"
#include "store/volume/codec.h"

namespace netblk::store::volume {
namespace {

constexpr std::string_view kHistory = "history";
constexpr std::string_view kWhenFull = "when-full";
constexpr std::string_view kCompress = "compress";
constexpr std::string_view kSpaceFactor = "space-factor";

bool set_history(Settings& settings, std::string_view value) {
  using Unit = Settings::History::Unit;
  if (value == "none") {
    settings.history = {};
    return true;
  }
  // A small m is minutes, a large one MiB.
  if (const auto ns = parse_duration_ns(value)) {
    settings.history = {Unit::kNanoseconds, *ns};
    return *ns > 0;
  }
  const auto bytes = parse_size(value);
  if (!bytes || *bytes == 0) return false;
  settings.history = {Unit::kLogBytes, *bytes};
  return true;
}

bool set_when_full(Settings& settings, std::string_view value) {
  if (value != "shrink-history" && value != "refuse-writes") return false;
  settings.keep_history = value == "refuse-writes";
  return true;
}

bool set_compress(Settings& settings, std::string_view value) {
  const auto compression = compression_named(value);
  if (compression) settings.compression = *compression;
  return compression.has_value();
}

// "1.3": one digit, and up to two behind the point.
bool set_space_factor(Settings& settings, std::string_view value) {
  const size_t point = value.find('.');
  const auto whole = parse_unsigned(value.substr(0, point), 1, 9);
  uint64_t percent = whole ? 100 * *whole : 0;
  if (point != std::string_view::npos) {
    const std::string_view digits = value.substr(point + 1);
    const auto part = parse_unsigned(digits, 0, 99);
    if (!part || digits.size() > 2) return false;
    percent += digits.size() == 1 ? 10 * *part : *part;
  }
  settings.space_percent = percent;
  return whole && percent >= 110;
}

struct Known {
  std::string_view key, usual, can_be;
  bool (*set)(Settings& settings, std::string_view value);
};
constexpr std::array kKnown = {
    Known{kHistory, "none", "a time (90s, 10m, 24h, 7d), bytes of log (512M, 10G) or none", set_history},
    Known{kWhenFull, "shrink-history", "shrink-history or refuse-writes", set_when_full},
    Known{kCompress, "none", "lz4, zstd or none", set_compress},
    Known{kSpaceFactor, "1.3", "a number from 1.1 to 9.99", set_space_factor},
};

}  // namespace

std::optional<uint64_t> parse_duration_ns(std::string_view text) {
  constexpr uint64_t kMostSeconds = uint64_t{100} * 366 * 86'400;
  if (text.empty()) return std::nullopt;
  uint64_t seconds = 0;
  switch (text.back()) {
    case 's': seconds = 1; break;
    case 'm': seconds = 60; break;
    case 'h': seconds = 3600; break;
    case 'd': seconds = 86'400; break;
    default: return std::nullopt;
  }
  text.remove_suffix(1);
  const auto number = parse_unsigned(text, 0, kMostSeconds / seconds);
  if (!number) return std::nullopt;
  return *number * seconds * 1'000'000'000;
}

Settings parse_settings(const std::vector<Setting>& list) {
  Settings settings;
  for (const Setting& setting : list)
    for (const Known& known : kKnown)
      if (known.key == setting.key) {
        Settings changed = settings;
        if (known.set(changed, setting.value)) settings = changed;
      }
  return settings;
}

Status put_setting(std::vector<Setting>& list, std::string_view key, std::string_view value) {
  const auto known = std::find_if(kKnown.begin(), kKnown.end(), [&](const Known& each) { return each.key == key; });
  if (known == kKnown.end()) {
    std::string keys;
    for (const Known& each : kKnown) keys += (keys.empty() ? "" : ", ") + std::string(each.key);
    return make_error(EINVAL, "there is no setting '{}': there are {}", key, keys);
  }
  Settings changed;
  if (value.size() > kMaxNameBytes || !known->set(changed, value)) return make_error(EINVAL, "{} cannot be '{}': it is {}", key, value, known->can_be);
  const auto at = std::lower_bound(list.begin(), list.end(), key, [](const Setting& each, std::string_view k) { return each.key < k; });
  const bool there = at != list.end() && at->key == key;
  if (value == known->usual) {
    if (there) list.erase(at);
  } else if (there) {
    at->value = value;
  } else {
    list.insert(at, {std::string(key), std::string(value)});
  }
  return Ok{};
}

std::vector<Setting> all_settings(const std::vector<Setting>& list) {
  std::vector<Setting> all;
  for (const Known& known : kKnown) {
    const auto set = std::find_if(list.begin(), list.end(), [&](const Setting& each) { return each.key == known.key; });
    all.push_back({std::string(known.key), set == list.end() ? std::string(known.usual) : set->value});
  }
  return all;
}

}  // namespace netblk::store::volume
