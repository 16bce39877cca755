// SPDX-License-Identifier: GPL-2.0-only
// FileStore on a scripted disk: durability, order, failure. Real files: open_file_test.cc.
#include "store/file_store.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <random>

#include "store/fake_file_test.h"

namespace netblk::store {
namespace {

using block::Command;
using test::Call;
using test::FakeDisk;
using test::FakeFile;
using test::run_request;
using test::settle;
using test::Slot;

constexpr uint64_t kSize = 1 << 20;

class FileStoreTest : public testing::Test {
 public:
  FileStoreTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    backend_ = io::make_epoll_backend(1).value().release();
    loop_ = backend_->make_loop(clock_).value();
    make_store();
  }
  ~FileStoreTest() override {
    store.reset();
    loop_.reset();
    delete backend_;
  }

  void make_store() {
    store = std::make_unique<FileStore>(block::Geometry{.size_bytes = kSize, .can_trim = true},
                                        std::make_unique<FakeFile>(disk), nullptr, 0);
  }
  void run(coro::Task<void> task) { loop_->run(std::move(task)); }
  io::Loop& loop() { return *loop_; }
  void submit(Slot& slot) { store->submit(slot); }

  FakeDisk disk{kSize};
  std::unique_ptr<FileStore> store;

 private:
  io::SteadyClock clock_;
  io::Backend* backend_ = nullptr;
  std::unique_ptr<io::Loop> loop_;
};

int byte_at(const FakeDisk& disk, size_t at) { return std::to_integer<int>(disk.contents[at]); }

// --- Moving data ---------------------------------------------------------------------------------------------------

coro::Task<void> random_work(FileStoreTest& t, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> model(kSize);
  for (int step = 0; step < 400; ++step) {
    t.disk.most_bytes = 1 + random() % 20'000;
    t.disk.move_seed = random() | 1;
    const uint64_t offset = random() % kSize;
    const uint64_t length = 1 + random() % std::min<uint64_t>(kSize - offset, 100'000);
    constexpr std::array kCommands = {Command::kRead, Command::kWrite, Command::kWrite, Command::kFlush, Command::kTrim,
                                      Command::kWriteZeroes};
    const Command command = kCommands[random() % kCommands.size()];
    Slot slot(t.loop());
    slot.ask(command, offset, length, random() % 2 == 0).fill(static_cast<int>(random() % 255) + 1);
    const int error = co_await run_request(*t.store, slot);
    EXPECT_EQ(error, 0);
    const auto from = model.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto until = from + static_cast<std::ptrdiff_t>(length);
    if (command == Command::kRead) {
      EXPECT_TRUE(std::equal(from, until, slot.buffer.begin())) << "step " << step;
    }
    if (command == Command::kWrite) std::copy(slot.buffer.begin(), slot.buffer.end(), from);
    if (command == Command::kTrim || command == Command::kWriteZeroes) std::fill(from, until, std::byte{0});
    if (command == Command::kFlush || (slot.fua && command != Command::kRead)) {
      EXPECT_TRUE(t.disk.durable == model) << "step " << step;
    }
  }
  EXPECT_TRUE(t.disk.contents == model);
}

TEST_F(FileStoreTest, KeepsToAModelUnderShortMoves) {
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, std::random_device{}() | uint64_t{1} << 32}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    disk.contents.assign(kSize, std::byte{0});
    disk.durable = disk.contents;
    disk.seen.clear();
    disk.contents.assign(kSize, std::byte{0});
    disk.durable = disk.contents;
    run(random_work(*this, seed));
    if (HasFailure()) break;
  }
}

coro::Task<void> move_bytewise(FileStoreTest& t) {
  t.disk.most_bytes = 1;
  Slot write(t.loop()), read(t.loop());
  write.ask(Command::kWrite, 100, 1000).fill(7);
  const int written = co_await run_request(*t.store, write);
  EXPECT_EQ(written, 0);
  EXPECT_EQ(t.disk.count(Call::kWrite), 1000);
  read.ask(Command::kRead, 100, 1000);
  const int got = co_await run_request(*t.store, read);
  EXPECT_EQ(got, 0);
  EXPECT_EQ(t.disk.count(Call::kRead), 1000);
  EXPECT_EQ(read.buffer, write.buffer);
  EXPECT_EQ(byte_at(t.disk, 99), 0);
  EXPECT_EQ(byte_at(t.disk, 1100), 0);
}

