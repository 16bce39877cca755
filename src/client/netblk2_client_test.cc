// SPDX-License-Identifier: GPL-2.0-only
// What works: requests, batches, parts, connections, features, goodbye.
#include <gtest/gtest.h>

#include "client/ask2.h"
#include "client/open_auto.h"
#include "client/scripted_server2_test.h"
#include "proto/netblk/compress.h"

namespace netblk::client::testing {
namespace {

using block::Command;

class Netblk2ClientTest : public Client2Test {};

TEST_P(Netblk2ClientTest, ReadsWhatItWrote) {
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(client->size_bytes(), world_.bytes.size());
  EXPECT_EQ(client->state(), State::kConnected);
  EXPECT_EQ(client->generation().uuid, id_of(7));
  auto write = Ask::write(4096, 8192, 0x5a);
  EXPECT_EQ(run_one(*client, write), 0);
  auto read = Ask::read(4096, 8192);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0x5a));
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 4096, 4096)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kWriteZeroes, 8192, 4096)), 0);
  EXPECT_TRUE(world_.all(4096, 12288, 0));
  EXPECT_EQ(client->status().unflushed, 2u);
  client.reset();
  server.settle();
  EXPECT_EQ(world_.goodbyes, 1u);
  EXPECT_EQ(world_.flushes, 1u);
}

TEST_P(Netblk2ClientTest, BlockingCallsOfAThreadWithoutALoop) {
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  std::vector<std::byte> data(4096, std::byte{9});
  EXPECT_TRUE(write(*client, 0, data).ok());
  std::vector<std::byte> back(4096);
  EXPECT_TRUE(read(*client, 0, back).ok());
  EXPECT_EQ(data, back);
  EXPECT_TRUE(flush(*client).ok());
  EXPECT_TRUE(trim(*client, 0, 512).ok());
  EXPECT_TRUE(write_zeroes(*client, 512, 512).ok());
  const auto wrong = read(*client, 1, back);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().code, EINVAL);
}

TEST_P(Netblk2ClientTest, RefusesWhatIsNotWholeBlocksOrOutside) {
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  for (const auto& [at, length] : {std::pair{1, 512}, {512, 1}, {511, 512}, {0, 513}})
    EXPECT_EQ(run_one(*client, Ask::read(static_cast<uint64_t>(at), static_cast<uint64_t>(length))), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(world_.bytes.size(), 512)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::write(world_.bytes.size() - 512, 1024, 1)), EINVAL);
}

TEST_P(Netblk2ClientTest, ManyRequestsInFlightOnSeveralConnections) {
  for (const unsigned connections : {1u, 2u, 4u, 16u}) {
    World world(1u << 20);
    world.max_connections = 16;
    ScriptedServer2 server({honest(world)});
    auto options = options2();
    options.connections = connections;
    auto client = open2(server, options);
    until([&] { return client->status().connections == connections; });
    Asks writes;
    for (uint64_t i = 0; i < 500; ++i)
      writes.push_back(Ask::write(i % 256 * 4096, 4096, static_cast<uint8_t>(i % 256)));
    run(*client, writes);
    Asks reads;
    for (uint64_t i = 0; i < 256; ++i) reads.push_back(Ask::read(i * 4096, 4096));
    run(*client, reads);
    for (size_t i = 0; i < writes.size(); ++i) EXPECT_EQ(writes[i]->error, 0);
    for (size_t i = 0; i < reads.size(); ++i) EXPECT_EQ(reads[i]->error, 0);
    client.reset();
    server.settle();
    std::set<uint16_t> indexes;
    for (const auto& hello : world.hellos) indexes.insert(hello.connection);
    EXPECT_EQ(indexes.size(), connections);
  }
}

