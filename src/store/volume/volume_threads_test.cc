// SPDX-License-Identifier: GPL-2.0-only
// One volume, several loops, a real file, on both back ends.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include "io/uring/uring_backend.h"
#include "store/volume/memory_file_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Ask;

constexpr uint64_t kSize = 8u << 20;
constexpr int kLoops = 3;
constexpr uint64_t kShare = kSize / kLoops / 65536 * 65536;

class VolumeThreadsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = std::string(GetParam()) == "io_uring" ? io::make_uring_backend() : io::make_epoll_backend(2);
    if (!made) GTEST_SKIP() << "no " << GetParam() << " here: " << made.error().message;
    backend_ = std::move(made).value();
    loop_ = backend_->make_loop(clock_).value();
    path_ = (std::filesystem::temp_directory_path() / "netblk-volume-XXXXXX").string();
    const io::UniqueFd fd(::mkstemp(path_.data()));
    ASSERT_TRUE(fd.valid());
  }
  void TearDown() override {
    if (!path_.empty()) (void)::unlink(path_.c_str());
  }

 public:
  std::unique_ptr<io::File> file() {
    return backend_->make_file(io::UniqueFd(::open(path_.c_str(), O_RDWR | O_CLOEXEC)), false);
  }
  io::Backend& backend() { return *backend_; }
  io::Loop& loop() { return *loop_; }
  const io::Clock& clock() { return clock_; }

  test::TestEnvironment environment;

 private:
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
  std::string path_;
};

struct Worker {
  std::vector<std::byte> model = std::vector<std::byte>(kShare);
  int errors = 0;
  int differences = 0;
};

// Several requests at once, none overlapping another, in the share of one loop: what it reads is what it wrote, whatever the
// others do beside it.
coro::Task<void> work(io::Loop& loop, block::Device& device, uint64_t base, uint64_t seed, Worker& worker) {
  constexpr size_t kAtOnce = 8;
  constexpr uint64_t kPiece = kShare / kAtOnce / 4096 * 4096;
  std::mt19937_64 random(seed);
  std::vector<std::unique_ptr<Ask>> asks;
  for (size_t i = 0; i < kAtOnce; ++i) asks.push_back(std::make_unique<Ask>(loop));
  for (int round = 0; round < 40; ++round) {
    std::vector<uint64_t> at(kAtOnce);
    for (size_t i = 0; i < kAtOnce; ++i) {
      const uint64_t length = 512 * (1 + random() % 100);
      at[i] = i * kPiece + 512 * (random() % ((kPiece - length) / 512));
      const uint64_t kind = random() % 100;
      Ask& ask = *asks[i];
      if (kind < 55) {
        ask.as(Command::kWrite, base + at[i], length, random() % 64 == 0);
        for (std::byte& byte : ask.buffer) byte = static_cast<std::byte>(random());
        std::copy(ask.buffer.begin(), ask.buffer.end(), worker.model.begin() + static_cast<std::ptrdiff_t>(at[i]));
      } else if (kind < 65) {
        ask.as(Command::kTrim, base + at[i], length);
        std::fill_n(worker.model.begin() + static_cast<std::ptrdiff_t>(at[i]), length, std::byte{0});
      } else if (kind < 67) {
        ask.as(Command::kFlush, 0, 0);
      } else {
        ask.as(Command::kRead, base + at[i], length);
      }
      device.submit(ask);
    }
    for (size_t i = 0; i < kAtOnce; ++i) {
      Ask& ask = *asks[i];
      while (!ask.done) co_await ask.ended.wait();
      worker.errors += ask.error != 0;
      if (ask.command == Command::kRead)
        worker.differences += !std::equal(ask.buffer.begin(), ask.buffer.end(),
                                          worker.model.begin() + static_cast<std::ptrdiff_t>(at[i]));
    }
  }
}

