// SPDX-License-Identifier: GPL-2.0-only
// The bytes of a volume's file (docs/volume-format.md), without I/O. Decoders take any bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/endian.h"
#include "base/id.h"
#include "base/result.h"
#include "store/volume/transfer.h"

namespace netblk::store::volume {

inline constexpr uint32_t kBlockBytes = 4096;
inline constexpr uint32_t kUnitBytes = 64;
inline constexpr uint32_t kMaxRecordBlocks = 16;
inline constexpr uint32_t kMaxSums = kMaxRecordBlocks;
inline constexpr uint64_t kMaxAtomicBytes = 1u << 20;  // a request up to this is whole or not there after a crash

inline constexpr uint32_t kFormatVersion = 2;
inline constexpr uint32_t kSuperblockBytes = 4096;
inline constexpr std::array<uint64_t, 2> kSuperblockAt = {0, 524'288};
inline constexpr uint64_t kSegmentsAt = 1u << 20;
inline constexpr uint32_t kMinSegmentShift = 16;
inline constexpr uint32_t kDefaultSegmentShift = 24;
inline constexpr uint32_t kMaxSegmentShift = 28;

inline constexpr uint64_t kMaxLsn = UINT64_MAX >> 1;
inline constexpr uint64_t kMaxBlock = UINT64_MAX / kBlockBytes;  // the highest that has an address

inline constexpr uint32_t kHeadBranch = 1;

inline constexpr size_t kMaxNameBytes = 64;
inline constexpr uint32_t kMaxBranches = 1u << 20;
inline constexpr uint32_t kMaxSnapshots = 1u << 20;
inline constexpr uint32_t kMaxRewinds = 1u << 16;
inline constexpr uint32_t kMaxResizes = 1u << 16;
inline constexpr uint32_t kMaxSettings = 64;
inline constexpr uint32_t kMaxMoments = 4096;
inline constexpr uint32_t kMaxChangeBytes = 1u << 20;

// A branch as it was when the record with this LSN had been applied.
struct Point {
  uint32_t branch = 0;
  uint64_t lsn = 0;
  bool operator==(const Point&) const = default;
};

// Where the index says that blocks [block, block + blocks) of a branch are, as the record `lsn` left them.
struct Entry {
  uint32_t branch = 0;
  uint32_t blocks = 0;
  uint64_t block = 0;
  uint64_t lsn = 0;
  uint64_t place = 0;
  bool operator==(const Entry&) const = default;
};

// Entry::place: a hole, zeroes, or where in `data` the record begins, which of its blocks is the entry's first, how many
// blocks the record has, and where its payload is compressed how long that is: this gives its header's length, so that one
// vectored read takes header and blocks.
struct Place {
  static constexpr uint64_t kHole = uint64_t{1} << 62;
  static constexpr uint64_t kZero = uint64_t{1} << 63;
  static constexpr uint64_t kMaxUnit = (uint64_t{1} << 44) - 1;

  // stored_units: of a compressed payload, rounded up; 0: it is the blocks.
  static constexpr uint64_t make(uint64_t offset, uint32_t index, uint32_t record_blocks, uint32_t stored_units = 0) {
    return offset / kUnitBytes | uint64_t{index} << 48 | uint64_t{record_blocks - 1} << 52 |
           uint64_t{stored_units & 15} << 44 | uint64_t{stored_units >> 4} << 56;
  }
  static constexpr bool is_data(uint64_t place) { return (place & (kHole | kZero)) == 0; }
  static constexpr uint64_t offset(uint64_t place) { return (place & kMaxUnit) * kUnitBytes; }
  static constexpr uint32_t index(uint64_t place) { return static_cast<uint32_t>(place >> 48 & 15); }
  // The same record, and the same block of it, in another place of the file.
  static constexpr uint64_t relocated(uint64_t place, uint64_t offset) { return (place & ~kMaxUnit) | offset / kUnitBytes; }
  static constexpr uint32_t record_blocks(uint64_t place) { return static_cast<uint32_t>(place >> 52 & 15) + 1; }
  static constexpr uint32_t stored_units(uint64_t place) {
    return static_cast<uint32_t>((place >> 44 & 15) | (place >> 56 & 63) << 4);
  }
  // The place of the block that is `by` further on in the same record.
  static constexpr uint64_t moved(uint64_t place, uint64_t by) {
    return is_data(place) ? place + (by << 48) : place;
  }
};

// CRC32C, started from what the bytes are bound to. Cheap to copy.
class Sums {
 public:
  // encrypted: of a volume whose records all are; others are none.
  explicit Sums(const Id& uuid, bool encrypted = false);
  uint32_t volume(std::span<const std::byte> bytes) const;
  uint32_t page(uint64_t offset, std::span<const std::byte> bytes) const;
  // Of a block, or of a payload that is no blocks.
  uint32_t block(uint32_t branch, uint64_t block, uint64_t lsn, std::span<const std::byte> bytes) const;
  bool encrypted() const { return encrypted_; }

 private:
  uint32_t uuid_;
  bool encrypted_;
};

// --- Superblock -----------------------------------------------------------------------------------------------------

// Incompatible features.
inline constexpr uint64_t kEncrypted = 1;
inline constexpr uint64_t kKnownIncompatible = kEncrypted;

inline constexpr size_t kKeySlotsAt = 1024;
using KeySlots = std::array<std::byte, 1024>;  // keys.h

struct Superblock {
  uint64_t compatible = 0, read_only_compatible = 0, incompatible = 0;
  Id uuid;
  uint64_t sequence = 0;
  uint64_t generation = 1;
  bool open = false;  // for writing, or it was when the power went
  uint32_t segment_shift = kDefaultSegmentShift;
  Id incarnation;
  uint64_t manifest_offset = 0, manifest_bytes = 0;
  uint32_t manifest_crc = 0;
  uint64_t checkpoint = 0;
  KeySlots key_slots{};

  bool encrypted() const { return (incompatible & kEncrypted) != 0; }
  uint64_t segment_bytes() const { return uint64_t{1} << segment_shift; }
  bool operator==(const Superblock&) const = default;
};

using SuperblockBytes = std::array<std::byte, kSuperblockBytes>;

SuperblockBytes encode(const Superblock& superblock, uint32_t version = kFormatVersion);
// EBADMSG: damaged, or nothing of ours. EPROTONOSUPPORT: of another version, or with a feature that this one does not know.
Result<Superblock> decode_superblock(std::span<const std::byte> bytes, uint32_t version = kFormatVersion);
// Of anything that is as long.
uint32_t version_of_superblock(std::span<const std::byte> bytes);

// --- Records --------------------------------------------------------------------------------------------------------

enum class RecordType : uint8_t { kData = 1, kZero = 2, kTrim = 3, kNext = 4, kPoint = 6 };

inline constexpr uint8_t kFlagCopy = 1;
inline constexpr uint8_t kFlagContinued = 2;
inline constexpr uint8_t kFlagEncrypted = 4;
inline constexpr uint8_t kFlagLz4 = 8;
inline constexpr uint8_t kFlagZstd = 16;
inline constexpr uint8_t kCompressed = kFlagLz4 | kFlagZstd;

// How data records are tried. The numbers are those of the manifest.
enum class Compression : uint8_t { kNone = 0, kLz4 = 1, kZstd = 2 };

// A compressed payload of so many blocks is at most so long: it saves an eighth.
constexpr uint32_t most_compressed_bytes(uint32_t blocks) { return blocks * (kBlockBytes - kBlockBytes / 8); }

using Tag = std::array<std::byte, 16>;

struct RecordHeader {
  RecordType type = RecordType::kData;
  uint8_t flags = 0;
  uint32_t payload_bytes = 0;
  uint64_t lsn = 0;
  uint64_t durable_lsn = 0;
  uint64_t time_ns = 0;
  Id incarnation;
  uint32_t branch = 0;
  uint32_t blocks = 0;
  uint64_t block = 0;
  uint32_t chain = 0;
  std::array<uint32_t, kMaxSums> sums{};
  std::array<Tag, kMaxSums> tags{};  // where it is encrypted

  uint32_t crc = 0;  // of the header: the next record's chain; set by encode and decode

  bool is_compressed() const { return (flags & kCompressed) != 0; }
  // Of data: one for each block, or one of the whole payload where that is compressed.
  uint32_t sum_count() const {
    if (type == RecordType::kData) return is_compressed() ? 1 : blocks;
    return type == RecordType::kPoint ? 1 : 0;
  }
  bool is_encrypted() const { return (flags & kFlagEncrypted) != 0; }
  // As sums; and one where there is nothing to sum up, for the header's sake.
  uint32_t tag_count() const { return is_encrypted() ? std::max(sum_count(), 1u) : 0; }
  // For its place.
  uint32_t stored_units() const { return is_compressed() ? (payload_bytes + kUnitBytes - 1) / kUnitBytes : 0; }
  uint32_t header_bytes() const;
  // What it takes in the log: the next record may begin there.
  uint64_t stored_bytes() const;
};

inline constexpr uint32_t kRecordFixedBytes = 96;
constexpr uint32_t record_header_bytes(uint32_t sums, uint32_t tags = 0) {
  return (kRecordFixedBytes + 4 * sums + uint32_t{sizeof(Tag)} * tags + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
}
inline constexpr uint32_t kMinHeaderBytes = record_header_bytes(0);
inline constexpr uint32_t kMaxHeaderBytes = record_header_bytes(kMaxSums, kMaxSums);
// Of a data record that an entry leads to.
constexpr uint32_t data_header_bytes(uint64_t place, bool encrypted) {
  const uint32_t sums = Place::stored_units(place) != 0 ? 1 : Place::record_blocks(place);
  return record_header_bytes(sums, encrypted ? sums : 0);
}
constexpr uint64_t round_to_unit(uint64_t bytes) { return (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes; }

// What counts as alive in a record for these blocks of it: of the parts of an entry it is in sum what it is of the whole. Never 0.
constexpr uint64_t live_bytes_of(const Entry& entry) {
  const uint64_t units = Place::stored_units(entry.place);
  if (units == 0) return uint64_t{entry.blocks} * kBlockBytes;
  // The header of a compressed one has a tag's room.
  const uint64_t bytes = record_header_bytes(1, 1) + units * kUnitBytes, blocks = Place::record_blocks(entry.place);
  const uint64_t from = Place::index(entry.place), until = from + entry.blocks;
  return bytes * until / blocks - bytes * from / blocks;
}

inline uint32_t RecordHeader::header_bytes() const { return record_header_bytes(sum_count(), tag_count()); }
inline uint64_t RecordHeader::stored_bytes() const { return round_to_unit(uint64_t{header_bytes()} + payload_bytes); }

// The record that the entry leads to.
inline bool is_record_of(const RecordHeader& header, const Entry& entry) {
  const uint32_t index = Place::index(entry.place);
  return header.type == RecordType::kData && header.lsn == entry.lsn && header.branch == entry.branch &&
         header.block + index == entry.block && header.blocks == Place::record_blocks(entry.place) &&
         header.stored_units() == Place::stored_units(entry.place) && index + entry.blocks <= header.blocks;
}

// Writes header_bytes() and sets `crc`.
void encode(RecordHeader& header, const Sums& sums, std::span<std::byte> into);
// From the first bytes of a place; kMaxHeaderBytes are always enough. None: there is no whole header of a record there.
std::optional<RecordHeader> decode_record(std::span<const std::byte> bytes, const Sums& sums);
// The payload's sums are as the header says.
bool payload_passes(const RecordHeader& header, const Sums& sums, std::span<const std::byte> payload);

// A record of names: what it changes, of the branch that its header has. The point that it makes is its own: (its branch, its
// LSN), at its time.
enum class ChangeKind : uint32_t {
  kSnapshot = 1,
  kDeletion = 2,  // of a snapshot, or of a branch
  kResize = 3,
  kOwners = 4,
  kClone = 5,
  kRewind = 6,
  kSetting = 7,
  kHistory = 8,
  kReceive = 32,
};

struct Change {
  ChangeKind kind = ChangeKind::kSnapshot;
  std::string name = {};      // kSnapshot, kDeletion, kClone, kSetting
  uint64_t size_bytes = 0;    // kResize
  std::vector<std::byte> owners = {};  // kOwners: of which contents, and who owns them (contents.h)
  uint64_t lsn = 0;           // kClone: of the point of this branch that it begins from, 0 for the record's own; kRewind: the target;
                              // kHistory: what is older is no longer kept
  std::string value = {};     // kSetting
  ReceiveStep step = ReceiveStep::kBegin;  // kReceive, with those members of `receiving` that it says
  Receiving receiving = {};
  bool operator==(const Change&) const = default;
};

std::vector<std::byte> encode(const Change& change);
Result<Change> decode_change(std::span<const std::byte> bytes);

// [A-Za-z_][A-Za-z0-9._-]{0,63}
bool is_name(std::string_view name);
// Of a disk: whole sectors, not 0, at most limits::kMaxDeviceBytes.
bool is_disk_size(uint64_t bytes);

// --- Index pages ----------------------------------------------------------------------------------------------------

inline constexpr uint32_t kPageBytes = 4096;
inline constexpr uint32_t kPageHeaderBytes = 32;
inline constexpr uint32_t kLeafEntryBytes = 32;
inline constexpr uint32_t kInnerEntryBytes = 40;
inline constexpr uint32_t kLeafEntries = (kPageBytes - kPageHeaderBytes) / kLeafEntryBytes;
inline constexpr uint32_t kInnerEntries = (kPageBytes - kPageHeaderBytes) / kInnerEntryBytes;
// On the disk of an encrypted volume.
inline constexpr uint32_t kSealedPageHeaderBytes = 80;
inline constexpr uint32_t kSealedLeafEntries = (kPageBytes - kSealedPageHeaderBytes) / kLeafEntryBytes;
inline constexpr uint32_t kSealedInnerEntries = (kPageBytes - kSealedPageHeaderBytes) / kInnerEntryBytes;

// A child of an inner page: the first entry below it without its place, where the child is, and its own CRC field.
struct Child {
  uint32_t branch = 0;
  uint32_t blocks = 0;
  uint64_t block = 0;
  uint64_t lsn = 0;
  uint64_t offset = 0;
  uint32_t crc = 0;
  uint32_t flags = 0;
  bool operator==(const Child&) const = default;
};
inline constexpr uint32_t kChildHasCovered = 1;  // an extent below has more than one version
inline constexpr uint32_t kChildContinues = 2;   // its first extent has newer versions in the page before

struct PageHeader {
  uint16_t level = 0;  // 0: a leaf
  uint16_t entries = 0;
  uint64_t checkpoint = 0;
  uint32_t crc = 0;
  bool operator==(const PageHeader&) const = default;
};

void encode_leaf_entry(const Entry& entry, uint32_t at, std::span<std::byte, kPageBytes> page);
inline Entry decode_leaf_entry(uint32_t at, std::span<const std::byte, kPageBytes> page) {
  const std::byte* const from = page.data() + kPageHeaderBytes + size_t{at} * kLeafEntryBytes;
  return {.branch = load_le<uint32_t>(from),
          .blocks = load_le<uint32_t>(from + 4),
          .block = load_le<uint64_t>(from + 8),
          .lsn = load_le<uint64_t>(from + 16),
          .place = load_le<uint64_t>(from + 24)};
}
void encode_child(const Child& child, uint32_t at, std::span<std::byte, kPageBytes> page);
inline Child decode_child(uint32_t at, std::span<const std::byte, kPageBytes> page) {
  const std::byte* const from = page.data() + kPageHeaderBytes + size_t{at} * kInnerEntryBytes;
  return {.branch = load_le<uint32_t>(from),
          .blocks = load_le<uint32_t>(from + 4),
          .block = load_le<uint64_t>(from + 8),
          .lsn = load_le<uint64_t>(from + 16),
          .offset = load_le<uint64_t>(from + 24),
          .crc = load_le<uint32_t>(from + 32),
          .flags = load_le<uint32_t>(from + 36)};
}

class MetadataCipher;  // crypt.h

// Writes the header last, over entries that are there; what lies behind them must be zero. Returns the page's CRC field. With a
// cipher the page is then as it is on the disk, and not as it is in memory.
uint32_t seal_page(const PageHeader& header, uint64_t offset, const Sums& sums, std::span<std::byte, kPageBytes> page,
                   MetadataCipher* cipher = nullptr);
// None: damaged, of another place, or of another volume. Says nothing about the entries but how many there are. With a cipher
// the page becomes what it is in memory.
std::optional<PageHeader> check_page(uint64_t offset, const Sums& sums, std::span<std::byte, kPageBytes> page,
                                     const MetadataCipher* cipher = nullptr);

// --- Manifest -------------------------------------------------------------------------------------------------------

// Where the next record goes, and what it must fit.
struct LogPosition {
  uint64_t segment = 0;
  uint64_t offset = 0;  // in the segment
  uint64_t next_lsn = 1;
  uint32_t chain = 0;
  uint64_t time_ns = 0;
  uint64_t durable_lsn = 0;
  Id incarnation;
  bool operator==(const LogPosition&) const = default;
};

// kLeaving: nothing of this manifest is in it, but the one before may lead there.
enum class SegmentState : uint32_t { kFree = 0, kLog = 1, kCopies = 2, kMetadata = 3, kLeaving = 4 };

struct SegmentInfo {
  SegmentState state = SegmentState::kFree;
  uint32_t live_bytes = 0;
  uint64_t highest_lsn = 0;
  bool operator==(const SegmentInfo&) const = default;
};

// From record `record` on, the branch is as it was at `target`.
struct Rewind {
  uint64_t record = 0;
  uint64_t target = 0;
  bool operator==(const Rewind&) const = default;
};

// Before record `record` the branch had this size.
struct Resized {
  uint64_t record = 0;
  uint64_t before_bytes = 0;
  bool operator==(const Resized&) const = default;
};

struct BranchInfo {
  uint32_t number = kHeadBranch;
  std::string name = {};  // empty: the volume's own
  uint64_t size_bytes = 0;
  Point parent = {};  // branch 0: none
  std::vector<Rewind> rewinds = {};
  uint64_t born = 0;  // the LSN of the record that made it
  std::vector<Resized> resizes = {};  // those with a retained point before them
  bool operator==(const BranchInfo&) const = default;
};

struct SnapshotInfo {
  std::string name;
  Point point;
  uint64_t time_ns = 0;
  uint64_t size_bytes = 0;
  SnapshotIdentity origin = {};  // of one that was received
  bool operator==(const SnapshotInfo&) const = default;
};

// Of a snapshot of the volume with this uuid.
inline SnapshotIdentity identity_of(const SnapshotInfo& snapshot, const Id& uuid) {
  if (!snapshot.origin.volume.is_zero()) return snapshot.origin;
  return {.volume = uuid, .branch = snapshot.point.branch, .lsn = snapshot.point.lsn, .time_ns = snapshot.time_ns};
}

struct Setting {
  std::string key;
  std::string value;
  bool operator==(const Setting&) const = default;
};

// At this time the volume was as record `lsn` left it, with so many bytes of log behind it since it was made.
struct Moment {
  uint64_t time_ns = 0;
  uint64_t lsn = 0;
  uint64_t log_bytes = 0;
  bool operator==(const Moment&) const = default;
};

// What is kept of what nobody has named: every point from from_lsn on.
struct HistoryInfo {
  static constexpr uint64_t kNone = ~uint64_t{0};
  uint64_t from_lsn = kNone;
  uint64_t log_bytes = 0;
  std::vector<Moment> moments = {};  // ascending
  bool operator==(const HistoryInfo&) const = default;
};

struct IndexRoot {
  uint64_t offset = 0;  // 0: the index is empty
  uint32_t level = 0;
  uint32_t crc = 0;
  uint64_t entries = 0;
  bool operator==(const IndexRoot&) const = default;
};

// What is still to be looked at for versions that no point reads any more: from this extent of the index on.
struct Sweep {
  enum class Of : uint32_t { kNothing = 0, kCovered = 1, kAll = 2 };  // extents with several versions and of branches that are gone
  Of of = Of::kNothing;
  uint32_t branch = 0;
  uint64_t block = 0;
  bool operator==(const Sweep&) const = default;
};

struct Manifest {
  LogPosition log;
  std::vector<SegmentInfo> segments;  // by number
  std::vector<BranchInfo> branches;
  std::vector<SnapshotInfo> snapshots;
  IndexRoot index;
  std::vector<std::byte> owners;
  uint32_t next_branch = kHeadBranch + 1;  // no branch has ever had this number, or a higher one
  std::vector<Setting> settings;           // those that are not as usual, by key
  HistoryInfo history;
  std::optional<Receiving> receiving;
  Sweep sweep;
  // Sections that this version does not know and may ignore: kept as they are.
  struct Section {
    uint32_t kind = 0;
    std::vector<std::byte> bytes;
    bool operator==(const Section&) const = default;
  };
  std::vector<Section> unknown;
  bool operator==(const Manifest&) const = default;
};

std::vector<std::byte> encode(const Manifest& manifest);
// EBADMSG: not a manifest. EPROTONOSUPPORT: a section that must not be ignored.
Result<Manifest> decode_manifest(std::span<const std::byte> bytes);

}  // namespace netblk::store::volume
