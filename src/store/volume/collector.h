// SPDX-License-Identifier: GPL-2.0-only
// Collector: copies what is live out of segments that are mostly garbage, so that the next checkpoint lets them go
// (docs/volume-format.md, "Collecting").
//
// On the loop of the opening, never beside a checkpoint: what it looked up in the tree is still so when it adds the copies. A
// step is short, and whoever asks for steps paces them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"

namespace netblk::store::volume {

class Collector {
 public:
  Collector(io::Loop& loop, Core& core) : loop_(loop), core_(core) {}

  enum class Step : uint8_t {
    kMoved,    // some of a segment is done
    kNothing,  // no segment is worth it
    kNoRoom,   // for the copies
    kFailed,   // the disk
  };
  // indexed_lsn: records up to it are in the last checkpoint; segments with later ones are left alone. least: so much of a
  // segment's bytes has to be garbage. first_of_all: space is short, and what gives most of it is taken, however young.
  struct Choice {
    uint64_t indexed_lsn = 0;
    uint64_t least_garbage_bytes = 0;
    bool first_of_all = false;
  };
  coro::Task<Step> step(Choice choice);

  // A checkpoint is durable: what was moved before it is in its tree.
  void checkpoint_done();

  // Since the last checkpoint: segments that nothing will be left in, and blocks that are live twice.
  uint64_t emptied() const { return emptied_.size(); }
  uint64_t moved_bytes() const { return moved_bytes_; }
  // What is left of the segment that copies go to.
  uint64_t room_bytes() const { return end_ - at_; }

 private:
  struct Record {
    RecordHeader header;
    size_t at = 0;  // in window_
  };

  bool choose(const Choice& choice);
  coro::Task<int> read_window();
  void find_records();
  coro::Task<int> move_record(const Record& record);
  bool is_sound(const Record& record, uint64_t from, uint64_t until) const;
  coro::Task<int> move_compressed(const Record& record, const std::vector<Entry>& parts);
  coro::Task<int> place_run(const RecordHeader& of, std::span<const std::byte> payload, uint64_t from, uint64_t until);
  void leave(const Record& record);
  uint64_t begin_out();
  coro::Task<int> begin_segment();
  coro::Task<int> write_out();
  std::span<const std::byte> payload_of(const Record& record) const;
  void put(RecordHeader& header, std::span<const std::byte> payload);
  void give_up_segment();

  io::Loop& loop_;
  Core& core_;

  std::optional<uint64_t> victim_;
  uint64_t scanned_ = 0;   // of it
  bool found_any_ = false;
  bool stays_ = false;     // something in it could not be read, or is not as it was written
  std::set<uint64_t> emptied_;  // since the last checkpoint
  std::set<uint64_t> kept_;     // that something has to stay in
  std::set<uint64_t> filled_;   // with copies, since the last checkpoint
  std::map<uint64_t, uint64_t> dead_weight_;  // bytes of a segment of copies that are dead, and cannot be left behind

  // Where copies go: [at_, end_) of the file is left; what is in out_ is not written yet.
  uint64_t at_ = 0, end_ = 0;
  bool align_ = false;
  std::vector<std::byte> out_;
  std::vector<Entry> moved_;  // to where out_ will be
  uint64_t moved_bytes_ = 0;

  std::vector<std::byte> window_;
  uint64_t window_at_ = 0;  // in the file
  std::vector<Record> records_;
  IndexRoot seen_;
  std::vector<Entry> gone_;
  std::vector<std::byte> plain_;
};

}  // namespace netblk::store::volume
