// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "io/clock.h"
#include "io/epoll/epoll_backend.h"
#include "store/volume/index_model_test.h"

namespace netblk::store::volume {
namespace {

using coro::Task;

// Pages in memory. It says what is wrong in how a merge uses it, and fails when it is told to.
class MemoryPages : public PageStore {
 public:
  Task<Status> read(io::Loop&, uint64_t offset, std::span<std::byte> page) override {
    const std::lock_guard lock(mutex);
    ++reads;
    if (offset == fail_read) co_return make_error(EIO, "the disk cannot read");
    const auto found = pages.find(offset);
    if (found == pages.end()) co_return make_error(EIO, "nothing was written there");
    std::copy(found->second.begin(), found->second.end(), page.begin());
    co_return Ok{};
  }
  Task<Status> write(io::Loop&, uint64_t offset, std::span<const std::byte> from) override {
    const std::lock_guard lock(mutex);
    if (fail_at != 0 && --fail_at == 0) co_return make_error(ENOSPC, "no space to write");
    for (; !from.empty(); from = from.subspan(kPageBytes), offset += kPageBytes) {
      EXPECT_EQ(allocated.erase(offset), 1u) << "a page is written once, where it was allocated";
      pages[offset].assign(from.begin(), from.begin() + kPageBytes);
    }
    co_return Ok{};
  }
  Task<Result<uint64_t>> allocate(io::Loop&) override {
    if (fail_at != 0 && --fail_at == 0) co_return make_error(ENOSPC, "no space to allocate");
    if (++in_run == 16) {
      in_run = 0;
      next += kPageBytes;
    }
    const uint64_t offset = next;
    next += kPageBytes;
    allocated.insert(offset);
    co_return offset;
  }

  Task<bool> has_spare(io::Loop&) override { co_return spare == 0 || --spare != 0; }

  uint64_t spare = 0;  // so many pages more; 0: for all
  std::mutex mutex;  // of pages: readers may be on other threads
  std::map<uint64_t, std::vector<std::byte>> pages;
  std::set<uint64_t> allocated;
  uint64_t next = kSegmentsAt;
  int in_run = 0;
  int reads = 0;
  uint64_t fail_read = 0;
  int fail_at = 0;
};

class Gone : public MergeSink {
 public:
  void entry_gone(const Entry& entry) override { entries.push_back(entry); }
  void stopped_at(Position position) override {
    EXPECT_FALSE(stopped.has_value());
    stopped = position;
  }
  std::optional<Position> stopped;
  void page_gone(uint64_t offset) override { EXPECT_TRUE(pages.insert(offset).second) << "a page goes once"; }
  std::vector<Entry> entries;
  std::set<uint64_t> pages;
};

struct Listing : Tree::Visitor {
  void page(uint64_t offset, uint16_t level) override {
    EXPECT_TRUE(pages.insert(offset).second);
    top = std::max(top, level);
  }
  Task<Status> entries(std::span<const Entry> some) override {
    all.insert(all.end(), some.begin(), some.end());
    co_return Ok{};
  }
  void damaged(const PageRef& page, const Error& error) override { damages.emplace_back(page.offset, error.message); }
  std::set<uint64_t> pages;
  std::vector<Entry> all;
  std::vector<std::pair<uint64_t, std::string>> damages;
  uint16_t top = 0;
};

class Bench {
 public:
  int glances = 0;  // that were answered

  explicit Bench(Points points, size_t cache_bytes = 1u << 20, MergeOptions merging = {})
      : options(merging), index(store, uuid(), {}, 0, std::move(points), cache_bytes) {
    loop_ = backend_->make_loop(clock_).value();
  }

  static Id uuid() {
    Id id;
    id.bytes.fill(7);
    return id;
  }

  template <class T>
  T run(Task<T> task) {
    std::optional<T> result;
    loop_->run(into(std::move(task), result));
    return std::move(*result);
  }

  std::vector<Entry> add(const Entry& entry) {
    std::vector<Entry> gone;
    index.add({&entry, 1}, gone);
    return gone;
  }

