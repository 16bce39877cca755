// SPDX-License-Identifier: GPL-2.0-only
// Extents of the index: order, parts, and how lists of what several sources found become one answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "store/volume/format.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

// Where a version stands in the index: by branch, then block, then LSN descending.
struct Key {
  uint32_t branch = 0;
  uint64_t block = 0;
  uint64_t lsn = 0;

  bool operator==(const Key&) const = default;
  bool operator<(const Key& other) const {
    return std::tie(branch, block, other.lsn) < std::tie(other.branch, other.block, lsn);
  }
};

// A block of a branch: versions of one extent share it.
struct Position {
  uint32_t branch = 0;
  uint64_t block = 0;
  auto operator<=>(const Position&) const = default;
};

inline Key key_of(const Entry& entry) { return {entry.branch, entry.block, entry.lsn}; }
inline Key key_of(const Child& child) { return {child.branch, child.block, child.lsn}; }
inline Position position_of(const Entry& entry) { return {entry.branch, entry.block}; }
inline Position position_of(const Child& child) { return {child.branch, child.block}; }
inline uint64_t end_of(const Entry& entry) { return entry.block + entry.blocks; }

// The part of an entry in [from, until), which lies in it.
inline Entry part_of(const Entry& entry, uint64_t from, uint64_t until) {
  return {.branch = entry.branch,
          .blocks = static_cast<uint32_t>(until - from),
          .block = from,
          .lsn = entry.lsn,
          .place = Place::moved(entry.place, from - entry.block)};
}

// What a source found of a range: in order, none overlaps another. `until`: how far the source has looked.
struct Found {
  std::vector<Entry> entries;
  uint64_t until = 0;
};

// Of two sources of one layer: where both have something, the higher LSN; `newer` where they are equal (a copy has the LSN
// of what it was copied from).
Found newest_of(const Found& newer, const Found& older);
// `first`, and `second` where `first` has nothing.
Found first_of(const Found& first, const Found& second);

// The least range with everything of [block, until) that `found` does not cover by entries with an LSN above `lsn`; empty
// where from >= until.
struct Range {
  uint64_t from = 0;
  uint64_t until = 0;
};
Range uncovered(const Found& found, uint64_t block, uint64_t until, uint64_t lsn);

}  // namespace netblk::store::volume
