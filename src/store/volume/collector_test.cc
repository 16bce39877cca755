// SPDX-License-Identifier: GPL-2.0-only
// A volume that is overwritten, and trimmed, and full: what the collector makes of it.
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <vector>

#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::kSize;
using test::VolumeTest;

constexpr uint64_t kSegment = 1u << 16;
constexpr uint64_t kBlocks = kSize / kBlockBytes;

class CollectorTest : public VolumeTest {
 protected:
  CollectorTest() { options = {.checkpoint_bytes = 256u << 10, .spare_segments = 2, .idle_ms = 1}; }

 public:
  // What each block was written with last.
  std::vector<int> expected = std::vector<int>(kBlocks, 0);
  uint64_t random = 1;

  uint64_t below(uint64_t limit) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % limit;
  }
  static coro::Task<int> put(CollectorTest& t, uint64_t block, int value) {
    const int error = co_await write(t, block * kBlockBytes, kBlockBytes, value);
    if (error == 0) t.expected[block] = value;
    co_return error;
  }
  static coro::Task<void> fill(CollectorTest& t) {
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const int error = co_await put(t, block, static_cast<int>(1 + block % 250));
      EXPECT_EQ(error, 0);
    }
  }
  static coro::Task<void> overwrite(CollectorTest& t, uint64_t writes) {
    for (uint64_t i = 0; i < writes; ++i) {
      const uint64_t block = t.below(kBlocks);
      const int error = co_await put(t, block, static_cast<int>(1 + t.below(250)));
      EXPECT_EQ(error, 0);
      if (error != 0) co_return;
    }
  }
  static coro::Task<void> expect_all(CollectorTest& t) {
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const int found = co_await read(t, block * kBlockBytes, kBlockBytes);
      EXPECT_EQ(found, t.expected[block]) << block;
      if (found != t.expected[block]) co_return;
    }
  }
  // Until nothing is done any more.
  static coro::Task<void> rest(CollectorTest& t, uint64_t most_bytes) {
    for (int i = 0; i < 60'000 && t.volume->info().file_bytes > most_bytes; ++i) co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 1);
    EXPECT_LE(t.volume->info().file_bytes, most_bytes);
  }
  // So far as can be seen: while it does something, it syncs.
  static coro::Task<bool> comes_to_rest(CollectorTest& t) {
    int syncs = -1, still = 0;
    for (int i = 0; still < 20 && i < 10'000; ++i) {
      still = syncs == t.disk.syncs ? still + 1 : 0;
      syncs = t.disk.syncs;
      co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 3);
    }
    co_return still == 20;
  }
  // The factor, the spare segments, the reserve, and what is being filled.
  static uint64_t most_for(uint64_t live_bytes) { return kSegmentsAt + live_bytes / 100 * 130 + 12 * kSegment; }
};

coro::Task<void> stays_small(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  co_await CollectorTest::overwrite(t, 4 * kBlocks);
  EXPECT_GT(t.volume->info().collected_bytes, 0u);
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  co_await CollectorTest::expect_all(t);
  co_await VolumeTest::crash(t, false);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::expect_all(t);
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, AFullVolumeThatIsOverwrittenStaysSmall) { go(stays_small(*this)); }

coro::Task<void> keeps_snapshots(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  (void)co_await t.volume->snapshot("before");
  const std::vector<int> before = t.expected;
  co_await CollectorTest::overwrite(t, 4 * kBlocks);
  EXPECT_GT(t.volume->info().collected_bytes, 0u);
  auto device = t.volume->open_device("before");
  EXPECT_TRUE(device.ok());
  if (!device) co_return;
  for (uint64_t block = 0; block < kBlocks; ++block) {
    const int found = co_await VolumeTest::read(t, block * kBlockBytes, kBlockBytes, device.value().get());
    EXPECT_EQ(found, before[block]) << block;
  }
  device.value().reset();
  const Status deleted = co_await t.volume->remove("before");
  EXPECT_TRUE(deleted.ok());
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  EXPECT_GT(t.disk.punched_bytes, 0u);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WhatASnapshotReadsIsKeptAndItsDeletionGivesSpaceBack) { go(keeps_snapshots(*this)); }

coro::Task<void> trimmed(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  const int error = co_await VolumeTest::simple(t, Command::kTrim, 0, kSize - 4 * kBlockBytes);
  EXPECT_EQ(error, 0);
  co_await CollectorTest::rest(t, CollectorTest::most_for(4 * kBlockBytes));
  for (uint64_t block = 0; block < kBlocks - 4; ++block) t.expected[block] = 0;
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, ATrimGivesSpaceBackWhenTheVolumeRests) { go(trimmed(*this)); }

