// SPDX-License-Identifier: GPL-2.0-only
#include "server/link.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "coro/scope.h"
#include "io/backends_test.h"

namespace netblk::server {
namespace {

class LinkTest : public test::BackendTest {};
NETBLK_ON_BOTH_BACKENDS(LinkTest);

// A client that takes nothing: what is sent waits until the test ends it.
class StuckStream : public io::Stream {
 public:
  bool recv(io::Op& op, std::span<std::byte> /*into*/) override { return op.finish_now(0); }
  int32_t recv_now(std::span<std::byte> /*into*/) override { return -EAGAIN; }
  bool send(io::Op& op, std::span<const iovec> /*parts*/) override {
    if (aborted_) return op.finish_now(-EPIPE);
    ++sends;
    sending_ = &op;
    return op.begin();
  }
  void shutdown() override { abort(); }
  void shutdown_read() override {}
  void shutdown_write() override {}
  size_t unsent_bytes() const override { return 0; }
  void abort() override {
    aborted_ = true;
    end_send(-EPIPE);
  }
  void end_send(int32_t result) {
    if (sending_ != nullptr) std::exchange(sending_, nullptr)->complete(result);
  }
  int sends = 0;

 private:
  io::Op* sending_ = nullptr;
  bool aborted_ = false;
};

coro::Task<void> send_a_byte(Link& link) {
  std::byte byte{};
  std::array<iovec, 1> parts{{{&byte, 1}}};
  co_await link.send(parts);
}

// Scenario: a process that is stopped and goes on again and again, as a container that is frozen, whose sends are given up
// each time. Its clients' deadlines went on and on with them, and a stop in order took all its time.
coro::Task<void> deadline_of_a_send(LinkTest& t, bool drains) {
  SessionContext context{t.loop(), {}, {}};
  context.send_timeout_ms = 1000;
  auto made = std::make_unique<StuckStream>();
  StuckStream& stream = *made;
  Link link(context, std::move(made), "a client");
  coro::Scope scope;
  if (drains) link.drain("the server stops");
  scope.spawn(send_a_byte(link));
  while (stream.sends == 0) co_await test::NextRound{};
  // Not earlier than the deadline that it has.
  const uint64_t deadline_ms = t.loop().now_ms() + (drains ? limits::kDrainStallTimeoutMs : context.send_timeout_ms);
  for (int sends = 1; sends <= 3; ++sends) {
    co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 5);
    stream.end_send(-EINTR);
    while (stream.sends == sends) co_await test::NextRound{};
  }
  EXPECT_FALSE(link.gone());
  link.sweep(deadline_ms);
  EXPECT_TRUE(link.gone());
  link.abort("the test is over");
  co_await scope.join();
  EXPECT_EQ(link.close_reason(), drains ? "the server stops" : "the client took no reply in time");
}
TEST_P(LinkTest, ASendThatIsGivenUpKeepsItsDeadline) { run(deadline_of_a_send(*this, false)); }
TEST_P(LinkTest, AndInADrain) { run(deadline_of_a_send(*this, true)); }

coro::Task<void> send_two_bytes(Link& link) {
  std::array<std::byte, 2> bytes{};
  std::array<iovec, 1> parts{{{bytes.data(), bytes.size()}}};
  co_await link.send(parts);
}

// A client that takes a byte now and then is served for as long as it likes.
coro::Task<void> progress(LinkTest& t) {
  SessionContext context{t.loop(), {}, {}};
  context.send_timeout_ms = 1000;
  auto made = std::make_unique<StuckStream>();
  StuckStream& stream = *made;
  Link link(context, std::move(made), "a client");
  coro::Scope scope;
  scope.spawn(send_two_bytes(link));
  while (stream.sends == 0) co_await test::NextRound{};
  const uint64_t deadline_ms = t.loop().now_ms() + context.send_timeout_ms;
  co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 5);
  stream.end_send(1);
  while (stream.sends == 1) co_await test::NextRound{};
  link.sweep(deadline_ms);
  EXPECT_FALSE(link.gone());
  stream.end_send(1);
  co_await scope.join();
  EXPECT_FALSE(link.gone());
}
TEST_P(LinkTest, WhatIsTakenRenewsIt) { run(progress(*this)); }

}  // namespace
}  // namespace netblk::server
