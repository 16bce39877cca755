// SPDX-License-Identifier: GPL-2.0-only
// NBD's transmission phase: every command with every kind of header, and what must not come through.
#include "server/nbd_session.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "server/nbd_peer_test.h"

namespace netblk::server {
namespace {

using block::Command;
using proto::NbdHeaders;



class NbdSessionTest : public NbdTest {};
NETBLK_ON_BOTH_BACKENDS(NbdSessionTest);

using Peer = NbdTest::Peer;
using Chunk = Peer::Chunk;

Bytes pattern(size_t length, uint8_t seed) {
  Bytes bytes(length);
  for (size_t i = 0; i < length; ++i) bytes[i] = static_cast<std::byte>(seed + i * 7);
  return bytes;
}

Bytes part(const Bytes& bytes, size_t from, size_t length) {
  return {bytes.begin() + static_cast<ptrdiff_t>(from), bytes.begin() + static_cast<ptrdiff_t>(from + length)};
}

// ---- what works

coro::Task<void> simple(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  EXPECT_EQ(peer.flags & NBD_FLAG_SEND_DF, 0);
  // Any byte may be addressed.
  const Bytes data = pattern(1001, 3);
  peer.say(request(NBD_CMD_WRITE, 0, 1, 4095, 1001).add(data));
  uint32_t error = co_await peer.simple(1);
  EXPECT_EQ(error, 0u);
  EXPECT_EQ(part(t.device->bytes, 4095, 1001), data);
  peer.say(request(NBD_CMD_READ, 0, 2, 4096, 1000));
  error = co_await peer.simple(2);
  EXPECT_EQ(error, 0u);
  const Bytes read = co_await peer.hear(1000);
  EXPECT_EQ(read, part(data, 1, 1000));
  // Large, too: no zeroes are told here.
  peer.say(request(NBD_CMD_READ, 0, 3, 0, NbdTest::kSize));
  error = co_await peer.simple(3);
  EXPECT_EQ(error, 0u);
  const Bytes all = co_await peer.hear(NbdTest::kSize);
  EXPECT_EQ(all, t.device->bytes);

  t.device->seen.clear();
  peer.say(request(NBD_CMD_FLUSH, 0, 4, 0, 0));
  error = co_await peer.simple(4);
  EXPECT_EQ(error, 0u);
  peer.say(request(NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 5, 4096, 512));
  error = co_await peer.simple(5);
  EXPECT_EQ(error, 0u);
  EXPECT_TRUE(t.device->last_fua);
  peer.say(request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 6, 4095, 1));
  error = co_await peer.simple(6);
  EXPECT_EQ(error, 0u);
  EXPECT_TRUE(t.device->last_keep_allocated);
  EXPECT_FALSE(t.device->last_fua);
  peer.say(request(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 7, 9, 1).fill(1, 0xee));
  error = co_await peer.simple(7);
  EXPECT_EQ(error, 0u);
  EXPECT_TRUE(t.device->last_fua);
  EXPECT_FALSE(t.device->last_keep_allocated);
  peer.say(request(NBD_CMD_CACHE, 0, 8, 0, 65536));
  error = co_await peer.simple(8);
  EXPECT_EQ(error, 0u);
  // (This store is not asked to cache.)
  const std::vector<Command> wanted{Command::kFlush, Command::kTrim, Command::kWriteZeroes, Command::kWrite};
  EXPECT_EQ(t.device->seen, wanted);
  peer.say(request(NBD_CMD_DISC, 0, 9, 0, 0));
  co_await peer.is_left();
  EXPECT_EQ(peer.session->requests(), 8u);
  EXPECT_EQ(peer.session->failed_requests(), 0u);
}
TEST_P(NbdSessionTest, EveryCommandWithSimpleReplies) { run(simple(*this)); }

coro::Task<void> structured(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kStructured, true);
  EXPECT_EQ(peer.flags & (NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD), NBD_FLAG_SEND_DF);
  const Bytes data = pattern(8192, 5);
  peer.say(request(NBD_CMD_WRITE, 0, 1, 8192, 8192).add(data));
  const uint32_t error = co_await peer.simple(1);
  EXPECT_EQ(error, 0u);
  peer.say(request(NBD_CMD_READ, 0, 2, 8193, 100));
  Chunk chunk = co_await peer.chunk(false);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_DATA);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.cookie, 2u);
  EXPECT_EQ(chunk.payload, Wire().u64(8193).add(part(data, 1, 100)).bytes());

  peer.say(request(NBD_CMD_BLOCK_STATUS, 0, 3, 4096, 16384));
  chunk = co_await peer.chunk(false);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_BLOCK_STATUS);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.payload, Wire().u32(kNbdAllocation).u32(4096).u32(3).u32(8192).u32(0).u32(4096).u32(3).bytes());
  peer.say(request(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 4, 4096, 16384));
  chunk = co_await peer.chunk(false);
  EXPECT_EQ(chunk.payload, Wire().u32(kNbdAllocation).u32(4096).u32(3).bytes());
  co_await peer.leave();
}
TEST_P(NbdSessionTest, StructuredReplies) { run(structured(*this)); }

