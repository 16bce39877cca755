// SPDX-License-Identifier: GPL-2.0-only
// The NBD client against a server that breaks the protocol: a clear error, or a connection that is dropped and made
// again; never a wrong success, never a byte outside what was asked.
#include <gtest/gtest.h>

#include "client/scripted_nbd_test.h"

namespace netblk::client::testing {
namespace {

using block::Command;

constexpr uint64_t kAt = 8192, kLength = 4096;

class NbdHostileTest : public NbdTest {
 protected:
  using Answer = std::function<void(NbdPeer&, const NbdAsked&)>;

  // After this answer to the first request the client must be gone, and must get the truth from an honest server.
  void drops(const char* what, Headers headers, const Answer& answer, Command command = Command::kRead) {
    SCOPED_TRACE(what);
    SCOPED_TRACE(static_cast<int>(headers));
    NbdDisk disk;
    std::fill(disk.bytes.begin(), disk.bytes.end(), std::byte{0x77});
    disk.told.headers = headers;
    std::atomic<bool> gone{false};
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
                        const auto asked = peer.request();
                        if (!asked) return;
                        answer(peer, *asked);
                        peer.wait_for_end();
                        gone = true;
                      }),
                      honest(disk)});
    auto client = open_nbd(server);
    auto all = asks(ask_of(command));
    run(*client, all);
    EXPECT_EQ(all[0]->error, 0);
    if (command == Command::kRead) {
      EXPECT_TRUE(all[0]->all(0x77));
    }
    if (command == Command::kWrite) {
      EXPECT_TRUE(disk.all(kAt, kAt + kLength, 0x11));
    }
    EXPECT_TRUE(comes([&] { return gone.load(); }));
    EXPECT_GE(client->status().reconnects, 1u);
  }
  // The request ends with this error, and the connection goes on.
  void fails(const char* what, Headers headers, int error, const Answer& answer, Command command = Command::kRead) {
    SCOPED_TRACE(what);
    SCOPED_TRACE(static_cast<int>(headers));
    NbdDisk disk;
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
      const auto asked = peer.request();
      if (!asked) return;
      answer(peer, *asked);
      serve(peer, disk);
    })});
    auto client = open_nbd(server);
    auto all = asks(ask_of(command));
    run(*client, all);
    EXPECT_EQ(all[0]->error, error);
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
    EXPECT_EQ(server.connections(), 1u);
  }
  static Answer chunk_of(uint16_t type, const std::function<Words(const NbdAsked&)>& payload,
                         uint16_t flags = NBD_REPLY_FLAG_DONE) {
    return [=](NbdPeer& peer, const NbdAsked& asked) { peer.say(peer.chunk(asked, type, payload(asked), flags)); };
  }

  std::unique_ptr<Ask> ask_of(Command command) {
    auto ask = command == Command::kWrite ? Ask::write(kAt, kLength, 0x11) : Ask::of(command, kAt, kLength);
    if (command == Command::kFlush) ask->offset = ask->length = 0;
    extents_.clear();
    ask->extents = &extents_;
    ask->max_extents = 16;
    return ask;
  }
  std::vector<block::Extent> extents_;
};

std::vector<std::byte> wrong(size_t size) { return std::vector<std::byte>(size, std::byte{0xee}); }
constexpr auto kBoth = {Headers::kStructured, Headers::kExtended};
constexpr auto kAll = {Headers::kSimple, Headers::kStructured, Headers::kExtended};

