// SPDX-License-Identifier: GPL-2.0-only
#include "client/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/result.h"
#include "coro/scope.h"
#include "proto/netblk/codec1.h"

namespace netblk::client {
namespace {

constexpr std::array<std::byte, kZeroBlockBytes> kZeroes{};

void* without_const(const void* pointer) { return const_cast<void*>(pointer); }  // sendmsg reads only

}  // namespace

Connection::DueTimer::DueTimer(Connection& of)
    : Timer(of.loop_, [](coro::Runnable& self) { static_cast<DueTimer&>(self).connection.check_due(); }),
      connection(of) {}

Connection::Connection(io::Loop& loop, io::UniqueFd fd, Pending& pending, ConnectionOwner& owner, uint64_t timeout_ms,
                       uint64_t give_up_at_ms)
    : loop_(loop),
      stream_(loop.make_stream(std::move(fd))),
      pending_(pending),
      owner_(owner),
      timeout_ms_(timeout_ms),
      give_up_at_ms_(give_up_at_ms),
      due_timer_(*this),
      received_(kReceiveBytes) {
  pending_.rewind();
  batch_.reserve(limits::kKernelMaxIov);
  batch_left_.reserve(kBatchParts);
}

coro::Task<void> Connection::run() {
  if (!pending_.empty()) became_due();
  {
    coro::Scope scope;
    scope.spawn(send_all());
    scope.spawn(receive_all());
    co_await scope.join();
  }
  over_ = true;
  due_timer_.cancel();
  while (due_timer_.queued) co_await io::SleepUntil(loop_, loop_.now_ms());
  // Closes: with RST unless the end was a clean one.
  stream_.reset();
}

void Connection::appended() {
  end_flushes();
  if (pending_.size() == 1) became_due();
  send_wanted_.set();
}

void Connection::stop() {
  stopping_ = true;
  became_due();  // the goodbye has a deadline too
  send_wanted_.set();
}

void Connection::fail(std::string reason) {
  if (over_) return;
  over_ = true;
  error_ = std::move(reason);
  stream_->abort();
  send_wanted_.set();
  send_ended_.set();
}

uint64_t Connection::due_at_ms() const {
  const uint64_t due = due_since_ms_ + timeout_ms_;
  return answers_ == 0 && give_up_at_ms_ != 0 ? std::min(due, give_up_at_ms_) : due;
}

void Connection::became_due() {
  due_since_ms_ = loop_.now_ms();
  if (!due_timer_.armed() && !due_timer_.queued) due_timer_.arm(due_at_ms());
}

// Replies move the time on without touching the timer: it looks again when it fires.
void Connection::check_due() {
  if (over_ || (pending_.empty() && !stopping_)) return;
  if (loop_.now_ms() >= due_at_ms()) return fail(fmt::format("no reply within {} ms", timeout_ms_));
  due_timer_.arm(due_at_ms());
}

void Connection::add_part(const Part& part, std::byte* header) {
  const bool is_read = part.request->command == block::Command::kRead;
  const proto::Request1 request{.command = is_read ? NETBLK1_CMD_READ : NETBLK1_CMD_WRITE,
                                .sector = part.offset / limits::kSectorBytes,
                                .length_bytes = part.length};
  proto::encode_request1(request, header);
  batch_.push_back({header, NETBLK1_REQUEST_SIZE});
  size_t bytes = NETBLK1_REQUEST_SIZE;
  if (part.request->command == block::Command::kWrite) {
    batch_.push_back({part.request->data + (part.offset - part.request->offset), part.length});
    bytes += part.length;
  } else if (part.request->command == block::Command::kWriteZeroes) {
    for (uint32_t done = 0; done < part.length; done += kZeroBlockBytes)
      batch_.push_back({without_const(kZeroes.data()), std::min(kZeroBlockBytes, part.length - done)});
    bytes += part.length;
  }
  batch_left_.push_back(bytes);
}

bool Connection::gather() {
  batch_.clear();
  batch_left_.clear();
  batch_at_ = batch_left_at_ = 0;
  size_t bytes = 0;
  const uint64_t now_ns = pending_.given() < pending_.size() ? loop_.now_ns() : 0;
  while (pending_.given() < pending_.size() && batch_left_.size() < kBatchParts && bytes < kBatchBytes &&
         batch_.size() < limits::kKernelMaxIov / 2) {
    const Part part = pending_.next_to_give();
    if (part.length == 0) {
      // A flush behind others: it ends when it is the front. To the sender it is a part of no bytes.
      pending_.note_given(now_ns);
      batch_left_.push_back(0);
      continue;
    }
    if (part.request->is_abandoned()) {
      pending_.drop_next_to_give();
      owner_.withdrawn(*part.request);
      end_flushes();
      continue;
    }
    add_part(part, headers_.data() + batch_left_.size() * NETBLK1_REQUEST_SIZE);
    bytes += batch_left_.back();
    pending_.note_given(now_ns);
  }
  return !batch_left_.empty();
}

void Connection::sent(size_t bytes) {
  for (size_t left = bytes; left > 0;) {
    iovec& part = batch_[batch_at_];
    const size_t taken = std::min(left, part.iov_len);
    part.iov_base = static_cast<std::byte*>(part.iov_base) + taken;
    part.iov_len -= taken;
    left -= taken;
    if (part.iov_len == 0) ++batch_at_;
  }
  while (batch_left_at_ < batch_left_.size()) {
    size_t& left = batch_left_[batch_left_at_];
    const size_t taken = std::min(left, bytes);
    left -= taken;
    bytes -= taken;
    if (left > 0) break;
    ++batch_left_at_;
    pending_.note_whole();
  }
}

coro::Task<void> Connection::send_all() {
  while (!over_) {
    const bool any = gather();
    if (!any) {
      if (stopping_) break;
      co_await send_wanted_.wait();
      continue;
    }
    sent(0);  // flushes at the front of the batch
    while (!over_ && batch_at_ < batch_.size()) {
      const int32_t result = co_await io::send(*stream_, std::span(batch_).subspan(batch_at_));
      // A ring gives up a send that waits when the process is stopped or frozen.
      if (result == -EINTR) continue;
      if (result < 0) {
        fail(fmt::format("sending failed: {}", errno_text(-result)));
        break;
      }
      sent(static_cast<size_t>(result));
      send_ended_.set();
    }
  }
  if (over_) co_return;
  // Nobody waits for anything: a plain end, as 4.1 has it.
  proto::encode_request1({.command = NETBLK1_CMD_DISCONNECT}, headers_.data());
  const iovec goodbye{headers_.data(), NETBLK1_REQUEST_SIZE};
  const int32_t result = co_await io::send(*stream_, std::span(&goodbye, 1));
  (void)result;
  over_ = true;
  stream_->shutdown();
}

void Connection::end_flushes() {
  while (!pending_.empty() && pending_.front().length == 0) owner_.answered(0, heard_ns_);
}

void Connection::finish_front(int error) {
  ++answers_;
  owner_.answered(error, heard_ns_);
  end_flushes();
  if (!pending_.empty()) became_due();
  send_wanted_.set();  // a chain of parts may have grown
}

// The front part has been sent whole. Sets data_left_ where data follows.
void Connection::take_status(std::byte status) {
  if (status != std::byte{NETBLK1_STATUS_OK} && status != std::byte{NETBLK1_STATUS_ERROR})
    return fail(fmt::format("bad status byte 0x{:02x} from the server", std::to_integer<unsigned>(status)));
  const Part& part = pending_.front();
  if (status == std::byte{NETBLK1_STATUS_ERROR}) {
    finish_front(EIO);
  } else if (part.request->command == block::Command::kRead) {
    data_left_ = part.length;
    data_at_ = part.request->data + (part.offset - part.request->offset);
  } else {
    finish_front(0);
  }
}

coro::Task<void> Connection::receive_all() {
  while (!over_) {
    const bool direct = data_left_ >= kDirectBytes;
    const std::span<std::byte> into = direct ? std::span(data_at_, data_left_) : std::span(received_);
    const int32_t result = co_await io::recv(*stream_, into);
    if (over_) break;
    if (result <= 0) {
      fail(result == 0 ? "the server closed the connection" : fmt::format("receiving failed: {}", errno_text(-result)));
      break;
    }
    heard_ns_ = loop_.now_ns();
    size_t got = static_cast<size_t>(result);
    if (direct) {
      data_at_ += got;
      data_left_ -= got;
      if (data_left_ == 0) finish_front(0);
      continue;
    }
    for (const std::byte* at = received_.data(); got > 0 && !over_;) {
      if (data_left_ == 0) {
        if (pending_.given() == 0) {
          fail(fmt::format("unsolicited byte 0x{:02x} from the server", std::to_integer<unsigned>(*at)));
          break;
        }
        // A refusal may come before the last byte of the WRITE has left. Its memory is the kernel's until then.
        while (!over_ && pending_.whole() == 0) co_await send_ended_.wait();
        if (over_) break;
        take_status(*at);
        ++at;
        --got;
        continue;
      }
      const size_t taken = std::min(got, data_left_);
      std::memcpy(data_at_, at, taken);
      data_at_ += taken;
      data_left_ -= taken;
      at += taken;
      got -= taken;
      if (data_left_ == 0) finish_front(0);
    }
  }
}

}  // namespace netblk::client
