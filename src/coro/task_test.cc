// SPDX-License-Identifier: GPL-2.0-only
// The rules of DESIGN 3 for Task: lazy, move-only, no symmetric transfer, destroyed and awaited once.
#include "coro/task.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "coro/event.h"
#include "coro/scope.h"

namespace netblk::coro {
namespace {

static_assert(!std::is_copy_constructible_v<Task<void>> && !std::is_copy_assignable_v<Task<void>>);
static_assert(std::is_nothrow_move_constructible_v<Task<void>>);
static_assert(!std::is_copy_constructible_v<Task<int>> && std::is_nothrow_move_constructible_v<Task<int>>);
static_assert(!std::is_move_assignable_v<Task<void>>, "assigning over a running task would drop its frame");

void run(Task<void> task) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Scope scope;
  scope.spawn(std::move(task));
  while (!queue.empty()) queue.run_batch();
}

class TaskDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

Task<void> note(std::vector<std::string>& notes, std::string text) {
  notes.push_back(std::move(text));
  co_return;
}

Task<void> lazily(std::vector<std::string>& notes) {
  Task<void> child = note(notes, "child");
  notes.push_back("made");
  co_await std::move(child);
  notes.push_back("awaited");
}

TEST(Task, IsLazy) {
  std::vector<std::string> notes;
  {
    const Task<void> never = note(notes, "never");
    EXPECT_TRUE(notes.empty());
  }
  EXPECT_TRUE(notes.empty()) << "a task that nobody awaited ran";
  run(lazily(notes));
  EXPECT_EQ(notes, (std::vector<std::string>{"made", "child", "awaited"}));
}

Task<void> hold(std::shared_ptr<int> held) {
  ++*held;
  co_return;
}

TEST(Task, NeverStartedReleasesItsArguments) {
  const auto held = std::make_shared<int>(0);
  { const Task<void> never = hold(held); }
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(*held, 0);
}

TEST(Task, EndedReleasesItsArguments) {
  const auto held = std::make_shared<int>(0);
  run(hold(held));
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(*held, 1);
}

TEST(Task, MovedFromOwnsNothing) {
  const auto held = std::make_shared<int>(0);
  Task<void> first = hold(held);
  Task<void> second = std::move(first);
  EXPECT_EQ(held.use_count(), 2);
  run(std::move(second));
  EXPECT_EQ(*held, 1);
}

Task<std::unique_ptr<int>> make_box(int value) { co_return std::make_unique<int>(value); }

Task<void> take_box(int& out) {
  const std::unique_ptr<int> box = co_await make_box(5);
  out = *box;
}

TEST(Task, YieldsAValueThatOnlyMoves) {
  int out = 0;
  run(take_box(out));
  EXPECT_EQ(out, 5);
}

// Where the machine's stack is now. Frames of coroutines are on the heap and would not show it.
[[gnu::noinline]] uintptr_t stack_pointer() { return reinterpret_cast<uintptr_t>(__builtin_frame_address(0)); }

struct StackRange {
  uintptr_t lowest = UINTPTR_MAX;
  uintptr_t highest = 0;
  void look() {
    const uintptr_t here = stack_pointer();
    lowest = std::min(lowest, here);
    highest = std::max(highest, here);
  }
  uintptr_t bytes() const { return highest - lowest; }
};

Task<uint64_t> inline_leaf(uint64_t value, StackRange& stack) {
  stack.look();
  co_return value;
}

Task<void> inline_loop(uint64_t count, uint64_t& sum, StackRange& stack) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t value = co_await inline_leaf(i, stack);
    sum += value;
  }
}

TEST(Task, TenMillionInlineCompletionsDoNotGrowTheStack) {
  constexpr uint64_t kCount = 10'000'000;
  uint64_t sum = 0;
  StackRange stack;
  run(inline_loop(kCount, sum, stack));
  EXPECT_EQ(sum, kCount * (kCount - 1) / 2);
  EXPECT_LT(stack.bytes(), 4096u);
}

// Suspends and is made ready again by itself, so that every completion goes through the queue.
struct Yield {
  detail::Resumption node;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    node.handle = waiter;
    ReadyQueue::current().push(node);
  }
  void await_resume() const {}
};

Task<uint64_t> queued_leaf(uint64_t value, StackRange& stack) {
  co_await Yield{};
  stack.look();
  co_return value;
}

Task<void> queued_loop(uint64_t count, uint64_t& sum, StackRange& stack) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t value = co_await queued_leaf(i, stack);
    stack.look();
    sum += value;
  }
}

TEST(Task, AMillionQueuedCompletionsDoNotGrowTheStack) {
  constexpr uint64_t kCount = 1'000'000;
  uint64_t sum = 0;
  StackRange stack;
  run(queued_loop(kCount, sum, stack));
  EXPECT_EQ(sum, kCount * (kCount - 1) / 2);
  EXPECT_LT(stack.bytes(), 4096u);
}

Task<void> descend(int depth, StackRange& stack) {
  if (depth == 0) {
    co_await Yield{};
  } else {
    co_await descend(depth - 1, stack);
  }
  stack.look();  // on the way up, each parent resumed by the queue and not by its child
}

TEST(Task, ParentsOfASuspendedChildResumeFromTheQueue) {
  StackRange stack;
  run(descend(200, stack));
  EXPECT_LT(stack.bytes(), 4096u);
}

// No symmetric transfer: what suspends returns to its caller and never hands over to another coroutine.
static_assert(std::is_void_v<decltype(std::declval<detail::PromiseBase::FinalAwaiter>().await_suspend(
    std::declval<std::coroutine_handle<detail::Promise<void>>>()))>);
static_assert(std::is_void_v<decltype(std::declval<Task<void>>().operator co_await().await_suspend(
    std::declval<std::coroutine_handle<>>()))>);

Task<void> wait_for(Event& event) { co_await event.wait(); }

TEST_F(TaskDeath, DestroyedWhileItRunsAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Event event;
        Task<void> task = wait_for(event);
        auto awaiter = std::move(task).operator co_await();
        (void)awaiter.await_ready();
        const Task<void> last_owner = std::move(task);
      },
      "a task is destroyed while it runs");
}

Task<void> await_twice(std::vector<std::string>& notes) {
  Task<void> child = note(notes, "once");
  co_await std::move(child);
  co_await std::move(child);  // NOLINT: the forbidden act
}

TEST_F(TaskDeath, AwaitedTwiceAborts) {
  EXPECT_DEATH(
      {
        std::vector<std::string> notes;
        run(await_twice(notes));
      },
      "a task is awaited twice");
}

Task<void> await_moved_from(std::vector<std::string>& notes) {
  Task<void> child = note(notes, "once");
  const Task<void> other = std::move(child);
  co_await std::move(child);  // NOLINT: the forbidden act
}

TEST_F(TaskDeath, AwaitedAfterItWasMovedAborts) {
  EXPECT_DEATH(
      {
        std::vector<std::string> notes;
        run(await_moved_from(notes));
      },
      "a task is awaited twice");
}

Task<void> leak_an_exception() {
  throw 1;  // NOLINT: the forbidden act
  co_return;
}

TEST_F(TaskDeath, AnExceptionAtItsEdgeTerminates) { EXPECT_DEATH(run(leak_an_exception()), "terminate called"); }

}  // namespace
}  // namespace netblk::coro
