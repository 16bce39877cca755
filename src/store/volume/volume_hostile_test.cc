// SPDX-License-Identifier: GPL-2.0-only
// Volumes that somebody has written who knows their checksums: found by fuzz/volume_fuzz.cc, or for its sake.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Bytes;
using test::VolumeTest;

Superblock newest(const Bytes& disk) {
  const auto at = [&](unsigned slot) { return decode_superblock(std::span(disk).subspan(kSuperblockAt[slot], kSuperblockBytes)).value(); };
  return at(0).sequence > at(1).sequence ? at(0) : at(1);
}
void put_superblock(Bytes& disk, const Superblock& superblock) {
  const SuperblockBytes bytes = encode(superblock);
  std::copy(bytes.begin(), bytes.end(), disk.begin() + static_cast<ptrdiff_t>(kSuperblockAt[superblock.sequence % 2]));
}
Manifest manifest_of(const Bytes& disk, const Superblock& superblock) {
  return decode_manifest(std::span(disk).subspan(superblock.manifest_offset, superblock.manifest_bytes)).value();
}
std::span<std::byte, kPageBytes> page_at(Bytes& disk, uint64_t offset) { return std::span(disk).subspan(offset).first<kPageBytes>(); }

// The root, which is a leaf, has other entries, and all that names it says so.
void reseal_root(Bytes& disk) {
  Superblock superblock = newest(disk);
  Manifest manifest = manifest_of(disk, superblock);
  const Sums sums(superblock.uuid);
  const auto page = page_at(disk, manifest.index.offset);
  const PageHeader header{.level = 0, .entries = load_le<uint16_t>(page.data() + 10), .checkpoint = load_le<uint64_t>(page.data() + 16)};
  manifest.index.crc = seal_page(header, manifest.index.offset, sums, page);
  const Bytes bytes = encode(manifest);
  std::copy(bytes.begin(), bytes.end(), disk.begin() + static_cast<ptrdiff_t>(superblock.manifest_offset));
  superblock.manifest_crc = sums.volume(bytes);
  put_superblock(disk, superblock);
}

bool names(const CheckReport& report, const std::string& what) {
  return std::any_of(report.damage.begin(), report.damage.end(), [&](const std::string& line) { return line.find(what) != std::string::npos; });
}

coro::Task<void> two_lead_to_one(VolumeTest& t) {
  co_await VolumeTest::create(t, 1u << 20, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (int block = 0; block < 3; ++block) (void)co_await VolumeTest::write(t, 8192u * static_cast<unsigned>(block), 4096, block + 1);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  const Manifest manifest = manifest_of(t.disk.bytes, newest(t.disk.bytes));
  const auto page = page_at(t.disk.bytes, manifest.index.offset);
  const Entry first = decode_leaf_entry(0, page);
  Entry second = decode_leaf_entry(1, page);
  EXPECT_EQ(second.block, 2u);
  second.place = first.place;
  encode_leaf_entry(second, 1, page);
  reseal_root(t.disk.bytes);
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  int got = co_await VolumeTest::read(t, 0, 4096);
  EXPECT_EQ(got, 1);
  got = co_await VolumeTest::read(t, 8192, 4096);
  EXPECT_EQ(got, -EIO - 1000);
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok());
  EXPECT_TRUE(names(report.value(), "block 2 (byte 8192)")) << "its place was read already, as another block";
  EXPECT_FALSE(names(report.value(), "block 0 (")) << "nothing is wrong with that one";
  EXPECT_FALSE(names(report.value(), "block 4 ("));
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, CheckReadsWhateverLeadsToAPlace) { go(two_lead_to_one(*this)); }

// A damaged page of the index is nearly all of a disk that is large and mostly empty: check ends all the same.
coro::Task<void> large_and_damaged(VolumeTest& t) {
  co_await VolumeTest::create(t, uint64_t{1} << 62, 1u << 16);
  (void)co_await VolumeTest::open(t);
  for (unsigned block = 0; block < 200; ++block) {
    test::Ask zeroes(t.loop());
    zeroes.as(Command::kWriteZeroes, 8192 * block, 4096).keep_allocated = true;
    const int error = co_await run(*t.device, zeroes);
    EXPECT_EQ(error, 0);
  }
  (void)co_await VolumeTest::write(t, 8192 * 200, 4096, 9);
  const bool closed = co_await VolumeTest::close(t);
  EXPECT_TRUE(closed);
  const Manifest manifest = manifest_of(t.disk.bytes, newest(t.disk.bytes));
  EXPECT_EQ(manifest.index.level, 1u);
  const auto root = page_at(t.disk.bytes, manifest.index.offset);
  const uint32_t last = load_le<uint16_t>(root.data() + 10) - 1u;
  const Child child = decode_child(last, root);
  EXPECT_GT(child.block, 0u);
  t.disk.bytes[child.offset + 2000] ^= std::byte{1};
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  const int got = co_await VolumeTest::read(t, 8192 * 200, 4096);
  EXPECT_EQ(got, -EIO - 1000);
  uint64_t looks = 0;
  CheckOptions options;
  options.stopped = [&] { return ++looks > 100'000; };
  const auto report = co_await t.volume->check(options);
  EXPECT_TRUE(report.ok()) << "it goes on and on";
  EXPECT_TRUE(report.ok() && names(report.value(), "from block")) << "and says so";
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, CheckOfALargeDiskWithADamagedIndexEnds) { go(large_and_damaged(*this)); }

// The most that one read was given memory for.
class Watched final : public io::File {
 public:
  Watched(test::MemoryDisk& disk, size_t& most) : file_(disk), most_(most) {}
  bool read(io::Loop& loop, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    most_ = std::max(most_, into.size());
    return file_.read(loop, op, into, offset);
  }
  bool write(io::Loop& loop, io::Op& op, std::span<const std::byte> from, uint64_t offset) override { return file_.write(loop, op, from, offset); }
  bool datasync(io::Loop& loop, io::Op& op) override { return file_.datasync(loop, op); }
  bool punch_hole(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) override { return file_.punch_hole(loop, op, offset, length); }

 private:
  test::MemoryFile file_;
  size_t& most_;
};

coro::Task<void> long_manifest(VolumeTest& t) {
  co_await VolumeTest::create(t, 1u << 20, 1u << 16);
  for (unsigned slot = 0; slot < 2; ++slot) {
    Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(kSuperblockAt[slot], kSuperblockBytes)).value();
    superblock.segment_shift = kMaxSegmentShift;
    superblock.manifest_bytes = superblock.segment_bytes();
    put_superblock(t.disk.bytes, superblock);
  }
  size_t most = 0;
  std::unique_ptr<io::File> file = std::make_unique<Watched>(t.disk, most);
  const auto opened = co_await open_volume(t.loop(), std::move(file), t.options, t.environment);
  EXPECT_EQ(opened.ok() ? 0 : opened.error().code, EBADMSG);
  EXPECT_LE(most, size_t{1} << 20) << "a file of a MiB has no manifest of 256";
}
TEST_F(VolumeTest, AManifestIsNotLongerThanTheFile) { go(long_manifest(*this)); }

}  // namespace
}  // namespace netblk::store::volume