coro::Task<void> extended_headers(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kExtended, true);
  const uint16_t wanted = NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  EXPECT_EQ(peer.flags & wanted, wanted);
  const Bytes data = pattern(4096, 9);
  peer.say(extended(NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 4096, 4096).add(data));
  Chunk chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_NONE);
  EXPECT_TRUE(chunk.last && chunk.payload.empty());
  EXPECT_EQ(chunk.cookie, 1u);
  EXPECT_EQ(chunk.offset, 4096u);
  // QEMU's client does not say by a flag that a WRITE has data.
  peer.say(extended(NBD_CMD_WRITE, 0, 5, 4096, 4096).add(data));
  chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_NONE);
  EXPECT_EQ(chunk.cookie, 5u);
  peer.say(extended(NBD_CMD_READ, 0, 2, 5000, 7));
  chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_DATA);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.offset, 5000u);
  EXPECT_EQ(chunk.payload, Wire().u64(5000).add(part(data, 5000 - 4096, 7)).bytes());
  const Wire extents = Wire().u32(kNbdAllocation).u32(3).u64(4096).u64(3).u64(4096).u64(0).u64(8192).u64(3);
  peer.say(extended(NBD_CMD_BLOCK_STATUS, 0, 3, 0, 16384));
  chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_BLOCK_STATUS_EXT);
  EXPECT_EQ(chunk.payload, extents.bytes());
  // With a payload that names the contexts.
  peer.say(extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 4, 0, 12).u64(16384).u32(kNbdAllocation));
  chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.payload, extents.bytes());
  peer.say(extended(NBD_CMD_WRITE_ZEROES, 0, 5, 0, NbdTest::kSize));
  chunk = co_await peer.chunk(true);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_NONE);
  EXPECT_EQ(t.device->bytes, Bytes(NbdTest::kSize));
  co_await peer.leave();
}
TEST_P(NbdSessionTest, ExtendedHeaders) { run(extended_headers(*this)); }

