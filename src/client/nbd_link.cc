// SPDX-License-Identifier: GPL-2.0-only
#include "client/nbd_link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/limits.h"
#include "client/nbd_session.h"
#include "coro/scope.h"

namespace netblk::client {

NbdLink::NbdLink(NbdSession& session, unsigned number)
    : index(number),
      queue(session.slots_.all()),
      session_(session),
      loop_(session.loop_),
      alarm_(session.loop_, *this),
      replies_(*this) {
  batch_.reserve(limits::kKernelMaxIov);
}

NbdLink::~NbdLink() { NETBLK_CHECK(stream_ == nullptr, "a link is destroyed with its connection"); }

coro::Task<void> NbdLink::settle_alarm() {
  alarm_.cancel();
  while (alarm_.queued) co_await io::SleepUntil(loop_, loop_.now_ms());
}

void NbdLink::fail(Error why) {
  if (over_) return;
  over_ = true;
  error_ = std::move(why);
  stream_->abort();
  send_wanted_.set();
  send_ended_.set();
}

void NbdLink::end() {
  NETBLK_CHECK(over_, "a connection is closed that nobody ended");
  alarm_.cancel();
  stream_.reset();
  up = false;
}

void NbdLink::alarmed() {
  if (stream_ == nullptr) return wake.set();
  fail(make_error(ETIMEDOUT, "the server does not answer NBD's negotiation within {} ms",
                  session_.options_.handshake_timeout_ms));
}

// ---- negotiation

coro::Task<Result<proto::NbdExport>> NbdLink::greet(std::unique_ptr<io::Stream> stream, proto::NbdWish wish) {
  stream_ = std::move(stream);
  over_ = false;
  gathered_bytes_ = sent_bytes_ = 0;
  goodbye_wanted_ = false;
  from_ = to_ = 0;
  if (buffer_.empty()) buffer_.resize(kReceiveBytes);
  alarm_.arm(loop_.now_ms() + session_.options_.handshake_timeout_ms);
  proto::NbdGreeting greeting(std::move(wish));
  while (!over_ && !greeting.over()) {
    if (to_ - from_ >= greeting.wanted()) {
      const size_t size = greeting.wanted();
      greeting.take(std::span(buffer_).subspan(from_, size));
      from_ += size;
      const bool sent = co_await send_words(greeting.take_output());
      if (!sent && (error_.code == EPIPE || error_.code == ECONNRESET)) greeting.closed();
      continue;
    }
    std::memmove(buffer_.data(), buffer_.data() + from_, to_ - from_);
    to_ -= std::exchange(from_, 0);
    const bool came = co_await receive_more(std::span(buffer_).subspan(to_));
    if (!came && error_.code == ECONNRESET) greeting.closed();
  }
  alarm_.cancel();
  if (!greeting.over()) co_return error_;
  if (!greeting.result()) {
    fail(greeting.result().error());
    co_return greeting.result().error();
  }
  if (over_) co_return error_;
  co_return greeting.found();
}

coro::Task<bool> NbdLink::send_words(std::vector<std::byte> words) {
  start_batch();
  if (!words.empty()) batch_.push_back({words.data(), words.size()});
  const bool sent = co_await send_batch();
  co_return sent;
}

// ---- sending

void NbdLink::push(uint32_t slot) {
  queue.push(slot);
  send_wanted_.set();
}

void NbdLink::say_goodbye() {
  goodbye_wanted_ = true;
  send_wanted_.set();
}

void NbdLink::start_batch() {
  batch_.clear();
  batch_at_ = 0;
  header_bytes_ = 0;
  batch_ns_ = 0;
}

void NbdLink::add_frame(const proto::NbdInFlight& request) {
  std::byte* const to = headers_.data() + header_bytes_;
  const size_t size = proto::encode_nbd_request(request, extended_, to);
  header_bytes_ += size;
  gathered_bytes_ += size;
  // Neighbours in headers_ are one part: a batch of READs is one.
  if (!batch_.empty() && static_cast<std::byte*>(batch_.back().iov_base) + batch_.back().iov_len == to)
    batch_.back().iov_len += size;
  else
    batch_.push_back({to, size});
}

void NbdLink::add_request(uint32_t number) {
  NbdSlot& slot = session_.slots_[number];
  session_.sending(slot, number, index);
  add_frame(slot.wire);
  if (slot.has_payload()) {
    batch_.push_back({slot.wire.data, static_cast<size_t>(slot.wire.length)});
    gathered_bytes_ += slot.wire.length;
  }
  slot.send_end = gathered_bytes_;
}

bool NbdLink::gather() {
  start_batch();
  const uint64_t full_at = gathered_bytes_ + kBatchBytes;
  for (size_t requests = 0; !queue.empty() && requests < kBatchRequests && gathered_bytes_ < full_at &&
                            batch_.size() + 2 <= limits::kKernelMaxIov;
       ++requests) {
    const uint32_t slot = queue.pop();
    if (!session_.withdrawn(slot)) add_request(slot);
  }
  if (goodbye_wanted_ && queue.empty()) {
    goodbye_wanted_ = false;
    proto::NbdInFlight goodbye;
    goodbye.type = NBD_CMD_DISC;
    add_frame(goodbye);
  }
  return !batch_.empty();
}

coro::Task<bool> NbdLink::send_batch() {
  while (!over_ && batch_at_ < batch_.size()) {
    const int32_t result = co_await io::send(*stream_, std::span(batch_).subspan(batch_at_));
    if (over_) break;
    // A ring gives up a send that waits when the process is stopped or frozen.
    if (result == -EINTR) continue;
    if (result < 0) {
      fail(make_error(-result, "sending failed: {}", errno_text(-result)));
      break;
    }
    sent_bytes_ += static_cast<uint64_t>(result);
    for (size_t left = static_cast<size_t>(result); left > 0;) {
      iovec& part = batch_[batch_at_];
      const size_t taken = std::min(left, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + taken;
      part.iov_len -= taken;
      left -= taken;
      if (part.iov_len == 0) ++batch_at_;
    }
    send_ended_.set();
  }
  co_return !over_;
}

coro::Task<void> NbdLink::send_all() {
  while (!over_) {
    if (!gather()) {
      co_await send_wanted_.wait();
      continue;
    }
    const bool sent = co_await send_batch();
    if (!sent) break;
  }
}

coro::Task<void> NbdLink::serve(const proto::NbdExport& terms) {
  extended_ = terms.extended;
  gathered_bytes_ = sent_bytes_ = 0;
  heard_ns_ = loop_.now_ns();
  replies_.begin({.structured = terms.structured,
                  .extended = terms.extended,
                  .allocation_id = terms.allocation_id.value_or(0)});
  coro::Scope scope;
  scope.spawn(send_all());
  scope.spawn(receive_all());
  co_await scope.join();
}

// ---- receiving

// False: the connection is over, and error() says why.
coro::Task<bool> NbdLink::receive_more(std::span<std::byte> into) {
  int32_t got = stream_->recv_now(into);
  if (got == -EAGAIN) got = co_await io::recv(*stream_, into);
  if (over_) co_return false;
  if (got <= 0) {
    fail(got == 0 ? make_error(ECONNRESET, "the server closed the connection")
                  : make_error(-got, "receiving failed: {}", errno_text(-got)));
    co_return false;
  }
  heard_ns_ = loop_.now_ns();
  const auto direct = replies_.direct();
  if (!direct.empty() && into.data() == direct.data())
    replies_.took(static_cast<size_t>(got));
  else
    to_ += static_cast<size_t>(got);
  co_return true;
}

coro::Task<void> NbdLink::receive_all() {
  while (!over_) {
    // Replies that are handled together let their users ask again together.
    session_.prefer(*this);
    from_ += replies_.take(std::span(buffer_).subspan(from_, to_ - from_));
    if (over_) break;
    if (const Error* const failed = replies_.failed(); failed != nullptr) {
      fail(*failed);
      break;
    }
    if (replies_.is_blocked()) {
      co_await send_ended_.wait();
      continue;
    }
    std::span<std::byte> into = replies_.direct();
    if (into.size() < kDirectBytes) {
      if (from_ > 0) std::memmove(buffer_.data(), buffer_.data() + from_, to_ - from_);
      to_ -= std::exchange(from_, 0);
      into = std::span(buffer_).subspan(to_);
      // What stands before long data alone, so that they need no copy.
      const size_t alone = replies_.bytes_before_data(kLargeBytes);
      if (to_ < alone) into = into.first(alone - to_);
    }
    const bool came = co_await receive_more(into);
    if (!came) break;
  }
}

proto::NbdInFlight* NbdLink::find(uint64_t cookie) {
  const uint32_t number = NbdSlots::number_of(cookie);
  if (over_ || number >= session_.slots_.size()) return nullptr;
  NbdSlot& slot = session_.slots_[number];
  return carries(slot) && slot.wire.cookie == cookie ? &slot.wire : nullptr;
}

bool NbdLink::is_sent(const proto::NbdInFlight& request) {
  return session_.slots_[NbdSlots::number_of(request.cookie)].send_end <= sent_bytes_;
}

bool NbdLink::extent(proto::NbdInFlight& request, uint64_t length, uint64_t status) {
  block::Request& asked = *session_.slots_[NbdSlots::number_of(request.cookie)].request;
  return asked.add_extent(length, (status & NBD_STATE_HOLE) != 0, (status & NBD_STATE_ZERO) != 0);
}

void NbdLink::answered(proto::NbdInFlight& request, int error) {
  if (error == ESHUTDOWN) return fail(make_error(ESHUTDOWN, "the server is shutting down"));
  session_.answered(NbdSlots::number_of(request.cookie), error);
}

}  // namespace netblk::client
