// SPDX-License-Identifier: GPL-2.0-only
// What the lying disk promises, and how it lies.
#include "sim/volume/lying_disk.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "coro/scope.h"
#include "sim/sim_loop.h"

namespace netblk::sim {
namespace {

std::vector<std::byte> bytes_of(char what, size_t count) { return std::vector<std::byte>(count, static_cast<std::byte>(what)); }

char at(const DiskState& state, uint64_t offset) {
  std::byte one;
  state.cache().read(offset, {&one, 1});
  return static_cast<char>(one);
}

DiskState synced(char what, uint64_t sectors) {
  DiskState state;
  state.write(0, bytes_of(what, sectors * kDiskSector), {});
  state.sync(state.written());
  return state;
}

TEST(DiskState, WhatIsSyncedOutlivesAPowerCut) {
  Random random(1);
  for (int i = 0; i < 100; ++i) {
    DiskState state = synced('a', 4);
    state.write(2 * kDiskSector, bytes_of('b', kDiskSector), {});
    state.cut_power(static_cast<Survival>(random.below(static_cast<uint64_t>(Survival::kLast))), random);
    EXPECT_EQ(at(state, 0), 'a');
    EXPECT_EQ(at(state, 3 * kDiskSector), 'a');
    EXPECT_TRUE(at(state, 2 * kDiskSector) == 'a' || at(state, 2 * kDiskSector) == 'b');
    EXPECT_FALSE(state.has_unsynced());
  }
}

TEST(DiskState, EachUnsyncedSectorIsKeptOrLostByItself) {
  Random random(2);
  std::string seen[2];
  for (int i = 0; i < 200; ++i) {
    DiskState state = synced('a', 2);
    state.write(0, bytes_of('b', 2 * kDiskSector), {});
    state.cut_power(Survival::kEach, random);
    const bool first = at(state, 0) == 'b', second = at(state, kDiskSector) == 'b';
    if (first != second) seen[first] = "torn";
  }
  EXPECT_EQ(seen[0], "torn");
  EXPECT_EQ(seen[1], "torn");
}

TEST(DiskState, AnOlderVersionMayComeBack) {
  Random random(3);
  bool older = false;
  for (int i = 0; i < 100 && !older; ++i) {
    DiskState state = synced('a', 1);
    state.write(0, bytes_of('b', kDiskSector), {});
    state.write(0, bytes_of('c', kDiskSector), {});
    state.cut_power(Survival::kEach, random);
    older = at(state, 0) == 'b';
  }
  EXPECT_TRUE(older);
}

TEST(DiskState, ASyncCoversWhatWasWrittenBeforeItsStart) {
  Random random(4);
  DiskState state = synced('a', 2);
  state.write(0, bytes_of('b', kDiskSector), {});
  const uint64_t start = state.written();
  state.write(kDiskSector, bytes_of('c', kDiskSector), {});
  state.sync(start);
  state.cut_power(Survival::kNone, random);
  EXPECT_EQ(at(state, 0), 'b');
  EXPECT_EQ(at(state, kDiskSector), 'a');
}

TEST(DiskState, ALostWriteShowsOnlyAsLongAsTheCacheHasIt) {
  DiskState state = synced('a', 1);
  state.write(0, bytes_of('b', kDiskSector), {.lost = true});
  state.sync(state.written());
  EXPECT_EQ(at(state, 0), 'b');
  state.drop_clean();
  EXPECT_EQ(at(state, 0), 'a');
}

TEST(DiskState, AStrayWriteLandsElsewhere) {
  DiskState state = synced('a', 4);
  state.write(0, bytes_of('b', kDiskSector), {.astray_sectors = 3});
  state.sync(state.written());
  state.drop_clean();
  EXPECT_EQ(at(state, 0), 'a');
  EXPECT_EQ(at(state, 3 * kDiskSector), 'b');
}

TEST(DiskState, AfterAFailedSyncALaterOneSavesNothing) {
  Random random(5);
  bool lost = false;
  for (int i = 0; i < 50 && !lost; ++i) {
    DiskState state = synced('a', 1);
    state.write(0, bytes_of('b', kDiskSector), {});
    state.fail_sync(state.written(), random);
    EXPECT_EQ(at(state, 0), 'b');
    state.sync(state.written());
    state.cut_power(Survival::kAll, random);
    lost = at(state, 0) == 'a';
  }
  EXPECT_TRUE(lost);
}

TEST(DiskState, CopiesAreApart) {
  DiskState state = synced('a', 1);
  DiskState copy = state;
  copy.write(0, bytes_of('b', kDiskSector), {});
  EXPECT_EQ(at(state, 0), 'a');
  state.write(0, bytes_of('c', kDiskSector), {});
  EXPECT_EQ(at(copy, 0), 'b');
}

TEST(DiskState, APunchedHoleIsZeroAndGivesSpaceBack) {
  DiskState state = synced('a', 24);
  const uint64_t before = state.cache().allocated_bytes();
  state.punch(4096 - 512, 4096 + 1024);
  EXPECT_EQ(at(state, 4096 - 513), 'a');
  EXPECT_EQ(at(state, 4096 - 512), 0);
  EXPECT_EQ(at(state, 8192 + 511), 0);
  EXPECT_EQ(at(state, 8192 + 512), 'a');
  EXPECT_EQ(state.cache().allocated_bytes(), before - 4096);
}

struct Rig {
  World world{7};
  SimLoop loop{world};
  LyingDisk disk{world};
};

int32_t run_write(Rig& rig, io::File& file, uint64_t offset, std::span<const std::byte> from) {
  int32_t result = 0;
  const auto task = [](Rig& r, io::File& f, uint64_t o, std::span<const std::byte> b, int32_t& out) -> coro::Task<void> {
    out = co_await io::await([&](io::Op& op) { return f.write(r.loop, op, b, o); });
  };
  rig.loop.run(task(rig, file, offset, from, result));
  return result;
}

int32_t run_read(Rig& rig, io::File& file, uint64_t offset, std::span<std::byte> into) {
  int32_t result = 0;
  const auto task = [](Rig& r, io::File& f, uint64_t o, std::span<std::byte> b, int32_t& out) -> coro::Task<void> {
    out = co_await io::await([&](io::Op& op) { return f.read(r.loop, op, b, o); });
  };
  rig.loop.run(task(rig, file, offset, into, result));
  return result;
}

int32_t run_sync(Rig& rig, io::File& file) {
  int32_t result = 0;
  const auto task = [](Rig& r, io::File& f, int32_t& out) -> coro::Task<void> {
    out = co_await io::await([&](io::Op& op) { return f.datasync(r.loop, op); });
  };
  rig.loop.run(task(rig, file, result));
  return result;
}

TEST(LyingFile, ReadsWhatWasWrittenAndEndsWhereNothingWas) {
  Rig rig;
  const auto file = rig.disk.open();
  EXPECT_EQ(run_write(rig, *file, 5000, bytes_of('x', 3192)), 3192);
  std::vector<std::byte> into(20'000);
  EXPECT_EQ(run_read(rig, *file, 4096, into), 4096);
  EXPECT_EQ(into[903], std::byte{0});
  EXPECT_EQ(into[904], static_cast<std::byte>('x'));
  EXPECT_EQ(run_read(rig, *file, 1 << 20, into), 0);
}

TEST(LyingFile, AnEndedProcessHasNoEffect) {
  Rig rig;
  const auto old = rig.disk.open();
  rig.disk.end_process();
  EXPECT_EQ(run_write(rig, *old, 0, bytes_of('x', 512)), -EIO);
  EXPECT_EQ(run_sync(rig, *old), -EIO);
  EXPECT_EQ(rig.disk.state().cache().allocated_bytes(), 0u);
  const auto next = rig.disk.open();
  EXPECT_EQ(run_write(rig, *next, 0, bytes_of('y', 512)), 512);
}

TEST(LyingFile, TheNthOperationFails) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().fail_nth = 2;
  rig.disk.faults().fail_error = EIO;
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 512)), 512);
  EXPECT_EQ(run_sync(rig, *file), -EIO);
  EXPECT_EQ(run_sync(rig, *file), 0);
}

