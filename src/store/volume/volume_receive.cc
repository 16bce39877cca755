// SPDX-License-Identifier: GPL-2.0-only
// What an open volume receives (docs/volume-stream.md). The head takes it as it comes, and is shown as it was before until the end.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "store/volume/diff.h"
#include "store/volume/open_volume.h"
#include "store/volume/volume_device.h"

namespace netblk::store::volume {
namespace {

Error unfinished(const Transfer& what) {
  return make_error(EBUSY, "a receive of '{}' is unfinished: go on with it, or give it up", what.to_name);
}

}  // namespace

std::optional<Receiving> OpenVolume::receiving() const { return core_.index->points().receiving(); }

// The snapshot that the changes are told against, in this volume.
Result<uint64_t> OpenVolume::receive_base(const Points& points, const Transfer& what) const {
  const auto known = [&](const SnapshotInfo& each) { return identity_of(each, core_.uuid) == what.to; };
  const auto& snapshots = points.snapshots();
  if (const auto there = std::find_if(snapshots.begin(), snapshots.end(), known); there != snapshots.end())
    return make_error(EEXIST, "'{}' is there already, as snapshot '{}'", what.to_name, there->name);
  Status free = points.name_is_free(what.to_name);
  if (!free) return std::move(free).error();
  if (what.is_whole()) return uint64_t{0};
  const auto base = std::find_if(snapshots.begin(), snapshots.end(),
                                 [&](const SnapshotInfo& each) { return identity_of(each, core_.uuid) == what.from; });
  if (base == snapshots.end() || base->point.branch != kHeadBranch)
    return make_error(ESTALE, "the stream has what changed since snapshot '{}' of volume {} (lsn:{}), and this volume does not have that "
                              "one: receive it first, or the whole",
                      what.from_name, id_text(what.from.volume), what.from.lsn);
  const BranchInfo& head = *points.find_branch(kHeadBranch);
  if (head.size_bytes != base->size_bytes)
    return make_error(ESTALE, "the disk has another size than at snapshot '{}': `netblk volume rollback {}@{}` first", base->name,
                      core_.options.name, base->name);
  return base->point.lsn;
}

// What is received is told against a disk that nobody has changed since.
coro::Task<Status> OpenVolume::unchanged_since(uint64_t lsn) {
  constexpr size_t kEntriesAtOnce = 1024;
  const Points points = core_.index->points();
  const View head = points.head(kHeadBranch), base = points.view({.branch = kHeadBranch, .lsn = lsn});
  const uint64_t blocks = (points.find_branch(kHeadBranch)->size_bytes + kBlockBytes - 1) / kBlockBytes;
  for (uint64_t block = 0; block < blocks;) {
    Result<std::vector<DiffPiece>> pieces = std::vector<DiffPiece>();
    if (lsn == 0) {
      pieces = co_await diff_from_nothing(loop_, *core_.index, head, block, blocks - block, kEntriesAtOnce);
    } else {
      pieces = co_await diff(loop_, *core_.index, base, head, block, blocks - block, kEntriesAtOnce);
    }
    if (!pieces) co_return std::move(pieces).error();
    for (const DiffPiece& piece : pieces.value()) {
      if (piece.changed && lsn == 0)
        co_return make_error(EEXIST, "the disk has been written to, and a whole snapshot goes to a new volume: name another folder");
      if (piece.changed)
        co_return make_error(ESTALE, "the disk has been written to since the snapshot that the stream is told against (byte {}): "
                                     "`netblk volume rollback` to that one first",
                             block * kBlockBytes);
      block += piece.blocks;
    }
  }
  co_return Ok{};
}

coro::Task<Result<std::unique_ptr<block::Device>>> OpenVolume::receive(Transfer what) {
  Status status = may_change();
  if (!status) co_return std::move(status).error();
  Receiving wanted{.what = what};
  bool goes_on = false;
  uint64_t size_bytes = 0;
  {
    const std::lock_guard lock(core_.mutex);
    const Points points = core_.index->points();
    goes_on = points.receiving().has_value();
    if (goes_on && points.receiving()->what != what) co_return unfinished(points.receiving()->what);
    if (!goes_on) {
      const Result<uint64_t> base = receive_base(points, what);
      if (!base) co_return base.error();
      wanted.base_lsn = base.value();
    }
    size_bytes = points.find_branch(kHeadBranch)->size_bytes;
    status = reserve("", points, true);
    if (!status) co_return std::move(status).error();
  }
  // Whoever has the device has the disk for himself.
  const std::shared_ptr<const void> reserved(this, [this](const void*) { release(""); });
  if (!goes_on) {
    status = co_await unchanged_since(wanted.base_lsn);
    if (!status) co_return std::move(status).error();
    Change begin{.kind = ChangeKind::kReceive, .name = {}, .receiving = wanted};
    const Result<uint64_t> begun = co_await log_.change(loop_, kHeadBranch, std::move(begin));
    if (!begun) co_return begun.error();
  }
  const Points points = core_.index->points();
  auto head = std::make_shared<Head>(kHeadBranch, points.head(kHeadBranch), std::max(size_bytes, what.size_bytes));
  auto device = std::make_unique<VolumeDevice>(core_, &log_, std::move(head));
  device->keep(reserved);
  co_return std::unique_ptr<block::Device>(std::move(device));
}

coro::Task<Result<uint64_t>> OpenVolume::receive_step(ReceiveStep step, uint64_t offset) {
  Status may = may_change();
  if (!may) co_return std::move(may).error();
  Change what{.kind = ChangeKind::kReceive};
  what.step = step;
  what.receiving.offset = offset;
  const bool turns = turns_head(what);
  Result<uint64_t> lsn = co_await log_.change(loop_, kHeadBranch, std::move(what));
  // Told when it is durable, as a rewind's.
  if (lsn && turns) core_.generation.fetch_add(1, std::memory_order_acq_rel);
  co_return lsn;
}

coro::Task<Status> OpenVolume::keep_received(uint64_t offset) {
  const Result<uint64_t> kept = co_await receive_step(ReceiveStep::kKeep, offset);
  if (!kept) co_return kept.error();
  co_return Ok{};
}

coro::Task<Status> OpenVolume::end_receiving() {
  const Result<uint64_t> ended = co_await receive_step(ReceiveStep::kEnd, 0);
  if (!ended) co_return ended.error();
  co_return Ok{};
}

coro::Task<Status> OpenVolume::give_up_receiving() {
  {
    const std::lock_guard lock(core_.mutex);
    Status reserved = reserve("", core_.index->points(), true);
    if (!reserved) co_return reserved;
  }
  const Result<uint64_t> given_up = co_await receive_step(ReceiveStep::kGiveUp, 0);
  release("");
  if (!given_up) co_return given_up.error();
  background_.want();
  co_return Ok{};
}

}  // namespace netblk::store::volume
