// SPDX-License-Identifier: GPL-2.0-only
// The memory and null stores, and the promise of the hot path: inline, without an allocation (DESIGN 3).
#include "store/memory_store.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <new>
#include <random>
#include <thread>

#include "store/fake_file_test.h"
#include "store/home_lock.h"

namespace {

thread_local uint64_t allocations = 0;

void* counted(size_t size) {
  ++allocations;
  void* const memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) std::abort();
  return memory;
}
void* counted(size_t size, size_t alignment) {
  ++allocations;
  void* const memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

// The whole test program's: malloc is below, so that sanitizers see every block.
void* operator new(size_t size) { return counted(size); }
void* operator new[](size_t size) { return counted(size); }
void* operator new(size_t size, std::align_val_t alignment) { return counted(size, static_cast<size_t>(alignment)); }
void* operator new[](size_t size, std::align_val_t alignment) { return counted(size, static_cast<size_t>(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace netblk::store {
namespace {

using block::Command;
using test::LoopThread;
using test::run_request;
using test::Slot;

constexpr uint64_t kSize = (1 << 20) + 1536;  // not a whole number of pages

coro::Task<void> end_of(Slot& slot) {
  while (!slot.done()) co_await slot.ended.wait();
}

class MemoryStore : public testing::Test {
 protected:
  MemoryStore() { loop_ = backend_->make_loop(clock_).value(); }

  // Both stores end a request inside submit(): a loop that does not turn is enough.
  int ask(block::Device& device, Slot& slot) {
    const int before = slot.ends;
    device.submit(slot);
    EXPECT_EQ(slot.ends, before + 1) << "not answered inline";
    return slot.error;
  }
  void finish(Slot& slot) { loop_->run(end_of(slot)); }
  std::vector<std::byte> read(block::Device& device, uint64_t offset, uint64_t length) {
    Slot slot(*loop_);
    EXPECT_EQ(ask(device, slot.ask(Command::kRead, offset, length)), 0);
    return slot.buffer;
  }
  static bool all(const std::vector<std::byte>& bytes, int value) {
    return std::count(bytes.begin(), bytes.end(), static_cast<std::byte>(value)) == std::ssize(bytes);
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_ = io::make_epoll_backend(1).value();
  std::unique_ptr<io::Loop> loop_;
};
using NullStore = MemoryStore;

TEST_F(MemoryStore, IsZeroesAtFirst) {
  const auto device = make_memory_store(kSize).value();
  EXPECT_EQ(device->geometry().size_bytes, kSize);
  EXPECT_FALSE(device->geometry().read_only);
  EXPECT_TRUE(device->geometry().can_trim);
  EXPECT_TRUE(all(read(*device, 0, kSize), 0));
}

TEST_F(MemoryStore, KeepsToAModel) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto device = make_memory_store(kSize).value();
  std::vector<std::byte> model(kSize);
  for (int step = 0; step < 2000; ++step) {
    const uint64_t offset = random() % kSize;
    const uint64_t length = 1 + random() % std::min<uint64_t>(kSize - offset, 20'000);
    const auto from = model.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto until = from + static_cast<std::ptrdiff_t>(length);
    Slot slot(*loop_);
    switch (random() % 5) {
      case 0: EXPECT_EQ(ask(*device, slot.ask(Command::kFlush, 0, 0)), 0); break;
      case 1:
        slot.ask(random() % 2 ? Command::kTrim : Command::kWriteZeroes, offset, length, true);
        EXPECT_EQ(ask(*device, slot), 0);
        std::fill(from, until, std::byte{0});
        break;
      case 2: {
        const auto got = read(*device, offset, length);
        ASSERT_TRUE(std::equal(from, until, got.begin())) << "step " << step;
        break;
      }
      default:
        slot.ask(Command::kWrite, offset, length).fill(static_cast<int>(1 + random() % 255));
        EXPECT_EQ(ask(*device, slot), 0);
        std::copy(slot.buffer.begin(), slot.buffer.end(), from);
    }
  }
  EXPECT_TRUE(read(*device, 0, kSize) == model);
}

TEST_F(MemoryStore, TrimOfOddRangesTouchesNothingElse) {
  const auto device = make_memory_store(kSize).value();
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 1}, {4095, 2}, {1, 4094}, {4096, 4096}, {4095, 4098}, {100, 20'000}, {kSize - 1, 1},
           {kSize - 5000, 5000}}) {
    Slot write(*loop_), trim(*loop_);
    EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 0, kSize).fill(7)), 0);
    EXPECT_EQ(ask(*device, trim.ask(Command::kTrim, offset, length)), 0);
    std::vector<std::byte> expected(kSize, std::byte{7});
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    EXPECT_TRUE(read(*device, 0, kSize) == expected) << offset << '+' << length;
  }
}

TEST_F(MemoryStore, TellsWhichPagesItHas) {
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t size = 1000 * page + 512;
  const auto device = make_memory_store(size).value();
  const auto status = [&](uint64_t offset, uint64_t length, uint32_t most = 64) {
    Slot slot(*loop_);
    slot.ask(Command::kBlockStatus, offset, length).max_extents = most;
    EXPECT_EQ(ask(*device, slot), 0);
    return slot.found;
  };
  const auto change = [&](Command command, uint64_t offset, uint64_t length) {
    Slot slot(*loop_);
    EXPECT_EQ(ask(*device, slot.ask(command, offset, length).fill(1)), 0);
  };
  using Extents = std::vector<block::Extent>;
  EXPECT_EQ(status(0, size), (Extents{{size, true, true}}));
  EXPECT_EQ(status(7, 1), (Extents{{1, true, true}}));
  change(Command::kWrite, 10 * page + 5, 1);
  change(Command::kWrite, size - 1, 1);
  change(Command::kWrite, 100 * page, 200 * page);
  EXPECT_TRUE(all(read(*device, 400 * page, 100 * page), 0));  // a read takes no memory
  EXPECT_EQ(status(0, size), (Extents{{10 * page, true, true}, {page, false, false}, {89 * page, true, true},
                                      {200 * page, false, false}, {700 * page, true, true}, {512, false, false}}));
  EXPECT_EQ(status(10 * page + 1, 5 * page, 1), (Extents{{page - 1, false, false}}));
  EXPECT_EQ(status(10 * page + 1, 5 * page), (Extents{{page - 1, false, false}, {4 * page + 1, true, true}}));
  // What is trimmed is given back in whole pages.
  change(Command::kTrim, 150 * page + 1, 2 * page);
  EXPECT_EQ(status(100 * page, 200 * page),
            (Extents{{51 * page, false, false}, {page, true, true}, {148 * page, false, false}}));
  change(Command::kWriteZeroes, 10 * page, page);
  change(Command::kTrim, size - 512, 512);
  change(Command::kTrim, 90 * page, 220 * page);
  EXPECT_EQ(status(0, size), (Extents{{size, true, true}}));
  EXPECT_TRUE(all(read(*device, 0, size), 0));
  Slot kept(*loop_);
  kept.keep_allocated = true;
  EXPECT_EQ(ask(*device, kept.ask(Command::kWriteZeroes, 3 * page, page)), 0);
  EXPECT_EQ(status(3 * page, page), (Extents{{page, false, false}}));
}

TEST_F(MemoryStore, GivesMemoryBack) {
  const auto resident = [] {
    std::ifstream file("/proc/self/statm");
    uint64_t whole = 0, pages = 0;
    file >> whole >> pages;
    return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  };
  constexpr uint64_t kBytes = 64 << 20;
  const auto device = make_memory_store(kBytes).value();
  Slot slot(*loop_);
  slot.ask(Command::kWrite, 0, kBytes).fill(1);
  EXPECT_EQ(ask(*device, slot), 0);
  const uint64_t full = resident();
  for (const Command command : {Command::kTrim, Command::kWriteZeroes}) {
    EXPECT_EQ(ask(*device, slot.ask(command, command == Command::kTrim ? 0 : kBytes / 2, kBytes / 2)), 0);
  }
  EXPECT_LT(resident() + kBytes * 3 / 4, full);
  // Reading all of it takes none; into one buffer, as a sanitizer keeps what is freed.
  const uint64_t empty = resident();
  Slot reader(*loop_);
  for (uint64_t at = 0; at < kBytes; at += 1 << 20) {
    EXPECT_EQ(ask(*device, reader.ask(Command::kRead, at, 1 << 20)), 0);
    EXPECT_EQ(std::count(reader.buffer.begin(), reader.buffer.end(), std::byte{0}), 1 << 20);
  }
  EXPECT_LT(resident(), empty + kBytes / 4);
}

TEST_F(MemoryStore, AFastZeroIsHonest) {
  const auto device = make_memory_store(kSize).value();
  Slot slot(*loop_);
  slot.fast_zero = true;
  EXPECT_EQ(ask(*device, slot.ask(Command::kWriteZeroes, 0, kSize)), 0);
  slot.keep_allocated = true;
  EXPECT_EQ(ask(*device, slot.ask(Command::kWriteZeroes, 0, kSize)), EOPNOTSUPP) << "memory must be filled";
}

TEST_F(MemoryStore, AHugeZeroingLetsOthersIn) {
  constexpr uint64_t kBytes = 20 << 20;
  const auto device = make_memory_store(kBytes).value();
  Slot write(*loop_), huge(*loop_), last(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, kBytes - 4096, 4096).fill(1)), 0);
  huge.keep_allocated = true;
  device->submit(huge.ask(Command::kWriteZeroes, 100, kBytes - 200));
  EXPECT_FALSE(huge.done()) << "all of it in one turn";
  EXPECT_TRUE(all(read(*device, kBytes - 4096, 4096), 1)) << "what it has not come to";
  finish(huge);
  EXPECT_EQ(huge.error, 0);
  EXPECT_EQ(huge.ends, 1);
  EXPECT_TRUE(all(read(*device, 0, kBytes - 100), 0));
  EXPECT_TRUE(all(read(*device, kBytes - 100, 100), 1));
  EXPECT_EQ(ask(*device, last.ask(Command::kBlockStatus, 0, kBytes)), 0);
  EXPECT_EQ(last.found, (std::vector<block::Extent>{{kBytes, false, false}})) << "the space is kept";
}