TEST(LyingFile, OnlyTheKindThatFailsIsCounted) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().fail_nth = 2;
  rig.disk.faults().fail_kinds = kSyncing;
  rig.disk.faults().fail_error = EIO;
  EXPECT_EQ(run_sync(rig, *file), 0);
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 512)), 512);
  EXPECT_EQ(rig.disk.failures(), 0u);
  EXPECT_EQ(run_sync(rig, *file), -EIO);
  EXPECT_EQ(rig.disk.failures(), 1u);
}

TEST(LyingFile, WhatFailsFromThenOnNeverWorks) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().fail_nth = 2;
  rig.disk.faults().fail_kinds = kWriting;
  rig.disk.faults().fail_error = ENOSPC;
  rig.disk.faults().fail_on = true;
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 512)), 512);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run_write(rig, *file, 0, bytes_of('y', 512)), -ENOSPC);
  EXPECT_EQ(run_sync(rig, *file), 0);
}

TEST(LyingFile, AnOperationIsDoneInPart) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().fail_nth = 1;
  rig.disk.faults().fail_kinds = kWriting;
  const int32_t written = run_write(rig, *file, 0, bytes_of('x', 8192));
  EXPECT_GT(written, 0);
  EXPECT_LT(written, 8192);
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 8192)), 8192);
}

TEST(LyingFile, TheNthWriteIsLostAndSaysThatItWasNot) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().lie_nth = 2;
  rig.disk.faults().lie = Lie::kLostWrite;
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 512)), 512);
  EXPECT_EQ(run_write(rig, *file, 512, bytes_of('y', 512)), 512);
  EXPECT_EQ(run_write(rig, *file, 1024, bytes_of('z', 512)), 512);
  EXPECT_EQ(run_sync(rig, *file), 0);
  EXPECT_EQ(rig.disk.lies(), 1u);
  rig.disk.state().drop_clean();
  EXPECT_EQ(at(rig.disk.state(), 0), 'x');
  EXPECT_EQ(at(rig.disk.state(), 512), 0);
  EXPECT_EQ(at(rig.disk.state(), 1024), 'z');
}

TEST(LyingFile, AFullDiskRefusesAndStillReads) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().capacity_bytes = 8192;
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 8192)), 8192);
  EXPECT_EQ(run_write(rig, *file, 8192, bytes_of('y', 4096)), -ENOSPC);
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('z', 4096)), 4096);
  std::vector<std::byte> into(4096);
  EXPECT_EQ(run_read(rig, *file, 0, into), 4096);
  EXPECT_EQ(into[0], static_cast<std::byte>('z'));
}

TEST(LyingFile, SomeSyncsLie) {
  Rig rig;
  const auto file = rig.disk.open();
  rig.disk.faults().lying_sync = 1;
  EXPECT_EQ(run_write(rig, *file, 0, bytes_of('x', 512)), 512);
  EXPECT_EQ(run_sync(rig, *file), 0);
  rig.disk.cut_power(Survival::kNone);
  EXPECT_EQ(at(rig.disk.state(), 0), 0);
}

}  // namespace
}  // namespace netblk::sim
