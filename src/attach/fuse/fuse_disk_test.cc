// SPDX-License-Identifier: GPL-2.0-only
// On real mounts and real loop devices; needs root, /dev/fuse and /dev/loop-control.
#include "attach/fuse/fuse_disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include "attach/fuse/loop_device.h"
#include "coro/event.h"
#include "io/epoll/epoll_backend.h"
#include "store/filter/filter.h"
#include "store/memory_store.h"

namespace netblk::attach {
namespace {

constexpr uint64_t kSize = 8u << 20;

// A loop on a thread of its own, for as long as the object lives.
class LoopThread {
 public:
  LoopThread() : backend_(std::move(io::make_epoll_backend(2)).value()) {
    loop_ = std::move(backend_->make_loop(clock_)).value();
    stop_.owner = this;
    thread_ = std::thread([this] { loop_->run(wait(stopped_)); });
  }
  ~LoopThread() {
    loop_->post(stop_);
    thread_.join();
  }
  io::Loop& loop() { return *loop_; }

 private:
  struct Stop : io::Posted {
    Stop() : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).owner->stopped_.set(); }) {}
    LoopThread* owner = nullptr;
  };
  static coro::Task<void> wait(coro::Event& until) { co_await until.wait(); }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
  coro::Event stopped_;
  Stop stop_;
  std::thread thread_;
};

class FuseDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 || ::access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "needs root and /dev/fuse";
    std::string pattern = (std::filesystem::temp_directory_path() / "netblk-fuse.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override {
    disk_.reset();
    if (directory_.empty()) return;
    EXPECT_EQ(::rmdir(directory_.c_str()), 0) << "the mount is still there";
  }
  void mount(std::unique_ptr<block::Device> device) {
    device_ = std::move(device);
    auto mounted = FuseDisk::mount(*device_, thread_.loop(), directory_, [this] { ++closes_; });
    ASSERT_TRUE(mounted.ok()) << mounted.error().message;
    disk_ = std::move(mounted).value();
  }
  static std::unique_ptr<block::Device> memory() { return std::move(store::make_memory_store(kSize)).value(); }
  io::UniqueFd open(int flags) { return io::UniqueFd(::open(disk_->path().c_str(), flags | O_CLOEXEC)); }

  std::string directory_;
  std::atomic<int> closes_{0};
  LoopThread thread_;
  std::unique_ptr<block::Device> device_;
  std::unique_ptr<FuseDisk> disk_;
};

// Of a size that changes while it is in use, and with or without trim.
class Elastic : public block::Device {
 public:
  Elastic(std::unique_ptr<block::Device> below, uint64_t size_bytes, bool can_trim = true)
      : Device(geometry_of(*below, size_bytes, can_trim)), below_(std::move(below)) {}
  void resize(uint64_t size_bytes) { set_size_bytes(size_bytes); }

 private:
  static block::Geometry geometry_of(const block::Device& below, uint64_t size_bytes, bool can_trim) {
    block::Geometry geometry = below.geometry();
    geometry.size_bytes = size_bytes;
    geometry.can_trim = can_trim;
    return geometry;
  }
  void start(block::Request& request, block::Completion completion) override {
    forward(*below_, request, std::move(completion));
  }
  const std::unique_ptr<block::Device> below_;
};

std::vector<char> filled(size_t size, char value) { return std::vector<char>(size, value); }

TEST_F(FuseDiskTest, IsOneFileOfTheDevicesSize) {
  mount(memory());
  struct stat found{};
  ASSERT_EQ(::stat(disk_->path().c_str(), &found), 0);
  EXPECT_EQ(static_cast<uint64_t>(found.st_size), kSize);
  EXPECT_EQ(found.st_mode & 0777u, 0600u);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) names.push_back(entry.path().filename());
  EXPECT_EQ(names, std::vector<std::string>{"disk"});
  EXPECT_EQ(::open((directory_ + "/other").c_str(), O_RDONLY), -1);
  EXPECT_EQ(errno, ENOENT);
}