// Each on a loop of its own, in its share of the disk. running: how many have not ended.
std::vector<std::thread> start(VolumeThreadsTest& t, block::Device& device, std::vector<Worker>& workers, std::atomic<int>& running) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kLoops; ++i)
    threads.emplace_back([&, i] {
      auto loop = t.backend().make_loop(t.clock()).value();
      loop->run(work(*loop, device, i * kShare, i + 1, workers[i]));
      running.fetch_sub(1);
    });
  return threads;
}

coro::Task<void> together(VolumeThreadsTest& t) {
  std::unique_ptr<io::File> file = t.file();
  const CreateOptions how{.size_bytes = kSize, .segment_bytes = 1u << 18};
  const Status made = co_await create_volume(t.loop(), *file, how, t.environment);
  EXPECT_TRUE(made.ok());
  const VolumeOptions options{.checkpoint_bytes = 2u << 20};
  auto opened = co_await open_volume(t.loop(), std::move(file), options, t.environment);
  EXPECT_TRUE(opened.ok());
  if (!opened) co_return;
  auto device = opened.value()->open_device().value();
  std::vector<Worker> workers(kLoops);
  std::atomic<int> running{kLoops};
  std::vector<std::thread> threads = start(t, *device, workers, running);
  // This loop makes the checkpoints, and snapshots beside them.
  int names = 0;
  while (running.load() > 0) {
    if (names < 5) {
      std::string name = "s" + std::to_string(names++);
      const auto named = co_await opened.value()->snapshot(std::move(name));
      EXPECT_TRUE(named.ok());
    }
    co_await io::SleepUntil(t.loop(), t.loop().now_ms() + 2);
  }
  for (std::thread& thread : threads) thread.join();
  for (const Worker& worker : workers) {
    EXPECT_EQ(worker.errors, 0);
    EXPECT_EQ(worker.differences, 0);
  }
  device.reset();
  const Status closed = co_await opened.value()->close();
  EXPECT_TRUE(closed.ok());
  opened = make_error(0, "");

  file = t.file();
  opened = co_await open_volume(t.loop(), std::move(file), options, t.environment);
  EXPECT_TRUE(opened.ok());
  if (!opened) co_return;
  device = opened.value()->open_device().value();
  for (size_t i = 0; i < kLoops; ++i) {
    Ask ask(t.loop());
    ask.as(Command::kRead, i * kShare, kShare);
    const int error = co_await run(*device, ask);
    EXPECT_EQ(error, 0);
    EXPECT_TRUE(ask.buffer == workers[i].model);
  }
  const auto report = co_await opened.value()->check();
  EXPECT_TRUE(report.ok());
  EXPECT_TRUE(report.value().damage.empty());
  device.reset();
  (void)co_await opened.value()->close();
}

TEST_P(VolumeThreadsTest, LoopsShareOneVolume) { loop().run(together(*this)); }

coro::Task<void> read_all(io::Loop& loop, block::Device& device, std::vector<std::byte>& into) {
  Ask ask(loop);
  ask.as(Command::kRead, 0, kSize);
  const int error = co_await run(device, ask);
  EXPECT_EQ(error, 0);
  into = std::move(ask.buffer);
}

