// SPDX-License-Identifier: GPL-2.0-only
// FileStore shared by the loops of several threads: order, group commit, and where requests end.
#include "store/file_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <random>

#include "store/fake_file_test.h"

namespace netblk::store {
namespace {

using block::Command;
using test::Call;
using test::FakeDisk;
using test::FakeFile;
using test::LoopThread;
using test::run_request;
using test::Slot;

constexpr uint64_t kSize = 1 << 20;

class FileStoreThreads : public testing::Test {
 protected:
  FileStoreThreads() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    backend_ = io::make_epoll_backend(1).value();
    store_ = std::make_unique<FileStore>(block::Geometry{.size_bytes = kSize, .can_trim = true},
                                         std::make_unique<FakeFile>(disk_), nullptr, 0);
    a_ = std::make_unique<LoopThread>(*backend_);
    b_ = std::make_unique<LoopThread>(*backend_);
  }

  // What one loop posts to the other, and that in turn queues, has run after a few rounds on both.
  void quiesce() {
    for (int round = 0; round < 12; ++round) {
      a_->call([] {});
      b_->call([] {});
    }
  }
  void submit(LoopThread& thread, Slot& slot) {
    thread.call([&] { store_->submit(slot); });
    quiesce();
  }
  // Ends the held operation on the loop it was started on.
  void release(size_t index = 0) {
    io::Loop* loop;
    {
      const std::lock_guard lock(disk_.mutex);
      loop = disk_.held.at(index).loop;
    }
    (loop == &a_->loop() ? a_ : b_)->call([&] { disk_.release(index); });
    quiesce();
  }
  bool done(LoopThread& thread, Slot& slot) {
    bool result = false;
    thread.call([&] { result = slot.done(); });
    return result;
  }

