// SPDX-License-Identifier: GPL-2.0-only
// NBD's handshake, one rule of the public text after the other, and what it forbids.
#include "server/nbd_handshake.h"

#include <gtest/gtest.h>

#include "server/nbd_peer_test.h"

namespace netblk::server {
namespace {

class NbdHandshakeTest : public NbdTest {};
NETBLK_ON_BOTH_BACKENDS(NbdHandshakeTest);

using Peer = NbdTest::Peer;
using Reply = Peer::Reply;

std::string text_of(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

coro::Task<void> greeting(NbdTest& t) {
  Peer peer(t);
  const Bytes greeting = co_await peer.hear(NBD_GREETING_SIZE);
  const Bytes wanted = Wire().u64(NBD_INIT_PASSWD).u64(NBD_OPTS_MAGIC).u16(3).bytes();
  EXPECT_EQ(greeting, wanted);
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, TheServerSpeaksFirst) { run(greeting(*this)); }

coro::Task<void> export_name(NbdTest& t, uint32_t flags, std::string name, size_t zeroes) {
  Peer peer(t);
  co_await peer.greet(flags);
  peer.say(option(NBD_OPT_EXPORT_NAME, Wire().text(name)));
  const Bytes reply = co_await peer.hear(NBD_EXPORT_REPLY_SIZE + zeroes);
  EXPECT_EQ(reply.size(), NBD_EXPORT_REPLY_SIZE + zeroes);
  if (reply.size() < NBD_EXPORT_REPLY_SIZE) co_return;
  EXPECT_EQ(load_be<uint64_t>(&reply[0]), NbdTest::kSize);
  EXPECT_EQ(load_be<uint16_t>(&reply[8]) & (NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_DF), NBD_FLAG_HAS_FLAGS);
  EXPECT_TRUE(std::all_of(reply.begin() + NBD_EXPORT_REPLY_SIZE, reply.end(), [](std::byte b) { return b == std::byte{0}; }));
  // And it is the transmission phase.
  peer.say(request(NBD_CMD_FLUSH, 0, 77, 0, 0));
  const uint32_t error = co_await peer.simple(77);
  EXPECT_EQ(error, 0u);
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, ExportNameWithoutZeroes) { run(export_name(*this, 3, "disk", 0)); }
TEST_P(NbdHandshakeTest, ExportNameWithZeroes) { run(export_name(*this, 1, "disk", NBD_EXPORT_ZEROES)); }
TEST_P(NbdHandshakeTest, AClientThatIsNotFixedNewstyleNamesItsExport) { run(export_name(*this, 0, "disk", NBD_EXPORT_ZEROES)); }
TEST_P(NbdHandshakeTest, NoNameIsTheFirstExport) { run(export_name(*this, 3, "", 0)); }

// Says something after the greeting; the server closes.
coro::Task<void> closes(NbdTest& t, uint32_t flags, Wire wire) {
  Peer peer(t);
  co_await peer.greet(flags);
  peer.say(wire);
  co_await peer.is_left();
  EXPECT_TRUE(peer.session->refused());
  EXPECT_FALSE(peer.link->close_reason().empty());
}
TEST_P(NbdHandshakeTest, UnknownClientFlagsClose) { run(closes(*this, 4, {})); }
TEST_P(NbdHandshakeTest, AnOptionWithoutItsMagicCloses) { run(closes(*this, 3, Wire().u64(1).u32(7).u32(0))); }
TEST_P(NbdHandshakeTest, NoOtherOptionWithoutFixedNewstyle) { run(closes(*this, 0, option(NBD_OPT_LIST))); }
TEST_P(NbdHandshakeTest, ExportNameOfNothingCloses) { run(closes(*this, 3, option(NBD_OPT_EXPORT_NAME, Wire().text("no")))); }
TEST_P(NbdHandshakeTest, ExportNameThatIsTooLongCloses) {
  run(closes(*this, 3, Wire().u64(NBD_OPTS_MAGIC).u32(NBD_OPT_EXPORT_NAME).u32(NBD_MAX_STRING + 1)));
}

coro::Task<void> export_name_extended(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_EXTENDED_HEADERS));
  const uint32_t extended = co_await peer.verdict(NBD_OPT_EXTENDED_HEADERS);
  EXPECT_EQ(extended, uint32_t{NBD_REP_ACK});
  peer.say(option(NBD_OPT_EXPORT_NAME, Wire().text("disk")));
  co_await peer.is_left();
}
TEST_P(NbdHandshakeTest, ExportNameAfterExtendedHeadersCloses) { run(export_name_extended(*this)); }

coro::Task<void> info_and_go(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  for (const uint32_t how : {uint32_t{NBD_OPT_INFO}, uint32_t{NBD_OPT_GO}}) {
    peer.say(option(how, go_data("", {NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, 99})));
    const Reply exported = co_await peer.reply(how);
    EXPECT_EQ(exported.type, uint32_t{NBD_REP_INFO});
    const uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                           NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                           NBD_FLAG_SEND_FAST_ZERO;
    EXPECT_EQ(exported.data, Wire().u16(NBD_INFO_EXPORT).u64(NbdTest::kSize).u16(flags).bytes());
    const Reply name = co_await peer.reply(how);
    EXPECT_EQ(name.data, Wire().u16(NBD_INFO_NAME).text("disk").bytes());
    const Reply description = co_await peer.reply(how);
    EXPECT_EQ(description.data, Wire().u16(NBD_INFO_DESCRIPTION).text("a disk for tests").bytes());
    const Reply sizes = co_await peer.reply(how);
    EXPECT_EQ(sizes.data, Wire().u16(NBD_INFO_BLOCK_SIZE).u32(1).u32(4096).u32(32u << 20).bytes());
    const uint32_t end = co_await peer.verdict(how);
    EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  }
  peer.say(request(NBD_CMD_DISC, 0, 1, 0, 0));
  co_await peer.is_left();
  EXPECT_FALSE(peer.session->refused());
}
TEST_P(NbdHandshakeTest, InfoAndGoSayTheSame) { run(info_and_go(*this)); }

// What a session may rely on depends on the store.
coro::Task<void> flags_of(NbdTest& t, block::Geometry geometry, uint16_t set, uint16_t clear) {
  geometry.size_bytes = 4096;
  t.serve(geometry, "other");
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_INFO, go_data("other")));
  const Reply exported = co_await peer.reply(NBD_OPT_INFO);
  EXPECT_EQ(exported.data.size(), size_t{NBD_INFO_EXPORT_SIZE});
  const uint16_t flags = load_be<uint16_t>(&exported.data[10]);
  EXPECT_EQ(flags & set, set);
  EXPECT_EQ(flags & clear, 0);
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, AReadOnlyExportOffersNoChange) {
  run(flags_of(*this, {.read_only = true, .can_trim = true}, NBD_FLAG_READ_ONLY,
               NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO));
}
TEST_P(NbdHandshakeTest, TrimIsOfferedWhereItIs) { run(flags_of(*this, {}, NBD_FLAG_SEND_WRITE_ZEROES, NBD_FLAG_SEND_TRIM)); }
TEST_P(NbdHandshakeTest, RotationalIsSaid) { run(flags_of(*this, {.rotational = true}, NBD_FLAG_ROTATIONAL, 0)); }

