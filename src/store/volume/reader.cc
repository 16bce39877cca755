// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/reader.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "base/log.h"
#include "store/volume/codec.h"
#include "store/volume/file_io.h"

namespace netblk::store::volume {
namespace {

// Of one look at the index.
constexpr size_t kEntriesAtOnce = 128;
// Of compressed payloads: what of a read is in more of them comes afterwards.
constexpr size_t kStoredAtOnce = 1u << 20;

// Memory of one read, which a thread uses again.
struct Scratch {
  struct Header {
    std::array<std::byte, kMaxHeaderBytes> bytes;
  };
  // Parts that follow one another in the file.
  struct Stretch {
    uint64_t offset = 0;
    uint64_t end = 0;
    size_t first_part = 0;
  };
  std::vector<Entry> entries;
  std::vector<Header> headers;  // one for each entry
  std::vector<iovec> parts;
  std::vector<Stretch> stretches;
  // The first and the last block of the read, where it wants only a part of them.
  std::array<std::byte, kBlockBytes> first, last;
  // Compressed payloads as they are read, one behind the other; and one of them decompressed.
  std::vector<std::byte> stored, plain;

  void add(uint64_t offset, std::span<std::byte> bytes) {
    if (stretches.empty() || stretches.back().end != offset) stretches.push_back({offset, offset, parts.size()});
    stretches.back().end += bytes.size();
    iovec* const before = parts.size() > stretches.back().first_part ? &parts.back() : nullptr;
    if (before != nullptr && static_cast<std::byte*>(before->iov_base) + before->iov_len == bytes.data()) {
      before->iov_len += bytes.size();
    } else {
      parts.push_back(part(bytes));
    }
  }
  void clear() {
    entries.clear();
    parts.clear();
    stretches.clear();
  }
};

class Borrowed {
 public:
  Borrowed() {
    auto& free = kept();
    if (free.empty()) {
      scratch_ = std::make_unique<Scratch>();
    } else {
      scratch_ = std::move(free.back());
      free.pop_back();
    }
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() {
    scratch_->clear();
    if (kept().size() < kMostKept) kept().push_back(std::move(scratch_));
  }
  Scratch& operator*() { return *scratch_; }

 private:
  static constexpr size_t kMostKept = 64;
  static std::vector<std::unique_ptr<Scratch>>& kept() {
    static thread_local std::vector<std::unique_ptr<Scratch>> free;
    return free;
  }
  std::unique_ptr<Scratch> scratch_;
};

// The range that is asked for, and where each of its blocks goes.
struct Target {
  uint64_t offset;
  std::span<std::byte> into;
  Scratch& scratch;

