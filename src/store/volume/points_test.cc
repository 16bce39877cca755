// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/points.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

namespace netblk::store::volume {
namespace {

Points volume() {
  return Points({{.number = kHeadBranch, .name = {}, .size_bytes = 1u << 20, .parent = {}, .rewinds = {}}}, {});
}

SnapshotInfo snapshot(std::string name, uint64_t lsn, uint32_t branch = kHeadBranch) {
  return {.name = std::move(name), .point = {.branch = branch, .lsn = lsn}, .time_ns = 0, .size_bytes = 0};
}

BranchInfo clone(uint32_t number, std::string name, Point parent) {
  return {.number = number, .name = std::move(name), .size_bytes = 0, .parent = parent, .rewinds = {}};
}

int code_of(const Status& status) { return status.ok() ? 0 : status.error().code; }

std::vector<uint8_t> marks(const Points& points, std::vector<uint64_t> lsns, uint32_t branch = kHeadBranch) {
  std::vector<uint8_t> live(lsns.size());
  points.retention().mark(branch, lsns, live);
  return live;
}

TEST(Points, AHeadReadsTheWholeOfItsBranch) {
  EXPECT_EQ(volume().head(kHeadBranch), (View{{{.branch = kHeadBranch, .intervals = {{0, kForever}}}}}));
}

TEST(Points, ASnapshotReadsUpToItsOwnLsn) {
  Points points = volume();
  ASSERT_TRUE(points.add_snapshot(snapshot("a", 7)).ok());
  EXPECT_EQ(points.view(points.find_snapshot("a")->point), (View{{{.branch = kHeadBranch, .intervals = {{0, 7}}}}}));
}

TEST(Points, ACloneReadsItsOwnAndThenItsParentPoint) {
  Points points = volume();
  ASSERT_TRUE(points.add_branch(clone(2, "c", {kHeadBranch, 7})).ok());
  ASSERT_TRUE(points.add_branch(clone(3, "d", {2, 9})).ok());
  EXPECT_EQ(points.head(3), (View{{{.branch = 3, .intervals = {{0, kForever}}},
                                   {.branch = 2, .intervals = {{0, 9}}},
                                   {.branch = kHeadBranch, .intervals = {{0, 7}}}}}));
}

TEST(Points, ARewindCutsTheTimeline) {
  Points points = volume();
  ASSERT_TRUE(points.add_snapshot(snapshot("a", 7)).ok());
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 12, .target = 7}).ok());
  EXPECT_EQ(points.head(kHeadBranch).layers[0].intervals, (std::vector<Interval>{{0, 7}, {12, kForever}}));
  EXPECT_EQ(points.view({kHeadBranch, 11}).layers[0].intervals, (std::vector<Interval>{{0, 11}}));
  EXPECT_EQ(points.view({kHeadBranch, 12}).layers[0].intervals, (std::vector<Interval>{{0, 7}}));
  EXPECT_EQ(points.view({kHeadBranch, 20}).layers[0].intervals, (std::vector<Interval>{{0, 7}, {12, 20}}));
}

TEST(Points, WhatIsFreedSaysWhatTheMergeMustLookAt) {
  using Freed = Points::Freed;
  Points points = volume();
  ASSERT_TRUE(points.add_snapshot(snapshot("a", 7)).ok());
  ASSERT_TRUE(points.add_snapshot(snapshot("b", 9)).ok());
  EXPECT_EQ(points.freed_since(volume()), Freed::kNothing);
  Points rewound = points;
  ASSERT_TRUE(rewound.apply({.kind = ChangeKind::kRewind, .lsn = 7}, {kHeadBranch, 12}, 0).ok());
  EXPECT_EQ(rewound.freed_since(points), Freed::kNothing) << "what it was is a snapshot";
  EXPECT_NE(rewound.find_snapshot("before-rewind-12"), nullptr);
  Points next = rewound;
  ASSERT_TRUE(next.remove_snapshot("a").ok());
  EXPECT_EQ(next.freed_since(rewound), Freed::kCovered) << "the head reads on from there";
  next = rewound;
  ASSERT_TRUE(next.remove_snapshot("b").ok());
  EXPECT_EQ(next.freed_since(rewound), Freed::kAlone) << "left behind by the rewind";
  next = rewound;
  next.set_history(5);
  EXPECT_EQ(next.freed_since(rewound), Freed::kNothing);
  Points later = next;
  later.set_history(11);
  EXPECT_EQ(later.freed_since(next), Freed::kCovered);
  later.set_history(12);
  EXPECT_EQ(later.freed_since(next), Freed::kAlone);
}

