// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace netblk::store::volume {
namespace {

using Bytes = std::vector<std::byte>;

constexpr Compression kBoth[] = {Compression::kLz4, Compression::kZstd};

// `varied` of eight bytes are random.
Bytes some_bytes(size_t size, unsigned varied, unsigned seed = 1) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = i / 64 % 8 < varied ? static_cast<std::byte>(random()) : static_cast<std::byte>(i / 512);
  return bytes;
}

Bytes compressed(Compression how, const Bytes& from) {
  Compressor compressor;
  Bytes to(from.size());
  to.resize(compressor.compress(how, from, to));
  return to;
}

TEST(VolumeCodec, WhatIsCompressedComesBack) {
  Compressor compressor;
  for (const Compression how : kBoth) {
    for (uint32_t blocks = 1; blocks <= kMaxRecordBlocks; ++blocks) {
      const Bytes from = some_bytes(size_t{blocks} * kBlockBytes, 4, blocks);
      Bytes to(most_compressed_bytes(blocks)), back(from.size());
      const size_t got = compressor.compress(how, from, to);
      ASSERT_GT(got, 0u) << name_of(how);
      to.resize(got);
      EXPECT_TRUE(decompress(flag_of(how), to, back));
      EXPECT_EQ(back, from);
    }
  }
}

TEST(VolumeCodec, WhatSavesLessThanAnEighthIsLeft) {
  Compressor compressor;
  for (const Compression how : kBoth) {
    Bytes to(most_compressed_bytes(16));
    EXPECT_EQ(compressor.compress(how, some_bytes(65'536, 8), to), 0u);
    EXPECT_GT(compressor.compress(how, some_bytes(65'536, 6), to), 0u);
  }
  Bytes to(most_compressed_bytes(16));
  EXPECT_EQ(compressor.compress(Compression::kNone, some_bytes(65'536, 0), to), 0u);
}

TEST(VolumeCodec, ExactlyTheBytesOfTheBlocks) {
  const Bytes from = some_bytes(8192, 3);
  for (const Compression how : kBoth) {
    Bytes to = compressed(how, from);
    Bytes less(8191), more(8193);
    EXPECT_FALSE(decompress(flag_of(how), to, less));
    EXPECT_FALSE(decompress(flag_of(how), to, more));
    Bytes back(8192);
    const Bytes cut(to.begin(), to.end() - 1);
    EXPECT_FALSE(decompress(flag_of(how), cut, back));
    Bytes longer = to;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(decompress(flag_of(how), longer, back));
    EXPECT_FALSE(decompress(flag_of(how), {}, back));
    EXPECT_FALSE(decompress(0, to, back));
    EXPECT_FALSE(decompress(kCompressed, to, back));
  }
  // A second frame of Zstandard.
  Bytes two = compressed(Compression::kZstd, some_bytes(4096, 3));
  const Bytes one = two;
  two.insert(two.end(), one.begin(), one.end());
  Bytes back(8192);
  EXPECT_FALSE(decompress(kFlagZstd, two, back));
}

// Whatever the bytes are: only `to` is written. (Under the address sanitizer the vectors' ends are watched.)
TEST(VolumeCodec, HostileBytesAreRefusedOrDecompressed) {
  std::mt19937 random(7);
  for (const Compression how : kBoth) {
    const Bytes good = compressed(how, some_bytes(16'384, 4));
    for (int round = 0; round < 3000; ++round) {
      Bytes bytes = good;
      for (auto flips = 1 + random() % 6; flips > 0; --flips) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
      if (random() % 4 == 0) bytes.resize(random() % bytes.size());
      Bytes back(16'384);
      (void)decompress(flag_of(how), bytes, back);
    }
  }
}

TEST(VolumeCodec, Names) {
  EXPECT_EQ(compression_named("lz4"), Compression::kLz4);
  EXPECT_EQ(compression_named("zstd"), Compression::kZstd);
  EXPECT_EQ(compression_named("none"), Compression::kNone);
  EXPECT_EQ(compression_named("LZ4"), std::nullopt);
  EXPECT_EQ(compression_named(""), std::nullopt);
  EXPECT_STREQ(name_of(Compression::kZstd), "zstd");
}

}  // namespace
}  // namespace netblk::store::volume
