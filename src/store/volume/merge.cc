// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/merge.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <utility>

#include "base/check.h"
#include "coro/scope.h"

namespace netblk::store::volume {
namespace {

constexpr size_t kWriteBytes = 256u << 10;
// So many leaves are read at once, and a page's more; of the pages above them so many.
constexpr size_t kLeavesAhead = 128;
constexpr uint32_t kInnerAhead = 32;

// Below this a page that is about to be closed takes in what follows it.
constexpr size_t small(size_t capacity) { return capacity / 4; }

Error out_of_order(const Entry& entry) {
  return make_error(EIO, "the index is damaged: branch {} block {} LSN {} is out of order", entry.branch, entry.block, entry.lsn);
}

}  // namespace

Merge::Merge(io::Loop& loop, Tree& tree, const Table& table, const Retention& retention, MergeSink& sink, MergeOptions options)
    : loop_(loop),
      tree_(tree),
      table_(table),
      retention_(retention),
      sink_(sink),
      options_(options),
      at_(table.stacks().begin()),
      inner_(kMaxTreeLevel + 2) {
  NETBLK_CHECK(options.leaf_entries >= 2 && options.leaf_entries <= kLeafEntries && options.inner_entries >= 2 &&
                   options.inner_entries <= kInnerEntries,
               "a page has room for what is asked");
  leaves_ = options.left != nullptr && std::find(options.left->begin(), options.left->end(), true) != options.left->end();
}

coro::Task<Result<IndexRoot>> Merge::run(IndexRoot root) {
  const bool all_stays = options_.visit == MergeOptions::Visit::kChanged && !leaves_;
  if (table_.empty() && (root.offset == 0 || all_stays)) co_return root;
  entries_ = root.entries;
  if (root.offset != 0) {
    const Result<PagePtr> fetched = co_await fetch(ref_of(root));
    if (!fetched.ok()) co_return fetched.error();
    sink_.page_gone(root.offset);
    Status status = Ok{};
    if (root.level == 0) {
      status = co_await open_leaf(fetched.value(), 0);
    } else {
      status = co_await open_inner(fetched.value(), std::nullopt);
    }
    if (!status.ok()) co_return status.error();
  }
  const Status drained = co_await drain(std::nullopt);
  if (!drained.ok()) co_return drained.error();
  Result<IndexRoot> result = co_await finish();
  co_return result;
}

// --- The tree's side ------------------------------------------------------------------------------------------------

// What stands behind the child at `at` of a page that has `next` behind it.
std::optional<Merge::Next> Merge::next_in(const Page& page, uint32_t at, const std::optional<Next>& next) {
  if (at + 1 == page.header.entries) return next;
  const Child child = page.child(at + 1);
  return Next{position_of(child), child.block + child.blocks};
}

// Which children of a page are opened. The table touches one if it has something from its first extent up to and including the
// first one behind it, whose versions may have begun in the child.
Merge::ChildrenOpens Merge::opens_of(const Page& page, const std::optional<Next>& next) const {
  const Table::Stacks& stacks = table_.stacks();
  const auto level = static_cast<uint16_t>(page.header.level - 1);
  ChildrenOpens all{};
  auto found = stacks.lower_bound(position_of(page.child(0)));
  for (uint32_t at = 0; at < page.header.entries; ++at) {
    const Child child = page.child(at);
    const Position first = position_of(child);
    const std::optional<Next> behind = next_in(page, at, next);
    while (found != stacks.end() && found->first < first) ++found;
    bool touched = found != stacks.end() && (!behind || found->first < Position{behind->first.branch, behind->end});
    if (!touched && found != stacks.begin()) {
      const auto before = std::prev(found);
      touched = before->first.branch == first.branch && before->first.block + before->second.blocks > first.block;
    }
    all[at] = opens(child, level, behind, touched);
  }
  return all;
}

bool Merge::is_left(uint64_t offset) const {
  if (options_.left == nullptr || offset < kSegmentsAt) return false;
  const uint64_t segment = (offset - kSegmentsAt) >> options_.segment_shift;
  return segment < options_.left->size() && (*options_.left)[segment];
}

bool Merge::is_looked_at(const Child& child, const std::optional<Next>& next) const {
  if (options_.visit == MergeOptions::Visit::kChanged || looks_no_more_) return false;
  // (Newer versions of the extent that is the first one may stand at the end of the page before.)
  if (next && next->first < options_.visit_from) return false;
  return options_.visit == MergeOptions::Visit::kAll || (child.flags & kChildHasCovered) != 0 ||
         !retention_.has_branch(child.branch) || (next && next->first.branch != child.branch);
}

Merge::Opens Merge::opens(const Child& child, uint16_t level, const std::optional<Next>& next, bool touched) const {
  if (touched) return Opens::kMust;
  if (is_looked_at(child, next)) return Opens::kToLook;
  const bool moves = !moves_no_more_ && ((level != 0 && leaves_) || is_left(child.offset));
  return moves ? Opens::kToMove : Opens::kNot;
}

// What was refused once is refused to the merge's end.
coro::Task<bool> Merge::may_open(const Child& child, Opens why) {
  if (why == Opens::kNot || why == Opens::kMust) co_return why == Opens::kMust;
  bool& no_more = why == Opens::kToLook ? looks_no_more_ : moves_no_more_;
  if (no_more) co_return false;
  bool may = co_await tree_.store().has_spare(loop_);
  if (why == Opens::kToLook) {
    // Each merge comes further than the one before, and does not stop between the versions of one extent: which of the older ones
    // counts, the newer ones say.
    const bool is_behind = options_.visit_from < position_of(child);
    may = may && (!is_behind || looked_at_ < options_.visit_pages || (child.flags & kChildContinues) != 0);
    looked_at_ += is_behind;
    if (!may) sink_.stopped_at(std::max(options_.visit_from, position_of(child)));
  }
  no_more = !may;
  co_return may;
}

coro::Task<Result<PagePtr>> Merge::fetch(PageRef ref) {
  const auto found = fetched_.find(ref.offset);
  if (found != fetched_.end()) {
    PagePtr page = std::move(found->second);
    fetched_.erase(found);
    co_return page;
  }
  Result<PagePtr> page = co_await tree_.fetch(loop_, ref, false);
  co_return page;
}

// An error is met again by the fetch that needs the page.
coro::Task<void> Merge::prefetch(PageRef ref) {
  const Result<PagePtr> page = co_await tree_.fetch(loop_, ref, false);
  if (page.ok()) fetched_[ref.offset] = page.value();
}

coro::Task<Status> Merge::visit(Child child, uint16_t level, std::optional<Next> next, Opens why) {
  const bool may = co_await may_open(child, why);
  if (!may) {
    pending_goes_on_ = !pending_.empty() && position_of(pending_.front()) == position_of(child);
    Status status = co_await drain(position_of(child));
    if (!status.ok()) co_return status;
    bool absorbed = false;
    for (uint16_t below = 0; below <= level; ++below) {
      absorbed |= waiting(below) != 0 && waiting(below) < small(capacity(below));
    }
    if (!absorbed) {
      // What stands before it is closed: it is one child among those of its level.
      for (uint16_t below = 0; below <= level; ++below) {
        status = co_await close(below);
        if (!status.ok()) co_return status;
      }
      pending_goes_on_ = false;
      last_written_.reset();
      continues_.reset();
      last_.reset();
      inner_[level + 1u].push_back(child);
      status = co_await write_full(static_cast<uint16_t>(level + 1));
      co_return status;
    }
  }
  pending_goes_on_ = false;
  const Result<PagePtr> fetched = co_await fetch(ref_of(child, level));
  if (!fetched.ok()) co_return fetched.error();
  sink_.page_gone(child.offset);
  Status status = Ok{};
  if (level == 0) {
    status = co_await open_leaf(fetched.value(), child.flags);
  } else {
    status = co_await open_inner(fetched.value(), next);
  }
  co_return status;
}

size_t Merge::prefetch_children(coro::Scope& reads, const Page& page, uint32_t from, uint32_t until, const ChildrenOpens& opens) {
  size_t count = 0;
  for (uint32_t at = from; at < until; ++at) {
    if (opens[at] == Opens::kNot) continue;
    const PageRef ref = ref_of(page.child(at), static_cast<uint16_t>(page.header.level - 1));
    if (fetched_.contains(ref.offset)) continue;
    reads.spawn(prefetch(ref));
    ++count;
  }
  return count;
}

// The page's children from `from` on that are opened, many at once; and of pages above leaves the leaves below them, which are few
// for each where a table is spread over a large tree. Up to which child.
coro::Task<uint32_t> Merge::read_ahead(PagePtr page, uint32_t from, ChildrenOpens opens, std::optional<Next> next) {
  const uint32_t count = page->header.entries;
  if (page->header.level > 2) co_return count;
  uint32_t until = page->header.level == 1 ? count : std::min(count, from + kInnerAhead);
  coro::Scope reads;
  prefetch_children(reads, *page, from, until, opens);
  co_await reads.join();
  if (page->header.level == 1) co_return until;
  coro::Scope leaves;
  size_t ahead = 0;
  for (uint32_t at = from; at < until; ++at) {
    const auto found = fetched_.find(page->child(at).offset);
    if (opens[at] == Opens::kNot || found == fetched_.end()) continue;
    const PagePtr child = found->second;
    const ChildrenOpens below = opens_of(*child, next_in(*page, at, next));
    ahead += prefetch_children(leaves, *child, 0, child->header.entries, below);
    if (ahead >= kLeavesAhead) until = at + 1;
  }
  co_await leaves.join();
  co_return until;
}

coro::Task<Status> Merge::open_inner(PagePtr page, std::optional<Next> next) {
  const uint32_t count = page->header.entries;
  const auto level = static_cast<uint16_t>(page->header.level - 1);
  const ChildrenOpens opens = opens_of(*page, next);
  uint32_t ahead = 0;
  for (uint32_t at = 0; at < count; ++at) {
    if (at == ahead) {
      const uint32_t until = co_await read_ahead(page, at, opens, next);
      ahead = until;
    }
    const Child child = page->child(at);
    const std::optional<Next> behind = next_in(*page, at, next);
    const Opens why = opens[at];
    Status status = co_await visit(child, level, behind, why);
    if (!status.ok()) co_return status;
  }
  co_return Ok{};
}

coro::Task<Status> Merge::open_leaf(PagePtr page, uint32_t flags) {
  for (uint32_t at = 0; at < page->header.entries; ++at) {
    const Entry entry = page->entry(at);
    const bool same = !pending_.empty() && position_of(pending_.front()) == position_of(entry);
    if (last_ && (!(key_of(*last_) < key_of(entry)) || (same && pending_.front().blocks != entry.blocks) ||
                  (position_of(*last_) != position_of(entry) && last_->branch == entry.branch && end_of(*last_) > entry.block))) {
      co_return out_of_order(entry);
    }
    last_ = entry;
    --entries_;
    if (same) {
      pending_.push_back(entry);
      continue;
    }
    const std::optional<Position> limit = position_of(entry);
    while (step(limit)) {
      if (leaf_.size() < 2 * capacity(0)) continue;
      const Status status = co_await write_full(0);
      if (!status.ok()) co_return status;
    }
    pending_.push_back(entry);
    pending_began_before_ = false;
    if (at == 0 && (flags & kChildContinues) != 0) {
      pending_began_before_ = true;
      continues_ = position_of(entry);
    }
  }
  co_return Ok{};
}

// --- The two streams ------------------------------------------------------------------------------------------------

coro::Task<Status> Merge::drain(std::optional<Position> limit) {
  while (step(limit)) {
    if (leaf_.size() < 2 * capacity(0)) continue;
    const Status status = co_await write_full(0);
    if (!status.ok()) co_return status;
  }
  co_return Ok{};
}

// One piece: of what is pending, and of the table's extents that overlap it or end before `limit`. False: there is none left.
bool Merge::step(const std::optional<Position>& limit) {
  if (pending_.empty()) {
    if (!table_left() || (limit && !(table_from() < *limit))) return false;
    const Position from = table_from();
    const uint64_t until = limit && limit->branch == from.branch ? std::min(table_end(), limit->block) : table_end();
    emit(from, until, false, true);
    return true;
  }
  const Position here = position_of(pending_.front());
  const uint64_t end = end_of(pending_.front());
  if (!table_left() || !(table_from() < Position{here.branch, end})) {
    emit(here, end, true, false);
    return true;
  }
  const Position from = table_from();
  if (from < here) {
    emit(from, from.branch == here.branch ? std::min(table_end(), here.block) : table_end(), false, true);
  } else if (here < from) {
    emit(here, from.block, true, false);
  } else {
    emit(here, std::min(end, table_end()), true, true);
  }
  return true;
}

void Merge::cut_pending(uint64_t until) {
  if (end_of(pending_.front()) == until) {
    pending_.clear();
    return;
  }
  for (Entry& entry : pending_) entry = part_of(entry, until, end_of(entry));
}

void Merge::cut_table(uint64_t until) {
  skipped_ = until - at_->first.block;
  if (skipped_ == at_->second.blocks) {
    ++at_;
    skipped_ = 0;
  }
}

// The piece [at, until) of what is pending, of the table's extent, or of both.
void Merge::emit(Position at, uint64_t until, bool pending, bool table) {
  const auto entry_of = [&](const Piece& piece) {
    return Entry{.branch = at.branch, .blocks = static_cast<uint32_t>(until - at.block), .block = at.block, .lsn = piece.lsn,
                 .place = piece.place};
  };
  pieces_.clear();
  const size_t from_tree = pending ? pending_.size() : 0;
  const size_t from_table = table ? at_->second.size() : 0;
  for (size_t i = 0, j = 0; i < from_tree || j < from_table;) {
    if (j == from_table || (i < from_tree && pending_[i].lsn > at_->second[j].lsn)) {
      pieces_.push_back({pending_[i].lsn, pending_[i].place, false});
      ++i;
      continue;
    }
    const Version& version = at_->second[j++];
    const uint64_t place = Place::moved(version.place, skipped_);
    if (i < from_tree && pending_[i].lsn == version.lsn) {  // a copy: the same bytes in another place
      if (pending_[i].place != place) sink_.entry_gone(entry_of({version.lsn, pending_[i].place, false}));
      ++i;
    }
    pieces_.push_back({version.lsn, place, true});
  }
  lsns_.clear();
  for (const Piece& piece : pieces_) lsns_.push_back(piece.lsn);
  live_.resize(pieces_.size());
  retention_.mark(at.branch, lsns_, live_);
  // A hole that hides nothing is nothing.
  const bool edge = pending && (pending_began_before_ || pending_goes_on_);
  const bool hides = retention_.has_parent(at.branch) || (pending && pending_goes_on_);
  for (size_t i = pieces_.size(); i != 0 && !hides; --i) {
    if (live_[i - 1] == 0) continue;
    if ((pieces_[i - 1].place & Place::kHole) == 0) break;
    live_[i - 1] = 0;
  }
  size_t kept = 0;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Entry entry = entry_of(pieces_[i]);
    if (live_[i] == 0) {
      sink_.entry_gone(entry);
    } else {
      pieces_[kept++] = pieces_[i];
    }
  }
  if (pending) cut_pending(until);
  if (table) cut_table(until);
  if (kept == 0) return;
  const Entry first = entry_of(pieces_[0]);
  // Two parts of one version that were cut for others' sake, and are alone now.
  const bool may_grow = kept == 1 && !edge;
  if (may_grow && last_may_grow_ && !leaf_.empty()) {
    Entry& before = leaf_.back();
    if (before.branch == first.branch && end_of(before) == first.block && before.lsn == first.lsn &&
        Place::moved(before.place, before.blocks) == first.place && (before.place & Place::kZero) == (first.place & Place::kZero) &&
        uint64_t{before.blocks} + first.blocks <= std::numeric_limits<uint32_t>::max()) {
      before.blocks += first.blocks;
      return;
    }
  }
  for (size_t i = 0; i < kept; ++i) leaf_.push_back(entry_of(pieces_[i]));
  entries_ += kept;
  last_may_grow_ = may_grow;
}