TEST_P(Netblk2ClientTest, TheServerGrantsFewerConnectionsAndSlots) {
  world_.max_connections = 2;
  world_.slots = NETBLK2_MIN_SLOTS;
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.connections = 8;
  auto client = open2(server, options);
  until([&] { return client->status().connections == 2; });
  Asks all;
  for (uint64_t i = 0; i < 200; ++i) all.push_back(Ask::read(i * 512, 512));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, 0);
  EXPECT_EQ(client->info().slots, NETBLK2_MIN_SLOTS);
  client.reset();
  server.settle();
  for (const auto& hello : world_.hellos) EXPECT_LT(hello.connection, 2);
}

TEST_P(Netblk2ClientTest, LongRequestsAreSplitAndEndOnce) {
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  auto write = Ask::write(0, world_.bytes.size(), 0x11);
  write->fua = true;
  Asks one = asks(std::move(write));
  run(*client, one);
  EXPECT_EQ(one[0]->error, 0);
  EXPECT_TRUE(world_.all(0, world_.bytes.size(), 0x11));
  auto read = Ask::read(512, world_.bytes.size() - 512);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0x11));
  const std::lock_guard lock(world_.mutex);
  EXPECT_EQ(world_.applied.size(), world_.bytes.size() / kPayload);
  for (const auto& part : world_.applied) EXPECT_EQ(part.header.flags, NETBLK2_FUA);
}

TEST_P(Netblk2ClientTest, ASplitRequestEndsWithItsFirstError) {
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    for (int i = 0;; ++i) {
      const auto asked = peer.request();
      if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
      peer.say(peer.reply_to(*asked, i == 3 ? NETBLK2_ENOSPC : i > 3 ? NETBLK2_EIO : NETBLK2_OK));
    }
  }});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, world_.bytes.size(), 1)), ENOSPC);
}

TEST_P(Netblk2ClientTest, RepliesInAnyOrder) {
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    std::vector<Asked2> held;
    for (;;) {
      const auto asked = peer.request();
      if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
      held.push_back(*asked);
      if (held.size() < 32) continue;
      for (; !held.empty(); held.pop_back()) {
        std::vector<std::byte> data(held.back().header.length, std::byte(held.back().header.offset / 512));
        peer.say(peer.reply_to(held.back()), data);
      }
    }
  }});
  auto client = open2(server);
  Asks all;
  for (uint64_t i = 0; i < 32; ++i) all.push_back(Ask::read(i * 512, 512));
  run(*client, all);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(all[i]->error == 0 && all[i]->all(static_cast<uint8_t>(i)));
}

TEST_P(Netblk2ClientTest, PreciseErrors) {
  const uint32_t statuses[] = {NETBLK2_EIO, NETBLK2_ENOSPC, NETBLK2_EROFS, NETBLK2_EINVAL, NETBLK2_ENOMEM, 9999};
  const int errors[] = {EIO, ENOSPC, EROFS, EINVAL, ENOMEM, EIO};
  ScriptedServer2 server({[&](Peer2& peer) {
    if (!greet(peer, world_)) return;
    for (const uint32_t status : statuses) {
      const auto asked = peer.request();
      if (!asked) return;
      peer.say(peer.reply_to(*asked, status));
    }
    serve(peer, world_);
  }});
  auto client = open2(server);
  for (const int error : errors) EXPECT_EQ(run_one(*client, Ask::read(0, 512)), error);
}

TEST_P(Netblk2ClientTest, WithoutChecksums) {
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.crc32c = false;
  auto client = open2(server, options);
  EXPECT_FALSE(client->info().crc32c);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 3)), 0);
  auto read = Ask::read(0, 65536);
  EXPECT_EQ(run_one(*client, read), 0);
}

TEST_P(Netblk2ClientTest, ChecksumsAreInForceByDefault) {
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  EXPECT_TRUE(client->info().crc32c);
  EXPECT_FALSE(client->info().lz4);
  EXPECT_FALSE(client->info().zstd);
}