TEST_F(FuseDiskTest, ReadsBackWhatWasWrittenInEverySize) {
  mount(memory());
  const io::UniqueFd file = open(O_RDWR);
  ASSERT_TRUE(file.valid());
  char value = 1;
  for (const size_t size : {size_t{512}, size_t{4096}, size_t{100'000}, size_t{1} << 20, size_t{3} << 20}) {
    const std::vector<char> out = filled(size, value++);
    ASSERT_EQ(::pwrite(file.get(), out.data(), size, 4096), static_cast<ssize_t>(size));
    std::vector<char> in(size);
    ASSERT_EQ(::pread(file.get(), in.data(), size, 4096), static_cast<ssize_t>(size));
    EXPECT_EQ(in, out);
  }
}

TEST_F(FuseDiskTest, EndsWhereTheDeviceEnds) {
  mount(memory());
  const io::UniqueFd file = open(O_RDWR);
  std::vector<char> data = filled(8192, 7);
  EXPECT_EQ(::pread(file.get(), data.data(), 8192, static_cast<off_t>(kSize) - 512), 512);
  EXPECT_EQ(::pread(file.get(), data.data(), 8192, static_cast<off_t>(kSize)), 0);
  EXPECT_EQ(::pwrite(file.get(), data.data(), 8192, static_cast<off_t>(kSize) - 512), -1);
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_EQ(::ftruncate(file.get(), 0), -1);
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(kSize) * 2), -1);
  EXPECT_EQ(device_->counters().writes, 0u);
}

TEST_F(FuseDiskTest, ShowsANewSizeWhenItIsTold) {
  auto made = std::make_unique<Elastic>(memory(), kSize / 2);
  Elastic& device = *made;
  mount(std::move(made));
  const io::UniqueFd file = open(O_RDWR);
  const std::vector<char> out = filled(4096, 5);
  // Writers all the while: the kernel takes no size from a question that a write overtook.
  std::atomic<bool> enough{false};
  std::thread writer([&] {
    while (!enough) EXPECT_EQ(::pwrite(file.get(), out.data(), out.size(), 0), 4096);
  });
  for (const uint64_t size : {kSize, kSize / 4, kSize / 2}) {
    device.resize(size);
    ASSERT_TRUE(disk_->show_size().ok());
    struct stat found{};
    ASSERT_EQ(::fstat(file.get(), &found), 0);
    EXPECT_EQ(static_cast<uint64_t>(found.st_size), size);
    const auto end = static_cast<off_t>(size);
    std::vector<char> in(4096);
    EXPECT_EQ(::pwrite(file.get(), out.data(), out.size(), end - 4096), 4096);
    EXPECT_EQ(::pread(file.get(), in.data(), in.size(), end - 4096), 4096);
    EXPECT_EQ(in, out);
    EXPECT_EQ(::pwrite(file.get(), out.data(), out.size(), end), -1);
    EXPECT_EQ(::pread(file.get(), in.data(), in.size(), end), 0);
  }
  enough = true;
  writer.join();
}

TEST_F(FuseDiskTest, AReadOnlyDeviceShowsANewSize) {
  auto made = std::make_unique<Elastic>(store::make_readonly_filter(memory()), kSize / 2);
  Elastic& device = *made;
  mount(std::move(made));
  const io::UniqueFd file = open(O_RDONLY);
  std::vector<char> in(4096);
  EXPECT_EQ(::pread(file.get(), in.data(), in.size(), static_cast<off_t>(kSize) - 4096), 0);
  device.resize(kSize);
  ASSERT_TRUE(disk_->show_size().ok());
  EXPECT_EQ(::pread(file.get(), in.data(), in.size(), static_cast<off_t>(kSize) - 4096), 4096);
}

// What the loop takes in one turn is bounded: large and small requests of many askers all end.
TEST_F(FuseDiskTest, LargeAndSmallRequestsMixed) {
  mount(memory());
  const io::UniqueFd file = open(O_RDWR);
  std::atomic<int> right{0};
  std::vector<std::thread> askers;
  for (int i = 0; i < 8; ++i)
    askers.emplace_back([&, i] {
      const size_t size = i % 2 == 0 ? size_t{1} << 20 : 4096;
      const auto offset = static_cast<off_t>(i) << 20;
      for (int round = 0; round < 50; ++round) {
        const std::vector<char> out = filled(size, static_cast<char>(i * 50 + round));
        std::vector<char> in(size);
        if (::pwrite(file.get(), out.data(), size, offset) == static_cast<ssize_t>(size) &&
            ::pread(file.get(), in.data(), size, offset) == static_cast<ssize_t>(size) && in == out)
          ++right;
      }
    });
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(right, 8 * 50);
}

TEST_F(FuseDiskTest, FsyncIsAFlush) {
  mount(memory());
  const io::UniqueFd file = open(O_RDWR);
  EXPECT_EQ(::fsync(file.get()), 0);
  EXPECT_EQ(::fdatasync(file.get()), 0);
  EXPECT_EQ(device_->counters().flushes, 2u);
}

