// SPDX-License-Identifier: GPL-2.0-only
// Segments: which of them are free, what is live in the others, and when they may be written again. Memory only; whoever
// shares it guards it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "store/volume/format.h"

namespace netblk::store::volume {

class Segments {
 public:
  Segments(uint32_t shift, std::vector<SegmentInfo> table);

  uint64_t bytes() const { return uint64_t{1} << shift_; }
  uint64_t count() const { return slots_.size(); }
  uint64_t offset_of(uint64_t segment) const { return kSegmentsAt + (segment << shift_); }
  uint64_t segment_at(uint64_t offset) const { return (offset - kSegmentsAt) >> shift_; }
  // A place of the index can be in there.
  bool has(uint64_t offset) const { return offset >= kSegmentsAt && segment_at(offset) < slots_.size(); }
  const SegmentInfo& info(uint64_t segment) const { return slots_[segment].info; }

  // Free segments whose space is there.
  size_t ready() const { return ready_.size(); }
  // A free one whose space is to be asked for; end_allocation() follows. None: there are as many as a manifest can have. Those
  // whose space may be there already come first; with_space: only they do.
  std::optional<uint64_t> begin_allocation(bool with_space = false);
  void end_allocation(uint64_t segment, bool is_there);
  uint64_t take(SegmentState state);
  // One that was taken, and that nothing durable leads to: it is ready again.
  void give_back(uint64_t segment);

  // A segment that was taken after the table was made: it was free, or had left.
  void found_in_use(uint64_t segment, SegmentState state);

  // Of the places that an index entry leads to, or of pages.
  void add_live(uint64_t offset, uint64_t bytes);
  void remove_live(uint64_t offset, uint64_t bytes);
  void wrote(uint64_t segment, uint64_t lsn);
  // The manifest did not have the live bytes that its index has: what is freed by them may be in use.
  bool damaged() const { return damaged_; }

  bool leaving(uint64_t segment) const { return slots_[segment].leaving; }
  bool has_space(uint64_t segment) const { return slots_[segment].has_space; }
  // It was asked for since the opening, and has not been given back: there is nothing to ask for.
  bool kept_space(uint64_t segment) const { return slots_[segment].kept_space; }
  struct Usage {
    uint64_t file_segments = 0;  // those with space in the file, free ones among them
    uint64_t leaving = 0;
    uint64_t free_with_space = 0;
    uint64_t data_live_bytes = 0;
    uint64_t metadata = 0, metadata_live_bytes = 0;
    uint64_t garbage_bytes = 0;  // in what is neither free nor leaving
  };
  Usage usage() const;
  uint64_t live_bytes() const { return usage().data_live_bytes; }
  uint64_t free_count() const;
  uint64_t taken() const { return taken_; }  // so many times

  // Free segments that follow one another, at most so many, whose space is to be given back to the file system; end_return()
  // follows. As many idle ones stay as `keep` says, the lowest. Count 0: there is none.
  struct Run {
    uint64_t first = 0, count = 0;
  };
  Run begin_return(uint64_t keep, uint64_t most);
  void end_return(const Run& run, bool is_gone);

  // The table as a manifest has it: segments in which nothing is live, but for those that are being filled, leave.
  struct Filled {
    uint64_t log = 0, metadata = 0;
    std::optional<uint64_t> copies;
  };
  std::vector<SegmentInfo> for_manifest(const Filled& filled) const;

  // The checkpoint with this table is durable. What leaves with it stays as it is until the next one is durable, because the
  // one before still leads there; what left with the one before may be written from now on.
  void checkpoint_done(const std::vector<SegmentInfo>& table);
  // Both superblocks name the checkpoint with this table.
  void only_checkpoint(const std::vector<SegmentInfo>& table);

 private:
  struct Slot {
    SegmentInfo info;
    bool asked = false;  // ready, or about to be, or about to be given back
    bool has_space = true;  // in the file, as far as is known
    bool kept_space = false;  // it was made sure of
    bool leaving = false;  // as the newest checkpoint says
  };
  void set_free(Slot& slot);

  uint32_t shift_;
  bool damaged_ = false;
  uint64_t taken_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint64_t> ready_;
};

// A manifest of so many segments, of so many bytes of branches, snapshots, settings and owners, and of so many
// moments fits into one of them.
uint64_t most_segments(uint64_t segment_bytes);
uint64_t most_names_bytes(uint64_t segment_bytes);
size_t most_moments(uint64_t segment_bytes);

}  // namespace netblk::store::volume