TEST_F(MemoryStore, AHugeZeroingEndsWhenItIsAbandoned) {
  constexpr uint64_t kBytes = 20 << 20;
  const auto device = make_memory_store(kBytes).value();
  std::atomic<bool> gone{false};
  Slot write(*loop_), huge(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, kBytes - 4096, 4096).fill(1)), 0);
  huge.keep_allocated = true;
  huge.abandoned = &gone;
  device->submit(huge.ask(Command::kWriteZeroes, 0, kBytes));
  EXPECT_FALSE(huge.done());
  gone = true;
  finish(huge);
  EXPECT_EQ(huge.error, ECANCELED);
  EXPECT_TRUE(all(read(*device, kBytes - 4096, 4096), 1));
}

TEST_F(MemoryStore, LockedMemoryIsTrimmedToo) {
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto device = make_memory_store(64 * page).value();
  Slot write(*loop_), place(*loop_), trim(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 0, 64 * page).fill(1)), 0);
  place.ask(Command::kRead, 8 * page, 8 * page).data = nullptr;
  place.in_place = true;
  ASSERT_EQ(ask(*device, place), 0);
  ASSERT_EQ(::mlock(place.data, 8 * page), 0);
  EXPECT_EQ(ask(*device, trim.ask(Command::kTrim, 4 * page + 1, 16 * page)), 0);
  std::vector<std::byte> expected(64 * page, std::byte{1});
  std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(4 * page + 1), 16 * page, std::byte{0});
  EXPECT_TRUE(read(*device, 0, 64 * page) == expected);
}

