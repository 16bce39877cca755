// SPDX-License-Identifier: GPL-2.0-only
// Clones, rewinds, sizes and the history of a volume, one by one and at random against a model.
#include <cstdlib>
#include <map>
#include <optional>
#include <random>

#include "store/volume/volume_fixture_test.h"

namespace netblk::test {
namespace {

using store::volume::PointName;
using Kind = PointName::Kind;

constexpr uint64_t kSecondNs = 1'000'000'000;

int code_of(const Status& status) { return status ? 0 : status.error().code; }
template <class T>
int code_of(const Result<T>& result) { return result ? 0 : result.error().code; }

// The one value of the first block of a point; -1: it is none; -errno - 1000.
int first_of(VolumeTest& t, PointName point) {
  auto device = t.volume->open_device(point);
  if (!device) return -device.error().code - 1000;
  const int value = t.now(VolumeTest::read(t, 0, kBlockBytes, device.value().get()));
  return value;
}

int write_to(VolumeTest& t, const std::string& clone, uint64_t at, uint64_t bytes, int value) {
  auto device = t.volume->open_device(clone);
  if (!device) return device.error().code;
  Ask ask(t.loop());
  ask.as(Command::kWrite, at, bytes);
  for (std::byte& byte : ask.buffer) byte = static_cast<std::byte>(value);
  const int error = t.now(run(*device.value(), ask));
  return error;
}

void clones(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kBlockBytes, 1));
  const auto a = t.now(t.volume->snapshot("a"));
  EXPECT_TRUE(a.ok());
  (void)t.now(VolumeTest::write(t, 0, kBlockBytes, 2));
  EXPECT_EQ(code_of(t.now(t.volume->clone("a", "a"))), EEXIST) << "one space of names";
  EXPECT_EQ(code_of(t.now(t.volume->clone("b", "c"))), ENOENT);
  EXPECT_EQ(code_of(t.now(t.volume->clone("a", "b/c"))), EINVAL);
  EXPECT_EQ(code_of(t.now(t.volume->clone("a", "c"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->snapshot("c"))), EEXIST);
  EXPECT_EQ(first_of(t, "c"), 1);
  EXPECT_EQ(write_to(t, "c", 0, kBlockBytes, 3), 0);
  EXPECT_EQ(write_to(t, "c", 512, 512, 3), 0) << "within a block";
  EXPECT_EQ(code_of(t.now(t.volume->snapshot("cs", "c"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->clone("cs", "d"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->clone({}, "now"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->clone("c", "e"))), 0) << "of a clone as it is";
  EXPECT_EQ(write_to(t, "d", 0, kBlockBytes, 4), 0);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(first_of(t, {}), 2);
    EXPECT_EQ(first_of(t, "a"), 1);
    EXPECT_EQ(first_of(t, "c"), 3);
    EXPECT_EQ(first_of(t, "cs"), 3);
    EXPECT_EQ(first_of(t, "d"), 4);
    EXPECT_EQ(first_of(t, "e"), 3);
    EXPECT_EQ(first_of(t, "now"), 2);
    (void)t.now(VolumeTest::close(t));
    (void)t.now(VolumeTest::open(t));
  }
  EXPECT_EQ(code_of(t.now(t.volume->remove("c"))), EBUSY) << "clones and snapshots are of it";
  for (const char* const name : {"d", "e", "cs"}) EXPECT_EQ(code_of(t.now(t.volume->remove(name))), 0);
  auto device = t.volume->open_device("c");
  EXPECT_TRUE(device.ok());
  EXPECT_EQ(code_of(t.now(t.volume->remove("c"))), EBUSY) << "it is open";
  device = make_error(EIO, "closed");
  EXPECT_EQ(code_of(t.now(t.volume->remove("a"))), 0) << "its clone keeps what it needs";
  EXPECT_EQ(first_of(t, "c"), 3);
  EXPECT_EQ(code_of(t.now(t.volume->remove("c"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->remove("c"))), ENOENT);
  EXPECT_EQ(code_of(t.now(t.volume->remove(""))), EINVAL) << "the volume itself";
  EXPECT_EQ(t.volume->branches().size(), 2u);
  EXPECT_EQ(code_of(t.now(t.volume->clone({}, "c"))), 0);
  EXPECT_EQ(t.volume->branches().back().number, 6u) << "a number is never used again";
  EXPECT_EQ(first_of(t, "c"), 2);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, ClonesAreDisksOfTheirOwn) { clones(*this); }

void gives_back(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kSize, 1));
  (void)t.now(t.volume->clone({}, "c"));
  const uint64_t before = t.volume->info().live_bytes;
  EXPECT_EQ(write_to(t, "c", 0, kSize, 2), 0);
  EXPECT_EQ(t.volume->info().live_bytes, before + kSize);
  EXPECT_EQ(code_of(t.now(t.volume->remove("c"))), 0);
  for (int i = 0; i < 3; ++i) {
    (void)t.now(VolumeTest::close(t));
    (void)t.now(VolumeTest::open(t));
  }
  EXPECT_EQ(t.volume->info().live_bytes, before);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, ACloneThatIsDeletedGivesItsSpaceBack) { gives_back(*this); }

void gives_back_a_rewind(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kSize / 2, 1));
  (void)t.now(t.volume->snapshot("a"));
  const uint64_t before = t.volume->info().live_bytes;
  (void)t.now(VolumeTest::write(t, kSize / 4, 3 * kSize / 4, 2));
  t.device.reset();
  const auto back = t.now(t.volume->rewind("a"));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(t.volume->info().live_bytes, before + 3 * kSize / 4) << "what it was is kept";
  for (const std::string& name : {"before-rewind-" + std::to_string(back.value()), std::string("a")})
    EXPECT_EQ(code_of(t.now(t.volume->remove(name))), 0);
  for (int i = 0; i < 3; ++i) {
    (void)t.now(VolumeTest::close(t));
    (void)t.now(VolumeTest::open(t));
  }
  EXPECT_EQ(t.volume->info().live_bytes, before);
  EXPECT_EQ(t.now(VolumeTest::read(t, 0, kSize / 2)), 1);
  EXPECT_EQ(t.now(VolumeTest::read(t, kSize / 2, kSize / 2)), 0);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, WhatARewindLeftBehindGivesItsSpaceBackWhenItIsDeleted) { gives_back_a_rewind(*this); }

