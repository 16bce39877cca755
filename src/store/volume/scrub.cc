// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/scrub.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "store/volume/file_io.h"
#include "store/volume/reader.h"

namespace netblk::store::volume {
namespace {

constexpr size_t kEntriesAtOnce = 256;
// What cannot be looked up has no end that is known. It is looked for in such steps, and after so many of them in ever larger ones: of
// a disk that is large and mostly empty, one page of the index may be nearly all.
constexpr uint64_t kStepBlocks = 1024;
constexpr unsigned kSmallSteps = 4096;
constexpr uint64_t step_blocks(unsigned steps) {
  return kStepBlocks << (steps < kSmallSteps ? 0 : std::min(steps - kSmallSteps + 1, 42u));
}
// Of the places that were read, so that what several points share is read once; beyond it, some is read again.
constexpr size_t kMostRemembered = 1u << 20;
// Others of the loop have their turn after so many reads.
constexpr unsigned kReadsAtOnce = 8;
constexpr uint64_t kLongestPauseMs = 100;
constexpr size_t kMostDamageLines = 10'000;

uint64_t round_to_page(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

class Scrub {
 public:
  Scrub(io::Loop& loop, Core& core, const CheckOptions& options)
      : loop_(loop), core_(core), options_(options), begin_ms_(loop.now_ms()) {}

  coro::Task<Result<CheckReport>> run(bool is_settled) {
    const Points points = core_.index->points();
    for (const BranchInfo& branch : points.branches()) {
      const View view = points.head(branch.number);
      const std::string name = branch.name.empty() ? "the volume" : branch.name;
      co_await read_view(view, branch.size_bytes, name);
    }
    for (const SnapshotInfo& snapshot : points.snapshots()) {
      const View view = points.view(snapshot.point);
      const std::string name = "snapshot " + snapshot.name;
      co_await read_view(view, snapshot.size_bytes, name);
    }
    if (options_.alone && !stopped()) co_await read_file(is_settled);
    if (stopped()) co_return make_error(ECANCELED, "it was stopped after {} blocks", report_.blocks);
    co_return std::move(report_);
  }

  // Of the index that the volume is read by: what it leads to is read, where no name has led there yet, and counted.
  class Present final : public Tree::Visitor {
   public:
    explicit Present(Scrub& scrub) : scrub_(scrub), points_(scrub.core_.index->points()), live_(scrub.core_.segments.count()) {}
    void page(uint64_t offset, uint16_t) override { count(offset, kPageBytes); }
    coro::Task<Status> entries(std::span<const Entry> entries) override {
      for (const Entry& entry : entries) {
        if (!Place::is_data(entry.place)) continue;
        count(Place::offset(entry.place), live_bytes_of(entry));
        if (points_.find_branch(entry.branch) == nullptr || scrub_.stopped()) continue;
        const View view = points_.view({entry.branch, entry.lsn});
        co_await scrub_.read_entry(view, entry, "the history");
      }
      if (scrub_.stopped()) co_return make_error(ECANCELED, "it was stopped");
      co_return Ok{};
    }
    void damaged(const PageRef&, const Error& error) override {
      is_whole = false;
      scrub_.found("the index: " + error.message);
    }
    void count(uint64_t offset, uint64_t bytes) {
      if (scrub_.core_.segments.has(offset)) live_[scrub_.core_.segments.segment_at(offset)] += bytes;
    }
    // What is counted too low could be given away while something leads there; what is counted too high is never used again.
    void compare() {
      for (uint64_t i = 0; i < live_.size(); ++i) {
        const uint64_t counted = scrub_.core_.segments.info(i).live_bytes;
        if (counted < live_[i])
          scrub_.found(fmt::format("segment {} (byte {} of the file): {} bytes in it are in use, and {} are counted", i,
                                   scrub_.core_.segments.offset_of(i), live_[i], counted));
        if (counted > live_[i]) scrub_.report_.lost_bytes += counted - live_[i];
      }
    }
    bool is_whole = true;

   private:
    Scrub& scrub_;
    const Points points_;
    std::vector<uint64_t> live_;
  };

  // Of the other superblock's index, which is there for the case that this one is lost.
  class Other final : public Tree::Visitor {
   public:
    Other(Scrub& scrub, unsigned slot) : scrub_(scrub), slot_(slot) {}
    void page(uint64_t, uint16_t) override {}
    coro::Task<Status> entries(std::span<const Entry>) override { co_return Ok{}; }
    void damaged(const PageRef&, const Error& error) override {
      scrub_.found(fmt::format("superblock {} leads to damage: {}", slot_, error.message));
    }

   private:
    Scrub& scrub_;
    const unsigned slot_;
  };

 private:
  bool stopped() const { return options_.stopped && options_.stopped(); }

  void found(std::string what) {
    ++report_.damaged;
    if (report_.damage.size() < kMostDamageLines) report_.damage.push_back(std::move(what));
  }

  coro::Task<void> pause() {
    if (options_.progress) options_.progress(report_);
    uint64_t due_ms = loop_.now_ms();
    if (options_.bytes_per_second != 0)
      due_ms = begin_ms_ + report_.blocks * kBlockBytes / std::max<uint64_t>(options_.bytes_per_second / 1000, 1);
    do {
      const uint64_t until = std::min(std::max(due_ms, loop_.now_ms()), loop_.now_ms() + kLongestPauseMs);
      io::SleepUntil turn(loop_, until);
      co_await turn;
    } while (loop_.now_ms() < due_ms && !stopped());
  }

  // Of all that it says: one that leads to a place that was read, and is of other blocks or another version, is damaged.
  static uint64_t key_of_read(const Entry& entry) {
    uint64_t key = 0;
    for (const uint64_t part : {entry.place, entry.block, entry.lsn, uint64_t{entry.branch} << 32 | entry.blocks}) {
      // (The constants are of no meaning: odd, and half of their bits set.)
      key = (key ^ part) * 0x9e3779b97f4a7c15u;
      key ^= key >> 29;
    }
    return key;
  }

  coro::Task<void> read_entry(const View& view, Entry entry, const std::string& name) {
    const uint64_t key = key_of_read(entry);
    if (read_.contains(key)) co_return;
    if (read_.size() < kMostRemembered) read_.insert(key);
    bytes_.resize(size_t{entry.blocks} * kBlockBytes);
    int error = co_await read_range(loop_, core_, view, entry.block * kBlockBytes, bytes_);
    report_.blocks += entry.blocks;
    if (error != 0) {
      for (uint64_t block = entry.block; block < end_of(entry); ++block) {
        error = co_await read_range(loop_, core_, view, block * kBlockBytes, std::span(bytes_).first(kBlockBytes));
        if (error != 0)
          found(fmt::format("{}: block {} (byte {}), LSN {}, in the record at byte {} of the file", name, block, block * kBlockBytes,
                            entry.lsn, Place::offset(entry.place)));
      }
    }
    if (++reads_ % kReadsAtOnce == 0 || options_.bytes_per_second != 0) co_await pause();
  }

  coro::Task<void> read_view(const View& view, uint64_t size_bytes, const std::string& name) {
    const uint64_t blocks = (size_bytes + kBlockBytes - 1) / kBlockBytes;
    unsigned steps = 0;  // in a row
    for (uint64_t block = 0; block < blocks && !stopped();) {
      auto looked = co_await core_.index->lookup(loop_, view, block, blocks - block, kEntriesAtOnce);
      if (!looked) {
        auto step = co_await core_.index->lookup(loop_, view, block, 1, 1);
        if (!step) {
          const uint64_t part = std::min(step_blocks(steps++), blocks - block);
          found(fmt::format("{}: from block {} on, {} blocks: {}", name, block, part, step.error().message));
          block += part;
          if (++reads_ % kReadsAtOnce == 0) co_await pause();
          continue;
        }
        looked = std::move(step);
      }
      steps = 0;
      for (const Entry& entry : looked.value()) {
        block = end_of(entry);
        if (Place::is_data(entry.place)) co_await read_entry(view, entry, name);
        if (stopped()) co_return;
      }
    }
  }

  // What the volume has on the disk beside what is read: both superblocks, and the counts.
  coro::Task<void> read_file(bool is_settled) {
    for (unsigned slot = 0; slot < 2; ++slot) co_await read_slot(slot);
    Present present(*this);
    const IndexRoot root = core_.index->root();
    const Status scanned = co_await core_.index->tree().scan(loop_, root, present);
    const Superblock superblock = core_.slots.current();
    present.count(superblock.manifest_offset, round_to_page(superblock.manifest_bytes));
    if (scanned.ok() && present.is_whole && is_settled) present.compare();
  }

  coro::Task<void> read_slot(unsigned slot) {
    SuperblockBytes bytes;
    int error = co_await read_bytes(loop_, *core_.file, bytes, kSuperblockAt[slot]);
    if (error != 0) co_return found(fmt::format("superblock {} cannot be read: {}", slot, errno_text(error)));
    const Result<Superblock> decoded = decode_superblock(bytes);
    if (!decoded.ok()) co_return found(fmt::format("superblock {}: {}", slot, decoded.error().message));
    const Superblock& superblock = decoded.value();
    if (superblock.sequence % 2 != slot) co_return found(fmt::format("superblock {} has the sequence of the other one", slot));
    std::vector<std::byte> manifest;
    error = co_await read_what_is_there(loop_, *core_.file, manifest, superblock.manifest_bytes, superblock.manifest_offset);
    if (error != 0) co_return found(fmt::format("superblock {} leads to a manifest that cannot be read: {}", slot, errno_text(error)));
    if (manifest.size() != superblock.manifest_bytes || core_.sums.volume(manifest) != superblock.manifest_crc)
      co_return found(fmt::format("superblock {} leads to a manifest (byte {} of the file) whose checksum is wrong", slot,
                                  superblock.manifest_offset));
    if (core_.metadata_cipher != nullptr) {
      auto opened = core_.metadata_cipher->open_manifest(superblock, manifest);
      if (!opened) co_return found(fmt::format("superblock {} leads to a manifest that this volume has not sealed", slot));
      manifest = std::move(*opened);
    }
    const Result<Manifest> known = decode_manifest(manifest);
    if (!known.ok()) co_return found(fmt::format("superblock {} leads to a manifest that makes no sense: {}", slot, known.error().message));
    Other other(*this, slot);
    if (known.value().index == core_.index->root()) co_return;
    const Status scanned = co_await core_.index->tree().scan(loop_, known.value().index, other);
    if (!scanned.ok()) found(fmt::format("superblock {} leads to damage: {}", slot, scanned.error().message));
  }

  io::Loop& loop_;
  Core& core_;
  const CheckOptions& options_;
  const uint64_t begin_ms_;
  CheckReport report_;
  std::vector<std::byte> bytes_;
  std::unordered_set<uint64_t> read_;
  uint64_t reads_ = 0;
};

}  // namespace

coro::Task<Result<CheckReport>> scrub(io::Loop& loop, Core& core, const CheckOptions& options, bool is_settled) {
  Scrub scrub(loop, core, options);
  Result<CheckReport> report = co_await scrub.run(is_settled);
  co_return report;
}

}  // namespace netblk::store::volume
