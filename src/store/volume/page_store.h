// SPDX-License-Identifier: GPL-2.0-only
// PageStore: where the pages of the index are, and MergeSink: who is told what a merge makes superfluous. The volume is both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/extent.h"
#include "store/volume/format.h"

namespace netblk::store::volume {

class PageStore {
 public:
  virtual ~PageStore() = default;

  // The whole page, as it is on the disk: whether it is what it should be is judged by the reader. Called on any loop.
  virtual coro::Task<Status> read(io::Loop& loop, uint64_t offset, std::span<std::byte> page) = 0;

  // Called by a merge only. Pages that follow one another on the disk are written together. A page that was allocated is read
  // only after it was written.
  virtual coro::Task<Status> write(io::Loop& loop, uint64_t offset, std::span<const std::byte> pages) = 0;

  // The offset of a page that no superblock leads to.
  virtual coro::Task<Result<uint64_t>> allocate(io::Loop& loop) = 0;

  // Whether there is room for more than what a merge cannot do without.
  virtual coro::Task<bool> has_spare(io::Loop& loop) = 0;
};

// What it is told counts only if the merge ends well and its checkpoint becomes durable; a merge that failed is repeated from
// the beginning.
class MergeSink {
 public:
  virtual ~MergeSink() = default;

  // No retained point reads this part of a version: it is in the new index no more.
  virtual void entry_gone(const Entry& entry) = 0;
  // What was to be looked at from here on is left to another merge.
  virtual void stopped_at(Position position) = 0;
  // The new index does not have the page of the old one at this offset.
  virtual void page_gone(uint64_t offset) = 0;
};

}  // namespace netblk::store::volume
