// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/recovery.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "base/log.h"
#include "store/volume/contents.h"
#include "store/volume/file_io.h"

namespace netblk::store::volume {
namespace {

// Records that count together or not at all. A request is of far fewer.
constexpr size_t kMaxSequence = 4096;

// A right checksum says that a program wrote it, not that it was ours: what memory is indexed by and lengths are taken from.
const char* nonsense_in(const Manifest& manifest, const Superblock& superblock) {
  const uint64_t segment_bytes = superblock.segment_bytes();
  const uint64_t count = manifest.segments.size();
  const auto segment_at = [&](uint64_t offset) { return (offset - kSegmentsAt) >> superblock.segment_shift; };
  const auto is_page = [&](uint64_t offset) {
    return offset >= kSegmentsAt && offset % kPageBytes == 0 && segment_at(offset) < count;
  };
  if (count > most_segments(segment_bytes)) return "it has more segments than there can be";
  for (const SegmentInfo& info : manifest.segments)
    if (info.live_bytes > segment_bytes) return "more is alive in a segment than it has";
  const LogPosition& log = manifest.log;
  if (log.segment >= count || manifest.segments[log.segment].state != SegmentState::kLog || log.offset > segment_bytes)
    return "its log is in no segment of the log";
  if (!is_page(superblock.manifest_offset) ||
      segment_at(superblock.manifest_offset + superblock.manifest_bytes - 1) != segment_at(superblock.manifest_offset))
    return "it is in no segment itself";
  const IndexRoot& root = manifest.index;
  if (root.offset != 0 && (!is_page(root.offset) || root.level > kMaxTreeLevel - 2)) return "its index is in no segment, or too high";
  if (log.next_lsn > kMaxLsn) return "its log has more records than there can be";
  std::set<uint32_t> numbers;
  for (const BranchInfo& branch : manifest.branches) {
    if (!numbers.insert(branch.number).second) return "two branches have one number";
    if (!is_disk_size(branch.size_bytes)) return "a branch has a size that cannot be";
    for (const Resized& resized : branch.resizes)
      if (!is_disk_size(resized.before_bytes)) return "a branch had a size that cannot be";
    uint64_t before = 0;
    for (const Rewind& rewind : branch.rewinds) {
      if (rewind.target >= rewind.record || rewind.record <= before || rewind.record >= log.next_lsn)
        return "a branch was rewound to what cannot be";
      before = rewind.record;
    }
  }
  if (!numbers.contains(kHeadBranch)) return "it has no branch 1";
  // Numbers ascend in time: a parent has a lower one.
  for (const BranchInfo& branch : manifest.branches)
    if (branch.parent.branch != 0 && (branch.parent.branch >= branch.number || !numbers.contains(branch.parent.branch)))
      return "a branch began from one that cannot be";
  for (const SnapshotInfo& snapshot : manifest.snapshots) {
    if (!is_disk_size(snapshot.size_bytes)) return "a snapshot has a size that cannot be";
    if (!numbers.contains(snapshot.point.branch)) return "a snapshot is of no branch";
  }
  return nullptr;
}

coro::Task<Result<Manifest>> read_manifest(io::Loop& loop, io::File& file, const Superblock& superblock,
                                           const MetadataCipher* cipher) {
  const Sums sums(superblock.uuid);
  std::vector<std::byte> bytes;
  int error = co_await read_what_is_there(loop, file, bytes, superblock.manifest_bytes, superblock.manifest_offset);
  if (error != 0) co_return make_error(error, "its manifest cannot be read: {}", errno_text(error));
  if (bytes.size() != superblock.manifest_bytes) co_return make_error(EBADMSG, "its manifest ends behind the file");
  if (sums.volume(bytes) != superblock.manifest_crc) co_return make_error(EBADMSG, "the checksum of its manifest is wrong");
  if (cipher != nullptr) {
    auto opened = cipher->open_manifest(superblock, bytes);
    if (!opened) co_return make_error(EBADMSG, "its manifest is not what this volume sealed");
    bytes = std::move(*opened);
  }
  Result<Manifest> manifest = decode_manifest(bytes);
  if (!manifest) co_return manifest;
  if (const char* const nonsense = nonsense_in(manifest.value(), superblock))
    co_return make_error(EBADMSG, "its manifest makes no sense: {}", nonsense);
  if (manifest.value().index.offset == 0) co_return manifest;
  const IndexRoot& root = manifest.value().index;
  std::array<std::byte, kPageBytes> page;
  error = co_await read_bytes(loop, file, page, root.offset);
  if (error != 0) co_return make_error(error, "the root of its index cannot be read: {}", errno_text(error));
  const auto header = check_page(root.offset, sums, page, cipher);
  if (!header || header->crc != root.crc) co_return make_error(EBADMSG, "the root of its index is damaged");
  co_return manifest;
}

// The log's bytes, read ahead. Places are offsets in the file.
class Window {
 public:
  Window(io::Loop& loop, Core& core) : loop_(loop), core_(core) {}