TEST_P(NbdHostileTest, RepliesThatAnswerNothing) {
  for (const Headers headers : kAll) {
    for (const Command command : {Command::kRead, Command::kWrite}) {
      const auto with_cookie = [&](const char* what, const std::function<uint64_t(uint64_t)>& other) {
        drops(what, headers, [&](NbdPeer& peer, NbdAsked asked) {
          asked.cookie = other(asked.cookie);
          peer.say(peer.reply(asked, 0, wrong(command == Command::kRead ? kLength : 0)));
        }, command);
      };
      with_cookie("another slot's cookie", [](uint64_t cookie) { return cookie + 1; });
      with_cookie("an earlier cookie of the slot", [](uint64_t cookie) { return cookie - (uint64_t{1} << 32); });
      with_cookie("a slot that does not exist", [](uint64_t cookie) { return cookie | 0xffff'ffff; });
      with_cookie("all ones", [](uint64_t) { return ~uint64_t{0}; });
    }
    drops("garbage", headers, [](NbdPeer& peer, const NbdAsked&) { peer.say(Words().fill(64, 0x5a)); });
    drops("the magic number of a request", headers, [](NbdPeer& peer, const NbdAsked&) {
      peer.say(Words().u32(NBD_REQUEST_MAGIC).fill(60, 0));
    });
    for (const Headers others : kAll) {
      if (others == headers || (headers == Headers::kStructured && others == Headers::kSimple)) continue;
      drops("headers that were not agreed on", headers, [&](NbdPeer& peer, const NbdAsked& asked) {
        peer.headers = others;
        peer.say(peer.reply(asked, 0, wrong(kLength)));
      });
    }
  }
}

TEST_P(NbdHostileTest, AReplyThatComesTwice) {
  for (const Headers headers : kAll) {
    NbdDisk disk;
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
                        const auto asked = peer.request();
                        if (!asked) return;
                        const Words reply = disk.apply(peer, *asked);
                        peer.say(reply);
                        peer.say(reply);
                        peer.wait_for_end();
                      }),
                      honest(disk)});
    auto client = open_nbd(server);
    EXPECT_EQ(run_one(*client, Ask::write(0, 4096, 1)), 0);
    EXPECT_TRUE(comes([&] { return client->status().reconnects > 0; }));
    EXPECT_NE(client->status().last_error.find("answers nothing"), std::string::npos) << client->status().last_error;
  }
}

TEST_P(NbdHostileTest, ReadsThatAreNotWhatWasAsked) {
  using Asked = const NbdAsked&;
  constexpr uint16_t kData = NBD_REPLY_TYPE_OFFSET_DATA, kHole = NBD_REPLY_TYPE_OFFSET_HOLE, kNone = NBD_REPLY_TYPE_NONE;
  for (const Headers headers : kBoth) {
    const auto data = [&](const char* what, uint64_t offset, size_t length) {
      drops(what, headers, chunk_of(kData, [=](Asked) { return NbdPeer::data_at(offset, wrong(length)); }));
    };
    data("a byte more", kAt, kLength + 1);
    data("a megabyte more", kAt, kLength + (1u << 20));
    data("a byte less, and the end", kAt, kLength - 1);
    data("no data", kAt, 0);
    data("one byte before", kAt - 1, kLength);
    data("one byte behind", kAt + 1, kLength);
    data("behind all of it", kAt + kLength, 512);
    data("at the end of the world", ~uint64_t{0} - 511, 512);
    data("at another place", 0, kLength);
    drops("less than an offset", headers, chunk_of(kData, [](Asked) { return Words().fill(7, 0); }));
    for (const auto& [offset, length] : {std::pair<uint64_t, uint32_t>{kAt, 0}, {kAt, kLength + 1}, {kAt - 1, kLength},
                                         {kAt + kLength, 1}, {kAt, 0xffffffff}, {~uint64_t{0}, 1}, {kAt, kLength - 1}})
      drops("a hole", headers, chunk_of(kHole, [=](Asked) { return NbdPeer::hole_at(offset, length); }));
    drops("a short hole", headers, chunk_of(kHole, [](Asked) { return Words().fill(11, 0); }));
    drops("a long hole", headers, chunk_of(kHole, [](Asked) { return NbdPeer::hole_at(kAt, kLength).fill(1, 0); }));
    drops("an end without data", headers, chunk_of(kNone, [](Asked) { return Words(); }));
    drops("an end with data", headers, chunk_of(kNone, [](Asked) { return Words().fill(4, 0); }));
    drops("nothing, and no end", headers, chunk_of(kNone, [](Asked) { return Words(); }, 0));
    drops("unknown flags", headers, chunk_of(kData, [](Asked) { return NbdPeer::data_at(kAt, wrong(kLength)); }, 3));
    for (const uint16_t type : {uint16_t{3}, uint16_t{4}, uint16_t{NBD_REPLY_TYPE_BLOCK_STATUS},
                                uint16_t{NBD_REPLY_TYPE_BLOCK_STATUS_EXT}, uint16_t{0x7fff}})
      drops("another type", headers, chunk_of(type, [](Asked) { return Words().u32(7).u32(1).u32(kLength).u32(0); }));
    const auto two = [&](const char* what, uint64_t first, uint64_t first_length, uint64_t second, uint64_t second_length) {
      drops(what, headers, [=](NbdPeer& peer, Asked asked) {
        peer.say(peer.chunk(asked, kData, NbdPeer::data_at(kAt + first, wrong(first_length)), 0));
        peer.say(peer.chunk(asked, kData, NbdPeer::data_at(kAt + second, wrong(second_length))));
      });
    };
    two("the same twice", 0, kLength, 0, kLength);
    two("overlapping by a byte", 0, 2049, 2048, 2048);
    two("a byte missing", 0, 2047, 2048, 2048);
    two("overlapping from behind", 2048, 2048, 0, 2049);
    two("the end missing", 0, 1024, 1024, 1024);
    drops("data and a hole over it", headers, [](NbdPeer& peer, Asked asked) {
      peer.say(peer.chunk(asked, kData, NbdPeer::data_at(kAt, wrong(kLength)), 0));
      peer.say(peer.chunk(asked, kHole, NbdPeer::hole_at(kAt + 512, 512)));
    });
  }
  drops("a simple reply with data", Headers::kStructured, [](NbdPeer& peer, Asked asked) {
    peer.say(NbdPeer::simple(asked.cookie, 0, wrong(kLength)));
  });
}

