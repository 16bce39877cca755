// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/index.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"

namespace netblk::store::volume {
namespace {

// What a source said of a part of the range, where it looked at the whole of that part, is no limit to the rest.
Found of_part(Found found, const Range& part) {
  if (found.until == part.until) found.until = kForever;
  return found;
}

}  // namespace

Index::Index(PageStore& store, const Id& uuid, const IndexRoot& root, uint64_t indexed_lsn, Points points, size_t cache_bytes,
             MetadataCipher* cipher)
    : tree_(store, uuid, cache_bytes, cipher),
      active_(std::make_shared<Table>()),
      points_(std::move(points)),
      retention_(std::make_shared<const Retention>(points_.retention())),
      root_(root),
      tree_lsn_(indexed_lsn),
      frozen_lsn_(indexed_lsn) {}

Points Index::points() const {
  const std::lock_guard lock(mutex_);
  return points_;
}

void Index::set_points(Points points) {
  auto retention = std::make_shared<const Retention>(points.retention(held_));
  const std::lock_guard lock(mutex_);
  points_ = std::move(points);
  retention_ = std::move(retention);
}

void Index::hold(Point point) {
  held_.push_back(point);
  set_points(points());
}

void Index::release(Point point) {
  held_.erase(std::find(held_.begin(), held_.end(), point));
  set_points(points());
}

void Index::add(std::span<const Entry> entries, std::vector<Entry>& gone) {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries) active_->add(entry, *retention_, gone);
}

bool Index::add_copies(std::span<const Entry> entries, const IndexRoot& seen, std::vector<Entry>& gone) {
  const std::lock_guard lock(mutex_);
  if (frozen_ != nullptr || root_ != seen) return false;
  for (const Entry& entry : entries) active_->add(entry, *retention_, gone);
  return true;
}

size_t Index::table_bytes() const {
  const std::lock_guard lock(mutex_);
  return active_->memory_bytes();
}

size_t Index::unmerged_bytes() const {
  const std::lock_guard lock(mutex_);
  return active_->memory_bytes() + (frozen_ == nullptr ? 0 : frozen_->memory_bytes());
}

size_t Index::unmerged_entries() const {
  const std::lock_guard lock(mutex_);
  return active_->entries() + (frozen_ == nullptr ? 0 : frozen_->entries());
}

bool Index::table_empty() const {
  const std::lock_guard lock(mutex_);
  return active_->empty();
}

IndexRoot Index::root() const {
  const std::lock_guard lock(mutex_);
  return root_;
}

// --- Looking --------------------------------------------------------------------------------------------------------

bool Index::attempt(const View& view, uint64_t block, uint64_t until, size_t limit, Pages& pages, std::vector<Entry>& out) {
  std::vector<Found> active;
  active.reserve(view.layers.size());
  std::shared_ptr<const Table> frozen;
  IndexRoot root;
  uint64_t tree_lsn = 0;
  uint64_t frozen_lsn = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const Layer& layer : view.layers) active.push_back(active_->find(layer, block, until, limit));
    frozen = frozen_;
    root = root_;
    tree_lsn = tree_lsn_;
    frozen_lsn = frozen_lsn_;
  }
  Found result{.entries = {}, .until = until};
  for (size_t i = 0; i < view.layers.size(); ++i) {
    const Layer& layer = view.layers[i];
    const Range wanted = uncovered(result, block, result.until, 0);
    if (wanted.from >= wanted.until) break;
    Found found = std::move(active[i]);
    // An older source is asked only for what it could still change.
    if (frozen != nullptr) {
      const Range part = uncovered(found, wanted.from, std::min(wanted.until, found.until), frozen_lsn);
      if (part.from < part.until) found = newest_of(found, of_part(frozen->find(layer, part.from, part.until, limit), part));
    }
    const Range part = uncovered(found, wanted.from, std::min(wanted.until, found.until), tree_lsn);
    if (part.from < part.until) {
      std::optional<Found> older = tree_.find(root, layer, part.from, part.until, limit, pages);
      if (!older) return false;
      found = newest_of(found, of_part(std::move(*older), part));
    }
    result = first_of(result, found);
  }
  uint64_t at = block;
  const auto fill = [&](uint64_t to) {
    while (at < to && out.size() < limit) {
      const uint64_t blocks = std::min<uint64_t>(to - at, std::numeric_limits<uint32_t>::max());
      out.push_back({.branch = 0, .blocks = static_cast<uint32_t>(blocks), .block = at, .lsn = 0, .place = Place::kHole});
      at += blocks;
    }
  };
  for (const Entry& entry : result.entries) {
    fill(entry.block);
    if (out.size() >= limit) return true;
    out.push_back(entry);
    at = end_of(entry);
  }
  fill(result.until);
  return true;
}

