// SPDX-License-Identifier: GPL-2.0-only
// The NBD client against servers that keep to the text: requests, parts, connections; what a reconnect repeats, and what
// it says may be lost.
#include <gtest/gtest.h>

#include <set>

#include "client/blocking.h"
#include "client/scripted_nbd_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;

constexpr auto kAll = {Headers::kSimple, Headers::kStructured, Headers::kExtended};

class NbdClientTest : public NbdTest {
 protected:
  static std::unique_ptr<Ask> with_fua(std::unique_ptr<Ask> ask) {
    ask->fua = true;
    return ask;
  }
  static int fua_write(block::Device& device, uint64_t at) {
    auto all = asks(with_fua(Ask::write(at, 512, 9)));
    run(device, all);
    return all[0]->error;
  }
};

TEST_P(NbdClientTest, ReadsWhatItWrote) {
  for (const Headers headers : kAll) {
    NbdDisk disk;
    disk.told.headers = headers;
    NbdServer server({honest(disk)});
    auto client = open_nbd(server);
    EXPECT_EQ(client->size_bytes(), disk.bytes.size());
    EXPECT_EQ(client->state(), State::kConnected);
    EXPECT_EQ(client->info().found.extended, headers == Headers::kExtended);
    EXPECT_EQ(client->info().found.structured, headers != Headers::kSimple);
    EXPECT_EQ(run_one(*client, Ask::write(4097, 8191, 0x5a)), 0);
    auto read = Ask::read(4097, 8191);
    EXPECT_EQ(run_one(*client, read), 0);
    EXPECT_TRUE(read->all(0x5a));
    EXPECT_EQ(client->status().unflushed, 1u);
    EXPECT_EQ(flush_of(*client), 0);
    EXPECT_EQ(client->status().unflushed, 0u);
    EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 4096, 4096)), 0);
    EXPECT_EQ(run_one(*client, Ask::of(Command::kWriteZeroes, 8192, 4097)), 0);
    EXPECT_TRUE(disk.all(0, disk.bytes.size(), 0));
    EXPECT_EQ(run_one(*client, Ask::of(Command::kCache, 0, 4096)), 0);
    EXPECT_EQ(run_one(*client, Ask::read(disk.bytes.size(), 1)), EINVAL);
    client.reset();
    server.settle();
    EXPECT_EQ(disk.goodbyes, 1u);
    EXPECT_EQ(disk.count(NBD_CMD_FLUSH), 1u);
  }
}

TEST_P(NbdClientTest, WhatTheServerHasNotIsNotAsked) {
  disk_.told.flags = NBD_FLAG_HAS_FLAGS;
  disk_.told.allocation_id.reset();
  NbdServer server({honest(disk_)});
  auto options = nbd_options();
  options.connections = 4;
  auto client = open_nbd(server, options);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 0, 512)), EOPNOTSUPP);
  EXPECT_EQ(run_one(*client, Ask::of(Command::kWriteZeroes, 0, 512)), EOPNOTSUPP);
  EXPECT_EQ(flush_of(*client), 0) << "a server without a cache";
  EXPECT_EQ(fua_write(*client, 0), 0);
  EXPECT_EQ(client->info().connections, 1u) << "several were not allowed";
  client.reset();
  server.settle();
  EXPECT_EQ(server.connections(), 1u);
  EXPECT_EQ(disk_.seen.size(), 1u);
  EXPECT_EQ(disk_.seen[0].flags, 0u);
}

