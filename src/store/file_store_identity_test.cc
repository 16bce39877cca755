// SPDX-License-Identifier: GPL-2.0-only
// FileStore and its Identity together: what waits for the record, and what a resize does. The rules: identity_test.cc.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "store/fake_file_test.h"
#include "store/file_store.h"

namespace netblk::store {
namespace {

namespace fs = std::filesystem;
using block::Command;
using test::Call;
using test::FakeDisk;
using test::FakeFile;
using test::run_request;
using test::Slot;

constexpr uint64_t kMiB = 1 << 20;

class NoMedium final : public Medium {
 public:
  Result<Seen> look() override { return Seen{.inode = 7, .device = 8, .size_bytes = kMiB, .ctime_ns = 9, .name = ""}; }
  int sync() override { return 0; }
  void drop_cache() override {}
  int descriptor() const override { return -1; }
};

class FileStoreIdentity : public testing::Test {
 public:
  FileStoreIdentity() {
    backend_ = io::make_epoll_backend(1).value();
    loop_ = backend_->make_loop(clock_).value();
    std::string name = (fs::temp_directory_path() / "netblk-test-XXXXXX").string();
    folder = ::mkdtemp(name.data());
    make_store();
  }
  ~FileStoreIdentity() override {
    store.reset();
    fs::remove_all(folder);
  }
  void make_store() {
    store.reset();
    IdentityOptions options{.store = "fake", .record_path = record_path(), .run_folders = {folder + "/run"},
                            .boot_id = "boot-1"};
    auto identity = Identity::open(std::move(options), std::make_unique<NoMedium>(), false);
    ASSERT_TRUE(identity.ok()) << identity.error().message;
    ASSERT_TRUE(identity.value()->start().ok());
    store = std::make_unique<FileStore>(
        block::Geometry{.size_bytes = kMiB, .can_trim = true}, std::make_unique<FakeFile>(disk), nullptr, 0,
        FileHome{.path = "fake", .fd = {}, .direct = false, .identity = std::move(identity).value()});
  }
  std::string record_path() const { return folder + "/record"; }
  std::string blocker() const { return record_path() + ".new"; }
  StoreRecord record() const {
    const auto text = read_record_file(record_path());
    return decode_store_record(text.value().value()).value();
  }
  void run(coro::Task<void> task) { loop_->run(std::move(task)); }
  io::Loop& loop() { return *loop_; }

  FakeDisk disk{kMiB};
  std::string folder;
  std::unique_ptr<FileStore> store;

