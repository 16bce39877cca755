// SPDX-License-Identifier: GPL-2.0-only
// What tests of volumes need: a file in memory that forgets and lies as it is told, and requests on a device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "io/epoll/epoll_backend.h"
#include "io/loop.h"
#include "store/volume/volume.h"

namespace netblk::test {

// The bytes outlive the io::File that a volume owns.
struct MemoryDisk {
  std::vector<std::byte> bytes;
  std::vector<std::byte> durable;  // at the start of the last good sync
  bool keeps_durable = true;       // false: for a large one whose power stays
  uint64_t limit_bytes = UINT64_MAX;  // allocate() fails beyond, and a write
  bool can_allocate = true, can_punch = true;
  uint64_t punched_bytes = 0;
  int fail_write_at = 0, fail_sync_at = 0, fail_read_at = 0;  // the nth from now
  int writes = 0, syncs = 0, reads = 0;
  size_t most_bytes = SIZE_MAX;  // of one move
  std::vector<uint64_t> written_at;  // since it was cleared
  bool fail_pages = false;       // of the index: their writes fail
  bool hold_syncs = false;       // they end when end_sync() says so
  std::vector<io::Op*> held_syncs;

  void end_sync(int32_t result) {
    io::Op* const op = held_syncs.front();
    held_syncs.erase(held_syncs.begin());
    if (result == 0) durable = bytes;
    op->complete(result);
  }
};

class MemoryFile final : public io::File {
 public:
  explicit MemoryFile(MemoryDisk& disk) : disk_(disk) {}

  bool read(io::Loop&, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    ++disk_.reads;
    if (disk_.fail_read_at > 0 && --disk_.fail_read_at == 0) return op.finish_now(-EIO);
    const size_t end = disk_.bytes.size(), at = std::min<size_t>(offset, end);
    const size_t length = std::min({into.size(), end - at, disk_.most_bytes});
    std::memcpy(into.data(), disk_.bytes.data() + at, length);
    return op.finish_now(static_cast<int32_t>(length));
  }
  bool write(io::Loop&, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    ++disk_.writes;
    disk_.written_at.push_back(offset);
    if (disk_.fail_pages && from.size() >= 4 && std::memcmp(from.data(), "NVP1", 4) == 0) return op.finish_now(-EIO);
    if (disk_.fail_write_at > 0 && --disk_.fail_write_at == 0) return op.finish_now(-EIO);
    const size_t length = std::min(from.size(), disk_.most_bytes);
    if (!disk_.can_allocate && offset + length > disk_.limit_bytes) return op.finish_now(-ENOSPC);
    if (disk_.bytes.size() < offset + length) disk_.bytes.resize(offset + length);
    std::memcpy(disk_.bytes.data() + offset, from.data(), length);
    return op.finish_now(static_cast<int32_t>(length));
  }
  bool datasync(io::Loop&, io::Op& op) override {
    ++disk_.syncs;
    if (disk_.hold_syncs) {
      op.begin();
      disk_.held_syncs.push_back(&op);
      return false;
    }
    if (disk_.fail_sync_at > 0 && --disk_.fail_sync_at == 0) return op.finish_now(-EIO);
    if (disk_.keeps_durable) disk_.durable = disk_.bytes;
    disk_.written_at.push_back(UINT64_MAX);
    return op.finish_now(0);
  }
  bool punch_hole(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    if (!disk_.can_punch) return op.finish_now(-EOPNOTSUPP);
    const uint64_t end = std::min<uint64_t>(offset + length, disk_.bytes.size());
    for (uint64_t at = offset; at < end; ++at) disk_.bytes[at] = std::byte{0};
    disk_.punched_bytes += length;
    return op.finish_now(0);
  }
  bool allocate(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    if (!disk_.can_allocate) return op.finish_now(-EOPNOTSUPP);
    return op.finish_now(offset + length > disk_.limit_bytes ? -ENOSPC : 0);
  }

 private:
  MemoryDisk& disk_;
};

class TestEnvironment final : public store::volume::Environment {
 public:
  uint64_t wall_ns() override { return now_ns_ += 1000; }
  void pass_ns(uint64_t time) { now_ns_ += time; }
  void random_bytes(std::span<std::byte> into) override {
    for (std::byte& byte : into) byte = static_cast<std::byte>(state_ = state_ * 6364136223846793005u + 1442695040888963407u, state_ >> 56);
  }

 private:
  uint64_t now_ns_ = 1'700'000'000'000'000'000;
  uint64_t state_ = 1;
};

// A request that can be awaited on its own loop.
struct Ask : block::Request {
  explicit Ask(io::Loop& on)
      : Request([](block::Request& self) {
          auto& ask = static_cast<Ask&>(self);
          ask.done = true;
          ask.ended.set();
        }) {
    loop = &on;
    extents = &found;
    max_extents = 64;
  }
  Ask& as(block::Command what, uint64_t at, uint64_t bytes, bool force = false) {
    command = what;
    offset = at;
    length = bytes;
    fua = force;
    buffer.resize(what == block::Command::kRead || what == block::Command::kWrite ? bytes : 0);
    data = buffer.empty() ? nullptr : buffer.data();
    done = false;
    return *this;
  }
  bool done = false;
  std::vector<std::byte> buffer;
  std::vector<block::Extent> found;
  coro::Event ended;
};

inline coro::Task<int> run(block::Device& device, Ask& ask) {
  device.submit(ask);
  while (!ask.done) co_await ask.ended.wait();
  co_return ask.error;
}

}  // namespace netblk::test
