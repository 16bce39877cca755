// SPDX-License-Identifier: GPL-2.0-only
// Streams and listeners on both back ends.
#include "io/stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string_view>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "io/backends_test.h"

namespace netblk::io {
namespace {

using test::BackendTest;
using test::FdPair;
using test::settle;
using test::tcp_pair;
using test::TestOp;
using test::unix_pair;

class StreamTest : public BackendTest {};
NETBLK_ON_BOTH_BACKENDS(StreamTest);

class ListenerTest : public BackendTest {};
NETBLK_ON_BOTH_BACKENDS(ListenerTest);

void write_all(int fd, std::string_view text) {
  EXPECT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

iovec part_of(std::string_view text) { return {const_cast<char*>(text.data()), text.size()}; }

coro::Task<void> receive_into(Stream& stream, std::span<std::byte> into, int32_t& result) {
  const int32_t got = co_await recv(stream, into);
  result = got;
}

// --- Receiving -----------------------------------------------------------------------------------------------------

coro::Task<void> recv_what_is_there(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  write_all(fds.peer.get(), "hello");
  std::array<std::byte, 64> buffer{};
  const int32_t got = co_await recv(*stream, buffer);
  EXPECT_EQ(got, 5) << "a receive ends with what is there, however much was asked for";
  EXPECT_EQ(text_of(std::span(buffer).first(5)), "hello");
  write_all(fds.peer.get(), "abcdef");
  const int32_t first = co_await recv(*stream, std::span(buffer).first(4));
  EXPECT_EQ(first, 4);
  const int32_t rest = co_await recv(*stream, buffer);
  EXPECT_EQ(rest, 2);
}

coro::Task<void> wait_until_readable(Stream& stream, int32_t& result) {
  const int32_t told = co_await readable(stream);
  result = told;
}

coro::Task<void> readable_waits(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  for (int round = 0; round < 3; ++round) {
    int32_t result = -1;
    coro::Scope scope;
    scope.spawn(wait_until_readable(*stream, result));
    co_await settle();
    EXPECT_EQ(result, -1);
    write_all(fds.peer.get(), "late");
    co_await scope.join();
    EXPECT_GE(result, 0);
    EXPECT_EQ(stream->recv_now(buffer), 4);
    EXPECT_EQ(stream->recv_now(buffer), -EAGAIN);
  }
  fds.peer.reset();
  const int32_t at_the_end = co_await readable(*stream);
  EXPECT_GE(at_the_end, 0);
  EXPECT_EQ(stream->recv_now(buffer), 0);
}

TEST_P(StreamTest, ReadableWaitsAndTakesNothing) { run(readable_waits(*this)); }

TEST_P(StreamTest, RecvTakesWhatIsThere) { run(recv_what_is_there(*this)); }

coro::Task<void> recv_waits(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  EXPECT_EQ(result, -1);
  write_all(fds.peer.get(), "late");
  co_await scope.join();
  EXPECT_EQ(result, 4);
}

TEST_P(StreamTest, RecvWaitsForData) { run(recv_waits(*this)); }

coro::Task<void> end_of_stream(StreamTest& t, FdPair fds) {
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  write_all(fds.peer.get(), "last");
  fds.peer.reset();
  std::array<std::byte, 64> buffer{};
  const int32_t last = co_await recv(*stream, buffer);
  EXPECT_EQ(last, 4);
  for (int i = 0; i < 2; ++i) {
    const int32_t end = co_await recv(*stream, buffer);
    EXPECT_EQ(end, 0);
  }
}

TEST_P(StreamTest, TheEndOfTheStreamIsZeroUnix) { run(end_of_stream(*this, unix_pair())); }
TEST_P(StreamTest, TheEndOfTheStreamIsZeroTcp) { run(end_of_stream(*this, tcp_pair())); }

coro::Task<void> end_while_waiting(StreamTest& t) {
  FdPair fds = tcp_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  fds.peer.reset();
  co_await scope.join();
  EXPECT_EQ(result, 0);
}

TEST_P(StreamTest, ARecvInFlightSeesTheEnd) { run(end_while_waiting(*this)); }

coro::Task<void> reset_by_peer(StreamTest& t) {
  FdPair fds = tcp_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  const linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fds.peer.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  fds.peer.reset();
  co_await scope.join();
  EXPECT_EQ(result, -ECONNRESET);
}

TEST_P(StreamTest, AResetIsAnError) { run(reset_by_peer(*this)); }

// --- Sending -------------------------------------------------------------------------------------------------------

coro::Task<void> gathered_send(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  const std::array parts = {part_of("one "), part_of(""), part_of("two "), part_of("three")};
  const int32_t sent = co_await send(*stream, parts);
  EXPECT_EQ(sent, 13);
  std::array<char, 64> buffer{};
  EXPECT_EQ(::recv(fds.peer.get(), buffer.data(), buffer.size(), 0), 13);
  EXPECT_STREQ(buffer.data(), "one two three");
}

TEST_P(StreamTest, SendGathersItsParts) { run(gathered_send(*this)); }

coro::Task<void> most_parts(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  const std::vector<iovec> parts(limits::kKernelMaxIov, part_of("x"));
  const int32_t sent = co_await send(*stream, parts);
  EXPECT_EQ(sent, static_cast<int32_t>(limits::kKernelMaxIov));
}

TEST_P(StreamTest, SendTakesAsManyPartsAsTheKernel) { run(most_parts(*this)); }

coro::Task<void> send_all(Stream& stream, std::span<const std::byte> from, int& short_sends) {
  while (!from.empty()) {
    // Three parts, so that a short send ends inside any of them.
    const size_t third = from.size() / 3;
    auto* const base = const_cast<std::byte*>(from.data());
    const std::array<iovec, 3> parts = {iovec{base, third}, iovec{base + third, third},
                                        iovec{base + 2 * third, from.size() - 2 * third}};
    const int32_t sent = co_await send(stream, parts);
    EXPECT_GT(sent, 0);
    if (sent <= 0) break;
    if (static_cast<size_t>(sent) < from.size()) ++short_sends;
    from = from.subspan(static_cast<size_t>(sent));
  }
  stream.shutdown();
}

coro::Task<void> recv_all(Stream& stream, std::vector<std::byte>& into) {
  std::array<std::byte, 777> buffer{};
  for (;;) {
    const int32_t got = co_await recv(stream, buffer);
    EXPECT_GE(got, 0);
    if (got <= 0) co_return;
    into.insert(into.end(), buffer.begin(), buffer.begin() + got);
  }
}

std::vector<std::byte> some_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  uint64_t state = 88172645463325252;
  for (std::byte& one : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    one = static_cast<std::byte>(state);
  }
  return bytes;
}

coro::Task<void> short_sends(StreamTest& t, FdPair fds, size_t count_bytes) {
  const auto ours = t.loop().make_stream(std::move(fds.ours));
  const auto peer = t.loop().make_stream(std::move(fds.peer));
  const std::vector<std::byte> data = some_bytes(count_bytes);
  std::vector<std::byte> arrived;
  int count = 0;
  coro::Scope scope;
  scope.spawn(send_all(*ours, data, count));
  scope.spawn(recv_all(*peer, arrived));
  co_await scope.join();
  EXPECT_TRUE(arrived == data);
  EXPECT_GT(count, 0) << "no send was short: the test does not test";
}

TEST_P(StreamTest, ShortSendsAreNormalOnUnixSockets) {
  FdPair fds = unix_pair();
  const int tiny = 4096;
  ::setsockopt(fds.ours.get(), SOL_SOCKET, SO_SNDBUF, &tiny, sizeof tiny);
  run(short_sends(*this, std::move(fds), 1'000'003));
}

// Tiny buffers would make TCP wait for delayed acknowledgements: more than the default ones hold does it too.
TEST_P(StreamTest, ShortSendsAreNormalOnTcp) { run(short_sends(*this, tcp_pair(), 24'000'001)); }

coro::Task<void> send_to_nobody(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  fds.peer.reset();
  const std::array parts = {part_of("gone")};
  const int32_t sent = co_await send(*stream, parts);
  EXPECT_EQ(sent, -EPIPE) << "and no SIGPIPE ended the test";
}

TEST_P(StreamTest, SendWithoutAPeerIsAnErrorAndNoSignal) { run(send_to_nobody(*this)); }

// --- Ending what is in flight --------------------------------------------------------------------------------------

// Started by hand, so that the test sees when it is in flight. Memory that is given back too early is the sanitizers'
// to find: the buffer is freed by the completion itself.
struct RecvOp : TestOp {
  explicit RecvOp(size_t size) : buffer(std::make_unique<std::byte[]>(size)), size_bytes(size) {
    on_end = [](TestOp& self) { static_cast<RecvOp&>(self).buffer.reset(); };
  }
  std::span<std::byte> bytes() { return {buffer.get(), size_bytes}; }
  std::unique_ptr<std::byte[]> buffer;
  size_t size_bytes;
};

coro::Task<void> shutdown_recv(StreamTest& t, FdPair fds) {
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  RecvOp op(4096);
  EXPECT_FALSE(stream->recv(op, op.bytes()));
  co_await settle();
  EXPECT_TRUE(op.in_flight);
  stream->shutdown();
  EXPECT_TRUE(op.in_flight) << "shutdown() completed an operation itself";
  EXPECT_NE(op.buffer, nullptr);
  while (op.ends == 0) co_await test::NextRound{};
  EXPECT_LE(op.result, 0);
  EXPECT_EQ(op.buffer, nullptr);
  co_await settle();
  EXPECT_EQ(op.ends, 1);
  int32_t after = 1;
  std::array<std::byte, 8> buffer{};
  co_await receive_into(*stream, buffer, after);
  EXPECT_LE(after, 0) << "a receive after shutdown() ends at once";
}

TEST_P(StreamTest, ABufferLivesUntilTheRecvsOwnCompletionUnix) { run(shutdown_recv(*this, unix_pair())); }
TEST_P(StreamTest, ABufferLivesUntilTheRecvsOwnCompletionTcp) { run(shutdown_recv(*this, tcp_pair())); }

coro::Task<void> shutdown_send(StreamTest& t, FdPair fds) {
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::vector<std::byte> data(256 << 10);
  const std::array<iovec, 1> parts = {iovec{data.data(), data.size()}};
  TestOp op;
  int32_t sent_inline = 0;
  while (stream->send(op, parts)) {
    EXPECT_GT(op.result, 0);
    if (op.result <= 0) co_return;
    sent_inline += op.result;
  }
  co_await settle();
  EXPECT_TRUE(op.in_flight) << "the socket takes more than " << sent_inline << " bytes";
  stream->shutdown();
  EXPECT_TRUE(op.in_flight);
  while (op.ends == 0) co_await test::NextRound{};
  EXPECT_EQ(op.ends, 1);
  EXPECT_TRUE(op.result == -EPIPE || op.result == -ECONNRESET) << op.result;
}

TEST_P(StreamTest, ShutdownEndsASendInFlightUnix) { run(shutdown_send(*this, unix_pair())); }
TEST_P(StreamTest, ShutdownEndsASendInFlightTcp) { run(shutdown_send(*this, tcp_pair())); }

coro::Task<void> shutdown_read_only(StreamTest& t, FdPair fds) {
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  stream->shutdown_read();
  co_await scope.join();
  EXPECT_EQ(result, 0);
  const std::array parts = {part_of("a last reply")};
  const int32_t sent = co_await send(*stream, parts);
  EXPECT_EQ(sent, 12);
  std::array<char, 64> got{};
  EXPECT_EQ(::recv(fds.peer.get(), got.data(), got.size(), 0), 12);
}

TEST_P(StreamTest, ShutdownReadEndsOnlyReceivingUnix) { run(shutdown_read_only(*this, unix_pair())); }
TEST_P(StreamTest, ShutdownReadEndsOnlyReceivingTcp) { run(shutdown_read_only(*this, tcp_pair())); }

coro::Task<void> shutdown_write_only(StreamTest& t, FdPair fds) {
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  const std::array parts = {part_of("the last reply")};
  const int32_t sent = co_await send(*stream, parts);
  EXPECT_EQ(sent, 14);
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  stream->shutdown_write();
  std::array<char, 64> got{};
  EXPECT_EQ(::recv(fds.peer.get(), got.data(), got.size(), 0), 14) << "what was sent before is not thrown away";
  EXPECT_EQ(::recv(fds.peer.get(), got.data(), got.size(), 0), 0);
  const int32_t refused = co_await send(*stream, parts);
  EXPECT_EQ(refused, -EPIPE);
  co_await settle();
  EXPECT_EQ(result, -1) << "receiving ended too";
  write_all(fds.peer.get(), "still here");
  co_await scope.join();
  EXPECT_EQ(result, 10);
}

TEST_P(StreamTest, ShutdownWriteEndsOnlySendingUnix) { run(shutdown_write_only(*this, unix_pair())); }
TEST_P(StreamTest, ShutdownWriteEndsOnlySendingTcp) { run(shutdown_write_only(*this, tcp_pair())); }

coro::Task<void> aborted(StreamTest& t, bool recv_in_flight, ssize_t& got, int& error) {
  FdPair fds = tcp_pair();
  auto stream = t.loop().make_stream(std::move(fds.ours));
  std::array<std::byte, 64> buffer{};
  int32_t result = -1;
  coro::Scope scope;
  if (recv_in_flight) scope.spawn(receive_into(*stream, buffer, result));
  co_await settle();
  stream->abort();
  co_await scope.join();
  stream.reset();
  char byte;
  got = ::recv(fds.peer.get(), &byte, 1, 0);
  error = errno;
}

TEST_P(StreamTest, AbortSendsAReset) {
  for (const bool recv_in_flight : {false, true}) {
    ssize_t got = 0;
    int error = 0;
    run(aborted(*this, recv_in_flight, got, error));
    EXPECT_EQ(got, -1) << "the peer sees an orderly end";
    if (got < 0) {
      EXPECT_EQ(error, ECONNRESET);
    }
  }
}

coro::Task<void> abort_unix(StreamTest& t) {
  FdPair fds = unix_pair();
  auto stream = t.loop().make_stream(std::move(fds.ours));
  stream->abort();
  stream.reset();
  char byte;
  EXPECT_EQ(::recv(fds.peer.get(), &byte, 1, 0), 0);
  co_return;
}

TEST_P(StreamTest, AbortOfWhatKnowsNoResetIsAClose) { run(abort_unix(*this)); }

coro::Task<void> abort_send(StreamTest& t) {
  FdPair fds = tcp_pair();
  const auto stream = t.loop().make_stream(std::move(fds.ours));
  std::vector<std::byte> data(1 << 20);
  const std::array<iovec, 1> parts = {iovec{data.data(), data.size()}};
  TestOp op;
  while (stream->send(op, parts)) {
    EXPECT_GT(op.result, 0);
    if (op.result <= 0) co_return;
  }
  co_await settle();
  EXPECT_TRUE(op.in_flight);
  stream->abort();
  while (op.ends == 0) co_await test::NextRound{};
  EXPECT_LT(op.result, 0);
}

TEST_P(StreamTest, AbortEndsASendInFlight) { run(abort_send(*this)); }

coro::Task<void> destroy_in_use(StreamTest& t, TestOp& op, std::span<std::byte> buffer) {
  FdPair fds = unix_pair();
  auto stream = t.loop().make_stream(std::move(fds.ours));
  stream->recv(op, buffer);
  co_await settle();
  stream.reset();
  co_await settle();
  ::_exit(0);  // it lived: the operation must not be destroyed here and abort for another reason
}

TEST_P(StreamTest, DestroyedWithAnOperationInFlightAborts) {
  auto* const op = new TestOp;  // never freed: the kernel may hold it
  static std::array<std::byte, 64> buffer;
  EXPECT_DEATH(run(destroy_in_use(*this, *op, buffer)), "destroyed");
  delete op;
}

// --- Many at once --------------------------------------------------------------------------------------------------

// Linux runs at most 20 deferred task works in one wait (IO_LOCAL_TW_DEFAULT_MAX): more would not be reapable together.
constexpr size_t kMany = 16;

struct Reaped {
  std::vector<std::unique_ptr<TestOp>>* all;
  int in_flight_at_first_run = -1;
};
Reaped reaped{};

coro::Task<void> reap_then_run(StreamTest& t) {
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<UniqueFd> peers;
  std::vector<std::unique_ptr<TestOp>> ops;
  std::vector<std::array<std::byte, 8>> buffers(kMany);
  reaped = {&ops};
  for (size_t i = 0; i < kMany; ++i) {
    FdPair fds = unix_pair();
    streams.push_back(t.loop().make_stream(std::move(fds.ours)));
    peers.push_back(std::move(fds.peer));
    ops.push_back(std::make_unique<TestOp>());
    ops.back()->on_end = [](TestOp&) {
      if (reaped.in_flight_at_first_run >= 0) return;
      reaped.in_flight_at_first_run = static_cast<int>(
          std::count_if(reaped.all->begin(), reaped.all->end(), [](const auto& one) { return one->in_flight; }));
    };
    streams.back()->recv(*ops.back(), buffers[i]);
  }
  co_await settle();
  for (const UniqueFd& peer : peers) write_all(peer.get(), "x");  // they become ready together
  for (const auto& op : ops)
    while (op->ends == 0) co_await test::NextRound{};
  EXPECT_EQ(reaped.in_flight_at_first_run, 0) << "an operation ran before the others were reaped";
}

TEST_P(StreamTest, CompletionsAreAllReapedBeforeAnyIsResumed) { run(reap_then_run(*this)); }

coro::Task<void> echo(Stream& stream) {
  std::array<std::byte, 256> buffer{};
  for (;;) {
    const int32_t got = co_await recv(stream, buffer);
    if (got <= 0) co_return;
    const std::array<iovec, 1> parts = {iovec{buffer.data(), static_cast<size_t>(got)}};
    const int32_t sent = co_await send(stream, parts);
    EXPECT_EQ(sent, got);
  }
}

coro::Task<void> talk(Stream& stream, uint32_t number, int& good) {
  for (uint32_t i = 0; i < 50; ++i) {
    std::array<uint32_t, 2> message = {number, i}, reply = {};
    const std::array<iovec, 1> parts = {iovec{message.data(), sizeof message}};
    const int32_t sent = co_await send(stream, parts);
    EXPECT_EQ(sent, 8);
    const int32_t got = co_await recv(stream, std::as_writable_bytes(std::span(reply)));
    EXPECT_EQ(got, 8);
    good += reply == message;
  }
  stream.shutdown();
}

coro::Task<void> many_streams(StreamTest& t, int& good) {
  std::vector<std::unique_ptr<Stream>> streams;
  coro::Scope scope;
  for (uint32_t i = 0; i < 300; ++i) {
    FdPair fds = unix_pair();
    streams.push_back(t.loop().make_stream(std::move(fds.ours)));
    streams.push_back(t.loop().make_stream(std::move(fds.peer)));
    scope.spawn(echo(*streams[2 * i]));
    scope.spawn(talk(*streams[2 * i + 1], i, good));
  }
  co_await scope.join();
}

TEST_P(StreamTest, ManyStreamsAtOnce) {
  int good = 0;
  run(many_streams(*this, good));
  EXPECT_EQ(good, 300 * 50);
}

coro::Task<void> send_each(Stream& stream, std::span<const std::byte> from) {
  while (!from.empty()) {
    const std::array<iovec, 1> parts = {iovec{const_cast<std::byte*>(from.data()), from.size()}};
    const int32_t sent = co_await send(stream, parts);
    EXPECT_GT(sent, 0);
    if (sent <= 0) co_return;
    from = from.subspan(static_cast<size_t>(sent));
  }
}

coro::Task<void> recv_count(Stream& stream, std::vector<std::byte>& into, size_t count) {
  std::array<std::byte, 4096> buffer{};
  while (into.size() < count) {
    const int32_t got = co_await recv(stream, buffer);
    EXPECT_GT(got, 0);
    if (got <= 0) co_return;
    into.insert(into.end(), buffer.begin(), buffer.begin() + got);
  }
}

coro::Task<void> both_ways(StreamTest& t) {
  FdPair fds = unix_pair();
  const auto a = t.loop().make_stream(std::move(fds.ours));
  const auto b = t.loop().make_stream(std::move(fds.peer));
  const std::vector<std::byte> data = some_bytes(600'000);
  std::vector<std::byte> to_a, to_b;
  coro::Scope scope;
  // Both fill their buffers before either is read: a send and a receive are in flight on each stream.
  scope.spawn(send_each(*a, data));
  scope.spawn(send_each(*b, data));
  co_await settle();
  scope.spawn(recv_count(*a, to_a, data.size()));
  scope.spawn(recv_count(*b, to_b, data.size()));
  co_await scope.join();
  EXPECT_TRUE(to_a == data);
  EXPECT_TRUE(to_b == data);
}

TEST_P(StreamTest, SendsAndReceivesAtOnceOnOneStream) { run(both_ways(*this)); }

// --- Listening -----------------------------------------------------------------------------------------------------

coro::Task<void> accept_some(ListenerTest& t) {
  sockaddr_in address;
  const auto listener = t.loop().make_listener(test::listening_socket(address));
  for (int i = 0; i < 10; ++i) {
    const UniqueFd peer = test::connected_to(address);
    const int32_t accepted = co_await accept(*listener);
    EXPECT_GE(accepted, 0);
    if (accepted < 0) co_return;
    UniqueFd fd(accepted);
    EXPECT_TRUE((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
    const auto stream = t.loop().make_stream(std::move(fd));
    write_all(peer.get(), "hi");
    std::array<std::byte, 8> buffer{};
    const int32_t got = co_await recv(*stream, buffer);
    EXPECT_EQ(got, 2);
  }
}

TEST_P(ListenerTest, AcceptsConnections) { run(accept_some(*this)); }

coro::Task<void> accept_one(Listener& listener, int32_t& result) {
  const int32_t accepted = co_await accept(listener);
  result = accepted;
}

coro::Task<void> accept_waits(ListenerTest& t) {
  sockaddr_in address;
  const auto listener = t.loop().make_listener(test::listening_socket(address));
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(accept_one(*listener, result));
  co_await settle();
  EXPECT_EQ(scope.running(), 1u) << "accept ended by itself: " << result;
  const UniqueFd peer = test::connected_to(address);
  co_await scope.join();
  EXPECT_GE(result, 0);
  const UniqueFd accepted(result);
}

TEST_P(ListenerTest, AcceptWaits) { run(accept_waits(*this)); }

coro::Task<void> shutdown_accept(ListenerTest& t) {
  sockaddr_in address;
  const auto listener = t.loop().make_listener(test::listening_socket(address));
  int32_t result = 0;
  coro::Scope scope;
  scope.spawn(accept_one(*listener, result));
  co_await settle();
  EXPECT_EQ(scope.running(), 1u);
  listener->shutdown();
  EXPECT_EQ(result, 0) << "shutdown() resumed the waiter";
  co_await scope.join();
  EXPECT_LT(result, 0);
}

TEST_P(ListenerTest, ShutdownEndsAnAcceptInFlight) { run(shutdown_accept(*this)); }

// Socket activation: who gave the socket goes on with it after this process.
coro::Task<void> shutdown_leaves_the_socket(ListenerTest& t) {
  sockaddr_in address;
  UniqueFd listening = test::listening_socket(address);
  const UniqueFd kept(::dup(listening.get()));
  auto listener = t.loop().make_listener(std::move(listening));
  int32_t result = 0;
  coro::Scope scope;
  scope.spawn(accept_one(*listener, result));
  co_await settle();
  listener->shutdown();
  co_await scope.join();
  EXPECT_EQ(result, -ECANCELED);
  const int32_t later = co_await accept(*listener);
  EXPECT_EQ(later, -ECANCELED);
  listener.reset();
  const UniqueFd peer = test::connected_to(address);
  pollfd waits{.fd = kept.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&waits, 1, 10'000), 1);
  const UniqueFd accepted(::accept4(kept.get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(accepted.valid());
}

TEST_P(ListenerTest, ShutdownLeavesTheSocketToItsOtherOwners) { run(shutdown_leaves_the_socket(*this)); }

coro::Task<void> accept_many(ListenerTest& t) {
  sockaddr_in address;
  const auto listener = t.loop().make_listener(test::listening_socket(address));
  std::vector<UniqueFd> peers, accepted;
  for (int i = 0; i < 100; ++i) peers.push_back(test::connected_to(address));
  for (size_t i = 0; i < peers.size(); ++i) {
    const int32_t fd = co_await accept(*listener);
    EXPECT_GE(fd, 0);
    accepted.emplace_back(fd);
  }
  int32_t result = -1;
  coro::Scope scope;
  scope.spawn(accept_one(*listener, result));
  co_await settle();
  EXPECT_EQ(scope.running(), 1u) << "one more than there were: " << result;
  listener->shutdown();
  co_await scope.join();
}

TEST_P(ListenerTest, TakesEachConnectionOfABurstOnce) { run(accept_many(*this)); }

}  // namespace
}  // namespace netblk::io
