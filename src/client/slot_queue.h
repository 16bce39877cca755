// SPDX-License-Identifier: GPL-2.0-only
// What the sessions of every protocol share: queues of slots, and the parts that a request is sent in.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "block/request.h"

namespace netblk::client {

// A queue of slots through Slot::next; a slot is in one of them at most.
template <class Slot>
class SlotQueue {
 public:
  explicit SlotQueue(std::vector<Slot>& slots) : slots_(slots) {}
  bool empty() const { return head_ == kEnd; }
  uint32_t front() const { return head_; }
  void push(uint32_t slot) {
    slots_[slot].next = kEnd;
    if (head_ == kEnd)
      head_ = slot;
    else
      slots_[tail_].next = slot;
    tail_ = slot;
  }
  uint32_t pop() {
    NETBLK_CHECK(!empty(), "a slot is taken from an empty queue");
    return std::exchange(head_, slots_[head_].next);
  }
  void clear() { head_ = tail_ = kEnd; }

 private:
  static constexpr uint32_t kEnd = ~uint32_t{0};
  std::vector<Slot>& slots_;
  uint32_t head_ = kEnd;
  uint32_t tail_ = kEnd;
};

// What the session keeps in a request while it holds it; Held::next chains those that wait for a slot.
struct Parts {
  block::Request& request;

  // Bytes that have slots or are done; for a FLUSH 1 when it has one.
  uint64_t& begun() const { return request.held.progress; }
  int32_t& in_flight() const { return request.held.op.result; }
  // The loop's clock at submit().
  uint64_t& since_ns() const { return request.held.since_ns; }
  uint64_t since_ms() const { return since_ns() / 1'000'000; }
  // In the queue for slots.
  uint8_t& queued() const { return request.held.phase; }
  uint64_t whole() const { return request.command == block::Command::kFlush ? 1 : request.length; }
};

}  // namespace netblk::client
