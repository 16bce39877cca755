// SPDX-License-Identifier: GPL-2.0-only
// The model passes what a volume may do, and fails what it must not.
#include "sim/volume/model.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

namespace netblk::sim {
namespace {

// A rule that was broken, as an exception: World::fail() must not return.
struct Broken {
  std::string rule;
};

class VolumeModelTest : public testing::Test {
 protected:
  VolumeModelTest() {
    World::set_failure_handler([](const World&, std::string_view rule, std::string_view) { throw Broken{std::string(rule)}; });
  }

  uint64_t write(uint64_t first, uint64_t count, bool durable = false) {
    const uint64_t number = model.begin_change(first, count, ++stamp, durable);
    model.end_change(number, 0);
    return stamp;
  }
  void flush() {
    const uint64_t covered = model.begin_flush();
    model.end_flush(covered);
  }
  // The head with these sectors, in pairs of sector and stamp, and zeroes elsewhere.
  static VolumeModel::Found head(std::initializer_list<std::pair<uint64_t, Stamp>> sectors) {
    VolumeModel::Found found{Contents(8), {}};
    for (const auto& [sector, what] : sectors) found.head.set(sector, what);
    return found;
  }
  bool passes(const VolumeModel::Found& found, VolumeModel::Loss loss) {
    VolumeModel tried = model;
    try {
      (void)tried.adopt(world, found, loss);
      return true;
    } catch (const Broken&) {
      return false;
    }
  }

