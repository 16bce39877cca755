// SPDX-License-Identifier: GPL-2.0-only
// The session rules: resume, replay, fence, adoption, generation and loss, deadlines, giving up.
#include <gtest/gtest.h>

#include "client/scripted_server2_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;

class Netblk2SessionTest : public Client2Test {
 protected:
  // Carries the next request out and hangs up instead of answering.
  Script2 applies_and_hangs_up(int count = 1) {
    return [this, count](Peer2& peer) {
      for (int i = 0; i < count; ++i) {
        const auto asked = peer.request();
        std::vector<std::byte> out;
        if (asked) world_.apply(*asked, out);
      }
    };
  }
  Script2 moves_generation() {
    return [this](Peer2&) { world_.move_generation(); };
  }
};

TEST_P(Netblk2SessionTest, ResumesWithAHigherEpochAndReplaysOnce) {
  ScriptedServer2 server({after(world_, 0, applies_and_hangs_up(8)), honest(world_)});
  auto client = open2(server);
  Asks writes;
  for (uint64_t i = 0; i < 32; ++i) writes.push_back(Ask::write(i * 4096, 4096, static_cast<uint8_t>(i + 1)));
  run(*client, writes);
  for (size_t i = 0; i < writes.size(); ++i) {
    EXPECT_EQ(writes[i]->error, 0);
    EXPECT_TRUE(world_.all(i * 4096, (i + 1) * 4096, static_cast<uint8_t>(i + 1)));
  }
  EXPECT_GT(client->status().replayed, 0u);
  client.reset();
  server.settle();
  EXPECT_EQ(world_.applied.size(), 32u) << "each write took effect once";
  EXPECT_EQ(world_.repeats, 8u);
  ASSERT_GE(world_.hellos.size(), 2u);
  EXPECT_EQ(world_.hellos[1].session_id, world_.hellos[0].session_id);
  EXPECT_EQ(world_.hellos[1].connection, 0);
  EXPECT_GT(world_.hellos[1].epoch, world_.hellos[0].epoch);
  EXPECT_EQ(world_.hellos[1].store_uuid, id_of(7));
  EXPECT_EQ(world_.hellos[1].generation, 1u);
}

TEST_P(Netblk2SessionTest, ALostConnectionIsResumedWhileTheOthersServe) {
  std::atomic<int> number{0};
  ScriptedServer2 server({[&](Peer2& peer) {
    const auto hello = peer.read_hello();
    if (!hello || !peer.say(world_.welcome(*hello))) return;
    if (hello->connection == 1 && number++ < 5) {
      serve(peer, world_, 3);
      return applies_and_hangs_up()(peer);
    }
    serve(peer, world_);
  }});
  auto options = options2();
  options.connections = 3;
  auto client = open2(server, options);
  until([&] { return client->status().connections == 3; });
  for (int round = 0; round < 20; ++round) {
    Asks all;
    for (uint64_t i = 0; i < 100; ++i) all.push_back(Ask::write(i * 4096, 4096, static_cast<uint8_t>(round)));
    run(*client, all);
    for (const auto& ask : all) EXPECT_EQ(ask->error, 0);
    EXPECT_TRUE(world_.all(0, 100 * 4096, static_cast<uint8_t>(round)));
  }
  client.reset();
  server.settle();
  EXPECT_EQ(world_.applied.size(), 2000u);
}

TEST_P(Netblk2SessionTest, ReadsOfAResumedSessionRideAlongWithTheHello) {
  std::atomic<bool> rode{false};
  ScriptedServer2 server({after(world_, 0, [](Peer2& peer) { peer.request(); }),
                          [&](Peer2& peer) {
                            const auto hello = peer.read_hello();
                            const auto asked = peer.request();  // before the welcome
                            ASSERT_TRUE(asked.has_value());
                            EXPECT_EQ(asked->header.type, NETBLK2_READ);
                            EXPECT_LT(asked->header.slot, NETBLK2_MIN_SLOTS);
                            EXPECT_LE(asked->header.length, NETBLK2_MIN_MAX_PAYLOAD);
                            rode = true;
                            peer.say(world_.welcome(*hello));
                            std::vector<std::byte> out;
                            peer.say(peer.reply_to(*asked, *world_.apply(*asked, out)), out);
                            serve(peer, world_);
                          }});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::read(0, 4096)), 0);
  EXPECT_TRUE(rode);
}