// The file system has room for the volume and little more: writes over what is there go on for ever.
coro::Task<void> full(CollectorTest& t, bool can_allocate) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.disk.can_allocate = can_allocate;
  t.disk.limit_bytes = kSegmentsAt + 2 * kSize;
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  co_await CollectorTest::overwrite(t, 3 * kBlocks);
  co_await CollectorTest::expect_all(t);
  // A snapshot keeps everything: now there is an end.
  (void)co_await t.volume->snapshot("all");
  int error = 0;
  for (uint64_t i = 0; i < 4 * kBlocks && error == 0; ++i) error = co_await CollectorTest::put(t, t.below(kBlocks), 9);
  EXPECT_EQ(error, ENOSPC);
  co_await CollectorTest::expect_all(t);
  error = co_await VolumeTest::simple(t, Command::kTrim, 0, kBlockBytes);
  EXPECT_EQ(error, 0);
  t.expected[0] = 0;
  const Status deleted = co_await t.volume->remove("all");
  EXPECT_TRUE(deleted.ok());
  co_await CollectorTest::overwrite(t, 2 * kBlocks);
  co_await CollectorTest::expect_all(t);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::expect_all(t);
  co_await CollectorTest::overwrite(t, kBlocks);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WithoutSpaceWritersWaitWhileSomethingCanBeFreed) { go(full(*this, true)); }
TEST_F(CollectorTest, AFileThatCannotAllocateIsFilledBefore) { go(full(*this, false)); }

// Of a size at which the index takes more segments than are kept for it, and written in no order, so that a snapshot's deletion
// concerns all of it.
constexpr uint64_t kLarge = 64u << 20;

coro::Task<int> overwrite_large(CollectorTest& t, uint64_t writes) {
  int error = 0;
  for (uint64_t i = 0; i < writes && error == 0; ++i)
    error = co_await VolumeTest::write(t, t.below(kLarge / kBlockBytes) * kBlockBytes, kBlockBytes, static_cast<int>(1 + t.below(250)));
  co_return error;
}

coro::Task<void> deletes_when_full(CollectorTest& t, bool history) {
  co_await VolumeTest::create(t, kLarge, kSegment);
  t.options.checkpoint_bytes = 1u << 20;
  t.disk.keeps_durable = false;
  t.disk.limit_bytes = kSegmentsAt + kLarge / 2 * 3;
  (void)co_await VolumeTest::open(t);
  for (uint64_t i = 0, block = 0; i < kLarge / kBlockBytes; ++i, block = (block + 4099) % (kLarge / kBlockBytes)) {
    const int error = co_await VolumeTest::write(t, block * kBlockBytes, kBlockBytes, 1);
    EXPECT_EQ(error, 0);
  }
  if (history) {
    const Status set = co_await t.volume->set("history", "1T");
    EXPECT_TRUE(set.ok());
    const Status stays = co_await t.volume->set("when-full", "refuse-writes");
    EXPECT_TRUE(stays.ok());
  } else {
    const auto made = co_await t.volume->snapshot("all");
    EXPECT_TRUE(made.ok());
  }
  int error = co_await overwrite_large(t, 2 * kLarge / kBlockBytes);
  EXPECT_EQ(error, ENOSPC);
  if (history) {
    const Status none = co_await t.volume->set("history", "none");
    EXPECT_TRUE(none.ok());
  } else {
    const Status deleted = co_await t.volume->remove("all");
    EXPECT_TRUE(deleted.ok());
  }
  error = co_await overwrite_large(t, kLarge / kBlockBytes);
  EXPECT_EQ(error, 0);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  (void)co_await VolumeTest::open(t);
  EXPECT_FALSE(t.volume->info().read_only);
  error = co_await overwrite_large(t, 1000);
  EXPECT_EQ(error, 0);
  co_await CollectorTest::rest(t, CollectorTest::most_for(kLarge) + t.volume->info().index_bytes * 2);
  // Then all of the table is in the index.
  (void)co_await VolumeTest::close(t);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->info().live_bytes, kLarge) << "nothing of what was deleted is counted any more";
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, AFullVolumeWithALargeIndexIsFreedByADeletion) { go(deletes_when_full(*this, false)); }
TEST_F(CollectorTest, AFullVolumeWithALargeIndexIsFreedByTheEndOfItsHistory) { go(deletes_when_full(*this, true)); }

