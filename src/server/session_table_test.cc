// SPDX-License-Identifier: GPL-2.0-only
// The rules of DESIGN 4.2, one by one, on the table alone.
#include "server/session_table.h"

#include <gtest/gtest.h>

#include <functional>

#include "io/backends_test.h"

namespace netblk::server {
namespace {

using proto::Hello2;

Id id_of(uint8_t value) {
  Id id;
  id.bytes.fill(value);
  return id;
}

Hello2 writer(uint8_t client, uint64_t epoch = 1) {
  Hello2 hello;
  hello.flags = NETBLK2_HELLO_WRITE | NETBLK2_HELLO_BEGIN;
  hello.client_id = id_of(client);
  hello.session_id = random_id();
  hello.epoch = epoch;
  return hello;
}

Hello2 writer_by_force(uint8_t client) {
  Hello2 hello = writer(client);
  hello.flags |= NETBLK2_HELLO_TAKEOVER;
  return hello;
}

class SilentStream final : public io::Stream {
 public:
  bool recv(io::Op& op, std::span<std::byte>) override { return op.finish_now(0); }
  int32_t recv_now(std::span<std::byte>) override { return 0; }
  bool send(io::Op& op, std::span<const iovec>) override { return op.finish_now(-EPIPE); }
  void shutdown() override {}
  void shutdown_read() override {}
  void shutdown_write() override {}
  size_t unsent_bytes() const override { return 0; }
  void abort() override { aborted = true; }
  bool aborted = false;
};

// A store that remembers its record over a restart of the server, and whose generation the test moves.
class RememberingDevice final : public block::Device {
 public:
  explicit RememberingDevice(bool read_only = false) : Device({.size_bytes = 1 << 20, .read_only = read_only}) {}
  block::Generation generation() const override { return now; }
  std::vector<std::byte> owners() const override { return record; }
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> bytes) override {
    if (delay_ms != 0) {
      io::SleepUntil pause(io::loop_of(loop), io::loop_of(loop).now_ms() + delay_ms);
      co_await pause;
    }
    if (failing) co_return make_error(EIO, "the disk is gone");
    record = std::move(bytes);
    co_return Ok{};
  }
  block::Generation now{random_id(), 1};
  std::vector<std::byte> record;
  bool failing = false;
  uint64_t delay_ms = 0;

 protected:
  void start(block::Request&, block::Completion completion) override { std::move(completion).finish(0); }
};

class SessionTableTest : public test::BackendTest {
 public:
  // A connection that is in the table until it leaves.
  struct Peer {
    explicit Peer(SessionContext& context)
        : link(context, std::make_unique<SilentStream>(), "a peer"), presence(std::make_shared<Presence>(link)) {}
    Link link;
    std::shared_ptr<Presence> presence;
    Admission got;
    bool asked = false;
    uint32_t status() const { return got.status; }
  };

  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    context_ = std::unique_ptr<SessionContext>(new SessionContext{loop(), {}, {}});
    start();
  }
  void TearDown() override {
    for (auto& peer : peers_) table_->leave(*peer->presence);
  }
  // The server's process, anew.
  void start() {
    if (table_ != nullptr)
      for (auto& peer : peers_) table_->leave(*peer->presence);
    table_ = std::make_unique<SessionTable>(device_, "disk");
  }
  Peer& ask(const Hello2& hello) {
    peers_.push_back(std::make_unique<Peer>(*context_));
    Peer& peer = *peers_.back();
    run(asking(hello, peer));
    return peer;
  }
  coro::Task<void> asking(Hello2 hello, Peer& peer) {
    peer.got = co_await table_->admit(hello, peer.presence);
    peer.asked = true;
  }
  // `hello` has to wait for the end of `old`; it is let in when that has come, and not before.
  coro::Task<void> fencing(Hello2 hello, Peer& fresh, Peer& old) {
    coro::Scope scope;
    scope.spawn(asking(hello, fresh));
    io::SleepUntil pause(loop(), loop().now_ms() + 20);
    co_await pause;
    EXPECT_FALSE(fresh.asked) << "let in before the fence was done";
    EXPECT_TRUE(old.link.gone()) << "the old connection may still submit";
    table_->leave(*old.presence);
    co_await scope.join();
    EXPECT_TRUE(fresh.asked);
  }
  Peer& ask_fencing(const Hello2& hello, Peer& old) {
    peers_.push_back(std::make_unique<Peer>(*context_));
    Peer& fresh = *peers_.back();
    run(fencing(hello, fresh, old));
    return fresh;
  }
  // Takes over, and the record of that does not reach the disk.
  void take_over_unrecorded(const Hello2& hello, Peer& owner) {
    device_.failing = true;
    EXPECT_EQ(ask_fencing(hello, owner).status(), NETBLK2_EIO);
  }
  Hello2 resume(const Hello2& hello, const Peer& peer, uint64_t epoch) {
    Hello2 again = hello;
    again.flags &= static_cast<uint16_t>(~NETBLK2_HELLO_BEGIN);
    if (peer.got.session != nullptr) again.session_id = peer.got.session->id;
    again.epoch = epoch;
    again.store_uuid = device_.now.uuid;
    again.generation = device_.now.counter;
    return again;
  }

