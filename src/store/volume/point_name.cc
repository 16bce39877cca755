// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/point_name.h"

#include <fmt/chrono.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <optional>

#include "base/parse.h"
#include "store/volume/settings.h"

namespace netblk::store::volume {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

// Takes exactly so many digits off the text.
std::optional<unsigned> digits(std::string_view& text, size_t count, unsigned minimum, unsigned maximum) {
  const auto number = text.size() < count ? std::nullopt : parse_unsigned(text.substr(0, count), minimum, maximum);
  if (!number) return std::nullopt;
  text.remove_prefix(count);
  return static_cast<unsigned>(*number);
}

bool take(std::string_view& text, std::string_view either) {
  if (text.empty() || either.find(text[0]) == std::string_view::npos) return false;
  text.remove_prefix(1);
  return true;
}

std::optional<uint64_t> fraction_ns(std::string_view& text) {
  uint64_t ns = 0, unit = kSecondNs / 10;
  size_t count = 0;
  for (; count < text.size() && text[count] >= '0' && text[count] <= '9'; ++count, unit /= 10)
    ns += static_cast<uint64_t>(text[count] - '0') * unit;
  text.remove_prefix(count);
  if (count == 0) return std::nullopt;
  return ns;
}

// Minutes east of Greenwich.
std::optional<int> zone(std::string_view& text) {
  if (take(text, "Zz")) return 0;
  const bool west = !text.empty() && text[0] == '-';
  if (!take(text, "+-")) return std::nullopt;
  const auto hours = digits(text, 2, 0, 23);
  if (!hours || !take(text, ":")) return std::nullopt;
  const auto minutes = digits(text, 2, 0, 59);
  if (!minutes) return std::nullopt;
  const int east = static_cast<int>(*hours * 60 + *minutes);
  return west ? -east : east;
}

std::optional<uint64_t> time_of(std::string_view text) {
  const auto year = digits(text, 4, 1970, 2400);
  if (!year || !take(text, "-")) return std::nullopt;
  const auto month = digits(text, 2, 1, 12);
  if (!month || !take(text, "-")) return std::nullopt;
  const auto day = digits(text, 2, 1, 31);
  if (!day || !take(text, "Tt")) return std::nullopt;
  const auto hour = digits(text, 2, 0, 23);
  if (!hour || !take(text, ":")) return std::nullopt;
  const auto minute = digits(text, 2, 0, 59);
  if (!minute || !take(text, ":")) return std::nullopt;
  const auto second = digits(text, 2, 0, 60);
  if (!second) return std::nullopt;
  uint64_t ns = 0;
  if (take(text, ".")) {
    const auto fraction = fraction_ns(text);
    if (!fraction) return std::nullopt;
    ns = *fraction;
  }
  const auto east = zone(text);
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(*year)), std::chrono::month(*month), std::chrono::day(*day)};
  if (!east || !text.empty() || !date.ok()) return std::nullopt;
  const int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  const int64_t seconds = ((days * 24 + *hour) * 60 + *minute - *east) * 60 + *second;
  if (seconds < 0) return std::nullopt;
  return static_cast<uint64_t>(seconds) * kSecondNs + ns;
}

}  // namespace

Result<uint64_t> parse_time_ns(std::string_view text) {
  const auto ns = time_of(text);
  if (!ns) return make_error(EINVAL, "'{}' is no time: write it as 2026-11-21T10:00:00Z, or with a zone as in +01:00", text);
  return *ns;
}

Result<PointName> parse_point_name(std::string_view text) {
  if (text.starts_with("lsn:")) {
    const auto lsn = parse_unsigned(text.substr(4), 1, UINT64_MAX - 1);
    if (!lsn) return make_error(EINVAL, "'{}' is no LSN: write it as lsn:123", text);
    return PointName(PointName::Kind::kLsn, *lsn);
  }
  if (text.starts_with('-')) {
    const auto ago = parse_duration_ns(text.substr(1));
    if (!ago) return make_error(EINVAL, "'{}' is no time ago: write it as -90s, -10m, -24h or -7d", text);
    return PointName(PointName::Kind::kAgo, *ago);
  }
  if (!text.empty() && text[0] >= '0' && text[0] <= '9') {
    const Result<uint64_t> ns = parse_time_ns(text);
    if (!ns) return ns.error();
    return PointName(PointName::Kind::kTime, ns.value());
  }
  if (!is_name(text))
    return make_error(EINVAL, "bad point '{}': it is a name (a letter or _, then up to {} letters, digits, '.', '_' and '-'), -10m, "
                              "2026-11-21T10:00:00Z or lsn:123", text, kMaxNameBytes - 1);
  return PointName(std::string(text));
}

std::string time_text(uint64_t ns) { return fmt::format("{:%FT%TZ}", fmt::gmtime(static_cast<std::time_t>(ns / kSecondNs))); }

}  // namespace netblk::store::volume
