// SPDX-License-Identifier: GPL-2.0-only
#include "store/filter/filter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "store/fake_file_test.h"
#include "store/file_store.h"
#include "store/memory_store.h"

namespace netblk::store {
namespace {

using block::Command;
using block::Device;
using test::run_request;
using test::Slot;

constexpr uint64_t kSize = 1 << 20;
constexpr Command kCommands[] = {Command::kRead, Command::kWrite, Command::kFlush, Command::kTrim,
                                 Command::kWriteZeroes};

coro::Task<void> ask_one(Device& device, Slot& slot, int& error) {
  const int result = co_await run_request(device, slot);
  error = result;
}

class Filter : public testing::Test {
 protected:
  Filter() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    loop_ = backend_->make_loop(clock_).value();
  }
  static std::unique_ptr<Device> memory() { return make_memory_store(kSize).value(); }
  int ask(Device& device, Slot& slot) {
    int error = -1;
    loop_->run(ask_one(device, slot, error));
    return error;
  }
  int simple(Device& device, Command command, uint64_t offset = 0, uint64_t length = 512, int value = 0) {
    Slot slot(*loop_);
    return ask(device, slot.ask(command, offset, length).fill(value));
  }
  std::vector<std::byte> read(Device& device, uint64_t offset, uint64_t length) {
    Slot slot(*loop_);
    EXPECT_EQ(ask(device, slot.ask(Command::kRead, offset, length)), 0);
    return slot.buffer;
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_ = io::make_epoll_backend(1).value();
  std::unique_ptr<io::Loop> loop_;
};
using FilterDeath = Filter;

TEST_F(Filter, ReadonlyRefusesEveryChange) {
  auto below = memory();
  Slot write(*loop_);
  EXPECT_EQ(ask(*below, write.ask(Command::kWrite, 0, 512).fill(5)), 0);
  const auto device = make_readonly_filter(std::move(below));
  EXPECT_TRUE(device->geometry().read_only);
  EXPECT_EQ(device->geometry().size_bytes, kSize);
  for (const Command command : {Command::kWrite, Command::kTrim, Command::kWriteZeroes})
    EXPECT_EQ(simple(*device, command), EROFS) << block::command_text(command);
  EXPECT_EQ(simple(*device, Command::kFlush), 0);
  EXPECT_EQ(read(*device, 0, 512), write.buffer);
}

TEST_F(Filter, DelayDelaysEachCommandAndKeepsData) {
  constexpr uint64_t kDelayMs = 20;
  const auto device = make_delay_filter(memory(), kDelayMs);
  EXPECT_EQ(device->geometry().size_bytes, kSize);
  for (const Command command : kCommands) {
    const uint64_t began = clock_.now_ms();
    EXPECT_EQ(simple(*device, command, 4096, 512, 1), 0) << block::command_text(command);
    EXPECT_GE(clock_.now_ms(), began + kDelayMs) << block::command_text(command);
  }
  Slot write(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 512, 4096).fill(0x3c)), 0);
  EXPECT_EQ(read(*device, 512, 4096), write.buffer);
}

// Measured finer than the loop's clock, which is cut to whole milliseconds.
TEST_F(Filter, ADelayIsNeverShorterThanItsTime) {
  const auto device = make_delay_filter(memory(), 2);
  for (int i = 0; i < 50; ++i) {
    const uint64_t began_ns = io::monotonic_ns();
    EXPECT_EQ(simple(*device, Command::kRead), 0);
    EXPECT_GE(io::monotonic_ns() - began_ns, 2'000'000u);
  }
}

coro::Task<void> submit_many(io::Loop& loop, Device& device, int& errors) {
  constexpr size_t kCount = 50;
  std::vector<std::unique_ptr<Slot>> slots;
  for (size_t i = 0; i < kCount; ++i) {
    slots.push_back(std::make_unique<Slot>(loop));
    device.submit(slots.back()->ask(Command::kWrite, i * 512, 512).fill(static_cast<int>(i) + 1));
  }
  for (const auto& slot : slots) {
    while (!slot->done()) co_await slot->ended.wait();
    errors += slot->error != 0;
  }
}

