// SPDX-License-Identifier: GPL-2.0-only
// The engine as a whole, on a file in memory. The simulator (tests/sim) does far worse to it.
#include "store/volume/volume.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <random>

#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Ask;
using test::Bytes;
using test::kSize;
using test::place_of;
using test::VolumeTest;

coro::Task<void> walks(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  EXPECT_EQ(t.device->size_bytes(), kSize);
  int got = co_await VolumeTest::read(t, 0, kSize);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::write(t, 4096, 8192, 7);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 4096, 8192);
  EXPECT_EQ(got, 7);
  got = co_await VolumeTest::write(t, 512, 4096, 9);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 512, 4096);
  EXPECT_EQ(got, 9);
  got = co_await VolumeTest::read(t, 0, 512);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 4096 + 512, 8192 - 512);
  EXPECT_EQ(got, 7);
  got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::write(t, 1u << 20, 1u << 20, 5);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 1u << 20, 1u << 20);
  EXPECT_EQ(got, 5);
  got = co_await VolumeTest::simple(t, Command::kTrim, (1u << 20) + 100, 8192);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, (1u << 20) + 100, 8192);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, (1u << 20), 100);
  EXPECT_EQ(got, 5);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again) << t.message;
  if (!again) co_return;
  EXPECT_TRUE(t.volume->info().was_clean);
  EXPECT_EQ(t.volume->info().replayed_records, 0u);
  got = co_await VolumeTest::read(t, 512, 4096);
  EXPECT_EQ(got, 9);
  got = co_await VolumeTest::read(t, (1u << 20) + 100 + 8192, 50000);
  EXPECT_EQ(got, 5);
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok());
  EXPECT_TRUE(report.value().damage.empty());
  EXPECT_GT(report.value().blocks, 200u);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, WritesAreReadAndStay) { go(walks(*this)); }

coro::Task<void> crashes(VolumeTest& t, bool power) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (int round = 1; round < 20; ++round) {
    int got = co_await VolumeTest::write(t, static_cast<uint64_t>(round) * 65536, 20000, round, power);
    EXPECT_EQ(got, 0);
    co_await VolumeTest::crash(t, power);
    const bool opened = co_await VolumeTest::open(t);
    EXPECT_TRUE(opened) << t.message;
    if (!opened) co_return;
    EXPECT_FALSE(t.volume->info().was_clean);
    EXPECT_EQ(t.volume->info().damage, "");
    for (int earlier = 1; earlier <= round; ++earlier) {
      got = co_await VolumeTest::read(t, static_cast<uint64_t>(earlier) * 65536, 20000);
      EXPECT_EQ(got, earlier);
    }
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, AKilledProcessLosesNothingThatWasAnswered) { go(crashes(*this, false)); }
TEST_F(VolumeTest, APowerCutLosesNothingThatWasForced) { go(crashes(*this, true)); }

// --- What goes wrong ------------------------------------------------------------------------------------------------

coro::Task<void> no_space(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  t.disk.limit_bytes = kSegmentsAt + (16u << 16);
  (void)co_await VolumeTest::open(t);
  int got = 0, written = 0;
  for (; written < 200 && got == 0; ++written)
    got = co_await VolumeTest::write(t, static_cast<uint64_t>(written % 20) * 65536, 65536, 1 + written % 20);
  EXPECT_EQ(got, ENOSPC);
  EXPECT_GT(written, 4);
  got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, 0) << "nothing is lost";
  got = co_await VolumeTest::read(t, 65536, 65536);
  EXPECT_EQ(got, 2);
  got = co_await VolumeTest::simple(t, Command::kTrim, 0, kSize);
  EXPECT_EQ(got, 0) << "a trim works without space";
  // Space comes back by checkpoints, which an ENOSPC asks for.
  for (int i = 0; i < 100; ++i) {
    got = co_await VolumeTest::write(t, 0, 65536, 99);
    if (got == 0) break;
    EXPECT_EQ(got, ENOSPC);
    (void)co_await VolumeTest::simple(t, Command::kTrim, 0, 4096);
    co_await VolumeTest::let_others(t);
  }
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 0, 65536);
  EXPECT_EQ(got, 99);
  got = co_await VolumeTest::read(t, 65536, kSize - 65536);
  EXPECT_EQ(got, 0);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTest, WithoutSpaceWritesFailAndReadsTrimsAndFlushesGoOn) { go(no_space(*this)); }

