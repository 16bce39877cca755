// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace netblk::store::volume {

const Version* version_for(const Table::Stack& stack, std::span<const Interval> intervals) {
  size_t at = 0;
  for (auto interval = intervals.rbegin(); interval != intervals.rend(); ++interval) {
    while (at < stack.size() && stack[at].lsn > interval->until) ++at;
    if (at == stack.size()) return nullptr;
    if (stack[at].lsn > interval->above) return &stack[at];
  }
  return nullptr;
}

// [start, end) becomes [start, at) and [at, end); returns the second.
Table::Stacks::iterator Table::split(Stacks::iterator stack, uint64_t at) {
  const auto [branch, block] = stack->first;
  const auto before = static_cast<uint32_t>(at - block);
  Stack& left = stack->second;
  Stack right;
  right.blocks = left.blocks - before;
  left.blocks = before;
  right.newest = {left.newest.lsn, Place::moved(left.newest.place, before)};
  if (left.older != nullptr) {
    right.older = std::make_unique<std::vector<Version>>(*left.older);
    for (Version& version : *right.older) version.place = Place::moved(version.place, before);
    older_ += right.older->size();
  }
  return stacks_.emplace_hint(std::next(stack), Position{branch, at}, std::move(right));
}

void Table::add_version(Stacks::iterator where, Version version, const Retention& retention, std::vector<Entry>& gone) {
  const auto [branch, block] = where->first;
  Stack& stack = where->second;
  // With a history: a block that is written again and again is not looked through each time.
  if (version.lsn > stack.newest.lsn && retention.keeps_all_since(stack.newest.lsn) && retention.has_branch(branch)) {
    if (stack.older == nullptr) stack.older = std::make_unique<std::vector<Version>>();
    stack.older->insert(stack.older->begin(), std::exchange(stack.newest, version));
    ++older_;
    return;
  }
  const auto leave = [&, b = branch, first = block](const Version& old) {
    gone.push_back({.branch = b, .blocks = stack.blocks, .block = first, .lsn = old.lsn, .place = old.place});
  };
  versions_.clear();
  for (size_t i = 0; i < stack.size(); ++i) versions_.push_back(stack[i]);
  const auto at = std::lower_bound(versions_.begin(), versions_.end(), version.lsn,
                                   [](const Version& a, uint64_t lsn) { return a.lsn > lsn; });
  if (at != versions_.end() && at->lsn == version.lsn) {  // a copy: the same bytes in another place
    if (at->place != version.place) leave(*at);
    *at = version;
  } else {
    versions_.insert(at, version);
  }
  lsns_.clear();
  for (const Version& each : versions_) lsns_.push_back(each.lsn);
  live_.resize(versions_.size());
  retention.mark(branch, lsns_, live_);
  live_[0] = 1;  // an extent has a version; the merge drops one that nobody reads
  size_t kept = 0;
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (live_[i] != 0) {
      versions_[kept++] = versions_[i];
    } else {
      leave(versions_[i]);
    }
  }
  older_ -= stack.size() - 1;
  stack.newest = versions_[0];
  stack.older.reset();
  if (kept > 1) {
    const auto first = versions_.begin() + 1;
    stack.older = std::make_unique<std::vector<Version>>(first, versions_.begin() + static_cast<ptrdiff_t>(kept));
  }
  older_ += kept - 1;
}

void Table::add(const Entry& entry, const Retention& retention, std::vector<Entry>& gone) {
  NETBLK_CHECK(entry.blocks != 0 && entry.lsn != 0 && entry.block + entry.blocks > entry.block, "an entry has blocks and an LSN");
  highest_lsn_ = std::max(highest_lsn_, entry.lsn);
  const uint64_t end = end_of(entry);
  auto at = stacks_.lower_bound({entry.branch, entry.block});
  if (at != stacks_.begin()) {
    const auto before = std::prev(at);
    if (before->first.branch == entry.branch && before->first.block + before->second.blocks > entry.block) {
      at = split(before, entry.block);
    }
  }
  for (uint64_t block = entry.block; block < end;) {
    const bool here = at != stacks_.end() && at->first.branch == entry.branch;
    if (here && at->first.block == block) {
      if (block + at->second.blocks > end) split(at, end);
      block += at->second.blocks;
      add_version(at, {entry.lsn, Place::moved(entry.place, at->first.block - entry.block)}, retention, gone);
      ++at;
    } else {
      const uint64_t until = here ? std::min(end, at->first.block) : end;
      const Entry part = part_of(entry, block, until);
      at = stacks_.emplace_hint(at, position_of(part), Stack{part.blocks, {part.lsn, part.place}, nullptr});
      ++at;
      block = until;
    }
  }
}

Found Table::find(const Layer& layer, uint64_t block, uint64_t until, size_t limit) const {
  Found found;
  found.until = until;
  auto at = stacks_.lower_bound({layer.branch, block});
  if (at != stacks_.begin()) {
    const auto before = std::prev(at);
    if (before->first.branch == layer.branch && before->first.block + before->second.blocks > block) at = before;
  }
  for (; at != stacks_.end() && at->first.branch == layer.branch && at->first.block < until; ++at) {
    const Version* const version = version_for(at->second, layer.intervals);
    if (version == nullptr) continue;
    if (found.entries.size() == limit) {
      found.until = std::max(block, at->first.block);
      break;
    }
    const Entry entry{.branch = layer.branch, .blocks = at->second.blocks, .block = at->first.block, .lsn = version->lsn,
                      .place = version->place};
    found.entries.push_back(part_of(entry, std::max(block, entry.block), std::min(until, end_of(entry))));
  }
  return found;
}

bool Table::find_block(const Layer& layer, uint64_t block, Entry& found) const {
  auto behind = stacks_.upper_bound({layer.branch, block});
  if (behind == stacks_.begin()) return false;
  const auto& [position, stack] = *--behind;
  if (position.branch != layer.branch || position.block + stack.blocks <= block) return false;
  const Version* const version = version_for(stack, layer.intervals);
  if (version == nullptr) return false;
  found = {.branch = layer.branch, .blocks = 1, .block = block, .lsn = version->lsn,
           .place = Place::moved(version->place, block - position.block)};
  return true;
}

}  // namespace netblk::store::volume
