// SPDX-License-Identifier: GPL-2.0-only
// The edge of the seam (DESIGN laws 4, 5 and 6): what is refused, what is device, and exactly one end for each request.
#include "block/device.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <limits>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace netblk::block {
namespace {

static_assert(!std::is_copy_constructible_v<Completion> && std::is_nothrow_move_constructible_v<Completion>);
static_assert(!std::is_copy_constructible_v<Request> && !std::is_move_constructible_v<Request>);
static_assert(!std::is_copy_constructible_v<Device> && !std::is_move_constructible_v<Device>);

constexpr uint64_t kSize = 1 << 20;
constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

// Only an address: nothing is posted in the device tests.
class NoMail final : public coro::Mailbox {
 public:
  void post(coro::Posted&) override { FAIL() << "a device posted"; }
};

class TestDevice : public Device {
 public:
  explicit TestDevice(const Geometry& geometry) : Device(geometry) {}
  std::vector<const Request*> started;
  int answer = 0;
  bool keep = false;
  std::optional<Completion> kept;

 protected:
  void start(Request& request, Completion completion) override {
    started.push_back(&request);
    if (request.command == Command::kBlockStatus) request.add_extent(request.length, false, true);
    if (keep) {
      kept.emplace(std::move(completion));
    } else {
      std::move(completion).finish(answer);
    }
  }
};

// Notes nothing, so that many threads may use it.
class AnsweringDevice final : public Device {
 public:
  explicit AnsweringDevice(const Geometry& geometry) : Device(geometry) {}

 protected:
  void start(Request&, Completion completion) override { std::move(completion).finish(0); }
};

class DroppingDevice final : public Device {
 public:
  explicit DroppingDevice(const Geometry& geometry) : Device(geometry) {}

 protected:
  void start(Request&, Completion completion) override { const Completion dropped = std::move(completion); }
};

class TwiceDevice final : public Device {
 public:
  explicit TwiceDevice(const Geometry& geometry) : Device(geometry) {}

 protected:
  void start(Request&, Completion completion) override {
    std::move(completion).finish(0);
    std::move(completion).finish(0);  // NOLINT: the forbidden act
  }
};

class OverwritingDevice final : public Device {
 public:
  explicit OverwritingDevice(const Geometry& geometry) : Device(geometry) {}
  Completion held;

 protected:
  void start(Request&, Completion completion) override { held = std::move(completion); }
};

struct Ask : Request {
  explicit Ask(coro::Mailbox* on) : Request([](Request& self) { ++static_cast<Ask&>(self).ends; }) { loop = on; }
  Ask& set(Command what, uint64_t at, uint64_t bytes) {
    command = what;
    offset = at;
    length = bytes;
    data = &byte;  // the test device moves nothing
    extents = &found;
    max_extents = 8;
    return *this;
  }
  std::byte byte{};
  std::vector<Extent> found;
  int ends = 0;
};

// A filter as they all are: it hands everything on.
class Above final : public Device {
 public:
  Above(Device& below, const Geometry& geometry) : Device(geometry), below_(below) {}

 protected:
  void start(Request& request, Completion completion) override { forward(below_, request, std::move(completion)); }

 private:
  Device& below_;
};

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  NoMail loop_;
};
using DeviceDeath = DeviceTest;

constexpr std::array kMoving = {Command::kRead, Command::kWrite, Command::kTrim, Command::kWriteZeroes,
                                Command::kCache, Command::kBlockStatus};
// A device that knows every request.
constexpr Geometry kAble{.size_bytes = kSize, .can_fast_zero = true, .can_block_status = true, .can_cache = true};

TEST_F(DeviceTest, TakesWhatIsInside) {
  TestDevice device(kAble);
  for (const Command command : kMoving) {
    for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
             {0, 1}, {0, 512}, {0, kSize}, {kSize - 1, 1}, {kSize - 512, 512}, {1, kSize - 1}}) {
      Ask ask(&loop_);
      device.submit(ask.set(command, offset, length));
      EXPECT_EQ(ask.ends, 1);
      EXPECT_EQ(ask.error, 0) << command_text(command) << ' ' << offset << '+' << length;
    }
  }
  EXPECT_EQ(device.started.size(), kMoving.size() * 6);
}

TEST_F(DeviceTest, RefusesWhatIsOutsideBeforeTheStoreSeesIt) {
  TestDevice device(kAble);
  for (const Command command : kMoving) {
    for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
             {0, 0}, {kSize, 0}, {512, 0},                              // nothing
             {0, kSize + 1}, {1, kSize}, {kSize - 511, 512},            // over the end
             {kSize, 1}, {kSize, 512}, {kSize + 1, 512},                // beyond it
             {uint64_t{1} << 63, 512}, {kMax64 - 511, 512},             // far beyond
             {kMax64, 1}, {kMax64, kMax64}, {512, kMax64}, {512, kMax64 - 511}, {kSize - 512, kMax64 - kSize + 1024}}) {
      Ask ask(&loop_);
      device.submit(ask.set(command, offset, length));
      EXPECT_EQ(ask.ends, 1);
      EXPECT_EQ(ask.error, EINVAL) << command_text(command) << ' ' << offset << '+' << length;
    }
  }
  EXPECT_TRUE(device.started.empty());
}

