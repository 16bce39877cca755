// SPDX-License-Identifier: GPL-2.0-only
#include "full_volume.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>
#include <vector>

#include "common.h"
#include "store/volume/format.h"

namespace bench {
namespace {

namespace volume = netblk::store::volume;

constexpr uint32_t kInLeaf = volume::kLeafEntries * 2 / 3;
constexpr uint32_t kInInner = volume::kInnerEntries * 2 / 3;

// Pages one behind the other, from the beginning of the segments on.
class Pages {
 public:
  Pages(int fd, const volume::Sums& sums) : fd_(fd), sums_(sums) { buffer_.reserve(kAtOnce); }

  // Of a page whose entries have been put into `page`: what its parent says of it. The page is all zeroes then.
  volume::Child add(uint16_t level, uint32_t entries, volume::Child first, std::span<std::byte, volume::kPageBytes> page) {
    first.offset = end_;
    const volume::PageHeader header{.level = level, .entries = static_cast<uint16_t>(entries), .checkpoint = 1, .crc = 0};
    first.crc = volume::seal_page(header, end_, sums_, page);
    put(page);
    std::fill(page.begin(), page.end(), std::byte{0});
    return first;
  }
  void put(std::span<const std::byte> bytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    end_ += bytes.size();
    if (buffer_.size() >= kAtOnce) write();
  }
  void write() {
    if (pwrite(fd_, buffer_.data(), buffer_.size(), static_cast<off_t>(end_ - buffer_.size())) != static_cast<ssize_t>(buffer_.size()))
      die("a full volume: %s", strerror(errno));
    buffer_.clear();
  }
  uint64_t end() const { return end_; }

 private:
  static constexpr size_t kAtOnce = 4u << 20;
  const int fd_;
  const volume::Sums& sums_;
  std::vector<std::byte> buffer_;
  uint64_t end_ = volume::kSegmentsAt;
};

volume::IndexRoot make_index(Pages& pages, uint64_t entries) {
  std::array<std::byte, volume::kPageBytes> page{};
  std::vector<volume::Child> level, above;
  // An odd factor takes each number below a power of two to another one: LSNs without order, each once.
  const uint64_t mask = std::bit_ceil(entries) - 1;
  for (uint64_t block = 0; block < entries;) {
    const uint64_t first = block;
    for (uint32_t at = 0; at < kInLeaf && block < entries; ++at, ++block) {
      const uint64_t lsn = ((block * 0x9e3779b97f4a7c15) & mask) + 1;
      volume::encode_leaf_entry({volume::kHeadBranch, 1, block, lsn, volume::Place::kZero}, at, page);
    }
    const volume::Entry entry = volume::decode_leaf_entry(0, page);
    level.push_back(pages.add(0, static_cast<uint32_t>(block - first),
                              {.branch = entry.branch, .blocks = 1, .block = first, .lsn = entry.lsn}, page));
  }
  uint16_t height = 0;
  while (level.size() > 1) {
    ++height;
    for (size_t at = 0; at < level.size();) {
      const auto count = static_cast<uint32_t>(std::min<size_t>(kInInner, level.size() - at));
      for (uint32_t i = 0; i < count; ++i) volume::encode_child(level[at + i], i, page);
      above.push_back(pages.add(height, count, level[at], page));
      at += count;
    }
    level = std::exchange(above, {});
  }
  return {.offset = level[0].offset, .level = height, .crc = level[0].crc, .entries = entries};
}

}  // namespace

FullVolume make_full_volume(const std::string& path, uint64_t size_bytes, volume::Environment& environment) {
  const netblk::io::UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) die("%s: %s", path.c_str(), strerror(errno));
  FullVolume made{.entries = size_bytes / volume::kBlockBytes};
  volume::Superblock superblock;
  superblock.segment_shift = volume::kDefaultSegmentShift;
  environment.random_bytes(std::as_writable_bytes(std::span(superblock.uuid.bytes)));
  environment.random_bytes(std::as_writable_bytes(std::span(superblock.incarnation.bytes)));
  superblock.checkpoint = superblock.sequence = 1;
  const volume::Sums sums(superblock.uuid);
  Pages pages(fd.get(), sums);
  volume::Manifest manifest;
  manifest.index = make_index(pages, made.entries);
  made.index_bytes = pages.end() - volume::kSegmentsAt;
  const uint64_t segment_bytes = superblock.segment_bytes();
  // The pages, the manifest in a segment of its own, the log, and behind them what the blocks would take.
  const uint64_t of_index = (made.index_bytes + segment_bytes - 1) / segment_bytes;
  uint64_t left = made.index_bytes;
  for (uint64_t i = 0; i < of_index; ++i) {
    const uint64_t live = std::min(left, segment_bytes);
    manifest.segments.push_back({volume::SegmentState::kMetadata, static_cast<uint32_t>(live), 0});
    left -= live;
  }
  const uint64_t manifest_at = of_index, log_at = of_index + 1;
  manifest.segments.push_back({volume::SegmentState::kMetadata, 0, 0});
  manifest.segments.push_back({volume::SegmentState::kLog, 0, 0});
  const uint64_t blocks_each = segment_bytes / (volume::kBlockBytes + volume::record_header_bytes(1));
  for (uint64_t blocks = 0; blocks < made.entries; blocks += blocks_each)
    manifest.segments.push_back({volume::SegmentState::kLog, static_cast<uint32_t>(blocks_each * volume::kBlockBytes), 1});
  manifest.log.segment = log_at;
  manifest.log.next_lsn = std::bit_ceil(made.entries) + 1;
  manifest.log.durable_lsn = manifest.log.next_lsn - 1;
  manifest.log.incarnation = superblock.incarnation;
  manifest.log.time_ns = environment.wall_ns();
  manifest.branches.push_back({.size_bytes = size_bytes});
  const uint64_t length = volume::encode(manifest).size();
  manifest.segments[manifest_at].live_bytes =
      static_cast<uint32_t>((length + volume::kPageBytes - 1) / volume::kPageBytes * volume::kPageBytes);
  const std::vector<std::byte> bytes = volume::encode(manifest);
  pages.put(std::vector<std::byte>(of_index * segment_bytes - made.index_bytes));
  superblock.manifest_offset = pages.end();
  superblock.manifest_bytes = bytes.size();
  superblock.manifest_crc = sums.volume(bytes);
  pages.put(bytes);
  pages.write();
  for (int i = 0; i < 2; ++i, ++superblock.sequence) {
    const volume::SuperblockBytes block = volume::encode(superblock);
    const auto at = static_cast<off_t>(volume::kSuperblockAt[superblock.sequence % 2]);
    if (pwrite(fd.get(), block.data(), block.size(), at) != static_cast<ssize_t>(block.size())) die("%s: %s", path.c_str(), strerror(errno));
  }
  // As long as it would be.
  const auto end = static_cast<off_t>(volume::kSegmentsAt + manifest.segments.size() * segment_bytes);
  if (ftruncate(fd.get(), end) != 0 || fsync(fd.get()) != 0) die("%s: %s", path.c_str(), strerror(errno));
  return made;
}

}  // namespace bench