  RememberingDevice device_;
  std::unique_ptr<SessionContext> context_;
  std::unique_ptr<SessionTable> table_;
  std::vector<std::unique_ptr<Peer>> peers_;
};
NETBLK_ON_BOTH_BACKENDS(SessionTableTest);

TEST_P(SessionTableTest, AnOwnerIsDurableBeforeItIsGranted) {
  Peer& owner = ask(writer(1));
  ASSERT_EQ(owner.status(), NETBLK2_OK);
  EXPECT_EQ(owner.got.flags, NETBLK2_WELCOME_NEW);
  EXPECT_TRUE(decode_owners(device_.record).value().has(id_of(1), owner.got.session->id));
}

TEST_P(SessionTableTest, AnOwnerThatCannotBeMadeDurableIsNotGranted) {
  device_.failing = true;
  Hello2 hello = writer(1);
  EXPECT_EQ(ask(hello).status(), NETBLK2_EIO);
  EXPECT_TRUE(device_.record.empty());
  device_.failing = false;
  ++hello.epoch;
  Peer& owner = ask(hello);
  EXPECT_EQ(owner.status(), NETBLK2_OK);
  EXPECT_EQ(owner.got.flags, NETBLK2_WELCOME_NEW);
  EXPECT_TRUE(decode_owners(device_.record).value().has(id_of(1), hello.session_id));
}

TEST_P(SessionTableTest, ASecondWriterIsToldWhoWrites) {
  ask(writer(1));
  Peer& second = ask(writer(2));
  EXPECT_EQ(second.status(), NETBLK2_EBUSY);
  EXPECT_NE(second.got.text.find(id_text(id_of(1))), std::string::npos) << second.got.text;
  Hello2 reader = writer(3);
  reader.flags = NETBLK2_HELLO_BEGIN;
  EXPECT_EQ(ask(reader).status(), NETBLK2_OK);
}

TEST_P(SessionTableTest, SharedWritersStandBesideEachOtherAndNobodyElse) {
  Hello2 one = writer(1), two = writer(2);
  one.flags |= NETBLK2_HELLO_SHARED;
  two.flags |= NETBLK2_HELLO_SHARED;
  EXPECT_EQ(ask(one).status(), NETBLK2_OK);
  EXPECT_EQ(ask(two).status(), NETBLK2_OK);
  EXPECT_EQ(ask(writer(3)).status(), NETBLK2_EBUSY);
  EXPECT_EQ(table_->owners().list.size(), 2u);
}

TEST_P(SessionTableTest, SharingIsNotForcedUponAnExclusiveOwner) {
  ask(writer(1));
  Hello2 two = writer(2);
  two.flags |= NETBLK2_HELLO_SHARED;
  EXPECT_EQ(ask(two).status(), NETBLK2_EBUSY);
}

TEST_P(SessionTableTest, ATakeoverFencesTheOwnerForGood) {
  const Hello2 first = writer(1);
  Peer& owner = ask(first);
  const Id old_session = owner.got.session->id;
  const Hello2 second = writer_by_force(2);
  EXPECT_EQ(ask_fencing(second, owner).status(), NETBLK2_OK);
  EXPECT_EQ(old_session, first.session_id);
  EXPECT_EQ(ask(resume(first, owner, 2)).status(), NETBLK2_ESTALE);
  EXPECT_EQ(ask(writer(1)).status(), NETBLK2_EBUSY);
}