// A large READ tells its zeroes; with DF, it is one chunk.
coro::Task<void> holes(NbdTest& t, bool is_extended) {
  Peer peer(t);
  co_await peer.go(is_extended ? NbdHeaders::kExtended : NbdHeaders::kStructured);
  const auto read = [&](uint16_t flags, uint64_t offset, uint32_t length) {
    return is_extended ? extended(NBD_CMD_READ, flags, 7, offset, length)
                       : request(NBD_CMD_READ, flags, 7, offset, length);
  };
  constexpr uint64_t kData = 100 * 4096;
  const Bytes data = pattern(2 * 4096, 1);
  std::copy(data.begin(), data.end(), t.device->bytes.begin() + kData);
  t.device->written[100] = t.device->written[101] = true;
  peer.say(read(0, 0, NbdTest::kSize));
  Chunk chunk = co_await peer.chunk(is_extended);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_HOLE);
  EXPECT_FALSE(chunk.last);
  EXPECT_EQ(chunk.payload, Wire().u64(0).u32(kData).bytes());
  chunk = co_await peer.chunk(is_extended);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_DATA);
  EXPECT_FALSE(chunk.last);
  EXPECT_EQ(chunk.payload, Wire().u64(kData).add(data).bytes());
  chunk = co_await peer.chunk(is_extended);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_HOLE);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.offset, 0u);  // the request's
  EXPECT_EQ(chunk.payload, Wire().u64(kData + 8192).u32(NbdTest::kSize - kData - 8192).bytes());
  // Nothing but zeroes: the store is not read.
  t.device->seen.clear();
  peer.say(read(0, NbdTest::kSize / 2, NbdTest::kSize / 2));
  chunk = co_await peer.chunk(is_extended);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_HOLE);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(t.device->seen, std::vector<Command>{Command::kBlockStatus});
  peer.say(read(NBD_CMD_FLAG_DF, 0, NbdTest::kSize));
  chunk = co_await peer.chunk(is_extended);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_DATA);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.payload, Wire().u64(0).add(t.device->bytes).bytes());
  // More extents than an answer has: the rest counts as data.
  for (uint64_t i = 0; i < 200; i += 2) t.device->written[i] = true;
  peer.say(read(0, 0, 200 * 4096));
  Bytes got(200 * 4096);
  uint64_t told = 0;
  do {
    chunk = co_await peer.chunk(is_extended);
    const auto at = chunk.at<uint64_t>(0);
    EXPECT_EQ(at, told);
    if (chunk.type == NBD_REPLY_TYPE_OFFSET_DATA) {
      std::copy(chunk.payload.begin() + 8, chunk.payload.end(), got.begin() + static_cast<ptrdiff_t>(at));
      told += chunk.payload.size() - 8;
    } else {
      EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_OFFSET_HOLE);
      told += chunk.at<uint32_t>(8);
    }
  } while (!chunk.last);
  EXPECT_EQ(told, got.size());
  EXPECT_EQ(got, part(t.device->bytes, 0, got.size()));
  co_await peer.leave();
}
TEST_P(NbdSessionTest, LargeReadsTellTheirZeroes) { run(holes(*this, false)); }
TEST_P(NbdSessionTest, LargeReadsTellTheirZeroesInExtendedReplies) { run(holes(*this, true)); }

// Replies come as they are due, in any order; DISC waits for all.
coro::Task<void> out_of_order(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  t.device->hold = true;
  peer.say(request(NBD_CMD_WRITE, 0, 1, 0, 512).fill(512, 1));
  peer.say(request(NBD_CMD_FLUSH, 0, 2, 0, 0));
  co_await test::settle();
  EXPECT_EQ(t.device->held.size(), 2u);
  peer.say(request(99, 0, 3, 0, 0));
  uint32_t error = co_await peer.simple(3);
  EXPECT_EQ(error, uint32_t{NBD_EINVAL});
  peer.say(request(NBD_CMD_DISC, 0, 4, 0, 0));
  co_await test::settle();
  t.device->let_go();
  error = co_await peer.simple(1);
  EXPECT_EQ(error, 0u);
  error = co_await peer.simple(2);
  EXPECT_EQ(error, 0u);
  co_await peer.is_left();
}
TEST_P(NbdSessionTest, DisconnectWaitsForWhatIsInFlight) { run(out_of_order(*this)); }

