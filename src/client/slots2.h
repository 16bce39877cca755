// SPDX-License-Identifier: GPL-2.0-only
// Slots2: the in-flight table of a netblk/2 session. A slot is one request on the wire, or the memory of one that was
// given up.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "block/request.h"
#include "client/slot_queue.h"
#include "protocol/netblk_wire.h"

namespace netblk::client {

struct Slot2 {
  enum class Use : uint8_t {
    kFree,
    kWaiting,  // to be sent: in a link's queue, or in the session's until a link is up
    kSent,     // unanswered on its link, or on a lost connection of it that has not been fenced yet
  };

  Use use = Use::kFree;
  uint8_t type = 0;
  uint8_t flags = 0;
  // A sequence number was used up: the server may know the request. It is sent again with the same one, or settled.
  bool numbered = false;
  // On the connection of now: its memory is in the kernel's hands, or was written to.
  bool on_wire = false;
  // Its deadline passed while it was on the wire; it is answered when the connection has ended.
  bool expired = false;
  unsigned link = 0;  // that carries it; of meaning while numbered, or in a link's queue
  uint32_t sequence = 0;
  uint32_t length = 0;
  uint32_t packed_bytes = 0;  // of `packed`; 0: sent plain
  uint64_t offset = 0;
  uint64_t cookie = 0;
  uint64_t sent_ns = 0;     // by the loop's clock
  uint64_t send_end = 0;    // its last byte in the count of what its link sends
  uint64_t flush_mark = 0;  // FLUSH: the changes acknowledged when it was first sent
  // Null: a NOP that settles the slot of a request that was given up.
  block::Request* request = nullptr;
  std::vector<std::byte> packed;
  uint32_t next = 0;  // in a SlotList

  bool has_payload() const { return type == NETBLK2_WRITE; }
  std::byte* data() const { return request->data + (offset - request->offset); }
  // What a connection carries for it, for balance: a small request costs about what 4 KiB of data do.
  uint64_t load() const { return uint64_t{length} + 4096; }
};

using SlotList = SlotQueue<Slot2>;

class Slots2 {
 public:
  // Of a session's first welcome, and again when it has shrunk or grown with nothing in flight.
  void resize(uint32_t count, uint32_t first_sequence) {
    NETBLK_CHECK(free_.size() == slots_.size(), "a table of slots changes while it is in use");
    slots_.resize(count);
    free_.clear();
    for (uint32_t slot = count; slot > 0; --slot) free_.push_back(slot - 1);
    for (Slot2& slot : slots_) slot.sequence = first_sequence;
  }

  std::vector<Slot2>& all() { return slots_; }
  Slot2& operator[](uint32_t slot) { return slots_[slot]; }
  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t in_use() const { return static_cast<uint32_t>(slots_.size() - free_.size()); }
  bool full() const { return free_.empty(); }

  // The slot that was used last comes first: its line is in the cache.
  uint32_t take() {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give_back(uint32_t slot) {
    Slot2& given = slots_[slot];
    NETBLK_CHECK(given.use != Slot2::Use::kFree, "a slot is given back twice");
    given.use = Slot2::Use::kFree;
    given.numbered = given.on_wire = given.expired = false;
    given.request = nullptr;
    given.packed_bytes = 0;
    if (given.packed.capacity() > kKeptPackedBytes) std::vector<std::byte>().swap(given.packed);
    free_.push_back(slot);
  }

 private:
  static constexpr size_t kKeptPackedBytes = 8u << 10;
  std::vector<Slot2> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace netblk::client