coro::Task<void> write_at(io::Loop& loop, block::Device& device, uint64_t offset, std::vector<std::byte>& model, std::byte what) {
  Ask ask(loop);
  ask.as(Command::kWrite, offset, 8192);
  std::fill(ask.buffer.begin(), ask.buffer.end(), what);
  std::copy(ask.buffer.begin(), ask.buffer.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
  const int error = co_await run(device, ask);
  EXPECT_EQ(error, 0);
}

coro::Task<void> expect_same(io::Loop& loop, block::Device& device, const std::vector<std::byte>& model) {
  std::vector<std::byte> found;
  co_await read_all(loop, device, found);
  EXPECT_TRUE(found == model);
}

// A snapshot, a moment, and a clone that is written to, of a head that others write to meanwhile: none of the three changes.
coro::Task<void> points_beside(io::Loop& loop, Volume& volume, const std::string& number) {
  const std::string snapshot = "s" + number, clone = "c" + number;
  const auto named = co_await volume.snapshot(snapshot);
  EXPECT_TRUE(named.ok());
  if (!named) co_return;
  auto still = volume.open_device(snapshot).value();
  std::vector<std::byte> then;
  co_await read_all(loop, *still, then);
  auto moment = volume.open_device(PointName(PointName::Kind::kLsn, named.value())).value();
  co_await expect_same(loop, *moment, then);
  const auto cloned = co_await volume.clone(snapshot, clone);
  EXPECT_TRUE(cloned.ok());
  std::vector<std::byte> mine = then;
  auto writable = volume.open_device(clone).value();
  for (uint64_t i = 0; i < 8; ++i) {
    co_await write_at(loop, *writable, i * 40'960, mine, static_cast<std::byte>(i + 1));
    if (i == 4) {
      const auto report = co_await volume.check();
      EXPECT_TRUE(report.ok() && report.value().damage.empty());
    }
  }
  co_await expect_same(loop, *writable, mine);
  co_await expect_same(loop, *still, then);
  co_await expect_same(loop, *moment, then);
  writable.reset();
  const auto rewound = co_await volume.rewind(PointName(PointName::Kind::kLsn, cloned.value()), clone);
  EXPECT_TRUE(rewound.ok());
  writable = volume.open_device(clone).value();
  co_await expect_same(loop, *writable, then);
  writable.reset();
  still.reset();
  moment.reset();
  if (rewound) {
    const Status first = co_await volume.remove("before-rewind-" + std::to_string(rewound.value()));
    EXPECT_TRUE(first.ok());
  }
  const Status second = co_await volume.remove(clone);
  EXPECT_TRUE(second.ok());
  const Status third = co_await volume.remove(snapshot);
  EXPECT_TRUE(third.ok());
}

coro::Task<void> everything_together(VolumeThreadsTest& t) {
  std::unique_ptr<io::File> file = t.file();
  const CreateOptions how{.size_bytes = kSize, .segment_bytes = 1u << 17, .settings = {{"history", "4M"}}};
  const Status made = co_await create_volume(t.loop(), *file, how, t.environment);
  EXPECT_TRUE(made.ok());
  // Small enough for checkpoints, merges and the collector to run all the time.
  const VolumeOptions options{.checkpoint_bytes = 1u << 19, .table_bytes = 1u << 16, .cache_bytes = 1u << 18};
  auto opened = co_await open_volume(t.loop(), std::move(file), options, t.environment);
  EXPECT_TRUE(opened.ok());
  if (!opened) co_return;
  auto device = opened.value()->open_device().value();
  std::vector<Worker> workers(kLoops);
  std::atomic<int> running{kLoops};
  std::vector<std::thread> threads = start(t, *device, workers, running);
  for (int i = 0; i < 2 || running.load() > 0; ++i) {
    const std::string number = std::to_string(i);
    co_await points_beside(t.loop(), *opened.value(), number);
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kLoops; ++i) {
    EXPECT_EQ(workers[i].errors, 0);
    EXPECT_EQ(workers[i].differences, 0);
    Ask ask(t.loop());
    ask.as(Command::kRead, i * kShare, kShare);
    const int error = co_await run(*device, ask);
    EXPECT_EQ(error, 0);
    EXPECT_TRUE(ask.buffer == workers[i].model);
  }
  device.reset();
  const Status closed = co_await opened.value()->close();
  EXPECT_TRUE(closed.ok());
}

TEST_P(VolumeThreadsTest, PointsCheckpointsAndChecksBesideWriters) { loop().run(everything_together(*this)); }

INSTANTIATE_TEST_SUITE_P(Backends, VolumeThreadsTest, testing::Values("io_uring", "epoll"));

}  // namespace
}  // namespace netblk::store::volume
