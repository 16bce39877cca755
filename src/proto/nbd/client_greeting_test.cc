// SPDX-License-Identifier: GPL-2.0-only
#include "proto/nbd/client_greeting.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <string_view>

#include "base/endian.h"

namespace netblk::proto {
namespace {

using Bytes = std::vector<std::byte>;
using Purpose = NbdWish::Purpose;

template <std::unsigned_integral T>
Bytes operator+(Bytes to, T value) {
  to.resize(to.size() + sizeof value);
  store_be(to.data() + to.size() - sizeof value, value);
  return to;
}
Bytes operator+(Bytes to, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  to.insert(to.end(), bytes.begin(), bytes.end());
  return to;
}
Bytes operator+(Bytes to, const Bytes& more) {
  to.insert(to.end(), more.begin(), more.end());
  return to;
}

Bytes hello(uint16_t flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) {
  return Bytes{} + uint64_t{NBD_INIT_PASSWD} + uint64_t{NBD_OPTS_MAGIC} + flags;
}
Bytes reply(uint32_t option, uint32_t type, const Bytes& data = {}) {
  return Bytes{} + uint64_t{NBD_OPT_REPLY_MAGIC} + option + type + static_cast<uint32_t>(data.size()) + data;
}
Bytes size_info(uint64_t size, uint16_t flags = NBD_FLAG_HAS_FLAGS) {
  return Bytes{} + uint16_t{NBD_INFO_EXPORT} + size + flags;
}
Bytes block_info(uint32_t least, uint32_t preferred, uint32_t most) {
  return Bytes{} + uint16_t{NBD_INFO_BLOCK_SIZE} + least + preferred + most;
}
Bytes context(uint32_t id, std::string_view name) { return Bytes{} + id + name; }
Bytes listed(std::string_view name, std::string_view description = "") {
  return Bytes{} + static_cast<uint32_t>(name.size()) + name + description;
}

constexpr uint32_t kExt = NBD_OPT_EXTENDED_HEADERS, kStructured = NBD_OPT_STRUCTURED_REPLY, kGo = NBD_OPT_GO,
                   kInfo = NBD_OPT_INFO, kSet = NBD_OPT_SET_META_CONTEXT, kList = NBD_OPT_LIST;

// The server has said all this before the client begins; then it closes.
class Said {
 public:
  explicit Said(NbdWish wish, const Bytes& all) : greeting(std::move(wish)) {
    std::span<const std::byte> rest(all);
    while (!greeting.over() && greeting.wanted() <= rest.size()) {
      EXPECT_LE(greeting.wanted(), NbdGreeting::kMaxPiece);
      const auto piece = rest.first(greeting.wanted());
      rest = rest.subspan(piece.size());
      greeting.take(piece);
      sent = sent + greeting.take_output();
    }
    unread = rest.size();
    if (!greeting.over()) greeting.closed();
    sent = sent + greeting.take_output();
  }

  int error() const { return greeting.result() ? 0 : greeting.result().error().code; }
  std::string words() const { return greeting.result() ? "" : greeting.result().error().message; }
  std::vector<uint32_t> options() const {
    std::vector<uint32_t> all;
    for (size_t at = 4; at + NBD_OPTION_SIZE <= sent.size();) {
      if (load_be<uint64_t>(sent.data() + at) != NBD_OPTS_MAGIC) break;
      all.push_back(load_be<uint32_t>(sent.data() + at + 8));
      at += NBD_OPTION_SIZE + load_be<uint32_t>(sent.data() + at + 12);
    }
    return all;
  }