TEST_P(NbdClientTest, FuaOfAServerWithoutItIsAFlushBehindAllParts) {
  disk_.told.flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
  disk_.told.most = 4096;
  NbdServer server({honest(disk_)});
  auto client = open_nbd(server);
  auto all = asks(with_fua(Ask::write(0, 5 * 4096, 3)));
  run(*client, all);
  EXPECT_EQ(all[0]->error, 0);
  EXPECT_EQ(client->status().unflushed, 0u);
  client.reset();
  server.settle();
  ASSERT_EQ(disk_.seen.size(), 6u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(disk_.seen[i].type, NBD_CMD_WRITE);
  EXPECT_EQ(disk_.seen[5].type, NBD_CMD_FLUSH);
}

TEST_P(NbdClientTest, LongRequestsAreSplitAndEndOnce) {
  disk_.told.most = 65536;
  NbdServer server({honest(disk_)});
  auto options = nbd_options();
  options.slots = 4;
  auto client = open_nbd(server, options);
  auto all = asks(with_fua(Ask::write(100, disk_.bytes.size() - 100, 0x11)));
  run(*client, all);
  EXPECT_EQ(all[0]->error, 0);
  EXPECT_TRUE(disk_.all(100, disk_.bytes.size(), 0x11));
  auto read = Ask::read(100, disk_.bytes.size() - 100);
  EXPECT_EQ(run_one(*client, read), 0);
  EXPECT_TRUE(read->all(0x11));
  for (const auto& part : disk_.of(NBD_CMD_WRITE)) {
    EXPECT_LE(part.length, 65536u);
    EXPECT_EQ(part.flags, NBD_CMD_FLAG_FUA);
  }
}

TEST_P(NbdClientTest, ASplitRequestEndsWithItsFirstError) {
  disk_.told.most = 4096;
  NbdServer server({after(disk_, 0, [&](NbdPeer& peer) {
    for (int i = 0;; ++i) {
      const auto asked = peer.request();
      if (!asked || asked->type == NBD_CMD_DISC) return;
      peer.say(peer.reply(*asked, i == 3 ? NBD_ENOSPC : i > 3 ? NBD_EIO : 0));
    }
  })});
  auto options = nbd_options();
  options.slots = 2;
  auto client = open_nbd(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 1u << 20, 1)), ENOSPC);
  EXPECT_EQ(server.connections(), 1u);
}

TEST_P(NbdClientTest, LengthsOf32BitsWhereHeadersAreShort) {
  constexpr uint64_t kHuge = uint64_t{10} << 30;
  for (const Headers headers : kAll) {
    NbdTold told;
    told.size_bytes = kHuge;
    told.headers = headers;
    std::vector<uint64_t> lengths;
    NbdServer server({[&](NbdPeer& peer) {
      if (!peer.greet(told)) return;
      while (const auto asked = peer.request()) {
        if (asked->type == NBD_CMD_DISC) return;
        lengths.push_back(asked->length);
        peer.say(peer.reply(*asked));
      }
    }});
    auto client = open_nbd(server);
    EXPECT_EQ(run_one(*client, Ask::of(Command::kTrim, 0, kHuge)), 0);
    client.reset();
    server.settle();
    uint64_t sum = 0;
    for (const uint64_t length : lengths) sum += length;
    EXPECT_EQ(sum, kHuge);
    EXPECT_EQ(lengths.size(), headers == Headers::kExtended ? 1u : 3u);
  }
}

TEST_P(NbdClientTest, BlocksOfTheServerAreKept) {
  disk_.told.least = 4096;
  disk_.told.size_bytes = (1u << 20) - 100;
  NbdServer server({honest(disk_)});
  auto client = open_nbd(server);
  EXPECT_EQ(client->size_bytes(), (1u << 20) - 4096u) << "what is behind the last whole block cannot be reached";
  EXPECT_EQ(run_one(*client, Ask::read(512, 4096)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(4096, 512)), EINVAL);
  EXPECT_EQ(run_one(*client, Ask::read(4096, 4096)), 0);
  EXPECT_EQ(disk_.count(NBD_CMD_READ), 1u);
}

TEST_P(NbdClientTest, RepliesInAnyOrderAndInPiecesOfEachOther) {
  for (const Headers headers : kAll) {
    NbdDisk disk;
    disk.told.headers = headers;
    for (size_t i = 0; i < disk.bytes.size(); ++i) disk.bytes[i] = static_cast<std::byte>(i / 512 % 251);
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
      std::vector<NbdAsked> held;
      while (const auto asked = peer.request()) {
        if (asked->type == NBD_CMD_DISC) return;
        held.push_back(*asked);
        if (held.size() < 32) continue;
        if (headers != Headers::kSimple) {
          // The second half of each, then the middle as holes or data of none, all mixed; the end comes last.
          for (const NbdAsked& one : held) {
            const auto at = disk.bytes.begin() + static_cast<std::ptrdiff_t>(one.offset);
            const std::vector<std::byte> half(at + 256, at + 512);
            peer.say(peer.chunk(one, NBD_REPLY_TYPE_OFFSET_DATA, NbdPeer::data_at(one.offset + 256, half), 0));
          }
          for (auto one = held.rbegin(); one != held.rend(); ++one) {
            const auto at = disk.bytes.begin() + static_cast<std::ptrdiff_t>(one->offset);
            const std::vector<std::byte> half(at, at + 256);
            peer.say(peer.chunk(*one, NBD_REPLY_TYPE_OFFSET_DATA, NbdPeer::data_at(one->offset, half), 0));
          }
          for (const NbdAsked& one : held) peer.say(peer.chunk(one, NBD_REPLY_TYPE_NONE));
        } else {
          for (; !held.empty(); held.pop_back()) peer.say(disk.apply(peer, held.back()));
        }
        held.clear();
      }
    })});
    auto client = open_nbd(server);
    Asks all;
    for (uint64_t i = 0; i < 320; ++i) all.push_back(Ask::read(i * 512, 512));
    run(*client, all);
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(all[i]->error, 0);
      EXPECT_TRUE(all[i]->all(static_cast<uint8_t>(i % 251))) << i;
    }
    EXPECT_EQ(server.connections(), 1u);
  }
}

