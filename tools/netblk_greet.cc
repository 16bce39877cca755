// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_greet.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <iterator>
#include <span>
#include <utility>

#include "io/fd.h"
#include "io/patience.h"
#include "io/socket.h"
#include "proto/netblk/codec1.h"
#include "transport/tcp.h"
#include "transport/unix.h"

namespace netblk::tools {
namespace {

using std::chrono::steady_clock;

constexpr unsigned kRoundTrips = 3;
// For one sector of a server that has just taken a connection.
constexpr uint64_t kOldServerMs = 1000;
// A list that does not end is no list.
constexpr size_t kMaxListed = 1u << 20;

// A netblk/1 server closes upon a hello, answers 0x01, or waits for more.
constexpr int kNoWelcome = EPROTONOSUPPORT;

class Conversation {
 public:
  Conversation(io::UniqueFd socket, uint64_t timeout_ms)
      : socket_(std::move(socket)), patience_(timeout_ms) {}

  Status send(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
      const int32_t sent = io::send_now(socket_.get(), {&part, 1});
      if (sent == -EAGAIN) {
        if (auto ready = wait(POLLOUT); !ready) return ready;
        continue;
      }
      if (sent < 0) return make_error(-sent, "{}", errno_text(-sent));
      bytes = bytes.subspan(static_cast<size_t>(sent));
    }
    return Ok{};
  }

  // What is there, at least a byte; 0 at the end of the stream.
  Result<size_t> receive(std::span<std::byte> into) {
    for (;;) {
      const int32_t got = io::recv_now(socket_.get(), into);
      if (got >= 0) return static_cast<size_t>(got);
      if (got != -EAGAIN) return make_error(-got, "{}", errno_text(-got));
      if (auto ready = wait(POLLIN); !ready) return std::move(ready).error();
    }
  }

  Status receive_all(std::span<std::byte> into) {
    while (!into.empty()) {
      auto got = receive(into);
      if (!got) return std::move(got).error();
      if (got.value() == 0) return make_error(ECONNRESET, "the server closed the connection in the middle of its answer");
      into = into.subspan(got.value());
    }
    return Ok{};
  }

 private:
  Status wait(short events) {
    pollfd waiting{.fd = socket_.get(), .events = events, .revents = 0};
    const int ready = patience_.wait(waiting);
    if (ready < 0 && errno != EINTR) return make_error(errno, "{}", errno_text(errno));
    if (ready == 0) return make_error(ETIMEDOUT, "no answer in time");
    return Ok{};
  }

  io::UniqueFd socket_;
  io::Patience patience_;
};

Error about(const ServerUri& uri, const Error& error) {
  return make_error(error.code, "{}: {}", uri.address(), error.message);
}

proto::Hello2 question(const ServerUri& uri, uint16_t flags) {
  proto::Hello2 hello;
  hello.flags = flags;
  hello.client_id = random_id();
  hello.export_name = uri.export_name;
  // The answer lists those that the server has.
  hello.features = {proto::make_feature(NETBLK2_FEATURE_CRC32C), proto::make_feature(NETBLK2_FEATURE_LZ4),
                    proto::make_feature(NETBLK2_FEATURE_ZSTD),
                    proto::make_feature(NETBLK2_FEATURE_HEARTBEAT, NETBLK2_MAX_HEARTBEAT_MS),
                    proto::make_feature(NETBLK2_FEATURE_RESIZE), proto::make_feature(NETBLK2_FEATURE_TIMES)};
  return hello;
}

struct Answer {
  proto::Welcome2 welcome;
  uint64_t round_trip_us = 0;
};

// Error code kNoWelcome: what a netblk/1 server does, or a server that is no netblk server at all.
Result<Answer> greet(const ServerUri& uri, const proto::Hello2& hello, uint64_t timeout_ms) {
  auto socket = transport::tcp_connect(uri.host, uri.port, timeout_ms);
  if (!socket) return std::move(socket).error();
  Conversation talk(std::move(socket).value(), timeout_ms);
  const auto asked = steady_clock::now();
  const auto sent = talk.send(proto::encode_hello(hello));
  if (!sent) return about(uri, sent.error());

  std::vector<std::byte> whole(proto::kGreetingPrefix);
  auto first = talk.receive({whole.data(), 1});
  const bool closed = first ? first.value() == 0 : first.error().code == ECONNRESET;
  const bool silent = !first && first.error().code == ETIMEDOUT;
  const bool status1 = first && !closed && whole[0] == std::byte{NETBLK1_STATUS_ERROR};
  if (closed || silent || status1)
    return make_error(kNoWelcome, "{} {} upon a netblk/2 hello", uri.address(),
                      closed ? "closes the connection" : silent ? "says nothing" : "answers as netblk/1 does");
  if (!first) return about(uri, first.error());
  if (auto got = talk.receive_all(std::span(whole).subspan(1)); !got) return about(uri, got.error());
  const auto length = proto::welcome_length(whole);
  if (!length) return about(uri, length.error());
  whole.resize(length.value());
  if (auto got = talk.receive_all(std::span(whole).subspan(proto::kGreetingPrefix)); !got)
    return about(uri, got.error());
  const auto answered = steady_clock::now();
  auto welcome = proto::decode_welcome(whole);
  if (!welcome) return about(uri, welcome.error());
  if (welcome.value().status != NETBLK2_OK) {
    const int error = proto::error_of(welcome.value().status);
    const std::string& words = welcome.value().body;
    return make_error(error, "{}: {}", uri.text(), words.empty() ? errno_text(error) : words);
  }
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(answered - asked);
  return Answer{std::move(welcome).value(), static_cast<uint64_t>(took.count())};
}

// Reads the first sector as netblk/1 has it: how long that takes. An error: it is no netblk server.
Result<uint64_t> read_as_netblk1(const ServerUri& uri, uint64_t timeout_ms) {
  auto socket = transport::tcp_connect(uri.host, uri.port, timeout_ms);
  if (!socket) return std::move(socket).error();
  Conversation talk(std::move(socket).value(), timeout_ms);
  std::array<std::byte, NETBLK1_REQUEST_SIZE> request{};
  proto::encode_request1({.command = NETBLK1_CMD_READ, .sector = 0, .length_bytes = NETBLK_SECTOR_SIZE}, request.data());
  const auto asked = steady_clock::now();
  std::byte status{};
  Status done = talk.send(request);
  if (done) done = talk.receive_all({&status, 1});
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - asked);
  if (!done && done.error().code == ETIMEDOUT)
    return make_error(ETIMEDOUT, "{} takes the connection and says nothing: the server hangs, or is no netblk server",
                      uri.address());
  if (!done || (status != std::byte{NETBLK1_STATUS_OK} && status != std::byte{NETBLK1_STATUS_ERROR}))
    return make_error(EPROTO, "{} speaks neither netblk/2 nor netblk/1: is a netblk server on this port?",
                      uri.address());
  return static_cast<uint64_t>(took.count());
}

}  // namespace

