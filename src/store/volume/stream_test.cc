// SPDX-License-Identifier: GPL-2.0-only
// The bytes of a stream, and of what a volume keeps of one: there and back, and refused whichever bit is another.
#include "store/volume/stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <string>
#include <vector>

#include "store/volume/format.h"

namespace netblk::store::volume {
namespace {

using Bytes = std::vector<std::byte>;

Transfer transfer(bool whole) {
  Transfer what;
  what.to = {.volume = {}, .branch = 1, .lsn = 77, .time_ns = 1234};
  what.to.volume.bytes[3] = 9;
  what.to_name = "b";
  what.size_bytes = 16 * kBlockBytes + 512;
  if (whole) return what;
  what.from = {.volume = what.to.volume, .branch = 1, .lsn = 5, .time_ns = 99};
  what.from_name = "a";
  what.from_size_bytes = 8 * kBlockBytes;
  return what;
}

Bytes bytes_of(std::span<const std::byte> from) { return {from.begin(), from.end()}; }

Bytes whole_stream() {
  const auto header = encode(StreamHeader{.what = transfer(false), .start_offset = 0});
  StreamWriter writer(header);
  Bytes all = bytes_of(header);
  const auto put = [&](std::span<const std::byte> bytes) { all.insert(all.end(), bytes.begin(), bytes.end()); };
  const Bytes payload(2 * kBlockBytes, std::byte{7});
  put(writer.record(StreamKind::kData, kBlockBytes, payload.size(), payload));
  put(payload);
  put(writer.record(StreamKind::kZero, 4 * kBlockBytes, 2 * kBlockBytes));
  put(writer.record(StreamKind::kHole, 8 * kBlockBytes, 8 * kBlockBytes + 512));
  put(writer.end());
  return all;
}

// Whether all of it is a stream that passes.
bool reads(const Bytes& all) {
  if (all.size() < kStreamHeaderBytes) return false;
  const auto bytes = std::span(all).first<kStreamHeaderBytes>();
  const auto header = decode_stream_header(bytes);
  if (!header) return false;
  StreamReader reader(header.value(), bytes);
  size_t at = kStreamHeaderBytes;
  while (!reader.ended()) {
    if (all.size() - at < kStreamRecordBytes) return false;
    const auto record = reader.record(std::span(all).subspan(at).first<kStreamRecordBytes>());
    at += kStreamRecordBytes;
    if (!record || all.size() - at < record.value().payload_bytes) return false;
    if (!reader.passes(std::span(all).subspan(at, record.value().payload_bytes)).ok()) return false;
    at += record.value().payload_bytes;
  }
  return at == all.size();
}

TEST(VolumeStream, ThereAndBack) {
  for (const bool whole : {false, true}) {
    const StreamHeader header{.what = transfer(whole), .start_offset = 3 * kBlockBytes};
    const auto bytes = encode(header);
    const auto back = decode_stream_header(bytes);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back.value(), header);
  }
  EXPECT_TRUE(reads(whole_stream()));
}

TEST(VolumeStream, EachFlippedBitIsNoticed) {
  const Bytes all = whole_stream();
  for (size_t bit = 0; bit < 8 * all.size(); bit += bit < 8 * (kStreamHeaderBytes + kStreamRecordBytes) ? 1 : 61) {
    Bytes bad = all;
    bad[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    ASSERT_FALSE(reads(bad)) << "bit " << bit;
  }
}

TEST(VolumeStream, EachTruncationIsNoticed) {
  const Bytes all = whole_stream();
  for (size_t length = 0; length < all.size(); length += 1 + length / 64)
    ASSERT_FALSE(reads(Bytes(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(length)))) << length;
}

// What no writer of ours would write, with good sums.
TEST(VolumeStream, HostileRecords) {
  struct Case {
    StreamKind kind;
    uint64_t offset, length, payload;
  };
  const uint64_t size = transfer(false).size_bytes;
  const Case cases[] = {
      {StreamKind::kData, 0, 2 * kBlockBytes, kBlockBytes},  // a payload that is not its length
      {StreamKind::kZero, 0, kBlockBytes, kBlockBytes},      // a payload that has no business there
      {StreamKind::kZero, 0, 0, 0},
      {StreamKind::kZero, 512, kBlockBytes, 0},
      {StreamKind::kZero, 0, 512, 0},
      {StreamKind::kHole, 0, size + 512, 0},
      {StreamKind::kHole, size, kBlockBytes, 0},
      {StreamKind::kHole, 1ull << 63, 1ull << 63, 0},
      {StreamKind::kHole, kBlockBytes, ~0ull - kBlockBytes + 1, 0},
      {static_cast<StreamKind>(0), 0, kBlockBytes, 0},
      {static_cast<StreamKind>(5), 0, kBlockBytes, 0},
      {StreamKind::kEnd, 0, 0, 0},
      {StreamKind::kEnd, size, 1, 0},
  };
  for (const Case& each : cases) {
    Bytes all = bytes_of(encode(StreamHeader{.what = transfer(false), .start_offset = 0}));
    StreamWriter writer{std::span(all).first<kStreamHeaderBytes>()};
    const Bytes payload(each.payload);
    const auto record = writer.record(each.kind, each.offset, each.length, payload);
    all.insert(all.end(), record.begin(), record.end());
    all.insert(all.end(), payload.begin(), payload.end());
    const auto end = writer.end();
    all.insert(all.end(), end.begin(), end.end());
    EXPECT_FALSE(reads(all)) << static_cast<int>(each.kind) << " at " << each.offset;
  }
}

// One that goes back, or says something twice.
TEST(VolumeStream, RecordsAscend) {
  Bytes all = bytes_of(encode(StreamHeader{.what = transfer(false), .start_offset = 2 * kBlockBytes}));
  StreamWriter writer{std::span(all).first<kStreamHeaderBytes>()};
  const auto header = decode_stream_header(std::span(all).first<kStreamHeaderBytes>());
  ASSERT_TRUE(header.ok());
  StreamReader reader(header.value(), std::span(all).first<kStreamHeaderBytes>());
  EXPECT_FALSE(reader.record(writer.record(StreamKind::kZero, kBlockBytes, kBlockBytes)).ok()) << "before the start";
}

TEST(VolumeStream, HeadersThatMakeNoSense) {
  const auto refused = [](StreamHeader header) {
    const auto bytes = encode(header);
    return !decode_stream_header(bytes).ok();
  };
  const StreamHeader good{.what = transfer(false), .start_offset = 0};
  EXPECT_FALSE(refused(good));
  for (const uint64_t size : {uint64_t{0}, uint64_t{513}, ~uint64_t{0}}) {
    StreamHeader bad = good;
    bad.what.size_bytes = size;
    EXPECT_TRUE(refused(bad)) << size;
  }
  StreamHeader bad = good;
  bad.what.to_name = "a b";
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.what.to_name = bad.what.from_name;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.what.from = {};
  EXPECT_TRUE(refused(bad)) << "a name without an identity";
  bad = good;
  bad.what.to.volume = {};
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.start_offset = 100;
  EXPECT_TRUE(refused(bad));
  bad.start_offset = good.what.size_bytes + kBlockBytes;
  EXPECT_TRUE(refused(bad));
}

TEST(VolumeStream, Tokens) {
  const Transfer what = transfer(false);
  const std::string token = resume_token(what, 3 * kBlockBytes);
  const auto back = parse_resume_token(token, what);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back.value(), 3 * kBlockBytes);
  EXPECT_EQ(parse_resume_token(token, transfer(true)).error().code, ESTALE);
  for (size_t i = 0; i < token.size(); ++i) {
    std::string bad = token;
    bad[i] = bad[i] == '0' ? '1' : '0';
    EXPECT_FALSE(parse_resume_token(bad, what).ok()) << bad;
  }
  EXPECT_FALSE(parse_resume_token("", what).ok());
  EXPECT_FALSE(parse_resume_token(resume_token(what, 17), what).ok());
}

// --- What a volume keeps of one -------------------------------------------------------------------------------------

TEST(VolumeStream, RecordsOfAReceiveComeBack) {
  for (const ReceiveStep step : {ReceiveStep::kBegin, ReceiveStep::kKeep, ReceiveStep::kEnd, ReceiveStep::kGiveUp}) {
    Change change{.kind = ChangeKind::kReceive};
    change.step = step;
    if (step == ReceiveStep::kBegin) change.receiving = {.what = transfer(false), .base_lsn = 5};
    if (step == ReceiveStep::kKeep) change.receiving.offset = kBlockBytes;
    const auto bytes = encode(change);
    const auto back = decode_change(bytes);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back.value(), change);
    for (size_t length = 0; length < bytes.size(); ++length) EXPECT_FALSE(decode_change(std::span(bytes).first(length)).ok());
  }
}

TEST(VolumeStream, AManifestKeepsIt) {
  Manifest manifest;
  manifest.segments.resize(2);
  manifest.branches.resize(1);
  manifest.snapshots = {{"a", {kHeadBranch, 5}, 1, kBlockBytes, transfer(false).from}, {"own", {kHeadBranch, 6}, 2, kBlockBytes}};
  manifest.receiving = Receiving{.what = transfer(false), .base_lsn = 5, .offset = 2 * kBlockBytes};
  const auto back = decode_manifest(encode(manifest));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back.value(), manifest);
}

}  // namespace
}  // namespace netblk::store::volume