void many(VolumeTest& t) {
  constexpr int kMany = 1000;
  constexpr uint64_t kSmall = 8 * kBlockBytes;
  t.now(VolumeTest::create(t, kSmall, 1u << 18));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kSmall, 1));
  for (int i = 0; i < kMany; ++i) {
    const auto made = t.now(t.volume->clone({}, "clone-" + std::to_string(i)));
    EXPECT_TRUE(made.ok());
  }
  EXPECT_EQ(write_to(t, "clone-7", 0, kBlockBytes, 7), 0);
  (void)t.now(VolumeTest::close(t));
  (void)t.now(VolumeTest::open(t));
  EXPECT_EQ(t.volume->branches().size(), size_t{kMany} + 1);
  EXPECT_EQ(first_of(t, "clone-7"), 7);
  EXPECT_EQ(first_of(t, "clone-999"), 1);
  EXPECT_EQ(t.volume->info().live_bytes, kSmall + kBlockBytes);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, ThereMayBeThousandsOfClones) { many(*this); }

void rewinds(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kBlockBytes, 1));
  (void)t.now(t.volume->snapshot("a"));
  (void)t.now(t.volume->clone("a", "c"));
  (void)t.now(t.volume->snapshot("of-c", "c"));
  (void)t.now(VolumeTest::write(t, 0, kBlockBytes, 2));
  EXPECT_EQ(code_of(t.now(t.volume->undo_rewind())), EINVAL) << "there was none";
  EXPECT_EQ(code_of(t.now(t.volume->rewind("a"))), EBUSY) << "it is open";
  t.device.reset();
  const uint64_t generation = t.volume->info().generation;
  EXPECT_EQ(code_of(t.now(t.volume->rewind("of-c"))), EINVAL) << "a point of another branch";
  EXPECT_EQ(code_of(t.now(t.volume->rewind({}))), EINVAL);
  EXPECT_EQ(code_of(t.now(t.volume->rewind("b"))), ENOENT);
  EXPECT_EQ(code_of(t.now(t.volume->rewind(PointName(Kind::kLsn, 1)))), ENOENT) << "nothing is kept of it";
  EXPECT_EQ(t.volume->info().generation, generation);
  const auto back = t.now(t.volume->rewind("a"));
  EXPECT_TRUE(back.ok());
  EXPECT_EQ(t.volume->info().generation, generation + 1);
  EXPECT_EQ(first_of(t, {}), 1);
  EXPECT_EQ(first_of(t, "before-rewind-" + std::to_string(back.ok() ? back.value() : 0)), 2);
  EXPECT_EQ(code_of(t.now(t.volume->undo_rewind())), 0);
  EXPECT_EQ(first_of(t, {}), 2);
  EXPECT_EQ(first_of(t, "a"), 1);
  EXPECT_EQ(first_of(t, "c"), 1);
  t.device = t.volume->open_device().value();
  EXPECT_EQ(t.device->generation().counter, generation + 2);
  // As it was found, and what the log has is applied once more: the same generation, or a higher one.
  t.options.cache_survived = true;
  t.now(VolumeTest::crash(t, false));
  (void)t.now(VolumeTest::open(t));
  EXPECT_GE(t.volume->info().generation, generation + 2);
  EXPECT_EQ(first_of(t, {}), 2);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, ARewindMakesAPointCurrentAndCanBeUndone) { rewinds(*this); }

