// SPDX-License-Identifier: GPL-2.0-only
// Every nth operation of the disk fails, for every n until the life ends without: nothing that was answered is lost, nothing
// crashes, and the volume opens again.
#include <cerrno>
#include <iterator>

#include "sim/volume/scenario.h"
#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using Loss = VolumeModel::Loss;

struct Failing {
  unsigned kinds;
  int error;  // 0: done in part
};
constexpr Failing kFailing[] = {
    {kReading, EIO},    {kReading, 0},      {kWriting, EIO},           {kWriting, ENOSPC},      {kWriting, 0},
    {kSyncing, EIO},    {kSyncing, ENOSPC}, {kAllocating, ENOSPC},     {kAllocating, EIO},      {kPunching, EIO},
    {kAnyOperation, EIO}, {kWriting | kAllocating, ENOSPC},
};

struct Variant {
  Failing failing;
  bool in_recovery = false;  // it happens to an opening that recovers
  bool lasting = false;      // and to all of these operations behind it
  Ending ending = Ending::kClean;  // of the life that it happens in
};
constexpr Ending kEndings[] = {Ending::kClean, Ending::kKill, Ending::kPowerCut};

// True: the operation was reached, and failed.
bool run_once(World& world, const Variant& variant, uint64_t nth) {
  Random& random = world.random;
  Shape shape = choose_shape(random, Mode::kFailures);
  LyingDisk disk(world);
  make_volume(world, disk, shape);
  disk.faults().short_io = 0;
  VolumeModel model(shape.sectors);
  LifePlan before = choose_plan(random, shape.long_requests ? 8 : 40);
  LifePlan during = choose_plan(random, variant.in_recovery ? 8 : 25);
  if (variant.in_recovery && before.ending == Ending::kClean) before.ending = Ending::kPowerCut;
  before.crash_at_step = during.crash_at_step = 0;
  during.ending = variant.ending;
  Loss loss = Life(world, shape, disk, model, before).run(Loss::kNothing);

  const uint64_t failures = disk.failures();
  disk.faults().fail_nth = nth;
  disk.faults().fail_kinds = variant.failing.kinds;
  disk.faults().fail_error = variant.failing.error;
  disk.faults().fail_on = variant.lasting;
  loss = Life(world, shape, disk, model, during).run(loss);
  const bool reached = disk.failures() != failures;
  disk.faults() = {};
  if (!reached) return false;
  world.count(Count::kErrorRuns);
  if (variant.in_recovery) world.count(Count::kErrorsInRecovery);

  // It opens, has what it must have, takes changes, and closes; twice.
  shape.mode = Mode::kCrashes;
  LifePlan after;
  after.requests = 6;
  after.check = true;
  loss = Life(world, shape, disk, model, after).run(loss);
  (void)Life(world, shape, disk, model, {}).run(loss);
  return true;
}

}  // namespace

RunResult run_every_error(const SeedOptions& options, Counts& counts) {
  RunResult result;
  // Twelve seeds have each way of it.
  Variant variant;
  variant.in_recovery = options.seed % 2 == 0;
  variant.lasting = options.seed / 2 % 2 == 0;
  variant.ending = kEndings[options.seed / 4 % std::size(kEndings)];
  for (const Failing& failing : kFailing) {
    variant.failing = failing;
    for (uint64_t nth = 1;; ++nth) {
      World world(options.seed);
      world.set_tracing(options.trace);
      seed_system_random(options.seed);
      world.note("every error", nth, failing.kinds, static_cast<uint64_t>(failing.error));
      const bool reached = run_once(world, variant, nth);
      for (size_t i = 0; i < counts.size(); ++i) counts[i] += world.counts()[i];
      result.hash = result.hash * 31 + world.hash();
      result.virtual_us += world.now_us();
      if (!reached) break;
    }
  }
  return result;
}

}  // namespace netblk::sim
