// SPDX-License-Identifier: GPL-2.0-only
// Table: the index's changes since a checkpoint, in memory. For each extent the newest version, and the older ones that a
// retained point still reads. Extents of one branch never overlap: what is written across one splits it.
//
// Not thread-safe. A frozen table is const, and then any thread may read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "store/volume/extent.h"
#include "store/volume/format.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

struct Version {
  uint64_t lsn = 0;
  uint64_t place = 0;
};

class Table {
 public:
  // The versions of one extent.
  struct Stack {
    uint32_t blocks = 0;
    Version newest;
    std::unique_ptr<std::vector<Version>> older;  // LSN descending; null: none

    size_t size() const { return 1 + (older == nullptr ? 0 : older->size()); }
    const Version& operator[](size_t at) const { return at == 0 ? newest : (*older)[at - 1]; }
  };
  using Stacks = std::pmr::map<Position, Stack>;

  Table() : stacks_(&pool_) {}
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // Adds a version; versions come in any order of their LSNs. Appends to `gone` the parts of versions (of this table's, or of
  // the new one) that no retained point reads any more.
  void add(const Entry& entry, const Retention& retention, std::vector<Entry>& gone);

  // What the layer reads of [block, until), from at most `limit` extents.
  Found find(const Layer& layer, uint64_t block, uint64_t until, size_t limit) const;

  // The same of one block; false: nothing.
  bool find_block(const Layer& layer, uint64_t block, Entry& found) const;

  const Stacks& stacks() const { return stacks_; }
  bool empty() const { return stacks_.empty(); }
  size_t extents() const { return stacks_.size(); }
  size_t entries() const { return stacks_.size() + older_; }
  size_t memory_bytes() const { return stacks_.size() * kStackBytes + older_ * sizeof(Version); }
  uint64_t highest_lsn() const { return highest_lsn_; }

 private:
  // Of a node with what the map and the pool add.
  static constexpr size_t kStackBytes = sizeof(Stacks::value_type) + 40;

  Stacks::iterator split(Stacks::iterator stack, uint64_t at);
  void add_version(Stacks::iterator stack, Version version, const Retention& retention, std::vector<Entry>& gone);

  std::pmr::unsynchronized_pool_resource pool_;
  Stacks stacks_;
  size_t older_ = 0;  // versions in `older` of all
  uint64_t highest_lsn_ = 0;
  // Scratch of add_version().
  std::vector<Version> versions_;
  std::vector<uint64_t> lsns_;
  std::vector<uint8_t> live_;
};

// The first of the versions (LSN descending) that the intervals count; null: none.
const Version* version_for(const Table::Stack& stack, std::span<const Interval> intervals);

}  // namespace netblk::store::volume