coro::Task<void> list(NbdTest& t) {
  for (int i = 0; i < 40; ++i) t.serve({.size_bytes = 4096}, fmt::format("{}-{}", i, std::string(1000, 'n')));
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_LIST));
  const Reply first = co_await peer.reply(NBD_OPT_LIST);
  EXPECT_EQ(first.type, uint32_t{NBD_REP_SERVER});
  EXPECT_EQ(first.data, Wire().u32(4).text("disk").text("a disk for tests").bytes());
  for (int i = 0; i < 40; ++i) {
    const Reply other = co_await peer.reply(NBD_OPT_LIST);
    EXPECT_EQ(other.type, uint32_t{NBD_REP_SERVER});
    EXPECT_EQ(load_be<uint32_t>(other.data.data()) + sizeof(uint32_t), other.data.size());
  }
  const uint32_t end = co_await peer.verdict(NBD_OPT_LIST);
  EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  peer.say(option(NBD_OPT_ABORT));
  const uint32_t ended = co_await peer.verdict(NBD_OPT_ABORT);
  EXPECT_EQ(ended, uint32_t{NBD_REP_ACK});
  co_await peer.is_left();
  EXPECT_FALSE(peer.session->refused());
}
TEST_P(NbdHandshakeTest, ListAndAbort) { run(list(*this)); }

