// SPDX-License-Identifier: GPL-2.0-only
#include "io/epoll/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

namespace netblk::io {
namespace {

struct CountedJob : Job {
  CountedJob(std::atomic<int>& total, std::vector<int>* run_order, int own_number)
      : Job([](Job& self) {
          auto& job = static_cast<CountedJob&>(self);
          if (job.order != nullptr) job.order->push_back(job.number);
          ++job.count;
        }),
        count(total), order(run_order), number(own_number) {}
  std::atomic<int>& count;
  std::vector<int>* order;
  int number;
};

TEST(WorkerPool, RunsEveryJobOnceAndTheDestructorFinishesThem) {
  std::atomic<int> count{0};
  std::vector<std::unique_ptr<CountedJob>> jobs;
  {
    WorkerPool pool(4);
    for (int i = 0; i < 10'000; ++i) {
      jobs.push_back(std::make_unique<CountedJob>(count, nullptr, i));
      pool.submit(*jobs.back());
    }
  }
  EXPECT_EQ(count, 10'000);
}

TEST(WorkerPool, OneThreadRunsThemInOrder) {
  std::atomic<int> count{0};
  std::vector<int> order;
  std::vector<std::unique_ptr<CountedJob>> jobs;
  {
    WorkerPool pool(1);
    for (int i = 0; i < 100; ++i) {
      jobs.push_back(std::make_unique<CountedJob>(count, &order, i));
      pool.submit(*jobs.back());
    }
  }
  ASSERT_EQ(order.size(), 100u);
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], static_cast<int>(i));
}

TEST(WorkerPool, WithoutThreadsAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(WorkerPool(0), "a worker pool without threads");
}

}  // namespace
}  // namespace netblk::io