  NbdGreeting greeting;
  Bytes sent;
  size_t unread = 0;
};

TEST(NbdGreetingTest, EverythingThatAServerOffersIsInForce) {
  const Said said({.export_name = "disk"}, hello() + reply(kExt, NBD_REP_ACK) +
                  reply(kSet, NBD_REP_META_CONTEXT, context(7, "base:allocation")) + reply(kSet, NBD_REP_ACK) +
                  reply(kGo, NBD_REP_INFO, size_info(1u << 30, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH)) +
                  reply(kGo, NBD_REP_INFO, block_info(512, 4096, 1u << 20)) +
                  reply(kGo, NBD_REP_INFO, Bytes{} + uint16_t{NBD_INFO_DESCRIPTION} + "words") +
                  reply(kGo, NBD_REP_ACK) + Bytes(16));
  ASSERT_EQ(said.error(), 0) << said.words();
  const NbdExport& found = said.greeting.found();
  EXPECT_EQ(found.size_bytes, 1u << 30);
  EXPECT_TRUE(found.structured && found.extended && found.constraints_told);
  EXPECT_EQ(found.allocation_id, 7u);
  EXPECT_EQ(found.min_block_bytes, 512u);
  EXPECT_EQ(found.max_payload_bytes, 1u << 20);
  EXPECT_EQ(found.description, "words");
  EXPECT_EQ(said.options(), (std::vector<uint32_t>{kExt, kSet, kGo}));
  EXPECT_EQ(said.unread, 16u) << "what belongs to the transmission phase is left";
}

TEST(NbdGreetingTest, WhatIsRefusedIsDoneWithout) {
  const Said said({.export_name = "disk"}, hello() + reply(kExt, NBD_REP_ERR_UNSUP) + reply(kStructured, NBD_REP_ACK) +
                  reply(kSet, NBD_REP_ERR_UNSUP, Bytes{} + "no contexts") +
                  reply(kGo, NBD_REP_INFO, size_info(4096)) + reply(kGo, NBD_REP_ACK));
  ASSERT_EQ(said.error(), 0) << said.words();
  EXPECT_TRUE(said.greeting.found().structured);
  EXPECT_FALSE(said.greeting.found().extended);
  EXPECT_FALSE(said.greeting.found().allocation_id);
  EXPECT_EQ(said.greeting.found().min_block_bytes, 1u);
  EXPECT_EQ(said.greeting.found().max_payload_bytes, 32u << 20);
}

TEST(NbdGreetingTest, NothingIsAskedThatIsNotWished) {
  const Said said({.export_name = "d", .structured = false, .extended = false, .allocation = false},
                  hello() + reply(kGo, NBD_REP_INFO, size_info(4096)) + reply(kGo, NBD_REP_ACK));
  ASSERT_EQ(said.error(), 0) << said.words();
  EXPECT_EQ(said.options(), std::vector<uint32_t>{kGo});
  EXPECT_FALSE(said.greeting.found().structured);
}

TEST(NbdGreetingTest, AServerWithoutGoIsAskedByName) {
  const Bytes by_name = Bytes{} + uint64_t{12345} + uint16_t{NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY};
  for (const bool zeroes : {true, false}) {
    const Said said({.export_name = "disk"},
                    hello(zeroes ? NBD_FLAG_FIXED_NEWSTYLE : NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) +
                        reply(kExt, NBD_REP_ERR_UNSUP) + reply(kStructured, NBD_REP_ERR_UNSUP) +
                        reply(kGo, NBD_REP_ERR_UNSUP) + by_name + Bytes(zeroes ? NBD_EXPORT_ZEROES : 0));
    ASSERT_EQ(said.error(), 0) << said.words();
    EXPECT_EQ(said.greeting.found().size_bytes, 12345u);
    EXPECT_TRUE(said.greeting.found().read_only());
    EXPECT_EQ(said.options(), (std::vector<uint32_t>{kExt, kStructured, kGo, NBD_OPT_EXPORT_NAME}));
  }
}

TEST(NbdGreetingTest, AServerThatIsNotFixedHearsOneOptionOnly) {
  const Said said({.export_name = "disk"}, hello(0) + (Bytes{} + uint64_t{4096} + uint16_t{1}) + Bytes(NBD_EXPORT_ZEROES));
  ASSERT_EQ(said.error(), 0) << said.words();
  EXPECT_EQ(said.options(), std::vector<uint32_t>{NBD_OPT_EXPORT_NAME});
  EXPECT_EQ(load_be<uint32_t>(said.sent.data()), 0u) << "the client's flags";
}

TEST(NbdGreetingTest, InfoLearnsAndLeaves) {
  const Said said({.purpose = Purpose::kInfo, .export_name = "disk"},
                  hello() + reply(kExt, NBD_REP_ERR_UNSUP) + reply(kStructured, NBD_REP_ACK) +
                      reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, context(0, "base:allocation")) +
                      reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, context(0, "qemu:dirty-bitmap:b")) +
                      reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK) + reply(kGo, NBD_REP_INFO, size_info(4096)) +
                      reply(kGo, NBD_REP_ACK));
  ASSERT_EQ(said.error(), 0) << said.words();
  EXPECT_EQ(said.greeting.found().contexts, (std::vector<std::string>{"base:allocation", "qemu:dirty-bitmap:b"}));
  ASSERT_GE(said.sent.size(), size_t{NBD_REQUEST_SIZE});
  const std::byte* const last = said.sent.data() + said.sent.size() - NBD_REQUEST_SIZE;
  EXPECT_EQ(load_be<uint32_t>(last), NBD_REQUEST_MAGIC);
  EXPECT_EQ(load_be<uint16_t>(last + 6), NBD_CMD_DISC);
}

