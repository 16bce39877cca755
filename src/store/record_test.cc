// SPDX-License-Identifier: GPL-2.0-only
#include "store/record.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>

#include "base/crc32c.h"
#include "base/limits.h"

namespace netblk::store {
namespace {

StoreRecord some_record() {
  StoreRecord record;
  record.uuid = random_id();
  record.counter = 7;
  record.clean = true;
  record.inode = UINT64_MAX;
  record.device = 2049;
  record.ctime_ns = -1;
  record.size_bytes = uint64_t{1} << 40;
  record.medium = "device/serial=A B C partition 2";
  for (int i = 0; i < 300; ++i) record.owners.push_back(static_cast<std::byte>(i));
  return record;
}

RunRecord some_run_record() {
  return {.uuid = random_id(), .counter = 7, .boot_id = "boot-1", .inode = 12, .device = 2049, .disk_sequence = 9,
          .healthy = true, .store = "/a disk/image", .folder_device = 2049};
}

class RecordFile : public testing::Test {
 protected:
  RecordFile() {
    std::string name = (std::filesystem::temp_directory_path() / "netblk-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~RecordFile() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name = "record") const { return folder_ + "/" + name; }
  std::string folder_;
};

TEST(Record, RoundTrip) {
  const StoreRecord record = some_record();
  const auto read = decode_store_record(encode(record));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read.value(), record);
  StoreRecord plain;
  plain.uuid = random_id();
  const auto again = decode_store_record(encode(plain));
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again.value(), plain);
  const RunRecord run = some_run_record();
  const auto run_read = decode_run_record(encode(run));
  ASSERT_TRUE(run_read.ok()) << run_read.error().message;
  EXPECT_EQ(run_read.value(), run);
}

// A server is killed, and a newer netblk takes its place: what the old one left is still believed.
TEST(Record, ARunRecordOfAnEarlierNetblkHasNoPath) {
  RunRecord run = some_run_record();
  run.store.clear();
  run.folder_device = 0;
  std::string text = encode(run);
  text.resize(text.find("store \n"));
  text += fmt::format("crc32c {:08x}\n", crc32c(std::as_bytes(std::span(text))));
  const auto read = decode_run_record(text);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read.value(), run);
}

// No bit may turn, and no end may be missing, and still leave a record that is believed.
TEST(Record, EveryDamageIsSeen) {
  const std::string text = encode(some_record());
  for (size_t i = 0; i < text.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      EXPECT_FALSE(decode_store_record(damaged).ok()) << "byte " << i << " bit " << bit;
    }
  for (size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(decode_store_record(text.substr(0, length)).ok()) << length;
  EXPECT_FALSE(decode_store_record(text + "\n").ok());
  EXPECT_FALSE(decode_store_record(text + text).ok());
  const std::string run = encode(some_run_record());
  for (size_t i = 0; i < run.size(); ++i) {
    std::string damaged = run;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_FALSE(decode_run_record(damaged).ok()) << "byte " << i;
  }
}

TEST(Record, OneKindIsNotTakenForTheOther) {
  EXPECT_FALSE(decode_store_record(encode(some_run_record())).ok());
  EXPECT_FALSE(decode_run_record(encode(some_record())).ok());
}

TEST(Record, ANewerVersionIsNamed) {
  for (const char* version : {"2", "17"}) {
    const auto read = decode_store_record(std::string("netblk store record ") + version + "\nanything\n");
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.error().code, EPROTONOSUPPORT);
    EXPECT_NE(read.error().message.find(std::string("version ") + version), std::string::npos);
  }
  for (const char* version : {"", "0", "-1", "x", "1x", "2 "}) {
    const auto read = decode_store_record(std::string("netblk store record ") + version + "\nanything\n");
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.error().code, EBADMSG) << version;
  }
}

TEST_F(RecordFile, IsReplacedWhole) {
  auto none = read_record_file(path());
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none.value().has_value());
  for (const char* text : {"one", "another text", ""}) {
    ASSERT_TRUE(replace_record_file(path(), text, true, -1).ok());
    EXPECT_EQ(read_record_file(path()).value().value(), text);
  }
  EXPECT_FALSE(std::filesystem::exists(path() + ".new"));
}

// A crash in the middle of a replacement leaves PATH.new, of any kind and length: it says nothing.
TEST_F(RecordFile, WhatACrashLeftIsNoObstacle) {
  ASSERT_TRUE(replace_record_file(path(), "old", true, -1).ok());
  std::ofstream(path() + ".new") << "half of a rec";
  EXPECT_EQ(read_record_file(path()).value().value(), "old");
  ASSERT_TRUE(replace_record_file(path(), "new", true, -1).ok());
  EXPECT_EQ(read_record_file(path()).value().value(), "new");
  std::ofstream(path("victim")) << "precious";
  std::filesystem::create_symlink(path("victim"), path() + ".new");
  ASSERT_TRUE(replace_record_file(path(), "newer", true, -1).ok());
  EXPECT_EQ(read_record_file(path("victim")).value().value(), "precious");
}

TEST_F(RecordFile, AFailedReplacementLeavesTheOldOne) {
  ASSERT_TRUE(replace_record_file(path(), "old", true, -1).ok());
  std::filesystem::create_directories(path() + ".new/x");
  const auto failed = replace_record_file(path(), "new", true, -1);
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find(path()), std::string::npos);
  EXPECT_EQ(read_record_file(path()).value().value(), "old");
  EXPECT_FALSE(replace_record_file(path("none/such"), "new", true, -1).ok());
}

TEST_F(RecordFile, HasALimit) {
  EXPECT_EQ(replace_record_file(path(), std::string(limits::kMaxRecordBytes + 1, 'x'), true, -1).error().code, EFBIG);
  ASSERT_TRUE(replace_record_file(path(), std::string(limits::kMaxRecordBytes, 'x'), true, -1).ok());
  EXPECT_EQ(read_record_file(path()).value().value().size(), limits::kMaxRecordBytes);
  std::ofstream(path(), std::ios::app) << 'x';
  EXPECT_EQ(read_record_file(path()).error().code, EFBIG);
}

TEST_F(RecordFile, AFifoInItsPlaceIsNoWait) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  const auto read = read_record_file(path());
  ASSERT_TRUE(read.ok());
  EXPECT_TRUE(read.value().value().empty());
}

TEST_F(RecordFile, FoldersAreMade) {
  ASSERT_TRUE(make_record_folder(path("a/b/c")).ok());
  EXPECT_TRUE(std::filesystem::is_directory(path("a/b/c")));
  ASSERT_TRUE(make_record_folder(path("a/b/c")).ok());
  std::ofstream(path("file")) << "x";
  EXPECT_FALSE(make_record_folder(path("file")).ok());
  EXPECT_FALSE(make_record_folder(path("file/below")).ok());
}

}  // namespace
}  // namespace netblk::store