struct Refused {
  uint32_t type;
  Wire data;
  uint32_t reply;
};

// Each is answered with that error, a text, and the next option is understood.
coro::Task<void> refused(NbdTest& t, std::vector<Refused> cases) {
  Peer peer(t);
  co_await peer.greet();
  for (const Refused& each : cases) {
    peer.say(option(each.type, each.data));
    const Reply heard = co_await peer.reply(each.type);
    EXPECT_EQ(heard.type, each.reply) << proto::nbd_option_text(each.type) << ": " << text_of(heard.data);
    EXPECT_FALSE(heard.data.empty()) << "an error without a text";
  }
  peer.say(option(NBD_OPT_STRUCTURED_REPLY));
  const uint32_t end = co_await peer.verdict(NBD_OPT_STRUCTURED_REPLY);
  EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, OptionsThatAreRefused) {
  const std::string nul("a\0b", 3);
  run(refused(*this,
              {
                  {NBD_OPT_STARTTLS, {}, NBD_REP_ERR_UNSUP},
                  {NBD_OPT_STARTTLS, Wire().u32(1), NBD_REP_ERR_INVALID},
                  {NBD_OPT_PEEK_EXPORT, {}, NBD_REP_ERR_UNSUP},
                  {0, {}, NBD_REP_ERR_UNSUP},
                  {12, Wire().fill(4097, 0), NBD_REP_ERR_UNSUP},
                  {0xffffffff, {}, NBD_REP_ERR_UNSUP},
                  {NBD_OPT_LIST, Wire().u32(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_STRUCTURED_REPLY, Wire().u16(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_EXTENDED_HEADERS, Wire().u16(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, go_data("nothing"), NBD_REP_ERR_UNKNOWN},
                  {NBD_OPT_INFO, go_data("nothing"), NBD_REP_ERR_UNKNOWN},
                  {NBD_OPT_INFO, {}, NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().u32(0xffffffff).u16(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().u32(4).text("disk"), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().u32(4).text("disk").u16(2).u16(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().u32(4).text("disk").u16(0).u16(0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, go_data(nul), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, go_data(std::string(NBD_MAX_STRING, 'x')), NBD_REP_ERR_UNKNOWN},
                  {NBD_OPT_GO, go_data(std::string(NBD_MAX_STRING + 1, 'x')), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().fill(limits::kMaxNbdOptionBytes, 0), NBD_REP_ERR_INVALID},
                  {NBD_OPT_GO, Wire().fill(limits::kMaxNbdOptionBytes + 1, 0), NBD_REP_ERR_TOO_BIG},
                  {99, Wire().fill(100'000, 0), NBD_REP_ERR_TOO_BIG},
                  {NBD_OPT_LIST_META_CONTEXT, context_data("disk", {}), NBD_REP_ERR_INVALID},
                  {NBD_OPT_SET_META_CONTEXT, context_data("disk", {}), NBD_REP_ERR_INVALID},
              }));
}

coro::Task<void> endless(NbdTest& t, uint32_t length) {
  Peer peer(t);
  co_await peer.greet();
  peer.say(Wire().u64(NBD_OPTS_MAGIC).u32(NBD_OPT_GO).u32(length));
  const uint32_t heard = co_await peer.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, NBD_REP_ERR_TOO_BIG);
  co_await peer.is_left();
  EXPECT_TRUE(peer.session->refused());
}
TEST_P(NbdHandshakeTest, EndlessOptionsClose) {
  run(endless(*this, limits::kMaxNbdSkippedBytes + 1));
  run(endless(*this, 0x80000000));
  run(endless(*this, 0xffffffff));
}

coro::Task<void> many(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  for (uint32_t i = 0; i < limits::kMaxNbdOptions; ++i) {
    peer.say(option(NBD_OPT_PEEK_EXPORT));
    const uint32_t heard = co_await peer.verdict(NBD_OPT_PEEK_EXPORT);
    EXPECT_EQ(heard, NBD_REP_ERR_UNSUP);
  }
  co_await peer.is_left();
}
TEST_P(NbdHandshakeTest, SoManyOptionsAndNoMore) { run(many(*this)); }

// ---- metadata contexts

coro::Task<void> contexts(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_STRUCTURED_REPLY));
  const uint32_t structured = co_await peer.verdict(NBD_OPT_STRUCTURED_REPLY);
  EXPECT_EQ(structured, uint32_t{NBD_REP_ACK});
  struct Case {
    std::vector<std::string_view> queries;
    bool listed;
    bool selected;
  };
  const Case cases[] = {
      {{}, true, false},
      {{"base:"}, true, false},
      {{"base:allocation"}, true, true},
      {{"base:other"}, false, false},
      {{"netblk:"}, false, false},
      {{"netblk:snapshot"}, false, false},
      {{"qemu:dirty-bitmap:x", "nonsense", "", "base:allocation", "base:allocation"}, true, true},
      {{"qemu:dirty-bitmap:x", "nonsense", ""}, false, false},
  };
  for (const Case& each : cases)
    for (const bool set : {false, true}) {
      const uint32_t how = set ? NBD_OPT_SET_META_CONTEXT : NBD_OPT_LIST_META_CONTEXT;
      peer.say(option(how, context_data("disk", each.queries)));
      if (set ? each.selected : each.listed) {
        const Reply context = co_await peer.reply(how);
        EXPECT_EQ(context.type, uint32_t{NBD_REP_META_CONTEXT});
        EXPECT_EQ(context.data, Wire().u32(set ? kNbdAllocation : 0).text("base:allocation").bytes());
      }
      const uint32_t end = co_await peer.verdict(how);
      EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
    }
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, Contexts) { run(contexts(*this)); }

coro::Task<void> bad_contexts(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_STRUCTURED_REPLY));
  const uint32_t structured = co_await peer.verdict(NBD_OPT_STRUCTURED_REPLY);
  EXPECT_EQ(structured, uint32_t{NBD_REP_ACK});
  const Wire name = Wire().u32(4).text("disk");
  const std::pair<Wire, uint32_t> cases[] = {
      {{}, NBD_REP_ERR_INVALID},
      {name, NBD_REP_ERR_INVALID},
      {Wire(name).u32(1), NBD_REP_ERR_INVALID},
      {Wire(name).u32(0xffffffff), NBD_REP_ERR_INVALID},
      {Wire(name).u32(1).u32(0xffffffff), NBD_REP_ERR_INVALID},
      {Wire(name).u32(1).u32(5).text("base"), NBD_REP_ERR_INVALID},
      {Wire(name).u32(0).u32(0), NBD_REP_ERR_INVALID},
      {Wire(name).u32(1).u32(NBD_MAX_STRING + 1).fill(NBD_MAX_STRING + 1, 'x'), NBD_REP_ERR_INVALID},
      {Wire().u32(0xffffffff).u32(0), NBD_REP_ERR_INVALID},
      {context_data("nothing", {}), NBD_REP_ERR_UNKNOWN},
  };
  for (const auto& [data, wanted] : cases) {
    peer.say(option(NBD_OPT_SET_META_CONTEXT, data));
    const uint32_t heard = co_await peer.verdict(NBD_OPT_SET_META_CONTEXT);
    EXPECT_EQ(heard, wanted);
  }
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, ContextQueriesThatAreWrong) { run(bad_contexts(*this)); }

// A failed option forgets what an earlier one selected; one for another export does not count.
coro::Task<void> forgotten(NbdTest& t, Wire second) {
  t.serve({.size_bytes = 4096}, "other");
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_EXTENDED_HEADERS));
  const uint32_t extended = co_await peer.verdict(NBD_OPT_EXTENDED_HEADERS);
  EXPECT_EQ(extended, uint32_t{NBD_REP_ACK});
  for (const Wire& data : {context_data("disk", {"base:allocation"}), second}) {
    peer.say(option(NBD_OPT_SET_META_CONTEXT, data));
    uint32_t heard = NBD_REP_META_CONTEXT;
    while (heard == NBD_REP_META_CONTEXT) heard = co_await peer.verdict(NBD_OPT_SET_META_CONTEXT);
  }
  peer.say(option(NBD_OPT_INFO, go_data("disk")));
  const Reply exported = co_await peer.reply(NBD_OPT_INFO);
  EXPECT_EQ(load_be<uint16_t>(&exported.data[10]) & NBD_FLAG_BLOCK_STATUS_PAYLOAD, 0);
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, AFailedSelectionForgetsTheOneBefore) { run(forgotten(*this, Wire().u32(7))); }
TEST_P(NbdHandshakeTest, ASelectionForAnotherExportDoesNotCount) {
  run(forgotten(*this, context_data("other", {"base:allocation"})));
}
TEST_P(NbdHandshakeTest, ASelectionOfNothingDeselects) { run(forgotten(*this, context_data("disk", {}))); }

coro::Task<void> no_way_back(NbdTest& t) {
  Peer peer(t);
  co_await peer.greet();
  for (const auto& [type, wanted] : {std::pair<uint32_t, uint32_t>{NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK},
                                     {NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK},
                                     {NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK},
                                     {NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID},
                                     {NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD}}) {
    peer.say(option(type));
    const uint32_t heard = co_await peer.verdict(type);
    EXPECT_EQ(heard, wanted);
  }
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, ExtendedHeadersWin) { run(no_way_back(*this)); }

// ---- who may come

coro::Task<void> not_allowed(NbdTest& t) {
  auto all = t.exports.all();
  ExportConfig config;
  config.name = "hidden";
  config.allow.push_back(parse_cidr("192.0.2.0/24").value());
  all.push_back(std::make_shared<Export>(config, std::make_shared<FakeDevice>(block::Geometry{.size_bytes = 4096})));
  t.exports.replace(all);
  Peer peer(t);
  co_await peer.greet();
  for (const uint32_t how : {uint32_t{NBD_OPT_INFO}, uint32_t{NBD_OPT_GO}}) {
    peer.say(option(how, go_data("hidden")));
    const uint32_t heard = co_await peer.verdict(how);
    EXPECT_EQ(heard, NBD_REP_ERR_POLICY);
  }
  peer.say(option(NBD_OPT_LIST));
  const Reply shown = co_await peer.reply(NBD_OPT_LIST);
  EXPECT_EQ(shown.type, uint32_t{NBD_REP_SERVER});
  const uint32_t end = co_await peer.verdict(NBD_OPT_LIST);
  EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, ForbiddenExportsAreNotShown) { run(not_allowed(*this)); }

coro::Task<void> places(NbdTest& t) {
  ExportConfig config = t.exports.first()->config();
  config.max_connections = 1;
  t.exports.first()->change_rules(config);
  Peer one(t);
  co_await one.go(proto::NbdHeaders::kSimple);
  Peer two(t);
  co_await two.greet();
  two.say(option(NBD_OPT_GO, go_data("disk")));
  uint32_t heard = co_await two.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, NBD_REP_ERR_POLICY);
  // To be described takes no place.
  two.say(option(NBD_OPT_INFO, go_data("disk")));
  heard = co_await two.verdict(NBD_OPT_INFO);
  EXPECT_EQ(heard, uint32_t{NBD_REP_INFO});
  heard = co_await two.verdict(NBD_OPT_INFO);
  EXPECT_EQ(heard, uint32_t{NBD_REP_ACK});
  // The place comes free with the connection that held it.
  co_await one.leave();
  two.say(option(NBD_OPT_GO, go_data("disk")));
  heard = co_await two.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, uint32_t{NBD_REP_INFO});
  co_await two.leave();
  Peer three(t);
  co_await three.go(proto::NbdHeaders::kSimple);
  co_await three.leave();
}
TEST_P(NbdHandshakeTest, PlacesAreGivenBack) { run(places(*this)); }

