// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/space.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "base/log.h"
#include "store/volume/file_io.h"

namespace netblk::store::volume {
namespace {

// The log of trims and of changes of names goes on in these, and what the collector copies goes into those.
constexpr uint64_t kForNames = 2;
constexpr uint64_t kForCopies = 2;
// By so much more than they need the metadata segments may grow while nothing of the reserve comes back
// (Checkpoint::sparse_metadata()).
constexpr uint64_t kForSparse = 1;

// What is needed by the checkpoints until what they make free is, of the present tables and so many copies: the one that is
// being merged may have to be merged again.
uint64_t for_checkpoints(Core& core, const Segments::Usage& usage, uint64_t copies) {
  constexpr uint64_t kInARow = 3;
  constexpr uint64_t kEntriesPerPage = 30;  // at least 31, and the inner pages above them
  const uint64_t changed = core.index->unmerged_entries() + copies;
  // Each may cut an extent of the tree in two, beside its own; and of a run of pages that is written anew one more may come.
  const uint64_t pages_now = usage.metadata_live_bytes / kPageBytes;
  uint64_t pages = std::min(pages_now + pages_now / 8 + 3 * changed / kEntriesPerPage, 4 * changed);
  if (changed != 0) pages += 8;
  // A manifest is in one segment: before it as much again may be left.
  const uint64_t manifest = std::max(core.slots.current().manifest_bytes, core.segments.count() * sizeof(SegmentInfo)) + kPageBytes;
  const uint64_t metadata = pages * kPageBytes + kInARow * 2 * (manifest / kPageBytes * kPageBytes);
  return (metadata + core.segments.bytes() - 1) / core.segments.bytes();
}

// Writes leave the others what they need to begin, and nothing becomes free without checkpoints. Copies may take what is for names,
// and names what is for copies: names make garbage for copies, and each segment of copies empties one at least. The collector has to
// be able to begin also when names have taken all of theirs, and pages another one.
uint64_t kept_from(Core& core, const Segments::Usage& usage, Purpose purpose) {
  const uint64_t blocks = core.segments.bytes() / kBlockBytes;
  switch (purpose) {
    case Purpose::kWrites: return kForNames + kForCopies + kForSparse + for_checkpoints(core, usage, kForCopies * blocks);
    case Purpose::kCopies: return for_checkpoints(core, usage, blocks);
    case Purpose::kSweeps: return kForNames + for_checkpoints(core, usage, 0);
    case Purpose::kNames: return for_checkpoints(core, usage, 0);
    case Purpose::kCheckpoint: break;
  }
  return 0;
}
static_assert(kForCopies + kForSparse >= 3, "with what writes and names leave, the collector can begin a segment");

// A file system that cannot allocate is made to by being written to.
coro::Task<int> write_zeroes(io::Loop& loop, Core& core, uint64_t offset, uint64_t bytes) {
  static const std::array<std::byte, 256u << 10> kZeroes{};
  for (uint64_t done = 0; done < bytes; done += kZeroes.size()) {
    const bool may = co_await core.may_write(loop);
    if (!may) co_return EIO;
    const auto part = std::span(kZeroes).first(std::min<uint64_t>(kZeroes.size(), bytes - done));
    const int error = co_await write_bytes(loop, *core.file, part, offset + done);
    if (error != 0) co_return error;
  }
  co_return 0;
}

coro::Task<int> allocate_one_of(io::Loop& loop, Core& core, bool with_space) {
  std::optional<uint64_t> segment;
  bool had_space = false;
  {
    const std::lock_guard lock(core.mutex);
    segment = core.segments.begin_allocation(with_space);
    if (segment && core.options.overwrites_in_place && core.segments.kept_space(*segment)) {
      core.segments.end_allocation(*segment, true);
      co_return 0;
    }
    if (segment) had_space = core.segments.has_space(*segment);
  }
  if (!segment) co_return ENOSPC;
  const uint64_t offset = core.segments.offset_of(*segment), bytes = core.segments.bytes();
  const int32_t result = co_await io::await([&](io::Op& op) { return core.file->allocate(loop, op, offset, bytes); });
  // EFBIG: the file may not become longer.
  int error = result == -EDQUOT || result == -EFBIG ? ENOSPC : -result;
  if (result == -EOPNOTSUPP) {
    error = 0;
    if (!had_space) error = co_await write_zeroes(loop, core, offset, bytes);
    if (error == EFBIG || error == EDQUOT) error = ENOSPC;
  }
  const std::lock_guard lock(core.mutex);
  core.segments.end_allocation(*segment, error == 0);
  // One that had no space after all is not asked for again among those that may have it.
  co_return error == ENOSPC && with_space ? EAGAIN : error;
}

// One more free segment has its space. 0; ENOSPC, also where there can be no more segments; or errno.
coro::Task<int> allocate_one(io::Loop& loop, Core& core) {
  int error = co_await allocate_one_of(loop, core, false);
  if (error != ENOSPC) co_return error;
  do {
    error = co_await allocate_one_of(loop, core, true);
  } while (error == EAGAIN);
  co_return error;
}

}  // namespace

coro::Task<int> take_segments(io::Loop& loop, Core& core, uint64_t count, SegmentState state, Purpose purpose,
                              std::vector<uint64_t>& taken) {
  int error = 0;
  bool is_hopeless = false;
  for (;;) {
    uint64_t wanted = 0;
    {
      const std::lock_guard lock(core.mutex);
      const Segments::Usage usage = core.segments.usage();
      const uint64_t kept = kept_from(core, usage, purpose), ready = core.segments.ready();
      // Ready ones are asked for up to the whole reserve: later it may not be had.
      const uint64_t reserve = kept_from(core, usage, Purpose::kWrites);
      const bool enough = ready >= count + kept;
      if (enough && (error != 0 || ready >= count + reserve)) {
        for (uint64_t i = 0; i < count; ++i) taken.push_back(core.segments.take(state));
        co_return 0;
      }
      wanted = count + kept;
    }
    const bool tried = error != 0;
    if (!tried) {
      error = co_await allocate_one(loop, core);
      continue;
    }
    if (error != ENOSPC || purpose > Purpose::kNames || !core.make_room || is_hopeless) co_return error;
    const bool made = co_await core.make_room(loop, wanted);
    if (core.poisoned.load(std::memory_order_acquire)) co_return EIO;
    // What others had made free before that has been looked for by nobody yet.
    is_hopeless = !made;
    error = 0;
  }
}

coro::Task<Result<bool>> can_take(io::Loop& loop, Core& core, uint64_t count, Purpose purpose) {
  for (;;) {
    {
      const std::lock_guard lock(core.mutex);
      if (core.segments.ready() >= count + kept_from(core, core.segments.usage(), purpose)) co_return true;
    }
    const int error = co_await allocate_one(loop, core);
    if (error == ENOSPC) co_return false;
    if (error != 0) co_return make_error(error, "space cannot be had: {}", errno_text(error));
  }
}

uint64_t kept_beside_reserve(Core& core, const Segments::Usage& usage) {
  const uint64_t has = usage.free_with_space;
  return has - std::min(has, std::max<uint64_t>(kept_from(core, usage, Purpose::kWrites), core.segments.ready()));
}

coro::Task<bool> return_space(io::Loop& loop, Core& core, uint64_t keep, uint64_t within) {
  // The file system takes nobody's write to the file meanwhile, and may tell the disk of it before it goes on.
  constexpr uint64_t kMostAtOnce = 16u << 20;
  const bool may = co_await core.may_write(loop);
  if (!may) co_return false;
  Segments::Run run;
  {
    const std::lock_guard lock(core.mutex);
    const Segments::Usage usage = core.segments.usage();
    const uint64_t has = usage.file_segments, bound = within / core.segments.bytes();
    if (has <= bound) co_return false;
    const uint64_t reserve = kept_from(core, usage, Purpose::kWrites);
    const uint64_t idle = keep + reserve - std::min<uint64_t>(reserve, core.segments.ready());
    run = core.segments.begin_return(idle, std::min(std::max<uint64_t>(kMostAtOnce / core.segments.bytes(), 1), has - bound));
  }
  if (run.count == 0) co_return false;
  const uint64_t offset = core.segments.offset_of(run.first), bytes = run.count * core.segments.bytes();
  const int32_t result = co_await io::await([&](io::Op& op) { return core.file->punch_hole(loop, op, offset, bytes); });
  {
    const std::lock_guard lock(core.mutex);
    core.segments.end_return(run, result >= 0);
    core.takes_space_back = result != -EOPNOTSUPP;
  }
  if (result < 0 && result != -EOPNOTSUPP)
    log_warning("{}: space that is free cannot be given back: {}", core.options.name, errno_text(-result));
  co_return result >= 0;
}

}  // namespace netblk::store::volume