  uint64_t end() const { return offset + into.size(); }
  bool whole(uint64_t block) const { return block * kBlockBytes >= offset && (block + 1) * kBlockBytes <= end(); }
  std::span<std::byte> room(uint64_t block) const {
    if (whole(block)) return into.subspan(block * kBlockBytes - offset, kBlockBytes);
    return block == offset / kBlockBytes ? scratch.first : scratch.last;
  }
  // What the range wants of a block that is only partly in it.
  void copy_edge(uint64_t block) const {
    const uint64_t from = std::max(block * kBlockBytes, offset);
    const uint64_t until = std::min((block + 1) * kBlockBytes, end());
    std::memcpy(into.data() + (from - offset), room(block).data() + (from - block * kBlockBytes), until - from);
  }
  // Where the blocks of an entry go, if that is one piece of what is asked for.
  std::span<std::byte> piece(const Entry& entry) const {
    if (!whole(entry.block) || !whole(end_of(entry) - 1)) return {};
    return into.subspan(entry.block * kBlockBytes - offset, size_t{entry.blocks} * kBlockBytes);
  }
  void copy_edges(const Entry& entry) const {
    if (!whole(entry.block)) copy_edge(entry.block);
    if (entry.blocks > 1 && !whole(end_of(entry) - 1)) copy_edge(end_of(entry) - 1);
  }
  void clear(const Entry& entry) const {
    const uint64_t from = std::max(entry.block * kBlockBytes, offset);
    const uint64_t until = std::min(end_of(entry) * kBlockBytes, end());
    std::memset(into.data() + (from - offset), 0, until - from);
  }
};

uint64_t stored_bytes_at(uint64_t place) {
  return Place::is_data(place) ? uint64_t{Place::stored_units(place)} * kUnitBytes : 0;
}

void plan(const Core& core, Target& target) {
  Scratch& scratch = target.scratch;
  size_t stored = 0, count = 0;
  for (; count < scratch.entries.size() && stored < kStoredAtOnce; ++count)
    stored += stored_bytes_at(scratch.entries[count].place);
  scratch.entries.resize(count);
  if (scratch.stored.size() < stored) scratch.stored.resize(stored);
  stored = 0;
  scratch.headers.resize(std::max(scratch.headers.size(), scratch.entries.size()));
  for (size_t i = 0; i < scratch.entries.size(); ++i) {
    const Entry& entry = scratch.entries[i];
    if (!Place::is_data(entry.place)) {
      target.clear(entry);
      continue;
    }
    const uint64_t record = Place::offset(entry.place);
    const uint32_t header_bytes = data_header_bytes(entry.place, core.sums.encrypted());
    scratch.add(record, std::span(scratch.headers[i].bytes).first(header_bytes));
    if (const uint64_t bytes = stored_bytes_at(entry.place); bytes != 0) {
      scratch.add(record + header_bytes, std::span(scratch.stored).subspan(stored, bytes));
      stored += bytes;
      continue;
    }
    uint64_t at = record + header_bytes + uint64_t{Place::index(entry.place)} * kBlockBytes;
    for (uint64_t block = entry.block; block < end_of(entry); ++block, at += kBlockBytes)
      scratch.add(at, target.room(block));
  }
}

// Into the blocks that the entry wants of it.
bool decompress_into(const Target& target, const Entry& entry, const RecordHeader& header, std::span<const std::byte> stored) {
  const std::span<std::byte> piece = target.piece(entry);
  const uint8_t flag = header.flags & kCompressed;
  if (piece.size() == size_t{header.blocks} * kBlockBytes) return decompress(flag, stored, piece);
  std::vector<std::byte>& plain = target.scratch.plain;
  plain.resize(size_t{header.blocks} * kBlockBytes);
  if (!decompress(flag, stored, plain)) return false;
  const std::byte* from = plain.data() + size_t{Place::index(entry.place)} * kBlockBytes;
  for (uint64_t block = entry.block; block < end_of(entry); ++block, from += kBlockBytes)
    std::memcpy(target.room(block).data(), from, kBlockBytes);
  return true;
}

// The first of the entry's blocks that is not what the index says; none: all are good, and in their places. `stored`: where its
// payload begins in the scratch, if it is compressed.
std::optional<uint64_t> bad_block(const Core& core, const Target& target, size_t number, size_t stored) {
  const Entry& entry = target.scratch.entries[number];
  const auto header = decode_record(target.scratch.headers[number].bytes, core.sums);
  const uint32_t index = Place::index(entry.place);
  if (!header || !is_record_of(*header, entry)) return entry.block;
  std::optional<Cipher::Use> use;
  if (core.cipher != nullptr) use.emplace(*core.cipher, Cipher::Purpose::kRecords, header->incarnation, false);
  if (header->is_compressed()) {
    const auto payload = std::span(target.scratch.stored).subspan(stored, header->payload_bytes);
    if (!payload_passes(*header, core.sums, payload) || (use && !open_payload(*use, *header, payload)) ||
        !decompress_into(target, entry, *header, payload))
      return entry.block;
    return std::nullopt;
  }
  for (uint32_t i = 0; i < entry.blocks; ++i) {
    const uint64_t block = entry.block + i;
    if (core.sums.block(entry.branch, block, entry.lsn, target.room(block)) != header->sums[index + i]) return block;
    if (use && !open_block(*use, *header, index + i, target.room(block))) return block;
  }
  return std::nullopt;
}

coro::Task<int> look_up(io::Loop& loop, Core& core, const View& view, uint64_t block, uint64_t blocks,
                        std::vector<Entry>& entries) {
  entries.clear();
  if (core.index->try_lookup(view, block, blocks, kEntriesAtOnce, entries)) co_return 0;
  auto found = co_await core.index->lookup(loop, view, block, blocks, kEntriesAtOnce);
  if (!found) {
    log_error("{}: {}", core.options.name, found.error().message);
    co_return found.error().code;
  }
  entries = std::move(found).value();
  co_return 0;
}

// A bad block is damage only if the index still leads there: its segment may have been used again meanwhile.
coro::Task<int> judge(io::Loop& loop, Core& core, const View& view, Entry entry, uint64_t block, bool& moved) {
  std::vector<Entry> now;
  const int error = co_await look_up(loop, core, view, entry.block, 1, now);
  if (error != 0) co_return error;
  moved = now.empty() || now[0].lsn != entry.lsn || now[0].branch != entry.branch || now[0].place != entry.place;
  if (moved) co_return 0;
  core.bad_blocks.fetch_add(1, std::memory_order_relaxed);
  log_error("{}: block {} (byte {}) is damaged: its record at byte {} of the file, LSN {}, does not have the sum that was "
            "written; reads of it fail with EIO",
            core.options.name, block, block * kBlockBytes, Place::offset(entry.place), entry.lsn);
  co_return EIO;
}

}  // namespace

coro::Task<int> read_range(io::Loop& loop, Core& core, const View& view, uint64_t offset, std::span<std::byte> into) {
  Borrowed borrowed;
  Scratch& scratch = *borrowed;
  Target target{offset, into, scratch};
  const uint64_t until = (target.end() + kBlockBytes - 1) / kBlockBytes;
  uint64_t block = offset / kBlockBytes;
  while (block < until) {
    scratch.clear();
    const int looked = co_await look_up(loop, core, view, block, until - block, scratch.entries);
    if (looked != 0) co_return looked;
    plan(core, target);
    for (size_t i = 0; i < scratch.stretches.size(); ++i) {
      const size_t first = scratch.stretches[i].first_part;
      const size_t last = i + 1 < scratch.stretches.size() ? scratch.stretches[i + 1].first_part : scratch.parts.size();
      const auto parts = std::span(scratch.parts).subspan(first, last - first);
      const int error = co_await read_parts(loop, *core.file, parts, scratch.stretches[i].offset);
      if (error != 0) {
        log_error("{}: cannot read byte {} of the file: {}", core.options.name, scratch.stretches[i].offset, errno_text(error));
        co_return EIO;
      }
    }
    // Entries that are good are done with; where one has moved, the next round goes on from it.
    uint64_t next = block;
    size_t stored = 0;
    for (size_t i = 0; i < scratch.entries.size(); ++i) {
      const Entry entry = scratch.entries[i];
      if (Place::is_data(entry.place)) {
        const std::optional<uint64_t> bad = bad_block(core, target, i, stored);
        if (bad) {
          bool moved = false;
          const int error = co_await judge(loop, core, view, entry, *bad, moved);
          if (error != 0) co_return error;
          break;
        }
        target.copy_edges(entry);
        stored += stored_bytes_at(entry.place);
      }
      next = end_of(entry);
    }
    block = next;
  }
  co_return 0;
}

}  // namespace netblk::store::volume
