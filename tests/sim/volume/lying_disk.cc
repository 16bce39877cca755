// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/lying_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace netblk::sim {
namespace {

uint64_t total_of(const std::vector<std::span<const std::byte>>& spans) {
  uint64_t total = 0;
  for (const auto& each : spans) total += each.size();
  return total;
}

std::vector<std::byte> gathered(const std::vector<std::span<const std::byte>>& spans, uint64_t most) {
  std::vector<std::byte> bytes;
  bytes.reserve(most);
  for (const auto& each : spans) {
    const auto part = each.first(std::min<uint64_t>(each.size(), most - bytes.size()));
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

}  // namespace

void Platter::read(uint64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const uint64_t page = offset / kPageBytes;
    const uint64_t within = offset % kPageBytes;
    const size_t part = std::min<uint64_t>(kPageBytes - within, into.size());
    if (page < pages_.size() && pages_[page]) std::memcpy(into.data(), pages_[page]->data() + within, part);
    else std::memset(into.data(), 0, part);
    into = into.subspan(part);
    offset += part;
  }
}

Platter::Page& Platter::own(uint64_t page) {
  if (page >= pages_.size()) pages_.resize(page + 1);
  std::shared_ptr<Page>& place = pages_[page];
  if (!place) {
    place = std::make_shared<Page>();
    ++allocated_;
  } else if (place.use_count() > 1) {
    place = std::make_shared<Page>(*place);
  }
  return *place;
}

void Platter::write(uint64_t offset, std::span<const std::byte> from) {
  while (!from.empty()) {
    const uint64_t within = offset % kPageBytes;
    const size_t part = std::min<uint64_t>(kPageBytes - within, from.size());
    std::memcpy(own(offset / kPageBytes).data() + within, from.data(), part);
    from = from.subspan(part);
    offset += part;
  }
}

void Platter::allocate(uint64_t offset, uint64_t length) {
  for (uint64_t page = offset / kPageBytes; page * kPageBytes < offset + length; ++page)
    if (page >= pages_.size() || !pages_[page]) (void)own(page);
}

void Platter::punch(uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  while (offset < end) {
    const uint64_t page = offset / kPageBytes;
    const uint64_t within = offset % kPageBytes;
    const uint64_t part = std::min(kPageBytes - within, end - offset);
    if (page < pages_.size() && pages_[page]) {
      if (part == kPageBytes) {
        pages_[page].reset();
        --allocated_;
      } else {
        std::memset(own(page).data() + within, 0, part);
      }
    }
    offset += part;
  }
}

uint64_t Platter::missing_bytes(uint64_t offset, uint64_t length) const {
  uint64_t missing = 0;
  for (uint64_t page = offset / kPageBytes; page * kPageBytes < offset + length; ++page)
    if (page >= pages_.size() || !pages_[page]) missing += kPageBytes;
  return missing;
}

void DiskState::write(uint64_t offset, std::span<const std::byte> from, const Fate& fate) {
  if (from.empty()) return;
  cache_.write(offset, from);
  for (uint64_t sector = offset / kDiskSector; sector * kDiskSector < offset + from.size(); ++sector) {
    auto bytes = std::make_shared<std::array<std::byte, kDiskSector>>();
    cache_.read(sector * kDiskSector, *bytes);
    unsynced_[sector].push_back({++order_, fate, std::move(bytes)});
  }
}

void DiskState::punch(uint64_t offset, uint64_t length) {
  const std::vector<std::byte> zeroes(length);
  write(offset, zeroes, {});
  cache_.punch(offset, length);
}

void DiskState::settle(uint64_t sector, const Version& version) {
  if (version.fate.lost) return;
  const int64_t at = static_cast<int64_t>(sector) + version.fate.astray_sectors;
  if (at >= 0) durable_.write(static_cast<uint64_t>(at) * kDiskSector, *version.bytes);
}

void DiskState::sync(uint64_t up_to) {
  for (auto at = unsynced_.begin(); at != unsynced_.end();) {
    std::vector<Version>& versions = at->second;
    const auto later = std::find_if(versions.begin(), versions.end(), [&](const Version& v) { return v.order > up_to; });
    if (later != versions.begin()) settle(at->first, *std::prev(later));
    versions.erase(versions.begin(), later);
    at = versions.empty() ? unsynced_.erase(at) : std::next(at);
  }
}

void DiskState::fail_sync(uint64_t up_to, Random& random) {
  for (auto at = unsynced_.begin(); at != unsynced_.end();) {
    std::vector<Version>& versions = at->second;
    const auto later = std::find_if(versions.begin(), versions.end(), [&](const Version& v) { return v.order > up_to; });
    if (later != versions.begin() && random.percent(50)) settle(at->first, *std::prev(later));
    versions.erase(versions.begin(), later);
    at = versions.empty() ? unsynced_.erase(at) : std::next(at);
  }
}

void DiskState::cut_power(Survival survival, Random& random) {
  uint64_t oldest = order_;
  for (const auto& [sector, versions] : unsynced_) oldest = std::min(oldest, versions.front().order);
  const uint64_t cut = order_ == 0 ? 0 : random.between(oldest == 0 ? 0 : oldest - 1, order_);
  const uint64_t spared = unsynced_.empty() ? 0 : random.below(unsynced_.size());
  uint64_t count = 0;
  uint64_t page = UINT64_MAX;
  bool page_stays = false;
  for (const auto& [sector, versions] : unsynced_) {
    const Version* stays = &versions.back();
    switch (survival) {
      case Survival::kNone: stays = nullptr; break;
      case Survival::kAll: break;
      case Survival::kEach: {
        const uint64_t choice = random.below(versions.size() + 1);
        stays = choice == 0 ? nullptr : &versions[choice - 1];
        break;
      }
      case Survival::kPages:
        if (page != sector / 8) page_stays = random.percent(50);
        page = sector / 8;
        if (!page_stays) stays = nullptr;
        break;
      case Survival::kPrefix:
        stays = nullptr;
        for (const Version& each : versions)
          if (each.order <= cut) stays = &each;
        break;
      case Survival::kSuffix:
        if (stays->order <= cut) stays = nullptr;
        break;
      case Survival::kAllButOne:
      case Survival::kLast:
        if (count == spared) stays = nullptr;
        break;
    }
    ++count;
    if (stays != nullptr) settle(sector, *stays);
  }
  unsynced_.clear();
  cache_ = durable_;
}

void DiskState::drop_clean() {
  cache_ = durable_;
  for (const auto& [sector, versions] : unsynced_) cache_.write(sector * kDiskSector, *versions.back().bytes);
}

bool DiskState::flip_bit(uint64_t offset, uint64_t length, Random& random) {
  const uint64_t end = std::min(offset + length, durable_.end_bytes());
  if (offset >= end) return false;
  const uint64_t at = offset + random.below(end - offset);
  if (durable_.missing_bytes(at, 1) != 0) return false;
  std::byte one;
  durable_.read(at, {&one, 1});
  one ^= std::byte{1} << static_cast<int>(random.below(8));
  durable_.write(at, {&one, 1});
  return true;
}

// One process's descriptor of the disk.
class LyingFile final : public io::File {
 public:
  explicit LyingFile(LyingDisk& disk) : disk_(disk), process_(disk.process_) {}

