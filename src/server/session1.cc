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

Session1::Session1(Link& link, std::shared_ptr<Export> served) : link_(link), export_(std::move(served)) {}

coro::Task<void> Session1::run() {
  coro::Scope scope;
  scope.spawn(write_loop());
  co_await read_loop();
  reading_ = false;
  link_.stop_deadline();
  answered_.set();
  co_await scope.join();
}

// ---- the reader

coro::Task<void> Session1::read_loop() {
  for (;;) {
    while (!link_.gone()) {
      const proto::Decoded1 decoded = proto::decode_request1(link_.unread());
      if (decoded.outcome == Decode1::kNeedMore) break;
      if (decoded.outcome != Decode1::kRequest) {
        link_.give_up(proto::refusal_text(decoded, link_.unread()[0]), false);
        link_.linger();
        co_return;
      }
      const Request1& request = decoded.request;
      link_.consume(NETBLK1_REQUEST_SIZE);
      // The header is whole: while the request waits for room it is not its client that is late.
      link_.stop_deadline();
      if (request.command == NETBLK1_CMD_DISCONNECT) {
        link_.give_up("the client disconnected", false);
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
          const bool skipped = co_await link_.skip_data(request.length_bytes);
          if (!skipped) co_return;
        }
        ++tail_;
        answer(slot, EINVAL);
        continue;
      }
      const bool all_here = !writes || link_.unread_bytes() >= length;
      if (writes && all_here && export_->device().geometry().writes_inline) {
        // The device copies the data before submit() returns: it can do so from where the data arrived.
        slot.data = link_.consume(length);
        ++tail_;
        submit(slot, request);
        continue;
      }
      // Of a WRITE that is still to come, nothing is held yet but what it gets to send.
      if (all_here && link_.needs_budget(length)) co_await link_.take_budget(slot.hold, length);
      link_.take(slot.hold, length);
      slot.data = slot.hold.buffer.data();
      if (writes) {
        const uint32_t here = std::min(link_.unread_bytes(), length);
        std::memcpy(slot.data, link_.consume(here), here);
        if (here < length) {
          const bool whole = co_await link_.receive_data(slot.hold, here, length);
          if (!whole) {
            link_.release(slot.hold);
            co_return;
          }
        }
      }
      if (in_device_ != 0 && must_wait(request)) co_await wait_for_order(request);
      ++tail_;
      submit(slot, request);
    }
    if (link_.draining() || link_.gone()) {
      if (link_.draining() && (link_.unread_bytes() != 0 || head_ != tail_)) link_.linger();
      co_return;
    }
    const bool more = co_await link_.receive(link_.unread_bytes() != 0,
                                             std::min(limits::kHeaderTimeoutMs, link_.context().request_timeout_ms));
    if (!more) co_return;
  }
}

bool Session1::room_now(uint32_t length) const {
  if (slots_ == nullptr) return false;
  return tail_ - head_ < limits::kConnectionSlots && link_.has_room(length);
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
  const block::Geometry geometry = export_->device().geometry();
  if (request.length_bytes == 0 || request.length_bytes % NETBLK_SECTOR_SIZE != 0) return false;
  if (request.sector > geometry.size_bytes / NETBLK_SECTOR_SIZE) return false;
  const uint64_t offset = request.sector * NETBLK_SECTOR_SIZE;
  if (request.length_bytes > geometry.size_bytes - offset) return false;
  return request.command != NETBLK1_CMD_WRITE || !geometry.read_only;
}

void Session1::submit(Slot& slot, const Request1& request) {
  slot.loop = &link_.context().loop;
  slot.command = request.command == NETBLK1_CMD_READ ? Command::kRead : Command::kWrite;
  slot.fua = true;  // every WRITE is durable before its OK
  slot.offset = request.sector * NETBLK_SECTOR_SIZE;
  slot.length = request.length_bytes;
  slot.abandoned = &link_.gone_flag();
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
    log_warning("{}: {} of {} bytes at offset {} failed: {}", link_.name(), block::command_text(slot.command), slot.length,
                slot.offset, errno_text(error));
  if (&slot == &slot_at(head_)) answered_.set();
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
    if (carries_data) parts[used++] = {slot.hold.buffer.data(), slot.hold.buffer.size_bytes()};
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
    // On a connection that is over the rest is dropped, but its slots end as the others do.
    co_await link_.send({parts.data(), used});
    for (size_t i = 0; i < replies; ++i) {
      Slot& slot = slot_at(head_ + i);
      slot.answered = false;
      link_.release(slot.hold);
    }
    head_ += replies;
    room_.set();
  }
}

}  // namespace netblk::server
