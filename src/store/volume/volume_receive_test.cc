// SPDX-License-Identifier: GPL-2.0-only
// What a volume does while a snapshot comes in: nothing of it is seen before its end, in whatever way it breaks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Bytes;
using test::kSize;
using test::VolumeTest;

int code_of(const Status& status) { return status.ok() ? 0 : status.error().code; }

SnapshotIdentity identity(uint64_t lsn) {
  SnapshotIdentity identity{.volume = {}, .branch = 1, .lsn = lsn, .time_ns = 7 * lsn};
  identity.volume.bytes[0] = 42;
  return identity;
}
Transfer whole(const std::string& name, uint64_t lsn, uint64_t size_bytes) {
  Transfer what;
  what.to = identity(lsn);
  what.to_name = name;
  what.size_bytes = size_bytes;
  return what;
}
Transfer since(uint64_t from_lsn, const std::string& name, uint64_t lsn, uint64_t size_bytes) {
  Transfer what = whole(name, lsn, size_bytes);
  what.from = identity(from_lsn);
  what.from_name = "sent" + std::to_string(from_lsn);
  what.from_size_bytes = kSize;
  return what;
}

coro::Task<int> begin(VolumeTest& t, Transfer what) {
  t.device.reset();
  auto disk = co_await t.volume->receive(std::move(what));
  if (!disk) co_return disk.error().code;
  t.device = std::move(disk).value();
  co_return 0;
}
coro::Task<void> look_again(VolumeTest& t) {
  t.device.reset();
  t.device = t.volume->open_device().value();
  co_return;
}
// The head has one value everywhere, and cannot be written.
coro::Task<void> expect_shown(VolumeTest& t, int value, uint64_t size_bytes) {
  co_await look_again(t);
  EXPECT_EQ(t.device->size_bytes(), size_bytes);
  int got = co_await VolumeTest::read(t, 0, size_bytes);
  EXPECT_EQ(got, value);
  EXPECT_TRUE(t.device->geometry().read_only);
  got = co_await VolumeTest::write(t, 0, 4096, 9);
  EXPECT_EQ(got, EROFS);
}
coro::Task<void> again(VolumeTest& t, bool crash) {
  if (crash) {
    co_await VolumeTest::crash(t, false);
  } else {
    (void)co_await VolumeTest::close(t);
  }
  const bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  EXPECT_EQ(t.volume->info().damage, "");
}
coro::Task<int> receive_whole(VolumeTest& t, std::string name, uint64_t lsn, int value) {
  const Transfer what = whole(name, lsn, kSize);
  int error = co_await begin(t, what);
  if (error == 0) error = co_await VolumeTest::write(t, 0, kSize, value);
  if (error != 0) co_return error;
  const Status ended = co_await t.volume->end_receiving();
  co_await look_again(t);
  co_return code_of(ended);
}

coro::Task<void> a_whole_one(VolumeTest& t, bool crash) {
  co_await VolumeTest::create(t, kSize / 2, 1u << 16);
  (void)co_await VolumeTest::open(t);
  const uint64_t generation = t.volume->info().generation;
  const Transfer what = whole("b", 5, kSize);
  int error = co_await begin(t, what);
  EXPECT_EQ(error, 0);
  EXPECT_EQ(t.device->size_bytes(), kSize);
  EXPECT_EQ(t.volume->open_device().ok(), false) << "the disk is in use";
  error = co_await VolumeTest::write(t, 0, kSize / 2, 5);
  EXPECT_EQ(error, 0);
  const Status kept = co_await t.volume->keep_received(kSize / 2);
  EXPECT_TRUE(kept.ok());
  error = co_await VolumeTest::write(t, kSize / 2, 65536, 5);
  EXPECT_EQ(error, 0);
  co_await expect_shown(t, 0, kSize / 2);
  EXPECT_TRUE(t.volume->snapshots().empty());
  co_await again(t, crash);
  co_await expect_shown(t, 0, kSize / 2);
  EXPECT_EQ(t.volume->receiving()->offset, kSize / 2);
  EXPECT_EQ(t.volume->receiving()->what, what);
  const Transfer other = whole("c", 6, kSize);
  error = co_await begin(t, other);
  EXPECT_EQ(error, EBUSY) << "another one";
  error = co_await begin(t, what);
  EXPECT_EQ(error, 0);
  error = co_await VolumeTest::write(t, kSize / 2, kSize / 2, 5);
  EXPECT_EQ(error, 0);
  const Status ended = co_await t.volume->end_receiving();
  EXPECT_TRUE(ended.ok());
  EXPECT_GT(t.volume->info().generation, generation);
  co_await again(t, crash);
  EXPECT_FALSE(t.volume->receiving());
  EXPECT_EQ(t.device->size_bytes(), kSize);
  error = co_await VolumeTest::read(t, 0, kSize);
  EXPECT_EQ(error, 5);
  error = co_await VolumeTest::write(t, 0, 4096, 6);
  EXPECT_EQ(error, 0);
  EXPECT_EQ(t.volume->snapshots().size(), 1u);
  EXPECT_EQ(t.volume->snapshots()[0].name, "b");
  EXPECT_EQ(identity_of(t.volume->snapshots()[0], t.volume->info().uuid), identity(5));
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, AWholeSnapshotIsReceived) { go(a_whole_one(*this, false)); }
TEST_F(VolumeTest, AWholeSnapshotIsReceivedOverCrashes) { go(a_whole_one(*this, true)); }

