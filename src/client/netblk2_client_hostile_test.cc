// SPDX-License-Identifier: GPL-2.0-only
// The client against a server that breaks the protocol: a clear error, or a connection that is dropped and made again;
// never a wrong success.
#include <gtest/gtest.h>

#include "client/ask2.h"
#include "client/scripted_server2_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;

class Netblk2HostileTest : public Client2Test {
 protected:
  // After this answer to the first request the client must be gone, and must get the truth from an honest server.
  void drops(const char* what, std::function<void(Peer2&, const Asked2&)> answer, bool write = false) {
    SCOPED_TRACE(what);
    World world(1u << 20);
    std::fill(world.bytes.begin(), world.bytes.end(), std::byte{0x77});
    std::atomic<bool> gone{false};
    ScriptedServer2 server({after(world, 0, [&](Peer2& peer) {
                              const auto asked = peer.request();
                              if (!asked) return;
                              answer(peer, *asked);
                              peer.wait_for_end();
                              gone = true;
                            }),
                            honest(world)});
    auto client = open2(server);
    auto ask = write ? Ask::write(8192, 4096, 0x11) : Ask::read(8192, 4096);
    EXPECT_EQ(run_one(*client, ask), 0);
    EXPECT_TRUE(ask->all(write ? 0x11 : 0x77));
    EXPECT_TRUE(world.all(8192, 12288, write ? 0x11 : 0x77));
    until([&] { return gone.load(); });
    EXPECT_GE(client->status().reconnects, 1u);
  }
  static std::vector<std::byte> wrong(size_t size) { return std::vector<std::byte>(size, std::byte{0xee}); }

  // What is wrong with a first welcome fails the opening.
  void refuses(const char* what, std::function<void(proto::Welcome2&)> spoil, int code = EPROTO) {
    SCOPED_TRACE(what);
    World world(1u << 20);
    ScriptedServer2 server({[&](Peer2& peer) {
      const auto hello = peer.read_hello();
      auto welcome = world.welcome(*hello);
      spoil(welcome);
      peer.say(welcome);
      peer.wait_for_end();
    }});
    const Error error = refused2(server, options2());
    EXPECT_EQ(error.code, code) << error.message;
  }
};

TEST_P(Netblk2HostileTest, RepliesThatAnswerNothing) {
  const auto spoiled = [](auto spoil) {
    return [spoil](Peer2& peer, const Asked2& asked) {
      auto reply = peer.reply_to(asked);
      spoil(reply);
      peer.say(reply, reply.type == NETBLK2_READ && reply.status == 0 ? wrong(4096) : std::vector<std::byte>{});
    };
  };
  drops("wrong cookie", spoiled([](proto::Reply2& reply) { ++reply.cookie; }));
  drops("wrong sequence", spoiled([](proto::Reply2& reply) { ++reply.sequence; }));
  drops("earlier sequence", spoiled([](proto::Reply2& reply) { --reply.sequence; }));
  drops("slot that is free", spoiled([](proto::Reply2& reply) { ++reply.slot; }));
  drops("slot that does not exist", spoiled([](proto::Reply2& reply) { reply.slot = 0xffff; }));
  for (const uint8_t type : {NETBLK2_WRITE, NETBLK2_FLUSH, NETBLK2_TRIM, NETBLK2_WRITE_ZEROES, NETBLK2_NOP})
    drops("wrong type", spoiled([type](proto::Reply2& reply) { reply.type = type; }));
  drops("unknown type", spoiled([](proto::Reply2& reply) { reply.type = 0x7f; }));
  drops("type 0", spoiled([](proto::Reply2& reply) { reply.type = 0; }));
  drops("a write answered as a read", spoiled([](proto::Reply2& reply) { reply.type = NETBLK2_READ; }), true);
  drops("a goodbye nobody said", spoiled([](proto::Reply2& reply) {
          reply = {.type = NETBLK2_GOODBYE, .cookie = reply.cookie};
        }));
  drops("an error with flags", spoiled([](proto::Reply2& reply) {
          reply.status = NETBLK2_EIO;
          reply.flags = NETBLK2_LZ4;
        }));
  drops("compressed, though not negotiated", spoiled([](proto::Reply2& reply) { reply.flags = NETBLK2_LZ4; }));
}