TEST_P(NbdHostileTest, DataForWhoAskedForNone) {
  for (const Headers headers : kBoth)
    for (const Command command : {Command::kWrite, Command::kFlush, Command::kTrim, Command::kWriteZeroes, Command::kCache})
      for (const uint16_t type : {uint16_t{NBD_REPLY_TYPE_OFFSET_DATA}, uint16_t{NBD_REPLY_TYPE_OFFSET_HOLE}})
        drops("data", headers, chunk_of(type, [](const NbdAsked&) { return Words().u64(kAt).u32(512); }), command);
}

TEST_P(NbdHostileTest, ErrorsAreTheServers) {
  using Asked = const NbdAsked&;
  constexpr uint16_t kError = NBD_REPLY_TYPE_ERROR, kErrorAt = NBD_REPLY_TYPE_ERROR_OFFSET;
  const std::vector<std::pair<uint32_t, int>> errors = {{NBD_EPERM, EPERM},       {NBD_EIO, EIO},
                                                        {NBD_ENOMEM, ENOMEM},     {NBD_EINVAL, EINVAL},
                                                        {NBD_ENOSPC, ENOSPC},     {NBD_EOVERFLOW, EOVERFLOW},
                                                        {NBD_ENOTSUP, EOPNOTSUPP}, {77, EINVAL},
                                                        {0xffffffff, EINVAL}};
  for (const auto& [error, errno_value] : errors)
    for (const Headers headers : kAll)
      fails("an error", headers, errno_value, [error = error](NbdPeer& peer, Asked asked) { peer.say(peer.reply(asked, error)); });
  for (const Headers headers : kBoth) {
    for (const uint64_t offset : {kAt, kAt + kLength, uint64_t{0}, ~uint64_t{0}})
      fails("an error at an offset, inside or not", headers, EIO,
            chunk_of(kErrorAt, [=](Asked) { return NbdPeer::error_of(NBD_EIO, "here").u64(offset); }));
    fails("an error in the middle", headers, ENOSPC, [](NbdPeer& peer, Asked asked) {
      peer.say(peer.chunk(asked, NBD_REPLY_TYPE_OFFSET_DATA, NbdPeer::data_at(kAt, wrong(512)), 0));
      peer.say(peer.chunk(asked, kError, NbdPeer::error_of(NBD_ENOSPC), 0));
      peer.say(peer.chunk(asked, kErrorAt, NbdPeer::error_of(NBD_EIO).u64(kAt + 1024), 0));
      peer.say(peer.chunk(asked, NBD_REPLY_TYPE_NONE));
    });
    fails("an error of a kind that nobody knows", headers, EIO,
          chunk_of(NBD_REPLY_TYPE_IS_ERROR | 99, [](Asked) { return NbdPeer::error_of(NBD_EIO, "so").fill(20, 9); }));
    const auto bad = [&](const char* what, uint16_t type, const Words& payload) {
      drops(what, headers, chunk_of(type, [=](Asked) { return payload; }));
    };
    bad("nothing in it", kError, Words());
    bad("five bytes", kError, Words().fill(5, 1));
    bad("no error", kError, NbdPeer::error_of(NBD_SUCCESS));
    bad("words longer than it", kError, Words().u32(NBD_EIO).u16(9).text("short"));
    bad("words shorter than it", kError, Words().u32(NBD_EIO).u16(1).text("short"));
    bad("no offset", kErrorAt, NbdPeer::error_of(NBD_EIO, "words"));
    bad("a text without end", kError, NbdPeer::error_of(NBD_EIO, std::string(60'000, 'x')));
    drops("errors without end", headers, [](NbdPeer& peer, Asked asked) {
      for (int i = 0; i < 1000; ++i)
        if (!peer.say(peer.chunk(asked, kError, NbdPeer::error_of(NBD_EIO), 0))) return;
    });
  }
}

TEST_P(NbdHostileTest, BlockStatusThatMakesNoSense) {
  using Asked = const NbdAsked&;
  for (const Headers headers : kBoth) {
    const auto bad = [&](const char* what, const std::function<void(NbdPeer&, Asked)>& answer) {
      drops(what, headers, answer, Command::kBlockStatus);
    };
    const auto told = [&](const char* what, const NbdPeer::Extents& extents, uint32_t id = 7) {
      bad(what, [=](NbdPeer& peer, Asked asked) { peer.say(peer.chunk(asked, peer.status_type(), peer.status_of(extents, id))); });
    };
    told("no extent", {});
    told("an empty extent", {{0, 0}});
    told("an empty extent behind others", {{512, 0}, {512, 3}, {0, 0}});
    told("a context that was not asked for", {{kLength, 0}}, 8);
    bad("half an extent", [](NbdPeer& peer, Asked asked) {
      peer.say(peer.chunk(asked, peer.status_type(), peer.status_of({{512, 0}}).fill(4, 0)));
    });
    bad("told twice", [](NbdPeer& peer, Asked asked) {
      peer.say(peer.chunk(asked, peer.status_type(), peer.status_of({{512, 0}}), 0));
      peer.say(peer.chunk(asked, peer.status_type(), peer.status_of({{512, 0}})));
    });
    bad("never told", [](NbdPeer& peer, Asked asked) { peer.say(peer.chunk(asked, NBD_REPLY_TYPE_NONE)); });
    bad("data instead", [](NbdPeer& peer, Asked asked) {
      peer.say(peer.chunk(asked, NBD_REPLY_TYPE_OFFSET_DATA, NbdPeer::data_at(kAt, wrong(512))));
    });
  }
  drops("a count that is another", Headers::kExtended, [](NbdPeer& peer, Asked asked) {
    peer.say(peer.chunk(asked, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, Words().u32(7).u32(2).u64(kLength).u64(0)));
  }, Command::kBlockStatus);
  drops("more than there are", Headers::kExtended, [](NbdPeer& peer, Asked asked) {
    peer.say(Words().u32(NBD_EXTENDED_REPLY_MAGIC).u16(NBD_REPLY_FLAG_DONE).u16(NBD_REPLY_TYPE_BLOCK_STATUS_EXT).u64(asked.cookie)
                 .u64(asked.offset).u64(uint64_t{1} << 40));
  }, Command::kBlockStatus);
  drops("a simple reply", Headers::kStructured, [](NbdPeer& peer, Asked asked) { peer.say(NbdPeer::simple(asked.cookie)); },
        Command::kBlockStatus);
}

TEST_P(NbdHostileTest, BlockStatusIsCutToWhatWasAskedAndWhatFits) {
  for (const Headers headers : kBoth) {
    NbdDisk disk;
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
      while (const auto asked = peer.request()) {
        if (asked->type != NBD_CMD_BLOCK_STATUS) return;
        peer.say(peer.chunk(*asked, peer.status_type(), peer.status_of({{512, 3}, {512, 0}, {0xfffffe00, 1}, {512, 2}})));
      }
    })});
    auto client = open_nbd(server);
    auto all = asks(ask_of(Command::kBlockStatus));
    run(*client, all);
    EXPECT_EQ(all[0]->error, 0);
    EXPECT_EQ(extents_, (std::vector<block::Extent>{{512, true, true}, {512, false, false}, {kLength - 1024, true, false}}));
    all = asks(ask_of(Command::kBlockStatus));
    all[0]->max_extents = 2;
    run(*client, all);
    EXPECT_EQ(extents_, (std::vector<block::Extent>{{512, true, true}, {512, false, false}}));
  }
}

