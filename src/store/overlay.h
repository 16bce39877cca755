// SPDX-License-Identifier: GPL-2.0-only
// An overlay: what was changed of an image that stays as it is.
//
// The overlay's file, numbers little-endian:
//   0       the header: magic "NETBLK-OVERLAY-1", u64 bytes of the base, u64 bytes of a block (4096), i64 change time of
//           the base's data in nanoseconds (0: a block device), u32 CRC-32C of samples of the base, u32 CRC-32C of all
//           that; at 512, the boot id of the machine that has it open, 36 characters, or zeroes
//   4096    the durable map: a bit for each block, the least significant first, set if the block is here
//   then    the running map, of the same size: as the durable one, and every change that was answered
//   then    from the next whole MiB on, the blocks, each at its own offset
//
// Crash rules. A bit of the durable map is written only after the block that it names was synced, and is synced itself
// before a flush is answered: after a power loss the disk has what was flushed. A bit of the running map is written
// before a change is answered: after the death of the process alone, on the machine whose boot id is there, the page
// cache still has all that was answered. After a failed sync the boot id goes, and with it the running map.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/request.h"
#include "io/fd.h"
#include "io/file.h"
#include "io/loop.h"
#include "store/job_thread.h"

namespace netblk::store {

inline constexpr uint32_t kOverlayBlockBytes = 4096;

// What is known of the image below.
struct OverlayBase {
  uint64_t size_bytes = 0;
  int64_t changed_ns = 0;
  uint32_t sample_crc = 0;
};

// Which blocks are here, in memory and in the file. All functions may wait for the disk but has() and alike().
class OverlayMap {
 public:
  // A map of nothing. `file`: -1 for an overlay that is not kept; it outlives the map.
  OverlayMap(uint64_t size_bytes, int file);

  // Of a file that is locked. EMEDIUMTYPE: it is no overlay; ESTALE: the base it was made with is not this one.
  Status load(const OverlayBase& base, const std::string& boot_id, bool read_only);
  // A new one, in an empty file. The caller makes it durable.
  Status create(const OverlayBase& base, const std::string& boot_id);

  // Where the blocks begin in the file.
  uint64_t data_at() const { return data_at_; }

  bool has(uint64_t block) const {
    return (words_[block / 64].load(std::memory_order_acquire) >> (block % 64) & 1) != 0;
  }
  // Of the blocks [block, end): how many, from the first, are as that one.
  uint64_t alike(uint64_t block, uint64_t end) const;

  // The blocks are in the file: 0, or a negative errno value when that could not be written down.
  int32_t add(uint64_t block, uint64_t end);
  // Makes all that was added, and the blocks, durable: 0 or a negative errno value, which is final. One call at a time.
  int32_t sync();

 private:
  static constexpr uint64_t kPageWords = 512;
  int32_t write_words(uint64_t at, const std::vector<uint64_t>& words) const;
  std::vector<uint64_t> copy_of(uint64_t first_word, uint64_t count) const;
  Status read_map(uint64_t at);
  int32_t write_boot_id(const std::string& boot_id) const;

  const int file_;
  const uint64_t word_count_;  // whole pages of 4096 bytes
  const uint64_t data_at_;
  std::unique_ptr<std::atomic<uint64_t>[]> words_;
  std::unique_ptr<std::atomic<bool>[]> unsynced_;  // pages that the durable map has not
  std::mutex writing_;  // of the running map: a later copy of a word is written later
};

// The image with what lies over it, as one file. Changes of one block are the caller's to keep apart.
class OverlayFile final : public io::File {
 public:
  OverlayFile(std::unique_ptr<io::File> base, std::unique_ptr<io::File> top, io::UniqueFd base_fd, io::UniqueFd top_fd,
              std::unique_ptr<OverlayMap> map, bool kept);
  ~OverlayFile() override { jobs_.finish(); }

  bool read(io::Loop& loop, io::Op& op, std::span<std::byte> into, uint64_t offset) override;
  bool write(io::Loop& loop, io::Op& op, std::span<const std::byte> from, uint64_t offset) override;
  bool datasync(io::Loop& loop, io::Op& op) override;
  // Whole blocks.
  bool punch_hole(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) override;

  // Waits for the disk. A positive errno value: it is not durable.
  int sync_now() { return kept_ ? -map_->sync() : 0; }
  void find_extents(block::Request& request) const;

 private:
  struct Step;
  struct Synced : coro::Posted {
    Synced() : Posted([](coro::Runnable& self) {
        auto& synced = static_cast<Synced&>(self);
        synced.op->complete(synced.result);
      }) {}
    io::Op* op = nullptr;
    int32_t result = 0;
  };

  std::unique_ptr<io::File> base_, top_;
  io::UniqueFd base_fd_, top_fd_;
  std::unique_ptr<OverlayMap> map_;
  const bool kept_;
  Synced synced_;
  JobThread jobs_;  // the last: its jobs use the others
};

}  // namespace netblk::store
