// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/table.h"

#include <gtest/gtest.h>

#include <vector>

#include "store/volume/index_model_test.h"

namespace netblk::store::volume {
namespace {

constexpr Layer whole() { return {.branch = kHeadBranch, .intervals = {{0, kForever}}}; }

Entry data(uint64_t block, uint32_t blocks, uint64_t lsn) {
  return {.branch = kHeadBranch, .blocks = blocks, .block = block, .lsn = lsn, .place = Place::make(kSegmentsAt + lsn * 4096, 0, blocks)};
}

class TableTest : public testing::Test {
 protected:
  TableTest() {
    EXPECT_TRUE(points_.add_branch({.number = kHeadBranch, .name = {}, .size_bytes = 0, .parent = {}, .rewinds = {}}).ok());
  }
  std::vector<Entry> add(const Entry& entry) {
    std::vector<Entry> gone;
    table_.add(entry, points_.retention(), gone);
    return gone;
  }
  void snapshot(uint64_t lsn) {
    ASSERT_TRUE(points_.add_snapshot({.name = "s" + std::to_string(lsn), .point = {kHeadBranch, lsn}, .time_ns = 0, .size_bytes = 0}).ok());
  }
  std::vector<Entry> find(uint64_t block, uint64_t until, uint64_t point = kForever) {
    return table_.find({.branch = kHeadBranch, .intervals = {{0, point}}}, block, until, 1000).entries;
  }

