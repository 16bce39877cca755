// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace netblk::sim {
namespace {

uint64_t mixed(uint64_t word) {
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
  word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
  return word ^ (word >> 31);
}

constexpr size_t kWords = kVolumeSector / sizeof(uint64_t);

// Three of four can be compressed.
void sector_words(std::array<uint64_t, kWords>& words, uint64_t number, Stamp stamp) {
  words[0] = uint64_t{stamp} << 32 | (number & UINT32_MAX);
  const size_t period = stamp % 4 == 0 ? kWords : 8;
  for (size_t i = 1; i < kWords; ++i) words[i] = mixed(words[0] + (i % period + 1) * 0x9e3779b97f4a7c15);
}

}  // namespace

void fill_sectors(std::span<std::byte> bytes, uint64_t first_sector, Stamp stamp) {
  std::array<uint64_t, kWords> words;
  for (uint64_t sector = 0; sector * kVolumeSector < bytes.size(); ++sector) {
    if (stamp == 0) words.fill(0);
    else sector_words(words, first_sector + sector, stamp);
    std::memcpy(bytes.data() + sector * kVolumeSector, words.data(), kVolumeSector);
  }
}

std::optional<Stamp> stamp_of(std::span<const std::byte> sector, uint64_t number) {
  std::array<uint64_t, kWords> words, expected;
  std::memcpy(words.data(), sector.data(), kVolumeSector);
  const Stamp stamp = static_cast<Stamp>(words[0] >> 32);
  if (words[0] == 0) expected.fill(0);
  else sector_words(expected, number, stamp);
  if (words != expected || stamp == kUnreadable) return std::nullopt;
  return stamp;
}

void Contents::set(uint64_t sector, Stamp stamp) {
  const auto weight = [sector](Stamp of) { return of == 0 ? 0 : mixed(sector << 32 ^ of ^ 0x9e3779b97f4a7c15); };
  Stamp& place = stamps_[sector];
  hash_ ^= weight(place) ^ weight(stamp);
  if (place == kUnreadable) --unreadable_;
  if (stamp == kUnreadable) ++unreadable_;
  place = stamp;
}

bool Contents::matches(const Contents& expected) const {
  if (unreadable_ == 0) return hash_ == expected.hash_;
  for (uint64_t i = 0; i < stamps_.size(); ++i)
    if (stamps_[i] != kUnreadable && stamps_[i] != expected.stamps_[i]) return false;
  return true;
}

uint64_t VolumeModel::begin_change(uint64_t first, uint64_t count, Stamp stamp, bool durable) {
  open_.push_back({next_, first, count, stamp, durable});
  return next_++;
}

void VolumeModel::end_change(uint64_t number, int error) {
  const auto at = std::find_if(open_.begin(), open_.end(), [&](const Change& c) { return c.number == number; });
  if (error != 0 && error != ENOSPC) return;
  const Change change = *at;
  // Of a long one the first parts may be there.
  if (error == ENOSPC && parts_of(change) > 1) return;
  open_.erase(at);
  if (error == ENOSPC) return;
  for (uint64_t part = 0; part < parts_of(change); ++part) append(part_of(change, part));
  if (change.durable) end_flush(history_.size());
}

VolumeModel::Change VolumeModel::part_of(const Change& change, uint64_t part) {
  Change one = change;
  one.first += part * kWhole;
  one.count = std::min(kWhole, change.count - part * kWhole);
  return one;
}

void VolumeModel::apply(Contents& contents, const Change& change) {
  for (uint64_t i = 0; i < change.count; ++i) contents.set(change.first + i, change.stamp);
}

void VolumeModel::append(const Change& change) {
  apply(head_, change);
  history_.push_back(change);
  hashes_.push_back(head_.hash());
}

void VolumeModel::end_flush(uint64_t covered) {
  if (covered > flushed_) flushed_before_ = std::exchange(flushed_, covered);
  // What a restart brought to light is before everything that was flushed since.
  for (auto& [name, snapshot] : snapshots_)
    if (snapshot.contents) snapshot.answered = true;
}

