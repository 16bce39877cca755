// SPDX-License-Identifier: GPL-2.0-only
// Encrypted volumes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "store/volume/keys.h"
#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Bytes;
using test::get;
using test::MemoryFile;
using test::put;
using test::records;
using test::some_bytes;
using test::VolumeTest;
using VolumeEncryptionTest = test::VolumeTest;

constexpr uint64_t kDisk = 4u << 20;

std::shared_ptr<const UserKey> file_key(char letter) {
  const std::string bytes(32, letter);
  return std::make_shared<UserKey>(UserKey{UserKey::Kind::kFile, Secret(std::as_bytes(std::span(bytes)))});
}

coro::Task<void> create(VolumeTest& t, std::shared_ptr<const UserKey> key) {
  t.disk = {};
  MemoryFile file(t.disk);
  CreateOptions how{.size_bytes = kDisk, .segment_bytes = 1u << 18};
  how.key = key;
  const Status made = co_await create_volume(t.loop(), file, how, t.environment);
  EXPECT_TRUE(made.ok());
  t.options.key = key;
}

Superblock superblock_of(const Bytes& disk) { return decode_superblock(std::span(disk).first(kSuperblockBytes)).value(); }
RecordHeader header_at(const Bytes& disk, uint64_t at) {
  const Superblock superblock = superblock_of(disk);
  return *decode_record(std::span(disk).subspan(at, kMaxHeaderBytes), Sums(superblock.uuid, true));
}
bool has(const Bytes& disk, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return std::search(disk.begin(), disk.end(), bytes.begin(), bytes.end()) != disk.end();
}

coro::Task<void> model(VolumeTest& t, Compression how) {
  co_await create(t, file_key('k'));
  t.options.compression = how;
  bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  EXPECT_TRUE(t.volume->info().encrypted);
  Bytes expected(kDisk);
  std::mt19937 random(21);
  for (int round = 0; round < 240; ++round) {
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
    if (round % 60 == 59) {
      const auto made = co_await t.volume->snapshot(fmt::format("s{}", round));
      EXPECT_TRUE(made.ok());
      if (round % 120 == 119) {
        co_await VolumeTest::crash(t, false);
      } else {
        const bool closed = co_await VolumeTest::close(t);
        EXPECT_TRUE(closed);
      }
      opened = co_await VolumeTest::open(t);
      EXPECT_TRUE(opened) << t.message;
      EXPECT_EQ(t.volume->info().damage, "");
      Bytes all(kDisk);
      const int read = co_await get(t, 0, all);
      EXPECT_EQ(read, 0);
      EXPECT_TRUE(all == expected) << "round " << round;
    }
  }
  auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  EXPECT_EQ(t.volume->snapshots().size(), 4u);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, AModel) { go(model(*this, Compression::kNone)); }
TEST_F(VolumeEncryptionTest, AModelWithLz4) { go(model(*this, Compression::kLz4)); }

coro::Task<void> keys(VolumeTest& t) {
  co_await create(t, file_key('k'));
  const Bytes made = t.disk.bytes;
  t.options.key = file_key('x');
  bool opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EKEYREJECTED);
  EXPECT_NE(t.message.find("opens none of its key slots"), std::string::npos) << t.message;
  t.options.key = nullptr;
  opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, ENOKEY);
  EXPECT_TRUE(t.disk.bytes == made) << "nothing was written";
  // And a key for one that has none: it is another volume than was meant.
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  t.options.key = file_key('k');
  opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EINVAL);
}
TEST_F(VolumeEncryptionTest, TheKeyIsAskedForAtOnce) { go(keys(*this)); }

