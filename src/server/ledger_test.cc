// SPDX-License-Identifier: GPL-2.0-only
#include "server/ledger.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace netblk::server {
namespace {

using Verdict = Ledger::Verdict;

TEST(Ledger, ARequestThatRanIsNotRunAgain) {
  Ledger ledger(4);
  EXPECT_EQ(ledger.take(2, 100, false).verdict, Verdict::kNew);
  ledger.finish(2, 28);
  const Ledger::Taken again = ledger.take(2, 100, false);
  EXPECT_EQ(again.verdict, Verdict::kRepeated);
  EXPECT_EQ(again.status, 28u);
}

TEST(Ledger, ARepeatedReadRunsAgain) {
  Ledger ledger(4);
  EXPECT_EQ(ledger.take(0, 1, true).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  EXPECT_EQ(ledger.take(0, 1, true).verdict, Verdict::kNew);
  ledger.finish(0, 5);
  EXPECT_EQ(ledger.take(0, 2, true).verdict, Verdict::kNew);
}

TEST(Ledger, AnythingButTheSameOrTheNextIsOutOfOrder) {
  Ledger ledger(1);
  EXPECT_EQ(ledger.take(0, 7, false).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  for (const uint32_t sequence : {0u, 6u, 9u, 0xffffffffu})
    EXPECT_EQ(ledger.take(0, sequence, false).verdict, Verdict::kOutOfOrder) << sequence;
  EXPECT_EQ(ledger.take(0, 8, false).verdict, Verdict::kNew);
}

// tests/sim found it: seed 24743.
TEST(Ledger, ADelayedReadOfAnAdoptedSessionDoesNotFixTheOrder) {
  Ledger ledger(1, true);
  for (const uint32_t sequence : {7u, 100u}) {
    const Ledger::Taken read = ledger.take(0, sequence, true);
    ASSERT_EQ(read.verdict, Verdict::kNew) << sequence;
    ASSERT_TRUE(ledger.leaves_no_trace(read.before));
    EXPECT_EQ(ledger.take(0, sequence + 1, false).verdict, Verdict::kRunning) << "while it runs the slot is in use";
    ledger.restore(0, read.before);
  }
  EXPECT_EQ(ledger.take(0, 101, false).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  // From the first change on the order is kept, by READs too.
  EXPECT_EQ(ledger.take(0, 7, true).verdict, Verdict::kOutOfOrder);
  const Ledger::Taken next = ledger.take(0, 102, true);
  EXPECT_EQ(next.verdict, Verdict::kNew);
  EXPECT_FALSE(ledger.leaves_no_trace(next.before));
}

TEST(Ledger, ReadsOfASessionThatBeganHereFixTheOrder) {
  Ledger ledger(1);
  const Ledger::Taken read = ledger.take(0, 7, true);
  EXPECT_FALSE(ledger.leaves_no_trace(read.before));
  ledger.finish(0, 0);
  EXPECT_EQ(ledger.take(0, 9, true).verdict, Verdict::kOutOfOrder);
}

TEST(Ledger, SequencesWrapAround) {
  Ledger ledger(1);
  EXPECT_EQ(ledger.take(0, 0xffffffff, false).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  EXPECT_EQ(ledger.take(0, 0, false).verdict, Verdict::kNew);
}

TEST(Ledger, OneRequestAtATimeInASlot) {
  Ledger ledger(1);
  EXPECT_EQ(ledger.take(0, 1, false).verdict, Verdict::kNew);
  EXPECT_EQ(ledger.take(0, 1, false).verdict, Verdict::kRunning);
  EXPECT_EQ(ledger.take(0, 2, false).verdict, Verdict::kRunning);
  EXPECT_EQ(ledger.take(1, 1, false).verdict, Verdict::kNoSuchSlot);
}

TEST(Ledger, WhatNeverReachedTheStoreNeverCame) {
  Ledger ledger(1);
  const Ledger::Taken first = ledger.take(0, 5, false);
  ledger.restore(0, first.before);
  EXPECT_EQ(ledger.take(0, 9, false).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  const Ledger::Taken second = ledger.take(0, 10, false);
  ledger.restore(0, second.before);
  EXPECT_EQ(ledger.take(0, 10, false).verdict, Verdict::kNew);
  ledger.finish(0, 0);
  EXPECT_EQ(ledger.take(0, 9, false).verdict, Verdict::kOutOfOrder);
}

TEST(Ledger, TwoThreadsNeverBothRunOneRequest) {
  constexpr uint32_t kRounds = 20'000;
  Ledger ledger(1);
  ledger.share();
  std::atomic<uint32_t> runs{0};
  const auto client = [&] {
    for (uint32_t sequence = 1; sequence <= kRounds; ++sequence)
      if (ledger.take(0, sequence, false).verdict == Verdict::kNew) {
        runs.fetch_add(1);
        ledger.finish(0, 0);
      }
  };
  std::thread other(client);
  client();
  other.join();
  EXPECT_LE(runs.load(), kRounds);
  EXPECT_GE(runs.load(), 1u);
}

}  // namespace
}  // namespace netblk::server