// A request of the whole of the largest device: more records than a group has room for.
coro::Task<void> huge(VolumeTest& t) {
  constexpr uint64_t kHuge = uint64_t{6} << 50;
  co_await VolumeTest::create(t, kHuge, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int got = co_await VolumeTest::write(t, kHuge - 8192, 8192, 1);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::simple(t, Command::kTrim, 512, kHuge - 512 - 4096);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, kHuge - 8192, 4096);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, kHuge - 4096, 4096);
  EXPECT_EQ(got, 1);
  got = co_await VolumeTest::simple(t, Command::kWriteZeroes, 0, kHuge);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, kHuge - 4096, 4096);
  EXPECT_EQ(got, 0);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ARequestMayBeOfTheWholeOfAHugeDevice) { go(huge(*this)); }

coro::Task<void> poisoned(VolumeTest& t, bool by_sync) {
  int told = 0;
  t.options.on_poison = [&told] { ++told; };
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int got = co_await VolumeTest::write(t, 0, 4096, 1, true);
  EXPECT_EQ(got, 0);
  EXPECT_EQ(told, 0);
  if (by_sync) {
    got = co_await VolumeTest::write(t, 0, 4096, 2);
    EXPECT_EQ(got, 0);
    t.disk.fail_sync_at = 1;
    got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
    EXPECT_EQ(got, EIO);
  } else {
    t.disk.fail_write_at = 1;
    got = co_await VolumeTest::write(t, 0, 4096, 2);
    EXPECT_EQ(got, EIO);
  }
  EXPECT_EQ(told, 1) << "before the error is answered: the cache proves nothing any more";
  got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, EIO) << "a flush after a failed one is no better";
  got = co_await VolumeTest::write(t, 8192, 4096, 3);
  EXPECT_EQ(got, EIO);
  const auto named = co_await t.volume->snapshot("late");
  EXPECT_FALSE(named.ok());
  got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, by_sync ? 2 : 1) << "reads go on";
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_FALSE(closed);
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  EXPECT_FALSE(t.volume->info().was_clean);
  got = co_await VolumeTest::write(t, 8192, 4096, 3, true);
  EXPECT_EQ(got, 0);
  (void)co_await VolumeTest::close(t);
  t.options.on_poison = nullptr;
}
TEST_F(VolumeTest, AFailedSyncPoisonsUntilItIsOpenedAgain) { go(poisoned(*this, true)); }
TEST_F(VolumeTest, AFailedWritePoisonsUntilItIsOpenedAgain) { go(poisoned(*this, false)); }

coro::Task<void> bit_rot(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int got = co_await VolumeTest::write(t, 0, 3 * 4096, 0x51);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::write(t, 4096, 4096, 0x52, true);
  EXPECT_EQ(got, 0);
  const uint64_t at = place_of(t.disk.bytes, 0x52);
  t.disk.bytes[at + 100] ^= std::byte{1};
  got = co_await VolumeTest::read(t, 4096, 4096);
  EXPECT_EQ(got, -EIO - 1000);
  EXPECT_EQ(t.volume->info().bad_blocks, 1u);
  got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 0x51) << "its neighbours are as they were";
  got = co_await VolumeTest::read(t, 8192, 4096);
  EXPECT_EQ(got, 0x51);
  // A part of a damaged block cannot be changed: the rest of it is not known. All of it can.
  got = co_await VolumeTest::write(t, 4096, 512, 0x53);
  EXPECT_EQ(got, EIO);
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.value().damage.size(), 1u);
  EXPECT_NE(report.value().damage[0].find("block 1 "), std::string::npos) << report.value().damage[0];
  got = co_await VolumeTest::write(t, 4096, 4096, 0x54);
  EXPECT_EQ(got, 0);
  got = co_await VolumeTest::read(t, 4096, 4096);
  EXPECT_EQ(got, 0x54);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ABlockThatHasRottedIsAnErrorAndNeverData) { go(bit_rot(*this)); }

