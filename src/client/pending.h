// SPDX-License-Identifier: GPL-2.0-only
// Pending: the unanswered requests of a client, in the order in which they go onto the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "base/check.h"
#include "base/limits.h"
#include "block/request.h"

namespace netblk::client {

// A request as the wire carries it: one READ or WRITE of legal length. A longer request is a chain of parts, the next
// appended when one is answered, so that each request is in the queue once and memory does not grow with its length.
struct Part {
  block::Request* request;
  uint64_t offset;
  uint32_t length;  // 0: a flush, which has no bytes on the wire
  uint64_t sent_ns = 0;  // by the loop's clock; 0: not yet
};

// Zeroes are sent from one small block, so many times over; the limit keeps one part within one gathered send.
inline constexpr uint32_t kZeroBlockBytes = 64u << 10;
inline constexpr uint32_t kMaxZeroesBytes = 4u << 20;
static_assert(kMaxZeroesBytes / kZeroBlockBytes < limits::kKernelMaxIov / 2);

inline Part part_at(block::Request& request, uint64_t done_bytes) {
  if (request.command == block::Command::kFlush) return {.request = &request, .offset = 0, .length = 0};
  const uint64_t most =
      request.command == block::Command::kWriteZeroes ? kMaxZeroesBytes : limits::kMaxRequestBytes;
  const uint64_t left = request.length - done_bytes;
  return {.request = &request, .offset = request.offset + done_bytes, .length = static_cast<uint32_t>(left < most ? left : most)};
}

// Of the loop's thread. Invariant: 0 <= whole() <= given() <= size(); the first whole() parts have been sent whole on
// the connection of now, the first given() were handed to the kernel at least in part.
class Pending {
 public:
  bool empty() const { return parts_.empty(); }
  size_t size() const { return parts_.size(); }
  size_t given() const { return given_; }
  size_t whole() const { return whole_; }
  Part& front() { return parts_.front(); }
  Part& at(size_t index) { return parts_[index]; }
  Part& next_to_give() { return parts_[given_]; }

  void append(const Part& part) { parts_.push_back(part); }
  void pop_front() {
    parts_.pop_front();
    if (given_ > 0) --given_;
    if (whole_ > 0) --whole_;
  }
  void drop_next_to_give() { parts_.erase(parts_.begin() + static_cast<std::ptrdiff_t>(given_)); }
  void note_given(uint64_t now_ns) {
    NETBLK_CHECK(given_ < parts_.size(), "a part is sent that is not there");
    parts_[given_].sent_ns = now_ns;
    ++given_;
  }
  void note_whole() {
    NETBLK_CHECK(whole_ < given_, "a part is whole before it was sent");
    ++whole_;
  }
  // A new connection starts from the oldest.
  void rewind() { given_ = whole_ = 0; }

 private:
  std::deque<Part> parts_;
  size_t given_ = 0;
  size_t whole_ = 0;
};

}  // namespace netblk::client