TEST_F(DeviceTest, AReadOnlyDeviceRefusesChangesAndServesTheRest) {
  TestDevice device({.size_bytes = kSize, .read_only = true});
  for (const Command command : {Command::kWrite, Command::kTrim, Command::kWriteZeroes}) {
    Ask ask(&loop_);
    device.submit(ask.set(command, 0, 512));
    EXPECT_EQ(ask.error, EROFS) << command_text(command);
  }
  EXPECT_TRUE(device.started.empty());
  for (const Command command : {Command::kRead, Command::kFlush}) {
    Ask ask(&loop_);
    device.submit(ask.set(command, 0, 512));
    EXPECT_EQ(ask.error, 0) << command_text(command);
  }
  EXPECT_EQ(device.started.size(), 2u);
}

TEST_F(DeviceTest, AFlushHasNoRange) {
  TestDevice device({.size_bytes = kSize});
  for (const uint64_t offset : {uint64_t{0}, kSize + 1, kMax64}) {
    Ask ask(&loop_);
    ask.set(Command::kFlush, offset, 0).data = nullptr;
    device.submit(ask);
    EXPECT_EQ(ask.error, 0);
  }
  EXPECT_EQ(device.started.size(), 3u);
}

TEST_F(DeviceTest, WhatADeviceDoesNotKnowIsAnsweredForIt) {
  TestDevice plain({.size_bytes = kSize});
  Above above(plain, kAble);  // one that says more than the device below it can
  for (Device* device : {static_cast<Device*>(&plain), static_cast<Device*>(&above)}) {
    Ask ask(&loop_);
    device->submit(ask.set(Command::kBlockStatus, 512, 4096));
    EXPECT_EQ(ask.error, 0);
    EXPECT_EQ(ask.found, (std::vector<Extent>{{4096, false, false}}));
    device->submit(ask.set(Command::kCache, 512, 4096));
    EXPECT_EQ(ask.error, 0);
    ask.fast_zero = true;
    device->submit(ask.set(Command::kWriteZeroes, 512, 4096));
    EXPECT_EQ(ask.error, EOPNOTSUPP);
    EXPECT_EQ(ask.ends, 3);
  }
  EXPECT_TRUE(plain.started.empty());
}

TEST_F(DeviceTest, WhatADeviceKnowsReachesIt) {
  TestDevice device(kAble);
  Ask ask(&loop_);
  ask.found = {{1, true, true}};  // of an earlier question
  device.submit(ask.set(Command::kBlockStatus, 0, 4096));
  EXPECT_EQ(ask.found, (std::vector<Extent>{{4096, false, true}}));
  ask.fast_zero = true;
  device.submit(ask.set(Command::kWriteZeroes, 0, 4096));
  device.submit(ask.set(Command::kCache, 0, 4096));
  EXPECT_EQ(device.started.size(), 3u);
}

TEST_F(DeviceTest, AReadOnlyDeviceTellsItsStatusAndCaches) {
  TestDevice device({.size_bytes = kSize, .read_only = true});
  Ask ask(&loop_);
  for (const Command command : {Command::kBlockStatus, Command::kCache}) {
    device.submit(ask.set(command, 0, 512));
    EXPECT_EQ(ask.error, 0) << command_text(command);
    EXPECT_FALSE(ask.modifies());
  }
}

TEST_F(DeviceTest, ExtentsAreJoinedAndCut) {
  Ask ask(&loop_);
  ask.set(Command::kBlockStatus, 0, 100).max_extents = 2;
  EXPECT_TRUE(ask.add_extent(10, true, true));
  EXPECT_TRUE(ask.add_extent(10, true, true));
  EXPECT_TRUE(ask.add_extent(5, false, true));
  EXPECT_FALSE(ask.add_extent(5, false, false)) << "there is room for two";
  EXPECT_TRUE(ask.add_extent(7, false, true)) << "more of the last one always fits";
  EXPECT_EQ(ask.found, (std::vector<Extent>{{20, true, true}, {12, false, true}}));
}

TEST_F(DeviceTest, TheErrorOfTheStoreIsTheErrorOfTheRequest) {
  TestDevice device({.size_bytes = kSize});
  Ask ask(&loop_);
  for (const int error : {EIO, ENOSPC, 0}) {
    device.answer = error;
    device.submit(ask.set(Command::kWrite, 0, 512));
    EXPECT_EQ(ask.error, error);
  }
  EXPECT_EQ(ask.ends, 3) << "a slot may be used again";
}

