// SPDX-License-Identifier: GPL-2.0-only
// Tree: the index on the disk, a B+ tree of pages that are never changed in place (docs/volume-format.md, "Index pages").
// A root names a whole tree for ever; merge.h makes the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/extent.h"
#include "store/volume/format.h"
#include "store/volume/page_cache.h"
#include "store/volume/page_store.h"

namespace netblk::store::volume {

// More than enough: 15 levels of 50 children each.
inline constexpr uint16_t kMaxTreeLevel = 15;

// What a parent says of a page.
struct PageRef {
  uint64_t offset = 0;
  uint32_t crc = 0;
  uint16_t level = 0;
  std::optional<Key> first;  // of its first entry; a root's is not known
};

// The bytes read at ref.offset are that page, and nothing in it is out of range: keys ascend, extents do not overlap, places
// and offsets can be. EIO with words otherwise.
Result<PagePtr> parse_page(const PageRef& ref, const Sums& sums, std::span<const std::byte> bytes,
                           const MetadataCipher* cipher = nullptr);

// The pages that one look at the tree may use: what is cached, and what was read for it.
class Pages {
 public:
  explicit Pages(PageCache& cache) : cache_(cache) {}

  // Null: it has to be read first; missing() is it.
  PagePtr find(const PageRef& ref);
  const PageRef& missing() const { return missing_; }
  void pin(uint64_t offset, PagePtr page) { pinned_.emplace_back(offset, std::move(page)); }

 private:
  PageCache& cache_;
  std::vector<std::pair<uint64_t, PagePtr>> pinned_;
  PageRef missing_;
};

class Tree {
 public:
  Tree(PageStore& store, const Id& uuid, size_t cache_bytes, MetadataCipher* cipher)
      : store_(store), sums_(uuid), cipher_(cipher), cache_(cache_bytes) {}

  // What the layer reads of [block, until), from at most `limit` extents, or of a first part of that. None: a page is missing.
  std::optional<Found> find(const IndexRoot& root, const Layer& layer, uint64_t block, uint64_t until, size_t limit,
                            Pages& pages) const;

  // What the layer reads of one block, where pages in the cache say it and the block has one version.
  enum class Glance { kFound, kNothing, kUnknown };
  Glance glance(const IndexRoot& root, const Layer& layer, uint64_t block, Entry& found);

  // The page, from the cache or the disk. `keep`: it goes into the cache.
  coro::Task<Result<PagePtr>> fetch(io::Loop& loop, PageRef ref, bool keep);

  class Visitor {
   public:
    virtual ~Visitor() = default;
    virtual void page(uint64_t offset, uint16_t level) = 0;
    virtual coro::Task<Status> entries(std::span<const Entry> entries) = 0;  // of one leaf; an error ends the scan
    virtual void damaged(const PageRef& page, const Error& error) = 0;       // what is below it is left out
  };
  // Every page, and every entry in order.
  coro::Task<Status> scan(io::Loop& loop, IndexRoot root, Visitor& visitor);

  PageCache& cache() { return cache_; }
  PageStore& store() { return store_; }
  const Sums& sums() const { return sums_; }
  MetadataCipher* cipher() const { return cipher_; }

 private:
  coro::Task<Status> scan_page(io::Loop& loop, PageRef ref, Visitor& visitor);

  PageStore& store_;
  const Sums sums_;
  MetadataCipher* const cipher_;  // null: its pages are plain
  PageCache cache_;
};

PageRef ref_of(const IndexRoot& root);
PageRef ref_of(const Child& child, uint16_t level);

}  // namespace netblk::store::volume