TEST_F(FuseDiskTest, HolesAndZeroesReadAsZeroes) {
  mount(memory());
  const io::UniqueFd file = open(O_RDWR);
  const std::vector<char> data = filled(65536, 9);
  for (const int mode : {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE}) {
    ASSERT_EQ(::pwrite(file.get(), data.data(), data.size(), 0), 65536);
    ASSERT_EQ(::fallocate(file.get(), mode | FALLOC_FL_KEEP_SIZE, 4096, 8192), 0) << mode;
    std::vector<char> in(65536);
    ASSERT_EQ(::pread(file.get(), in.data(), in.size(), 0), 65536);
    EXPECT_EQ(in[4095], 9);
    EXPECT_EQ(std::vector<char>(in.begin() + 4096, in.begin() + 12288), filled(8192, 0));
    EXPECT_EQ(in[12288], 9);
  }
  EXPECT_EQ(::fallocate(file.get(), 0, 0, 4096), -1) << "a disk is not allocated";
  EXPECT_EQ(::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(kSize), 4096), -1);
}

TEST_F(FuseDiskTest, AReadOnlyDeviceIsNotOpenedForWriting) {
  mount(store::make_readonly_filter(memory()));
  EXPECT_FALSE(open(O_RDWR).valid());
  EXPECT_EQ(errno, EROFS);
  EXPECT_FALSE(open(O_WRONLY).valid());
  EXPECT_TRUE(open(O_RDONLY).valid());
}

