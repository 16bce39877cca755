// SPDX-License-Identifier: GPL-2.0-only
// Where the client says that the time of its requests went, by a clock that only the server's script moves.
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/endian.h"
#include "client/ask2.h"
#include "client/scripted_server2_test.h"

namespace netblk::client::testing {
namespace {

constexpr uint64_t kMs = 1'000'000;

class ManualClock final : public io::Clock {
 public:
  uint64_t now_ms() const override { return now_ns() / kMs; }
  uint64_t now_ns() const override { return now_ns_.load(); }
  void pass_ms(uint64_t ms) { now_ns_ += ms * kMs; }

 private:
  std::atomic<uint64_t> now_ns_{1'000 * kMs};
};

class Netblk2TimesTest : public Client2Test {
 protected:
  Netblk2TimesTest() { world_.agreed.push_back(NETBLK2_FEATURE_TIMES); }

  std::unique_ptr<Netblk2Client> open_timed(ScriptedServer2& server, Options2 with) {
    auto opened = Netblk2Client::open(*backend_, time_, server.dialer(), with);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return opened ? std::move(opened).value() : nullptr;
  }
  bool tell(Peer2& peer, const proto::Times2& times) {
    std::byte bytes[NETBLK2_TIMES_SIZE];
    proto::encode_times(times, peer.framing.crc, bytes);
    return peer.send(bytes, sizeof bytes);
  }
  // Takes so long for one request, and answers it.
  bool answer_after(Peer2& peer, uint64_t ms) {
    const auto asked = peer.request();
    if (!asked) return false;
    time_.pass_ms(ms);
    std::vector<std::byte> data;
    const auto status = world_.apply(*asked, data);
    return status && peer.say(peer.reply_to(*asked, *status), data);
  }

  ManualClock time_;
};

TEST_P(Netblk2TimesTest, SumsOfEachKindAndWhatTheServerTellsOfThem) {
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    answer_after(peer, 5);
    answer_after(peer, 7);
    answer_after(peer, 11);
    tell(peer, {.request_type = NETBLK2_READ, .count = 2, .server_ns = 2 * kMs, .store_ns = 4 * kMs});
    answer_after(peer, 13);
    tell(peer, {.request_type = NETBLK2_FLUSH, .count = 1, .server_ns = 0, .store_ns = 13 * kMs});
    tell(peer, {.request_type = NETBLK2_WRITE, .count = 1, .server_ns = 3 * kMs, .store_ns = 0});
    serve(peer, world_);
  }});
  auto client = open_timed(server, options2());
  EXPECT_TRUE(client->info().times);
  EXPECT_EQ(run_one(*client, Ask::read(0, 4096)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(4096, 65536)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(block::Command::kFlush)), 0);
  until([&] { return client->status().writes.told == 1; });
  const ClientStatus now = client->status();
  EXPECT_EQ(now.reads, (Latency{.requests = 2, .queue_ns = 0, .trip_ns = 12 * kMs, .told = 2, .told_trip_ns = 12 * kMs,
                                .server_ns = 2 * kMs, .store_ns = 4 * kMs}));
  EXPECT_EQ(now.reads.wire_ns(), 6 * kMs);
  EXPECT_EQ(now.writes, (Latency{.requests = 1, .queue_ns = 0, .trip_ns = 11 * kMs, .told = 1, .told_trip_ns = 11 * kMs,
                                 .server_ns = 3 * kMs, .store_ns = 0}));
  EXPECT_EQ(now.flushes.wire_ns(), 0u);
  EXPECT_EQ(now.flushes.store_ns, 13 * kMs);
  EXPECT_EQ(now.trims, Latency{});
}

TEST_P(Netblk2TimesTest, AServerThatClaimsMoreThanTheRoundTripIsCut) {
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    answer_after(peer, 5);
    tell(peer, {.request_type = NETBLK2_READ, .count = 1, .server_ns = UINT64_MAX, .store_ns = 4 * kMs});
    answer_after(peer, 5);
    tell(peer, {.request_type = NETBLK2_WRITE, .count = 1, .server_ns = UINT64_MAX, .store_ns = UINT64_MAX});
    serve(peer, world_);
  }});
  auto client = open_timed(server, options2());
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  until([&] { return client->status().writes.told == 1; });
  const ClientStatus now = client->status();
  EXPECT_EQ(now.reads.store_ns, 4 * kMs);
  EXPECT_EQ(now.reads.server_ns, 1 * kMs);
  EXPECT_EQ(now.reads.wire_ns(), 0u);
  EXPECT_EQ(now.writes.store_ns, 5 * kMs);
  EXPECT_EQ(now.writes.server_ns, 0u);
  EXPECT_EQ(now.writes.wire_ns(), 0u);
}