TEST_P(Netblk2HostileTest, PayloadsOfAWrongLength) {
  for (const size_t length : {1u, 512u, 4095u, 4097u, 8192u, 65536u})
    drops("length", [length](Peer2& peer, const Asked2& asked) { peer.say(peer.reply_to(asked), wrong(length)); });
  drops("none", [](Peer2& peer, const Asked2& asked) { peer.say(peer.reply_to(asked)); });
  drops("more than a frame may have", [](Peer2& peer, const Asked2& asked) {
    std::byte bytes[NETBLK2_REPLY_SIZE];
    auto reply = peer.reply_to(asked);
    reply.payload_length = 0xffffffff;
    proto::encode_reply(reply, true, bytes);
    peer.send(bytes, sizeof bytes);
  });
  drops("cut off", [](Peer2& peer, const Asked2& asked) {
    std::byte bytes[NETBLK2_REPLY_SIZE];
    auto reply = peer.reply_to(asked);
    reply.payload_length = 4096;
    proto::encode_reply(reply, true, bytes);
    peer.send(bytes, sizeof bytes);
    const auto half = wrong(2048);
    peer.send(half.data(), half.size());
    ::shutdown(peer.fd(), SHUT_WR);
  });
  drops("a payload for a write", [](Peer2& peer, const Asked2& asked) { peer.say(peer.reply_to(asked), wrong(4096)); },
        true);
  drops("a payload with an error", [](Peer2& peer, const Asked2& asked) {
    peer.say(peer.reply_to(asked, NETBLK2_EIO), wrong(4096));
  });
}

TEST_P(Netblk2HostileTest, Checksums) {
  drops("of the payload", [](Peer2& peer, const Asked2& asked) { peer.say(peer.reply_to(asked), wrong(4096), false); });
  drops("of the header", [](Peer2& peer, const Asked2& asked) {
    std::byte bytes[NETBLK2_REPLY_SIZE];
    proto::encode_reply(peer.reply_to(asked, NETBLK2_EIO), true, bytes);
    bytes[20] ^= std::byte{1};
    peer.send(bytes, sizeof bytes);
  });
  drops("left out", [](Peer2& peer, const Asked2& asked) {
    peer.framing.crc = false;
    peer.say(peer.reply_to(asked), wrong(4096));
  });
}

TEST_P(Netblk2HostileTest, AReplyThatComesTwice) {
  ScriptedServer2 server({after(world_, 0, [&](Peer2& peer) {
                            const auto asked = peer.request();
                            peer.say(peer.reply_to(*asked), wrong(512));
                            peer.say(peer.reply_to(*asked), wrong(512));
                            peer.wait_for_end();
                          }),
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  until([&] { return client->status().reconnects == 1; });
  EXPECT_NE(client->status().last_error.find("answers nothing"), std::string::npos);
}

TEST_P(Netblk2HostileTest, RepliesToNothingAtAll) {
  ScriptedServer2 server({after(world_, 0, [&](Peer2& peer) {
                            peer.say({.type = NETBLK2_WRITE, .slot = 3, .sequence = 1, .cookie = 9});
                            peer.wait_for_end();
                          }),
                          honest(world_)});
  auto client = open2(server);
  until([&] { return client->status().reconnects == 1; });
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
}

TEST_P(Netblk2HostileTest, WhatWasNotNegotiatedComesAllTheSame) {
  const auto says = [&](proto::Reply2 reply) {
    World world(1u << 20);
    world.agreed = {NETBLK2_FEATURE_CRC32C};
    ScriptedServer2 server({after(world, 0, [&](Peer2& peer) {
                              peer.say(reply);
                              peer.wait_for_end();
                            }),
                            honest(world)});
    auto client = open2(server);
    until([&] { return client->status().reconnects == 1; });
    EXPECT_EQ(client->size_bytes(), 1u << 20);
  };
  says({.type = NETBLK2_HEARTBEAT});
  says({.type = NETBLK2_RESIZE, .cookie = 4096});
}

TEST_P(Netblk2HostileTest, ASizeThatCannotBe) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{511}, uint64_t{1} << 63, ~uint64_t{0}}) {
    World world(1u << 20);
    ScriptedServer2 server({after(world, 0, [&](Peer2& peer) {
                              peer.say({.type = NETBLK2_RESIZE, .cookie = size});
                              peer.wait_for_end();
                            }),
                            honest(world)});
    auto client = open2(server);
    until([&] { return client->status().reconnects == 1; });
    EXPECT_EQ(client->size_bytes(), 1u << 20);
  }
}

