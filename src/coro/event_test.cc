// SPDX-License-Identifier: GPL-2.0-only
// DESIGN 3: resumption goes through the ready queue only: set() never runs the waiter.
#include "coro/event.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include "coro/scope.h"

namespace netblk::coro {
namespace {

static_assert(!std::is_copy_constructible_v<Event> && !std::is_move_constructible_v<Event>);

class EventDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

Task<void> wait_times(Event& event, int times, int& woken) {
  for (int i = 0; i < times; ++i) {
    co_await event.wait();
    ++woken;
  }
}

TEST(Event, SetNeverRunsTheWaiterInside) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event;
  int woken = 0;
  Scope scope;
  scope.spawn(wait_times(event, 1, woken));
  event.set();
  EXPECT_EQ(woken, 0) << "set() resumed the waiter";
  EXPECT_FALSE(queue.empty());
  queue.run_batch();
  EXPECT_EQ(woken, 1);
  while (!queue.empty()) queue.run_batch();
}

TEST(Event, SetBeforeTheWaitLetsItThrough) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event;
  int woken = 0;
  Scope scope;
  event.set();
  EXPECT_TRUE(queue.empty());
  scope.spawn(wait_times(event, 1, woken));
  EXPECT_EQ(woken, 1);
}

TEST(Event, SeveralSetsBeforeAWaitCountAsOne) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event;
  int woken = 0;
  Scope scope;
  event.set();
  event.set();
  scope.spawn(wait_times(event, 2, woken));
  EXPECT_EQ(woken, 1);
  event.set();
  event.set();  // while the resumption is queued
  while (!queue.empty()) queue.run_batch();
  EXPECT_EQ(woken, 2);
}

TEST(Event, ResetsItselfForTheNextWait) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event event;
  int woken = 0;
  Scope scope;
  scope.spawn(wait_times(event, 3, woken));
  for (int i = 1; i <= 3; ++i) {
    event.set();
    while (!queue.empty()) queue.run_batch();
    EXPECT_EQ(woken, i);
  }
}

Task<void> note_after(Event& event, std::vector<int>& order, int number) {
  co_await event.wait();
  order.push_back(number);
}

TEST(Event, WaitersResumeInTheOrderOfTheirSets) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  Event a, b, c;
  std::vector<int> order;
  Scope scope;
  scope.spawn(note_after(a, order, 1));
  scope.spawn(note_after(b, order, 2));
  scope.spawn(note_after(c, order, 3));
  c.set();
  a.set();
  b.set();
  queue.run_batch();
  EXPECT_EQ(order, (std::vector<int>{3, 1, 2}));
  while (!queue.empty()) queue.run_batch();
}

TEST_F(EventDeath, TwoWaitersAbort) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Event event;
        int woken = 0;
        Scope scope;
        scope.spawn(wait_times(event, 1, woken));
        scope.spawn(wait_times(event, 1, woken));
      },
      "two coroutines wait on one event");
}

TEST_F(EventDeath, DestroyedWithAWaiterAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        int woken = 0;
        Scope scope;
        Event event;
        scope.spawn(wait_times(event, 1, woken));
      },
      "an event is destroyed with a coroutine waiting on it");
}

}  // namespace
}  // namespace netblk::coro
