// SPDX-License-Identifier: GPL-2.0-only
// Merge: a tree and a frozen table become a new tree. Pages that the table does not touch are kept as they are, whole
// subtrees of them; the others are written anew.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/extent.h"
#include "store/volume/format.h"
#include "store/volume/page_store.h"
#include "store/volume/points.h"
#include "store/volume/table.h"
#include "store/volume/tree.h"

namespace netblk::store::volume {

struct MergeOptions {
  uint64_t checkpoint = 0;
  // Which pages are looked at for what no point reads any more, beside those that the table touches: none; those with extents
  // of several versions or of branches that are gone (after a deletion); all (after a rewind). From one extent on, so many pages
  // at most, and only while there is spare room: the sink is told where the next merge goes on.
  enum class Visit { kChanged, kCovered, kAll } visit = Visit::kChanged;
  Position visit_from = {};
  uint64_t visit_pages = ~uint64_t{0};
  // Segments, by number, whose pages are written anew while there is spare room; null: none. (The pages above the leaves are
  // then all looked at.)
  const std::vector<bool>* left = nullptr;
  uint32_t segment_shift = 0;
  // Of a page; fewer make a high tree of few entries, as its tests want it.
  // No more than the page of an encrypted volume has room for, if it is one's.
  uint32_t leaf_entries = kLeafEntries;
  uint32_t inner_entries = kInnerEntries;
};

// One merge. The tree is walked and the table is walked, in one order; extents that overlap are cut into pieces of equal range,
// and of each piece the versions that some point reads go on to a list, which becomes pages.
class Merge {
 public:
  Merge(io::Loop& loop, Tree& tree, const Table& table, const Retention& retention, MergeSink& sink, MergeOptions options);
  Merge(const Merge&) = delete;
  Merge& operator=(const Merge&) = delete;

  coro::Task<Result<IndexRoot>> run(IndexRoot root);

 private:
  // What stands behind a subtree: its first extent. None: nothing does.
  struct Next {
    Position first;
    uint64_t end = 0;
  };
  struct Piece {
    uint64_t lsn = 0;
    uint64_t place = 0;
    bool from_table = false;
  };

  // kMust: the table touches it. The others only while there is room: to look for what is no longer read, or to leave a segment.
  enum class Opens : uint8_t { kNot, kMust, kToLook, kToMove };
  using ChildrenOpens = std::array<Opens, kInnerEntries>;

  static std::optional<Next> next_in(const Page& page, uint32_t at, const std::optional<Next>& next);
  ChildrenOpens opens_of(const Page& page, const std::optional<Next>& next) const;
  Opens opens(const Child& child, uint16_t level, const std::optional<Next>& next, bool touched) const;
  bool is_looked_at(const Child& child, const std::optional<Next>& next) const;
  bool is_left(uint64_t offset) const;
  coro::Task<bool> may_open(const Child& child, Opens why);
  coro::Task<Status> visit(Child child, uint16_t level, std::optional<Next> next, Opens why);
  coro::Task<Status> open_leaf(PagePtr page, uint32_t flags);
  coro::Task<Status> open_inner(PagePtr page, std::optional<Next> next);
  coro::Task<uint32_t> read_ahead(PagePtr page, uint32_t from, ChildrenOpens opens, std::optional<Next> next);
  size_t prefetch_children(coro::Scope& reads, const Page& page, uint32_t from, uint32_t until, const ChildrenOpens& opens);
  coro::Task<void> prefetch(PageRef ref);
  coro::Task<Result<PagePtr>> fetch(PageRef ref);

  // The two streams.
  coro::Task<Status> drain(std::optional<Position> limit);
  bool step(const std::optional<Position>& limit);
  void emit(Position at, uint64_t until, bool pending, bool table);
  void cut_pending(uint64_t until);
  void cut_table(uint64_t until);
  bool table_left() const { return at_ != table_.stacks().end(); }
  Position table_from() const { return {at_->first.branch, at_->first.block + skipped_}; }
  uint64_t table_end() const { return at_->first.block + at_->second.blocks; }

  // The pages.
  size_t waiting(uint16_t level) const { return level == 0 ? leaf_.size() : inner_[level].size(); }
  size_t capacity(uint16_t level) const { return level == 0 ? options_.leaf_entries : options_.inner_entries; }
  coro::Task<Status> write_full(uint16_t level);
  coro::Task<Status> close(uint16_t level);
  coro::Task<Status> write_page(uint16_t level, size_t count);
  coro::Task<Status> write_buffer();
  coro::Task<Result<IndexRoot>> finish();

  io::Loop& loop_;
  Tree& tree_;
  const Table& table_;
  const Retention& retention_;
  MergeSink& sink_;
  const MergeOptions options_;
  bool leaves_ = false;
  uint64_t looked_at_ = 0;  // pages
  bool looks_no_more_ = false, moves_no_more_ = false;

  // Of the table: its next extent, of which the first blocks are done.
  Table::Stacks::const_iterator at_;
  uint64_t skipped_ = 0;

  // Of the tree: the versions of the extent that is being taken, newest first.
  std::vector<Entry> pending_;
  std::optional<Entry> last_;    // the last entry that came out of the tree
  bool pending_began_before_ = false;  // newer versions of it are in a page that was kept
  bool pending_goes_on_ = false;       // older versions of it are in a page that will be kept
  std::map<uint64_t, PagePtr> fetched_;

  // What waits to become pages: leaf_ for level 0, inner_[n] for level n.
  std::vector<Entry> leaf_;
  std::vector<std::vector<Child>> inner_;
  bool last_may_grow_ = false;            // leaf_.back() is the one version of its extent
  std::optional<Position> last_written_;  // of the last entry of the leaf before, if nothing was kept since
  std::optional<Position> continues_;     // of the first extent that was fed, if it began in a page that was kept

  std::vector<std::byte> buffer_;  // pages that follow one another, from buffer_at_ on
  uint64_t buffer_at_ = 0;
  uint64_t entries_ = 0;

  // Scratch of emit().
  std::vector<Piece> pieces_;
  std::vector<uint64_t> lsns_;
  std::vector<uint8_t> live_;
};

}  // namespace netblk::store::volume
