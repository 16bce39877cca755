// SPDX-License-Identifier: GPL-2.0-only
// VolumeModel: what a volume may hold, from what its user asked and was answered. Its contents are those after some number
// of changes in the order of the log (DESIGN 7); which numbers a crash may leave is what the model knows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/world.h"

namespace netblk::sim {

inline constexpr uint64_t kVolumeSector = 512;

// Names the contents of a sector: the change that wrote it. 0: zeroes.
using Stamp = uint32_t;
inline constexpr Stamp kUnreadable = UINT32_MAX;

// Bytes that say whose they are.
void fill_sectors(std::span<std::byte> bytes, uint64_t first_sector, Stamp stamp);
// Nothing: bytes that nobody ever wrote there.
std::optional<Stamp> stamp_of(std::span<const std::byte> sector, uint64_t number);

class Contents {
 public:
  explicit Contents(uint64_t sectors) : stamps_(sectors, 0) {}
  void set(uint64_t sector, Stamp stamp);
  Stamp at(uint64_t sector) const { return stamps_[sector]; }
  uint64_t sectors() const { return stamps_.size(); }
  uint64_t unreadable() const { return unreadable_; }
  // What could be read is the same. By a hash of 64 bits where everything could be.
  bool matches(const Contents& expected) const;
  uint64_t hash() const { return hash_; }

 private:
  std::vector<Stamp> stamps_;
  uint64_t unreadable_ = 0;
  uint64_t hash_ = 0;
};

class VolumeModel {
  // Longer requests count part by part.
  static constexpr uint64_t kWhole = (1u << 20) / kVolumeSector;

 public:
  explicit VolumeModel(uint64_t sectors) : head_(sectors), hashes_{head_.hash()} {}

  // A write (stamp != 0), or zeroes. Returns its number.
  uint64_t begin_change(uint64_t first, uint64_t count, Stamp stamp, bool durable);
  // A request of so many sectors is atomic in each of so many parts.
  static uint64_t parts_of(uint64_t count) { return (count + kWhole - 1) / kWhole; }
  // In the order of the answers. After ENOSPC nothing of it may ever be seen; after another error it happened or not.
  void end_change(uint64_t number, int error);

  // What a flush that begins now covers.
  uint64_t begin_flush() const { return history_.size(); }
  void end_flush(uint64_t covered);

  struct Reading {
    uint64_t first;
    uint64_t position;
    std::vector<Stamp> before;
  };
  Reading begin_read(uint64_t first, uint64_t count) const;
  void end_read(World& world, const Reading& reading, std::span<const std::byte> bytes) const;

  void begin_snapshot(const std::string& name);
  void end_snapshot(const std::string& name, int error);

  // What a reader found: the head, and each snapshot by its name.
  struct Found {
    Contents head;
    std::map<std::string, Contents> snapshots;
  };
  // What may be gone of what was answered: nothing (a process ended); what was not flushed (the power went); anything, but
  // from the end (the disk lied, and no single copy can tell).
  enum class Loss : uint8_t { kNothing, kUnflushed, kAnything };
  // After a restart: what was found must be what the volume may hold, and the model goes on from there. Returns how many
  // answered changes are gone.
  uint64_t adopt(World& world, const Found& found, Loss loss);
  // With nothing in flight: exactly that.
  void expect(World& world, const Found& found);

  const Contents& head() const { return head_; }
  uint64_t answered() const { return history_.size(); }
  uint64_t flushed() const { return flushed_; }
  // By the flush before the newest.
  uint64_t flushed_before() const { return flushed_before_; }
  std::vector<std::string> snapshot_names() const;
  // As the user was last told.
  uint64_t generation() const { return generation_; }
  void set_generation(uint64_t generation) { generation_ = generation; }

 private:
  struct Change {
    uint64_t number;
    uint64_t first, count;
    Stamp stamp;
    bool durable;
  };
  struct Snapshot {
    uint64_t low;                 // it is not older than this position
    uint64_t below = UINT64_MAX;  // the changes from this number on began after its answer
    bool answered = false;
    std::optional<Contents> contents;  // once it was seen
  };
  // A way in which the log may go on behind what was answered.
  struct Branch {
    Contents contents;
    std::vector<uint64_t> hashes;
    std::vector<Change> order;
    std::vector<uint64_t> parts;  // of each open change, how many are in the log
  };
  static Change part_of(const Change& change, uint64_t part);
  static uint64_t parts_of(const Change& change) { return parts_of(change.count); }
  static void apply(Contents& contents, const Change& change);
  void append(const Change& change);
  Contents replayed(uint64_t length) const;
  // hashes: of the contents after each of the changes; order: those behind history_.
  bool snapshots_fit(const Found& found, std::span<const uint64_t> hashes, std::span<const Change> order) const;
  bool explore(const Found& found, Branch& branch) const;
  void take_snapshots(World& world, const Found& found, Loss loss);
  std::string nearest(const Found& found, uint64_t lowest) const;

  Contents head_;
  std::vector<Change> history_;   // what was answered, in the order of the log
  std::vector<uint64_t> hashes_;  // of the contents after so many of them
  std::vector<Change> open_;      // not answered, or with an error that leaves it open, in the order of their issue
  std::map<std::string, Snapshot> snapshots_;
  uint64_t next_ = 1;
  uint64_t generation_ = 0;
  uint64_t flushed_before_ = 0;
  uint64_t flushed_ = 0;  // so many of history_ outlive a power cut
};

}  // namespace netblk::sim
