// SPDX-License-Identifier: GPL-2.0-only
#include "coro/ready_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace netblk::coro {
namespace {

static_assert(!std::is_copy_constructible_v<Runnable> && !std::is_move_constructible_v<Runnable>);
static_assert(!std::is_copy_constructible_v<ReadyQueue> && !std::is_move_constructible_v<ReadyQueue>);

class ReadyQueueDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

struct Noted : Runnable {
  Noted(std::vector<int>& notes, int number)
      : Runnable([](Runnable& self) {
          auto& noted = static_cast<Noted&>(self);
          noted.notes_.push_back(noted.number_);
          if (noted.after != nullptr) ReadyQueue::current().push(*noted.after);
        }),
        notes_(notes), number_(number) {}
  Runnable* after = nullptr;

 private:
  std::vector<int>& notes_;
  int number_;
};

void ignore(Runnable&) {}

TEST(ReadyQueue, RunsInOrder) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  std::vector<int> notes;
  Noted one(notes, 1), two(notes, 2), three(notes, 3);
  queue.push(two);
  queue.push(one);
  queue.push(three);
  EXPECT_TRUE(notes.empty()) << "push() ran something";
  EXPECT_EQ(queue.run_batch(), 3u);
  EXPECT_EQ(notes, (std::vector<int>{2, 1, 3}));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.run_batch(), 0u);
}

TEST(ReadyQueue, WhatABatchQueuesWaitsForTheNext) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  std::vector<int> notes;
  Noted one(notes, 1), two(notes, 2), three(notes, 3);
  one.after = &three;
  queue.push(one);
  queue.push(two);
  EXPECT_EQ(queue.run_batch(), 2u);
  EXPECT_EQ(notes, (std::vector<int>{1, 2}));
  EXPECT_EQ(queue.run_batch(), 1u);
  EXPECT_EQ(notes, (std::vector<int>{1, 2, 3}));
}

TEST(ReadyQueue, ANodeMayQueueItselfAgain) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  std::vector<int> notes;
  Noted one(notes, 1);
  one.after = &one;
  queue.push(one);
  EXPECT_EQ(queue.run_batch(), 1u);
  EXPECT_EQ(queue.run_batch(), 1u);
  one.after = nullptr;
  EXPECT_EQ(queue.run_batch(), 1u);
  EXPECT_EQ(notes, (std::vector<int>{1, 1, 1}));
  EXPECT_TRUE(queue.empty());
}

struct SelfDeleting : Runnable {
  explicit SelfDeleting(int& count)
      : Runnable([](Runnable& self) {
          const std::unique_ptr<SelfDeleting> mine(&static_cast<SelfDeleting&>(self));
          ++mine->count_;
        }),
        count_(count) {}

 private:
  int& count_;
};

TEST(ReadyQueue, ANodeMayBeDestroyedByItsOwnRun) {
  ReadyQueue queue;
  const ReadyQueue::Owner owner(queue);
  int count = 0;
  for (int i = 0; i < 3; ++i) queue.push(*new SelfDeleting(count));
  EXPECT_EQ(queue.run_batch(), 3u);
  EXPECT_EQ(count, 3);
}

TEST(ReadyQueue, OwnersNest) {
  ReadyQueue outer, inner;
  const ReadyQueue::Owner owner(outer);
  EXPECT_EQ(&ReadyQueue::current(), &outer);
  {
    const ReadyQueue::Owner nested(inner);
    EXPECT_EQ(&ReadyQueue::current(), &inner);
  }
  EXPECT_EQ(&ReadyQueue::current(), &outer);
}

TEST_F(ReadyQueueDeath, PushFromAnotherThreadAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Runnable node(ignore);
        std::thread([&] { queue.push(node); }).join();
      },
      "a ready queue is used from a thread that does not own it");
}

TEST_F(ReadyQueueDeath, PushFromAThreadWithAnotherQueueAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Runnable node(ignore);
        std::thread([&] {
          ReadyQueue other;
          const ReadyQueue::Owner its_owner(other);
          queue.push(node);
        }).join();
      },
      "a ready queue is used from a thread that does not own it");
}

TEST_F(ReadyQueueDeath, RunByAnotherThreadAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        std::thread([&] { queue.run_batch(); }).join();
      },
      "a ready queue is run by a thread that does not own it");
}

TEST_F(ReadyQueueDeath, CurrentWithoutAQueueAborts) {
  EXPECT_DEATH((void)ReadyQueue::current(), "this thread has no ready queue");
}

TEST_F(ReadyQueueDeath, QueuedTwiceAborts) {
  EXPECT_DEATH(
      {
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        Runnable node(ignore);
        queue.push(node);
        queue.push(node);
      },
      "a runnable is queued twice");
}

TEST_F(ReadyQueueDeath, DestroyedWithWorkInItAborts) {
  EXPECT_DEATH(
      {
        Runnable node(ignore);
        ReadyQueue queue;
        const ReadyQueue::Owner owner(queue);
        queue.push(node);
      },
      "a ready queue is destroyed with work in it");
}

}  // namespace
}  // namespace netblk::coro
