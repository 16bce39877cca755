// SPDX-License-Identifier: GPL-2.0-only
// Link: one accepted connection without its protocol: what was received and not decoded, what is being sent, the deadlines
// and the memory that its requests hold. A session (netblk/1 or /2) speaks over it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "server/buffer_pool.h"

namespace netblk::server {

// What the sessions of one loop share. One thread's.
struct SessionContext {
  io::Loop& loop;
  BufferPool buffers;
  DataBudget budget;
  uint64_t request_timeout_ms = limits::kRequestTimeoutMs;
  uint64_t send_timeout_ms = limits::kSendStallTimeoutMs;
  uint64_t handshake_timeout_ms = limits::kHandshakeTimeoutMs;
};

// Memory of one request's data, and what of it its loop's budget has given.
struct Hold {
  Buffer buffer;
  uint32_t charged_bytes = 0;
};

// Of one loop. One coroutine receives and one sends.
class Link {
 public:
  // name: of the connection, for the log.
  Link(SessionContext& context, std::unique_ptr<io::Stream> stream, std::string name);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  SessionContext& context() { return context_; }
  io::Stream& stream() { return *stream_; }
  const std::string& name() const { return name_; }

  // ---- the handshake: until opened() a peer gets little memory, and may be sent away for others

  // It has context().handshake_timeout_ms from now.
  void begin_handshake() { handshake_deadline_ms_ = context_.loop.now_ms() + context_.handshake_timeout_ms; }
  // It is over, and requests may come. `on_opened` is called once.
  void opened();
  bool is_open() const { return open_; }
  void on_opened(std::function<void()> call) { on_opened_ = std::move(call); }

  // ---- how it ends

  // The first reason is kept. peer_gone: what was not submitted of its requests must not reach a store.
  void give_up(std::string reason, bool peer_gone);
  // give_up() of a dead peer, and a reset.
  void abort(std::string reason);
  // Stops reading; what was accepted is answered, then the connection closes.
  void drain(const std::string& reason);
  // Closes the connection if it owes its client's bytes for too long. Called every limits::kSweepPeriodMs.
  void sweep(uint64_t now_ms);
  // The peer gets what was sent before the connection closes. After the last send.
  coro::Task<void> finish();

  bool gone() const { return gone_.load(std::memory_order_relaxed); }
  // For block::Request::abandoned.
  std::atomic<bool>& gone_flag() { return gone_; }
  bool draining() const { return draining_; }
  // Bytes may come that nobody will read: finish() lets the last replies out first.
  void linger() { lingers_ = true; }
  const std::string& close_reason() const { return close_reason_; }

  // ---- receiving

  std::span<const std::byte> unread() const { return {receive_ + begin_, end_ - begin_}; }
  uint32_t unread_bytes() const { return end_ - begin_; }
  // The next `bytes` of unread(), which are no longer unread; they stay where they are until the next receive.
  std::byte* consume(uint32_t bytes) {
    std::byte* const at = receive_ + begin_;
    begin_ += bytes;
    return at;
  }
  // Waits for more bytes behind unread(). inside: something has begun to arrive; from its first byte on it has
  // `patience_ms`. False: the connection is over.
  coro::Task<bool> receive(bool inside, uint64_t patience_ms);
  // Receives the rest of `hold`'s first `length` bytes, of which `here` are there.
  coro::Task<bool> receive_data(Hold& hold, uint32_t here, uint32_t length);
  // Memory for `length` bytes of data that come next, with them in it. take_here() does it where all are there and may be
  // taken at once; take_data() waits for them, and false means that the connection is over. The hold is the caller's to
  // release either way.
  bool take_here(Hold& hold, uint32_t length);
  coro::Task<bool> take_data(Hold& hold, uint32_t length);
  // Receives and drops.
  coro::Task<bool> skip_data(uint32_t length);
  // What began to arrive is whole, or its lateness is not its client's fault.
  void stop_deadline() { receive_deadline_ms_ = 0; }
  // Bytes that ever came: a peer that is silent is told by it.
  uint64_t received_bytes() const { return received_bytes_; }

  // ---- memory: limits::kConnectionDataBytes at most, or one request of any legal size

  bool has_room(uint32_t length) const {
    return held_bytes_ == 0 || held_bytes_ + length <= limits::kConnectionDataBytes;
  }
  // What goes beyond the connection's free bytes waits for the loop's budget.
  bool needs_budget(uint32_t length) const { return held_bytes_ + length > limits::kConnectionFreeBytes; }
  coro::Task<void> take_budget(Hold& hold, uint32_t length);
  void take(Hold& hold, uint32_t length);
  void release(Hold& hold);

  // ---- sending

  // Sends all parts; false: the connection is over. The parts are used up. more: a send_file() follows at once.
  coro::Task<bool> send(std::span<iovec> parts, bool more = false);
  // Sends what fits now; no send() is under way. What is left of the parts: send() sends it, and says what is wrong.
  std::span<iovec> send_now(std::span<iovec> parts, bool more);
  // Sends bytes of a file. False: the file did not give them, and the connection is over. (When it was over before, or its
  // peer took no more: true, as no fault of the file's.)
  coro::Task<bool> send_file(int fd, uint64_t offset, size_t bytes);
  uint64_t sent_bytes() const { return sent_bytes_; }

 private:
  // Data that the peer is taking or giving right now: since when (0: none), and how much of it has moved.
  struct Transfer {
    uint64_t since_ms = 0;
    uint64_t moved_bytes = 0;
  };
  static bool holds_up_others(const Transfer& transfer, uint64_t now_ms);

  std::span<iovec> sent(std::span<iovec> parts, int32_t bytes);
  void start_deadline(uint64_t patience_ms);
  bool received(int32_t result, bool inside);
  int32_t receive_more();
  void make_receive_place(bool keep_large);
  void grow();
  coro::Task<void> deliver();
  coro::Task<void> drop_the_rest();

  SessionContext& context_;
  std::unique_ptr<io::Stream> stream_;
  std::string name_;

  // [begin_, end_) of receive_, which is idle_ or busy_. A quiet connection keeps only idle_.
  std::unique_ptr<std::byte[]> idle_;
  Buffer busy_;
  std::byte* receive_;
  uint32_t capacity_ = limits::kReceiveIdleBytes;
  uint32_t begin_ = 0;
  uint32_t end_ = 0;
  uint64_t received_bytes_ = 0;
  uint64_t sent_bytes_ = 0;
  bool was_full_ = false;       // the last receive filled the large buffer: there is more
  bool sends_much_ = false;     // more than the small buffer takes
  uint32_t receives_left_ = 0;  // without waiting in between
  bool bulk_ = false;           // data of kBulkBytes came since the last receive

  uint64_t held_bytes_ = 0;     // of all requests
  uint64_t charged_bytes_ = 0;  // of these, to the loop's budget
  coro::Event budget_granted_;

  std::atomic<bool> gone_{false};
  bool draining_ = false;
  bool lingers_ = false;
  bool open_ = false;
  std::function<void()> on_opened_;
  uint64_t handshake_deadline_ms_ = 0;  // 0: none
  uint64_t receive_deadline_ms_ = 0;  // of what has begun to arrive; 0: none
  uint64_t send_deadline_ms_ = 0;
  Transfer giving_;
  Transfer taking_;
  std::string close_reason_;
};

}  // namespace netblk::server
