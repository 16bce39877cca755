// SPDX-License-Identifier: GPL-2.0-only
// Diff: what of a point is another than at an older or other point of the same volume.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/index.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

struct DiffPiece {
  uint64_t blocks = 0;
  bool changed = false;
  uint64_t place = Place::kHole;  // of what has changed: data, zeroes or a hole
  bool operator==(const DiffPiece&) const = default;
};

// What `now` reads and `before` does not, as a view of its own, where `now` is a later point of the same line (of the same branch, or
// of a clone of it): then one look tells what has changed, and holes in it are what has not. None: they must be compared.
std::optional<View> changes_view(const View& before, const View& now);

// Pieces from `block` on, of at most `limit` extents of the index: they may cover only a first part of [block, block + blocks). A
// block counts as changed if another record was the last to write it; what was written again with the same bytes has changed.
coro::Task<Result<std::vector<DiffPiece>>> diff(io::Loop& loop, Index& index, const View& before, const View& now, uint64_t block,
                                                uint64_t blocks, size_t limit);
// Against the empty disk: what `now` has, but for its holes.
coro::Task<Result<std::vector<DiffPiece>>> diff_from_nothing(io::Loop& loop, Index& index, const View& now, uint64_t block,
                                                             uint64_t blocks, size_t limit);

}  // namespace netblk::store::volume