TEST_P(Netblk2ClientTest, CompressesOnlyWhereItWins) {
  for (const bool lz4 : {true, false}) {
    World world(1u << 20);
    world.agreed = {NETBLK2_FEATURE_CRC32C, NETBLK2_FEATURE_LZ4, NETBLK2_FEATURE_ZSTD};
    proto::Compressor compressor;
    std::mutex mutex;
    std::vector<std::pair<uint8_t, uint32_t>> seen;
    ScriptedServer2 server({[&](Peer2& peer) {
      if (!greet(peer, world)) return;
      for (;;) {
        auto asked = peer.request();
        if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
        const uint8_t flag = asked->header.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD);
        std::vector<std::byte> plain(asked->header.length);
        if (asked->header.type == NETBLK2_WRITE) {
          const std::lock_guard lock(mutex);
          seen.emplace_back(flag, asked->header.payload_length);
          if (flag != 0) {
            EXPECT_TRUE(compressor.decompress(flag, asked->data, plain));
            asked->data = plain;
          }
        }
        std::vector<std::byte> out;
        const auto status = world.apply(*asked, out);
        auto reply = peer.reply_to(*asked, *status);
        std::vector<std::byte> packed(out.size());
        const uint8_t with = lz4 ? NETBLK2_LZ4 : NETBLK2_ZSTD;
        const size_t size = out.empty() ? 0 : compressor.compress(with, out, std::span(packed).first(out.size() - 1));
        if (size > 0) {
          packed.resize(size);
          reply.flags = with;
          peer.say(reply, packed);
        } else {
          peer.say(reply, out);
        }
      }
    }});
    auto options = options2();
    options.lz4 = lz4;
    options.zstd = !lz4;
    auto client = open2(server, options);
    EXPECT_EQ(run_one(*client, Ask::write(0, 16384, 0x41)), 0);
    auto noise = Ask::write(16384, 16384, 0);
    uint64_t state = 1;
    for (auto& byte : noise->memory) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = std::byte(state >> 56);
    }
    const auto sent = noise->memory;
    EXPECT_EQ(run_one(*client, noise), 0);
    auto read = Ask::read(0, 32768);
    EXPECT_EQ(run_one(*client, read), 0);
    EXPECT_TRUE(std::all_of(read->memory.begin(), read->memory.begin() + 16384,
                            [](std::byte byte) { return byte == std::byte{0x41}; }));
    EXPECT_TRUE(std::equal(sent.begin(), sent.end(), read->memory.begin() + 16384));
    client.reset();
    server.settle();
    ASSERT_EQ(seen.size(), 2u);
    EXPECT_EQ(seen[0].first, lz4 ? NETBLK2_LZ4 : NETBLK2_ZSTD);
    EXPECT_LT(seen[0].second, 1024u);
    EXPECT_EQ(seen[1], (std::pair<uint8_t, uint32_t>{0, 16384}));
  }
}

TEST_P(Netblk2ClientTest, HeartbeatsGoBothWays) {
  // On a machine that stands still for three periods the other end is gone, and rightly: another look.
  for (int look = 0;; ++look) {
    std::atomic<size_t> beats{0};
    ScriptedServer2 server({[&](Peer2& peer) {
      if (!greet(peer, world_)) return;
      std::byte bytes[NETBLK2_REQUEST_SIZE];
      while (peer.receive(bytes, sizeof bytes)) {
        proto::Request2 request;
        ASSERT_EQ(proto::decode_request(bytes, peer.framing, request), nullptr);
        if (request.type != NETBLK2_HEARTBEAT) return;
        ++beats;
        peer.say({.type = NETBLK2_HEARTBEAT});
      }
    }});
    auto options = options2();
    options.heartbeat_ms = 5 * NETBLK2_MIN_HEARTBEAT_MS;
    auto client = open2(server, options);
    until([&] { return beats >= 4 || client->status().reconnects > 0; });
    if (client->status().reconnects == 0) {
      EXPECT_EQ(server.connections(), 1u);
      return;
    }
    ASSERT_LT(look, 20) << "the connection never outlives four heartbeats";
  }
}