TEST_F(Filter, ADelayDoesNotPromiseInlineWrites) {
  EXPECT_TRUE(memory()->geometry().writes_inline);
  EXPECT_FALSE(make_delay_filter(memory(), 1)->geometry().writes_inline);
}

TEST_F(Filter, DelayedRequestsWaitSideBySide) {
  const auto device = make_delay_filter(memory(), 5);
  int errors = 0;
  loop_->run(submit_many(*loop_, *device, errors));
  EXPECT_EQ(errors, 0);
  for (size_t i = 0; i < 50; ++i) EXPECT_EQ(std::to_integer<size_t>(read(*device, i * 512, 1)[0]), i + 1);
}

TEST_F(Filter, OnlyReadonlyLetsReadsPassByItself) {
  const auto opened = [](int fd) {
    struct WithDescriptor : Device {
      explicit WithDescriptor(int number) : Device({.size_bytes = kSize}), fd(number) {}
      int read_fd() const override { return fd; }
      void start(block::Request&, block::Completion completion) override { std::move(completion).finish(0); }
      int fd;
    };
    return std::make_unique<WithDescriptor>(fd);
  };
  EXPECT_EQ(memory()->read_fd(), -1);
  EXPECT_EQ(make_readonly_filter(opened(77))->read_fd(), 77);
  EXPECT_EQ(make_delay_filter(opened(77), 1)->read_fd(), -1);
  EXPECT_EQ(make_fault_filter(opened(77), {})->read_fd(), -1);
}

TEST_F(Filter, WhatHasItsSizeForGoodSaysSo) {
  const auto device = make_delay_filter(memory(), 1);
  EXPECT_EQ(device->grow(2 * kSize).error().code, EOPNOTSUPP);
  EXPECT_TRUE(device->grow(kSize).ok());
  EXPECT_EQ(device->size_bytes(), kSize);
}

TEST_F(Filter, ADelayOfNothingChangesNothing) {
  const auto device = make_delay_filter(memory(), 0);
  EXPECT_EQ(simple(*device, Command::kWrite, 0, 512, 9), 0);
  EXPECT_EQ(std::to_integer<int>(read(*device, 0, 1)[0]), 9);
}

TEST_F(Filter, EachCommandHasItsOwnDelay) {
  const auto device = make_delay_filter(memory(), {.read_ms = 0, .write_ms = 30, .flush_ms = 0, .trim_ms = 0});
  Slot slot(*loop_);
  device->submit(slot.ask(Command::kRead, 0, 512));
  EXPECT_TRUE(slot.done()) << "a read does not wait";
  const uint64_t began = clock_.now_ms();
  EXPECT_EQ(simple(*device, Command::kWrite), 0);
  EXPECT_GE(clock_.now_ms(), began + 30);
}

TEST_F(Filter, FaultsEndAfterTheirCount) {
  const auto device = make_fault_filter(memory(), {.reads = true, .statuses = true, .count = 3});
  EXPECT_EQ(simple(*device, Command::kRead), EIO);
  EXPECT_EQ(simple(*device, Command::kBlockStatus), EIO);
  EXPECT_EQ(simple(*device, Command::kWrite), 0);
  EXPECT_EQ(simple(*device, Command::kRead), EIO);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(simple(*device, Command::kRead), 0);
}

TEST_F(Filter, FaultFailsTheChosenCommandsAndNoOthers) {
  struct Row {
    FaultOptions options;
    std::vector<Command> failing;
  };
  const std::vector<Row> rows = {{{.reads = true}, {Command::kRead}},
                                 {{.writes = true}, {Command::kWrite}},
                                 {{.flushes = true}, {Command::kFlush}},
                                 {{.trims = true}, {Command::kTrim, Command::kWriteZeroes}},
                                 {{}, {}}};
  for (const Row& row : rows) {
    const auto device = make_fault_filter(memory(), row.options);
    for (const Command command : kCommands) {
      const bool fails = std::find(row.failing.begin(), row.failing.end(), command) != row.failing.end();
      for (int i = 0; i < 3; ++i) EXPECT_EQ(simple(*device, command), fails ? EIO : 0) << block::command_text(command);
    }
  }
}