  bool read(io::Loop&, io::Op& op, std::span<std::byte> into, uint64_t offset) override {
    return start(op, kReading, 0, [this, into, offset](bool in_part) { return do_read({into}, offset, in_part); });
  }

  bool write(io::Loop&, io::Op& op, std::span<const std::byte> from, uint64_t offset) override {
    return start_write(op, {from}, offset);
  }

  bool read_vector(io::Loop&, io::Op& op, std::span<const iovec> into, uint64_t offset) override {
    std::vector<std::span<std::byte>> parts;
    for (const iovec& each : into) parts.emplace_back(static_cast<std::byte*>(each.iov_base), each.iov_len);
    return start(op, kReading, 0, [this, parts, offset](bool in_part) { return do_read(parts, offset, in_part); });
  }

  bool write_vector(io::Loop&, io::Op& op, std::span<const iovec> from, uint64_t offset) override {
    std::vector<std::span<const std::byte>> parts;
    for (const iovec& each : from) parts.emplace_back(static_cast<const std::byte*>(each.iov_base), each.iov_len);
    return start_write(op, std::move(parts), offset);
  }

  bool allocate(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    return start(op, kAllocating, 0, [this, offset, length](bool) { return do_allocate(offset, length); });
  }

  bool datasync(io::Loop&, io::Op& op) override {
    const uint64_t up_to = disk_.state_.written();
    return start(op, kSyncing, up_to, [this, up_to](bool) { return do_sync(up_to); });
  }

