// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/crypt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "store/volume/keys.h"

namespace netblk::store::volume {
namespace {

using Bytes = std::vector<std::byte>;
using Use = Cipher::Use;

Bytes counting(uint8_t first, size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(first++);
  return bytes;
}
Id id_from(uint8_t first) {
  Id id;
  for (uint8_t& byte : id.bytes) byte = first++;
  return id;
}
std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}
Bytes text_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

Secret volume_key() { return Secret(counting(0x80, kVolumeKeyBytes)); }
UserKey file_key(char letter) { return {UserKey::Kind::kFile, Secret(text_bytes(std::string(32, letter)))}; }
UserKey passphrase(std::string_view text) { return {UserKey::Kind::kPassphrase, Secret(text_bytes(text))}; }

RecordHeader some_record(RecordType type, uint8_t flags, uint32_t payload) {
  RecordHeader header;
  header.type = type;
  header.flags = flags | kFlagEncrypted;
  header.payload_bytes = payload;
  header.lsn = 0x0102030405060708;
  header.time_ns = 0x1111111122222222;
  header.incarnation = id_from(0x60);
  header.branch = 1;
  header.blocks = type == RecordType::kData ? 2 : 0;
  header.block = type == RecordType::kData ? 0x99 : 0;
  return header;
}

// RFC 5869, A.1.
TEST(VolumeCrypt, HkdfAsItsTextSays) {
  const Bytes key(22, std::byte{0x0b}), salt = counting(0, 13), info = counting(0xf0, 10);
  Bytes got(42);
  derive(key, salt, {reinterpret_cast<const char*>(info.data()), info.size()}, got);
  EXPECT_EQ(hex(got), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
}

// Computed by another implementation from what the page says.
TEST(VolumeCrypt, RecordsAsThePageSays) {
  Cipher cipher(volume_key());
  Use use(cipher, Cipher::Purpose::kRecords, id_from(0x60), true);
  RecordHeader header = some_record(RecordType::kData, 0, 8192);
  Bytes block(kBlockBytes), sealed(kBlockBytes);
  seal_block(use, header, 1, block, sealed);
  EXPECT_EQ(hex(std::span(sealed).first(16)), "ff7a234ce1ffb2d1afce0d2ea9d8f9d1");
  EXPECT_EQ(hex(header.tags[1]), "86b2f3d186b01b6be28669ee8c7f4c27");
  header = some_record(RecordType::kData, kFlagZstd, 11);
  Bytes payload = text_bytes("hello world");
  seal_record(use, header, payload);
  EXPECT_EQ(hex(payload) + hex(header.tags[0]), "3ed194556e3a58a251505056ffd2512b19bf4fb8179fa6a2755611");
  header = some_record(RecordType::kPoint, 0, 11);
  payload = text_bytes("hello world");
  seal_record(use, header, payload);
  EXPECT_EQ(hex(payload) + hex(header.tags[0]), "8eb5a107465011bfef41614a4ac1e9355d4c773cfb4ceb028749b7");
}

TEST(VolumeCrypt, PagesAndManifestsAsThePageSays) {
  MetadataCipher cipher(std::make_shared<Cipher>(volume_key()));
  cipher.begin(id_from(0x60));
  Superblock superblock;
  superblock.uuid = id_from(0x20);
  superblock.checkpoint = 9;
  superblock.manifest_offset = kSegmentsAt + 0x3000;
  const Bytes manifest = text_bytes("hello world");
  const Bytes sealed = cipher.seal_manifest(superblock, manifest);
  EXPECT_EQ(hex(sealed), "606162636465666768696a6b6c6d6e6f0000000000000000d0903ba38506dc5ea5a388a8163607fea26ffcf96c5028738e74c8");
  EXPECT_EQ(cipher.open_manifest(superblock, sealed), manifest);
  ++superblock.checkpoint;
  EXPECT_EQ(cipher.open_manifest(superblock, sealed), std::nullopt) << "of another checkpoint";
  EXPECT_EQ(cipher.open_manifest(superblock, {}), std::nullopt);

  std::array<std::byte, kPageBytes> page{};
  page[kPageHeaderBytes] = std::byte{0xaa};
  const auto plain = page;
  const Sums sums(id_from(0x20), true);
  seal_page({.level = 1, .entries = 3, .checkpoint = 12, .crc = 0}, kSegmentsAt, sums, page, &cipher);
  EXPECT_EQ(hex(std::span(page).subspan(32, 56)),
            "606162636465666768696a6b6c6d6e6f0100000000000000390c77e652f98154be1a46de46c2e9050000000000000000ba02e14dc5395d71");
  auto other = page;
  const auto header = check_page(kSegmentsAt, sums, page, &cipher);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->entries, 3);
  EXPECT_TRUE(std::equal(page.begin() + kPageHeaderBytes, page.end(), plain.begin() + kPageHeaderBytes));
  EXPECT_FALSE(check_page(kSegmentsAt + kPageBytes, sums, other, &cipher).has_value());
  EXPECT_FALSE(cipher.open_page(kSegmentsAt + kPageBytes, other)) << "the tag binds the place too";
}

// Every bit of what a tag binds.
TEST(VolumeCrypt, NothingCanBeChanged) {
  Cipher cipher(volume_key());
  Cipher another(Secret(counting(0x81, kVolumeKeyBytes)));
  Use use(cipher, Cipher::Purpose::kRecords, id_from(0x60), true);
  RecordHeader header = some_record(RecordType::kData, 0, 8192);
  const Bytes plain = counting(3, kBlockBytes);
  Bytes sealed(kBlockBytes);
  seal_block(use, header, 0, plain, sealed);
  const auto opens = [&](const RecordHeader& by, Cipher& with, uint32_t index, Bytes bytes) {
    Use reading(with, Cipher::Purpose::kRecords, by.incarnation, false);
    return open_block(reading, by, index, bytes) && bytes == plain;
  };
  EXPECT_TRUE(opens(header, cipher, 0, sealed));
  EXPECT_FALSE(opens(header, another, 0, sealed)) << "of another volume";
  EXPECT_FALSE(opens(header, cipher, 1, sealed)) << "of another block";
  const auto changed = [&](const auto& change) {
    RecordHeader other = header;
    change(other);
    return opens(other, cipher, 0, sealed);
  };
  EXPECT_FALSE(changed([](RecordHeader& h) { ++h.lsn; }));
  EXPECT_FALSE(changed([](RecordHeader& h) { ++h.branch; }));
  EXPECT_FALSE(changed([](RecordHeader& h) { ++h.block; }));
  EXPECT_FALSE(changed([](RecordHeader& h) { h.flags |= kFlagLz4; }));
  EXPECT_FALSE(changed([](RecordHeader& h) { ++h.incarnation.bytes[3]; }));
  EXPECT_FALSE(changed([](RecordHeader& h) { h.tags[0][15] ^= std::byte{1}; }));
  for (size_t at = 0; at < kBlockBytes; at += 501) {
    Bytes bytes = sealed;
    bytes[at] ^= std::byte{0x10};
    EXPECT_FALSE(opens(header, cipher, 0, bytes));
  }
  // What the collector changes is not bound.
  EXPECT_TRUE(changed([](RecordHeader& h) {
    h.flags |= kFlagCopy;
    h.flags &= static_cast<uint8_t>(~kFlagContinued);
    h.chain = 0;
    h.durable_lsn = 99;
    h.blocks = 1;
  }));
}

// A record without a payload is sealed for its header's sake.
TEST(VolumeCrypt, ATrimCannotBeMovedOrStretched) {
  Cipher cipher(volume_key());
  RecordHeader header = some_record(RecordType::kTrim, 0, 0);
  header.blocks = 7;
  {
    Use use(cipher, Cipher::Purpose::kRecords, header.incarnation, true);
    seal_record(use, header, {});
  }
  Use use(cipher, Cipher::Purpose::kRecords, header.incarnation, false);
  EXPECT_TRUE(open_payload(use, header, {}));
  ++header.blocks;
  EXPECT_FALSE(open_payload(use, header, {}));
  --header.blocks;
  ++header.block;
  EXPECT_FALSE(open_payload(use, header, {}));
  --header.block;
  header.type = RecordType::kZero;
  EXPECT_FALSE(open_payload(use, header, {}));
}

TEST(VolumeCrypt, ManyKeysAtOnce) {
  Cipher cipher(volume_key());
  std::vector<RecordHeader> headers;
  std::vector<Bytes> sealed;
  const Bytes plain = counting(9, kBlockBytes);
  for (unsigned i = 0; i < 600; ++i) {
    RecordHeader header = some_record(RecordType::kData, 0, kBlockBytes);
    header.incarnation.bytes[0] = static_cast<uint8_t>(i);
    header.incarnation.bytes[1] = static_cast<uint8_t>(i >> 8);
    Use use(cipher, Cipher::Purpose::kRecords, header.incarnation, true);
    sealed.emplace_back(kBlockBytes);
    seal_block(use, header, 0, plain, sealed.back());
    headers.push_back(header);
  }
  for (size_t i = 0; i < headers.size(); ++i) {
    Use use(cipher, Cipher::Purpose::kRecords, headers[i].incarnation, false);
    EXPECT_TRUE(open_block(use, headers[i], 0, sealed[i]));
    EXPECT_EQ(sealed[i], plain);
  }
}

// --- Key slots ------------------------------------------------------------------------------------------------------

class VolumeKeys : public testing::Test {
 public:
  Result<uint32_t> add(const UserKey& key) { return add_key(slots, secret, key, 0x1122334455667788, random, kMinScryptLog2N); }