TEST_P(NbdClientTest, ManyRequestsOnSeveralConnections) {
  NbdDisk disk(4u << 20);
  NbdServer server({honest(disk)});
  auto options = nbd_options();
  options.connections = 4;
  auto client = open_nbd(server, options);
  EXPECT_TRUE(comes([&] { return client->status().connections == 4; }));
  Asks all;
  for (uint64_t i = 0; i < 800; ++i) all.push_back(Ask::write(i * 4096, 4096, static_cast<uint8_t>(i % 251)));
  run(*client, all);
  for (const auto& ask : all) EXPECT_EQ(ask->error, 0);
  for (uint64_t i = 0; i < 800; ++i) EXPECT_TRUE(disk.all(i * 4096, i * 4096 + 4096, static_cast<uint8_t>(i % 251)));
  client.reset();
  server.settle();
  EXPECT_EQ(disk.goodbyes, 4u);
  std::set<uint64_t> cookies;
  for (const auto& one : disk.seen) cookies.insert(one.cookie);
  EXPECT_EQ(cookies.size(), disk.seen.size()) << "no cookie comes twice";
}

// ---- reconnect

TEST_P(NbdClientTest, WhatIsUnansweredIsSentAgain) {
  for (const Headers headers : kAll) {
    NbdDisk disk;
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [](NbdPeer& peer) {
                        for (int i = 0; i < 8; ++i)
                          if (!peer.request()) return;
                      }),
                      honest(disk)});
    auto client = open_nbd(server);
    Asks all;
    for (uint64_t i = 0; i < 8; ++i) all.push_back(Ask::write(i * 4096, 4096, static_cast<uint8_t>(i + 1)));
    run(*client, all);
    for (uint64_t i = 0; i < 8; ++i) {
      EXPECT_EQ(all[i]->error, 0);
      EXPECT_TRUE(disk.all(i * 4096, i * 4096 + 4096, static_cast<uint8_t>(i + 1)));
    }
    EXPECT_GE(client->status().replayed, 8u);
    EXPECT_FALSE(client->lost()) << "nothing had been acknowledged before";
    EXPECT_EQ(flush_of(*client), 0);
  }
}

TEST_P(NbdClientTest, AcknowledgedAndUnflushedIsLostWithTheConnection) {
  std::atomic<bool> cut{false};
  std::string told;
  std::mutex mutex;
  NbdServer server({after(disk_, 1, [&](NbdPeer&) { EXPECT_TRUE(comes([&] { return cut.load(); })); }), honest(disk_)});
  auto options = nbd_options();
  options.on_lost = [&](const std::string& why) {
    const std::lock_guard lock(mutex);
    told = why;
  };
  auto client = open_nbd(server, options);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_FALSE(client->lost());
  cut = true;
  EXPECT_TRUE(comes([&] { return client->lost(); }));
  EXPECT_EQ(flush_of(*client), EIO);
  EXPECT_EQ(fua_write(*client, 512), EIO);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0) << "reads go on";
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 2)), 0) << "and writes that promise nothing";
  EXPECT_EQ(flush_of(*client), EIO) << "as often as it is asked";
  EXPECT_TRUE(client->status().lost);
  EXPECT_FALSE(client->status().lost_reason.empty());
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(told, client->status().lost_reason);
  }
  client->reset_lost();
  EXPECT_EQ(flush_of(*client), 0);
  EXPECT_EQ(fua_write(*client, 512), 0);
}

