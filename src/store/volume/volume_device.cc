// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/volume_device.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "store/volume/contents.h"
#include "store/volume/diff.h"
#include "store/volume/quick_read.h"
#include "store/volume/reader.h"
#include "store/volume/request_task.h"

namespace netblk::store::volume {

using block::Command;
using block::Request;

namespace {

RequestTask read(Core& core, const View& view, Request& request) {
  const int error = co_await read_range(io::loop_of(*request.loop), core, view, request.offset, {request.data, request.length});
  std::move(request.held.completion).finish(error);
}

void read_slowly(Core& core, const View& view, Request& request) { read(core, view, request); }

// An answer may end before its range does: one look is enough.
RequestTask tell_extents(Core& core, const View& view, Request& request, block::Completion completion) {
  constexpr size_t kEntriesAtOnce = 1024;
  const uint64_t first = request.offset / kBlockBytes;
  const uint64_t end = request.offset + request.length;
  const uint64_t blocks = (end + kBlockBytes - 1) / kBlockBytes - first;
  std::vector<Entry> entries;
  int error = 0;
  if (!core.index->try_lookup(view, first, blocks, kEntriesAtOnce, entries)) {
    auto found = co_await core.index->lookup(io::loop_of(*request.loop), view, first, blocks, kEntriesAtOnce);
    if (found) {
      entries = std::move(found).value();
    } else {
      log_error("{}: {}", core.options.name, found.error().message);
      error = found.error().code;
    }
  }
  for (const Entry& entry : entries) {
    const uint64_t from = std::max(entry.block * kBlockBytes, request.offset);
    const uint64_t until = std::min(end_of(entry) * kBlockBytes, end);
    const bool data = Place::is_data(entry.place);
    if (!request.add_extent(until - from, !data && (entry.place & Place::kHole) != 0, !data)) break;
  }
  std::move(completion).finish(error);
}

// What has changed since a point. Where the disk was smaller then, there was nothing: what is in a block that its end cut does
// not count as the same.
RequestTask tell_changes(Core& core, const View& view, Request& request, block::Completion completion) {
  constexpr size_t kEntriesAtOnce = 1024;
  const auto& since = static_cast<const PointBase&>(*request.since);
  const uint64_t first = request.offset / kBlockBytes;
  const uint64_t end = request.offset + request.length;
  const uint64_t end_block = (end + kBlockBytes - 1) / kBlockBytes;
  const uint64_t there = since.size_bytes / kBlockBytes;
  io::Loop& loop = io::loop_of(*request.loop);
  Result<std::vector<DiffPiece>> pieces = std::vector<DiffPiece>();
  if (first == there && since.size_bytes % kBlockBytes != 0) {
    pieces = co_await diff_from_nothing(loop, *core.index, view, first, 1, kEntriesAtOnce);
    // A hole, too: before the end there may have been something.
    if (pieces)
      for (DiffPiece& piece : pieces.value()) piece.changed = true;
  } else if (first >= there) {
    pieces = co_await diff_from_nothing(loop, *core.index, view, first, end_block - first, kEntriesAtOnce);
  } else {
    const uint64_t until = std::min(end_block, there);
    pieces = co_await diff(loop, *core.index, since.view, view, first, until - first, kEntriesAtOnce);
  }
  int error = 0;
  if (pieces) {
    uint64_t at = first;
    for (const DiffPiece& piece : pieces.value()) {
      const uint64_t from = std::max(at * kBlockBytes, request.offset);
      at += piece.blocks;
      const uint64_t until = std::min(at * kBlockBytes, end);
      const bool zero = piece.changed && !Place::is_data(piece.place);
      if (!request.add_extent(until - from, zero && (piece.place & Place::kHole) != 0, zero, piece.changed)) break;
    }
  } else {
    log_error("{}: {}", core.options.name, pieces.error().message);
    error = pieces.error().code;
  }
  std::move(completion).finish(error);
}

}  // namespace

VolumeDevice::VolumeDevice(Core& core, Log* log, std::shared_ptr<const Head> head)
    : Device({.size_bytes = head->size_bytes.load(std::memory_order_acquire), .read_only = log == nullptr, .can_trim = true,
              .can_fast_zero = true, .can_block_status = true}),
      core_(core), log_(log), head_(std::move(head)) {}

VolumeDevice::VolumeDevice(Core& core, const View& view, uint64_t size_bytes, const Id& contents)
    : VolumeDevice(core, nullptr, std::make_shared<const Head>(0u, view, size_bytes, contents)) {}

void VolumeDevice::refresh_size() { set_size_bytes(head_->size_bytes.load(std::memory_order_acquire)); }

block::Generation VolumeDevice::generation() const { return {head_->contents, core_.generation.load(std::memory_order_acquire)}; }

std::vector<std::byte> VolumeDevice::owners() const {
  const std::lock_guard lock(core_.mutex);
  return owners_of(core_.owners, head_->contents);
}

coro::Task<Status> VolumeDevice::keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) {
  if (log_ == nullptr) co_return make_error(EROFS, "it is read-only");
  Change change;
  change.kind = ChangeKind::kOwners;
  change.owners = owners_change(head_->contents, record);
  Result<uint64_t> kept = co_await log_->change(io::loop_of(loop), head_->branch, std::move(change));
  if (!kept) co_return std::move(kept).error();
  co_return Ok{};
}

std::vector<std::string> VolumeDevice::bases() const {
  std::vector<std::string> names;
  const Points points = core_.index->points();
  for (const SnapshotInfo& snapshot : points.snapshots()) names.push_back(snapshot.name);
  return names;
}

void VolumeDevice::start(Request& request, block::Completion completion) {
  request.held.owner = this;
  switch (request.command) {
    case Command::kRead:
      request.held.completion = std::move(completion);
      if (!quick_read(core_, head_->view, request, read_slowly)) read_slowly(core_, head_->view, request);
      return;
    case Command::kBlockStatus:
      if (request.since != nullptr) {
        tell_changes(core_, head_->view, request, std::move(completion));
      } else {
        tell_extents(core_, head_->view, request, std::move(completion));
      }
      return;
    case Command::kFlush:
      if (log_ == nullptr) return std::move(completion).finish(0);
      request.held.completion = std::move(completion);
      return log_->flush(request);
    case Command::kWrite:
    case Command::kTrim:
    case Command::kWriteZeroes:
      request.held.completion = std::move(completion);
      return log_->submit(request);
    case Command::kCache: break;
  }
  std::move(completion).finish(EOPNOTSUPP);
}

}  // namespace netblk::store::volume
