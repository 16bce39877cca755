// SPDX-License-Identifier: GPL-2.0-only
// Files on both back ends, by the inline path and by the one that waits.
#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "io/backends_test.h"
#include "io/socket.h"

namespace netblk::io {
namespace {

using test::BackendTest;
using test::TestOp;

using Start = bool (*)(File&, Loop&, Op&, std::span<std::byte>, uint64_t);

coro::Task<void> start_and_wait(Start start, File& file, Loop& loop, std::span<std::byte> bytes, uint64_t offset,
                                int32_t& result) {
  const int32_t value = co_await await([&](Op& op) { return start(file, loop, op, bytes, offset); });
  result = value;
}

coro::Task<void> move_and_wait(File& file, Loop& loop, std::span<const iovec> parts, uint64_t offset, bool out,
                               int32_t& result) {
  const int32_t value = co_await await([&](Op& op) {
    return out ? file.write_vector(loop, op, parts, offset) : file.read_vector(loop, op, parts, offset);
  });
  result = value;
}

class FileTest : public BackendTest {
 public:
  int32_t call(Start start, File& file, std::span<std::byte> bytes, uint64_t offset) {
    int32_t result = -9999;
    run(start_and_wait(start, file, loop(), bytes, offset, result));
    return result;
  }
  int32_t read(File& file, std::span<std::byte> into, uint64_t offset) {
    return call(
        [](File& f, Loop& l, Op& op, std::span<std::byte> bytes, uint64_t at) { return f.read(l, op, bytes, at); },
        file, into, offset);
  }
  int32_t write(File& file, std::span<std::byte> from, uint64_t offset) {
    return call(
        [](File& f, Loop& l, Op& op, std::span<std::byte> bytes, uint64_t at) { return f.write(l, op, bytes, at); },
        file, from, offset);
  }
  int32_t move(File& file, std::span<const iovec> parts, uint64_t offset, bool out) {
    int32_t result = -9999;
    run(move_and_wait(file, loop(), parts, offset, out, result));
    return result;
  }
  int32_t allocate(File& file, uint64_t offset, size_t length) {
    // Only the length of the span is used.
    return call(
        [](File& f, Loop& l, Op& op, std::span<std::byte> bytes, uint64_t at) {
          return f.allocate(l, op, at, bytes.size());
        },
        file, {static_cast<std::byte*>(nullptr), length}, offset);
  }
  int32_t datasync(File& file) {
    return call([](File& f, Loop& l, Op& op, std::span<std::byte>, uint64_t) { return f.datasync(l, op); }, file, {},
                0);
  }
  int32_t punch(File& file, uint64_t offset, size_t length) {
    // Only the length of the span is used.
    return call(
        [](File& f, Loop& l, Op& op, std::span<std::byte> bytes, uint64_t at) {
          return f.punch_hole(l, op, at, bytes.size());
        },
        file, {static_cast<std::byte*>(nullptr), length}, offset);
  }