  Points points_;
  Table table_;
};

TEST_F(TableTest, AnOverwrittenMiddleSplits) {
  EXPECT_TRUE(add(data(0, 16, 1)).empty());
  const auto gone = add(data(4, 4, 2));
  const Entry old = data(0, 16, 1);
  EXPECT_EQ(gone, std::vector<Entry>{part_of(old, 4, 8)});
  EXPECT_EQ(find(0, 100), (std::vector<Entry>{part_of(old, 0, 4), data(4, 4, 2), part_of(old, 8, 16)}));
  EXPECT_EQ(Place::index(find(0, 100)[2].place), 8u);
  EXPECT_EQ(find(5, 9), (std::vector<Entry>{part_of(data(4, 4, 2), 5, 8), part_of(old, 8, 9)})) << "clipped";
}

TEST_F(TableTest, WhatASnapshotReadsStays) {
  EXPECT_TRUE(add(data(0, 16, 1)).empty());
  snapshot(2);
  EXPECT_TRUE(add(data(4, 4, 3)).empty());
  EXPECT_EQ(add(data(4, 4, 4)), std::vector<Entry>{data(4, 4, 3)});
  std::vector<Entry> old;
  for (const auto& [from, until] : {std::pair{0, 4}, {4, 8}, {8, 16}}) {
    old.push_back(part_of(data(0, 16, 1), static_cast<uint64_t>(from), static_cast<uint64_t>(until)));
  }
  EXPECT_EQ(find(0, 100, 2), old);
  EXPECT_EQ(find(0, 100), (std::vector<Entry>{old[0], data(4, 4, 4), old[2]}));
  EXPECT_TRUE(find(0, 100, 0).empty());
}

TEST_F(TableTest, ALateOldVersionGoesBehindTheNewer) {
  EXPECT_TRUE(add(data(4, 4, 9)).empty());
  const auto gone = add(data(0, 16, 5));
  EXPECT_EQ(gone, std::vector<Entry>{part_of(data(0, 16, 5), 4, 8)});
  EXPECT_EQ(find(4, 8), std::vector<Entry>{data(4, 4, 9)});
}

TEST_F(TableTest, ACopyTakesThePlace) {
  EXPECT_TRUE(add(data(4, 1, 9)).empty());
  Entry copy = data(4, 1, 9);
  copy.place = Place::make(kSegmentsAt, 0, 1);
  EXPECT_EQ(add(copy), std::vector<Entry>{data(4, 1, 9)});
  EXPECT_EQ(find(0, 8), std::vector<Entry>{copy});
  EXPECT_TRUE(add(copy).empty()) << "the same again is no change";
}

TEST_F(TableTest, ALimitEndsTheAnswerBeforeWhatIsNotInIt) {
  for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(add(data(i * 10, 1, i + 1)).empty());
  const Found found = table_.find(whole(), 0, 1000, 3);
  EXPECT_EQ(found.entries.size(), 3u);
  EXPECT_EQ(found.until, 30u);
  EXPECT_EQ(table_.find(whole(), 0, 1000, 10).until, 1000u);
}

TEST_F(TableTest, LongExtentsAndOtherBranchesAreFound) {
  Entry hole{.branch = kHeadBranch, .blocks = 1u << 31, .block = 5, .lsn = 1, .place = Place::kHole};
  EXPECT_TRUE(add(hole).empty());
  Entry other = data(5, 1, 2);
  other.branch = 2;
  EXPECT_TRUE(add(other).empty());
  EXPECT_EQ(find(1u << 30, (1u << 30) + 1), std::vector<Entry>{part_of(hole, 1u << 30, (1u << 30) + 1)});
  EXPECT_TRUE(find(uint64_t{1} << 40, uint64_t{1} << 41).empty());
}

Contents read(const Table& table, const View& view, uint64_t from, uint64_t until, size_t limit, uint64_t blocks) {
  Found found{.entries = {}, .until = until};
  for (const Layer& layer : view.layers) found = first_of(found, table.find(layer, from, until, limit));
  for (size_t i = 1; i < found.entries.size(); ++i) EXPECT_LE(end_of(found.entries[i - 1]), found.entries[i].block);
  if (!found.entries.empty()) {
    EXPECT_GE(found.entries.front().block, from);
    EXPECT_LE(end_of(found.entries.back()), found.until);
  }
  Contents contents = contents_of(found.entries, blocks);
  if (found.until < until) {
    EXPECT_GT(found.until, from) << "no progress";
    const Contents rest = read(table, view, found.until, until, limit, blocks);
    for (uint64_t block = found.until; block < until; ++block) contents[block] = rest[block];
  }
  return contents;
}

// Changes, snapshots, clones, rewinds, copies, deletions; after each, some points are compared with what they should read.
TEST(TableModel, EveryRetainedPointReadsWhatItShould) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE("NETBLK_SEED=" + std::to_string(seed));
  constexpr uint64_t kBlocks = 64;
  for (uint64_t round = 0; round < 60 && !testing::Test::HasFailure(); ++round) {
    IndexModel model(seed + round, kBlocks);
    Table table;
    Ledger ledger;
    for (int step = 0; step < 150 && !testing::Test::HasFailure(); ++step) {
      std::vector<Entry> added;
      const uint64_t what = model.below(40);
      if (what < 28) {
        added = {model.write(kBlocks)};
      } else if (what < 31) {
        added = model.copy();
      } else if (what < 34) {
        model.snapshot();
      } else if (what < 36) {
        model.remove_snapshot();
      } else if (what == 36) {
        model.branch();
      } else if (what == 37) {
        model.remove_branch();
      } else {
        model.rewind();
      }
      for (const Entry& entry : added) {
        std::vector<Entry> gone;
        ledger.add(entry);
        table.add(entry, model.points().retention(), gone);
        ledger.remove(gone);
      }
      for (const auto& [point, contents] : model.every_point()) {
        if (model.below(4) != 0) continue;
        const Contents found = read(table, model.points().view(point), 0, kBlocks, 1 + model.below(20), kBlocks);
        ASSERT_EQ(found, *contents) << "round " << round << " step " << step << " branch " << point.branch << " lsn " << point.lsn;
      }
    }
    // What went is not read, what is read did not go, and the table has just what did not go.
    const auto there = ledger.blocks();
    for (const auto& read_block : model.everything_read()) {
      if (Place::is_data(read_block.second.place)) {
        EXPECT_EQ(there.count(read_block), 1u);
      }
    }
    std::set<std::pair<uint64_t, Cell>> in_table;
    for (const auto& [position, stack] : table.stacks()) {
      for (size_t i = 0; i < stack.size(); ++i) {
        for (uint64_t block = 0; Place::is_data(stack[i].place) && block < stack.blocks; ++block) {
          in_table.insert({position.block + block, {position.branch, stack[i].lsn, Place::moved(stack[i].place, block)}});
        }
      }
    }
    EXPECT_EQ(in_table, there);
  }
}

}  // namespace
}  // namespace netblk::store::volume
