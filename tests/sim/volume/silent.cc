// SPDX-License-Identifier: GPL-2.0-only
// One silent fault at a time, and what became of it: detected, harmless, or a history that is shorter. Wrong reads end the run.
#include <algorithm>
#include <array>
#include <vector>

#include "sim/volume/scenario.h"
#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using Loss = VolumeModel::Loss;

constexpr uint64_t kFaults = 120;  // of a seed

class Silent {
 public:
  explicit Silent(World& world) : world_(world), random_(world.random), shape_(choose(world.random)), disk_(world), model_(shape_.sectors) {}

  void run() {
    make_volume(world_, disk_, shape_);
    disk_.faults() = {};
    live();
    for (uint64_t i = 0; i < kFaults; ++i) {
      if (random_.percent(75)) at_rest();
      else in_use();
    }
  }

 private:
  static Shape choose(Random& random) {
    Shape shape = choose_shape(random, Mode::kCrashes);
    shape.long_requests = false;
    shape.sectors = 8 * random.between(16, 96);
    shape.create.size_bytes = shape.sectors * kVolumeSector;
    return shape;
  }

  // A volume with a past, as it is when all that was written is on the disk; and what it was before.
  void live() {
    Loss loss = Loss::kNothing;
    for (uint64_t i = random_.between(1, 3); i > 0; --i) {
      older_.push_back(disk_.state());
      loss = Life(world_, shape_, disk_, model_, choose_plan(random_, 50)).run(loss);
    }
    closed_ = random_.percent(50);
    if (closed_) loss = Life(world_, shape_, disk_, model_, {}).run(loss);
    disk_.cut_power(Survival::kAll);
    // One request after the other: a record behind a flush knows of it.
    if (shape_.depth == 1) sure_ = model_.flushed_before();
    // What a sound disk would give; the user was not told of it.
    const uint64_t generation = model_.generation();
    LyingDisk copy(world_);
    copy.set_state(disk_.state());
    (void)Life(world_, shape_, copy, model_, {}).run(std::max(loss, Loss::kUnflushed));
    model_.set_generation(generation);
    shape_.mode = Mode::kSilent;
  }

  // A place that something was written to.
  uint64_t place(const Platter& platter) {
    const uint64_t sectors = platter.end_bytes() / kDiskSector;
    for (;;) {
      const uint64_t at = random_.below(sectors) * kDiskSector;
      if (platter.has(at)) return at;
    }
  }

  void damage(DiskState& state) {
    // One sector of a disk, whichever it has.
    const uint64_t length = random_.percent(50) ? kDiskSector : 4096;
    const uint64_t at = place(state.durable()) / length * length;
    std::vector<std::byte> bytes(length);
    switch (random_.below(6)) {
      case 0:
      case 1:
        if (state.flip_bit(at, length, random_)) world_.count(Count::kBitFlips);
        return;
      case 2: break;  // zeroes
      case 3:         // a write that landed astray, or a read
        state.durable().read(place(state.durable()), bytes);
        break;
      case 4:  // a write that was lost
        older_[random_.below(older_.size())].durable().read(at, bytes);
        break;
      default:
        for (std::byte& each : bytes) each = static_cast<std::byte>(random_.next());
    }
    state.overwrite(at, bytes);
  }

  void at_rest() {
    LyingDisk disk(world_);
    disk.set_state(disk_.state());
    damage(disk.state());
    disk.state().drop_clean();
    VolumeModel model = model_;
    LifePlan plan;
    plan.requests = random_.below(4);
    plan.check = true;
    Life life(world_, shape_, disk, model, plan);
    (void)life.run(Loss::kAnything);
    const bool shorter = life.gone() > 0;
    if (shorter && closed_ && !life.noticed() && !life.damaged())
      world_.fail("one fault does not shorten what was closed", "{} changes are gone", life.gone());
    if (!life.noticed() && !life.damaged() && model_.answered() - life.gone() < sure_)
      world_.fail("one fault takes no more than what the newest flush has made durable", "{} changes are left, and {} were flushed before it",
                  model_.answered() - life.gone(), sure_);
    judge(life.noticed() || life.damaged(), shorter, life.told());
  }

  // During a life, and looked at by the next one.
  void in_use() {
    LyingDisk disk(world_);
    disk.pace() = disk_.pace();
    disk.set_state(disk_.state());
    VolumeModel model = model_;
    disk.faults().lie_nth = random_.skewed(1, 40);
    disk.faults().lie = static_cast<Lie>(random_.below(3));
    Life first(world_, shape_, disk, model, choose_plan(random_, 20));
    (void)first.run(Loss::kUnflushed);
    if (disk.lies() == 0) return;
    disk.faults() = {};
    const bool cut = first.plan().ending == Ending::kPowerCut;
    disk.state().drop_clean();
    const uint64_t promised = cut ? model.flushed() : model.answered();
    const uint64_t answered = model.answered();
    LifePlan plan;
    plan.check = true;
    Life life(world_, shape_, disk, model, plan);
    (void)life.run(Loss::kAnything);
    judge(first.noticed() || first.damaged() || life.noticed() || life.damaged(), answered - life.gone() < promised, life.told());
  }

  void judge(bool noticed, bool shorter, bool told) {
    world_.count(Count::kSilentFaults);
    world_.count(noticed ? Count::kSilentDetected
                 : !shorter ? Count::kSilentHarmless
                 : told ? Count::kSilentShortened
                        : Count::kSilentShortenedUntold);
  }

  World& world_;
  Random& random_;
  Shape shape_;
  LyingDisk disk_;
  VolumeModel model_;
  std::vector<DiskState> older_;
  bool closed_ = false;
  uint64_t sure_ = 0;  // so many changes outlive one fault that nobody notices
};

}  // namespace

void run_silent(World& world) { Silent(world).run(); }

}  // namespace netblk::sim