Result<ExportInfo> ask_info(const ServerUri& uri, uint64_t timeout_ms) {
  ExportInfo info;
  for (unsigned round = 0; round < kRoundTrips; ++round) {
    auto answer = greet(uri, question(uri, NETBLK2_HELLO_INFO), timeout_ms);
    if (!answer && answer.error().code == kNoWelcome) {
      const auto took = read_as_netblk1(uri, std::min(timeout_ms, kOldServerMs));
      if (!took) return took.error();
      info.round_trip_us = took.value();
      return info;
    }
    if (!answer) return std::move(answer).error();
    const uint64_t took = answer.value().round_trip_us;
    info.round_trip_us = info.welcome ? std::min(info.round_trip_us, took) : took;
    info.welcome = std::move(answer.value().welcome);
  }
  return info;
}

Result<std::vector<proto::Export2>> ask_list(const ServerUri& uri, uint64_t timeout_ms) {
  std::vector<proto::Export2> exports;
  for (;;) {
    proto::Hello2 hello = question(uri, NETBLK2_HELLO_LIST);
    hello.export_name.clear();
    hello.list_from = static_cast<uint32_t>(exports.size());
    auto answer = greet(uri, hello, timeout_ms);
    if (!answer && answer.error().code == kNoWelcome)
      return make_error(kNoWelcome, "{}: only a netblk/2 server can list its exports", answer.error().message);
    if (!answer) return std::move(answer).error();
    auto page = proto::decode_exports(answer.value().welcome.body);
    if (!page) return about(uri, page.error());
    const bool more = (answer.value().welcome.flags & NETBLK2_WELCOME_MORE) != 0;
    if (more && page.value().empty()) return make_error(EPROTO, "{}: a page of its list has no export", uri.address());
    std::move(page.value().begin(), page.value().end(), std::back_inserter(exports));
    if (!more) return exports;
    if (exports.size() >= kMaxListed)
      return make_error(EPROTO, "{}: its list has more than {} exports", uri.address(), kMaxListed);
  }
}

Result<io::UniqueFd> connect_to(const ServerUri& uri, uint64_t timeout_ms) {
  if (!uri.socket.empty()) return transport::unix_connect(uri.socket, timeout_ms);
  return transport::tcp_connect(uri.host, uri.port, timeout_ms);
}

Result<NbdExportInfo> ask_nbd_info(const ServerUri& uri, uint64_t timeout_ms) {
  auto socket = connect_to(uri, timeout_ms);
  if (!socket) return std::move(socket).error();
  const auto asked = steady_clock::now();
  auto found = client::nbd_handshake(
      socket.value().get(), {.purpose = client::NbdWish::Purpose::kInfo, .export_name = uri.export_name}, timeout_ms);
  if (!found) return about(uri, found.error());
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - asked);
  return NbdExportInfo{std::move(found).value(), static_cast<uint64_t>(took.count())};
}

Result<std::vector<client::NbdListed>> ask_nbd_list(const ServerUri& uri, uint64_t timeout_ms) {
  auto socket = connect_to(uri, timeout_ms);
  if (!socket) return std::move(socket).error();
  auto listed = client::nbd_list(socket.value().get(), timeout_ms);
  if (!listed) return about(uri, listed.error());
  return listed;
}

}  // namespace netblk::tools