// What the server answers, then goes; and whether something may be lost then.
TEST_P(NbdClientTest, NothingIsLostThatWasFlushedOrTrusted) {
  struct Row {
    const char* what;
    std::vector<Command> commands;
    bool fua = false;
    bool trust = false;
    bool lost = false;
  };
  for (const Row& row : {Row{"reads", {Command::kRead, Command::kCache}}, Row{"a flush behind it", {Command::kWrite, Command::kFlush}},
                         Row{"FUA", {Command::kWrite, Command::kTrim, Command::kWriteZeroes}, true},
                         Row{"trusted", {Command::kWrite}, false, true},
                         Row{"a flush before it", {Command::kFlush, Command::kWrite}, false, false, true},
                         Row{"a trim", {Command::kTrim}, false, false, true},
                         Row{"zeroes", {Command::kWriteZeroes}, false, false, true}}) {
    SCOPED_TRACE(row.what);
    NbdDisk disk;
    std::atomic<bool> cut{false};
    NbdServer server({after(disk, static_cast<int>(row.commands.size()), [&](NbdPeer&) { EXPECT_TRUE(comes([&] { return cut.load(); })); }),
                      honest(disk)});
    auto options = nbd_options();
    options.trust_reconnect = row.trust;
    auto client = open_nbd(server, options);
    for (const Command command : row.commands) {
      auto all = asks(Ask::of(command, 0, command == Command::kFlush ? 0 : 512));
      all[0]->fua = row.fua;
      run(*client, all);
      EXPECT_EQ(all[0]->error, 0);
    }
    cut = true;
    EXPECT_TRUE(comes([&] { return client->status().reconnects == 1; }));
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
    EXPECT_EQ(client->lost(), row.lost);
    EXPECT_EQ(flush_of(*client), row.lost ? EIO : 0);
  }
}

TEST_P(NbdClientTest, AFlushThatWasUnderWayWhenTheLossCameFails) {
  NbdServer server({after(disk_, 1, [](NbdPeer& peer) { peer.request(); }), honest(disk_)});
  auto client = open_nbd(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 1)), 0);
  EXPECT_EQ(flush_of(*client), EIO) << "the server that answers it is not known to have the write";
  EXPECT_TRUE(client->lost());
}

TEST_P(NbdClientTest, AFlushCoversOnlyWhatWasAnsweredBeforeIt) {
  std::atomic<bool> cut{false};
  NbdServer server({after(disk_, 0, [&](NbdPeer& peer) {
                      const auto flush = peer.request(), write = peer.request();
                      if (!flush || !write) return;
                      peer.say(disk_.apply(peer, *write));
                      peer.say(peer.reply(*flush));
                      EXPECT_TRUE(comes([&] { return cut.load(); }));
                    }),
                    honest(disk_)});
  auto client = open_nbd(server);
  auto all = asks(Ask::of(Command::kFlush), Ask::write(0, 512, 1));
  run(*client, all);
  EXPECT_EQ(all[0]->error, 0);
  EXPECT_EQ(all[1]->error, 0);
  EXPECT_EQ(client->status().unflushed, 1u);
  cut = true;
  EXPECT_TRUE(comes([&] { return client->lost(); }));
}

