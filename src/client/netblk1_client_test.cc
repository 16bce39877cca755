// SPDX-License-Identifier: GPL-2.0-only
// What the protocol allows: order, pipelines, splits, flush, zeroes, refusals.
#include "client/netblk1_client.h"

#include "client/scripted_server_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;

TEST_P(ClientTest, OpeningReadsTheLastSectorOnce) {
  ScriptedServer server({honest(disk_)});
  { const auto client = open(server); }
  const std::vector<Asked> asked = disk_.asked();
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].command, NETBLK1_CMD_READ);
  EXPECT_EQ(asked[0].sector, kDiskBytes / 512 - 1);
  EXPECT_EQ(asked[0].length, 512u);
  EXPECT_EQ(server.connections, 1u);
}

TEST_P(ClientTest, ReadsBackWhatItWrote) {
  ScriptedServer server({honest(disk_)});
  const auto client = open(server);
  EXPECT_EQ(run_one(*client, Ask::write(4096, 8192, 0x5a)), 0);
  const auto read = Ask::read(4096, 8192);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0x5a));
  EXPECT_EQ(client->state(), State::kConnected);
  const block::Counters counters = client->counters();
  EXPECT_EQ(counters.read_bytes, 8192u) << "the client's own probe is not counted";
  EXPECT_EQ(counters.write_bytes, 8192u);
}

TEST_P(ClientTest, PipelinesWithoutWaitingAndAnswersInOrder) {
  constexpr int kCount = 20;
  ScriptedServer server({after_probe(disk_, [](Peer& peer) {
    std::vector<Asked> waiting;
    while (waiting.size() < kCount) {
      auto asked = peer.request();
      if (!asked) return;
      waiting.push_back(std::move(*asked));
    }
    for (const Asked& asked : waiting)
      peer.reply(kOk, std::vector<std::byte>(asked.length, static_cast<std::byte>(asked.sector)));
    peer.wait_for_end();
  })});
  const auto client = open(server);
  Asks all;
  for (int i = 0; i < kCount; ++i) all.push_back(Ask::read(static_cast<uint64_t>(i) * 512, 512));
  run(*client, all);
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(all[static_cast<size_t>(i)]->error, 0);
    EXPECT_TRUE(all[static_cast<size_t>(i)]->all(static_cast<uint8_t>(i)));
  }
}

TEST_P(ClientTest, TakesRepliesByteByByteAndManyAtOnce) {
  ScriptedServer server({after_probe(disk_, [](Peer& peer) {
    for (int i = 0; i < 2; ++i) (void)peer.request();
    std::vector<std::byte> bytes = {std::byte{kOk}};
    bytes.resize(513, std::byte{0x11});
    bytes.push_back(std::byte{kOk});
    bytes.resize(bytes.size() + 1024, std::byte{0x22});
    for (const std::byte byte : bytes) peer.send(&byte, 1);
    std::vector<std::byte> both;
    for (int i = 0; i < 2; ++i) {
      const auto asked = peer.request();
      if (!asked) return;
      both.push_back(std::byte{kOk});
      both.resize(both.size() + asked->length, static_cast<std::byte>(0x30 + i));
    }
    peer.send(both.data(), both.size());
    peer.wait_for_end();
  })});
  const auto client = open(server);
  for (const uint8_t first : std::initializer_list<uint8_t>{0x11, 0x30}) {
    const Asks two = asks(Ask::read(0, 512), Ask::read(512, 1024));
    run(*client, two);
    EXPECT_EQ(two[0]->error, 0);
    EXPECT_EQ(two[1]->error, 0);
    EXPECT_TRUE(two[0]->all(first));
    EXPECT_TRUE(two[1]->all(first == 0x11 ? 0x22 : 0x31));
  }
  EXPECT_EQ(server.connections, 1u);
}