  FakeDisk disk_{kSize};
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<FileStore> store_;
  std::unique_ptr<LoopThread> a_, b_;
};
using FileStoreThreadsDeath = FileStoreThreads;

struct HomeSlot : Slot {
  explicit HomeSlot(io::Loop& on) : Slot(on) {
    on_done = [](block::Request& self) {
      auto& slot = static_cast<HomeSlot&>(self);
      slot.ended_on = std::this_thread::get_id();
      ++slot.ends;
    };
  }
  std::thread::id ended_on;
};

TEST_F(FileStoreThreads, OverlappingWritesOfTwoLoopsAreSerialisedAndEndAtHome) {
  disk_.hold_writes = true;
  HomeSlot first(a_->loop()), second(b_->loop()), third(a_->loop()), apart(b_->loop());
  first.ask(Command::kWrite, 0, 4096).fill(1);
  second.ask(Command::kWrite, 2048, 4096).fill(2);
  third.ask(Command::kWrite, 4096, 4096).fill(3);
  apart.ask(Command::kWrite, 65536, 512).fill(4);
  submit(*a_, first);
  submit(*b_, second);
  submit(*a_, third);
  submit(*b_, apart);
  EXPECT_EQ(disk_.held_count(), 2u);
  release(1);
  EXPECT_TRUE(done(*b_, apart));
  for (Slot* const slot : {static_cast<Slot*>(&first), static_cast<Slot*>(&second), static_cast<Slot*>(&third)}) {
    ASSERT_EQ(disk_.held_count(), 1u);
    EXPECT_EQ(disk_.held[0].seen.offset, slot->offset);
    EXPECT_EQ(disk_.held[0].loop, slot->loop) << "an operation runs on the loop of its request";
    release();
  }
  EXPECT_TRUE(done(*a_, third));
  EXPECT_EQ(first.ended_on, a_->id());
  EXPECT_EQ(second.ended_on, b_->id());
  EXPECT_EQ(third.ended_on, a_->id());
  EXPECT_EQ(std::to_integer<int>(disk_.contents[4095]), 2);
  EXPECT_EQ(std::to_integer<int>(disk_.contents[4096]), 3);
}

TEST_F(FileStoreThreads, OneSyncAnswersTwoLoopsEachAtHome) {
  disk_.hold_syncs = true;
  HomeSlot running(a_->loop()), waits_a(a_->loop()), waits_b(b_->loop());
  submit(*a_, static_cast<Slot&>(running).ask(Command::kFlush, 0, 0));
  submit(*b_, static_cast<Slot&>(waits_b).ask(Command::kWrite, 0, 512, true));
  submit(*a_, static_cast<Slot&>(waits_a).ask(Command::kWrite, 512, 512, true));
  EXPECT_EQ(disk_.count(Call::kDatasync), 1);
  release();
  EXPECT_TRUE(done(*a_, running));
  EXPECT_FALSE(done(*b_, waits_b));
  EXPECT_EQ(disk_.count(Call::kDatasync), 2);
  release();
  EXPECT_TRUE(done(*a_, waits_a));
  EXPECT_TRUE(done(*b_, waits_b));
  EXPECT_EQ(disk_.count(Call::kDatasync), 2);
  EXPECT_EQ(waits_a.ended_on, a_->id());
  EXPECT_EQ(waits_b.ended_on, b_->id());
}

TEST_F(FileStoreThreads, AFailedSyncPoisonsForEveryLoop) {
  disk_.hold_syncs = true;
  disk_.faults = {{Call::kDatasync, 1, -EIO}};
  Slot on_a(a_->loop()), on_b(b_->loop()), later(b_->loop());
  submit(*a_, on_a.ask(Command::kFlush, 0, 0));
  submit(*b_, on_b.ask(Command::kWrite, 0, 512, true));
  while (disk_.held_count() > 0) release();
  EXPECT_TRUE(done(*a_, on_a));
  EXPECT_TRUE(done(*b_, on_b));
  EXPECT_EQ(on_a.error, EIO);
  EXPECT_EQ(on_b.error, EIO);
  submit(*b_, later.ask(Command::kWrite, 0, 512));
  EXPECT_EQ(later.error, EIO);
}

// What a slow disk does: each operation that is in flight is completed by a message to its loop.
struct DiskThread {
  explicit DiskThread(FakeDisk& of) : disk(of) {}
  struct Completion : io::Posted {
    Completion(FakeDisk& of, const FakeDisk::Held& ended)
        : Posted([](coro::Runnable& self) {
            auto& message = static_cast<Completion&>(self);
            message.one.op->complete(message.disk.perform(message.one));
          }),
          disk(of), one(ended) {}
    FakeDisk& disk;
    FakeDisk::Held one;
  };
  void serve_one() {
    for (;; std::this_thread::yield()) {
      const std::lock_guard lock(disk.mutex);
      if (disk.held.empty()) continue;
      sent.push_back(std::make_unique<Completion>(disk, disk.held.front()));
      disk.held.pop_front();
      sent.back()->one.loop->post(*sent.back());
      return;
    }
  }
  FakeDisk& disk;
  std::vector<std::unique_ptr<Completion>> sent;
};

// A loop may end as soon as its own requests have ended: those of other loops must not hang on it.
TEST_F(FileStoreThreadsDeath, ALoopThatEndsDoesNotTakeTheNextSyncWithIt) {
  EXPECT_EXIT(
      {
        ::alarm(20);  // the failure is a hang
        disk_.hold_syncs = true;
        struct LastOfA : Slot {
          using Slot::Slot;
          LoopThread* home = nullptr;
        };
        LastOfA on_a(a_->loop());
        Slot on_b(b_->loop());
        on_a.home = a_.get();
        on_a.on_done = [](block::Request& self) { static_cast<LastOfA&>(self).home->end(); };
        submit(*a_, on_a.ask(Command::kFlush, 0, 0));
        submit(*b_, on_b.ask(Command::kFlush, 0, 0));
        DiskThread disk_thread(disk_);
        disk_thread.serve_one();  // answers A, which ends
        disk_thread.serve_one();  // answers B
        while (!done(*b_, on_b)) std::this_thread::yield();
        a_->join();
        b_->stop();
        ::_exit(on_b.error == 0 && disk_.count(Call::kDatasync) == 2 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

coro::Task<void> hammer(io::Loop& loop, block::Device& device, uint64_t seed, std::atomic<int>& errors) {
  std::mt19937_64 random(seed);
  for (int step = 0; step < 300; ++step) {
    Slot slot(loop);
    const uint64_t offset = random() % 16 * 4096;
    const uint64_t length = 4096 * (1 + random() % 4);
    // A write fills its range with one value, its own: an interleaved write would leave two in a block's range.
    slot.ask(random() % 8 == 0 ? Command::kFlush : Command::kWrite, offset, length, random() % 4 == 0)
        .fill(static_cast<int>(1 + random() % 250));
    const int error = co_await run_request(device, slot);
    if (error != 0) ++errors;
  }
}

coro::Task<void> hammer_side_by_side(io::Loop& loop, block::Device& device, uint64_t seed, std::atomic<int>& errors) {
  coro::Scope scope;
  for (uint64_t i = 0; i < 8; ++i) scope.spawn(hammer(loop, device, seed + i, errors));
  co_await scope.join();
}

// The fake disk checks that no two overlapping writes are in it at once.
class ExclusiveFile final : public io::File {
 public:
  explicit ExclusiveFile(std::atomic<int>& clashes) : clashes_(clashes) {}
  bool read(io::Loop&, io::Op& op, std::span<std::byte> into, uint64_t) override {
    return op.finish_now(static_cast<int32_t>(into.size()));
  }
  bool write(io::Loop&, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    for (uint64_t block = offset / 4096; block < (offset + from.size()) / 4096; ++block)
      if (busy_[block].exchange(true)) ++clashes_;
    std::this_thread::yield();
    for (uint64_t block = offset / 4096; block < (offset + from.size()) / 4096; ++block) busy_[block] = false;
    return op.finish_now(static_cast<int32_t>(from.size()));
  }
  bool datasync(io::Loop&, io::Op& op) override { return op.finish_now(0); }
  bool punch_hole(io::Loop&, io::Op& op, uint64_t, uint64_t) override { return op.finish_now(0); }

 private:
  std::atomic<int>& clashes_;
  std::array<std::atomic<bool>, kSize / 4096> busy_{};
};

TEST(FileStoreManyThreads, NoOverlappingWritesAreEverInTheFileAtOnce) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::atomic<int> clashes{0};
  std::atomic<int> errors{0};
  auto backend = io::make_epoll_backend(1).value();
  FileStore store({.size_bytes = kSize, .can_trim = true}, std::make_unique<ExclusiveFile>(clashes), nullptr, 0);
  // Loops that end while others still use the store are the test above: here all stay until every task has ended.
  std::vector<std::unique_ptr<LoopThread>> threads;
  for (int i = 0; i < 3; ++i) threads.push_back(std::make_unique<LoopThread>(*backend));
  struct Work {
    coro::Scope scope;
  };
  std::vector<std::unique_ptr<Work>> works;
  for (size_t i = 0; i < threads.size(); ++i) {
    works.push_back(std::make_unique<Work>());
    threads[i]->call([&, i] {
      works[i]->scope.spawn(hammer_side_by_side(threads[i]->loop(), store, seed + 100 * i, errors));
    });
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (size_t i = 0; i < threads.size(); ++i)
      threads[i]->call([&, i] { busy = busy || works[i]->scope.running() > 0; });
  }
  for (const auto& thread : threads) thread->stop();
  EXPECT_EQ(clashes, 0);
  EXPECT_EQ(errors, 0);
  EXPECT_FALSE(store.poisoned());
}

}  // namespace
}  // namespace netblk::store
