// SPDX-License-Identifier: GPL-2.0-only
// Space: segments for those who fill them. Their space is had from the file before anything is promised for it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"

namespace netblk::store::volume {

// What segments are taken for, and what of the reserve has to stay.
enum class Purpose : uint8_t {
  kWrites,      // of data: all of it
  kNames,       // the log of trims and of changes of names, which make room: none
  kCopies,      // of the collector: what is for checkpoints
  kSweeps,      // what a checkpoint could do without: what is for names and for itself
  kCheckpoint,  // index pages and manifests: none
};

// Takes `count` segments. 0, or ENOSPC with none taken: there is no space, and for writes and names none can be made.
coro::Task<int> take_segments(io::Loop& loop, Core& core, uint64_t count, SegmentState state, Purpose purpose,
                              std::vector<uint64_t>& taken);

// Asks the file system for so much that `count` could be taken. False: it has not so much; or errno.
coro::Task<Result<bool>> can_take(io::Loop& loop, Core& core, uint64_t count, Purpose purpose);

// Gives the space of some free segments back to the file system, but for the reserve's and `keep` more, where the file has more
// than `within` bytes of segments. False: there is nothing more to give, or the file system does not take it.
coro::Task<bool> return_space(io::Loop& loop, Core& core, uint64_t keep, uint64_t within);

// Free segments with space, beside the reserve. Under the mutex.
uint64_t kept_beside_reserve(Core& core, const Segments::Usage& usage);

}  // namespace netblk::store::volume