// `synced`: a later record says that it was durable.
coro::Task<void> damaged_log(VolumeTest& t, bool synced) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 0x61, synced);
  (void)co_await VolumeTest::write(t, 4096, 4096, 0x62, synced);
  (void)co_await VolumeTest::write(t, 8192, 4096, 0x63, synced);
  const uint64_t generation = t.volume->info().generation;
  const uint64_t at = place_of(t.disk.bytes, 0x62);
  co_await VolumeTest::crash(t, false);
  t.disk.bytes[at] ^= std::byte{1};
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  int got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 0x61);
  got = co_await VolumeTest::read(t, 4096, 8192);
  EXPECT_EQ(got, 0) << "a prefix, and nothing behind it";
  const VolumeInfo info = t.volume->info();
  got = co_await VolumeTest::write(t, 0, 4096, 0x64);
  if (synced) {
    EXPECT_TRUE(info.read_only);
    EXPECT_NE(info.damage, "");
    EXPECT_EQ(got, EROFS);
  } else {
    EXPECT_FALSE(info.read_only);
    EXPECT_TRUE(info.cut);
    EXPECT_GT(info.generation, generation);
    EXPECT_EQ(got, 0);
  }
  (void)co_await VolumeTest::close(t);
  // What was cut stays cut.
  t.disk.bytes[at] ^= std::byte{1};
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  got = co_await VolumeTest::read(t, 8192, 4096);
  EXPECT_EQ(got, synced ? 0x63 : 0);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ATornTailIsCutAndStaysCut) { go(damaged_log(*this, false)); }
TEST_F(VolumeTest, AHoleInWhatWasDurableIsNotCut) { go(damaged_log(*this, true)); }

coro::Task<void> one_superblock(VolumeTest& t, int slot) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (int i = 0; i < 30; ++i) {
    const int got = co_await VolumeTest::write(t, static_cast<uint64_t>(i) * 65536, 65536, i + 1, i % 4 == 0);
    EXPECT_EQ(got, 0);
    co_await VolumeTest::let_others(t);
  }
  co_await VolumeTest::crash(t, false);
  t.disk.bytes[kSuperblockAt[static_cast<size_t>(slot)] + 200] ^= std::byte{1};
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  for (int i = 0; i < 30; ++i) {
    const int got = co_await VolumeTest::read(t, static_cast<uint64_t>(i) * 65536, 65536);
    EXPECT_EQ(got, i + 1);
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, EitherSuperblockLeadsToAllOfIt) {
  go(one_superblock(*this, 0));
  go(one_superblock(*this, 1));
}

coro::Task<void> refused(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  const Bytes whole = t.disk.bytes;
  t.disk.bytes.clear();
  bool opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EBADMSG) << "an empty file";
  t.disk.bytes = whole;
  t.disk.bytes[kSuperblockAt[0] + 9] ^= std::byte{1};
  t.disk.bytes[kSuperblockAt[1] + 9] ^= std::byte{1};
  opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EBADMSG) << "both superblocks are damaged";
  t.disk.bytes = whole;
  t.disk.bytes[kSegmentsAt + 20] ^= std::byte{1};
  opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EBADMSG) << "the manifest is damaged";
  for (int shift = 0; shift < 3; ++shift) {
    t.disk.bytes = whole;
    for (size_t slot = 0; slot < 2; ++slot) {
      Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(kSuperblockAt[slot], kSuperblockBytes)).value();
      (shift == 0 ? superblock.compatible : shift == 1 ? superblock.read_only_compatible : superblock.incompatible) = 8;
      const SuperblockBytes bytes = encode(superblock);
      std::copy(bytes.begin(), bytes.end(), t.disk.bytes.begin() + static_cast<std::ptrdiff_t>(kSuperblockAt[slot]));
    }
    opened = co_await VolumeTest::open(t);
    EXPECT_EQ(opened, shift < 2);
    EXPECT_EQ(t.error, shift < 2 ? 0 : EPROTONOSUPPORT);
    if (opened) {
      EXPECT_EQ(t.volume->info().read_only, shift == 1);
    }
    if (opened) (void)co_await VolumeTest::close(t);
    t.options.read_only = true;
    opened = co_await VolumeTest::open(t);
    t.options.read_only = false;
    EXPECT_EQ(opened, shift < 2);
    if (opened) (void)co_await VolumeTest::close(t);
  }
}
TEST_F(VolumeTest, WhatIsNoVolumeOrNotKnownIsRefused) { go(refused(*this)); }

