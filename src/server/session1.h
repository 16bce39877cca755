// SPDX-License-Identifier: GPL-2.0-only
// Session1: one netblk/1 connection (DESIGN 4.1).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block/request.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "proto/netblk/codec1.h"
#include "server/buffer_pool.h"
#include "server/exports.h"

namespace netblk::server {

// What the sessions of one loop share. One thread's.
struct SessionContext {
  io::Loop& loop;
  BufferPool buffers;
  DataBudget budget;
  uint64_t request_timeout_ms = limits::kRequestTimeoutMs;
  uint64_t send_timeout_ms = limits::kSendStallTimeoutMs;
};

// Two coroutines over a ring of request slots: the reader takes every whole request out of one receive and submits
// them; the writer gathers every answer that is due, in order, into one send. A request that the device ends at once
// costs no wake-up and no allocation.
//
// Invariants: head_ <= tail_ <= head_ + kConnectionSlots; slots [head_, tail_) are in flight or answered, and only the
// writer takes them off at head_, so that replies go out in the order of requests. A slot owns its data from admission
// until its reply was sent.
class Session1 {
 public:
  // name: of the connection, for the log.
  Session1(SessionContext& context, std::unique_ptr<io::Stream> stream, std::shared_ptr<Export> served,
           std::string name);
  Session1(const Session1&) = delete;
  Session1& operator=(const Session1&) = delete;

  // Ends when the connection is over and every request that it submitted has ended.
  coro::Task<void> run();

  // Stops reading; what was accepted is answered, then the connection closes. `reason` is for the log.
  void drain(const std::string& reason);

  // Closes the connection if it owes its client's bytes for too long, or its export has gone. Called every
  // limits::kSweepPeriodMs.
  void sweep(uint64_t now_ms);

  const std::string& close_reason() const { return close_reason_; }
  uint64_t requests() const { return tail_; }
  uint64_t failed_requests() const { return failed_; }

 private:
  struct Slot : block::Request {
    Slot();
    Session1* session = nullptr;
    Buffer buffer;
    uint32_t charged_bytes = 0;  // to the loop's budget
    std::byte status{};
    bool answered = false;
  };

  coro::Task<void> read_loop();
  coro::Task<void> write_loop();
  coro::Task<bool> receive_data(Slot& slot, uint32_t here, uint32_t length);
  coro::Task<bool> skip_data(uint32_t length);
  coro::Task<void> wait_for_room(uint32_t length);
  coro::Task<void> wait_for_order(const proto::Request1& request);
  coro::Task<void> take_budget(Slot& slot, uint32_t length);
  coro::Task<void> deliver();
  coro::Task<void> linger();

  bool allowed(const proto::Request1& request) const;
  bool room_now(uint32_t length) const;
  bool must_wait(const proto::Request1& request);
  void submit(Slot& slot, const proto::Request1& request);
  void answer(Slot& slot, int error);
  void release(Slot& slot);
  size_t gather(std::span<iovec> parts, size_t& replies);
  void give_up(std::string reason, bool peer_gone);
  void start_deadline(uint64_t patience_ms);
  bool received(int32_t result, bool inside_request);
  void make_receive_place();
  void grow();
  std::span<const std::byte> unread() const { return {receive_ + begin_, end_ - begin_}; }
  bool gone() const { return gone_.load(std::memory_order_relaxed); }
  Slot& slot_at(uint64_t number) { return slots_[number % limits::kConnectionSlots]; }

  SessionContext& context_;
  std::unique_ptr<io::Stream> stream_;
  std::shared_ptr<Export> export_;
  std::string name_;

  // What was received and not decoded yet: [begin_, end_) of receive_, which is idle_ or busy_. A quiet connection
  // keeps only idle_.
  std::unique_ptr<std::byte[]> idle_;
  Buffer busy_;
  std::byte* receive_;
  uint32_t capacity_ = limits::kReceiveIdleBytes;
  uint32_t begin_ = 0;
  uint32_t end_ = 0;

  std::unique_ptr<Slot[]> slots_;  // made with the first request
  uint64_t head_ = 0;
  uint64_t tail_ = 0;
  uint64_t held_bytes_ = 0;     // of all slots
  uint64_t charged_bytes_ = 0;  // of these, to the loop's budget
  uint32_t in_device_ = 0;   // submitted and not ended
  uint64_t failed_ = 0;

  coro::Event answered_;        // the slot at head_ was answered, or the reader has ended
  coro::Event room_;            // a slot or bytes came free
  coro::Event settled_;         // the device has ended a request
  coro::Event budget_granted_;  // the loop's budget has let the next request in

  std::atomic<bool> gone_{false};  // the peer is known to be dead: its unsubmitted writes must not be applied
  bool reading_ = true;
  bool draining_ = false;
  bool lingers_ = false;              // bytes may come that nobody will read: let the last replies out first
  uint64_t receive_deadline_ms_ = 0;  // of the request that has begun to arrive; 0: none
  uint64_t send_deadline_ms_ = 0;

  // Data that the peer is taking or giving right now: since when (0: none), and how much of it has moved.
  struct Transfer {
    uint64_t since_ms = 0;
    uint64_t moved_bytes = 0;
  };
  Transfer giving_;
  Transfer taking_;
  static bool holds_up_others(const Transfer& transfer, uint64_t now_ms);
  std::string close_reason_;
};

}  // namespace netblk::server