TEST(Points, AnUndoneHistoryOfSizesIsThatOfThePoints) {
  Points points = volume();
  points.set_history(1);
  ASSERT_TRUE(points.resize(kHeadBranch, 4096, 5).ok());
  ASSERT_TRUE(points.resize(kHeadBranch, 8192, 9).ok());
  EXPECT_EQ(points.size_at({kHeadBranch, 4}), 1u << 20);
  EXPECT_EQ(points.size_at({kHeadBranch, 5}), 4096u);
  EXPECT_EQ(points.size_at({kHeadBranch, 8}), 4096u);
  EXPECT_EQ(points.size_at({kHeadBranch, 9}), 8192u);
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 12, .target = 6}).ok());
  EXPECT_EQ(points.find_branch(kHeadBranch)->size_bytes, 4096u);
  EXPECT_EQ(points.size_at({kHeadBranch, 11}), 8192u);
  points.set_history(10);
  EXPECT_EQ(points.find_branch(kHeadBranch)->resizes.size(), 1u) << "what nobody asks for is forgotten";
}

TEST(Points, ARewindIsUndoneByARewind) {
  Points points = volume();
  points.set_history(1);
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 12, .target = 7}).ok());
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 15, .target = 11}).ok());
  EXPECT_EQ(points.head(kHeadBranch).layers[0].intervals, (std::vector<Interval>{{0, 11}, {15, kForever}}));
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 20, .target = 14}).ok());
  EXPECT_EQ(points.head(kHeadBranch).layers[0].intervals, (std::vector<Interval>{{0, 7}, {12, 14}, {20, kForever}}));
}

TEST(Points, WhatIsNotKeptIsNoTargetOfARewind) {
  Points points = volume();
  EXPECT_EQ(code_of(points.rewind(kHeadBranch, {.record = 12, .target = 7})), ENOENT);
  EXPECT_EQ(code_of(points.rewind(kHeadBranch, {.record = 7, .target = 7})), EINVAL);
  EXPECT_EQ(code_of(points.rewind(9, {.record = 12, .target = 7})), ENOENT);
  points.set_history(8);
  EXPECT_EQ(code_of(points.rewind(kHeadBranch, {.record = 12, .target = 7})), ENOENT);
  EXPECT_EQ(code_of(points.rewind(kHeadBranch, {.record = 12, .target = 8})), 0);
  EXPECT_EQ(code_of(points.rewind(kHeadBranch, {.record = 12, .target = 9})), EINVAL) << "a record is later than the one before";
}

// The one that a clone began from has no name, and no history reaches it.
TEST(Points, APointHasTheSizeOfThenForAsLongAsAnythingReadsIt) {
  Points points = volume();
  const uint64_t size = 1u << 20;
  ASSERT_TRUE(points.add_branch(clone(2, "c", {kHeadBranch, 7})).ok());
  ASSERT_TRUE(points.resize(kHeadBranch, size / 2, 9).ok());
  ASSERT_TRUE(points.resize(kHeadBranch, 2 * size, 11).ok());
  EXPECT_EQ(points.size_at({kHeadBranch, 7}), size);
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 12, .target = 7}).ok());
  EXPECT_EQ(points.find_branch(kHeadBranch)->size_bytes, size);
  ASSERT_TRUE(points.remove_branch(2).ok());
  EXPECT_TRUE(points.find_branch(kHeadBranch)->resizes.empty()) << "nobody can name a point of then";
  ASSERT_TRUE(points.resize(kHeadBranch, size / 2, 13).ok());
  EXPECT_TRUE(points.find_branch(kHeadBranch)->resizes.empty());
}

TEST(Points, ACloneKeepsTheSizeOfASnapshotThatIsDeleted) {
  Points points = volume();
  const uint64_t size = 1u << 20;
  SnapshotInfo a = snapshot("a", 7);
  a.size_bytes = size;
  ASSERT_TRUE(points.add_snapshot(a).ok());
  ASSERT_TRUE(points.resize(kHeadBranch, size / 2, 9).ok());
  ASSERT_TRUE(points.add_branch(clone(2, "c", {kHeadBranch, 7})).ok());
  points.set_history(8);
  points.set_history(kForever);
  ASSERT_TRUE(points.remove_snapshot("a").ok());
  EXPECT_EQ(points.size_at({kHeadBranch, 7}), size);
}

