// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/segments.h"

#include <algorithm>

#include "base/check.h"

namespace netblk::store::volume {

// Half of one is left for branches and snapshots.
uint64_t most_segments(uint64_t segment_bytes) {
  constexpr uint64_t kMostBytes = Place::kMaxUnit * kUnitBytes - kSegmentsAt;
  return std::min(segment_bytes / 2 / sizeof(SegmentInfo), kMostBytes / segment_bytes);
}

// (A page for what else there is, and one because a manifest takes whole ones.)
uint64_t most_names_bytes(uint64_t segment_bytes) {
  return segment_bytes / 2 - 2 * kPageBytes - most_moments(segment_bytes) * sizeof(Moment);
}

size_t most_moments(uint64_t segment_bytes) { return std::min<uint64_t>(kMaxMoments, segment_bytes / 16 / sizeof(Moment)); }

Segments::Segments(uint32_t shift, std::vector<SegmentInfo> table) : shift_(shift) {
  slots_.reserve(table.size());
  for (const SegmentInfo& info : table) slots_.push_back({.info = info, .leaving = info.state == SegmentState::kLeaving});
}

void Segments::set_free(Slot& slot) {
  slot.info = {};
  slot.leaving = false;
}

std::optional<uint64_t> Segments::begin_allocation(bool with_space) {
  // What the file has already costs the file system nothing.
  const auto first = [this](bool has_space) {
    return static_cast<uint64_t>(std::find_if(slots_.begin(), slots_.end(), [has_space](const Slot& slot) {
      return slot.info.state == SegmentState::kFree && !slot.asked && slot.has_space == has_space;
    }) - slots_.begin());
  };
  uint64_t segment = first(true);
  if (segment == slots_.size()) {
    if (with_space) return std::nullopt;
    segment = first(false);
  }
  if (segment >= most_segments(bytes())) return std::nullopt;
  if (segment == slots_.size()) slots_.push_back({.info = {}, .has_space = false});
  slots_[segment].asked = true;
  return segment;
}

void Segments::end_allocation(uint64_t segment, bool is_there) {
  if (is_there) {
    slots_[segment].has_space = slots_[segment].kept_space = true;
    ready_.push_back(segment);
    return;
  }
  slots_[segment].asked = slots_[segment].has_space = slots_[segment].kept_space = false;
  // What the file has no room for is no segment.
  if (segment + 1 == slots_.size()) slots_.pop_back();
}

// The lowest first: the file stays short.
uint64_t Segments::take(SegmentState state) {
  NETBLK_CHECK(!ready_.empty(), "no segment is ready");
  const auto lowest = std::min_element(ready_.begin(), ready_.end());
  const uint64_t segment = *lowest;
  ready_.erase(lowest);
  ++taken_;
  slots_[segment] = {.info = {.state = state, .live_bytes = 0, .highest_lsn = 0}, .kept_space = true};
  return segment;
}

void Segments::give_back(uint64_t segment) {
  slots_[segment] = {.info = {}, .asked = true, .kept_space = true};
  ready_.push_back(segment);
}

void Segments::found_in_use(uint64_t segment, SegmentState state) {
  if (segment >= slots_.size()) slots_.resize(segment + 1);
  Slot& slot = slots_[segment];
  if (slot.info.state != SegmentState::kFree && !slot.leaving) return;
  set_free(slot);
  slot.info.state = state;
}

// A place that no segment has was read from a file that somebody made up: reading it is an error of the read.
void Segments::add_live(uint64_t offset, uint64_t bytes) {
  if (!has(offset)) return;
  SegmentInfo& info = slots_[segment_at(offset)].info;
  damaged_ |= info.live_bytes + bytes > this->bytes();
  info.live_bytes = static_cast<uint32_t>(std::min(info.live_bytes + bytes, this->bytes()));
}

void Segments::remove_live(uint64_t offset, uint64_t bytes) {
  if (!has(offset)) return;
  SegmentInfo& info = slots_[segment_at(offset)].info;
  damaged_ |= info.live_bytes < bytes;
  info.live_bytes -= static_cast<uint32_t>(std::min<uint64_t>(info.live_bytes, bytes));
}

void Segments::wrote(uint64_t segment, uint64_t lsn) {
  if (segment >= slots_.size()) return;
  uint64_t& highest = slots_[segment].info.highest_lsn;
  highest = std::max(highest, lsn);
}

Segments::Usage Segments::usage() const {
  Usage usage;
  for (const Slot& slot : slots_) {
    const SegmentState state = slot.info.state;
    const bool is_free = state == SegmentState::kFree;
    usage.file_segments += !is_free || slot.has_space;
    usage.free_with_space += is_free && slot.has_space;
    usage.leaving += slot.leaving;
    if (is_free || slot.leaving) continue;
    usage.garbage_bytes += bytes() - slot.info.live_bytes;
    if (state == SegmentState::kMetadata) {
      ++usage.metadata;
      usage.metadata_live_bytes += slot.info.live_bytes;
    } else {
      usage.data_live_bytes += slot.info.live_bytes;
    }
  }
  return usage;
}

Segments::Run Segments::begin_return(uint64_t keep, uint64_t most) {
  Run run;
  const auto idle = [](const Slot& slot) {
    return slot.info.state == SegmentState::kFree && slot.has_space && !slot.asked;
  };
  for (uint64_t i = 0; i < slots_.size() && run.count < most; ++i) {
    if (!idle(slots_[i])) {
      if (run.count != 0) break;
      continue;
    }
    if (keep > 0) {
      --keep;
      continue;
    }
    if (run.count == 0) run.first = i;
    ++run.count;
    slots_[i].asked = true;
  }
  return run;
}

void Segments::end_return(const Run& run, bool is_gone) {
  for (uint64_t i = run.first; i < run.first + run.count; ++i) {
    slots_[i].asked = false;
    slots_[i].kept_space = false;
    if (is_gone) slots_[i].has_space = false;
  }
}

uint64_t Segments::free_count() const {
  return static_cast<uint64_t>(std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) {
    return slot.info.state == SegmentState::kFree;
  }));
}

std::vector<SegmentInfo> Segments::for_manifest(const Filled& filled) const {
  std::vector<SegmentInfo> table(slots_.size());
  for (uint64_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.info.state == SegmentState::kFree || slot.leaving) continue;
    if (slot.info.live_bytes > 0 || i == filled.log || i == filled.metadata ||
        (i == filled.copies && slot.info.highest_lsn > 0)) {
      table[i] = slot.info;
    } else if (slot.info.state == SegmentState::kMetadata || slot.info.highest_lsn > 0) {
      // One with no record in it has only been taken: it comes after this checkpoint.
      table[i].state = SegmentState::kLeaving;
    }
  }
  return table;
}

void Segments::checkpoint_done(const std::vector<SegmentInfo>& table) {
  for (uint64_t i = 0; i < slots_.size(); ++i) {
    const bool leaves = i < table.size() && table[i].state == SegmentState::kLeaving;
    if (slots_[i].leaving) set_free(slots_[i]);
    slots_[i].leaving = leaves;
  }
}

void Segments::only_checkpoint(const std::vector<SegmentInfo>& table) {
  for (uint64_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].leaving || (i < table.size() && table[i].state == SegmentState::kLeaving)) set_free(slots_[i]);
}

}  // namespace netblk::store::volume