TEST_F(FileStoreTest, MovesWholeRequestsAByteAtATime) { run(move_bytewise(*this)); }

coro::Task<void> fail_in_the_middle(FileStoreTest& t) {
  t.disk.most_bytes = 512;
  t.disk.faults = {{Call::kWrite, 2, -ENOSPC}, {Call::kRead, 3, -EIO}};
  Slot write(t.loop()), again(t.loop()), read(t.loop());
  write.ask(Command::kWrite, 0, 4096).fill(1);
  const int failed = co_await run_request(*t.store, write);
  EXPECT_EQ(failed, ENOSPC);
  EXPECT_EQ(t.disk.count(Call::kWrite), 2) << "went on after an error";
  again.ask(Command::kWrite, 0, 4096).fill(2);
  const int written = co_await run_request(*t.store, again);
  EXPECT_EQ(written, 0) << "its range was not let go, or the store took a failed write for a failed sync";
  read.ask(Command::kRead, 0, 4096);
  const int got = co_await run_request(*t.store, read);
  EXPECT_EQ(got, EIO);
}

TEST_F(FileStoreTest, AnErrorInTheMiddleEndsTheRequestAndLetsGoOfItsRange) { run(fail_in_the_middle(*this)); }

coro::Task<void> truncate_under_it(FileStoreTest& t) {
  t.disk.contents.resize(10'000);
  Slot inside(t.loop()), across(t.loop()), beyond(t.loop());
  inside.ask(Command::kRead, 0, 4096);
  across.ask(Command::kRead, 8192, 4096);
  beyond.ask(Command::kRead, 65536, 512);
  const int first = co_await run_request(*t.store, inside);
  const int second = co_await run_request(*t.store, across);
  const int third = co_await run_request(*t.store, beyond);
  EXPECT_EQ(first, 0);
  EXPECT_EQ(second, EIO);
  EXPECT_EQ(third, EIO);
}

TEST_F(FileStoreTest, AFileTruncatedUnderItGivesEioAndNotZeroes) { run(truncate_under_it(*this)); }

// --- Durability ----------------------------------------------------------------------------------------------------

coro::Task<void> durable_write(FileStoreTest& t) {
  t.disk.hold_writes = t.disk.hold_syncs = true;
  Slot first(t.loop()), second(t.loop());
  t.submit(first.ask(Command::kWrite, 0, 512, true).fill(1));
  co_await settle();
  EXPECT_EQ(t.disk.count(Call::kDatasync), 0) << "the sync began before the write ended";
  t.disk.release();  // the first write
  co_await settle();
  EXPECT_FALSE(first.done()) << "answered before it was durable";
  EXPECT_EQ(t.disk.count(Call::kDatasync), 1);

  t.submit(second.ask(Command::kWrite, 4096, 512, true).fill(2));
  co_await settle();
  EXPECT_EQ(t.disk.held_count(), 2u);
  t.disk.release(1);  // the second write, while the first sync runs
  co_await settle();
  EXPECT_EQ(t.disk.count(Call::kDatasync), 1);
  t.disk.release();  // the first sync
  co_await settle();
  EXPECT_TRUE(first.done());
  EXPECT_FALSE(second.done()) << "answered by a sync that began before its write ended";
  EXPECT_EQ(t.disk.count(Call::kDatasync), 2);
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(second.done());
  EXPECT_EQ(first.error, 0);
  EXPECT_EQ(second.error, 0);
  EXPECT_EQ(t.store->syncs(), 2u);
}

TEST_F(FileStoreTest, ADurableWriteEndsAfterASyncThatBeganAfterIt) { run(durable_write(*this)); }

coro::Task<void> no_sync(FileStoreTest& t) {
  Slot write(t.loop()), flush(t.loop());
  write.ask(Command::kWrite, 0, 512).fill(1);
  (void)co_await run_request(*t.store, write);
  EXPECT_EQ(t.disk.count(Call::kDatasync), 0);
  (void)co_await run_request(*t.store, flush.ask(Command::kFlush, 0, 0));
  EXPECT_EQ(t.disk.count(Call::kDatasync), 1);
  EXPECT_TRUE(t.disk.durable == t.disk.contents);
}

TEST_F(FileStoreTest, OnlyFlushAndFuaSync) { run(no_sync(*this)); }

constexpr int kWriters = 64;

using Slots = std::vector<std::unique_ptr<Slot>>;

Slots make_slots(io::Loop& loop, int count, std::vector<int>* order = nullptr) {
  Slots slots;
  for (int i = 0; i < count; ++i) {
    slots.push_back(std::make_unique<Slot>(loop));
    slots.back()->order = order;
    slots.back()->number = i;
  }
  return slots;
}

coro::Task<void> group_commit(FileStoreTest& t) {
  std::vector<int> order;
  const Slots slots = make_slots(t.loop(), kWriters, &order);
  for (size_t i = 0; i < kWriters; ++i) t.submit(slots[i]->ask(Command::kWrite, i * 4096, 4096, true).fill(1));
  co_await settle();
  for (const auto& slot : slots) {
    EXPECT_TRUE(slot->done());
    EXPECT_EQ(slot->error, 0);
  }
  EXPECT_EQ(t.disk.count(Call::kDatasync), 1) << "writers of one round share one sync";
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end())) << "those of one sync are answered in the order they joined";
}