void resizes(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kSize, 1));
  (void)t.now(t.volume->snapshot("a"));
  for (const uint64_t bad : {uint64_t{0}, uint64_t{513}, uint64_t{1} << 63}) EXPECT_EQ(code_of(t.now(t.volume->resize(bad))), EINVAL);
  EXPECT_EQ(code_of(t.now(t.volume->resize(kSize, "c"))), ENOENT);
  // An end within a block.
  constexpr uint64_t kSmall = kSize / 2 + 512;
  EXPECT_EQ(code_of(t.now(t.volume->resize(kSmall))), 0);
  EXPECT_EQ(t.now(VolumeTest::write(t, kSmall, 512, 5)), EINVAL) << "a device that does not know it yet";
  EXPECT_EQ(t.device->size_bytes(), kSize);
  t.device->refresh_size();
  EXPECT_EQ(t.device->size_bytes(), kSmall);
  EXPECT_EQ(t.now(VolumeTest::write(t, kSmall - 512, 512, 6)), 0);
  EXPECT_EQ(code_of(t.now(t.volume->resize(2 * kSize))), 0);
  t.device->refresh_size();
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(t.device->size_bytes(), 2 * kSize);
    EXPECT_EQ(t.now(VolumeTest::read(t, 0, kSmall - 512)), 1);
    EXPECT_EQ(t.now(VolumeTest::read(t, kSmall - 512, 512)), 6);
    EXPECT_EQ(t.now(VolumeTest::read(t, kSmall, 2 * kSize - kSmall)), 0) << "what was behind the end is gone";
    auto old = t.volume->open_device("a");
    EXPECT_EQ(old.value()->size_bytes(), kSize);
    EXPECT_EQ(t.now(VolumeTest::read(t, kSize - kBlockBytes, kBlockBytes, old.value().get())), 1);
    old = make_error(EIO, "closed");
    (void)t.now(VolumeTest::close(t));
    (void)t.now(VolumeTest::open(t));
  }
  t.device.reset();
  EXPECT_EQ(code_of(t.now(t.volume->rewind("a"))), 0);
  EXPECT_EQ(t.volume->info().size_bytes, kSize) << "a rewind brings its size";
  t.device = t.volume->open_device().value();
  EXPECT_EQ(t.now(VolumeTest::read(t, 0, kSize)), 1);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, AVolumeGrowsAndShrinks) { resizes(*this); }