  // A whole checkpoint, as far as the index has a part in it.
  Gone merge() {
    EXPECT_TRUE(index.freeze());
    return finish_merge();
  }
  Gone finish_merge() {
    Gone gone;
    ++options.checkpoint;
    const Result<IndexRoot> root = run(index.merge(*loop_, gone, options));
    EXPECT_TRUE(root.ok()) << root.error().message;
    index.commit(root.value());
    EXPECT_TRUE(store.allocated.empty()) << "a page was allocated and not written";
    const std::lock_guard lock(store.mutex);
    for (const uint64_t offset : gone.pages) EXPECT_EQ(store.pages.erase(offset), 1u);
    return gone;
  }

  std::vector<Entry> lookup(const View& view, uint64_t block, uint64_t blocks, size_t limit = 1u << 20) {
    const Result<std::vector<Entry>> found = run(index.lookup(*loop_, view, block, blocks, limit));
    EXPECT_TRUE(found.ok()) << found.error().message;
    if (!found.ok()) return {};
    for (const Entry& entry : found.value()) glance(view, entry);
    return found.value();
  }

  // What a lookup of many blocks has said, a glance at one says too, if it says anything.
  void glance(const View& view, const Entry& said) {
    for (const uint64_t at : {said.block, end_of(said) - 1}) {
      Entry found;
      if (!index.glance(view, at, found)) continue;
      EXPECT_EQ(found, part_of(said, at, at + 1));
      ++glances;
    }
  }

  // The whole range, in answers of at most `limit`.
  Contents contents(const View& view, uint64_t blocks, size_t limit) {
    std::vector<Entry> all;
    for (uint64_t at = 0; at < blocks;) {
      const std::vector<Entry> some = lookup(view, at, blocks - at, limit);
      EXPECT_TRUE(!some.empty() && some.size() <= limit);
      if (some.empty()) break;
      for (const Entry& entry : some) {
        EXPECT_EQ(entry.block, at) << "an answer has no gaps";
        EXPECT_NE(entry.blocks, 0u);
        at = end_of(entry);
      }
      EXPECT_LE(at, blocks);
      all.insert(all.end(), some.begin(), some.end());
    }
    return contents_of(all, blocks);
  }

  Listing listing() {
    Listing listing;
    const Status status = run(index.tree().scan(*loop_, index.root(), listing));
    EXPECT_TRUE(status.ok());
    return listing;
  }

  // The tree is sound, has as many entries as it says, and the disk has just its pages.
  void check_tree() {
    const Listing found = listing();
    EXPECT_TRUE(found.damages.empty()) << found.damages.front().second;
    EXPECT_EQ(found.all.size(), index.root().entries);
    EXPECT_EQ(found.pages.size(), store.pages.size());
    for (size_t i = 1; i < found.all.size(); ++i) {
      const Entry& a = found.all[i - 1];
      const Entry& b = found.all[i];
      EXPECT_TRUE(key_of(a) < key_of(b));
      EXPECT_TRUE(position_of(a) == position_of(b) ? a.blocks == b.blocks : a.branch != b.branch || end_of(a) <= b.block);
    }
  }

  io::Loop& loop() { return *loop_; }

  MemoryPages store;
  MergeOptions options;
  Index index;

  template <class T>
  static Task<void> into(Task<T> task, std::optional<T>& result) {
    T value = co_await std::move(task);
    result.emplace(std::move(value));
  }