TEST_F(FileStoreTest, WritersOfOneRoundShareOneSync) { run(group_commit(*this)); }

coro::Task<void> group_commit_while_running(FileStoreTest& t) {
  t.disk.hold_syncs = true;
  const Slots slots = make_slots(t.loop(), kWriters);
  t.submit(slots[0]->ask(Command::kWrite, 0, 4096, true).fill(1));
  co_await settle();
  EXPECT_EQ(t.disk.count(Call::kDatasync), 1);
  for (size_t i = 1; i < kWriters; ++i) {
    t.submit(slots[i]->ask(Command::kWrite, i * 4096, 4096, true).fill(1));
    co_await settle(4);
  }
  t.disk.release();
  co_await settle();
  EXPECT_EQ(t.disk.count(Call::kDatasync), 2) << "all that came during a sync share the next";
  EXPECT_TRUE(slots[0]->done());
  EXPECT_FALSE(slots[1]->done());
  t.disk.release();
  co_await settle();
  for (const auto& slot : slots) EXPECT_TRUE(slot->done());
  EXPECT_EQ(t.disk.count(Call::kDatasync), 2);
}

TEST_F(FileStoreTest, WritersThatComeDuringASyncShareTheNext) { run(group_commit_while_running(*this)); }

coro::Task<void> expect_poisoned(FileStoreTest& t) {
  const int writes_before = t.disk.count(Call::kWrite) + t.disk.count(Call::kPunchHole);
  for (const Command command : {Command::kWrite, Command::kFlush, Command::kTrim, Command::kWriteZeroes}) {
    for (const bool fua : {false, true}) {
      Slot slot(t.loop());
      const int error = co_await run_request(*t.store, slot.ask(command, 0, 512, fua));
      EXPECT_EQ(error, EIO) << block::command_text(command) << (fua ? " fua" : "");
    }
  }
  EXPECT_EQ(t.disk.count(Call::kWrite) + t.disk.count(Call::kPunchHole), writes_before)
      << "a change that can never be durable reached the disk";
  Slot read(t.loop());
  const int error = co_await run_request(*t.store, read.ask(Command::kRead, 0, 512));
  EXPECT_EQ(error, 0) << "reads go on";
}

coro::Task<void> failed_sync(FileStoreTest& t, int32_t result) {
  t.disk.hold_syncs = true;
  t.disk.faults = {{Call::kDatasync, 1, result}};  // every later one would succeed
  const Slots batch = make_slots(t.loop(), 3);
  const Slots later = make_slots(t.loop(), 3);
  for (size_t i = 0; i < 3; ++i) t.submit(batch[i]->ask(Command::kWrite, i * 4096, 4096, true).fill(1));
  co_await settle();
  for (size_t i = 0; i < 3; ++i)
    t.submit(later[i]->ask(i == 0 ? Command::kFlush : Command::kWrite, i * 8192, 512, true));
  co_await settle();
  EXPECT_FALSE(t.store->poisoned());
  while (t.disk.held_count() > 0) {
    t.disk.release();
    co_await settle();
  }
  EXPECT_TRUE(t.store->poisoned());
  for (const auto& slot : batch) EXPECT_TRUE(slot->done() && slot->error == EIO) << slot->error;
  for (const auto& slot : later) EXPECT_TRUE(slot->done() && slot->error == EIO) << slot->error;
  t.disk.hold_syncs = false;
  co_await expect_poisoned(t);
}

