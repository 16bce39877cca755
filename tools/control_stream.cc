// SPDX-License-Identifier: GPL-2.0-only
#include "control_stream.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "base/limits.h"

namespace netblk::tools {
namespace {

constexpr size_t kReceiveBytes = 64u << 10;

std::string line_of(const Json& object) { return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

Error gone() { return make_error(ECONNRESET, "the other end has gone"); }

}  // namespace

coro::Task<bool> ControlStream::receive() {
  received_.erase(received_.begin(), received_.begin() + static_cast<std::ptrdiff_t>(taken_));
  taken_ = 0;
  const size_t before = received_.size();
  received_.resize(before + kReceiveBytes);
  const int32_t got = co_await io::recv(*stream_, std::span(received_).subspan(before));
  received_.resize(before + static_cast<size_t>(std::max(got, 0)));
  moved_bytes_ += static_cast<uint64_t>(std::max(got, 0));
  is_gone_ |= got < 0;
  co_return got > 0;
}

coro::Task<Result<Json>> ControlStream::line(size_t most_bytes) {
  for (size_t looked = 0;;) {
    const std::string_view text(reinterpret_cast<const char*>(received_.data()) + taken_, waiting());
    const size_t end = text.find('\n', looked);
    if (end != std::string_view::npos && end <= most_bytes) {
      Json object = Json::parse(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
      taken_ += end + 1;
      if (!object.is_object()) co_return make_error(EPROTO, "a line is no JSON object");
      co_return object;
    }
    looked = text.size();
    if (looked > most_bytes) co_return make_error(EMSGSIZE, "a line has at most {} bytes", most_bytes);
    const bool more = co_await receive();
    if (!more) co_return gone();
  }
}

coro::Task<Result<size_t>> ControlStream::bytes(std::span<std::byte> into) {
  if (waiting() == 0) {
    const bool more = co_await receive();
    if (!more) co_return gone();
  }
  const size_t part = std::min(waiting(), into.size());
  std::memcpy(into.data(), received_.data() + taken_, part);
  taken_ += part;
  co_return part;
}

coro::Task<void> ControlStream::drain() {
  for (;;) {
    const bool more = co_await receive();
    taken_ = received_.size();
    if (!more) co_return;
  }
}

coro::Task<Status> ControlStream::send(std::span<const std::byte> bytes) {
  is_sending_ = true;
  while (!bytes.empty() && !is_gone_) {
    const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    const int32_t sent = co_await io::send(*stream_, {&part, 1});
    is_gone_ |= sent <= 0;
    moved_bytes_ += static_cast<uint64_t>(std::max(sent, 0));
    if (sent > 0) bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  is_sending_ = false;
  if (!bytes.empty()) co_return gone();
  co_return Ok{};
}

coro::Task<Status> ControlStream::say(const Json& object) {
  const std::string text = line_of(object);
  Status sent = co_await send(std::as_bytes(std::span(text)));
  co_return sent;
}

coro::Task<Status> ControlStream::say_bytes(std::span<const std::byte> from) {
  while (!from.empty()) {
    const auto part = from.first(std::min(from.size(), kMaxControlPartBytes));
    const Json head = {{"bytes", part.size()}};
    Status sent = co_await say(head);
    if (!sent.ok()) co_return sent;
    sent = co_await send(part);
    if (!sent.ok()) co_return sent;
    from = from.subspan(part.size());
  }
  co_return Ok{};
}

void ControlStream::tell(const Json& object) {
  if (is_sending_ || is_gone_) return;
  const std::string text = line_of(object);
  const iovec part{const_cast<char*>(text.data()), text.size()};
  const int32_t sent = stream_->send_now({&part, 1}, false);
  if (sent < 0 && sent != -EAGAIN && sent != -EOPNOTSUPP) is_gone_ = true;
  // A part of a line cannot be taken back.
  if (sent > 0 && static_cast<size_t>(sent) < text.size()) {
    is_gone_ = true;
    stream_->shutdown();
  }
}

}  // namespace netblk::tools
