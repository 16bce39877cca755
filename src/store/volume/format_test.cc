// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <random>

#include "base/crc32c.h"
#include "base/endian.h"

namespace netblk::store::volume {
namespace {

using Bytes = std::vector<std::byte>;

Id id_from(uint8_t first) {
  Id id;
  for (uint8_t& byte : id.bytes) byte = first++;
  return id;
}
const Id kUuid = id_from(0x20), kIncarnation = id_from(0x60);
const Sums kSums(kUuid);

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

Superblock some_superblock() {
  Superblock block;
  block.compatible = 1;
  block.read_only_compatible = 2;
  block.uuid = kUuid;
  block.sequence = 0x1122334455667788;
  block.generation = 7;
  block.open = true;
  block.segment_shift = 20;
  block.incarnation = kIncarnation;
  block.manifest_offset = kSegmentsAt + 0x3000;
  block.manifest_bytes = 0x1234;
  block.manifest_crc = 0xa1b2c3d4;
  block.checkpoint = 9;
  return block;
}

RecordHeader some_record(uint32_t blocks) {
  RecordHeader header;
  header.flags = kFlagContinued;
  header.payload_bytes = blocks * kBlockBytes;
  header.lsn = 0x0102030405060708;
  header.durable_lsn = 0x0102030405060700;
  header.time_ns = 0x1111111122222222;
  header.incarnation = kIncarnation;
  header.branch = 1;
  header.blocks = blocks;
  header.block = 0x99;
  header.chain = 0xdeadbeef;
  for (uint32_t i = 0; i < blocks; ++i) header.sums[i] = 0x01010101 * (i + 1);
  return header;
}

// The bytes as the page describes them: what other programs, and older volumes, are read by.
TEST(VolumeFormat, ASuperblockByteByByte) {
  const auto bytes = encode(some_superblock()), old = encode(some_superblock(), 1);
  const std::string rest = "0100000000000000" "0200000000000000" "0000000000000000"
                           "202122232425262728292a2b2c2d2e2f" "8877665544332211" "0700000000000000" "01000000" "14000000"
                           "606162636465666768696a6b6c6d6e6f" "0030100000000000" "3412000000000000" "d4c3b2a1" "00000000"
                           "0900000000000000";
  EXPECT_EQ(hex(std::span(bytes).first(128)), "4e4554424c4b564c" "0f284cea" "02000000" + rest);
  EXPECT_EQ(hex(std::span(old).first(128)), "4e4554424c4b564c" "1b73fa7f" "01000000" + rest);
  EXPECT_TRUE(std::all_of(bytes.begin() + 128, bytes.end(), [](std::byte one) { return one == std::byte{0}; }));
  const auto again = decode_superblock(bytes);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again.value(), some_superblock());
}

TEST(VolumeFormat, ARecordByteByByte) {
  RecordHeader header = some_record(2);
  Bytes bytes(header.header_bytes());
  ASSERT_EQ(bytes.size(), 128u);
  encode(header, kSums, bytes);
  EXPECT_EQ(hex(bytes),
            "4e565231" "3939329c" "01" "02" "8000" "00200000" "0807060504030201" "0007060504030201"
            "2222222211111111" "606162636465666768696a6b6c6d6e6f" "01000000" "02000000" "9900000000000000"
            "efbeadde" "00000000" "00000000000000000000000000000000" "01010101" "02020202"
            "000000000000000000000000000000000000000000000000");
  EXPECT_EQ(header.crc, load_le<uint32_t>(bytes.data() + 4));
  const auto again = decode_record(bytes, kSums);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->crc, header.crc);
  EXPECT_EQ(again->lsn, header.lsn);
  EXPECT_EQ(again->sums, header.sums);
  EXPECT_EQ(header.stored_bytes(), 128u + 8192u);
}

