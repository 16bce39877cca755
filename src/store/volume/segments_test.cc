// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/segments.h"

#include <gtest/gtest.h>

namespace netblk::store::volume {
namespace {

constexpr uint32_t kShift = 16;

uint64_t taken(Segments& segments, SegmentState state) {
  const auto segment = segments.begin_allocation();
  segments.end_allocation(segment.value(), true);
  return segments.take(state);
}

TEST(VolumeSegments, AFreeOneIsTakenOnceItsSpaceIsThere) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {}, {SegmentState::kLog, 8192, 5}});
  EXPECT_EQ(segments.free_count(), 1u);
  EXPECT_EQ(segments.ready(), 0u);
  const auto first = segments.begin_allocation();
  const auto second = segments.begin_allocation();
  EXPECT_EQ(first.value(), 1u);
  EXPECT_EQ(second.value(), 3u) << "none is asked for twice";
  segments.end_allocation(second.value(), false);
  EXPECT_EQ(segments.count(), 3u) << "what has no room is no segment";
  segments.end_allocation(first.value(), true);
  EXPECT_EQ(segments.ready(), 1u);
  EXPECT_EQ(segments.take(SegmentState::kLog), 1u);
  EXPECT_EQ(segments.free_count(), 0u);
}

TEST(VolumeSegments, OneThatWasGivenBackIsTakenAgain) {
  Segments segments(kShift, {{SegmentState::kLog, 8192, 5}});
  const uint64_t segment = taken(segments, SegmentState::kMetadata);
  segments.add_live(segments.offset_of(segment), 4096);
  segments.give_back(segment);
  EXPECT_EQ(segments.free_count(), 1u);
  EXPECT_EQ(segments.ready(), 1u);
  EXPECT_EQ(segments.begin_allocation().value(), segment + 1) << "its space is not asked for again";
  EXPECT_EQ(segments.take(SegmentState::kLog), segment);
  EXPECT_EQ(segments.info(segment).live_bytes, 0u);
}

TEST(VolumeSegments, ThereAreNoMoreThanAManifestCanHave) {
  Segments segments(kShift, {});
  for (uint64_t i = 0; i < most_segments(segments.bytes()); ++i) {
    const auto segment = segments.begin_allocation();
    ASSERT_TRUE(segment.has_value());
    segments.end_allocation(*segment, true);
  }
  EXPECT_FALSE(segments.begin_allocation().has_value());
}

TEST(VolumeSegments, PlacesAndSegments) {
  const Segments segments(kShift, {{}, {}});
  EXPECT_EQ(segments.offset_of(0), kSegmentsAt);
  EXPECT_EQ(segments.offset_of(2), kSegmentsAt + 2 * 65536);
  EXPECT_EQ(segments.segment_at(kSegmentsAt + 65535), 0u);
  EXPECT_EQ(segments.segment_at(kSegmentsAt + 65536), 1u);
}

// Empty at checkpoint 2: still there for checkpoint 1, which the other superblock names, until 3 is durable.
TEST(VolumeSegments, AnEmptyOneIsUsedAgainOneCheckpointLate) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}});
  const uint64_t old = taken(segments, SegmentState::kLog), current = taken(segments, SegmentState::kLog);
  segments.add_live(segments.offset_of(old), 4096);
  segments.wrote(old, 1);
  segments.add_live(segments.offset_of(current), 4096);
  segments.wrote(current, 2);
  segments.checkpoint_done(segments.for_manifest({.log = current, .metadata = 0, .copies = std::nullopt}));

  segments.remove_live(segments.offset_of(old), 4096);
  auto table = segments.for_manifest({.log = current, .metadata = 0, .copies = std::nullopt});
  EXPECT_EQ(table[old].state, SegmentState::kLeaving);
  segments.checkpoint_done(table);
  EXPECT_EQ(segments.free_count(), 0u);

  table = segments.for_manifest({.log = current, .metadata = 0, .copies = std::nullopt});
  EXPECT_EQ(table[old].state, SegmentState::kFree);
  EXPECT_EQ(segments.free_count(), 0u) << "not before it is durable";
  segments.checkpoint_done(table);
  EXPECT_EQ(segments.free_count(), 1u);
  EXPECT_EQ(taken(segments, SegmentState::kLog), old);
}