TEST_P(Netblk2SessionTest, WritesNeverRideAlong) {
  ScriptedServer2 server({after(world_, 0, [](Peer2& peer) { peer.request(); }),
                          [&](Peer2& peer) {
                            const auto hello = peer.read_hello();
                            EXPECT_FALSE(peer.something_to_read(50));
                            peer.say(world_.welcome(*hello));
                            serve(peer, world_);
                          }});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
}

TEST_P(Netblk2SessionTest, ARestartedServerAdoptsTheSession) {
  ScriptedServer2 server({after(world_, 1, [&](Peer2& peer) {
                            peer.request();
                            world_.forget();
                          }),
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 2)), 0);
  EXPECT_TRUE(world_.all(0, 4096, 2));
  EXPECT_FALSE(client->lost());
  EXPECT_EQ(client->status().unflushed, 2u);
  EXPECT_EQ(client->info().session_id, world_.see([&] { return world_.hellos[0].session_id; }));
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(client->status().unflushed, 0u);
}

TEST_P(Netblk2SessionTest, ANewGenerationWithNothingUnflushedIsNoLoss) {
  ScriptedServer2 server({after(world_, 2, [&](Peer2& peer) {
                            peer.request();
                            world_.move_generation();
                          }),
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 2)), 0);
  EXPECT_TRUE(world_.all(0, 4096, 2));
  EXPECT_FALSE(client->lost());
  EXPECT_EQ(client->generation().counter, 2u);
  EXPECT_EQ(client->info().session_id, world_.see([&] { return world_.hellos[0].session_id; }));
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
}

TEST_P(Netblk2SessionTest, WhatAnEarlierProcessDidNotFlushIsLostWithTheGeneration) {
  ScriptedServer2 server({after(world_, 1, moves_generation()), honest(world_)});
  auto options = options2();
  options.unflushed = 1;
  auto client = open2(server, options);
  EXPECT_EQ(client->status().unflushed, 1u);
  EXPECT_FALSE(client->lost());
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  until([&] { return client->generation().counter == 2; });
  EXPECT_TRUE(client->lost());
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
}

TEST_P(Netblk2SessionTest, AFlushCoversWhatAnEarlierProcessWasToldOf) {
  ScriptedServer2 server({after(world_, 1, moves_generation()), honest(world_)});
  auto options = options2();
  options.unflushed = 1;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(client->status().unflushed, 0u);
  until([&] { return client->generation().counter == 2; });
  EXPECT_FALSE(client->lost());
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
}

TEST_P(Netblk2SessionTest, FuaAloneIsNoLoss) {
  ScriptedServer2 server({after(world_, 1, moves_generation()), honest(world_)});
  auto client = open2(server);
  auto write = Ask::write(0, 4096, 1);
  write->fua = true;
  Asks one = asks(std::move(write));
  run(*client, one);
  EXPECT_EQ(one[0]->error, 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_FALSE(client->lost());
}

TEST_P(Netblk2SessionTest, ALossFailsEveryFlushAndFuaUntilItIsAcknowledged) {
  std::atomic<int> told{0};
  ScriptedServer2 server({after(world_, 1, moves_generation()), after(world_, 2, moves_generation()), honest(world_)});
  auto options = options2();
  options.on_lost = [&](const std::string&) { ++told; };
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_TRUE(client->lost());
  EXPECT_EQ(told, 1);
  EXPECT_FALSE(client->status().lost_reason.empty());
  const auto fua = [&](Command command) {
    auto ask = std::make_unique<Ask>(command, 0, 512);
    ask->fua = true;
    Asks one = asks(std::move(ask));
    run(*client, one);
    return one[0]->error;
  };
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
  EXPECT_EQ(fua(Command::kWrite), EIO);
  EXPECT_EQ(fua(Command::kTrim), EIO);
  EXPECT_EQ(fua(Command::kWriteZeroes), EIO);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 2)), 0) << "plain writes go on";
  // The write after the loss is lost in turn: acknowledging the first loss does not cover it.
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(told, 2);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
  client->reset_lost();
  EXPECT_FALSE(client->lost());
  EXPECT_TRUE(client->status().lost_reason.empty());
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(fua(Command::kWrite), 0);
}

