// SPDX-License-Identifier: GPL-2.0-only
// Checkpoint: the table goes into the tree, a manifest says where everything is, a superblock leads to it. Also where the
// tree's pages are: segments for metadata, which are filled one after another.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"
#include "store/volume/page_store.h"

namespace netblk::store::volume {

// All but read() on the loop of the opening, one at a time.
class Checkpoint final : public PageStore, private MergeSink {
 public:
  // unknown: the sections of the manifest that this version keeps.
  Checkpoint(Core& core, std::vector<Manifest::Section> unknown);

  // What has been written when it begins is in the index when it has ended. An error: nothing has changed, or the volume is
  // poisoned. `state`: of the superblock that it writes, which may have a new incarnation. Its generation is Core::superblock_generation.
  struct State {
    bool open = true;
    Id incarnation;
  };
  coro::Task<Status> run(io::Loop& loop, State state);
  // The superblock alone, with the last checkpoint's manifest.
  coro::Task<Status> run_superblock(io::Loop& loop, State state);
  // Both superblocks, one after the other, with these key slots. Nothing else of this class runs meanwhile.
  coro::Task<Status> write_key_slots(io::Loop& loop, KeySlots slots);
  // Both superblocks have the last checkpoint's manifest.
  void only_one_left();

  // Something is not in the last checkpoint, or waits for another one to become free.
  bool due() const;
  // A checkpoint was begun, and has not come to its end: the next one goes on with it.
  bool half_done() const { return moment_.has_value(); }
  // The next one has something to look for that is no longer read.
  bool sweeps() const;
  // Whether or not the last one had room for it.
  void sweep_again() { sweeps_ = true; }
  // The last one has looked at a part of the index for what is no longer read, and the next one goes on with it.
  bool sweeps_on() const { return sweep_.of != Sweep::Of::kNothing && sweeps_; }
  // All records up to this one are in the last checkpoint.
  uint64_t indexed_lsn() const { return last_position_.next_lsn - 1; }

  coro::Task<Status> read(io::Loop& loop, uint64_t offset, std::span<std::byte> page) override;
  coro::Task<Status> write(io::Loop& loop, uint64_t offset, std::span<const std::byte> pages) override;
  coro::Task<Result<uint64_t>> allocate(io::Loop& loop) override;
  coro::Task<bool> has_spare(io::Loop& loop) override;

  // The table of the manifest that a volume is opened by.
  void opened_by(const Manifest& manifest);

 private:
  // The moment of which the frozen table is, for as long as there is one.
  struct Moment {
    Segments segments;
    LogPosition position;
    Points points;
    HistoryInfo history;
    std::vector<std::byte> owners;
    uint64_t log_bytes = 0;
    uint64_t rewinds = 0;
    std::optional<uint64_t> copies_segment;
  };
  // By segment, because a merge may drop as many entries as there are.
  using BytesOfSegments = std::vector<uint64_t>;
  void count(BytesOfSegments& bytes_of, uint64_t offset, uint64_t bytes) const;
  void entry_gone(const Entry& entry) override;
  void stopped_at(Position position) override { stopped_at_ = position; }
  void page_gone(uint64_t offset) override { count(gone_, offset, kPageBytes); }

  // least: of the tree only what has changed is written.
  coro::Task<Status> try_once(io::Loop& loop, State state, bool least);
  void give_back_taken();
  uint64_t generation_with(uint64_t rewinds) const;
  void freeze();
  void want_sweep(Points::Freed freed);
  coro::Task<Result<uint64_t>> allocate_run(io::Loop& loop, uint64_t bytes);
  std::vector<bool> sparse_metadata() const;
  void account(Segments& segments) const;
  std::vector<SegmentInfo> for_manifest(uint64_t log_segment) const;
  coro::Task<Result<Superblock>> write_manifest(io::Loop& loop, const IndexRoot& root);
  coro::Task<Status> make_durable(io::Loop& loop, Superblock superblock);
  coro::Task<int> sync(io::Loop& loop) { return core_.sync_file(loop); }

  Core& core_;
  const std::vector<Manifest::Section> unknown_;
  std::optional<Moment> moment_;
  LogPosition last_position_;        // of the last checkpoint
  std::vector<SegmentInfo> table_;   // and its table
  uint64_t rewinds_ = 0;             // Core::rewinds, as far as it has them
  bool something_leaves_ = false;
  bool is_short_ = false;            // the file system has not the whole reserve

  // What is still to be looked at, after the last checkpoint; and then all of it again.
  Sweep sweep_;
  Sweep::Of sweep_again_ = Sweep::Of::kNothing;
  bool sweeps_ = true;                   // there was room for some of it
  std::optional<Position> stopped_at_;   // in the merge that is being made
  Sweep sweep_after_;
  bool no_spare_ = false;

  // Where the next page goes; none: into a new segment.
  std::optional<uint64_t> metadata_segment_;
  uint64_t metadata_offset_ = 0;
  // Of the one that is being made.
  std::vector<uint64_t> taken_;
  BytesOfSegments made_, gone_;
};

}  // namespace netblk::store::volume
