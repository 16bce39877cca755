// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/scenario.h"

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using Loss = VolumeModel::Loss;

constexpr uint64_t kMomentsLookedAt = 24;  // of each life

class VolumeRun {
 public:
  VolumeRun(World& world, const std::string& planted);
  void run();

 private:
  void create();
  void look_at(Moment& moment);
  void prepare_faults();
  void heal();

  World& world_;
  Random& random_;
  Shape shape_;
  LyingDisk disk_;
  VolumeModel model_;
  const bool sync_lies_, forgets_;
};

VolumeRun::VolumeRun(World& world, const std::string& planted)
    : world_(world), random_(world.random), shape_(choose_shape(world.random, choose_mode(world.random))), disk_(world), model_(shape_.sectors),
      sync_lies_(planted == "sync-lies"), forgets_(planted == "forgets-writes") {
  if (sync_lies_ || forgets_) shape_.mode = Mode::kCrashes;
}

void VolumeRun::create() {
  make_volume(world_, disk_, shape_);
  if (sync_lies_) disk_.faults().lying_sync = 4;
  if (forgets_) disk_.faults().lost_write = 20;
}

// For one life.
void VolumeRun::prepare_faults() {
  DiskFaults& faults = disk_.faults();
  switch (shape_.mode) {
    case Mode::kCrashes: break;
    case Mode::kFailures:
      faults.fail_nth = random_.percent(50) ? random_.between(1, 20) : random_.between(1, 150);
      faults.fail_error = EIO;
      break;
    case Mode::kFull:
      faults.capacity_bytes = disk_.state().cache().allocated_bytes() + random_.between(0, 400'000);
      break;
    case Mode::kSilent:
      if (random_.percent(30)) faults.lost_write = random_.between(10, 100);
      if (random_.percent(30)) faults.stray_write = random_.between(10, 100);
      if (random_.percent(20)) faults.lying_sync = random_.between(2, 10);
      if (random_.percent(20)) faults.read_error = random_.between(20, 200);
      for (uint64_t flips = random_.percent(50) ? random_.between(1, 6) : 0; flips > 0; --flips)
        if (disk_.state().flip_bit(0, UINT32_MAX, random_)) world_.count(Count::kBitFlips);
      disk_.state().drop_clean();
      break;
  }
}

void VolumeRun::heal() {
  const uint64_t short_io = disk_.faults().short_io;
  disk_.faults() = {};
  disk_.faults().short_io = short_io;
}

// Every moment ends in a volume that opens, is right, takes changes and survives the next crash, also when the recovery
// itself is cut short.
void VolumeRun::look_at(Moment& moment) {
  world_.count(Count::kCrashStates);
  LyingDisk disk(world_);
  Loss loss = begin_after_crash(disk, disk_, moment.disk, random_, moment.loss);
  VolumeModel& model = moment.model;
  const uint64_t lives = random_.between(1, 3);
  for (uint64_t i = 0; i < lives; ++i) {
    LifePlan some = choose_plan(random_, 8);
    if (i + 1 == lives) some = {};
    loss = Life(world_, shape_, disk, model, some).run(loss);
  }
}

void VolumeRun::run() {
  create();
  Loss loss = Loss::kNothing;
  const uint64_t lives = random_.between(1, 5);
  for (uint64_t i = 0; i <= lives; ++i) {
    const bool last = i == lives;
    if (last && shape_.mode != Mode::kSilent) heal();
    else prepare_faults();
    LifePlan what = last ? LifePlan{} : choose_plan(random_, 60);
    if (shape_.mode == Mode::kCrashes && !sync_lies_ && !forgets_)
      what.capture_one_in = std::max<uint64_t>(1, what.requests * 2 / kMomentsLookedAt);
    Life life(world_, shape_, disk_, model_, what);
    loss = life.run(loss);
    heal();
    if (sync_lies_) disk_.faults().lying_sync = 4;
    if (forgets_) disk_.faults().lost_write = 20;
    for (Moment& moment : life.take_moments()) look_at(moment);
    // What is left of a volume that the disk has damaged is not its model's business.
    if (life.damaged() && shape_.mode == Mode::kSilent) return;
  }
}

}  // namespace

RunResult run_volume_seed(const SeedOptions& options, Counts& counts) {
  if (options.scenario == "every-error") return run_every_error(options, counts);
  World world(options.seed);
  world.set_tracing(options.trace);
  seed_system_random(options.seed);
  if (options.scenario == "every-crash") run_every_crash(world);
  else if (options.scenario == "silent") run_silent(world);
  else if (options.scenario == "whole") run_whole(world);
  else VolumeRun(world, options.planted).run();
  for (size_t i = 0; i < counts.size(); ++i) counts[i] += world.counts()[i];
  return {world.hash(), world.now_us()};
}

}  // namespace netblk::sim