TEST_F(FileStoreTest, AFailedSyncPoisons) { run(failed_sync(*this, -EIO)); }
TEST_F(FileStoreTest, AFailedSyncIsEioWhateverItsErrno) { run(failed_sync(*this, -ENOSPC)); }

coro::Task<void> failed_inline_sync(FileStoreTest& t) {
  t.disk.faults = {{Call::kDatasync, 2, -EIO}};
  Slot good(t.loop()), bad(t.loop());
  const int first = co_await run_request(*t.store, good.ask(Command::kFlush, 0, 0));
  const int second = co_await run_request(*t.store, bad.ask(Command::kWrite, 0, 512, true));
  EXPECT_EQ(first, 0);
  EXPECT_EQ(second, EIO);
  co_await expect_poisoned(t);
}

TEST_F(FileStoreTest, AFailedSyncPoisonsWhenItEndsInlineToo) { run(failed_inline_sync(*this)); }

// --- Order of overlapping changes ----------------------------------------------------------------------------------

coro::Task<void> overlap(FileStoreTest& t) {
  t.disk.hold_writes = true;
  Slot first(t.loop()), second(t.loop()), apart(t.loop()), touching(t.loop());
  t.submit(first.ask(Command::kWrite, 0, 4096).fill(1));
  t.submit(second.ask(Command::kWrite, 2048, 4096).fill(2));
  t.submit(apart.ask(Command::kWrite, 65536, 4096).fill(3));
  t.submit(touching.ask(Command::kWrite, 6144, 2048).fill(4));
  co_await settle();
  EXPECT_EQ(t.disk.held_count(), 3u) << "the second waits; disjoint and touching ranges run side by side";
  EXPECT_EQ(t.disk.held[0].seen.offset, 0u);
  EXPECT_EQ(t.disk.held[1].seen.offset, 65536u);
  EXPECT_EQ(t.disk.held[2].seen.offset, 6144u);
  t.disk.release(1);
  t.disk.release(1);
  co_await settle();
  EXPECT_TRUE(apart.done());
  EXPECT_TRUE(touching.done());
  EXPECT_EQ(t.disk.held_count(), 1u) << "the second began before the first ended";
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(first.done());
  EXPECT_FALSE(second.done());
  EXPECT_EQ(t.disk.held_count(), 1u);
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(second.done());
  EXPECT_EQ(byte_at(t.disk, 2047), 1);
  EXPECT_EQ(byte_at(t.disk, 2048), 2);
  EXPECT_EQ(byte_at(t.disk, 6143), 2);
  EXPECT_EQ(byte_at(t.disk, 6144), 4);
}

TEST_F(FileStoreTest, OverlappingWritesAreSerialised) { run(overlap(*this)); }

coro::Task<void> fair_order(FileStoreTest& t) {
  t.disk.hold_writes = true;
  Slot a(t.loop()), b(t.loop()), c(t.loop()), d(t.loop()), e(t.loop());
  t.submit(a.ask(Command::kWrite, 0, 8192).fill(1));
  t.submit(b.ask(Command::kWrite, 0, 4096).fill(2));
  t.submit(c.ask(Command::kWrite, 0, 8192).fill(3));
  t.submit(d.ask(Command::kWrite, 4096, 4096).fill(4));
  co_await settle();
  EXPECT_EQ(t.disk.held_count(), 1u);
  t.disk.release();
  co_await settle();
  // d is disjoint from b, which runs, but came after c, which it overlaps.
  EXPECT_EQ(t.disk.held_count(), 1u) << "a later write overtook a waiter that it overlaps";
  EXPECT_EQ(t.disk.held[0].seen.length, 4096u);
  EXPECT_EQ(t.disk.held[0].seen.offset, 0u);
  t.submit(e.ask(Command::kWrite, 0, 512).fill(5));
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(b.done());
  EXPECT_EQ(t.disk.held_count(), 1u);
  EXPECT_EQ(t.disk.held[0].seen.length, 8192u);
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(c.done());
  EXPECT_EQ(t.disk.held_count(), 2u) << "d and e are disjoint";
  t.disk.release();
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(d.done());
  EXPECT_TRUE(e.done());
  EXPECT_EQ(byte_at(t.disk, 0), 5);
  EXPECT_EQ(byte_at(t.disk, 512), 3);
  EXPECT_EQ(byte_at(t.disk, 4096), 4);
}

