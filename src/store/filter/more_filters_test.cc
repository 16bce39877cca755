// SPDX-License-Identifier: GPL-2.0-only
// Windows, limits and traces.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <random>

#include "store/fake_file_test.h"
#include "store/filter/filter.h"
#include "store/filter/trace_line.h"
#include "store/memory_store.h"

namespace netblk::store {
namespace {

using block::Command;
using block::Device;
using test::run_request;
using test::Slot;

constexpr uint64_t kSize = 1 << 20;

coro::Task<void> ask_one(Device& device, Slot& slot, int& error) {
  const int result = co_await run_request(device, slot);
  error = result;
}

class FilterBase : public testing::Test {
 protected:
  FilterBase() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    loop_ = backend_->make_loop(clock_).value();
  }
  static std::unique_ptr<Device> memory(uint64_t size = kSize) { return make_memory_store(size).value(); }
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

// --- Windows --------------------------------------------------------------------------------------------------------

using WindowFilter = FilterBase;

TEST_F(WindowFilter, ShowsItsPartAndNothingElse) {
  auto whole = memory();
  Device& below = *whole;
  for (uint64_t at = 0; at < kSize; at += 4096)
    EXPECT_EQ(simple(below, Command::kWrite, at, 4096, static_cast<int>(at / 4096 + 1)), 0);
  const auto device = make_window_filter(std::move(whole), 8192, 16384);
  EXPECT_EQ(device->size_bytes(), 16384u);
  EXPECT_EQ(std::to_integer<int>(read(*device, 0, 1)[0]), 3);
  EXPECT_EQ(std::to_integer<int>(read(*device, 16383, 1)[0]), 6);
  Slot slot(*loop_);
  EXPECT_EQ(ask(*device, slot.ask(Command::kWrite, 4095, 4098).fill(0x77)), 0);
  EXPECT_EQ(slot.offset, 4095u) << "the caller's request is the caller's";
  EXPECT_EQ(std::to_integer<int>(read(below, 8192 + 4094, 1)[0]), 3);
  EXPECT_EQ(std::to_integer<int>(read(below, 8192 + 4095, 1)[0]), 0x77);
  EXPECT_EQ(std::to_integer<int>(read(below, 8192 + 8192, 1)[0]), 0x77);
  EXPECT_EQ(std::to_integer<int>(read(below, 8192 + 8193, 1)[0]), 5);
  EXPECT_EQ(simple(*device, Command::kTrim, 0, 16384), 0);
  EXPECT_EQ(std::to_integer<int>(read(below, 8191, 1)[0]), 2);
  EXPECT_EQ(std::to_integer<int>(read(below, 8192 + 16384, 1)[0]), 7);
  EXPECT_EQ(ask(*device, slot.ask(Command::kBlockStatus, 4096, 8192)), 0);
  EXPECT_EQ(slot.found, (std::vector<block::Extent>{{8192, true, true}}));
}

TEST_F(WindowFilter, RefusesWhatIsBeyondItsEnd) {
  const auto device = make_window_filter(memory(), 8192, 16384);
  for (const Command command : {Command::kRead, Command::kWrite, Command::kTrim, Command::kWriteZeroes, Command::kCache,
                                Command::kBlockStatus}) {
    EXPECT_EQ(simple(*device, command, 16384, 512), EINVAL) << block::command_text(command);
    EXPECT_EQ(simple(*device, command, 16383, 2), EINVAL) << block::command_text(command);
    EXPECT_EQ(simple(*device, command, UINT64_MAX - 8191, 512), EINVAL) << block::command_text(command);
  }
}

TEST_F(WindowFilter, WithoutASizeItIsTheRest) {
  EXPECT_EQ(make_window_filter(memory(), 512, 0)->size_bytes(), kSize - 512);
}

TEST_F(WindowFilter, OneInAnotherAddsUp) {
  auto whole = memory();
  Device& below = *whole;
  EXPECT_EQ(simple(below, Command::kWrite, 12288, 512, 9), 0);
  const auto device = make_window_filter(make_window_filter(std::move(whole), 8192, 0), 4096, 512);
  EXPECT_EQ(std::to_integer<int>(read(*device, 0, 1)[0]), 9);
}

TEST_F(WindowFilter, IsAnotherDiskThanTheWhole) {
  auto whole = memory();
  const block::Generation of_all = whole->generation();
  const auto device = make_window_filter(std::move(whole), 4096, 4096);
  EXPECT_NE(device->generation().uuid, of_all.uuid);
  EXPECT_EQ(device->generation().counter, of_all.counter);
  EXPECT_EQ(device->generation(), device->generation());
  EXPECT_EQ(device->grow(8192).error().code, EOPNOTSUPP);
}

TEST_F(WindowFilter, BeyondItsDeviceAborts) {
  EXPECT_DEATH(make_window_filter(memory(), kSize, 0), "a window beyond its device");
  EXPECT_DEATH(make_window_filter(memory(), 512, kSize), "a window beyond its device");
}

// --- Limits ---------------------------------------------------------------------------------------------------------

using LimitFilter = FilterBase;

coro::Task<void> submit_all(Device& device, std::vector<std::unique_ptr<Slot>>& slots, int& errors) {
  for (const auto& slot : slots) device.submit(*slot);
  for (const auto& slot : slots) {
    while (!slot->done()) co_await slot->ended.wait();
    errors += slot->error != 0;
  }
}

uint64_t run_ms(const io::Clock& clock, io::Loop& loop, Device& device, std::vector<std::unique_ptr<Slot>>& slots) {
  const uint64_t began = clock.now_ms();
  int errors = 0;
  loop.run(submit_all(device, slots, errors));
  EXPECT_EQ(errors, 0);
  return clock.now_ms() - began;
}

// Only the lower bound is the filter's: the machine may be slow.
TEST_F(LimitFilter, BytesPassAtTheirRate) {
  const auto device = make_limit_filter(memory(), {.bytes_per_second = 1 << 20, .burst_bytes = 64 << 10});
  EXPECT_FALSE(device->geometry().writes_inline);
  std::vector<std::unique_ptr<Slot>> slots;
  for (uint64_t i = 0; i < 128; ++i) {  // 512 KiB
    slots.push_back(std::make_unique<Slot>(*loop_));
    slots.back()->ask(i % 2 ? Command::kRead : Command::kWrite, i * 4096, 4096).fill(1);
  }
  // All but the burst, and the last one, which is paid for after.
  EXPECT_GE(run_ms(clock_, *loop_, *device, slots), (512 - 64 - 4) * 1000u / 1024 - 5);
}

TEST_F(LimitFilter, RequestsPassAtTheirRate) {
  const auto device = make_limit_filter(memory(), {.requests_per_second = 100, .burst_requests = 10});
  std::vector<std::unique_ptr<Slot>> slots;
  for (uint64_t i = 0; i < 40; ++i) {
    slots.push_back(std::make_unique<Slot>(*loop_));
    slots.back()->ask(i % 2 ? Command::kFlush : Command::kRead, 0, 512);
  }
  EXPECT_GE(run_ms(clock_, *loop_, *device, slots), 285u);
}

TEST_F(LimitFilter, WhatMovesNoDataCostsNoBytes) {
  const auto device = make_limit_filter(memory(), {.bytes_per_second = 1, .burst_bytes = 1});
  EXPECT_EQ(simple(*device, Command::kTrim, 0, kSize), 0);
  EXPECT_EQ(simple(*device, Command::kWriteZeroes, 0, kSize), 0);
  EXPECT_EQ(simple(*device, Command::kFlush), 0);
}

TEST_F(LimitFilter, ALargeRequestGoesAndIsPaidForAfter) {
  const auto device = make_limit_filter(memory(), {.bytes_per_second = 1 << 20, .burst_bytes = 512});
  EXPECT_EQ(simple(*device, Command::kRead, 0, 256 << 10), 0);
  std::vector<std::unique_ptr<Slot>> slots;
  slots.push_back(std::make_unique<Slot>(*loop_));
  slots.back()->ask(Command::kRead, 0, 512);
  const uint64_t waited = run_ms(clock_, *loop_, *device, slots);
  EXPECT_GE(waited, 200u);
}

TEST_F(LimitFilter, ConnectionsTakeTurns) {
  const auto device = make_limit_filter(memory(), {.requests_per_second = 400, .burst_requests = 1});
  const std::atomic<bool> greedy{false}, modest{false};
  std::vector<int> order;
  std::vector<std::unique_ptr<Slot>> slots;
  for (int i = 0; i < 44; ++i) {
    slots.push_back(std::make_unique<Slot>(*loop_));
    Slot& slot = *slots.back();
    slot.ask(Command::kRead, 0, 512);
    slot.abandoned = i < 40 ? &greedy : &modest;
    slot.order = &order;
    slot.number = i;
  }
  run_ms(clock_, *loop_, *device, slots);
  // The four of the second connection came last, and go in turn with the first one's.
  for (int i = 40; i < 44; ++i) {
    const auto place = std::find(order.begin(), order.end(), i) - order.begin();
    EXPECT_LE(place, 2 * (i - 40) + 4) << i;
  }
  for (int i = 1; i < 40; ++i)
    EXPECT_LT(std::find(order.begin(), order.end(), i - 1), std::find(order.begin(), order.end(), i)) << "in order";
}

TEST_F(LimitFilter, WhatNobodyWaitsForIsLetGo) {
  const auto device = make_limit_filter(memory(), {.requests_per_second = 1, .burst_requests = 1});
  EXPECT_EQ(simple(*device, Command::kRead), 0);
  std::atomic<bool> gone{true};
  Slot slot(*loop_);
  slot.abandoned = &gone;
  // Ten thousand seconds' worth of others would be before it.
  std::vector<std::unique_ptr<Slot>> slots;
  for (int i = 0; i < 10'000; ++i) {
    slots.push_back(std::make_unique<Slot>(*loop_));
    slots.back()->ask(Command::kWrite, 0, 512).abandoned = &gone;
  }
  int errors = 0;
  loop_->run(submit_all(*device, slots, errors));
  EXPECT_GE(errors, 9'990);
  EXPECT_EQ(slots.back()->error, ECANCELED);
}

// --- Traces ---------------------------------------------------------------------------------------------------------

class TraceFilter : public FilterBase {
 protected:
  TraceFilter() {
    const int fd = ::mkstemp(path_);
    if (fd >= 0) ::close(fd);
  }
  ~TraceFilter() override { ::unlink(path_); }
  std::vector<TraceLine> lines() {
    std::ifstream file(path_);
    std::vector<TraceLine> found;
    for (std::string text; std::getline(file, text);) {
      auto line = parse_trace(text);
      EXPECT_TRUE(line.ok()) << text;
      if (line) found.push_back(line.value());
    }
    return found;
  }
  char path_[32] = "/tmp/netblk-trace-XXXXXX";
};

TEST_F(TraceFilter, EachRequestIsALineWhenItHasEnded) {
  const auto device = make_trace_filter(make_fault_filter(memory(), {.trims = true}), path_, "my disk").value();
  const std::atomic<bool> first{false}, second{false};
  const auto run = [&](Command command, uint64_t offset, uint64_t length, const std::atomic<bool>& who, bool fua = false) {
    Slot slot(*loop_);
    slot.ask(command, offset, length, fua).abandoned = &who;
    (void)ask(*device, slot);
    return lines().back();
  };
  TraceLine line = run(Command::kWrite, 4096, 512, first, true);
  EXPECT_EQ(line.command, Command::kWrite);
  EXPECT_EQ(line.offset, 4096u);
  EXPECT_EQ(line.length, 512u);
  EXPECT_TRUE(line.fua);
  EXPECT_EQ(line.status, "ok");
  EXPECT_EQ(line.connection, 1u);
  EXPECT_EQ(line.disk, "my disk");
  EXPECT_GT(line.time_us, uint64_t{1'600'000'000} * 1'000'000);
  EXPECT_EQ(run(Command::kRead, 0, 4096, second).connection, 2u);
  EXPECT_EQ(run(Command::kFlush, 0, 0, first).connection, 1u);
  EXPECT_EQ(run(Command::kTrim, 0, 4096, first).status, "EIO");
  EXPECT_EQ(run(Command::kBlockStatus, 0, 4096, first).command, Command::kBlockStatus);
  EXPECT_EQ(lines().size(), 5u);
}

TEST_F(TraceFilter, TheDataAndTheAnswerAreTheDevices) {
  const auto device = make_trace_filter(memory(), path_, "").value();
  Slot write(*loop_), status(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 1000, 5000).fill(7)), 0);
  EXPECT_EQ(read(*device, 1000, 5000), write.buffer);
  EXPECT_EQ(ask(*device, status.ask(Command::kBlockStatus, 512 << 10, 4096)), 0);
  EXPECT_EQ(status.found, (std::vector<block::Extent>{{4096, true, true}}));
  EXPECT_EQ(lines()[0].disk, "");
}

TEST_F(TraceFilter, AFileThatCannotBeWrittenIsRefusedInWords) {
  const auto made = make_trace_filter(memory(), "/nowhere/trace", "");
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.error().message.find("/nowhere/trace"), std::string::npos);
}

TEST(TraceLineText, IsReadBackAsItWasWritten) {
  TraceLine line{.time_us = 1'700'000'000'000'042, .connection = 7, .disk = "a b%\n-", .command = Command::kWriteZeroes,
                 .offset = UINT64_MAX, .length = 1, .fua = true, .keep_allocated = true, .fast_zero = true,
                 .status = "EIO", .latency_us = 12};
  EXPECT_EQ(trace_text(line), "1700000000.000042 7 a%20b%25%0A- write-zeroes 18446744073709551615 1 fua,no-hole,fast-zero EIO 12");
  EXPECT_EQ(parse_trace(trace_text(line)).value(), line);
  for (const char* name : {"", "-", "disk"}) {
    line.disk = name;
    EXPECT_EQ(parse_trace(trace_text(line)).value(), line);
  }
}

TEST(TraceLineText, RefusesWhatIsNoLine) {
  const std::string good = "1700000000.000042 7 - read 0 512 - ok 12";
  ASSERT_TRUE(parse_trace(good).ok());
  for (const char* bad : {"", "x", "1700000000 7 - read 0 512 - ok 12", "1700000000.0001 7 - read 0 512 - ok 12",
                          "1700000000.000042 7 - reed 0 512 - ok 12", "1700000000.000042 7 - read -1 512 - ok 12",
                          "1700000000.000042 7 - read 0 512 fua; ok 12", "1700000000.000042 7 - read 0 512 - ok",
                          "1700000000.000042 7 - read 0 512 - ok 12 13", "1700000000.000042 7 a%2 read 0 512 - ok 12",
                          "1700000000.000042 7 - read 0 99999999999999999999 - ok 12"})
    EXPECT_FALSE(parse_trace(bad).ok()) << bad;
}

}  // namespace
}  // namespace netblk::store
