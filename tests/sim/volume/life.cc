// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/life.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "coro/scope.h"
#include "sim/volume/asked.h"

namespace netblk::sim {
namespace {

using store::volume::SnapshotInfo;

constexpr uint64_t kBlockSectors = 8;
constexpr size_t kMaxSnapshotsMade = 5;

}  // namespace

uint64_t SimEnvironment::wall_ns() {
  if (world_.random.one_in(50)) shift_ns_ = static_cast<int64_t>(world_.random.below(20'000'000'000)) - 10'000'000'000;
  return static_cast<uint64_t>(1'700'000'000'000'000'000 + static_cast<int64_t>(world_.now_us() * 1000) + shift_ns_);
}

void SimEnvironment::random_bytes(std::span<std::byte> into) {
  for (std::byte& each : into) each = static_cast<std::byte>(world_.random.next());
}

VolumeModel::Loss end_life(World& world, LyingDisk& disk, Ending ending, bool poisoned, VolumeModel::Loss loss) {
  if (ending != Ending::kClean) world.count(Count::kCrashStates);
  // What a failed sync left in the cache alone goes when the system likes.
  if (poisoned) {
    loss = std::max(loss, VolumeModel::Loss::kUnflushed);
    if (world.random.percent(50)) disk.state().drop_clean();
  }
  if (ending == Ending::kPowerCut) {
    world.count(Count::kPowerCuts);
    disk.cut_power(any_survival(world.random));
    return std::max(loss, VolumeModel::Loss::kUnflushed);
  }
  world.count(ending == Ending::kKill ? Count::kProcessKills : Count::kCleanCloses);
  return loss;
}

VolumeModel::Loss begin_after_crash(LyingDisk& disk, LyingDisk& like, DiskState& state, Random& random, VolumeModel::Loss loss) {
  disk.pace() = like.pace();
  disk.faults().short_io = like.faults().short_io;
  if (random.percent(70)) {
    state.cut_power(any_survival(random), random);
    loss = std::max(loss, VolumeModel::Loss::kUnflushed);
  }
  disk.set_state(state);
  return loss;
}

Life::Life(World& world, const Shape& shape, LyingDisk& disk, VolumeModel& model, const LifePlan& plan)
    : world_(world), shape_(shape), disk_(disk), model_(model), plan_(plan), loop_(world), environment_(world),
      left_(plan.requests), failures_before_(disk.failures()) {}

VolumeModel::Loss Life::run(VolumeModel::Loss before) {
  before_ = before;
  world_.note("life", static_cast<uint64_t>(before), plan_.requests, static_cast<uint64_t>(plan_.ending));
  disk_.set_watcher([this](LyingDisk::Step step) { watch(step); });
  loop_.run(live());
  disk_.set_watcher(nullptr);
  if (!dead_) crash();
  const VolumeModel::Loss loss = end_life(world_, disk_, plan_.ending, poisoned_, adopted_ ? VolumeModel::Loss::kNothing : before);
  return shape_.mode == Mode::kSilent ? VolumeModel::Loss::kAnything : loss;
}

void Life::crash() {
  world_.note("crash", steps_);
  dead_ = true;
  if (!adopted_ && steps_ > 0) world_.count(Count::kCrashesInRecovery);
  disk_.end_process();
}

void Life::watch(LyingDisk::Step step) {
  if (dead_ || step == LyingDisk::Step::kRead) return;
  ++steps_;
  if (shape_.mode != Mode::kSilent && world_.random.one_in(plan_.capture_one_in))
    moments_.push_back({disk_.crash_state(), model_, adopted_ ? VolumeModel::Loss::kNothing : before_});
  if (plan_.ending != Ending::kClean && steps_ == plan_.crash_at_step) crash();
}

bool Life::disk_has_failed() const {
  return shape_.mode == Mode::kSilent || (shape_.mode == Mode::kFailures && disk_.failures() != failures_before_);
}

bool Life::may_fail(int error) const {
  if (dead_) return true;
  if (error == ENOSPC && shape_.mode == Mode::kFull) return true;
  // What was refused once is refused until the volume is opened again.
  return (error == EIO || error == ENOSPC) && disk_has_failed();
}

void Life::check_answer(const char* what, int error) {
  if (error == 0) return;
  noticed_ = true;
  if (error == ENOSPC) world_.count(Count::kRefusedFull);
  else failed_ = true;
  if (!may_fail(error)) world_.fail("a request fails only where the disk does", "{} ended with error {}", what, error);
}

coro::Task<void> Life::live() {
  store::volume::VolumeOptions options = shape_.open;
  options.cache_survived = before_ == VolumeModel::Loss::kNothing;
  options.on_poison = [this] { poisoned_ = poisoned_ || !dead_; };
  auto opened = co_await store::volume::open_volume(loop_, disk_.open(), options, environment_);
  if (!opened.ok()) {
    if (dead_) co_return;
    if (!disk_has_failed()) world_.fail("a volume opens after a crash", "{}", opened.error().message);
    damaged_ = true;
    co_return;
  }
  volume_ = std::move(opened).value();
  auto head = volume_->open_device();
  if (!head.ok()) world_.fail("the head opens", "{}", head.error().message);
  co_await use(*head.value());
  if (plan_.check && !dead_) co_await check_all();
  head.value().reset();
  world_.count(Count::kBlocksCollected, volume_->info().collected_bytes / store::volume::kBlockBytes);
  const Status closed = co_await volume_->close();
  if (!closed.ok() && !dead_ && !disk_has_failed() && shape_.mode != Mode::kFull)
    world_.fail("a volume closes", "{}", closed.error().message);
  volume_.reset();
}

coro::Task<void> Life::use(block::Device& head) {
  VolumeModel::Found found{Contents(shape_.sectors), {}};
  co_await find(found);
  if (dead_) co_return;
  const auto info = volume_->info();
  if (info.read_only || !info.damage.empty() || found.head.unreadable() != 0) {
    // Without room for it to write in it is read, and no more.
    if (!disk_has_failed() && shape_.mode != Mode::kFull) world_.fail("a sound disk has no damage", "{}", info.damage);
    if (shape_.mode != Mode::kFull) world_.count(Count::kDamagedOpens);
    damaged_ = true;
    // A read that failed once: the next opening sees more.
    if (shape_.mode == Mode::kFailures) co_return;
  }
  const uint64_t generation = head.generation().counter;
  told_ = generation > model_.generation();
  if (info.read_only) {
    // It is what it may be, and nothing is settled: what was found is not durable by that.
    VolumeModel as_found = model_;
    gone_ = as_found.adopt(world_, found, before_);
    co_return;
  }
  const uint64_t gone = gone_ = model_.adopt(world_, found, before_);
  adopted_ = true;
  if (gone > 0 && shape_.mode != Mode::kSilent && generation <= model_.generation())
    world_.fail("changes that are gone move the generation", "{} are gone, and it was {} and is {}", gone, model_.generation(), generation);
  model_.set_generation(generation);
  if (gone > 0) world_.count(Count::kShorterPrefixes);
  world_.note("adopted", gone, model_.answered());
  if (!damaged_) {
    coro::Scope scope;
    for (unsigned i = 0; i < shape_.depth; ++i) scope.spawn(work(head));
    co_await scope.join();
  }
  if (dead_) co_return;
  if (plan_.ending != Ending::kClean) {
    crash();
    co_return;
  }
  if (damaged_ || failed_) co_return;
  found = {Contents(shape_.sectors), {}};
  co_await find(found);
  if (!dead_ && found.head.unreadable() == 0) model_.expect(world_, found);
}

// It finds all that reads would find, and nothing on a sound disk.
coro::Task<void> Life::check_all() {
  const auto report = co_await volume_->check();
  if (dead_) co_return;
  if (!report.ok()) {
    noticed_ = true;
    if (!disk_has_failed()) world_.fail("a volume can be checked", "{}", report.error().message);
    co_return;
  }
  if (!report.value().damage.empty()) {
    noticed_ = true;
    if (!disk_has_failed()) world_.fail("a sound disk has no damage", "{}", report.value().damage.front());
  } else if (found_unreadable_ && disk_.faults().read_error == 0) {
    world_.fail("check finds what reads find", "it found nothing, and blocks could not be read");
  }
}

coro::Task<void> Life::find(VolumeModel::Found& found) {
  auto head = volume_->open_device();
  if (!head.ok()) world_.fail("the head opens", "{}", head.error().message);
  co_await read_whole(*head.value(), found.head);
  for (const SnapshotInfo& each : volume_->snapshots()) {
    if (dead_) break;
    auto device = volume_->open_device(each.name);
    if (!device.ok()) world_.fail("a snapshot opens", "{}", device.error().message);
    world_.count(Count::kSnapshotChecks);
    const auto at = found.snapshots.emplace(each.name, Contents(shape_.sectors)).first;
    co_await read_whole(*device.value(), at->second);
  }
}

coro::Task<void> Life::read_whole(block::Device& device, Contents& contents) {
  constexpr uint64_t kMost = 256;
  std::vector<std::byte> bytes(kMost * kVolumeSector);
  uint64_t count = 0;
  for (uint64_t first = 0; first < contents.sectors() && !dead_; first += count) {
    count = std::min(kMost, contents.sectors() - first);
    for (uint64_t tries = 0;; ++tries) {
      Asked read(loop_, block::Command::kRead, first, count);
      read.data = bytes.data();
      co_await read.run(device, [](int) {});
      if (dead_ || read.error == 0) break;
      if (!may_fail(read.error)) world_.fail("reads work", "sector {}: error {}", first, read.error);
      // Which part of it cannot be read: then block by block.
      if (count > kBlockSectors) {
        count = kBlockSectors;
      } else if (shape_.mode == Mode::kSilent || tries > 2) {
        world_.count(Count::kFaultsNoticed);
        noticed_ = found_unreadable_ = true;
        for (uint64_t i = 0; i < count; ++i) contents.set(first + i, kUnreadable);
        break;
      }
    }
    for (uint64_t i = 0; i < count && !dead_; ++i) {
      if (contents.at(first + i) == kUnreadable) continue;
      const auto sector = std::span<const std::byte>(bytes).subspan(i * kVolumeSector, kVolumeSector);
      const auto stamp = stamp_of(sector, first + i);
      if (!stamp) world_.fail("a read gives what was written", "sector {} has bytes that nobody wrote there", first + i);
      contents.set(first + i, *stamp);
    }
  }
}

coro::Task<void> Life::pause() {
  coro::Event passed;
  world_.after(world_.random.skewed(1, 2'000), [&passed] { passed.set(); });
  co_await passed.wait();
}

coro::Task<void> Life::work(block::Device& head) {
  while (left_ > 0 && !dead_ && !failed_) {
    --left_;
    if (world_.random.percent(30)) co_await pause();
    if (dead_ || failed_) break;
    const uint64_t choice = world_.random.below(100);
    if (choice < 68) co_await ask_change(head);
    else if (choice < 84) co_await ask_read(head);
    else if (choice < 97) co_await ask_flush(head);
    else co_await ask_snapshot();
    if (shape_.mode == Mode::kSilent && world_.random.percent(5)) disk_.state().drop_clean();
  }
}

// Often the same places, so that requests overlap.
void Life::range(uint64_t& first, uint64_t& count) {
  Random& random = world_.random;
  const uint64_t sectors = shape_.sectors;
  if (random.percent(shape_.odd_percent)) {
    count = random.skewed(1, 40);
    first = random.below(sectors - count + 1);
    if (random.percent(50)) first %= 64;
    return;
  }
  const uint64_t blocks = sectors / kBlockSectors;
  uint64_t most = std::min<uint64_t>(blocks, 40);
  if (shape_.long_requests && random.percent(20)) most = blocks;
  const uint64_t length = random.percent(40) ? 1 : most > 40 ? random.between(1, most) : random.skewed(1, most);
  uint64_t block = random.below(blocks - length + 1);
  if (random.percent(50)) block %= 12;
  first = block * kBlockSectors;
  count = length * kBlockSectors;
}

coro::Task<void> Life::ask_change(block::Device& head) {
  Random& random = world_.random;
  uint64_t first = 0, count = 0;
  range(first, count);
  const uint64_t kind = random.below(100);
  const bool zeroes = kind < 20;
  Asked request(loop_, kind < 10 ? block::Command::kTrim : zeroes ? block::Command::kWriteZeroes : block::Command::kWrite,
                first, count);
  // Beside others a durable change is answered later than what follows it in the log, and the model takes the order of the
  // answers for that of the log.
  request.fua = shape_.depth == 1 && random.percent(8);
  request.keep_allocated = zeroes && kind >= 10 && random.percent(50);
  std::vector<std::byte> bytes;
  // Zeroes that are written as data, now and then.
  const Stamp stamp = zeroes || kind < 23 ? 0 : static_cast<Stamp>(world_.next_tick());
  if (!zeroes) {
    bytes.resize(count * kVolumeSector);
    fill_sectors(bytes, first, stamp);
    request.data = bytes.data();
  }
  const uint64_t number = model_.begin_change(first, count, stamp, request.fua);
  world_.count(Count::kVolumeChanges);
  world_.note("change", number, first << 32 | count, stamp);
  const uint64_t number_of_parts = VolumeModel::parts_of(count);
  co_await request.run(head, [this, number, number_of_parts](int error) {
    if (dead_) return;
    world_.note("changed", number, static_cast<uint64_t>(error));
    check_answer("a change", error);
    // What there is of a long one is known after the next opening.
    if (error == ENOSPC && number_of_parts > 1) failed_ = true;
    model_.end_change(number, error);
  });
}

coro::Task<void> Life::ask_read(block::Device& head) {
  uint64_t first = 0, count = 0;
  range(first, count);
  std::vector<std::byte> bytes(count * kVolumeSector);
  Asked request(loop_, block::Command::kRead, first, count);
  request.data = bytes.data();
  const VolumeModel::Reading reading = model_.begin_read(first, count);
  world_.count(Count::kVolumeReads);
  co_await request.run(head, [this, &reading, &bytes](int error) {
    if (dead_) return;
    if (error == 0) model_.end_read(world_, reading, bytes);
    else if (!may_fail(error) || error == ENOSPC) world_.fail("reads work", "error {}", error);
    else noticed_ = true, world_.count(Count::kFaultsNoticed);
  });
}

coro::Task<void> Life::ask_flush(block::Device& head) {
  Asked request(loop_, block::Command::kFlush, 0, 0);
  const uint64_t covered = model_.begin_flush();
  world_.count(Count::kVolumeFlushes);
  co_await request.run(head, [this, covered](int error) {
    if (dead_) return;
    world_.note("flushed", covered, static_cast<uint64_t>(error));
    check_answer("a flush", error);
    if (error == 0) model_.end_flush(covered);
  });
}

coro::Task<void> Life::ask_snapshot() {
  const auto names = model_.snapshot_names();
  if (names.size() >= kMaxSnapshotsMade) co_return;
  const std::string name = fmt::format("s{}", world_.next_tick());
  model_.begin_snapshot(name);
  const Result<uint64_t> made = co_await volume_->snapshot(name);
  if (dead_) co_return;
  const int error = made.ok() ? 0 : made.error().code;
  world_.note("snapshot", made.ok() ? made.value() : 0, static_cast<uint64_t>(error));
  check_answer("a snapshot", error);
  world_.count(Count::kSnapshots);
  model_.end_snapshot(name, error);
}

}  // namespace netblk::sim