// Many requests in one packet, and requests that arrive byte by byte.
coro::Task<void> batches(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  Wire wire;
  constexpr uint64_t kCount = 200;
  for (uint64_t i = 0; i < kCount; ++i) wire.add(request(NBD_CMD_WRITE, 0, i, i * 100, 100).fill(100, uint8_t(i)).bytes());
  peer.say(wire);
  for (uint64_t i = 0; i < kCount; ++i) {
    const uint32_t error = co_await peer.simple(i);
    EXPECT_EQ(error, 0u);
  }
  for (uint64_t i = 0; i < kCount; ++i) EXPECT_EQ(t.device->bytes[i * 100 + 99], std::byte(uint8_t(i)));
  const Bytes slow = request(NBD_CMD_WRITE, 0, 9, 0, 3).fill(3, 0x55).bytes();
  for (const std::byte byte : slow) {
    peer.say(Wire().add({&byte, 1}));
    co_await test::settle(2);
  }
  const uint32_t error = co_await peer.simple(9);
  EXPECT_EQ(error, 0u);
  EXPECT_EQ(t.device->bytes[2], std::byte{0x55});
  co_await peer.leave();
}
TEST_P(NbdSessionTest, ManyRequestsInOnePacketAndOneInMany) { run(batches(*this)); }

coro::Task<void> sending(Peer& peer, const Bytes& bytes) {
  const bool sent = co_await peer.push(bytes);
  EXPECT_TRUE(sent);
}

// Who cannot ask for block sizes may send 64 MiB at once.
coro::Task<void> largest(NbdTest& t) {
  FakeDevice* const large = t.serve({.size_bytes = 2 * limits::kMaxNbdPayloadBytes}, "large");
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_EXPORT_NAME, Wire().text("large")));
  co_await peer.hear(NBD_EXPORT_REPLY_SIZE);
  constexpr uint32_t kMax = limits::kMaxNbdPayloadBytes;
  {
    const Bytes write = request(NBD_CMD_WRITE, 0, 1, 1, kMax).fill(kMax, 0xab).bytes();
    coro::Scope scope;
    scope.spawn(sending(peer, write));
    const uint32_t error = co_await peer.simple(1);
    EXPECT_EQ(error, 0u);
    co_await scope.join();
  }
  EXPECT_EQ(large->bytes[0], std::byte{0});
  EXPECT_EQ(large->bytes[kMax], std::byte{0xab});
  EXPECT_EQ(large->bytes[kMax + 1], std::byte{0});
  peer.say(request(NBD_CMD_READ, 0, 2, 1, kMax));
  uint32_t error = co_await peer.simple(2);
  EXPECT_EQ(error, 0u);
  const Bytes read = co_await peer.hear(kMax);
  EXPECT_EQ(read, Bytes(kMax, std::byte{0xab}));
  // One byte more is an error for a READ, and the end for a WRITE: nobody waits for so much.
  peer.say(request(NBD_CMD_READ, 0, 3, 0, kMax + 1));
  error = co_await peer.simple(3);
  EXPECT_EQ(error, uint32_t{NBD_EINVAL});
  peer.say(request(NBD_CMD_WRITE, 0, 4, 0, kMax + 1));
  co_await peer.is_left();
}
TEST_P(NbdSessionTest, UpTo64MiBWhereAClientCannotAsk) { run(largest(*this)); }

// Who has asked is held to it: refused, and still in step; with extended headers the connection ends, as the text wants.
coro::Task<void> asked(NbdTest& t, NbdHeaders headers) {
  t.serve({.size_bytes = 2 * limits::kMaxNbdPayloadBytes}, "large");
  Peer peer(t);
  co_await peer.go(headers, false, true);
  constexpr uint32_t kMore = limits::kNbdAdvertisedBytes + 1;
  if (headers == NbdHeaders::kExtended) {
    peer.say(extended(NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, kMore));
    co_await peer.is_left();
    co_return;
  }
  const Bytes write = request(NBD_CMD_WRITE, 0, 1, 0, kMore).fill(kMore, 1).bytes();
  coro::Scope scope;
  scope.spawn(sending(peer, write));
  const Chunk chunk = co_await peer.chunk(false);
  EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_ERROR);
  EXPECT_EQ(chunk.at<uint32_t>(0), uint32_t{NBD_EINVAL});
  co_await scope.join();
  peer.say(request(NBD_CMD_FLUSH, 0, 2, 0, 0));
  const uint32_t error = co_await peer.simple(2);
  EXPECT_EQ(error, 0u);
  co_await peer.leave();
}
TEST_P(NbdSessionTest, WhoHasAskedForBlockSizesKeepsToThem) { run(asked(*this, NbdHeaders::kStructured)); }
TEST_P(NbdSessionTest, APayloadBeyondTheAgreedOneCloses) { run(asked(*this, NbdHeaders::kExtended)); }