TEST_P(NbdHostileTest, ARequestIsNotTriedForEverWhereTheServerTalksNonsense) {
  NbdServer server({after(disk_, 0, [](NbdPeer& peer) {
    if (!peer.request()) return;
    peer.say(Words().fill(64, 0x5a));
    peer.wait_for_end();
  })});
  auto client = open_nbd(server);
  EXPECT_EQ(run_one(*client, Ask::read(0, 512)), EIO);
  EXPECT_GE(server.connections(), 3u);
  EXPECT_NE(client->status().last_error.find("magic"), std::string::npos) << client->status().last_error;
}

TEST_P(NbdHostileTest, AServerThatClosesInTheMiddle) {
  for (const Headers headers : kAll) {
    NbdDisk disk;
    std::fill(disk.bytes.begin(), disk.bytes.end(), std::byte{0x77});
    disk.told.headers = headers;
    // Of a READ's reply; each on a connection of its own, and an honest one behind it.
    std::vector<NbdScript> scripts;
    const std::vector<size_t> cuts = {0, 1, 4, 15, 16, 20, 27, 28, 39, 40, 41, 2000, 4000};
    for (const size_t cut : cuts) {
      scripts.push_back(after(disk, 0, [&disk, cut](NbdPeer& peer) {
        const auto asked = peer.request();
        if (!asked) return;
        const Words reply = disk.apply(peer, *asked);
        peer.send(reply.data(), std::min(cut, reply.size() - 1));
      }));
      scripts.push_back(after(disk, 1, go_away));
    }
    scripts.push_back(honest(disk));
    NbdServer server(scripts);
    auto client = open_nbd(server);
    for (size_t i = 0; i < cuts.size(); ++i) {
      auto read = Ask::read(kAt, kLength);
      EXPECT_EQ(run_one(*client, read), 0) << cuts[i];
      EXPECT_TRUE(read->all(0x77)) << cuts[i];
    }
    EXPECT_GE(client->status().replayed, cuts.size());
  }
}