TEST_P(Netblk2SessionTest, WhatWasWrittenAfterALossIsCountedThoughItIsAcknowledgedLater) {
  std::atomic<bool> acknowledged{false};
  ScriptedServer2 server({after(world_, 1, moves_generation()),
                          [&](Peer2& peer) {
                            if (!greet(peer, world_) || !serve(peer, world_, 2)) return;
                            until([&] { return acknowledged.load(); });
                            world_.move_generation();
                          },
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_TRUE(client->lost());
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 2)), 0);
  client->reset_lost();
  acknowledged = true;
  until([&] { return client->generation().counter == 3; });
  EXPECT_TRUE(client->lost()) << "the second write was never flushed";
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
}

TEST_P(Netblk2SessionTest, AFlushInFlightEndsWithEioUponALoss) {
  ScriptedServer2 server({after(world_, 1, [&](Peer2& peer) {
                            const auto asked = peer.request();
                            EXPECT_EQ(asked->header.type, NETBLK2_FLUSH);
                            world_.move_generation();
                          }),
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
  EXPECT_TRUE(client->lost());
  client.reset();
  server.settle();
  EXPECT_EQ(world_.flushes, 0u);
}

TEST_P(Netblk2SessionTest, AFlushCoversOnlyWhatWasAcknowledgedBeforeIt) {
  // The server answers a write after it has read the flush, and the flush after that.
  ScriptedServer2 server({after(world_, 0, [&](Peer2& peer) {
                            std::vector<Asked2> two;
                            for (int i = 0; i < 2; ++i) two.push_back(*peer.request());
                            if (two[0].header.type == NETBLK2_FLUSH) std::swap(two[0], two[1]);
                            EXPECT_EQ(two[1].header.type, NETBLK2_FLUSH);
                            std::vector<std::byte> out;
                            for (const Asked2& asked : two) peer.say(peer.reply_to(asked, *world_.apply(asked, out)));
                            serve(peer, world_);
                          })});
  auto client = open2(server);
  run(*client, asks(Ask::write(0, 512, 1), Ask::of(Command::kFlush)));
  EXPECT_EQ(client->status().unflushed, 1u);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), 0);
  EXPECT_EQ(client->status().unflushed, 0u);
}

TEST_P(Netblk2SessionTest, AFailedFlushCoversNothing) {
  ScriptedServer2 server({after(world_, 1, [&](Peer2& peer) {
    const auto asked = peer.request();
    peer.say(peer.reply_to(*asked, NETBLK2_EIO));
    serve(peer, world_);
  })});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
  EXPECT_EQ(client->status().unflushed, 1u);
}

TEST_P(Netblk2SessionTest, AGenerationSeenOnOneConnectionResetsTheOthers) {
  std::atomic<int> zero{0};
  std::atomic<bool> reset_seen{false};
  ScriptedServer2 server({[&](Peer2& peer) {
    const auto hello = peer.read_hello();
    if (!hello || !peer.say(world_.welcome(*hello))) return;
    if (hello->connection == 0 && zero++ == 0) {
      // Holds its requests, as an acknowledgement from the time before would be held.
      while (peer.request()) {
      }
      reset_seen = true;
      return;
    }
    if (hello->connection == 1 && zero == 1 && world_.see([&] { return world_.generation; }) == 1) {
      peer.something_to_read(200);
      world_.move_generation();
      return;
    }
    serve(peer, world_);
  }});
  auto options = options2();
  options.connections = 2;
  auto client = open2(server, options);
  until([&] { return client->status().connections == 2; });
  until([&] { return client->generation().counter == 2; });
  until([&] { return reset_seen.load(); });
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_FALSE(client->lost());
}