// From here on the system takes no memory back from this thread, as older ones do not from a process that has locked it.
void refuse_madvise() {
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_madvise, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = std::size(rules), .filter = rules};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

TEST_F(MemoryStore, WhatTheSystemDoesNotTakeBackIsCleared) {
  constexpr uint64_t kBytes = 12 << 20;
  const auto device = make_memory_store(kBytes).value();
  const auto status = [&] {
    Slot slot(*loop_);
    EXPECT_EQ(ask(*device, slot.ask(Command::kBlockStatus, 0, kBytes)), 0);
    return slot.found;
  };
  std::vector<std::byte> expected(kBytes);
  std::thread([&] {
    refuse_madvise();
    Slot write(*loop_), zero(*loop_), trim(*loop_), nothing(*loop_);
    EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 4096, kBytes - 8192).fill(1)), 0);
    std::fill(expected.begin() + 4096, expected.end() - 4096, std::byte{1});
    zero.fast_zero = true;
    EXPECT_EQ(ask(*device, zero.ask(Command::kWriteZeroes, 1, kBytes - 2)), EOPNOTSUPP) << "it would be a write";
    EXPECT_TRUE(read(*device, 0, kBytes) == expected) << "nothing has changed";
    // The first piece ends at 8 MiB, and has an edge alone; a refusal of the second would come when that has changed.
    constexpr uint64_t kFirst = (8 << 20) - 100;
    EXPECT_EQ(ask(*device, zero.ask(Command::kWriteZeroes, kFirst, 100'000)), 0) << "it has begun";
    std::fill_n(expected.begin() + kFirst, 100'000, std::byte{0});
    EXPECT_TRUE(read(*device, 0, kBytes) == expected);
    device->submit(trim.ask(Command::kTrim, 5000, kBytes - 10'000));
    EXPECT_FALSE(trim.done()) << "all of it in one turn";
    finish(trim);
    EXPECT_EQ(trim.error, 0);
    EXPECT_EQ(ask(*device, zero.ask(Command::kWriteZeroes, 0, 4096)), 0) << "nothing is there";
  }).join();
  std::fill(expected.begin() + 5000, expected.end() - 5000, std::byte{0});
  EXPECT_TRUE(read(*device, 0, kBytes) == expected);
  using Extents = std::vector<block::Extent>;
  EXPECT_EQ(status(), (Extents{{4096, true, true}, {kBytes - 8192, false, false}, {4096, true, true}})) << "it is still there";
  Slot trim(*loop_);
  EXPECT_EQ(ask(*device, trim.ask(Command::kTrim, 0, kBytes)), 0);
  EXPECT_EQ(status(), (Extents{{kBytes, true, true}})) << "given back by a thread that may";
}

TEST_F(MemoryStore, TheEdgeHolds) {
  const auto device = make_memory_store(kSize).value();
  for (const Command command : {Command::kRead, Command::kWrite, Command::kTrim, Command::kWriteZeroes}) {
    Slot over(*loop_), empty(*loop_);
    EXPECT_EQ(ask(*device, over.ask(command, kSize - 511, 512)), EINVAL);
    std::byte byte{};
    empty.ask(command, 0, 0).data = &byte;
    EXPECT_EQ(ask(*device, empty), EINVAL);
  }
}

TEST_F(MemoryStore, AReadOrWriteEndsInlineWithoutAnAllocation) {
  const auto device = make_memory_store(kSize).value();
  Slot write(*loop_), read_slot(*loop_);
  write.ask(Command::kWrite, 4096, 4096).fill(3);
  read_slot.ask(Command::kRead, 4096, 4096);
  ask(*device, write);  // the first one may size what is kept
  const uint64_t before = allocations;
  for (int i = 0; i < 1000; ++i) {
    device->submit(write);
    device->submit(read_slot);
  }
  const uint64_t after = allocations;
  EXPECT_EQ(after, before);
  EXPECT_EQ(read_slot.ends, 1000);
  EXPECT_EQ(read_slot.buffer, write.buffer);
  const auto probe = std::make_unique<int>(1);
  EXPECT_EQ(allocations, after + 1) << "the counter does not count";
}

TEST_F(MemoryStore, AnAbandonedWriteIsNotApplied) {
  const auto device = make_memory_store(kSize).value();
  const std::atomic<bool> gone{true};
  Slot slot(*loop_);
  slot.abandoned = &gone;
  EXPECT_EQ(ask(*device, slot.ask(Command::kWrite, 0, 512).fill(1)), ECANCELED);
  EXPECT_TRUE(all(read(*device, 0, 512), 0));
}

TEST_F(MemoryStore, OverlappingWritesOfTwoThreadsAreWhole) {
  const auto device = make_memory_store(kSize).value();
  LoopThread a(*backend_), b(*backend_);
  std::vector<std::unique_ptr<Slot>> slots;
  constexpr uint64_t kLength = 64 << 10;
  for (int i = 0; i < 200; ++i) {
    LoopThread& thread = i % 2 == 0 ? a : b;
    slots.push_back(std::make_unique<Slot>(thread.loop()));
    slots.back()->ask(Command::kWrite, 0, kLength).fill(1 + i % 2);
  }
  std::thread other([&] {
    for (size_t i = 1; i < slots.size(); i += 2) b.call([&, i] { device->submit(*slots[i]); });
  });
  for (size_t i = 0; i < slots.size(); i += 2) a.call([&, i] { device->submit(*slots[i]); });
  other.join();
  // A write that waited is granted by a message from the other loop: each turn lets at least one more end.
  for (bool busy = true; busy;) {
    busy = false;
    for (size_t first : {0u, 1u}) {
      (first == 0 ? a : b).call([&] {
        for (size_t i = first; i < slots.size(); i += 2) busy = busy || !slots[i]->done();
      });
    }
  }
  a.stop();
  b.stop();
  for (const auto& slot : slots) EXPECT_EQ(slot->ends, 1);
  const auto bytes = read(*device, 0, kLength);
  EXPECT_TRUE(all(bytes, 1) || all(bytes, 2)) << "two writes are mixed";
}

TEST_F(MemoryStore, AReadInPlaceIsTheStoresOwnMemory) {
  const auto device = make_memory_store(kSize).value();
  ASSERT_TRUE(device->geometry().reads_in_place);
  Slot write(*loop_), place(*loop_), later(*loop_), over(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 4096, 1024).fill(3)), 0);
  const auto in_place = [&](Slot& slot, uint64_t offset) {
    slot.ask(Command::kRead, offset, 1024).data = nullptr;
    slot.in_place = true;
    return ask(*device, slot);
  };
  ASSERT_EQ(in_place(place, 4096), 0);
  ASSERT_NE(place.data, nullptr);
  EXPECT_EQ(std::memcmp(place.data, write.buffer.data(), 1024), 0);
  EXPECT_EQ(ask(*device, later.ask(Command::kWrite, 4096, 1024).fill(4)), 0);
  EXPECT_EQ(place.data[0], std::byte{4}) << "later changes show in it";
  EXPECT_EQ(in_place(over, kSize - 512), EINVAL);
  EXPECT_EQ(over.data, nullptr);
}

// The second thread comes in the middle of the first one's work: nothing that both change is counted twice or lost.
TEST(HomeLock, WhoComesSecondWaitsForTheOneAtHomeAndThenAllUseTheLock) {
  for (int round = 0; round < 50; ++round) {
    HomeLock home;
    std::mutex lock;
    uint64_t count = 0;  // guarded by either
    std::atomic<bool> begun{false};
    const auto add = [&](int times) {
      for (int i = 0; i < times; ++i) {
        if (home.enter()) {
          ++count;
          home.leave();
        } else {
          const std::lock_guard guard(lock);
          ++count;
        }
        begun = true;
      }
    };
    std::thread first([&] { add(20'000); });
    while (!begun) std::this_thread::yield();
    std::thread second([&] { add(2'000); }), third([&] { add(2'000); });
    first.join();
    second.join();
    third.join();
    EXPECT_EQ(count, 24'000u);
    EXPECT_FALSE(home.enter()) << "shared for good";
  }
}

TEST_F(MemoryStore, LongAndCrossingRangesOfManyThreadsDoNotLockEachOtherOut) {
  constexpr uint64_t kBig = 300 << 20;
  const auto device = make_memory_store(kBig).value();
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(seed + thread);
      Slot slot(*loop_);
      for (int i = 0; i < 500; ++i) {
        const uint64_t offset = random() % kBig;
        const uint64_t length = 1 + random() % (kBig - offset);
        device->submit(slot.ask(Command::kTrim, offset, i % 4 == 0 ? length : std::min<uint64_t>(length, 3 << 20)));
        errors += slot.error != 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(errors, 0);
}

TEST_F(MemoryStore, AWriteAcrossManyMebibytesIsWhole) {
  const auto device = make_memory_store(80 << 20).value();
  Slot write(*loop_);
  write.ask(Command::kWrite, (1 << 20) - 7, 70 << 20).fill(5);
  EXPECT_EQ(ask(*device, write), 0);
  EXPECT_TRUE(read(*device, (1 << 20) - 7, 70 << 20) == write.buffer);
  EXPECT_TRUE(all(read(*device, 0, (1 << 20) - 7), 0));
  EXPECT_TRUE(all(read(*device, (71 << 20) - 7, 4096), 0));
}

TEST_F(MemoryStore, MoreThanThereIsIsRefusedInWords) {
  const auto made = make_memory_store(uint64_t{1} << 62);
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.error().message.find("4096 PiB"), std::string::npos) << made.error().message;
}

TEST_F(NullStore, ReadsZeroesAndForgetsWrites) {
  const auto device = make_null_store(uint64_t{1} << 50);
  EXPECT_EQ(device->geometry().size_bytes, uint64_t{1} << 50);
  Slot write(*loop_), trim(*loop_), flush(*loop_), read_slot(*loop_), over(*loop_);
  EXPECT_EQ(ask(*device, write.ask(Command::kWrite, 0, 4096, true).fill(9)), 0);
  EXPECT_EQ(ask(*device, trim.ask(Command::kTrim, 0, uint64_t{1} << 50)), 0);
  EXPECT_EQ(ask(*device, flush.ask(Command::kFlush, 0, 0)), 0);
  read_slot.ask(Command::kRead, 0, 4096).fill(1);
  EXPECT_EQ(ask(*device, read_slot), 0);
  EXPECT_TRUE(all(read_slot.buffer, 0));
  EXPECT_EQ(ask(*device, over.ask(Command::kRead, uint64_t{1} << 50, 1)), EINVAL);
  EXPECT_EQ(ask(*device, read_slot.ask(Command::kBlockStatus, 5, 1 << 20)), 0);
  EXPECT_EQ(read_slot.found, (std::vector<block::Extent>{{1 << 20, true, true}}));
}

}  // namespace
}  // namespace netblk::store
