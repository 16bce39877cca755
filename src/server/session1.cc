// SPDX-License-Identifier: GPL-2.0-only
#include "server/session1.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "coro/scope.h"

namespace netblk::server {

using block::Command;
using proto::Decode1;
using proto::Request1;

namespace {

// How long, and for how much, a connection that we close is still read from, so that its last replies are not thrown
// away by the RST that unread bytes cause.
constexpr uint64_t kLingerMs = 1000;
constexpr uint64_t kDeliverPollMs = 10;
constexpr uint64_t kLingerBytes = 8u << 20;

// Failed requests of one connection that get a line of their own in the log.
constexpr uint64_t kLoggedFailures = 10;

}  // namespace

Session1::Slot::Slot()
    : Request([](Request& ended) {
        auto& slot = static_cast<Slot&>(ended);
        --slot.session->in_device_;
        slot.session->settled_.set();
        slot.session->answer(slot, slot.error);
      }) {}

Session1::Session1(SessionContext& context, std::unique_ptr<io::Stream> stream, std::shared_ptr<Export> served,
                   std::string name)
    : context_(context),
      stream_(std::move(stream)),
      export_(std::move(served)),
      name_(std::move(name)),
      idle_(std::make_unique_for_overwrite<std::byte[]>(limits::kReceiveIdleBytes)),
      receive_(idle_.get()) {}

coro::Task<void> Session1::run() {
  coro::Scope scope;
  scope.spawn(write_loop());
  co_await read_loop();
  reading_ = false;
  receive_deadline_ms_ = 0;
  answered_.set();
  co_await scope.join();
  if ((draining_ || lingers_) && !gone()) co_await deliver();
  if (lingers_ && !gone()) co_await linger();
}

void Session1::give_up(std::string reason, bool peer_gone) {
  if (close_reason_.empty()) close_reason_ = std::move(reason);
  if (peer_gone) gone_.store(true, std::memory_order_release);
}

void Session1::drain(const std::string& reason) {
  if (draining_) return;
  draining_ = true;
  if (send_deadline_ms_ != 0)
    send_deadline_ms_ = std::min(send_deadline_ms_, context_.loop.now_ms() + limits::kDrainStallTimeoutMs);
  give_up(reason, false);
  stream_->shutdown_read();
}

void Session1::sweep(uint64_t now_ms) {
  if (export_->closed()) drain("the export was removed or changed");
  if (receive_deadline_ms_ != 0 && now_ms >= receive_deadline_ms_) {
    receive_deadline_ms_ = 0;
    give_up("a request did not arrive whole in time", true);
    stream_->abort();
  }
  if (charged_bytes_ != 0 && context_.budget.contended() &&
      (holds_up_others(giving_, now_ms) || holds_up_others(taking_, now_ms))) {
    give_up("others wait for the memory that this client's requests hold", true);
    stream_->abort();
  }
  if (send_deadline_ms_ != 0 && now_ms >= send_deadline_ms_) {
    send_deadline_ms_ = 0;
    give_up("the client took no reply in time", true);
    stream_->abort();
  }
}

// ---- the reader

coro::Task<void> Session1::read_loop() {
  for (;;) {
    while (!gone()) {
      const proto::Decoded1 decoded = proto::decode_request1(unread());
      if (decoded.outcome == Decode1::kNeedMore) break;
      if (decoded.outcome != Decode1::kRequest) {
        give_up(proto::refusal_text(decoded, unread()[0]), false);
        lingers_ = true;
        co_return;
      }
      const Request1& request = decoded.request;
      begin_ += NETBLK1_REQUEST_SIZE;
      // The header is whole: while the request waits for room it is not its client that is late.
      receive_deadline_ms_ = 0;
      if (request.command == NETBLK1_CMD_DISCONNECT) {
        give_up("the client disconnected", false);
        co_return;
      }
      const bool writes = request.command == NETBLK1_CMD_WRITE;
      const bool accepted = allowed(request);
      const uint32_t length = accepted ? request.length_bytes : 0;
      if (!room_now(length)) co_await wait_for_room(length);
      Slot& slot = slot_at(tail_);
      if (!accepted) {
        // The stream stays in step: the data of a refused WRITE is read and dropped.
        if (writes) {
          const bool skipped = co_await skip_data(request.length_bytes);
          if (!skipped) co_return;
        }
        ++tail_;
        answer(slot, EINVAL);
        continue;
      }
      if (writes && end_ - begin_ >= length && export_->device().geometry().writes_inline) {
        // The device copies the data before submit() returns: it can do so from where the data arrived.
        slot.data = receive_ + begin_;
        begin_ += length;
        ++tail_;
        submit(slot, request);
        continue;
      }
      // Of a WRITE that is still to come, nothing is held yet but what it gets to send.
      const bool all_here = !writes || end_ - begin_ >= length;
      if (all_here && held_bytes_ + length > limits::kConnectionFreeBytes) co_await take_budget(slot, length);
      held_bytes_ += length;
      slot.buffer = context_.buffers.take(length);
      slot.data = slot.buffer.data();
      if (writes) {
        const uint32_t here = std::min(end_ - begin_, length);
        std::memcpy(slot.buffer.data(), receive_ + begin_, here);
        begin_ += here;
        if (here < length) {
          const bool whole = co_await receive_data(slot, here, length);
          if (!whole) {
            release(slot);
            co_return;
          }
        }
      }
      if (in_device_ != 0 && must_wait(request)) co_await wait_for_order(request);
      ++tail_;
      submit(slot, request);
    }
    if (draining_ || gone()) {
      lingers_ = draining_ && (begin_ != end_ || head_ != tail_);
      co_return;
    }
    make_receive_place();
    const bool inside = begin_ != end_;
    if (inside) start_deadline(std::min(limits::kHeaderTimeoutMs, context_.request_timeout_ms));
    const int32_t got = co_await io::recv(*stream_, {receive_ + end_, capacity_ - end_});
    if (!received(got, inside)) co_return;
    end_ += static_cast<uint32_t>(got);
    if (end_ == capacity_ && busy_.data() == nullptr) {
      // A full buffer: more is there already, or soon. What has come is decoded all the same: its client may wait.
      grow();
      const int32_t more = stream_->recv_now({receive_ + end_, capacity_ - end_});
      if (more > 0) end_ += static_cast<uint32_t>(more);
    }
  }
}

// A deadline that runs goes on: it does not start again with each byte that trickles in.
void Session1::start_deadline(uint64_t patience_ms) {
  if (receive_deadline_ms_ == 0) receive_deadline_ms_ = context_.loop.now_ms() + patience_ms;
}

bool Session1::holds_up_others(const Transfer& transfer, uint64_t now_ms) {
  return transfer.since_ms != 0 && now_ms >= transfer.since_ms + limits::kContendedGraceMs +
                                                 transfer.moved_bytes / limits::kContendedBytesPerMs;
}

coro::Task<void> Session1::take_budget(Slot& slot, uint32_t length) {
  if (!context_.budget.take(length, budget_granted_)) co_await budget_granted_.wait();
  slot.charged_bytes = length;
  charged_bytes_ += length;
}

bool Session1::received(int32_t result, bool inside_request) {
  if (result > 0) return true;
  if (result < 0) {
    give_up(fmt::format("receive failed: {}", errno_text(-result)), true);
  } else {
    give_up(inside_request ? "the client closed the connection in the middle of a request"
                           : "the client closed the connection",
            false);
  }
  return false;
}

// The rest of a WRITE's data goes straight into the slot's own buffer.
coro::Task<bool> Session1::receive_data(Slot& slot, uint32_t here, uint32_t length) {
  start_deadline(context_.request_timeout_ms);
  bool asked = false;
  while (here < length) {
    uint32_t wanted = length - here;
    if (!asked && held_bytes_ > limits::kConnectionFreeBytes) {
      const auto free = static_cast<uint32_t>(limits::kConnectionFreeBytes);
      if (here >= free) {
        receive_deadline_ms_ = 0;
        co_await take_budget(slot, length);
        asked = true;
        start_deadline(context_.request_timeout_ms);
        giving_ = {context_.loop.now_ms(), 0};
      } else {
        wanted = std::min(wanted, free - here);
      }
    }
    const int32_t got = co_await io::recv(*stream_, {slot.buffer.data() + here, wanted});
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

coro::Task<bool> Session1::skip_data(uint32_t length) {
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

void Session1::grow() {
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
void Session1::make_receive_place() {
  const uint32_t kept = end_ - begin_;
  if (kept == 0 && busy_.data() != nullptr) {
    busy_.reset();
    receive_ = idle_.get();
    capacity_ = limits::kReceiveIdleBytes;
  } else if (begin_ != 0) {
    std::memmove(receive_, receive_ + begin_, kept);
  }
  begin_ = 0;
  end_ = kept;
}

bool Session1::room_now(uint32_t length) const {
  if (slots_ == nullptr) return false;
  return tail_ - head_ < limits::kConnectionSlots &&
         (held_bytes_ == 0 || held_bytes_ + length <= limits::kConnectionDataBytes);
}

coro::Task<void> Session1::wait_for_room(uint32_t length) {
  if (slots_ == nullptr) {
    slots_ = std::make_unique<Slot[]>(limits::kConnectionSlots);
    for (uint32_t i = 0; i < limits::kConnectionSlots; ++i) slots_[i].session = this;
  }
  while (!room_now(length)) co_await room_.wait();
}

// One connection's requests take effect in their order where they overlap: a READ sees the WRITEs before it and none
// of those after it, as from a server that does one request at a time.
bool Session1::must_wait(const Request1& request) {
  const uint64_t offset = request.sector * NETBLK_SECTOR_SIZE;
  for (uint64_t number = head_; number != tail_; ++number) {
    const Slot& earlier = slot_at(number);
    if (earlier.answered || (earlier.command == Command::kRead && request.command == NETBLK1_CMD_READ)) continue;
    if (offset < earlier.offset + earlier.length && earlier.offset < offset + request.length_bytes) return true;
  }
  return false;
}

coro::Task<void> Session1::wait_for_order(const Request1& request) {
  while (must_wait(request)) co_await settled_.wait();
}

// Whether the request may reach the device at all (DESIGN 4.1: a bad range or length, or a WRITE to what is read-only,
// is answered with ERROR).
bool Session1::allowed(const Request1& request) const {
  const block::Geometry& geometry = export_->device().geometry();
  if (request.length_bytes == 0 || request.length_bytes % NETBLK_SECTOR_SIZE != 0) return false;
  if (request.sector > geometry.size_bytes / NETBLK_SECTOR_SIZE) return false;
  const uint64_t offset = request.sector * NETBLK_SECTOR_SIZE;
  if (request.length_bytes > geometry.size_bytes - offset) return false;
  return request.command != NETBLK1_CMD_WRITE || !geometry.read_only;
}

void Session1::submit(Slot& slot, const Request1& request) {
  slot.loop = &context_.loop;
  slot.command = request.command == NETBLK1_CMD_READ ? Command::kRead : Command::kWrite;
  slot.fua = true;  // every WRITE is durable before its OK
  slot.offset = request.sector * NETBLK_SECTOR_SIZE;
  slot.length = request.length_bytes;
  slot.abandoned = &gone_;
  slot.answered = false;
  ++in_device_;
  export_->device().submit(slot);
}

// ---- the writer

void Session1::answer(Slot& slot, int error) {
  slot.error = error;
  slot.status = error == 0 ? std::byte{NETBLK1_STATUS_OK} : std::byte{NETBLK1_STATUS_ERROR};
  slot.answered = true;
  if (error != 0 && ++failed_ <= kLoggedFailures && error != EINVAL)
    log_warning("{}: {} of {} bytes at offset {} failed: {}", name_, block::command_text(slot.command), slot.length,
                slot.offset, errno_text(error));
  if (&slot == &slot_at(head_)) answered_.set();
}

void Session1::release(Slot& slot) {
  if (slot.buffer.data() == nullptr) return;
  const uint32_t bytes = slot.buffer.size_bytes();
  slot.buffer.reset();
  held_bytes_ -= bytes;
  const uint32_t charged = std::exchange(slot.charged_bytes, 0);
  charged_bytes_ -= charged;
  if (charged != 0) context_.budget.give_back(charged);
}

// The replies that are due, in order: status bytes, and the data of READs that succeeded. Returns the parts in use.
size_t Session1::gather(std::span<iovec> parts, size_t& replies) {
  size_t used = 0;
  replies = 0;
  while (replies < limits::kSendReplies && head_ + replies != tail_) {
    Slot& slot = slot_at(head_ + replies);
    if (!slot.answered) break;
    parts[used++] = {&slot.status, NETBLK1_STATUS_SIZE};
    const bool carries_data = slot.error == 0 && slot.command == Command::kRead;
    if (carries_data) parts[used++] = {slot.buffer.data(), slot.buffer.size_bytes()};
    ++replies;
  }
  return used;
}

coro::Task<void> Session1::write_loop() {
  std::array<iovec, 2 * limits::kSendReplies> parts;
  for (;;) {
    size_t replies = 0;
    const size_t used = slots_ == nullptr ? 0 : gather(parts, replies);
    if (replies == 0) {
      if (!reading_ && head_ == tail_) co_return;
      co_await answered_.wait();
      continue;
    }
    std::span<iovec> left(parts.data(), used);
    while (!left.empty() && !gone()) {
      // Only a send that does not end at once needs a deadline; each byte that the client takes renews it.
      send_deadline_ms_ = 0;
      const int32_t sent = co_await io::await([&](io::Op& op) {
        if (stream_->send(op, left)) return true;
        const uint64_t now_ms = context_.loop.now_ms();
        send_deadline_ms_ = now_ms + (draining_ ? limits::kDrainStallTimeoutMs : context_.send_timeout_ms);
        if (taking_.since_ms == 0) taking_ = {now_ms, 0};
        return false;
      });
      if (sent < 0) {
        give_up(fmt::format("send failed: {}", errno_text(-sent)), true);
        stream_->abort();
        break;
      }
      taking_.moved_bytes += static_cast<uint64_t>(sent);
      auto count = static_cast<size_t>(sent);
      while (!left.empty() && count >= left.front().iov_len) {
        count -= left.front().iov_len;
        left = left.subspan(1);
      }
      if (count > 0) {
        left.front().iov_base = static_cast<std::byte*>(left.front().iov_base) + count;
        left.front().iov_len -= count;
      }
    }
    send_deadline_ms_ = 0;
    taking_ = {};
    for (size_t i = 0; i < replies; ++i) {
      Slot& slot = slot_at(head_ + i);
      slot.answered = false;
      release(slot);
    }
    head_ += replies;
    room_.set();
  }
}

// Waits until the peer has all replies. Bytes that nobody will read make the close a reset, and a reset throws away what
// was sent but not yet delivered.
coro::Task<void> Session1::deliver() {
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
coro::Task<void> Session1::linger() {
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

}  // namespace netblk::server
