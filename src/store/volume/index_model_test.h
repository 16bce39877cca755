// SPDX-License-Identifier: GPL-2.0-only
// What the index should say, kept the plain way: every point that is retained is an array with a cell for each block.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "store/volume/extent.h"
#include "store/volume/format.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

inline uint64_t test_seed() {
  const char* const given = std::getenv("NETBLK_SEED");
  return given == nullptr ? std::random_device{}() : std::strtoull(given, nullptr, 0);
}

// A block as a point reads it. Nothing and a hole are the same.
struct Cell {
  uint32_t branch = 0;
  uint64_t lsn = 0;
  uint64_t place = Place::kHole;
  auto operator<=>(const Cell&) const = default;
};
using Contents = std::vector<Cell>;

inline Contents contents_of(const std::vector<Entry>& entries, uint64_t blocks) {
  Contents contents(blocks);
  for (const Entry& entry : entries) {
    for (uint64_t i = 0; i < entry.blocks; ++i) {
      const uint64_t place = Place::moved(entry.place, i);
      if ((place & Place::kHole) == 0) contents.at(entry.block + i) = {entry.branch, entry.lsn, place};
    }
  }
  return contents;
}

class IndexModel {
 public:
  IndexModel(uint64_t seed, uint64_t blocks) : blocks_(blocks), random_(seed) {
    EXPECT_TRUE(points_.add_branch({.number = kHeadBranch, .name = {}, .size_bytes = blocks * kBlockBytes, .parent = {}, .rewinds = {}})
                    .ok());
    heads_[kHeadBranch] = Contents(blocks);
  }

  uint64_t below(uint64_t bound) { return std::uniform_int_distribution<uint64_t>(0, bound - 1)(random_); }
  const Points& points() const { return points_; }
  uint64_t lsn() const { return lsn_; }

  // A change of up to `most` blocks, anywhere.
  Entry write(uint64_t most) {
    const uint32_t branch = any_head();
    Entry entry{.branch = branch, .blocks = 0, .block = below(blocks_), .lsn = ++lsn_, .place = 0};
    const uint64_t kind = below(8);
    const uint64_t longest = kind < 6 ? std::min<uint64_t>(most, kMaxRecordBlocks) : most;
    entry.blocks = static_cast<uint32_t>(1 + below(std::min(longest, blocks_ - entry.block)));
    entry.place = kind == 7 ? Place::kHole : kind == 6 ? Place::kZero : Place::make(next_place(), 0, entry.blocks);
    for (uint64_t i = 0; i < entry.blocks; ++i) {
      const uint64_t place = Place::moved(entry.place, i);
      heads_[branch][entry.block + i] = kind == 7 ? Cell{} : Cell{branch, entry.lsn, place};
    }
    return entry;
  }

  // The same bytes as some head or point reads, in another place. None: nothing has been written.
  std::vector<Entry> copy() {
    const auto all = every_point();
    const Contents& from = *all[below(all.size())].second;
    const uint64_t block = below(blocks_);
    const Cell cell = from[block];
    if (cell.lsn == 0 || !Place::is_data(cell.place)) return {};
    const Entry entry{.branch = cell.branch, .blocks = 1, .block = block, .lsn = cell.lsn,
                      .place = Place::make(next_place(), 0, 1)};
    const auto move = [&](Contents& contents) {
      if (contents[block] == cell) contents[block].place = entry.place;
    };
    for (auto& [number, contents] : heads_) move(contents);
    for (auto& [point, contents] : kept_) move(contents);
    return {entry};
  }

  void snapshot() {
    const Point point{.branch = any_head(), .lsn = ++lsn_};
    const std::string name = "s" + std::to_string(lsn_);
    ASSERT_TRUE(points_.add_snapshot({.name = name, .point = point, .time_ns = 0, .size_bytes = 0}).ok());
    keep(point, heads_[point.branch]);
    names_[name] = point;
  }

  void remove_snapshot() {
    if (names_.empty()) return;
    auto at = names_.begin();
    std::advance(at, below(names_.size()));
    ASSERT_TRUE(points_.remove_snapshot(at->first).ok());
    release(at->second);
    names_.erase(at);
  }