void histories(VolumeTest& t) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  (void)t.now(VolumeTest::write(t, 0, kBlockBytes, 9));
  EXPECT_EQ(first_of(t, PointName(Kind::kAgo, kSecondNs)), -ENOENT - 1000) << "it has none";
  EXPECT_EQ(code_of(t.now(t.volume->set("history", "ever"))), EINVAL);
  EXPECT_EQ(code_of(t.now(t.volume->set("colour", "red"))), EINVAL);
  EXPECT_EQ(code_of(t.now(t.volume->set("history", "10m"))), 0);
  EXPECT_EQ(code_of(t.now(t.volume->set("when-full", "refuse-writes"))), 0);
  std::vector<uint64_t> lsns, times;
  for (int minute = 0; minute < 8; ++minute) {
    t.environment.pass_ns(60 * kSecondNs);
    EXPECT_EQ(t.now(VolumeTest::write(t, 0, kBlockBytes, 10 + minute)), 0);
    lsns.push_back(t.volume->info().last_lsn);
    times.push_back(t.environment.wall_ns());
    if (minute == 3) {
      (void)t.now(VolumeTest::close(t));
      (void)t.now(VolumeTest::open(t));
    }
    if (minute == 5) {
      t.now(VolumeTest::crash(t, false));
      (void)t.now(VolumeTest::open(t));
    }
  }
  EXPECT_EQ(t.volume->settings()[0].value, "10m");
  EXPECT_EQ(t.volume->settings()[1].value, "refuse-writes");
  for (int minute = 0; minute < 8; ++minute) {
    EXPECT_EQ(first_of(t, PointName(Kind::kLsn, lsns[static_cast<size_t>(minute)])), 10 + minute);
    EXPECT_EQ(first_of(t, PointName(Kind::kTime, times[static_cast<size_t>(minute)] + 30 * kSecondNs * (minute < 7 ? 1 : 0))), 10 + minute);
  }
  EXPECT_EQ(first_of(t, PointName(Kind::kAgo, 61 * kSecondNs)), 15);
  EXPECT_EQ(first_of(t, PointName(Kind::kAgo, 8 * 60 * kSecondNs - 30 * kSecondNs)), 9) << "since it has been set";
  EXPECT_EQ(first_of(t, PointName(Kind::kAgo, 3600 * kSecondNs)), -ENOENT - 1000);
  EXPECT_EQ(first_of(t, PointName(Kind::kLsn, lsns.back() + 1)), -ENOENT - 1000);
  EXPECT_EQ(first_of(t, PointName(Kind::kTime, times.back() + 3600 * kSecondNs)), -EINVAL - 1000) << "the future";
  // A clone and a rewind of a moment; what is open of one stays.
  EXPECT_EQ(code_of(t.now(t.volume->clone(PointName(Kind::kLsn, lsns[2]), "c"))), 0);
  EXPECT_EQ(first_of(t, "c"), 12);
  auto held = t.volume->open_device(PointName(Kind::kLsn, lsns[1]));
  EXPECT_TRUE(held.ok());
  EXPECT_TRUE(held.value()->geometry().read_only);
  t.device.reset();
  EXPECT_EQ(code_of(t.now(t.volume->rewind(PointName(Kind::kTime, times[3] + kSecondNs)))), 0);
  EXPECT_EQ(first_of(t, {}), 13);
  t.device = t.volume->open_device().value();
  // The window moves on.
  t.environment.pass_ns(3600 * kSecondNs);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(t.now(VolumeTest::write(t, kBlockBytes, 16 * kBlockBytes, i + 1)), 0);
    t.environment.pass_ns(kSecondNs);
    t.now(VolumeTest::let_others(t));
  }
  const auto gone = t.volume->open_device(PointName(Kind::kLsn, lsns[3]));
  EXPECT_EQ(code_of(gone), ENOENT);
  if (!gone) {
    EXPECT_NE(gone.error().message.find("goes back to lsn:"), std::string::npos) << gone.error().message;
  }
  EXPECT_EQ(t.now(VolumeTest::read(t, 0, kBlockBytes, held.value().get())), 11) << "a moment that is open";
  EXPECT_EQ(first_of(t, "c"), 12);
  held = make_error(EIO, "closed");
  // None any more.
  const uint64_t live = t.volume->info().live_bytes;
  EXPECT_EQ(code_of(t.now(t.volume->set("history", "none"))), 0);
  (void)t.now(VolumeTest::close(t));
  (void)t.now(VolumeTest::open(t));
  EXPECT_LT(t.volume->info().live_bytes, live);
  EXPECT_EQ(t.volume->info().history_from_lsn, store::volume::HistoryInfo::kNone);
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, HistoryShowsEveryMoment) { histories(*this); }