// Nothing is written after it: what only that device has read is found by the volume at rest.
coro::Task<void> releases_a_moment(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  (void)co_await VolumeTest::open(t);
  (void)co_await t.volume->set("history", "1T");
  co_await CollectorTest::fill(t);
  auto moment = t.volume->open_device(PointName(PointName::Kind::kLsn, t.volume->info().last_lsn));
  EXPECT_TRUE(moment.ok());
  if (!moment) co_return;
  co_await CollectorTest::overwrite(t, 2 * kBlocks);
  (void)co_await t.volume->set("history", "none");
  bool rests = co_await CollectorTest::comes_to_rest(t);
  EXPECT_TRUE(rests);
  EXPECT_GT(t.volume->info().live_bytes, kSize / 2 * 3);
  moment.value().reset();
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  EXPECT_LT(t.volume->info().live_bytes, kSize / 2 * 3);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WhatOnlyAReleasedMomentHasReadIsFreed) { go(releases_a_moment(*this)); }

// Within what the file may have, what becomes free stays there, and is written again.
coro::Task<void> keeps_what_is_free(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.options.spare_segments = 2 * kSize / kSegment;
  t.options.idle_ms = 3'600'000;
  (void)co_await VolumeTest::open(t);
  for (int i = 0; i < 4; ++i) co_await CollectorTest::fill(t);
  EXPECT_EQ(t.disk.punched_bytes, 0u);
  const uint64_t had = t.volume->info().file_bytes;
  EXPECT_LE(had, CollectorTest::most_for(kSize) + t.options.spare_segments * kSegment);
  for (int i = 0; i < 8; ++i) co_await CollectorTest::fill(t);
  EXPECT_EQ(t.disk.punched_bytes, 0u);
  EXPECT_LE(t.volume->info().file_bytes, had + 4 * kSegment);
  co_await CollectorTest::expect_all(t);
  co_await VolumeTest::crash(t, false);
  (void)co_await VolumeTest::open(t);
  EXPECT_FALSE(t.volume->info().read_only) << t.volume->info().damage;
  co_await CollectorTest::expect_all(t);
  co_await CollectorTest::fill(t);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  EXPECT_GT(t.disk.punched_bytes, 0u) << "a closed one keeps nothing";
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, UnderWritesNothingIsGivenBackWithinTheFactor) { go(keeps_what_is_free(*this)); }

// Where a write to what was written before may find no space, what is free is given back, and asked for again.
coro::Task<void> keeps_nothing_elsewhere(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.options.spare_segments = 2 * kSize / kSegment;
  t.options.idle_ms = 3'600'000;
  t.options.overwrites_in_place = false;
  (void)co_await VolumeTest::open(t);
  for (int i = 0; i < 6; ++i) co_await CollectorTest::fill(t);
  EXPECT_GT(t.disk.punched_bytes, kSize);
  EXPECT_LE(t.volume->info().file_bytes, kSegmentsAt + 3 * kSize);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, NothingIsKeptWhereAnOverwriteNeedsSpace) { go(keeps_nothing_elsewhere(*this)); }

// The same volume, when nobody writes any more.
coro::Task<void> gives_back_at_rest(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.options.spare_segments = 2 * kSize / kSegment;
  t.options.idle_ms = 50;
  (void)co_await VolumeTest::open(t);
  for (int i = 0; i < 4; ++i) co_await CollectorTest::fill(t);
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  EXPECT_GT(t.disk.punched_bytes, 0u);
  const bool rests = co_await CollectorTest::comes_to_rest(t);
  EXPECT_TRUE(rests);
  co_await CollectorTest::expect_all(t);
  co_await CollectorTest::fill(t);
  co_await CollectorTest::rest(t, CollectorTest::most_for(kSize));
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, AtRestWhatWasKeptForWritesIsGivenBack) { go(gives_back_at_rest(*this)); }