TEST_P(SessionTableTest, AFencedClientDoesNotComeBackAfterARestart) {
  const Hello2 first = writer(1);
  Peer& owner = ask(first);
  const Hello2 second = writer_by_force(2);
  Peer& taker = ask_fencing(second, owner);
  start();
  EXPECT_EQ(ask(resume(first, owner, 2)).status(), NETBLK2_ESTALE);
  EXPECT_EQ(ask(resume(second, taker, 2)).status(), NETBLK2_OK);
}

TEST_P(SessionTableTest, ANewSessionFencesItsClientsOlderOne) {
  const Hello2 hello = writer(1);
  Peer& old = ask(hello);
  Peer& fresh = ask_fencing(writer(1), old);
  EXPECT_EQ(fresh.status(), NETBLK2_OK);
  EXPECT_NE(fresh.got.session->id, old.got.session->id);
  EXPECT_EQ(ask(resume(hello, old, 9)).status(), NETBLK2_ESTALE);
  start();
  EXPECT_EQ(ask(resume(hello, old, 9)).status(), NETBLK2_ESTALE) << "not after a restart either";
}

TEST_P(SessionTableTest, ResumeWaitsForTheEndOfTheOldConnection) {
  const Hello2 hello = writer(1);
  Peer& old = ask(hello);
  Peer& fresh = ask_fencing(resume(hello, old, 2), old);
  EXPECT_EQ(fresh.status(), NETBLK2_OK);
  EXPECT_EQ(fresh.got.session, old.got.session) << "the ledger goes on";
  EXPECT_EQ(fresh.got.flags, 0);
}

TEST_P(SessionTableTest, AnEpochThatIsNotHigherIsRefused) {
  const Hello2 hello = writer(1, 5);
  Peer& peer = ask(hello);
  EXPECT_EQ(ask(resume(hello, peer, 5)).status(), NETBLK2_EAGAIN);
  EXPECT_EQ(ask(resume(hello, peer, 4)).status(), NETBLK2_EAGAIN);
  EXPECT_FALSE(peer.link.gone()) << "the connection that is there stays";
}

TEST_P(SessionTableTest, ADelayedHelloLosesAgainstALaterOne) {
  const Hello2 hello = writer(1);
  Peer& old = ask(hello);
  Peer& fresh = ask_fencing(resume(hello, old, 7), old);
  EXPECT_EQ(ask(resume(hello, fresh, 6)).status(), NETBLK2_EAGAIN);
  EXPECT_FALSE(fresh.link.gone());
}

TEST_P(SessionTableTest, FurtherConnectionsJoin) {
  const Hello2 hello = writer(1);
  Peer& first = ask(hello);
  Hello2 second = resume(hello, first, 1);
  second.connection = 1;
  Peer& peer = ask(second);
  EXPECT_EQ(peer.status(), NETBLK2_OK);
  EXPECT_EQ(peer.got.session, first.got.session);
  EXPECT_FALSE(first.link.gone());
  second.connection = NETBLK2_MAX_CONNECTIONS;
  EXPECT_EQ(ask(second).status(), NETBLK2_EPROTO);
}

TEST_P(SessionTableTest, AnotherClientDoesNotGetIntoASession) {
  Peer& owner = ask(writer(1));
  Hello2 thief = resume(writer(2), owner, 9);
  EXPECT_EQ(thief.session_id, owner.got.session->id);
  EXPECT_EQ(ask(thief).status(), NETBLK2_EPERM);
  EXPECT_FALSE(owner.link.gone());
}

TEST_P(SessionTableTest, ACrashedServerAdoptsItsOwnerWithAnEmptyLedger) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  owner.got.session->ledger.take(0, 77, false);
  start();
  Peer& back = ask(resume(hello, owner, 2));
  EXPECT_EQ(back.status(), NETBLK2_OK);
  EXPECT_EQ(back.got.flags, NETBLK2_WELCOME_ADOPTED);
  EXPECT_EQ(back.got.session->id, owner.got.session->id);
  EXPECT_EQ(back.got.session->ledger.take(0, 77, false).verdict, Ledger::Verdict::kNew);
}