  bool punch_hole(io::Loop&, io::Op& op, uint64_t offset, uint64_t length) override {
    return start(op, kPunching, 0, [this, offset, length](bool) {
      disk_.state_.punch(offset, length);
      disk_.step(LyingDisk::Step::kWrite);
      return 0;
    });
  }

 private:
  bool alive() const { return process_ == disk_.process_; }

  // `effect` gives the operation's result, and may be asked to do only a part. An injected error takes its place. about: the
  // write's number, or what the sync covers.
  template <class Effect>
  bool start(io::Op& op, unsigned kind, uint64_t about, Effect effect) {
    if (!alive()) return op.finish_now(-EIO);
    World& world = disk_.world_;
    ++disk_.operations_;
    DiskFaults& faults = disk_.faults_;
    bool fails = false;
    if (faults.fail_nth != 0 && (faults.fail_kinds & kind) != 0) {
      fails = faults.fail_nth == 1;
      if (!fails || !faults.fail_on) --faults.fail_nth;
    }
    const int error = fails ? faults.fail_error : 0;
    const bool in_part = fails && error == 0;
    disk_.failures_ += fails;
    const auto run = [this, kind, about, error, in_part, effect]() -> int32_t {
      return error == 0 ? effect(in_part) : fail(kind, about, error);
    };
    const DiskPace& pace = disk_.pace_;
    if (pace.inline_io && world.random.percent(90)) return op.finish_now(run());
    op.begin();
    const uint64_t delay_us = kind == kSyncing ? world.random.skewed(pace.sync_low_us, pace.sync_high_us)
                                                  : world.random.skewed(pace.io_low_us, pace.io_high_us);
    world.after(delay_us, [this, &op, run] { op.complete(alive() ? run() : -EIO); });
    return false;
  }

  int32_t fail(unsigned kind, uint64_t about, int error) {
    World& world = disk_.world_;
    world.count(Count::kDiskErrors);
    if (kind == kSyncing) disk_.state_.fail_sync(about, world.random);
    if (kind == kWriting) {
      disk_.write_in_part(disk_.state_, disk_.writing_.at(about));
      disk_.writing_.erase(about);
    }
    return -error;
  }

  bool start_write(io::Op& op, std::vector<std::span<const std::byte>> from, uint64_t offset) {
    if (!alive()) return op.finish_now(-EIO);
    const uint64_t id = disk_.next_writing_++;
    disk_.writing_.emplace(id, LyingDisk::Writing{offset, std::move(from)});
    return start(op, kWriting, id, [this, id](bool in_part) { return do_write(id, in_part); });
  }

  bool has_room(uint64_t offset, uint64_t length) const {
    const uint64_t capacity = disk_.faults_.capacity_bytes;
    const Platter& cache = disk_.state_.cache();
    if (capacity == 0 || cache.allocated_bytes() + cache.missing_bytes(offset, length) <= capacity) return true;
    disk_.world_.count(Count::kDiskFull);
    ++disk_.failures_;
    return false;
  }

  int32_t do_allocate(uint64_t offset, uint64_t length) {
    if (!has_room(offset, length)) return -ENOSPC;
    disk_.state_.allocate(offset, length);
    return 0;
  }