TEST_P(ClientTest, LargeReadsAndWritesAreSplitAtTheProtocolsLimit) {
  Disk large(34u << 20);
  ScriptedServer server({honest(large)});
  Options with = options();
  with.size_bytes = large.bytes.size();
  const auto client = open(server, with);
  EXPECT_EQ(run_one(*client, Ask::write(0, 33u << 20, 0x77)), 0);
  const auto read = Ask::read(0, 33u << 20);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0x77));
  EXPECT_TRUE(large.all(0, 33u << 20, 0x77));
  EXPECT_TRUE(large.all(33u << 20, 34u << 20, 0));
  for (const Asked& asked : large.asked()) EXPECT_LE(asked.length, NETBLK1_MAX_LENGTH);
}

TEST_P(ClientTest, ZeroesAreWrittenAsZeroesOverTheirWholeLength) {
  Disk large(10u << 20);
  std::fill(large.bytes.begin(), large.bytes.end(), std::byte{0xee});
  ScriptedServer server({honest(large)});
  Options with = options();
  with.size_bytes = large.bytes.size();
  const auto client = open(server, with);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kWriteZeroes, 512, 9u << 20)), 0);
  EXPECT_TRUE(large.all(0, 512, 0xee));
  EXPECT_TRUE(large.all(512, 512 + (9u << 20), 0));
  EXPECT_TRUE(large.all(512 + (9u << 20), 10u << 20, 0xee));
}

TEST_P(ClientTest, AFlushEndsAfterTheWritesBeforeIt) {
  std::atomic<bool> answered{false};
  ScriptedServer server({after_probe(disk_, [&](Peer& peer) {
    (void)peer.request();
    // A flush sends nothing: what follows on the wire is the second write.
    const auto second = peer.request();
    EXPECT_TRUE(second && second->command == NETBLK1_CMD_WRITE && second->sector == 8);
    answered = true;
    peer.reply(kOk);
    peer.reply(kOk);
    peer.wait_for_end();
  })});
  const auto client = open(server);
  struct Flush : Ask {
    explicit Flush(std::atomic<bool>& flag) : Ask(Command::kFlush, 0, 0), first(flag) {
      on_done = [](Request& ended_request) {
        auto& self = static_cast<Flush&>(ended_request);
        self.after = self.first;
        self.ended = true;
        self.done.set();
      };
    }
    std::atomic<bool>& first;
    bool after = false;
  };
  auto flush = std::make_unique<Flush>(answered);
  Flush& watched = *flush;
  Asks all = asks(Ask::write(0, 512, 1));
  all.push_back(std::move(flush));
  all.push_back(Ask::write(4096, 512, 2));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, 0);
  EXPECT_TRUE(watched.after);
}

TEST_P(ClientTest, AFlushOfNothingSendsNothing) {
  ScriptedServer server({honest(disk_)});
  const auto client = open(server);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(disk_.asked().size(), 1u);
}

TEST_P(ClientTest, ARefusalIsAnErrorOfItsRequestAlone) {
  ScriptedServer server({after_probe(disk_, [this](Peer& peer) {
    (void)peer.request();
    peer.reply(kError);
    (void)peer.request();
    peer.reply(kError);
    serve(peer, disk_);
  })});
  const auto client = open(server);
  const Asks all = asks(Ask::read(0, 4096), Ask::write(0, 4096, 1), Ask::write(512, 512, 0x42), Ask::read(512, 512));
  run(*client, all);
  EXPECT_EQ(all[0]->error, EIO);
  EXPECT_EQ(all[1]->error, EIO);
  EXPECT_EQ(all[2]->error, 0);
  EXPECT_EQ(all[3]->error, 0);
  EXPECT_TRUE(all[3]->all(0x42));
  EXPECT_EQ(server.connections, 1u);
  EXPECT_EQ(client->counters().errors, 2u);
}

// The data of a refused WRITE is drained by the server: its answer may come first.
TEST_P(ClientTest, AWriteRefusedBeforeItsDataWasSentStaysInStep) {
  Disk large(16u << 20);
  ScriptedServer server({after_probe(large, [&](Peer& peer) {
    const auto asked = peer.header();
    if (!asked) return;
    peer.reply(kError);
    std::vector<std::byte> drained(asked->length);
    peer.receive(drained.data(), drained.size());
    serve(peer, large);
  })});
  Options with = options();
  with.size_bytes = large.bytes.size();
  const auto client = open(server, with);
  const Asks all = asks(Ask::write(0, 8u << 20, 9), Ask::write(0, 512, 7), Ask::read(0, 512));
  run(*client, all);
  EXPECT_EQ(all[0]->error, EIO);
  EXPECT_EQ(all[1]->error, 0);
  EXPECT_EQ(all[2]->error, 0);
  EXPECT_TRUE(all[2]->all(7));
  EXPECT_EQ(server.connections, 1u);
}

