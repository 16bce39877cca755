// SPDX-License-Identifier: GPL-2.0-only
// A client against a hostile server: every reply that must not be believed.
#include "proto/nbd/client_replies.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <map>
#include <string_view>

#include "base/endian.h"

namespace netblk::proto {
namespace {

using Bytes = std::vector<std::byte>;

template <std::unsigned_integral T>
Bytes operator+(Bytes to, T value) {
  to.resize(to.size() + sizeof value);
  store_be(to.data() + to.size() - sizeof value, value);
  return to;
}
Bytes operator+(Bytes to, const Bytes& more) {
  to.insert(to.end(), more.begin(), more.end());
  return to;
}
Bytes text(size_t length) { return Bytes(length, std::byte{'x'}); }
Bytes data(size_t length, uint8_t value = 7) { return Bytes(length, std::byte{value}); }

constexpr uint16_t kDone = NBD_REPLY_FLAG_DONE;
constexpr uint64_t kRead = 1, kWrite = 2, kStatus = 3, kUnsent = 4;
constexpr uint64_t kAt = 8192, kLength = 4096;

Bytes simple(uint64_t cookie, uint32_t error = 0) { return Bytes{} + uint32_t{NBD_SIMPLE_REPLY_MAGIC} + error + cookie; }

class Sink final : public NbdReplySink {
 public:
  Sink() {
    for (const auto& [cookie, type] : {std::pair<uint64_t, uint16_t>{kRead, NBD_CMD_READ}, {kWrite, NBD_CMD_WRITE},
                                       {kStatus, NBD_CMD_BLOCK_STATUS}, {kUnsent, NBD_CMD_WRITE}}) {
      NbdInFlight& request = requests[cookie];
      request.type = type;
      request.cookie = cookie;
      request.offset = kAt;
      request.length = kLength;
      request.data = memory.data() + kGuard;
      request.begin();
    }
  }
  NbdInFlight* find(uint64_t cookie) override {
    const auto at = requests.find(cookie);
    return at == requests.end() || ends.contains(cookie) ? nullptr : &at->second;
  }
  bool is_sent(const NbdInFlight& request) override { return request.cookie != kUnsent; }
  bool extent(NbdInFlight&, uint64_t length, uint64_t status) override {
    extents.emplace_back(length, status);
    return extents.size() < most_extents;
  }
  void answered(NbdInFlight& request, int error) override { ends[request.cookie] = error; }

  static constexpr size_t kGuard = 64;
  Bytes memory = data(kGuard + kLength + kGuard, 0xee);
  std::map<uint64_t, NbdInFlight> requests;
  std::map<uint64_t, int> ends;
  std::vector<std::pair<uint64_t, uint64_t>> extents;
  size_t most_extents = 1000;
};

class NbdRepliesTest : public ::testing::TestWithParam<bool> {
 protected:
  bool extended() const { return GetParam(); }
  Bytes chunk(uint64_t cookie, uint16_t type, const Bytes& payload, uint16_t flags = kDone) const {
    return header(cookie, type, payload.size(), flags) + payload;
  }
  Bytes header(uint64_t cookie, uint16_t type, uint64_t length, uint16_t flags = kDone) const {
    if (extended()) return Bytes{} + uint32_t{NBD_EXTENDED_REPLY_MAGIC} + flags + type + cookie + kAt + length;
    return Bytes{} + uint32_t{NBD_STRUCTURED_REPLY_MAGIC} + flags + type + cookie + static_cast<uint32_t>(length);
  }
  Bytes part(uint64_t offset, size_t length, uint16_t flags = kDone, uint8_t value = 7) const {
    return chunk(kRead, NBD_REPLY_TYPE_OFFSET_DATA, Bytes{} + offset + data(length, value), flags);
  }
  Bytes hole(uint64_t offset, uint32_t length, uint16_t flags = kDone) const {
    return chunk(kRead, NBD_REPLY_TYPE_OFFSET_HOLE, Bytes{} + offset + length, flags);
  }
  Bytes error(uint64_t cookie, uint32_t number, uint16_t said, size_t sent, uint16_t flags = kDone) const {
    return chunk(cookie, NBD_REPLY_TYPE_ERROR, Bytes{} + number + said + text(sent), flags);
  }
  Bytes status(std::vector<std::pair<uint32_t, uint32_t>> extents, uint32_t id = 9) const {
    Bytes payload = Bytes{} + id;
    if (extended()) payload = payload + static_cast<uint32_t>(extents.size());
    for (const auto& [length, flags] : extents)
      payload = extended() ? payload + uint64_t{length} + uint64_t{flags} : payload + length + flags;
    return chunk(kStatus, extended() ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS, payload);
  }
  NbdReplyTerms terms() const { return {.structured = true, .extended = extended(), .allocation_id = 9}; }

