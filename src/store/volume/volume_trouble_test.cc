// SPDX-License-Identifier: GPL-2.0-only
// The engine where a sync, a merge or another process takes its time or fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "coro/scope.h"
#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Ask;
using test::kSize;
using test::place_of;
using VolumeTroubleTest = test::VolumeTest;
using test::VolumeTest;

// The manifest is changed, and the checksums are right.
void craft(test::Bytes& disk, const std::function<void(Manifest&, Superblock&)>& change) {
  Superblock first = decode_superblock(std::span(disk).subspan(kSuperblockAt[0], kSuperblockBytes)).value();
  Manifest manifest = decode_manifest(std::span(disk).subspan(first.manifest_offset, first.manifest_bytes)).value();
  change(manifest, first);
  const test::Bytes bytes = encode(manifest);
  disk.resize(std::max<size_t>(disk.size(), first.manifest_offset + bytes.size()));
  std::copy(bytes.begin(), bytes.end(), disk.begin() + static_cast<std::ptrdiff_t>(first.manifest_offset));
  for (const uint64_t at : kSuperblockAt) {
    Superblock superblock = decode_superblock(std::span(disk).subspan(at, kSuperblockBytes)).value();
    superblock.manifest_bytes = bytes.size();
    superblock.manifest_crc = Sums(superblock.uuid).volume(bytes);
    const SuperblockBytes block = encode(superblock);
    std::copy(block.begin(), block.end(), disk.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

// The same, of the superblock that counts.
void craft_newest(test::Bytes& disk, const std::function<void(Manifest&)>& change) {
  Superblock newest;
  for (const uint64_t at : kSuperblockAt) {
    const auto found = decode_superblock(std::span(disk).subspan(at, kSuperblockBytes));
    if (found.ok() && found.value().sequence > newest.sequence) newest = found.value();
  }
  Manifest manifest = decode_manifest(std::span(disk).subspan(newest.manifest_offset, newest.manifest_bytes)).value();
  change(manifest);
  const test::Bytes bytes = encode(manifest);
  EXPECT_EQ(bytes.size(), newest.manifest_bytes);
  std::copy(bytes.begin(), bytes.end(), disk.begin() + static_cast<std::ptrdiff_t>(newest.manifest_offset));
  newest.manifest_crc = Sums(newest.uuid).volume(bytes);
  const SuperblockBytes block = encode(newest);
  std::copy(block.begin(), block.end(), disk.begin() + static_cast<std::ptrdiff_t>(kSuperblockAt[newest.sequence % 2]));
}

coro::Task<void> crafted(VolumeTest& t) {
  const std::vector<std::function<void(Manifest&, Superblock&)>> changes = {
      [](Manifest& m, Superblock&) { m.segments.resize(3000); },
      [](Manifest& m, Superblock&) { m.segments[0].live_bytes = 1u << 20; },
      [](Manifest& m, Superblock&) { m.segments.clear(); },
      [](Manifest& m, Superblock&) { m.log.segment = 5; },
      [](Manifest& m, Superblock&) { m.log.segment = 0; },
      [](Manifest& m, Superblock&) { m.log.offset = uint64_t{1} << 40; },
      [](Manifest& m, Superblock&) { m.index = {uint64_t{1} << 40, 0, 1, 1}; },
      [](Manifest& m, Superblock&) { m.index = {kSegmentsAt, 70'000, 1, 1}; },
      [](Manifest& m, Superblock&) { m.branches.clear(); },
      [](Manifest& m, Superblock&) { m.branches.push_back(m.branches[0]); },
      [](Manifest& m, Superblock&) { m.branches[0].size_bytes = 0; },
      [](Manifest& m, Superblock&) { m.branches[0].size_bytes = UINT64_MAX - 511; },
      [](Manifest& m, Superblock&) { m.snapshots.push_back({"a", {1, 0}, 0, 100}); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    co_await VolumeTest::create(t, kSize, 1u << 16);
    craft(t.disk.bytes, [](Manifest&, Superblock&) {});
    bool opened = co_await VolumeTest::open(t);
    EXPECT_TRUE(opened) << t.message;
    (void)co_await VolumeTest::close(t);
    co_await VolumeTest::create(t, kSize, 1u << 16);
    craft(t.disk.bytes, changes[i]);
    opened = co_await VolumeTest::open(t);
    EXPECT_FALSE(opened) << i;
    EXPECT_EQ(t.error, EBADMSG) << i << ": " << t.message;
    if (opened) (void)co_await VolumeTest::close(t);
  }
}
TEST_F(VolumeTroubleTest, AManifestThatMakesNoSenseIsRefused) { go(crafted(*this)); }

// Live bytes that the index does not bear out: nothing is freed by them, and nobody aborts.
coro::Task<void> too_few_live_bytes(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (uint64_t i = 0; i < 30; ++i) (void)co_await VolumeTest::write(t, i * 4096, 4096, 7);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  craft_newest(t.disk.bytes, [](Manifest& m) {
    for (SegmentInfo& info : m.segments)
      if (info.state == SegmentState::kLog && info.live_bytes > 0) info.live_bytes = 4096;
  });
  t.disk.durable = t.disk.bytes;
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  int error = 0;
  for (int round = 0; round < 40 && error == 0; ++round)
    for (uint64_t i = 0; i < 30 && error == 0; ++i) error = co_await VolumeTest::write(t, i * 4096, 4096, 8);
  EXPECT_EQ(error, EIO);
  const int flushed = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(flushed, EIO);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, AManifestWithTooFewLiveBytesTakesNoChanges) { go(too_few_live_bytes(*this)); }

// A failed sync may have left the newer one in the cache alone, where it counts as written: the other one is not written over
// before it is durable.
coro::Task<void> superblocks_again(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1);
  co_await VolumeTest::crash(t, false);
  t.disk.written_at.clear();
  (void)co_await VolumeTest::open(t);
  const auto& written = t.disk.written_at;
  const auto synced = std::find(written.begin(), written.end(), UINT64_MAX);
  EXPECT_EQ(std::count(written.begin(), synced, kSuperblockAt[0]), 1);
  EXPECT_EQ(std::count(written.begin(), synced, kSuperblockAt[1]), 1);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, AnOpeningWritesTheSuperblocksAgainBeforeItsFirstSync) { go(superblocks_again(*this)); }

// The system tells an error of writing back to one sync of the descriptor: one that overlaps it would succeed.
coro::Task<void> one_sync(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int got = co_await VolumeTest::write(t, 0, 65536, 1);
  EXPECT_EQ(got, 0);
  t.disk.hold_syncs = true;
  Ask flush(t.loop());
  flush.as(Command::kFlush, 0, 0);
  t.device->submit(flush);
  co_await VolumeTest::let_others(t);
  EXPECT_EQ(t.disk.held_syncs.size(), 1u);
  // A checkpoint is due, and wants a sync of its own.
  for (uint64_t i = 0; i < 6; ++i) {
    got = co_await VolumeTest::write(t, i * 65536, 65536, 2);
    EXPECT_EQ(got, 0);
  }
  co_await VolumeTest::let_others(t);
  EXPECT_EQ(t.disk.held_syncs.size(), 1u) << "two at once";
  t.disk.end_sync(-EIO);
  t.disk.hold_syncs = false;
  while (!t.disk.held_syncs.empty()) t.disk.end_sync(0);
  while (!flush.done) co_await flush.ended.wait();
  EXPECT_EQ(flush.error, EIO);
  got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, EIO);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_FALSE(closed);
}
TEST_F(VolumeTroubleTest, NoTwoSyncsOverlap) { go(one_sync(*this)); }

// Pages that cannot be written cost no space, and no memory without a limit; when they can be again, all is well.
coro::Task<void> failing_merge(VolumeTest& t) {
  t.options.table_bytes = 16u << 10;
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  t.disk.fail_pages = true;
  int got = 0, written = 0;
  for (; written < 20'000 && got == 0; ++written) {
    got = co_await VolumeTest::write(t, static_cast<uint64_t>(written % 512) * 4096, 4096, 1 + written % 200);
    if (written % 64 == 0) (void)co_await t.volume->snapshot("s" + std::to_string(written));
    if (written % 64 == 0) co_await VolumeTest::let_others(t);
  }
  EXPECT_EQ(got, EIO);
  const VolumeInfo info = t.volume->info();
  const uint64_t log = static_cast<uint64_t>(written) * (4096 + 128) / info.segment_bytes;
  EXPECT_LT(info.used_bytes / info.segment_bytes, log + log / 8 + 4) << written << " writes";
  (void)co_await VolumeTest::close(t);
  const bool reads = co_await VolumeTest::open(t);
  EXPECT_TRUE(reads) << t.message;
  EXPECT_TRUE(t.volume->info().read_only);
  EXPECT_NE(t.volume->info().damage, "");
  got = co_await VolumeTest::read(t, 4096, 4096);
  EXPECT_GT(got, 0);
  (void)co_await VolumeTest::close(t);
  t.disk.fail_pages = false;
  const bool writes = co_await VolumeTest::open(t);
  EXPECT_TRUE(writes) << t.message;
  EXPECT_FALSE(t.volume->info().read_only) << t.volume->info().damage;
  got = co_await VolumeTest::write(t, 0, 4096, 7);
  EXPECT_EQ(got, 0);
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTroubleTest, AMergeThatFailsCostsNoSpaceAndIsMadeLater) { go(failing_merge(*this)); }

coro::Task<void> slow_merge(VolumeTest& t) {
  t.options.table_bytes = 4096;
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  t.disk.hold_syncs = true;
  Ask ask(t.loop());
  int answered = 0;
  for (; answered < 2000; ++answered) {
    ask.as(Command::kWrite, static_cast<uint64_t>(answered % 512) * 4096, 4096);
    ask.buffer[0] = std::byte{1};
    t.device->submit(ask);
    co_await VolumeTest::let_others(t);
    if (!ask.done) break;
    EXPECT_EQ(ask.error, 0);
  }
  EXPECT_GT(answered, 20);
  EXPECT_LT(answered, 500) << "the table has no limit";
  t.disk.hold_syncs = false;
  while (!t.disk.held_syncs.empty()) t.disk.end_sync(0);
  while (!ask.done) co_await ask.ended.wait();
  EXPECT_EQ(ask.error, 0);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTroubleTest, AWriteWaitsForAMergeThatIsFarBehind) { go(slow_merge(*this)); }

// The same of the log, whose space is not free before the next checkpoints.
coro::Task<void> slow_checkpoint(VolumeTest& t) {
  t.options.checkpoint_bytes = 64u << 10;
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  t.disk.hold_syncs = true;
  Ask ask(t.loop());
  uint64_t answered = 0;
  for (; answered < 2000; ++answered) {
    ask.as(Command::kWrite, answered % 512 * 4096, 4096);
    ask.buffer[0] = std::byte{1};
    t.device->submit(ask);
    co_await VolumeTest::let_others(t);
    if (!ask.done) break;
    EXPECT_EQ(ask.error, 0);
  }
  EXPECT_GE((answered + 1) * (4096 + 128), 3 * t.options.checkpoint_bytes) << "it waits for nothing";
  EXPECT_LE(answered * 4096, 5 * t.options.checkpoint_bytes) << "the log has no limit";
  // What is in no log of writes goes on meanwhile.
  const int found = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(found, -1) << "one byte of it was written";
  t.disk.hold_syncs = false;
  while (!t.disk.held_syncs.empty()) t.disk.end_sync(0);
  while (!ask.done) co_await ask.ended.wait();
  EXPECT_EQ(ask.error, 0);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTroubleTest, AWriteWaitsForACheckpointThatIsFarBehind) { go(slow_checkpoint(*this)); }

// Where none can be made, the log goes on as long as there is room for what it changes.
coro::Task<void> failing_checkpoint(VolumeTest& t) {
  t.options.checkpoint_bytes = 64u << 10;
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  t.disk.fail_pages = true;
  for (uint64_t i = 0; i < 512; ++i) {
    const int error = co_await VolumeTest::write(t, i * 4096, 4096, 1);
    EXPECT_EQ(error, 0);
  }
  t.disk.fail_pages = false;
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTroubleTest, AWriteDoesNotWaitForACheckpointThatFails) { go(failing_checkpoint(*this)); }

// A burst over several segments that one flush covers: only a record in the middle of the last one says so.
coro::Task<void> damaged_burst(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (uint64_t i = 0; i < 10; ++i) (void)co_await VolumeTest::write(t, i * 16384, 16384, 0x61 + static_cast<int>(i));
  int got = co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
  EXPECT_EQ(got, 0);
  (void)co_await VolumeTest::write(t, 0, 4096, 0x71);
  const uint64_t at = place_of(t.disk.bytes, 0x62);
  EXPECT_GT(place_of(t.disk.bytes, 0x71) - at, 2u << 16);
  co_await VolumeTest::crash(t, false);
  t.disk.bytes[at] ^= std::byte{1};
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  if (!opened) co_return;
  EXPECT_TRUE(t.volume->info().read_only) << "what was flushed is not cut";
  EXPECT_NE(t.volume->info().damage, "");
  got = co_await VolumeTest::read(t, 0, 16384);
  EXPECT_EQ(got, 0x61);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, ARottenRecordOfALongFlushedBurstIsNotCut) { go(damaged_burst(*this)); }

coro::Task<void> a_writer_beside_a_sync(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  t.disk.hold_syncs = true;
  Ask ask(t.loop());
  ask.as(Command::kWrite, 0, 4096, true);
  t.device->submit(ask);
  co_await VolumeTest::let_others(t);
  EXPECT_EQ(t.disk.held_syncs.size(), 1u);
  t.disk.hold_syncs = false;
  std::unique_ptr<io::File> file = std::make_unique<test::MemoryFile>(t.disk);
  auto other = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_TRUE(other.ok());
  t.disk.end_sync(0);
  while (!ask.done) co_await ask.ended.wait();
  EXPECT_EQ(ask.error, EIO) << "the other one need not have seen it";
  (void)co_await VolumeTest::close(t);
  (void)co_await other.value()->close();
}
TEST_F(VolumeTroubleTest, AWriterThatOpensBesideASyncIsSeen) { go(a_writer_beside_a_sync(*this)); }

// All of them are in the manifest, which is in one segment.
coro::Task<void> many_names(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int error = 0, made = 0;
  for (; error == 0 && made < 2000; ++made) {
    std::string name = std::string(50, 'x') + std::to_string(made);
    const auto named = co_await t.volume->snapshot(std::move(name));
    error = named.ok() ? 0 : named.error().code;
  }
  EXPECT_EQ(error, ENOSPC);
  EXPECT_GT(made, 200);
  bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  (void)co_await VolumeTest::open(t);
  EXPECT_FALSE(t.volume->info().read_only) << t.volume->info().damage;
  std::string first = std::string(50, 'x') + "0";
  const Status gone = co_await t.volume->remove(std::move(first));
  EXPECT_TRUE(gone.ok());
  const auto named = co_await t.volume->snapshot("y");
  EXPECT_TRUE(named.ok());
  closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
}
TEST_F(VolumeTroubleTest, SnapshotsAreRefusedBeforeTheManifestIsFull) { go(many_names(*this)); }

// What lies behind the wished end goes only if the disk becomes smaller.
coro::Task<void> refused_shrink(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int error = co_await VolumeTest::write(t, kSize / 2, kSize / 2, 7);
  EXPECT_EQ(error, 0);
  for (int i = 0; error == 0; ++i) {
    std::string name = "s" + std::to_string(i);
    const auto named = co_await t.volume->snapshot(std::move(name));
    error = named.ok() ? 0 : named.error().code;
  }
  EXPECT_EQ(error, ENOSPC);
  Status resized = Ok{};
  for (uint64_t i = 1; i < 8 && resized; ++i) resized = co_await t.volume->resize(kSize + i * kBlockBytes);
  EXPECT_EQ(resized.ok() ? 0 : resized.error().code, ENOSPC) << "each size takes room, too";
  resized = co_await t.volume->resize(kSize / 2);
  EXPECT_EQ(resized.ok() ? 0 : resized.error().code, ENOSPC);
  const int found = co_await VolumeTest::read(t, kSize / 2, kSize / 2);
  EXPECT_EQ(found, 7);
  const Status gone = co_await t.volume->remove("s0");
  EXPECT_TRUE(gone.ok());
  resized = co_await t.volume->resize(kSize / 2);
  EXPECT_TRUE(resized.ok());
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, AShrinkThatIsRefusedTrimsNothing) { go(refused_shrink(*this)); }

coro::Task<void> deleted(VolumeTest& t, std::string name, bool& gone) {
  const Status done = co_await t.volume->remove(std::move(name));
  gone = done.ok();
}
coro::Task<void> opened_meanwhile(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await t.volume->snapshot("a");
  (void)co_await VolumeTest::write(t, 0, 4096, 1);
  t.disk.hold_syncs = true;
  bool gone = false;
  {
    coro::Scope scope;
    scope.spawn(deleted(t, "a", gone));
    EXPECT_FALSE(t.volume->open_device("a").ok()) << "before its record is written";
    co_await VolumeTest::let_others(t);
    EXPECT_FALSE(t.volume->open_device("a").ok()) << "before it is durable";
    const Status twice = co_await t.volume->remove("a");
    EXPECT_FALSE(twice.ok());
    t.disk.hold_syncs = false;
    while (!t.disk.held_syncs.empty()) t.disk.end_sync(0);
    co_await scope.join();
  }
  EXPECT_TRUE(gone);
  EXPECT_EQ(t.volume->open_device("a").error().code, ENOENT);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, ASnapshotThatIsBeingDeletedIsNotOpened) { go(opened_meanwhile(*this)); }

unsigned newest_slot(const test::Bytes& disk) {
  const auto sequence = [&](unsigned slot) { return decode_superblock(std::span(disk).subspan(kSuperblockAt[slot], kSuperblockBytes)).value().sequence; };
  return sequence(0) > sequence(1) ? 0 : 1;
}

// A superblock was lost, and what the newer one leads to is damaged: all that this opening did is gone.
coro::Task<void> an_older_opening(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::close(t);
  const test::Bytes before = t.disk.bytes;
  (void)co_await VolumeTest::open(t);
  const uint64_t told = t.volume->info().generation;
  const int error = co_await VolumeTest::write(t, 0, 4096, 1, true);
  EXPECT_EQ(error, 0);
  co_await VolumeTest::crash(t, true);
  const unsigned newer = newest_slot(t.disk.bytes);
  const auto lost = static_cast<std::ptrdiff_t>(kSuperblockAt[1 - newer]);
  std::copy_n(before.begin() + lost, kSuperblockBytes, t.disk.bytes.begin() + lost);
  Superblock useless = decode_superblock(std::span(t.disk.bytes).subspan(kSuperblockAt[newer], kSuperblockBytes)).value();
  useless.manifest_crc ^= 1;
  const SuperblockBytes block = encode(useless);
  std::copy(block.begin(), block.end(), t.disk.bytes.begin() + static_cast<std::ptrdiff_t>(kSuperblockAt[newer]));
  t.options.cache_survived = true;
  (void)co_await VolumeTest::open(t);
  const int found = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(found, 0);
  EXPECT_GT(t.volume->info().generation, told) << "who was told of this generation has lost a write";
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, WhatAnOlderOpeningsSuperblockForgetsIsTold) { go(an_older_opening(*this)); }

// What the newer superblock leads to cannot be read once: the other one takes its place before anything is written over its tree.
coro::Task<void> unreadable_once(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  (void)co_await VolumeTest::write(t, 0, 4096, 1, true);
  co_await VolumeTest::crash(t, true);
  const uint64_t newer = kSuperblockAt[newest_slot(t.disk.bytes)];
  // Two superblocks, and then the newer manifest.
  t.disk.fail_read_at = 3;
  t.disk.written_at.clear();
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->info().damage, "");
  const auto first_write = std::find_if(t.disk.written_at.begin(), t.disk.written_at.end(), [](uint64_t at) { return at != UINT64_MAX; });
  EXPECT_EQ(*first_write, newer);
  EXPECT_EQ(*(first_write + 1), UINT64_MAX) << "synced before the next write";
  const int found = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(found, 1);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTroubleTest, ASuperblockThatCouldNotBeUsedOnceIsNotUsedLater) { go(unreadable_once(*this)); }

}  // namespace
}  // namespace netblk::store::volume