TEST_F(FileStoreTest, WaitersAreServedFirstInFirstOut) { run(fair_order(*this)); }

coro::Task<void> mixed_order(FileStoreTest& t) {
  t.disk.hold_writes = t.disk.hold_punches = true;
  Slot write(t.loop()), trim(t.loop()), zeroes(t.loop()), last(t.loop()), read(t.loop());
  t.submit(write.ask(Command::kWrite, 0, 4096).fill(1));
  t.submit(trim.ask(Command::kTrim, 0, 4096));
  t.submit(zeroes.ask(Command::kWriteZeroes, 0, 4096));
  t.submit(last.ask(Command::kWrite, 0, 4096).fill(9));
  t.submit(read.ask(Command::kRead, 0, 4096));
  co_await settle();
  EXPECT_TRUE(read.done()) << "reads do not wait for writes";
  constexpr std::array kExpected = {Call::kWrite, Call::kPunchHole, Call::kPunchHole, Call::kWrite};
  for (const Call call : kExpected) {
    EXPECT_EQ(t.disk.held_count(), 1u);
    if (t.disk.held_count() != 1) co_return;
    EXPECT_EQ(t.disk.held[0].seen.call, call);
    t.disk.release();
    co_await settle();
  }
  EXPECT_TRUE(last.done());
  EXPECT_EQ(byte_at(t.disk, 4095), 9);
}

TEST_F(FileStoreTest, TrimsAndZeroesStandInTheSameLine) { run(mixed_order(*this)); }

// --- A writer that is gone (DESIGN 4.1) ----------------------------------------------------------------------------

coro::Task<void> abandoned(FileStoreTest& t) {
  t.disk.hold_writes = true;
  std::atomic<bool> gone{false};
  Slot first(t.loop()), waiting(t.loop()), behind(t.loop());
  waiting.abandoned = &gone;
  t.submit(first.ask(Command::kWrite, 0, 4096).fill(1));
  t.submit(waiting.ask(Command::kWrite, 0, 4096, true).fill(2));
  t.submit(behind.ask(Command::kWrite, 2048, 512).fill(3));
  co_await settle();
  gone = true;
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(waiting.done());
  EXPECT_EQ(waiting.error, ECANCELED);
  EXPECT_EQ(t.disk.held_count(), 1u) << "what waited behind it goes on";
  EXPECT_EQ(t.disk.count(Call::kWrite), 2);
  EXPECT_EQ(t.disk.count(Call::kDatasync), 0);
  t.disk.release();
  co_await settle();
  EXPECT_TRUE(behind.done());
  EXPECT_EQ(byte_at(t.disk, 0), 1);
}

TEST_F(FileStoreTest, AnAbandonedWriteIsNotAppliedAfterWaiting) { run(abandoned(*this)); }

coro::Task<void> abandoned_before(FileStoreTest& t) {
  const std::atomic<bool> gone{true};
  for (const Command command : {Command::kWrite, Command::kTrim, Command::kWriteZeroes}) {
    Slot slot(t.loop());
    slot.abandoned = &gone;
    const int error = co_await run_request(*t.store, slot.ask(command, 0, 4096, true));
    EXPECT_EQ(error, ECANCELED) << block::command_text(command);
  }
  EXPECT_TRUE(t.disk.seen.empty());
}

TEST_F(FileStoreTest, AnAbandonedWriteIsNotBegun) { run(abandoned_before(*this)); }

coro::Task<void> abandoned_midway(FileStoreTest& t) {
  t.disk.hold_writes = true;
  t.disk.most_bytes = 1024;
  std::atomic<bool> gone{false};
  Slot slot(t.loop());
  slot.abandoned = &gone;
  t.submit(slot.ask(Command::kWrite, 0, 4096).fill(6));
  t.disk.release();
  gone = true;
  for (int piece = 1; piece < 4; ++piece) {
    co_await settle();
    EXPECT_EQ(t.disk.held_count(), 1u);
    if (t.disk.held_count() == 1) t.disk.release();
  }
  co_await settle();
  EXPECT_TRUE(slot.done());
  EXPECT_EQ(slot.error, 0);
  EXPECT_EQ(byte_at(t.disk, 4095), 6) << "a write that has begun is not torn";
}