TEST_P(Netblk2ClientTest, ASilentServerIsGoneAfterThreePeriods) {
  ScriptedServer2 server({after(world_, 0, [](Peer2& peer) { peer.wait_for_end(); }), honest(world_)});
  auto options = options2();
  options.heartbeat_ms = NETBLK2_MIN_HEARTBEAT_MS;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_GE(client->status().reconnects, 1u);
}

TEST_P(Netblk2ClientTest, TheSizeChanges) {
  std::atomic<uint64_t> told{0};
  ScriptedServer2 server({after(world_, 1, [&](Peer2& peer) {
    peer.say({.type = NETBLK2_RESIZE, .cookie = 2u << 20});
    {
      const std::lock_guard lock(world_.mutex);
      world_.bytes.resize(2u << 20);
    }
    serve(peer, world_);
  })});
  auto options = options2();
  options.on_resize = [&](uint64_t size) { told = size; };
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::read(1u << 20, 512)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  until([&] { return told == 2u << 20; });
  EXPECT_EQ(client->size_bytes(), 2u << 20);
  EXPECT_EQ(client->info().size_bytes, 2u << 20);
  EXPECT_EQ(run_one(*client, Ask::read(1u << 20, 512)), 0);
}

TEST_P(Netblk2ClientTest, AReadOnlySession) {
  world_.flags = NETBLK2_WELCOME_READ_ONLY;
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.read_only = true;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), EROFS);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 0, 512)), EROFS);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  client.reset();
  server.settle();
  EXPECT_EQ(world_.hellos.at(0).flags & NETBLK2_HELLO_WRITE, 0);
}

TEST_P(Netblk2ClientTest, TheHelloSaysWhatWasAsked) {
  ScriptedServer2 server({honest(world_)});
  auto options = options2();
  options.shared = options.takeover = true;
  options.export_name = "disk";
  options.slots = 100;
  open2(server, options).reset();
  server.settle();
  const auto& hello = world_.hellos.at(0);
  EXPECT_EQ(hello.flags,
            NETBLK2_HELLO_WRITE | NETBLK2_HELLO_SHARED | NETBLK2_HELLO_TAKEOVER | NETBLK2_HELLO_BEGIN);
  EXPECT_EQ(hello.export_name, "disk");
  EXPECT_EQ(hello.slots, 100u);
  EXPECT_EQ(hello.client_id, id_of(0xc1));
  EXPECT_FALSE(hello.session_id.is_zero());
}

TEST_P(Netblk2ClientTest, OnTheCallersLoop) {
  ScriptedServer2 server({honest(world_)});
  auto loop = backend_->make_loop(clock_);
  auto dialer = server.dialer();
  struct Go {
    static coro::Task<void> go(io::Loop& on, io::Dialer& with, Options2 options) {
      auto opened = co_await Netblk2Client::open_on(on, with, options);
      EXPECT_TRUE(opened.ok());
      auto client = std::move(opened).value();
      auto ask = Ask::write(0, 4096, 7);
      ask->loop = &on;
      client->submit(*ask);
      while (!ask->ended) co_await ask->done.wait();
      EXPECT_EQ(ask->error, 0);
      co_await client->close();
    }
  };
  loop.value()->run(Go::go(*loop.value(), *dialer, options2()));
  EXPECT_TRUE(world_.all(0, 4096, 7));
  EXPECT_EQ(world_.goodbyes, 1u);
}

TEST_P(Netblk2ClientTest, DroppedWithoutAGoodbye) {
  ScriptedServer2 server({after(world_, 0, [](Peer2& peer) { peer.wait_for_end(); })});
  auto loop = backend_->make_loop(clock_);
  auto dialer = server.dialer();
  struct Go {
    static coro::Task<void> go(io::Loop& on, io::Dialer& with, Options2 options) {
      auto opened = co_await Netblk2Client::open_on(on, with, options);
      EXPECT_TRUE(opened.ok());
      auto client = std::move(opened).value();
      auto ask = Ask::write(0, 4096, 7);
      ask->loop = &on;
      client->submit(*ask);
      co_await client->drop();
      EXPECT_TRUE(ask->ended);
      EXPECT_EQ(ask->error, EIO);
    }
  };
  loop.value()->run(Go::go(*loop.value(), *dialer, options2()));
  EXPECT_EQ(world_.goodbyes, 0u);
}