TEST_P(Netblk2TimesTest, WhatWaitsForASlotIsTheClientsOwnQueue) {
  constexpr uint32_t kParts = NETBLK2_MIN_SLOTS + 3;
  World world(kParts * size_t{kPayload});
  world.slots = NETBLK2_MIN_SLOTS;
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world)) return;
    // All slots are taken before the first answer.
    std::vector<Asked2> asked;
    for (uint32_t i = 0; i < NETBLK2_MIN_SLOTS; ++i) {
      auto one = peer.request();
      if (!one) return;
      asked.push_back(std::move(*one));
    }
    time_.pass_ms(5);
    for (const Asked2& one : asked) {
      std::vector<std::byte> data;
      const auto status = world.apply(one, data);
      if (!status || !peer.say(peer.reply_to(one, *status), data)) return;
    }
    serve(peer, world);
  }});
  auto options = options2();
  options.slots = NETBLK2_MIN_SLOTS;
  auto client = open_timed(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, world.bytes.size(), 1)), 0);
  const Latency writes = client->status().writes;
  EXPECT_EQ(writes.requests, kParts);
  EXPECT_EQ(writes.queue_ns, 3 * 5 * kMs);
  EXPECT_EQ(writes.trip_ns, NETBLK2_MIN_SLOTS * 5 * kMs);
  EXPECT_EQ(writes.told, 0u);
}

TEST_P(Netblk2TimesTest, TheAgeOfTheOldest) {
  std::atomic<bool> go{false};
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    const auto asked = peer.request();
    if (!asked) return;
    until([&] { return go.load(); });
    std::vector<std::byte> data;
    const auto status = world_.apply(*asked, data);
    if (status && peer.say(peer.reply_to(*asked, *status), data)) serve(peer, world_);
  }});
  auto client = open_timed(server, options2());
  EXPECT_EQ(client->status().oldest_ms, 0u);
  std::thread user([&] { EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0); });
  until([&] {
    time_.pass_ms(100);  // so that a sweep comes
    return client->status().oldest_ms >= 1000;
  });
  const uint64_t before = client->status().oldest_ms;
  time_.pass_ms(700);
  EXPECT_EQ(client->status().oldest_ms, before + 700);
  go = true;
  user.join();
  EXPECT_EQ(client->status().oldest_ms, 0u);
}

// What no server may say costs it the connection.
TEST_P(Netblk2TimesTest, TimesThatCannotBe) {
  const auto drops = [&](const char* what, proto::Times2 times, size_t spoiled = 0, bool asked_for = true) {
    SCOPED_TRACE(what);
    std::atomic<bool> gone{false};
    World world(1u << 20);
    if (asked_for) world.agreed.push_back(NETBLK2_FEATURE_TIMES);
    ScriptedServer2 server({[&](Peer2& peer) {
                              if (!greet(peer, world) || !serve(peer, world, 1)) return;
                              std::byte bytes[NETBLK2_TIMES_SIZE];
                              proto::encode_times(times, false, bytes);
                              if (spoiled != 0) bytes[spoiled] = std::byte{7};
                              const uint32_t crc = crc32c(std::span(bytes).first(28));
                              store_be(bytes + 28, peer.framing.crc ? crc : 0u);
                              peer.send(bytes, sizeof bytes);
                              peer.wait_for_end();
                              gone = true;
                            },
                            honest(world)});
    auto client = open2(server);
    EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
    until([&] { return gone.load(); });
    EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
    EXPECT_EQ(client->status().writes.told, 0u);
  };
  const proto::Times2 right{.request_type = NETBLK2_WRITE, .count = 1, .server_ns = 1, .store_ns = 1};
  drops("not asked for", right, 0, false);
  drops("of more than were answered", {.request_type = NETBLK2_WRITE, .count = 2});
  drops("of none", {.request_type = NETBLK2_WRITE, .count = 0});
  drops("of none that was answered", {.request_type = NETBLK2_READ, .count = 1});
  drops("of no request", {.request_type = NETBLK2_GOODBYE, .count = 1});
  drops("of type 0", {.request_type = 0, .count = 1});
  drops("of a type beyond", right, offsetof(netblk2_times, request_type));
  drops("flags", right, offsetof(netblk2_times, flags));
  drops("reserved", right, offsetof(netblk2_times, reserved) + 3);
}

TEST_P(Netblk2TimesTest, AServerWithoutTheFeature) {
  World old(1u << 20);
  ScriptedServer2 server({honest(old)});
  auto client = open_timed(server, options2());
  EXPECT_FALSE(client->info().times);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  const Latency reads = client->status().reads;
  EXPECT_EQ(reads.requests, 1u);
  EXPECT_EQ(reads.told, 0u);
  EXPECT_EQ(reads.wire_ns(), 0u);
}

TEST_P(Netblk2TimesTest, WhoDoesNotAskIsNotTold) {
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.times = false;
  auto client = open_timed(server, options);
  EXPECT_FALSE(client->info().times);
  const std::lock_guard lock(world_.mutex);
  EXPECT_EQ(proto::find_feature(world_.hellos.at(0).features, NETBLK2_FEATURE_TIMES), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Io, Netblk2TimesTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
