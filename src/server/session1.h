// SPDX-License-Identifier: GPL-2.0-only
// Session1: netblk/1 on one connection (DESIGN 4.1).
#pragma once

#include <cstdint>
#include <memory>

#include "block/request.h"
#include "coro/event.h"
#include "coro/task.h"
#include "proto/netblk/codec1.h"
#include "server/exports.h"
#include "server/link.h"

namespace netblk::server {

// Two coroutines over a ring of request slots: the reader takes every whole request out of one receive and submits
// them; the writer gathers every answer that is due, in order, into one send. A request that the device ends at once
// costs no wake-up and no allocation.
//
// Invariants: head_ <= tail_ <= head_ + kConnectionSlots; slots [head_, tail_) are in flight or answered, and only the
// writer takes them off at head_, so that replies go out in the order of requests. A slot owns its data from admission
// until its reply was sent.
class Session1 {
 public:
  Session1(Link& link, std::shared_ptr<Export> served);
  Session1(const Session1&) = delete;
  Session1& operator=(const Session1&) = delete;

  // Ends when the connection is over and every request that it submitted has ended.
  coro::Task<void> run();

  uint64_t requests() const { return tail_; }
  uint64_t failed_requests() const { return failed_; }

 private:
  struct Slot : block::Request {
    Slot();
    Session1* session = nullptr;
    Hold hold;
    std::byte status{};
    bool answered = false;
  };

  coro::Task<void> read_loop();
  coro::Task<void> write_loop();
  coro::Task<void> wait_for_room(uint32_t length);
  coro::Task<void> wait_for_order(const proto::Request1& request);

  bool allowed(const proto::Request1& request) const;
  bool room_now(uint32_t length) const;
  bool must_wait(const proto::Request1& request);
  void submit(Slot& slot, const proto::Request1& request);
  void answer(Slot& slot, int error);
  size_t gather(std::span<iovec> parts, size_t& replies);
  Slot& slot_at(uint64_t number) { return slots_[number % limits::kConnectionSlots]; }

  Link& link_;
  std::shared_ptr<Export> export_;

  std::unique_ptr<Slot[]> slots_;  // made with the first request
  uint64_t head_ = 0;
  uint64_t tail_ = 0;
  uint32_t in_device_ = 0;  // submitted and not ended
  uint64_t failed_ = 0;
  bool reading_ = true;

  coro::Event answered_;  // the slot at head_ was answered, or the reader has ended
  coro::Event room_;      // a slot or bytes came free
  coro::Event settled_;   // the device has ended a request
};

}  // namespace netblk::server