coro::Task<void> two_writers(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1, true);
  std::unique_ptr<io::File> file = std::make_unique<test::MemoryFile>(t.disk);
  auto other = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_TRUE(other.ok());
  int got = co_await VolumeTest::write(t, 0, 4096, 2, true);
  EXPECT_EQ(got, EIO) << "the one before is not told that its write is durable";
  got = co_await VolumeTest::write(t, 0, 4096, 3);
  EXPECT_EQ(got, EIO);
  (void)co_await VolumeTest::close(t);
  const Status closed = co_await other.value()->close();
  EXPECT_TRUE(closed.ok());
  other = make_error(0, "");
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 1) << "what a stale writer wrote does not count";
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, AStaleWriterIsStopped) { go(two_writers(*this)); }

// It stood still, had no lock any more, and goes on: its next record would be where the other one's are.
coro::Task<void> late_writer(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1, true);
  std::unique_ptr<io::File> file = std::make_unique<test::MemoryFile>(t.disk);
  auto other = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_TRUE(other.ok());
  auto device = other.value()->open_device().value();
  std::swap(t.device, device);
  int got = co_await VolumeTest::write(t, 0, 4096, 5, true);
  EXPECT_EQ(got, 0);
  std::swap(t.device, device);
  const uint64_t until = t.loop().now_ms() + 200;
  while (t.loop().now_ms() < until) co_await io::SleepUntil(t.loop(), until);
  got = co_await VolumeTest::write(t, 0, 4096, 2);
  EXPECT_EQ(got, EIO) << "not even in memory";
  got = co_await VolumeTest::write(t, 8192, 4096, 2, true);
  EXPECT_EQ(got, EIO);
  got = co_await VolumeTest::simple(t, Command::kTrim, 0, 4096);
  EXPECT_EQ(got, EIO);
  got = co_await VolumeTest::read(t, 0, 4096, device.get());
  EXPECT_EQ(got, 5) << "the other one's log is whole";
  (void)co_await VolumeTest::close(t);
  device.reset();
  // Without its close, as after a crash: the log is read.
  other = make_error(0, "");
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 5);
  EXPECT_EQ(t.volume->info().damage, "");
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ALateWriterChangesNothing) { go(late_writer(*this)); }

// It has nothing to write: what is free to it is where the other one has written.
coro::Task<void> late_rest(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  const VolumeOptions usual = t.options;
  bool is_told = false;
  t.options.idle_ms = 100;
  t.options.on_poison = [&is_told] { is_told = true; };
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1, true);
  t.options = usual;
  t.options.idle_ms = uint64_t{1} << 40;
  std::unique_ptr<io::File> file = std::make_unique<test::MemoryFile>(t.disk);
  auto other = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_TRUE(other.ok());
  auto device = other.value()->open_device().value();
  std::swap(t.device, device);
  for (uint64_t at = 0; at < kSize; at += 1u << 16) {
    const int got = co_await VolumeTest::write(t, at, 1u << 16, static_cast<int>(2 + (at >> 16)), true);
    EXPECT_EQ(got, 0);
  }
  std::swap(t.device, device);
  const uint64_t until_ms = t.loop().now_ms() + 60'000;
  while (!is_told && t.loop().now_ms() < until_ms) co_await VolumeTest::let_others(t);
  EXPECT_TRUE(is_told) << "it has rested, and has not looked";
  (void)co_await VolumeTest::close(t);
  device.reset();
  const Status closed = co_await other.value()->close();
  EXPECT_TRUE(closed.ok());
  other = make_error(0, "");
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  for (uint64_t at = 0; at < kSize; at += 1u << 16) {
    const int got = co_await VolumeTest::read(t, at, 1u << 16);
    EXPECT_EQ(got, static_cast<int>(2 + (at >> 16)));
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ALateWriterThatRestsGivesNothingBack) { go(late_rest(*this)); }

// It has nothing to write, and says that it was closed.
coro::Task<void> late_close(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  std::unique_ptr<io::File> file = std::make_unique<test::MemoryFile>(t.disk);
  auto other = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_TRUE(other.ok());
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_FALSE(closed);
  t.volume = std::move(other).value();
  t.device = t.volume->open_device().value();
  int got = co_await VolumeTest::write(t, 0, 4096, 5, true);
  EXPECT_EQ(got, 0);
  t.device.reset();
  t.volume.reset();
  const bool again = co_await VolumeTest::open(t);
  EXPECT_TRUE(again);
  got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 5);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ALateCloseChangesNothing) { go(late_close(*this)); }