// Less than live data and what the factor allows: what is kept is written before anybody is told that there is no space.
coro::Task<void> keeps_in_a_full_one(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.options.spare_segments = 8 * kSize / kSegment;
  t.options.idle_ms = 3'600'000;
  t.disk.limit_bytes = kSegmentsAt + 2 * kSize;
  (void)co_await VolumeTest::open(t);
  for (int i = 0; i < 6; ++i) co_await CollectorTest::fill(t);
  co_await CollectorTest::overwrite(t, 3 * kBlocks);
  co_await CollectorTest::expect_all(t);
  EXPECT_LE(t.disk.bytes.size(), t.disk.limit_bytes);
  (void)co_await t.volume->snapshot("all");
  int error = 0;
  for (uint64_t i = 0; i < 4 * kBlocks && error == 0; ++i) error = co_await CollectorTest::put(t, t.below(kBlocks), 9);
  EXPECT_EQ(error, ENOSPC);
  co_await CollectorTest::expect_all(t);
  const Status deleted = co_await t.volume->remove("all");
  EXPECT_TRUE(deleted.ok());
  co_await CollectorTest::overwrite(t, 2 * kBlocks);
  co_await CollectorTest::expect_all(t);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WhatIsKeptIsWrittenBeforeThereIsNoSpace) { go(keeps_in_a_full_one(*this)); }

// What is free stays in the file, and is used again: to collect what is left would give nothing back.
coro::Task<void> cannot_punch(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  t.options.spare_segments = 16;
  t.disk.can_punch = false;
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  const int error = co_await VolumeTest::simple(t, Command::kTrim, 0, kSize - 4 * kBlockBytes);
  EXPECT_EQ(error, 0);
  for (int i = 0; i < 60'000 && t.volume->info().free_segments < kSize / kSegment; ++i)
    co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 1);
  EXPECT_GE(t.volume->info().free_segments, kSize / kSegment);
  for (int i = 0; i < 8 * 15; ++i) {
    const int wrote = co_await CollectorTest::put(t, kBlocks - 1, 7);
    EXPECT_EQ(wrote, 0);
    co_await VolumeTest::let_others(t);
  }
  EXPECT_EQ(t.volume->info().collected_bytes, 0u);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WhereSpaceCannotBeGivenBackItIsNotCollectedFor) { go(cannot_punch(*this)); }

// A manifest of more than half a segment, so that each checkpoint begins another one and leaves the one before.
coro::Task<void> idles(CollectorTest& t) {
  co_await VolumeTest::create(t, 64u << 20, kSegment);
  t.disk.keeps_durable = false;
  t.options.checkpoint_bytes = 8u << 20;
  (void)co_await VolumeTest::open(t);
  const Status kept = co_await t.device->keep_owners(t.loop(), std::vector<std::byte>(20'000, std::byte{1}));
  EXPECT_TRUE(kept.ok());
  for (uint64_t at = 0; at < 60u << 20; at += 1u << 20) {
    const int error = co_await VolumeTest::write(t, at, 1u << 20, 3);
    EXPECT_EQ(error, 0);
  }
  // As many checkpoints as it takes, and then no more: what each of them would free is what the one before needed.
  static constexpr std::array kFactors = {"1.4", "1.5", "1.6"};
  for (const char* const factor : kFactors) {
    const bool rests = co_await CollectorTest::comes_to_rest(t);
    EXPECT_TRUE(rests) << "before " << factor;
    const Status set = co_await t.volume->set("space-factor", factor);
    EXPECT_TRUE(set.ok());
  }
  const bool rests = co_await CollectorTest::comes_to_rest(t);
  EXPECT_TRUE(rests);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, AVolumeAtRestComesToAnEnd) { go(idles(*this)); }

// One block of a segment has rotted: the rest of the volume is collected, and the block is an error, not another's bytes.
coro::Task<void> rotten(CollectorTest& t) {
  co_await VolumeTest::create(t, kSize, kSegment);
  (void)co_await VolumeTest::open(t);
  co_await CollectorTest::fill(t);
  (void)co_await VolumeTest::write(t, 0, kBlockBytes, 251);
  t.disk.bytes[test::place_of(t.disk.bytes, 251) + 100] ^= std::byte{1};
  for (uint64_t i = 0; i < 4 * kBlocks; ++i) {
    const int error = co_await CollectorTest::put(t, 1 + t.below(kBlocks - 1), static_cast<int>(1 + t.below(250)));
    EXPECT_EQ(error, 0);
  }
  EXPECT_GT(t.volume->info().collected_bytes, 0u);
  const int found = co_await VolumeTest::read(t, 0, kBlockBytes);
  EXPECT_EQ(found, -EIO - 1000);
  const int error = co_await CollectorTest::put(t, 0, 5);
  EXPECT_EQ(error, 0);
  co_await CollectorTest::expect_all(t);
  (void)co_await VolumeTest::close(t);
}
TEST_F(CollectorTest, WhatHasRottenIsNotCarriedOn) { go(rotten(*this)); }

}  // namespace
}  // namespace netblk::store::volume
