// SPDX-License-Identifier: GPL-2.0-only
// A disk for tests: an io::File in memory whose moves, errors and completions the test decides; and what store tests
// need to run requests on it. Used on one loop, or guarded by its own mutex where a test runs two.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "io/epoll/epoll_backend.h"
#include "io/loop.h"

namespace netblk::test {

enum class Call { kRead, kWrite, kDatasync, kPunchHole };

// What the disk holds and did; outlives the File that a store owns.
class FakeDisk {
 public:
  explicit FakeDisk(size_t size_bytes) : contents(size_bytes) {}

  struct Seen {
    Call call;
    uint64_t offset;
    uint64_t length;
    uintptr_t address;
    int nth = 0;  // of its kind, from 1
  };
  struct Held {
    io::Loop* loop;
    io::Op* op;
    Seen seen;
    std::span<std::byte> into;
    std::span<const std::byte> from;
  };

  // The largest number of bytes that one read or write moves.
  size_t most_bytes = SIZE_MAX;
  // Moves 1..most_bytes bytes by this generator when not 0.
  uint64_t move_seed = 0;
  // Operations of this kind stay in flight until release().
  bool hold_reads = false, hold_writes = false, hold_syncs = false, hold_punches = false;
  // Ends the nth call (from 1) of the kind with this negative errno value; the others work.
  struct Fault {
    Call call;
    int nth;
    int32_t result;
  };
  std::vector<Fault> faults;

  std::vector<std::byte> contents;
  // What a power cut would leave: the contents at the start of the last good datasync.
  std::vector<std::byte> durable;
  std::vector<Seen> seen;
  std::deque<Held> held;
  std::mutex mutex;

  int count(Call call) {
    const std::lock_guard lock(mutex);
    int found = 0;
    for (const Seen& one : seen) found += one.call == call;
    return found;
  }
  size_t held_count() {
    const std::lock_guard lock(mutex);
    return held.size();
  }

  // Carries the held operation out, on the thread of its loop.
  void release(size_t index = 0) {
    Held one;
    {
      const std::lock_guard lock(mutex);
      ASSERT_LT(index, held.size());
      one = held[index];
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(index));
    }
    one.op->complete(perform(one));
  }

  int32_t perform(const Held& one) {
    const std::lock_guard lock(mutex);
    for (const Fault& fault : faults)
      if (fault.call == one.seen.call && fault.nth == one.seen.nth) return fault.result;
    const size_t end = contents.size();
    const size_t at = std::min<size_t>(one.seen.offset, end);
    size_t length = std::min<size_t>(one.seen.length, end - at);
    switch (one.seen.call) {
      case Call::kRead:
        length = std::min(length, allowed());
        std::memcpy(one.into.data(), contents.data() + at, length);
        return static_cast<int32_t>(length);
      case Call::kWrite:
        length = std::min(length, allowed());
        std::memcpy(contents.data() + at, one.from.data(), length);
        return static_cast<int32_t>(length);
      case Call::kPunchHole: std::memset(contents.data() + at, 0, length); return 0;
      case Call::kDatasync: durable = contents; return 0;
    }
    return -EINVAL;
  }

 private:
  size_t allowed() {
    if (move_seed == 0) return most_bytes;
    move_seed = move_seed * 6364136223846793005u + 1442695040888963407u;
    return 1 + (move_seed >> 33) % most_bytes;
  }
};

class FakeFile final : public io::File {
 public:
  explicit FakeFile(FakeDisk& disk) : disk_(disk) {}

  bool read(io::Loop& loop, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    return begin(disk_.hold_reads,
                 {&loop, &op, {Call::kRead, offset, into.size(), reinterpret_cast<uintptr_t>(into.data())}, into, {}});
  }
  bool write(io::Loop& loop, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    return begin(disk_.hold_writes,
                 {&loop, &op, {Call::kWrite, offset, from.size(), reinterpret_cast<uintptr_t>(from.data())}, {}, from});
  }
  bool datasync(io::Loop& loop, io::Op& op) override {
    return begin(disk_.hold_syncs, {&loop, &op, {Call::kDatasync, 0, 0, 0}, {}, {}});
  }
  bool punch_hole(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) override {
    return begin(disk_.hold_punches, {&loop, &op, {Call::kPunchHole, offset, length, 0}, {}, {}});
  }

