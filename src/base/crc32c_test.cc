// SPDX-License-Identifier: GPL-2.0-only
#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace netblk {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// RFC 3720 appendix B.4.
TEST(Crc32c, GivesTheValuesOfTheStandard) {
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Crc32c, OfPartsIsThatOfTheWhole) {
  const std::string_view text = "a disk on another machine, shown as a block device";
  for (size_t cut = 0; cut <= text.size(); ++cut)
    EXPECT_EQ(crc32c(bytes_of(text.substr(cut)), crc32c(bytes_of(text.substr(0, cut)))), crc32c(bytes_of(text)));
}

// Bit by bit, as the standard defines it: each way of the processor's is compared with it, at every length that goes
// another way through them, wherever the data begin.
uint32_t slow_crc32c(std::span<const std::byte> bytes, uint32_t before) {
  uint32_t state = ~before;
  for (const std::byte byte : bytes) {
    state ^= std::to_integer<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0x82f63b78 : 0);
  }
  return ~state;
}

TEST(Crc32c, IsThatOfTheStandardAtEveryLengthAndPlace) {
  std::vector<std::byte> data(9000);
  uint32_t dice = 1;
  for (std::byte& byte : data) byte = static_cast<std::byte>((dice = dice * 1664525 + 1013904223) >> 24);
  for (size_t length = 0; length < 1200; ++length) {
    const auto part = std::span(data).subspan(length % 67, length);
    ASSERT_EQ(crc32c(part), slow_crc32c(part, 0)) << length;
    ASSERT_EQ(crc32c(part, 0x12345678), slow_crc32c(part, 0x12345678)) << length;
  }
  for (const size_t length : std::initializer_list<size_t>{4095, 4096, 4097, 4608, 8191, 8192, 8900}) {
    const auto part = std::span(data).subspan(length % 67, length);
    ASSERT_EQ(crc32c(part, 7), slow_crc32c(part, 7)) << length;
  }
}

TEST(Crc32c, ChangesWithEveryBit) {
  std::vector<std::byte> block(36, std::byte{0x5a});
  const uint32_t whole = crc32c(block);
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    block[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(crc32c(block), whole) << "bit " << bit;
    block[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace netblk
