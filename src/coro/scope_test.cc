// SPDX-License-Identifier: GPL-2.0-only
// DESIGN 3: "Work runs in a joined Scope; there is no detach."
#include "coro/scope.h"

#include <gtest/gtest.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "coro/event.h"

namespace netblk::coro {
namespace {

static_assert(!std::is_copy_constructible_v<Scope> && !std::is_move_constructible_v<Scope>);

class ScopeDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

void run_ready(ReadyQueue& queue) {
  while (!queue.empty()) queue.run_batch();
}

Task<void> wait_and_note(Event& event, std::vector<int>& notes, int number) {
  notes.push_back(number);
  co_await event.wait();
  notes.push_back(-number);
}

Task<void> join_and_note(Scope& scope, std::vector<int>& notes) {
  co_await scope.join();
  notes.push_back(0);
}

TEST(Scope, SpawnRunsUpToTheFirstSuspension) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event;
  std::vector<int> notes;
  Scope scope;
  scope.spawn(wait_and_note(event, notes, 1));
  EXPECT_EQ(notes, (std::vector<int>{1}));
  EXPECT_EQ(scope.running(), 1u);
  event.set();
  run_ready(queue);
  EXPECT_EQ(notes, (std::vector<int>{1, -1}));
  EXPECT_EQ(scope.running(), 0u);
}

TEST(Scope, JoinWaitsForEveryTask) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event first, second;
  std::vector<int> notes;
  Scope scope, outer;
  scope.spawn(wait_and_note(first, notes, 1));
  scope.spawn(wait_and_note(second, notes, 2));
  outer.spawn(join_and_note(scope, notes));
  second.set();
  run_ready(queue);
  EXPECT_EQ(notes, (std::vector<int>{1, 2, -2}));
  first.set();
  run_ready(queue);
  EXPECT_EQ(notes, (std::vector<int>{1, 2, -2, -1, 0}));
}

TEST(Scope, JoinOfNothingReturnsAtOnce) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  std::vector<int> notes;
  Scope scope, outer;
  outer.spawn(join_and_note(scope, notes));
  EXPECT_EQ(notes, (std::vector<int>{0}));
}

Task<void> spawn_another(Scope& scope, Event& first, Event& second, std::vector<int>& notes) {
  co_await first.wait();
  scope.spawn(wait_and_note(second, notes, 2));
}

TEST(Scope, JoinWaitsForWhatItsTasksSpawnMeanwhile) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event first, second;
  std::vector<int> notes;
  Scope scope, outer;
  scope.spawn(spawn_another(scope, first, second, notes));
  outer.spawn(join_and_note(scope, notes));
  first.set();
  run_ready(queue);
  EXPECT_EQ(notes, (std::vector<int>{2}));
  second.set();
  run_ready(queue);
  EXPECT_EQ(notes, (std::vector<int>{2, -2, 0}));
}

Task<void> keep(std::shared_ptr<int> value, Event& event) {
  co_await event.wait();
  ++*value;
}

TEST(Scope, AnEndedTaskIsFreedAtOnceAndNotAtTheJoin) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event, never;
  const auto value = std::make_shared<int>(0);
  std::vector<int> notes;
  Scope scope;
  scope.spawn(keep(value, event));
  scope.spawn(wait_and_note(never, notes, 1));
  event.set();
  run_ready(queue);
  EXPECT_EQ(*value, 1);
  EXPECT_EQ(value.use_count(), 1) << "a long-lived scope must not collect the frames of ended tasks";
  never.set();
  run_ready(queue);
}

TEST_F(ScopeDeath, DestroyedWithTasksInItAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Event event;
        std::vector<int> notes;
        Scope scope;
        scope.spawn(wait_and_note(event, notes, 1));
      },
      "a scope is destroyed with tasks in it");
}

TEST_F(ScopeDeath, JoinedTwiceAtOnceAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Event event;
        std::vector<int> notes;
        Scope scope;
        Scope outer;
        scope.spawn(wait_and_note(event, notes, 1));
        outer.spawn(join_and_note(scope, notes));
        outer.spawn(join_and_note(scope, notes));
      },
      "a scope is joined twice at once");
}

}  // namespace
}  // namespace netblk::coro