 private:
  bool begin(bool hold, FakeDisk::Held one) {
    {
      const std::lock_guard lock(disk_.mutex);
      one.seen.nth = 1;
      for (const FakeDisk::Seen& earlier : disk_.seen)
        if (earlier.call == one.seen.call) ++one.seen.nth;
      disk_.seen.push_back(one.seen);
      if (hold) {
        one.op->begin();
        disk_.held.push_back(one);
        return false;
      }
    }
    return one.op->finish_now(disk_.perform(one));
  }

  FakeDisk& disk_;
};

// A request slot that notes its end, and can be awaited on its own loop.
struct Slot : block::Request {
  explicit Slot(io::Loop& on)
      : Request([](block::Request& self) {
          auto& slot = static_cast<Slot&>(self);
          ++slot.ends;
          if (slot.order != nullptr) slot.order->push_back(slot.number);
          slot.ended.set();
        }) {
    loop = &on;
  }
  Slot& ask(block::Command what, uint64_t at, uint64_t bytes, bool force = false) {
    command = what;
    offset = at;
    length = bytes;
    fua = force;
    if (what == block::Command::kRead || what == block::Command::kWrite) {
      buffer.resize(bytes);
      data = buffer.data();
    } else {
      data = nullptr;
    }
    extents = &found;
    max_extents = 64;
    return *this;
  }
  Slot& fill(int value) {
    std::fill(buffer.begin(), buffer.end(), static_cast<std::byte>(value));
    return *this;
  }
  bool done() const { return ends > 0; }

  int ends = 0;
  std::vector<std::byte> buffer;
  std::vector<block::Extent> found;
  coro::Event ended;
  std::vector<int>* order = nullptr;
  int number = 0;
};

inline coro::Task<int> run_request(block::Device& device, Slot& slot) {
  const int before = slot.ends;
  device.submit(slot);
  while (slot.ends == before) co_await slot.ended.wait();
  co_return slot.error;
}

// A loop on a thread of its own. The test's thread asks it to run functions and waits for each.
class LoopThread {
 public:
  explicit LoopThread(io::Backend& backend) {
    auto made = backend.make_loop(clock_);
    loop_ = std::move(made).value();
    thread_ = std::thread([this] { loop_->run(wait_for_stop(stop_)); });
  }
  LoopThread(const LoopThread&) = delete;
  LoopThread& operator=(const LoopThread&) = delete;
  ~LoopThread() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    call([this] { end(); });
    thread_.join();
  }
  // After an end() that something else called.
  void join() { thread_.join(); }
  // On its own thread: its main task ends, and the loop with it.
  void end() { stop_.set(); }
  void call(std::function<void()> function) {
    Message message(std::move(function));
    const std::future<void> told = message.ran.get_future();
    loop_->post(message);
    told.wait();
  }
  io::Loop& loop() { return *loop_; }
  std::thread::id id() const { return thread_.get_id(); }

 private:
  struct Message : io::Posted {
    explicit Message(std::function<void()> call)
        : Posted([](coro::Runnable& self) {
            auto& message = static_cast<Message&>(self);
            message.function();
            // The waiting thread destroys the message as soon as it hears of it.
            std::promise<void> told = std::move(message.ran);
            told.set_value();
          }),
          function(std::move(call)) {}
    std::function<void()> function;
    std::promise<void> ran;
  };
  static coro::Task<void> wait_for_stop(coro::Event& stop) { co_await stop.wait(); }

  io::SteadyClock clock_;
  std::unique_ptr<io::Loop> loop_;
  coro::Event stop_;
  std::thread thread_;
};

// Lets everything that is ready on this loop run, `rounds` times over.
struct NextRound {
  struct Node : coro::Runnable {
    Node() : Runnable([](coro::Runnable& self) { static_cast<Node&>(self).waiter.resume(); }) {}
    std::coroutine_handle<> waiter;
  };
  Node node;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    node.waiter = waiter;
    coro::ReadyQueue::current().push(node);
  }
  void await_resume() const {}
};
inline coro::Task<void> settle(int rounds = 64) {
  for (int i = 0; i < rounds; ++i) co_await NextRound{};
}

}  // namespace netblk::test
