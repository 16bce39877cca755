// SPDX-License-Identifier: GPL-2.0-only
// Volumes whose records are compressed.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "store/volume/codec.h"
#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Bytes;
using test::get;
using test::put;
using test::records;
using test::some_bytes;
using test::VolumeTest;
using VolumeCompressionTest = test::VolumeTest;

constexpr uint64_t kDisk = 4u << 20;

coro::Task<void> model(VolumeTest& t, Compression how) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  t.options.compression = how;
  bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened);
  Bytes expected(kDisk);
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    const uint64_t at = random() % (kDisk / 512) * 512;
    const uint64_t length = std::min<uint64_t>((1 + random() % (random() % 8 == 0 ? 600 : 40)) * 512, kDisk - at);
    const auto what = static_cast<unsigned>(random() % 10);
    if (what == 0) {
      const int error = co_await VolumeTest::simple(t, Command::kTrim, at, length);
      EXPECT_EQ(error, 0);
      std::fill_n(expected.begin() + static_cast<ptrdiff_t>(at), length, std::byte{0});
    } else {
      const Bytes bytes = some_bytes(length, what < 3 ? 0 : what - 2, static_cast<unsigned>(round));
      const int error = co_await put(t, at, bytes);
      EXPECT_EQ(error, 0);
      std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<ptrdiff_t>(at));
    }
    const uint64_t from = random() % (kDisk / 512) * 512;
    Bytes part(std::min<uint64_t>((1 + random() % 300) * 512, kDisk - from));
    const int error = co_await get(t, from, part);
    EXPECT_EQ(error, 0);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + static_cast<ptrdiff_t>(from))) << "round " << round;
    if (round % 100 == 99) {
      if (round == 199) {
        co_await VolumeTest::crash(t, false);
      } else {
        const bool closed = co_await VolumeTest::close(t);
        EXPECT_TRUE(closed);
      }
      opened = co_await VolumeTest::open(t);
      EXPECT_TRUE(opened) << t.message;
      Bytes all(kDisk);
      const int read = co_await get(t, 0, all);
      EXPECT_EQ(read, 0);
      EXPECT_TRUE(all == expected) << "round " << round;
    }
  }
  auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  const VolumeInfo info = t.volume->info();
  EXPECT_LE(info.live_bytes, info.used_bytes);
  (void)co_await VolumeTest::close(t);
  const auto compressed = records(t.disk.bytes, [&](const RecordHeader& header) { return (header.flags & kCompressed) == flag_of(how); });
  const auto plain = records(t.disk.bytes, [](const RecordHeader& header) {
    return header.type == RecordType::kData && !header.is_compressed();
  });
  EXPECT_GT(compressed.size(), 20u);
  EXPECT_GT(plain.size(), 20u) << "what does not pay is as it was";
}
TEST_F(VolumeCompressionTest, AModelWithLz4) { go(model(*this, Compression::kLz4)); }
TEST_F(VolumeCompressionTest, AModelWithZstd) { go(model(*this, Compression::kZstd)); }

// What is alive of a record, whatever parts of it are overwritten: the segment's sum comes back to nothing.
coro::Task<void> live_bytes(VolumeTest& t) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  t.options.compression = Compression::kLz4;
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(1u << 20, 6, 1));
  const uint64_t live = t.volume->info().live_bytes;
  EXPECT_LT(live, 600u << 10);
  EXPECT_GT(live, 100u << 10);
  for (uint64_t block = 0; block < 256; block += 3) (void)co_await VolumeTest::simple(t, Command::kTrim, block * kBlockBytes, kBlockBytes);
  // What a tree has is counted by the merge that leaves it out.
  (void)co_await VolumeTest::close(t);
  (void)co_await VolumeTest::open(t);
  const uint64_t less = t.volume->info().live_bytes;
  EXPECT_LT(less, live * 3 / 4);
  EXPECT_GT(less, live / 2);
  (void)co_await VolumeTest::simple(t, Command::kTrim, 0, kDisk);
  (void)co_await VolumeTest::close(t);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->info().live_bytes, 0u);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeCompressionTest, WhatIsAliveIsCountedAsItIsStored) { go(live_bytes(*this)); }

