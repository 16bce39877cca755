// SPDX-License-Identifier: GPL-2.0-only
// What servers do wrong, and links: never a success, never other data, never a request without an end.
#include "client/netblk1_client.h"

#include "client/scripted_server_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;
using ClientFailureTest = ClientTest;

std::vector<std::byte> bytes(size_t count, uint8_t value) { return std::vector<std::byte>(count, std::byte{value}); }

// Closes once nobody can connect any more.
Script until_refusing(const std::atomic<bool>& refusing) {
  return [&refusing](Peer&) {
    while (!refusing) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
}

// The first connection after the probe follows the script; the next ones are honest.
struct Lapse {
  Lapse(Disk& disk, Script script) : server({after_probe(disk, std::move(script)), honest(disk)}) {}
  ScriptedServer server;
};

TEST_P(ClientFailureTest, OpeningFailsInWordsWhenNobodyListens) {
  ScriptedServer server({honest(disk_)});
  server.refusing = true;
  const auto opened = Netblk1Client::open(*backend_, clock_, server.connector(), options());
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("refused"), std::string::npos);
}

TEST_P(ClientFailureTest, OpeningFailsInWordsWhenTheExportIsSmaller) {
  ScriptedServer server({honest(disk_)});
  Options with = options();
  with.size_bytes = kDiskBytes + 512;
  const auto opened = Netblk1Client::open(*backend_, clock_, server.connector(), with);
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find(std::to_string(kDiskBytes + 512)), std::string::npos)
      << opened.error().message;
}

TEST_P(ClientFailureTest, OpeningFailsOnASizeThatIsNoDisk) {
  ScriptedServer server({honest(disk_)});
  for (const uint64_t size : {uint64_t{0}, uint64_t{511}, uint64_t{513}}) {
    Options with = options();
    with.size_bytes = size;
    EXPECT_FALSE(Netblk1Client::open(*backend_, clock_, server.connector(), with).ok()) << size;
  }
  EXPECT_EQ(server.connections, 0u);
}

TEST_P(ClientFailureTest, OpeningFailsOnASilentServer) {
  ScriptedServer server({[](Peer& peer) { peer.wait_for_end(); }});
  EXPECT_FALSE(Netblk1Client::open(*backend_, clock_, server.connector(), impatient()).ok());
}

TEST_P(ClientFailureTest, ABadStatusByteCostsTheConnectionAndNothingElse) {
  for (const uint8_t status : std::initializer_list<uint8_t>{2, 3, 0x7f, 0x80, 0xff}) {
    Disk disk(kDiskBytes);
    Lapse lapse(disk, [status](Peer& peer) {
      (void)peer.request();
      peer.reply(status, bytes(512, 0xbd));
      peer.wait_for_end();
    });
    const auto client = open(lapse.server);
    const auto read = Ask::read(0, 512);
    EXPECT_EQ(run_one(*client, read), 0);
    EXPECT_TRUE(read->all(0)) << "the honest server's data";
    EXPECT_EQ(client->reconnects(), 1u);
    EXPECT_NE(client->last_error().find("bad status"), std::string::npos);
  }
}

TEST_P(ClientFailureTest, AnUnsolicitedByteCostsTheConnection) {
  std::atomic<bool> reset{false};
  Lapse lapse(disk_, [&](Peer& peer) {
    peer.send_byte(kOk);
    peer.wait_for_end();
    reset = true;
  });
  const auto client = open(lapse.server);
  until([&] { return reset.load() && client->reconnects() == 1; });
  const auto read = Ask::read(0, 512);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0));
}

TEST_P(ClientFailureTest, AByteAfterTheReplyIsNotTheNextReply) {
  Lapse lapse(disk_, [](Peer& peer) {
    (void)peer.request();
    std::vector<std::byte> too_much = bytes(1 + 512 + 1 + 512, 0);
    std::fill(too_much.begin() + 513, too_much.end(), std::byte{0x66});
    too_much[513] = std::byte{kOk};
    peer.send(too_much.data(), too_much.size());
    peer.wait_for_end();
  });
  const auto client = open(lapse.server);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  const auto second = Ask::read(512, 512);
  EXPECT_EQ(run_one(*client, second), 0);
  EXPECT_TRUE(second->all(0)) << "data that came before it was asked for";
}