  // A branch that begins at a snapshot.
  void branch() {
    if (names_.empty()) return;
    auto at = names_.begin();
    std::advance(at, below(names_.size()));
    const uint32_t number = ++branches_;
    const std::string name = "b" + std::to_string(number);
    ASSERT_TRUE(points_.add_branch({.number = number, .name = name, .size_bytes = 0, .parent = at->second, .rewinds = {}}).ok());
    heads_[number] = kept_[at->second];
    keep(at->second, kept_[at->second]);
    parents_[number] = at->second;
  }

  void remove_branch() {
    if (parents_.empty()) return;
    auto at = parents_.begin();
    std::advance(at, below(parents_.size()));
    if (!points_.remove_branch(at->first).ok()) return;
    heads_.erase(at->first);
    release(at->second);
    parents_.erase(at);
  }

  void rewind() {
    if (names_.empty()) return;
    auto at = names_.begin();
    std::advance(at, below(names_.size()));
    const Point point = at->second;
    const uint64_t record = ++lsn_;
    ASSERT_TRUE(points_.rewind(point.branch, {.record = record, .target = point.lsn}).ok());
    heads_[point.branch] = kept_[point];
  }

  // Every point that is retained, and what it reads.
  std::vector<std::pair<Point, const Contents*>> every_point() const {
    std::vector<std::pair<Point, const Contents*>> all;
    for (const auto& [number, contents] : heads_) all.push_back({{.branch = number, .lsn = kForever}, &contents});
    for (const auto& [point, contents] : kept_) all.push_back({point, &contents});
    return all;
  }

  // (block, cell) of everything that is read by any point.
  std::set<std::pair<uint64_t, Cell>> everything_read() const {
    std::set<std::pair<uint64_t, Cell>> all;
    for (const auto& [point, contents] : every_point()) {
      for (uint64_t block = 0; block < blocks_; ++block) {
        if ((*contents)[block].lsn != 0) all.insert({block, (*contents)[block]});
      }
    }
    return all;
  }

 private:
  // So that LSNs and places of the format order points as the volume's would.
  struct PointLess {
    bool operator()(const Point& a, const Point& b) const { return std::tie(a.branch, a.lsn) < std::tie(b.branch, b.lsn); }
  };

  uint64_t next_place() { return kSegmentsAt + 69'632 * ++places_; }
  uint32_t any_head() {
    auto at = heads_.begin();
    std::advance(at, below(heads_.size()));
    return at->first;
  }
  void keep(Point point, Contents contents) {
    kept_[point] = std::move(contents);
    ++kept_count_[point];
  }
  void release(Point point) {
    if (--kept_count_[point] == 0) {
      kept_.erase(point);
      kept_count_.erase(point);
    }
  }

  uint64_t blocks_;
  std::mt19937_64 random_;
  uint64_t lsn_ = 0;
  uint64_t places_ = 0;
  uint32_t branches_ = kHeadBranch;
  Points points_;
  std::map<uint32_t, Contents> heads_;
  std::map<Point, Contents, PointLess> kept_;
  std::map<Point, int, PointLess> kept_count_;
  std::map<std::string, Point> names_;
  std::map<uint32_t, Point> parents_;
};

// Data blocks that are somewhere: what was added and is not gone.
class Ledger {
 public:
  void add(const Entry& entry) {
    each(entry, [&](const Block& block) { EXPECT_TRUE(blocks_.insert(block).second) << text(block) << " twice"; });
  }
  void remove(const std::vector<Entry>& gone) {
    for (const Entry& entry : gone) {
      each(entry, [&](const Block& block) { EXPECT_EQ(blocks_.erase(block), 1u) << text(block) << " was not there"; });
    }
  }
  std::set<std::pair<uint64_t, Cell>> blocks() const {
    std::set<std::pair<uint64_t, Cell>> all;
    for (const auto& [block, cell] : blocks_) all.insert({block, cell});
    return all;
  }

 private:
  using Block = std::pair<uint64_t, Cell>;
  static std::string text(const Block& block) {
    return fmt::format("block {} lsn {} place {:#x}", block.first, block.second.lsn, block.second.place);
  }
  static void each(const Entry& entry, const std::function<void(const Block&)>& call) {
    if (!Place::is_data(entry.place)) return;
    for (uint64_t i = 0; i < entry.blocks; ++i) {
      call({entry.block + i, {entry.branch, entry.lsn, Place::moved(entry.place, i)}});
    }
  }
  std::set<Block> blocks_;
};

}  // namespace netblk::store::volume