// ---- time and memory

coro::Task<void> slow(NbdTest& t) {
  t.context->handshake_timeout_ms = 20;
  Peer peer(t);
  const Bytes greeting = co_await peer.hear(NBD_GREETING_SIZE);
  io::SleepUntil pause(t.loop(), t.loop().now_ms() + 30);
  co_await pause;
  peer.link->sweep(t.loop().now_ms());
  co_await peer.is_left();
  EXPECT_TRUE(peer.link->gone());
}
TEST_P(NbdHandshakeTest, AHandshakeHasADeadline) { run(slow(*this)); }

coro::Task<void> patient(NbdTest& t) {
  t.context->handshake_timeout_ms = 20;
  Peer peer(t);
  co_await peer.go(proto::NbdHeaders::kSimple);
  io::SleepUntil pause(t.loop(), t.loop().now_ms() + 30);
  co_await pause;
  peer.link->sweep(t.loop().now_ms());
  EXPECT_FALSE(peer.link->gone());
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, AfterItSilenceIsAllowed) { run(patient(*this)); }

coro::Task<void> byte_by_byte(NbdTest& t) {
  Peer peer(t);
  co_await peer.hear(NBD_GREETING_SIZE);
  const Bytes said = Wire().u32(3).add(option(NBD_OPT_INFO, go_data("disk", {NBD_INFO_NAME})).bytes()).bytes();
  for (const std::byte byte : said) {
    peer.say(Wire().add({&byte, 1}));
    co_await test::settle(2);
  }
  const Reply exported = co_await peer.reply(NBD_OPT_INFO);
  EXPECT_EQ(exported.data.size(), size_t{NBD_INFO_EXPORT_SIZE});
  const Reply name = co_await peer.reply(NBD_OPT_INFO);
  EXPECT_EQ(name.data, Wire().u16(NBD_INFO_NAME).text("disk").bytes());
  const uint32_t end = co_await peer.verdict(NBD_OPT_INFO);
  EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, BytesMayComeOneByOne) { run(byte_by_byte(*this)); }