TEST(VolumeSegments, WhereOneCheckpointIsAllThereIsWhatLeavesIsFree) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLeaving, 0, 0}, {SegmentState::kLog, 4096, 7}});
  EXPECT_EQ(segments.begin_allocation().value(), 3u) << "the other superblock may lead to 1";
  segments.only_checkpoint({{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLeaving, 0, 0}, {SegmentState::kLog, 4096, 7}});
  EXPECT_EQ(segments.begin_allocation().value(), 1u);
}

TEST(VolumeSegments, OneThatWasOnlyTakenDoesNotLeave) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLog, 4096, 3}});
  const uint64_t next = taken(segments, SegmentState::kLog);
  const auto table = segments.for_manifest({.log = 1, .metadata = 0, .copies = std::nullopt});
  EXPECT_EQ(table[next].state, SegmentState::kFree) << "its first record is behind the checkpoint";
  segments.checkpoint_done(table);
  segments.add_live(segments.offset_of(next), 4096);
  segments.checkpoint_done(segments.for_manifest({.log = 1, .metadata = 0, .copies = std::nullopt}));
  segments.checkpoint_done(segments.for_manifest({.log = 1, .metadata = 0, .copies = std::nullopt}));
  EXPECT_EQ(segments.info(next).state, SegmentState::kLog);
  EXPECT_EQ(segments.info(next).live_bytes, 4096u);
}

// Recovery: the manifest says that it leaves, and the log has used it since.
TEST(VolumeSegments, OneThatWasUsedSinceDoesNotLeave) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLeaving, 0, 0}});
  segments.found_in_use(1, SegmentState::kLog);
  segments.found_in_use(5, SegmentState::kLog);
  segments.add_live(segments.offset_of(1), 4096);
  segments.only_checkpoint({});
  EXPECT_EQ(segments.info(1).state, SegmentState::kLog);
  EXPECT_EQ(segments.info(1).live_bytes, 4096u);
  EXPECT_EQ(segments.info(5).state, SegmentState::kLog);
  EXPECT_EQ(segments.live_bytes(), 4096u);
}

TEST(VolumeSegments, MoreDeadThanAliveIsDamage) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLog, 4096, 3}});
  segments.remove_live(segments.offset_of(1), 4096);
  EXPECT_FALSE(segments.damaged());
  segments.remove_live(segments.offset_of(1), 4096);
  EXPECT_TRUE(segments.damaged());
  EXPECT_EQ(segments.info(1).live_bytes, 0u);
}

TEST(VolumeSegments, MoreAliveThanThereIsRoomForIsDamage) {
  Segments segments(kShift, {{SegmentState::kLog, 61440, 3}});
  segments.add_live(segments.offset_of(0), 4096);
  EXPECT_FALSE(segments.damaged());
  segments.add_live(segments.offset_of(0), 4096);
  EXPECT_TRUE(segments.damaged());
  EXPECT_EQ(segments.info(0).live_bytes, 65536u);
}

