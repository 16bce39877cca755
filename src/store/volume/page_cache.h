// SPDX-License-Identifier: GPL-2.0-only
// PageCache: pages of the index that have been read and checked, up to a number of bytes. Which goes is told by second chance: a
// page that was used since it came to the end of the queue begins again at its front.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "store/volume/format.h"

namespace netblk::store::volume {

// A page that passed parse_page(): its entries ascend, and their fields are in range.
struct Page {
  std::array<std::byte, kPageBytes> bytes;
  PageHeader header;

  Entry entry(uint32_t at) const { return decode_leaf_entry(at, bytes); }
  Child child(uint32_t at) const { return decode_child(at, bytes); }
};
using PagePtr = std::shared_ptr<const Page>;

// Thread-safe; its mutex is a leaf.
class PageCache {
 public:
  explicit PageCache(size_t bytes) : most_(bytes / kPageCost) {}

  // Null: it is not here, or what is here was at this offset before: its CRC field is another.
  PagePtr find(uint64_t offset, uint32_t crc);
  void put(uint64_t offset, PagePtr page);

  size_t bytes() const;

  // For a look that ends at once: nobody else uses the cache meanwhile, and no page goes.
  class Hold {
   public:
    explicit Hold(PageCache& cache) : cache_(cache), lock_(cache.mutex_) {}
    // As PageCache::find(); the page is good until the end of the hold.
    const Page* find(uint64_t offset, uint32_t crc) {
      const PagePtr* const found = cache_.look(offset, crc);
      return found == nullptr ? nullptr : found->get();
    }

   private:
    PageCache& cache_;
    const std::lock_guard<std::mutex> lock_;
  };

 private:
  // A page, with what the list, the map and the allocator add.
  static constexpr size_t kPageCost = sizeof(Page) + 192;

  struct Kept {
    uint64_t offset;
    PagePtr page;
    bool used = false;  // since it was put in front
  };
  const PagePtr* look(uint64_t offset, uint32_t crc);

  const size_t most_;
  mutable std::mutex mutex_;
  std::list<Kept> order_;  // the queue: the last one goes next
  std::unordered_map<uint64_t, std::list<Kept>::iterator> at_;
};

}  // namespace netblk::store::volume