 private:
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_ = io::make_epoll_backend(1).value();
  std::unique_ptr<io::Loop> loop_;
};

Points volume() {
  return Points({{.number = kHeadBranch, .name = {}, .size_bytes = 1u << 30, .parent = {}, .rewinds = {}}}, {});
}

Entry data(uint64_t block, uint32_t blocks, uint64_t lsn) {
  return {.branch = kHeadBranch, .blocks = blocks, .block = block, .lsn = lsn,
          .place = Place::make(kSegmentsAt + lsn * 65'536, 0, blocks)};
}

Entry nothing(uint64_t block, uint32_t blocks) {
  return {.branch = 0, .blocks = blocks, .block = block, .lsn = 0, .place = Place::kHole};
}

const View kHead = volume().head(kHeadBranch);

TEST(Index, AnEmptyOneHasHoles) {
  Bench bench(volume());
  EXPECT_EQ(bench.lookup(kHead, 5, 100), std::vector<Entry>{nothing(5, 100)});
  EXPECT_EQ(bench.lookup(kHead, 0, uint64_t{1} << 33).size(), 3u) << "an entry's length has 32 bits";
  EXPECT_TRUE(bench.merge().pages.empty());
  EXPECT_EQ(bench.index.root(), IndexRoot{});
}

TEST(Index, TableFrozenTableAndTreeAreOne) {
  Bench bench(volume());
  bench.add(data(0, 16, 1));
  bench.merge();
  bench.add(data(4, 4, 2));
  ASSERT_TRUE(bench.index.freeze());
  EXPECT_FALSE(bench.index.freeze()) << "the frozen one is merged first";
  bench.add(data(6, 4, 3));
  const std::vector<Entry> all = {part_of(data(0, 16, 1), 0, 4), part_of(data(4, 4, 2), 4, 6), data(6, 4, 3),
                                  part_of(data(0, 16, 1), 10, 16), nothing(16, 4)};
  EXPECT_EQ(bench.lookup(kHead, 0, 20), all);
  const Gone gone = bench.finish_merge();
  EXPECT_EQ(gone.entries, std::vector<Entry>{part_of(data(0, 16, 1), 4, 8)});
  EXPECT_EQ(bench.lookup(kHead, 0, 20), all);
  bench.merge();
  EXPECT_EQ(bench.lookup(kHead, 0, 20), all);
  EXPECT_EQ(bench.glances, 30) << "each of them knew";
  bench.check_tree();
}

TEST(Index, WhatTheTableAnswersDoesNotTouchTheTree) {
  Bench bench(volume(), 0);
  bench.add(data(0, 16, 1));
  bench.merge();
  bench.add(data(0, 16, 2));
  bench.store.reads = 0;
  EXPECT_EQ(bench.lookup(kHead, 3, 5), std::vector<Entry>{part_of(data(0, 16, 2), 3, 8)});
  EXPECT_EQ(bench.store.reads, 0);
  std::vector<Entry> out;
  EXPECT_TRUE(bench.index.try_lookup(kHead, 3, 5, 10, out));
  EXPECT_EQ(out.size(), 1u);
  EXPECT_FALSE(bench.index.try_lookup(kHead, 3, 50, 10, out)) << "nothing is cached, and the tree may have the rest";
  Entry one;
  EXPECT_TRUE(bench.index.glance(kHead, 7, one));
  EXPECT_EQ(one, part_of(data(0, 16, 2), 7, 8));
  EXPECT_FALSE(bench.index.glance(kHead, 20, one));
}

TEST(Index, ACopyOfWhatTheTreeHasReplacesItsPlace) {
  Bench bench(volume());
  bench.add(data(0, 16, 1));
  bench.add(data(2, 1, 5));
  bench.merge();
  Entry copy = part_of(data(0, 16, 1), 0, 4);
  copy.place = Place::make(kSegmentsAt, 3, 16);
  bench.add(copy);
  const std::vector<Entry> all = {part_of(copy, 0, 2), data(2, 1, 5), part_of(copy, 3, 4), part_of(data(0, 16, 1), 4, 16)};
  EXPECT_EQ(bench.lookup(kHead, 0, 16), all) << "the newer version in the tree hides the copy in the table";
  const Gone gone = bench.merge();
  EXPECT_EQ(bench.lookup(kHead, 0, 16), all);
  EXPECT_EQ(gone.entries, (std::vector<Entry>{part_of(data(0, 16, 1), 0, 2), part_of(copy, 2, 3), part_of(data(0, 16, 1), 3, 4)}));
}

TEST(Index, ATrimOfEverythingLeavesAnEmptyTree) {
  Bench bench(volume());
  for (uint64_t i = 0; i < 5000; ++i) bench.add(data(i * 3, 1, i + 1));
  bench.merge();
  bench.check_tree();
  EXPECT_EQ(bench.index.root().entries, 5000u);
  bench.add({.branch = kHeadBranch, .blocks = 20'000, .block = 0, .lsn = 6000, .place = Place::kHole});
  const Gone gone = bench.merge();
  EXPECT_EQ(bench.index.root(), IndexRoot{});
  EXPECT_TRUE(bench.store.pages.empty());
  uint64_t blocks = 0;
  for (const Entry& entry : gone.entries) blocks += Place::is_data(entry.place) ? entry.blocks : 0;
  EXPECT_EQ(blocks, 5000u);
}

TEST(Index, WhatIsNotTouchedIsKept) {
  Bench bench(volume());
  for (uint64_t i = 0; i < 100'000; ++i) bench.add(data(i, 1, i + 1));
  bench.merge();
  const size_t pages = bench.store.pages.size();
  EXPECT_EQ(bench.listing().top, 2u);
  EXPECT_LE(pages, 100'000 / kLeafEntries + 15) << "a tree that was written at once is full";
  bench.add(data(50'000, 1, 200'000));
  const Gone gone = bench.merge();
  EXPECT_EQ(gone.pages.size(), 3u) << "a leaf and what leads to it";
  EXPECT_EQ(bench.store.pages.size(), pages);
  bench.add(data(100'000, 1, 200'001));
  EXPECT_EQ(bench.merge().pages.size(), 3u) << "what is written at the end goes into the last leaf";
  EXPECT_LE(bench.store.pages.size(), pages + 1);
  bench.check_tree();
}

TEST(Index, AFailedMergeChangesNothingAndIsRepeated) {
  Bench bench(volume(), 1u << 20, {.checkpoint = 0, .leaf_entries = 4, .inner_entries = 4});
  for (uint64_t i = 0; i < 300; ++i) bench.add(data(i * 2, 1, i + 1));
  bench.merge();
  for (uint64_t i = 0; i < 50; ++i) bench.add(data(i * 12, 1, i + 1000));
  const std::vector<Entry> before = bench.lookup(kHead, 0, 700);
  ASSERT_TRUE(bench.index.freeze());
  bench.add(data(1, 1, 2000));
  bool failed = true;
  const auto pages = bench.store.pages;
  for (int nth = 1; failed; ++nth) {
    Gone gone;
    bench.store.fail_at = nth;
    const Result<IndexRoot> root = bench.run(bench.index.merge(bench.loop(), gone, bench.options));
    failed = !root.ok();
    EXPECT_TRUE(root.ok() || root.error().code == ENOSPC);
    bench.store.pages = pages;
    bench.store.allocated.clear();
    std::vector<Entry> found = bench.lookup(kHead, 0, 700);
    found[1] = nothing(1, 1);
    ASSERT_EQ(found, before);
    ASSERT_LT(nth, 10'000);
  }
  bench.store.fail_at = 0;
  bench.finish_merge();
  bench.check_tree();
  std::vector<Entry> after = bench.lookup(kHead, 0, 700);
  EXPECT_EQ(contents_of(after, 700)[1].lsn, 2000u);
  after[1] = nothing(1, 1);
  EXPECT_EQ(after, before);
}

TEST(Index, DamageIsNamedAndEverythingElseIsRead) {
  Bench bench(volume(), 0, {.checkpoint = 0, .leaf_entries = 8, .inner_entries = 8});
  for (uint64_t i = 0; i < 1000; ++i) bench.add(data(i, 1, i + 1));
  bench.merge();
  const auto victim = std::next(bench.store.pages.begin(), 3);
  const std::vector<std::byte> good = victim->second;
  for (const size_t at : {0u, 5u, 9u, 10u, 16u, 40u, 4095u}) {
    victim->second = good;
    victim->second[at] ^= std::byte{1};
    const Result<std::vector<Entry>> whole = bench.run(bench.index.lookup(bench.loop(), kHead, 0, 1000, 10'000));
    ASSERT_FALSE(whole.ok());
    EXPECT_EQ(whole.error().code, EIO);
    EXPECT_NE(whole.error().message.find(std::to_string(victim->first)), std::string::npos) << whole.error().message;
    const Listing found = bench.listing();
    ASSERT_EQ(found.damages.size(), 1u);
    EXPECT_EQ(found.damages[0].first, victim->first);
    EXPECT_EQ(found.all.size(), 992u);
    EXPECT_EQ(bench.lookup(kHead, 500, 100).size(), 100u);
  }
  victim->second = good;
  bench.store.fail_read = victim->first;
  EXPECT_FALSE(bench.run(bench.index.lookup(bench.loop(), kHead, 0, 1000, 10'000)).ok());
  EXPECT_EQ(bench.lookup(kHead, 500, 100).size(), 100u);
}

TEST(Index, AStalePageIsNoticed) {
  Bench bench(volume(), 0);
  for (uint64_t i = 0; i < 200; ++i) bench.add(data(i, 1, i + 1));
  bench.merge();
  const uint64_t leaf = *bench.listing().pages.begin();
  auto& page = bench.store.pages.begin()->second;
  // A page of the same place and volume that another checkpoint wrote: its own sum is right.
  std::span<std::byte, kPageBytes> bytes(page.data(), kPageBytes);
  const Sums sums(Bench::uuid());
  PageHeader header = *check_page(bench.store.pages.begin()->first, sums, bytes);
  ++header.checkpoint;
  seal_page(header, bench.store.pages.begin()->first, sums, bytes);
  const Listing found = bench.listing();
  ASSERT_EQ(found.damages.size(), 1u) << leaf;
  EXPECT_NE(found.damages[0].second.find("another than its parent names"), std::string::npos);
}

TEST(Index, HostileEntriesWithRightSumsAreRefused) {
  const Sums sums(Bench::uuid());
  const PageRef ref{.offset = kSegmentsAt, .crc = 0, .level = 0, .first = std::nullopt};
  const auto refused = [&](std::vector<Entry> entries) {
    std::array<std::byte, kPageBytes> bytes{};
    for (uint32_t i = 0; i < entries.size(); ++i) encode_leaf_entry(entries[i], i, bytes);
    PageRef named = ref;
    named.crc = seal_page({.level = 0, .entries = static_cast<uint16_t>(entries.size()), .checkpoint = 1, .crc = 0}, ref.offset, sums, bytes);
    return !parse_page(named, sums, bytes).ok();
  };
  EXPECT_FALSE(refused({data(0, 4, 2), data(0, 4, 1), data(4, 1, 9)}));
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused({data(0, 4, 1), data(0, 4, 2)})) << "LSNs ascend";
  EXPECT_TRUE(refused({data(0, 4, 1), data(0, 4, 1)}));
  EXPECT_TRUE(refused({data(0, 4, 2), data(0, 3, 1)})) << "versions of unequal length";
  EXPECT_TRUE(refused({data(0, 4, 2), data(3, 3, 1)})) << "overlap";
  EXPECT_TRUE(refused({data(4, 4, 2), data(0, 3, 1)}));
  Entry entry = data(0, 4, 1);
  entry.blocks = 0;
  EXPECT_TRUE(refused({entry}));
  entry = data(0, 4, 1);
  entry.blocks = 5;
  EXPECT_TRUE(refused({entry})) << "beyond the record's end";
  entry = data(~uint64_t{0} - 1, 4, 1);
  EXPECT_TRUE(refused({entry})) << "beyond the last block";
  entry = data(0, 4, 0);
  EXPECT_TRUE(refused({entry})) << "no LSN";
  entry.lsn = 1;
  entry.place = Place::kHole | Place::kZero;
  EXPECT_TRUE(refused({entry}));
}

TEST(Index, ACacheKeepsItsBound) {
  constexpr size_t kBytes = 100'000;
  Bench bench(volume(), kBytes);
  for (uint64_t i = 0; i < 20'000; ++i) bench.add(data(i, 1, i + 1));
  bench.merge();
  for (uint64_t i = 0; i < 20'000; i += 100) bench.lookup(kHead, i, 1);
  EXPECT_LE(bench.index.tree().cache().bytes(), kBytes);
  EXPECT_GE(bench.index.tree().cache().bytes(), kBytes / 2);
  bench.store.reads = 0;
  bench.lookup(kHead, 19'900, 1);
  EXPECT_EQ(bench.store.reads, 0) << "what was used last is there";
}

// Readers on other threads, while entries come and trees are replaced; a tree's pages go the moment when the next one is used.
TEST(Index, ReadersSeeEveryChangeThatWasMadeBeforeTheyAsked) {
  constexpr uint64_t kBlocks = 400;
  Bench bench(volume(), 20'000, {.checkpoint = 0, .leaf_entries = 8, .inner_entries = 8});
  std::atomic<bool> stop{false};
  std::array<std::atomic<uint64_t>, kBlocks> newest{};
  const auto read = [&](uint64_t seed) {
    const io::SteadyClock clock;
    const std::unique_ptr<io::Backend> backend = io::make_epoll_backend(1).value();
    const std::unique_ptr<io::Loop> loop = backend->make_loop(clock).value();
    std::mt19937_64 random(seed);
    while (!stop.load()) {
      const uint64_t block = random() % kBlocks;
      const uint64_t before = newest[block].load();
      std::optional<Result<std::vector<Entry>>> found;
      loop->run(Bench::into(bench.index.lookup(*loop, kHead, block, 1, 1), found));
      ASSERT_TRUE(found->ok()) << found->error().message;
      ASSERT_GE(found->value()[0].lsn, before);
    }
  };
  std::thread first(read, 1);
  std::thread second(read, 2);
  std::mt19937_64 random(3);
  uint64_t lsn = 0;
  for (int round = 0; round < 60; ++round) {
    for (int i = 0; i < 100; ++i) {
      const uint64_t block = random() % kBlocks;
      bench.add(data(block, 1, ++lsn));
      newest[block].store(lsn);
    }
    bench.merge();
  }
  stop.store(true);
  first.join();
  second.join();
  bench.check_tree();
}

// --- Against the model ----------------------------------------------------------------------------------------------

struct Shape {
  uint64_t blocks;
  uint64_t most;  // blocks of a change
  int rounds;
  int steps;
  uint32_t leaf, inner;
  size_t cache_bytes;
  uint64_t snapshots;  // of 40 steps
  bool history;        // branches and rewinds too
};

void compare_all(Bench& bench, IndexModel& model, uint64_t blocks, const std::string& where) {
  for (const auto& [point, contents] : model.every_point()) {
    const Contents found = bench.contents(bench.index.points().view(point), blocks, 1 + model.below(50));
    ASSERT_EQ(found, *contents) << where << ", branch " << point.branch << " lsn " << point.lsn;
  }
}

void run_model(const Shape& shape) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE("NETBLK_SEED=" + std::to_string(seed));
  for (int round = 0; round < shape.rounds * (std::getenv("NETBLK_FULL") == nullptr ? 1 : 20) && !testing::Test::HasFatalFailure(); ++round) {
    IndexModel model(seed + static_cast<uint64_t>(round), shape.blocks);
    Bench bench(model.points(), shape.cache_bytes, {.checkpoint = 0, .leaf_entries = shape.leaf, .inner_entries = shape.inner});
    Ledger ledger;
    bool frozen = false;
    const auto finish = [&] {
      ledger.remove(bench.finish_merge().entries);
      frozen = false;
    };
    for (int step = 0; step < shape.steps; ++step) {
      const std::string where = "round " + std::to_string(round) + " step " + std::to_string(step);
      std::vector<Entry> added;
      const uint64_t what = model.below(40);
      if (what < shape.snapshots) {
        model.snapshot();
      } else if (what < shape.snapshots + shape.snapshots / 2) {
        model.remove_snapshot();
      } else if (what < 38) {
        for (int i = 0; i < 8; ++i) {
          added = what < 36 ? std::vector<Entry>{model.write(shape.most)} : model.copy();
          for (const Entry& entry : added) {
            ledger.add(entry);
            ledger.remove(bench.add(entry));
          }
        }
      } else if (!frozen) {
        frozen = bench.index.freeze();
      } else {
        bench.options.visit = static_cast<MergeOptions::Visit>(model.below(3));
        bench.options.visit_pages = model.below(4) == 0 ? model.below(5) : ~uint64_t{0};
        bench.store.spare = model.below(8) == 0 ? 1 + model.below(8) : 0;
        finish();
        bench.store.spare = 0;
        bench.check_tree();
      }
      if (shape.history && model.below(30) == 0) model.branch();
      if (shape.history && model.below(30) == 0) model.remove_branch();
      if (shape.history && model.below(30) == 0) model.rewind();
      bench.index.set_points(model.points());
      const auto all = model.every_point();
      const auto& [point, contents] = all[model.below(all.size())];
      const View view = model.points().view(point);
      const uint64_t from = model.below(shape.blocks);
      const uint64_t count = 1 + model.below(shape.blocks - from);
      const size_t limit = 1 + model.below(50);
      const std::vector<Entry> some = bench.lookup(view, from, count, limit);
      ASSERT_FALSE(some.empty()) << where;
      const Contents found = contents_of(some, shape.blocks);
      for (uint64_t block = from; block < end_of(some.back()); ++block) {
        ASSERT_EQ(found[block], (*contents)[block]) << where << ", block " << block << ", branch " << point.branch << " lsn " << point.lsn;
      }
      if (step % 100 == 99) compare_all(bench, model, shape.blocks, where);
      if (testing::Test::HasFailure()) return;
    }
    // When all has been looked at, the tree has what is read, and nothing else has a place.
    if (frozen) finish();
    ledger.remove(bench.merge().entries);
    for (int i = 0; i < 5; ++i) model.remove_snapshot();
    bench.index.set_points(model.points());
    // (Only a rewind makes garbage of what is alone in its place.)
    bench.options.visit = shape.history ? MergeOptions::Visit::kAll : MergeOptions::Visit::kCovered;
    // In parts of any size, of which each goes on where the one before stopped.
    bench.options.visit_pages = 1 + model.below(40);
    for (bool goes_on = true; goes_on && !testing::Test::HasFailure();) {
      const Gone gone = bench.merge();
      ledger.remove(gone.entries);
      bench.check_tree();
      goes_on = gone.stopped.has_value();
      EXPECT_TRUE(!goes_on || bench.options.visit_from < *gone.stopped);
      if (goes_on) bench.options.visit_from = *gone.stopped;
    }
    compare_all(bench, model, shape.blocks, "round " + std::to_string(round) + " at its end");
    std::set<std::pair<uint64_t, Cell>> read;
    for (const auto& block : model.everything_read()) {
      if (Place::is_data(block.second.place)) read.insert(block);
    }
    EXPECT_EQ(ledger.blocks(), read);
  }
}

TEST(IndexModel, SmallPagesHighTrees) {
  run_model({.blocks = 300, .most = 40, .rounds = 4, .steps = 200, .leaf = 8, .inner = 8, .cache_bytes = 20'000, .snapshots = 3, .history = true});
}

TEST(IndexModel, TwoOfAPage) {
  run_model({.blocks = 60, .most = 10, .rounds = 3, .steps = 150, .leaf = 2, .inner = 2, .cache_bytes = 5'000, .snapshots = 3, .history = true});
}

TEST(IndexModel, ManyVersionsOfFewBlocks) {
  run_model({.blocks = 6, .most = 3, .rounds = 12, .steps = 400, .leaf = 8, .inner = 8, .cache_bytes = 1u << 20, .snapshots = 20, .history = false});
}

TEST(IndexModel, ManyVersionsOfFewBlocksWithBranches) {
  run_model({.blocks = 10, .most = 5, .rounds = 6, .steps = 300, .leaf = 4, .inner = 4, .cache_bytes = 0, .snapshots = 15, .history = true});
}

TEST(IndexModel, ExtentsWhoseVersionsSpanPages) {
  run_model({.blocks = 80, .most = 2, .rounds = 8, .steps = 150, .leaf = 3, .inner = 4, .cache_bytes = 1u << 20, .snapshots = 3, .history = false});
}

TEST(IndexModel, FullPages) {
  run_model({.blocks = 5000, .most = 16, .rounds = 1, .steps = 500, .leaf = kLeafEntries, .inner = kInnerEntries, .cache_bytes = 1u << 20, .snapshots = 1, .history = false});
}

}  // namespace
}  // namespace netblk::store::volume