// Two blocks, and one sum of what is stored of them.
TEST(VolumeFormat, ACompressedRecordByteByByte) {
  RecordHeader header = some_record(2);
  header.flags = kFlagZstd;
  header.payload_bytes = 0x0801;
  Bytes bytes(header.header_bytes());
  ASSERT_EQ(bytes.size(), 128u);
  encode(header, kSums, bytes);
  EXPECT_EQ(hex(bytes).substr(16),
            "01" "10" "8000" "01080000" "0807060504030201" "0007060504030201"
            "2222222211111111" "606162636465666768696a6b6c6d6e6f" "01000000" "02000000" "9900000000000000"
            "efbeadde" "00000000" "00000000000000000000000000000000" "01010101"
            "00000000000000000000000000000000000000000000000000000000");
  const auto again = decode_record(bytes, kSums);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->sum_count(), 1u);
  EXPECT_EQ(again->stored_units(), 33u);
  EXPECT_EQ(again->stored_bytes(), 128u + 33 * 64u);
  Bytes payload(0x0801, std::byte{9});
  header.sums[0] = kSums.block(1, 0x99, header.lsn, payload);
  EXPECT_TRUE(payload_passes(header, kSums, payload));
  payload.back() = std::byte{8};
  EXPECT_FALSE(payload_passes(header, kSums, payload));
  payload.resize(0x0800);
  EXPECT_FALSE(payload_passes(header, kSums, payload));
}

TEST(VolumeFormat, ACompressedRecordThatMakesNoSenseIsNone) {
  const auto passes = [](const std::function<void(RecordHeader&)>& change) {
    RecordHeader header = some_record(2);
    header.flags = kFlagLz4;
    header.payload_bytes = 2 * 3584;
    change(header);
    Bytes bytes(header.header_bytes());
    encode(header, kSums, bytes);
    return decode_record(bytes, kSums).has_value();
  };
  EXPECT_TRUE(passes([](RecordHeader&) {}));
  EXPECT_FALSE(passes([](RecordHeader& h) { h.payload_bytes = 2 * 3584 + 1; })) << "it saves less than an eighth";
  EXPECT_FALSE(passes([](RecordHeader& h) { h.payload_bytes = 0; }));
  EXPECT_FALSE(passes([](RecordHeader& h) { h.flags = kFlagLz4 | kFlagZstd; }));
  EXPECT_FALSE(passes([](RecordHeader& h) { h.type = RecordType::kTrim; h.payload_bytes = 0; }));
  EXPECT_FALSE(passes([](RecordHeader& h) { h.type = RecordType::kPoint; h.blocks = 0; }));
}

// Whatever parts an entry is cut into, they are as much as the whole; and none of them is nothing.
TEST(VolumeFormat, WhatIsAliveOfARecordIsTheSumOfItsParts) {
  for (uint32_t blocks = 1; blocks <= kMaxRecordBlocks; ++blocks) {
    for (uint32_t units = 0; units <= most_compressed_bytes(blocks) / kUnitBytes; ++units) {
      const Entry whole{.branch = 1, .blocks = blocks, .block = 7, .lsn = 1, .place = Place::make(kSegmentsAt + 64, 0, blocks, units)};
      ASSERT_EQ(Place::stored_units(whole.place), units);
      ASSERT_EQ(Place::record_blocks(whole.place), blocks);
      ASSERT_EQ(Place::offset(whole.place), kSegmentsAt + 64);
      uint64_t sum = 0;
      for (uint32_t at = 0; at < blocks; ++at) {
        const Entry part{.branch = 1, .blocks = 1, .block = 7 + at, .lsn = 1, .place = Place::moved(whole.place, at)};
        ASSERT_EQ(Place::index(part.place), at);
        ASSERT_GT(live_bytes_of(part), 0u);
        sum += live_bytes_of(part);
      }
      ASSERT_EQ(sum, live_bytes_of(whole));
      if (units != 0) { ASSERT_EQ(sum, 128 + units * kUnitBytes); }
    }
  }
}

TEST(VolumeFormat, ASumBindsTheVolumeTheAddressAndTheGeneration) {
  const Bytes block(kBlockBytes, std::byte{5});
  // As the page words it: the CRC goes on from that of (uuid, branch, block, LSN).
  Bytes address(36);
  std::copy(kUuid.bytes.begin(), kUuid.bytes.end(), reinterpret_cast<uint8_t*>(address.data()));
  store_le(address.data() + 16, uint32_t{3});
  store_le(address.data() + 20, uint64_t{4});
  store_le(address.data() + 28, uint64_t{5});
  const uint32_t sum = kSums.block(3, 4, 5, block);
  EXPECT_EQ(sum, crc32c(block, crc32c(address)));
  EXPECT_NE(sum, kSums.block(2, 4, 5, block));
  EXPECT_NE(sum, kSums.block(3, 5, 5, block));
  EXPECT_NE(sum, kSums.block(3, 4, 6, block));
  EXPECT_NE(sum, Sums(id_from(0x21)).block(3, 4, 5, block));
}