TEST_P(NbdClientTest, AnExportThatIsNotWhatItWasIsNotUsed) {
  const auto changed = [&](const char* what, const std::function<void(NbdTold&)>& change, const char* word) {
    SCOPED_TRACE(what);
    NbdDisk disk;
    disk.told.flags |= NBD_FLAG_SEND_FAST_ZERO;
    NbdTold other = disk.told;
    change(other);
    std::atomic<bool> cut{false};
    NbdServer server({after(disk, 0, [&](NbdPeer&) { EXPECT_TRUE(comes([&] { return cut.load(); })); }),
                      [&](NbdPeer& peer) {
                        if (peer.greet(other)) peer.wait_for_end();
                      }});
    auto options = nbd_options();
    options.connections = 2;
    auto client = open_nbd(server, options);
    cut = true;
    EXPECT_EQ(run_one(*client, Ask::write(4096, 512, 1)), EIO);
    EXPECT_TRUE(comes([&] { return client->state() == State::kError; }));
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO) << "for good";
    EXPECT_TRUE(disk.all(0, disk.bytes.size(), 0));
    EXPECT_NE(client->status().last_error.find(word), std::string::npos) << client->status().last_error;
  };
  changed("smaller", [](NbdTold& told) { told.size_bytes -= 512; }, "bytes now");
  changed("empty", [](NbdTold& told) { told.size_bytes = 0; }, "bytes now");
  changed("read-only", [](NbdTold& told) { told.flags |= NBD_FLAG_READ_ONLY; }, "read-only");
  for (const int flag : {NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA, NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES,
                              NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_FAST_ZERO})
    changed("a flag less", [flag](NbdTold& told) { told.flags = static_cast<uint16_t>(told.flags & ~flag); }, "flags");
  changed("one connection only", [](NbdTold& told) { told.flags = static_cast<uint16_t>(told.flags & ~NBD_FLAG_CAN_MULTI_CONN); },
          "several connections");
  changed("larger blocks", [](NbdTold& told) { told.least = 4096; }, "block sizes");
  changed("less at once", [](NbdTold& told) { told.most = 65536; }, "block sizes");
  changed("shorter headers", [](NbdTold& told) { told.headers = Headers::kStructured; }, "less of NBD");
  changed("no structured replies", [](NbdTold& told) { told.headers = Headers::kSimple; }, "less of NBD");
  changed("no block status", [](NbdTold& told) { told.allocation_id.reset(); }, "less of NBD");
}

TEST_P(NbdClientTest, AnExportThatHasGrownIsUsedWhole) {
  NbdDisk larger(2u << 20);
  std::atomic<bool> cut{false};
  std::atomic<uint64_t> told{0};
  NbdServer server({after(disk_, 0, [&](NbdPeer&) { EXPECT_TRUE(comes([&] { return cut.load(); })); }), honest(larger)});
  auto options = nbd_options();
  options.on_resize = [&](uint64_t size_bytes) { told = size_bytes; };
  auto client = open_nbd(server, options);
  EXPECT_EQ(run_one(*client, Ask::read(1u << 20, 512)), EINVAL);
  cut = true;
  EXPECT_TRUE(comes([&] { return client->size_bytes() == 2u << 20; }));
  EXPECT_EQ(run_one(*client, Ask::write((2u << 20) - 512, 512, 1)), 0);
  EXPECT_TRUE(larger.all((2u << 20) - 512, 2u << 20, 1));
  EXPECT_EQ(told, 2u << 20);
}

TEST_P(NbdClientTest, AServerThatShutsDownIsLeftAndComesBack) {
  NbdServer server({after(disk_, 0, [](NbdPeer& peer) {
                      const auto asked = peer.request();
                      if (!asked) return;
                      peer.say(peer.reply(*asked, NBD_ESHUTDOWN));
                      peer.wait_for_end();
                    }),
                    honest(disk_)});
  auto client = open_nbd(server);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 4)), 0);
  EXPECT_TRUE(disk_.all(0, 512, 4));
}

TEST_P(NbdClientTest, WithoutAServerForTheDeadTimeRequestsFailAndThenRecover) {
  NbdServer server({after(disk_, 1, go_away), honest(disk_)});
  auto options = nbd_options();
  options.dead_time_ms = 100;
  auto client = open_nbd(server, options);
  server.refuse(true);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(run_one(*client, Ask::write(0, 512, 7)), EIO);
  EXPECT_EQ(client->state(), State::kError);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO) << "at once";
  EXPECT_TRUE(disk_.all(0, 512, 0));
  server.refuse(false);
  EXPECT_TRUE(comes([&] { return client->state() == State::kConnected; }));
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
}

TEST_P(NbdClientTest, WhatIsAbandonedIsNotSentAnyMore) {
  NbdServer server({after(disk_, 1, go_away), honest(disk_)});
  auto client = open_nbd(server);
  server.refuse(true);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  const std::atomic<bool> gone{true};
  auto write = Ask::write(0, 512, 7);
  write->abandoned = &gone;
  EXPECT_EQ(run_one(*client, write), ECANCELED);
  server.refuse(false);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
  EXPECT_EQ(disk_.count(NBD_CMD_WRITE), 0u);
}

INSTANTIATE_TEST_SUITE_P(Io, NbdClientTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
