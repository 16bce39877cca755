// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/upgrade.h"

#include <cerrno>

#include "store/volume/volume_fixture_test.h"

namespace netblk::test {
namespace {

using store::volume::decode_superblock;
using store::volume::encode;
using store::volume::kFormatVersion;
using store::volume::kSuperblockAt;
using store::volume::kSuperblockBytes;
using store::volume::Superblock;
using store::volume::SuperblockBytes;
using store::volume::upgrade_volume;

std::span<std::byte> slot(Bytes& bytes, unsigned number) {
  return std::span(bytes).subspan(kSuperblockAt[number], kSuperblockBytes);
}

void put(Bytes& bytes, unsigned number, const Superblock& superblock, uint32_t version) {
  const SuperblockBytes block = encode(superblock, version);
  std::copy(block.begin(), block.end(), slot(bytes, number).begin());
}

class Upgrade : public VolumeTest {
 public:
  // A volume of version 1 with something in it, which was not closed.
  static coro::Task<void> make_old(Upgrade& t) {
    co_await create(t, kSize, 64u << 10);
    bool opened = co_await open(t);
    EXPECT_TRUE(opened);
    int error = co_await write(t, 0, 64u << 10, 1);
    EXPECT_EQ(error, 0);
    const bool closed = co_await close(t);
    EXPECT_TRUE(closed);
    opened = co_await open(t);
    EXPECT_TRUE(opened);
    error = co_await write(t, 4096, 4096, 2, true);
    EXPECT_EQ(error, 0);
    co_await crash(t, true);
    for (unsigned number = 0; number < 2; ++number) {
      const auto superblock = decode_superblock(slot(t.disk.bytes, number));
      EXPECT_TRUE(superblock.ok());
      put(t.disk.bytes, number, superblock.value(), 1);
    }
  }
  // The version that it had; -errno.
  static coro::Task<int> upgrade(Upgrade& t) {
    MemoryFile file(t.disk);
    const auto had = co_await upgrade_volume(t.loop(), file);
    if (!had.ok()) t.message = had.error().message;
    co_return had.ok() ? static_cast<int>(had.value()) : -had.error().code;
  }
  static coro::Task<void> expect_whole(Upgrade& t) {
    const bool opened = co_await open(t);
    EXPECT_TRUE(opened) << t.message;
    if (!opened) co_return;
    EXPECT_EQ(t.volume->info().damage, "");
    const int first = co_await read(t, 0, 4096);
    const int second = co_await read(t, 4096, 4096);
    const int third = co_await read(t, 8192, 4096);
    EXPECT_EQ(first, 1);
    EXPECT_EQ(second, 2);
    EXPECT_EQ(third, 1);
    const int error = co_await write(t, 0, 4096, 3);
    EXPECT_EQ(error, 0);
    const bool closed = co_await close(t);
    EXPECT_TRUE(closed);
  }
};

TEST_F(Upgrade, AnOldVolumeIsRefusedUntilItIsDone) {
  go([](Upgrade& t) -> coro::Task<void> {
    co_await make_old(t);
    const Bytes before = t.disk.bytes;
    const bool opened = co_await open(t);
    EXPECT_FALSE(opened);
    EXPECT_EQ(t.error, EPROTONOSUPPORT);
    EXPECT_NE(t.message.find("netblk volume upgrade"), std::string::npos) << t.message;
    EXPECT_EQ(t.disk.bytes, before) << "who refuses it leaves it alone";
    int had = co_await upgrade(t);
    EXPECT_EQ(had, 1);
    had = co_await upgrade(t);
    EXPECT_EQ(had, int{kFormatVersion}) << "there is nothing more to do";
    co_await expect_whole(t);
  }(*this));
}

TEST_F(Upgrade, APowerCutAtEachStepLosesNothing) {
  go([](Upgrade& t) -> coro::Task<void> {
    co_await make_old(t);
    const Bytes before = t.disk.bytes;
    const int had = co_await upgrade(t);
    EXPECT_EQ(had, 1);
    Bytes after = t.disk.bytes;
    const unsigned first = decode_superblock(slot(after, 0)).value().sequence < decode_superblock(slot(after, 1)).value().sequence ? 0 : 1;
    // The first slot torn behind each sector, and then the second one.
    for (unsigned step = 0; step <= 16; ++step) {
      t.disk.bytes = before;
      for (unsigned i = 0; i < 2; ++i) {
        const size_t sectors = step < 8 * i ? 0 : std::min<size_t>(step - 8 * i, 8);
        const auto from = slot(after, i == 0 ? first : 1 - first).first(512 * sectors);
        std::copy(from.begin(), from.end(), slot(t.disk.bytes, i == 0 ? first : 1 - first).begin());
      }
      const int again = co_await upgrade(t);
      EXPECT_GT(again, 0) << "step " << step << ": " << t.message;
      co_await expect_whole(t);
    }
  }(*this));
}

TEST_F(Upgrade, EachWriteAndSyncThatFails) {
  go([](Upgrade& t) -> coro::Task<void> {
    co_await make_old(t);
    const Bytes before = t.disk.bytes;
    for (int nth = 1; nth <= 3; ++nth)
      for (const bool sync : {false, true}) {
        t.disk.bytes = before;
        (sync ? t.disk.fail_sync_at : t.disk.fail_write_at) = nth;
        const int had = co_await upgrade(t);
        const bool fails = sync || nth <= 2;
        EXPECT_EQ(had, fails ? -EIO : 1) << nth << sync;
        t.disk.fail_sync_at = t.disk.fail_write_at = 0;
        const int again = co_await upgrade(t);
        EXPECT_GT(again, 0) << t.message;
        co_await expect_whole(t);
      }
  }(*this));
}

TEST_F(Upgrade, WhatIsDamaged) {
  go([](Upgrade& t) -> coro::Task<void> {
    co_await make_old(t);
    const Bytes before = t.disk.bytes;
    // One slot alone is enough, whichever.
    for (unsigned number = 0; number < 2; ++number) {
      t.disk.bytes = before;
      slot(t.disk.bytes, number)[100] ^= std::byte{1};
      const int had = co_await upgrade(t);
      EXPECT_EQ(had, 1) << number << t.message;
      co_await expect_whole(t);
    }
    t.disk.bytes = before;
    for (unsigned number = 0; number < 2; ++number) slot(t.disk.bytes, number)[100] ^= std::byte{1};
    const Bytes damaged = t.disk.bytes;
    int had = co_await upgrade(t);
    EXPECT_EQ(had, -EBADMSG);
    EXPECT_EQ(t.disk.bytes, damaged) << "nothing is written";
    // Of a newer program, and of none.
    t.disk.bytes = before;
    put(t.disk.bytes, 0, decode_superblock(slot(t.disk.bytes, 0), 1).value(), kFormatVersion + 1);
    had = co_await upgrade(t);
    EXPECT_EQ(had, -EPROTONOSUPPORT);
    t.disk.bytes.assign(1u << 20, std::byte{0});
    had = co_await upgrade(t);
    EXPECT_EQ(had, -EBADMSG);
  }(*this));
}

TEST_F(Upgrade, AnUnknownFeatureThatReadersMayIgnore) {
  go([](Upgrade& t) -> coro::Task<void> {
    co_await create(t, kSize, 64u << 10);
    bool opened = co_await open(t);
    EXPECT_TRUE(opened);
    int got = co_await write(t, 0, 4096, 7);
    EXPECT_EQ(got, 0);
    const bool closed = co_await close(t);
    EXPECT_TRUE(closed);
    for (unsigned number = 0; number < 2; ++number) {
      Superblock superblock = decode_superblock(slot(t.disk.bytes, number)).value();
      superblock.read_only_compatible = 1u << 5;
      put(t.disk.bytes, number, superblock, kFormatVersion);
    }
    const Bytes before = t.disk.bytes;
    opened = co_await open(t);
    EXPECT_TRUE(opened);
    EXPECT_TRUE(t.volume->info().read_only);
    EXPECT_NE(t.volume->info().damage.find("feature 5"), std::string::npos) << t.volume->info().damage;
    const int value = co_await read(t, 0, 4096);
    EXPECT_EQ(value, 7);
    got = co_await write(t, 0, 4096, 8);
    EXPECT_NE(got, 0);
    (void)co_await close(t);
    EXPECT_EQ(t.disk.bytes, before) << "nothing is written";
  }(*this));
}

}  // namespace
}  // namespace netblk::test
