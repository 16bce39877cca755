// SPDX-License-Identifier: GPL-2.0-only
// Volume: an append-only log of changes with an index, snapshots and checksums, in one file (docs/volume-format.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/device.h"
#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"
#include "store/volume/format.h"
#include "store/volume/keys.h"
#include "store/volume/point_name.h"

namespace netblk::store::volume {

// What a volume cannot have from a file or a loop. Thread-safe.
class Environment {
 public:
  virtual ~Environment() = default;
  virtual uint64_t wall_ns() = 0;  // since 1970; may jump
  virtual void random_bytes(std::span<std::byte> into) = 0;
};

struct CreateOptions {
  uint64_t size_bytes = 0;
  uint64_t segment_bytes = 0;  // a power of two, of format.h's bounds; 0: by the size
  std::shared_ptr<const UserKey> key = nullptr;  // it is encrypted, and this opens it
  uint32_t scrypt_log2_n = kScryptLog2N;         // of a passphrase; tests have less time
  std::vector<Setting> settings = {};  // as Volume::set() takes them
};

struct VolumeOptions {
  std::string name = "volume";  // for the log
  bool read_only = false;
  // What was written before this opening, and not synced, is known to be there: the machine has not been started since. Without
  // it an opening after a crash moves the generation.
  bool cache_survived = false;
  uint64_t checkpoint_bytes = 64u << 20;  // so much log since the last checkpoint asks for the next
  uint64_t table_bytes = 16u << 20;       // and so much memory of what changed since
  uint64_t cache_bytes = 160u << 20;      // of index pages
  std::optional<Compression> compression = std::nullopt;  // of what this opening writes, whatever the volume's setting says
  std::shared_ptr<const UserKey> key = nullptr;  // of an encrypted one
  // The file's space is kept within so many hundredths of what is live (0: as the volume's settings say), and so many segments
  // beside.
  uint64_t space_percent = 0;
  uint64_t spare_segments = 12;
  uint64_t idle_ms = 2000;  // without a change, then what can be freed is
  // To write where the file has been written before needs no new space of the file system. Where it may (btrfs, for one), what is
  // free is not kept to be written again: the write could fail for want of space.
  bool overwrites_in_place = true;
  // A write or a sync has failed: the system's cache no longer proves what was written (cache_survived). Called on any thread,
  // perhaps more than once, before anybody is told of the error.
  std::function<void()> on_poison = nullptr;

  // So much memory for the index: five eighths for pages; the tables may grow to four times table_bytes before writes wait; the
  // rest is what the allocator and a merge add.
  void share_memory(uint64_t bytes) {
    cache_bytes = bytes / 8 * 5;
    table_bytes = bytes / 16;
  }
};
// What a volume is given where nothing is said, and what may be said.
inline constexpr uint64_t kDefaultMemoryBytes = 256u << 20;
inline constexpr uint64_t kLeastMemoryBytes = 16u << 20;
inline constexpr uint64_t kMostMemoryBytes = uint64_t{1} << 40;

struct VolumeInfo {
  Id uuid;
  uint64_t generation = 0;
  uint64_t size_bytes = 0;
  uint64_t segment_bytes = 0;
  uint64_t last_lsn = 0;
  uint64_t segments = 0, free_segments = 0;
  uint64_t used_bytes = 0;      // of segments in use
  uint64_t live_bytes = 0;      // of blocks that something reads
  uint64_t index_bytes = 0;     // of pages of the index, and the manifest
  uint64_t file_bytes = 0;      // of space that the file has
  uint64_t garbage_bytes = 0;   // in segments in use, and of no use
  uint64_t collected_bytes = 0; // that the collector has copied since the opening
  uint64_t space_percent = 0;   // what file_bytes is kept within, of live_bytes
  uint64_t index_entries = 0;
  uint64_t bad_blocks = 0;      // reads that ended with EIO because of a sum
  bool read_only = false;
  bool was_clean = false;       // as it was found
  uint64_t replayed_records = 0;
  bool cut = false;             // a tail that was not zeroes was cut
  std::string damage;           // why it is read-only; empty: it is not
  bool encrypted = false;
  uint64_t history_from_lsn = HistoryInfo::kNone;  // every moment from this record on can be seen; kNone: there is no history
  uint64_t history_from_ns = 0;                    // when that was
};

// A state of the volume that can be read.
struct FoundPoint {
  Point point;           // with the LSN kForever: the head of the branch
  uint64_t size_bytes = 0;
};

struct CheckReport {
  uint64_t blocks = 0;               // that were read and compared with their sums
  uint64_t damaged = 0;              // places
  std::vector<std::string> damage;   // one line each, of the first ten thousand: what is damaged, and where
  uint64_t lost_bytes = 0;           // counted as in use, and nothing leads there
};

struct CheckOptions {
  uint64_t bytes_per_second = 0;     // at most; 0: as fast as it goes
  bool alone = false;                // nothing else is done with the volume: what is on the disk beside what is read is looked at too
  std::function<bool()> stopped = {};
  std::function<void(const CheckReport& so_far)> progress = {};
};

// Thread-safe but for close(). The loop that it was opened on runs its checkpoints, and outlives it. Devices end before close(),
// and close() before the end.
class Volume {
 public:
  virtual ~Volume() = default;
  virtual VolumeInfo info() const = 0;
  virtual std::vector<SnapshotInfo> snapshots() const = 0;
  virtual std::vector<BranchInfo> branches() const = 0;  // the volume's own, and its clones
  virtual std::vector<Setting> settings() const = 0;     // all that can be set, as it is

