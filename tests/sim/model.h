// SPDX-License-Identifier: GPL-2.0-only
// Model: what a disk's users were told, and therefore what its blocks may hold. It knows everything that happens in a
// run; the client and the server know nothing of it.
//
// Each block keeps the changes that may still be its content. A change that wholly follows another and was acknowledged
// rules the other out; changes that were under way at the same time may end up in any order; a change that failed may
// have happened or not, and if it failed for want of an answer it may still happen, but not after anything that its user
// asked later (DESIGN 4.2, "Abandon"). What was acknowledged and not flushed when the store
// lost its cache rules nothing out any more once its client was told (`lost`), or was replaced by another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "block/request.h"
#include "sim/disk.h"
#include "sim/world.h"

namespace netblk::sim {

// Unique in a run. 0: the block was never written, or zeroed.
using WriteId = uint64_t;

// The 512 bytes that a write of this id puts there; they name the id and the block, so that no other content, a torn or
// a misdirected one included, passes for them. `soft`: most of it compresses.
void fill_block(std::span<std::byte> block, WriteId id, uint64_t number, bool soft);

class Model final : public DiskWatcher {
 public:
  Model(World& world, Disk& disk);

  // --- Clients: one life of a client process is one writer.
  uint64_t new_writer();
  // No write of it may take effect from here on: another session was let in after it was fenced.
  void superseded(uint64_t writer);
  void begins_again(uint64_t writer) { writers_[writer].superseded = false; }
  bool is_superseded(uint64_t writer) const { return writers_[writer].superseded; }
  // It was given an empty ledger: what it has no answer to may be applied once more.
  void new_ledger(uint64_t writer) { ++writers_[writer].ledger; }
  // Its user was told that what it wrote and did not flush may be gone.
  void told_lost(uint64_t writer);

  // --- Requests, as the user sees them.
  struct Change {
    WriteId id = 0;
    block::Command command = block::Command::kWrite;
    uint64_t writer = 0;
    uint64_t offset = 0, length = 0;
    bool fua = false;
    uint64_t issued = 0;
    uint64_t ended = UINT64_MAX;  // its tick
    uint64_t applied = 0;         // the tick of its last effect
    bool acknowledged = false;
    bool durable = false;      // promised: flushed after its acknowledgement, or FUA
    bool exposed = false;      // the store has lost its cache while it was acknowledged and not flushed
    bool surrendered = false;  // and its user knows
    bool soft = false;
    uint64_t applied_in = 0;  // the ledger in which it was applied last
    uint64_t applied_epoch = UINT64_MAX;
  };
  // A trim or zeroes of a range that an earlier one had exactly could not be told from it: false, choose another.
  bool can_issue(block::Command command, uint64_t offset, uint64_t length) const;
  WriteId issue(uint64_t writer, block::Command command, uint64_t offset, uint64_t length, bool fua, bool soft);
  void end(WriteId id, bool acknowledged);
  uint64_t issue_flush() { return world_.next_tick(); }
  // While a read is under way, what it may still find is not forgotten.
  uint64_t issue_read() { return *reads_.insert(world_.next_tick()).first; }
  void end_read(uint64_t issued) { reads_.erase(issued); }
  // A request of this writer that was issued then has been served: its failed changes of before do not land any more.
  void served(uint64_t writer, uint64_t issued) {
    writers_[writer].served = std::max(writers_[writer].served, issued);
  }
  void flushed(uint64_t writer, uint64_t issued);
  // A read that was issued then ended well, now. writer 0: nobody's, as the simulator sees the store.
  void check_read(uint64_t writer, uint64_t issued, uint64_t issued_epoch, uint64_t offset, std::span<const std::byte> data);
  uint64_t epoch() const { return epoch_; }

  // The store as it is now.
  void check_store(const char* when);
  void grown();
  // Another store is in its place: nobody who knew the old one may read or change it.
  void replaced();
  size_t changes() const { return changes_.size(); }

  // --- DiskWatcher
  void applied(block::Command command, uint64_t offset, uint64_t length, std::span<const std::byte> data,
               uint64_t ledger) override;
  void lost_cache() override;

 private:
  struct Writer {
    bool superseded = false;
    uint64_t ledger = 0;
    uint64_t served = 0;  // the latest issue of what was served
  };
  struct Block {
    std::vector<WriteId> changes;  // that may be its content, in the order of issue
    // What a read found, between its issue and its end: to reads after that, no change that ended before comes to light.
    WriteId seen = 0;
    uint64_t seen_at = 0;
    uint64_t seen_until = 0;
    uint64_t seen_epoch = UINT64_MAX;
  };
  Change& change(WriteId id) { return changes_[id]; }
  // The content's name: its id, 0 for zeroes.
  WriteId content_of(WriteId id) const { return changes_[id].command == block::Command::kWrite ? id : 0; }
  bool rules_out(const Change& later, const Change& earlier, uint64_t before, uint64_t reader) const;
  void check_block(uint64_t number, WriteId found, uint64_t reader, uint64_t issued, uint64_t issued_epoch, const char* when);
  WriteId decode(std::span<const std::byte> block, uint64_t number, const char* when);
  void forget_old(Block& block);
  std::string history(uint64_t number) const;

  World& world_;
  Disk& disk_;
  std::vector<Writer> writers_;
  std::vector<Change> changes_;  // by id; the first is the store as it was made
  std::map<std::tuple<block::Command, uint64_t, uint64_t>, WriteId> ranges_;  // of trims and zeroes
  std::map<WriteId, std::map<uint64_t, std::pair<uint64_t, uint64_t>>> pieces_;  // offset: length, epoch
  std::vector<Block> blocks_;
  std::set<uint64_t> reads_;
  bool replaced_ = false;
  uint64_t epoch_ = 0;  // moves whenever the store loses its cache
};

}  // namespace netblk::sim