TEST_P(ClientFailureTest, DataBehindAWritesReplyCostsTheConnection) {
  Lapse lapse(disk_, [](Peer& peer) {
    (void)peer.request();
    peer.reply(kOk, bytes(512, 0x99));
    peer.wait_for_end();
  });
  const auto client = open(lapse.server);
  (void)run_one(*client, Ask::write(0, 512, 1));
  until([&] { return client->reconnects() == 1; });
  EXPECT_NE(client->last_error().find("unsolicited"), std::string::npos) << client->last_error();
}

TEST_P(ClientFailureTest, DataBehindARefusalCostsTheConnection) {
  Lapse lapse(disk_, [](Peer& peer) {
    (void)peer.request();
    peer.reply(kError, bytes(512, 0x99));
    peer.wait_for_end();
  });
  const auto client = open(lapse.server);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  until([&] { return client->reconnects() == 1; });
}

TEST_P(ClientFailureTest, AShortReadIsNoSuccessAndLeavesNoTrace) {
  constexpr size_t kLength = 48u << 10;  // a part of it is received in place
  for (const size_t sent : {size_t{0}, size_t{1}, size_t{511}, size_t{40} << 10, kLength - 1}) {
    Disk disk(kDiskBytes);
    std::fill(disk.bytes.begin(), disk.bytes.end(), std::byte{0xbb});
    Lapse lapse(disk, [sent](Peer& peer) {
      (void)peer.request();
      peer.reply(kOk, bytes(sent, 0xaa));
    });
    const auto client = open(lapse.server);
    const auto read = Ask::read(0, kLength);
    EXPECT_EQ(run_one(*client, read), 0) << sent;
    EXPECT_TRUE(read->all(0xbb)) << sent;
    EXPECT_EQ(client->reconnects(), 1u);
  }
}

TEST_P(ClientFailureTest, AServerThatAlwaysSendsTooLittleIsAnError) {
  ScriptedServer server({after_probe(disk_, [](Peer&) {}), [](Peer& peer) {
                           (void)peer.request();
                           peer.reply(kOk, bytes(511, 0xaa));
                         }});
  const auto client = open(server, impatient());
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  EXPECT_EQ(client->state(), State::kError);
}

TEST_P(ClientFailureTest, UnansweredRequestsAreSentAgainInOrderAndAnsweredOnesAreNot) {
  std::mutex mutex;
  std::vector<uint64_t> first, second;
  const auto note = [&](std::vector<uint64_t>& list, Peer& peer, int count) {
    for (int i = 0; i < count; ++i) {
      const auto asked = peer.request();
      if (!asked) return;
      const std::lock_guard lock(mutex);
      list.push_back(asked->sector);
    }
  };
  ScriptedServer server({after_probe(disk_,
                                     [&](Peer& peer) {
                                       note(first, peer, 5);
                                       peer.reply(kOk);
                                       peer.reply(kOk);
                                     }),
                         [&](Peer& peer) {
                           note(second, peer, 3);
                           for (int i = 0; i < 3; ++i) peer.reply(kOk);
                           peer.wait_for_end();
                         }});
  const auto client = open(server);
  Asks all;
  for (uint64_t i = 0; i < 5; ++i) all.push_back(Ask::write(i * 512, 512, static_cast<uint8_t>(i)));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, 0);
  const std::lock_guard lock(mutex);
  EXPECT_EQ(first, (std::vector<uint64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(second, (std::vector<uint64_t>{2, 3, 4}));
  EXPECT_EQ(client->state(), State::kConnected);
}

TEST_P(ClientFailureTest, AWriteCutInTheMiddleIsSentAgainWhole) {
  Disk large(16u << 20);
  Lapse lapse(large, [](Peer& peer) {
    (void)peer.header();
    std::vector<std::byte> part(100'000);
    peer.receive(part.data(), part.size());
  });
  Options with = options();
  with.size_bytes = large.bytes.size();
  const auto client = open(lapse.server, with);
  EXPECT_EQ(run_one(*client, Ask::write(0, 8u << 20, 0x3c)), 0);
  EXPECT_TRUE(large.all(0, 8u << 20, 0x3c));
}

TEST_P(ClientFailureTest, ASilentServerEndsInErrorsForAll) {
  ScriptedServer server({after_probe(disk_, [](Peer& peer) { peer.wait_for_end(); }),
                         [](Peer& peer) { peer.wait_for_end(); }});
  const auto client = open(server, impatient());
  const Asks all = asks(Ask::read(0, 512), Ask::write(0, 512, 1), Ask::of(Command::kFlush), Ask::read(512, 4096));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, EIO);
  EXPECT_EQ(client->state(), State::kError);
}

TEST_P(ClientFailureTest, AServerThatClosesAtOnceEndsInErrors) {
  ScriptedServer server({after_probe(disk_, [](Peer&) {}), [](Peer&) {}});
  const auto client = open(server, impatient());
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), EIO);
}

