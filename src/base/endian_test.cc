// SPDX-License-Identifier: GPL-2.0-only
#include "base/endian.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

namespace netblk {
namespace {

std::vector<int> bytes_of(const std::byte* from, size_t count) {
  std::vector<int> values;
  for (size_t i = 0; i < count; ++i) values.push_back(std::to_integer<int>(from[i]));
  return values;
}

TEST(Endian, StoresMostSignificantByteFirst) {
  std::array<std::byte, 8> raw{};
  store_be(raw.data(), uint8_t{0xa1});
  EXPECT_EQ(bytes_of(raw.data(), 1), (std::vector<int>{0xa1}));
  store_be(raw.data(), uint16_t{0xa1b2});
  EXPECT_EQ(bytes_of(raw.data(), 2), (std::vector<int>{0xa1, 0xb2}));
  store_be(raw.data(), uint32_t{0xa1b2c3d4});
  EXPECT_EQ(bytes_of(raw.data(), 4), (std::vector<int>{0xa1, 0xb2, 0xc3, 0xd4}));
  store_be(raw.data(), uint64_t{0x0102030405060708});
  EXPECT_EQ(bytes_of(raw.data(), 8), (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(Endian, LoadsWhatItStoredAtEveryAlignment) {
  std::array<std::byte, 16> raw{};
  for (size_t at = 0; at < 8; ++at) {
    store_be(raw.data() + at, uint64_t{0xfedcba9876543210});
    EXPECT_EQ(load_be<uint64_t>(raw.data() + at), 0xfedcba9876543210) << at;
    store_be(raw.data() + at, uint32_t{0x80000001});
    EXPECT_EQ(load_be<uint32_t>(raw.data() + at), 0x80000001) << at;
    store_be(raw.data() + at, uint16_t{0x8001});
    EXPECT_EQ(load_be<uint16_t>(raw.data() + at), 0x8001) << at;
  }
}

TEST(Endian, StoresLeastSignificantByteFirst) {
  std::array<std::byte, 8> raw{};
  store_le(raw.data(), uint16_t{0xa1b2});
  EXPECT_EQ(bytes_of(raw.data(), 2), (std::vector<int>{0xb2, 0xa1}));
  store_le(raw.data(), uint64_t{0x0102030405060708});
  EXPECT_EQ(bytes_of(raw.data(), 8), (std::vector<int>{8, 7, 6, 5, 4, 3, 2, 1}));
  EXPECT_EQ(load_le<uint64_t>(raw.data()), 0x0102030405060708);
  EXPECT_EQ(load_le<uint32_t>(raw.data() + 1), 0x04050607u);
}

}  // namespace
}  // namespace netblk