TEST(NbdGreetingTest, InfoOfAServerWithoutItDisconnects) {
  const Said said({.purpose = Purpose::kInfo, .structured = false, .extended = false},
                  hello() + reply(kGo, NBD_REP_ERR_UNSUP) + uint64_t{4096} + uint16_t{1});
  ASSERT_EQ(said.error(), 0) << said.words();
  ASSERT_GE(said.sent.size(), size_t{NBD_REQUEST_SIZE});
  const std::byte* const last = said.sent.data() + said.sent.size() - NBD_REQUEST_SIZE;
  EXPECT_EQ(load_be<uint32_t>(last), NBD_REQUEST_MAGIC);
  EXPECT_EQ(load_be<uint16_t>(last + 6), NBD_CMD_DISC);
}

TEST(NbdGreetingTest, AListHasDescriptionsAndSizes) {
  const Said said({.purpose = Purpose::kList},
                  hello() + reply(kList, NBD_REP_SERVER, listed("a", "the first")) + reply(kList, NBD_REP_SERVER, listed("")) +
                      reply(kList, NBD_REP_ACK) + reply(kInfo, NBD_REP_INFO, size_info(4096)) + reply(kInfo, NBD_REP_ACK) +
                      reply(kInfo, NBD_REP_ERR_POLICY));
  ASSERT_EQ(said.error(), 0) << said.words();
  const auto& list = said.greeting.listed();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].name, "a");
  EXPECT_EQ(list[0].description, "the first");
  ASSERT_TRUE(list[0].about);
  EXPECT_EQ(list[0].about->size_bytes, 4096u);
  EXPECT_FALSE(list[1].about);
  EXPECT_EQ(said.options(), (std::vector<uint32_t>{kList, kInfo, kInfo, NBD_OPT_ABORT}));
}

TEST(NbdGreetingTest, AListOfAServerWithoutInfoHasNamesAlone) {
  const Said said({.purpose = Purpose::kList}, hello() + reply(kList, NBD_REP_SERVER, listed("a")) +
                  reply(kList, NBD_REP_SERVER, listed("b")) + reply(kList, NBD_REP_ACK) + reply(kInfo, NBD_REP_ERR_UNSUP));
  ASSERT_EQ(said.error(), 0) << said.words();
  EXPECT_EQ(said.greeting.listed().size(), 2u);
}

