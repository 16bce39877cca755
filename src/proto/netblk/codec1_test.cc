// SPDX-License-Identifier: GPL-2.0-only
// netblk/1 against the text of DESIGN 4.1. The expected bytes are written out here, not taken from the codec.
#include "proto/netblk/codec1.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace netblk::proto {
namespace {

using Header = std::array<std::byte, 13>;

constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kMax32 = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kMaxLength = 33'554'432;  // 32 MiB

// cmd u8 | sector u64 | length u32, big-endian, packed.
Header header(uint8_t command, uint64_t sector, uint32_t length) {
  Header bytes;
  bytes[0] = std::byte{command};
  for (size_t i = 0; i < 8; ++i) bytes[1 + i] = static_cast<std::byte>(sector >> (56 - 8 * i));
  for (size_t i = 0; i < 4; ++i) bytes[9 + i] = static_cast<std::byte>(length >> (24 - 8 * i));
  return bytes;
}

// In memory of exactly that many bytes, so that a sanitizer sees a look beyond them.
Decoded1 decode(std::span<const std::byte> bytes) {
  const std::unique_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy.get());
  return decode_request1({copy.get(), bytes.size()});
}

TEST(Codec1, TheHeaderIsThirteenPackedBytes) {
  Header bytes;
  encode_request1({NETBLK1_CMD_WRITE, 0x0102030405060708, 0x01fffe00}, bytes.data());
  EXPECT_EQ(bytes, (Header{std::byte{2}, std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5},
                           std::byte{6}, std::byte{7}, std::byte{8}, std::byte{0x01}, std::byte{0xff}, std::byte{0xfe},
                           std::byte{0}}));
}

TEST(Codec1, EncodingWritesNothingElse) {
  std::array<std::byte, 15> around;
  around.fill(std::byte{0xcc});
  encode_request1({NETBLK1_CMD_READ, kMax64, kMax32}, around.data() + 1);
  EXPECT_EQ(around.front(), std::byte{0xcc});
  EXPECT_EQ(around.back(), std::byte{0xcc});
}

TEST(Codec1, DecodesWhatThePageSays) {
  for (const uint64_t sector : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, uint64_t{1} << 63, kMax64}) {
    for (const uint32_t length : {0u, 1u, 511u, 512u, 4096u, kMaxLength - 1, kMaxLength}) {
      for (const uint8_t command : std::initializer_list<uint8_t>{1, 2, 3}) {
        const Decoded1 decoded = decode(header(command, sector, length));
        ASSERT_EQ(decoded.outcome, Decode1::kRequest);
        EXPECT_EQ(decoded.request.command, static_cast<netblk1_command>(command));
        EXPECT_EQ(decoded.request.sector, sector);
        EXPECT_EQ(decoded.request.length_bytes, length);
      }
    }
  }
}

TEST(Codec1, DecodingIsTheInverseOfEncoding) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 100'000; ++i) {
    // Every magnitude of both fields, not only large ones.
    const Request1 request{static_cast<netblk1_command>(1 + random() % 3), random() >> (random() % 64),
                           static_cast<uint32_t>(random() % (uint64_t{kMaxLength} + 1)) >> (random() % 26)};
    Header bytes;
    encode_request1(request, bytes.data());
    ASSERT_EQ(bytes, header(static_cast<uint8_t>(request.command), request.sector, request.length_bytes));
    const Decoded1 decoded = decode(bytes);
    ASSERT_EQ(decoded.outcome, Decode1::kRequest);
    ASSERT_EQ(decoded.request.command, request.command);
    ASSERT_EQ(decoded.request.sector, request.sector);
    ASSERT_EQ(decoded.request.length_bytes, request.length_bytes);
  }
}

TEST(Codec1, EveryTruncationNeedsMore) {
  for (const uint8_t command : std::initializer_list<uint8_t>{1, 2, 3}) {
    const Header whole = header(command, 0x1122334455667788, kMax32);
    for (size_t length = 0; length < whole.size(); ++length)
      EXPECT_EQ(decode(std::span(whole).first(length)).outcome, Decode1::kNeedMore) << length;
  }
}

TEST(Codec1, EveryFirstByteIsJudgedAloneAndAtEveryLength) {
  for (int first = 0; first < 256; ++first) {
    Header bytes = header(static_cast<uint8_t>(first), 0, 512);
    for (size_t length = 1; length <= bytes.size(); ++length) {
      const Decode1 outcome = decode(std::span(bytes).first(length)).outcome;
      if (first >= 1 && first <= 3) {
        EXPECT_EQ(outcome, length == bytes.size() ? Decode1::kRequest : Decode1::kNeedMore);
      } else {
        EXPECT_EQ(outcome, Decode1::kUnknownCommand) << first;
      }
    }
  }
}

TEST(Codec1, MoreThan32MiBIsTooLong) {
  for (const uint32_t length : {kMaxLength + 1, kMaxLength + 512, 1u << 31, kMax32 - 511, kMax32}) {
    for (const uint8_t command : std::initializer_list<uint8_t>{1, 2}) {
      const Decoded1 decoded = decode(header(command, 0, length));
      EXPECT_EQ(decoded.outcome, Decode1::kTooLong) << length;
      EXPECT_EQ(decoded.request.length_bytes, length) << "the log names it";
    }
  }
}

TEST(Codec1, LooksAtNoMoreThanOneHeader) {
  std::vector<std::byte> two;
  for (const Header& one : {header(1, 7, 512), header(0xff, 0, 0)}) two.insert(two.end(), one.begin(), one.end());
  const Decoded1 decoded = decode(two);
  EXPECT_EQ(decoded.outcome, Decode1::kRequest);
  EXPECT_EQ(decoded.request.sector, 7u);
}

TEST(Codec1, AnyBytesAreLegalInput) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 100'000; ++i) {
    std::vector<std::byte> bytes(random() % 30);
    for (std::byte& one : bytes) one = static_cast<std::byte>(random());
    if (!bytes.empty() && i % 2 == 0) bytes[0] = static_cast<std::byte>(random() % 5);
    const Decoded1 decoded = decode(bytes);
    if (decoded.outcome == Decode1::kRequest && decoded.request.command != NETBLK1_CMD_DISCONNECT) {
      ASSERT_LE(decoded.request.length_bytes, kMaxLength);
    }
  }
}

TEST(Codec1, ARefusalIsOneLineThatNamesWhatCame) {
  const auto text = [](const Header& bytes) { return refusal_text(decode(bytes), bytes[0]); };
  EXPECT_NE(text(header(0x47, 0, 0)).find("0x47"), std::string::npos) << text(header(0x47, 0, 0));
  EXPECT_NE(text(header(2, 0, kMaxLength + 1)).find("33554433"), std::string::npos);
  for (const uint8_t first : std::initializer_list<uint8_t>{0x00, 0x0a, 0x47, 0xff})
    EXPECT_EQ(text(header(first, 0, 0)).find('\n'), std::string::npos);
}

}  // namespace
}  // namespace netblk::proto