// Old records stay what they are, whatever is written next.
coro::Task<void> changed(VolumeTest& t) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  for (const Compression how : {Compression::kZstd, Compression::kNone, Compression::kLz4}) {
    t.options.compression = how;
    (void)co_await VolumeTest::open(t);
    const uint64_t at = static_cast<uint64_t>(how) << 20;
    (void)co_await put(t, at, some_bytes(200'704, 5, static_cast<unsigned>(how)));
    (void)co_await VolumeTest::close(t);
  }
  (void)co_await VolumeTest::open(t);
  for (unsigned how = 0; how < 3; ++how) {
    Bytes got(200'704);
    const int error = co_await get(t, uint64_t{how} << 20, got);
    EXPECT_EQ(error, 0);
    EXPECT_EQ(got, some_bytes(200'704, 5, how));
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeCompressionTest, TheSettingMayChange) { go(changed(*this)); }

// One flipped bit anywhere in a compressed record, header or payload: EIO for what is in it, and nothing else.
coro::Task<void> rot(VolumeTest& t, Compression how) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  t.options.compression = how;
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(65'536, 6, 1));
  (void)co_await put(t, 65'536, some_bytes(65'536, 6, 2));
  (void)co_await VolumeTest::close(t);
  const auto places = records(t.disk.bytes, [](const RecordHeader& header) { return header.is_compressed(); });
  EXPECT_EQ(places.size(), 2u);
  const Sums sums(decode_superblock(std::span(t.disk.bytes).first(kSuperblockBytes)).value().uuid);
  const uint64_t whole = decode_record(std::span(t.disk.bytes).subspan(places[0], kMaxHeaderBytes), sums)->header_bytes() +
                         decode_record(std::span(t.disk.bytes).subspan(places[0], kMaxHeaderBytes), sums)->payload_bytes;
  const Bytes good = t.disk.bytes;
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    t.disk.bytes = good;
    t.disk.bytes[places[0] + random() % whole] ^= static_cast<std::byte>(1u << random() % 8);
    t.options.read_only = true;
    (void)co_await VolumeTest::open(t);
    Bytes got(kBlockBytes);
    int error = co_await get(t, random() % 16 * kBlockBytes, got);
    EXPECT_EQ(error, EIO);
    error = co_await get(t, 65'536, got);
    EXPECT_EQ(error, 0);
    EXPECT_EQ(t.volume->info().bad_blocks, 1u);
    (void)co_await VolumeTest::close(t);
  }
}
TEST_F(VolumeCompressionTest, RotIsEioWithLz4) { go(rot(*this, Compression::kLz4)); }
TEST_F(VolumeCompressionTest, RotIsEioWithZstd) { go(rot(*this, Compression::kZstd)); }

// Every sum is right, and the payload is not what was compressed: somebody made it.
coro::Task<void> forged(VolumeTest& t, uint8_t flag) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  t.options.read_only = false;
  t.options.compression = Compression::kLz4;
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(65'536, 6, 1));
  (void)co_await VolumeTest::close(t);
  const uint64_t at = records(t.disk.bytes, [](const RecordHeader& header) { return header.is_compressed(); }).at(0);
  const Sums sums(decode_superblock(std::span(t.disk.bytes).first(kSuperblockBytes)).value().uuid);
  RecordHeader header = *decode_record(std::span(t.disk.bytes).subspan(at, kMaxHeaderBytes), sums);
  const auto payload = std::span(t.disk.bytes).subspan(at + header.header_bytes(), header.payload_bytes);
  std::mt19937 random(5);
  for (std::byte& byte : payload) byte = static_cast<std::byte>(random());
  header.flags = flag;
  header.sums[0] = sums.block(header.branch, header.block, header.lsn, payload);
  encode(header, sums, std::span(t.disk.bytes).subspan(at, header.header_bytes()));
  t.options.read_only = true;
  (void)co_await VolumeTest::open(t);
  Bytes got(65'536);
  const int error = co_await get(t, 0, got);
  EXPECT_EQ(error, EIO);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeCompressionTest, AForgedPayloadIsEio) {
  go(forged(*this, kFlagLz4));
  go(forged(*this, kFlagZstd));
}

// A segment has what a segment's worth of compressed records takes: several times its length of blocks.
coro::Task<void> space(VolumeTest& t) {
  co_await VolumeTest::create(t, kDisk, 1u << 16);
  t.options.compression = Compression::kLz4;
  t.disk.limit_bytes = kSegmentsAt + (20u << 16);
  (void)co_await VolumeTest::open(t);
  for (uint64_t at = 0; at < kDisk; at += 1u << 20) {
    const int error = co_await put(t, at, some_bytes(1u << 20, 7, static_cast<unsigned>(at >> 20)));
    EXPECT_EQ(error, 0) << at;
  }
  Bytes got(1u << 20);
  const int error = co_await get(t, 3u << 20, got);
  EXPECT_EQ(error, 0);
  EXPECT_EQ(got, some_bytes(1u << 20, 7, 3));
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeCompressionTest, SpaceIsWhatIsStored) { go(space(*this)); }

}  // namespace
}  // namespace netblk::store::volume