TEST_P(ClientTest, RefusesWhatTheProtocolCannotSay) {
  ScriptedServer server({honest(disk_)});
  const auto client = open(server);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 0, 512)), EOPNOTSUPP);
  EXPECT_EQ(run_one(*client, Ask::read(1, 512)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(0, 511)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::write(512, 513, 0)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(kDiskBytes, 512)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(kDiskBytes - 512, 1024)), EINVAL);
  EXPECT_EQ(disk_.asked().size(), 1u) << "none of these reached the wire";
}

TEST_P(ClientTest, AReadOnlyDiskSendsNoWrite) {
  ScriptedServer server({honest(disk_)});
  Options with = options();
  with.read_only = true;
  const auto client = open(server, with);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), EROFS);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kWriteZeroes, 0, 512)), EROFS);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
}

TEST_P(ClientTest, WhatNobodyWaitsForIsNotSent) {
  ScriptedServer server({honest(disk_)});
  const auto client = open(server);
  const std::atomic<bool> gone{true};
  const auto write = Ask::write(0, 512, 1);
  write->abandoned = &gone;
  EXPECT_EQ(run_one(*client, write), ECANCELED);
  EXPECT_EQ(disk_.asked().size(), 1u);
}

TEST_P(ClientTest, SaysDisconnectWithZeroesAndCloses) {
  std::atomic<bool> said{false};
  ScriptedServer server({after_probe(disk_, [&](Peer& peer) {
    const auto asked = peer.request();
    said = asked && asked->command == NETBLK1_CMD_DISCONNECT && asked->sector == 0 && asked->length == 0;
    EXPECT_FALSE(peer.request()) << "nothing follows";
  })});
  { const auto client = open(server); }
  until([&] { return said.load(); });
}

TEST_P(ClientTest, RequestsOfItsOwnLoopEndThere) {
  ScriptedServer server({honest(disk_)});
  const auto client = open(server);
  struct Local : io::Posted {
    explicit Local(Netblk1Client& to)
        : Posted([](coro::Runnable& self) {
            auto& local = static_cast<Local&>(self);
            local.client.submit(local.ask);
          }),
          client(to),
          ask(Command::kRead, 0, 512) {
      ask.loop = &to.loop();
      ask.on_done = [](block::Request& request) { static_cast<Mine&>(request).finished = true; };
    }
    struct Mine : Ask {
      using Ask::Ask;
      std::atomic<bool> finished{false};
    };
    Netblk1Client& client;
    Mine ask;
  } local(*client);
  client->loop().post(local);
  until([&] { return local.ask.finished.load(); });
  EXPECT_EQ(local.ask.error, 0);
}

TEST_P(ClientTest, WhereTheTimeOfItsRequestsGoes) {
  std::atomic<bool> go{false};
  ScriptedServer server({after_probe(disk_, [&](Peer& peer) {
    until([&] { return go.load(); });
    serve(peer, disk_);
  })});
  auto client = open(server);
  EXPECT_EQ(client->status().oldest_ms, 0u);
  std::thread user([&] {
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
    EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 7)), 0);
  });
  until([&] { return client->status().oldest_ms >= 300; });
  go = true;
  user.join();
  const ClientStatus now = client->status();
  EXPECT_EQ(now.oldest_ms, 0u);
  EXPECT_EQ(now.state, State::kConnected);
  EXPECT_EQ(now.reads.requests, 1u) << "the probe is nobody's request";
  EXPECT_GE(now.reads.trip_ns, 250'000'000u);
  EXPECT_EQ(now.writes.requests, 1u);
  EXPECT_EQ(now.reads.told + now.writes.told, 0u);
}

INSTANTIATE_TEST_SUITE_P(Loops, ClientTest, ::testing::Values("uring", "epoll"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace netblk::client::testing