// A write that finds no space, again and again while what is freed becomes free.
int write_in_the_end(VolumeTest& t, uint64_t at, uint64_t bytes, int value) {
  int error = 0;
  for (int i = 0; i < 20; ++i) {
    error = t.now(VolumeTest::write(t, at, bytes, value));
    if (error != ENOSPC) break;
    t.now(VolumeTest::let_others(t));
  }
  return error;
}

void fills(VolumeTest& t, bool keep) {
  t.now(VolumeTest::create(t, kSize, 1u << 16));
  t.disk.limit_bytes = kSegmentsAt + 4 * kSize;
  (void)t.now(VolumeTest::open(t));
  EXPECT_EQ(code_of(t.now(t.volume->set("history", "100T"))), 0);
  if (keep) {
    EXPECT_EQ(code_of(t.now(t.volume->set("when-full", "refuse-writes"))), 0);
  }
  const uint64_t from = t.volume->info().history_from_lsn;
  int error = 0;
  for (int round = 0; round < 20 && error == 0; ++round)
    for (uint64_t at = 0; at < kSize && error == 0; at += kSize / 16) {
      t.environment.pass_ns(kSecondNs);
      error = write_in_the_end(t, at, kSize / 16, round + 1);
    }
  EXPECT_EQ(error, keep ? ENOSPC : 0);
  if (keep) {
    EXPECT_EQ(t.volume->info().history_from_lsn, from);
  } else {
    EXPECT_GT(t.volume->info().history_from_lsn, from);
    EXPECT_EQ(t.now(VolumeTest::read(t, 0, kSize)), 20);
  }
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, HistoryBecomesShorterBeforeAWriteIsRefused) { fills(*this, false); }
TEST_F(VolumeTest, HistoryStaysWhereWritesAreToBeRefused) { fills(*this, true); }

// --- Against a model ------------------------------------------------------------------------------------------------

constexpr uint64_t kMostBytes = 512u << 10;

struct Model {
  std::map<std::string, Bytes> branches;  // by name; none: the volume's own
  struct Kept {
    std::string branch;
    Bytes bytes;
  };
  std::map<std::string, Kept> snapshots;
  std::map<std::string, std::string> parents;
  std::map<uint64_t, Kept> moments;  // by LSN
};

void compare(VolumeTest& t, PointName point, const Bytes& bytes, const std::string& what) {
  auto device = t.volume->open_device(point);
  EXPECT_TRUE(device.ok()) << what << ": " << (device.ok() ? "" : device.error().message);
  if (!device.ok()) return;
  EXPECT_EQ(device.value()->size_bytes(), bytes.size()) << what;
  if (device.value()->size_bytes() != bytes.size()) return;
  Ask ask(t.loop());
  ask.as(Command::kRead, 0, bytes.size());
  const int error = t.now(run(*device.value(), ask));
  EXPECT_EQ(error, 0) << what;
  EXPECT_TRUE(ask.buffer == bytes) << what;
}