TEST(NbdGreetingTest, RefusalsHaveTheirErrno) {
  const NbdWish plain{.export_name = "disk", .structured = false, .extended = false, .allocation = false};
  const auto refused = [&](uint32_t type) { return Said(plain, hello() + reply(kGo, type, Bytes{} + "be\ncause")); };
  EXPECT_EQ(refused(NBD_REP_ERR_UNKNOWN).error(), ENOENT);
  EXPECT_EQ(refused(NBD_REP_ERR_POLICY).error(), EPERM);
  EXPECT_EQ(refused(NBD_REP_ERR_SHUTDOWN).error(), ESHUTDOWN);
  EXPECT_EQ(refused(NBD_REP_ERR_INVALID).error(), EINVAL);
  EXPECT_EQ(refused(NBD_REP_ERR_TLS_REQD).error(), EPROTONOSUPPORT);
  EXPECT_NE(refused(NBD_REP_ERR_TLS_REQD).words().find("TLS"), std::string::npos);
  EXPECT_NE(refused(NBD_REP_ERR_UNKNOWN).words().find("be?cause"), std::string::npos) << "one line, without control characters";
  EXPECT_EQ(Said(plain, hello() + reply(kGo, NBD_REP_ERR_UNSUP)).error(), ENOENT) << "closed upon EXPORT_NAME";
  EXPECT_EQ(Said({}, hello() + reply(kExt, NBD_REP_ERR_TLS_REQD)).error(), EPROTONOSUPPORT);
  EXPECT_EQ(Said({.purpose = Purpose::kList}, hello() + reply(kList, NBD_REP_ERR_POLICY)).error(), EPERM);
  EXPECT_EQ(Said({.purpose = Purpose::kList}, hello(0)).error(), EOPNOTSUPP);
}

TEST(NbdGreetingTest, OldstyleIsRefusedByName) {
  const Said said({}, Bytes{} + uint64_t{NBD_INIT_PASSWD} + uint64_t{NBD_OLDSTYLE_MAGIC} + uint64_t{4096});
  EXPECT_EQ(said.error(), EPROTONOSUPPORT);
  EXPECT_NE(said.words().find("oldstyle"), std::string::npos) << said.words();
}

TEST(NbdGreetingTest, AWishThatNoServerCanFulfilIsRefusedHere) {
  EXPECT_EQ(Said({.export_name = std::string(NBD_MAX_STRING + 1, 'x')}, hello()).error(), EINVAL);
  EXPECT_EQ(Said({.export_name = std::string("a\0b", 3)}, hello()).error(), EINVAL);
}