TEST(VolumeFormat, NoBitOfASuperblockCanTurnUnnoticed) {
  const auto bytes = encode(some_superblock());
  for (size_t bit = 0; bit < bytes.size() * 8; bit += bit < 1024 ? 1 : 61) {
    auto bad = bytes;
    bad[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    EXPECT_FALSE(decode_superblock(bad).ok()) << bit;
  }
}

TEST(VolumeFormat, NoBitOfARecordsHeaderCanTurnUnnoticed) {
  for (const uint32_t blocks : {1u, 8u, 9u, 16u}) {
    RecordHeader header = some_record(blocks);
    Bytes bytes(kMaxHeaderBytes);
    encode(header, kSums, bytes);
    ASSERT_TRUE(decode_record(bytes, kSums).has_value());
    EXPECT_FALSE(decode_record(bytes, Sums(id_from(0x21))).has_value());
    for (size_t bit = 0; bit < header.header_bytes() * 8; ++bit) {
      Bytes bad = bytes;
      bad[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      EXPECT_FALSE(decode_record(bad, kSums).has_value()) << bit;
    }
    for (size_t length = 0; length < header.header_bytes(); ++length)
      EXPECT_FALSE(decode_record(std::span(bytes).first(length), kSums).has_value()) << length;
  }
}

TEST(VolumeFormat, ARecordOfARightSumThatMakesNoSenseIsNone) {
  const auto passes = [](RecordHeader header) {
    Bytes bytes(kMaxHeaderBytes);
    encode(header, kSums, bytes);
    return decode_record(bytes, kSums).has_value();
  };
  EXPECT_TRUE(passes(some_record(1)));
  RecordHeader bad = some_record(1);
  bad.payload_bytes = 2 * kBlockBytes;
  EXPECT_FALSE(passes(bad));
  bad = some_record(1);
  bad.flags = 4;
  EXPECT_FALSE(passes(bad));
  bad = some_record(1);
  bad.type = RecordType::kTrim;
  EXPECT_FALSE(passes(bad)) << "a trim with a payload";
  bad.payload_bytes = 0;
  EXPECT_TRUE(passes(bad));
  bad.blocks = 0;
  EXPECT_FALSE(passes(bad)) << "a trim of nothing";
  bad.type = RecordType::kNext;
  EXPECT_TRUE(passes(bad));
  bad.type = static_cast<RecordType>(7);
  EXPECT_FALSE(passes(bad));
  bad.type = RecordType::kPoint;
  bad.payload_bytes = kMaxChangeBytes + 1;
  EXPECT_FALSE(passes(bad));
}

TEST(VolumeFormat, APayloadIsComparedBlockByBlock) {
  RecordHeader header = some_record(3);
  Bytes payload(header.payload_bytes);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * i >> 9);
  for (uint32_t i = 0; i < 3; ++i)
    header.sums[i] = kSums.block(header.branch, header.block + i, header.lsn,
                                 std::span(payload).subspan(size_t{i} * kBlockBytes, kBlockBytes));
  EXPECT_TRUE(payload_passes(header, kSums, payload));
  EXPECT_FALSE(payload_passes(header, kSums, std::span(payload).first(payload.size() - 1)));
  for (size_t i = 0; i < payload.size(); i += 977) {
    payload[i] ^= std::byte{0x10};
    EXPECT_FALSE(payload_passes(header, kSums, payload)) << i;
    payload[i] ^= std::byte{0x10};
  }
  std::swap_ranges(payload.begin(), payload.begin() + kBlockBytes, payload.begin() + kBlockBytes);
  EXPECT_FALSE(payload_passes(header, kSums, payload)) << "two blocks in each other's place";
}

TEST(VolumeFormat, APlaceKeepsWhereWhichAndHowMany) {
  const uint64_t place = Place::make(kSegmentsAt + 64 * 5, 3, 16);
  EXPECT_TRUE(Place::is_data(place));
  EXPECT_EQ(Place::offset(place), kSegmentsAt + 64 * 5);
  EXPECT_EQ(Place::index(place), 3u);
  EXPECT_EQ(Place::record_blocks(place), 16u);
  EXPECT_EQ(Place::index(Place::moved(place, 12)), 15u);
  EXPECT_EQ(Place::offset(Place::moved(place, 12)), kSegmentsAt + 64 * 5);
  EXPECT_EQ(Place::record_blocks(Place::moved(place, 12)), 16u);
  EXPECT_FALSE(Place::is_data(Place::kHole));
  EXPECT_EQ(Place::moved(Place::kZero, 99), Place::kZero);
}

TEST(VolumeFormat, APageIsBoundToItsPlace) {
  std::array<std::byte, kPageBytes> page{};
  const Entry entry{1, 2, 0x1122334455, 77, Place::make(kSegmentsAt, 1, 9)};
  const Child child{1, 2, 5, 6, kSegmentsAt + 4096, 0xabcdef01, kChildHasCovered};
  encode_leaf_entry(entry, kLeafEntries - 1, page);
  EXPECT_EQ(decode_leaf_entry(kLeafEntries - 1, page), entry);
  EXPECT_EQ(hex(std::span(page).subspan(kPageHeaderBytes + size_t{kLeafEntryBytes} * (kLeafEntries - 1), kLeafEntryBytes)),
            "01000000" "02000000" "5544332211000000" "4d00000000000000" "0040000000008100");
  const PageHeader header{0, kLeafEntries, 12, 0};
  const uint32_t crc = seal_page(header, kSegmentsAt, kSums, page);
  const auto checked = check_page(kSegmentsAt, kSums, page);
  ASSERT_TRUE(checked.has_value());
  EXPECT_EQ(checked->crc, crc);
  EXPECT_EQ(checked->entries, kLeafEntries);
  EXPECT_EQ(checked->checkpoint, 12u);
  EXPECT_FALSE(check_page(kSegmentsAt + kPageBytes, kSums, page).has_value());
  EXPECT_FALSE(check_page(kSegmentsAt, Sums(kIncarnation), page).has_value());
  for (size_t i = 0; i < page.size(); ++i) {
    page[i] ^= std::byte{1};
    EXPECT_FALSE(check_page(kSegmentsAt, kSums, page).has_value()) << i;
    page[i] ^= std::byte{1};
  }
  page.fill(std::byte{0});
  encode_child(child, kInnerEntries - 1, page);
  EXPECT_EQ(decode_child(kInnerEntries - 1, page), child);
  seal_page({1, kInnerEntries, 12, 0}, kSegmentsAt, kSums, page);
  EXPECT_TRUE(check_page(kSegmentsAt, kSums, page).has_value());
}

TEST(VolumeFormat, ChangesComeBack) {
  std::vector<Change> changes(8);
  changes[0] = {ChangeKind::kSnapshot, "monday", 0, {}};
  changes[1] = {ChangeKind::kDeletion, "_x-1.2", 0, {}};
  changes[2] = {ChangeKind::kResize, "", uint64_t{1} << 40, {}};
  changes[3] = {ChangeKind::kOwners, "", 0, Bytes(1000, std::byte{3})};
  changes[4] = {.kind = ChangeKind::kClone, .name = "copy", .lsn = 77};
  changes[5] = {.kind = ChangeKind::kRewind, .lsn = 78};
  changes[6] = {.kind = ChangeKind::kSetting, .name = "history", .value = "24h"};
  changes[7] = {.kind = ChangeKind::kHistory, .lsn = uint64_t{1} << 40};
  for (const Change& change : changes) {
    const Bytes bytes = encode(change);
    const auto again = decode_change(bytes);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again.value(), change);
    if (change.kind == ChangeKind::kOwners) continue;
    EXPECT_FALSE(decode_change(std::span(bytes).first(bytes.size() - 1)).ok());
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(decode_change(longer).ok());
  }
  EXPECT_EQ(hex(encode(changes[0])), "01000000" "06000000" "6d6f6e646179");
  EXPECT_FALSE(decode_change(encode(Change{ChangeKind::kSnapshot, "no/name", 0, {}})).ok());
  for (const uint64_t no_size : {uint64_t{0}, uint64_t{511}, uint64_t{513}, ~uint64_t{0}})
    EXPECT_FALSE(decode_change(encode(Change{ChangeKind::kResize, "", no_size, {}})).ok()) << no_size;
  EXPECT_EQ(decode_change(Bytes(4, std::byte{9})).error().code, EPROTONOSUPPORT);
  EXPECT_EQ(decode_change({}).error().code, EPROTONOSUPPORT);
}