TEST(VolumeSegments, SpaceOfFreeOnesIsGivenBackInRuns) {
  Segments segments(kShift, {{}, {}, {SegmentState::kLog, 4096, 3}, {}, {}});
  EXPECT_EQ(segments.usage().file_segments, 5u);
  EXPECT_EQ(segments.usage().free_with_space, 4u);
  const auto first = segments.begin_return(1, 100);
  EXPECT_EQ(first.first, 1u) << "the lowest stays";
  EXPECT_EQ(first.count, 1u);
  const auto second = segments.begin_return(1, 100);
  EXPECT_EQ(second.first, 3u);
  EXPECT_EQ(second.count, 2u);
  EXPECT_EQ(segments.begin_return(1, 100).count, 0u);
  segments.end_return(second, false);
  const auto part = segments.begin_return(1, 1);
  EXPECT_EQ(part.first, 3u);
  EXPECT_EQ(part.count, 1u) << "no more than is asked for";
  segments.end_return(part, false);
  (void)segments.begin_return(1, 100);
  EXPECT_EQ(segments.begin_allocation().value(), 0u) << "none that is being given back";
  segments.end_return(first, true);
  segments.end_return(second, false);
  EXPECT_EQ(segments.usage().file_segments, 4u);
  EXPECT_FALSE(segments.has_space(1));
  for (uint64_t segment = 3; segment < 5; ++segment) EXPECT_EQ(segments.begin_allocation().value(), segment);
  EXPECT_EQ(segments.begin_allocation().value(), 1u) << "its space can be asked for again";
  segments.end_allocation(1, true);
  EXPECT_TRUE(segments.has_space(1));
}

TEST(VolumeSegments, WhatTheFileHasIsTakenBeforeAHole) {
  Segments segments(kShift, {{}, {}, {SegmentState::kLog, 4096, 3}, {}});
  segments.end_return(segments.begin_return(0, 1), true);
  EXPECT_FALSE(segments.has_space(0));
  EXPECT_EQ(segments.begin_allocation().value(), 1u);
  EXPECT_EQ(segments.begin_allocation(true).value(), 3u);
  EXPECT_FALSE(segments.begin_allocation(true)) << "the rest is holes";
  EXPECT_EQ(segments.begin_allocation().value(), 0u);
  EXPECT_EQ(segments.begin_allocation().value(), 4u);
}

// As a table says that was read, a segment may be a hole: only what was asked for since is known to be there.
TEST(VolumeSegments, SpaceThatWasMadeSureOfStaysUntilItIsGivenBack) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLog, 4096, 3}, {}});
  EXPECT_FALSE(segments.kept_space(2));
  const uint64_t log = taken(segments, SegmentState::kLog);
  EXPECT_EQ(log, 2u);
  EXPECT_TRUE(segments.kept_space(log));
  segments.wrote(log, 4);
  const Segments::Filled filled{.log = 1, .metadata = 0, .copies = std::nullopt};
  segments.checkpoint_done(segments.for_manifest(filled));
  segments.checkpoint_done(segments.for_manifest(filled));
  EXPECT_EQ(segments.info(log).state, SegmentState::kFree);
  EXPECT_TRUE(segments.kept_space(log)) << "it is free, and in the file";
  const auto run = segments.begin_return(0, 1);
  EXPECT_EQ(run.first, log);
  segments.end_return(run, false);
  EXPECT_FALSE(segments.kept_space(log)) << "some of it may be gone";
  EXPECT_TRUE(segments.has_space(log));
  EXPECT_EQ(segments.begin_allocation().value(), log);
  segments.end_allocation(log, false);
  EXPECT_FALSE(segments.has_space(log) || segments.kept_space(log));
}

TEST(VolumeSegments, TheOneThatCopiesGoToStaysOnceItHasAny) {
  Segments segments(kShift, {{SegmentState::kMetadata, 4096, 0}, {SegmentState::kLog, 4096, 3}});
  const uint64_t copies = taken(segments, SegmentState::kCopies);
  EXPECT_EQ(segments.for_manifest({.log = 1, .metadata = 0, .copies = copies})[copies].state, SegmentState::kFree);
  segments.add_live(segments.offset_of(copies), 4096);
  segments.wrote(copies, 2);
  segments.wrote(copies, 1);
  EXPECT_EQ(segments.info(copies).highest_lsn, 2u);
  segments.remove_live(segments.offset_of(copies), 4096);
  EXPECT_EQ(segments.for_manifest({.log = 1, .metadata = 0, .copies = copies})[copies].state, SegmentState::kCopies);
  EXPECT_EQ(segments.for_manifest({.log = 1, .metadata = 0, .copies = std::nullopt})[copies].state, SegmentState::kLeaving);
}

}  // namespace
}  // namespace netblk::store::volume