// --- The pages ------------------------------------------------------------------------------------------------------

// Leaves one page's worth at least, so that the last two can be made of equal size.
coro::Task<Status> Merge::write_full(uint16_t level) {
  while (waiting(level) >= 2 * capacity(level)) {
    Status status = co_await write_page(level, capacity(level));
    if (!status.ok()) co_return status;
  }
  co_return Ok{};
}

coro::Task<Status> Merge::close(uint16_t level) {
  Status status = co_await write_full(level);
  if (status.ok() && waiting(level) > capacity(level)) status = co_await write_page(level, waiting(level) / 2);
  if (status.ok() && waiting(level) != 0) status = co_await write_page(level, waiting(level));
  co_return status;
}

// The first `count` of what waits become a page, and the page a child that waits one level up.
coro::Task<Status> Merge::write_page(uint16_t level, size_t count) {
  const auto page = std::make_shared<Page>();
  page->bytes.fill(std::byte{0});
  Child child;
  if (level == 0) {
    const Entry& first = leaf_.front();
    child = {.branch = first.branch, .blocks = first.blocks, .block = first.block, .lsn = first.lsn, .offset = 0, .crc = 0, .flags = 0};
    for (uint32_t at = 0; at < count; ++at) {
      encode_leaf_entry(leaf_[at], at, page->bytes);
      if (at != 0 && position_of(leaf_[at]) == position_of(leaf_[at - 1])) child.flags |= kChildHasCovered;
    }
    if (last_written_ == position_of(first) || continues_ == position_of(first)) {
      child.flags |= kChildHasCovered | kChildContinues;
    }
    if (last_written_ == position_of(first) && !inner_[1].empty()) inner_[1].back().flags |= kChildHasCovered;
    continues_.reset();
    last_written_ = position_of(leaf_[count - 1]);
    leaf_.erase(leaf_.begin(), leaf_.begin() + static_cast<ptrdiff_t>(count));
    // Its last extent goes on in a page that is kept. (With what is left here: see last_written_.)
    if (pending_goes_on_ && leaf_.empty()) child.flags |= kChildHasCovered;
  } else {
    std::vector<Child>& children = inner_[level];
    child = children.front();
    child.flags &= kChildContinues;
    for (uint32_t at = 0; at < count; ++at) {
      encode_child(children[at], at, page->bytes);
      child.flags |= children[at].flags & kChildHasCovered;
    }
    children.erase(children.begin(), children.begin() + static_cast<ptrdiff_t>(count));
  }
  const Result<uint64_t> offset = co_await tree_.store().allocate(loop_);
  if (!offset.ok()) co_return offset.error();
  child.offset = offset.value();
  page->header = {.level = level, .entries = static_cast<uint16_t>(count), .checkpoint = options_.checkpoint, .crc = 0};
  std::array<std::byte, kPageBytes> sealed = page->bytes;
  child.crc = seal_page(page->header, child.offset, tree_.sums(), sealed, tree_.cipher());
  page->header.crc = child.crc;
  if (!buffer_.empty() && (buffer_at_ + buffer_.size() != child.offset || buffer_.size() >= kWriteBytes)) {
    Status status = co_await write_buffer();
    if (!status.ok()) co_return status;
  }
  if (buffer_.empty()) buffer_at_ = child.offset;
  buffer_.insert(buffer_.end(), sealed.begin(), sealed.end());
  tree_.cache().put(child.offset, page);
  NETBLK_CHECK(level < kMaxTreeLevel, "a tree is too high");
  inner_[level + 1u].push_back(child);
  Status status = co_await write_full(static_cast<uint16_t>(level + 1));
  co_return status;
}

coro::Task<Status> Merge::write_buffer() {
  Status status = co_await tree_.store().write(loop_, buffer_at_, buffer_);
  buffer_.clear();
  co_return status;
}

coro::Task<Result<IndexRoot>> Merge::finish() {
  IndexRoot root;
  for (uint16_t level = 0; level <= kMaxTreeLevel; ++level) {
    const bool above = std::any_of(inner_.begin() + level + 1, inner_.end(), [](const auto& waits) { return !waits.empty(); });
    if (!above && level != 0 && inner_[level].size() == 1) {
      const Child& top = inner_[level].front();
      root = {.offset = top.offset, .level = level - 1u, .crc = top.crc, .entries = entries_};
      break;
    }
    if (!above && waiting(level) == 0) break;
    const Status status = co_await close(level);
    if (!status.ok()) co_return status.error();
  }
  if (!buffer_.empty()) {
    const Status status = co_await write_buffer();
    if (!status.ok()) co_return status.error();
  }
  co_return root;
}

}  // namespace netblk::store::volume