TEST_F(FileStoreTest, AWriteThatHasBegunIsFinishedThoughAbandoned) { run(abandoned_midway(*this)); }

// --- Trim and zeroes -----------------------------------------------------------------------------------------------

coro::Task<void> unsupported_trim(FileStoreTest& t) {
  t.disk.faults = {{Call::kPunchHole, 1, -EOPNOTSUPP}, {Call::kPunchHole, 2, -EOPNOTSUPP}, {Call::kPunchHole, 3, -EIO}};
  std::fill(t.disk.contents.begin(), t.disk.contents.end(), std::byte{8});
  Slot trim(t.loop()), zeroes(t.loop()), broken(t.loop());
  const int trimmed = co_await run_request(*t.store, trim.ask(Command::kTrim, 0, 4096, true));
  EXPECT_EQ(trimmed, 0) << "a trim is a hint";
  EXPECT_EQ(byte_at(t.disk, 0), 8);
  constexpr uint64_t kLength = 300'000;  // several times what the store has of zeroes at hand
  const int zeroed = co_await run_request(*t.store, zeroes.ask(Command::kWriteZeroes, 1000, kLength, true));
  EXPECT_EQ(zeroed, 0);
  EXPECT_EQ(byte_at(t.disk, 999), 8);
  EXPECT_EQ(byte_at(t.disk, 1000 + kLength), 8);
  EXPECT_TRUE(std::all_of(t.disk.contents.begin() + 1000, t.disk.contents.begin() + 1000 + kLength,
                          [](std::byte one) { return one == std::byte{0}; }));
  EXPECT_TRUE(t.disk.durable == t.disk.contents) << "fua";
  const int failed = co_await run_request(*t.store, broken.ask(Command::kTrim, 0, 4096));
  EXPECT_EQ(failed, EIO) << "an error is not 'not supported'";
}

TEST_F(FileStoreTest, StorageWithoutHolesTakesTrimAndWritesZeroes) { run(unsupported_trim(*this)); }

coro::Task<void> fast_zeroes(FileStoreTest& t) {
  t.disk.faults = {{Call::kPunchHole, 2, -EOPNOTSUPP}};
  std::fill(t.disk.contents.begin(), t.disk.contents.end(), std::byte{8});
  const block::Geometry able{.size_bytes = kSize, .can_trim = true, .can_fast_zero = true};
  FileStore store(able, std::make_unique<FakeFile>(t.disk), nullptr, 0);
  Slot fast(t.loop());
  fast.fast_zero = true;
  const int punched = co_await run_request(store, fast.ask(Command::kWriteZeroes, 0, 4096));
  EXPECT_EQ(punched, 0);
  EXPECT_EQ(byte_at(t.disk, 4095), 0);
  const int refused = co_await run_request(store, fast.ask(Command::kWriteZeroes, 8192, 4096));
  EXPECT_EQ(refused, EOPNOTSUPP) << "this storage would have to write them";
  fast.keep_allocated = true;
  const int kept = co_await run_request(store, fast.ask(Command::kWriteZeroes, 8192, 4096));
  EXPECT_EQ(kept, EOPNOTSUPP);
  EXPECT_EQ(byte_at(t.disk, 8192), 8) << "nothing was changed";
  EXPECT_EQ(t.disk.count(Call::kWrite), 0);
}

TEST_F(FileStoreTest, FastZeroesAreFastOrRefused) { run(fast_zeroes(*this)); }