TEST_P(ClientFailureTest, AServerThatIsGoneEndsInErrors) {
  std::atomic<bool> refusing{false};
  ScriptedServer server({after_probe(disk_, until_refusing(refusing))});
  const auto client = open(server, impatient());
  server.refusing = refusing = true;
  until([&] { return client->state() != State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_NE(client->last_error().find("refused"), std::string::npos);
}

// Each byte is progress, but the reply is not whole in time.
TEST_P(ClientFailureTest, ATrickleIsNoReply) {
  const Script trickle = [](Peer& peer) {
    (void)peer.request();
    peer.send_byte(kOk);
    while (peer.send_byte(0)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  ScriptedServer server({after_probe(disk_, trickle), trickle});
  const auto client = open(server, impatient());
  EXPECT_EQ(run_one(*client, Ask::read(0, 32u << 10)), EIO);
}

TEST_P(ClientFailureTest, AServerThatDoesNotReadEndsInErrors) {
  Disk large(16u << 20);
  const Script deaf = [](Peer& peer) {
    // Sees the end without taking a byte.
    pollfd watched{peer.fd(), POLLRDHUP, 0};
    (void)::poll(&watched, 1, -1);
  };
  ScriptedServer server({after_probe(large, deaf), deaf});
  Options with = impatient();
  with.size_bytes = large.bytes.size();
  const auto client = open(server, with);
  EXPECT_EQ(run_one(*client, Ask::write(0, 8u << 20, 1)), EIO);
}

TEST_P(ClientFailureTest, AfterGivingUpRequestsFailAtOnceAndTheDiskComesBackByItself) {
  std::atomic<bool> refusing{false};
  ScriptedServer server({after_probe(disk_, until_refusing(refusing)), honest(disk_)});
  const auto client = open(server, impatient());
  server.refusing = refusing = true;
  until([&] { return client->state() == State::kError; });
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
  server.refusing = false;
  until([&] { return client->state() == State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 0x21)), 0);
  EXPECT_TRUE(disk_.all(0, 512, 0x21));
}

// A server that came back with a smaller export is not this disk.
TEST_P(ClientFailureTest, AfterGivingUpOnlyAnAnsweredProbeBringsTheDiskBack) {
  Disk smaller(kDiskBytes / 2);
  std::atomic<bool> refusing{false};
  ScriptedServer server({after_probe(disk_, until_refusing(refusing)), honest(smaller)});
  const auto client = open(server, impatient());
  server.refusing = refusing = true;
  until([&] { return client->state() == State::kError; });
  server.refusing = false;
  until([&] { return server.connections >= 4; });
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
}

TEST_P(ClientFailureTest, AnIdleLossIsMendedBeforeAnybodyAsks) {
  ScriptedServer server({after_probe(disk_, [](Peer&) {}), honest(disk_)});
  const auto client = open(server);
  until([&] { return client->reconnects() == 1 && client->state() == State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
}

TEST_P(ClientFailureTest, ManyRequestsSurviveAServerThatKeepsDyingAfterSomeAnswers) {
  ScriptedServer server({[this](Peer& peer) {
    if (!serve(peer, disk_, 7)) return;
    // A close with unread requests would be a reset, which throws away the replies too.
    ::shutdown(peer.fd(), SHUT_WR);
    peer.wait_for_end();
  }});
  const auto client = open(server);
  Asks all;
  for (uint64_t i = 0; i < 128; ++i) all.push_back(Ask::write(i * 512, 512, static_cast<uint8_t>(i)));
  run(*client, all);
  for (uint64_t i = 0; i < 128; ++i) {
    EXPECT_EQ(all[i]->error, 0);
    EXPECT_TRUE(disk_.all(i * 512, i * 512 + 512, static_cast<uint8_t>(i)));
  }
  EXPECT_GE(client->reconnects(), 128u / 7);
}

TEST_P(ClientFailureTest, ADisconnectedClientCanBeDestroyed) {
  std::atomic<bool> refusing{false};
  ScriptedServer server({after_probe(disk_, until_refusing(refusing))});
  auto client = open(server);
  server.refusing = refusing = true;
  until([&] { return client->state() != State::kConnected; });
  client.reset();
}

INSTANTIATE_TEST_SUITE_P(Loops, ClientFailureTest, ::testing::Values("uring", "epoll"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace netblk::client::testing