  // Hands the bytes over, so many at a time; what is left of one time comes again with the next.
  std::string give(Sink& sink, const Bytes& all, NbdReplyTerms with, size_t step = SIZE_MAX) const {
    NbdReplies replies(sink);
    replies.begin(with);
    Bytes left;
    for (size_t at = 0; at < all.size() && replies.failed() == nullptr;) {
      const size_t now = std::min(step, all.size() - at);
      left.insert(left.end(), all.begin() + static_cast<std::ptrdiff_t>(at), all.begin() + static_cast<std::ptrdiff_t>(at + now));
      at += now;
      const size_t taken = replies.take(left);
      left.erase(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(taken));
      EXPECT_LE(left.size(), NbdReplies::kMaxPiece + step % (1u << 20));
    }
    EXPECT_TRUE(std::all_of(sink.memory.begin(), sink.memory.begin() + Sink::kGuard, [](std::byte b) { return b == std::byte{0xee}; }));
    EXPECT_TRUE(std::all_of(sink.memory.end() - Sink::kGuard, sink.memory.end(), [](std::byte b) { return b == std::byte{0xee}; }));
    return replies.failed() == nullptr ? "" : replies.failed()->message;
  }
  void refused(const Bytes& all, std::string_view words) const {
    Sink sink;
    const std::string why = give(sink, all, terms());
    EXPECT_NE(why.find(words), std::string::npos) << "\"" << why << "\", wanted \"" << words << "\"";
    EXPECT_TRUE(sink.ends.empty());
  }
};

TEST_P(NbdRepliesTest, ChunksInAnyOrderAndInPieces) {
  const Bytes all = part(kAt + 1024, 1024, 0, 2) + hole(kAt + 3072, 1024, 0) + part(kAt, 1024, 0, 1) + part(kAt + 2048, 1024, kDone, 3);
  for (const size_t step : {SIZE_MAX, size_t{1}, size_t{7}, size_t{1000}}) {
    Sink sink;
    EXPECT_EQ(give(sink, all, terms(), step), "");
    EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kRead, 0}}));
    for (size_t i = 0; i < kLength; ++i)
      ASSERT_EQ(std::to_integer<unsigned>(sink.memory[Sink::kGuard + i]), (i / 1024 + 1) % 4) << i;
  }
}

TEST_P(NbdRepliesTest, AnErrorAmongChunksEndsTheRead) {
  Sink sink;
  EXPECT_EQ(give(sink, part(kAt, 512, 0) + error(kRead, NBD_EIO, 5, 5), terms()), "");
  EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kRead, EIO}}));
}

TEST_P(NbdRepliesTest, ErrorsHaveTheirErrno) {
  for (const auto& [wire, code] : {std::pair<uint32_t, int>{NBD_EPERM, EPERM}, {NBD_ENOSPC, ENOSPC}, {NBD_ENOTSUP, EOPNOTSUPP},
                                   {NBD_EOVERFLOW, EOVERFLOW}, {NBD_ESHUTDOWN, ESHUTDOWN}, {12345u, EINVAL}}) {
    Sink sink;
    EXPECT_EQ(give(sink, error(kWrite, wire, 0, 0), terms()), "");
    EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kWrite, code}}));
  }
}

