// SPDX-License-Identifier: GPL-2.0-only
// Points: which branches and snapshots there are, what a point of one reads (View), and which versions of a block some
// point still reads (Retention). Memory only; docs/volume-format.md, "The model".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "store/volume/format.h"

namespace netblk::store::volume {

// Above every LSN: a branch's head is its point at kForever.
inline constexpr uint64_t kForever = ~uint64_t{0};

// The LSNs with above < LSN <= until.
struct Interval {
  uint64_t above = 0;
  uint64_t until = kForever;
  bool operator==(const Interval&) const = default;
};

// What is read of one branch: the version with the highest LSN in any of the intervals, which ascend.
struct Layer {
  uint32_t branch = 0;
  std::vector<Interval> intervals;
  bool operator==(const Layer&) const = default;
};

// A point, resolved: where a layer has no version of a block, the next one is read; behind the last one there are zeroes.
// The view of a head sees later writes; a rewind of its branch makes it stale.
struct View {
  std::vector<Layer> layers;
  bool operator==(const View&) const = default;
};

// Which versions some retained point reads, for the points of one moment.
class Retention {
 public:
  // lsns: versions of one block (or of one extent) of a branch, descending. Sets live[i] to 1 for those that are read. What it says
  // of a version depends on newer versions only: where some are not given, it says "live" too often, never too seldom.
  void mark(uint32_t branch, std::span<const uint64_t> lsns, std::span<uint8_t> live) const;

  // Whether a hole of this branch hides something even with no older version behind it.
  bool has_parent(uint32_t branch) const;
  bool has_branch(uint32_t branch) const { return line(branch) != nullptr; }
  // Every point from this LSN on is retained: what comes later frees nothing of it, nor of what is older.
  bool keeps_all_since(uint64_t lsn) const { return history_from_ <= lsn; }

 private:
  friend class Points;
  // Between two rewinds. A point P with from <= P < until reads the highest version with from < LSN <= P; if there is none,
  // the highest in `base`.
  struct Era {
    uint64_t from = 0;
    uint64_t until = kForever;
    std::vector<Interval> base;
    std::vector<uint64_t> points;  // ascending; kForever is the head

    bool any_point(uint64_t from_lsn, uint64_t before_lsn, uint64_t history_from) const;
  };
  struct Line {
    uint32_t branch = 0;
    bool has_parent = false;
    std::vector<Era> eras;  // ascending; only those with a retained point
  };
  const Line* line(uint32_t branch) const;

  std::vector<Line> lines_;  // by branch
  uint64_t history_from_ = kForever;
};

class Points {
 public:
  Points() = default;
  Points(std::vector<BranchInfo> branches, std::vector<SnapshotInfo> snapshots);
  explicit Points(const Manifest& manifest);
  void put_into(Manifest& manifest) const;

  const std::vector<BranchInfo>& branches() const { return branches_; }
  const std::vector<SnapshotInfo>& snapshots() const { return snapshots_; }
  const BranchInfo* find_branch(uint32_t number) const;
  const BranchInfo* find_branch(std::string_view name) const;  // empty: the volume's own
  const std::vector<Setting>& settings() const { return settings_; }
  // What they take in a manifest.
  uint64_t stored_bytes() const;
  // ENOSPC: they and so many bytes beside take more. Without a manifest there is no checkpoint, and no opening for writing.
  Status fit(uint64_t beside_bytes, uint64_t most_bytes) const;

  const SnapshotInfo* find_snapshot(std::string_view name) const;

  // What a record of names, which is the point `at` itself, makes of them. Fails with words for a person, and then changes nothing.
  Status apply(const Change& change, Point at, uint64_t time_ns);

  // Each fails with words for a person and then changes nothing.
  Status add_branch(BranchInfo branch);
  Status remove_branch(uint32_t number);
  Status add_snapshot(SnapshotInfo snapshot);
  Status remove_snapshot(std::string_view name);
  // By the record with this LSN.
  Status resize(uint32_t branch, uint64_t size_bytes, uint64_t lsn);
  // From the record with this LSN on, the branch is as it was at the point `target` of its own, which must be retained.
  Status rewind(uint32_t branch, Rewind rewind);
  // Every point with this LSN or a higher one is retained too; kForever: none but the heads and those with names.
  void set_history(uint64_t from_lsn);
  uint64_t history_from() const { return history_from_; }

  // What the head receives; until it has it all, nothing else is done with the head.
  const std::optional<Receiving>& receiving() const { return receiving_; }
  // Not of a snapshot nor of a clone. EINVAL, EEXIST.
  Status name_is_free(std::string_view name) const;

  bool retained(Point point) const;
  // Of a branch that is there.
  uint64_t size_at(Point point) const;
  // The head does not read on from there: a rewind has left it behind.
  bool left_behind(Point point) const;
  // What these retain less than those before: nothing; versions that a newer one covers, or of branches that are gone; or
  // perhaps versions that are alone in their extent, after a rewind.
  enum class Freed : uint8_t { kNothing, kCovered, kAlone };
  Freed freed_since(const Points& before) const;
  View view(Point point) const;
  View head(uint32_t branch) const { return view({.branch = branch, .lsn = kForever}); }
  // held: points that are retained beside those that are known here.
  Retention retention(std::span<const Point> held = {}) const;

 private:
  BranchInfo* branch_of(uint32_t number);
  uint64_t oldest_point(uint32_t branch) const;
  // Sizes that no retained point has had.
  void forget_sizes(uint32_t branch);
  Status apply_clone(const Change& change, Point at);
  Status apply_rewind(const Change& change, Point at, uint64_t time_ns);
  Status apply_receive(const Change& change, Point at, uint64_t time_ns);
  Status not_while_receiving(const Change& change, Point at) const;

  std::vector<BranchInfo> branches_;
  std::vector<SnapshotInfo> snapshots_;
  uint32_t next_branch_ = kHeadBranch + 1;
  std::vector<Setting> settings_;  // by key
  uint64_t history_from_ = kForever;
  std::optional<Receiving> receiving_;
};

// The contents of a head are others than before, though nobody has written to it: the generation moves.
inline bool turns_head(const Change& change) {
  return change.kind == ChangeKind::kRewind ||
         (change.kind == ChangeKind::kReceive && (change.step == ReceiveStep::kEnd || change.step == ReceiveStep::kGiveUp));
}

}  // namespace netblk::store::volume
