// SPDX-License-Identifier: GPL-2.0-only
#include "sim/disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace netblk::sim {

using block::Command;
using block::Completion;
using block::Request;

// --- The store on its host ------------------------------------------------------------------------------------------

Disk::Disk(World& world, const DiskPlan& plan, const PlantedBugs& bugs)
    : world_(world), plan_(plan), bugs_(bugs), cache_(plan.size_bytes), durable_(plan.size_bytes),
      version_(plan.size_bytes / kBlock), durable_version_(plan.size_bytes / kBlock), uuid_(random_id()) {}

std::unique_ptr<SimDevice> Disk::open(uint64_t process) {
  poisoned_ = false;
  bool keep = clean_;
  if (!keep && record_here_ && healthy_) {
    // The page cache is sound if what it holds can be made durable now.
    if (world_.random.one_in(plan_.sync_error_one_in)) {
      world_.count(Count::kSyncFailures);
    } else {
      sync_all();
      keep = true;
    }
  }
  if (!keep) {
    if (!healthy_ || record_here_) {
      // A sync has failed: what the kernel marked clean may be dropped from its cache.
      for (uint64_t i = 0; i < version_.size(); ++i) {
        if (version_[i] == durable_version_[i]) continue;
        if (world_.random.percent(50)) {
          make_durable(i);
        } else {
          world_.count(Count::kBlocksLost);
          std::memcpy(cache_.data() + i * kBlock, durable_.data() + i * kBlock, kBlock);
          version_[i] = durable_version_[i];
        }
      }
      if (watcher_ != nullptr) watcher_->lost_cache();
    }
    if (!bugs_.keeps_generation) ++counter_;
  }
  if (bugs_.forgets_owner) owners_.clear();
  healthy_ = true;
  record_here_ = true;
  world_.note("store opened", process, counter_, keep);
  return std::make_unique<SimDevice>(*this, process);
}

void Disk::make_durable(uint64_t block) {
  if (durable_version_[block] == version_[block]) return;
  std::memcpy(durable_.data() + block * kBlock, cache_.data() + block * kBlock, kBlock);
  durable_version_[block] = version_[block];
}

void Disk::sync_all() {
  for (uint64_t i = 0; i < version_.size(); ++i) make_durable(i);
}

void Disk::write_back() {
  if (poisoned_) return;
  for (uint64_t i = 0; i < version_.size(); ++i)
    if (version_[i] != durable_version_[i] && world_.random.percent(30)) make_durable(i);
}

void Disk::reboot() {
  uint64_t lost = 0;
  const uint64_t share_kept = world_.random.below(101);
  for (uint64_t i = 0; i < version_.size(); ++i) {
    if (version_[i] == durable_version_[i]) continue;
    if (world_.random.percent(share_kept) && !poisoned_) {
      make_durable(i);
      continue;
    }
    ++lost;
    std::memcpy(cache_.data() + i * kBlock, durable_.data() + i * kBlock, kBlock);
    version_[i] = durable_version_[i];
  }
  world_.count(Count::kBlocksLost, lost);
  record_here_ = false;
  healthy_ = true;
  world_.note("reboot", lost, counter_, clean_);
  if (watcher_ != nullptr) watcher_->lost_cache();
}

void Disk::replace() {
  if (!bugs_.keeps_uuid) {
    uuid_ = random_id();
    counter_ = 1;
  }
  owners_.clear();
  std::fill(cache_.begin(), cache_.end(), std::byte{0});
  std::fill(durable_.begin(), durable_.end(), std::byte{0});
  std::fill(version_.begin(), version_.end(), 0);
  std::fill(durable_version_.begin(), durable_version_.end(), 0);
  clean_ = true;
  record_here_ = false;
  healthy_ = true;
  ++replaced_;
  world_.count(Count::kStoreReplaced);
}

void Disk::grow(uint64_t more_bytes) {
  plan_.size_bytes += more_bytes;
  cache_.resize(plan_.size_bytes);
  durable_.resize(plan_.size_bytes);
  version_.resize(plan_.size_bytes / kBlock);
  durable_version_.resize(plan_.size_bytes / kBlock);
  world_.count(Count::kResizes);
}

// --- The store as one process has it open ---------------------------------------------------------------------------

SimDevice::SimDevice(Disk& disk, uint64_t process)
    : Device({.size_bytes = disk.size_bytes(), .can_trim = true, .writes_inline = disk.plan().inline_io}), disk_(disk),
      world_(disk.world_), process_(process), self_(std::make_shared<SimDevice*>(this)) {}

