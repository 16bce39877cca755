// SPDX-License-Identifier: GPL-2.0-only
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/crc32c.h"
#include "base/parse.h"
#include "store/overlay.h"

namespace netblk::store {
namespace {

constexpr char kMagic[] = "NETBLK-OVERLAY-1";
constexpr size_t kMagicBytes = sizeof kMagic - 1;
constexpr uint64_t kHeaderBytes = 4096;
constexpr uint64_t kBootIdAt = 512;
constexpr size_t kBootIdBytes = 36;
constexpr uint64_t kDataUnit = 1u << 20;

static_assert(std::endian::native == std::endian::little, "the maps are written as they are in memory");

struct Header {
  char magic[kMagicBytes];
  uint64_t base_bytes;
  uint64_t block_bytes;
  int64_t base_changed_ns;
  uint32_t base_crc;
  uint32_t header_crc;
};
static_assert(sizeof(Header) == 48);

uint32_t crc_of(const Header& header) {
  return crc32c(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_crc)));
}

Header header_of(const OverlayBase& base) {
  Header header{};
  std::memcpy(header.magic, kMagic, kMagicBytes);
  header.base_bytes = base.size_bytes;
  header.block_bytes = kOverlayBlockBytes;
  header.base_changed_ns = base.changed_ns;
  header.base_crc = base.sample_crc;
  header.header_crc = crc_of(header);
  return header;
}

