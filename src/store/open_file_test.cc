// SPDX-License-Identifier: GPL-2.0-only
// The file store on real files, on both back ends: sizes, locks, holes, direct I/O, and errors in words.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "io/uring/uring_backend.h"
#include "store/fake_file_test.h"
#include "store/file_store.h"

namespace netblk::store {
namespace {

using block::Command;
using test::run_request;
using test::Slot;

constexpr uint64_t kMiB = 1 << 20;

coro::Task<void> ask_one(block::Device& device, Slot& slot, int& error) {
  const int result = co_await run_request(device, slot);
  error = result;
}

// What these tests vary of FileOptions.
struct Options {
  std::string path;
  uint64_t size_bytes = 0;
  bool direct = false;
  bool read_only = false;
  uint64_t lock_wait_ms = 0;

  FileOptions whole() const {
    FileOptions options;
    options.path = path;
    options.size_bytes = size_bytes;
    options.direct = direct;
    options.read_only = read_only;
    options.lock_wait_ms = lock_wait_ms;
    return options;
  }
};

class OpenFile : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    auto made = std::string(GetParam()) == "io_uring" ? io::make_uring_backend() : io::make_epoll_backend(2);
    if (!made) GTEST_SKIP() << "no " << GetParam() << " here: " << made.error().message;
    backend_ = std::move(made).value();
    loop_ = backend_->make_loop(clock_).value();
    std::string name = (std::filesystem::temp_directory_path() / "netblk-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  std::string path(const char* name = "image") const { return folder_ + "/" + name; }
  void write_file(const std::string& name, uint64_t size_bytes, char fill = 'x') {
    std::ofstream(name, std::ios::binary) << std::string(size_bytes, fill);
  }
  Result<std::unique_ptr<block::Device>> open(const Options& options) {
    return open_file_store(*backend_, options.whole());
  }
  std::unique_ptr<block::Device> opened(const Options& options) {
    auto made = open(options);
    EXPECT_TRUE(made.ok()) << made.error().message;
    return made ? std::move(made).value() : nullptr;
  }
  // The error of an open that must fail.
  Error refusal(const Options& options) {
    auto made = open(options);
    EXPECT_FALSE(made.ok()) << "it opened";
    if (made) return Error{0, ""};
    EXPECT_EQ(made.error().message.find('\n'), std::string::npos);
    EXPECT_NE(made.error().message.find(options.path), std::string::npos) << made.error().message;
    return made.error();
  }

  int ask(block::Device& device, Slot& slot) {
    int error = -1;
    loop_->run(ask_one(device, slot, error));
    return error;
  }
  int write(block::Device& device, uint64_t offset, uint64_t length, int value, bool fua = false) {
    Slot slot(*loop_);
    return ask(device, slot.ask(Command::kWrite, offset, length, fua).fill(value));
  }
  int simple(block::Device& device, Command command, uint64_t offset, uint64_t length, bool fua = false) {
    Slot slot(*loop_);
    return ask(device, slot.ask(command, offset, length, fua));
  }
  std::vector<std::byte> read(block::Device& device, uint64_t offset, uint64_t length) {
    Slot slot(*loop_);
    EXPECT_EQ(ask(device, slot.ask(Command::kRead, offset, length)), 0);
    return slot.buffer;
  }
  static bool all(const std::vector<std::byte>& bytes, int value) {
    return std::count(bytes.begin(), bytes.end(), static_cast<std::byte>(value)) == std::ssize(bytes);
  }
  static struct stat status_of(const std::string& name) {
    struct stat status {};
    EXPECT_EQ(::stat(name.c_str(), &status), 0);
    return status;
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
  std::string folder_;
};

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Backends, OpenFile, testing::Values("io_uring", "epoll"), name_of);

// --- Size ----------------------------------------------------------------------------------------------------------

TEST_P(OpenFile, CreatesASparseFileOfTheSize) {
  const auto device = opened({.path = path(), .size_bytes = 100 * kMiB});
  EXPECT_EQ(device->geometry().size_bytes, 100 * kMiB);
  EXPECT_EQ(status_of(path()).st_size, static_cast<off_t>(100 * kMiB));
  EXPECT_LT(status_of(path()).st_blocks, 64) << "not sparse";
  EXPECT_EQ(status_of(path()).st_mode & 0777u, 0600u) << "an image is its owner's";
  EXPECT_TRUE(all(read(*device, 99 * kMiB, 4096), 0));
}

TEST_P(OpenFile, NeverShrinksABiggerFile) {
  write_file(path(), 3 * kMiB);
  const auto device = opened({.path = path(), .size_bytes = kMiB});
  EXPECT_EQ(device->geometry().size_bytes, 3 * kMiB);
  EXPECT_EQ(status_of(path()).st_size, static_cast<off_t>(3 * kMiB));
  EXPECT_TRUE(all(read(*device, 3 * kMiB - 512, 512), 'x'));
}

TEST_P(OpenFile, GrowsASmallerFileAndKeepsItsData) {
  write_file(path(), kMiB);
  const auto before = status_of(path()).st_blocks;
  const auto device = opened({.path = path(), .size_bytes = 8 * kMiB});
  EXPECT_EQ(device->geometry().size_bytes, 8 * kMiB);
  EXPECT_LT(status_of(path()).st_blocks, before + 64) << "not sparse";
  EXPECT_TRUE(all(read(*device, 0, kMiB), 'x'));
  EXPECT_TRUE(all(read(*device, kMiB, 4096), 0));
}

TEST_P(OpenFile, TakesAFileAsItIsWithoutASize) {
  write_file(path(), 2 * kMiB);
  const auto device = opened({.path = path()});
  EXPECT_EQ(device->geometry().size_bytes, 2 * kMiB);
}

TEST_P(OpenFile, ReadOnlyNeitherCreatesNorGrows) {
  EXPECT_EQ(refusal({.path = path(), .size_bytes = kMiB, .read_only = true}).code, ENOENT);
  EXPECT_FALSE(std::filesystem::exists(path()));
  write_file(path(), kMiB);
  const auto device = opened({.path = path(), .size_bytes = 2 * kMiB, .read_only = true});
  EXPECT_EQ(device->geometry().size_bytes, kMiB);
  EXPECT_TRUE(device->geometry().read_only);
  EXPECT_EQ(write(*device, 0, 512, 1), EROFS);
  EXPECT_EQ(simple(*device, Command::kTrim, 0, 512), EROFS);
  EXPECT_EQ(simple(*device, Command::kFlush, 0, 0), 0);
  EXPECT_TRUE(all(read(*device, 0, kMiB), 'x'));
}

// --- Errors in words -----------------------------------------------------------------------------------------------

TEST_P(OpenFile, AMissingFileWithoutASizeSaysToGiveOne) {
  const Error error = refusal({.path = path()});
  EXPECT_EQ(error.code, ENOENT);
  EXPECT_NE(error.message.find("size"), std::string::npos) << error.message;
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST_P(OpenFile, AMissingFolderIsNamed) {
  const Error error = refusal({.path = path("no/such/folder/image"), .size_bytes = kMiB});
  EXPECT_EQ(error.code, ENOENT);
  EXPECT_NE(error.message.find("No such file or directory"), std::string::npos) << error.message;
}

TEST_P(OpenFile, AFolderIsRefused) {
  for (const bool read_only : {false, true})
    for (const uint64_t size : {uint64_t{0}, kMiB})
      EXPECT_NE(refusal({.path = folder_, .size_bytes = size, .read_only = read_only}).code, 0);
}

TEST_P(OpenFile, AnEmptyFileWithoutASizeIsRefused) {
  write_file(path(), 0);
  EXPECT_NE(refusal({.path = path()}).message.find("size"), std::string::npos);
}

TEST_P(OpenFile, ACharacterDeviceIsRefused) {
  EXPECT_NE(refusal({.path = "/dev/zero", .size_bytes = kMiB}).code, 0);
}

TEST_P(OpenFile, AFifoIsRefusedAndNotWaitedFor) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  for (const bool read_only : {false, true}) {
    EXPECT_EXIT(
        {
          ::alarm(60);  // the failure is an open() that waits for a writer
          const auto made = open({.path = path("fifo"), .size_bytes = kMiB, .read_only = read_only});
          TearDown();  // this process has begun anew, with a folder of its own
          ::_exit(made.ok() ? 1 : 0);
        },
        testing::ExitedWithCode(0), "")
        << (read_only ? "read-only" : "writable");
  }
}

TEST_P(OpenFile, WithoutPermissionIsRefused) {
  if (::geteuid() == 0) {
    // For root nothing is forbidden but by an immutable place: /proc takes no new files.
    EXPECT_NE(refusal({.path = "/proc/netblk-test-image", .size_bytes = kMiB}).code, 0);
    return;
  }
  write_file(path(), kMiB);
  ASSERT_EQ(::chmod(path().c_str(), 0400), 0);
  EXPECT_EQ(refusal({.path = path()}).code, EACCES);
}

TEST_P(OpenFile, ASizeThatTheFileSystemCannotHoldIsRefused) {
  EXPECT_NE(refusal({.path = path(), .size_bytes = uint64_t{1} << 62}).code, 0);
}

// --- The lock ------------------------------------------------------------------------------------------------------

// Another process that holds a lock on a file until it is told to let go.
class Holder {
 public:
  Holder(const std::string& path, int mode) {
    int told[2], held[2];
    if (::pipe2(told, O_CLOEXEC) != 0 || ::pipe2(held, O_CLOEXEC) != 0) std::abort();
    child_ = ::fork();
    if (child_ == 0) {
      // Only system calls: the parent has threads.
      ::close(told[1]);
      const int fd = ::open(path.c_str(), O_RDONLY);
      char byte = ::flock(fd, mode | LOCK_NB) == 0 ? 'y' : 'n';
      (void)!::write(held[1], &byte, 1);
      (void)!::read(told[0], &byte, 1);  // the end of the pipe
      ::_exit(0);
    }
    ::close(told[0]);
    ::close(held[1]);
    tell_ = told[1];
    char byte = 'n';
    (void)!::read(held[0], &byte, 1);
    ::close(held[0]);
    holds_ = byte == 'y';
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() {
    let_go();
  }
  bool holds() const { return holds_; }
  pid_t pid() const { return child_; }
  void let_go() {
    if (tell_ < 0) return;
    ::close(std::exchange(tell_, -1));
    ::waitpid(child_, nullptr, 0);
  }

 private:
  pid_t child_ = -1;
  int tell_ = -1;
  bool holds_ = false;
};

TEST_P(OpenFile, ASecondStoreOfThisProcessIsRefused) {
  auto first = opened({.path = path(), .size_bytes = kMiB});
  const Error error = refusal({.path = path(), .size_bytes = kMiB});
  EXPECT_EQ(error.code, EBUSY);
  EXPECT_NE(error.message.find("in use"), std::string::npos) << error.message;
  EXPECT_EQ(refusal({.path = path(), .read_only = true}).code, EBUSY);
  first.reset();
  EXPECT_NE(opened({.path = path()}), nullptr) << "the lock outlives the store";
}

TEST_P(OpenFile, AnotherProcessIsRefusedAndNamed) {
  write_file(path(), kMiB);
  Holder holder(path(), LOCK_EX);
  ASSERT_TRUE(holder.holds());
  const Error error = refusal({.path = path(), .size_bytes = 2 * kMiB});
  EXPECT_EQ(error.code, EAGAIN);
  EXPECT_NE(error.message.find("in use"), std::string::npos) << error.message;
  EXPECT_NE(error.message.find(std::to_string(holder.pid())), std::string::npos) << error.message;
  EXPECT_EQ(status_of(path()).st_size, static_cast<off_t>(kMiB)) << "resized a file that it could not lock";
  holder.let_go();
  EXPECT_NE(opened({.path = path()}), nullptr);
}

TEST_P(OpenFile, ReadOnlyStoresShareTheLock) {
  write_file(path(), kMiB);
  auto first = opened({.path = path(), .read_only = true});
  auto second = opened({.path = path(), .read_only = true});
  EXPECT_EQ(refusal({.path = path()}).code, EBUSY);
  first.reset();
  EXPECT_EQ(refusal({.path = path()}).code, EBUSY);
  second.reset();
  EXPECT_NE(opened({.path = path()}), nullptr);
}

TEST_P(OpenFile, TheLockKeepsOtherProcessesAway) {
  auto device = opened({.path = path(), .size_bytes = kMiB});
  EXPECT_FALSE(Holder(path(), LOCK_EX).holds());
  EXPECT_FALSE(Holder(path(), LOCK_SH).holds());
  device.reset();
  EXPECT_TRUE(Holder(path(), LOCK_EX).holds());
}

TEST_P(OpenFile, WaitsForTheLockWhenAskedTo) {
  write_file(path(), kMiB);
  Holder holder(path(), LOCK_EX);
  ASSERT_TRUE(holder.holds());
  // The holder lets go only when the opener has said that it waits.
  FileOptions options = Options{.path = path(), .lock_wait_ms = 60'000}.whole();
  std::promise<std::string> waits;
  options.on_wait = [&waits](const std::string& text) { waits.set_value(text); };
  std::atomic<bool> released{false};
  bool early = false, worked = false;
  std::thread opener([&] {
    const auto made = open_file_store(*backend_, options);
    early = !released;
    worked = made.ok();
  });
  const std::string text = waits.get_future().get();
  released = true;
  holder.let_go();
  opener.join();
  EXPECT_NE(text.find(path()), std::string::npos) << text;
  EXPECT_TRUE(worked);
  EXPECT_FALSE(early) << "opened while another process held the lock";
}

TEST_P(OpenFile, WaitingForTheLockHasItsEnd) {
  write_file(path(), kMiB);
  Holder holder(path(), LOCK_EX);
  ASSERT_TRUE(holder.holds());
  const uint64_t began = clock_.now_ms();
  EXPECT_EQ(refusal({.path = path(), .lock_wait_ms = 120}).code, EAGAIN);
  EXPECT_GE(clock_.now_ms(), began + 120);
}

// --- Data ----------------------------------------------------------------------------------------------------------

TEST_P(OpenFile, KeepsToAModelAndOverReopening) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  constexpr uint64_t kSize = 4 * kMiB;
  std::vector<std::byte> model(kSize);
  for (const bool direct : {false, true}) {
    auto made = open({.path = path(), .size_bytes = kSize, .direct = direct});
    if (!made && direct) {
      std::cerr << "NOT TESTED: direct I/O: " << made.error().message << '\n';
      break;
    }
    ASSERT_TRUE(made.ok()) << made.error().message;
    const auto device = std::move(made).value();
    for (int step = 0; step < 200; ++step) {
      const bool aligned = random() % 2 == 0;
      const uint64_t unit = aligned ? 4096 : 1;
      const uint64_t offset = random() % (kSize / unit) * unit;
      const uint64_t most = std::min<uint64_t>(kSize - offset, random() % 8 == 0 ? 2 * kMiB : 64 << 10);
      const uint64_t length = std::max(unit, (1 + random() % most) / unit * unit);
      const auto from = model.begin() + static_cast<std::ptrdiff_t>(offset);
      const auto until = from + static_cast<std::ptrdiff_t>(length);
      switch (random() % 6) {
        case 0: EXPECT_EQ(simple(*device, Command::kFlush, 0, 0), 0); break;
        case 1:
        case 2: {
          const int value = static_cast<int>(random() % 255) + 1;
          EXPECT_EQ(write(*device, offset, length, value, random() % 8 == 0), 0);
          std::fill(from, until, static_cast<std::byte>(value));
          break;
        }
        case 3:
          EXPECT_EQ(simple(*device, random() % 2 ? Command::kTrim : Command::kWriteZeroes, offset, length), 0);
          std::fill(from, until, std::byte{0});
          break;
        default: {
          const auto got = read(*device, offset, length);
          ASSERT_TRUE(std::equal(from, until, got.begin())) << "step " << step << " direct " << direct;
        }
      }
    }
  }
  const auto device = opened({.path = path()});
  EXPECT_TRUE(read(*device, 0, kSize) == model);
}

TEST_P(OpenFile, DirectIoTakesAlignedAndUnalignedRequests) {
  auto made = open({.path = path(), .size_bytes = kMiB, .direct = true});
  if (!made) GTEST_SKIP() << "no direct I/O in " << folder_ << ": " << made.error().message;
  const auto device = std::move(made).value();
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  const auto pages = std::make_unique<Page[]>(4);
  std::byte* const memory = pages[0].bytes;
  std::memset(memory, 0x5a, sizeof(Page) * 4);
  Slot aligned(*loop_);
  aligned.ask(Command::kWrite, 8192, 8192, true).data = memory;
  EXPECT_EQ(ask(*device, aligned), 0);
  EXPECT_EQ(write(*device, 8193, 1000, 0x11), 0);
  EXPECT_TRUE(all(read(*device, 8193, 1000), 0x11));
  EXPECT_TRUE(all(read(*device, 9193, 7191), 0x5a));
  // What went through the cache is seen past it.
  Slot back(*loop_);
  back.ask(Command::kRead, 8192, 4096).data = memory;
  EXPECT_EQ(ask(*device, back), 0);
  EXPECT_EQ(memory[0], std::byte{0x5a});
  EXPECT_EQ(memory[1], std::byte{0x11});
  EXPECT_EQ(memory[1001], std::byte{0x5a});
}

TEST_P(OpenFile, DirectIoIsRefusedInWordsWhereThereIsNone) {
  // procfs and sysfs have no O_DIRECT; a file of theirs is regular, readable and too small: any refusal is in words.
  EXPECT_NE(refusal({.path = "/proc/self/status", .direct = true, .read_only = true}).code, 0);
}

TEST_P(OpenFile, TrimGivesSpaceBackAndReadsZeroes) {
  const auto device = opened({.path = path(), .size_bytes = 8 * kMiB});
  EXPECT_EQ(write(*device, 0, 8 * kMiB, 0x77, true), 0);
  const auto before = status_of(path()).st_blocks;
  EXPECT_GE(before, static_cast<blkcnt_t>(8 * kMiB / 512));
  EXPECT_EQ(simple(*device, Command::kTrim, kMiB, 4 * kMiB, true), 0);
  const auto after = status_of(path()).st_blocks;
  EXPECT_LE(after, before - static_cast<blkcnt_t>(4 * kMiB / 512) + 64);
  EXPECT_EQ(status_of(path()).st_size, static_cast<off_t>(8 * kMiB)) << "the size is kept";
  EXPECT_TRUE(all(read(*device, kMiB, 4 * kMiB), 0));
  EXPECT_TRUE(all(read(*device, 0, kMiB), 0x77));
  EXPECT_TRUE(all(read(*device, 5 * kMiB, 3 * kMiB), 0x77));
}

TEST_P(OpenFile, TrimOfTheTailKeepsTheSize) {
  const auto device = opened({.path = path(), .size_bytes = kMiB});
  EXPECT_EQ(write(*device, 0, kMiB, 1), 0);
  EXPECT_EQ(simple(*device, Command::kTrim, kMiB - 4096, 4096), 0);
  EXPECT_EQ(status_of(path()).st_size, static_cast<off_t>(kMiB));
  EXPECT_TRUE(all(read(*device, kMiB - 4096, 4096), 0));
}

TEST_P(OpenFile, WriteZeroesReadsZeroes) {
  const auto device = opened({.path = path(), .size_bytes = kMiB});
  EXPECT_EQ(write(*device, 0, kMiB, 1), 0);
  EXPECT_EQ(simple(*device, Command::kWriteZeroes, 1000, 100'001, true), 0);
  EXPECT_TRUE(all(read(*device, 1000, 100'001), 0));
  EXPECT_TRUE(all(read(*device, 0, 1000), 1));
  EXPECT_TRUE(all(read(*device, 101'001, 1000), 1));
}

TEST_P(OpenFile, TellsItsHolesAsTheFileSystemHasThem) {
  const auto device = opened({.path = path(), .size_bytes = 8 * kMiB});
  ASSERT_TRUE(device->geometry().can_block_status);
  const auto status = [&](uint64_t offset, uint64_t length, uint32_t most = 64) {
    Slot slot(*loop_);
    slot.ask(Command::kBlockStatus, offset, length).max_extents = most;
    EXPECT_EQ(ask(*device, slot), 0);
    return slot.found;
  };
  using Extents = std::vector<block::Extent>;
  EXPECT_EQ(status(0, 8 * kMiB), (Extents{{8 * kMiB, true, true}}));
  EXPECT_EQ(status(8 * kMiB - 1, 1), (Extents{{1, true, true}}));
  EXPECT_EQ(write(*device, kMiB, 2 * kMiB, 1), 0);
  EXPECT_EQ(write(*device, 7 * kMiB, kMiB, 1), 0);
  EXPECT_EQ(status(0, 8 * kMiB), (Extents{{kMiB, true, true}, {2 * kMiB, false, false}, {4 * kMiB, true, true},
                                          {kMiB, false, false}}));
  EXPECT_EQ(status(kMiB + 5, 100), (Extents{{100, false, false}}));
  EXPECT_EQ(status(5, 8 * kMiB - 5, 2), (Extents{{kMiB - 5, true, true}, {2 * kMiB, false, false}}));
  EXPECT_EQ(simple(*device, Command::kTrim, kMiB, kMiB), 0);
  EXPECT_EQ(status(0, 3 * kMiB), (Extents{{2 * kMiB, true, true}, {kMiB, false, false}}));
}

TEST_P(OpenFile, AHintToCacheChangesNothing) {
  for (const bool read_only : {false, true}) {
    const auto device = opened({.path = path(), .size_bytes = 8 * kMiB, .read_only = read_only});
    EXPECT_TRUE(device->geometry().can_cache);
    if (!read_only) { EXPECT_EQ(write(*device, 0, 8 * kMiB, 3), 0); }
    EXPECT_EQ(simple(*device, Command::kCache, 3, 8 * kMiB - 3), 0);
    EXPECT_TRUE(all(read(*device, 0, 8 * kMiB), 3));
  }
}

TEST_P(OpenFile, ZeroesThatStayAllocatedKeepTheSpace) {
  const auto device = opened({.path = path(), .size_bytes = 8 * kMiB});
  EXPECT_EQ(write(*device, 0, 8 * kMiB, 0x77, true), 0);
  Slot slot(*loop_);
  slot.keep_allocated = true;
  EXPECT_EQ(ask(*device, slot.ask(Command::kWriteZeroes, 1000, 6 * kMiB, true)), 0);
  EXPECT_GE(status_of(path()).st_blocks, static_cast<blkcnt_t>(8 * kMiB / 512));
  EXPECT_TRUE(all(read(*device, 1000, 6 * kMiB), 0));
  EXPECT_TRUE(all(read(*device, 0, 1000), 0x77));
  EXPECT_TRUE(all(read(*device, 6 * kMiB + 1000, kMiB), 0x77));
}

TEST_P(OpenFile, TruncationUnderItGivesEioAndNotZeroes) {
  for (const bool direct : {false, true}) {
    auto made = open({.path = path(), .size_bytes = kMiB, .direct = direct});
    if (!made && direct) GTEST_SKIP() << "no direct I/O in " << folder_ << ": " << made.error().message;
    const auto device = std::move(made).value();
    ASSERT_EQ(::truncate(path().c_str(), 10'000), 0);
    struct alignas(4096) Page {
      std::byte bytes[4096];
    };
    const auto pages = std::make_unique<Page[]>(4);
    for (const uint64_t offset : {uint64_t{8192}, uint64_t{65536}}) {
      Slot slot(*loop_);
      slot.ask(Command::kRead, offset, 16384).data = pages[0].bytes;
      EXPECT_EQ(ask(*device, slot), EIO) << "at " << offset << (direct ? " direct" : "");
    }
    EXPECT_TRUE(all(read(*device, 0, 4096), 0));
  }
}

coro::Task<void> write_durably(io::Loop& loop, block::Device& device, uint64_t block, int& errors) {
  for (int value = 1; value <= 8; ++value) {
    Slot slot(loop);
    slot.ask(Command::kWrite, block * 4096, 4096, true).fill(value);
    const int error = co_await run_request(device, slot);
    if (error != 0) ++errors;
  }
}

coro::Task<void> many_writers(io::Loop& loop, block::Device& device, int& errors) {
  coro::Scope scope;
  for (uint64_t block = 0; block < 32; ++block) scope.spawn(write_durably(loop, device, block, errors));
  co_await scope.join();
}

TEST_P(OpenFile, ConcurrentDurableWritersShareSyncs) {
  const auto device = opened({.path = path(), .size_bytes = kMiB});
  int errors = 0;
  loop_->run(many_writers(*loop_, *device, errors));
  EXPECT_EQ(errors, 0);
  EXPECT_LT(static_cast<FileStore&>(*device).syncs(), 32u * 8u);
  EXPECT_TRUE(all(read(*device, 0, 32 * 4096), 8));
}

}  // namespace
}  // namespace netblk::store
