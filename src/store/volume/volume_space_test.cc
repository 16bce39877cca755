// SPDX-License-Identifier: GPL-2.0-only
// What the file of a volume takes while it is overwritten: on a disk that takes its time, by a clock that is moved on by what
// happens, so that each run is the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coro/scope.h"
#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Ask;
using test::Bytes;

class ToldClock final : public io::Clock {
 public:
  uint64_t now_ms() const override { return us / 1000; }
  uint64_t us = 1'000'000;
};

// Its poll() moves the clock to what comes next.
class TimedLoop final : public io::Loop {
 public:
  explicit TimedLoop(ToldClock& clock) : Loop(clock), clock_(clock) {}
  std::unique_ptr<io::Stream> make_stream(io::UniqueFd) override { return nullptr; }
  std::unique_ptr<io::Listener> make_listener(io::UniqueFd) override { return nullptr; }
  std::string description() const override { return "timed"; }
  void at(uint64_t us, std::function<void()> what) { events_.emplace(us, std::move(what)); }

 private:
  void poll(int64_t timeout_ms) override {
    uint64_t limit = timeout_ms < 0 ? UINT64_MAX : clock_.us;
    if (timeout_ms > 0) limit = (clock_.us / 1000 + static_cast<uint64_t>(timeout_ms)) * 1000;
    if (events_.empty() || events_.begin()->first > limit) {
      NETBLK_CHECK(limit != UINT64_MAX, "nothing is left that could ever happen");
      clock_.us = std::max(clock_.us, limit);
      return;
    }
    clock_.us = std::max(clock_.us, events_.begin()->first);
    while (!events_.empty() && events_.begin()->first <= clock_.us) events_.extract(events_.begin()).mapped()();
  }
  bool has_news() const override { return true; }
  void wake() override {}
  ToldClock& clock_;
  std::multimap<uint64_t, std::function<void()>> events_;
};

// One thing after another, each with a time of its own and one for its bytes. What has space is counted in blocks.
struct TimedDisk {
  Bytes bytes;
  std::vector<bool> has_space;
  uint64_t allocated_bytes = 0, most_bytes = 0, holes = 0;
  uint64_t free_at_us = 0;
  uint64_t op_us = 20, us_per_mib = 2000, sync_us = 1000, hole_us = 0;

  void set_space(uint64_t offset, uint64_t length, bool has) {
    const uint64_t end = (offset + length + kBlockBytes - 1) / kBlockBytes;
    if (has_space.size() < end) has_space.resize(end);
    for (uint64_t block = offset / kBlockBytes; block < end; ++block) {
      if (has_space[block] == has) continue;
      has_space[block] = has;
      allocated_bytes = has ? allocated_bytes + kBlockBytes : allocated_bytes - kBlockBytes;
    }
    most_bytes = std::max(most_bytes, allocated_bytes);
  }
};

class TimedFile final : public io::File {
 public:
  TimedFile(TimedDisk& disk, ToldClock& clock) : disk_(disk), clock_(clock) {}

  bool read(io::Loop& loop, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    return later(loop, op, into.size(), 0, [this, into, offset] {
      const size_t end = disk_.bytes.size(), at = std::min<size_t>(offset, end), length = std::min(into.size(), end - at);
      std::memcpy(into.data(), disk_.bytes.data() + at, length);
      return static_cast<int32_t>(length);
    });
  }
  bool write(io::Loop& loop, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    return later(loop, op, from.size(), 0, [this, from, offset] { return put(from, offset); });
  }
  bool write_vector(io::Loop& loop, io::Op& op, std::span<const iovec> from, uint64_t offset) override {
    uint64_t length = 0;
    for (const iovec& part : from) length += part.iov_len;
    return later(loop, op, length, 0, [this, from, offset] {
      int32_t done = 0;
      for (const iovec& part : from) done += put({static_cast<const std::byte*>(part.iov_base), part.iov_len}, offset + static_cast<uint64_t>(done));
      return done;
    });
  }
  bool datasync(io::Loop& loop, io::Op& op) override { return later(loop, op, 0, disk_.sync_us, [] { return 0; }); }
  bool punch_hole(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) override {
    return later(loop, op, 0, disk_.hole_us, [this, offset, length] {
      ++disk_.holes;
      disk_.set_space(offset, length, false);
      const uint64_t end = std::min<uint64_t>(offset + length, disk_.bytes.size());
      for (uint64_t at = offset; at < end; ++at) disk_.bytes[at] = std::byte{0};
      return 0;
    });
  }
  bool allocate(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) override {
    return later(loop, op, 0, 0, [this, offset, length] {
      disk_.set_space(offset, length, true);
      return 0;
    });
  }

 private:
  int32_t put(std::span<const std::byte> from, uint64_t offset) {
    if (disk_.bytes.size() < offset + from.size()) disk_.bytes.resize(offset + from.size());
    std::memcpy(disk_.bytes.data() + offset, from.data(), from.size());
    disk_.set_space(offset, from.size(), true);
    return static_cast<int32_t>(from.size());
  }
  bool later(io::Loop& loop, io::Op& op, uint64_t bytes, uint64_t more_us, std::function<int32_t()> what) {
    disk_.free_at_us = std::max(disk_.free_at_us, clock_.us) + disk_.op_us + more_us + ((bytes * disk_.us_per_mib) >> 20);
    static_cast<TimedLoop&>(loop).at(disk_.free_at_us, [&op, what = std::move(what)] { op.complete(what()); });
    return op.begin();
  }
  TimedDisk& disk_;
  ToldClock& clock_;
};

constexpr uint64_t kSegment = 1u << 16;
constexpr uint64_t kSize = 64u << 20;
constexpr uint64_t kSpare = 12;  // as usual