TEST_P(Netblk2SessionTest, AnotherStoreIsRefused) {
  ScriptedServer2 server({after(world_, 1, [&](Peer2& peer) {
                            peer.request();
                            const std::lock_guard lock(world_.mutex);
                            world_.uuid = id_of(8);
                            world_.session = {};
                          }),
                          honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  client.reset();
  server.settle();
  EXPECT_TRUE(world_.all(0, 512, 1)) << "nothing went to the other store";
}

TEST_P(Netblk2SessionTest, AServerThatWelcomesWithAnotherStoreIsRefused) {
  ScriptedServer2 server({after(world_, 1, hang_up), [&](Peer2& peer) {
                            const auto hello = peer.read_hello();
                            if (!hello) return;
                            auto welcome = world_.welcome(*hello);
                            welcome.store_uuid = id_of(8);
                            peer.say(welcome);
                            EXPECT_FALSE(peer.request().has_value()) << "no request goes to another store";
                          }});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_NE(client->status().last_error.find("another store"), std::string::npos);
}

TEST_P(Netblk2SessionTest, WhatWasGivenUpIsSettledBeforeAnythingElseIsSent) {
  std::optional<Asked2> given_up;
  std::vector<uint8_t> types;
  ScriptedServer2 server({after(world_, 0, [&](Peer2& peer) {
                            const auto asked = peer.request();
                            world_.see([&] { given_up = asked; });
                          }), [&](Peer2& peer) {
                            if (!greet(peer, world_)) return;
                            for (;;) {
                              const auto asked = peer.request();
                              if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
                              types.push_back(asked->header.type);
                              if (types.size() == 1) {
                                const auto lost = world_.see([&] { return given_up->header; });
                                EXPECT_EQ(asked->header.slot, lost.slot);
                                EXPECT_EQ(asked->header.sequence, lost.sequence);
                              }
                              std::vector<std::byte> out;
                              peer.say(peer.reply_to(*asked, *world_.apply(*asked, out)), out);
                            }
                          }});
  auto options = options2();
  options.dead_time_ms = 100;
  auto client = open2(server, options);
  server.plain().refusing = true;
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), EIO);
  server.plain().refusing = false;
  until([&] { return client->state() == State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
  client.reset();
  server.settle();
  EXPECT_EQ(types, (std::vector<uint8_t>{NETBLK2_NOP, NETBLK2_WRITE}));
  EXPECT_EQ(world_.applied.size(), 1u);
}

TEST_P(Netblk2SessionTest, AFencedClientStopsForGood) {
  std::atomic<size_t> greeted{0};
  ScriptedServer2 server({after(world_, 1, hang_up), [&](Peer2& peer) {
                            peer.read_hello();
                            ++greeted;
                            peer.say(refusing(NETBLK2_ESTALE, "taken over"));
                          }});
  auto options = options2();
  options.takeover = true;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_NE(client->status().last_error.find("taken over"), std::string::npos);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(greeted, 1u);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kFlush)), EIO);
}

TEST_P(Netblk2SessionTest, OnlyTheFirstHelloTakesOver) {
  ScriptedServer2 server({after(world_, 1, hang_up), honest(world_)});
  auto options = options2();
  options.takeover = true;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  client.reset();
  server.settle();
  ASSERT_GE(world_.hellos.size(), 2u);
  EXPECT_NE(world_.hellos[0].flags & NETBLK2_HELLO_TAKEOVER, 0);
  EXPECT_EQ(world_.hellos[1].flags & NETBLK2_HELLO_TAKEOVER, 0);
}

TEST_P(Netblk2SessionTest, ARefusedFirstHelloIsAClearError) {
  const uint32_t statuses[] = {NETBLK2_EPERM,      NETBLK2_ENOENT,    NETBLK2_EBUSY,
                               NETBLK2_EOPNOTSUPP, NETBLK2_ESHUTDOWN, NETBLK2_EPROTO};
  for (const uint32_t status : statuses) {
    ScriptedServer2 server({[status](Peer2& peer) {
      peer.read_hello();
      peer.say(refusing(status, "because of this"));
    }});
    const Error error = refused2(server, options2());
    EXPECT_EQ(error.code, static_cast<int>(status));
    EXPECT_NE(error.message.find("because of this"), std::string::npos);
    EXPECT_EQ(server.connections(), 1u);
  }
}