 private:
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
};

coro::Task<void> first_changes(FileStoreIdentity& t) {
  Slot read(t.loop()), flush(t.loop());
  const int read_error = co_await run_request(*t.store, read.ask(Command::kRead, 0, 512));
  const int flush_error = co_await run_request(*t.store, flush.ask(Command::kFlush, 0, 0));
  EXPECT_EQ(read_error, 0);
  EXPECT_EQ(flush_error, 0);
  EXPECT_TRUE(t.record().clean) << "neither a READ nor a FLUSH changes anything";
  // Several at once share one record; none of them reaches the disk before it.
  std::vector<std::unique_ptr<Slot>> slots;
  for (uint64_t i = 0; i < 4; ++i) {
    slots.push_back(std::make_unique<Slot>(t.loop()));
    slots.back()->ask(i == 3 ? Command::kTrim : Command::kWrite, i * 512, 512).fill(5);
    t.store->submit(*slots.back());
    EXPECT_EQ(t.disk.count(Call::kWrite) + t.disk.count(Call::kPunchHole), 0) << "before the record";
  }
  for (auto& slot : slots) {
    while (!slot->done()) co_await slot->ended.wait();
    EXPECT_EQ(slot->error, 0);
    EXPECT_FALSE(t.record().clean);
  }
}
TEST_F(FileStoreIdentity, TheFirstChangesWaitForTheRecord) {
  run(first_changes(*this));
  store.reset();
  EXPECT_TRUE(record().clean) << "closed";
}

coro::Task<void> refused_change(FileStoreIdentity& t) {
  fs::create_directories(t.blocker() + "/x");
  Slot write(t.loop());
  const int error = co_await run_request(*t.store, write.ask(Command::kWrite, 0, 512).fill(5));
  EXPECT_NE(error, 0);
  EXPECT_EQ(t.disk.count(Call::kWrite), 0);
  fs::remove_all(t.blocker());
  const int again = co_await run_request(*t.store, write);
  EXPECT_EQ(again, 0);
}
TEST_F(FileStoreIdentity, AChangeThatCannotBeRecordedIsRefused) { run(refused_change(*this)); }

coro::Task<void> failed_sync(FileStoreIdentity& t) {
  const uint64_t before = t.store->generation().counter;
  t.disk.faults.push_back({Call::kDatasync, 1, -EIO});
  Slot write(t.loop()), late(t.loop());
  t.store->submit(write.ask(Command::kWrite, 0, 512, true).fill(5));
  while (!write.done()) co_await write.ended.wait();
  EXPECT_EQ(write.error, EIO);
  EXPECT_EQ(t.store->generation().counter, before + 1);
  EXPECT_EQ(t.record().counter, before + 1) << "durable before the answer";
  const int flush_error = co_await run_request(*t.store, late.ask(Command::kFlush, 0, 0));
  EXPECT_EQ(flush_error, EIO);
}
TEST_F(FileStoreIdentity, AFailedSyncIsWrittenDownBeforeTheAnswer) {
  run(failed_sync(*this));
  const auto before = store->generation();
  make_store();
  EXPECT_EQ(store->generation().uuid, before.uuid);
  EXPECT_GT(store->generation().counter, before.counter);
}

coro::Task<void> keep(FileStoreIdentity& t, std::vector<std::byte> owners, bool works) {
  const Status kept = co_await t.store->keep_owners(t.loop(), std::move(owners));
  EXPECT_EQ(kept.ok(), works);
}
TEST_F(FileStoreIdentity, OwnersAreDurableWhenTheTaskEnds) {
  const std::vector<std::byte> owners{std::byte{3}, std::byte{0}};
  run(keep(*this, owners, true));
  EXPECT_EQ(store->owners(), owners);
  EXPECT_EQ(record().owners, owners);
  fs::create_directories(blocker() + "/x");
  run(keep(*this, {}, false));
  EXPECT_EQ(store->owners(), owners);
  fs::remove_all(blocker());
  make_store();
  EXPECT_EQ(store->owners(), owners);
}

// --- On real files ---

coro::Task<void> ask_one(block::Device& device, Slot& slot, int& error) {
  const int result = co_await run_request(device, slot);
  error = result;
}

class ResizedFile : public testing::Test {
 protected:
  ResizedFile() {
    backend_ = io::make_epoll_backend(1).value();
    loop_ = backend_->make_loop(clock_).value();
    std::string name = (fs::temp_directory_path() / "netblk-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    device_ = open();
  }
  ~ResizedFile() override {
    device_.reset();
    fs::remove_all(folder_);
  }
  std::unique_ptr<block::Device> open(bool read_only = false, bool direct = false) {
    FileOptions options;
    options.path = path();
    options.size_bytes = kMiB;
    options.keep_identity = true;
    options.read_only = read_only;
    options.direct = direct;
    auto made = open_file_store(*backend_, options);
    EXPECT_TRUE(made.ok()) << made.error().message;
    return made ? std::move(made).value() : nullptr;
  }
  std::string path() const { return folder_ + "/image"; }
  int simple(Command command, uint64_t offset, uint64_t length = 512) {
    Slot slot(*loop_);
    int error = -1;
    loop_->run(ask_one(*device_, slot.ask(command, offset, length), error));
    return error;
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
  std::string folder_;
  std::unique_ptr<block::Device> device_;
};

TEST_F(ResizedFile, RefreshFollowsTheFile) {
  for (const uint64_t size : {3 * kMiB, kMiB / 2, uint64_t{0}, kMiB + 100}) {
    fs::resize_file(path(), size);
    device_->refresh_size();
    EXPECT_EQ(device_->size_bytes(), size - size % 512);
    EXPECT_EQ(device_->geometry().size_bytes, device_->size_bytes());
  }
}

// Each kind of change, at once after the cut: refused, and the file stays as it was cut.
TEST_F(ResizedFile, NoChangeGrowsAFileThatWasCut) {
  for (const Command command : {Command::kWrite, Command::kTrim, Command::kWriteZeroes}) {
    fs::resize_file(path(), kMiB);
    device_->refresh_size();
    EXPECT_EQ(simple(command, kMiB - 512), 0) << block::command_text(command);
    fs::resize_file(path(), 4096);
    EXPECT_EQ(simple(command, kMiB - 512), EINVAL) << block::command_text(command);
    EXPECT_EQ(simple(command, 4096 - 512, 1024), EINVAL) << block::command_text(command);
    EXPECT_EQ(fs::file_size(path()), 4096u) << block::command_text(command);
    EXPECT_EQ(simple(command, 0), 0) << block::command_text(command);
  }
}

TEST_F(ResizedFile, AReadOfWhatWasCutFails) {
  fs::resize_file(path(), 4096);
  EXPECT_EQ(simple(Command::kRead, kMiB - 512), EIO) << "nobody has looked yet";
  EXPECT_EQ(simple(Command::kRead, 4096 - 512, 1024), EIO);
  device_->refresh_size();
  EXPECT_EQ(simple(Command::kRead, kMiB - 512), EINVAL);
}

TEST_F(ResizedFile, GrowNeverShrinks) {
  EXPECT_TRUE(device_->grow(2 * kMiB).ok());
  EXPECT_EQ(device_->size_bytes(), 2 * kMiB);
  EXPECT_EQ(fs::file_size(path()), 2 * kMiB);
  EXPECT_TRUE(device_->grow(kMiB).ok());
  EXPECT_EQ(fs::file_size(path()), 2 * kMiB);
  EXPECT_FALSE(device_->grow(uint64_t{1} << 62).ok()) << "no file system has that";
  EXPECT_EQ(device_->size_bytes(), 2 * kMiB);
}

TEST_F(ResizedFile, ASizeOfItsOwnMakingKeepsTheGeneration) {
  const auto before = device_->generation();
  EXPECT_TRUE(device_->grow(2 * kMiB).ok());
  device_.reset();
  device_ = open();
  EXPECT_EQ(device_->generation(), before);
  device_.reset();
  fs::resize_file(path(), 3 * kMiB);
  device_ = open();
  EXPECT_EQ(device_->generation().counter, before.counter + 1) << "somebody else did it";
}

TEST_F(ResizedFile, ADescriptorForReads) {
  const int fd = device_->read_fd();
  ASSERT_GE(fd, 0);
  EXPECT_EQ(simple(Command::kWrite, 512), 0);
  struct stat of_fd, of_path;
  ASSERT_EQ(::fstat(fd, &of_fd), 0);
  ASSERT_EQ(::stat(path().c_str(), &of_path), 0);
  EXPECT_EQ(of_fd.st_ino, of_path.st_ino);
  device_.reset();
  EXPECT_GE(open(true)->read_fd(), 0);
}

}  // namespace
}  // namespace netblk::store