TEST_P(Netblk2HostileTest, WelcomesThatMakeNoSense) {
  using Welcome = proto::Welcome2;
  refuses("size 0", [](Welcome& welcome) { welcome.size_bytes = 0; });
  refuses("size 2^63", [](Welcome& welcome) { welcome.size_bytes = uint64_t{1} << 63; });
  refuses("size 2^64-512", [](Welcome& welcome) { welcome.size_bytes = ~uint64_t{0} - 511; });
  refuses("size not whole blocks", [](Welcome& welcome) { welcome.size_bytes = 513; });
  for (const uint32_t bytes : {0u, 1u, 256u, 513u, 768u, 131072u, 0x80000000u})
    refuses("block size", [bytes](Welcome& welcome) { welcome.block_bytes = bytes; });
  for (const uint32_t bytes : {0u, 512u, 65535u, (32u << 20) + 512u, 0xffffffffu})
    refuses("max payload", [bytes](Welcome& welcome) { welcome.max_payload_bytes = bytes; });
  for (const uint32_t slots : {0u, 1u, 15u, 4097u, 0xffffffffu})
    refuses("slots", [slots](Welcome& welcome) { welcome.slots = slots; });
  for (const uint32_t connections : {0u, 17u, 65535u})
    refuses("connections", [connections](Welcome& welcome) { welcome.max_connections = static_cast<uint16_t>(connections); });
  for (const uint32_t bytes : {0u, 1u, 511u})
    refuses("preferred", [bytes](Welcome& welcome) { welcome.preferred_bytes = bytes; });
  refuses("feature not offered", [](Welcome& welcome) {
    welcome.features = {proto::make_feature(NETBLK2_FEATURE_LZ4)};
  });
  refuses("unknown feature", [](Welcome& welcome) { welcome.features = {{.number = 77, .name = "x"}}; });
  refuses("session id 0", [](Welcome& welcome) { welcome.session_id = {}; });
  refuses("another session", [](Welcome& welcome) { welcome.session_id = id_of(99); });
  refuses("adopted, though nothing was asked for", [](Welcome& welcome) { welcome.flags = NETBLK2_WELCOME_ADOPTED; });
  refuses("new and adopted", [](Welcome& welcome) { welcome.flags |= NETBLK2_WELCOME_ADOPTED; });
}

TEST_P(Netblk2HostileTest, AHeartbeatOutOfItsRange) {
  for (const uint32_t period : {1u, NETBLK2_MIN_HEARTBEAT_MS - 1u, NETBLK2_MAX_HEARTBEAT_MS + 1u}) {
    world_.heartbeat_ms = period;
    world_.forget();
    ScriptedServer2 server({honest(world_)});
    auto options = options2();
    options.heartbeat_ms = 1000;
    EXPECT_EQ(refused2(server, options).code, EPROTO);
  }
}

TEST_P(Netblk2HostileTest, AMandatoryFeatureThatIsNotThere) {
  world_.agreed = {};
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.must_have_crc32c = true;
  EXPECT_EQ(refused2(server, options).code, EOPNOTSUPP);
  options = options2();
  options.lz4 = options.must_have_compression = true;
  world_.forget();
  EXPECT_EQ(refused2(server, options).code, EOPNOTSUPP);
}

TEST_P(Netblk2HostileTest, WelcomesThatAreNone) {
  const auto raw = [&](std::vector<uint8_t> bytes, bool hold, int code) {
    ScriptedServer2 server({[&](Peer2& peer) {
      peer.read_hello();
      peer.send(bytes.data(), bytes.size());
      if (hold) peer.wait_for_end();
    }});
    auto options = options2();
    if (code == ETIMEDOUT) options.welcome_timeout_ms = 100;
    EXPECT_EQ(refused2(server, options).code, code);
  };
  const std::vector<uint8_t> magic = {'N', 'E', 'T', 'B', 'L', 'K', '/', '2'};
  const auto with_length = [&](uint32_t length) {
    auto bytes = magic;
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(length >> shift));
    bytes.resize(200);
    return bytes;
  };
  raw({}, false, EPROTONOSUPPORT);
  raw({0x01}, false, EPROTONOSUPPORT);
  raw({'N', 'B', 'D'}, true, EPROTONOSUPPORT);
  raw({'N', 'E', 'T', 'B', 'L', 'K', '/', '3'}, true, EPROTONOSUPPORT);
  raw({}, true, ETIMEDOUT);
  raw(magic, true, ETIMEDOUT);
  raw(magic, false, ECONNRESET);
  raw(with_length(0), true, EPROTO);
  raw(with_length(95), true, EPROTO);
  raw(with_length(96), true, EPROTO);  // its checksum is wrong
  raw(with_length(65536), true, ETIMEDOUT);
  raw(with_length(65537), true, EPROTO);
  raw(with_length(0xfffffff8), true, EPROTO);
}

