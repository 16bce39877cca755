// SPDX-License-Identifier: GPL-2.0-only
// Life: one process that opens the volume, uses it for a while, and ends: in order, killed, or with the power cut.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coro/task.h"
#include "sim/sim_loop.h"
#include "sim/volume/lying_disk.h"
#include "sim/volume/model.h"
#include "store/volume/volume.h"

namespace netblk::sim {

enum class Mode : uint8_t {
  kCrashes,   // the disk keeps its promises
  kFailures,  // one operation in each life fails
  kFull,      // the disk has no room
  kSilent,    // the disk lies
};

// How the volume is made and used, the same for all lives of a seed.
struct Shape {
  Mode mode = Mode::kCrashes;
  uint64_t sectors = 0;
  unsigned depth = 1;             // requests in flight
  unsigned odd_percent = 0;       // of requests that are not whole blocks
  bool long_requests = false;     // of more than 1 MiB
  store::volume::CreateOptions create;
  store::volume::VolumeOptions open;
};

enum class Ending : uint8_t { kClean, kKill, kPowerCut };

struct LifePlan {
  uint64_t requests = 0;
  Ending ending = Ending::kClean;
  uint64_t crash_at_step = 0;   // of the disk's writes and syncs; 0: when the requests are done
  uint64_t capture_one_in = 0;  // of those steps, as a moment to look at later
  bool check = false;           // the volume checks itself before it is closed
};

// The disk as a crash would find it, and what its user knew.
struct Moment {
  DiskState disk;
  VolumeModel model;
  VolumeModel::Loss loss;
};

// Wall time that now and then jumps, also back, and random bytes from the seed.
class SimEnvironment final : public store::volume::Environment {
 public:
  explicit SimEnvironment(World& world) : world_(world) {}
  uint64_t wall_ns() override;
  void random_bytes(std::span<std::byte> into) override;

 private:
  World& world_;
  int64_t shift_ns_ = 0;
};

// What ends with a life, however it ended, and what may be lost then beside `loss`.
VolumeModel::Loss end_life(World& world, LyingDisk& disk, Ending ending, bool poisoned, VolumeModel::Loss loss);

// The disk is as another one was at a moment that was kept, after a crash there: of the process, or of the power too.
VolumeModel::Loss begin_after_crash(LyingDisk& disk, LyingDisk& like, DiskState& state, Random& random, VolumeModel::Loss loss);

class Life {
 public:
  Life(World& world, const Shape& shape, LyingDisk& disk, VolumeModel& model, const LifePlan& plan);

  // before: what the crashes since somebody last looked may have lost. Returns the same for the next life.
  VolumeModel::Loss run(VolumeModel::Loss before);

  const LifePlan& plan() const { return plan_; }
  std::vector<Moment> take_moments() { return std::move(moments_); }
  // The volume was refused, read-only or unreadable in parts: only where the disk has failed or lied.
  bool damaged() const { return damaged_; }
  // A request or a check ended with an error.
  bool noticed() const { return noticed_; }
  // Answered changes that were gone when it was opened, and whether the generation said so.
  uint64_t gone() const { return gone_; }
  bool told() const { return told_; }

 private:
  struct Slot;
  coro::Task<void> live();
  coro::Task<void> use(block::Device& head);
  coro::Task<void> work(block::Device& head);
  coro::Task<void> ask_change(block::Device& head);
  coro::Task<void> ask_read(block::Device& head);
  coro::Task<void> ask_flush(block::Device& head);
  coro::Task<void> ask_snapshot();
  coro::Task<void> check_all();
  coro::Task<void> find(VolumeModel::Found& found);
  coro::Task<void> read_whole(block::Device& device, Contents& contents);
  coro::Task<void> pause();
  void range(uint64_t& first, uint64_t& count);
  void watch(LyingDisk::Step step);
  void crash();
  bool disk_has_failed() const;
  // The request may end so; else the run fails.
  bool may_fail(int error) const;
  void check_answer(const char* what, int error);

  World& world_;
  const Shape& shape_;
  LyingDisk& disk_;
  VolumeModel& model_;
  const LifePlan plan_;
  SimLoop loop_;
  SimEnvironment environment_;
  std::unique_ptr<store::volume::Volume> volume_;
  std::vector<Moment> moments_;
  VolumeModel::Loss before_ = VolumeModel::Loss::kNothing;
  uint64_t steps_ = 0;
  uint64_t left_ = 0;      // requests to be made
  const uint64_t failures_before_;
  uint64_t gone_ = 0;
  bool told_ = false;
  bool noticed_ = false;
  bool found_unreadable_ = false;
  std::atomic<bool> poisoned_{false};
  bool adopted_ = false;   // the model knows what this life found
  bool dead_ = false;      // the crash has come: nothing that is heard from here on counts
  bool failed_ = false;    // a change ended with an error that is not ENOSPC
  bool damaged_ = false;
};

}  // namespace netblk::sim
