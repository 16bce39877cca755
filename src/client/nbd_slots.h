// SPDX-License-Identifier: GPL-2.0-only
// NbdSlots: the in-flight table of an NBD session. A slot is one request on the wire.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"
#include "client/slot_queue.h"
#include "proto/nbd/client_replies.h"

namespace netblk::client {

struct NbdSlot {
  enum class Use : uint8_t {
    kFree,
    kWaiting,  // to be sent: in a link's queue, or in the session's until a link is up
    kSent,     // unanswered on its link
  };

  Use use = Use::kFree;
  bool sent_before = false;
  // Its deadline passed while its memory is in the connection's hands; it is answered when the connection has ended.
  bool expired = false;
  uint8_t faults = 0;  // connections that ended by a server's nonsense while they carried it
  unsigned link = 0;   // that carries it, or whose queue it is in
  uint32_t turn = 0;   // of this slot: no cookie comes twice
  uint64_t sent_ns = 0;     // by the loop's clock
  uint64_t send_end = 0;    // its last byte in the count of what its link sends
  uint64_t flush_mark = 0;  // FLUSH: the changes acknowledged when it was sent
  block::Request* request = nullptr;
  proto::NbdInFlight wire;
  uint32_t next = 0;  // in an NbdSlotList

  bool has_payload() const { return wire.type == NBD_CMD_WRITE; }
  // What a connection carries for it, for balance: a small request costs about what 4 KiB of data do.
  uint64_t load() const {
    return (wire.type == NBD_CMD_READ || wire.type == NBD_CMD_WRITE ? wire.length : 0) + 4096;
  }
};

using NbdSlotList = SlotQueue<NbdSlot>;

class NbdSlots {
 public:
  explicit NbdSlots(uint32_t count) : slots_(count) {
    free_.reserve(count);
    for (uint32_t slot = count; slot > 0; --slot) free_.push_back(slot - 1);
  }

  std::vector<NbdSlot>& all() { return slots_; }
  NbdSlot& operator[](uint32_t slot) { return slots_[slot]; }
  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }
  bool full() const { return free_.empty(); }

  // The slot that was used last comes first: its line is in the cache.
  uint32_t take() {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give_back(uint32_t slot) {
    NbdSlot& given = slots_[slot];
    NETBLK_CHECK(given.use != NbdSlot::Use::kFree, "a slot is given back twice");
    given.use = NbdSlot::Use::kFree;
    given.sent_before = given.expired = false;
    given.faults = 0;
    given.request = nullptr;
    free_.push_back(slot);
  }

  // A cookie is the slot's number, and above it how often the slot has been sent.
  static constexpr uint64_t cookie_of(uint32_t slot, uint32_t turn) { return uint64_t{turn} << 32 | slot; }
  static constexpr uint32_t number_of(uint64_t cookie) { return static_cast<uint32_t>(cookie); }

 private:
  std::vector<NbdSlot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace netblk::client
