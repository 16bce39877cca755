// SPDX-License-Identifier: GPL-2.0-only
// NbdLink: one of the connections of an NBD session: its negotiation, its batches, its end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "client/nbd_slots.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "proto/nbd/client_greeting.h"
#include "proto/nbd/client_replies.h"

namespace netblk::client {

class NbdSession;

class NbdLink final : private proto::NbdReplySink {
 public:
  NbdLink(NbdSession& session, unsigned index);
  ~NbdLink();

  // Negotiates on a new connection. The connection stays until end(), whatever comes of it.
  coro::Task<Result<proto::NbdExport>> greet(std::unique_ptr<io::Stream> stream, proto::NbdWish wish);
  // Sends and receives until the connection is lost or failed; error() says why.
  coro::Task<void> serve(const proto::NbdExport& terms);
  // Closes the connection; its operations have ended. The memory of requests is the users' again.
  void end();

  // A slot to send; called for a link that is up.
  void push(uint32_t slot);
  // Resets the connection, if there is one; the first reason is kept.
  void fail(Error why);
  // DISC, after what is queued; the server closes.
  void say_goodbye();

  bool connected() const { return stream_ != nullptr; }
  bool over() const { return over_; }
  const Error& error() const { return error_; }

  const unsigned index;

  // The session's notes about it.
  bool up = false;         // takes requests
  bool was_up = false;     // until its end has been judged
  bool ever_up = false;
  bool carries(const NbdSlot& slot) const { return slot.use == NbdSlot::Use::kSent && slot.link == index; }
  uint64_t up_since_ms = 0;
  uint64_t load = 0;  // of the slots that it carries now
  uint64_t retry_at_ms = 0;
  uint64_t backoff_ms = 0;
  coro::Event wake;  // of the session's coroutine for it
  NbdSlotList queue;  // to be sent

  // By the loop's clock: when the batch of now was put together, and when bytes came last.
  uint64_t batch_ns() {
    if (batch_ns_ == 0) batch_ns_ = loop_.now_ns();
    return batch_ns_;
  }
  uint64_t heard_ns() const { return heard_ns_; }

  // Until the alarm has no run left in the ready queue; before the link is destroyed.
  coro::Task<void> settle_alarm();
  // Sets `wake` then; while the link is not connected.
  void alarm_at(uint64_t at_ms) { alarm_.arm(at_ms); }

 private:
  static constexpr size_t kBatchRequests = 128;
  static constexpr size_t kBatchBytes = 1u << 20;
  static constexpr size_t kReceiveBytes = 128u << 10;
  static_assert(kReceiveBytes >= proto::NbdGreeting::kMaxPiece && kReceiveBytes >= proto::NbdReplies::kMaxPiece);
  // From here on the data of a READ is received in its own place, without a copy.
  static constexpr size_t kDirectBytes = 16u << 10;
  // Data of this length is followed by more of its kind more often than not.
  static constexpr size_t kLargeBytes = 64u << 10;

  struct Alarm : io::Timer {
    Alarm(io::Loop& loop, NbdLink& of)
        : Timer(loop, [](coro::Runnable& self) { static_cast<Alarm&>(self).link.alarmed(); }), link(of) {}
    NbdLink& link;
  };

  proto::NbdInFlight* find(uint64_t cookie) override;
  bool is_sent(const proto::NbdInFlight& request) override;
  bool extent(proto::NbdInFlight& request, uint64_t length, uint64_t status) override;
  void answered(proto::NbdInFlight& request, int error) override;

  void alarmed();
  void start_batch();
  void add_frame(const proto::NbdInFlight& request);
  void add_request(uint32_t slot);
  bool gather();
  coro::Task<bool> send_batch();
  coro::Task<bool> send_words(std::vector<std::byte> words);
  coro::Task<bool> receive_more(std::span<std::byte> into);
  coro::Task<void> send_all();
  coro::Task<void> receive_all();

  NbdSession& session_;
  io::Loop& loop_;
  Alarm alarm_;
  std::unique_ptr<io::Stream> stream_;
  bool over_ = true;
  Error error_{0, {}};
  bool extended_ = false;

  // Sending.
  coro::Event send_wanted_;
  coro::Event send_ended_;
  std::vector<iovec> batch_;
  size_t batch_at_ = 0;
  size_t header_bytes_ = 0;  // of the batch, in headers_
  uint64_t batch_ns_ = 0;        // 0: nobody has asked
  uint64_t heard_ns_ = 0;
  uint64_t gathered_bytes_ = 0;  // on this connection, ever
  uint64_t sent_bytes_ = 0;
  bool goodbye_wanted_ = false;
  std::array<std::byte, (kBatchRequests + 1) * NBD_EXTENDED_REQUEST_SIZE> headers_;

  // Receiving: bytes from_ to to_ of the buffer have come and are not taken.
  std::vector<std::byte> buffer_;
  size_t from_ = 0;
  size_t to_ = 0;
  proto::NbdReplies replies_;
};

}  // namespace netblk::client