TEST(Points, NamesAreChecked) {
  Points points = volume();
  for (const char* name : {"", "1", "a b", "-a", "a/b", "a@b"}) EXPECT_EQ(code_of(points.add_snapshot(snapshot(name, 1))), EINVAL) << name;
  EXPECT_EQ(code_of(points.add_snapshot(snapshot(std::string(65, 'a'), 1))), EINVAL);
  EXPECT_EQ(code_of(points.add_snapshot(snapshot(std::string(64, 'a'), 1))), 0);
  EXPECT_EQ(code_of(points.add_snapshot(snapshot("_.-", 1))), 0);
  EXPECT_EQ(code_of(points.add_snapshot(snapshot("_.-", 2))), EEXIST);
  EXPECT_EQ(code_of(points.add_snapshot(snapshot("x", 2, 5))), ENOENT);
  EXPECT_EQ(code_of(points.remove_snapshot("y")), ENOENT);
  EXPECT_EQ(code_of(points.remove_snapshot("_.-")), 0);
  EXPECT_EQ(code_of(points.add_branch(clone(2, "", {kHeadBranch, 1}))), EINVAL);
  EXPECT_EQ(code_of(points.add_branch(clone(0, "z", {kHeadBranch, 1}))), EINVAL);
  EXPECT_EQ(code_of(points.add_branch(clone(1, "z", {kHeadBranch, 1}))), EEXIST);
  EXPECT_EQ(code_of(points.add_branch(clone(2, "z", {7, 1}))), ENOENT);
  EXPECT_EQ(points.branches().size(), 1u);
  EXPECT_EQ(points.snapshots().size(), 1u);
}

TEST(Points, WhatSomethingBeganFromStays) {
  Points points = volume();
  ASSERT_TRUE(points.add_branch(clone(2, "c", {kHeadBranch, 7})).ok());
  ASSERT_TRUE(points.add_branch(clone(3, "d", {2, 9})).ok());
  ASSERT_TRUE(points.add_snapshot(snapshot("s", 12, 3)).ok());
  EXPECT_EQ(code_of(points.remove_branch(kHeadBranch)), EBUSY);
  EXPECT_EQ(code_of(points.remove_branch(2)), EBUSY);
  EXPECT_EQ(code_of(points.remove_branch(3)), EBUSY);
  EXPECT_EQ(code_of(points.remove_branch(4)), ENOENT);
  ASSERT_TRUE(points.remove_snapshot("s").ok());
  EXPECT_EQ(code_of(points.remove_branch(3)), 0);
  EXPECT_EQ(code_of(points.remove_branch(2)), 0);
}

TEST(Retention, WithoutSnapshotsOnlyTheNewestIsRead) {
  EXPECT_EQ(marks(volume(), {9, 7, 3}), (std::vector<uint8_t>{1, 0, 0}));
  EXPECT_EQ(marks(volume(), {9, 7, 3}, 5), (std::vector<uint8_t>{0, 0, 0})) << "there is no branch 5";
}

TEST(Retention, ASnapshotReadsTheNewestThatIsNotAfterIt) {
  Points points = volume();
  ASSERT_TRUE(points.add_snapshot(snapshot("a", 7)).ok());
  EXPECT_EQ(marks(points, {9, 8, 7, 3}), (std::vector<uint8_t>{1, 0, 1, 0}));
  EXPECT_EQ(marks(points, {9, 8, 6, 3}), (std::vector<uint8_t>{1, 0, 1, 0}));
  EXPECT_EQ(marks(points, {7, 3}), (std::vector<uint8_t>{1, 0}));
  EXPECT_EQ(marks(points, {9, 8}), (std::vector<uint8_t>{1, 0}));
}

TEST(Retention, TheHistoryReadsAllThatWasNewestInIt) {
  Points points = volume();
  points.set_history(7);
  EXPECT_EQ(marks(points, {9, 8, 6, 3}), (std::vector<uint8_t>{1, 1, 1, 0}));
  EXPECT_EQ(marks(points, {9, 7, 6, 3}), (std::vector<uint8_t>{1, 1, 0, 0}));
}

TEST(Retention, AfterARewindTheTargetIsReadAndWhatWasUndoneIsNot) {
  Points points = volume();
  ASSERT_TRUE(points.add_snapshot(snapshot("a", 7)).ok());
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 12, .target = 7}).ok());
  EXPECT_EQ(marks(points, {10, 6, 3}), (std::vector<uint8_t>{0, 1, 0}));
  ASSERT_TRUE(points.remove_snapshot("a").ok());
  EXPECT_EQ(marks(points, {10, 6, 3}), (std::vector<uint8_t>{0, 1, 0})) << "the head goes on from there";
  EXPECT_EQ(marks(points, {13, 10, 6, 3}), (std::vector<uint8_t>{1, 0, 0, 0}));
  ASSERT_TRUE(points.add_snapshot(snapshot("b", 12)).ok());
  EXPECT_EQ(marks(points, {13, 10, 6, 3}), (std::vector<uint8_t>{1, 0, 1, 0}));
}

TEST(Retention, AParentPointIsRead) {
  Points points = volume();
  ASSERT_TRUE(points.add_branch(clone(2, "c", {kHeadBranch, 7})).ok());
  EXPECT_EQ(marks(points, {9, 6, 3}), (std::vector<uint8_t>{1, 1, 0}));
  EXPECT_TRUE(points.retention().has_parent(2));
  EXPECT_FALSE(points.retention().has_parent(kHeadBranch));
}

}  // namespace
}  // namespace netblk::store::volume