// ---- what must not come through

struct Bad {
  uint16_t type;
  uint16_t flags;
  uint64_t offset;
  uint32_t length;
  uint32_t error;
};

const Bad kBad[] = {
    {NBD_CMD_READ, 0, 0, 0, NBD_EINVAL},
    {NBD_CMD_READ, 0, NbdTest::kSize, 1, NBD_EINVAL},
    {NBD_CMD_READ, 0, NbdTest::kSize - 1, 2, NBD_EINVAL},
    {NBD_CMD_READ, 0, 0x7fffffffffffffff, 512, NBD_EINVAL},
    {NBD_CMD_READ, 0, 0xfffffffffffffe00, 512, NBD_EINVAL},
    {NBD_CMD_READ, 0, 0xfffffffffffffe00, 0xffffffff, NBD_EINVAL},
    {NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL},
    {NBD_CMD_READ, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL},
    {NBD_CMD_READ, 0x8000, 0, 512, NBD_EINVAL},
    {NBD_CMD_WRITE, 0, 0, 0, NBD_EINVAL},
    {NBD_CMD_WRITE, 0, NbdTest::kSize, 512, NBD_ENOSPC},
    {NBD_CMD_WRITE, 0, NbdTest::kSize - 511, 512, NBD_ENOSPC},
    {NBD_CMD_WRITE, 0, 0xfffffffffffffe00, 512, NBD_ENOSPC},
    {NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL},
    {NBD_CMD_WRITE, NBD_CMD_FLAG_FAST_ZERO, 0, 70'000, NBD_EINVAL},
    {NBD_CMD_FLUSH, 0, 512, 0, NBD_EINVAL},
    {NBD_CMD_FLUSH, 0, 0, 512, NBD_EINVAL},
    {NBD_CMD_TRIM, 0, 0, 0, NBD_EINVAL},
    {NBD_CMD_TRIM, 0, 0, 0xffffffff, NBD_EINVAL},
    {NBD_CMD_TRIM, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL},
    {NBD_CMD_WRITE_ZEROES, 0, 0, 0, NBD_EINVAL},
    {NBD_CMD_WRITE_ZEROES, 0, 1, 0xffffffff, NBD_ENOSPC},
    {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL},
    {NBD_CMD_CACHE, 0, NbdTest::kSize, 1, NBD_EINVAL},
    {NBD_CMD_CACHE, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL},
    {NBD_CMD_BLOCK_STATUS, 0, 0, 512, NBD_EINVAL},  // no context was selected
    {NBD_CMD_RESIZE, 0, 4096, 0, NBD_EINVAL},
    {0xffff, 0, 0, 0xffffffff, NBD_EINVAL},
};

// Each gets its error, and the stream stays in step.
coro::Task<void> bad(NbdTest& t, NbdHeaders headers) {
  Peer peer(t);
  co_await peer.go(headers);
  uint64_t cookie = 1;
  for (const Bad& each : kBad) {
    const size_t payload = each.type == NBD_CMD_WRITE ? each.length : 0;
    const auto fua = static_cast<uint16_t>(each.flags | (cookie % 2 != 0 ? NBD_CMD_FLAG_FUA : 0));
    if (headers == NbdHeaders::kExtended) {
      const uint16_t carries = payload != 0 ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
      peer.say(extended(each.type, fua | carries, cookie, each.offset, each.length).fill(payload, 1));
    } else {
      peer.say(request(each.type, fua, cookie, each.offset, each.length).fill(payload, 1));
    }
    uint32_t error = 0;
    if (headers == NbdHeaders::kSimple) {
      error = co_await peer.simple(cookie);
    } else {
      const Chunk chunk = co_await peer.chunk(headers == NbdHeaders::kExtended);
      EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_ERROR);
      EXPECT_TRUE(chunk.last);
      EXPECT_EQ(chunk.cookie, cookie);
      EXPECT_EQ(chunk.offset, headers == NbdHeaders::kExtended ? each.offset : 0);
      error = chunk.at<uint32_t>(0);
      EXPECT_GT(chunk.at<uint16_t>(4), 0u) << "an error without a text";
      EXPECT_EQ(chunk.payload.size(), NBD_CHUNK_ERROR_SIZE + size_t{chunk.at<uint16_t>(4)});
    }
    EXPECT_EQ(error, each.error) << proto::nbd_command_text(each.type) << " flags " << each.flags << " offset "
                                 << each.offset << " length " << each.length;
    ++cookie;
  }
  EXPECT_TRUE(t.device->seen.empty()) << "the store was asked";
  EXPECT_EQ(peer.session->failed_requests(), cookie - 1);
  co_await peer.leave();
}
TEST_P(NbdSessionTest, BadRequestsWithSimpleReplies) { run(bad(*this, NbdHeaders::kSimple)); }
TEST_P(NbdSessionTest, BadRequestsWithStructuredReplies) { run(bad(*this, NbdHeaders::kStructured)); }
TEST_P(NbdSessionTest, BadRequestsWithExtendedHeaders) { run(bad(*this, NbdHeaders::kExtended)); }

