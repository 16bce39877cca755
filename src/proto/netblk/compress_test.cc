// SPDX-License-Identifier: GPL-2.0-only
#include "proto/netblk/compress.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace netblk::proto {
namespace {

class Compression : public testing::TestWithParam<uint8_t> {
 protected:
  std::vector<std::byte> text() const {
    std::vector<std::byte> bytes(8192);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i / 64);
    return bytes;
  }
  std::vector<std::byte> noise() const {
    std::vector<std::byte> bytes(8192);
    std::mt19937 random(1);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }
  std::vector<std::byte> small(const std::vector<std::byte>& from) {
    std::vector<std::byte> to(worthwhile_bytes(from.size()));
    to.resize(compressor_.compress(GetParam(), from, to));
    return to;
  }
  Compressor compressor_;
};

TEST_P(Compression, ThereAndBack) {
  const auto from = text();
  const auto packed = small(from);
  ASSERT_GT(packed.size(), 0u);
  std::vector<std::byte> back(from.size());
  EXPECT_TRUE(compressor_.decompress(GetParam(), packed, back));
  EXPECT_EQ(back, from);
}

TEST_P(Compression, NoiseIsLeftAlone) { EXPECT_EQ(small(noise()).size(), 0u); }

TEST_P(Compression, AnotherLengthIsRefused) {
  const auto packed = small(text());
  std::vector<std::byte> back(8191);
  EXPECT_FALSE(compressor_.decompress(GetParam(), packed, back));
  back.resize(8193);
  EXPECT_FALSE(compressor_.decompress(GetParam(), packed, back));
}

TEST_P(Compression, ACutOrTrailingByteIsRefused) {
  auto packed = small(text());
  std::vector<std::byte> back(8192);
  EXPECT_FALSE(compressor_.decompress(GetParam(), std::span(packed).first(packed.size() - 1), back));
  packed.push_back(std::byte{0});
  EXPECT_FALSE(compressor_.decompress(GetParam(), packed, back));
  EXPECT_FALSE(compressor_.decompress(GetParam(), {}, back));
}

TEST_P(Compression, MangledBytesNeverGoBeyondTheirPlace) {
  const auto packed = small(text());
  std::mt19937 random(2);
  std::vector<std::byte> back(8192 + 64, std::byte{0xee});
  for (int round = 0; round < 2000; ++round) {
    auto mangled = packed;
    for (int i = 0; i < 3; ++i) mangled[random() % mangled.size()] = static_cast<std::byte>(random());
    compressor_.decompress(GetParam(), mangled, std::span(back).first(8192));
    for (size_t i = 8192; i < back.size(); ++i) ASSERT_EQ(back[i], std::byte{0xee});
  }
}

INSTANTIATE_TEST_SUITE_P(Both, Compression, testing::Values(uint8_t{NETBLK2_LZ4}, uint8_t{NETBLK2_ZSTD}));

TEST(CompressionLuck, TriesLessAndLessOftenAndComesBack) {
  CompressionLuck luck;
  int tried = 0;
  for (int i = 0; i < 1000; ++i)
    if (luck.worth_trying()) {
      ++tried;
      luck.note(false);
    }
  EXPECT_LT(tried, 30);
  while (!luck.worth_trying()) {
  }
  luck.note(true);
  EXPECT_TRUE(luck.worth_trying());
  EXPECT_TRUE(luck.worth_trying());
}

}  // namespace
}  // namespace netblk::proto