TEST_P(Netblk2HostileTest, AWelcomeAByteAtATimeHasADeadline) {
  ScriptedServer2 server({[&](Peer2& peer) {
    const auto hello = peer.read_hello();
    const auto bytes = proto::encode_welcome(world_.welcome(*hello));
    for (const std::byte byte : bytes) {
      if (!peer.send_byte(std::to_integer<uint8_t>(byte))) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }});
  auto options = options2();
  options.welcome_timeout_ms = 200;
  EXPECT_EQ(refused2(server, options).code, ETIMEDOUT);
}

TEST_P(Netblk2HostileTest, AResumedSessionThatBecameAnother) {
  const auto resumed = [&](const char* what, std::function<void(proto::Welcome2&)> spoil) {
    SCOPED_TRACE(what);
    World world(1u << 20);
    std::atomic<bool> gone{false};
    ScriptedServer2 server({after(world, 1, hang_up),
                            [&](Peer2& peer) {
                              const auto hello = peer.read_hello();
                              auto welcome = world.welcome(*hello);
                              spoil(welcome);
                              peer.say(welcome);
                              peer.wait_for_end();
                              gone = true;
                            },
                            honest(world)});
    auto client = open2(server);
    EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
    EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
    until([&] { return gone.load(); });
    EXPECT_FALSE(client->lost());
    EXPECT_TRUE(world.all(0, 512, 2));
  };
  resumed("another id without a word", [](proto::Welcome2& welcome) { welcome.session_id = id_of(99); });
  resumed("new, with the old id", [](proto::Welcome2& welcome) { welcome.flags |= NETBLK2_WELCOME_NEW; });
  resumed("adopted, with another id", [](proto::Welcome2& welcome) {
    welcome.flags |= NETBLK2_WELCOME_ADOPTED;
    welcome.session_id = id_of(99);
  });
  resumed("other blocks", [](proto::Welcome2& welcome) {
    welcome.block_bytes = 4096;
  });
  resumed("fewer slots", [](proto::Welcome2& welcome) { welcome.slots = NETBLK2_MIN_SLOTS; });
}

TEST_P(Netblk2HostileTest, AnEarlyReplyToAWriteWaitsForTheRestOfIt) {
  World world(8u << 20);
  world.max_payload = 4u << 20;
  ScriptedServer2 server({after(world, 0, [&](Peer2& peer) {
    std::byte bytes[NETBLK2_REQUEST_SIZE];
    Asked2 asked;
    ASSERT_TRUE(peer.receive(bytes, sizeof bytes));
    ASSERT_EQ(proto::decode_request(bytes, peer.framing, asked.header), nullptr);
    peer.say(peer.reply_to(asked, NETBLK2_ENOSPC));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    asked.data.resize(asked.header.payload_length);
    ASSERT_TRUE(peer.receive(asked.data.data(), asked.data.size()));
    serve(peer, world);
  })});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4u << 20, 5)), ENOSPC);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(server.connections(), 1u);
}

TEST_P(Netblk2HostileTest, ListsOfExportsThatMakeNoSense) {
  const auto lists = [&](std::string body, uint16_t flags) {
    ScriptedServer2 server({[&](Peer2& peer) {
      peer.read_hello();
      proto::Welcome2 welcome;
      welcome.flags = flags;
      welcome.body = body;
      peer.say(welcome);
    }});
    auto dialer = server.dialer();
    const auto list = ask_list(*backend_, clock_, *dialer, 60'000);
    EXPECT_FALSE(list.ok());
    return list ? 0 : list.error().code;
  };
  EXPECT_EQ(lists("short", 0), EPROTO);
  EXPECT_EQ(lists(std::string(16, '\xff'), 0), EPROTO);
  EXPECT_EQ(lists("", NETBLK2_WELCOME_MORE), EPROTO);
  std::string one;
  proto::append_export(one, {512, 0, "again"});
  EXPECT_EQ(lists(one, NETBLK2_WELCOME_MORE), EPROTO) << "for ever";
}

TEST_P(Netblk2HostileTest, OptionsOutOfTheirRanges) {
  ScriptedServer2 server({honest(world_)});
  const auto invalid = [&](std::function<void(Options2&)> spoil) {
    auto options = options2();
    spoil(options);
    EXPECT_EQ(refused2(server, options).code, EINVAL);
  };
  invalid([](Options2& options) { options.connections = 0; });
  invalid([](Options2& options) { options.connections = 17; });
  invalid([](Options2& options) { options.slots = 15; });
  invalid([](Options2& options) { options.slots = 4097; });
  invalid([](Options2& options) { options.heartbeat_ms = 99; });
  invalid([](Options2& options) { options.heartbeat_ms = 600'001; });
  invalid([](Options2& options) { options.export_name = std::string(4097, 'x'); });
  invalid([](Options2& options) { options.dead_time_ms = 0; });
  invalid([](Options2& options) { options.must_have_compression = true; });
  EXPECT_EQ(server.connections(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Io, Netblk2HostileTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
