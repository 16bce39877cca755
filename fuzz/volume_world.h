// SPDX-License-Identifier: GPL-2.0-only
// What the fuzz targets of volumes have in common: a loop without a kernel, a file in memory, requests, and the bytes of an
// input. Nothing of it waits, asks for the time, or draws numbers that differ from run to run.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "block/device.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"
#include "store/volume/volume.h"

namespace netblk::fuzz {

using Bytes = std::vector<std::byte>;

// No length in a volume of a few MiB, or in a stream, becomes an allocation beyond this.
inline constexpr size_t kMostAllocated = 32u << 20;
// Of one run: beyond them it hangs.
inline constexpr uint64_t kMostOperations = 400'000;
inline constexpr uint64_t kMostTurns = 400'000;

[[noreturn]] inline void fail(const char* what, const std::string& why = {}) {
  std::fprintf(stderr, "the fuzz target found: %s%s%s\n", what, why.empty() ? "" : ": ", why.c_str());
  std::abort();
}
inline void check(bool holds, const char* what, const std::string& why = {}) {
  if (!holds) fail(what, why);
}

inline void look_at_allocation(const volatile void*, size_t size) {
  if (size > kMostAllocated) fail("an allocation beyond its bound", std::to_string(size));
}
inline void begin_process() {
  set_log_level(LogLevel::kOff);
  (void)__sanitizer_install_malloc_and_free_hooks(&look_at_allocation, [](const volatile void*) {});
}

class Clock final : public io::Clock {
 public:
  uint64_t now_ms() const override { return now_ms_; }
  void pass(uint64_t ms) { now_ms_ += ms; }

 private:
  uint64_t now_ms_ = 1000;
};

// Its time goes on when there is nothing else to do.
class Loop final : public io::Loop {
 public:
  explicit Loop(Clock& clock) : io::Loop(clock), clock_(clock) {}
  std::unique_ptr<io::Stream> make_stream(io::UniqueFd) override { fail("a volume asks for a socket"); }
  std::unique_ptr<io::Listener> make_listener(io::UniqueFd) override { fail("a volume asks for a socket"); }
  std::string description() const override { return "of a fuzz target"; }

  template <class T>
  T now(coro::Task<T> task) {
    std::optional<T> result;
    run(keep(std::move(task), result));
    return std::move(*result);
  }

 protected:
  void poll(int64_t timeout_ms) override {
    if (timeout_ms < 0) fail("nothing is left that could happen, and the run has not ended");
    check(++turns_ < kMostTurns, "it hangs: so many turns of the loop");
    clock_.pass(static_cast<uint64_t>(timeout_ms));
  }
  void wake() override {}

 private:
  template <class T>
  static coro::Task<void> keep(coro::Task<T> task, std::optional<T>& into) {
    T result = co_await std::move(task);
    into.emplace(std::move(result));
  }
  Clock& clock_;
  uint64_t turns_ = 0;
};

// The bytes outlive the file that a volume owns.
struct Disk {
  Bytes bytes;
  uint64_t most_bytes = 8u << 20;
  uint64_t operations = 0;
};

class File final : public io::File {
 public:
  explicit File(Disk& disk) : disk_(disk) {}

  bool read(io::Loop&, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    count();
    const size_t end = disk_.bytes.size(), at = std::min<size_t>(offset, end), length = std::min(into.size(), end - at);
    if (length != 0) std::memcpy(into.data(), disk_.bytes.data() + at, length);
    return op.finish_now(static_cast<int32_t>(length));
  }
  bool write(io::Loop&, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    count();
    if (offset > disk_.most_bytes || from.size() > disk_.most_bytes - offset) return op.finish_now(-ENOSPC);
    if (disk_.bytes.size() < offset + from.size()) disk_.bytes.resize(offset + from.size());
    std::memcpy(disk_.bytes.data() + offset, from.data(), from.size());
    return op.finish_now(static_cast<int32_t>(from.size()));
  }
  bool datasync(io::Loop&, io::Op& op) override {
    count();
    return op.finish_now(0);
  }
  bool punch_hole(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    count();
    const uint64_t end = disk_.bytes.size(), from = std::min(offset, end), until = from + std::min(length, end - from);
    std::fill(disk_.bytes.begin() + static_cast<ptrdiff_t>(from), disk_.bytes.begin() + static_cast<ptrdiff_t>(until), std::byte{0});
    return op.finish_now(0);
  }
  bool allocate(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    count();
    return op.finish_now(offset > disk_.most_bytes || length > disk_.most_bytes - offset ? -ENOSPC : 0);
  }

