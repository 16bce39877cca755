// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/contents.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/endian.h"

namespace netblk::store::volume {
namespace {

// Others for other numbers.
Id mixed(Id id, uint32_t high, uint64_t low) {
  std::byte* const bytes = std::as_writable_bytes(std::span(id.bytes)).data();
  store_be(bytes + 4, load_be<uint32_t>(bytes + 4) ^ high);
  store_be(bytes + 8, load_be<uint64_t>(bytes + 8) ^ low);
  return id;
}

struct OwnersRecord {
  Id contents;
  std::span<const std::byte> record;
};

constexpr size_t kIdBytes = sizeof Id::bytes, kHeadBytes = kIdBytes + sizeof(uint32_t);

Id id_in(std::span<const std::byte> from) {
  Id id;
  std::copy_n(from.begin(), kIdBytes, std::as_writable_bytes(std::span(id.bytes)).begin());
  return id;
}

// What makes no sense ends it: whoever is told no owner lets nobody back in.
std::optional<OwnersRecord> next_record(std::span<const std::byte>& records) {
  if (records.size() < kHeadBytes) return std::nullopt;
  const size_t bytes = load_le<uint32_t>(records.data() + kIdBytes);
  if (bytes > records.size() - kHeadBytes) return std::nullopt;
  const OwnersRecord found{id_in(records), records.subspan(kHeadBytes, bytes)};
  records = records.subspan(kHeadBytes + bytes);
  return found;
}

void append(std::vector<std::byte>& to, const OwnersRecord& one) {
  const auto id = std::as_bytes(std::span(one.contents.bytes));
  to.insert(to.end(), id.begin(), id.end());
  std::byte length[sizeof(uint32_t)];
  store_le(length, static_cast<uint32_t>(one.record.size()));
  to.insert(to.end(), std::begin(length), std::end(length));
  to.insert(to.end(), one.record.begin(), one.record.end());
}

}  // namespace

Id contents_of(const Id& volume, const BranchInfo& head) {
  const uint64_t rewound = head.rewinds.empty() ? 0 : head.rewinds.back().record;
  return mixed(volume, head.number - kHeadBranch, rewound);
}

Id contents_of(const Id& volume, Point point) { return mixed(volume, ~point.branch, point.lsn); }

std::vector<std::byte> owners_of(std::span<const std::byte> records, const Id& contents) {
  while (const auto one = next_record(records))
    if (one->contents == contents) return {one->record.begin(), one->record.end()};
  return {};
}

std::vector<std::byte> owners_change(const Id& contents, std::span<const std::byte> record) {
  const auto id = std::as_bytes(std::span(contents.bytes));
  std::vector<std::byte> change(id.begin(), id.end());
  change.insert(change.end(), record.begin(), record.end());
  return change;
}

std::vector<std::byte> with_owners(std::span<const std::byte> records, std::span<const std::byte> change, const Id& volume,
                                   const Points& points) {
  std::vector<std::byte> kept;
  if (change.size() < kIdBytes) return {records.begin(), records.end()};
  const auto is_there = [&](const Id& contents) {
    return std::any_of(points.branches().begin(), points.branches().end(),
                       [&](const BranchInfo& branch) { return contents_of(volume, branch) == contents; });
  };
  const OwnersRecord changed{id_in(change), change.subspan(kIdBytes)};
  while (const auto one = next_record(records))
    if (one->contents != changed.contents && is_there(one->contents)) append(kept, *one);
  if (is_there(changed.contents)) append(kept, changed);
  return kept;
}

}  // namespace netblk::store::volume