SimDevice::~SimDevice() {
  NETBLK_CHECK(active_.empty(), "a device is destroyed with requests in it");
  *self_ = nullptr;
}

void SimDevice::refresh_size() {
  if (alive_) set_size_bytes(disk_.size_bytes());
}

block::Generation SimDevice::generation() const { return disk_.generation(); }

std::vector<std::byte> SimDevice::owners() const { return disk_.owners_; }

coro::Task<Status> SimDevice::keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) {
  const std::shared_ptr<SimDevice*> self = self_;
  World& world = world_;
  const uint64_t at_ms = (world.now_us() + delay(disk_.plan_.sync_low_us, disk_.plan_.sync_high_us)) / 1000;
  co_await io::SleepUntil(io::loop_of(loop), at_ms);
  if (*self == nullptr || !alive_) co_return Status(make_error(EIO, "the process is dead"));
  if (world.random.one_in(disk_.plan_.owner_error_one_in)) {
    world.count(Count::kOwnerFailures);
    co_return Status(make_error(EIO, "the simulated record cannot be written"));
  }
  world.note("owners", record.size(), process_);
  disk_.owners_ = std::move(record);
  co_return Ok{};
}

uint64_t SimDevice::ledger() const { return process_; }

uint64_t SimDevice::delay(uint64_t low_us, uint64_t high_us) {
  if (world_.random.one_in(disk_.plan_.stuck_one_in)) return world_.random.between(0, disk_.plan_.stuck_us);
  return world_.random.skewed(low_us, high_us);
}

SimDevice::Active* SimDevice::find(uint64_t number) {
  for (const auto& active : active_)
    if (active->number == number) return active.get();
  return nullptr;
}

void SimDevice::start(Request& request, Completion completion) {
  if (!alive_) return std::move(completion).finish(EIO);
  DiskPlan& plan = disk_.plan_;
  const bool syncs = request.command == Command::kFlush || (request.modifies() && request.fua);
  if (plan.inline_io && !syncs) {
    int error = 0;
    if (request.modifies() && request.is_abandoned()) {
      world_.count(Count::kAbandonedDropped);
      error = ECANCELED;
    } else {
      error = do_apply(request, request.length);
    }
    return std::move(completion).finish(error);
  }
  auto active = std::make_unique<Active>();
  active->request = &request;
  active->completion = std::move(completion);
  const uint64_t number = active->number = next_number_++;
  if (request.command == Command::kFlush) take_snapshot(*active);
  active_.push_back(std::move(active));
  // Its data may be gone when submit() returns; only the sync comes later.
  if (plan.inline_io && request.modifies()) return apply(number);
  const uint64_t delay_us = request.command == Command::kFlush ? delay(plan.sync_low_us, plan.sync_high_us)
                                                               : delay(plan.io_low_us, plan.io_high_us);
  world_.after(delay_us, [self = self_, number] {
    if (*self != nullptr) (*self)->apply(number);
  });
}

void SimDevice::take_snapshot(Active& active) {
  for (uint32_t i = 0; i < disk_.version_.size(); ++i) {
    if (disk_.version_[i] == disk_.durable_version_[i]) continue;
    const auto block = disk_.block(i);
    active.flushed.push_back({i, disk_.version_[i], {block.begin(), block.end()}});
  }
}

void SimDevice::apply(uint64_t number) {
  Active* const active = find(number);
  if (active == nullptr) return;
  Request& request = *active->request;
  if (request.command == Command::kFlush) return sync(number);
  if (disk_.plan_.heeds_abandoned && request.modifies() && request.is_abandoned()) {
    world_.count(Count::kAbandonedDropped);
    active->error = ECANCELED;
    return end(number);
  }
  active->applied = true;
  active->error = do_apply(request, request.length);
  const bool syncs = request.modifies() && request.fua && active->error == 0;
  if (syncs) take_snapshot(*active);
  DiskPlan& plan = disk_.plan_;
  const uint64_t delay_us = syncs ? delay(plan.sync_low_us, plan.sync_high_us) : world_.random.between(1, 100);
  world_.after(delay_us, [self = self_, number, syncs] {
    if (*self == nullptr) return;
    if (syncs) {
      (*self)->sync(number);
    } else {
      (*self)->end(number);
    }
  });
}