TEST(NbdGreetingTest, NonsenseIsEproto) {
  const NbdWish plain{.export_name = "disk", .structured = false, .extended = false, .allocation = false};
  const auto go = [&](const Bytes& answers) { return Said(plain, hello() + answers).error(); };
  const Bytes sized = reply(kGo, NBD_REP_INFO, size_info(4096));
  const Bytes ack = reply(kGo, NBD_REP_ACK);
  EXPECT_EQ(Said({}, Bytes{} + uint64_t{1} + uint64_t{2}).error(), EPROTONOSUPPORT);
  EXPECT_EQ(Said({}, Bytes{} + uint64_t{NBD_INIT_PASSWD} + uint64_t{2}).error(), EPROTONOSUPPORT);
  EXPECT_EQ(Said({}, Bytes{}).error(), ECONNRESET);
  EXPECT_EQ(go({}), ECONNRESET);
  EXPECT_EQ(go(ack), EPROTO) << "no size";
  EXPECT_EQ(go(Bytes(NBD_OPTION_REPLY_SIZE)), EPROTO) << "magic";
  EXPECT_EQ(go(reply(kList, NBD_REP_ACK)), EPROTO) << "another option";
  EXPECT_EQ(go(reply(kGo, NBD_REP_SERVER, listed("a"))), EPROTO) << "a list";
  EXPECT_EQ(go(reply(kGo, 77)), EPROTO) << "an unknown type";
  EXPECT_EQ(go(reply(kGo, NBD_REP_ACK, Bytes(1))), EPROTO) << "a long acknowledgement";
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO)), EPROTO) << "no information";
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, Bytes{} + uint16_t{NBD_INFO_EXPORT})), EPROTO) << "a short size";
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, block_info(0, 4096, 1u << 20))), EPROTO);
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, block_info(768, 4096, 1u << 20))), EPROTO);
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, block_info(1u << 20, 1u << 20, 1u << 20))), EPROTO);
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, block_info(4096, 4096, 512))), EPROTO);
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, size_info(UINT64_MAX)) + ack), EPROTO);
  EXPECT_EQ(go(Bytes{} + uint64_t{NBD_OPT_REPLY_MAGIC} + kGo + NBD_REP_ERR_UNKNOWN + uint32_t{0xffffffff}), EPROTO);
  EXPECT_EQ(go(reply(kGo, NBD_REP_ERR_UNKNOWN, Bytes(5000))), EPROTO) << "a text that is too long";
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, Bytes{} + uint16_t{99} + "new") + sized + ack), 0) << "unknown information";
  EXPECT_EQ(go(reply(kGo, NBD_REP_INFO, block_info(1, 7, 1u << 20)) + sized + ack), 0) << "advice that makes no sense";
  const auto list = [&](const Bytes& entry) {
    return Said({.purpose = Purpose::kList}, hello() + reply(kList, NBD_REP_SERVER, entry)).error();
  };
  EXPECT_EQ(list(Bytes(3)), EPROTO);
  EXPECT_EQ(list(Bytes{} + uint32_t{5} + "abcd"), EPROTO);
  EXPECT_EQ(list(Bytes{} + uint32_t{5000} + std::string(5000, 'x')), EPROTO);
  EXPECT_EQ(Said({}, hello() + reply(kExt, NBD_REP_ACK) + reply(kSet, NBD_REP_META_CONTEXT, Bytes(4))).error(), EPROTO);
  const Bytes twice = reply(kSet, NBD_REP_META_CONTEXT, context(1, "base:allocation"));
  EXPECT_EQ(Said({}, hello() + reply(kExt, NBD_REP_ACK) + twice + twice).error(), EPROTO);
}

TEST(NbdGreetingTest, AnswersWithoutEndEnd) {
  const auto flood = [](const NbdWish& wish, const Bytes& before, const Bytes& again) {
    NbdGreeting greeting(wish);
    const auto feed = [&](const Bytes& all) {
      for (size_t at = 0; !greeting.over() && at < all.size();) {
        const size_t size = greeting.wanted();
        greeting.take(std::span(all).subspan(at, size));
        at += size;
      }
    };
    feed(before);
    size_t rounds = 0;
    for (; !greeting.over() && rounds < 10'000'000; ++rounds) feed(again);
    EXPECT_LT(rounds, 100'000u);
    return greeting.result() ? 0 : greeting.result().error().code;
  };
  const NbdWish plain{.export_name = "disk", .structured = false, .extended = false, .allocation = false};
  EXPECT_EQ(flood(plain, hello(), reply(kGo, NBD_REP_INFO, size_info(4096))), EPROTO);
  EXPECT_EQ(flood({}, hello() + reply(kExt, NBD_REP_ACK), reply(kSet, NBD_REP_META_CONTEXT, context(1, "x:y"))), EPROTO);
  EXPECT_EQ(flood({.purpose = Purpose::kList}, hello(), reply(kList, NBD_REP_SERVER, listed("a"))), EPROTO);
  EXPECT_EQ(flood({.purpose = Purpose::kList}, hello(), reply(kList, NBD_REP_SERVER, listed("a", std::string(4000, 'd')))), EPROTO);
}

}  // namespace
}  // namespace netblk::proto