class VolumeSpaceTest : public testing::Test {
 public:
  ToldClock clock;
  TimedLoop loop{clock};
  TimedDisk disk;
  test::TestEnvironment environment;
  VolumeOptions options{.checkpoint_bytes = 4u << 20, .spare_segments = kSpare};
  std::unique_ptr<Volume> volume;
  std::unique_ptr<block::Device> device;
  uint64_t random = 1;

  uint64_t below(uint64_t limit) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % limit;
  }
  static uint64_t most() { return kSegmentsAt + kSize / 100 * 130 + kSpare * kSegment; }

  static coro::Task<void> begin(VolumeSpaceTest& t) {
    const CreateOptions how{.size_bytes = kSize, .segment_bytes = kSegment};
    TimedFile file(t.disk, t.clock);
    const Status made = co_await create_volume(t.loop, file, how, t.environment);
    EXPECT_TRUE(made.ok());
    auto opened = co_await open_volume(t.loop, std::make_unique<TimedFile>(t.disk, t.clock), t.options, t.environment);
    EXPECT_TRUE(opened.ok());
    t.volume = std::move(opened).value();
    t.device = t.volume->open_device().value();
    for (uint64_t at = 0; at < kSize; at += 1u << 20) co_await ask(t, Command::kWrite, at, 1u << 20);
  }
  static coro::Task<void> end(VolumeSpaceTest& t) {
    t.device.reset();
    const Status closed = co_await t.volume->close();
    EXPECT_TRUE(closed.ok());
    t.volume.reset();
  }
  static coro::Task<void> ask(VolumeSpaceTest& t, Command command, uint64_t at, uint64_t bytes) {
    Ask ask(t.loop);
    ask.as(command, at, bytes);
    std::fill(ask.buffer.begin(), ask.buffer.end(), std::byte{1});
    const int error = co_await run(*t.device, ask);
    EXPECT_EQ(error, 0);
  }
  // A client with so many in flight, which flushes every so often; per_second: no faster than that (0: as fast as it goes).
  static coro::Task<void> client(VolumeSpaceTest& t, int depth, uint64_t requests, uint64_t per_second) {
    coro::Scope scope;
    const uint64_t began_ms = t.loop.now_ms();
    uint64_t number = 0;
    for (int i = 0; i < depth; ++i) scope.spawn(one_client(t, number, requests, per_second, began_ms));
    co_await scope.join();
  }
  static coro::Task<void> one_client(VolumeSpaceTest& t, uint64_t& number, uint64_t requests, uint64_t per_second,
                                     uint64_t began_ms) {
    while (number < requests) {
      const uint64_t mine = number++;
      if (per_second != 0) {
        const uint64_t due_ms = began_ms + mine * 1000 / per_second;
        if (due_ms > t.loop.now_ms()) co_await io::SleepUntil(t.loop, due_ms);
      }
      co_await ask(t, Command::kWrite, t.below(kSize / kBlockBytes) * kBlockBytes, kBlockBytes);
      if (mine % 32 == 31) co_await ask(t, Command::kFlush, 0, 0);
    }
  }
};

// What is counted is what the disk has given, whenever it gives something: behind each checkpoint, and between two of them.
coro::Task<void> stays_within(VolumeSpaceTest& t, int depth, uint64_t per_second) {
  constexpr uint64_t kBlocks = kSize / kBlockBytes;
  co_await VolumeSpaceTest::begin(t);
  co_await VolumeSpaceTest::client(t, depth, kBlocks, per_second);
  EXPECT_GT(t.volume->info().collected_bytes, 0u) << "nothing is proved by what did not have to be collected";
  t.disk.most_bytes = t.disk.allocated_bytes;
  co_await VolumeSpaceTest::client(t, depth, kBlocks, per_second);
  EXPECT_LE(t.disk.most_bytes, VolumeSpaceTest::most())
      << (t.disk.most_bytes - VolumeSpaceTest::most()) / kSegment << " segments more than it may take";
  co_await VolumeSpaceTest::end(t);
}
TEST_F(VolumeSpaceTest, UnderWritesAtARateTheFileStaysWithinTheFactor) { loop.run(stays_within(*this, 32, 2000)); }
TEST_F(VolumeSpaceTest, UnderWritesWithoutAPauseTheFileStaysWithinTheFactor) {
  disk.us_per_mib = 500;
  disk.sync_us = 100;
  loop.run(stays_within(*this, 1, 0));
}

// Most of the volume becomes free, in hundreds of places, of which each takes its time to be given back: a write that waits for
// the next checkpoint does not wait for all of them.
coro::Task<void> writes_while_much_is_given_back(VolumeSpaceTest& t) {
  t.options.checkpoint_bytes = 1u << 20;
  co_await VolumeSpaceTest::begin(t);
  t.disk.hole_us = 50'000;
  for (uint64_t at = 0; at < kSize; at += 4 * kSegment) co_await VolumeSpaceTest::ask(t, Command::kTrim, at, 3 * kSegment);
  uint64_t longest_us = 0;
  const uint64_t holes = t.disk.holes;
  for (uint64_t at = 0; at < kSize / 2; at += 1u << 20) {
    const uint64_t began_us = t.clock.us;
    co_await VolumeSpaceTest::ask(t, Command::kWrite, at, 1u << 20);
    longest_us = std::max(longest_us, t.clock.us - began_us);
  }
  EXPECT_GT(t.disk.holes, holes + 8) << "nothing was given back that a write could have waited for";
  EXPECT_LT(longest_us, 1'000'000u);
  co_await VolumeSpaceTest::end(t);
}
TEST_F(VolumeSpaceTest, AWriteDoesNotWaitUntilAllThatIsFreeIsGivenBack) { loop.run(writes_while_much_is_given_back(*this)); }

}  // namespace
}  // namespace netblk::store::volume