VolumeModel::Reading VolumeModel::begin_read(uint64_t first, uint64_t count) const {
  Reading reading{first, history_.size(), {}};
  for (uint64_t i = 0; i < count; ++i) reading.before.push_back(head_.at(first + i));
  return reading;
}

void VolumeModel::end_read(World& world, const Reading& reading, std::span<const std::byte> bytes) const {
  for (uint64_t i = 0; i < reading.before.size(); ++i) {
    const uint64_t sector = reading.first + i;
    const auto stamp = stamp_of(bytes.subspan(i * kVolumeSector, kVolumeSector), sector);
    if (!stamp) world.fail("a read gives what was written", "sector {} has bytes that nobody wrote there", sector);
    if (*stamp == reading.before[i]) continue;
    const auto wrote = [&](const Change& change) {
      return change.stamp == *stamp && sector >= change.first && sector < change.first + change.count;
    };
    const auto since = history_.begin() + static_cast<ptrdiff_t>(reading.position);
    if (std::any_of(since, history_.end(), wrote) || std::any_of(open_.begin(), open_.end(), wrote)) continue;
    world.fail("a read gives the newest", "sector {} is of change {}, and was of {} when the read began", sector, *stamp,
               reading.before[i]);
  }
}

void VolumeModel::begin_snapshot(const std::string& name) {
  snapshots_.insert_or_assign(name, Snapshot{.low = history_.size(), .contents = std::nullopt});
}

void VolumeModel::end_snapshot(const std::string& name, int error) {
  if (error == ENOSPC) snapshots_.erase(name);
  if (error != 0) return;
  Snapshot& snapshot = snapshots_.at(name);
  snapshot.answered = true;
  snapshot.below = next_;
  end_flush(snapshot.low);
}

Contents VolumeModel::replayed(uint64_t length) const {
  Contents contents(head_.sectors());
  for (uint64_t i = 0; i < length; ++i) apply(contents, history_[i]);
  return contents;
}

bool VolumeModel::snapshots_fit(const Found& found, std::span<const uint64_t> hashes, std::span<const Change> order) const {
  for (const auto& [name, contents] : found.snapshots) {
    const auto known = snapshots_.find(name);
    if (known == snapshots_.end()) return false;
    const Snapshot& snapshot = known->second;
    if (snapshot.contents) {
      if (!contents.matches(*snapshot.contents)) return false;
      continue;
    }
    if (contents.unreadable() != 0) continue;
    bool fits = false;
    for (uint64_t at = snapshot.low; at < hashes.size() && !fits; ++at) {
      if (at > snapshot.low) {
        const Change& last = at <= history_.size() ? history_[at - 1] : order[at - 1 - history_.size()];
        if (last.number >= snapshot.below) break;
      }
      fits = hashes[at] == contents.hash();
    }
    if (!fits) return false;
  }
  return true;
}

bool VolumeModel::explore(const Found& found, Branch& branch) const {
  if (found.head.matches(branch.contents) && snapshots_fit(found, branch.hashes, branch.order)) return true;
  for (size_t i = 0; i < open_.size(); ++i) {
    if (branch.parts[i] == parts_of(open_[i])) continue;
    const Change change = part_of(open_[i], branch.parts[i]);
    const Contents before = branch.contents;
    apply(branch.contents, change);
    branch.hashes.push_back(branch.contents.hash());
    branch.order.push_back(change);
    ++branch.parts[i];
    if (explore(found, branch)) return true;
    --branch.parts[i];
    branch.order.pop_back();
    branch.hashes.pop_back();
    branch.contents = before;
  }
  return false;
}

