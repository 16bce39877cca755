// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/whole_life.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "sim/volume/asked.h"

namespace netblk::sim {
namespace {

using block::Command;
using store::volume::PointName;

constexpr size_t kMostSnapshots = 6;
constexpr size_t kMostBranches = 4;
constexpr uint64_t kLeastSectors = 16, kMostSectors = 900;

}  // namespace

WholeLife::WholeLife(World& world, const Shape& shape, LyingDisk& disk, WholeModel& model, const LifePlan& plan, Backup* backup)
    : world_(world), random_(world.random), shape_(shape), disk_(disk), model_(model), plan_(plan), backup_(backup), loop_(world),
      environment_(world), failures_before_(disk.failures()) {}

VolumeModel::Loss WholeLife::run(VolumeModel::Loss before) {
  before_ = before;
  world_.note("whole life", static_cast<uint64_t>(before), plan_.requests, static_cast<uint64_t>(plan_.ending));
  disk_.set_watcher([this](LyingDisk::Step step) { watch(step); });
  loop_.run(live());
  disk_.set_watcher(nullptr);
  if (!dead_) crash();
  return end_life(world_, disk_, plan_.ending, poisoned_, adopted_ ? VolumeModel::Loss::kNothing : before);
}

void WholeLife::crash() {
  world_.note("crash", steps_);
  dead_ = true;
  if (!adopted_ && steps_ > 0) world_.count(Count::kCrashesInRecovery);
  disk_.end_process();
}

void WholeLife::watch(LyingDisk::Step step) {
  if (dead_ || step == LyingDisk::Step::kRead) return;
  ++steps_;
  if (random_.one_in(plan_.capture_one_in))
    moments_.push_back({disk_.crash_state(), model_, adopted_ ? VolumeModel::Loss::kNothing : before_});
  if (plan_.ending != Ending::kClean && steps_ == plan_.crash_at_step) crash();
}

bool WholeLife::may_fail(int error) const {
  if (dead_) return true;
  if (error == ENOSPC && shape_.mode == Mode::kFull) return true;
  return (error == EIO || error == ENOSPC) && disk_has_failed();
}

// --- A life ---------------------------------------------------------------------------------------------------------

coro::Task<void> WholeLife::live() {
  store::volume::VolumeOptions options = shape_.open;
  options.cache_survived = before_ == VolumeModel::Loss::kNothing;
  options.on_poison = [this] { poisoned_ = poisoned_ || !dead_; };
  auto opened = co_await store::volume::open_volume(loop_, disk_.open(), options, environment_);
  if (!opened.ok()) {
    if (!dead_ && !disk_has_failed()) world_.fail("a volume opens after a crash", "{}", opened.error().message);
    co_return;
  }
  volume_ = std::move(opened).value();
  co_await use();
  if (plan_.check && !dead_) co_await check_all();
  const Status closed = co_await volume_->close();
  if (!closed.ok() && !dead_ && !disk_has_failed() && shape_.mode != Mode::kFull)
    world_.fail("a volume closes", "{}", closed.error().message);
  volume_.reset();
}

coro::Task<void> WholeLife::use() {
  WholeFound found;
  co_await find(found);
  if (dead_ || failed_) co_return;
  const auto info = volume_->info();
  if (info.read_only || !info.damage.empty()) {
    if (!disk_has_failed() && shape_.mode != Mode::kFull) world_.fail("a sound disk has no damage", "{}", info.damage);
    if (shape_.mode == Mode::kFailures) co_return;
    // It is what it may be, and nothing is settled.
    WholeModel as_found = model_;
    (void)as_found.adopt(world_, found, before_, info.last_lsn);
    co_return;
  }
  const uint64_t gone = model_.adopt(world_, found, before_, info.last_lsn);
  adopted_ = true;
  if (gone > 0 && info.generation <= model_.generation())
    world_.fail("changes that are gone move the generation", "{} are gone, and it was {} and is {}", gone, model_.generation(), info.generation);
  if (info.generation < model_.generation())
    world_.fail("the generation never goes back", "it was {} and is {}", model_.generation(), info.generation);
  model_.set_generation(info.generation);
  if (gone > 0) world_.count(Count::kShorterPrefixes);
  world_.note("adopted", gone, model_.answered(), info.last_lsn);
  for (uint64_t left = plan_.requests; left > 0 && !dead_ && !failed_; --left) co_await ask_something();
  if (dead_) co_return;
  if (plan_.ending != Ending::kClean) {
    crash();
    co_return;
  }
  if (failed_) co_return;
  found = {};
  co_await find(found);
  if (!dead_ && !failed_) model_.expect(world_, found);
}

coro::Task<void> WholeLife::find(WholeFound& found) {
  const auto branches = volume_->branches();
  for (const auto& branch : branches) {
    const auto device = open(branch.name);
    const auto at = found.branches.emplace(branch.name, Contents(device->geometry().size_bytes / kVolumeSector)).first;
    co_await read_whole(*device, at->second);
    if (dead_ || failed_) co_return;
  }
  for (const auto& snapshot : volume_->snapshots()) {
    auto device = volume_->open_device(snapshot.name);
    if (!device.ok()) world_.fail("a snapshot opens", "{}", device.error().message);
    world_.count(Count::kSnapshotChecks);
    const auto at = found.snapshots.emplace(snapshot.name, Contents(snapshot.size_bytes / kVolumeSector)).first;
    co_await read_whole(*device.value(), at->second);
    if (dead_ || failed_) co_return;
  }
}

coro::Task<void> WholeLife::read_whole(block::Device& device, Contents& contents) {
  const int error = co_await read_contents(loop_, world_, device, contents);
  if (dead_ || error == 0) co_return;
  if (!may_fail(error)) world_.fail("reads work", "error {}", error);
  failed_ = true;
}

coro::Task<void> WholeLife::check_all() {
  const auto report = co_await volume_->check();
  if (dead_ || disk_has_failed()) co_return;
  if (!report.ok()) world_.fail("a volume can be checked", "{}", report.error().message);
  if (!report.value().damage.empty()) world_.fail("a sound disk has no damage", "{}", report.value().damage.front());
}

// --- What it does ---------------------------------------------------------------------------------------------------

coro::Task<void> WholeLife::ask_something() {
  struct Choice {
    uint64_t weight;
    coro::Task<void> (WholeLife::*ask)();
  };
  static constexpr Choice kChoices[] = {
      {46, &WholeLife::ask_change}, {10, &WholeLife::ask_read},  {9, &WholeLife::ask_flush},  {7, &WholeLife::ask_snapshot},
      {5, &WholeLife::ask_clone},   {6, &WholeLife::ask_remove}, {5, &WholeLife::ask_rewind}, {2, &WholeLife::ask_undo},
      {4, &WholeLife::ask_resize},  {5, &WholeLife::ask_moment}, {1, &WholeLife::ask_set},
      {4, &WholeLife::ask_send},
  };
  uint64_t total = 0;
  for (const Choice& each : kChoices) total += each.weight;
  uint64_t chosen = random_.below(total);
  for (const Choice& each : kChoices) {
    if (chosen < each.weight) {
      co_await (this->*each.ask)();
      co_return;
    }
    chosen -= each.weight;
  }
}

std::unique_ptr<block::Device> WholeLife::open(const std::string& branch) {
  auto device = branch.empty() ? volume_->open_device() : volume_->open_device(branch);
  if (!device.ok()) world_.fail("a branch opens", "'{}': {}", branch, device.error().message);
  return std::move(device).value();
}

const std::string& WholeLife::any_branch() {
  const auto& branches = model_.now().branches;
  if (random_.percent(50)) return branches.begin()->first;
  return std::next(branches.begin(), static_cast<ptrdiff_t>(random_.below(branches.size())))->first;
}

void WholeLife::answered(const char* what, int error, uint64_t lsn) {
  if (dead_) return;
  world_.note("answered", static_cast<uint64_t>(error), lsn);
  if (error == 0) {
    if (model_.outcome().rewinding) model_.outcome().name_rewind(lsn);
    for (auto& [name, branch] : model_.outcome().branches)
      if (branch.born == kUnknownLsn) branch.born = lsn;
    return model_.end(true, volume_->info().last_lsn, true);
  }
  if (!may_fail(error)) world_.fail("a request fails only where the disk does", "{} ended with error {}", what, error);
  if (error == ENOSPC) {
    world_.count(Count::kRefusedFull);
    return model_.end(false, 0, false);
  }
  failed_ = true;
}

void WholeLife::refused(const char* what, int error, bool rightly) {
  if (dead_) return;
  if (rightly) return model_.end(false, 0, false);
  answered(what, error, 0);
}

// The history has become shorter than this.
bool WholeLife::gone_by(int error, uint64_t lsn) const {
  return error == ENOENT && (dead_ || lsn < volume_->info().history_from_lsn);
}

coro::Task<void> WholeLife::ask_change() {
  const std::string name = any_branch();
  WholeState after = model_.now();
  WholeState::Branch& branch = after.branches.at(name);
  const uint64_t sectors = branch.image->sectors();
  uint64_t count = 0, first = 0;
  if (random_.percent(shape_.odd_percent) || sectors < 16) {
    count = random_.skewed(1, std::min<uint64_t>(40, sectors));
    first = random_.below(sectors - count + 1);
  } else {
    count = 8 * random_.skewed(1, std::min<uint64_t>(40, sectors / 8));
    first = random_.below((sectors - count) / 8 + 1) * 8;
  }
  if (random_.percent(50)) first %= std::min<uint64_t>(96, sectors - count + 1);
  const uint64_t kind = random_.below(100);
  const bool zeroes = kind < 20;
  Asked request(loop_, kind < 10 ? Command::kTrim : zeroes ? Command::kWriteZeroes : Command::kWrite, first, count);
  request.fua = random_.percent(8);
  request.keep_allocated = zeroes && kind >= 10 && random_.percent(50);
  const Stamp stamp = zeroes || kind < 23 ? 0 : static_cast<Stamp>(world_.next_tick());
  std::vector<std::byte> bytes;
  if (!zeroes) {
    bytes.resize(count * kVolumeSector);
    fill_sectors(bytes, first, stamp);
    request.data = bytes.data();
  }
  branch.image = changed(branch.image, first, count, stamp);
  const uint64_t born = branch.born;  // (it goes with what it is of)
  model_.begin({std::move(after)});
  world_.count(Count::kVolumeChanges);
  world_.note("change", born, first << 32 | count, stamp);
  const auto device = open(name);
  co_await request.run(*device, [](int) {});
  if (dead_) co_return;
  world_.note("changed", static_cast<uint64_t>(request.error));
  if (request.error == 0) model_.end(true, volume_->info().last_lsn, request.fua);
  else answered("a change", request.error, 0);
}

coro::Task<bool> WholeLife::read_some(block::Device& device, uint64_t first, uint64_t count, const Contents& expected) {
  std::vector<std::byte> bytes(count * kVolumeSector);
  Asked request(loop_, Command::kRead, first, count);
  request.data = bytes.data();
  co_await request.run(device, [](int) {});
  if (dead_) co_return false;
  if (request.error != 0) {
    if (!may_fail(request.error) || request.error == ENOSPC) world_.fail("reads work", "error {}", request.error);
    co_return false;
  }
  for (uint64_t i = 0; i < count; ++i) {
    const auto stamp = stamp_of(std::span<const std::byte>(bytes).subspan(i * kVolumeSector, kVolumeSector), first + i);
    if (!stamp || *stamp != expected.at(first + i))
      world_.fail("a read gives what was written", "sector {} is of change {} and should be of {}", first + i, stamp ? *stamp : kUnreadable,
                  expected.at(first + i));
  }
  co_return true;
}

coro::Task<void> WholeLife::ask_read() {
  const WholeState& now = model_.now();
  Image image;
  std::unique_ptr<block::Device> device;
  if (!now.snapshots.empty() && random_.percent(40)) {
    const auto snapshot = std::next(now.snapshots.begin(), static_cast<ptrdiff_t>(random_.below(now.snapshots.size())));
    auto opened = volume_->open_device(snapshot->first);
    if (!opened.ok()) world_.fail("a snapshot opens", "{}", opened.error().message);
    device = std::move(opened).value();
    image = snapshot->second.image;
  } else {
    const std::string& name = any_branch();
    device = open(name);
    image = now.branches.at(name).image;
  }
  if (device->geometry().size_bytes != image->sectors() * kVolumeSector)
    world_.fail("a disk has its size", "{} bytes instead of {} sectors", device->geometry().size_bytes, image->sectors());
  const uint64_t first = random_.below(image->sectors());
  world_.count(Count::kVolumeReads);
  (void)co_await read_some(*device, first, std::min<uint64_t>(random_.between(1, 200), image->sectors() - first), *image);
}

coro::Task<void> WholeLife::ask_flush() {
  const auto device = open(any_branch());
  Asked request(loop_, Command::kFlush, 0, 0);
  world_.count(Count::kVolumeFlushes);
  co_await request.run(*device, [](int) {});
  if (dead_) co_return;
  world_.note("flushed", static_cast<uint64_t>(request.error));
  if (request.error == 0) {
    model_.flushed();
  } else {
    if (!may_fail(request.error)) world_.fail("a request fails only where the disk does", "a flush ended with error {}", request.error);
    failed_ = true;
  }
}

// A smaller one is two records: what is behind it goes first.
coro::Task<void> WholeLife::ask_resize() {
  const std::string name = any_branch();
  WholeState after = model_.now();
  WholeState::Branch& branch = after.branches.at(name);
  const uint64_t had = branch.image->sectors();
  uint64_t sectors = random_.between(kLeastSectors, kMostSectors);
  if (random_.percent(60)) sectors = sectors / 8 * 8;
  std::vector<WholeState> outcomes;
  if (sectors < had) {
    branch.image = changed(branch.image, sectors, had - sectors, 0);
    outcomes.push_back(after);
  }
  branch.image = resized(branch.image, sectors);
  outcomes.push_back(std::move(after));
  model_.begin(std::move(outcomes));
  world_.count(Count::kVolumeResizes);
  world_.note("resize", had, sectors);
  const Status done = co_await volume_->resize(sectors * kVolumeSector, name);
  if (dead_) co_return;
  // The first half may have happened.
  if (!done.ok() && may_fail(done.error().code)) failed_ = true;
  else answered("a resize", done.ok() ? 0 : done.error().code, 0);
}

coro::Task<void> WholeLife::ask_snapshot() {
  if (model_.now().snapshots.size() >= kMostSnapshots) co_return;
  const std::string name = fmt::format("s{}", world_.next_tick());
  const std::string of = any_branch();
  WholeState after = model_.now();
  after.snapshots[name] = {after.branches.at(of).image, of};
  model_.begin({std::move(after)});
  world_.count(Count::kSnapshots);
  world_.note("snapshot", world_.next_tick());
  const Result<uint64_t> made = co_await volume_->snapshot(name, of);
  answered("a snapshot", made.ok() ? 0 : made.error().code, made.ok() ? made.value() : 0);
}

// From a head, a snapshot, or a moment.
coro::Task<void> WholeLife::ask_clone() {
  const WholeState& now = model_.now();
  if (now.branches.size() >= kMostBranches) co_return;
  PointName from;
  std::string of;
  Image image;
  uint64_t lsn = kUnknownLsn;
  const uint64_t kind = random_.below(3);
  const auto moment = kind == 0 ? model_.any_moment(random_, volume_->info().history_from_lsn) : std::nullopt;
  if (moment) {
    from = PointName(PointName::Kind::kLsn, moment->lsn);
    of = moment->branch;
    image = moment->image;
    lsn = moment->lsn;
  } else if (kind == 1 && !now.snapshots.empty()) {
    const auto snapshot = std::next(now.snapshots.begin(), static_cast<ptrdiff_t>(random_.below(now.snapshots.size())));
    from = snapshot->first;
    of = snapshot->second.of;
    image = snapshot->second.image;
  } else {
    of = any_branch();
    image = now.branches.at(of).image;
  }
  const std::string name = fmt::format("c{}", world_.next_tick());
  WholeState after = now;
  after.branches[name] = {.image = image, .parent = of, .born = kUnknownLsn, .rewinds = {}, .began = image};
  model_.begin({std::move(after)});
  world_.count(Count::kClones);
  world_.note("clone", kind, lsn);
  const Result<uint64_t> made = co_await volume_->clone(from, name, of);
  const int error = made.ok() ? 0 : made.error().code;
  if (lsn != kUnknownLsn && gone_by(error, lsn)) refused("a clone", error, true);
  else answered("a clone", error, made.ok() ? made.value() : 0);
}

coro::Task<void> WholeLife::ask_remove() {
  const WholeState& now = model_.now();
  const uint64_t clones = now.branches.size() - 1;
  if (clones + now.snapshots.size() == 0) co_return;
  const uint64_t chosen = random_.below(clones + now.snapshots.size());
  WholeState after = now;
  std::string name;
  bool needed = false;
  if (chosen < clones) {
    name = std::next(now.branches.begin(), static_cast<ptrdiff_t>(chosen + 1))->first;
    for (const auto& [other, branch] : now.branches) needed |= !other.empty() && branch.parent == name;
    for (const auto& [other, snapshot] : now.snapshots) needed |= snapshot.of == name;
    after.branches.erase(name);
  } else {
    name = std::next(now.snapshots.begin(), static_cast<ptrdiff_t>(chosen - clones))->first;
    after.snapshots.erase(name);
  }
  model_.begin({std::move(after)});
  world_.count(Count::kDeletions);
  world_.note("remove", chosen, clones, needed);
  const Status done = co_await volume_->remove(name);
  const int error = done.ok() ? 0 : done.error().code;
  if (error == 0 && needed && !dead_) world_.fail("what others need stays", "'{}' could be removed", name);
  if (error == EBUSY) refused("a removal", error, needed);
  else answered("a removal", error, 0);
}

void WholeLife::rewound(const std::string& branch, const Image& image, uint64_t lsn) {
  WholeState after = model_.now();
  after.snapshots[std::string(kBeforeRewind) + "?"] = {after.branches.at(branch).image, branch};
  after.branches.at(branch).image = image;
  after.rewinding = branch;
  model_.begin({std::move(after)});
  world_.count(Count::kRewinds);
  world_.note("rewind", lsn);
}

// To a snapshot, which is a rollback, or to a moment.
coro::Task<void> WholeLife::ask_rewind() {
  const WholeState& now = model_.now();
  PointName to;
  std::string of;
  uint64_t lsn = kUnknownLsn;
  const uint64_t kind = random_.below(100);
  const auto branches = volume_->branches();
  const auto& clone = branches[random_.below(branches.size())];
  const auto moment = kind < 50 ? model_.any_moment(random_, volume_->info().history_from_lsn) : std::nullopt;
  if (kind >= 85 && !clone.name.empty()) {
    // Where a clone began: perhaps nothing else knows of that point any more.
    const WholeState::Branch& began = now.branches.at(clone.name);
    to = PointName(PointName::Kind::kLsn, clone.parent.lsn);
    of = began.parent;
    const Image image = began.began;
    rewound(of, image, clone.parent.lsn);
  } else if (moment) {
    to = PointName(PointName::Kind::kLsn, moment->lsn);
    of = moment->branch;
    lsn = moment->lsn;
    rewound(of, moment->image, lsn);
  } else {
    if (now.snapshots.empty()) co_return;
    const auto snapshot = std::next(now.snapshots.begin(), static_cast<ptrdiff_t>(random_.below(now.snapshots.size())));
    to = snapshot->first;
    of = snapshot->second.of;
    const Image image = snapshot->second.image;
    rewound(of, image, 0);
  }
  const uint64_t generation = volume_->info().generation;
  const Result<uint64_t> done = co_await volume_->rewind(to, of);
  const int error = done.ok() ? 0 : done.error().code;
  if (lsn != kUnknownLsn && gone_by(error, lsn)) {
    refused("a rewind", error, true);
    co_return;
  }
  answered("a rewind", error, done.ok() ? done.value() : 0);
  if (error != 0 || dead_) co_return;
  if (volume_->info().generation <= generation)
    world_.fail("a rewind moves the generation", "it was {} and is {}", generation, volume_->info().generation);
  model_.set_generation(volume_->info().generation);
}

coro::Task<void> WholeLife::ask_undo() {
  const std::string of = any_branch();
  const Image image = model_.before_last_rewind(of);
  if (image == nullptr) co_return;
  const uint64_t lsn = model_.now().branches.at(of).rewinds.back() - 1;
  rewound(of, image, lsn);
  const Result<uint64_t> done = co_await volume_->undo_rewind(of);
  const int error = done.ok() ? 0 : done.error().code;
  // The snapshot of before was deleted, and the history does not reach so far.
  if (gone_by(error, lsn)) {
    refused("an undone rewind", error, true);
    co_return;
  }
  answered("an undone rewind", error, done.ok() ? done.value() : 0);
  if (error == 0 && !dead_) model_.set_generation(volume_->info().generation);
}

// It stays as it is, whatever comes while it is read.
coro::Task<void> WholeLife::ask_moment() {
  const auto moment = model_.any_moment(random_, volume_->info().history_from_lsn);
  if (!moment || !moment->branch.empty()) co_return;
  auto opened = volume_->open_device(PointName(PointName::Kind::kLsn, moment->lsn));
  if (!opened.ok()) {
    if (!gone_by(opened.error().code, moment->lsn)) world_.fail("a moment of the history opens", "{}", opened.error().message);
    co_return;
  }
  const std::unique_ptr<block::Device> device = std::move(opened).value();
  if (device->geometry().size_bytes != moment->image->sectors() * kVolumeSector)
    world_.fail("a moment has its size", "lsn {}: {} bytes instead of {} sectors", moment->lsn, device->geometry().size_bytes,
                moment->image->sectors());
  world_.count(Count::kMoments);
  world_.note("moment", moment->lsn);
  for (int i = 0; i < 2 && !dead_ && !failed_; ++i) {
    const bool right = co_await read_some(*device, 0, moment->image->sectors(), *moment->image);
    if (!right) co_return;
    if (i == 0) co_await ask_change();
  }
}

coro::Task<void> WholeLife::ask_set() {
  static constexpr std::pair<const char*, const char*> kSettings[] = {
      {"history", "none"}, {"history", "24h"}, {"history", "64K"}, {"history", "1M"}, {"history", "10s"},
      {"compress", "none"}, {"compress", "lz4"}, {"compress", "zstd"}, {"space-factor", "1.1"}, {"space-factor", "2"},
  };
  const auto& [key, value] = kSettings[random_.below(std::size(kSettings))];
  const auto known = volume_->settings();
  if (std::none_of(known.begin(), known.end(), [&](const auto& each) { return each.key == key; })) co_return;
  model_.begin({model_.now()});
  world_.note("set", static_cast<uint64_t>(value[0]));
  const Status done = co_await volume_->set(key, value);
  answered("a setting", done.ok() ? 0 : done.error().code, 0);
}

// What the backup has not finished, what has changed since what it has, or all of a snapshot.
coro::Task<void> WholeLife::ask_send() {
  if (backup_ == nullptr || backup_->has_stream()) co_return;
  const Id uuid = volume_->info().uuid;
  const auto snapshots = volume_->snapshots();
  const auto find = [&](const store::volume::SnapshotIdentity& identity) {
    return std::find_if(snapshots.begin(), snapshots.end(), [&](const auto& each) { return identity_of(each, uuid) == identity; });
  };
  auto to = snapshots.end(), from = snapshots.end();
  store::volume::StreamHeader header;
  const auto unfinished = backup_->unfinished();
  if (unfinished) {
    to = find(unfinished->what.to);
    from = find(unfinished->what.from);
    if (to == snapshots.end() || (from == snapshots.end() && !unfinished->what.is_whole())) {
      backup_->give_up();
      co_return;
    }
    header.what = unfinished->what;
    const auto offset = store::volume::parse_resume_token(resume_token(unfinished->what, unfinished->offset), header.what);
    if (!offset.ok()) world_.fail("a token leads on", "{}", offset.error().message);
    header.start_offset = random_.percent(80) ? offset.value() : 0;
  } else {
    if (snapshots.empty()) co_return;
    to = std::next(snapshots.begin(), static_cast<ptrdiff_t>(random_.below(snapshots.size())));
    // Names that a receiver makes for itself are its own.
    if (to->name.starts_with(kBeforeRewind) || backup_->has(identity_of(*to, uuid))) co_return;
    if (const auto base = backup_->base()) from = find(*base);
    // Sometimes one that the receiver does not have, or has left behind.
    if (random_.percent(15)) {
      from = std::next(snapshots.begin(), static_cast<ptrdiff_t>(random_.below(snapshots.size())));
      if (from == to) from = snapshots.end();
    }
    header.what.to = identity_of(*to, uuid);
    header.what.to_name = to->name;
    header.what.size_bytes = to->size_bytes;
    if (from != snapshots.end()) {
      header.what.from = identity_of(*from, uuid);
      header.what.from_name = from->name;
      header.what.from_size_bytes = from->size_bytes;
    }
  }
  auto device = volume_->open_device(to->name);
  if (!device.ok()) world_.fail("a snapshot opens", "{}", device.error().message);
  const auto since = from == snapshots.end() ? nullptr : device.value()->base(from->name);
  std::vector<std::byte> stream;
  world_.count(Count::kSends);
  const int error = co_await send_stream(loop_, random_, *device.value(), since.get(), header, stream);
  if (dead_) co_return;
  if (error != 0) {
    if (!may_fail(error)) world_.fail("reads work", "error {}", error);
    co_return;
  }
  backup_->take(std::move(stream), header.what, model_.now().snapshots.at(to->name).image);
}

}  // namespace netblk::sim