  std::string path() const { return path_; }
  // `waits`: handed to the back end as if it were opened with O_DIRECT, so that nothing is done inline.
  std::unique_ptr<File> open(const char* name, int flags, bool waits) {
    UniqueFd fd(::open(name, flags | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd.valid()) << name << ": " << std::strerror(errno);
    return backend().make_file(std::move(fd), waits);
  }
  std::unique_ptr<File> make(bool waits) { return open(path_.c_str(), O_RDWR | O_CREAT, waits); }

 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    path_ = (std::filesystem::temp_directory_path() / "netblk-test-XXXXXX").string();
    UniqueFd fd(::mkstemp(path_.data()));
    ASSERT_TRUE(fd.valid());
  }
  void TearDown() override {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

 private:
  std::string path_;
};
NETBLK_ON_BOTH_BACKENDS(FileTest);

using Bytes = std::vector<std::byte>;

TEST_P(FileTest, ReadsWhatItWrote) {
  for (const bool waits : {false, true}) {
    const auto file = make(waits);
    // The last one is above what is written on the calling thread.
    for (const size_t length : {size_t{1}, size_t{4096}, size_t{65537}, 3 * kInlineWriteBytes / 2}) {
      Bytes out(length), in(length);
      for (size_t i = 0; i < length; ++i) out[i] = static_cast<std::byte>(i * 31 + length);
      EXPECT_EQ(write(*file, out, 1000), static_cast<int32_t>(length)) << waits;
      EXPECT_EQ(read(*file, in, 1000), static_cast<int32_t>(length));
      EXPECT_TRUE(in == out);
    }
  }
}

TEST_P(FileTest, ReadsAtAndBeyondTheEndAreShort) {
  for (const bool waits : {false, true}) {
    const auto file = make(waits);
    Bytes data(1000, std::byte{1}), into(4096, std::byte{9});
    EXPECT_EQ(write(*file, data, 0), 1000);
    EXPECT_EQ(read(*file, into, 0), 1000);
    EXPECT_EQ(into[1000], std::byte{9}) << "wrote beyond what it read";
    EXPECT_EQ(read(*file, into, 600), 400);
    EXPECT_EQ(read(*file, into, 1000), 0);
    EXPECT_EQ(read(*file, into, uint64_t{1} << 40), 0);
  }
}

TEST_P(FileTest, PartsAreMovedInOrder) {
  for (const bool waits : {false, true}) {
    const auto file = make(waits);
    // One below what is written at once, and one above.
    for (const size_t length : {size_t{5000}, 2 * kInlineWriteBytes}) {
      ASSERT_EQ(::truncate(path().c_str(), 0), 0);
      Bytes first(length, std::byte{1}), second(3, std::byte{2}), third(length, std::byte{3});
      const std::array<iovec, 3> from{iovec{first.data(), length}, iovec{second.data(), 3}, iovec{third.data(), length}};
      EXPECT_EQ(move(*file, from, 7, true), static_cast<int32_t>(2 * length + 3));
      Bytes whole(2 * length + 3), expected = first;
      expected.insert(expected.end(), second.begin(), second.end());
      expected.insert(expected.end(), third.begin(), third.end());
      EXPECT_EQ(read(*file, whole, 7), static_cast<int32_t>(whole.size()));
      EXPECT_EQ(whole, expected);
      Bytes a(length + 1), b(length + 5);
      const std::array<iovec, 2> into{iovec{a.data(), a.size()}, iovec{b.data(), b.size()}};
      EXPECT_EQ(move(*file, into, 7, false), static_cast<int32_t>(2 * length + 3)) << "short at the end of the file";
      a.insert(a.end(), b.begin(), b.end());
      a.resize(expected.size());
      EXPECT_EQ(a, expected);
    }
  }
}

TEST_P(FileTest, PartsHaveErrors) {
  for (const bool waits : {false, true}) {
    Bytes data(4096, std::byte{1});
    const std::array<iovec, 2> parts{iovec{data.data(), 10}, iovec{data.data(), 20}};
    EXPECT_EQ(move(*open(path().c_str(), O_RDONLY, waits), parts, 0, true), -EBADF);
    EXPECT_EQ(move(*open(path().c_str(), O_WRONLY, waits), parts, 0, false), -EBADF);
    EXPECT_EQ(move(*open("/dev/full", O_RDWR, waits), parts, 0, true), -ENOSPC);
  }
}

// A storage that knows no parts moves the first: a short move.
TEST_P(FileTest, WithoutPartsTheFirstIsMoved) {
  class Plain final : public File {
   public:
    explicit Plain(std::unique_ptr<File> below) : below_(std::move(below)) {}
    bool read(Loop& l, Op& op, std::span<std::byte> into, uint64_t at) override { return below_->read(l, op, into, at); }
    bool write(Loop& l, Op& op, std::span<const std::byte> from, uint64_t at) override {
      return below_->write(l, op, from, at);
    }
    bool datasync(Loop& l, Op& op) override { return below_->datasync(l, op); }
    bool punch_hole(Loop& l, Op& op, uint64_t at, uint64_t length) override { return below_->punch_hole(l, op, at, length); }

   private:
    std::unique_ptr<File> below_;
  } file(make(false));
  Bytes data(30, std::byte{1});
  const std::array<iovec, 2> parts{iovec{data.data(), 10}, iovec{data.data(), 20}};
  EXPECT_EQ(move(file, parts, 0, true), 10);
  EXPECT_EQ(move(file, parts, 5, false), 5);
  EXPECT_EQ(allocate(file, 0, 100), -EOPNOTSUPP);
}

TEST_P(FileTest, AllocatedSpaceIsThereAndNothingElseChanges) {
  const auto file = make(false);
  Bytes data(4096, std::byte{7});
  EXPECT_EQ(write(*file, data, 0), 4096);
  const int32_t result = allocate(*file, 0, 1 << 20);
  if (result == -EOPNOTSUPP) GTEST_SKIP() << "no space can be had beforehand in " << path();
  EXPECT_EQ(result, 0);
  struct stat after {};
  ASSERT_EQ(::stat(path().c_str(), &after), 0);
  EXPECT_EQ(after.st_size, 4096);
  EXPECT_GE(after.st_blocks, (1 << 20) / 512);
  Bytes into(4096);
  EXPECT_EQ(read(*file, into, 0), 4096);
  EXPECT_EQ(into, data);
}

TEST_P(FileTest, DatasyncWorks) {
  for (const bool waits : {false, true}) {
    const auto file = make(waits);
    Bytes data(4096, std::byte{1});
    EXPECT_EQ(write(*file, data, 0), 4096);
    EXPECT_EQ(datasync(*file), 0);
  }
}

TEST_P(FileTest, PunchHoleZeroesAndKeepsTheSize) {
  const auto file = make(false);
  Bytes data(1 << 20, std::byte{7});
  EXPECT_EQ(write(*file, data, 0), 1 << 20);
  EXPECT_EQ(datasync(*file), 0);
  struct stat before {}, after {};
  ASSERT_EQ(::stat(path().c_str(), &before), 0);
  const int32_t result = punch(*file, 512 << 10, 512 << 10);
  if (result == -EOPNOTSUPP) GTEST_SKIP() << "no holes in " << path();
  EXPECT_EQ(result, 0);
  ASSERT_EQ(::stat(path().c_str(), &after), 0);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_LT(after.st_blocks, before.st_blocks);
  Bytes into(512 << 10, std::byte{9});
  EXPECT_EQ(read(*file, into, 512 << 10), 512 << 10);
  EXPECT_TRUE(std::all_of(into.begin(), into.end(), [](std::byte one) { return one == std::byte{0}; }));
}

TEST_P(FileTest, PunchHoleWhereThereAreNone) {
  const auto file = open("/proc/self/comm", O_RDWR, false);
  EXPECT_EQ(punch(*file, 0, 4096), -EOPNOTSUPP);
}

TEST_P(FileTest, ErrorsAreValues) {
  for (const bool waits : {false, true}) {
    Bytes data(4096, std::byte{1});
    const auto read_only = open(path().c_str(), O_RDONLY, waits);
    EXPECT_EQ(write(*read_only, data, 0), -EBADF);
    EXPECT_EQ(punch(*read_only, 0, 4096), -EBADF);
    const auto write_only = open(path().c_str(), O_WRONLY, waits);
    EXPECT_EQ(read(*write_only, data, 0), -EBADF);
    const auto folder = open("/", O_RDONLY | O_DIRECTORY, waits);
    EXPECT_EQ(read(*folder, data, 0), -EISDIR);
    const auto full = open("/dev/full", O_RDWR, waits);
    EXPECT_EQ(write(*full, data, 0), -ENOSPC);
    const auto null = open("/dev/null", O_RDWR, waits);
    EXPECT_EQ(read(*null, data, 0), 0);
    EXPECT_EQ(datasync(*null), -EINVAL);
  }
}

coro::Task<void> many_reads(FileTest& t, File& file, size_t count, int& wrong, int& away) {
  struct NotedOp : TestOp {
    std::thread::id ran_on;
  };
  std::vector<std::unique_ptr<NotedOp>> ops;
  std::vector<std::array<std::byte, 64>> buffers(count);
  for (size_t i = 0; i < count; ++i) {
    ops.push_back(std::make_unique<NotedOp>());
    ops.back()->on_end = [](TestOp& op) { static_cast<NotedOp&>(op).ran_on = std::this_thread::get_id(); };
    if (file.read(t.loop(), *ops.back(), buffers[i], i * 64)) ++wrong;
  }
  for (size_t i = 0; i < count; ++i) {
    while (ops[i]->ends == 0) co_await test::NextRound{};
    wrong += ops[i]->result != 64 || buffers[i][0] != static_cast<std::byte>(i) || ops[i]->ends != 1;
    away += ops[i]->ran_on != std::this_thread::get_id();
  }
}

TEST_P(FileTest, MoreOperationsThanARingHasEntriesAreInFlightAndEndHere) {
  constexpr size_t kCount = 3000;
  const auto file = make(true);
  Bytes data(kCount * 64);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i / 64);
  EXPECT_EQ(write(*file, data, 0), static_cast<int32_t>(data.size()));
  int wrong = 0, away = 0;
  run(many_reads(*this, *file, kCount, wrong, away));
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(away, 0) << "an operation was resumed on another thread";
}

coro::Task<void> sync_on(Loop& loop, File& file, int times, int& good) {
  for (int i = 0; i < times; ++i) {
    const int32_t result = co_await await([&](Op& op) { return file.datasync(loop, op); });
    good += result == 0;
  }
}

// The thread that reported the last completion must have let go of the loop by then: the sanitizers would see it.
TEST_P(FileTest, ALoopMayGoAsSoonAsItsLastOperationEnded) {
  const auto file = open("/dev/zero", O_RDONLY, true);
  for (int i = 0; i < 300; ++i) {
    auto short_lived = backend().make_loop(clock()).value();
    std::array<std::byte, 16> bytes{};
    int32_t result = -1;
    short_lived->run(start_and_wait(
        [](File& f, Loop& l, Op& op, std::span<std::byte> into, uint64_t at) { return f.read(l, op, into, at); }, *file,
        *short_lived, bytes, 0, result));
    EXPECT_EQ(result, 16);
    short_lived.reset();
  }
}

TEST_P(FileTest, OneFileServesTwoLoops) {
  const auto file = make(false);
  auto second = backend().make_loop(clock()).value();
  int here = 0, there = 0;
  std::thread other([&] { second->run(sync_on(*second, *file, 20, there)); });
  run(sync_on(loop(), *file, 20, here));
  other.join();
  EXPECT_EQ(here, 20);
  EXPECT_EQ(there, 20);
}

}  // namespace
}  // namespace netblk::io
