// SPDX-License-Identifier: GPL-2.0-only
#include "server/stopwatch.h"

#include <gtest/gtest.h>

#include <functional>

#include "io/epoll/epoll_backend.h"

namespace netblk::server {
namespace {

class ManualClock final : public io::Clock {
 public:
  uint64_t now_ms() const override { return ns / 1'000'000; }
  uint64_t now_ns() const override {
    ++reads;
    return ns;
  }
  uint64_t ns = 1000;
  mutable uint64_t reads = 0;
};

coro::Task<void> call(std::function<void()> what) {
  what();
  co_return;
}

class StopwatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = io::make_epoll_backend(1);
    ASSERT_TRUE(backend.ok());
    backend_ = std::move(backend).value();
    auto loop = backend_->make_loop(clock_);
    ASSERT_TRUE(loop.ok());
    loop_ = std::move(loop).value();
  }
  // In a round of ready work of its own.
  void round(std::function<void()> what) { loop_->run(call(std::move(what))); }

  ManualClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
};

TEST_F(StopwatchTest, BeforeItBeginsNothingIsMeasured) {
  Stopwatch watch(*loop_);
  Stopwatch::Stamp stamp;
  const uint64_t before = clock_.reads;
  watch.go_on();
  watch.submit(stamp, watch.now_ns());
  watch.end(stamp);
  watch.submitted();
  watch.pause();
  watch.reply(NETBLK2_READ, stamp);
  EXPECT_FALSE(watch.has_news());
  EXPECT_FALSE(watch.take().has_value());
  EXPECT_EQ(clock_.reads, before);
}

TEST_F(StopwatchTest, WhatEndsAtOnceSharesItsBurst) {
  Stopwatch watch(*loop_);
  watch.begin();
  std::array<Stopwatch::Stamp, 4> stamps;
  watch.go_on();
  const uint64_t before = clock_.reads;
  for (auto& stamp : stamps) {
    watch.submit(stamp, watch.now_ns());
    clock_.ns += 100;
    watch.end(stamp);
    watch.submitted();
  }
  watch.pause();
  EXPECT_EQ(clock_.reads, before + 1) << "once for all of them";
  for (const auto& stamp : stamps) watch.reply(NETBLK2_WRITE, stamp);
  ASSERT_TRUE(watch.has_news());
  EXPECT_EQ(watch.take(), (proto::Times2{.request_type = NETBLK2_WRITE, .count = 4, .server_ns = 4 * 300, .store_ns = 4 * 100}));
  EXPECT_FALSE(watch.has_news());
}

TEST_F(StopwatchTest, WhatEndsLaterHasItsOwnTime) {
  Stopwatch watch(*loop_);
  watch.begin();
  std::array<Stopwatch::Stamp, 2> stamps;
  watch.go_on();
  const uint64_t came_ns = watch.now_ns();
  watch.pause();
  clock_.ns += 50;  // waits for memory
  watch.go_on();
  for (auto& stamp : stamps) {
    watch.submit(stamp, came_ns);
    watch.submitted();
  }
  watch.pause();
  clock_.ns += 1000;
  round([&] {
    const uint64_t before = clock_.reads;
    for (auto& stamp : stamps) watch.end(stamp);
    EXPECT_EQ(clock_.reads, before + 1) << "once in a round";
  });
  clock_.ns += 7777;  // until the reply goes out: the network's
  watch.reply(NETBLK2_READ, stamps[0]);
  watch.reply(NETBLK2_FLUSH, stamps[1]);
  watch.reply(NETBLK2_GOODBYE, stamps[1]);
  EXPECT_EQ(watch.take(), (proto::Times2{.request_type = NETBLK2_READ, .count = 1, .server_ns = 50, .store_ns = 1000}));
  EXPECT_EQ(watch.take(), (proto::Times2{.request_type = NETBLK2_FLUSH, .count = 1, .server_ns = 50, .store_ns = 1000}));
  EXPECT_FALSE(watch.take().has_value());
}

}  // namespace
}  // namespace netblk::server