// Nothing of what a user wrote or named is in the file, whatever was compressed, and in the log, the index or the manifest.
coro::Task<void> plain(VolumeTest& t, Compression how) {
  constexpr std::string_view kPlanted = "planted-0123456789-plain", kName = "a-name-nobody-sees";
  co_await create(t, file_key('k'));
  t.options.compression = how;
  (void)co_await VolumeTest::open(t);
  Bytes bytes(65'536 + 512);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(kPlanted[i % kPlanted.size()]);
  const int error = co_await put(t, 512, bytes);
  EXPECT_EQ(error, 0);
  (void)co_await t.volume->snapshot(std::string(kName));
  auto device = t.volume->open_device(std::string(kName));
  EXPECT_TRUE(device.ok());
  device.value().reset();
  EXPECT_FALSE(has(t.disk.bytes, kPlanted));
  EXPECT_FALSE(has(t.disk.bytes, kName)) << "in the log";
  (void)co_await VolumeTest::close(t);
  EXPECT_FALSE(has(t.disk.bytes, kPlanted));
  EXPECT_FALSE(has(t.disk.bytes, kName)) << "in the manifest";
  EXPECT_FALSE(has(t.disk.bytes, std::string(32, 'k')));
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->snapshots().at(0).name, kName);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, NothingIsThereInPlain) {
  go(plain(*this, Compression::kNone));
  go(plain(*this, Compression::kZstd));
}

// Somebody who can write in the file, and makes every checksum right.
coro::Task<void> forged(VolumeTest& t) {
  co_await create(t, file_key('k'));
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(16'384, 0, 1));
  (void)co_await put(t, 16'384, some_bytes(16'384, 0, 2));
  (void)co_await VolumeTest::close(t);
  const Bytes good = t.disk.bytes;
  const auto places = records(good, [](const RecordHeader& header) { return header.type == RecordType::kData; });
  EXPECT_EQ(places.size(), 2u);
  const Sums sums(superblock_of(good).uuid, true);
  const RecordHeader first = header_at(good, places[0]), second = header_at(good, places[1]);
  const auto payload = [&](uint64_t at, const RecordHeader& header) { return t.disk.bytes.begin() + static_cast<ptrdiff_t>(at + header.header_bytes()); };
  const auto write_header = [&](RecordHeader header) {
    for (uint32_t i = 0; i < header.blocks; ++i)
      header.sums[i] = sums.block(header.branch, header.block + i, header.lsn, std::span(&*payload(places[0], header) + size_t{i} * kBlockBytes, kBlockBytes));
    encode(header, sums, std::span(t.disk.bytes).subspan(places[0], header.header_bytes()));
  };
  const std::vector<std::function<void(RecordHeader&)>> changes = {
      [&](RecordHeader& h) { *payload(places[0], h) ^= std::byte{1}; },
      [&](RecordHeader& h) { h.tags[0][0] ^= std::byte{1}; },
      [&](RecordHeader& h) { h.incarnation.bytes[0] ^= 1; },
      // Another block's bytes, of this record and of another, with their own tags.
      [&](RecordHeader& h) { std::swap_ranges(payload(places[0], h), payload(places[0], h) + kBlockBytes, payload(places[0], h) + kBlockBytes); std::swap(h.tags[0], h.tags[1]); },
      [&](RecordHeader& h) { std::copy_n(payload(places[1], second), kBlockBytes, payload(places[0], h)); h.tags[0] = second.tags[0]; },
  };
  t.options.read_only = true;
  for (size_t i = 0; i < changes.size(); ++i) {
    t.disk.bytes = good;
    RecordHeader header = first;
    changes[i](header);
    write_header(header);
    const bool opened = co_await VolumeTest::open(t);
    EXPECT_TRUE(opened);
    Bytes got(kBlockBytes);
    int error = co_await get(t, 0, got);
    EXPECT_EQ(error, EIO) << i;
    error = co_await get(t, 20'480, got);
    EXPECT_EQ(error, 0) << i;
    (void)co_await VolumeTest::close(t);
  }
}
TEST_F(VolumeEncryptionTest, WhatIsForgedIsEio) { go(forged(*this)); }

// A record that was never sealed is no record of an encrypted volume; nor the other way round.
TEST_F(VolumeEncryptionTest, APlainRecordIsNone) {
  RecordHeader header;
  header.type = RecordType::kTrim;
  header.lsn = 1;
  header.blocks = 1;
  Bytes bytes(kMaxHeaderBytes);
  const Id uuid = {{1, 2, 3}};
  encode(header, Sums(uuid, true), bytes);
  EXPECT_FALSE(decode_record(bytes, Sums(uuid, true)).has_value());
  EXPECT_TRUE(decode_record(bytes, Sums(uuid)).has_value());
  header.flags = kFlagEncrypted;
  encode(header, Sums(uuid), bytes);
  EXPECT_TRUE(decode_record(bytes, Sums(uuid, true)).has_value());
  EXPECT_FALSE(decode_record(bytes, Sums(uuid)).has_value());
}

// The log's end after a crash, with a change that was forged: it does not count.
coro::Task<void> forged_tail(VolumeTest& t) {
  co_await create(t, file_key('k'));
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(4096, 0, 1));
  (void)co_await VolumeTest::simple(t, Command::kTrim, 0, 4096);
  co_await VolumeTest::crash(t, false);
  const auto trims = records(t.disk.bytes, [](const RecordHeader& header) { return header.type == RecordType::kTrim; });
  EXPECT_EQ(trims.size(), 1u);
  RecordHeader header = header_at(t.disk.bytes, trims[0]);
  header.blocks = 100;
  encode(header, Sums(superblock_of(t.disk.bytes).uuid, true), std::span(t.disk.bytes).subspan(trims[0], header.header_bytes()));
  (void)co_await VolumeTest::open(t);
  EXPECT_TRUE(t.volume->info().cut);
  Bytes got(4096);
  const int error = co_await get(t, 0, got);
  EXPECT_EQ(error, 0);
  EXPECT_EQ(got, some_bytes(4096, 0, 1));
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, AForgedTrimIsATornTail) { go(forged_tail(*this)); }