TEST_P(NbdHostileTest, GreetingsThatAreNone) {
  const auto says = [&](const Words& words, bool hold, int code) {
    NbdServer server({[&](NbdPeer& peer) {
      peer.say(words);
      if (hold) peer.wait_for_end();
    }});
    auto options = nbd_options();
    if (code == ETIMEDOUT) options.handshake_timeout_ms = 50;
    const Error error = refused_nbd(server, options);
    EXPECT_EQ(error.code, code) << error.message;
    EXPECT_FALSE(error.message.empty());
  };
  says({}, false, ECONNRESET);
  says({}, true, ETIMEDOUT);
  says(Words().text("HTTP/1.1 400 Bad Request\r\n\r\n"), true, EPROTONOSUPPORT);
  says(Words().text("SSH-2.0-OpenSSH_9.2\r\n"), false, EPROTONOSUPPORT);
  says(Words().u64(NBD_INIT_PASSWD), true, ETIMEDOUT);
  says(Words().u64(NBD_INIT_PASSWD), false, ECONNRESET);
  says(Words().u64(NBD_INIT_PASSWD).u64(NBD_OLDSTYLE_MAGIC).u64(4096).u32(0).fill(124, 0), true, EPROTONOSUPPORT);
  says(Words().u64(NBD_INIT_PASSWD).u64(42), true, EPROTONOSUPPORT);
  const Words hello = Words().u64(NBD_INIT_PASSWD).u64(NBD_OPTS_MAGIC).u16(NBD_FLAG_FIXED_NEWSTYLE);
  says(hello, true, ETIMEDOUT);
  says(hello, false, ECONNRESET);
  says(Words(hello).fill(20, 0), true, EPROTO);
  const Words answer = Words(hello).u64(NBD_OPT_REPLY_MAGIC);
  says(Words(answer).u32(NBD_OPT_GO).u32(NBD_REP_ACK).u32(0), true, EPROTO);
  says(Words(answer).u32(NBD_OPT_EXTENDED_HEADERS).u32(NBD_REP_ACK).u32(0xffffffff), true, EPROTO);
  says(Words(answer).u32(NBD_OPT_EXTENDED_HEADERS).u32(NBD_REP_ERR_TLS_REQD).u32(0), true, EPROTONOSUPPORT);
  says(Words(answer).u32(NBD_OPT_EXTENDED_HEADERS).u32(NBD_REP_ERR_SHUTDOWN).u32(0), true, ESHUTDOWN);
}