// All of it, or a negative errno value.
int32_t write_all(int file, const void* from, uint64_t bytes, uint64_t at) {
  const auto* data = static_cast<const std::byte*>(from);
  while (bytes > 0) {
    const ssize_t put = ::pwrite(file, data, bytes, static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return put < 0 ? -errno : -EIO;
    data += put;
    at += static_cast<uint64_t>(put);
    bytes -= static_cast<uint64_t>(put);
  }
  return 0;
}

int32_t read_all(int file, void* into, uint64_t bytes, uint64_t at) {
  auto* data = static_cast<std::byte*>(into);
  while (bytes > 0) {
    const ssize_t got = ::pread(file, data, bytes, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? -errno : -EIO;
    data += got;
    at += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
  return 0;
}

uint64_t words_for(uint64_t size_bytes) {
  const uint64_t blocks = (size_bytes + kOverlayBlockBytes - 1) / kOverlayBlockBytes;
  const uint64_t words = (blocks + 63) / 64;
  return (words + 511) / 512 * 512;
}

}  // namespace

OverlayMap::OverlayMap(uint64_t size_bytes, int file)
    : file_(file),
      word_count_(words_for(size_bytes)),
      data_at_((kHeaderBytes + 2 * 8 * word_count_ + kDataUnit - 1) / kDataUnit * kDataUnit),
      words_(std::make_unique<std::atomic<uint64_t>[]>(word_count_)),
      unsynced_(std::make_unique<std::atomic<bool>[]>(word_count_ / kPageWords)) {}

Status OverlayMap::create(const OverlayBase& base, const std::string& boot_id) {
  if (::ftruncate(file_, static_cast<off_t>(data_at_ + base.size_bytes)) != 0)
    return make_error(errno, "cannot size it: {}", errno_text(errno));
  const Header header = header_of(base);
  int32_t written = write_all(file_, &header, sizeof header, 0);
  if (written == 0) written = write_boot_id(boot_id);
  if (written != 0) return make_error(-written, "cannot write its header: {}", errno_text(-written));
  return Ok{};
}

Status OverlayMap::load(const OverlayBase& base, const std::string& boot_id, bool read_only) {
  Header header{};
  const int32_t got = read_all(file_, &header, sizeof header, 0);
  if (got != 0) return make_error(-got, "cannot read its header: {}", errno_text(-got));
  if (std::memcmp(header.magic, kMagic, kMagicBytes) != 0 || header.header_crc != crc_of(header) ||
      header.block_bytes != kOverlayBlockBytes)
    return make_error(EMEDIUMTYPE, "it is no overlay; name a file that is not there to make one");
  if (header.base_bytes != base.size_bytes)
    return make_error(ESTALE, "it lies over an image of {} bytes, and this one has {}", header.base_bytes, base.size_bytes);
  if (header.base_crc != base.sample_crc || header.base_changed_ns != base.changed_ns)
    return make_error(ESTALE, "it lies over another image, or this one was changed since: the two do not fit together any more");
  std::string found(kBootIdBytes, '\0');
  if (const int32_t id = read_all(file_, found.data(), found.size(), kBootIdAt); id != 0)
    return make_error(-id, "cannot read its header: {}", errno_text(-id));
  const bool running = found == boot_id;
  if (auto read = read_map(kHeaderBytes + (running ? 8 * word_count_ : 0)); !read) return read;
  if (read_only) return Ok{};
  // What the running map has and the durable one not is made durable with the first flush.
  for (uint64_t page = 0; page < word_count_ / kPageWords; ++page) unsynced_[page] = running;
  if (running) return Ok{};
  int32_t written = write_words(kHeaderBytes + 8 * word_count_, copy_of(0, word_count_));
  if (written == 0) written = write_boot_id(boot_id);
  if (written != 0) return make_error(-written, "cannot write its map: {}", errno_text(-written));
  return Ok{};
}

Status OverlayMap::read_map(uint64_t at) {
  std::vector<uint64_t> words(word_count_);
  if (const int32_t got = read_all(file_, words.data(), 8 * word_count_, at); got != 0)
    return make_error(-got, "cannot read its map: {}", errno_text(-got));
  for (uint64_t i = 0; i < word_count_; ++i) words_[i].store(words[i], std::memory_order_relaxed);
  return Ok{};
}

std::vector<uint64_t> OverlayMap::copy_of(uint64_t first_word, uint64_t count) const {
  std::vector<uint64_t> words(count);
  for (uint64_t i = 0; i < count; ++i) words[i] = words_[first_word + i].load(std::memory_order_acquire);
  return words;
}

int32_t OverlayMap::write_words(uint64_t at, const std::vector<uint64_t>& words) const {
  return write_all(file_, words.data(), 8 * words.size(), at);
}

int32_t OverlayMap::write_boot_id(const std::string& boot_id) const {
  std::string field = boot_id.substr(0, kBootIdBytes);
  field.resize(kBootIdBytes, '\0');
  return write_all(file_, field.data(), field.size(), kBootIdAt);
}

uint64_t OverlayMap::alike(uint64_t block, uint64_t end) const {
  const uint64_t flip = has(block) ? ~uint64_t{0} : 0;
  uint64_t at = block;
  while (at < end) {
    const uint64_t others = (words_[at / 64].load(std::memory_order_acquire) ^ flip) >> (at % 64);
    if (others != 0) return std::min(at + static_cast<uint64_t>(std::countr_zero(others)), end) - block;
    at = (at / 64 + 1) * 64;
  }
  return end - block;
}

int32_t OverlayMap::add(uint64_t block, uint64_t end) {
  const uint64_t first_word = block / 64, words = (end - 1) / 64 - first_word + 1;
  bool changed = false;
  for (uint64_t at = block; at < end;) {
    const uint64_t bits = std::min(end - at, 64 - at % 64);
    const uint64_t mask = (bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1) << (at % 64);
    const uint64_t before = words_[at / 64].fetch_or(mask, std::memory_order_acq_rel);
    if ((before & mask) != mask) {
      changed = true;
      // After the bit: a sync that takes the page's mark away sees the bit.
      unsynced_[at / 64 / kPageWords].store(true, std::memory_order_release);
    }
    at += bits;
  }
  if (!changed || file_ < 0) return 0;
  const std::lock_guard lock(writing_);
  return write_words(kHeaderBytes + 8 * (word_count_ + first_word), copy_of(first_word, words));
}

int32_t OverlayMap::sync() {
  std::vector<std::pair<uint64_t, std::vector<uint64_t>>> pages;
  for (uint64_t page = 0; page < word_count_ / kPageWords; ++page)
    if (unsynced_[page].exchange(false, std::memory_order_acq_rel))
      pages.emplace_back(page, copy_of(page * kPageWords, kPageWords));
  int32_t result = ::fdatasync(file_) == 0 ? 0 : -errno;
  for (const auto& [page, words] : pages)
    if (result == 0) result = write_words(kHeaderBytes + 8 * kPageWords * page, words);
  if (result == 0 && !pages.empty()) result = ::fdatasync(file_) == 0 ? 0 : -errno;
  if (result != 0) (void)write_boot_id("");
  return result;
}

}  // namespace netblk::store
