// SPDX-License-Identifier: GPL-2.0-only
// Reader: what a point of a branch reads. Each block's sum is verified, each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

// Any range of bytes; the view outlives the task. 0, or EIO where a block is damaged or cannot be read: then nothing in `into`
// may be used.
coro::Task<int> read_range(io::Loop& loop, Core& core, const View& view, uint64_t offset, std::span<std::byte> into);

}  // namespace netblk::store::volume
