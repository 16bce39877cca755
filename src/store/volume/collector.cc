// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/collector.h"

#include <algorithm>
#include <cerrno>
#include <tuple>
#include <utility>

#include "base/log.h"
#include "store/volume/codec.h"
#include "store/volume/file_io.h"
#include "store/volume/space.h"

namespace netblk::store::volume {
namespace {

// Of one step: so that requests are not kept waiting by it.
constexpr uint64_t kWindowBytes = 128u << 10;
constexpr size_t kMostParts = kMaxRecordBlocks + 1;

uint64_t round_to_block(uint64_t offset) { return (offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes; }

// Blocks of one record that follow one another.
size_t run_length(std::span<const Entry> parts) {
  size_t count = 1;
  while (count < parts.size() && parts[count].block == end_of(parts[count - 1])) ++count;
  return count;
}

// Of so many blocks of it.
uint64_t header_bytes_for(const RecordHeader& of, uint64_t blocks) {
  const auto count = static_cast<uint32_t>(blocks);
  return record_header_bytes(count, of.is_encrypted() ? count : 0);
}

}  // namespace

// --- Which segment --------------------------------------------------------------------------------------------------

// Cost and benefit: what is gained, and for how long (old contents stay what they are), against what is read and written.
bool Collector::choose(const Choice& choice) {
  const std::lock_guard lock(core_.mutex);
  const Segments& segments = core_.segments;
  double best = 0;
  for (uint64_t i = 0; i < segments.count(); ++i) {
    const SegmentInfo& info = segments.info(i);
    if ((info.state != SegmentState::kLog && info.state != SegmentState::kCopies) || segments.leaving(i)) continue;
    if (info.live_bytes == 0 || info.highest_lsn == 0 || info.highest_lsn > choice.indexed_lsn) continue;
    if (i == core_.position.segment || i == core_.copies_segment) continue;
    if (emptied_.contains(i) || kept_.contains(i) || filled_.contains(i)) continue;
    uint64_t garbage = segments.bytes() - info.live_bytes;
    const auto weight = dead_weight_.find(i);
    // (No more than what lives can hold: of a record at least one block does.)
    if (weight != dead_weight_.end() && info.state == SegmentState::kCopies)
      garbage -= std::min({garbage, weight->second, uint64_t{info.live_bytes} * (kMaxRecordBlocks - 1)});
    if (garbage < choice.least_garbage_bytes) continue;
    const auto age = static_cast<double>(choice.first_of_all ? 1 : core_.position.next_lsn - info.highest_lsn);
    const double score = static_cast<double>(garbage) * age / static_cast<double>(segments.bytes() + info.live_bytes);
    if (score <= best) continue;
    best = score;
    victim_ = i;
  }
  scanned_ = 0;
  stays_ = found_any_ = false;
  return victim_.has_value();
}

void Collector::checkpoint_done() {
  emptied_.clear();
  filled_.clear();
  moved_bytes_ = 0;
  // A page with durable bytes in it is not written again.
  align_ = true;
  const std::lock_guard lock(core_.mutex);
  // What is free or leaves is another one when it is used again.
  const auto is_over = [this](uint64_t segment) {
    return core_.segments.leaving(segment) || core_.segments.info(segment).state == SegmentState::kFree;
  };
  std::erase_if(kept_, is_over);
  std::erase_if(dead_weight_, [&](const auto& each) { return is_over(each.first); });
  if (!victim_) return;
  const SegmentInfo& info = core_.segments.info(*victim_);
  if (info.live_bytes == 0 || core_.segments.leaving(*victim_)) victim_.reset();
}

// --- A step ---------------------------------------------------------------------------------------------------------

coro::Task<Collector::Step> Collector::step(Choice choice) {
  if (!victim_ && !choose(choice)) co_return Step::kNothing;
  int error = co_await read_window();
  if (error != 0) {
    log_error("{}: segment {} cannot be read, and is not collected: {}", core_.options.name, *victim_, errno_text(error));
    kept_.insert(*victim_);
    victim_.reset();
    co_return Step::kFailed;
  }
  find_records();
  seen_ = core_.index->root();
  for (size_t i = 0; i < records_.size() && error == 0; ++i) error = co_await move_record(records_[i]);
  if (error == 0) error = co_await write_out();
  if (error != 0) {
    // What was copied of the window and not written is copied again, another time.
    out_.clear();
    moved_.clear();
    victim_.reset();
    if (error != ENOSPC) give_up_segment();
    co_return error == ENOSPC ? Step::kNoRoom : Step::kFailed;
  }
  if (scanned_ < core_.segments.bytes()) co_return Step::kMoved;
  (stays_ || !found_any_ ? kept_ : emptied_).insert(*victim_);
  victim_.reset();
  co_return Step::kMoved;
}

coro::Task<int> Collector::read_window() {
  window_at_ = core_.segments.offset_of(*victim_) + scanned_;
  window_.resize(std::min(kWindowBytes, core_.segments.bytes() - scanned_));
  const int error = co_await read_bytes(loop_, *core_.file, window_, window_at_);
  co_return error;
}

// Whatever looks like a record: whether it is one of this segment's, the index knows.
void Collector::find_records() {
  records_.clear();
  const bool is_last = scanned_ + window_.size() == core_.segments.bytes();
  size_t at = 0;
  while (at + kMinHeaderBytes <= window_.size()) {
    const size_t left = window_.size() - at;
    // What may reach behind the window is the next one's.
    if (!is_last && left < kMaxHeaderBytes + kMaxRecordBlocks * kBlockBytes && at != 0) break;
    const auto header = decode_record(std::span(window_).subspan(at, std::min<size_t>(left, kMaxHeaderBytes)), core_.sums);
    if (header && header->type == RecordType::kData && header->stored_bytes() <= left) records_.push_back({*header, at});
    // Not by the record's length: a header may be left from an earlier use, before a block's beginning at which the log went on.
    at += kUnitBytes;
  }
  scanned_ += is_last ? window_.size() : at;
  // Looked up in the index's order, and neighbours become neighbours.
  std::sort(records_.begin(), records_.end(), [](const Record& a, const Record& b) {
    return std::tie(a.header.branch, a.header.block, a.header.lsn) < std::tie(b.header.branch, b.header.block, b.header.lsn);
  });
}

std::span<const std::byte> Collector::payload_of(const Record& record) const {
  return std::span(window_).subspan(record.at + record.header.header_bytes(), record.header.payload_bytes);
}

// The version of exactly this LSN, whoever reads it.
coro::Task<int> Collector::move_record(const Record& record) {
  const RecordHeader& header = record.header;
  const uint64_t place = window_at_ + record.at;
  const View view{{Layer{header.branch, {Interval{header.lsn - 1, header.lsn}}}}};
  std::vector<Entry> parts;
  if (!core_.index->try_lookup(view, header.block, header.blocks, kMostParts, parts)) {
    auto found = co_await core_.index->lookup(loop_, view, header.block, header.blocks, kMostParts);
    if (!found) {
      log_error("{}: segment {} is not collected: {}", core_.options.name, *victim_, found.error().message);
      stays_ = true;
      co_return 0;
    }
    parts = std::move(found).value();
  }
  std::erase_if(parts, [&](const Entry& part) {
    return !Place::is_data(part.place) || part.lsn != header.lsn || Place::offset(part.place) != place ||
           header.block + Place::index(part.place) != part.block || Place::record_blocks(part.place) != header.blocks;
  });
  if (parts.empty()) co_return 0;
  found_any_ = true;
  int error = 0;
  if (header.is_compressed()) {
    error = co_await move_compressed(record, parts);
    co_return error;
  }
  for (size_t i = 0, count = 0; i < parts.size() && error == 0; i += count) {
    count = run_length(std::span(parts).subspan(i));
    const uint64_t from = parts[i].block, until = end_of(parts[i + count - 1]);
    if (is_sound(record, from, until)) {
      error = co_await place_run(header, payload_of(record), from, until);
    } else {
      leave(record);
    }
  }
  co_return error;
}

// What is not as it was written is not carried on: a read may have gone wrong that goes right the next time.
void Collector::leave(const Record& record) {
  log_error("{}: the record at byte {} of the file (block {}, LSN {}) is damaged: its segment is not collected",
            core_.options.name, window_at_ + record.at, record.header.block, record.header.lsn);
  stays_ = true;
}

// As it is; or, where that is less, what is left of it as plain blocks.
coro::Task<int> Collector::move_compressed(const Record& record, const std::vector<Entry>& parts) {
  RecordHeader header = record.header;
  const auto payload = payload_of(record);
  if (!payload_passes(header, core_.sums, payload)) {
    leave(record);
    co_return 0;
  }
  const uint64_t stored = header.stored_bytes();
  uint64_t plain_bytes = 0, live = 0;
  for (const Entry& part : parts) {
    plain_bytes += record_header_bytes(part.blocks) + uint64_t{part.blocks} * kBlockBytes;
    live += live_bytes_of(part);
  }
  // (To seal other bytes under the same nonce is out of the question.)
  if (plain_bytes < stored && !header.is_encrypted()) {
    plain_.resize(size_t{header.blocks} * kBlockBytes);
    if (!decompress(header.flags & kCompressed, payload.first(header.payload_bytes), plain_)) {
      leave(record);
      co_return 0;
    }
    header.flags &= static_cast<uint8_t>(~kCompressed);
    for (uint32_t i = 0; i < header.blocks; ++i)
      header.sums[i] = core_.sums.block(header.branch, header.block + i, header.lsn,
                                        std::span<const std::byte>(plain_).subspan(size_t{i} * kBlockBytes, kBlockBytes));
    int error = 0;
    for (size_t i = 0; i < parts.size() && error == 0; ++i)
      error = co_await place_run(header, plain_, parts[i].block, end_of(parts[i]));
    co_return error;
  }
  if (end_ - std::min(end_, begin_out() + out_.size()) < stored) {
    int error = co_await write_out();
    if (error == 0) error = co_await begin_segment();
    if (error != 0) co_return error;
  }
  const uint64_t place = at_ + out_.size();
  for (const Entry& part : parts) {
    moved_.push_back(part);
    moved_.back().place = Place::relocated(part.place, place);
  }
  // A copy of it has as much of it that is dead.
  if (live < stored) dead_weight_[core_.segments.segment_at(place)] += stored - live;
  header.flags |= kFlagCopy;
  header.chain = 0;
  put(header, payload);
  co_return 0;
}

// Where what is in out_ goes.
uint64_t Collector::begin_out() {
  if (std::exchange(align_, false)) at_ = std::min(round_to_block(at_), end_);
  return at_;
}

bool Collector::is_sound(const Record& record, uint64_t from, uint64_t until) const {
  const RecordHeader& header = record.header;
  for (uint64_t block = from; block < until; ++block) {
    const uint64_t index = block - header.block;
    const auto bytes = payload_of(record).subspan(index * kBlockBytes, kBlockBytes);
    if (core_.sums.block(header.branch, block, header.lsn, bytes) != header.sums[index]) return false;
  }
  return true;
}

// The blocks [from, until) of the record, as one of their own, or several where a segment ends: sums bind each block by itself.
coro::Task<int> Collector::place_run(const RecordHeader& of, std::span<const std::byte> payload, uint64_t from, uint64_t until) {
  while (from < until) {
    const uint64_t room = end_ - std::min(end_, begin_out() + out_.size());
    uint64_t blocks = until - from;
    while (blocks > 0 && header_bytes_for(of, blocks) + blocks * kBlockBytes > room) --blocks;
    if (blocks == 0) {
      int error = co_await write_out();
      if (error == 0) error = co_await begin_segment();
      if (error != 0) co_return error;
      continue;
    }
    RecordHeader header = of;
    const uint64_t skipped = from - header.block;
    header.flags |= kFlagCopy;
    header.chain = 0;
    header.block = from;
    header.blocks = static_cast<uint32_t>(blocks);
    header.payload_bytes = header.blocks * kBlockBytes;
    std::copy_n(of.sums.begin() + static_cast<std::ptrdiff_t>(skipped), blocks, header.sums.begin());
    std::copy_n(of.tags.begin() + static_cast<std::ptrdiff_t>(skipped), blocks, header.tags.begin());
    moved_.push_back({.branch = header.branch, .blocks = header.blocks, .block = from, .lsn = header.lsn,
                      .place = Place::make(at_ + out_.size(), 0, header.blocks)});
    put(header, payload.subspan(skipped * kBlockBytes, header.payload_bytes));
    from += blocks;
  }
  co_return 0;
}

void Collector::put(RecordHeader& header, std::span<const std::byte> payload) {
  const size_t at = out_.size();
  out_.resize(at + header.stored_bytes());
  encode(header, core_.sums, std::span(out_).subspan(at, header.header_bytes()));
  std::copy(payload.begin(), payload.end(), out_.begin() + static_cast<std::ptrdiff_t>(at + header.header_bytes()));
}

coro::Task<int> Collector::begin_segment() {
  std::vector<uint64_t> taken;
  const int error = co_await take_segments(loop_, core_, 1, SegmentState::kCopies, Purpose::kCopies, taken);
  if (error != 0) co_return error;
  give_up_segment();
  const std::lock_guard lock(core_.mutex);
  core_.copies_segment = taken.front();
  filled_.insert(taken.front());
  dead_weight_.erase(taken.front());
  at_ = core_.segments.offset_of(taken.front());
  end_ = at_ + core_.segments.bytes();
  align_ = false;
  co_return 0;
}

// What was moved there stays until it is garbage.
void Collector::give_up_segment() {
  const std::lock_guard lock(core_.mutex);
  if (!core_.copies_segment) return;
  const uint64_t segment = *core_.copies_segment;
  core_.copies_segment.reset();
  if (core_.segments.info(segment).highest_lsn == 0) core_.segments.give_back(segment);
  at_ = end_ = 0;
}

// The copies are where the index will lead to before it does.
coro::Task<int> Collector::write_out() {
  if (out_.empty()) co_return 0;
  const bool may = co_await core_.may_write(loop_);
  if (!may) co_return EIO;
  const int error = co_await write_bytes(loop_, *core_.file, out_, at_);
  if (error != 0) {
    log_error("{}: copies cannot be written at byte {} of the file: {}", core_.options.name, at_, errno_text(error));
    co_return error == ENOSPC ? EIO : error;
  }
  at_ += out_.size();
  out_.clear();
  gone_.clear();
  const std::lock_guard lock(core_.mutex);
  if (core_.index->add_copies(moved_, seen_, gone_)) {
    uint64_t bytes = 0;
    for (const Entry& entry : moved_) {
      core_.segments.add_live(Place::offset(entry.place), live_bytes_of(entry));
      core_.segments.wrote(core_.segments.segment_at(Place::offset(entry.place)), entry.lsn);
      bytes += live_bytes_of(entry);
    }
    core_.collected_bytes.fetch_add(bytes, std::memory_order_relaxed);
    moved_bytes_ += bytes;
    for (const Entry& entry : gone_) {
      core_.segments.remove_live(Place::offset(entry.place), live_bytes_of(entry));
      moved_bytes_ -= std::min(moved_bytes_, live_bytes_of(entry));
    }
  } else {
    stays_ = true;
  }
  moved_.clear();
  co_return 0;
}

}  // namespace netblk::store::volume