TEST_P(SessionTableTest, AMovedGenerationIsForTheClientToJudge) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  const Hello2 back = resume(hello, owner, 2);
  start();
  ++device_.now.counter;
  Peer& again = ask(back);
  EXPECT_EQ(again.status(), NETBLK2_OK);
  EXPECT_EQ(again.got.flags, NETBLK2_WELCOME_ADOPTED);
  EXPECT_EQ(again.got.session->id, owner.got.session->id);
}

TEST_P(SessionTableTest, AnotherStoreUnderTheSameNameIsRefused) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  const Hello2 back = resume(hello, owner, 2);
  start();
  device_.now.uuid = random_id();
  EXPECT_EQ(ask(back).status(), NETBLK2_ESTALE);
}

TEST_P(SessionTableTest, ASessionThatOnlyReadsEndsItsClientsWriterForGood) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  Hello2 reader = writer(1);
  reader.flags = NETBLK2_HELLO_BEGIN;
  EXPECT_EQ(ask_fencing(reader, owner).status(), NETBLK2_OK);
  EXPECT_TRUE(decode_owners(device_.record).value().list.empty());
  start();
  EXPECT_EQ(ask(resume(hello, owner, 9)).status(), NETBLK2_ESTALE);
}

// The answer to a first hello was lost: the client asks again, and is not fenced by itself.
TEST_P(SessionTableTest, BeginningASessionTwiceIsBeginningItOnce) {
  Hello2 hello = writer(1);
  Peer& lost = ask(hello);
  hello.epoch = 2;
  Peer& again = ask_fencing(hello, lost);
  EXPECT_EQ(again.status(), NETBLK2_OK);
  EXPECT_EQ(again.got.session, lost.got.session);
  hello.epoch = 1;
  EXPECT_EQ(ask(hello).status(), NETBLK2_EAGAIN) << "the first hello, late";
  EXPECT_FALSE(again.link.gone());
}

TEST_P(SessionTableTest, BeginningASessionAgainAfterARestartIsNoRival) {
  Hello2 hello = writer(1);
  ask(hello);
  start();
  hello.epoch = 2;
  EXPECT_EQ(ask(hello).status(), NETBLK2_OK);
  EXPECT_EQ(table_->owners().list.size(), 1u);
}

TEST_P(SessionTableTest, WithoutBeginNoSessionBegins) {
  Hello2 hello = writer(1);
  hello.flags = NETBLK2_HELLO_WRITE;
  EXPECT_EQ(ask(hello).status(), NETBLK2_ESTALE);
  EXPECT_EQ(table_->sessions(), 0u);
}

// A session is told that it is over when nothing of it reaches the store any more, and not before.
TEST_P(SessionTableTest, StaleIsSaidAfterTheFence) {
  const Hello2 first = writer(1);
  Peer& old = ask(first);
  const auto scenario = [](SessionTableTest& t, const Hello2& hello, Peer& owner) -> coro::Task<void> {
    coro::Scope inner;
    t.peers_.push_back(std::make_unique<Peer>(*t.context_));
    Peer& taker = *t.peers_.back();
    const Hello2 takeover = writer_by_force(2);
    inner.spawn(t.asking(takeover, taker));
    t.peers_.push_back(std::make_unique<Peer>(*t.context_));
    Peer& back = *t.peers_.back();
    inner.spawn(t.asking(t.resume(hello, owner, 2), back));
    io::SleepUntil pause(t.loop(), t.loop().now_ms() + 20);
    co_await pause;
    EXPECT_FALSE(back.asked) << "told that it is over while its requests may still be applied";
    t.table_->leave(*owner.presence);
    co_await inner.join();
    EXPECT_EQ(back.status(), NETBLK2_ESTALE);
    EXPECT_EQ(taker.status(), NETBLK2_OK);
  };
  run(scenario(*this, first, old));
}

