// SPDX-License-Identifier: GPL-2.0-only
// A volume on a file in memory, and what its tests do with it again and again.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "store/volume/memory_file_test.h"

namespace netblk::test {

using block::Command;
using store::volume::CreateOptions;
using store::volume::kBlockBytes;
using store::volume::kSegmentsAt;
using store::volume::Volume;
using store::volume::VolumeOptions;
using Bytes = std::vector<std::byte>;

inline constexpr uint64_t kSize = 2u << 20;

class VolumeTest : public testing::Test {
 public:
  io::Loop& loop() { return *loop_; }
  void go(coro::Task<void> task) { loop_->run(std::move(task)); }
  // One task after another, for tests that are none themselves.
  void now(coro::Task<void> task) { go(std::move(task)); }
  template <class T>
  T now(coro::Task<T> task) {
    std::optional<T> result;
    go(keep(std::move(task), result));
    return std::move(*result);
  }

  static coro::Task<void> create(VolumeTest& t, uint64_t size, uint64_t segment) {
    t.disk = {};
    MemoryFile file(t.disk);
    const CreateOptions how{.size_bytes = size, .segment_bytes = segment};
    const Status made = co_await store::volume::create_volume(t.loop(), file, how, t.environment);
    EXPECT_TRUE(made.ok());
  }
  static coro::Task<bool> open(VolumeTest& t) {
    std::unique_ptr<io::File> file = std::make_unique<MemoryFile>(t.disk);
    auto opened = co_await store::volume::open_volume(t.loop(), std::move(file), t.options, t.environment);
    t.error = opened ? 0 : opened.error().code;
    t.message = opened ? "" : opened.error().message;
    if (!opened) co_return false;
    t.volume = std::move(opened).value();
    t.device = t.volume->open_device().value();
    co_return true;
  }
  static coro::Task<bool> close(VolumeTest& t) {
    t.device.reset();
    const Status closed = co_await t.volume->close();
    t.volume.reset();
    co_return closed.ok();
  }
  // What was written and not closed: the next opening finds it as it is, or as the last sync left it.
  static coro::Task<void> crash(VolumeTest& t, bool power) {
    const Bytes left = power ? t.disk.durable : t.disk.bytes;
    (void)co_await close(t);
    t.disk.bytes = t.disk.durable = left;
  }
  static coro::Task<int> write(VolumeTest& t, uint64_t at, uint64_t bytes, int value, bool fua = false) {
    Ask ask(t.loop());
    ask.as(Command::kWrite, at, bytes, fua);
    for (size_t i = 0; i < bytes; ++i) ask.buffer[i] = static_cast<std::byte>(value);
    const int error = co_await run(*t.device, ask);
    co_return error;
  }
  static coro::Task<int> simple(VolumeTest& t, Command command, uint64_t at, uint64_t bytes) {
    Ask ask(t.loop());
    ask.as(command, at, bytes);
    const int error = co_await run(*t.device, ask);
    co_return error;
  }
  // The one value that the range has; -1: several; -errno - 1000: an error.
  static coro::Task<int> read(VolumeTest& t, uint64_t at, uint64_t bytes, block::Device* device = nullptr) {
    Ask ask(t.loop());
    ask.as(Command::kRead, at, bytes);
    const int error = co_await run(device == nullptr ? *t.device : *device, ask);
    if (error != 0) co_return -error - 1000;
    for (const std::byte byte : ask.buffer)
      if (byte != ask.buffer[0]) co_return -1;
    co_return std::to_integer<int>(ask.buffer[0]);
  }

  // What other tasks of this loop have to do.
  static coro::Task<void> let_others(VolumeTest& t) {
    for (int i = 0; i < 50; ++i) co_await io::SleepUntil(t.loop(), 0);
  }

  MemoryDisk disk;
  TestEnvironment environment;
  VolumeOptions options{.checkpoint_bytes = 256u << 10};
  std::unique_ptr<Volume> volume;
  std::unique_ptr<block::Device> device;
  int error = 0;
  std::string message;

 private:
  template <class T>
  static coro::Task<void> keep(coro::Task<T> task, std::optional<T>& into) {
    T result = co_await std::move(task);
    into.emplace(std::move(result));
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_ = io::make_epoll_backend(1).value();
  std::unique_ptr<io::Loop> loop_ = backend_->make_loop(clock_).value();
};

// Where the log has the block of this value: its first byte.
inline uint64_t place_of(const Bytes& bytes, int value) {
  const Bytes block(kBlockBytes, static_cast<std::byte>(value));
  const auto found = std::search(bytes.begin() + kSegmentsAt, bytes.end(), block.begin(), block.end());
  return static_cast<uint64_t>(found - bytes.begin());
}

// Of each 512 bytes the last 64 * zeroes are alike: 0 does not compress.
inline Bytes some_bytes(size_t size, unsigned alike, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = i / 64 % 8 < 8 - alike ? static_cast<std::byte>(random()) : static_cast<std::byte>(seed + 1);
  return bytes;
}

inline coro::Task<int> put(VolumeTest& t, uint64_t at, const Bytes& bytes) {
  Ask ask(t.loop());
  ask.as(Command::kWrite, at, bytes.size());
  std::copy(bytes.begin(), bytes.end(), ask.buffer.begin());
  const int error = co_await run(*t.device, ask);
  co_return error;
}
inline coro::Task<int> get(VolumeTest& t, uint64_t at, Bytes& into) {
  Ask ask(t.loop());
  ask.as(Command::kRead, at, into.size());
  const int error = co_await run(*t.device, ask);
  into.assign(ask.buffer.begin(), ask.buffer.end());
  co_return error;
}

// Where records of the kind begin in the file.
inline std::vector<uint64_t> records(const Bytes& disk, const std::function<bool(const store::volume::RecordHeader&)>& wanted) {
  const auto superblock = store::volume::decode_superblock(std::span(disk).first(store::volume::kSuperblockBytes)).value();
  const store::volume::Sums sums(superblock.uuid, superblock.encrypted());
  std::vector<uint64_t> found;
  for (uint64_t at = store::volume::kSegmentsAt; at + store::volume::kMinHeaderBytes <= disk.size(); at += store::volume::kUnitBytes) {
    const auto header = store::volume::decode_record(std::span(disk).subspan(at, std::min<size_t>(store::volume::kMaxHeaderBytes, disk.size() - at)), sums);
    if (header && wanted(*header)) found.push_back(at);
  }
  return found;
}

}  // namespace netblk::test