void compare_all(VolumeTest& t, const Model& model, std::mt19937_64& random) {
  for (const auto& [name, bytes] : model.branches) compare(t, name.empty() ? PointName() : PointName(name), bytes, "branch " + name);
  for (const auto& [name, kept] : model.snapshots) compare(t, PointName(name), kept.bytes, "snapshot " + name);
  for (const auto& [lsn, kept] : model.moments)
    if (kept.branch.empty() && random() % 4 == 0) compare(t, PointName(Kind::kLsn, lsn), kept.bytes, "lsn " + std::to_string(lsn));
  EXPECT_EQ(t.volume->branches().size(), model.branches.size());
  EXPECT_EQ(t.volume->snapshots().size(), model.snapshots.size());
}

template <class Map>
auto any_of(const Map& map, std::mt19937_64& random) {
  auto at = map.begin();
  std::advance(at, static_cast<ptrdiff_t>(random() % map.size()));
  return at;
}

void change_blocks(VolumeTest& t, const std::string& branch, Bytes& bytes, int step, std::mt19937_64& random) {
  constexpr Command kCommands[] = {Command::kWrite, Command::kWrite, Command::kWrite, Command::kTrim, Command::kWriteZeroes, Command::kFlush};
  const Command command = kCommands[random() % std::size(kCommands)];
  const uint64_t length = 512 * (1 + random() % std::min<uint64_t>(bytes.size() / 512, 64));
  const uint64_t at = 512 * (random() % ((bytes.size() - length) / 512 + 1));
  auto device = t.volume->open_device(branch.empty() ? PointName() : PointName(branch));
  EXPECT_TRUE(device.ok());
  if (!device.ok()) return;
  Ask ask(t.loop());
  if (command == Command::kFlush) ask.as(command, 0, 0);
  else ask.as(command, at, length);
  const auto value = command == Command::kWrite ? static_cast<std::byte>(1 + step % 255) : std::byte{0};
  std::fill(ask.buffer.begin(), ask.buffer.end(), value);
  const int error = t.now(run(*device.value(), ask));
  EXPECT_EQ(error, 0);
  if (command != Command::kFlush) std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), length, value);
}

void change_names(VolumeTest& t, Model& model, int step, std::mt19937_64& random) {
  const std::string name = "n" + std::to_string(step);
  const std::string branch = any_of(model.branches, random)->first;
  switch (random() % 8) {
    case 0: case 1: {
      if (model.snapshots.size() > 12) break;
      const auto made = t.now(t.volume->snapshot(name, branch));
      EXPECT_TRUE(made.ok());
      model.snapshots[name] = {branch, model.branches[branch]};
      break;
    }
    case 2: {
      if (model.branches.size() > 8) break;
      PointName from;
      Model::Kept kept{branch, model.branches[branch]};
      if (!branch.empty()) from = PointName(branch);
      if (!model.snapshots.empty() && random() % 2 == 0) {
        const auto snapshot = any_of(model.snapshots, random);
        from = PointName(snapshot->first);
        kept = snapshot->second;
      } else if (!model.moments.empty() && random() % 2 == 0) {
        const auto moment = any_of(model.moments, random);
        from = PointName(Kind::kLsn, moment->first);
        kept = moment->second;
      }
      const auto made = t.now(t.volume->clone(from, name, from.kind == Kind::kLsn ? kept.branch : ""));
      EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
      model.branches[name] = kept.bytes;
      model.parents[name] = kept.branch;
      break;
    }
    case 3: case 4: {
      std::optional<PointName> to;
      Model::Kept kept;
      if (!model.snapshots.empty() && random() % 2 == 0) {
        const auto snapshot = any_of(model.snapshots, random);
        to = PointName(snapshot->first);
        kept = snapshot->second;
      } else if (!model.moments.empty()) {
        const auto moment = any_of(model.moments, random);
        to = PointName(Kind::kLsn, moment->first);
        kept = moment->second;
      }
      if (!to) break;
      const Bytes before = model.branches[kept.branch];
      const auto made = t.now(t.volume->rewind(*to, kept.branch));
      EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
      if (!made.ok()) break;
      model.snapshots["before-rewind-" + std::to_string(made.value())] = {kept.branch, before};
      model.branches[kept.branch] = kept.bytes;
      if (random() % 3 != 0) break;
      const auto undone = t.now(t.volume->undo_rewind(kept.branch));
      EXPECT_TRUE(undone.ok()) << (undone.ok() ? "" : undone.error().message);
      if (!undone.ok()) break;
      model.snapshots["before-rewind-" + std::to_string(undone.value())] = {kept.branch, kept.bytes};
      model.branches[kept.branch] = before;
      break;
    }
    case 5: {
      const uint64_t size = 512 * (1 + random() % (kMostBytes / 512));
      const Status done = t.now(t.volume->resize(size, branch));
      EXPECT_TRUE(done.ok()) << (done.ok() ? "" : done.error().message);
      model.branches[branch].resize(size);
      break;
    }
    default: {
      if (!model.snapshots.empty() && random() % 3 != 0) {
        const std::string gone = any_of(model.snapshots, random)->first;
        EXPECT_EQ(code_of(t.now(t.volume->remove(gone))), 0);
        model.snapshots.erase(gone);
        break;
      }
      if (branch.empty()) break;
      const bool needed = std::any_of(model.parents.begin(), model.parents.end(), [&](const auto& each) { return each.second == branch; }) ||
                          std::any_of(model.snapshots.begin(), model.snapshots.end(), [&](const auto& each) { return each.second.branch == branch; });
      EXPECT_EQ(code_of(t.now(t.volume->remove(branch))), needed ? EBUSY : 0);
      if (needed) break;
      model.branches.erase(branch);
      model.parents.erase(branch);
      std::erase_if(model.moments, [&](const auto& each) { return each.second.branch == branch; });
    }
  }
}