TEST_P(Netblk2SessionTest, AFenceUnderWayIsWaitedFor) {
  const auto again = [](Peer2& peer) {
    peer.read_hello();
    peer.say(refusing(NETBLK2_EAGAIN, "a fence is under way"));
  };
  ScriptedServer2 server({again, again, after(world_, 1, hang_up), again, again, honest(world_)});
  auto client = open2(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
  EXPECT_EQ(server.connections(), 6u);
}

TEST_P(Netblk2SessionTest, AFenceThatNeverEndsFailsTheOpening) {
  ScriptedServer2 server({[](Peer2& peer) {
    peer.read_hello();
    peer.say(refusing(NETBLK2_EAGAIN, "a fence is under way"));
  }});
  auto options = options2();
  options.open_timeout_ms = 500;
  EXPECT_EQ(refused2(server, options).code, EAGAIN);
  EXPECT_GT(server.connections(), 1u);
}

TEST_P(Netblk2SessionTest, NoServerForTheDeadTimeEndsEveryRequest) {
  ScriptedServer2 server({after(world_, 1, hang_up), honest(world_)});
  auto options = options2();
  options.dead_time_ms = 200;
  std::vector<State> states;
  std::mutex mutex;
  options.on_state = [&](State state) {
    const std::lock_guard lock(mutex);
    states.push_back(state);
  };
  auto client = open2(server, options);
  server.plain().refusing = true;
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  Asks all;
  for (uint64_t i = 0; i < 1000; ++i) all.push_back(Ask::write(i * 512, 512, 2));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  server.plain().refusing = false;
  until([&] { return client->state() == State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  client.reset();
  server.settle();
  EXPECT_EQ(world_.hellos.back().session_id, world_.hellos[0].session_id) << "only the user begins a session";
  const std::lock_guard lock(mutex);
  EXPECT_EQ(states, (std::vector{State::kConnected, State::kConnecting, State::kError, State::kConnected}));
}

TEST_P(Netblk2SessionTest, WithoutRetryAnErrorIsForGood) {
  ScriptedServer2 server({after(world_, 1, hang_up), honest(world_)});
  auto options = options2();
  options.dead_time_ms = 50;
  options.retry_after_error = false;
  auto client = open2(server, options);
  server.plain().refusing = true;
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  server.plain().refusing = false;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  EXPECT_EQ(server.connections(), 1u);
}

TEST_P(Netblk2SessionTest, AnIdleClientOutlivesTheDeadTime) {
  ScriptedServer2 server({after(world_, 1, hang_up), honest(world_)});
  auto options = options2();
  options.dead_time_ms = 50;
  auto client = open2(server, options);
  server.plain().refusing = true;
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_NE(client->state(), State::kError);
  server.plain().refusing = false;
  until([&] { return client->state() == State::kConnected; });
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
  client.reset();
  server.settle();
  EXPECT_EQ(world_.hellos.back().session_id, world_.hellos[0].session_id) << "the same session goes on";
}

TEST_P(Netblk2SessionTest, ADeadlineFencesBeforeAnythingMoreIsSent) {
  std::optional<Asked2> given_up;
  std::vector<Asked2> after_fence;
  ScriptedServer2 server({[&](Peer2& peer) {
                            if (!greet(peer, world_)) return;
                            given_up = peer.request();
                            while (peer.request()) {
                            }
                          },
                          [&](Peer2& peer) {
                            if (!greet(peer, world_)) return;
                            for (;;) {
                              const auto asked = peer.request();
                              if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
                              {
                                const std::lock_guard lock(world_.mutex);
                                after_fence.push_back(*asked);
                              }
                              std::vector<std::byte> out;
                              peer.say(peer.reply_to(*asked, *world_.apply(*asked, out)), out);
                            }
                          }});
  auto options = options2();
  options.request_timeout_ms = 2'000;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), ETIMEDOUT);
  EXPECT_EQ(client->status().timed_out, 1u);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0);
  client.reset();
  server.settle();
  ASSERT_TRUE(given_up.has_value());
  ASSERT_GE(world_.hellos.size(), 2u);
  EXPECT_EQ(world_.hellos[1].session_id, world_.hellos[0].session_id);
  EXPECT_GT(world_.hellos[1].epoch, world_.hellos[0].epoch);
  const auto nop = std::find_if(after_fence.begin(), after_fence.end(),
                                [](const Asked2& asked) { return asked.header.type == NETBLK2_NOP; });
  ASSERT_NE(nop, after_fence.end()) << "the slot is settled";
  EXPECT_EQ(nop->header.slot, given_up->header.slot);
  EXPECT_EQ(nop->header.sequence, given_up->header.sequence);
  EXPECT_TRUE(world_.all(0, 512, 2));
  EXPECT_EQ(world_.applied.size(), 1u);
}

TEST_P(Netblk2SessionTest, ADeadlineOnOneConnectionStopsTheOthersUntilTheFence) {
  std::atomic<bool> fenced{false};
  std::atomic<bool> stuck{false};
  std::atomic<int> early{0};
  ScriptedServer2 server({[&](Peer2& peer) {
    const auto hello = peer.read_hello();
    if (!hello) return;
    if (!stuck && hello->connection == 0) {
      if (!peer.say(world_.welcome(*hello))) return;
      if (!peer.request()) return;  // never answered
      stuck = true;
      peer.wait_for_end();
      return;
    }
    if (stuck && !fenced) {
      // The fence takes its time.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      fenced = true;
    }
    if (!peer.say(world_.welcome(*hello))) return;
    for (;;) {
      const auto asked = peer.request();
      if (!asked || asked->header.type == NETBLK2_GOODBYE) return;
      if (asked->header.length == 512 && !fenced) ++early;  // what the user asks after the failure
      std::vector<std::byte> out;
      peer.say(peer.reply_to(*asked, *world_.apply(*asked, out)), out);
    }
  }});
  auto options = options2();
  options.connections = 2;
  options.request_timeout_ms = 700;
  auto client = open2(server, options);
  until([&] { return client->status().connections == 2; });
  // One of the two connections takes it; when it was the honest one, the other is tried.
  int error = 0;
  while (error == 0) {
    Asks many;
    for (uint64_t i = 0; i < 64; ++i) many.push_back(Ask::write(i * 4096, 4096, 1));
    run(*client, many);
    for (const auto& ask : many) error = ask->error != 0 ? ask->error : error;
  }
  EXPECT_EQ(error, ETIMEDOUT);
  until([&] { return run_one(*client, Ask::write(0, 512, 2)) == 0; });
  EXPECT_TRUE(fenced);
  EXPECT_EQ(early, 0);
}

// Connection 0 is stuck and has a fence. Meanwhile connection 1 is lost and welcomed again, and what it could not send
// again, because of that fence, reaches its deadline too: its own fence is done already, and nothing may wait for another.
TEST_P(Netblk2SessionTest, ADeadlineOnAConnectionThatWasWelcomedAgainNeedsNoOtherFence) {
  std::atomic<int> zeroes{0};
  std::atomic<int> ones{0};
  ScriptedServer2 server({[&](Peer2& peer) {
    const auto hello = peer.read_hello();
    if (!hello) return;
    if (hello->connection == 0) {
      const int number = zeroes++;
      if (number > 0) std::this_thread::sleep_for(std::chrono::milliseconds(number == 1 ? 400 : 0));
      if (!peer.say(world_.welcome(*hello))) return;
      if (number == 0) {
        peer.wait_for_end();
      } else {
        serve(peer, world_);
      }
      return;
    }
    const bool first = ones++ == 0;
    if (!peer.say(world_.welcome(*hello))) return;
    if (first) {
      std::this_thread::sleep_for(std::chrono::milliseconds(260));
    } else {
      serve(peer, world_);
    }
  }});
  auto options = options2();
  options.connections = 2;
  options.request_timeout_ms = 200;
  auto client = open2(server, options);
  until([&] { return client->status().connections == 2; });
  // Connection 0 is given requests until it is 128 KiB ahead.
  Asks early;
  Asks late;
  for (uint64_t i = 0; i < 32; ++i) early.push_back(Ask::write(i * 4096, 4096, 1));
  for (uint64_t i = 32; i < 64; ++i) late.push_back(Ask::write(i * 4096, 4096, 1));
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(120));
    run(*client, late);
  });
  run(*client, early);
  other.join();
  until([&] { return run_one(*client, Ask::write(0, 512, 2)) == 0; });
  EXPECT_TRUE(world_.all(0, 512, 2));
}