bool Index::try_lookup(const View& view, uint64_t block, uint64_t blocks, size_t limit, std::vector<Entry>& out) {
  NETBLK_CHECK(blocks != 0 && limit != 0 && block + blocks > block, "a lookup is of something");
  out.clear();
  Pages pages(tree_.cache());
  return attempt(view, block, block + blocks, limit, pages, out);
}

bool Index::glance(const View& view, uint64_t block, Entry& out) {
  out = {.branch = 0, .blocks = 1, .block = block, .lsn = 0, .place = Place::kHole};
  for (const Layer& layer : view.layers) {
    Entry newest{}, other{};  // LSN 0: none
    IndexRoot root;
    {
      const std::lock_guard lock(mutex_);
      (void)active_->find_block(layer, block, newest);
      // An older source is asked only for what it could still change.
      if (frozen_ != nullptr && newest.lsn <= frozen_lsn_ && frozen_->find_block(layer, block, other) && other.lsn > newest.lsn)
        newest = other;
      root = newest.lsn <= tree_lsn_ ? root_ : IndexRoot{};
    }
    const Tree::Glance glanced = tree_.glance(root, layer, block, other);
    if (glanced == Tree::Glance::kUnknown) return false;
    if (glanced == Tree::Glance::kFound && other.lsn > newest.lsn) newest = other;
    if (newest.lsn == 0) continue;
    out = newest;
    return true;
  }
  return true;
}

coro::Task<Result<std::vector<Entry>>> Index::lookup(io::Loop& loop, const View& view, uint64_t block, uint64_t blocks,
                                                     size_t limit) {
  NETBLK_CHECK(blocks != 0 && limit != 0 && block + blocks > block, "a lookup is of something");
  Pages pages(tree_.cache());
  std::vector<Entry> out;
  for (;;) {
    const IndexRoot before = root();
    out.clear();
    if (attempt(view, block, block + blocks, limit, pages, out)) co_return out;
    const PageRef missing = pages.missing();
    Result<PagePtr> page = co_await tree_.fetch(loop, missing, true);
    if (page.ok()) {
      pages.pin(missing.offset, std::move(page).value());
    } else if (root() == before) {
      // (Another root: the page may be of a tree that is no longer used, in a segment that is used again.)
      co_return std::move(page).error();
    }
  }
}

// --- Merging --------------------------------------------------------------------------------------------------------

bool Index::freeze() {
  auto fresh = std::make_shared<Table>();
  const std::lock_guard lock(mutex_);
  if (frozen_ != nullptr) return false;
  frozen_ = std::exchange(active_, std::move(fresh));
  frozen_retention_ = retention_;
  frozen_lsn_ = std::max(tree_lsn_, frozen_->highest_lsn());
  return true;
}

coro::Task<Result<IndexRoot>> Index::merge(io::Loop& loop, MergeSink& sink, MergeOptions options) {
  std::shared_ptr<const Table> table;
  std::shared_ptr<const Retention> retention;
  IndexRoot root;
  {
    const std::lock_guard lock(mutex_);
    NETBLK_CHECK(frozen_ != nullptr, "a merge without a frozen table");
    table = frozen_;
    retention = frozen_retention_;
    root = root_;
  }
  Merge merge(loop, tree_, *table, *retention, sink, options);
  Result<IndexRoot> result = co_await merge.run(root);
  co_return result;
}

void Index::commit(const IndexRoot& root) {
  std::shared_ptr<const Table> old;  // freed without the lock
  const std::lock_guard lock(mutex_);
  NETBLK_CHECK(frozen_ != nullptr, "a commit without a frozen table");
  old = std::move(frozen_);
  frozen_ = nullptr;
  frozen_retention_ = nullptr;
  tree_lsn_ = frozen_lsn_;
  root_ = root;
}

}  // namespace netblk::store::volume