TEST_P(Netblk2ClientTest, ClosingIsBoundedThoughNothingIsAnswered) {
  ScriptedServer2 server({after(world_, 0, [](Peer2& peer) { peer.wait_for_end(); })});
  auto loop = backend_->make_loop(clock_);
  auto dialer = server.dialer();
  struct Go {
    static coro::Task<void> go(io::Loop& on, io::Dialer& with, Options2 options) {
      options.close_timeout_ms = 50;
      auto opened = co_await Netblk2Client::open_on(on, with, options);
      EXPECT_TRUE(opened.ok());
      auto client = std::move(opened).value();
      auto ask = Ask::read(0, 512);
      ask->loop = &on;
      client->submit(*ask);
      co_await client->close();
      EXPECT_TRUE(ask->ended);
      EXPECT_EQ(ask->error, EIO);
      client->submit(*ask);
      EXPECT_EQ(ask->error, EIO) << "a closed client takes nothing";
    }
  };
  loop.value()->run(Go::go(*loop.value(), *dialer, options2()));
}

TEST_P(Netblk2ClientTest, AnAbandonedRequestIsNotSent) {
  std::atomic<bool> gone{true};
  ScriptedServer2 server({honest(world_)});
  auto client = open2(server);
  auto ask = Ask::write(0, 512, 1);
  ask->abandoned = &gone;
  EXPECT_EQ(run_one(*client, ask), ECANCELED);
  client.reset();
  server.settle();
  EXPECT_TRUE(world_.applied.empty());
}

