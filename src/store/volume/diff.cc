// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/diff.h"

#include <algorithm>
#include <utility>

namespace netblk::store::volume {
namespace {

void add(std::vector<DiffPiece>& pieces, const DiffPiece& piece) {
  const auto kind = [](const DiffPiece& of) { return of.changed ? of.place & (Place::kHole | Place::kZero) : 0; };
  if (!pieces.empty() && pieces.back().changed == piece.changed && kind(pieces.back()) == kind(piece)) {
    pieces.back().blocks += piece.blocks;
  } else {
    pieces.push_back(piece);
  }
}

// What `later` counts beyond `earlier`: none, if it does not count all of that.
std::optional<std::vector<Interval>> beyond(const std::vector<Interval>& earlier, const std::vector<Interval>& later) {
  if (earlier.empty()) return later;
  if (later.size() < earlier.size()) return std::nullopt;
  const size_t last = earlier.size() - 1;
  if (!std::equal(earlier.begin(), earlier.begin() + static_cast<ptrdiff_t>(last), later.begin())) return std::nullopt;
  if (later[last].above != earlier[last].above || later[last].until < earlier[last].until) return std::nullopt;
  std::vector<Interval> more;
  if (later[last].until > earlier[last].until) more.push_back({earlier[last].until, later[last].until});
  more.insert(more.end(), later.begin() + static_cast<ptrdiff_t>(last) + 1, later.end());
  return more;
}

coro::Task<Result<std::vector<Entry>>> look_up(io::Loop& loop, Index& index, const View& view, uint64_t block, uint64_t blocks,
                                               size_t limit) {
  std::vector<Entry> entries;
  if (index.try_lookup(view, block, blocks, limit, entries)) co_return entries;
  auto found = co_await index.lookup(loop, view, block, blocks, limit);
  co_return found;
}

}  // namespace

std::optional<View> changes_view(const View& before, const View& now) {
  if (before.layers.empty() || now.layers.size() < before.layers.size()) return std::nullopt;
  const size_t own = now.layers.size() - before.layers.size();
  const Layer& then = before.layers[0];
  const Layer& here = now.layers[own];
  if (then.branch != here.branch || !std::equal(before.layers.begin() + 1, before.layers.end(),
                                                now.layers.begin() + static_cast<ptrdiff_t>(own) + 1))
    return std::nullopt;
  auto more = beyond(then.intervals, here.intervals);
  if (!more) return std::nullopt;
  View changes;
  changes.layers.assign(now.layers.begin(), now.layers.begin() + static_cast<ptrdiff_t>(own));
  if (!more->empty()) changes.layers.push_back({.branch = here.branch, .intervals = std::move(*more)});
  return changes;
}

coro::Task<Result<std::vector<DiffPiece>>> diff(io::Loop& loop, Index& index, const View& before, const View& now, uint64_t block,
                                                uint64_t blocks, size_t limit) {
  std::vector<DiffPiece> pieces;
  if (const auto changes = changes_view(before, now)) {
    if (changes->layers.empty()) {
      pieces.push_back({.blocks = blocks, .changed = false});
      co_return pieces;
    }
    auto found = co_await look_up(loop, index, *changes, block, blocks, limit);
    if (!found) co_return std::move(found).error();
    for (const Entry& entry : found.value())
      add(pieces, {.blocks = entry.blocks, .changed = entry.branch != 0, .place = entry.place});
    co_return pieces;
  }
  auto old_found = co_await look_up(loop, index, before, block, blocks, limit);
  if (!old_found) co_return std::move(old_found).error();
  auto new_found = co_await look_up(loop, index, now, block, blocks, limit);
  if (!new_found) co_return std::move(new_found).error();
  // Both begin at `block`; the shorter answer is the end.
  const std::vector<Entry>& olds = old_found.value();
  const std::vector<Entry>& news = new_found.value();
  uint64_t at = block;
  for (size_t i = 0, j = 0; i < olds.size() && j < news.size();) {
    const uint64_t end = std::min(end_of(olds[i]), end_of(news[j]));
    const bool same = olds[i].branch == news[j].branch && olds[i].lsn == news[j].lsn;
    add(pieces, {.blocks = end - at, .changed = !same, .place = news[j].place});
    at = end;
    if (end_of(olds[i]) == end) ++i;
    if (end_of(news[j]) == end) ++j;
  }
  co_return pieces;
}

coro::Task<Result<std::vector<DiffPiece>>> diff_from_nothing(io::Loop& loop, Index& index, const View& now, uint64_t block,
                                                             uint64_t blocks, size_t limit) {
  auto found = co_await look_up(loop, index, now, block, blocks, limit);
  if (!found) co_return std::move(found).error();
  std::vector<DiffPiece> pieces;
  for (const Entry& entry : found.value())
    add(pieces, {.blocks = entry.blocks, .changed = (entry.place & Place::kHole) == 0, .place = entry.place});
  co_return pieces;
}

}  // namespace netblk::store::volume
