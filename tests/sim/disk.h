// SPDX-License-Identifier: GPL-2.0-only
// Disk: a store on the server's host, with a page cache, a durable image and the records of DESIGN 4.2; and SimDevice:
// the store as one server process has it open. The disk is adversarial within what it promises: a flush makes durable
// no more than was written before it began, a reboot keeps or loses each unflushed block by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "block/device.h"
#include "io/loop.h"
#include "sim/world.h"

namespace netblk::sim {

inline constexpr uint64_t kBlock = 512;

// Rules that a planted bug breaks, so that one sees that the checks notice (tests/sim/run --planted).
struct PlantedBugs {
  bool flush_early = false;        // a flush ends before its data is durable
  bool keeps_generation = false;   // a reboot that lost data is not told
  bool keeps_uuid = false;         // a store that was replaced has the old one's name
  bool applies_twice = false;      // a write is applied once more, later
  bool forgets_writes = false;     // an acknowledged write is dropped
  bool forgets_owner = false;      // a restarted server does not know whom the store belongs to
};

struct DiskPlan {
  uint64_t size_bytes = 128u << 10;
  bool inline_io = false;  // reads and writes end inside submit()
  uint64_t io_low_us = 20, io_high_us = 3'000;
  uint64_t sync_low_us = 100, sync_high_us = 20'000;
  // What waits its turn looks whether its connection has gone. Else it lands all the same, as what is in a kernel's hands.
  bool heeds_abandoned = true;
  uint64_t stuck_one_in = 0;  // one request in so many takes up to stuck_us
  uint64_t stuck_us = 0;
  uint64_t error_one_in = 0;         // of reads and writes
  uint64_t sync_error_one_in = 0;
  uint64_t owner_error_one_in = 0;
};

class Disk;

// What a watcher of the store hears. Offsets are of the whole request.
class DiskWatcher {
 public:
  virtual ~DiskWatcher() = default;
  // A change takes effect; data is empty for trims and zeroes. `ledger`: of one server process.
  virtual void applied(block::Command command, uint64_t offset, uint64_t length, std::span<const std::byte> data,
                       uint64_t ledger) = 0;
  // The unflushed may be gone from here on.
  virtual void lost_cache() = 0;
};

class SimDevice final : public block::Device {
 public:
  SimDevice(Disk& disk, uint64_t process);
  ~SimDevice() override;

  void refresh_size() override;
  block::Generation generation() const override;
  std::vector<std::byte> owners() const override;
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) override;

  // The process dies: what is under way is applied, in part or not at all, and nothing has an effect any more.
  void end_process();
  // In order: all is flushed, and the store is marked clean.
  void close();
  size_t in_flight() const { return active_.size(); }

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  struct Snapshot {
    uint32_t block;
    uint64_t version;
    std::vector<std::byte> bytes;
  };
  struct Active {
    block::Request* request;
    block::Completion completion;
    uint64_t number;
    bool applied = false;
    bool cancelled = false;
    int error = 0;
    std::vector<Snapshot> flushed;
  };
  Active* find(uint64_t number);
  void take_snapshot(Active& active);
  void apply(uint64_t number);
  void sync(uint64_t number);
  void end(uint64_t number);
  int do_apply(const block::Request& request, uint64_t length);
  uint64_t ledger() const;
  uint64_t delay(uint64_t low_us, uint64_t high_us);

  Disk& disk_;
  World& world_;
  const uint64_t process_;
  bool alive_ = true;
  uint64_t next_number_ = 1;
  std::vector<std::unique_ptr<Active>> active_;
  std::shared_ptr<SimDevice*> self_;  // null once destroyed: events may come later
};

class Disk {
 public:
  Disk(World& world, const DiskPlan& plan, const PlantedBugs& bugs);

  DiskPlan& plan() { return plan_; }
  void set_watcher(DiskWatcher* watcher) { watcher_ = watcher; }

  // A new server process opens the store, by the rules of DESIGN 4.2 for generations. The one before has ended.
  std::unique_ptr<SimDevice> open(uint64_t process);

  // The host loses power, or its kernel dies: each unflushed block stays or goes.
  void reboot();
  // Somebody puts another store into this one's place.
  void replace();
  void grow(uint64_t more_bytes);
  // The kernel writes back some of the cache by itself.
  void write_back();

  uint64_t size_bytes() const { return plan_.size_bytes; }
  std::span<const std::byte> block(uint64_t number) const { return {cache_.data() + number * kBlock, kBlock}; }
  block::Generation generation() const { return {uuid_, counter_}; }
  uint64_t replaced() const { return replaced_; }
  bool poisoned() const { return poisoned_; }

 private:
  friend class SimDevice;
  void make_durable(uint64_t block);
  void sync_all();

  World& world_;
  DiskPlan plan_;
  const PlantedBugs bugs_;
  DiskWatcher* watcher_ = nullptr;
  std::vector<std::byte> cache_;
  std::vector<std::byte> durable_;
  std::vector<uint64_t> version_;          // of each block in the cache
  std::vector<uint64_t> durable_version_;  // and in the durable image
  uint64_t next_version_ = 1;

  // The durable record.
  Id uuid_;
  uint64_t counter_ = 1;
  bool clean_ = true;
  std::vector<std::byte> owners_;
  // The volatile one.
  bool record_here_ = false;
  bool healthy_ = true;
  bool poisoned_ = false;  // for the process that has it open
  uint64_t replaced_ = 0;
};

}  // namespace netblk::sim
