// SPDX-License-Identifier: GPL-2.0-only
// A crash after every write and every sync of a life, with each kind of what a power cut leaves; each of these recovered with a
// crash after every write and sync of the recovery.
#include "sim/volume/scenario.h"
#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using Loss = VolumeModel::Loss;

constexpr auto kEnds = static_cast<uint64_t>(Survival::kLast) + 1;  // the last one: the process is killed

// What the crash leaves of a moment.
void end(World& world, Moment& moment, uint64_t how) {
  if (how >= static_cast<uint64_t>(Survival::kLast)) return;
  moment.disk.cut_power(static_cast<Survival>(how), world.random);
  moment.loss = std::max(moment.loss, Loss::kUnflushed);
}

class EveryCrash {
 public:
  explicit EveryCrash(World& world) : world_(world), shape_(choose(world.random)), disk_(world) {}

  void run() {
    make_volume(world_, disk_, shape_);
    VolumeModel model(shape_.sectors);
    Loss loss = Loss::kNothing;
    // The log and the tree are not those of an empty volume.
    if (world_.random.percent(70)) {
      LifePlan before = choose_plan(world_.random, 40);
      before.crash_at_step = 0;
      loss = Life(world_, shape_, disk_, model, before).run(loss);
    }
    LifePlan all;
    all.requests = world_.random.between(3, 14);
    all.ending = world_.random.percent(50) ? Ending::kClean : Ending::kKill;
    all.capture_one_in = 1;
    Life life(world_, shape_, disk_, model, all);
    loss = life.run(loss);
    for (const Moment& moment : life.take_moments())
      for (uint64_t how = 0; how < kEnds; ++how) recover(moment, how);
  }

 private:
  static Shape choose(Random& random) {
    Shape shape = choose_shape(random, Mode::kCrashes);
    shape.long_requests = false;
    shape.sectors = 8 * random.between(16, 96);
    shape.create.size_bytes = shape.sectors * kVolumeSector;
    return shape;
  }

  // A copy of the disk as the crash left it; the process that comes next ends as planned.
  Life recovered(LyingDisk& disk, Moment& moment, const LifePlan& plan) {
    disk.pace() = disk_.pace();
    disk.faults().short_io = disk_.faults().short_io;
    disk.set_state(moment.disk);
    return Life(world_, shape_, disk, moment.model, plan);
  }

  void recover(const Moment& first, uint64_t how) {
    Moment moment = first;
    end(world_, moment, how);
    world_.count(Count::kCrashStates);
    LyingDisk disk(world_);
    LifePlan some;
    some.requests = world_.random.below(3);
    some.capture_one_in = 1;
    Life life = recovered(disk, moment, some);
    (void)life.run(moment.loss);
    for (Moment& again : life.take_moments()) {
      end(world_, again, world_.random.below(kEnds));
      world_.count(Count::kCrashStates);
      world_.count(Count::kRecoveryCrashStates);
      LyingDisk other(world_);
      Life last = recovered(other, again, {});
      (void)last.run(again.loss);
    }
  }

  World& world_;
  const Shape shape_;
  LyingDisk disk_;
};

}  // namespace

void run_every_crash(World& world) { EveryCrash(world).run(); }

}  // namespace netblk::sim
