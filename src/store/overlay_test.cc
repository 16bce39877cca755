// SPDX-License-Identifier: GPL-2.0-only
// An image under an overlay: what is read, what stays, what is refused, and what is left of it after a crash.
#include "store/overlay.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include "io/uring/uring_backend.h"
#include "store/fake_file_test.h"
#include "store/file_store.h"
#include "store/identity.h"

namespace netblk::store {
namespace {

using block::Command;
using test::run_request;
using test::Slot;

constexpr uint64_t kSize = (1 << 20) + 1536;  // its last block is not whole

coro::Task<void> ask_one(block::Device& device, Slot& slot, int& error) {
  const int result = co_await run_request(device, slot);
  error = result;
}

class Overlay : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = std::string(GetParam()) == "io_uring" ? io::make_uring_backend() : io::make_epoll_backend(2);
    if (!made) GTEST_SKIP() << "no " << GetParam() << " here: " << made.error().message;
    backend_ = std::move(made).value();
    loop_ = backend_->make_loop(clock_).value();
    std::string name = (std::filesystem::temp_directory_path() / "netblk-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    std::mt19937_64 random(7);
    image_.resize(kSize);
    for (std::byte& one : image_) one = static_cast<std::byte>(random());
    write_file(base(), image_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string base() const { return folder_ + "/base.img"; }
  std::string top() const { return folder_ + "/top.cow"; }
  static void write_file(const std::string& path, const std::vector<std::byte>& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  static std::vector<std::byte> file(const std::string& path) {
    std::vector<std::byte> bytes(std::filesystem::file_size(path));
    std::ifstream(path, std::ios::binary)
        .read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return bytes;
  }
  Result<std::unique_ptr<block::Device>> try_open(const std::string& overlay, bool read_only = false) {
    FileOptions options;
    options.path = base();
    options.read_only = read_only;
    return open_overlay_store(*backend_, options, overlay);
  }
  std::unique_ptr<block::Device> open(const std::string& overlay, bool read_only = false) {
    auto opened = try_open(overlay, read_only);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return std::move(opened).value();
  }
  int ask(block::Device& device, Slot& slot) {
    int error = -1;
    loop_->run(ask_one(device, slot, error));
    return error;
  }
  int simple(block::Device& device, Command command, uint64_t offset = 0, uint64_t length = 0, bool fua = false) {
    Slot slot(*loop_);
    return ask(device, slot.ask(command, offset, length, fua));
  }
  int write(block::Device& device, uint64_t offset, uint64_t length, int value) {
    Slot slot(*loop_);
    return ask(device, slot.ask(Command::kWrite, offset, length).fill(value));
  }
  std::vector<std::byte> read(block::Device& device, uint64_t offset, uint64_t length) {
    Slot slot(*loop_);
    EXPECT_EQ(ask(device, slot.ask(Command::kRead, offset, length)), 0);
    return slot.buffer;
  }

  // One step at random, on the device and on the model.
  void step(block::Device& device, std::vector<std::byte>& model, std::mt19937_64& random) {
    const uint64_t offset = random() % kSize;
    const uint64_t length = 1 + random() % std::min<uint64_t>(kSize - offset, random() % 4 == 0 ? 60'000 : 6'000);
    const auto from = model.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto until = from + static_cast<std::ptrdiff_t>(length);
    Slot slot(*loop_);
    switch (random() % 5) {
      case 0: {
        const auto got = read(device, offset, length);
        ASSERT_TRUE(std::equal(from, until, got.begin())) << offset << '+' << length;
        break;
      }
      case 1:
        slot.keep_allocated = random() % 2 == 0;
        ASSERT_EQ(ask(device, slot.ask(Command::kWriteZeroes, offset, length)), 0);
        std::fill(from, until, std::byte{0});
        break;
      default:
        slot.ask(Command::kWrite, offset, length);
        for (std::byte& one : slot.buffer) one = static_cast<std::byte>(random());
        ASSERT_EQ(ask(device, slot), 0);
        std::copy(slot.buffer.begin(), slot.buffer.end(), from);
    }
  }
  // As if the machine had been started anew: the running map is nobody's.
  void forget_boot() {
    const int fd = ::open(top().c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(::pwrite(fd, "another-boot", 12, 512), 12);
    ::close(fd);
  }
  // In a process of its own, which then dies as it is.
  template <class Act>
  void and_die(Act act) {
    const pid_t child = ::fork();
    if (child == 0) {
      loop_.release();
      auto own = io::make_epoll_backend(1).value();
      backend_.release();
      backend_ = std::move(own);
      loop_ = backend_->make_loop(clock_).value();
      act();
      ::kill(::getpid(), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
  }

  std::string folder_;
  std::vector<std::byte> image_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
};
INSTANTIATE_TEST_SUITE_P(Backends, Overlay, testing::Values("io_uring", "epoll"), [](const auto& one) {
  return std::string(one.param);
});

TEST_P(Overlay, ShowsTheImageAndLeavesItAsItIs) {
  const auto device = open(top());
  EXPECT_EQ(device->size_bytes(), kSize / 512 * 512);
  EXPECT_TRUE(read(*device, 0, kSize) == image_);
  EXPECT_EQ(write(*device, 5000, 100, 1), 0);
  EXPECT_EQ(write(*device, kSize - 1, 1, 2), 0);
  image_[kSize - 1] = std::byte{2};
  std::fill_n(image_.begin() + 5000, 100, std::byte{1});
  EXPECT_TRUE(read(*device, 0, kSize) == image_);
  EXPECT_NE(file(base())[5000], std::byte{1});
}

TEST_P(Overlay, KeepsToAModelAndIsKept) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<std::byte> original = image_;
  std::vector<std::byte> model = image_;
  for (int opening = 0; opening < 4; ++opening) {
    const auto device = open(top());
    for (int i = 0; i < 300 && !HasFatalFailure(); ++i) step(*device, model, random);
    EXPECT_TRUE(read(*device, 0, kSize) == model) << opening;
  }
  forget_boot();
  EXPECT_TRUE(read(*open(top()), 0, kSize) == model) << "a clean end needs no flush";
  EXPECT_TRUE(file(base()) == original);
}

TEST_P(Overlay, ADiscardedOneIsGoneWithItsDevice) {
  {
    const auto device = open(kDiscardedOverlay);
    EXPECT_EQ(write(*device, 0, 65536, 1), 0);
    EXPECT_EQ(simple(*device, Command::kFlush), 0);
    EXPECT_EQ(std::to_integer<int>(read(*device, 65535, 1)[0]), 1);
  }
  EXPECT_TRUE(read(*open(kDiscardedOverlay), 0, kSize) == image_);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1) << "a file is left";
}

TEST_P(Overlay, OneImageCarriesMany) {
  const auto first = open(top()), second = open(folder_ + "/second.cow"), third = open(kDiscardedOverlay);
  EXPECT_EQ(write(*first, 0, 512, 1), 0);
  EXPECT_EQ(write(*second, 0, 512, 2), 0);
  EXPECT_EQ(std::to_integer<int>(read(*first, 0, 1)[0]), 1);
  EXPECT_EQ(std::to_integer<int>(read(*second, 0, 1)[0]), 2);
  EXPECT_TRUE(read(*third, 0, kSize) == image_);
  EXPECT_EQ(try_open(top()).error().code, EBUSY) << "an overlay has one user";
}

TEST_P(Overlay, AnotherImageIsRefused) {
  { EXPECT_EQ(write(*open(top()), 0, 512, 1), 0); }
  const auto before = file(top());
  const auto refused = [&](const char* what) {
    const auto opened = try_open(top());
    ASSERT_FALSE(opened.ok()) << what;
    EXPECT_EQ(opened.error().code, ESTALE) << what;
    EXPECT_NE(opened.error().message.find(top()), std::string::npos) << opened.error().message;
    EXPECT_TRUE(file(top()) == before) << what;
  };
  struct stat status;
  ASSERT_EQ(::stat(base().c_str(), &status), 0);
  const timespec times[2] = {status.st_atim, status.st_mtim};
  auto other = image_;
  other[17] ^= std::byte{1};
  write_file(base(), other);
  ASSERT_EQ(::utimensat(AT_FDCWD, base().c_str(), times, 0), 0);
  refused("other contents at the same time");
  write_file(base(), image_);
  refused("written since");
  ASSERT_EQ(::utimensat(AT_FDCWD, base().c_str(), times, 0), 0);
  EXPECT_TRUE(try_open(top()).ok()) << "the same one again";
  image_.resize(image_.size() + 4096);
  write_file(base(), image_);
  refused("another size");
}

TEST_P(Overlay, WhatIsNoOverlayIsRefused) {
  write_file(top(), std::vector<std::byte>(100'000, std::byte{7}));
  const auto before = file(top());
  EXPECT_EQ(try_open(top()).error().code, EMEDIUMTYPE);
  EXPECT_TRUE(file(top()) == before);
  EXPECT_FALSE(try_open(folder_).ok());
  EXPECT_FALSE(try_open(folder_ + "/none/top.cow").ok());
  EXPECT_FALSE(try_open(folder_ + "/none.cow", true).ok()) << "read-only makes nothing";
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/none.cow"));
}

TEST_P(Overlay, ReadOnlyShowsWhatIsThere) {
  { EXPECT_EQ(write(*open(top()), 8192, 512, 9), 0); }
  const auto before = file(top());
  {
    const auto device = open(top(), true);
    EXPECT_EQ(std::to_integer<int>(read(*device, 8192, 1)[0]), 9);
    EXPECT_EQ(write(*device, 0, 512, 1), EROFS);
  }
  EXPECT_TRUE(file(top()) == before);
}

TEST_P(Overlay, TellsHolesOfBoth) {
  ASSERT_EQ(::truncate(base().c_str(), 0), 0);
  ASSERT_EQ(::truncate(base().c_str(), 8 << 20), 0);
  const auto device = open(top());
  EXPECT_EQ(write(*device, 1 << 20, 1 << 20, 1), 0);
  Slot slot(*loop_);
  EXPECT_EQ(ask(*device, slot.ask(Command::kBlockStatus, 0, 8 << 20)), 0);
  EXPECT_EQ(slot.found, (std::vector<block::Extent>{{1 << 20, true, true}, {1 << 20, false, false}, {6 << 20, true, true}}));
  EXPECT_EQ(simple(*device, Command::kTrim, 1 << 20, 1 << 20), 0);
  EXPECT_EQ(ask(*device, slot.ask(Command::kBlockStatus, 0, 8 << 20)), 0);
  EXPECT_EQ(slot.found, (std::vector<block::Extent>{{8 << 20, true, true}}));
}

coro::Task<void> write_side_by_side(io::Loop& loop, block::Device& device, int& errors) {
  std::vector<std::unique_ptr<Slot>> slots;
  for (uint64_t i = 0; i < 2048; ++i) {
    slots.push_back(std::make_unique<Slot>(loop));
    device.submit(slots.back()->ask(Command::kWrite, i * 500, 500).fill(static_cast<int>(i % 251)));
  }
  for (const auto& slot : slots) {
    while (!slot->done()) co_await slot->ended.wait();
    errors += slot->error != 0;
  }
}

TEST_P(Overlay, WritesToPartsOfOneBlockDoNotLoseEachOther) {
  const auto device = open(top());
  int errors = 0;
  loop_->run(write_side_by_side(*loop_, *device, errors));
  EXPECT_EQ(errors, 0);
  for (uint64_t i = 0; i < 2048; ++i) std::fill_n(image_.begin() + static_cast<std::ptrdiff_t>(i * 500), 500, static_cast<std::byte>(i % 251));
  EXPECT_TRUE(read(*device, 0, kSize) == image_);
}

// The thread sanitizer lets no child of a process with threads make threads.
#ifndef __SANITIZE_THREAD__

TEST_P(Overlay, AKilledProcessLosesNothingThatWasAnswered) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::byte> model = image_;
  for (uint64_t round = 0; round < 8 && !HasFatalFailure(); ++round) {
    const auto work = [&] {
      std::mt19937_64 random(seed + round);
      auto device = open(top());
      for (int i = 0; i < 60; ++i) {
        step(*device, model, random);
        if (random() % 20 == 0) (void)simple(*device, Command::kFlush);
      }
      (void)device.release();
    };
    and_die(work);
    // The same steps here, on the model alone.
    const auto overlay = top();
    std::mt19937_64 random(seed + round);
    const auto memory = open(kDiscardedOverlay);
    std::vector<std::byte> shadow = model;
    {
      Slot whole(*loop_);
      whole.ask(Command::kWrite, 0, kSize).buffer = shadow;
      whole.data = whole.buffer.data();
      ASSERT_EQ(ask(*memory, whole), 0);
    }
    for (int i = 0; i < 60 && !HasFatalFailure(); ++i) {
      step(*memory, model, random);
      (void)(random() % 20 == 0);
    }
    ASSERT_TRUE(read(*open(overlay), 0, kSize) == model) << "round " << round;
  }
}

TEST_P(Overlay, APowerLossLeavesWhatWasFlushed) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::byte> flushed = image_;
  std::mt19937_64 random(seed);
  for (int round = 0; round < 8 && !HasFatalFailure(); ++round) {
    // Blocks of their own for what is flushed and what is not: the disk may have either of a block that was changed again.
    const uint64_t durable = random() % 120, lost = 128 + random() % 120;
    const int value = 1 + static_cast<int>(random() % 255);
    and_die([&] {
      auto device = open(top());
      (void)write(*device, durable * 4096 + 100, 4000, value);
      (void)simple(*device, Command::kFlush);
      (void)write(*device, lost * 4096 + 100, 4000, value);
      (void)device.release();
    });
    std::fill_n(flushed.begin() + static_cast<std::ptrdiff_t>(durable * 4096 + 100), 4000, static_cast<std::byte>(value));
    forget_boot();
    {
      // The blocks that no sync was about are gone.
      OverlayMap map(kSize, -1);
      const int fd = ::open(top().c_str(), O_RDWR | O_CLOEXEC);
      ASSERT_GE(fd, 0);
      std::vector<uint64_t> words(512);
      ASSERT_EQ(::pread(fd, words.data(), 4096, 4096), 4096);
      ASSERT_EQ(words[lost / 64] >> (lost % 64) & 1, 0u) << "the durable map names a block that was not synced";
      ASSERT_EQ(words[durable / 64] >> (durable % 64) & 1, 1u);
      const std::vector<std::byte> noise(4096, std::byte{0xee});
      ASSERT_EQ(::pwrite(fd, noise.data(), 4096, static_cast<off_t>(map.data_at() + lost * 4096)), 4096);
      ::close(fd);
    }
    ASSERT_TRUE(read(*open(top()), 0, kSize) == flushed) << "round " << round;
  }
}

#endif

}  // namespace
}  // namespace netblk::store
