// SPDX-License-Identifier: GPL-2.0-only
// All that a volume can do, in several lives of its process, one request after the other.
#include <algorithm>
#include <cerrno>

#include "sim/volume/scenario.h"
#include "sim/volume/setup.h"
#include "sim/volume/whole_life.h"

namespace netblk::sim {
namespace {

using Loss = VolumeModel::Loss;

constexpr uint64_t kMomentsLookedAt = 12;  // of each life

class WholeRun {
 public:
  explicit WholeRun(World& world)
      : world_(world), random_(world.random), shape_(choose(world.random)), disk_(world), model_(shape_.sectors), backup_(world) {}

  void run() {
    make_volume(world_, disk_, shape_);
    Loss loss = Loss::kNothing;
    const uint64_t lives = random_.between(1, 5);
    for (uint64_t i = 0; i <= lives; ++i) {
      const bool last = i == lives;
      LifePlan plan;
      if (!last) {
        plan = choose_plan(random_, 80);
        prepare_faults();
        if (shape_.mode == Mode::kCrashes) plan.capture_one_in = std::max<uint64_t>(1, plan.requests * 2 / kMomentsLookedAt);
      }
      plan.check = last || random_.percent(20);
      WholeLife life(world_, shape_, disk_, model_, plan, &backup_);
      loss = life.run(loss);
      const uint64_t short_io = disk_.faults().short_io;
      disk_.faults() = {};
      disk_.faults().short_io = short_io;
      for (WholeMoment& moment : life.take_moments()) look_at(moment);
      // Some lives: a stream that met a crash comes once more.
      for (uint64_t backups = random_.between(1, 3); backups > 0; --backups) backup_.run();
    }
  }

 private:
  static Shape choose(Random& random) {
    const uint64_t mode = random.below(100);
    Shape shape = choose_shape(random, mode < 70 ? Mode::kCrashes : mode < 85 ? Mode::kFailures : Mode::kFull);
    shape.sectors = 8 * random.between(16, 96);
    shape.create.size_bytes = shape.sectors * kVolumeSector;
    static constexpr const char* kHistories[] = {"none", "24h", "10s", "64K", "1M"};
    const char* const history = kHistories[random.below(std::size(kHistories))];
    shape.create.settings = {{"history", history}};
    return shape;
  }

  void prepare_faults() {
    DiskFaults& faults = disk_.faults();
    if (shape_.mode == Mode::kFailures) {
      faults.fail_nth = random_.between(1, random_.percent(50) ? 20 : 300);
      faults.fail_error = EIO;
    }
    if (shape_.mode == Mode::kFull) faults.capacity_bytes = disk_.state().cache().allocated_bytes() + random_.between(0, 400'000);
  }

  // As it is after a crash there, perhaps another one, and a sound life.
  void look_at(WholeMoment& moment) {
    world_.count(Count::kCrashStates);
    LyingDisk disk(world_);
    Loss loss = begin_after_crash(disk, disk_, moment.disk, random_, moment.loss);
    for (uint64_t left = random_.between(1, 3); left > 0; --left) {
      LifePlan plan;
      if (left > 1) plan = choose_plan(random_, 8);
      loss = WholeLife(world_, shape_, disk, moment.model, plan).run(loss);
    }
  }

  World& world_;
  Random& random_;
  const Shape shape_;
  LyingDisk disk_;
  WholeModel model_;
  Backup backup_;
};

}  // namespace

void run_whole(World& world) { WholeRun(world).run(); }

}  // namespace netblk::sim