  // bytes(at, length) are there afterwards: 0, or errno. The range lies in one segment.
  coro::Task<int> fetch(uint64_t at, uint64_t length) {
    if (at >= begin_ && at + length <= begin_ + bytes_.size()) co_return 0;
    const uint64_t end = core_.segments.offset_of(core_.segments.segment_at(at) + 1);
    bytes_.resize(std::max(length, std::min(kAheadBytes, end - at)));
    begin_ = at;
    int error = co_await read_bytes(loop_, *core_.file, bytes_, begin_);
    if (error != 0 && bytes_.size() > length) {
      // What was read ahead may be what cannot be read.
      bytes_.resize(length);
      error = co_await read_bytes(loop_, *core_.file, bytes_, begin_);
    }
    if (error != 0) bytes_.clear();
    co_return error;
  }
  std::span<const std::byte> bytes(uint64_t at, uint64_t length) const {
    return std::span(bytes_).subspan(at - begin_, length);
  }

 private:
  static constexpr uint64_t kAheadBytes = 1u << 20;
  io::Loop& loop_;
  Core& core_;
  std::vector<std::byte> bytes_;
  uint64_t begin_ = 0;
};

struct Found {
  RecordHeader header;
  uint64_t offset = 0;  // in the file
  std::vector<std::byte> payload;  // of a change
};

class Replay {
 public:
  Replay(io::Loop& loop, Core& core) : loop_(loop), core_(core), window_(loop, core), at_(core.position) {}

  coro::Task<Replayed> run(bool was_open) {
    highest_durable_ = at_.durable_lsn;
    for (;;) {
      const bool found = co_await next();
      if (!found) break;
      if (!accept()) break;
    }
    if (unreadable_ != 0) {
      result_.damage = fmt::format("its log cannot be read behind record {}: {}", core_.position.next_lsn - 1, errno_text(unreadable_));
    } else if (was_open && result_.damage.empty()) {
      co_await look_behind();
      if (unreadable_ != 0)
        result_.damage = fmt::format("what follows record {} of its log cannot be read: {}", at_.next_lsn - 1, errno_text(unreadable_));
      if (highest_durable_ >= at_.next_lsn)
        result_.damage = fmt::format("record {} of its log is damaged (byte {}), though it and what follows, up to record {}, were durable",
                                     at_.next_lsn, offset_of(at_), highest_durable_);
      result_.cut = result_.damage.empty() && (something_behind_ || !sequence_.empty());
    }
    if (core_.segments.damaged() && result_.damage.empty())
      result_.damage = "its manifest has other live bytes in a segment than its log makes of them: it is damaged";
    std::erase_if(result_.not_durable, [&](const Replayed::Stretch& stretch) { return stretch.last_lsn <= highest_durable_; });
    core_.position.durable_lsn = core_.durable_lsn = std::min(highest_durable_, core_.position.next_lsn - 1);
    co_return std::move(result_);
  }

 private:
  uint64_t offset_of(const LogPosition& position) const {
    return core_.segments.offset_of(position.segment) + position.offset;
  }