TEST_P(Netblk2ClientTest, AsksWithoutASession) {
  ScriptedServer2 server({[](Peer2& peer) {
                            const auto hello = peer.read_hello();
                            EXPECT_EQ(hello->flags, NETBLK2_HELLO_INFO);
                            EXPECT_EQ(hello->export_name, "x");
                            proto::Welcome2 welcome;
                            welcome.size_bytes = 4096;
                            welcome.store_uuid = id_of(3);
                            peer.say(welcome);
                          },
                          [](Peer2& peer) {
                            const auto hello = peer.read_hello();
                            EXPECT_EQ(hello->flags, NETBLK2_HELLO_LIST);
                            proto::Welcome2 welcome;
                            welcome.flags = NETBLK2_WELCOME_MORE;
                            proto::append_export(welcome.body, {512, NETBLK2_WELCOME_READ_ONLY, "one"});
                            peer.say(welcome);
                          },
                          [](Peer2& peer) {
                            EXPECT_EQ(peer.read_hello()->list_from, 1u);
                            proto::Welcome2 welcome;
                            proto::append_export(welcome.body, {1024, 0, "two"});
                            peer.say(welcome);
                          },
                          [](Peer2& peer) {
                            peer.read_hello();
                            peer.say(refusing(NETBLK2_ENOENT, "no such export"));
                          },
                          [](Peer2& peer) { peer.wait_for_end(); }});
  auto dialer = server.dialer();
  const auto info = ask_info(*backend_, clock_, *dialer, "x", 2'000);
  ASSERT_TRUE(info.ok()) << info.error().message;
  EXPECT_EQ(info.value().size_bytes, 4096u);
  EXPECT_EQ(info.value().generation.uuid, id_of(3));
  const auto list = ask_list(*backend_, clock_, *dialer, 2'000);
  ASSERT_TRUE(list.ok()) << list.error().message;
  ASSERT_EQ(list.value().size(), 2u);
  EXPECT_EQ(list.value()[0].name, "one");
  EXPECT_TRUE(list.value()[0].read_only);
  EXPECT_EQ(list.value()[1].size_bytes, 1024u);
  EXPECT_EQ(ask_info(*backend_, clock_, *dialer, "y", 2'000).error().code, ENOENT);
  EXPECT_EQ(ask_info(*backend_, clock_, *dialer, "z", 50).error().code, ETIMEDOUT);
}

TEST_P(Netblk2ClientTest, AutoTakesNetblk2) {
  ScriptedServer2 server({honest(world_)});
  auto opened = open_auto(*backend_, clock_, server.dialer(), options2(), server.plain().connector(), options());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  ASSERT_NE(opened.value().netblk2, nullptr);
  EXPECT_EQ(run_one(opened.value().device(), Ask::read(0, 512)), 0);
}

TEST_P(Netblk2ClientTest, AutoFallsBackToNetblk1) {
  const auto silent = [](Peer2& peer) { peer.wait_for_end(); };
  const auto says_error = [](Peer2& peer) {
    peer.send_byte(kError);
    peer.wait_for_end();
  };
  for (const Script2& old : {Script2(hang_up), Script2(silent), Script2(says_error)}) {
    Disk disk(kDiskBytes);
    ScriptedServer2 server({old, [&](Peer2& peer) { testing::serve(static_cast<Peer&>(peer), disk); }});
    auto opened = open_auto(*backend_, clock_, server.dialer(), options2(), server.plain().connector(), options());
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    ASSERT_NE(opened.value().netblk1, nullptr);
    EXPECT_EQ(run_one(opened.value().device(), Ask::write(0, 512, 4)), 0);
    EXPECT_TRUE(disk.all(0, 512, 4));
  }
}

TEST_P(Netblk2ClientTest, AutoNeedsASizeForNetblk1) {
  ScriptedServer2 server({hang_up});
  auto with = options();
  with.size_bytes = 0;
  const auto opened = open_auto(*backend_, clock_, server.dialer(), options2(), server.plain().connector(), with);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, EINVAL);
}

// A server that is stopped for a moment, say. netblk/1 would be of no use, or another disk.
TEST_P(Netblk2ClientTest, AutoDoesNotTakeSilenceForNetblk1WhereThatWouldNotDo) {
  const auto slow = [&](Peer2& peer) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1'300));
    if (greet(peer, world_)) serve(peer, world_);
  };
  auto named = options2();
  named.export_name = "disk";
  auto without_size = options();
  without_size.size_bytes = 0;
  for (const auto& [netblk2, netblk1] : {std::pair(named, options()), std::pair(options2(), without_size)}) {
    ScriptedServer2 server({slow});
    auto opened = open_auto(*backend_, clock_, server.dialer(), netblk2, server.plain().connector(), netblk1);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_NE(opened.value().netblk2, nullptr);
  }
}

TEST_P(Netblk2ClientTest, AutoDoesNotTakeTheFirstExportForANamedOne) {
  ScriptedServer2 server({hang_up});
  auto named = options2();
  named.export_name = "disk";
  const auto opened = open_auto(*backend_, clock_, server.dialer(), named, server.plain().connector(), options());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ECONNRESET);
  EXPECT_NE(opened.error().message.find("leave \"/disk\" out"), std::string::npos) << opened.error().message;
  EXPECT_EQ(server.connections(), 1u);
}

TEST_P(Netblk2ClientTest, AutoNeverFallsBackOnceItWasNetblk2) {
  ScriptedServer2 server({after(world_, 1, hang_up), hang_up, hang_up, honest(world_)});
  auto opened = open_auto(*backend_, clock_, server.dialer(), options2(), server.plain().connector(), options());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_EQ(run_one(opened.value().device(), Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(opened.value().device(), Ask::read(0, 512)), 0);
  EXPECT_GE(server.connections(), 4u);
}

TEST_P(Netblk2ClientTest, AutoDoesNotFallBackUponARefusal) {
  ScriptedServer2 server({[](Peer2& peer) {
    peer.read_hello();
    peer.say(refusing(NETBLK2_EBUSY, "client 12 writes"));
  }});
  const auto opened = open_auto(*backend_, clock_, server.dialer(), options2(), server.plain().connector(), options());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, EBUSY);
  EXPECT_EQ(server.connections(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Io, Netblk2ClientTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