int SimDevice::do_apply(const Request& request, uint64_t length) {
  if (request.offset + request.length > disk_.size_bytes()) return EIO;
  std::byte* const at = disk_.cache_.data() + request.offset;
  if (world_.random.one_in(disk_.plan_.error_one_in)) {
    world_.count(Count::kStoreErrors);
    return EIO;
  }
  if (request.command == Command::kRead) {
    std::memcpy(request.data, at, length);
    return 0;
  }
  if (disk_.poisoned_) return EIO;
  disk_.clean_ = false;
  if (disk_.watcher_ != nullptr)
    disk_.watcher_->applied(request.command, request.offset, request.length,
                            request.command == Command::kWrite ? std::span<const std::byte>(request.data, request.length)
                                                               : std::span<const std::byte>(),
                            ledger());
  world_.note("applied", request.offset, length, static_cast<uint64_t>(request.command));
  if (disk_.bugs_.forgets_writes && world_.random.one_in(50)) return 0;
  if (request.command == Command::kWrite) {
    std::memcpy(at, request.data, length);
  } else {
    std::memset(at, 0, length);
  }
  for (uint64_t block = request.offset / kBlock; block < (request.offset + length + kBlock - 1) / kBlock; ++block)
    disk_.version_[block] = disk_.next_version_++;
  if (disk_.bugs_.applies_twice && request.command == Command::kWrite && world_.random.one_in(20)) {
    std::vector<std::byte> copy(request.data, request.data + length);
    world_.after(world_.random.between(1'000, 2'000'000),
                 [this, self = self_, offset = request.offset, copy = std::move(copy)]() mutable {
                   if (*self == nullptr || !alive_) return;
                   Request again([](Request&) {});
                   again.command = Command::kWrite;
                   again.offset = offset;
                   again.length = copy.size();
                   again.data = copy.data();
                   (void)do_apply(again, again.length);
                 });
  }
  return 0;
}

void SimDevice::sync(uint64_t number) {
  Active* const active = find(number);
  if (active == nullptr) return;
  if (!disk_.poisoned_ && world_.random.one_in(disk_.plan_.sync_error_one_in)) {
    // Before the error is told: no later sync may say that this data is safe (DESIGN law 2).
    disk_.poisoned_ = true;
    disk_.healthy_ = false;
    ++disk_.counter_;
    world_.count(Count::kSyncFailures);
    world_.note("sync failed", process_, disk_.counter_);
    if (disk_.watcher_ != nullptr) disk_.watcher_->lost_cache();
  }
  if (disk_.poisoned_) {
    active->error = EIO;
    return end(number);
  }
  if (!disk_.bugs_.flush_early) {
    for (const Snapshot& snapshot : active->flushed) {
      if (disk_.durable_version_[snapshot.block] >= snapshot.version) continue;
      std::memcpy(disk_.durable_.data() + snapshot.block * kBlock, snapshot.bytes.data(), kBlock);
      disk_.durable_version_[snapshot.block] = snapshot.version;
    }
  }
  world_.note("synced", active->flushed.size());
  end(number);
}

void SimDevice::end(uint64_t number) {
  const auto found = std::find_if(active_.begin(), active_.end(), [number](const auto& a) { return a->number == number; });
  if (found == active_.end()) return;
  const std::unique_ptr<Active> active = std::move(*found);
  active_.erase(found);
  // An event runs inside the loop's poll, where nothing may be resumed: the end is posted to the request's own loop.
  active->request->held.completion = std::move(active->completion);
  active->request->error = active->error;
  active->request->held.hop.send(*active->request, [](Request& request) {
    Completion completion = std::move(request.held.completion);
    std::move(completion).finish(request.error);
  });
}

void SimDevice::end_process() {
  if (!alive_) return;
  std::vector<uint64_t> numbers;
  for (const auto& active : active_) numbers.push_back(active->number);
  for (const uint64_t number : numbers) {
    Active& active = *find(number);
    const Request& request = *active.request;
    const bool pending = request.modifies() && !active.applied && !request.is_abandoned();
    if (pending && world_.random.percent(60)) {
      const uint64_t blocks = request.length / kBlock;
      const uint64_t kept = world_.random.percent(50) ? blocks : world_.random.between(0, blocks);
      if (kept != blocks) world_.count(Count::kTornWrites);
      if (kept > 0) (void)do_apply(request, kept * kBlock);
    }
    active.error = EIO;
  }
  alive_ = false;
  for (const uint64_t number : numbers) end(number);
}

void SimDevice::close() {
  NETBLK_CHECK(active_.empty(), "a store is closed with requests in it");
  if (!alive_ || disk_.poisoned_) return;
  alive_ = false;
  disk_.sync_all();
  disk_.clean_ = true;
  world_.note("closed clean", process_);
}

}  // namespace netblk::sim
