// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using store::volume::Compression;
using store::volume::Secret;
using store::volume::UserKey;

std::shared_ptr<const UserKey> some_key() {
  static const std::shared_ptr<const UserKey> key =
      std::make_shared<UserKey>(UserKey{UserKey::Kind::kFile, Secret(std::as_bytes(std::span("the key of all volumes of seeds")))});
  return key;
}

coro::Task<void> create_on(SimLoop& loop, World& world, LyingDisk& disk, const Shape& shape) {
  SimEnvironment environment(world);
  const auto file = disk.open();
  const Status made = co_await store::volume::create_volume(loop, *file, shape.create, environment);
  if (!made.ok()) world.fail("a volume can be made", "{}", made.error().message);
}

}  // namespace

Mode choose_mode(Random& random) {
  const uint64_t mode = random.below(100);
  return mode < 60 ? Mode::kCrashes : mode < 75 ? Mode::kFailures : mode < 85 ? Mode::kFull : Mode::kSilent;
}

Shape choose_shape(Random& random, Mode mode) {
  Shape shape;
  shape.mode = mode;
  shape.depth = random.percent(40) ? 1 : static_cast<unsigned>(random.between(2, 6));
  shape.odd_percent = random.percent(50) ? 0 : static_cast<unsigned>(random.between(5, 60));
  shape.sectors = 8 * random.between(16, 96);
  if (shape.depth == 1 && random.percent(15)) {
    shape.long_requests = true;
    shape.sectors = 8 * random.between(512, 900);
  }
  shape.create.size_bytes = shape.sectors * kVolumeSector;
  shape.create.segment_bytes = 65'536u << random.below(3);
  shape.open.checkpoint_bytes = random.skewed(16'384, 2'000'000);
  // The collector works whenever it can, or when it must.
  shape.open.space_percent = random.between(100, 200);
  shape.open.spare_segments = random.percent(75) ? random.below(3) : 12;
  shape.open.idle_ms = random.skewed(1, 100);
  if (random.percent(40)) shape.open.compression = random.percent(50) ? Compression::kLz4 : Compression::kZstd;
  if (random.percent(30)) shape.create.key = shape.open.key = some_key();
  return shape;
}

LifePlan choose_plan(Random& random, uint64_t most_requests) {
  LifePlan plan;
  plan.requests = random.between(0, most_requests);
  const uint64_t ending = random.below(100);
  plan.ending = ending < 15 ? Ending::kClean : ending < 50 ? Ending::kKill : Ending::kPowerCut;
  if (random.percent(75)) plan.crash_at_step = random.between(1, 4 + plan.requests * 2);
  return plan;
}

void make_volume(World& world, LyingDisk& disk, const Shape& shape) {
  disk.pace().inline_io = world.random.percent(40);
  if (world.random.percent(30)) disk.faults().short_io = world.random.between(4, 40);
  SimLoop loop(world);
  loop.run(create_on(loop, world, disk, shape));
  disk.cut_power(Survival::kNone);
}

}  // namespace netblk::sim