  // After a sync the log goes on at the next block; otherwise at the next unit. A record that fits at the one has not been
  // written at the other.
  coro::Task<bool> next() {
    const uint64_t block = (at_.offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
    const bool at_block = co_await try_at(block);
    if (at_block || block == at_.offset) co_return at_block;
    const bool at_unit = co_await try_at(at_.offset);
    co_return at_unit;
  }

  coro::Task<bool> try_at(uint64_t offset) {
    const uint64_t left = core_.segments.bytes() - std::min(offset, core_.segments.bytes());
    if (left < kMinHeaderBytes) co_return false;
    const uint64_t place = core_.segments.offset_of(at_.segment) + offset;
    const uint64_t header_room = std::min<uint64_t>(left, kMaxHeaderBytes);
    const int error = co_await window_.fetch(place, header_room);
    if (error != 0) {
      unreadable_ = error;
      co_return false;
    }
    const auto header = decode_record(window_.bytes(place, header_room), core_.sums);
    if (!header || header->lsn != at_.next_lsn || header->chain != at_.chain || header->incarnation != at_.incarnation ||
        (header->flags & kFlagCopy) != 0 || header->stored_bytes() > left)
      co_return false;
    const uint64_t whole = uint64_t{header->header_bytes()} + header->payload_bytes;
    const int payload_error = co_await window_.fetch(place, whole);
    if (payload_error != 0) {
      unreadable_ = payload_error;
      co_return false;
    }
    const auto payload = window_.bytes(place, whole).subspan(header->header_bytes());
    if (!payload_passes(*header, core_.sums, payload)) {
      // Its header is whole: it was written, and what it says of others counts.
      something_behind_ = true;
      co_return false;
    }
    found_ = {*header, place, {}};
    if (header->type == RecordType::kPoint) found_.payload.assign(payload.begin(), payload.end());
    // (That of data is opened where it is read.)
    if (core_.cipher != nullptr && header->type != RecordType::kData) {
      Cipher::Use use(*core_.cipher, Cipher::Purpose::kRecords, header->incarnation, false);
      if (!open_payload(use, *header, found_.payload)) {
        something_behind_ = true;
        co_return false;
      }
    }
    unreadable_ = 0;
    at_.offset = offset + header->stored_bytes();
    co_return true;
  }

  // False: the record is whole, and this program cannot go on behind it.
  bool accept() {
    const RecordHeader& header = found_.header;
    highest_durable_ = std::max(highest_durable_, header.durable_lsn);
    at_.next_lsn = header.lsn + 1;
    at_.chain = header.crc;
    at_.time_ns = header.time_ns;
    if (header.type == RecordType::kNext) {
      if (header.block >= most_segments(core_.segments.bytes())) {
        result_.damage = fmt::format("record {} of its log leads to segment {}, which cannot be", header.lsn, header.block);
        return false;
      }
      at_.segment = header.block;
      at_.offset = 0;
    }
    // A change of names is alone: what a sequence keeps in memory are headers, and not many.
    const bool goes_on = (header.flags & kFlagContinued) != 0;
    if ((header.type == RecordType::kPoint && (goes_on || !sequence_.empty())) || sequence_.size() >= kMaxSequence) {
      result_.damage = fmt::format("record {} of its log is in a sequence that cannot be", header.lsn);
      return false;
    }
    sequence_.push_back(std::move(found_));
    return (sequence_.back().header.flags & kFlagContinued) != 0 || apply();
  }

  // A sequence is whole: it counts.
  bool apply() {
    uint64_t bytes = 0;
    for (const Found& found : sequence_) {
      const RecordHeader& header = found.header;
      bytes += header.stored_bytes();
      note(found.offset, found.offset + header.stored_bytes(), header.lsn);
      core_.segments.found_in_use(core_.segments.segment_at(found.offset), SegmentState::kLog);
      core_.segments.wrote(core_.segments.segment_at(found.offset), header.lsn);
      if (header.type == RecordType::kPoint) {
        if (!apply_change(found)) return false;
      } else if (header.type != RecordType::kNext) {
        apply_blocks(found);
      }
    }
    if (core_.history_from != kForever) core_.history.wrote(at_.time_ns, at_.next_lsn - 1, bytes);
    core_.segments.found_in_use(at_.segment, SegmentState::kLog);
    result_.records += sequence_.size();
    core_.log_bytes += at_.segment == core_.position.segment ? at_.offset - core_.position.offset : at_.offset;
    core_.position = at_;
    sequence_.clear();
    return true;
  }

  void note(uint64_t offset, uint64_t end, uint64_t lsn) {
    auto& stretches = result_.not_durable;
    if (!stretches.empty() && stretches.back().end == offset) {
      stretches.back().end = end;
      stretches.back().last_lsn = lsn;
    } else {
      std::erase_if(stretches, [&](const Replayed::Stretch& stretch) { return stretch.last_lsn <= highest_durable_; });
      stretches.push_back({offset, end, lsn});
    }
  }

  void apply_blocks(const Found& found) {
    const RecordHeader& header = found.header;
    uint64_t place = header.type == RecordType::kZero ? Place::kZero : Place::kHole;
    if (header.type == RecordType::kData)
      place = Place::make(found.offset, 0, header.blocks, header.stored_units());
    const Entry entry{header.branch, header.blocks, header.block, header.lsn, place};
    if (Place::is_data(place)) core_.segments.add_live(found.offset, live_bytes_of(entry));
    gone_.clear();
    core_.index->add({&entry, 1}, gone_);
    for (const Entry& gone : gone_)
      if (Place::is_data(gone.place)) core_.segments.remove_live(Place::offset(gone.place), live_bytes_of(gone));
  }

  bool apply_change(const Found& found) {
    Result<Change> change = decode_change(found.payload);
    Status applied = Ok{};
    if (!change) {
      applied = std::move(change).error();
    } else if (change.value().kind == ChangeKind::kOwners) {
      core_.owners = with_owners(core_.owners, change.value().owners, core_.uuid, core_.index->points());
    } else {
      Points points = core_.index->points();
      applied = points.apply(change.value(), {found.header.branch, found.header.lsn}, found.header.time_ns);
      if (applied) core_.set_points(std::move(points));
      if (applied.ok() && turns_head(change.value())) ++result_.rewinds;
    }
    // The words may have a name, which is not for the log of an encrypted volume.
    if (!applied)
      result_.damage = fmt::format("record {} of its log cannot be applied: {}", found.header.lsn,
                                   core_.cipher == nullptr ? applied.error().message : errno_text(applied.error().code));
    return applied.ok();
  }

  // The log has ended: do records of the same opening behind it say that more of it was durable? What cannot be read may be one.
  coro::Task<void> look_behind() {
    co_await look_through(at_.segment, at_.offset);
    // Segments that were taken since, in whatever order: those that the manifest calls free, or that left with it. (A newer
    // checkpoint, whose superblock is lost, may have given these to the log.) Behind the file's end there are none.
    for (uint64_t i = 0; i < most_segments(core_.segments.bytes()) && unreadable_ == 0; ++i) {
      if (i == at_.segment) continue;
      if (i < core_.segments.count()) {
        const SegmentState state = core_.segments.info(i).state;
        if (state != SegmentState::kFree && state != SegmentState::kLeaving) continue;
      }
      std::array<std::byte, kMaxHeaderBytes> bytes{};
      const uint64_t place = core_.segments.offset_of(i);
      const int32_t got = co_await io::await([&](io::Op& op) { return core_.file->read(loop_, op, bytes, place); });
      if (got < 0) unreadable_ = -got;
      if (got == 0 && i >= core_.segments.count()) break;
      // The first ones may have been written before the sync that one in the middle knows of.
      if (got > 0 && is_behind(bytes)) co_await look_through(i, 0);
    }
  }

  coro::Task<void> look_through(uint64_t segment, uint64_t offset) {
    const uint64_t end = core_.segments.bytes();
    for (; offset + kMinHeaderBytes <= end && unreadable_ == 0; offset += kUnitBytes) {
      const uint64_t place = core_.segments.offset_of(segment) + offset;
      const uint64_t room = std::min<uint64_t>(end - offset, kMaxHeaderBytes);
      unreadable_ = co_await window_.fetch(place, room);
      if (unreadable_ == 0) (void)is_behind(window_.bytes(place, room));
    }
  }

  // Whether a record of the same opening that is behind the log's end begins with these bytes.
  bool is_behind(std::span<const std::byte> bytes) {
    const auto header = decode_record(bytes, core_.sums);
    if (!header || header->incarnation != at_.incarnation || header->lsn < at_.next_lsn) return false;
    something_behind_ = true;
    highest_durable_ = std::max(highest_durable_, header->durable_lsn);
    return true;
  }

  io::Loop& loop_;
  Core& core_;
  Window window_;
  LogPosition at_;  // behind the last record that passed; core_.position is behind the last that counts
  Found found_;
  std::vector<Found> sequence_;
  std::vector<Entry> gone_;
  uint64_t highest_durable_ = 0;
  int unreadable_ = 0;
  bool something_behind_ = false;
  Replayed result_;
};

}  // namespace

coro::Task<Result<Start>> find_start(io::Loop& loop, io::File& file, const UserKey* key) {
  Slots slots(file);
  Result<Slots::Found> found = co_await slots.read(loop);
  if (!found) co_return std::move(found).error();
  if (!found.value().newer) co_return *found.value().error;
  if (found.value().error) log_warning("a volume is opened by its other superblock: {}", found.value().error->message);
  std::shared_ptr<Cipher> cipher;
  std::unique_ptr<MetadataCipher> metadata;
  // Who was shut out by the newer superblock is not let in by the older one.
  const Superblock& newer = *found.value().newer;
  Result<Unlocked> unlocked = open_slots(newer.encrypted(), newer.key_slots, key);
  if (!unlocked) co_return std::move(unlocked).error();
  if (newer.encrypted()) {
    cipher = std::make_shared<Cipher>(std::move(unlocked.value().volume_key));
    metadata = std::make_unique<MetadataCipher>(cipher);
  }
  std::optional<Error> first_error;
  for (int i = 0; i < 2; ++i) {
    const std::optional<Superblock>& superblock = i == 0 ? found.value().newer : found.value().older;
    if (!superblock) continue;
    Result<Manifest> manifest = co_await read_manifest(loop, file, *superblock, metadata.get());
    if (manifest) {
      Start start{*superblock, std::move(manifest).value(), cipher};
      start.superblock.key_slots = found.value().newer->key_slots;
      // The next superblock takes the place of the one that is not used, with a number above it.
      if (i == 1) start.superblock.sequence = newer.sequence + 1;
      else if (found.value().error) start.superblock.sequence += 2;
      start.by_other = i == 1 || found.value().error;
      start.forgets = newer.incarnation != superblock->incarnation;
      // What somebody may have been told.
      start.superblock.generation = std::max(start.superblock.generation, newer.generation);
      if (i == 1) log_warning("a volume is opened by its other superblock: {}", first_error->message);
      co_return start;
    }
    if (manifest.error().code == EPROTONOSUPPORT) co_return std::move(manifest).error();
    if (!first_error) first_error = std::move(manifest).error();
  }
  co_return *first_error;
}

coro::Task<int> write_again(io::Loop& loop, Core& core, const std::vector<Replayed::Stretch>& stretches) {
  constexpr uint64_t kAtOnce = 1u << 20;
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < stretches.size(); ++i) {
    for (uint64_t at = stretches[i].offset; at < stretches[i].end; at += bytes.size()) {
      bytes.resize(std::min(kAtOnce, stretches[i].end - at));
      int error = co_await read_bytes(loop, *core.file, bytes, at);
      if (error == 0) error = co_await write_bytes(loop, *core.file, bytes, at);
      if (error != 0) co_return error;
    }
  }
  co_return 0;
}

coro::Task<Replayed> replay(io::Loop& loop, Core& core, bool was_open) {
  Replay replay(loop, core);
  Replayed result = co_await replay.run(was_open);
  co_return result;
}

}  // namespace netblk::store::volume