TEST(VolumeFormat, Names) {
  for (const char* good : {"a", "_", "Z9", "a.b-c_d", "before-upgrade"}) EXPECT_TRUE(is_name(good)) << good;
  for (const char* bad : {"", "9a", "-a", ".a", "a/b", "a@b", "a b", "\xc3\xa4"}) EXPECT_FALSE(is_name(bad)) << bad;
  EXPECT_TRUE(is_name(std::string(64, 'a')));
  EXPECT_FALSE(is_name(std::string(65, 'a')));
}

Manifest some_manifest() {
  Manifest manifest;
  manifest.log = {.segment = 3, .offset = 640, .next_lsn = 99, .chain = 0x12345678, .time_ns = 5, .durable_lsn = 90,
                  .incarnation = kIncarnation};
  manifest.segments = {{SegmentState::kLog, 1, 2}, {SegmentState::kFree, 0, 0}, {SegmentState::kMetadata, 4096, 0}};
  manifest.branches = {{1, "", uint64_t{10} << 30, {}, {{50, 40}}}, {2, "copy", 4096, {1, 30}, {}, 31, {{40, 8192}}}};
  manifest.snapshots = {{"monday", {1, 30}, 77, 8192}, {"tuesday", {1, 60}, 78, 4096}};
  manifest.index = {kSegmentsAt + 4096, 2, 0x55, 1000};
  manifest.owners = Bytes(10, std::byte{1});
  manifest.next_branch = 3;
  manifest.settings = {{"history", "24h"}};
  manifest.history = {7, 4096, {{5, 6, 4000}, {9, 8, 4096}}};
  manifest.unknown = {{0x77, Bytes(3, std::byte{2})}};
  return manifest;
}