void VolumeModel::take_snapshots(World& world, const Found& found, Loss loss) {
  for (auto at = snapshots_.begin(); at != snapshots_.end();) {
    const auto seen = found.snapshots.find(at->first);
    if (seen == found.snapshots.end()) {
      if (at->second.answered && loss != Loss::kAnything)
        world.fail("a snapshot is durable when it is answered", "'{}' is gone", at->first);
      at = snapshots_.erase(at);
      continue;
    }
    // A process that ended left it in the page cache, perhaps no further.
    if (loss == Loss::kUnflushed) at->second.answered = true;
    if (!at->second.contents && seen->second.unreadable() == 0) at->second.contents = seen->second;
    ++at;
  }
}

uint64_t VolumeModel::adopt(World& world, const Found& found, Loss loss) {
  for (const auto& [name, contents] : found.snapshots)
    if (!snapshots_.contains(name)) world.fail("snapshots are those that were made", "nobody made '{}'", name);
  const uint64_t answered = history_.size();
  const uint64_t lowest = loss == Loss::kNothing ? answered : loss == Loss::kUnflushed ? flushed_ : 0;
  Branch branch{head_, hashes_, {}, std::vector<uint64_t>(open_.size(), 0)};
  uint64_t length = answered;
  if (explore(found, branch)) {
    for (const Change& change : branch.order) append(change);
  } else {
    bool fits = false;
    for (length = answered; !fits && length > lowest;) {
      --length;
      const std::span<const uint64_t> hashes(hashes_.data(), length + 1);
      fits = (found.head.unreadable() != 0 ? found.head.matches(replayed(length)) : found.head.hash() == hashes.back()) &&
             snapshots_fit(found, hashes, {});
    }
    if (!fits)
      world.fail(loss == Loss::kNothing ? "a process that ends loses nothing answered"
                 : loss == Loss::kUnflushed ? "a power cut leaves a prefix with all that was flushed"
                                            : "a fault never makes a read wrong",
                 "{}", nearest(found, lowest));
    head_ = replayed(length);
    history_.resize(length);
    hashes_.resize(length + 1);
  }
  open_.clear();
  take_snapshots(world, found, loss);
  // What came through a power cut is on the disk.
  flushed_ = loss == Loss::kUnflushed ? history_.size() : std::min<uint64_t>(flushed_, history_.size());
  return answered - length;
}

void VolumeModel::expect(World& world, const Found& found) {
  if (!found.head.matches(head_) || !snapshots_fit(found, hashes_, {}))
    world.fail("a read gives what was written", "{}", nearest(found, history_.size()));
  take_snapshots(world, found, Loss::kNothing);
}

std::string VolumeModel::nearest(const Found& found, uint64_t lowest) const {
  const auto differing = [&](const Contents& one, uint64_t& first) {
    uint64_t count = 0;
    for (uint64_t i = one.sectors(); i-- > 0;) {
      if (found.head.at(i) == kUnreadable || found.head.at(i) == one.at(i)) continue;
      ++count;
      first = i;
    }
    return count;
  };
  uint64_t best = UINT64_MAX, best_length = 0, best_sector = 0;
  Contents contents = replayed(lowest);
  Stamp expected = 0;
  for (uint64_t length = lowest;; ++length) {
    uint64_t sector = 0;
    const uint64_t count = differing(contents, sector);
    if (count <= best) {
      best = count;
      best_length = length;
      best_sector = sector;
      expected = contents.at(sector);
    }
    if (length >= history_.size()) break;
    apply(contents, history_[length]);
  }
  if (best == 0)
    return fmt::format("the head is as after {} changes of {} (flushed: {}), but the snapshots do not fit", best_length,
                       history_.size(), flushed_);
  return fmt::format(
      "nearest is the state after {} changes of {} (flushed: {}, open: {}): {} sectors differ, first sector {}, which is of change {} and "
      "should be of {}",
      best_length, history_.size(), flushed_, open_.size(), best, best_sector, found.head.at(best_sector), expected);
}

std::vector<std::string> VolumeModel::snapshot_names() const {
  std::vector<std::string> names;
  for (const auto& [name, snapshot] : snapshots_) names.push_back(name);
  return names;
}

}  // namespace netblk::sim