// Each of these wants what is half there, or takes away what it needs.
coro::Task<void> while_it_comes(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  int error = co_await receive_whole(t, "a", 5, 5);
  EXPECT_EQ(error, 0);
  const Transfer what = since(5, "b", 9, kSize);
  error = co_await begin(t, what);
  EXPECT_EQ(error, 0);
  error = co_await VolumeTest::write(t, 0, 65536, 9);
  EXPECT_EQ(error, 0);
  for (const bool open : {true, false}) {
    if (!open) t.device.reset();
    const auto snapshot = co_await t.volume->snapshot("s");
    EXPECT_FALSE(snapshot.ok());
    const auto clone = co_await t.volume->clone(PointName(), "s");
    EXPECT_FALSE(clone.ok());
    Status refused = co_await t.volume->resize(kSize / 2);
    EXPECT_EQ(code_of(refused), EBUSY);
    refused = co_await t.volume->remove("a");
    EXPECT_EQ(code_of(refused), EBUSY) << "the disk is shown as that one was";
    const auto rewound = co_await t.volume->rewind(PointName("a"));
    EXPECT_FALSE(rewound.ok());
  }
  // What was there before is there to be cloned.
  const auto clone = co_await t.volume->clone(PointName("a"), "c");
  EXPECT_TRUE(clone.ok());
  co_await expect_shown(t, 5, kSize);
  co_await again(t, true);
  co_await expect_shown(t, 5, kSize);
  Status given_up = co_await t.volume->give_up_receiving();
  EXPECT_EQ(code_of(given_up), EBUSY) << "the disk is open";
  t.device.reset();
  given_up = co_await t.volume->give_up_receiving();
  EXPECT_TRUE(given_up.ok());
  given_up = co_await t.volume->give_up_receiving();
  EXPECT_EQ(code_of(given_up), ENOENT);
  co_await look_again(t);
  error = co_await VolumeTest::read(t, 0, kSize);
  EXPECT_EQ(error, 5);
  co_await again(t, true);
  error = co_await VolumeTest::read(t, 0, kSize);
  EXPECT_EQ(error, 5) << "what was given up does not come back";
  error = co_await VolumeTest::write(t, 0, 4096, 1);
  EXPECT_EQ(error, 0);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, WhatIsRefusedWhileASnapshotComes) { go(while_it_comes(*this)); }

coro::Task<void> bases(VolumeTest& t) {
  co_await VolumeTest::create(t, kSize, 1u << 16);
  (void)co_await VolumeTest::open(t);
  const Transfer first = since(5, "b", 9, kSize);
  int error = co_await begin(t, first);
  EXPECT_EQ(error, ESTALE) << "there is no base";
  error = co_await receive_whole(t, "a", 5, 5);
  EXPECT_EQ(error, 0);
  const Transfer same = whole("x", 5, kSize), wrong = since(6, "b", 9, kSize), named = since(5, "a", 9, kSize);
  error = co_await begin(t, same);
  EXPECT_EQ(error, EEXIST) << "it was received";
  error = co_await begin(t, wrong);
  EXPECT_EQ(error, ESTALE) << "another base";
  error = co_await begin(t, named);
  EXPECT_EQ(error, EEXIST) << "its name is taken";
  const Transfer more = whole("x", 8, kSize);
  error = co_await begin(t, more);
  EXPECT_EQ(error, EEXIST) << "a whole one, over what is there";
  co_await look_again(t);
  error = co_await begin(t, first);
  EXPECT_EQ(error, 0);
  t.device.reset();
  Status given_up = co_await t.volume->give_up_receiving();
  EXPECT_TRUE(given_up.ok());
  co_await look_again(t);
  error = co_await VolumeTest::write(t, 4096, 512, 1);
  EXPECT_EQ(error, 0);
  error = co_await begin(t, first);
  EXPECT_EQ(error, ESTALE) << "the disk was written to";
  const auto back = co_await t.volume->rewind(PointName("a"));
  EXPECT_TRUE(back.ok());
  error = co_await begin(t, first);
  EXPECT_EQ(error, 0);
  // And a smaller disk, in the end.
  t.device.reset();
  given_up = co_await t.volume->give_up_receiving();
  EXPECT_TRUE(given_up.ok());
  const Transfer smaller = since(5, "b", 9, kSize / 2);
  error = co_await begin(t, smaller);
  EXPECT_EQ(error, 0);
  error = co_await VolumeTest::write(t, 0, 8192, 9);
  EXPECT_EQ(error, 0);
  error = co_await VolumeTest::simple(t, Command::kTrim, kSize / 2, kSize / 2);
  EXPECT_EQ(error, 0);
  const Status ended = co_await t.volume->end_receiving();
  EXPECT_TRUE(ended.ok());
  co_await again(t, true);
  EXPECT_EQ(t.device->size_bytes(), kSize / 2);
  error = co_await VolumeTest::read(t, 0, 8192);
  EXPECT_EQ(error, 9);
  error = co_await VolumeTest::read(t, 8192, kSize / 2 - 8192);
  EXPECT_EQ(error, 5);
  auto before = t.volume->open_device(PointName("a"));
  EXPECT_TRUE(before.ok());
  error = co_await VolumeTest::read(t, 0, kSize, before.value().get());
  EXPECT_EQ(error, 5);
  before.value().reset();
  const auto report = co_await t.volume->check();
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ChangesAreReceivedByThatBaseOnly) { go(bases(*this)); }

}  // namespace
}  // namespace netblk::store::volume
