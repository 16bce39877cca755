// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/extent.h"

#include <algorithm>

namespace netblk::store::volume {
namespace {

// takes_first(a, b): whether a hides b where they overlap.
template <class TakesFirst>
Found overlaid(const Found& a, const Found& b, TakesFirst takes_first) {
  Found result;
  result.until = std::min(a.until, b.until);
  result.entries.reserve(a.entries.size() + b.entries.size());
  const auto put = [&](const Entry& entry, uint64_t from, uint64_t until) {
    until = std::min(until, result.until);
    if (from >= until) return;
    // Parts that were cut only to be compared become one again.
    if (!result.entries.empty()) {
      Entry& last = result.entries.back();
      if (last.lsn == entry.lsn && last.branch == entry.branch && end_of(last) == from &&
          Place::moved(last.place, last.blocks) == Place::moved(entry.place, from - entry.block) &&
          uint64_t{last.blocks} + (until - from) <= entry.blocks) {
        last.blocks += static_cast<uint32_t>(until - from);
        return;
      }
    }
    result.entries.push_back(part_of(entry, from, until));
  };
  auto x = a.entries.begin();
  auto y = b.entries.begin();
  uint64_t at = 0;  // everything below is done
  while (x != a.entries.end() || y != b.entries.end()) {
    const uint64_t x_from = x == a.entries.end() ? kForever : std::max(at, x->block);
    const uint64_t y_from = y == b.entries.end() ? kForever : std::max(at, y->block);
    if (x_from < y_from) {
      at = std::min(end_of(*x), y_from);
      put(*x, x_from, at);
    } else if (y_from < x_from) {
      at = std::min(end_of(*y), x_from);
      put(*y, y_from, at);
    } else {
      at = std::min(end_of(*x), end_of(*y));
      put(takes_first(*x, *y) ? *x : *y, x_from, at);
    }
    if (x != a.entries.end() && end_of(*x) <= at) ++x;
    if (y != b.entries.end() && end_of(*y) <= at) ++y;
  }
  return result;
}

}  // namespace

Found newest_of(const Found& newer, const Found& older) {
  return overlaid(newer, older, [](const Entry& a, const Entry& b) { return a.lsn >= b.lsn; });
}

Found first_of(const Found& first, const Found& second) {
  return overlaid(first, second, [](const Entry&, const Entry&) { return true; });
}

Range uncovered(const Found& found, uint64_t block, uint64_t until, uint64_t lsn) {
  Range gap{kForever, 0};
  const auto add = [&](uint64_t from, uint64_t to) {
    if (from >= to) return;
    gap.from = std::min(gap.from, from);
    gap.until = std::max(gap.until, to);
  };
  uint64_t at = block;
  for (const Entry& entry : found.entries) {
    if (entry.lsn <= lsn) continue;
    add(at, std::min(entry.block, until));
    at = end_of(entry);
  }
  add(at, until);
  return gap;
}

}  // namespace netblk::store::volume