// A takeover whose record never reaches the disk has not happened: after a restart the old owner is the owner. So it is told
// to try again until the record no longer names it.
TEST_P(SessionTableTest, StaleIsSaidWhenTheRecordNamesTheNewOwner) {
  const Hello2 first = writer(1);
  Peer& owner = ask(first);
  const Hello2 second = writer_by_force(2);
  take_over_unrecorded(second, owner);
  EXPECT_EQ(ask(resume(first, owner, 2)).status(), NETBLK2_EIO);
  // the server's process dies here: nobody has taken the disk over
  const std::vector<std::byte> before = device_.record;
  device_.failing = false;
  start();
  Peer& back = ask(resume(first, owner, 3));
  EXPECT_EQ(back.status(), NETBLK2_OK);
  EXPECT_EQ(back.got.flags, NETBLK2_WELCOME_ADOPTED);
  EXPECT_EQ(device_.record, before);
}

// The other way round: who is told that it is over stays out, also when it asked before the new owner was let in.
TEST_P(SessionTableTest, WhoIsToldThatItIsOverHasMadeTheNewOwnerDurable) {
  const Hello2 first = writer(1);
  Peer& owner = ask(first);
  const Hello2 second = writer_by_force(2);
  take_over_unrecorded(second, owner);
  device_.failing = false;
  EXPECT_EQ(ask(resume(first, owner, 2)).status(), NETBLK2_ESTALE);
  EXPECT_TRUE(decode_owners(device_.record).value().has(id_of(2), second.session_id));
  start();
  EXPECT_EQ(ask(resume(first, owner, 3)).status(), NETBLK2_ESTALE);
  Hello2 again = second;
  again.epoch = 2;
  EXPECT_EQ(ask(again).status(), NETBLK2_OK);
}

TEST_P(SessionTableTest, ARecordThatCannotBeReadLetsNobodyBackIn) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  device_.record.resize(3);
  start();
  EXPECT_EQ(ask(resume(hello, owner, 2)).status(), NETBLK2_ESTALE);
  EXPECT_EQ(ask(writer(1)).status(), NETBLK2_OK);
}

TEST_P(SessionTableTest, EndOfSessionReleasesTheOwnerDurably) {
  const Hello2 hello = writer(1);
  Peer& owner = ask(hello);
  uint32_t status = 99;
  const auto ending = [](SessionTable& table, Peer& peer, uint32_t& out) -> coro::Task<void> {
    out = co_await table.end(*peer.got.session, *peer.presence);
  };
  run(ending(*table_, owner, status));
  EXPECT_EQ(status, NETBLK2_OK);
  EXPECT_TRUE(decode_owners(device_.record).value().list.empty());
  EXPECT_EQ(ask(resume(hello, owner, 2)).status(), NETBLK2_ESTALE);
  EXPECT_EQ(ask(writer(2)).status(), NETBLK2_OK);
}

TEST_P(SessionTableTest, SessionsThatOnlyReadAreForgottenAndTakenBack) {
  Hello2 hello = writer(1);
  hello.flags = NETBLK2_HELLO_BEGIN;
  Peer& reader = ask(hello);
  table_->leave(*reader.presence);
  EXPECT_EQ(table_->sessions(), 0u);
  EXPECT_EQ(ask(resume(hello, reader, 2)).got.flags, NETBLK2_WELCOME_ADOPTED);
}

TEST_P(SessionTableTest, WritersAreBounded) {
  for (uint32_t i = 0; i < limits::kMaxOwners + 10; ++i) {
    Hello2 hello = writer(1);
    hello.client_id.bytes[0] = static_cast<uint8_t>(i + 1);
    hello.session_id = random_id();
    hello.flags |= NETBLK2_HELLO_SHARED;
    Peer& peer = ask(hello);
    ASSERT_EQ(peer.status(), NETBLK2_OK) << i;
    table_->leave(*peer.presence);
  }
  EXPECT_EQ(table_->owners().list.size(), limits::kMaxOwners);
  EXPECT_LE(table_->sessions(), limits::kMaxOwners);
}

TEST_P(SessionTableTest, AHelloWithoutAnIdOrAnEpochIsRefused) {
  Hello2 hello = writer(1);
  hello.epoch = 0;
  EXPECT_EQ(ask(hello).status(), NETBLK2_EPROTO);
  hello = writer(0);
  EXPECT_EQ(ask(hello).status(), NETBLK2_EPROTO);
  hello = writer(1);
  hello.session_id = {};
  EXPECT_EQ(ask(hello).status(), NETBLK2_EPROTO);
  EXPECT_EQ(table_->sessions(), 0u);
}

}  // namespace
}  // namespace netblk::server
