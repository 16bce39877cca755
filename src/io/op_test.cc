// SPDX-License-Identifier: GPL-2.0-only
// DESIGN 3: "The awaiter in the frame is user_data: it neither moves nor copies."
#include "io/op.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "coro/scope.h"
#include "coro/task.h"

namespace netblk::io {
namespace {

struct CountedOp : Op {
  CountedOp() : Op([](Runnable& self) { ++static_cast<CountedOp&>(self).ends; }) {}
  int ends = 0;
};

using SomeAwait = decltype(await([](Op& op) { return op.finish_now(0); }));

static_assert(!std::is_copy_constructible_v<CountedOp> && !std::is_move_constructible_v<CountedOp>);
static_assert(!std::is_copy_assignable_v<CountedOp> && !std::is_move_assignable_v<CountedOp>);
static_assert(!std::is_copy_constructible_v<SomeAwait> && !std::is_move_constructible_v<SomeAwait>);
static_assert(!std::is_copy_assignable_v<SomeAwait> && !std::is_move_assignable_v<SomeAwait>);

class OpDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST(Op, CompletionQueuesAndDoesNotRun) {
  coro::ReadyQueue queue;
  const coro::ReadyQueue::Owner owner(queue);
  CountedOp op;
  EXPECT_FALSE(op.begin());
  EXPECT_TRUE(op.in_flight);
  op.complete(42);
  EXPECT_EQ(op.ends, 0) << "complete() ran the operation";
  EXPECT_EQ(op.result, 42);
  EXPECT_FALSE(op.in_flight);
  queue.run_batch();
  EXPECT_EQ(op.ends, 1);
}

TEST(Op, MayBeStartedAgainAfterItRan) {
  coro::ReadyQueue queue;
  const coro::ReadyQueue::Owner owner(queue);
  CountedOp op;
  for (int i = 0; i < 3; ++i) {
    op.begin();
    op.complete(i);
    queue.run_batch();
    EXPECT_EQ(op.result, i);
  }
  EXPECT_EQ(op.ends, 3);
}

TEST(Op, FinishNowNeverRuns) {
  coro::ReadyQueue queue;
  const coro::ReadyQueue::Owner owner(queue);
  CountedOp op;
  EXPECT_TRUE(op.finish_now(-5));
  EXPECT_EQ(op.result, -5);
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(op.ends, 0);
}

struct StackRange {
  uintptr_t lowest = UINTPTR_MAX;
  uintptr_t highest = 0;
  [[gnu::noinline]] void look() {
    const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    lowest = std::min(lowest, here);
    highest = std::max(highest, here);
  }
};

coro::Task<void> await_inline(int count, int64_t& sum, StackRange& stack) {
  for (int i = 0; i < count; ++i) {
    const int32_t value = co_await await([i](Op& op) { return op.finish_now(i & 1); });
    stack.look();
    sum += value;
  }
}

TEST(Op, TenMillionInlineOperationsDoNotGrowTheStack) {
  coro::ReadyQueue queue;
  const coro::ReadyQueue::Owner owner(queue);
  int64_t sum = 0;
  StackRange stack;
  coro::Scope scope;
  scope.spawn(await_inline(10'000'000, sum, stack));
  EXPECT_EQ(sum, 5'000'000);
  EXPECT_LT(stack.highest - stack.lowest, 4096u);
  EXPECT_EQ(scope.running(), 0u) << "an inline operation suspended";
}

coro::Task<void> await_queued(Op*& started, int32_t& out) {
  const int32_t value = co_await await([&started](Op& op) {
    started = &op;
    return op.begin();
  });
  out = value;
}

TEST(Op, AwaitResumesWithTheResult) {
  coro::ReadyQueue queue;
  const coro::ReadyQueue::Owner owner(queue);
  Op* started = nullptr;
  int32_t out = 0;
  coro::Scope scope;
  scope.spawn(await_queued(started, out));
  ASSERT_NE(started, nullptr);
  started->complete(-7);
  EXPECT_EQ(out, 0);
  while (!queue.empty()) queue.run_batch();
  EXPECT_EQ(out, -7);
}

TEST_F(OpDeath, DestroyedInFlightAborts) {
  EXPECT_DEATH(
      {
        CountedOp op;
        op.begin();
      },
      "an operation is destroyed while it is in flight");
}

TEST_F(OpDeath, DestroyedBetweenCompletionAndRunAborts) {
  EXPECT_DEATH(
      {
        coro::ReadyQueue queue;
        const coro::ReadyQueue::Owner owner(queue);
        CountedOp op;
        op.begin();
        op.complete(0);
      },
      "an operation is destroyed while it is in flight");
}

TEST_F(OpDeath, CompletedTwiceAborts) {
  EXPECT_DEATH(
      {
        coro::ReadyQueue queue;
        const coro::ReadyQueue::Owner owner(queue);
        CountedOp op;
        op.begin();
        op.complete(0);
        op.complete(0);
      },
      "an operation completes twice");
}

TEST_F(OpDeath, CompletedBeforeItsStartAborts) {
  EXPECT_DEATH(
      {
        coro::ReadyQueue queue;
        const coro::ReadyQueue::Owner owner(queue);
        CountedOp op;
        op.complete(0);
      },
      "an operation completes twice");
}

TEST_F(OpDeath, StartedInFlightAborts) {
  EXPECT_DEATH(
      {
        CountedOp op;
        op.begin();
        op.begin();
      },
      "an operation is started while it is in flight");
  EXPECT_DEATH(
      {
        CountedOp op;
        op.begin();
        op.finish_now(0);
      },
      "an operation is started while it is in flight");
}

}  // namespace
}  // namespace netblk::io
