// SPDX-License-Identifier: GPL-2.0-only
// LyingDisk: the file below a simulated volume: a page cache, what is durable below it, and every way in which real disks
// and file systems fail. Within what it promises it is adversarial: each unsynced sector is kept or lost by itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "io/loop.h"
#include "sim/world.h"

namespace netblk::sim {

inline constexpr uint64_t kDiskSector = 512;

// A sparse run of bytes: zeroes where nothing was written. Copies share their pages until one of them changes.
class Platter {
 public:
  void read(uint64_t offset, std::span<std::byte> into) const;
  void write(uint64_t offset, std::span<const std::byte> from);
  // Pages that are missing are there, as zeroes.
  void allocate(uint64_t offset, uint64_t length);
  // Gives whole pages back; the edges become zeroes.
  void punch(uint64_t offset, uint64_t length);
  // The end of the highest page that was ever written.
  uint64_t end_bytes() const { return pages_.size() * kPageBytes; }
  uint64_t allocated_bytes() const { return allocated_ * kPageBytes; }
  bool has(uint64_t offset) const { return offset / kPageBytes < pages_.size() && pages_[offset / kPageBytes] != nullptr; }
  // How many bytes more a write would take.
  uint64_t missing_bytes(uint64_t offset, uint64_t length) const;

 private:
  static constexpr uint64_t kPageBytes = 4096;
  using Page = std::array<std::byte, kPageBytes>;
  Page& own(uint64_t page);

  std::vector<std::shared_ptr<Page>> pages_;
  uint64_t allocated_ = 0;
};

// What a power cut leaves of the sectors that were not synced.
enum class Survival : uint8_t {
  kNone,
  kAll,
  kEach,     // each by itself, in any of its versions since the last sync
  kPages,    // each page of 4,096 as a whole
  kPrefix,   // what was written first; the cut goes through a write
  kSuffix,   // what was written last, without what was before it
  kAllButOne,
  kLast,
};
inline Survival any_survival(Random& random) { return static_cast<Survival>(random.below(static_cast<uint64_t>(Survival::kLast))); }

// The contents of the disk at one moment. Copies are cheap.
class DiskState {
 public:
  const Platter& cache() const { return cache_; }
  uint64_t written() const { return order_; }
  bool has_unsynced() const { return !unsynced_.empty(); }

  // What becomes of a write below the page cache.
  struct Fate {
    bool lost = false;           // the disk says that it wrote it
    int64_t astray_sectors = 0;  // it lands so far from where it belongs
  };
  void write(uint64_t offset, std::span<const std::byte> from, const Fate& fate);
  void punch(uint64_t offset, uint64_t length);
  // Until the power is cut.
  void allocate(uint64_t offset, uint64_t length) { cache_.allocate(offset, length); }
  // What was written up to then is durable.
  void sync(uint64_t up_to);
  // A sync that failed: some of it is durable; the rest is clean to the kernel, and gone at a power cut.
  void fail_sync(uint64_t up_to, Random& random);
  void cut_power(Survival survival, Random& random);
  // The page cache is dropped where it is clean: what the disk has shows.
  void drop_clean();
  // Below the cache. False: nothing there to hit.
  bool flip_bit(uint64_t offset, uint64_t length, Random& random);
  const Platter& durable() const { return durable_; }
  // Below the cache: whatever was there.
  void overwrite(uint64_t offset, std::span<const std::byte> bytes) { durable_.write(offset, bytes); }

 private:
  struct Version {
    uint64_t order;
    Fate fate;
    std::shared_ptr<const std::array<std::byte, kDiskSector>> bytes;
  };
  void settle(uint64_t sector, const Version& version);

  Platter cache_, durable_;
  uint64_t order_ = 0;  // of sectors written
  std::map<uint64_t, std::vector<Version>> unsynced_;
};

// Bits of DiskFaults::fail_kinds.
inline constexpr unsigned kReading = 1, kWriting = 2, kSyncing = 4, kAllocating = 8, kPunching = 16;
inline constexpr unsigned kAnyOperation = 31;

enum class Lie : uint8_t { kLostWrite, kStrayWrite, kLyingSync };

// Every field: one in so many, 0 is never.
struct DiskFaults {
  uint64_t short_io = 0;
  uint64_t lost_write = 0;
  uint64_t stray_write = 0;
  uint64_t lying_sync = 0;
  uint64_t read_error = 0;
  // The nth operation of these kinds from now on fails with this, or, where that is 0, is done in part; 0: none.
  uint64_t fail_nth = 0;
  int fail_error = 0;
  unsigned fail_kinds = kAnyOperation;
  bool fail_on = false;  // and all of them behind it
  // The nth write, or sync, from now on does this, and nobody is told; 0: none.
  uint64_t lie_nth = 0;
  Lie lie = Lie::kLostWrite;
  // Allocated bytes beyond which a write is refused with ENOSPC; 0: none.
  uint64_t capacity_bytes = 0;
};

struct DiskPace {
  bool inline_io = false;  // operations end in the call that starts them
  uint64_t io_low_us = 5, io_high_us = 300;
  uint64_t sync_low_us = 20, sync_high_us = 2'000;
};

class LyingFile;

class LyingDisk {
 public:
  explicit LyingDisk(World& world) : world_(world) {}
  LyingDisk(const LyingDisk&) = delete;
  LyingDisk& operator=(const LyingDisk&) = delete;

  DiskState& state() { return state_; }
  void set_state(const DiskState& state) { state_ = state; }
  DiskFaults& faults() { return faults_; }
  DiskPace& pace() { return pace_; }
  uint64_t operations() const { return operations_; }
  // Operations that failed though nobody had done anything wrong, and those for which there was no room.
  uint64_t failures() const { return failures_; }
  // Lies told.
  uint64_t lies() const { return lies_; }

  // One process's descriptor. What it starts after the process's end fails and has no effect.
  std::unique_ptr<io::File> open();

  // The process ends here: writes under way reach the page cache whole, in part or not at all.
  void end_process();
  // end_process(), and what is not durable goes.
  void cut_power(Survival survival);
  // The contents as a crash at this moment would find them: with a part of what is under way.
  DiskState crash_state();

  enum class Step : uint8_t { kWrite, kSync, kRead };
  // Called when an operation has had its effect, before who started it hears of it.
  void set_watcher(std::function<void(Step)> watcher) { watcher_ = std::move(watcher); }

 private:
  friend class LyingFile;
  struct Writing {
    uint64_t offset;
    std::vector<std::span<const std::byte>> from;
  };
  void write_in_part(DiskState& state, const Writing& writing);
  void step(Step what) {
    if (watcher_) watcher_(what);
  }

  World& world_;
  DiskState state_;
  DiskFaults faults_;
  DiskPace pace_;
  uint64_t process_ = 1;
  uint64_t operations_ = 0;
  uint64_t failures_ = 0;
  uint64_t lies_ = 0;
  uint64_t next_writing_ = 1;
  std::map<uint64_t, Writing> writing_;
  std::function<void(Step)> watcher_;
};

}  // namespace netblk::sim
