// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/contents.h"

#include <gtest/gtest.h>

#include <set>

namespace netblk::store::volume {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

Id volume_id() {
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(i + 1);
  return id;
}

BranchInfo branch(uint32_t number, std::string name) { return {.number = number, .name = std::move(name), .size_bytes = 4096}; }

TEST(ContentsTest, EachBranchEachRewindAndEachPointIsAnother) {
  const Id volume = volume_id();
  BranchInfo head = branch(kHeadBranch, "");
  EXPECT_EQ(contents_of(volume, head), volume);
  std::set<Id> seen{volume};
  const auto is_new = [&](const Id& id) { return !id.is_zero() && seen.insert(id).second; };
  for (uint32_t number = kHeadBranch + 1; number < 50; ++number) EXPECT_TRUE(is_new(contents_of(volume, branch(number, "c"))));
  for (uint64_t record : {2u, 3u, 200u}) {
    head.rewinds.push_back({.record = record, .target = 1});
    EXPECT_TRUE(is_new(contents_of(volume, head))) << "a rewind leads back, and is another state of the disk all the same";
    EXPECT_TRUE(is_new(contents_of(volume, Point{.branch = kHeadBranch, .lsn = record})));
    EXPECT_TRUE(is_new(contents_of(volume, Point{.branch = 2, .lsn = record})));
  }
}

TEST(ContentsTest, OwnersAreOfTheirContents) {
  const Id volume = volume_id();
  Points points({branch(kHeadBranch, ""), branch(2, "c")}, {});
  const Id head = contents_of(volume, *points.find_branch(kHeadBranch)), clone = contents_of(volume, *points.find_branch("c"));
  std::vector<std::byte> records;
  EXPECT_TRUE(owners_of(records, head).empty());
  records = with_owners(records, owners_change(head, bytes_of("one")), volume, points);
  records = with_owners(records, owners_change(clone, bytes_of("another")), volume, points);
  records = with_owners(records, owners_change(head, bytes_of("two")), volume, points);
  EXPECT_EQ(owners_of(records, head), bytes_of("two"));
  EXPECT_EQ(owners_of(records, clone), bytes_of("another"));
  // Who owned what it was before a rewind does not own what it is.
  ASSERT_TRUE(points.add_snapshot({"a", {kHeadBranch, 5}, 0, 4096}));
  ASSERT_TRUE(points.rewind(kHeadBranch, {.record = 9, .target = 5}));
  EXPECT_TRUE(owners_of(records, contents_of(volume, *points.find_branch(kHeadBranch))).empty());
  records = with_owners(records, owners_change(clone, bytes_of("third")), volume, points);
  EXPECT_TRUE(owners_of(records, head).empty()) << "and is not kept";
  EXPECT_EQ(owners_of(records, clone), bytes_of("third"));
  ASSERT_TRUE(points.remove_branch(2));
  EXPECT_TRUE(with_owners(records, owners_change(clone, bytes_of("late")), volume, points).empty()) << "of a branch that is gone";
}

TEST(ContentsTest, WhatMakesNoSenseOwnsNothing) {
  const Id volume = volume_id();
  const Points points({branch(kHeadBranch, "")}, {});
  const std::vector<std::byte> whole = with_owners({}, owners_change(volume, bytes_of("one")), volume, points);
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_TRUE(owners_of(std::span(whole).first(length), volume).empty()) << length;
  for (size_t length = 0; length < sizeof Id::bytes; ++length)
    EXPECT_EQ(with_owners(whole, std::span(whole).first(length), volume, points), whole) << "a record that is too short";
}

}  // namespace
}  // namespace netblk::store::volume