TEST_P(Netblk2SessionTest, ADeadlineWhileNoServerIsThere) {
  ScriptedServer2 server({after(world_, 1, hang_up), honest(world_)});
  auto options = options2();
  options.request_timeout_ms = 2'000;
  auto client = open2(server, options);
  server.plain().refusing = true;
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  Asks all;
  for (uint64_t i = 0; i < 500; ++i) all.push_back(Ask::write(i * 512, 512, 2));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, ETIMEDOUT);
  server.plain().refusing = false;
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 3)), 0);
  client.reset();
  server.settle();
  EXPECT_TRUE(world_.applied.size() == 1 && world_.all(0, 512, 3));
}

TEST_P(Netblk2SessionTest, ALongRequestEndsOnceByItsDeadline) {
  ScriptedServer2 server({after(world_, 3, [](Peer2& peer) { peer.wait_for_end(); }), honest(world_)});
  auto options = options2();
  options.request_timeout_ms = 700;
  auto client = open2(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, world_.bytes.size(), 1)), ETIMEDOUT);
  // A machine that stands still may need more than one.
  until([&] { return run_one(*client, Ask::write(0, world_.bytes.size(), 2)) == 0; });
  EXPECT_TRUE(world_.all(0, world_.bytes.size(), 2));
}

INSTANTIATE_TEST_SUITE_P(Io, Netblk2SessionTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
