// SPDX-License-Identifier: GPL-2.0-only
// NBD's contexts of what has changed since a moment: how they are listed and selected, and what a BLOCK_STATUS says of several.
#include <gtest/gtest.h>

#include "base/limits.h"
#include "server/nbd_handshake.h"
#include "server/nbd_peer_test.h"

namespace netblk::server {
namespace {

using proto::NbdHeaders;

class NbdContextsTest : public NbdTest {};
NETBLK_ON_BOTH_BACKENDS(NbdContextsTest);

using Peer = NbdTest::Peer;
using Reply = Peer::Reply;
using Chunk = Peer::Chunk;

struct Heard {
  std::vector<std::string> names;
  std::vector<uint32_t> ids;
  uint32_t end = 0;
};
using Queries = std::vector<std::string_view>;
coro::Task<Heard> contexts(Peer& peer, uint32_t how, const Queries& queries) {
  Heard heard;
  peer.say(option(how, context_data("disk", queries)));
  for (;;) {
    const Reply reply = co_await peer.reply(how);
    heard.end = reply.type;
    if (reply.type != NBD_REP_META_CONTEXT || reply.data.size() < 4) co_return heard;
    heard.ids.push_back(load_be<uint32_t>(reply.data.data()));
    heard.names.emplace_back(reinterpret_cast<const char*>(reply.data.data()) + 4, reply.data.size() - 4);
  }
}

coro::Task<void> begin(Peer& peer, uint32_t how) {
  co_await peer.greet();
  peer.say(option(how));
  const uint32_t got = co_await peer.verdict(how);
  EXPECT_EQ(got, uint32_t{NBD_REP_ACK});
}

using Names = std::vector<std::string>;
using Ids = std::vector<uint32_t>;

// What is asked for, and what is listed. (Lists in braces stay out of coroutines: g++ 12.)
std::vector<std::pair<Queries, Names>> list_cases() {
  const Names ours = {"netblk:dirty-since:a", "netblk:dirty-since:b"}, qemu = {"qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"};
  return {
      {{}, {"base:allocation", ours[0], qemu[0], ours[1], qemu[1]}},
      {{"base:"}, {"base:allocation"}},
      {{"netblk:"}, ours},
      {{"netblk:dirty-since:"}, ours},
      {{"qemu:"}, qemu},
      {{"qemu:dirty-bitmap:"}, qemu},
      {{"qemu:dirty-bitmap:b", "netblk:dirty-since:a"}, {ours[0], qemu[1]}},
      {{"qemu:dirty-bitmap:c", "netblk:", "netblk:"}, ours},
      {{"netblk:dirty", "qemu:allocation-depth", "a", ""}, {}},
  };
}

coro::Task<void> listed(NbdTest& t) {
  for (const char* name : {"a", "b"}) t.device->changed[name] = std::set<uint64_t>();
  Peer peer(t);
  co_await begin(peer, NBD_OPT_STRUCTURED_REPLY);
  const auto cases = list_cases();
  for (const auto& [queries, wanted] : cases) {
    const Heard heard = co_await contexts(peer, NBD_OPT_LIST_META_CONTEXT, queries);
    EXPECT_EQ(heard.names, wanted);
    const Ids zeroes(wanted.size());
    EXPECT_EQ(heard.ids, zeroes);
    EXPECT_EQ(heard.end, uint32_t{NBD_REP_ACK});
  }
  co_await peer.leave();
}
TEST_P(NbdContextsTest, Listed) { run(listed(*this)); }

// Far more than fit into one piece.
coro::Task<void> thousands(NbdTest& t) {
  for (int i = 0; i < 3000; ++i) t.device->changed["snapshot-" + std::to_string(i)] = std::set<uint64_t>();
  Peer peer(t);
  co_await begin(peer, NBD_OPT_STRUCTURED_REPLY);
  const Queries all;
  const Heard heard = co_await contexts(peer, NBD_OPT_LIST_META_CONTEXT, all);
  EXPECT_EQ(heard.names.size(), 6001u);
  EXPECT_EQ(heard.end, uint32_t{NBD_REP_ACK});
  co_await peer.leave();
}
TEST_P(NbdContextsTest, Thousands) { run(thousands(*this)); }

const Queries kWildcards = {"netblk:", "qemu:dirty-bitmap:", "base:"};
const Queries kMixed = {"qemu:dirty-bitmap:a", "nonsense", "base:allocation", "qemu:dirty-bitmap:a", "netblk:dirty-since:a"};
const Names kOfMixed = {"qemu:dirty-bitmap:a", "base:allocation", "netblk:dirty-since:a"};
const Ids kIdsOfMixed = {2, kNbdAllocation, 3};

coro::Task<void> selected(NbdTest& t) {
  t.device->changed["a"] = std::set<uint64_t>();
  for (int i = 0; i < 30; ++i) t.device->changed["many" + std::to_string(i)] = std::set<uint64_t>();
  Peer peer(t);
  co_await begin(peer, NBD_OPT_STRUCTURED_REPLY);
  Heard heard = co_await contexts(peer, NBD_OPT_SET_META_CONTEXT, kWildcards);
  EXPECT_TRUE(heard.names.empty()) << "a wildcard selects none";
  heard = co_await contexts(peer, NBD_OPT_SET_META_CONTEXT, kMixed);
  EXPECT_EQ(heard.names, kOfMixed);
  EXPECT_EQ(heard.ids, kIdsOfMixed);
  EXPECT_EQ(heard.end, uint32_t{NBD_REP_ACK});
  std::vector<std::string> names;
  for (uint32_t i = 0; i <= limits::kMaxNbdContexts; ++i) names.push_back("netblk:dirty-since:many" + std::to_string(i));
  std::vector<std::string_view> views(names.begin(), names.end());
  heard = co_await contexts(peer, NBD_OPT_SET_META_CONTEXT, views);
  EXPECT_EQ(heard.end, uint32_t{NBD_REP_ERR_TOO_BIG});
  EXPECT_TRUE(heard.names.empty());
  views.pop_back();
  heard = co_await contexts(peer, NBD_OPT_SET_META_CONTEXT, views);
  EXPECT_EQ(heard.end, uint32_t{NBD_REP_ACK});
  EXPECT_EQ(heard.names.size(), views.size());
  co_await peer.leave();
}
TEST_P(NbdContextsTest, Selected) { run(selected(*this)); }

using Extents = std::vector<std::pair<uint64_t, uint32_t>>;
const Extents kAllocation = {{8192, 3}, {4096, 0}, {4096, 3}}, kChanged = {{4096, 0}, {8192, NBD_STATE_DIRTY}, {4096, 0}},
              kHole = {{4096, 3}}, kOneChanged = {{4096, NBD_STATE_DIRTY}}, kHalf = {{4096, 0}, {4096, NBD_STATE_DIRTY}},
              kUnchanged = {{4096, 0}};
const Queries kBoth = {"base:allocation", "qemu:dirty-bitmap:a"};
const Ids kOfBoth = {1, 2};
// One that was not selected, one that is named twice, and more than there are.
const std::vector<Ids> kBadIds = {{3}, {1, 3}, {2, 2}, {1, 2, 1}};

Wire status_request(bool is_extended, uint16_t flags, uint64_t cookie, uint64_t offset, uint64_t length) {
  if (is_extended) return extended(NBD_CMD_BLOCK_STATUS, flags, cookie, offset, length);
  return request(NBD_CMD_BLOCK_STATUS, flags, cookie, offset, static_cast<uint32_t>(length));
}

Bytes status_payload(bool is_extended, uint32_t id, const Extents& extents) {
  Wire wire = Wire().u32(id);
  if (is_extended) wire.u32(static_cast<uint32_t>(extents.size()));
  for (const auto& [length, state] : extents) {
    if (is_extended) wire.u64(length).u64(state);
    else wire.u32(static_cast<uint32_t>(length)).u32(state);
  }
  return wire.bytes();
}

// One chunk of each context.
coro::Task<void> both(Peer& peer, bool is_extended, uint64_t cookie, const Extents& first, const Extents& second) {
  Chunk chunk = co_await peer.chunk(is_extended);
  EXPECT_FALSE(chunk.last);
  EXPECT_EQ(chunk.cookie, cookie);
  EXPECT_EQ(chunk.payload, status_payload(is_extended, 1, first));
  chunk = co_await peer.chunk(is_extended);
  EXPECT_TRUE(chunk.last);
  EXPECT_EQ(chunk.cookie, cookie);
  EXPECT_EQ(chunk.payload, status_payload(is_extended, 2, second));
}

coro::Task<void> status(NbdTest& t, bool is_extended) {
  t.device->changed["a"].insert(1);
  t.device->changed["a"].insert(2);
  t.device->written[2] = true;
  Peer peer(t);
  co_await begin(peer, is_extended ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY);
  const Heard heard = co_await contexts(peer, NBD_OPT_SET_META_CONTEXT, kBoth);
  EXPECT_EQ(heard.ids, kOfBoth);
  peer.say(option(NBD_OPT_GO, go_data("disk")));
  Reply reply = co_await peer.reply(NBD_OPT_GO);
  while (reply.type == NBD_REP_INFO) reply = co_await peer.reply(NBD_OPT_GO);
  // One extent of what has changed, though it is of two kinds.
  peer.say(status_request(is_extended, 0, 7, 0, 16384));
  co_await both(peer, is_extended, 7, kAllocation, kChanged);
  peer.say(status_request(is_extended, NBD_CMD_FLAG_REQ_ONE, 8, 4096, 8192));
  co_await both(peer, is_extended, 8, kHole, kOneChanged);
  if (is_extended) {
    peer.say(extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 9, 0, 12).u64(8192).u32(2));
    Chunk chunk = co_await peer.chunk(true);
    EXPECT_TRUE(chunk.last);
    EXPECT_EQ(chunk.payload, status_payload(true, 2, kHalf));
    for (const Ids& ids : kBadIds) {
      Wire wire = extended(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 10, 0, 8 + 4 * ids.size()).u64(8192);
      for (const uint32_t id : ids) wire.u32(id);
      peer.say(wire);
      chunk = co_await peer.chunk(true);
      EXPECT_EQ(chunk.type, NBD_REPLY_TYPE_ERROR);
      EXPECT_EQ(chunk.at<uint32_t>(0), uint32_t{NBD_EINVAL});
    }
  }
  // An error of the device is one reply.
  t.device->fail_with = EIO;
  peer.say(status_request(is_extended, 0, 11, 0, 16384));
  const Chunk failed = co_await peer.chunk(is_extended);
  EXPECT_TRUE(failed.last);
  EXPECT_EQ(failed.type, NBD_REPLY_TYPE_ERROR);
  t.device->fail_with = 0;
  peer.say(status_request(is_extended, 0, 12, 0, 4096));
  co_await both(peer, is_extended, 12, kHole, kUnchanged);
  co_await peer.leave();
}
TEST_P(NbdContextsTest, StructuredStatus) { run(status(*this, false)); }
TEST_P(NbdContextsTest, ExtendedStatus) { run(status(*this, true)); }

}  // namespace
}  // namespace netblk::server