TEST(VolumeFormat, AManifestComesBack) {
  const Bytes bytes = encode(some_manifest());
  const auto again = decode_manifest(bytes);
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again.value(), some_manifest());
  EXPECT_EQ(hex(std::span(bytes).first(12 + 60)),
            "01000080" "3c00000000000000" "0300000000000000" "8002000000000000" "6300000000000000" "78563412"
            "0500000000000000" "5a00000000000000" "606162636465666768696a6b6c6d6e6f");
}

TEST(VolumeFormat, AManifestThatIsNotWholeOrNotKnownIsRefused) {
  const Bytes bytes = encode(some_manifest());
  for (size_t length = 0; length < bytes.size(); ++length) {
    // What is cut off between the sections that may be missing is whole all the same.
    const auto cut = decode_manifest(std::span(bytes).first(length));
    if (cut.ok()) {
      EXPECT_TRUE(cut.value().unknown.empty());
    }
  }
  Manifest newer = some_manifest();
  newer.unknown[0].kind |= 0x80000000;
  EXPECT_EQ(decode_manifest(encode(newer)).error().code, EPROTONOSUPPORT);
  Manifest misnamed = some_manifest();
  misnamed.snapshots[0].name = "a/b";
  EXPECT_FALSE(decode_manifest(encode(misnamed)).ok());
}

// Whatever the bytes are, a decoder ends, and asks for no more memory than they are long.
TEST(VolumeFormat, DecodersTakeAnyBytes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  const Bytes good = encode(some_manifest());
  for (int round = 0; round < 20'000; ++round) {
    Bytes bytes = good;
    for (uint64_t n = 1 + random() % 4; n > 0; --n) {
      const size_t at = random() % bytes.size();
      bytes[at] = random() % 2 == 0 ? static_cast<std::byte>(random()) : std::byte{0xff};
    }
    (void)decode_manifest(bytes);
    (void)decode_change(std::span(bytes).subspan(random() % bytes.size()));
  }
}

}  // namespace
}  // namespace netblk::store::volume