TEST_F(FuseDiskTest, TheDevicesErrorsReachTheCaller) {
  store::FaultOptions faults;
  faults.reads = faults.writes = faults.flushes = faults.trims = true;
  faults.one_in = 1;
  faults.error = EIO;
  mount(store::make_fault_filter(memory(), faults));
  const io::UniqueFd file = open(O_RDWR);
  std::vector<char> data(4096);
  EXPECT_EQ(::pread(file.get(), data.data(), 4096, 0), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(::pwrite(file.get(), data.data(), 4096, 0), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(::fsync(file.get()), -1);
  EXPECT_EQ(errno, EIO);
}

// More askers than request slots: all are served.
TEST_F(FuseDiskTest, ManyAskersAtOnceAreAllServed) {
  mount(store::make_delay_filter(memory(), 5));
  const io::UniqueFd file = open(O_RDWR);
  std::atomic<int> right{0};
  std::vector<std::thread> askers;
  for (int i = 0; i < 100; ++i)
    askers.emplace_back([&, i] {
      const std::vector<char> out = filled(4096, static_cast<char>(i));
      std::vector<char> in(4096);
      if (::pwrite(file.get(), out.data(), 4096, i * 4096) == 4096 &&
          ::pread(file.get(), in.data(), 4096, i * 4096) == 4096 && in == out)
        ++right;
    });
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(right, 100);
}

TEST_F(FuseDiskTest, TellsWhenTheLastOpenerHasClosed) {
  mount(memory());
  {
    const io::UniqueFd first = open(O_RDONLY);
    { const io::UniqueFd second = open(O_RDONLY); }
    EXPECT_EQ(closes_, 0);
  }
  while (closes_ == 0) std::this_thread::yield();
  EXPECT_EQ(closes_, 1);
}

TEST_F(FuseDiskTest, MountingWhereNothingIsFailsInWords) {
  auto device = memory();
  const auto mounted = FuseDisk::mount(*device, thread_.loop(), directory_ + "/missing", [] {});
  ASSERT_FALSE(mounted.ok());
  EXPECT_NE(mounted.error().message.find("missing"), std::string::npos);
}

class LoopDeviceTest : public FuseDiskTest {
 protected:
  void SetUp() override {
    if (::access("/dev/loop-control", R_OK | W_OK) != 0) GTEST_SKIP() << "needs /dev/loop-control";
    FuseDiskTest::SetUp();
  }
};

TEST_F(LoopDeviceTest, IsABlockDeviceOfTheSameBytes) {
  mount(memory());
  const auto node = loop_attach(disk_->path(), {});
  ASSERT_TRUE(node.ok()) << node.error().message;
  EXPECT_EQ(loop_backing_file(node.value()), disk_->path());
  {
    const io::UniqueFd block(::open(node.value().c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(block.valid());
    uint64_t size = 0;
    EXPECT_EQ(::ioctl(block.get(), BLKGETSIZE64, &size), 0);
    EXPECT_EQ(size, kSize);
    int sector = 0;
    EXPECT_EQ(::ioctl(block.get(), BLKSSZGET, &sector), 0);
    EXPECT_EQ(sector, 512);
    const std::vector<char> out = filled(1 << 20, 3);
    ASSERT_EQ(::pwrite(block.get(), out.data(), out.size(), 512), 1 << 20);
    ASSERT_EQ(::fsync(block.get()), 0);
    const io::UniqueFd file = open(O_RDONLY);
    std::vector<char> in(1 << 20);
    ASSERT_EQ(::pread(file.get(), in.data(), in.size(), 512), 1 << 20);
    EXPECT_EQ(in, out);
    EXPECT_GE(device_->counters().flushes, 1u);
  }
  EXPECT_TRUE(loop_detach(node.value()).ok());
  while (loop_backing_file(node.value()) == disk_->path()) std::this_thread::yield();
}

TEST_F(LoopDeviceTest, FollowsTheSizeOfItsFile) {
  auto made = std::make_unique<Elastic>(memory(), kSize / 2);
  Elastic& device = *made;
  mount(std::move(made));
  const auto node = loop_attach(disk_->path(), {});
  ASSERT_TRUE(node.ok()) << node.error().message;
  for (const uint64_t wanted : {kSize, kSize / 4}) {
    device.resize(wanted);
    ASSERT_TRUE(disk_->show_size().ok());
    const Status resized = loop_resize(node.value());
    ASSERT_TRUE(resized.ok()) << resized.error().message;
    const io::UniqueFd block(::open(node.value().c_str(), O_RDWR | O_CLOEXEC));
    uint64_t size = 0;
    EXPECT_EQ(::ioctl(block.get(), BLKGETSIZE64, &size), 0);
    EXPECT_EQ(size, wanted);
    const std::vector<char> out = filled(4096, 6);
    EXPECT_EQ(::pwrite(block.get(), out.data(), out.size(), static_cast<off_t>(wanted) - 4096), 4096);
    EXPECT_EQ(::fsync(block.get()), 0);
  }
  EXPECT_TRUE(loop_detach(node.value()).ok());
  EXPECT_FALSE(loop_resize("/dev/loop-of-nobody").ok());
}

// What one disk refuses is nothing that the next one with the same number has to live with.
TEST_F(LoopDeviceTest, ARefusedDiscardStaysWithItsDisk) {
  const auto discard = [this] {
    const auto node = loop_attach(disk_->path(), {});
    ASSERT_TRUE(node.ok()) << node.error().message;
    {
      const io::UniqueFd block(::open(node.value().c_str(), O_RDWR | O_CLOEXEC));
      const std::array<uint64_t, 2> range{0, 65536};
      // Kernels say 0 or EOPNOTSUPP where the disk cannot: what was done is what counts.
      (void)::ioctl(block.get(), BLKDISCARD, range.data());
    }
    EXPECT_TRUE(loop_detach(node.value()).ok());
    while (loop_backing_file(node.value()) == disk_->path()) std::this_thread::yield();
  };
  for (const bool can_trim : {false, true, false, true}) {
    disk_.reset();
    mount(std::make_unique<Elastic>(memory(), kSize, can_trim));
    discard();
    EXPECT_EQ(device_->counters().trims, can_trim ? 1u : 0u);
  }
}

TEST_F(LoopDeviceTest, ReadOnlyIsRefusedByTheKernel) {
  mount(store::make_readonly_filter(memory()));
  const auto node = loop_attach(disk_->path(), {.read_only = true});
  ASSERT_TRUE(node.ok()) << node.error().message;
  {
    const io::UniqueFd block(::open(node.value().c_str(), O_RDONLY | O_CLOEXEC));
    int read_only = 0;
    EXPECT_EQ(::ioctl(block.get(), BLKROGET, &read_only), 0);
    EXPECT_EQ(read_only, 1);
  }
  EXPECT_TRUE(loop_detach(node.value()).ok());
}

TEST_F(LoopDeviceTest, SeveralAtOnceGetDevicesOfTheirOwn) {
  mount(memory());
  std::vector<std::string> nodes(4);
  std::vector<std::thread> threads;
  for (std::string& node : nodes)
    threads.emplace_back([&] {
      auto made = loop_attach(disk_->path(), {});
      if (made) node = made.value();
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < nodes.size(); ++i) {
    EXPECT_FALSE(nodes[i].empty());
    for (size_t j = 0; j < i; ++j) EXPECT_NE(nodes[i], nodes[j]);
    EXPECT_TRUE(loop_detach(nodes[i]).ok());
  }
}

TEST_F(LoopDeviceTest, AMissingFileAndAMissingDeviceAreErrorsInWords) {
  const auto made = loop_attach(directory_ + "/missing", {});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ENOENT);
  EXPECT_FALSE(loop_detach("/dev/loop-of-nobody").ok());
  EXPECT_EQ(loop_backing_file("/dev/loop-of-nobody"), std::nullopt);
}

}  // namespace
}  // namespace netblk::attach