// A page or a manifest whose CRC is right and whose tag is not.
coro::Task<void> forged_metadata(VolumeTest& t) {
  co_await create(t, file_key('k'));
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(16'384, 0, 1));
  (void)co_await VolumeTest::close(t);
  const Bytes good = t.disk.bytes;
  for (const uint64_t at : kSuperblockAt) {
    Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(at, kSuperblockBytes)).value();
    t.disk.bytes[superblock.manifest_offset + 60] ^= std::byte{1};
  }
  for (const uint64_t at : kSuperblockAt) {
    Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(at, kSuperblockBytes)).value();
    superblock.manifest_crc = Sums(superblock.uuid).volume(std::span(t.disk.bytes).subspan(superblock.manifest_offset, superblock.manifest_bytes));
    const SuperblockBytes block = encode(superblock);
    std::copy(block.begin(), block.end(), t.disk.bytes.begin() + static_cast<ptrdiff_t>(at));
  }
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EBADMSG) << t.message;
}
TEST_F(VolumeEncryptionTest, AForgedManifestIsNone) { go(forged_metadata(*this)); }

// Every pair of key and nonce in a file, and what was sealed with it.
void collect(const Bytes& disk, std::map<std::string, std::string>& sealed, size_t& records_seen, size_t& metadata_seen) {
  const auto text = [&](uint64_t at, size_t size) { return std::string(reinterpret_cast<const char*>(&disk[at]), size); };
  const auto note = [&](std::string pair, std::string what) {
    const auto [at, is_new] = sealed.emplace(std::move(pair), what);
    EXPECT_TRUE(is_new || at->second == what) << "two messages under one nonce";
  };
  for (const uint64_t at : records(disk, [](const RecordHeader&) { return true; })) {
    const RecordHeader header = header_at(disk, at);
    const std::string key(reinterpret_cast<const char*>(header.incarnation.bytes.data()), 16);
    const bool blocks = header.type == RecordType::kData && !header.is_compressed();
    for (uint32_t i = 0; i < header.tag_count(); ++i) {
      ++records_seen;
      const uint64_t block = header.type == RecordType::kData ? header.block + i : 0;
      note(fmt::format("r{}:{}:{}", key, header.lsn, block),
           std::string(reinterpret_cast<const char*>(header.tags[i].data()), 16) +
               (blocks ? text(at + header.header_bytes() + size_t{i} * kBlockBytes, 64) : ""));
    }
  }
  for (uint64_t at = kSegmentsAt; at + kPageBytes <= disk.size(); at += kPageBytes) {
    if (text(at, 4) != "NVP1") continue;
    ++metadata_seen;
    note("m" + text(at + 32, 24), text(at + 56, 16) + text(at + 80, 64));
  }
  for (const uint64_t at : kSuperblockAt) {
    const Superblock superblock = decode_superblock(std::span(disk).subspan(at, kSuperblockBytes)).value();
    ++metadata_seen;
    note("m" + text(superblock.manifest_offset, 24), text(superblock.manifest_offset + 24, superblock.manifest_bytes - 24));
  }
}

