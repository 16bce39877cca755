// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/page_cache.h"

#include <utility>

namespace netblk::store::volume {

namespace {

// Where everything is in use, one goes after so many looks.
constexpr int kMostChances = 64;

}  // namespace

const PagePtr* PageCache::look(uint64_t offset, uint32_t crc) {
  const auto found = at_.find(offset);
  if (found == at_.end() || found->second->page->header.crc != crc) return nullptr;
  found->second->used = true;
  return &found->second->page;
}

PagePtr PageCache::find(uint64_t offset, uint32_t crc) {
  const std::lock_guard lock(mutex_);
  const PagePtr* const found = look(offset, crc);
  return found == nullptr ? nullptr : *found;
}

void PageCache::put(uint64_t offset, PagePtr page) {
  PagePtr old;  // freed without the lock
  const std::lock_guard lock(mutex_);
  if (most_ == 0) return;
  if (const auto found = at_.find(offset); found != at_.end()) {
    old = std::exchange(found->second->page, std::move(page));
    found->second->used = true;
    return;
  }
  if (order_.size() >= most_) {
    for (int i = 0; i < kMostChances && order_.back().used; ++i) {
      order_.back().used = false;
      order_.splice(order_.begin(), order_, std::prev(order_.end()));
    }
    // The node of the one that goes is the new one's.
    const auto last = std::prev(order_.end());
    at_.erase(last->offset);
    last->offset = offset;
    last->used = false;
    old = std::exchange(last->page, std::move(page));
    order_.splice(order_.begin(), order_, last);
  } else {
    order_.push_front({offset, std::move(page)});
  }
  at_.emplace(offset, order_.begin());
}

size_t PageCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return order_.size() * kPageCost;
}

}  // namespace netblk::store::volume