 private:
  void count() { check(++disk_.operations < kMostOperations, "it hangs: so many reads and writes of the file"); }
  Disk& disk_;
};

class Environment final : public store::volume::Environment {
 public:
  explicit Environment(uint64_t seed = 1) : state_(seed) {}
  uint64_t wall_ns() override { return now_ns_ += 60'000'000; }
  void random_bytes(std::span<std::byte> into) override {
    for (std::byte& byte : into) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<std::byte>(state_ >> 56);
    }
  }

 private:
  uint64_t now_ns_ = 1'700'000'000'000'000'000;
  uint64_t state_;
};

// One request, and its error.
class Asked : private block::Request {
 public:
  Asked(io::Loop& of, block::Command what, uint64_t at, uint64_t bytes, std::byte* memory = nullptr)
      : Request([](block::Request& self) {
          auto& asked = static_cast<Asked&>(self);
          asked.is_done_ = true;
          asked.done_.set();
        }) {
    loop = &of;
    command = what;
    offset = at;
    length = bytes;
    data = memory;
  }
  using Request::extents;
  using Request::keep_allocated;
  using Request::max_extents;
  coro::Task<int> run(block::Device& on) {
    on.submit(*this);
    while (!is_done_) co_await done_.wait();
    co_return error;
  }

 private:
  coro::Event done_;
  bool is_done_ = false;
};

inline coro::Task<int> ask(io::Loop& loop, block::Device& on, block::Command what, uint64_t at, uint64_t bytes, std::byte* memory = nullptr) {
  Asked asked(loop, what, at, bytes, memory);
  const int error = co_await asked.run(on);
  co_return error;
}

// The bytes of an input, one number after the other; behind them there are zeroes.
class Input {
 public:
  explicit Input(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool at_end() const { return bytes_.empty(); }
  uint64_t number(size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size && !bytes_.empty(); ++i, bytes_ = bytes_.subspan(1)) value |= uint64_t{bytes_[0]} << 8 * i;
    return value;
  }
  uint8_t byte() { return static_cast<uint8_t>(number(1)); }

 private:
  std::span<const uint8_t> bytes_;
};

// One change of bytes: what is put there, and how. Beyond their end nothing happens.
inline void edit(std::span<std::byte> bytes, Input& input) {
  static constexpr uint64_t kInteresting[] = {0,          1,           2,           15,          16,          4095,        4096,       65535,
                                              65536,      0x7fffffff,  0x80000000,  0xfffffffe,  0xffffffff,  1ull << 32,  1ull << 44, (1ull << 52) - 1,
                                              1ull << 52, 1ull << 62,  1ull << 63,  (1ull << 63) - 512, ~0ull - 1, ~0ull};
  const uint8_t how = input.byte();
  const uint64_t at = input.number(2);
  const size_t size = size_t{1} << (how & 3);
  if (at > bytes.size() || size > bytes.size() - at) return;
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) value |= std::to_integer<uint64_t>(bytes[at + i]) << 8 * i;
  switch (how >> 2 & 3) {
    case 0: value = input.number(size); break;
    case 1: value = kInteresting[input.byte() % std::size(kInteresting)]; break;
    case 2: value += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(input.byte()))); break;
    default: value ^= uint64_t{1} << input.byte() % (8 * size); break;
  }
  for (size_t i = 0; i < size; ++i) bytes[at + i] = static_cast<std::byte>(value >> 8 * i);
}

}  // namespace netblk::fuzz