  KeySlots slots{};
  const Secret secret = volume_key();
  uint8_t next = 0x10;
  RandomBytes random = [this](std::span<std::byte> into) {
    for (std::byte& byte : into) byte = static_cast<std::byte>(next++);
  };
};

// The wrapped keys were computed by other implementations of scrypt, HKDF and RFC 5649.
TEST_F(VolumeKeys, ASlotByteByByte) {
  ASSERT_EQ(add(passphrase("pleaseletmein")).value(), 0u);
  next = 0x10;
  ASSERT_EQ(add(file_key('k')).value(), 1u);
  const std::string salt = "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f", time = "8877665544332211";
  EXPECT_EQ(hex(std::span(slots).first(128)), "02000000" "0e000000" "08000000" "01000000" + salt +
            "d30e4cb3907fdbd921c1fd877ffdbcccec1286c4bc8f2b5822216ac079811bf69ba7c3e28f643e23" + time + std::string(64, '0'));
  EXPECT_EQ(hex(std::span(slots).subspan(128, 128)), "01000000" "00000000" "00000000" "00000000" + salt +
            "15aad0f3b5169ab4b0643aa20315ba66c40510f3e5e59e37e53d78a6205b61e1135627543e7b94ff" + time + std::string(64, '0'));
  EXPECT_TRUE(std::all_of(slots.begin() + 256, slots.end(), [](std::byte byte) { return byte == std::byte{0}; }));
}

TEST_F(VolumeKeys, EachOpensAndNoOther) {
  ASSERT_TRUE(add(file_key('a')).ok());
  ASSERT_TRUE(add(passphrase("correct horse")).ok());
  const auto opened = unlock(slots, file_key('a'));
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(hex(opened.value().volume_key.bytes()), hex(secret.bytes()));
  EXPECT_EQ(opened.value().slot, 0u);
  EXPECT_EQ(unlock(slots, passphrase("correct horse")).value().slot, 1u);
  EXPECT_EQ(unlock(slots, file_key('b')).error().code, EKEYREJECTED);
  EXPECT_EQ(unlock(slots, passphrase("correct horse ")).error().code, EKEYREJECTED);
  EXPECT_EQ(unlock(slots, {UserKey::Kind::kPassphrase, Secret(text_bytes(std::string(32, 'a')))}).error().code, EKEYREJECTED)
      << "a key file's bytes are no passphrase";
}

TEST_F(VolumeKeys, OldKeysOpenNoMore) {
  ASSERT_TRUE(add(passphrase("old")).ok());
  EXPECT_EQ(remove_key(slots, 0).error().code, EBUSY) << "the only one";
  EXPECT_EQ(remove_key(slots, 3).error().code, ENOENT);
  EXPECT_EQ(remove_key(slots, 8).error().code, ENOENT);
  ASSERT_TRUE(replace_key(slots, 0, secret, passphrase("new"), 1, random, kMinScryptLog2N).ok());
  EXPECT_EQ(unlock(slots, passphrase("old")).error().code, EKEYREJECTED);
  EXPECT_TRUE(unlock(slots, passphrase("new")).ok());
  ASSERT_TRUE(add(file_key('a')).ok());
  ASSERT_TRUE(remove_key(slots, 0).ok());
  EXPECT_EQ(unlock(slots, passphrase("new")).error().code, EKEYREJECTED);
  EXPECT_TRUE(unlock(slots, file_key('a')).ok());
  EXPECT_EQ(used_slots(slots).size(), 1u);
}

TEST_F(VolumeKeys, EightAndNotMore) {
  for (char letter = 'a'; letter < 'i'; ++letter) ASSERT_TRUE(add(file_key(letter)).ok());
  EXPECT_EQ(add(file_key('z')).error().code, ENOSPC);
  EXPECT_TRUE(unlock(slots, file_key('h')).ok());
}

TEST_F(VolumeKeys, KeysThatAreNone) {
  EXPECT_EQ(add(passphrase("")).error().code, EINVAL);
  EXPECT_EQ(add({UserKey::Kind::kFile, Secret(Bytes(15))}).error().code, EINVAL);
  EXPECT_EQ(add({UserKey::Kind::kFile, Secret(Bytes(kMaxKeyBytes + 1))}).error().code, EINVAL);
  EXPECT_EQ(used_slots(slots).size(), 0u);
}

// What a slot asks for is done only within bounds, and its kind is one that is known.
TEST_F(VolumeKeys, HostileSlots) {
  ASSERT_TRUE(add(passphrase("open")).ok());
  const KeySlots good = slots;
  for (const auto& [at, value] : std::vector<std::pair<size_t, uint8_t>>{{4, 13}, {4, 21}, {4, 63}, {4, 255}, {7, 1}, {8, 9}, {8, 0}, {11, 255}, {12, 2}, {12, 0}, {0, 3}, {3, 1}, {0, 0}}) {
    slots = good;
    slots[at] = static_cast<std::byte>(value);
    EXPECT_EQ(unlock(slots, passphrase("open")).error().code, EKEYREJECTED) << at << " " << value;
  }
  for (size_t at = 16; at < 88; at += 5) {
    slots = good;
    slots[at] ^= std::byte{1};
    EXPECT_EQ(unlock(slots, passphrase("open")).error().code, EKEYREJECTED) << at;
  }
  // A kind of tomorrow: its slot is not taken.
  slots = good;
  slots[0] = std::byte{9};
  EXPECT_EQ(add(file_key('a')).value(), 1u);
}

TEST(VolumeSecret, IsWipedWhenItMoves) {
  Secret one(counting(1, 40));
  Secret two = std::move(one);
  EXPECT_TRUE(one.empty());  // NOLINT
  EXPECT_EQ(two.bytes().size(), 40u);
  two.shorten(8);
  EXPECT_EQ(hex(two.bytes()), "0102030405060708");
  two = Secret();
  EXPECT_TRUE(two.empty());
}

}  // namespace
}  // namespace netblk::store::volume
