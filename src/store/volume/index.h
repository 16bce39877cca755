// SPDX-License-Identifier: GPL-2.0-only
// Index: where the bytes of each block are, for every retained point. Newest first: the table of what changed since the last
// checkpoint, a frozen table while it is merged, the tree on the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/extent.h"
#include "store/volume/format.h"
#include "store/volume/merge.h"
#include "store/volume/page_cache.h"
#include "store/volume/page_store.h"
#include "store/volume/points.h"
#include "store/volume/table.h"
#include "store/volume/tree.h"

namespace netblk::store::volume {

// Thread-safe. Its mutex is a leaf, and never held across a co_await. One merge at a time.
class Index {
 public:
  // root: the tree of a manifest; indexed_lsn: the highest LSN that it may have (the manifest's next LSN - 1).
  Index(PageStore& store, const Id& uuid, const IndexRoot& root, uint64_t indexed_lsn, Points points, size_t cache_bytes,
        MetadataCipher* cipher = nullptr);

  Points points() const;
  // A point must be there before any entry with a higher LSN is added: what it reads would be dropped as overwritten.
  void set_points(Points points);
  // Retained too, until it is released; each as often as it is held. Not beside set_points().
  void hold(Point point);
  void release(Point point);

  // Entries come in any order of their LSNs; ascending is fast. Appends to `gone` the parts of versions that no retained point
  // reads any more, those of the entries themselves included.
  void add(std::span<const Entry> entries, std::vector<Entry>& gone);

  // Entries of copies, whose versions were looked up when the tree was `seen` and there was no frozen table. False: it is another
  // by now, or a merge has begun, and may have dropped a version and the hole above it: nothing is added.
  bool add_copies(std::span<const Entry> entries, const IndexRoot& seen, std::vector<Entry>& gone);

  // What the view reads of [block, block + blocks): entries in order and without gaps. Where there is nothing: branch 0, LSN 0,
  // Place::kHole. At most `limit` entries: then they cover only a first part of the range. Entry::branch may be a parent's.
  // A place is good for as long as its segment is not used again: who finds other bytes there looks up again.
  //
  // False: a page is not in memory, and lookup() has to be awaited.
  bool try_lookup(const View& view, uint64_t block, uint64_t blocks, size_t limit, std::vector<Entry>& out);
  // The same of one block, and quicker; false as well where several versions of it have to be compared.
  bool glance(const View& view, uint64_t block, Entry& out);
  // EIO: a page of the tree is damaged or cannot be read; the message names it.
  coro::Task<Result<std::vector<Entry>>> lookup(io::Loop& loop, const View& view, uint64_t block, uint64_t blocks, size_t limit);

  // Of the active table.
  size_t table_bytes() const;
  // And of the frozen one, if there is one: what the next merges write.
  size_t unmerged_bytes() const;
  size_t unmerged_entries() const;
  bool table_empty() const;

  // The active table becomes the frozen one: the next tree has exactly what has been added so far. False: there is a frozen
  // one already, whose merge did not come to its end. It is merged first.
  bool freeze();
  // Writes the frozen table's and the tree's entries as a new tree, which is not used yet. `sink` is told what is not in it.
  coro::Task<Result<IndexRoot>> merge(io::Loop& loop, MergeSink& sink, MergeOptions options);
  // From now on the tree is `root`, as merge() gave it, and there is no frozen table.
  void commit(const IndexRoot& root);

  // Every entry of the tree, in order of keys; for checks.
  IndexRoot root() const;
  Tree& tree() { return tree_; }

 private:
  // The state of a moment, for one look.
  struct Look {
    Found found;
    uint64_t final_above = 0;
    std::shared_ptr<const Table> frozen;
    uint64_t tree_lsn = 0;
    IndexRoot root;
  };
  bool attempt(const View& view, uint64_t block, uint64_t until, size_t limit, Pages& pages, std::vector<Entry>& out);

  Tree tree_;
  mutable std::mutex mutex_;
  std::shared_ptr<Table> active_;
  std::shared_ptr<const Table> frozen_;
  Points points_;
  std::vector<Point> held_;
  std::shared_ptr<const Retention> retention_;
  std::shared_ptr<const Retention> frozen_retention_;
  IndexRoot root_;
  uint64_t tree_lsn_;    // no entry of the tree has a higher one
  uint64_t frozen_lsn_;  // nor of the tree and the frozen table
};

}  // namespace netblk::store::volume
