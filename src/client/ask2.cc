// SPDX-License-Identifier: GPL-2.0-only
#include "client/ask2.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "client/session2.h"
#include "proto/netblk/codec2.h"

namespace netblk::client {
namespace {

// Ends what waits on a connection when the time has come.
struct Guard : io::Timer {
  Guard(io::Loop& on, io::Stream& of, uint64_t at_ms)
      : Timer(on, [](coro::Runnable& self) {
          auto& guard = static_cast<Guard&>(self);
          guard.expired = true;
          guard.stream.abort();
        }), stream(of) {
    arm(at_ms);
  }
  io::Stream& stream;
  bool expired = false;
};

coro::Task<Status> send_whole(io::Stream& stream, std::vector<std::byte> bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const iovec part{bytes.data() + at, bytes.size() - at};
    const int32_t sent = co_await io::send(stream, std::span(&part, 1));
    if (sent == -EINTR) continue;
    if (sent < 0) co_return make_error(-sent, "sending failed: {}", errno_text(-sent));
    at += static_cast<size_t>(sent);
  }
  co_return Ok{};
}

coro::Task<Result<proto::Welcome2>> receive_welcome(io::Stream& stream) {
  std::vector<std::byte> bytes(proto::kGreetingPrefix);
  bool measured = false;
  for (size_t have = 0; have < bytes.size();) {
    const int32_t got = co_await io::recv(stream, std::span(bytes).subspan(have));
    if (got < 0) co_return make_error(-got, "receiving failed: {}", errno_text(-got));
    if (got == 0) co_return make_error(EPROTONOSUPPORT, "the server closed the connection: it does not speak netblk/2");
    have += static_cast<size_t>(got);
    if (std::memcmp(bytes.data(), NETBLK2_MAGIC, std::min<size_t>(have, NETBLK2_MAGIC_SIZE)) != 0)
      co_return make_error(EPROTONOSUPPORT, "the server does not speak netblk/2");
    if (have < proto::kGreetingPrefix || measured) continue;
    const auto length = proto::welcome_length(bytes);
    if (!length) co_return length.error();
    bytes.resize(length.value());
    measured = true;
  }
  co_return proto::decode_welcome(bytes);
}

coro::Task<Result<proto::Welcome2>> ask(io::Loop& loop, io::Dialer& dialer, proto::Hello2 hello, uint64_t give_up_at_ms) {
  auto dialed = co_await dialer.dial(loop, give_up_at_ms);
  if (!dialed) co_return std::move(dialed).error();
  const std::unique_ptr<io::Stream> stream = std::move(dialed).value();
  Guard guard(loop, *stream, give_up_at_ms);
  std::optional<Result<proto::Welcome2>> answer;
  auto sent = co_await send_whole(*stream, proto::encode_hello(hello));
  if (sent) {
    auto received = co_await receive_welcome(*stream);
    answer.emplace(std::move(received));
  } else {
    answer.emplace(sent.error());
  }
  guard.cancel();
  while (guard.queued) co_await io::SleepUntil(loop, loop.now_ms());
  if (guard.expired && !answer->ok()) co_return make_error(ETIMEDOUT, "{} does not answer", dialer.peer());
  if (answer->ok() && answer->value().status != NETBLK2_OK) co_return refusal(answer->value());
  co_return std::move(*answer);
}

// Runs a question on a loop of its own.
template <class Answer, class Question>
Result<Answer> blocking(io::Backend& backend, const io::Clock& clock, Question question) {
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  std::optional<Result<Answer>> answer;
  struct Run {
    static coro::Task<void> run(coro::Task<Result<Answer>> task, std::optional<Result<Answer>>& into) {
      auto got = co_await std::move(task);
      into.emplace(std::move(got));
    }
  };
  loop.value()->run(Run::run(question(*loop.value()), answer));
  return std::move(*answer);
}

}  // namespace

coro::Task<Result<Session2Info>> ask_info_on(io::Loop& loop, io::Dialer& dialer, std::string export_name,
                                             uint64_t timeout_ms) {
  proto::Hello2 hello;
  hello.flags = NETBLK2_HELLO_INFO;
  hello.client_id = random_id();
  hello.export_name = std::move(export_name);
  hello.features = offered_features({.lz4 = true, .zstd = true});
  auto welcome = co_await ask(loop, dialer, hello, loop.now_ms() + timeout_ms);
  if (!welcome) co_return std::move(welcome).error();
  if (auto error = unsound(welcome.value(), hello.features)) co_return *error;
  co_return info_of(welcome.value());
}

coro::Task<Result<std::vector<ExportEntry>>> ask_list_on(io::Loop& loop, io::Dialer& dialer, uint64_t timeout_ms) {
  const uint64_t give_up_at_ms = loop.now_ms() + timeout_ms;
  std::vector<ExportEntry> all;
  for (;;) {
    proto::Hello2 hello;
    hello.flags = NETBLK2_HELLO_LIST;
    hello.client_id = random_id();
    hello.list_from = static_cast<uint32_t>(all.size());
    auto welcome = co_await ask(loop, dialer, hello, give_up_at_ms);
    if (!welcome) co_return std::move(welcome).error();
    auto exports = proto::decode_exports(welcome.value().body);
    if (!exports) co_return std::move(exports).error();
    for (proto::Export2& entry : exports.value())
      all.push_back({std::move(entry.name), entry.size_bytes, (entry.flags & NETBLK2_WELCOME_READ_ONLY) != 0});
    if ((welcome.value().flags & NETBLK2_WELCOME_MORE) == 0) break;
    if (exports.value().empty() || all.size() > limits::kMaxExports)
      co_return make_error(EPROTO, "the server's list of exports does not end");
  }
  co_return all;
}

Result<Session2Info> ask_info(io::Backend& backend, const io::Clock& clock, io::Dialer& dialer,
                              const std::string& export_name, uint64_t timeout_ms) {
  return blocking<Session2Info>(
      backend, clock, [&](io::Loop& loop) { return ask_info_on(loop, dialer, export_name, timeout_ms); });
}

Result<std::vector<ExportEntry>> ask_list(io::Backend& backend, const io::Clock& clock, io::Dialer& dialer,
                                          uint64_t timeout_ms) {
  return blocking<std::vector<ExportEntry>>(
      backend, clock, [&](io::Loop& loop) { return ask_list_on(loop, dialer, timeout_ms); });
}

}  // namespace netblk::client