coro::Task<void> bad_extended(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kExtended, true);
  const std::pair<Wire, uint32_t> cases[] = {
      // Only a WRITE has a payload, which is dropped.
      {extended(NBD_CMD_READ, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 512).fill(512, 1), NBD_EINVAL},
      {extended(NBD_CMD_TRIM, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 8).u64(512), NBD_EINVAL},
      {extended(99, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 100'000).fill(100'000, 1), NBD_EINVAL},
      // 64 bits are 64 bits.
      {extended(NBD_CMD_READ, 0, 1, 0, 0x100000200), NBD_EINVAL},
      {extended(NBD_CMD_TRIM, 0, 1, 512, 0xffffffffffffffff), NBD_EINVAL},
      {extended(NBD_CMD_WRITE_ZEROES, 0, 1, 0, 0x100000000), NBD_ENOSPC},
      {extended(NBD_CMD_BLOCK_STATUS, 0, 1, 0, 0x100000000), NBD_EINVAL},
      // Payloads of a block status: too short, no context, another one, one twice, a range outside, none at all.
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 4).u32(512), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 8).u64(512), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 12).u64(512).u32(7), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 16).u64(512).u32(1).u32(1), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 1, 12).u64(NbdTest::kSize).u32(1), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 12).u64(0).u32(1), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 0), NBD_EINVAL},
      {extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, 100'000).fill(100'000, 0), NBD_EINVAL},
  };
  for (const auto& [wire, wanted] : cases) {
    peer.say(wire);
    const Chunk chunk = co_await peer.chunk(true);
    EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_ERROR);
    EXPECT_EQ(chunk.at<uint32_t>(0), wanted);
  }
  EXPECT_TRUE(t.device->seen.empty()) << "the store was asked";
  co_await peer.leave();
}
TEST_P(NbdSessionTest, BadUseOfExtendedHeaders) { run(bad_extended(*this)); }

coro::Task<void> magic(NbdTest& t, NbdHeaders headers, Wire wire) {
  Peer peer(t);
  co_await peer.go(headers);
  peer.say(wire);
  co_await peer.is_left();
  EXPECT_NE(peer.link->close_reason().find("magic"), std::string::npos);
}
TEST_P(NbdSessionTest, ARequestWithoutItsMagicCloses) {
  run(magic(*this, NbdHeaders::kSimple, Wire().fill(NBD_REQUEST_SIZE, 0)));
  // Each kind of header has its own.
  run(magic(*this, NbdHeaders::kSimple, extended(NBD_CMD_FLUSH, 0, 1, 0, 0)));
  run(magic(*this, NbdHeaders::kExtended, request(NBD_CMD_FLUSH, 0, 1, 0, 0).u32(0)));
}