  int32_t do_read(const std::vector<std::span<std::byte>>& into, uint64_t offset, bool in_part) {
    Random& random = disk_.world_.random;
    const DiskFaults& faults = disk_.faults_;
    if (random.one_in(faults.read_error)) {
      disk_.world_.count(Count::kReadErrors);
      return -EIO;
    }
    uint64_t total = 0;
    for (const auto& each : into) total += each.size();
    const Platter& cache = disk_.state_.cache();
    uint64_t left = offset >= cache.end_bytes() ? 0 : std::min(total, cache.end_bytes() - offset);
    if (left > 1 && (in_part || random.one_in(faults.short_io))) left = random.between(1, left);
    uint64_t done = 0;
    for (const auto& each : into) {
      const auto part = each.first(std::min<uint64_t>(each.size(), left - done));
      cache.read(offset + done, part);
      done += part.size();
    }
    disk_.step(LyingDisk::Step::kRead);
    return static_cast<int32_t>(done);
  }

  int32_t do_write(uint64_t id, bool in_part) {
    const LyingDisk::Writing writing = std::move(disk_.writing_.at(id));
    disk_.writing_.erase(id);
    World& world = disk_.world_;
    Random& random = world.random;
    DiskFaults& faults = disk_.faults_;
    uint64_t length = total_of(writing.from);
    if (length > 1 && (in_part || random.one_in(faults.short_io))) length = random.between(1, length - in_part);
    const Platter& cache = disk_.state_.cache();
    if (!has_room(writing.offset, length)) {
      // Some file systems write what still fits.
      const uint64_t fits = kDiskSector - writing.offset % kDiskSector;
      if (length <= fits || cache.missing_bytes(writing.offset, fits) != 0) return -ENOSPC;
      length = fits;
    }
    DiskState::Fate fate;
    const bool lies = faults.lie != Lie::kLyingSync && faults.lie_nth != 0 && --faults.lie_nth == 0;
    disk_.lies_ += lies;
    if (random.one_in(faults.lost_write) || (lies && faults.lie == Lie::kLostWrite)) {
      fate.lost = true;
      world.count(Count::kLostWrites);
    } else if (random.one_in(faults.stray_write) || lies) {
      const uint64_t target = random.below(cache.end_bytes() / kDiskSector + 1);
      fate.astray_sectors = static_cast<int64_t>(target) - static_cast<int64_t>(writing.offset / kDiskSector);
      world.count(Count::kStrayWrites);
    }
    if (fate.lost || fate.astray_sectors != 0) world.note("the disk lies", writing.offset, length, static_cast<uint64_t>(fate.astray_sectors));
    const std::vector<std::byte> bytes = gathered(writing.from, length);
    disk_.state_.write(writing.offset, bytes, fate);
    disk_.step(LyingDisk::Step::kWrite);
    return static_cast<int32_t>(length);
  }

  int32_t do_sync(uint64_t up_to) {
    World& world = disk_.world_;
    DiskFaults& faults = disk_.faults_;
    const bool lies = faults.lie == Lie::kLyingSync && faults.lie_nth != 0 && --faults.lie_nth == 0;
    disk_.lies_ += lies;
    if (lies || world.random.one_in(faults.lying_sync)) {
      world.count(Count::kLyingSyncs);
      world.note("a sync lies");
      return 0;
    }
    disk_.state_.sync(up_to);
    disk_.step(LyingDisk::Step::kSync);
    return 0;
  }

  LyingDisk& disk_;
  const uint64_t process_;
};

std::unique_ptr<io::File> LyingDisk::open() { return std::make_unique<LyingFile>(*this); }

void LyingDisk::write_in_part(DiskState& state, const Writing& writing) {
  const uint64_t total = total_of(writing.from);
  const uint64_t choice = world_.random.below(3);
  const uint64_t length = choice == 0 ? 0 : choice == 1 ? total : world_.random.below(total + 1);
  const std::vector<std::byte> bytes = gathered(writing.from, length);
  state.write(writing.offset, bytes, {});
}

DiskState LyingDisk::crash_state() {
  DiskState state = state_;
  for (const auto& [id, writing] : writing_) write_in_part(state, writing);
  return state;
}

void LyingDisk::end_process() {
  for (const auto& [id, writing] : writing_) write_in_part(state_, writing);
  writing_.clear();
  ++process_;
}

void LyingDisk::cut_power(Survival survival) {
  end_process();
  state_.cut_power(survival, world_.random);
}

}  // namespace netblk::sim
