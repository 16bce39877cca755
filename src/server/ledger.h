// SPDX-License-Identifier: GPL-2.0-only
// Ledger: what the server remembers of each slot of a session (DESIGN 4.2, "Slots"; protocol/netblk.md, "Slots").
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace netblk::server {

// Scenario: a connection breaks after a WRITE was applied and before its reply arrived. The client sends it again under
// the same slot and sequence, and is told what the first time came to; nothing is applied twice. A request that is out
// of its order can only come from a client that has lost count: nothing that it says is believed.
//
// Thread-safe once it is shared: a session's connections are on several threads, and a hostile client uses one slot on two
// of them.
class Ledger {
 public:
  // slots: 1 to NETBLK2_MAX_SLOTS. 8 bytes each. adopted: of a session that began on a server which is no more.
  explicit Ledger(uint32_t slots, bool adopted = false)
      : slots_(slots), adopted_(adopted), entries_(std::make_unique<std::atomic<uint64_t>[]>(slots)) {}

  // Connections on more than one thread use it, from now on. What is taken on the first thread in this moment may be taken
  // here too: by a client that uses a slot twice at once, which gains nothing that two slots would not give it.
  void share() { shared_.store(true, std::memory_order_relaxed); }

  enum class Verdict : uint8_t {
    kNew,         // it runs now: finish() or restore() it
    kRepeated,    // it ran: `status` is what it came to
    kRunning,     // close: one request at a time in a slot
    kOutOfOrder,  // close
    kNoSuchSlot,  // close
  };
  struct Taken {
    Verdict verdict;
    uint32_t status;  // kRepeated
    uint64_t before;  // kNew: for restore()
  };

  // An entry that was never used takes any sequence. rerun: a repeated request runs again (a READ, whose data nobody
  // kept): kNew is returned for it.
  Taken take(uint32_t slot, uint32_t sequence, bool rerun) {
    if (slot >= slots_) return {Verdict::kNoSuchSlot, 0, 0};
    std::atomic<uint64_t>& entry = entries_[slot];
    uint64_t before = entry.load(std::memory_order_acquire);
    const auto last = static_cast<uint32_t>(before >> 32);
    switch (before & kStateMask) {
      case kRunning: return {Verdict::kRunning, 0, 0};
      case kUnused: break;
      default:
        if (sequence == last) {
          if (!rerun) return {Verdict::kRepeated, static_cast<uint32_t>(before >> kStatusShift) & kStatusMask, 0};
        } else if (sequence != last + 1) {
          return {Verdict::kOutOfOrder, 0, 0};
        }
    }
    if (!shared_.load(std::memory_order_relaxed)) {
      // A locked instruction would wait for all the data that was stored before.
      entry.store(uint64_t{sequence} << 32 | kRunning, std::memory_order_release);
      return {Verdict::kNew, 0, before};
    }
    // Losing the race means that another connection has just taken the slot.
    if (!entry.compare_exchange_strong(before, uint64_t{sequence} << 32 | kRunning, std::memory_order_acq_rel))
      return {Verdict::kRunning, 0, 0};
    return {Verdict::kNew, 0, before};
  }

  // Scenario: a hello was delayed in the network, with the READs that rode along, while its client went on elsewhere and
  // the server crashed. It arrives first, and the session is adopted on the strength of it: what its READs say of the
  // slots is of long ago, and the client's own requests would be out of order for ever. So a READ leaves a slot of an
  // adopted session as it was until a change has used it: then it is restored, not finished.
  bool leaves_no_trace(uint64_t before) const { return adopted_ && (before & kStateMask) == kUnused; }

  // The request that runs in the slot has come to `status` (below 2^16).
  void finish(uint32_t slot, uint32_t status) {
    std::atomic<uint64_t>& entry = entries_[slot];
    const uint64_t sequence = entry.load(std::memory_order_relaxed) & kSequenceMask;
    entry.store(sequence | uint64_t{status} << kStatusShift | kDone, std::memory_order_release);
  }

  // The request never reached the store: as if it had not come.
  void restore(uint32_t slot, uint64_t before) { entries_[slot].store(before, std::memory_order_release); }

  uint32_t slots() const { return slots_; }

 private:
  // sequence 32 | status 16 | unused 14 | state 2
  static constexpr uint64_t kUnused = 0, kDone = 1, kRunning = 2, kStateMask = 3;
  static constexpr unsigned kStatusShift = 16;
  static constexpr uint32_t kStatusMask = 0xffff;
  static constexpr uint64_t kSequenceMask = ~uint64_t{0} << 32;

  const uint32_t slots_;
  const bool adopted_;
  std::atomic<bool> shared_{false};
  std::unique_ptr<std::atomic<uint64_t>[]> entries_;
};

}  // namespace netblk::server