  World world{1};
  VolumeModel model{8};
  Stamp stamp = 0;
  static constexpr auto kNothing = VolumeModel::Loss::kNothing;
  static constexpr auto kUnflushed = VolumeModel::Loss::kUnflushed;
  static constexpr auto kAnything = VolumeModel::Loss::kAnything;
};

TEST_F(VolumeModelTest, APrefixMayBeLeftByAPowerCutAndNothingElse) {
  write(0, 1);
  flush();
  write(1, 1);
  write(0, 1);
  EXPECT_TRUE(passes(head({{0, 1}}), kUnflushed));
  EXPECT_TRUE(passes(head({{0, 1}, {1, 2}}), kUnflushed));
  EXPECT_TRUE(passes(head({{0, 3}, {1, 2}}), kUnflushed));
  EXPECT_FALSE(passes(head({}), kUnflushed)) << "flushed";
  EXPECT_FALSE(passes(head({{0, 3}}), kUnflushed)) << "a later one without the one before";
  EXPECT_TRUE(passes(head({}), kAnything));
  EXPECT_FALSE(passes(head({{0, 3}}), kAnything));
}

TEST_F(VolumeModelTest, AProcessThatEndsLosesNothingAnswered) {
  write(0, 1);
  write(1, 1);
  EXPECT_TRUE(passes(head({{0, 1}, {1, 2}}), kNothing));
  EXPECT_FALSE(passes(head({{0, 1}}), kNothing));
}

TEST_F(VolumeModelTest, WhatWasNotAnsweredIsThereWholeOrNot) {
  write(0, 1);
  (void)model.begin_change(2, 2, 50, false);
  EXPECT_TRUE(passes(head({{0, 1}}), kNothing));
  EXPECT_TRUE(passes(head({{0, 1}, {2, 50}, {3, 50}}), kNothing));
  EXPECT_FALSE(passes(head({{0, 1}, {2, 50}}), kNothing)) << "half of it";
  EXPECT_FALSE(passes(head({{2, 50}, {3, 50}}), kUnflushed)) << "it is behind all that was answered";
}

TEST_F(VolumeModelTest, UnansweredOnesHaveAnyOrder) {
  (void)model.begin_change(0, 2, 50, false);
  (void)model.begin_change(1, 2, 51, false);
  EXPECT_TRUE(passes(head({{0, 50}, {1, 51}, {2, 51}}), kNothing));
  EXPECT_TRUE(passes(head({{0, 50}, {1, 50}, {2, 51}}), kNothing));
  EXPECT_TRUE(passes(head({{1, 51}, {2, 51}}), kNothing));
  EXPECT_FALSE(passes(head({{0, 50}, {1, 51}}), kNothing));
}

TEST_F(VolumeModelTest, LongRequestsAreWholePartByPart) {
  constexpr uint64_t kPart = 2048;
  VolumeModel large(3 * kPart);
  (void)large.begin_change(0, 2 * kPart + 8, 9, false);
  for (const uint64_t count : {uint64_t{0}, kPart, 2 * kPart, 2 * kPart + 8, kPart - 1, kPart + 8}) {
    VolumeModel::Found found{Contents(3 * kPart), {}};
    for (uint64_t i = 0; i < count; ++i) found.head.set(i, 9);
    VolumeModel tried = large;
    const bool whole = count % kPart == 0 || count == 2 * kPart + 8;
    try {
      (void)tried.adopt(world, found, kNothing);
      EXPECT_TRUE(whole) << count;
    } catch (const Broken&) {
      EXPECT_FALSE(whole) << count;
    }
  }
}

TEST_F(VolumeModelTest, AfterENOSPCNothingIsThereAndAfterEIOItMayBe) {
  model.end_change(model.begin_change(0, 1, 50, false), ENOSPC);
  EXPECT_FALSE(passes(head({{0, 50}}), kNothing));
  model.end_change(model.begin_change(1, 1, 51, false), EIO);
  EXPECT_TRUE(passes(head({{1, 51}}), kNothing));
  EXPECT_TRUE(passes(head({}), kNothing));
}

TEST_F(VolumeModelTest, ForcedUnitAccessCoversWhatIsBeforeIt) {
  write(0, 1);
  write(1, 1, true);
  EXPECT_FALSE(passes(head({{0, 1}}), kUnflushed));
}

TEST_F(VolumeModelTest, AFlushCoversWhatWasAnsweredWhenItBegan) {
  write(0, 1);
  const uint64_t covered = model.begin_flush();
  write(1, 1);
  model.end_flush(covered);
  EXPECT_TRUE(passes(head({{0, 1}}), kUnflushed));
  EXPECT_FALSE(passes(head({}), kUnflushed));
}

TEST_F(VolumeModelTest, SnapshotsAreOfTheirMoment) {
  write(0, 1);
  model.begin_snapshot("s");
  model.end_snapshot("s", 0);
  write(0, 1);
  VolumeModel::Found found = head({{0, 2}});
  EXPECT_FALSE(passes(found, kNothing)) << "gone";
  EXPECT_TRUE(passes(found, kAnything));
  Contents then(8);
  found.snapshots.emplace("s", then);
  EXPECT_FALSE(passes(found, kNothing)) << "too old";
  found.snapshots.at("s").set(0, 2);
  EXPECT_FALSE(passes(found, kNothing)) << "too new";
  found.snapshots.at("s").set(0, 1);
  EXPECT_TRUE(passes(found, kNothing));
  found.snapshots.emplace("other", then);
  EXPECT_FALSE(passes(found, kNothing)) << "nobody made it";
}

TEST_F(VolumeModelTest, ASnapshotMayHaveWhatWasUnderWay) {
  const uint64_t number = model.begin_change(0, 1, 50, false);
  model.begin_snapshot("s");
  model.end_snapshot("s", 0);
  model.end_change(number, 0);
  VolumeModel::Found found = head({{0, 50}});
  found.snapshots.emplace("s", Contents(8));
  EXPECT_TRUE(passes(found, kNothing));
  found.snapshots.at("s").set(0, 50);
  EXPECT_TRUE(passes(found, kNothing));
}

TEST_F(VolumeModelTest, UnreadableSectorsSayNothingAndTheOthersDo) {
  write(0, 1);
  write(1, 1);
  VolumeModel::Found found = head({{0, kUnreadable}, {1, 2}});
  EXPECT_TRUE(passes(found, kAnything));
  found = head({{0, kUnreadable}, {1, 1}});
  EXPECT_FALSE(passes(found, kAnything));
}

TEST_F(VolumeModelTest, AReadGivesTheNewestOrWhatIsUnderWay) {
  std::vector<std::byte> bytes(kVolumeSector);
  const auto gives = [&](const VolumeModel::Reading& reading, Stamp what) {
    fill_sectors(bytes, 0, what);
    try {
      model.end_read(world, reading, bytes);
      return true;
    } catch (const Broken&) {
      return false;
    }
  };
  write(0, 1);
  write(0, 1);
  auto reading = model.begin_read(0, 1);
  EXPECT_TRUE(gives(reading, 2));
  EXPECT_FALSE(gives(reading, 1));
  EXPECT_FALSE(gives(reading, 0));
  write(0, 1);
  EXPECT_TRUE(gives(reading, 3));
  const uint64_t number = model.begin_change(0, 1, 50, false);
  reading = model.begin_read(0, 1);
  EXPECT_TRUE(gives(reading, 50));
  EXPECT_TRUE(gives(reading, 3));
  EXPECT_FALSE(gives(reading, 2));
  model.end_change(number, 0);
  fill_sectors(bytes, 1, 50);
  EXPECT_THROW(model.end_read(world, reading, bytes), Broken) << "another sector's bytes";
}

TEST_F(VolumeModelTest, ItGoesOnFromWhatWasFound) {
  write(0, 1);
  flush();
  write(1, 1);
  (void)model.adopt(world, head({{0, 1}}), kUnflushed);
  write(2, 1);
  EXPECT_TRUE(passes(head({{0, 1}, {2, 3}}), kNothing));
  EXPECT_FALSE(passes(head({{0, 1}, {1, 2}, {2, 3}}), kUnflushed)) << "what was gone has come back";
  EXPECT_FALSE(passes(head({{0, 1}, {1, 2}}), kUnflushed));
}

}  // namespace
}  // namespace netblk::sim