coro::Task<void> work(VolumeTest& t, unsigned seed, int endings) {
  for (int i = 0; i < endings; ++i) {
    const bool opened = co_await VolumeTest::open(t);
    EXPECT_TRUE(opened) << t.message;
    for (unsigned k = 0; k < 12; ++k) {
      const uint64_t at = (seed * 37 + k * 11 + static_cast<unsigned>(i)) % 200 * kBlockBytes;
      const int error = co_await put(t, at, some_bytes(20'480, k % 2 == 0 ? 0 : 5, seed * 100 + k));
      EXPECT_EQ(error, 0);
      if (k % 5 == 4) (void)co_await VolumeTest::simple(t, Command::kFlush, 0, 0);
    }
    (void)co_await t.volume->snapshot(fmt::format("s{}-{}", seed, i));
    if (i % 2 == 0) {
      co_await VolumeTest::crash(t, seed % 2 == 0);
    } else {
      (void)co_await VolumeTest::close(t);
    }
  }
}

// A backup that is restored, again and again, and a crash that takes the log back: what comes afterwards is under other keys.
coro::Task<void> nonces(VolumeTest& t) {
  co_await create(t, file_key('k'));
  t.options.compression = Compression::kLz4;
  t.options.checkpoint_bytes = 64u << 10;
  std::map<std::string, std::string> sealed;
  size_t records_seen = 0, metadata_seen = 0;
  co_await work(t, 1, 3);
  collect(t.disk.bytes, sealed, records_seen, metadata_seen);
  const Bytes backup = t.disk.bytes;
  for (unsigned seed = 2; seed < 8; ++seed) {
    t.disk.bytes = t.disk.durable = backup;
    co_await work(t, seed, 2);
    collect(t.disk.bytes, sealed, records_seen, metadata_seen);
  }
  EXPECT_GT(records_seen, 500u);
  EXPECT_GT(metadata_seen, 40u);
}
TEST_F(VolumeEncryptionTest, NoNonceIsUsedTwice) { go(nonces(*this)); }

// The superblocks of new keys lead to a manifest that does not have the rewind yet: the log has it, and counts it once.
coro::Task<void> rewound(VolumeTest& t) {
  const auto key = file_key('a'), other = file_key('b');
  co_await create(t, key);
  t.options.cache_survived = true;
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(65'536, 3, 1));
  (void)co_await t.volume->snapshot("one");
  (void)co_await put(t, 0, some_bytes(65'536, 3, 2));
  t.device.reset();
  const auto back = co_await t.volume->rewind(PointName("one"), {});
  EXPECT_TRUE(back.ok());
  const uint64_t generation = t.volume->info().generation;
  const auto added = co_await t.volume->add_key(*key, *other);
  EXPECT_TRUE(added.ok());
  co_await VolumeTest::crash(t, true);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->info().generation, generation);
  (void)co_await VolumeTest::close(t);
  (void)co_await VolumeTest::open(t);
  EXPECT_EQ(t.volume->info().generation, generation);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, ARewindIsCountedOnce) { go(rewound(*this)); }

coro::Task<void> rotated(VolumeTest& t) {
  const auto old_key = file_key('a'), new_key = file_key('b'), third = file_key('c');
  co_await create(t, old_key);
  (void)co_await VolumeTest::open(t);
  (void)co_await put(t, 0, some_bytes(65'536, 3, 1));
  const uint64_t lsn = t.volume->info().last_lsn;
  auto changed = co_await t.volume->change_key(*third, *new_key);
  EXPECT_EQ(changed.ok() ? 0 : changed.error().code, EKEYREJECTED);
  changed = co_await t.volume->change_key(*old_key, *new_key);
  EXPECT_TRUE(changed.ok());
  Status removed = co_await t.volume->remove_key(*new_key, 0);
  EXPECT_EQ(removed.ok() ? 0 : removed.error().code, EBUSY);
  changed = co_await t.volume->add_key(*new_key, *third);
  EXPECT_EQ(changed.ok() ? changed.value() : 99, 1u);
  EXPECT_EQ(t.volume->keys().size(), 2u);
  EXPECT_EQ(t.volume->info().last_lsn, lsn) << "no data is written for it";
  // The old one opens neither superblock, though the volume was not even closed.
  co_await VolumeTest::crash(t, true);
  for (const uint64_t at : kSuperblockAt) {
    const Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(at, kSuperblockBytes)).value();
    EXPECT_FALSE(unlock(superblock.key_slots, *old_key).ok());
    EXPECT_TRUE(unlock(superblock.key_slots, *new_key).ok());
  }
  t.options.key = old_key;
  bool opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  EXPECT_EQ(t.error, EKEYREJECTED);
  t.options.key = third;
  opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  removed = co_await t.volume->remove_key(*third, 0);
  EXPECT_TRUE(removed.ok());
  (void)co_await put(t, 65'536, some_bytes(65'536, 3, 2));
  (void)co_await VolumeTest::close(t);
  t.options.key = new_key;
  opened = co_await VolumeTest::open(t);
  EXPECT_FALSE(opened);
  t.options.key = third;
  (void)co_await VolumeTest::open(t);
  Bytes got(65'536);
  const int error = co_await get(t, 65'536, got);
  EXPECT_EQ(error, 0);
  EXPECT_EQ(got, some_bytes(65'536, 3, 2));
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, KeysChangeWithoutTheData) { go(rotated(*this)); }

coro::Task<void> plain_keys(VolumeTest& t) {
  co_await VolumeTest::create(t, kDisk, 1u << 18);
  (void)co_await VolumeTest::open(t);
  const auto key = file_key('a');
  const auto added = co_await t.volume->add_key(*key, *key);
  EXPECT_EQ(added.ok() ? 0 : added.error().code, EOPNOTSUPP);
  EXPECT_TRUE(t.volume->keys().empty());
  EXPECT_FALSE(t.volume->info().encrypted);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeEncryptionTest, APlainOneHasNoKeys) { go(plain_keys(*this)); }

// The superblocks with the new key are written one after the other, and the power may go between them: one of the keys opens it.
coro::Task<void> torn_rotation(VolumeTest& t) {
  const auto old_key = file_key('a'), new_key = file_key('b');
  for (int nth = 1; nth <= 2; ++nth) {
    co_await create(t, old_key);
    (void)co_await VolumeTest::open(t);
    (void)co_await put(t, 0, some_bytes(4096, 0, 1));
    t.disk.fail_write_at = nth;
    const auto changed = co_await t.volume->change_key(*old_key, *new_key);
    EXPECT_FALSE(changed.ok());
    co_await VolumeTest::crash(t, true);
    t.disk.fail_write_at = 0;
    t.options.key = nth == 1 ? old_key : new_key;
    const bool opened = co_await VolumeTest::open(t);
    EXPECT_TRUE(opened) << t.message;
    if (!opened) continue;
    (void)co_await VolumeTest::close(t);
    for (const uint64_t at : kSuperblockAt) {
      const Superblock superblock = decode_superblock(std::span(t.disk.bytes).subspan(at, kSuperblockBytes)).value();
      EXPECT_TRUE(unlock(superblock.key_slots, *t.options.key).ok()) << "an opening brings both to the newer's";
    }
  }
}
TEST_F(VolumeEncryptionTest, ARotationThatIsCutShort) { go(torn_rotation(*this)); }

}  // namespace
}  // namespace netblk::store::volume