void random_points(VolumeTest& t, uint64_t seed) {
  std::mt19937_64 random(seed);
  t.options.cache_bytes = 32u << 10;
  t.options.table_bytes = 64u << 10;
  Model model;
  model.branches[""] = Bytes(kMostBytes / 2);
  t.now(VolumeTest::create(t, kMostBytes / 2, 1u << 16));
  (void)t.now(VolumeTest::open(t));
  t.device.reset();
  bool history = random() % 2 == 0;
  if (history) {
    EXPECT_EQ(code_of(t.now(t.volume->set("history", "100T"))), 0);
  }
  for (int step = 1; step < 400 && !testing::Test::HasFailure(); ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const uint64_t kind = random() % 100;
    if (kind < 70) {
      const std::string branch = any_of(model.branches, random)->first;
      change_blocks(t, branch, model.branches[branch], step, random);
      if (history && random() % 4 == 0) {
        model.moments[t.volume->info().last_lsn] = {branch, model.branches[branch]};
      }
    } else if (kind < 94) {
      change_names(t, model, step, random);
    } else if (kind < 95) {
      history = !history;
      model.moments.clear();
      EXPECT_EQ(code_of(t.now(t.volume->set("history", history ? "100T" : "none"))), 0);
    } else {
      if (random() % 2 == 0) {
        Ask ask(t.loop());
        t.device = t.volume->open_device().value();
        EXPECT_EQ(t.now(run(*t.device, ask.as(Command::kFlush, 0, 0))), 0);
        t.now(VolumeTest::crash(t, true));
      } else if (random() % 2 == 0) {
        t.now(VolumeTest::crash(t, false));
      } else {
        EXPECT_TRUE(t.now(VolumeTest::close(t)));
      }
      EXPECT_TRUE(t.now(VolumeTest::open(t))) << t.message;
      t.device.reset();
    }
    if (step % 20 == 0) compare_all(t, model, random);
  }
  if (!testing::Test::HasFailure()) compare_all(t, model, random);
  const auto report = t.now(t.volume->check());
  EXPECT_TRUE(report.ok() && report.value().damage.empty());
  (void)t.now(VolumeTest::close(t));
}
TEST_F(VolumeTest, NamesAndPointsAreThoseOfAModel) {
  const char* const given = std::getenv("NETBLK_SEED");
  const uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  for (uint64_t seed = first; seed < first + (given != nullptr ? 1 : 12) && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    random_points(*this, seed);
  }
}

}  // namespace
}  // namespace netblk::test