TEST_P(NbdHostileTest, WhatIsToldOfAnExportIsNotBelieved) {
  const auto refuses = [&](const char* what, const std::function<void(NbdTold&)>& spoil) {
    SCOPED_TRACE(what);
    NbdTold told;
    spoil(told);
    NbdServer server({[&](NbdPeer& peer) {
      peer.greet(told);
      peer.wait_for_end();
    }});
    EXPECT_EQ(refused_nbd(server).code, EPROTO);
  };
  refuses("size 2^63", [](NbdTold& told) { told.size_bytes = uint64_t{1} << 63; });
  refuses("size -1", [](NbdTold& told) { told.size_bytes = ~uint64_t{0}; });
  refuses("blocks of nothing", [](NbdTold& told) { told.least = 0; });
  refuses("blocks of 513 bytes", [](NbdTold& told) { told.least = 513; });
  refuses("blocks of 2^31 bytes", [](NbdTold& told) { told.least = told.most = 1u << 31; });
  refuses("less than a block at most", [](NbdTold& told) { told.least = 4096, told.most = 512; });
}

TEST_P(NbdHostileTest, AServerThatSpeaksAByteAtATime) {
  // All of it, the negotiation too, in sends of one byte; the client sees as many receives as the sockets make of them.
  for (const Headers headers : kAll) {
    NbdDisk disk;
    std::fill(disk.bytes.begin(), disk.bytes.end(), std::byte{0x77});
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
      while (const auto asked = peer.request()) {
        if (asked->type == NBD_CMD_DISC) return;
        for (const std::byte byte : disk.apply(peer, *asked))
          if (!peer.send_byte(std::to_integer<uint8_t>(byte))) return;
      }
    })});
    auto client = open_nbd(server);
    Asks all;
    for (uint64_t i = 0; i < 8; ++i) all.push_back(Ask::read(512 * i, 512 + i));
    run(*client, all);
    for (const auto& ask : all) {
      EXPECT_EQ(ask->error, 0);
      EXPECT_TRUE(ask->all(0x77));
    }
    EXPECT_EQ(server.connections(), 1u);
  }
  NbdServer slow({[&](NbdPeer& peer) {
    const Words answer = Words().u64(NBD_OPT_REPLY_MAGIC).u32(NBD_OPT_EXTENDED_HEADERS).u32(NBD_REP_ERR_UNSUP).u32(4000)
                             .fill(4000, 'x');
    peer.say_hello();
    for (const std::byte byte : answer) {
      if (!peer.send_byte(std::to_integer<uint8_t>(byte))) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }});
  auto options = nbd_options();
  options.handshake_timeout_ms = 100;
  EXPECT_EQ(refused_nbd(slow, options).code, ETIMEDOUT) << "a byte at a time is no progress";
}