coro::Task<void> whole_sectors(FileStoreTest& t) {
  std::fill(t.disk.contents.begin(), t.disk.contents.end(), std::byte{8});
  const block::Geometry able{.size_bytes = kSize, .can_trim = true, .can_fast_zero = true};
  FileHome home;
  home.punch_alignment = 4096;  // a block device
  FileStore store(able, std::make_unique<FakeFile>(t.disk), nullptr, 0, std::move(home));
  Slot slot(t.loop());
  const int trimmed = co_await run_request(store, slot.ask(Command::kTrim, 1000, 10'000));
  EXPECT_EQ(trimmed, 0);
  EXPECT_EQ(byte_at(t.disk, 4095), 8) << "a trim is a hint: what is no whole sector stays";
  EXPECT_EQ(byte_at(t.disk, 4096), 0);
  EXPECT_EQ(byte_at(t.disk, 8191), 0);
  EXPECT_EQ(byte_at(t.disk, 8192), 8);
  const int tiny = co_await run_request(store, slot.ask(Command::kTrim, 20'000, 100));
  EXPECT_EQ(tiny, 0);
  EXPECT_EQ(t.disk.count(Call::kPunchHole), 1);
  const int zeroed = co_await run_request(store, slot.ask(Command::kWriteZeroes, 20'001, 5000));
  EXPECT_EQ(zeroed, 0);
  EXPECT_EQ(byte_at(t.disk, 20'000), 8);
  EXPECT_EQ(byte_at(t.disk, 20'001), 0);
  EXPECT_EQ(byte_at(t.disk, 25'000), 0);
  EXPECT_EQ(byte_at(t.disk, 25'001), 8);
  slot.fast_zero = true;
  const int odd = co_await run_request(store, slot.ask(Command::kWriteZeroes, 30'001, 5000));
  EXPECT_EQ(odd, EOPNOTSUPP);
  EXPECT_EQ(byte_at(t.disk, 30'001), 8);
}

TEST_F(FileStoreTest, OfABlockDeviceOnlyWholeSectorsArePunched) { run(whole_sectors(*this)); }

// --- Direct I/O ----------------------------------------------------------------------------------------------------

constexpr uint32_t kAlignment = 512;

class DirectStoreTest : public FileStoreTest {
 public:
  DirectStoreTest() {
    store = std::make_unique<FileStore>(block::Geometry{.size_bytes = kSize, .can_trim = true},
                                        std::make_unique<FakeFile>(disk), std::make_unique<FakeFile>(direct),
                                        kAlignment);
  }
  FakeDisk direct{kSize};
  // Not in a coroutine's frame: g++ 12 does not align frames beyond what plain new gives.
  alignas(kAlignment) std::array<std::byte, 8192> memory{};
};

coro::Task<void> choose_file(DirectStoreTest& t) {
  struct Row {
    uint64_t offset, length;
    size_t address;
    bool direct;
  };
  for (const Command command : {Command::kRead, Command::kWrite}) {
    for (const Row& row : {Row{0, 512, 0, true}, Row{512, 1024, 512, true}, Row{1, 512, 0, false},
                           Row{512, 511, 0, false}, Row{512, 512, 8, false}, Row{513, 513, 1, false}}) {
      t.disk.seen.clear();
      t.direct.seen.clear();
      Slot slot(t.loop());
      slot.ask(command, row.offset, row.length).data = t.memory.data() + row.address;
      const int error = co_await run_request(*t.store, slot);
      EXPECT_EQ(error, 0);
      EXPECT_EQ(t.direct.seen.size(), row.direct ? 1u : 0u) << row.offset << '+' << row.length << " at " << row.address;
      EXPECT_EQ(t.disk.seen.size(), row.direct ? 0u : 1u);
    }
  }
}

TEST_F(DirectStoreTest, OnlyAlignedRequestsBypassTheCache) { run(choose_file(*this)); }

coro::Task<void> short_direct(DirectStoreTest& t) {
  t.direct.most_bytes = 700;
  t.disk.most_bytes = 700;
  for (const Command command : {Command::kRead, Command::kWrite}) {
    Slot slot(t.loop());
    slot.ask(command, 4096, t.memory.size()).data = t.memory.data();
    const int error = co_await run_request(*t.store, slot);
    EXPECT_EQ(error, 0);
  }
  const auto refused = std::find_if(t.direct.seen.begin(), t.direct.seen.end(), [](const FakeDisk::Seen& one) {
    return (one.offset | one.length | one.address) % kAlignment != 0;
  });
  if (refused != t.direct.seen.end())
    ADD_FAILURE() << "O_DIRECT refuses " << refused->length << " bytes at " << refused->offset;
}

TEST_F(DirectStoreTest, TheRestOfAShortMoveIsAlignedOrBuffered) { run(short_direct(*this)); }

}  // namespace
}  // namespace netblk::store