coro::Task<void> read_only(NbdTest& t) {
  t.serve({.size_bytes = 4096, .read_only = true, .can_trim = true}, "cd");
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_EXPORT_NAME, Wire().text("cd")));
  co_await peer.hear(NBD_EXPORT_REPLY_SIZE);
  for (const uint16_t type : {uint16_t{NBD_CMD_WRITE}, uint16_t{NBD_CMD_TRIM}, uint16_t{NBD_CMD_WRITE_ZEROES}}) {
    peer.say(request(type, 0, type, 0, 512).fill(type == NBD_CMD_WRITE ? 512 : 0, 1));
    const uint32_t error = co_await peer.simple(type);
    EXPECT_EQ(error, uint32_t{NBD_EPERM});
  }
  peer.say(request(NBD_CMD_FLUSH, 0, 9, 0, 0));
  const uint32_t error = co_await peer.simple(9);
  EXPECT_EQ(error, 0u);
  co_await peer.leave();
}
TEST_P(NbdSessionTest, ReadOnlyIsRefusedAsEperm) { run(read_only(*this)); }

coro::Task<void> store_errors(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  const std::pair<int, uint32_t> cases[] = {{EIO, NBD_EIO},       {ENOSPC, NBD_ENOSPC}, {EDQUOT, NBD_ENOSPC},
                                            {EFBIG, NBD_ENOSPC},  {EROFS, NBD_EPERM},   {ENOMEM, NBD_ENOMEM},
                                            {EOPNOTSUPP, NBD_EIO}, {ENODEV, NBD_EIO}};
  for (const auto& [failed, wanted] : cases) {
    t.device->fail_with = failed;
    peer.say(request(NBD_CMD_WRITE, 0, 1, 0, 512).fill(512, 1));
    uint32_t error = co_await peer.simple(1);
    EXPECT_EQ(error, wanted) << failed;
    // A READ that fails has no data.
    peer.say(request(NBD_CMD_READ, 0, 2, 0, 100'000));
    error = co_await peer.simple(2);
    EXPECT_EQ(error, wanted) << failed;
  }
  t.device->fail_with = EOPNOTSUPP;
  peer.say(request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 3, 0, 512));
  const uint32_t error = co_await peer.simple(3);
  EXPECT_EQ(error, uint32_t{NBD_ENOTSUP});
  co_await peer.leave();
}
TEST_P(NbdSessionTest, ErrorsOfTheStore) { run(store_errors(*this)); }

coro::Task<void> failed_read(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kStructured);
  t.device->fail_with = EIO;
  for (const uint32_t length : {512u, 100'000u}) {
    peer.say(request(NBD_CMD_READ, 0, 1, 0, length));
    const Chunk chunk = co_await peer.chunk(false);
    EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_ERROR);
    EXPECT_TRUE(chunk.last);
    EXPECT_EQ(chunk.at<uint32_t>(0), uint32_t{NBD_EIO});
  }
  co_await peer.leave();
}
TEST_P(NbdSessionTest, AFailedReadIsAnErrorChunk) { run(failed_read(*this)); }