TEST_P(NbdRepliesTest, ExtentsAreCutToTheRange) {
  Sink sink;
  EXPECT_EQ(give(sink, status({{1024, 3}, {65536, 0}, {512, 1}}), terms(), 5), "");
  EXPECT_EQ(sink.extents, (std::vector<std::pair<uint64_t, uint64_t>>{{1024, 3}, {3072, 0}}));
  EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kStatus, 0}}));
}

TEST_P(NbdRepliesTest, ExtentsThatHaveNoRoomAreNotAskedFor) {
  Sink sink;
  sink.most_extents = 2;
  EXPECT_EQ(give(sink, status({{512, 3}, {512, 0}, {512, 3}, {512, 0}}), terms()), "");
  EXPECT_EQ(sink.extents.size(), 2u);
}

TEST_P(NbdRepliesTest, AReplyToWhatIsNotSentWaits) {
  Sink sink;
  NbdReplies replies(sink);
  replies.begin(terms());
  const Bytes all = chunk(kUnsent, NBD_REPLY_TYPE_NONE, {});
  EXPECT_EQ(replies.take(all), 0u);
  EXPECT_TRUE(replies.is_blocked());
  EXPECT_EQ(replies.failed(), nullptr);
}

TEST_P(NbdRepliesTest, WrongMagicNumbers) {
  refused(Bytes(64), "magic");
  refused(Bytes{} + uint32_t{NBD_REQUEST_MAGIC} + data(60), "magic");
  Sink sink;
  EXPECT_NE(give(sink, chunk(kWrite, NBD_REPLY_TYPE_NONE, {}), {}).find("magic"), std::string::npos) << "chunks were not agreed on";
}

TEST_P(NbdRepliesTest, UnknownAndRepeatedCookies) {
  refused(chunk(77, NBD_REPLY_TYPE_NONE, {}), "nothing that was asked");
  Sink sink;
  const Bytes twice = chunk(kWrite, NBD_REPLY_TYPE_NONE, {});
  EXPECT_NE(give(sink, twice + twice, terms()).find("nothing that was asked"), std::string::npos);
  EXPECT_EQ(sink.ends.size(), 1u);
}

TEST_P(NbdRepliesTest, DataOutsideWhatWasRead) {
  refused(part(kAt - 1, 512, 0), "answer a READ");
  refused(part(kAt + kLength - 511, 512, 0), "answer a READ");
  refused(part(kAt + kLength, 512, 0), "answer a READ");
  refused(part(UINT64_MAX - 100, 512, 0), "answer a READ");
  refused(hole(kAt, UINT32_MAX, 0), "answer a READ");
  refused(hole(kAt, 0, 0), "answer a READ");
  refused(header(kRead, NBD_REPLY_TYPE_OFFSET_DATA, UINT32_MAX), "a chunk of data");
  refused(header(kRead, NBD_REPLY_TYPE_OFFSET_DATA, NBD_CHUNK_OFFSET_SIZE), "a chunk of data");
  refused(header(kRead, NBD_REPLY_TYPE_OFFSET_HOLE, 11), "a hole");
}

TEST_P(NbdRepliesTest, DataTwiceAndDataThatAreMissing) {
  refused(part(kAt, 512, 0) + part(kAt, 512, 0), "twice");
  refused(part(kAt, 512, 0) + part(kAt + 511, 512, 0), "twice");
  refused(part(kAt + 1024, 512, 0) + part(kAt + 1000, 512, 0), "twice");
  refused(part(kAt + 1024, 512, 0) + hole(kAt, 4096, 0), "twice");
  refused(part(kAt, 512), "have 512");
  refused(part(kAt, 512, 0) + part(kAt + 1024, kLength - 1024), "have");
  refused(chunk(kRead, NBD_REPLY_TYPE_NONE, {}), "have 0");
}

TEST_P(NbdRepliesTest, ScatteredPiecesHaveALimit) {
  Sink sink;
  Bytes large = data(1u << 20);
  sink.requests[kRead].length = large.size();
  sink.requests[kRead].data = large.data();
  Bytes all;
  for (uint64_t at = 1; at < 2 * NbdReplies::kMaxScattered + 3; at += 2) all = std::move(all) + part(kAt + at, 1, 0);
  EXPECT_NE(give(sink, all, terms()).find("scattered"), std::string::npos);
}