TEST_F(Filter, AFailedFlushPoisonsAsARealSyncDoes) {
  // Every second flush by chance: after the first failure no later one may be good.
  const auto device = make_fault_filter(memory(), {.flushes = true, .one_in = 2, .seed = 3, .error = ENOSPC});
  int good = 0;
  while (simple(*device, Command::kFlush) == 0) ++good;
  SCOPED_TRACE(std::to_string(good) + " were good before");
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(simple(*device, Command::kFlush), EIO);
    Slot durable(*loop_);
    EXPECT_EQ(ask(*device, durable.ask(Command::kWrite, 0, 512, true)), EIO);
  }
  EXPECT_EQ(simple(*device, Command::kRead), 0);
}

TEST_F(Filter, AFlushFaultFailsDurableChangesToo) {
  for (const Command command : {Command::kWrite, Command::kTrim, Command::kWriteZeroes}) {
    const auto device = make_fault_filter(memory(), {.flushes = true, .error = ENOSPC});
    EXPECT_EQ(simple(*device, command), 0) << block::command_text(command);
    Slot durable(*loop_);
    EXPECT_EQ(ask(*device, durable.ask(command, 0, 512, true)), ENOSPC) << block::command_text(command);
  }
}

TEST_F(Filter, AFailedWriteDoesNotReachTheDeviceBelow) {
  auto options = FaultOptions{.writes = true, .error = ENOSPC};
  const auto device = make_fault_filter(memory(), options);
  EXPECT_EQ(simple(*device, Command::kWrite, 0, 512, 1), ENOSPC);
  EXPECT_EQ(std::to_integer<int>(read(*device, 0, 1)[0]), 0);
}

std::vector<int> pattern(const std::function<int(Device&)>& one, uint32_t one_in, uint64_t seed) {
  const auto device =
      make_fault_filter(make_memory_store(kSize).value(), {.writes = true, .one_in = one_in, .seed = seed});
  std::vector<int> errors;
  for (int i = 0; i < 1000; ++i) errors.push_back(one(*device));
  return errors;
}

TEST_F(Filter, OneInNIsDrawnFromTheSeedAndRepeats) {
  const auto write = [this](Device& device) { return simple(device, Command::kWrite); };
  const auto first = pattern(write, 10, 7);
  EXPECT_EQ(first, pattern(write, 10, 7)) << "the same seed gives the same faults";
  EXPECT_NE(first, pattern(write, 10, 8));
  const auto failed = std::count(first.begin(), first.end(), EIO);
  // 1000 draws of 1 in 10: six standard deviations to each side, and the seed is fixed.
  EXPECT_GT(failed, 43);
  EXPECT_LT(failed, 157);
}

TEST_F(Filter, FiltersStack) {
  auto device = make_readonly_filter(make_delay_filter(make_fault_filter(memory(), {.reads = true, .one_in = 2}), 1));
  EXPECT_EQ(simple(*device, Command::kWrite), EROFS);
  int failed = 0;
  for (int i = 0; i < 40; ++i) failed += simple(*device, Command::kRead) == EIO;
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 40);
  EXPECT_EQ(device->counters().errors, static_cast<uint64_t>(failed) + 1) << "the device that was asked counts";
  EXPECT_EQ(device->counters().reads, 40u - static_cast<uint64_t>(failed));
}

TEST_F(Filter, StackedOnAFileStoreItsRequestsComeBack) {
  test::FakeDisk disk(kSize);
  auto device = make_delay_filter(
      make_delay_filter(std::make_unique<FileStore>(block::Geometry{.size_bytes = kSize, .can_trim = true},
                                                    std::make_unique<test::FakeFile>(disk), nullptr, 0),
                        1),
      1);
  disk.most_bytes = 100;
  EXPECT_EQ(simple(*device, Command::kWrite, 0, 512, 4), 0);
  EXPECT_EQ(disk.count(test::Call::kWrite), 6);
  EXPECT_EQ(std::to_integer<int>(read(*device, 511, 1)[0]), 4);
}

TEST_F(FilterDeath, AFaultFilterThatCannotFailAborts) {
  EXPECT_DEATH((void)make_fault_filter(memory(), {.one_in = 0}), "cannot fail");
  EXPECT_DEATH((void)make_fault_filter(memory(), {.error = 0}), "cannot fail");
}

}  // namespace
}  // namespace netblk::store
