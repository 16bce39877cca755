// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/checkpoint.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "store/volume/file_io.h"
#include "store/volume/space.h"

namespace netblk::store::volume {
namespace {

// Of the index that one checkpoint looks at for what is no longer read: a reader and a writer wait for none of it, but what it
// makes free is free only when it has ended.
constexpr uint64_t kSweepPages = 16384;

// That the file may become longer by, while the place of a manifest is looked for.
constexpr uint64_t kMoreSegments = 8;

uint64_t round_to_page(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

Checkpoint::Checkpoint(Core& core, std::vector<Manifest::Section> unknown) : core_(core), unknown_(std::move(unknown)) {
  const Superblock superblock = core.slots.current();
  metadata_segment_ = core.segments.segment_at(superblock.manifest_offset);
  metadata_offset_ = round_to_page(superblock.manifest_offset + superblock.manifest_bytes);
}

void Checkpoint::opened_by(const Manifest& manifest) {
  last_position_ = manifest.log;
  sweep_ = manifest.sweep;
  table_ = manifest.segments;
}

bool Checkpoint::due() const {
  if (!core_.index->table_empty()) return true;  // copies are in no log
  const std::lock_guard lock(core_.mutex);
  return moment_ || something_leaves_ || core_.freed != Points::Freed::kNothing || sweeps_on() ||
         core_.position.next_lsn != last_position_.next_lsn;
}

bool Checkpoint::sweeps() const {
  const std::lock_guard lock(core_.mutex);
  return core_.freed != Points::Freed::kNothing || sweeps_on();
}

// What is behind the manifest's position is counted when it is replayed.
uint64_t Checkpoint::generation_with(uint64_t rewinds) const {
  const std::lock_guard lock(core_.mutex);
  return core_.superblock_generation.load(std::memory_order_acquire) - (core_.rewinds - rewinds);
}

// --- Pages ----------------------------------------------------------------------------------------------------------

coro::Task<Status> Checkpoint::read(io::Loop& loop, uint64_t offset, std::span<std::byte> page) {
  const int error = co_await read_bytes(loop, *core_.file, page, offset);
  if (error != 0) co_return make_error(error, "{}", errno_text(error));
  co_return Ok{};
}

coro::Task<Status> Checkpoint::write(io::Loop& loop, uint64_t offset, std::span<const std::byte> pages) {
  const bool may = co_await core_.may_write(loop);
  if (!may) co_return make_error(EIO, "nothing is written to the volume any more");
  const int error = co_await write_bytes(loop, *core_.file, pages, offset);
  if (error != 0) co_return make_error(error, "a page cannot be written: {}", errno_text(error));
  co_return Ok{};
}

coro::Task<Result<uint64_t>> Checkpoint::allocate(io::Loop& loop) {
  Result<uint64_t> page = co_await allocate_run(loop, kPageBytes);
  co_return page;
}

// A merge has some pages in hand that it has not asked room for yet, and where it has none left it tries only once.
coro::Task<bool> Checkpoint::has_spare(io::Loop& loop) {
  constexpr uint64_t kInHand = 2 * (kMaxTreeLevel + 1) * kPageBytes;
  if (metadata_segment_ && metadata_offset_ + kInHand <= core_.segments.offset_of(*metadata_segment_ + 1)) co_return true;
  if (no_spare_) co_return false;
  const uint64_t count = (kInHand + core_.segments.bytes() - 1) / core_.segments.bytes();
  const Result<bool> can = co_await can_take(loop, core_, count, Purpose::kSweeps);
  no_spare_ = !can.ok() || !can.value();
  co_return !no_spare_;
}

// Whole pages that follow one another.
coro::Task<Result<uint64_t>> Checkpoint::allocate_run(io::Loop& loop, uint64_t bytes) {
  if (bytes > core_.segments.bytes()) co_return make_error(EFBIG, "what a checkpoint writes does not fit into a segment");
  if (!metadata_segment_ || metadata_offset_ + bytes > core_.segments.offset_of(*metadata_segment_ + 1)) {
    std::vector<uint64_t> taken;
    const int error = co_await take_segments(loop, core_, 1, SegmentState::kMetadata, Purpose::kCheckpoint, taken);
    if (error != 0) co_return make_error(error, "there is no room for the index: {}", errno_text(error));
    taken_.push_back(taken.front());
    metadata_segment_ = taken.front();
    metadata_offset_ = core_.segments.offset_of(taken.front());
  }
  count(made_, metadata_offset_, bytes);
  co_return std::exchange(metadata_offset_, metadata_offset_ + bytes);
}

// A place that no segment can have was read from a file that somebody made up.
void Checkpoint::count(BytesOfSegments& bytes_of, uint64_t offset, uint64_t bytes) const {
  const uint64_t segment = core_.segments.segment_at(offset);
  if (offset < kSegmentsAt || segment >= most_segments(core_.segments.bytes())) return;
  if (segment >= bytes_of.size()) bytes_of.resize(segment + 1);
  bytes_of[segment] += bytes;
}

void Checkpoint::entry_gone(const Entry& entry) {
  if (Place::is_data(entry.place)) count(gone_, Place::offset(entry.place), live_bytes_of(entry));
}

std::vector<SegmentInfo> Checkpoint::for_manifest(uint64_t log_segment) const {
  Segments segments = moment_->segments;
  account(segments);
  return segments.for_manifest({.log = log_segment, .metadata = *metadata_segment_, .copies = moment_->copies_segment});
}

// Pages are never changed in place, so that segments of them grow sparse: what is left in the sparsest is written anew when the
// pages take up half as much again as is alive in them; where space is short, as soon as a segment is gained by it. By segment.
std::vector<bool> Checkpoint::sparse_metadata() const {
  constexpr uint64_t kMostPages = 4096;  // of one checkpoint
  const Segments& segments = moment_->segments;
  const Segments::Usage usage = segments.usage();
  const uint64_t bytes = segments.bytes();
  std::vector<bool> chosen;
  uint64_t waste = usage.metadata * bytes - usage.metadata_live_bytes;
  if (waste < (is_short_ ? bytes : std::max(usage.metadata_live_bytes / 2, 2 * bytes))) return chosen;
  const uint64_t allowed = is_short_ ? bytes : usage.metadata_live_bytes / 4;
  std::vector<uint64_t> order;
  for (uint64_t i = 0; i < segments.count(); ++i)
    if (segments.info(i).state == SegmentState::kMetadata && !segments.leaving(i) && i != metadata_segment_ &&
        segments.info(i).live_bytes < bytes / 4 * 3)
      order.push_back(i);
  std::sort(order.begin(), order.end(),
            [&](uint64_t a, uint64_t b) { return segments.info(a).live_bytes < segments.info(b).live_bytes; });
  chosen.resize(segments.count());
  uint64_t pages = 0;
  for (const uint64_t each : order) {
    pages += segments.info(each).live_bytes / kPageBytes;
    if (pages > kMostPages || waste < allowed) break;
    waste -= bytes - segments.info(each).live_bytes;
    chosen[each] = true;
  }
  return chosen;
}

void Checkpoint::account(Segments& segments) const {
  for (uint64_t i = 0; i < made_.size(); ++i) {
    if (made_[i] == 0) continue;
    segments.found_in_use(i, SegmentState::kMetadata);
    segments.add_live(segments.offset_of(i), made_[i]);
  }
  for (uint64_t i = 0; i < gone_.size(); ++i)
    if (gone_[i] != 0) segments.remove_live(segments.offset_of(i), gone_[i]);
}

// --- A checkpoint ---------------------------------------------------------------------------------------------------

void Checkpoint::want_sweep(Points::Freed freed) {
  if (freed == Points::Freed::kNothing) return;
  const Sweep::Of of = freed == Points::Freed::kAlone ? Sweep::Of::kAll : Sweep::Of::kCovered;
  const bool has_begun = sweep_.of != Sweep::Of::kNothing && (sweep_.branch != 0 || sweep_.block != 0);
  Sweep::Of& which = has_begun ? sweep_again_ : sweep_.of;
  which = std::max(which, of);
}

// A frozen table that an earlier checkpoint did not bring to its end is of that one's moment.
void Checkpoint::freeze() {
  const std::lock_guard lock(core_.mutex);
  // The log goes on at a block's start: what the sync makes durable shares no page with what comes.
  core_.align = true;
  if (!core_.index->freeze()) return;
  HistoryInfo history;
  core_.history.put_into(history);
  want_sweep(std::exchange(core_.freed, Points::Freed::kNothing));
  moment_.emplace(Moment{core_.segments, core_.position, core_.index->points(), std::move(history), core_.owners, core_.log_bytes,
                         core_.rewinds, core_.copies_segment});
}

coro::Task<Status> Checkpoint::run(io::Loop& loop, State state) {
  if (core_.poisoned.load(std::memory_order_acquire))
    co_return make_error(EIO, "a write or a sync has failed: what is on the disk is known after the next opening");
  const Result<bool> filled = co_await can_take(loop, core_, 0, Purpose::kWrites);
  if (!filled) co_return filled.error();
  is_short_ = !filled.value();
  freeze();
  taken_.clear();
  const std::optional<uint64_t> segment = metadata_segment_;
  const uint64_t offset = metadata_offset_;
  Status done = Ok{};
  // What makes room needs some first: without it the next one looks for what is free.
  for (int attempt = 0; attempt < 2; ++attempt) {
    done = co_await try_once(loop, state, attempt != 0);
    if (done || core_.poisoned.load(std::memory_order_acquire)) co_return done;
    // No superblock leads to what it has written: the next one writes there, and does not take more space each time.
    metadata_segment_ = segment;
    metadata_offset_ = offset;
    give_back_taken();
    if (done.error().code != ENOSPC) break;
  }
  co_return done;
}

void Checkpoint::give_back_taken() {
  const std::lock_guard lock(core_.mutex);
  for (const uint64_t each : taken_) core_.segments.give_back(each);
  taken_.clear();
}

coro::Task<Status> Checkpoint::try_once(io::Loop& loop, State state, bool least) {
  made_.clear();
  gone_.clear();
  stopped_at_.reset();
  no_spare_ = least;
  MergeOptions options;
  options.checkpoint = core_.slots.current().checkpoint + 1;
  using Visit = MergeOptions::Visit;
  if (sweep_.of == Sweep::Of::kCovered && !least) options.visit = Visit::kCovered;
  if (sweep_.of == Sweep::Of::kAll && !least) options.visit = Visit::kAll;
  options.visit_from = {sweep_.branch, sweep_.block};
  options.visit_pages = kSweepPages;
  if (core_.metadata_cipher != nullptr) {
    options.leaf_entries = kSealedLeafEntries;
    options.inner_entries = kSealedInnerEntries;
  }
  const std::vector<bool> sparse = least ? std::vector<bool>() : sparse_metadata();
  options.left = &sparse;
  options.segment_shift = static_cast<uint32_t>(std::countr_zero(core_.segments.bytes()));
  Result<IndexRoot> root = co_await core_.index->merge(loop, *this, options);
  if (!root) co_return std::move(root).error();
  sweep_after_ = sweep_;
  if (stopped_at_) {
    sweep_after_.branch = stopped_at_->branch;
    sweep_after_.block = stopped_at_->block;
  } else if (!least) {
    sweep_after_ = {.of = sweep_again_};
  }
  Segments after = moment_->segments;
  account(after);
  if (after.damaged()) {
    core_.poison("its manifest has fewer live bytes in a segment than its index");
    co_return make_error(EBADMSG, "its manifest has fewer live bytes in a segment than its index: it is damaged");
  }
  Result<Superblock> superblock = co_await write_manifest(loop, root.value());
  if (!superblock) co_return std::move(superblock).error();
  superblock.value().open = state.open;
  superblock.value().incarnation = state.incarnation;
  superblock.value().generation = generation_with(moment_->rewinds);
  Status durable = co_await make_durable(loop, superblock.value());
  if (!durable) co_return durable;
  const std::lock_guard lock(core_.mutex);
  account(core_.segments);
  core_.segments.checkpoint_done(table_);
  something_leaves_ = std::any_of(table_.begin(), table_.end(), [](const SegmentInfo& info) {
    return info.state == SegmentState::kLeaving;
  });
  core_.index->commit(root.value());
  core_.log_bytes -= std::min(core_.log_bytes.load(), moment_->log_bytes);
  core_.durable_lsn = std::max(core_.durable_lsn, moment_->position.next_lsn - 1);
  last_position_ = moment_->position;
  rewinds_ = moment_->rewinds;
  sweeps_ = sweep_after_ != sweep_;
  if (sweep_.of != Sweep::Of::kNothing && !stopped_at_ && !least) sweep_again_ = Sweep::Of::kNothing;
  sweep_ = sweep_after_;
  moment_.reset();
  co_return Ok{};
}

coro::Task<Status> Checkpoint::run_superblock(io::Loop& loop, State state) {
  Superblock superblock = core_.slots.current();
  superblock.open = state.open;
  superblock.incarnation = state.incarnation;
  superblock.generation = generation_with(rewinds_);
  Status durable = co_await make_durable(loop, superblock);
  co_return durable;
}

coro::Task<Status> Checkpoint::write_key_slots(io::Loop& loop, KeySlots slots) {
  core_.slots.set_key_slots(slots);
  Status written = Ok{};
  for (int i = 0; i < 2 && written; ++i) {
    const Superblock last = core_.slots.current();
    const State state{.open = last.open, .incarnation = last.incarnation};
    written = co_await run_superblock(loop, state);
  }
  co_return written;
}

void Checkpoint::only_one_left() {
  const std::lock_guard lock(core_.mutex);
  core_.segments.only_checkpoint(table_);
  something_leaves_ = false;
}

coro::Task<Result<Superblock>> Checkpoint::write_manifest(io::Loop& loop, const IndexRoot& root) {
  Superblock superblock = core_.slots.current();
  count(gone_, superblock.manifest_offset, round_to_page(superblock.manifest_bytes));
  Manifest manifest;
  manifest.log = moment_->position;
  manifest.log.durable_lsn = manifest.log.next_lsn - 1;
  manifest.history = moment_->history;
  moment_->points.put_into(manifest);
  manifest.owners = moment_->owners;
  manifest.index = root;
  manifest.sweep = sweep_after_;
  // (What came while it was under way is for all of it.)
  if (sweep_again_ != Sweep::Of::kNothing) manifest.sweep = {.of = std::max(sweep_again_, sweep_after_.of)};
  manifest.unknown = unknown_;
  {
    // With room for the segment that the manifest itself may begin, and for what others make ready meanwhile.
    const std::lock_guard lock(core_.mutex);
    manifest.segments.resize(core_.segments.count() + kMoreSegments);
  }
  const uint64_t prefix = core_.metadata_cipher == nullptr ? 0 : MetadataCipher::kPrefixBytes;
  const uint64_t most = round_to_page(prefix + encode(manifest).size());
  Result<uint64_t> offset = co_await allocate_run(loop, most);
  if (!offset) co_return std::move(offset).error();
  // Its length does not depend on what the table says.
  manifest.segments = for_manifest(manifest.log.segment);
  const uint64_t needed = round_to_page(prefix + encode(manifest).size());
  if (needed > most) co_return make_error(EAGAIN, "the file has become much longer meanwhile");
  metadata_offset_ -= most - needed;
  made_[core_.segments.segment_at(offset.value())] -= most - needed;
  table_ = manifest.segments = for_manifest(manifest.log.segment);
  std::vector<std::byte> bytes = encode(manifest);
  superblock.manifest_offset = offset.value();
  ++superblock.checkpoint;
  if (core_.metadata_cipher != nullptr) bytes = core_.metadata_cipher->seal_manifest(superblock, bytes);
  superblock.manifest_crc = core_.sums.volume(bytes);
  superblock.manifest_bytes = bytes.size();
  bytes.resize(round_to_page(bytes.size()));
  const bool may = co_await core_.may_write(loop);
  if (!may) co_return make_error(EIO, "nothing is written to the volume any more");
  const int error = co_await write_bytes(loop, *core_.file, bytes, offset.value());
  if (error != 0) co_return make_error(error, "the manifest cannot be written: {}", errno_text(error));
  co_return superblock;
}

// What the superblock leads to is durable before it is written, and it is before anybody counts on it.
coro::Task<Status> Checkpoint::make_durable(io::Loop& loop, Superblock superblock) {
  int error = co_await sync(loop);
  if (error != 0) co_return make_error(error, "it cannot be made durable: {}", errno_text(error));
  error = co_await core_.slots.write(loop, superblock);
  if (error == 0) error = co_await sync(loop);
  if (error == 0) co_return Ok{};
  core_.poison(fmt::format("its superblock cannot be written: {}", errno_text(error)));
  co_return make_error(error, "its superblock cannot be written: {}", errno_text(error));
}

}  // namespace netblk::store::volume