TEST_P(NbdRepliesTest, ChunksForTheWrongRequest) {
  refused(chunk(kWrite, NBD_REPLY_TYPE_OFFSET_DATA, Bytes{} + kAt + data(512)), "answers a request of type");
  refused(chunk(kWrite, NBD_REPLY_TYPE_BLOCK_STATUS, Bytes{} + uint32_t{9} + uint32_t{512} + uint32_t{0}), "answers a request of type");
  refused(chunk(kStatus, NBD_REPLY_TYPE_OFFSET_HOLE, Bytes{} + kAt + uint32_t{512}), "answers a request of type");
  refused(chunk(kRead, 999, {}), "type 999");
  refused(chunk(kWrite, NBD_REPLY_TYPE_NONE, {}, 0), "not the last");
  refused(chunk(kWrite, NBD_REPLY_TYPE_NONE, data(1)), "an empty chunk");
  refused(chunk(kWrite, NBD_REPLY_TYPE_NONE, {}, 0x8001), "unknown flags");
}

TEST_P(NbdRepliesTest, SimpleRepliesWhereChunksWereAgreedOn) {
  if (extended()) return refused(simple(kWrite), "magic");
  refused(simple(kRead) + data(kLength), "simple reply");
  refused(simple(kStatus), "simple reply");
  refused(part(kAt, 512, 0) + simple(kRead), "simple");
  Sink sink;
  EXPECT_EQ(give(sink, simple(kWrite) + simple(kRead, NBD_EIO), terms()), "");
  EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kWrite, 0}, {kRead, EIO}}));
}

TEST_P(NbdRepliesTest, ErrorsThatMakeNoSense) {
  refused(error(kWrite, NBD_SUCCESS, 0, 0), "without an error number");
  refused(error(kWrite, NBD_EIO, 5, 4), "has a text of 5");
  refused(error(kWrite, NBD_EIO, 4, 5), "has a text of 4");
  refused(error(kWrite, NBD_EIO, 4100, 4100), "has a text of 4100");
  refused(header(kWrite, NBD_REPLY_TYPE_ERROR, UINT32_MAX), "told in 4294967295 bytes");
  refused(header(kWrite, NBD_REPLY_TYPE_ERROR, 5), "told in 5 bytes");
  Bytes flood;
  for (unsigned i = 0; i <= NbdReplies::kMaxErrorChunks; ++i) flood = std::move(flood) + error(kWrite, NBD_EIO, 0, 0, 0);
  refused(flood, "do not end");
}

TEST_P(NbdRepliesTest, StatusThatMakesNoSense) {
  const uint16_t type = extended() ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
  refused(status({{512, 0}}, 8), "context 8");
  refused(status({{0, 0}}), "no bytes");
  refused(status({}), "told in");
  refused(header(kStatus, type, UINT32_MAX), "told in");
  refused(chunk(kStatus, NBD_REPLY_TYPE_NONE, {}), "without an extent");
  Bytes first = status({{512, 0}});
  first[5] = std::byte{0};  // not the last chunk
  refused(first + status({{512, 0}}), "twice");
  if (extended())
    refused(chunk(kStatus, type, Bytes{} + uint32_t{9} + uint32_t{2} + uint64_t{512} + uint64_t{0}), "says 2 extents");
  else
    refused(header(kStatus, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 24), "answers a request of type");
}

INSTANTIATE_TEST_SUITE_P(Headers, NbdRepliesTest, testing::Bool(),
                         [](const auto& headers) { return headers.param ? "extended" : "structured"; });

TEST(NbdSimpleRepliesTest, DataFollowTheReply) {
  Sink sink;
  NbdReplies replies(sink);
  replies.begin({});
  const Bytes all = simple(kWrite) + simple(kRead) + data(kLength);
  EXPECT_EQ(replies.take(all), all.size());
  EXPECT_EQ(sink.ends, (std::map<uint64_t, int>{{kWrite, 0}, {kRead, 0}}));
  EXPECT_EQ(sink.memory[Sink::kGuard + kLength - 1], std::byte{7});
}

}  // namespace
}  // namespace netblk::proto