coro::Task<void> read_only(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1);
  co_await VolumeTest::crash(t, false);
  const Bytes before = t.disk.bytes;
  t.options.read_only = true;
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened);
  int got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 1) << "the log is replayed, in memory";
  got = co_await VolumeTest::write(t, 0, 4096, 2);
  EXPECT_EQ(got, EROFS);
  got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, 0);
  const auto named = co_await t.volume->snapshot("x");
  EXPECT_EQ(named.error().code, EROFS);
  (void)co_await VolumeTest::close(t);
  EXPECT_TRUE(t.disk.bytes == before) << "nothing is written";
}
TEST_F(VolumeTest, AReadOnlyOpeningWritesNothing) { go(read_only(*this)); }

coro::Task<void> names(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  auto made = co_await t.volume->snapshot("a");
  EXPECT_TRUE(made.ok());
  made = co_await t.volume->snapshot("a");
  EXPECT_EQ(made.error().code, EEXIST);
  made = co_await t.volume->snapshot("no/name");
  EXPECT_EQ(made.error().code, EINVAL);
  const Status gone = co_await t.volume->remove("b");
  EXPECT_EQ(gone.error().code, ENOENT);
  EXPECT_EQ(t.volume->open_device("b").error().code, ENOENT);
  {
    const auto device = t.volume->open_device("a");
    EXPECT_TRUE(device.ok());
    const Status used = co_await t.volume->remove("a");
    EXPECT_EQ(used.error().code, EBUSY);
  }
  EXPECT_EQ(t.volume->snapshots().size(), 1u);
  const Bytes owners(100, std::byte{9});
  Bytes given = owners;
  const Status kept = co_await t.device->keep_owners(t.loop(), std::move(given));
  EXPECT_TRUE(kept.ok());
  co_await VolumeTest::crash(t, true);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->snapshots().size(), 1u);
  EXPECT_EQ(t.device->owners(), owners);
  (void)co_await VolumeTest::close(t);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->snapshots().size(), 1u);
  EXPECT_EQ(t.device->owners(), owners);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, NamesAndOwnersAreDurableWhenTheyAreAnswered) { go(names(*this)); }

// Each nth operation fails once: an error is told, nothing crashes, and what was forced is there the next time.
coro::Task<void> nth_fails(VolumeTest& t, int kind, int n, bool& reached) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  t.disk.durable = t.disk.bytes;
  (kind == 0 ? t.disk.fail_write_at : kind == 1 ? t.disk.fail_sync_at : t.disk.fail_read_at) = n;
  std::array<int, 12> forced{};
  bool opened = co_await VolumeTest::open(t);
  if (opened) {
    for (size_t i = 0; i < forced.size(); ++i) {
      const int got = co_await VolumeTest::write(t, i * 65536, 32768, static_cast<int>(i) + 1, true);
      forced[i] = got == 0;
    }
    (void)co_await VolumeTest::close(t);
  }
  int& left = kind == 0 ? t.disk.fail_write_at : kind == 1 ? t.disk.fail_sync_at : t.disk.fail_read_at;
  reached = left == 0;
  left = 0;
  t.disk.bytes = t.disk.durable;
  opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  EXPECT_EQ(t.volume->info().damage, "");
  for (size_t i = 0; i < forced.size(); ++i) {
    const int got = co_await VolumeTest::read(t, i * 65536, 32768);
    if (forced[i] != 0) {
      EXPECT_EQ(got, static_cast<int>(i) + 1);
    } else {
      EXPECT_TRUE(got == 0 || got == static_cast<int>(i) + 1) << got;
    }
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, EachOperationMayFailOnce) {
  for (int kind = 0; kind < 3; ++kind) {
    bool reached = true;
    for (int n = 1; reached && n < 500 && !HasFailure(); ++n) {
      SCOPED_TRACE("kind " + std::to_string(kind) + ", operation " + std::to_string(n));
      go(nth_fails(*this, kind, n, reached));
    }
  }
}