TEST_F(DeviceTest, CountsByCommandAndBytesAndErrors) {
  TestDevice device({.size_bytes = kSize});
  Ask ask(&loop_);
  device.submit(ask.set(Command::kRead, 0, 4096));
  device.submit(ask.set(Command::kRead, 0, 512));
  device.submit(ask.set(Command::kWrite, 0, 1024));
  device.submit(ask.set(Command::kFlush, 0, 0));
  device.submit(ask.set(Command::kTrim, 0, 8192));
  device.submit(ask.set(Command::kWriteZeroes, 0, 8192));
  device.submit(ask.set(Command::kRead, kSize, 512));  // refused at the edge
  device.answer = EIO;
  device.submit(ask.set(Command::kWrite, 0, 2048));  // refused by the store
  const Counters sum = device.counters();
  EXPECT_EQ(sum.reads, 2u);
  EXPECT_EQ(sum.read_bytes, 4608u);
  EXPECT_EQ(sum.writes, 1u);
  EXPECT_EQ(sum.write_bytes, 1024u);
  EXPECT_EQ(sum.flushes, 1u);
  EXPECT_EQ(sum.trims, 2u);
  EXPECT_EQ(sum.errors, 2u);
}

TEST_F(DeviceTest, CountsWhatManyThreadsDo) {
  constexpr int kThreads = 48;  // more than there are shards: some threads share one
  constexpr uint64_t kEach = 1000;
  AnsweringDevice device({.size_bytes = kSize});
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([this, &device] {
      Ask ask(&loop_);
      for (uint64_t n = 0; n < kEach; ++n) device.submit(ask.set(Command::kRead, 0, 512));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(device.counters().reads, kThreads * kEach);
  EXPECT_EQ(device.counters().read_bytes, kThreads * kEach * 512);
}

TEST_F(DeviceTest, AKeptCompletionEndsTheRequestLater) {
  TestDevice device({.size_bytes = kSize});
  device.keep = true;
  Ask ask(&loop_);
  device.submit(ask.set(Command::kRead, 0, 512));
  EXPECT_EQ(ask.ends, 0);
  std::move(*device.kept).finish(EIO);
  EXPECT_EQ(ask.ends, 1);
  EXPECT_EQ(ask.error, EIO);
}

TEST_F(DeviceTest, EveryCommandHasAWord) {
  EXPECT_STREQ(command_text(Command::kRead), "read");
  EXPECT_STREQ(command_text(Command::kWrite), "write");
  EXPECT_STREQ(command_text(Command::kFlush), "flush");
  EXPECT_STREQ(command_text(Command::kTrim), "trim");
  EXPECT_STREQ(command_text(Command::kWriteZeroes), "write-zeroes");
  EXPECT_STREQ(command_text(Command::kCache), "cache");
  EXPECT_STREQ(command_text(Command::kBlockStatus), "block-status");
}

TEST_F(DeviceDeath, DroppingACompletionAborts) {
  EXPECT_DEATH(
      {
        DroppingDevice device({.size_bytes = kSize});
        Ask ask(&loop_);
        device.submit(ask.set(Command::kRead, 0, 512));
      },
      "a request is dropped without an answer");
}

TEST_F(DeviceDeath, OverwritingACompletionAborts) {
  EXPECT_DEATH(
      {
        OverwritingDevice device({.size_bytes = kSize});
        Ask first(&loop_);
        Ask second(&loop_);
        device.submit(first.set(Command::kRead, 0, 512));
        device.submit(second.set(Command::kRead, 0, 512));
      },
      "a request is dropped without an answer");
}

TEST_F(DeviceDeath, FinishingTwiceAborts) {
  EXPECT_DEATH(
      {
        TwiceDevice device({.size_bytes = kSize});
        Ask ask(&loop_);
        device.submit(ask.set(Command::kRead, 0, 512));
      },
      "a request is answered twice");
}

TEST_F(DeviceDeath, SubmitWithoutALoopAborts) {
  EXPECT_DEATH(
      {
        TestDevice device({.size_bytes = kSize});
        Ask ask(nullptr);
        device.submit(ask.set(Command::kRead, 0, 512));
      },
      "a request without a loop");
}

TEST_F(DeviceDeath, AReadOrWriteWithoutDataAborts) {
  for (const Command command : {Command::kRead, Command::kWrite}) {
    EXPECT_DEATH(
        {
          TestDevice device({.size_bytes = kSize});
          Ask ask(&loop_);
          ask.set(command, 0, 512).data = nullptr;
          device.submit(ask);
        },
        "a read or write without data");
  }
}

TEST_F(DeviceDeath, ABlockStatusWithoutRoomAborts) {
  EXPECT_DEATH(
      {
        TestDevice device(kAble);
        Ask ask(&loop_);
        ask.set(Command::kBlockStatus, 0, 512).max_extents = 0;
        device.submit(ask);
      },
      "a block status without room for an answer");
}

TEST_F(DeviceDeath, ABlockStatusWithoutAnExtentAborts) {
  EXPECT_DEATH(
      {
        AnsweringDevice device(kAble);
        Ask ask(&loop_);
        device.submit(ask.set(Command::kBlockStatus, 0, 512));
      },
      "a block status without an extent");
}

}  // namespace
}  // namespace netblk::block
