// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/diff.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "store/volume/volume_fixture_test.h"

namespace netblk::store::volume {
namespace {

using block::Command;
using test::Ask;
using test::Bytes;
using test::VolumeTest;

View view(std::vector<Layer> layers) { return {.layers = std::move(layers)}; }
Layer layer(uint32_t branch, std::vector<Interval> intervals) { return {.branch = branch, .intervals = std::move(intervals)}; }

TEST(ChangesView, OfOneLine) {
  const View a = view({layer(1, {{0, 7}})}), b = view({layer(1, {{0, 12}})}), head = view({layer(1, {{0, kForever}})});
  EXPECT_EQ(changes_view(a, b), view({layer(1, {{7, 12}})}));
  EXPECT_EQ(changes_view(a, head), view({layer(1, {{7, kForever}})}));
  EXPECT_EQ(changes_view(a, a), view({})) << "nothing can differ";
  EXPECT_EQ(changes_view(b, a), std::nullopt) << "back in time";
  EXPECT_EQ(changes_view(view({layer(1, {})}), b), b) << "from the empty disk";
}

TEST(ChangesView, OverARewind) {
  const View a = view({layer(1, {{0, 7}})}), later = view({layer(1, {{0, 10}})});
  const View rewound = view({layer(1, {{0, 7}, {12, 20}})});
  EXPECT_EQ(changes_view(a, rewound), view({layer(1, {{12, 20}})}));
  EXPECT_EQ(changes_view(later, rewound), std::nullopt) << "what was undone must be compared";
  EXPECT_EQ(changes_view(rewound, view({layer(1, {{0, 7}, {12, 30}})})), view({layer(1, {{20, 30}})}));
}

TEST(ChangesView, OfClones) {
  const View a = view({layer(1, {{0, 7}})});
  const View clone = view({layer(2, {{0, 30}}), layer(1, {{0, 9}})});
  EXPECT_EQ(changes_view(a, clone), view({layer(2, {{0, 30}}), layer(1, {{7, 9}})}));
  EXPECT_EQ(changes_view(view({layer(1, {{0, 9}})}), clone), view({layer(2, {{0, 30}})}));
  EXPECT_EQ(changes_view(view({layer(1, {{0, 10}})}), clone), std::nullopt);
  EXPECT_EQ(changes_view(clone, a), std::nullopt);
  EXPECT_EQ(changes_view(view({layer(3, {{0, 8}}), layer(1, {{0, 9}})}), clone), std::nullopt) << "another clone";
}

// --- A volume, against a model --------------------------------------------------------------------------------------

constexpr uint64_t kDisk = 2u << 20;
constexpr uint64_t kBlocks = kDisk / kBlockBytes;

// What a point has: its bytes, and which change was the last of each block (0: none).
struct Picture {
  Bytes bytes = Bytes(kDisk);
  std::vector<uint64_t> change = std::vector<uint64_t>(kBlocks);
};

// The changed ranges, brought from the one to the other, make it the same; and nothing counts as changed that was not.
coro::Task<void> compare(VolumeTest& t, block::Device& now, const std::string& name, const Picture& before, const Picture& after,
                         std::mt19937_64& random) {
  const auto base = now.base(name);
  EXPECT_NE(base, nullptr) << name;
  if (base == nullptr) co_return;
  Bytes made = before.bytes;
  for (uint64_t at = 0; at < kDisk;) {
    Ask ask(t.loop());
    ask.as(Command::kBlockStatus, at, random() % 2 == 0 ? kDisk - at : 1 + random() % (kDisk - at));
    ask.since = base.get();
    ask.max_extents = static_cast<uint32_t>(1 + random() % 9);
    const int error = co_await run(now, ask);
    EXPECT_EQ(error, 0);
    if (error != 0) co_return;
    const uint64_t end = ask.offset + ask.length;
    for (const block::Extent& extent : ask.found) {
      EXPECT_LE(at + extent.length, end);
      const auto from = static_cast<std::ptrdiff_t>(at), until = static_cast<std::ptrdiff_t>(at + extent.length);
      if (extent.changed) std::copy(after.bytes.begin() + from, after.bytes.begin() + until, made.begin() + from);
      if (extent.changed && extent.zero) {
        EXPECT_TRUE(std::all_of(after.bytes.begin() + from, after.bytes.begin() + until, [](std::byte b) { return b == std::byte{0}; }));
      }
      for (uint64_t block = at / kBlockBytes; extent.changed && block <= (at + extent.length - 1) / kBlockBytes; ++block)
        EXPECT_NE(before.change[block], after.change[block]) << "block " << block << " since " << name;
      at += extent.length;
    }
    if (testing::Test::HasFailure()) co_return;
  }
  EXPECT_TRUE(made == after.bytes) << "since " << name;
}

coro::Task<void> random_diffs(VolumeTest& t, uint64_t seed) {
  std::mt19937_64 random(seed);
  t.options.cache_bytes = 32u << 10;
  co_await VolumeTest::create(t, kDisk, 1u << 16);
  bool opened = co_await VolumeTest::open(t);
  EXPECT_TRUE(opened) << t.message;
  Picture head;
  std::map<std::string, Picture> points;
  for (int step = 1; step < 700 && opened && !testing::Test::HasFailure(); ++step) {
    const uint64_t kind = random() % 100;
    const uint64_t length = 512 * (1 + random() % (random() % 8 == 0 ? 1024 : 20));
    const uint64_t at = 512 * (random() % ((kDisk - length) / 512 + 1));
    Ask ask(t.loop());
    if (kind < 70) {
      ask.as(kind < 50 ? Command::kWrite : kind < 60 ? Command::kTrim : Command::kWriteZeroes, at, length);
      const auto value = static_cast<std::byte>(1 + random() % 255);
      std::fill(ask.buffer.begin(), ask.buffer.end(), value);
      const int error = co_await run(*t.device, ask);
      EXPECT_EQ(error, 0);
      std::fill_n(head.bytes.begin() + static_cast<std::ptrdiff_t>(at), length, kind < 50 ? value : std::byte{0});
      for (uint64_t block = at / kBlockBytes; block <= (at + length - 1) / kBlockBytes; ++block)
        head.change[block] = static_cast<uint64_t>(step);
    } else if (kind < 78 && points.size() < 9) {
      const std::string name = "s" + std::to_string(step);
      const auto made = co_await t.volume->snapshot(name);
      EXPECT_TRUE(made.ok());
      points[name] = head;
    } else if (kind < 80 && points.size() > 3) {
      const std::string name = points.begin()->first;
      const Status gone = co_await t.volume->remove(name);
      EXPECT_TRUE(gone.ok());
      points.erase(name);
    } else if (kind < 83) {
      (void)co_await VolumeTest::close(t);
      opened = co_await VolumeTest::open(t);
      EXPECT_TRUE(opened) << t.message;
    } else if (kind < 93 && !points.empty()) {
      auto before = points.begin(), after = points.begin();
      std::advance(before, random() % points.size());
      std::advance(after, random() % points.size());
      if (random() % 2 == 0) {
        co_await compare(t, *t.device, before->first, before->second, head, random);
      } else {
        // Backwards in time too.
        auto device = t.volume->open_device(after->first);
        EXPECT_TRUE(device.ok());
        co_await compare(t, *device.value(), before->first, before->second, after->second, random);
      }
    }
  }
  if (t.volume) (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ChangesAreThoseOfAModel) {
  const char* const given = std::getenv("NETBLK_SEED");
  const uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  for (uint64_t seed = first; seed < first + 4 && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    go(random_diffs(*this, seed));
  }
}

coro::Task<void> held(VolumeTest& t) {
  co_await VolumeTest::create(t, kDisk, 1u << 16);
  (void)co_await VolumeTest::open(t);
  const auto made = co_await t.volume->snapshot("a");
  EXPECT_TRUE(made.ok());
  EXPECT_EQ(t.device->bases(), std::vector<std::string>{"a"});
  EXPECT_EQ(t.device->base("b"), nullptr);
  auto base = t.device->base("a");
  EXPECT_NE(base, nullptr);
  Status gone = co_await t.volume->remove("a");
  EXPECT_EQ(gone.ok() ? 0 : gone.error().code, EBUSY) << "who compares with it has it open";
  base.reset();
  gone = co_await t.volume->remove("a");
  EXPECT_TRUE(gone.ok());
  EXPECT_EQ(t.device->base("a"), nullptr);
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, ASnapshotThatIsComparedWithStays) { go(held(*this)); }

// The end of the older one is within a block, which had bytes there and is a hole in the newer one, which is larger.
coro::Task<void> within_a_block(VolumeTest& t) {
  constexpr uint64_t kBlock = 15 * kBlockBytes;
  co_await VolumeTest::create(t, kBlock + 2048, 1u << 16);
  (void)co_await VolumeTest::open(t);
  const auto empty = co_await t.volume->snapshot("empty");
  int error = co_await VolumeTest::write(t, kBlock, 2048, 7);
  EXPECT_EQ(error, 0);
  const auto small = co_await t.volume->snapshot("small");
  t.device.reset();
  const auto back = co_await t.volume->rewind(PointName("empty"));
  const Status grown = co_await t.volume->resize(kDisk);
  EXPECT_TRUE(empty.ok() && small.ok() && back.ok() && grown.ok());
  t.device = t.volume->open_device().value();
  const auto base = t.device->base("small");
  for (const uint64_t first : {uint64_t{0}, kBlock}) {
    uint64_t at = first;
    bool told = false;
    while (at < kDisk) {
      Ask ask(t.loop());
      ask.as(Command::kBlockStatus, at, kDisk - at);
      ask.since = base.get();
      error = co_await run(*t.device, ask);
      EXPECT_EQ(error, 0);
      for (const block::Extent& extent : ask.found) {
        if (at <= kBlock && at + extent.length > kBlock) told = extent.changed && extent.zero;
        at += extent.length;
      }
    }
    EXPECT_TRUE(told) << "asked from byte " << first;
  }
  (void)co_await VolumeTest::close(t);
}
TEST_F(VolumeTest, WhatTheEndOfTheOlderOneCutHasChanged) { go(within_a_block(*this)); }

}  // namespace
}  // namespace netblk::store::volume