// Reads, changes, snapshots and crashes against a copy in memory.
coro::Task<void> random_walk(VolumeTest& t, uint64_t seed, size_t most_bytes) {
  std::mt19937_64 random(seed);
  co_await VolumeTest::create(t, kSize, 1u << 16);
  t.disk.most_bytes = most_bytes;
  Bytes model(kSize);
  std::map<std::string, Bytes> snapshots;
  bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  for (int step = 0; step < 1500 && opened; ++step) {
    const uint64_t kind = random() % 100;
    const uint64_t length = 512 * (1 + random() % (random() % 8 == 0 ? 512 : 20));
    const uint64_t at = 512 * (random() % ((kSize - length) / 512 + 1));
    Ask ask(t.loop());
    if (kind < 45) {
      ask.as(Command::kWrite, at, length, random() % 8 == 0);
      const bool zeroes = random() % 8 == 0;
      for (std::byte& byte : ask.buffer) byte = zeroes ? std::byte{0} : static_cast<std::byte>(random());
      const Bytes written = ask.buffer;
      const int got = co_await run(*t.device, ask);
      EXPECT_EQ(got, 0);
      std::copy(written.begin(), written.end(), model.begin() + static_cast<std::ptrdiff_t>(at));
    } else if (kind < 55) {
      ask.as(random() % 2 == 0 ? Command::kTrim : Command::kWriteZeroes, at, length);
      ask.keep_allocated = random() % 2 == 0;
      const int got = co_await run(*t.device, ask);
      EXPECT_EQ(got, 0);
      std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(at), length, std::byte{0});
    } else if (kind < 60) {
      ask.as(Command::kFlush, 0, 0);
      const int got = co_await run(*t.device, ask);
      EXPECT_EQ(got, 0);
    } else if (kind < 62 && snapshots.size() < 8) {
      const std::string name = "s" + std::to_string(step);
      const auto made = co_await t.volume->snapshot(name);
      EXPECT_TRUE(made.ok());
      snapshots[name] = model;
    } else if (kind < 63 && !snapshots.empty()) {
      const std::string name = snapshots.begin()->first;
      const Status gone = co_await t.volume->remove(name);
      EXPECT_TRUE(gone.ok());
      snapshots.erase(name);
    } else if (kind < 65) {
      if (random() % 2 == 0) {
        const bool closed = co_await VolumeTest::close(t);
        EXPECT_TRUE(closed);
      } else {
        co_await VolumeTest::crash(t, false);
      }
      opened = co_await VolumeTest::open(t);
      EXPECT_TRUE(opened) << t.message;
      if (opened) {
        EXPECT_EQ(t.volume->info().damage, "");
      }
    } else if (kind < 67 && !snapshots.empty()) {
      auto chosen = snapshots.begin();
      std::advance(chosen, random() % snapshots.size());
      auto device = t.volume->open_device(chosen->first);
      EXPECT_TRUE(device.ok());
      ask.as(Command::kRead, 0, kSize);
      const int got = co_await run(*device.value(), ask);
      EXPECT_EQ(got, 0);
      EXPECT_TRUE(ask.buffer == chosen->second) << chosen->first << " at step " << step;
      ask.as(Command::kWrite, 0, 512);
      const int refused = co_await run(*device.value(), ask);
      EXPECT_EQ(refused, EROFS);
    } else {
      ask.as(Command::kRead, at, length);
      const int got = co_await run(*t.device, ask);
      EXPECT_EQ(got, 0);
      const bool same = std::equal(ask.buffer.begin(), ask.buffer.end(), model.begin() + static_cast<std::ptrdiff_t>(at));
      EXPECT_TRUE(same) << "at step " << step;
      if (!same) break;
    }
    if (testing::Test::HasFailure()) break;
  }
  if (t.volume) {
    (void)co_await VolumeTest::close(t);
  }
}
TEST_F(VolumeTest, ARandomWalkIsAsAMemory) {
  const char* const given = std::getenv("NETBLK_SEED");
  const uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  for (uint64_t seed = first; seed < first + 4 && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    go(random_walk(*this, seed, seed % 2 == 0 ? SIZE_MAX : 300 + seed % 5000));
  }
}

}  // namespace
}  // namespace netblk::store::volume