// Many options in one packet, and the first requests behind them: nothing of it takes the large buffer before its time.
coro::Task<void> all_at_once(NbdTest& t) {
  Peer peer(t);
  co_await peer.hear(NBD_GREETING_SIZE);
  Wire wire;
  wire.u32(3);
  for (int i = 0; i < 40; ++i) wire.add(option(NBD_OPT_PEEK_EXPORT, Wire().fill(1000, 0)).bytes());
  wire.add(option(NBD_OPT_GO, go_data("disk")).bytes());
  wire.add(request(NBD_CMD_FLUSH, 0, 5, 0, 0).bytes());
  peer.say(wire);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(t.context->buffers.taken(), 0u);
    const uint32_t heard = co_await peer.verdict(NBD_OPT_PEEK_EXPORT);
    EXPECT_EQ(heard, NBD_REP_ERR_UNSUP);
  }
  uint32_t heard = co_await peer.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, uint32_t{NBD_REP_INFO});
  heard = co_await peer.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, uint32_t{NBD_REP_ACK});
  const uint32_t error = co_await peer.simple(5);
  EXPECT_EQ(error, 0u);
  co_await peer.leave();
}
TEST_P(NbdHandshakeTest, OptionsMayComeAllAtOnce) { run(all_at_once(*this)); }

