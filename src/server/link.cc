// SPDX-License-Identifier: GPL-2.0-only
#include "server/link.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/result.h"
#include "io/socket.h"

namespace netblk::server {
namespace {

// How long, and for how much, a connection that we close is still read from, so that its last replies are not thrown
// away by the RST that unread bytes cause.
constexpr uint64_t kLingerMs = 1000;
constexpr uint64_t kDeliverPollMs = 10;
constexpr uint64_t kLingerBytes = 8u << 20;

// Of a file that is being sent, what waits for room at the peer as a copy.
constexpr uint32_t kFilePiece = 16u << 10;

// Of data as long as this little is to come into the receive buffer, from where it is copied, and most straight into the
// request's own.
constexpr uint32_t kBulkBytes = limits::kReceiveBusyBytes / 2;

// Large buffers that one client fills in a row.
constexpr uint32_t kReceivesInARow = 4;

}  // namespace

Link::Link(SessionContext& context, std::unique_ptr<io::Stream> stream, std::string name)
    : context_(context),
      stream_(std::move(stream)),
      name_(std::move(name)),
      idle_(std::make_unique_for_overwrite<std::byte[]>(limits::kReceiveIdleBytes)),
      receive_(idle_.get()) {}

// ---- the handshake

void Link::opened() {
  handshake_deadline_ms_ = 0;
  open_ = true;
  if (on_opened_) std::exchange(on_opened_, nullptr)();
}

// ---- how it ends

void Link::give_up(std::string reason, bool peer_gone) {
  if (close_reason_.empty()) close_reason_ = std::move(reason);
  if (peer_gone) gone_.store(true, std::memory_order_release);
}

void Link::abort(std::string reason) {
  give_up(std::move(reason), true);
  stream_->abort();
}

void Link::drain(const std::string& reason) {
  if (draining_) return;
  draining_ = true;
  if (send_deadline_ms_ != 0)
    send_deadline_ms_ = std::min(send_deadline_ms_, context_.loop.now_ms() + limits::kDrainStallTimeoutMs);
  // Who has asked for nothing yet is owed nothing.
  if (handshake_deadline_ms_ != 0) return abort(reason);
  give_up(reason, false);
  stream_->shutdown_read();
}

void Link::sweep(uint64_t now_ms) {
  if (handshake_deadline_ms_ != 0 && now_ms >= handshake_deadline_ms_) {
    handshake_deadline_ms_ = 0;
    abort("the handshake was not over in time");
  }
  if (receive_deadline_ms_ != 0 && now_ms >= receive_deadline_ms_) {
    receive_deadline_ms_ = 0;
    abort("a request did not arrive whole in time");
  }
  if (charged_bytes_ != 0 && context_.budget.contended() &&
      (holds_up_others(giving_, now_ms) || holds_up_others(taking_, now_ms)))
    abort("others wait for the memory that this client's requests hold");
  if (send_deadline_ms_ != 0 && now_ms >= send_deadline_ms_) {
    send_deadline_ms_ = 0;
    abort("the client took no reply in time");
  }
}

bool Link::holds_up_others(const Transfer& transfer, uint64_t now_ms) {
  return transfer.since_ms != 0 && now_ms >= transfer.since_ms + limits::kContendedGraceMs +
                                                 transfer.moved_bytes / limits::kContendedBytesPerMs;
}

coro::Task<void> Link::finish() {
  receive_deadline_ms_ = 0;
  if ((draining_ || lingers_) && !gone()) co_await deliver();
  if (lingers_ && !gone()) co_await drop_the_rest();
}

// Waits until the peer has all replies. Bytes that nobody will read make the close a reset, and a reset throws away what
// was sent but not yet delivered.
coro::Task<void> Link::deliver() {
  size_t left = stream_->unsent_bytes();
  uint64_t give_up_at = context_.loop.now_ms() + limits::kDrainStallTimeoutMs;
  while (left != 0 && context_.loop.now_ms() < give_up_at) {
    io::SleepUntil pause(context_.loop, context_.loop.now_ms() + kDeliverPollMs);
    co_await pause;
    const size_t now_left = stream_->unsent_bytes();
    if (now_left < left) give_up_at = context_.loop.now_ms() + limits::kDrainStallTimeoutMs;
    left = now_left;
  }
}

// The peer hears the end of our side after the last reply, and what it still sends is dropped for a short while.
coro::Task<void> Link::drop_the_rest() {
  stream_->shutdown_write();
  receive_deadline_ms_ = context_.loop.now_ms() + kLingerMs;
  uint64_t dropped = 0;
  while (dropped < kLingerBytes) {
    const int32_t got = co_await io::recv(*stream_, {receive_, capacity_});
    if (got <= 0) break;
    dropped += static_cast<uint64_t>(got);
  }
  receive_deadline_ms_ = 0;
}

// ---- receiving

// A deadline that runs goes on: it does not start again with each byte that trickles in.
void Link::start_deadline(uint64_t patience_ms) {
  if (receive_deadline_ms_ == 0) receive_deadline_ms_ = context_.loop.now_ms() + patience_ms;
}

bool Link::received(int32_t result, bool inside) {
  if (result > 0) {
    received_bytes_ += static_cast<uint64_t>(result);
    return true;
  }
  if (result < 0) {
    give_up(fmt::format("receive failed: {}", errno_text(-result)), true);
  } else {
    give_up(inside ? "the client closed the connection in the middle of a request" : "the client closed the connection",
            false);
  }
  return false;
}

coro::Task<bool> Link::receive(bool inside, uint64_t patience_ms) {
  if (inside) start_deadline(patience_ms);
  // Who has just sent much data with one request is likely to do so again.
  const bool bulk = std::exchange(bulk_, false);
  int32_t got = bulk ? -EAGAIN : receive_more();
  if (got == -EAGAIN) {
    make_receive_place(false);
    receives_left_ = kReceivesInARow;
    if (!bulk && sends_much_ && busy_.data() == nullptr && unread_bytes() == 0) {
      // No small buffer first: what comes goes into a large one, which is not held while nothing comes.
      const int32_t ready = co_await io::readable(*stream_);
      if (ready >= 0) {
        grow();
        got = stream_->recv_now({receive_, capacity_});
      }
    }
  }
  if (got == -EAGAIN) got = co_await io::recv(*stream_, {receive_ + end_, capacity_ - end_});
  if (!received(got, inside)) co_return false;
  end_ += static_cast<uint32_t>(got);
  if (!bulk && open_ && end_ == capacity_ && busy_.data() == nullptr) {
    // A full buffer: more is there already, or soon. What has come is decoded all the same: its client may wait.
    grow();
    const int32_t more = stream_->recv_now({receive_ + end_, capacity_ - end_});
    if (more > 0) {
      end_ += static_cast<uint32_t>(more);
      received_bytes_ += static_cast<uint64_t>(more);
    }
  }
  was_full_ = busy_.data() != nullptr && end_ == capacity_;
  sends_much_ = end_ > limits::kReceiveIdleBytes;
  co_return true;
}

// Of a client that has sent more than fits, the rest is taken at once, and all of it is answered together. -EAGAIN:
// nothing is there, or others wait for their turn.
int32_t Link::receive_more() {
  if (!was_full_ || receives_left_ == 0) return -EAGAIN;
  --receives_left_;
  make_receive_place(true);
  return stream_->recv_now({receive_ + end_, capacity_ - end_});
}

// The rest goes straight into the request's own buffer.
coro::Task<bool> Link::receive_data(Hold& hold, uint32_t here, uint32_t length) {
  start_deadline(context_.request_timeout_ms);
  bool asked = hold.charged_bytes != 0;
  while (here < length) {
    uint32_t wanted = length - here;
    if (!asked && held_bytes_ > limits::kConnectionFreeBytes) {
      const auto free = static_cast<uint32_t>(limits::kConnectionFreeBytes);
      if (here >= free) {
        receive_deadline_ms_ = 0;
        co_await take_budget(hold, length);
        asked = true;
        start_deadline(context_.request_timeout_ms);
        giving_ = {context_.loop.now_ms(), 0};
      } else {
        wanted = std::min(wanted, free - here);
      }
    }
    const int32_t got = co_await io::recv(*stream_, {hold.buffer.data() + here, wanted});
    if (!received(got, true)) {
      giving_ = {};
      co_return false;
    }
    here += static_cast<uint32_t>(got);
    giving_.moved_bytes += static_cast<uint64_t>(got);
  }
  giving_ = {};
  receive_deadline_ms_ = 0;
  co_return true;
}

bool Link::take_here(Hold& hold, uint32_t length) {
  if (unread_bytes() < length || needs_budget(length)) return false;
  take(hold, length);
  std::memcpy(hold.buffer.data(), consume(length), length);
  return true;
}

// Of data that are still to come, nothing is held yet but what they get to send.
coro::Task<bool> Link::take_data(Hold& hold, uint32_t length) {
  bulk_ = length >= kBulkBytes;
  if (unread_bytes() >= length && needs_budget(length)) co_await take_budget(hold, length);
  take(hold, length);
  const uint32_t here = std::min(unread_bytes(), length);
  std::memcpy(hold.buffer.data(), consume(here), here);
  if (here == length) co_return true;
  const bool whole = co_await receive_data(hold, here, length);
  co_return whole;
}

coro::Task<bool> Link::skip_data(uint32_t length) {
  const uint32_t here = std::min(end_ - begin_, length);
  begin_ += here;
  length -= here;
  if (length == 0) co_return true;
  // All that was received is used up: its place takes what is dropped.
  begin_ = end_ = 0;
  start_deadline(context_.request_timeout_ms);
  while (length > 0) {
    const int32_t got = co_await io::recv(*stream_, {receive_, std::min(length, capacity_)});
    if (!received(got, true)) co_return false;
    length -= static_cast<uint32_t>(got);
  }
  receive_deadline_ms_ = 0;
  co_return true;
}

void Link::grow() {
  const uint32_t kept = end_ - begin_;
  busy_ = context_.buffers.take(limits::kReceiveBusyBytes);
  std::memcpy(busy_.data(), receive_ + begin_, kept);
  receive_ = busy_.data();
  capacity_ = limits::kReceiveBusyBytes;
  begin_ = 0;
  end_ = kept;
}

// Leaves place behind end_ for the rest of a header. When all is decoded the large buffer goes: the receive that a quiet
// connection waits in uses the small one.
void Link::make_receive_place(bool keep_large) {
  const uint32_t kept = end_ - begin_;
  if (kept == 0 && busy_.data() != nullptr && !keep_large) {
    busy_.reset();
    receive_ = idle_.get();
    capacity_ = limits::kReceiveIdleBytes;
  } else if (begin_ != 0) {
    std::memmove(receive_, receive_ + begin_, kept);
  }
  begin_ = 0;
  end_ = kept;
}

// ---- memory

coro::Task<void> Link::take_budget(Hold& hold, uint32_t length) {
  if (!context_.budget.take(length, budget_granted_)) co_await budget_granted_.wait();
  hold.charged_bytes = length;
  charged_bytes_ += length;
}

void Link::take(Hold& hold, uint32_t length) {
  held_bytes_ += length;
  hold.buffer = context_.buffers.take(length);
}

void Link::release(Hold& hold) {
  if (hold.buffer.data() == nullptr) return;
  const uint32_t bytes = hold.buffer.size_bytes();
  hold.buffer.reset();
  held_bytes_ -= bytes;
  const uint32_t charged = std::exchange(hold.charged_bytes, 0);
  charged_bytes_ -= charged;
  if (charged != 0) context_.budget.give_back(charged);
}

// ---- sending

// What is left of the parts.
std::span<iovec> Link::sent(std::span<iovec> parts, int32_t bytes) {
  sent_bytes_ += static_cast<uint64_t>(bytes);
  auto count = static_cast<size_t>(bytes);
  while (!parts.empty() && count >= parts.front().iov_len) {
    count -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (count > 0) {
    parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + count;
    parts.front().iov_len -= count;
  }
  return parts;
}

std::span<iovec> Link::send_now(std::span<iovec> parts, bool more) {
  if (gone()) return parts;
  const int32_t count = stream_->send_now(parts, more);
  return count > 0 ? sent(parts, count) : parts;
}

coro::Task<bool> Link::send(std::span<iovec> parts, bool more) {
  if (more) parts = send_now(parts, true);
  while (!parts.empty() && !gone()) {
    // Only a send that does not end at once needs a deadline; each byte that the client takes renews it, and nothing else.
    const int32_t count = co_await io::await([&](io::Op& op) {
      if (stream_->send(op, parts)) return true;
      const uint64_t now_ms = context_.loop.now_ms();
      if (send_deadline_ms_ == 0)
        send_deadline_ms_ = now_ms + (draining_ ? limits::kDrainStallTimeoutMs : context_.send_timeout_ms);
      if (taking_.since_ms == 0) taking_ = {now_ms, 0};
      return false;
    });
    // A ring whose send waits in a thread of the kernel's gives it up when the process is stopped or frozen.
    if (count == -EINTR) continue;
    send_deadline_ms_ = 0;
    if (count < 0) {
      abort(fmt::format("send failed: {}", errno_text(-count)));
      break;
    }
    taking_.moved_bytes += static_cast<uint64_t>(count);
    parts = sent(parts, count);
  }
  send_deadline_ms_ = 0;
  taking_ = {};
  co_return !gone();
}

coro::Task<bool> Link::send_file(int fd, uint64_t offset, size_t bytes) {
  Hold piece;
  bool given = true;
  while (bytes > 0 && !gone()) {
    int32_t sent = stream_->send_file_now(fd, offset, bytes);
    if (sent == -EAGAIN) {
      if (piece.buffer.data() == nullptr) take(piece, kFilePiece);
      const std::span<std::byte> into(piece.buffer.data(), std::min<size_t>(bytes, kFilePiece));
      sent = io::read_now(fd, into, offset);
      // What was cached when the READ came is no more: it waits for the disk, as sendfile does.
      if (sent == -EAGAIN) sent = io::read_now(fd, into, offset, true);
      if (sent > 0) {
        std::array<iovec, 1> part{{{piece.buffer.data(), static_cast<size_t>(sent)}}};
        const bool taken = co_await send(part);
        if (!taken) break;
      }
    } else if (sent == -EPIPE || sent == -ECONNRESET) {
      give_up(fmt::format("send failed: {}", errno_text(-sent)), true);
      break;
    } else if (sent > 0) {
      sent_bytes_ += static_cast<uint64_t>(sent);
    }
    if (sent <= 0) {
      given = false;
      // The reply has begun, and cannot be finished: the client asks again on another connection.
      abort(fmt::format("the data of a READ cannot be sent from the file: {}",
                        sent == 0 ? std::string("it ends before") : errno_text(-sent)));
      break;
    }
    offset += static_cast<uint64_t>(sent);
    bytes -= static_cast<size_t>(sent);
  }
  release(piece);
  co_return given;
}

}  // namespace netblk::server