// The fast zeroes that a store does not have are refused at once, and nothing else is.
coro::Task<void> fast_zero(NbdTest& t) {
  FakeDevice* const slow = t.serve({.size_bytes = 4096}, "slow");
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_EXPORT_NAME, Wire().text("slow")));
  co_await peer.hear(NBD_EXPORT_REPLY_SIZE);
  peer.say(request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 1, 0, 512));
  uint32_t error = co_await peer.simple(1);
  EXPECT_EQ(error, uint32_t{NBD_ENOTSUP});
  EXPECT_TRUE(slow->seen.empty());
  peer.say(request(NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512));
  error = co_await peer.simple(2);
  EXPECT_EQ(error, 0u);
  peer.say(request(NBD_CMD_TRIM, 0, 3, 0, 512));
  error = co_await peer.simple(3);
  EXPECT_EQ(error, uint32_t{NBD_EINVAL}) << "it has no TRIM";
  co_await peer.leave();
}
TEST_P(NbdSessionTest, FastZeroIsHonest) { run(fast_zero(*this)); }

// ---- how it ends

coro::Task<void> half_a_write(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  peer.say(request(NBD_CMD_WRITE, 0, 1, 0, 100'000).fill(50'000, 1));
  co_await test::settle();
  co_await peer.leave();
  EXPECT_TRUE(t.device->seen.empty()) << "a WRITE whose data did not come was applied";
  peer.session = nullptr;
  peer.link = nullptr;
  EXPECT_EQ(t.context->buffers.taken(), 0u);
}
TEST_P(NbdSessionTest, AWriteThatDidNotArriveWholeIsNotApplied) { run(half_a_write(*this)); }

coro::Task<void> late(NbdTest& t, Wire wire) {
  t.context->request_timeout_ms = 20;
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  peer.say(wire);
  co_await test::settle();
  io::SleepUntil pause(t.loop(), t.loop().now_ms() + 30);
  co_await pause;
  peer.link->sweep(t.loop().now_ms());
  EXPECT_TRUE(peer.link->gone());
  co_await peer.leave();
}
TEST_P(NbdSessionTest, ARequestHasADeadlineFromItsFirstByte) {
  run(late(*this, Wire().u32(NBD_REQUEST_MAGIC)));
  run(late(*this, request(NBD_CMD_WRITE, 0, 1, 0, 4096).fill(4095, 1)));
}

// Requests that the store holds when the peer resets end where they are.
coro::Task<void> reset(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kStructured, true);
  t.device->hold = true;
  for (uint64_t i = 0; i < 8; ++i) peer.say(request(NBD_CMD_READ, 0, i, i * 65536, 65536));
  peer.say(request(NBD_CMD_BLOCK_STATUS, 0, 20, 0, 4096));
  peer.say(request(NBD_CMD_BLOCK_STATUS, 0, 21, 0, 4096));
  co_await test::settle();
  peer.stream->abort();
  co_await test::settle();
  t.device->let_go();
  co_await peer.leave();
  peer.session = nullptr;
  peer.link = nullptr;
  EXPECT_EQ(t.context->buffers.taken(), 0u);
}
TEST_P(NbdSessionTest, AResetWithRequestsInFlight) { run(reset(*this)); }

coro::Task<void> removed(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  t.exports.first()->close();
  peer.session->sweep();
  co_await peer.is_left();
}
TEST_P(NbdSessionTest, AnExportThatIsRemovedEndsItsSessions) { run(removed(*this)); }

// More requests than there are operations, of a store that holds them: the rest waits in the socket.
coro::Task<void> bounded(NbdTest& t) {
  Peer peer(t);
  co_await peer.go(NbdHeaders::kSimple);
  t.device->hold = true;
  Wire wire;
  constexpr uint64_t kCount = limits::kNbdOperations + 100;
  for (uint64_t i = 0; i < kCount; ++i) wire.add(request(NBD_CMD_FLUSH, 0, i, 0, 0).bytes());
  peer.say(wire);
  co_await test::settle();
  EXPECT_EQ(t.device->held.size(), size_t{limits::kNbdOperations});
  t.device->let_go();
  for (uint64_t i = 0; i < kCount; ++i) {
    const uint32_t error = co_await peer.simple(i);
    EXPECT_EQ(error, 0u);
  }
  co_await peer.leave();
}
TEST_P(NbdSessionTest, RequestsInFlightAreBounded) { run(bounded(*this)); }

}  // namespace
}  // namespace netblk::server