// A client that knows that it is served is half-open no more.
coro::Task<void> opens_first(NbdTest& t, uint32_t how, Wire data, size_t reply_bytes) {
  Peer peer(t);
  co_await peer.greet();
  peer.say(option(NBD_OPT_INFO, go_data("disk")));
  const Reply info = co_await peer.reply(NBD_OPT_INFO);
  EXPECT_EQ(info.type, uint32_t{NBD_REP_INFO});
  const uint32_t end = co_await peer.verdict(NBD_OPT_INFO);
  EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
  EXPECT_FALSE(peer.link->is_open());
  // Up to then nothing was sent but what was heard.
  const uint64_t heard_bytes = NBD_GREETING_SIZE + 2 * NBD_OPTION_REPLY_SIZE + NBD_INFO_EXPORT_SIZE;
  int calls = 0;
  bool is_told = true;
  uint64_t sent_bytes = 0;
  peer.link->on_opened([&] {
    ++calls;
    is_told = peer.has_unheard();
    sent_bytes = peer.link->sent_bytes();
  });
  peer.say(option(how, data));
  const Bytes reply = co_await peer.hear(reply_bytes);
  EXPECT_EQ(reply.size(), reply_bytes);
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(is_told);
  EXPECT_EQ(sent_bytes, heard_bytes);
  EXPECT_TRUE(peer.link->is_open());
  co_await peer.leave();
  EXPECT_EQ(calls, 1);
}
TEST_P(NbdHandshakeTest, GoOpensBeforeItIsAnswered) {
  run(opens_first(*this, NBD_OPT_GO, go_data("disk"), 2 * NBD_OPTION_REPLY_SIZE + NBD_INFO_EXPORT_SIZE));
}
TEST_P(NbdHandshakeTest, ExportNameOpensBeforeItIsAnswered) {
  run(opens_first(*this, NBD_OPT_EXPORT_NAME, Wire().text("disk"), NBD_EXPORT_REPLY_SIZE));
}

// What is refused, or only described, opens nothing.
coro::Task<void> opens_not(NbdTest& t) {
  Peer peer(t);
  peer.link->on_opened([] { ADD_FAILURE() << "it was opened"; });
  co_await peer.greet();
  peer.say(option(NBD_OPT_GO, go_data("no such disk")));
  uint32_t heard = co_await peer.verdict(NBD_OPT_GO);
  EXPECT_EQ(heard, NBD_REP_ERR_UNKNOWN);
  peer.say(option(NBD_OPT_LIST));
  heard = co_await peer.verdict(NBD_OPT_LIST);
  EXPECT_EQ(heard, uint32_t{NBD_REP_SERVER});
  heard = co_await peer.verdict(NBD_OPT_LIST);
  EXPECT_EQ(heard, uint32_t{NBD_REP_ACK});
  peer.say(option(NBD_OPT_ABORT));
  heard = co_await peer.verdict(NBD_OPT_ABORT);
  EXPECT_EQ(heard, uint32_t{NBD_REP_ACK});
  co_await peer.is_left();
}
TEST_P(NbdHandshakeTest, NothingElseOpens) { run(opens_not(*this)); }

}  // namespace
}  // namespace netblk::server
