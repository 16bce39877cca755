// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/point_name.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "store/volume/history.h"
#include "store/volume/settings.h"

namespace netblk::store::volume {
namespace {

using Kind = PointName::Kind;
constexpr uint64_t kSecond = 1'000'000'000;

TEST(PointName, IsWrittenInFourWays) {
  EXPECT_EQ(parse_point_name("before-upgrade").value(), PointName("before-upgrade"));
  EXPECT_EQ(parse_point_name("lsn:12").value(), PointName(Kind::kLsn, 12));
  EXPECT_EQ(parse_point_name("-90s").value(), PointName(Kind::kAgo, 90 * kSecond));
  EXPECT_EQ(parse_point_name("-10m").value(), PointName(Kind::kAgo, 600 * kSecond));
  EXPECT_EQ(parse_point_name("-24h").value(), PointName(Kind::kAgo, 86'400 * kSecond));
  EXPECT_EQ(parse_point_name("-7d").value(), PointName(Kind::kAgo, 7 * 86'400 * kSecond));
  EXPECT_EQ(parse_point_name("2026-11-21T10:00:00Z").value(), PointName(Kind::kTime, 1'795'255'200 * kSecond));
  EXPECT_EQ(parse_point_name("2026-11-21T11:30:00.25+01:30").value(), PointName(Kind::kTime, 1'795'255'200 * kSecond + kSecond / 4));
  EXPECT_EQ(time_text(1'795'255'200 * kSecond), "2026-11-21T10:00:00Z");
}

TEST(PointName, WhatIsNoneIsRefusedInWords) {
  for (const char* const bad : {"", "a b", "a/b", "-", "-10", "-10w", "-m", "--1m", "-1.5h", "lsn:", "lsn:0", "lsn:x", "lsn:-1", "2026-11-21",
                                "2026-11-21T10:00:00", "2026-13-01T10:00:00Z", "2026-02-30T10:00:00Z", "2026-11-21T24:00:00Z",
                                "2026-11-21T10:00:00.Z", "2026-11-21T10:00:00+1", "2026-11-21T10:00:00Zx", "7", "-99999999999999999999s"}) {
    const auto parsed = parse_point_name(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.error().code, EINVAL);
    EXPECT_NE(parsed.error().message.find(bad), std::string::npos) << parsed.error().message;
  }
}

TEST(VolumeSettings, AreKeptWhereTheyAreNotAsUsual) {
  std::vector<Setting> list;
  EXPECT_TRUE(put_setting(list, "when-full", "refuse-writes").ok());
  EXPECT_TRUE(put_setting(list, "history", "24h").ok());
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].key, "history");
  EXPECT_EQ(parse_settings(list).history, (Settings::History{Settings::History::Unit::kNanoseconds, 86'400 * kSecond}));
  EXPECT_TRUE(parse_settings(list).keep_history);
  EXPECT_TRUE(put_setting(list, "history", "10G").ok());
  EXPECT_EQ(parse_settings(list).history, (Settings::History{Settings::History::Unit::kLogBytes, uint64_t{10} << 30}));
  EXPECT_TRUE(put_setting(list, "history", "10M").ok());
  EXPECT_EQ(parse_settings(list).history.unit, Settings::History::Unit::kLogBytes) << "m is minutes, M is MiB";
  EXPECT_TRUE(put_setting(list, "history", "none").ok());
  EXPECT_EQ(list.size(), 1u);
  for (const char* const bad : {"", "0s", "0", "-1h", "1w", "often"}) EXPECT_EQ(put_setting(list, "history", bad).error().code, EINVAL) << bad;
  EXPECT_EQ(put_setting(list, "when-full", "maybe").error().code, EINVAL);
  EXPECT_EQ(put_setting(list, "colour", "red").error().code, EINVAL);
}

TEST(VolumeHistory, KnowsWhatWasThereWhenNothingWasWritten) {
  History history({}, 64);
  history.wrote(100 * kSecond, 1, 10);
  history.wrote(100 * kSecond + 1000, 2, 10);
  history.wrote(200 * kSecond, 3, 10);
  EXPECT_EQ(history.lsn_at(99 * kSecond), std::nullopt);
  EXPECT_EQ(history.lsn_at(150 * kSecond), 2u);
  EXPECT_EQ(history.lsn_at(200 * kSecond), 3u);
  EXPECT_EQ(history.lsn_at(300 * kSecond), 3u);
  EXPECT_EQ(history.wanted_from({Settings::History::Unit::kNanoseconds, 60 * kSecond}, 210 * kSecond), 2u);
  EXPECT_EQ(history.wanted_from({Settings::History::Unit::kLogBytes, 10}, 0), 2u);
  EXPECT_EQ(history.wanted_from({Settings::History::Unit::kLogBytes, 100}, 0), 0u);
  HistoryInfo stored;
  history.put_into(stored);
  const History again(stored, 64);
  EXPECT_EQ(again.lsn_at(150 * kSecond), 2u);
  EXPECT_EQ(again.lsn_at(300 * kSecond), 3u);
}

TEST(VolumeHistory, IsAsPreciseAsItIsNew) {
  constexpr size_t kMost = 256;
  constexpr uint64_t kStep = History::kGapNs;
  History history({}, kMost);
  constexpr uint64_t kCount = 200'000;  // some three hours
  for (uint64_t i = 1; i <= kCount; ++i) history.wrote(i * kStep, i, 1);
  HistoryInfo stored;
  history.put_into(stored);
  EXPECT_LE(stored.moments.size(), kMost);
  for (uint64_t age = 1; age < kCount; age *= 2) {
    const uint64_t wanted = kCount - age;
    const auto lsn = history.lsn_at(wanted * kStep);
    ASSERT_TRUE(lsn.has_value()) << age;
    EXPECT_LE(*lsn, wanted);
    EXPECT_GE(*lsn + 2 + age / 4, wanted) << age;
  }
}

}  // namespace
}  // namespace netblk::store::volume