TEST_P(NbdHostileTest, AServerThatFallsSilent) {
  // A machine that stalls may need more for an honest negotiation.
  for (uint64_t patience_ms = 100;; patience_ms *= 4) {
    NbdServer server({after(disk_, 0, [](NbdPeer& peer) { peer.wait_for_end(); }),
                      [](NbdPeer& peer) { peer.wait_for_end(); },  // in the negotiation
                      honest(disk_)});
    auto options = nbd_options();
    options.request_timeout_ms = 200;
    options.handshake_timeout_ms = patience_ms;
    auto opened = NbdClient::open(*backend_, clock_, server.dialer(), options);
    if (!opened) {
      ASSERT_LT(patience_ms, 60'000u) << opened.error().message;
      continue;
    }
    const auto client = std::move(opened).value();
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), ETIMEDOUT);
    EXPECT_EQ(client->status().timed_out, 1u);
    // It has gone from the silent connection, and does without the second one, too.
    EXPECT_TRUE(comes([&] { return run_one(*client, Ask::read(0, 512)) == 0; }));
    EXPECT_GE(server.connections(), 3u);
    return;
  }
}

TEST_P(NbdHostileTest, AnEarlyReplyToAWriteWaitsForTheRestOfIt) {
  NbdDisk disk(16u << 20);
  disk.told.most = 8u << 20;
  for (const Headers headers : kAll) {
    disk.told.headers = headers;
    NbdServer server({after(disk, 0, [&](NbdPeer& peer) {
      auto asked = peer.header();
      ASSERT_TRUE(asked);
      peer.say(peer.reply(*asked, NBD_ENOSPC));
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      asked->data.resize(asked->length);
      ASSERT_TRUE(peer.receive(asked->data.data(), asked->data.size()));
      EXPECT_TRUE(std::all_of(asked->data.begin(), asked->data.end(), [](std::byte byte) { return byte == std::byte{5}; }));
      serve(peer, disk);
    })});
    auto client = open_nbd(server);
    EXPECT_EQ(run_one(*client, Ask::write(0, 8u << 20, 5)), ENOSPC);
    EXPECT_EQ(run_one(*client, Ask::read(0, 512)), 0);
    EXPECT_EQ(server.connections(), 1u);
  }
}

TEST_P(NbdHostileTest, OptionsOutOfTheirRanges) {
  NbdServer server({honest(disk_)});
  const auto invalid = [&](const std::function<void(NbdOptions&)>& spoil) {
    auto options = nbd_options();
    spoil(options);
    EXPECT_EQ(refused_nbd(server, options).code, EINVAL);
  };
  invalid([](NbdOptions& options) { options.connections = 0; });
  invalid([](NbdOptions& options) { options.connections = kMaxNbdConnections + 1; });
  invalid([](NbdOptions& options) { options.slots = 0; });
  invalid([](NbdOptions& options) { options.slots = kMaxNbdSlots + 1; });
  invalid([](NbdOptions& options) { options.dead_time_ms = 0; });
  EXPECT_EQ(server.connections(), 0u);
  invalid([](NbdOptions& options) { options.export_name = std::string(NBD_MAX_STRING + 1, 'x'); });
  invalid([](NbdOptions& options) { options.export_name = std::string(3, '\0'); });
}

INSTANTIATE_TEST_SUITE_P(Io, NbdHostileTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::client::testing
