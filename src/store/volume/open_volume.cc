// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/open_volume.h"

#include <bit>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "store/volume/file_io.h"
#include "store/volume/scrub.h"

namespace netblk::store::volume {
Id random_id_of(Environment& environment) {
  Id id;
  while (id.is_zero()) environment.random_bytes(std::as_writable_bytes(std::span(id.bytes)));
  return id;
}

coro::Task<Status> OpenVolume::open() {
  replayed_ = co_await replay(loop_, core_, !was_clean_);
  refused_ = replayed_.damage;
  if (!refused_.empty())
    log_error("{}: {}; it is opened read-only, as it was behind record {}", core_.options.name, replayed_.damage,
              core_.position.next_lsn - 1);
  if (replayed_.records > 0)
    log_info("{}: it was not closed: {} records of its log, up to {}, are applied again{}", core_.options.name,
             replayed_.records, core_.position.next_lsn - 1, replayed_.cut ? "; what was written behind them is not whole" : "");
  // Who only reads is told what the next opening for writing will write down.
  core_.generation.fetch_add(replayed_.rewinds + (may_have_lost() ? 1u : 0u), std::memory_order_relaxed);
  core_.superblock_generation.store(core_.generation.load(std::memory_order_relaxed), std::memory_order_relaxed);
  core_.rewinds = replayed_.rewinds;
  const uint64_t unknown = core_.slots.current().read_only_compatible;
  if (writable() && unknown != 0) {
    refused_ = fmt::format("it has read-only-compatible feature {}, which this program does not know", std::countr_zero(unknown));
    log_warning("{}: {}; it is opened read-only", core_.options.name, refused_);
  }
  if (writable()) {
    Status begun = co_await begin_writing();
    if (begun) {
      core_.stirred = [this] { background_.stir(); };
      core_.make_room = [this](io::Loop& on, uint64_t segments) { return background_.make_room(on, segments); };
      background_.stir();
      co_return begun;
    }
    // What is there can be read.
    refused_ = begun.error().message;
    log_error("{}: {}; it is opened read-only", core_.options.name, refused_);
  }
  co_return Ok{};
}

// The log's own place, and the index's, may be in space that was only promised before a crash.
coro::Task<int> OpenVolume::take_again(uint64_t segment) {
  const uint64_t offset = core_.segments.offset_of(segment), bytes = core_.segments.bytes();
  const int32_t result = co_await io::await([&](io::Op& op) { return core_.file->allocate(loop_, op, offset, bytes); });
  co_return result == -EOPNOTSUPP ? 0 : -result;
}

// From here on records have an incarnation of their own. Both superblocks say so before anything is answered, and lead to
// all that was recovered: whichever is read the next time, what an earlier opening left behind the end never counts again.
coro::Task<Status> OpenVolume::begin_writing() {
  const Superblock superblock = core_.slots.current();
  if (by_other_) {
    // Pages are written next where the tree of the one that cannot be used may be, and another day it may be read again.
    const Checkpoint::State as_it_is{.open = superblock.open, .incarnation = superblock.incarnation};
    Status alone = co_await checkpoint_.run_superblock(loop_, as_it_is);
    if (!alone) co_return alone;
  }
  int error = co_await take_again(core_.position.segment);
  if (error == 0) error = co_await take_again(core_.segments.segment_at(superblock.manifest_offset));
  if (error != 0) co_return make_error(error, "there is no room to write in it: {}", errno_text(error));
  error = co_await write_again(loop_, core_, replayed_.not_durable);
  if (error != 0) co_return make_error(error, "the end of its log cannot be written again: {}", errno_text(error));
  error = co_await core_.slots.write_again(loop_);
  if (error != 0) co_return make_error(error, "its superblocks cannot be written again: {}", errno_text(error));
  Checkpoint::State state{.open = true, .incarnation = random_id_of(core_.environment)};
  core_.position.incarnation = state.incarnation;
  if (core_.metadata_cipher != nullptr) core_.metadata_cipher->begin(state.incarnation);
  Status written = Ok{};
  if (replayed_.records > 0) {
    written = co_await checkpoint_.run(loop_, state);
  } else {
    written = co_await checkpoint_.run_superblock(loop_, state);
  }
  if (!written) co_return written;
  written = co_await checkpoint_.run_superblock(loop_, state);
  if (!written) co_return written;
  checkpoint_.only_one_left();
  co_return Ok{};
}

VolumeInfo OpenVolume::info() const {
  const Superblock superblock = core_.slots.current();
  const Points points = core_.index->points();
  VolumeInfo info;
  info.uuid = core_.uuid;
  info.generation = core_.generation.load(std::memory_order_acquire);
  info.size_bytes = points.find_branch(kHeadBranch)->size_bytes;
  info.segment_bytes = superblock.segment_bytes();
  info.index_entries = core_.index->root().entries;
  info.bad_blocks = core_.bad_blocks.load(std::memory_order_relaxed);
  info.read_only = !writable();
  info.was_clean = was_clean_;
  info.replayed_records = replayed_.records;
  info.cut = replayed_.cut;
  info.damage = refused_;
  info.encrypted = core_.sums.encrypted();
  auto& core = const_cast<Core&>(core_);
  const std::lock_guard lock(core.mutex);
  info.history_from_lsn = core_.history_from;
  if (core_.history_from != kForever) info.history_from_ns = core_.history.time_of(core_.history_from);
  info.last_lsn = core_.position.next_lsn - 1;
  info.segments = core_.segments.count();
  info.free_segments = core_.segments.free_count();
  info.used_bytes = (info.segments - info.free_segments) * info.segment_bytes;
  const Segments::Usage usage = core_.segments.usage();
  info.live_bytes = usage.data_live_bytes;
  info.index_bytes = usage.metadata_live_bytes;
  info.file_bytes = kSegmentsAt + usage.file_segments * info.segment_bytes;
  info.garbage_bytes = usage.garbage_bytes;
  info.collected_bytes = core_.collected_bytes.load(std::memory_order_relaxed);
  info.space_percent = core_.space_percent();
  return info;
}

coro::Task<Result<CheckReport>> OpenVolume::check() {
  const CheckOptions usual;
  Result<CheckReport> report = co_await check(usual);
  co_return report;
}

coro::Task<Result<CheckReport>> OpenVolume::check(const CheckOptions& options) {
  const bool is_settled = was_clean_ && replayed_.records == 0 && core_.index->table_empty();
  Result<CheckReport> report = co_await scrub(loop_, core_, options, is_settled);
  if (!report.ok() || replayed_.damage.empty()) co_return report;
  ++report.value().damaged;
  report.value().damage.insert(report.value().damage.begin(), replayed_.damage);
  co_return report;
}

coro::Task<Status> OpenVolume::close() {
  co_await background_.stop();
  if (!writable()) co_return Ok{};
  co_await core_.look_for_another(loop_);
  if (core_.poisoned.load(std::memory_order_acquire))
    co_return make_error(EIO, "{}: a write or a sync has failed: what is on the disk is known after the next opening",
                         core_.options.name);
  const Superblock superblock = core_.slots.current();
  const Checkpoint::State state{.open = false, .incarnation = superblock.incarnation};
  Status written = Ok{};
  // What leaves is free behind the next one.
  constexpr int kMost = 3;
  int made = 0;
  for (; made < kMost && written && checkpoint_.due(); ++made) written = co_await checkpoint_.run(loop_, state);
  if (made == 0) written = co_await checkpoint_.run_superblock(loop_, state);
  if (written) co_await background_.return_all();
  co_return written;
}

}  // namespace netblk::store::volume