  // A branch is meant by its name: a clone's, or none for the volume's own. LSNs and times are of that branch.
  // ENOENT: there is no such name, or nothing is kept of that moment; the message says how far back the history goes.
  virtual Result<FoundPoint> find_point(const PointName& name, std::string_view of = {}) const = 0;
  // The head, or a clone, for writing; anything else for reading only, which stays as it is for as long as the device is there.
  virtual Result<std::unique_ptr<block::Device>> open_device(const PointName& point = {}) = 0;

  // These on the loop of the opening. What they answer is durable, and has all that was answered before. An LSN: of the record.
  virtual coro::Task<Result<uint64_t>> snapshot(std::string name, std::string of = {}) = 0;
  // A new branch, which begins as that point is.
  virtual coro::Task<Result<uint64_t>> clone(PointName from, std::string name, std::string of = {}) = 0;
  // From now on the branch is as it was at that point of it, and the generation is another. What it was stays as the snapshot
  // before-rewind-LSN. EBUSY: a device of it is open.
  virtual coro::Task<Result<uint64_t>> rewind(PointName to, std::string of = {}) = 0;
  // Whether such a rewind could be, but for who has it open.
  virtual Status can_rewind(const PointName& to, std::string_view of = {}) const = 0;
  virtual Status can_undo_rewind(std::string_view of = {}) const = 0;
  // To where it was before its last rewind.
  virtual coro::Task<Result<uint64_t>> undo_rewind(std::string of = {}) = 0;
  // What lies behind a smaller size is trimmed. Open devices have it with their next refresh_size().
  virtual coro::Task<Status> resize(uint64_t size_bytes, std::string of = {}) = 0;
  virtual coro::Task<Status> set(std::string key, std::string value) = 0;
  // Of a snapshot or of a clone. EBUSY: a device of it is open, or another clone or a snapshot is of it.
  virtual coro::Task<Status> remove(std::string name) = 0;
  // A snapshot that comes from another volume (docs/volume-stream.md). What has come of one that is unfinished: until its end the
  // volume's own disk is shown as it was before, for reading only.
  virtual std::optional<Receiving> receiving() const = 0;
  // Begins, or goes on with what was begun: the device that it is written to, large enough for before and after. As long as it is
  // there, nobody else opens the disk. ESTALE: it is told against a snapshot that is not there, or has been written to since.
  // EEXIST: it is there already. EBUSY: another one is unfinished, or the disk is open.
  virtual coro::Task<Result<std::unique_ptr<block::Device>>> receive(Transfer what) = 0;
  // Everything below has been written to that device: it is where to go on from.
  virtual coro::Task<Status> keep_received(uint64_t offset) = 0;
  // All has been: the disk is the new one, and the snapshot is there. The generation moves.
  virtual coro::Task<Status> end_receiving() = 0;
  // Nothing of it was.
  virtual coro::Task<Status> give_up_receiving() = 0;
  // Reads everything that some retained point reads. An error: it could not be done; damage is in the report.
  virtual coro::Task<Result<CheckReport>> check() = 0;
  // ECANCELED: it was stopped.
  virtual coro::Task<Result<CheckReport>> check(const CheckOptions& options) = 0;
  // The key slots of an encrypted one, in both superblocks durably before the call ends. EOPNOTSUPP: it is not encrypted.
  // `known` proves that who asks may: EKEYREJECTED. The number of the slot that was written.
  virtual std::vector<KeySlotInfo> keys() const = 0;
  // Whether who has this key (null: none) may open the volume: ENOKEY, EKEYREJECTED; EINVAL: it is not encrypted, and needs none.
  virtual Status check_key(const UserKey* key) const = 0;
  virtual coro::Task<Result<uint32_t>> add_key(const UserKey& known, const UserKey& another) = 0;
  virtual coro::Task<Result<uint32_t>> change_key(const UserKey& known, const UserKey& another) = 0;
  virtual coro::Task<Status> remove_key(const UserKey& known, uint32_t slot) = 0;
  // Makes a last checkpoint and says that the volume was closed. An error: it was not, and the next opening replays the log.
  virtual coro::Task<Status> close() = 0;
};

// In an empty file, durably (but for its name). EINVAL: no such size, segment or key.
coro::Task<Status> create_volume(io::Loop& loop, io::File& file, const CreateOptions& options, Environment& environment);
// EBADMSG: no volume, or one that is damaged beyond use. EPROTONOSUPPORT: of another version. EIO: it cannot be read. ENOKEY: it is
// encrypted, and there is no key; EKEYREJECTED: the key does not open it. A volume that has lost what was durable, or that cannot be written in, is opened read-only (VolumeInfo::damage).
coro::Task<Result<std::unique_ptr<Volume>>> open_volume(io::Loop& loop, std::unique_ptr<io::File> file,
                                                        const VolumeOptions& options, Environment& environment);

}  // namespace netblk::store::volume
